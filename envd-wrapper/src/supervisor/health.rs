//! Whether envd serves: probes, what they prove, and what is said of it.

use std::time::Duration;

use guest::clock::{self, Moment, Seconds};
use guest::reactor::Interest;
use guest::supervise::{Event, ProbeFailure, State};
use nix::errno::Errno;
use tracing::{info, warn};

use super::{PROBE, SLOW, Supervisor};
use crate::evidence;
use crate::probe::{Failure, Outcome, Probe};

/// A process of this age that does not listen yet is no news.
const YOUNG: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn begin_probe(&mut self) -> Option<Event> {
        self.probe_begun = clock::now();
        let mut probe = match Probe::begin(self.settings.port()) {
            Ok(probe) => probe,
            Err(failure) => return Some(self.judge(failure)),
        };
        // On loopback the handshake is over by now, and asking at once saves a wake-up.
        let outcome = probe.advance();
        if let Outcome::Failed(failure) = outcome {
            return Some(self.judge(failure));
        }
        let interest = if probe.is_connecting() { Interest::Write } else { Interest::Read };
        if let Err(error) = self.reactor.add(probe.descriptor(), PROBE, interest) {
            return Some(Event::Inconclusive(error.to_string()));
        }
        self.probe = Some(probe);
        (outcome == Outcome::Accepted).then_some(Event::Listening)
    }

    pub(super) fn advance_probe(&mut self) {
        let Some(probe) = &mut self.probe else { return };
        match probe.advance() {
            Outcome::Waiting => {}
            Outcome::Accepted => {
                let _ = self.reactor.modify(probe.descriptor(), PROBE, Interest::Read);
                self.feed(Event::Listening);
            }
            Outcome::Healthy => {
                self.probe = None;
                self.tell_slowness();
                self.tell_sight(None);
                self.feed(Event::Ready);
                self.look_at_version();
            }
            Outcome::Failed(failure) => {
                self.probe = None;
                let event = self.judge(failure);
                self.feed(event);
            }
        }
    }

    /// What a failed probe proves. In the first moments of a start a refusal is the rule, and is taken as it is.
    pub(super) fn judge(&mut self, failure: Failure) -> Event {
        let serving = matches!(self.machine.state(), State::Healthy | State::Unhealthy);
        let young = clock::now().saturating_sub(self.machine.started()) < YOUNG;
        if !serving && young && failure == Failure::NoWay(Errno::ECONNREFUSED) {
            return Event::ProbeFailed(ProbeFailure::Refused);
        }
        let event = evidence::weigh(failure, || evidence::look_up(self.settings.port()));
        if serving {
            let why = if let Event::Inconclusive(why) = &event { Some(why.as_str()) } else { None };
            self.tell_sight(why);
        }
        event
    }

    /// Said when envd can no longer be checked, and when it can be again; nobody is ended for that.
    fn tell_sight(&mut self, blind: Option<&str>) {
        match (std::mem::replace(&mut self.blind, blind.is_some()), blind) {
            (false, Some(why)) => warn!("envd cannot be checked: {why}; it is left alone"),
            (true, None) => info!("envd can be checked again"),
            _ => {}
        }
    }

    /// Slow is neither dead nor unhealthy: it is said when it begins and when it is over, and nobody is ended for it.
    fn tell_slowness(&mut self) {
        let took = clock::now().saturating_sub(self.probe_begun);
        match (self.slow, took > SLOW) {
            (false, true) => warn!("envd is slow: /health took {:.1} s", Seconds(took)),
            (true, false) => info!("envd is not slow any more"),
            _ => {}
        }
        self.slow = took > SLOW;
    }

    pub(super) fn became(&mut self, state: State, why: Option<&str>, now: Moment) {
        if state != State::Starting {
            self.tell_death();
        }
        if !matches!(state, State::Starting | State::Listening) {
            self.release_console();
        }
        self.status.state = state.as_str().to_owned();
        self.status.restarts = self.machine.restarts();
        let nanos = now.as_nanos() as u64;
        match state {
            State::Listening => self.status.listening_ns = Some(nanos),
            State::Healthy => self.healthy(nanos, why),
            State::Unhealthy => warn!("envd is unhealthy: {}", why.unwrap_or_default()),
            State::Stopping if !self.stopping => warn!("ending envd: {}", why.unwrap_or_default()),
            State::Backoff => info!("envd: {}", why.unwrap_or_default()),
            _ => {}
        }
        self.reporter.changed(&self.status);
    }

    fn healthy(&mut self, nanos: u64, unproven: Option<&str>) {
        let before = self.status.healthy_ns.replace(nanos);
        if unproven.is_some() {
            self.tell_sight(unproven);
        } else if before.is_some() {
            info!("envd is healthy again");
        } else {
            let exec = self.status.exec_ns.unwrap_or(nanos);
            let took = Seconds(Duration::from_nanos(nanos.saturating_sub(exec)));
            info!("envd is healthy, {took:.3} s after exec");
        }
        if let Some(keep) = &mut self.keep {
            keep.healthy(&self.status);
        }
    }
}
