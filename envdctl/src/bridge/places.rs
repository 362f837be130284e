//! How many clients may be connected at once: as many as were asked for, or as files may be open.
//!
//! A client takes its place when it comes, not before: a listener that kept one for the client that might come would, in a bridge
//! with more sandboxes than places, take it from those who are there. But each listener has a file open, and what sandboxes are
//! added leaves less for clients. Places that are to go are taken at once where they are free, else when their clients leave.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::log::{Level, say};

/// Files that are no connections: stdio, epoll, signals, the folder's watch, the broker, scrapes.
const RESERVED_FILES: usize = 64;
/// Files of one connection, and of the probe that may precede it.
pub(super) const FILES_PER_CLIENT: usize = 2;
/// That all places are taken is not said more often.
const QUIET: Duration = Duration::from_secs(10);

/// How many files `clients` and `listeners` need.
pub(super) const fn files_for(clients: usize, listeners: usize) -> usize {
    RESERVED_FILES + listeners + clients * FILES_PER_CLIENT
}

#[derive(Debug)]
pub(super) struct Places {
    wanted: usize,
    /// How many files may be open.
    files: usize,
    free: Arc<Semaphore>,
    count: Mutex<Count>,
}

#[derive(Debug)]
struct Count {
    /// How many there are, taken or free.
    all: usize,
    /// Taken ones that go when they are left.
    surplus: usize,
    full_said: Option<Instant>,
    few_files_said: bool,
}

/// The place of one client.
#[derive(Debug)]
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    places: Arc<Places>,
}

impl Places {
    /// For `wanted` clients at once, if `files` open files allow it.
    pub(super) fn new(wanted: usize, files: usize) -> Arc<Self> {
        let count = Count { all: wanted, surplus: 0, full_said: None, few_files_said: false };
        let free = Arc::new(Semaphore::new(wanted));
        let places = Self { wanted, files, free, count: Mutex::new(count) };
        places.leave_room_for(1);
        Arc::new(places)
    }

    /// There are so many listeners now.
    pub(super) fn leave_room_for(&self, listeners: usize) {
        let possible = self.files.saturating_sub(files_for(0, listeners)) / FILES_PER_CLIENT;
        let target = possible.clamp(1, self.wanted);
        let mut count = self.lock();
        while count.all < target {
            count.all += 1;
            match count.surplus.checked_sub(1) {
                Some(fewer) => count.surplus = fewer,
                None => self.free.add_permits(1),
            }
        }
        let excess = count.all - target;
        count.all = target;
        count.surplus += excess - self.free.forget_permits(excess);
        if target < self.wanted && !std::mem::replace(&mut count.few_files_said, true) {
            let text = format!(
                "only {} files may be open: serving {target} connections at once instead of {}",
                self.files, self.wanted
            );
            say(Level::Warn, None, "files", &text, &[("connections", &target)]);
        }
    }

    /// A place for a client of `sandbox` that has come; waits for one to be left if all are taken, and says so.
    pub(super) async fn take(self: &Arc<Self>, sandbox: &str) -> Option<Place> {
        let free = || Arc::clone(&self.free);
        let permit = if let Ok(permit) = free().try_acquire_owned() {
            permit
        } else {
            self.say_full(sandbox);
            free().acquire_owned().await.ok()?
        };
        Some(Place { permit: Some(permit), places: Arc::clone(self) })
    }

    fn say_full(&self, sandbox: &str) {
        let now = Instant::now();
        let mut count = self.lock();
        if count.full_said.is_none_or(|at| now.saturating_duration_since(at) >= QUIET) {
            count.full_said = Some(now);
            let text = format!("{} connections, the limit: new ones wait until one ends", count.all);
            say(Level::Warn, Some(sandbox), "full", &text, &[("connections", &count.all)]);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.places.lock();
        if let Some(fewer) = count.surplus.checked_sub(1) {
            count.surplus = fewer;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Room for 4 clients next to one listener.
    fn places() -> Arc<Places> {
        Places::new(100, files_for(4, 1))
    }

    #[tokio::test]
    async fn listeners_leave_less_for_clients_and_give_it_back() {
        let places = places();
        assert_eq!(places.free.available_permits(), 4);
        places.leave_room_for(5);
        assert_eq!(places.free.available_permits(), 2);
        places.leave_room_for(1000);
        assert_eq!(places.free.available_permits(), 1, "never so many that no client is served");
        places.leave_room_for(1);
        assert_eq!(places.free.available_permits(), 4);
    }

    #[tokio::test]
    async fn a_place_that_is_taken_goes_when_it_is_left() {
        let places = places();
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(places.take("s").await.unwrap());
        }
        places.leave_room_for(5);
        taken.truncate(2);
        assert_eq!(places.free.available_permits(), 0);
        taken.clear();
        assert_eq!(places.free.available_permits(), 2);
    }

    #[tokio::test]
    async fn a_place_that_was_to_go_stays_when_there_is_room_again() {
        let places = places();
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(places.take("s").await.unwrap());
        }
        places.leave_room_for(5);
        places.leave_room_for(1);
        taken.clear();
        assert_eq!(places.free.available_permits(), 4);
    }
}
