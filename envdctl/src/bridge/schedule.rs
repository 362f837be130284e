//! When to probe which route: a state machine without I/O.
//!
//! | route | is probed |
//! |---|---|
//! | the current one | at once when a client waits for a fresh answer; every [`MONITOR`] while clients are open |
//! | one that is preferred to it | every [`RETURN`] while clients are open, to find out when it is well again |
//! | any other | while the current one is broken, or has been silent for [`HEDGE`] |
//!
//! While no client has asked anything for a while (idle connections of a pool, a terminal left open, a stream that only flows
//! out) no route is asked more often than every [`REST`]: each probe wakes the guest. A route that failed is asked again after a pause that doubles from [`FIRST_PAUSE`] to [`MONITOR`]. A probe that has had no answer
//! for [`OVERDUE`] counts as failed, though it goes on: a relay that holds connections for a restarting envd answers
//! late, and then at once. When nobody is there no route is probed.

use std::time::{Duration, Instant};

/// How often the route in use is asked.
pub(super) const MONITOR: Duration = Duration::from_millis(400);
/// How often a preferred route is asked that is not in use.
pub(super) const RETURN: Duration = Duration::from_secs(1);
/// How often any route is asked at most while clients are open that ask nothing.
pub(super) const REST: Duration = Duration::from_secs(3);
/// How long the route in use may be silent until the others are asked too.
pub(super) const HEDGE: Duration = Duration::from_millis(200);
/// How long a route may be silent until another takes its place.
pub(super) const OVERDUE: Duration = Duration::from_millis(500);
/// How long a probe lives: packets that were dropped are sent again ever more rarely, a new connect is quicker.
pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(25);

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    begun: Option<Instant>,
    overdue: bool,
    ended: Option<Instant>,
    failures: u32,
}

/// What the schedule has to know of the world.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) current: usize,
    pub(super) current_broken: bool,
    /// A client waits, and the last answer of the current route is too old for it.
    pub(super) wanted: bool,
    /// No client has sent anything for a while, and none waits.
    pub(super) quiet: bool,
}

#[derive(Debug)]
pub(super) struct Schedule {
    slots: Vec<Slot>,
}

impl Schedule {
    pub(super) fn new(routes: usize) -> Self {
        Self { slots: vec![Slot::default(); routes] }
    }

    /// The routes to probe now.
    pub(super) fn due(&self, view: View, now: Instant) -> Vec<usize> {
        (0..self.slots.len())
            .filter(|route| self.due_at(*route, view, now).is_some_and(|at| at <= now))
            .collect()
    }

    pub(super) fn begun(&mut self, route: usize, now: Instant) {
        self.slots[route].begun = Some(now);
        self.slots[route].overdue = false;
    }

    pub(super) fn ended(&mut self, route: usize, well: bool, now: Instant) {
        let slot = &mut self.slots[route];
        slot.begun = None;
        slot.ended = Some(now);
        slot.failures = if well { 0 } else { slot.failures.saturating_add(1) };
    }

