//! The supervision of one process, as a state machine without I/O: of envd by the wrapper, of every service by PID 1.
//!
//! Events and a `now` go in, [`Action`]s come out. There is no clock, no process and no timer inside; the driver does what
//! the actions say, and calls [`Machine::on`] with [`Event::Tick`] when [`Machine::deadline`] has come.
//!
//! | state | process | left by |
//! |---|---|---|
//! | `Stopped` | none | `Start` → `Starting` |
//! | `Starting` | spawned | `Executed` with nothing to wait for, or `Ready` → `Healthy`; `Listening` → `Listening`; `Exited` → `Backoff` or `Exited`; start bound → `Stopping` |
//! | `Listening` | accepts connections | `Ready` → `Healthy`; `Exited`; start bound → `Stopping` |
//! | `Healthy` | serves | a failed probe → `Unhealthy`; `Exited` |
//! | `Unhealthy` | fails its probes | `Ready` or `Inconclusive` → `Healthy`; failing long enough → `Stopping`; `Exited` |
//! | `Stopping` | told to end, killed at a bound | `Exited` → what was wanted afterwards |
//! | `Backoff` | none | time → `Starting`; `Stop` → `Stopped` |
//! | `Exited` | none | a oneshot that is done, or one that is not to be restarted: `Start` → `Starting` |
//!
//! # Interrupted transitions
//!
//! * `Stop` while `Starting`: the process is ended; one that was not spawned yet is ended as soon as it is.
//! * `Start` or `Restart` while `Stopping`: it is started again once it has ended; the last wish counts.
//! * `Exited` of a process that is being ended on purpose is no failure and meets no backoff.
//! * A probe whose answer comes after its process has ended is dropped by the driver, who is told to ([`Action::AbandonProbe`]).
//!
//! # A probe that proves nothing judges nobody
//!
//! A probe may fail for reasons that are not the process's: a packet filter that the sandbox's user set up, no descriptors
//! left. The driver tells these apart ([`Event::Inconclusive`]). They end a run of failures, and a process that could not
//! be asked until its start bound is taken at the word of whatever else shows that it serves.
//!
//! # Late timers judge nobody
//!
//! A virtual machine that was paused, or a host that starves it, makes our own timers come late. Then the process had no
//! fair chance either: every bound that was running is moved by as much as we were late.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::clock::Moment;

/// A timer that comes later than this was not late by accident.
const LATE: Duration = Duration::from_secs(1);
/// Whatever is configured: without a pause a process that cannot be started would be tried again for ever, and nothing else done.
pub const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// A process that starts is probed again after a twelfth of the time that it has taken so far, within these bounds: so it is
/// seen to serve within a few percent of the time it took, and a slow one costs few probes.
const START_PROBE_SHARE: u32 = 12;
const START_PROBE_FIRST: Duration = Duration::from_millis(5);
const START_PROBE_LONGEST: Duration = Duration::from_millis(250);
/// Pause between two probes of a process that fails them.
const UNHEALTHY_PROBE: Duration = Duration::from_secs(5);

/// What kind of process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    LongRunning,
    /// Runs to its end; success is not restarted.
    Oneshot,
}

/// Whether an end is followed by a new start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

/// How it becomes known that the process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It serves as soon as it was executed.
    None,
    /// The driver probes when told to.
    Probe,
    /// The process says so itself.
    Notify,
}

/// Probes of a process that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    pub every: Duration,
    /// One probe may take this long: one that answers within it is slow, not dead.
    pub bound: Duration,
    /// Only failures over at least this long end the process.
    pub failing_for: Duration,
}

/// Pauses before a process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub longest: Duration,
    /// Healthy this long, the pauses begin anew.
    pub reset_after: Duration,
    /// Healthy this long, there is no pause at all.
    pub none_after: Option<Duration>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(2),
            reset_after: Duration::from_secs(10),
            none_after: Some(Duration::from_secs(1)),
        }
    }
}

