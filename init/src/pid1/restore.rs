//! The one sign of a restore that costs nothing until there is one: the wall clock is set.
//!
//! A machine that comes back from a snapshot does not notice it; its monotonic clock stood still as well. But its wall clock is as late
//! as the snapshot is old, and envd sets it at the first `POST /init`. The kernel tells that to whoever holds a timer that is
//! cancelled by it; nothing else ever ends that timer.
//!
//! | state | left by |
//! |---|---|
//! | not watched | a service that wants to run after a restore is known → watched |
//! | watched | the clock is set forward by [`JUMP`] or more → those services run; any other change → as before |
//!
//! Watched only where a service asks for it: each resume wakes PID 1 then, and touches memory that is fetched over the network.
//! Nothing of the machine's own is to be done: the clock is envd's, randomness the kernel's (VMGENID), a change of the network an
//! event of its own.

use std::time::Duration;

use guest::{
    clock::{self, Seconds},
    reactor::{Interest, Reactor, ReactorError},
};
use nix::{
    sys::{
        time::TimeSpec,
        timer::{Expiration, TimerSetTimeFlags},
        timerfd::{ClockId as TimerClock, TimerFd, TimerFlags},
    },
    time::{ClockId, clock_gettime},
};
use tracing::{info, warn};

use super::machine::{Machine, tokens};

/// Less is somebody who keeps the clock right: envd after a cold boot, whose clock came from one that tells whole seconds, or chrony.
const JUMP: Duration = Duration::from_secs(5);
/// A time that does not come.
const NEVER: Duration = Duration::from_hours(24 * 365 * 1000);

#[derive(Debug)]
pub(super) struct ClockWatch {
    timer: TimerFd,
    /// When the monotonic clock began, by the wall clock.
    begin: Duration,
}

impl ClockWatch {
    fn new(reactor: &Reactor) -> Result<Self, String> {
        let open = || -> nix::Result<TimerFd> {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, flags)?;
            let when = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
            timer.set(Expiration::OneShot(TimeSpec::from_duration(NEVER)), when)?;
            Ok(timer)
        };
        let timer = open().map_err(|errno| errno.desc().to_owned())?;
        let watch = |error: ReactorError| error.to_string();
        reactor.add(&timer, tokens::CLOCK, Interest::Read).map_err(watch)?;
        Ok(Self { timer, begin: begin() })
    }

    /// By how much the clock was set forward, where that is worth a word.
    fn jumped(&mut self) -> Option<Duration> {
        self.timer.wait().ok()?; // a timer that was cancelled
        let before = std::mem::replace(&mut self.begin, begin());
        forward(before, self.begin)
    }
}

fn begin() -> Duration {
    let wall = clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from);
    wall.saturating_sub(clock::now())
}

fn forward(before: Duration, after: Duration) -> Option<Duration> {
    Some(after.saturating_sub(before)).filter(|jump| *jump >= JUMP)
}

impl Machine {
    /// To be called when services have become known.
    pub(super) fn watch_for_restores(&mut self) {
        if self.clock.is_some() || !self.services.any_wants_restores() {
            return;
        }
        match ClockWatch::new(&self.reactor) {
            Ok(watch) => self.clock = Some(watch),
            Err(why) => {
                self.stages
                    .warn(format!("a restore cannot be noticed, services with on_restore do not run: {why}"));
            }
        }
    }

    pub(super) fn clock_was_set(&mut self) {
        let Some(jump) = self.clock.as_mut().and_then(ClockWatch::jumped) else { return };
        if self.shutdown.is_some() {
            return warn!("the clock was set forward by {:.1} s on the way down", Seconds(jump));
        }
        info!("the clock was set forward by {:.1} s, as after a restore", Seconds(jump));
        let (services, world) = self.split();
        services.restored(world);
    }
}

#[cfg(test)]
mod tests {
    use guest::clock::Moment;

    use super::*;

    #[test]
    fn only_a_jump_forward_is_a_restore() {
        let at = Duration::from_secs(1_000_000);
        assert_eq!(forward(at, at + Duration::from_millis(4900)), None);
        assert_eq!(forward(at, at - Duration::from_secs(3600)), None);
        assert_eq!(forward(at, at + Duration::from_secs(3600)), Some(Duration::from_secs(3600)));
    }

    #[test]
    fn a_clock_that_nobody_sets_wakes_nobody() {
        let reactor = Reactor::new(&[]).unwrap();
        let mut watch = ClockWatch::new(&reactor).unwrap();
        assert_eq!(reactor.wait(Some(Moment::ZERO)).unwrap(), []);
        assert_eq!(watch.jumped(), None);
    }
}
