//! The loop: signals, envd's pipes, probes and deadlines go into the state machine, and its actions become deeds.

use guest::clock::{self, Moment};
use guest::control::server::Call;
use guest::control::{EnvdStatus, ExitReport};
use guest::reactor::{Event as Wake, Interest, Reactor, ReactorError, Token};
use guest::spawn::{self, Spawned};
use guest::supervise::{Action, Event, Liveness, Machine, Policy, ProbeFailure, Readiness, State};
use guest::sys::Reaped;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::{error, info, warn};

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::args::Settings;
use crate::choose;
use crate::cleanup::{self, Home, Leftovers};
use crate::death::{self, Before, Life};
use crate::drain::{Flow, Stream};
use crate::evidence;
use crate::keep::{self, Keep, Order};
use crate::last::LastLines;
use crate::probe::{Failure, Outcome, Probe};
use crate::report::Reporter;
use crate::world;

/// From QUIT, which lets a Go program write what its goroutines do, to KILL.
const DUMP_BOUND: Duration = Duration::from_secs(2);
/// An answer that takes longer than this is worth a line.
const SLOW: Duration = Duration::from_secs(1);
/// A process of this age that does not listen yet is no news.
const YOUNG: Duration = Duration::from_secs(1);
/// A liveness check may take this long, but not longer than half of the pause between two, and at least a second.
const LONGEST_CHECK: Duration = Duration::from_secs(15);
/// Shared by both streams.
const BUFFER: usize = 64 * 1024;

const STEPS: Token = 1;
const STDOUT: Token = 2;
const STDERR: Token = 3;
const PROBE: Token = 4;
const CONSOLE: Token = 5;

/// Signals that end us; every other one is taken and passed over, never passed on (HUP would kill a Go program).
const ENDING: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];
const PASSED_OVER: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE, Signal::SIGALRM];

/// One life of envd.
#[derive(Debug)]
struct Child {
    pid: Pid,
    steps: Option<OwnedFd>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    last: LastLines,
    before: Before,
}

/// envd's supervisor.
pub(crate) struct Supervisor {
    settings: Settings,
    reactor: Reactor,
    machine: Machine,
    reporter: Reporter,
    child: Option<Child>,
    probe: Option<Probe>,
    probe_begun: Moment,
    slow: bool,
    /// The last probe of a healthy envd proved nothing.
    blind: bool,
    home: Home,
    /// A death that is told once the next envd is on its way.
    untold: Option<(ExitReport, Leftovers)>,
    status: EnvdStatus,
    buffer: Vec<u8>,
    console_watched: bool,
    stopping: bool,
    /// The last refusals said, so that they are said once and not at every start.
    refusals: Vec<String>,
    /// Where the image's own init is PID 1.
    keep: Option<Keep>,
}

impl Supervisor {
    pub(crate) fn new(settings: Settings) -> Result<Self, ReactorError> {
        let signals: Vec<Signal> = ENDING.into_iter().chain(PASSED_OVER).chain([Signal::SIGCHLD]).collect();
        let reactor = Reactor::new(&signals)?;
        let keep = settings.kept.then(|| Keep::new(&settings, &reactor, clock::now()));
        Ok(Self {
            reactor,
            keep,
            machine: Machine::new(policy(&settings)),
            reporter: Reporter::from_environment(clock::now()),
            child: None,
            probe: None,
            probe_begun: Moment::ZERO,
            slow: false,
            blind: false,
            home: Home::find(settings.cgroup.as_deref()),
            untold: None,
            status: unborn(),
            buffer: vec![0; BUFFER],
            console_watched: false,
            stopping: false,
            refusals: Vec::new(),
            settings,
        })
    }

