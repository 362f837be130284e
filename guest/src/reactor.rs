//! One epoll set and one signalfd: the only place where a guest program sleeps.
//!
//! A program registers descriptors under a [`Token`] of its own choice and calls [`Reactor::wait`] in a loop. Signals
//! arrive as events like any other; they are blocked for the whole process, so a child must reset its mask (which
//! [`crate::spawn`] does). There are no timers inside: the caller passes the nearest deadline it knows, and none at
//! rest, so that an idle program never wakes up.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        signal::{SigmaskHow, Signal, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
};

use crate::{
    clock::{Moment, now},
    rest::Rest,
    sys,
};

/// What the caller registered a descriptor under.
pub type Token = u64;

/// The token of the signalfd; callers use any other.
const SIGNALS: Token = u64::MAX;
/// A sleep that may be as long as this is rest.
const LONG: Duration = Duration::from_secs(15);
/// Events taken in one turn. More wait in the kernel, in fair order, for the next turn.
const BATCH: usize = 64;

/// Why the reactor cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    #[error("cannot {operation}: {source}")]
    System { operation: &'static str, source: Errno },
}

fn failed(operation: &'static str) -> impl Fn(Errno) -> ReactorError {
    move |source| ReactorError::System { operation, source }
}

/// What a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
    Both,
    /// Only errors and hang-ups, which are always told.
    Hangup,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
            Self::Write => EpollFlags::EPOLLOUT,
            Self::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLOUT,
            Self::Hangup => EpollFlags::empty(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Io(Ready),
    Signal(Received),
}

/// A registered descriptor that can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub token: Token,
    /// Something can be read, the end included.
    pub readable: bool,
    pub writable: bool,
    /// The peer is gone or the descriptor is in error; a read tells which.
    pub hangup: bool,
}

/// A signal and who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub number: i32,
    pub pid: u32,
    pub uid: u32,
}

impl Received {
    /// A real-time signal has no name.
    pub fn signal(self) -> Option<Signal> {
        Signal::try_from(self.number).ok()
    }
}

#[derive(Debug)]
pub struct Reactor {
    epoll: Rc<Epoll>,
    signals: SignalFd,
    rest: RefCell<Rest>,
}

/// A descriptor of ours that is watched for as long as it lives.
///
/// Closing alone does not end that: a child between its fork and its exec holds the same description, and until then (in a
/// frozen cgroup: until the thaw) a pipe that has ended would wake us again and again.
#[derive(Debug)]
pub struct Watched {
    fd: OwnedFd,
    epoll: Rc<Epoll>,
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.epoll.delete(&self.fd); // not watched any more is what was wanted
    }
}

impl Reactor {
    /// Blocks `signals` for this process and takes them as events from now on.
    pub fn new(signals: &[Signal]) -> Result<Self, ReactorError> {
        Self::with_signals(&signals.iter().map(|signal| *signal as i32).collect::<Vec<_>>())
    }

