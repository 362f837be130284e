//! Which route a sandbox uses: a state machine without I/O. Answers of probes go in with the time at which they came;
//! out comes the route, and each change with its reason.
//!
//! | route is | because | used for new connections |
//! |---|---|---|
//! | unknown | never asked, or the last answer is older than [`FRESH`] | after it has been asked |
//! | well | it answered within the last [`FRESH`] | yes, if it is the current one |
//! | broken | it refused, reset, answered wrongly, or was silent while another route answered | no |
//!
//! | change | when |
//! |---|---|
//! | current → another | the current one is broken and the other is well; the first such in the order of preference |
//! | current → a preferred one | that one is well and has not been broken for the return time |
//!
//! When no route answers nothing changes: a guest that is paused or restarts looks alike on all of them.

use std::time::{Duration, Instant};

/// An answer older than this is renewed before a connection is forwarded.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// What went wrong with a route last.
#[derive(Debug, Clone)]
struct Failure {
    at: Instant,
    reason: String,
    /// It only did not answer in time.
    silence: bool,
}

/// What is known of one route.
#[derive(Debug, Clone, Default)]
struct Route {
    last_ok: Option<Instant>,
    last_failure: Option<Failure>,
    latency: Option<Duration>,
    /// A connection over it failed since the last answer.
    doubted: bool,
}

impl Route {
    fn is_well(&self, now: Instant) -> bool {
        !self.doubted
            && !self.is_broken()
            && self.last_ok.is_some_and(|at| now.saturating_duration_since(at) <= FRESH)
    }

    /// The last thing heard of it was a failure.
    fn is_broken(&self) -> bool {
        self.last_failure.as_ref().is_some_and(|failure| self.last_ok.is_none_or(|ok| ok < failure.at))
    }

    fn unbroken_for(&self, now: Instant) -> Option<Duration> {
        self.last_failure.as_ref().map(|failure| now.saturating_duration_since(failure.at))
    }
}

/// A change of route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Switch {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The old route is broken: what is left on it is to be closed.
    pub(super) broken: bool,
    /// It has only been silent, and may yet answer.
    pub(super) silence: bool,
    pub(super) reason: String,
}

/// The routes of one sandbox, in order of preference.
#[derive(Debug)]
pub(super) struct Selector {
    routes: Vec<Route>,
    current: usize,
    return_after: Duration,
}