    /// Runs until it was told to stop and envd has ended.
    pub(crate) fn run(mut self) -> Result<(), ReactorError> {
        // A wrapper that was killed took envd along, but not what envd left behind.
        if let Some(line) = cleanup::sweep(&self.home).describe() {
            info!("{line}");
        }
        self.feed(Event::Start);
        guest::log::reopen();
        while !(self.stopping && self.machine.state() == State::Stopped) {
            for wake in self.reactor.wait(self.deadline())? {
                match wake {
                    Wake::Signal(received) => self.on_signal(received.signal),
                    Wake::Io(ready) if ready.token >= keep::TOKENS => {
                        let calls = self.keep.as_mut().map(|keep| keep.ready(ready, &self.reactor));
                        self.answer(calls.unwrap_or_default());
                    }
                    Wake::Io(ready) => self.on_ready(ready.token),
                }
            }
            self.on_time();
            self.settle_orders();
            self.watch_console();
        }
        info!("envd was stopped on request");
        Ok(())
    }

    fn deadline(&self) -> Option<Moment> {
        let now = clock::now();
        let child = self.child.iter().flat_map(|child| child.stdout.iter().chain(&child.stderr));
        let floods = child.filter_map(Stream::deadline);
        let keep = self.keep.iter().filter_map(|keep| keep.deadline(now));
        floods.chain(self.machine.deadline()).chain(self.reporter.deadline()).chain(keep).min()
    }

    /// Answers the control protocol; what it orders about envd is done here.
    fn answer(&mut self, mut calls: Vec<Call>) {
        while let Some(call) = calls.pop() {
            let Some(keep) = &mut self.keep else { return };
            let (order, more) = keep.call(&call, &self.status, &self.reactor);
            calls.extend(more);
            match order {
                Some(Order::Start) => self.feed(Event::Start),
                Some(Order::Stop) => self.feed(Event::Stop),
                Some(Order::Restart) => self.feed(Event::Restart),
                None => {}
            }
        }
    }

    /// Tells those who wait what became of their orders.
    fn settle_orders(&mut self) {
        let Some(keep) = &mut self.keep else { return };
        keep.serve_vsock(&self.reactor);
        let calls = keep.settle(&self.status, &self.reactor);
        self.answer(calls);
    }

    fn on_signal(&mut self, signal: Signal) {
        match signal {
            Signal::SIGCHLD => self.reap(),
            signal if ENDING.contains(&signal) => self.stop(),
            _ => {}
        }
    }