    /// As [`Reactor::new`], with signals by their numbers, real-time ones among them.
    pub fn with_signals(numbers: &[i32]) -> Result<Self, ReactorError> {
        let set = sys::signal_set(numbers);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None).map_err(failed("block signals"))?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(failed("make a signalfd"))?;
        let epoll =
            Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("make an epoll set"))?);
        let reactor = Self { epoll, signals, rest: RefCell::default() };
        reactor.add(&reactor.signals, SIGNALS, Interest::Read)?;
        Ok(reactor)
    }

    /// Takes `fd` over and watches it until it is dropped.
    pub fn watch(&self, fd: OwnedFd, token: Token, interest: Interest) -> Result<Watched, ReactorError> {
        self.add(&fd, token, interest)?;
        Ok(Watched { fd, epoll: Rc::clone(&self.epoll) })
    }

    /// Watches `fd` from now on.
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), ReactorError> {
        self.epoll.add(fd, EpollEvent::new(interest.flags(), token)).map_err(failed("watch a descriptor"))
    }

    /// Changes what a watched `fd` is watched for.
    pub fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), ReactorError> {
        let mut event = EpollEvent::new(interest.flags(), token);
        self.epoll.modify(fd, &mut event).map_err(failed("change what a descriptor is watched for"))
    }

    /// Forgets `fd`; to be called before it is closed (see [`Watched`]).
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd); // not watched any more is what was wanted
    }

    /// Sleeps until something is ready or `deadline` has passed; an empty answer is the latter.
    pub fn wait(&self, deadline: Option<Moment>) -> Result<Vec<Event>, ReactorError> {
        loop {
            let now = now();
            let long = deadline.is_none_or(|deadline| deadline >= now + LONG);
            let settled = if long { self.rest.borrow_mut().begin(now) } else { None };
            let events = self.sleep(timeout(settled.or(deadline), now))?;
            if settled.is_none() || !events.is_empty() {
                return Ok(events);
            }
        }
    }

    fn sleep(&self, timeout: EpollTimeout) -> Result<Vec<Event>, ReactorError> {
        let mut ready = [EpollEvent::empty(); BATCH];
        let count = match self.epoll.wait(&mut ready, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(failed("wait for events")(error)),
        };
        let mut events = Vec::with_capacity(count);
        for event in &ready[..count] {
            match event.data() {
                SIGNALS => self.take_signals(&mut events),
                _ => events.push(io_event(event)),
            }
        }
        Ok(events)
    }

    fn take_signals(&self, events: &mut Vec<Event>) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = info.ssi_signo as i32;
            events.push(Event::Signal(Received { number, pid: info.ssi_pid, uid: info.ssi_uid }));
        }
    }
}

fn io_event(event: &EpollEvent) -> Event {
    let flags = event.events();
    let hangup = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
    Event::Io(Ready {
        token: event.data(),
        readable: hangup || flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP),
        writable: flags.contains(EpollFlags::EPOLLOUT),
        hangup,
    })
}

/// Rounded up to whole milliseconds: waking early would only mean to sleep again.
fn timeout(deadline: Option<Moment>, now: Moment) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_sub(now) + Duration::from_nanos(999_999);
    EpollTimeout::try_from(left.min(Duration::from_hours(24))).unwrap_or(EpollTimeout::ZERO)
}

/// Reads once from a non-blocking descriptor. `None`: nothing there now. `Some(0)`: the end.
pub fn read_ready(fd: &impl AsFd, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    loop {
        match nix::unistd::read(fd, buffer) {
            Ok(count) => return Ok(Some(count)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes a descriptor non-blocking.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_with_data_is_ready_and_a_passed_deadline_is_an_empty_answer() {
        let reactor = Reactor::new(&[]).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        reactor.add(&read, 7, Interest::Read).unwrap();
        assert_eq!(reactor.wait(Some(Moment::ZERO)).unwrap(), []);
        nix::unistd::write(&write, b"x").unwrap();
        let events = reactor.wait(None).unwrap();
        let wanted = Ready { token: 7, readable: true, writable: false, hangup: false };
        assert_eq!(events, [Event::Io(wanted)]);
    }

    #[test]
    fn a_closed_peer_is_told_even_when_nothing_is_watched_for() {
        let reactor = Reactor::new(&[]).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        reactor.add(&read, 1, Interest::Hangup).unwrap();
        drop(write);
        assert!(matches!(reactor.wait(None).unwrap()[..], [Event::Io(Ready { hangup: true, .. })]));
    }

    #[test]
    fn a_closed_pipe_that_a_child_still_holds_wakes_nobody() {
        let reactor = Reactor::new(&[]).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let _held_by_a_child = read.try_clone().unwrap();
        let watched = reactor.watch(read, 1, Interest::Read).unwrap();
        drop(write);
        assert_eq!(reactor.wait(Some(Moment::ZERO)).unwrap().len(), 1);
        drop(watched);
        assert_eq!(reactor.wait(Some(Moment::ZERO)).unwrap(), []);
    }

    #[test]
    fn deadlines_round_up_so_that_no_wake_up_comes_early() {
        let at = |nanos| timeout(Some(Duration::from_nanos(nanos)), Duration::ZERO);
        assert_eq!(at(0), EpollTimeout::ZERO);
        assert_eq!(at(1), EpollTimeout::from(1_u8));
        assert_eq!(at(1_000_000), EpollTimeout::from(1_u8));
        assert_eq!(timeout(None, Duration::ZERO), EpollTimeout::NONE);
    }
}
