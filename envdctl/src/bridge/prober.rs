//! The task that asks routes how they are, while a sandbox has clients: it runs [`Schedule`] and feeds [`Selector`].
//!
//! [`Selector`]: super::selector::Selector

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use super::{
    log::Level,
    probe::{Progress, probe},
    sandbox::{Route, Sandbox},
    schedule::{OVERDUE, PROBE_LIMIT, Schedule, View},
    selector::Switch,
};

/// Connections that the guest still spoke over when their route broke are looked at again after this long.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// All those over a route that was only silent: a guest that is busy has this much longer to answer.
const GRACE: Duration = Duration::from_millis(400);
/// When no route answers for this long, it is said.
const PATIENCE: Duration = Duration::from_secs(1);

/// A client waits: wakes the prober.
pub(super) fn want(sandbox: &Arc<Sandbox>) {
    watch(sandbox);
    sandbox.wanted.notify_one();
}

/// A client is there: starts the prober, unless it runs.
pub(super) fn watch(sandbox: &Arc<Sandbox>) {
    if !std::mem::replace(&mut sandbox.lock().probing, true) {
        tokio::spawn(Prober::new(Arc::clone(sandbox)).run());
    }
}

/// What one probe found.
struct Answer {
    route: usize,
    begun: Instant,
    result: Result<(), String>,
}

struct Prober {
    sandbox: Arc<Sandbox>,
    schedule: Schedule,
    probes: JoinSet<Answer>,
    progress: Vec<Progress>,
    /// Since when no route has been usable while a client waited, and whether that was said.
    helpless: Option<(Instant, bool)>,
}

impl Prober {
    fn new(sandbox: Arc<Sandbox>) -> Self {
        let count = sandbox.routes.len();
        let mut schedule = Schedule::new(count);
        // Clients that come one by one are not worth a probe each.
        for (route, at) in sandbox.lock().selector.fresh(Instant::now()) {
            schedule.ended(route, true, at);
        }
        Self {
            schedule,
            probes: JoinSet::new(),
            progress: vec![Progress::default(); count],
            helpless: None,
            sandbox,
        }
    }

    async fn run(mut self) {
        while self.is_needed() {
            let now = Instant::now();
            let view = self.view(now);
            for route in self.schedule.due(view, now) {
                self.begin(route, now);
            }
            let wake = self.wake_at(view, now);
            let answered = tokio::select! {
                Some(Ok(answer)) = self.probes.join_next() => { self.take(answer); true }
                () = sleep_until(wake.into()) => false,
                () = self.sandbox.wanted.notified() => false,
            };
            if self.sandbox.is_retired() {
                return; // its successor asks, and speaks, for those who were its clients
            }
            let now = Instant::now();
            if self.take_overdue(now) || answered {
                self.decide(now);
            }
            self.mind_helplessness(now);
        }
    }

    /// When to go on although nothing is heard.
    fn wake_at(&self, view: View, now: Instant) -> Instant {
        let probe = self.schedule.wake_at(view, now).unwrap_or(now + PROBE_LIMIT);
        let telling = self.helpless.filter(|(_, told)| !told).map(|(since, _)| since + PATIENCE);
        telling.map_or(probe, |at| at.min(probe))
    }

    /// Ends the task, under the lock, when the last client has gone.
    fn is_needed(&self) -> bool {
        let mut state = self.sandbox.lock();
        state.probing = state.has_clients();
        state.probing
    }

    fn view(&self, now: Instant) -> View {
        let state = self.sandbox.lock();
        let current = state.selector.current();
        let wanted = state.waiting > 0 && state.selector.usable(now).is_none();
        let quiet = state.waiting == 0 && self.sandbox.is_quiet(now);
        View { current, current_broken: state.selector.is_broken(current), wanted, quiet }
    }

    fn begin(&mut self, route: usize, now: Instant) {
        self.schedule.begun(route, now);
        let progress = Progress::default();
        self.progress[route] = progress.clone();
        let sandbox = Arc::clone(&self.sandbox);
        self.probes.spawn(async move {
            let broker = sandbox.world.broker.as_ref();
            let result = probe(&sandbox.routes[route].endpoint, broker, &progress, PROBE_LIMIT).await;
            Answer { route, begun: now, result: result.map_err(|error| error.to_string()) }
        });
    }

    fn take(&mut self, answer: Answer) {
        let now = Instant::now();
        let route = answer.route;
        let latency = now.saturating_duration_since(answer.begun);
        self.schedule.ended(route, answer.result.is_ok(), now);
        let metrics = &self.sandbox.routes[route].metrics;
        match answer.result {
            Ok(()) => {
                metrics.probed(latency);
                self.sandbox.lock().selector.answered(route, latency, now);
            }
            Err(reason) => {
                metrics.probes_failed.add(1);
                self.sandbox.lock().selector.failed(route, reason, now);
            }
        }
    }

