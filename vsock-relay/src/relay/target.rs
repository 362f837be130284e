//! Where connections are led, and what happens while nobody listens there.
//!
//! | state | new connection | leaves |
//! |---|---|---|
//! | up | dialled at once | a dial fails → down |
//! | down | held | one held connection is dialled after 5 ms, then after twice as long each time, up to 100 ms; when it connects → up, and all that are held are dialled |
//!
//! There is one probe at a time however many connections wait, and no timer when none does. A connection that has been
//! held for the hold time is closed; one whose client leaves is forgotten.

use std::{collections::VecDeque, io, time::Duration};

use guest::clock::{Moment, Seconds};
use tracing::{debug, info, warn};

use super::{connection::Key, quiet::Quiet};
use crate::endpoint::Endpoint;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Outage {
    since: Moment,
    pause: Duration,
    next: Moment,
    told: bool,
}

/// One target and who waits for it.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    held: VecDeque<Key>,
    outage: Option<Outage>,
    /// A target that flaps would fill the console.
    quiet: Quiet,
    expired: u64,
}

impl Target {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, held: VecDeque::new(), outage: None, quiet: Quiet::default(), expired: 0 }
    }

    pub(super) fn is_down(&self) -> bool {
        self.outage.is_some()
    }

    pub(super) fn hold(&mut self, key: Key) {
        self.held.push_back(key);
    }

    pub(super) fn forget(&mut self, key: Key) {
        self.held.retain(|held| *held != key);
    }

    /// A dial failed: its connection is held. `hold` is only for the words.
    pub(super) fn failed(&mut self, key: Key, error: &io::Error, hold: Duration, now: Moment) {
        self.held.push_front(key);
        if let Some(outage) = &mut self.outage {
            if outage.next <= now {
                outage.pause = (outage.pause * 2).min(LONGEST_PAUSE);
                outage.next = now + outage.pause;
            }
            return;
        }
        let told = self.quiet.is_over(now);
        if told {
            info!(
                "{} takes no connections ({error}): holding new ones up to {} s",
                self.endpoint,
                hold.as_secs()
            );
        } else {
            debug!("{} takes no connections again ({error})", self.endpoint);
        }
        self.outage = Some(Outage { since: now, pause: FIRST_PAUSE, next: now + FIRST_PAUSE, told });
    }

    /// A dial succeeded: whoever is held may be dialled now.
    pub(super) fn connected(&mut self, now: impl FnOnce() -> Moment) -> VecDeque<Key> {
        let Some(outage) = self.outage.take() else { return VecDeque::new() };
        if outage.told {
            let lasted = now().saturating_sub(outage.since);
            info!(
                "{} takes connections again after {:.1} s ({} held, {} given up)",
                self.endpoint,
                Seconds(lasted),
                self.held.len() + 1,
                self.expired
            );
        }
        self.expired = 0;
        std::mem::take(&mut self.held)
    }

    /// When the next probe is due; `None` while nobody waits.
    pub(super) fn next_probe(&self) -> Option<Moment> {
        self.outage.as_ref().filter(|_| !self.held.is_empty()).map(|outage| outage.next)
    }

    /// Takes the connection with which to probe, when one is due.
    pub(super) fn probe(&mut self, now: Moment) -> Option<Key> {
        let outage = self.outage.as_mut().filter(|outage| outage.next <= now)?;
        let key = self.held.pop_front()?;
        outage.pause = (outage.pause * 2).min(LONGEST_PAUSE);
        outage.next = now + outage.pause;
        Some(key)
    }

    /// Drops from the queue, and returns, those for which `is_due` holds.
    pub(super) fn expire(&mut self, is_due: impl Fn(Key) -> bool) -> Vec<Key> {
        let due: Vec<Key> = self.held.iter().copied().filter(|key| is_due(*key)).collect();
        if !due.is_empty() {
            self.held.retain(|key| !due.contains(key));
            if self.expired == 0 {
                warn!(
                    "{} has taken no connection for the whole hold time: closing the oldest held ones",
                    self.endpoint
                );
            }
            self.expired += due.len() as u64;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target::new("tcp:127.0.0.1:1".parse().unwrap())
    }

    fn refused() -> io::Error {
        io::Error::from(io::ErrorKind::ConnectionRefused)
    }

    fn ms(count: u64) -> Moment {
        Duration::from_millis(count)
    }

    fn key(id: u64) -> Key {
        Key { slot: id as usize, id }
    }

    #[test]
    fn one_probe_at_a_time_however_many_wait() {
        let mut target = target();
        target.failed(key(1), &refused(), ms(10_000), ms(0));
        target.hold(key(2));
        assert_eq!(target.probe(ms(4)), None);
        assert_eq!(target.probe(ms(5)), Some(key(1)));
        assert_eq!(target.probe(ms(5)), None);
        target.failed(key(1), &refused(), ms(10_000), ms(6));
        assert_eq!(target.next_probe(), Some(ms(15)));
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut target = target();
        target.failed(key(1), &refused(), ms(10_000), ms(0));
        let mut last = ms(0);
        for _ in 0..10 {
            let now = target.next_probe().unwrap();
            assert!(now <= last + LONGEST_PAUSE);
            last = now;
            let key = target.probe(now).unwrap();
            target.failed(key, &refused(), ms(10_000), now);
        }
        assert_eq!(target.next_probe().unwrap(), last + LONGEST_PAUSE);
    }

    #[test]
    fn nobody_waiting_means_no_timer() {
        let mut target = target();
        target.failed(key(1), &refused(), ms(10_000), ms(0));
        target.forget(key(1));
        assert_eq!(target.next_probe(), None);
        assert!(target.is_down());
    }

    #[test]
    fn a_success_frees_all_and_expiry_takes_only_the_due() {
        let mut target = target();
        target.failed(key(1), &refused(), ms(10_000), ms(0));
        target.hold(key(2));
        target.hold(key(3));
        assert_eq!(target.expire(|key| key.id == 2), [key(2)]);
        assert_eq!(target.connected(|| ms(50)), [key(1), key(3)]);
        assert!(!target.is_down());
    }
}