    fn stop(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            // Asked twice: final at once.
            self.signal(Signal::SIGKILL);
        }
        self.reporter.stopping();
        self.feed(Event::Stop);
    }

    fn on_ready(&mut self, token: Token) {
        match token {
            STEPS => self.read_steps(),
            STDOUT | STDERR => self.drain(token),
            PROBE => self.advance_probe(),
            CONSOLE => guest::log::flush(),
            _ => {}
        }
    }

    fn on_time(&mut self) {
        let now = clock::now();
        self.reporter.tick(now);
        if let Some(keep) = &mut self.keep {
            keep.tick(now);
        }
        if let Some(child) = &mut self.child {
            for stream in [&mut child.stdout, &mut child.stderr].into_iter().flatten() {
                stream.settle(now, &mut child.last);
            }
        }
        for token in [STDOUT, STDERR] {
            if self.stream(token).is_some_and(|stream| stream.slept(now)) {
                self.drain(token);
            }
        }
        if self.machine.deadline().is_some_and(|at| at <= now) {
            self.feed(Event::Tick);
        }
    }

    /// Watches a console that does not take its lines until it does.
    fn watch_console(&mut self) {
        let reactor = &self.reactor;
        let watched = self.console_watched;
        let wanted = guest::log::while_blocked(|device| match (device, watched) {
            (Some(device), false) => reactor.add(device, CONSOLE, Interest::Write).is_ok(),
            (Some(_), true) => true,
            (None, _) => false,
        });
        if watched && wanted != Some(true) {
            guest::log::with_device(|device| reactor.remove(device));
        }
        self.console_watched = wanted == Some(true);
    }

    fn feed(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = clock::now();
            for action in self.machine.on(event, now) {
                events.extend(self.act(action, now));
            }
        }
    }

    /// Does what the machine decided; what came of it at once is the next event.
    fn act(&mut self, action: Action, now: Moment) -> Option<Event> {
        match action {
            Action::Spawn => return Some(self.spawn()),
            Action::Signal(signal) => self.signal(signal),
            Action::Probe => return self.begin_probe(),
            Action::AbandonProbe => self.probe = None,
            Action::JudgeProbe => return self.probe.take().map(|probe| self.judge(probe.give_up())),
            Action::Became(state, why) => self.became(state, why.as_deref(), now),
        }
        None
    }

    fn spawn(&mut self) -> Event {
        let verdict = choose::choose(&self.settings.search());
        let refusals: Vec<String> = verdict.refused().collect();
        if refusals != self.refusals {
            refusals.iter().for_each(|refusal| warn!("{refusal}"));
            self.refusals = refusals;
        }
        let Some(path) = verdict.chosen() else {
            self.tell_death();
            error!("no envd to run; looked at {}", verdict.places());
            return Event::SpawnFailed;
        };
        match spawn::spawn(&world::envd(path, &self.settings)) {
            Ok(spawned) => {
                self.status.program = path.display().to_string();
                self.adopt(spawned);
                Event::Spawned
            }
            Err(error) => {
                self.tell_death();
                error!("{error}");
                Event::SpawnFailed
            }
        }
    }

    fn adopt(&mut self, spawned: Spawned) {
        let child = Child {
            pid: spawned.pid,
            steps: Some(spawned.steps),
            stdout: spawned.stdout.map(Stream::new),
            stderr: spawned.stderr.map(Stream::new),
            last: LastLines::default(),
            before: death::before(&self.home),
        };
        let watch = |descriptor, token| {
            if let Err(error) = self.reactor.add(descriptor, token, Interest::Read) {
                warn!("{error}");
            }
        };
        child.steps.iter().for_each(|steps| watch(std::os::fd::AsFd::as_fd(steps), STEPS));
        child.stdout.iter().for_each(|stream| watch(stream.descriptor(), STDOUT));
        child.stderr.iter().for_each(|stream| watch(stream.descriptor(), STDERR));
        self.status.pid = Some(spawned.pid.as_raw());
        self.child = Some(child);
        (self.slow, self.blind) = (false, false);
    }

    fn read_steps(&mut self) {
        let Some(child) = &mut self.child else { return };
        let Some(pipe) = &child.steps else { return };
        let steps = spawn::read_steps(pipe);
        let program = std::path::Path::new(&self.status.program);
        for failure in &steps.failures {
            if failure.is_final() {
                error!("envd {}", failure.describe(program));
            } else {
                warn!("envd: {}", failure.describe(program));
            }
        }
        if steps.ended {
            child.steps = None;
            if !steps.failures.iter().any(spawn::Failure::is_final) {
                let now = clock::now();
                self.status.exec_ns = Some(now.as_nanos() as u64);
                info!("envd started: {} (pid {})", self.status.program, child.pid);
                self.feed(Event::Executed);
            }
        }
    }

    fn stream(&mut self, token: Token) -> Option<&mut Stream> {
        let child = self.child.as_mut()?;
        if token == STDOUT { child.stdout.as_mut() } else { child.stderr.as_mut() }
    }

    fn drain(&mut self, token: Token) {
        let Some(child) = &mut self.child else { return };
        let slot = if token == STDOUT { &mut child.stdout } else { &mut child.stderr };
        let Some(stream) = slot else { return };
        let was_watched = !stream.is_napping();
        match stream.drain(&mut self.buffer, clock::now(), &mut child.last) {
            Flow::Open if was_watched => {}
            Flow::Open => {
                let _ = self.reactor.add(stream.descriptor(), token, Interest::Read);
            }
            Flow::Napping if was_watched => self.reactor.remove(stream.descriptor()),
            Flow::Napping => {}
            // envd closed it; that is its own affair, and it may live on.
            Flow::Ended => *slot = None,
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // It was not reaped, so the number is still its own.
            let _ = kill(child.pid, signal);
            // One that was stopped takes nothing but KILL before it goes on.
            let _ = kill(child.pid, Signal::SIGCONT);
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(end)) = guest::sys::reap(None) {
            if self.child.as_ref().is_some_and(|child| child.pid.as_raw() == end.pid) {
                self.on_death(end);
            }
        }
    }

    fn on_death(&mut self, end: Reaped) {
        // A failed exec is told by its pipe, which may be read after the death.
        self.read_steps();
        let Some(mut child) = self.child.take() else { return };
        let now = clock::now();
        for stream in [&mut child.stdout, &mut child.stderr].into_iter().flatten() {
            stream.finish(&mut self.buffer, now, &mut child.last);
        }
        let life = Life {
            started: self.machine.started(),
            before: &child.before,
            home: &self.home,
            restarts: self.machine.restarts(),
            reason: self.machine.reason().map(str::to_owned),
            last_lines: child.last.take(),
        };
        let report = death::report(end, life, now);
        let success = report.status == Some(0);
        if let Some(keep) = &mut self.keep {
            keep.died(&report);
        }
        self.status.last_exit = Some(report.clone());
        self.untold = Some((report, cleanup::sweep(&self.home)));
        self.status.pid = None;
        (self.status.exec_ns, self.status.listening_ns, self.status.healthy_ns) = (None, None, None);
        // The next envd comes first: a serial line is slow.
        self.feed(Event::Exited { success });
        self.tell_death();
    }

    fn tell_death(&mut self) {
        let Some((report, leftovers)) = self.untold.take() else { return };
        if self.stopping {
            info!("{}", death::describe(&report));
        } else {
            warn!("{}", death::describe(&report));
        }
        if let Ok(json) = serde_json::to_string(&report) {
            guest::log::machine("exit", &json);
        }
        if let Some(line) = leftovers.describe() {
            info!("{line}");
        }
    }

    fn begin_probe(&mut self) -> Option<Event> {
        self.probe_begun = clock::now();
        let mut probe = match Probe::begin(self.settings.port) {
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

    fn advance_probe(&mut self) {
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
            }
            Outcome::Failed(failure) => {
                self.probe = None;
                let event = self.judge(failure);
                self.feed(event);
            }
        }
    }

    /// What a failed probe proves. In the first moments of a start a refusal is the rule, and is taken as it is.
    fn judge(&mut self, failure: Failure) -> Event {
        let serving = matches!(self.machine.state(), State::Healthy | State::Unhealthy);
        let young = clock::now().saturating_sub(self.machine.started()) < YOUNG;
        if !serving && young && failure == Failure::NoWay(Errno::ECONNREFUSED) {
            return Event::ProbeFailed(ProbeFailure::Refused);
        }
        let event = evidence::weigh(failure, || evidence::look_up(self.settings.port));
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
            (false, true) => warn!("envd is slow: /health took {:.1} s", took.as_secs_f64()),
            (true, false) => info!("envd is not slow any more"),
            _ => {}
        }
        self.slow = took > SLOW;
    }

    fn became(&mut self, state: State, why: Option<&str>, now: Moment) {
        if state != State::Starting {
            self.tell_death();
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
            info!("envd is healthy, {:.3} s after exec", nanos.saturating_sub(exec) as f64 / 1e9);
        }
        if let Some(keep) = &mut self.keep {
            keep.healthy(&self.status);
        }
    }
}

pub(crate) fn unborn() -> EnvdStatus {
    EnvdStatus {
        program: String::new(),
        version: None,
        state: State::Stopped.as_str().to_owned(),
        pid: None,
        restarts: 0,
        exec_ns: None,
        listening_ns: None,
        healthy_ns: None,
        last_exit: None,
    }
}

fn policy(settings: &Settings) -> Policy {
    let config = &settings.config.envd;
    let window = Duration::from_millis(config.liveness_window_ms);
    Policy {
        readiness: Readiness::Probe,
        start_bound: Some(Duration::from_millis(config.start_timeout_ms)).filter(|bound| !bound.is_zero()),
        liveness: settings.liveness_interval().map(|every| Liveness {
            every,
            bound: (every / 2).clamp(SLOW, LONGEST_CHECK),
            failing_for: window,
        }),
        stop_bound: Duration::from_millis(config.stop_timeout_ms),
        dump_bound: Some(DUMP_BOUND),
        ..Policy::default()
    }
}
