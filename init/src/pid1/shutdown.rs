//! Going down: an escalation inside one deadline that answers questions to its end.
//!
//! | phase | does | left by |
//! |---|---|---|
//! | `Services` | TERM to each service, those that others wait for last | all down, or its time → `Term` |
//! | `Term` | TERM and CONT to everybody | nobody left, or its time → `Kill` |
//! | `Kill` | KILL to everybody | nobody left, or its time → `Unmount` |
//! | `Unmount` | a child syncs, unmounts, remounts read-only | the child has ended, or the deadline → `Down` |
//! | `Down` | `reboot(2)` | – |
//!
//! A second request skips what is left: `Down` at once. Frozen processes die of KILL as well; nothing is thawed.

use std::time::Duration;

use guest::{clock::Moment, control::ShutdownKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Services,
    Term,
    Kill,
    Unmount,
    Down,
}

/// What the machine has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    StopServices,
    TermAll,
    KillAll,
    Unmount,
    Reboot(ShutdownKind),
}

/// What is seen of the world at a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) services_down: bool,
    pub(super) childless: bool,
    pub(super) unmounted: bool,
}

#[derive(Debug)]
pub(super) struct Shutdown {
    kind: ShutdownKind,
    phase: Phase,
    /// When the phases end at the latest.
    ends: [Moment; 4],
}

/// Share of the whole time, in percent, by which `Services`, `Term`, `Kill` and `Unmount` are over.
const SHARES: [u32; 4] = [50, 70, 80, 100];

impl Shutdown {
    /// A first request.
    pub(super) fn begin(kind: ShutdownKind, timeout: Duration, now: Moment) -> (Self, Action) {
        let ends = SHARES.map(|percent| now + timeout * percent / 100);
        (Self { kind, phase: Phase::Services, ends }, Action::StopServices)
    }

    /// A second request is final.
    pub(super) fn again(&mut self, kind: ShutdownKind) -> Action {
        self.phase = Phase::Down;
        self.kind = kind;
        Action::Reboot(kind)
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`Shutdown::turn`] has to be called at the latest.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.ends.get(self.phase as usize).copied()
    }

    /// Goes on where that is possible; one step a call.
    pub(super) fn turn(&mut self, seen: Seen, now: Moment) -> Option<Action> {
        let over = self.deadline().is_some_and(|at| at <= now);
        let (done, next, action) = match self.phase {
            Phase::Services => (seen.services_down, Phase::Term, Action::TermAll),
            Phase::Term => (seen.childless, Phase::Kill, Action::KillAll),
            Phase::Kill => (seen.childless, Phase::Unmount, Action::Unmount),
            Phase::Unmount => (seen.unmounted, Phase::Down, Action::Reboot(self.kind)),
            Phase::Down => return None,
        };
        if !done && !over {
            return None;
        }
        self.phase = next;
        Some(action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Moment = Duration::from_secs;

    #[test]
    fn a_willing_system_goes_down_without_waiting() {
        let (mut shutdown, first) = Shutdown::begin(ShutdownKind::Reboot, S(10), S(100));
        assert_eq!(first, Action::StopServices);
        let seen = Seen { services_down: true, childless: true, unmounted: true };
        let actions: Vec<_> = std::iter::from_fn(|| shutdown.turn(seen, S(100))).collect();
        let last = Action::Reboot(ShutdownKind::Reboot);
        assert_eq!(actions, [Action::TermAll, Action::KillAll, Action::Unmount, last]);
    }

    #[test]
    fn an_unwilling_system_goes_down_by_the_deadline() {
        let (mut shutdown, _) = Shutdown::begin(ShutdownKind::Halt, S(10), S(0));
        let mut log = Vec::new();
        for second in 0..=10 {
            while let Some(action) = shutdown.turn(Seen::default(), S(second)) {
                log.push((second, action));
            }
        }
        let last = Action::Reboot(ShutdownKind::Halt);
        assert_eq!(log, [(5, Action::TermAll), (7, Action::KillAll), (8, Action::Unmount), (10, last)]);
        assert_eq!(shutdown.deadline(), None);
    }

    #[test]
    fn a_second_request_is_final_at_once() {
        let (mut shutdown, _) = Shutdown::begin(ShutdownKind::Reboot, S(10), S(0));
        assert_eq!(shutdown.again(ShutdownKind::Poweroff), Action::Reboot(ShutdownKind::Poweroff));
        assert_eq!(shutdown.phase(), Phase::Down);
    }
}