    /// Probes that have just become overdue, with the time they began.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(usize, Instant)> {
        let mut overdue = Vec::new();
        for (route, slot) in self.slots.iter_mut().enumerate() {
            if let Some(begun) = slot.begun.filter(|begun| !slot.overdue && now >= *begun + OVERDUE) {
                slot.overdue = true;
                overdue.push((route, begun));
            }
        }
        overdue
    }

    /// When to look again.
    pub(super) fn wake_at(&self, view: View, now: Instant) -> Option<Instant> {
        (0..self.slots.len()).filter_map(|route| self.look_at(route, view, now)).min()
    }

    fn look_at(&self, route: usize, view: View, now: Instant) -> Option<Instant> {
        let slot = &self.slots[route];
        let Some(begun) = slot.begun else { return self.due_at(route, view, now) };
        let hedge = Some(begun + HEDGE).filter(|at| route == view.current && *at > now);
        let overdue = Some(begun + OVERDUE).filter(|_| !slot.overdue);
        hedge.into_iter().chain(overdue).min()
    }

    fn due_at(&self, route: usize, view: View, now: Instant) -> Option<Instant> {
        let slot = &self.slots[route];
        if slot.begun.is_some() {
            return None;
        }
        let Some(ended) = slot.ended else { return self.is_of_interest(route, view, now).then_some(now) };
        let pause = if slot.failures > 0 {
            // No point in being quicker than the one who could be relieved.
            (FIRST_PAUSE * 2u32.saturating_pow(slot.failures.min(10) - 1)).min(MONITOR)
        } else if route == view.current {
            if view.wanted { Duration::ZERO } else { MONITOR }
        } else if self.is_urgent(view, now) {
            FIRST_PAUSE
        } else {
            RETURN
        };
        let pause =
            if route != view.current && !self.is_urgent(view, now) { pause.max(RETURN) } else { pause };
        let pause = if view.quiet { pause.max(REST) } else { pause };
        self.is_of_interest(route, view, now).then_some(ended + pause)
    }

    fn is_of_interest(&self, route: usize, view: View, now: Instant) -> bool {
        route <= view.current || self.is_urgent(view, now)
    }

    /// The route in use is in doubt.
    fn is_urgent(&self, view: View, now: Instant) -> bool {
        let silent = self.slots[view.current].begun.is_some_and(|begun| now >= begun + HEDGE);
        view.current_broken || silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: View = View { current: 0, current_broken: false, wanted: false, quiet: false };

    fn schedule() -> (Schedule, Instant) {
        (Schedule::new(2), Instant::now())
    }

    #[test]
    fn only_the_current_route_is_asked_while_it_answers() {
        let (mut schedule, now) = schedule();
        assert_eq!(schedule.due(WELL, now), [0]);
        schedule.begun(0, now);
        assert!(schedule.due(WELL, now).is_empty());
        schedule.ended(0, true, now);
        assert!(schedule.due(WELL, now).is_empty());
        assert_eq!(schedule.wake_at(WELL, now), Some(now + MONITOR));
        assert_eq!(schedule.due(View { wanted: true, ..WELL }, now), [0]);
    }

    #[test]
    fn clients_that_ask_nothing_cost_few_probes_and_one_that_asks_is_not_kept_waiting() {
        let (mut schedule, now) = schedule();
        let quiet = View { quiet: true, ..WELL };
        schedule.begun(0, now);
        schedule.ended(0, true, now);
        assert_eq!(schedule.wake_at(quiet, now), Some(now + REST));
        assert_eq!(schedule.due(View { wanted: true, ..WELL }, now), [0]);
        schedule.begun(0, now);
        schedule.ended(0, false, now);
        assert_eq!(
            schedule.wake_at(View { current_broken: true, ..quiet }, now),
            Some(now),
            "the other route, once"
        );
    }

    #[test]
    fn silence_brings_in_the_others_and_then_counts_as_failure() {
        let (mut schedule, now) = schedule();
        schedule.begun(0, now);
        assert_eq!(schedule.wake_at(WELL, now), Some(now + HEDGE));
        assert_eq!(schedule.due(WELL, now + HEDGE), [1]);
        assert!(schedule.overdue(now + HEDGE).is_empty());
        assert_eq!(schedule.overdue(now + OVERDUE), [(0, now)]);
        assert!(schedule.overdue(now + OVERDUE).is_empty());
    }

    #[test]
    fn a_failed_route_is_asked_ever_more_rarely_up_to_a_bound() {
        let (mut schedule, mut now) = schedule();
        let broken = View { current_broken: true, ..WELL };
        schedule.begun(1, now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            schedule.begun(0, now);
            schedule.ended(0, false, now);
            let next = schedule.wake_at(broken, now).unwrap().min(now + MONITOR);
            pauses.push(next.saturating_duration_since(now));
            now = schedule.due_at(0, broken, now).unwrap();
        }
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(schedule.due_at(0, broken, now).unwrap().saturating_duration_since(now) <= MONITOR);
    }

    #[test]
    fn a_preferred_route_is_asked_now_and_then_while_another_serves() {
        let (mut schedule, now) = schedule();
        let second = View { current: 1, ..WELL };
        schedule.begun(0, now);
        schedule.ended(0, false, now);
        schedule.begun(1, now);
        schedule.ended(1, true, now);
        assert!(schedule.due(second, now + MONITOR / 2).is_empty());
        assert_eq!(schedule.due(second, now + RETURN), [0, 1]);
    }
}