impl Selector {
    pub(super) fn new(routes: usize, return_after: Duration) -> Self {
        Self { routes: vec![Route::default(); routes], current: 0, return_after }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// The route for a new connection, if its last answer is fresh enough.
    pub(super) fn usable(&self, now: Instant) -> Option<usize> {
        self.routes[self.current].is_well(now).then_some(self.current)
    }

    /// The routes that are well, and when they answered.
    pub(super) fn fresh(&self, now: Instant) -> Vec<(usize, Instant)> {
        let well = self.routes.iter().enumerate().filter(|(_, route)| route.is_well(now));
        well.filter_map(|(index, route)| Some((index, route.last_ok?))).collect()
    }

    pub(super) fn is_broken(&self, route: usize) -> bool {
        self.routes[route].is_broken()
    }

    pub(super) fn latency(&self, route: usize) -> Option<Duration> {
        self.routes[route].latency
    }

    /// Why each route is broken, if it is.
    pub(super) fn reasons(&self) -> Vec<Option<String>> {
        let reason = |route: &Route| {
            route.last_failure.as_ref().filter(|_| route.is_broken()).map(|failure| failure.reason.clone())
        };
        self.routes.iter().map(reason).collect()
    }

    /// A probe of `route` was answered well.
    pub(super) fn answered(&mut self, route: usize, latency: Duration, now: Instant) {
        let route = &mut self.routes[route];
        route.last_ok = Some(now);
        route.latency = Some(latency);
        route.doubted = false;
    }

    /// A probe of `route`, or a connection over it, failed.
    pub(super) fn failed(&mut self, route: usize, reason: String, now: Instant) {
        self.routes[route].last_failure = Some(Failure { at: now, reason, silence: false });
    }

    /// A probe of `route` has had no answer so far.
    pub(super) fn fell_silent(&mut self, route: usize, reason: String, now: Instant) {
        self.routes[route].last_failure = Some(Failure { at: now, reason, silence: true });
    }

    /// A connection over `route` failed: its last answer counts no more.
    pub(super) fn doubt(&mut self, route: usize) {
        self.routes[route].doubted = true;
    }

    #[cfg(test)]
    fn well(&self, route: usize, now: Instant) -> bool {
        self.routes[route].is_well(now)
    }

    /// Changes the route if there is reason to.
    pub(super) fn decide(&mut self, now: Instant) -> Option<Switch> {
        let switch = self.leave_broken(now).or_else(|| self.return_to_preferred(now))?;
        self.current = switch.to;
        Some(switch)
    }

    fn leave_broken(&self, now: Instant) -> Option<Switch> {
        let current = &self.routes[self.current];
        let failure = current.last_failure.as_ref().filter(|_| current.is_broken())?;
        let to = (0..self.routes.len()).find(|route| self.routes[*route].is_well(now))?;
        let (reason, silence) = (failure.reason.clone(), failure.silence);
        Some(Switch { from: self.current, to, broken: true, silence, reason })
    }

    fn return_to_preferred(&self, now: Instant) -> Option<Switch> {
        let returned = |route: &Route| {
            route.is_well(now) && route.unbroken_for(now).is_none_or(|time| time >= self.return_after)
        };
        let to = (0..self.current).find(|route| returned(&self.routes[*route]))?;
        let reason = match self.routes[to].unbroken_for(now) {
            Some(time) => format!("the preferred route has been well for {:.0} s", time.as_secs_f64()),
            None => "the preferred route answers".to_owned(),
        };
        Some(Switch { from: self.current, to, broken: false, silence: false, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETURN: Duration = Duration::from_secs(5);

    fn selector() -> (Selector, Instant) {
        (Selector::new(2, RETURN), Instant::now())
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn an_answer_older_than_a_second_is_not_good_enough() {
        let (mut selector, start) = selector();
        assert_eq!(selector.usable(start), None);
        selector.answered(0, ms(1), start);
        assert_eq!(selector.usable(start + FRESH), Some(0));
        assert_eq!(selector.usable(start + FRESH + ms(1)), None);
    }

    #[test]
    fn a_broken_route_is_left_only_for_one_that_is_well() {
        let (mut selector, start) = selector();
        selector.failed(0, "refused".into(), start);
        assert_eq!(selector.decide(start), None);
        selector.answered(1, ms(1), start + ms(10));
        let switch = selector.decide(start + ms(10)).unwrap();
        assert_eq!(switch, Switch { from: 0, to: 1, broken: true, silence: false, reason: "refused".into() });
        assert_eq!(selector.usable(start + ms(10)), Some(1));
    }

    #[test]
    fn no_route_answering_changes_nothing() {
        let (mut selector, start) = selector();
        selector.failed(0, "silent".into(), start);
        selector.failed(1, "silent".into(), start);
        assert_eq!(selector.decide(start), None);
        assert_eq!(selector.current(), 0);
    }

    #[test]
    fn the_preferred_route_is_taken_back_only_when_it_has_been_well_for_a_while() {
        let (mut selector, start) = selector();
        selector.failed(0, "reset".into(), start);
        selector.answered(1, ms(1), start);
        selector.decide(start).unwrap();
        selector.answered(0, ms(1), start + RETURN / 2);
        selector.answered(1, ms(1), start + RETURN / 2);
        assert_eq!(selector.decide(start + RETURN / 2), None);
        selector.answered(0, ms(1), start + RETURN);
        let switch = selector.decide(start + RETURN).unwrap();
        assert!(!switch.broken && switch.to == 0);
    }

    #[test]
    fn a_failure_on_the_way_back_starts_the_wait_anew() {
        let (mut selector, start) = selector();
        selector.failed(0, "reset".into(), start);
        selector.answered(1, ms(1), start);
        selector.decide(start).unwrap();
        selector.failed(0, "reset".into(), start + ms(4900));
        selector.answered(0, ms(1), start + RETURN);
        assert!(selector.well(0, start + RETURN));
        assert_eq!(selector.decide(start + RETURN), None);
    }
}
