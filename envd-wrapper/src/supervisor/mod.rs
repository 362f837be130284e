//! The loop: signals, envd's pipes, probes and deadlines go into the state machine, and its actions become deeds.

mod health;
mod life;
mod version;

use std::time::Duration;

use guest::clock::{self, Moment, Seconds};
use guest::control::EnvdStatus;
use guest::control::server::Call;
use guest::reactor::{Event as Wake, Interest, Reactor, ReactorError, Token};
use guest::supervise::{Action, Event, Liveness, Machine, Policy, Readiness, State};
use nix::sys::signal::Signal;
use tracing::{info, warn};

use crate::args::Settings;
use crate::choose;
use crate::cleanup::{self, Home};
use crate::drain::Stream;
use crate::facts::Known;
use crate::gate::Gate;
use crate::keep::{self, Keep, Order};
use crate::probe::Probe;
use crate::report::Reporter;
use crate::version::{Question, Schedule};
use life::{Child, Untold};

/// From QUIT, which lets a Go program write what its goroutines do, to KILL.
const DUMP_BOUND: Duration = Duration::from_secs(2);
/// An answer that takes longer than this is worth a line.
const SLOW: Duration = Duration::from_secs(1);
/// While envd starts the serial line is left alone, at most this long: each byte on it costs the machine an exit.
const QUIET_START: Duration = Duration::from_secs(1);
/// How long our end may wait for a console that is slow.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// A liveness check may take this long, but not longer than half of the pause between two, and at least a second.
const LONGEST_CHECK: Duration = Duration::from_secs(15);
/// Shared by both streams.
const BUFFER: usize = 64 * 1024;

/// So much of envd is loaded before it may be started, and the rest while it starts.
const ENVDS_HEAD: u32 = 1024 * 1024;
/// One turn at the gate.
const GATE_TURN: Duration = Duration::from_secs(1);

const STEPS: Token = 1;
const STDOUT: Token = 2;
const STDERR: Token = 3;
const PROBE: Token = 4;
const CONSOLE: Token = 5;
const VERSION: Token = 6;
const REPORT: Token = 7;
const GATE: Token = 8;

/// Signals that end us; every other one is taken and passed over, never passed on (HUP would kill a Go program).
const ENDING: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];
const PASSED_OVER: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE, Signal::SIGALRM];

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
    untold: Option<Untold>,
    /// When the console is written again.
    quiet_until: Option<Moment>,
    /// Programs' files as they were read.
    known: Known,
    status: EnvdStatus,
    version: Schedule,
    question: Option<Question>,
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
            home: Home::default(),
            untold: None,
            quiet_until: None,
            known: Known::default(),
            status: unborn(),
            version: Schedule::default(),
            question: None,
            buffer: vec![0; BUFFER],
            console_watched: false,
            stopping: false,
            refusals: Vec::new(),
            settings,
        })
    }

    /// Has the file read that envd will be started from, unless the choice is another one by then.
    pub(crate) fn look_ahead(&mut self) {
        let verdict = choose::choose(&self.settings.search(), &mut self.known);
        if let Some(path) = verdict.chosen() {
            guest::files::read_ahead(path, Some(ENVDS_HEAD));
        }
    }

    /// Waits until envd may be started, where somebody tells when. False: we are to end first.
    pub(crate) fn wait_at(&mut self, gate: Option<Gate>) -> Result<bool, ReactorError> {
        if let Some(gate) = gate {
            self.reactor.add(&gate, GATE, Interest::Read)?;
            if !self.gate_opens()? {
                return Ok(false);
            }
            self.reactor.remove(&gate);
            self.settings.home = gate.pass();
        }
        self.home = Home::find(self.settings.cgroup());
        Ok(true)
    }

    fn gate_opens(&mut self) -> Result<bool, ReactorError> {
        loop {
            // Who sleeps for longer lets go of memory that the start needs.
            let wakes = self.reactor.wait(Some(clock::now() + GATE_TURN))?;
            if wakes.iter().any(ends_us) {
                return Ok(false);
            }
            if wakes.iter().any(|wake| matches!(wake, Wake::Io(_))) {
                return Ok(true);
            }
        }
    }

    /// Runs until it was told to stop and envd has ended.
    pub(crate) fn run(mut self) -> Result<(), ReactorError> {
        // A wrapper that was killed took envd along, but not what envd left behind.
        let ended = cleanup::end_remains(&self.home);
        self.hold_console();
        self.feed(Event::Start);
        if let Some(line) = cleanup::describe(&ended, &cleanup::users()) {
            info!("{line}");
        }
        guest::log::reopen();
        while !(self.stopping && self.machine.state() == State::Stopped) {
            let wakes = self.reactor.wait(self.deadline())?;
            self.tell_lateness();
            for wake in wakes {
                match wake {
                    Wake::Signal(received) => {
                        received.signal().into_iter().for_each(|signal| self.on_signal(signal));
                    }
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
            self.reporter.watch(&self.reactor, REPORT);
        }
        info!("envd was stopped on request");
        guest::log::drain_console(LAST_WORDS);
        Ok(())
    }

    /// Said before anything is judged: what looks slow now need not be envd.
    fn tell_lateness(&self) {
        if let Some(late) = self.machine.lateness(clock::now()) {
            let by = "paused, or starved by its host or by the sandbox";
            warn!(
                "the guest itself was held up for {:.1} s ({by}); envd is not judged by that",
                Seconds(late)
            );
        }
    }

    fn deadline(&self) -> Option<Moment> {
        let now = clock::now();
        let floods = self.child.iter().flat_map(Child::streams).filter_map(Stream::deadline);
        let keep = self.keep.iter().filter_map(|keep| keep.deadline(now));
        let own =
            [self.machine.deadline(), self.reporter.deadline(), self.quiet_until, self.version.deadline()];
        floods.chain(keep).chain(own.into_iter().flatten()).min()
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
            REPORT => self.reporter.send(),
            VERSION => self.question.iter_mut().for_each(Question::read),
            _ => {}
        }
    }

    fn on_time(&mut self) {
        let now = clock::now();
        self.reporter.tick(now);
        if let Some(keep) = &mut self.keep {
            keep.tick(now);
        }
        self.wake_streams();
        self.ask_version(now);
        if self.quiet_until.is_some_and(|until| until <= now) {
            self.release_console();
        }
        if self.machine.deadline().is_some_and(|at| at <= now) {
            self.feed(Event::Tick);
        }
    }

    /// Keeps what is logged from the serial line for a moment; it goes to the ring at once.
    fn hold_console(&mut self) {
        guest::log::hold_console();
        self.quiet_until = Some(clock::now() + QUIET_START);
    }

    fn release_console(&mut self) {
        if self.quiet_until.take().is_some() {
            guest::log::release_console();
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
}

fn ends_us(wake: &Wake) -> bool {
    matches!(wake, Wake::Signal(received) if received.signal().is_some_and(|signal| ENDING.contains(&signal)))
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
        stop_bound: settings.stop_bound(),
        dump_bound: Some(DUMP_BOUND),
        ..Policy::default()
    }
}