    /// Silence counts as failure, unless the guest has been heard over that very route meanwhile: then it is only busy.
    /// Whether there was any.
    fn take_overdue(&mut self, now: Instant) -> bool {
        let overdue = self.schedule.overdue(now);
        for (route, begun) in &overdue {
            let (route, begun) = (*route, *begun);
            let mut state = self.sandbox.lock();
            if self.sandbox.heard_since(route, begun) {
                state.selector.answered(route, now.saturating_duration_since(begun), now);
            } else {
                state.selector.fell_silent(route, self.progress[route].reason(OVERDUE), now);
            }
        }
        !overdue.is_empty()
    }

    /// Acts on what was learned, and tells those who wait. Only then: a client that is told asks for a probe if it still
    /// finds no route, so news of nothing would go round and round.
    fn decide(&mut self, now: Instant) {
        let switch = self.sandbox.lock().selector.decide(now);
        if let Some(switch) = switch {
            self.apply(&switch, now);
        }
        self.sandbox.tell();
    }

    fn apply(&self, switch: &Switch, now: Instant) {
        let sandbox = &self.sandbox;
        sandbox.metrics.failovers.add(1);
        let (from, to) = (&sandbox.routes[switch.from].endpoint, &sandbox.routes[switch.to].endpoint);
        let since = now.checked_sub(OVERDUE).unwrap_or(now);
        let closes = switch.broken && !switch.silence && !sandbox.is_blind();
        let (closed, spared) = if closes { sandbox.close_over(switch.from, since) } else { (0, 0) };
        let closing =
            if closed > 0 { format!("; closed {closed} connections over it") } else { String::new() };
        let text = format!("route {from} -> {to}: {}{closing}", switch.reason);
        let level = if switch.broken { Level::Warn } else { Level::Info };
        let fields: [(&str, &dyn ToString); 4] =
            [("from", from), ("to", to), ("reason", &switch.reason), ("closed", &closed)];
        sandbox.say(level, "route", &text, &fields);
        if (spared > 0 || switch.silence) && !sandbox.is_blind() {
            let pause = if switch.silence { GRACE } else { SECOND_LOOK };
            tokio::spawn(look_again(Arc::clone(sandbox), switch.from, pause));
        }
    }

    /// Says once that no route answers, and once that one does again.
    fn mind_helplessness(&mut self, now: Instant) {
        let state = self.sandbox.lock();
        let helpless = state.waiting > 0 && state.selector.usable(now).is_none();
        let waiting = state.waiting;
        drop(state);
        match (&mut self.helpless, helpless) {
            (None, true) => self.helpless = Some((now, false)),
            (Some((since, told)), true) if !*told && now.saturating_duration_since(*since) >= PATIENCE => {
                *told = true;
                let text = format!("no route answers; {waiting} clients wait: {}", self.describe());
                self.sandbox.say(Level::Warn, "no_route", &text, &[("waiting", &waiting)]);
            }
            (Some((since, told)), false) => {
                let lasted = now.saturating_duration_since(*since);
                if *told && self.sandbox.lock().selector.usable(now).is_some() {
                    let text = format!("a route answers again after {:.1} s", lasted.as_secs_f64());
                    self.sandbox.say(Level::Info, "route_back", &text, &[]);
                }
                self.helpless = None;
            }
            _ => {}
        }
    }

    fn describe(&self) -> String {
        let reasons = self.sandbox.lock().selector.reasons();
        let routes = self.sandbox.routes.iter().zip(&reasons);
        let describe = |(route, reason): (&Arc<Route>, &Option<String>)| {
            format!("{}: {}", route.endpoint, reason.as_deref().unwrap_or("no answer yet"))
        };
        routes.map(describe).collect::<Vec<_>>().join("; ")
    }
}

/// Closes what was spared when its route broke, once the guest has fallen silent there too.
async fn look_again(sandbox: Arc<Sandbox>, route: usize, mut pause: Duration) {
    loop {
        sleep(pause).await;
        if sandbox.is_blind() || !sandbox.lock().selector.is_broken(route) {
            return;
        }
        let silence = pause + OVERDUE;
        let since = Instant::now().checked_sub(silence).unwrap_or_else(Instant::now);
        pause = SECOND_LOOK;
        let (closed, spared) = sandbox.close_over(route, since);
        if closed > 0 {
            let endpoint = &sandbox.routes[route].endpoint;
            let text = format!("closed {closed} connections that were left on {endpoint}");
            sandbox.say(Level::Info, "closed", &text, &[("route", endpoint), ("closed", &closed)]);
        }
        if spared == 0 {
            return;
        }
    }
}