/// How one process is supervised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub kind: Kind,
    pub restart: Restart,
    pub readiness: Readiness,
    /// It must serve within this time (a oneshot: end).
    pub start_bound: Option<Duration>,
    /// One probe of a process that starts may take this long.
    pub probe_bound: Duration,
    pub liveness: Option<Liveness>,
    /// From TERM to KILL.
    pub stop_bound: Duration,
    /// From QUIT to KILL, for one that hangs; `None`: no QUIT.
    pub dump_bound: Option<Duration>,
    pub backoff: Backoff,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            kind: Kind::LongRunning,
            restart: Restart::Always,
            readiness: Readiness::None,
            start_bound: None,
            probe_bound: Duration::from_secs(5),
            liveness: None,
            stop_bound: Duration::from_secs(5),
            dump_bound: None,
            backoff: Backoff::default(),
        }
    }
}

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Stopped,
    Starting,
    Listening,
    Healthy,
    Unhealthy,
    Stopping,
    Backoff,
    Exited,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Listening => "listening",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Exited => "exited",
        }
    }
}

/// Why a probe failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeFailure {
    /// Nobody listens.
    Refused,
    /// It accepts, and does not answer in time.
    TimedOut,
    /// It answers something else.
    WrongAnswer(String),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Start,
    Stop,
    Restart,
    /// The process was made; it may not have been executed yet.
    Spawned,
    /// No process could be made, or it could not be executed and was reaped.
    SpawnFailed,
    /// The program is running.
    Executed,
    Listening,
    /// It serves.
    Ready,
    ProbeFailed(ProbeFailure),
    /// The probe did not get through to it, which is not its fault; as far as anybody can tell it serves. Why.
    Inconclusive(String),
    /// It was reaped; whether it ended well.
    Exited {
        success: bool,
    },
    Tick,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Spawn,
    Signal(Signal),
    /// Find out whether it serves; answer with `Listening`, `Ready`, `ProbeFailed` or `Inconclusive`.
    Probe,
    /// The probe under way takes too long: forget it, and answer with `ProbeFailed` or `Inconclusive`.
    JudgeProbe,
    /// Forget the probe under way.
    AbandonProbe,
    /// The state has changed; why, where it was our decision.
    Became(State, Option<String>),
}

/// What follows when the process that is being ended has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    Rest,
    Again,
    /// As after a failure of its own.
    AgainWithBackoff,
}

/// One supervised process.
#[derive(Debug)]
pub struct Machine {
    policy: Policy,
    state: State,
    since: Moment,
    /// A process exists.
    alive: bool,
    afterwards: Afterwards,
    started: Moment,
    healthy_since: Option<Moment>,
    failing_since: Option<Moment>,
    last_failure: Option<ProbeFailure>,
    /// Why the last probe proved nothing, when it did not.
    unproven: Option<String>,
    backoff_step: u32,
    starts: u64,
    timers: Timers,
    reason: Option<String>,
}

/// The deadlines that are running.
#[derive(Debug, Default)]
struct Timers {
    start_bound: Option<Moment>,
    next_probe: Option<Moment>,
    probe_bound: Option<Moment>,
    kill: Option<Moment>,
    backoff: Option<Moment>,
}

impl Timers {
    fn running(&self) -> impl Iterator<Item = Moment> {
        [self.start_bound, self.next_probe, self.probe_bound, self.kill, self.backoff].into_iter().flatten()
    }
}

/// Takes a timer that is due.
fn due(timer: &mut Option<Moment>, now: Moment) -> bool {
    timer.take_if(|at| *at <= now).is_some()
}

impl Machine {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Stopped,
            since: Moment::ZERO,
            alive: false,
            afterwards: Afterwards::Rest,
            started: Moment::ZERO,
            healthy_since: None,
            failing_since: None,
            last_failure: None,
            unproven: None,
            backoff_step: 0,
            starts: 0,
            timers: Timers::default(),
            reason: None,
        }
    }

    pub const fn state(&self) -> State {
        self.state
    }

    /// Holds from the next event on: to be called between two runs of the process.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Since when it is in its state.
    pub const fn since(&self) -> Moment {
        self.since
    }

    /// When the process was started last.
    pub const fn started(&self) -> Moment {
        self.started
    }

    /// Starts after the first.
    pub const fn restarts(&self) -> u64 {
        self.starts.saturating_sub(1)
    }

    /// Why we ended the process, while and after we did.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        self.timers.running().min()
    }

    /// By how much we are late ourselves, where that is more than chance: the guest was held up, and with it the process.
    pub fn lateness(&self, now: Moment) -> Option<Duration> {
        self.deadline().map(|at| now.saturating_sub(at)).filter(|late| *late > LATE)
    }

    /// Takes in what happened.
    pub fn on(&mut self, event: Event, now: Moment) -> Vec<Action> {
        let mut actions = self.forgive_lateness(now);
        match event {
            Event::Start => self.wish_start(now, &mut actions),
            Event::Stop => self.wish_stop(now, &mut actions),
            Event::Restart => self.wish_restart(now, &mut actions),
            Event::Spawned => self.spawned(now, &mut actions),
            Event::SpawnFailed => self.ended(false, now, &mut actions),
            Event::Exited { success } => self.ended(success, now, &mut actions),
            Event::Executed => self.executed(now, &mut actions),
            Event::Listening => self.listening(now, &mut actions),
            Event::Ready => self.ready(now, &mut actions),
            Event::ProbeFailed(failure) => self.probe_failed(failure, now, &mut actions),
            Event::Inconclusive(why) => self.proves_nothing(why, now, &mut actions),
            Event::Tick => {}
        }
        self.run_timers(now, &mut actions);
        actions
    }

    /// Moves the bounds of the process by as much as we are late ourselves, and drops a probe that was under way.
    fn forgive_lateness(&mut self, now: Moment) -> Vec<Action> {
        let Some(late) = self.lateness(now) else { return Vec::new() };
        for bound in [&mut self.timers.start_bound, &mut self.failing_since].into_iter().flatten() {
            *bound += late;
        }
        if self.timers.probe_bound.take().is_some() {
            self.timers.next_probe = Some(now);
            return vec![Action::AbandonProbe];
        }
        Vec::new()
    }

    fn become_state(&mut self, state: State, reason: Option<String>, now: Moment, actions: &mut Vec<Action>) {
        if self.state != state {
            self.state = state;
            self.since = now;
            actions.push(Action::Became(state, reason));
        }
    }

    fn wish_start(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match self.state {
            State::Stopped | State::Exited | State::Backoff => self.spawn(now, actions),
            State::Stopping if self.afterwards == Afterwards::Rest => self.afterwards = Afterwards::Again,
            _ => {}
        }
    }

    fn wish_stop(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.afterwards = Afterwards::Rest;
        if !self.alive && self.state != State::Starting {
            self.timers = Timers::default();
            self.become_state(State::Stopped, None, now, actions);
        } else if self.state != State::Stopping {
            self.end(Signal::SIGTERM, Afterwards::Rest, "stopped on request".to_owned(), now, actions);
        }
    }

    fn wish_restart(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if !self.alive && self.state != State::Starting {
            self.spawn(now, actions);
        } else if self.state == State::Stopping {
            self.afterwards = Afterwards::Again;
        } else {
            self.end(Signal::SIGTERM, Afterwards::Again, "restarted on request".to_owned(), now, actions);
        }
    }

    fn spawn(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.timers = Timers::default();
        self.timers.start_bound = self.policy.start_bound.map(|bound| now + bound);
        self.healthy_since = None;
        self.failing_since = None;
        self.last_failure = None;
        self.unproven = None;
        self.started = now;
        self.starts += 1;
        self.reason = None;
        self.afterwards = Afterwards::Rest;
        // First of all: telling of the state takes time.
        actions.push(Action::Spawn);
        self.become_state(State::Starting, None, now, actions);
    }

    fn spawned(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.alive = true;
        if self.state == State::Stopping {
            actions.push(Action::Signal(Signal::SIGTERM));
            self.timers.kill = Some(now + self.policy.stop_bound);
        }
    }

    fn executed(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.state != State::Starting {
            return;
        }
        match (self.policy.kind, self.policy.readiness) {
            (Kind::Oneshot, _) | (_, Readiness::Notify) => {}
            (Kind::LongRunning, Readiness::None) => self.healthy(None, now, actions),
            (Kind::LongRunning, Readiness::Probe) => self.timers.next_probe = Some(now + START_PROBE_FIRST),
        }
    }

    fn listening(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.state == State::Starting {
            self.become_state(State::Listening, None, now, actions);
        }
    }

    fn ready(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.timers.probe_bound = None;
        if matches!(self.state, State::Starting | State::Listening | State::Healthy | State::Unhealthy) {
            self.healthy(None, now, actions);
        }
    }

    /// `unproven`: why it could not be asked, when it is taken for healthy without.
    fn healthy(&mut self, unproven: Option<String>, now: Moment, actions: &mut Vec<Action>) {
        self.timers.start_bound = None;
        self.failing_since = None;
        self.last_failure = None;
        self.unproven = None;
        self.healthy_since.get_or_insert(now);
        self.timers.next_probe = match self.policy.readiness {
            Readiness::Probe => self.policy.liveness.map(|liveness| now + liveness.every),
            _ => None,
        };
        self.become_state(State::Healthy, unproven, now, actions);
    }

    fn probe_failed(&mut self, failure: ProbeFailure, now: Moment, actions: &mut Vec<Action>) {
        self.timers.probe_bound = None;
        match self.state {
            State::Starting | State::Listening => self.timers.next_probe = Some(self.next_start_probe(now)),
            State::Healthy | State::Unhealthy => self.fails_liveness(&failure, now, actions),
            _ => return,
        }
        self.last_failure = Some(failure);
        self.unproven = None;
    }

    fn proves_nothing(&mut self, why: String, now: Moment, actions: &mut Vec<Action>) {
        self.timers.probe_bound = None;
        match self.state {
            State::Starting | State::Listening => {
                self.timers.next_probe = Some(self.next_start_probe(now));
                self.unproven = Some(why);
            }
            State::Healthy | State::Unhealthy => self.healthy(Some(why), now, actions),
            _ => {}
        }
    }

    fn next_start_probe(&self, now: Moment) -> Moment {
        let share = now.saturating_sub(self.started) / START_PROBE_SHARE;
        now + share.clamp(START_PROBE_FIRST, START_PROBE_LONGEST)
    }

    fn fails_liveness(&mut self, failure: &ProbeFailure, now: Moment, actions: &mut Vec<Action>) {
        let Some(liveness) = self.policy.liveness else { return };
        let since = *self.failing_since.get_or_insert(now);
        let lasting = now.saturating_sub(since);
        if lasting >= liveness.failing_for {
            let why = format!("{} for {} s", describe(failure), lasting.as_secs());
            return self.end_hanging(why, now, actions);
        }
        self.timers.next_probe = Some(now + UNHEALTHY_PROBE.min(liveness.every));
        self.become_state(State::Unhealthy, Some(describe(failure)), now, actions);
    }

    /// Ends a process that does not serve: first asked for a dump of what it does, where it can give one.
    fn end_hanging(&mut self, why: String, now: Moment, actions: &mut Vec<Action>) {
        match self.policy.dump_bound {
            Some(bound) => {
                self.end(Signal::SIGQUIT, Afterwards::AgainWithBackoff, why, now, actions);
                self.timers.kill = Some(now + bound);
            }
            None => self.end(Signal::SIGKILL, Afterwards::AgainWithBackoff, why, now, actions),
        }
    }

    fn end(
        &mut self,
        signal: Signal,
        afterwards: Afterwards,
        why: String,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        if self.timers.probe_bound.is_some() {
            actions.push(Action::AbandonProbe);
        }
        self.timers = Timers::default();
        self.afterwards = afterwards;
        self.reason = Some(why.clone());
        self.become_state(State::Stopping, Some(why), now, actions);
        if self.alive {
            actions.push(Action::Signal(signal));
            self.timers.kill = (signal != Signal::SIGKILL).then(|| now + self.policy.stop_bound);
        }
    }

    fn ended(&mut self, success: bool, now: Moment, actions: &mut Vec<Action>) {
        if self.timers.probe_bound.take().is_some() {
            actions.push(Action::AbandonProbe);
        }
        self.alive = false;
        self.timers = Timers::default();
        match (self.state, self.afterwards) {
            (State::Stopping, Afterwards::Rest) => self.become_state(State::Stopped, None, now, actions),
            (State::Stopping, Afterwards::Again) => self.spawn(now, actions),
            (State::Stopping, Afterwards::AgainWithBackoff) if self.restarts_after(false) => {
                self.back_off(now, actions);
            }
            (State::Stopping, _) => self.become_state(State::Exited, None, now, actions),
            _ if self.restarts_after(success) => self.back_off(now, actions),
            _ => self.become_state(State::Exited, None, now, actions),
        }
    }

    fn restarts_after(&self, success: bool) -> bool {
        match (self.policy.kind, self.policy.restart) {
            (_, Restart::Never) => false,
            (Kind::Oneshot, _) | (Kind::LongRunning, Restart::OnFailure) => !success,
            (Kind::LongRunning, Restart::Always) => true,
        }
    }

    fn back_off(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let healthy_for = self.healthy_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        if healthy_for >= self.policy.backoff.reset_after {
            self.backoff_step = 0;
        }
        if self.policy.backoff.none_after.is_some_and(|enough| healthy_for >= enough) {
            return self.spawn(now, actions);
        }
        let pause = self.pause(now);
        self.backoff_step += 1;
        self.timers.backoff = Some(now + pause);
        self.become_state(
            State::Backoff,
            Some(format!("next start in {} ms", pause.as_millis())),
            now,
            actions,
        );
    }

    /// Doubling, and shortened by up to a fifth so that many that fail together do not start together.
    fn pause(&self, now: Moment) -> Duration {
        let backoff = self.policy.backoff;
        let full = backoff.first.saturating_mul(1 << self.backoff_step.min(16)).min(backoff.longest);
        let full = full.max(SHORTEST_PAUSE);
        let jitter = u64::from(now.subsec_nanos()).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        full.mul_f64(1.0 - 0.2 * jitter as f64 / 256.0)
    }

    fn run_timers(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if due(&mut self.timers.backoff, now) {
            self.spawn(now, actions);
        }
        if due(&mut self.timers.kill, now) {
            actions.push(Action::Signal(Signal::SIGKILL));
        }
        if due(&mut self.timers.probe_bound, now) {
            actions.push(Action::JudgeProbe);
        }
        if due(&mut self.timers.start_bound, now) {
            match self.unproven.take() {
                Some(why) => self.healthy(Some(why), now, actions),
                None => self.end_hanging(self.why_not_started(now), now, actions),
            }
        }
        if due(&mut self.timers.next_probe, now) {
            self.timers.probe_bound = Some(now + self.bound_of_probe());
            actions.push(Action::Probe);
        }
    }

    fn bound_of_probe(&self) -> Duration {
        match (self.state, self.policy.liveness) {
            (State::Healthy | State::Unhealthy, Some(liveness)) => liveness.bound,
            // So that the start bound knows what the last one showed.
            _ => self
                .policy
                .start_bound
                .map_or(self.policy.probe_bound, |whole| self.policy.probe_bound.min(whole / 2)),
        }
    }

    fn why_not_started(&self, now: Moment) -> String {
        let seconds = now.saturating_sub(self.started).as_secs();
        match &self.last_failure {
            Some(failure) => format!("{} {seconds} s after its start", describe(failure)),
            None => format!("not ready {seconds} s after its start"),
        }
    }
}

fn describe(failure: &ProbeFailure) -> String {
    match failure {
        ProbeFailure::Refused => "not listening".to_owned(),
        ProbeFailure::TimedOut => "listening but not answering".to_owned(),
        ProbeFailure::WrongAnswer(what) => format!("answering {what}"),
    }
}

#[cfg(test)]
mod tests;
