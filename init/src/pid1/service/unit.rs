//! One service: its state machine, its process, its output.
//!
//! | phase | process | left by |
//! |---|---|---|
//! | waiting | none | everything in `after` has settled → the machine's `Start` |
//! | held | executed [ahead](super::ahead), and waits at its gate | everything in `after` has settled → the gate opens |
//! | the machine's states | as [`guest::supervise`] has them | |
//! | draining | main one dead, others left in its cgroup or below it | they are dead too, or a bound → the machine's `Exited` |
//! | killed | alive after SIGKILL, since the kernel holds it | reaped → draining; a bound → left to itself, the machine's `Exited` |
//!
//! Draining means that a restart never meets what the last run left behind, and that "restarted" is told only when the old
//! one is wholly gone.

use std::{os::fd::OwnedFd, time::Duration};

use guest::{
    cgroup::{CgroupError, Tree},
    clock::Moment,
    control::{ExitReport, ServiceStatus},
    lines::Lines,
    log,
    reactor::{Interest, Reactor, Token, Watched, read_ready},
    record::{self, Level},
    service::{LogTo, Placement, Readiness, Service},
    spawn::{self, Program, Spawned},
    supervise::{Action, Event, Machine, Policy, ProbeFailure, Restart, State},
    sys::Reaped,
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tracing::{debug, info, warn};

use super::{
    ahead,
    gate::{self, Passed},
    probe::Probe,
    program,
    report::{self, Circumstances, Tail},
};
use crate::pid1::machine::tokens;

/// Bytes of a service's output that are taken in one turn: a flood shares the loop with everybody.
const READ: usize = 16 * 1024;
/// What is left in a service's cgroup is killed, and waited for this long.
const DRAIN: Duration = Duration::from_secs(3);
/// Who is not gone so long after its SIGKILL waits in the kernel for something that may never come. It does nothing of its own
/// any more, so that another one is started beside it, in the same cgroup, as systemd does.
const GONE_AFTER_KILL: Duration = Duration::from_secs(10);

/// Which of a unit's descriptors an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pid1) enum Kind {
    Steps,
    Stdout,
    Stderr,
}

impl Kind {
    pub(in crate::pid1) fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Steps,
            1 => Self::Stdout,
            _ => Self::Stderr,
        }
    }
}

/// The process that runs now.
#[derive(Debug)]
struct Process {
    pid: i32,
    steps: Option<Watched>,
    pipes: [Option<Watched>; 2],
    lines: [Lines; 2],
    oom_kills: u64,
    group_entered: bool,
    /// When it is given up, once it was killed.
    gone_by: Option<Moment>,
    /// What holds it back, while it is [held](super::ahead).
    gate: Option<OwnedFd>,
    /// It was started before there was a cgroup for it, and is still in PID 1's.
    unsettled: bool,
}

/// The main process is dead; the rest of its cgroup is ending.
#[derive(Debug)]
struct Draining {
    success: bool,
    until: Moment,
}

/// How far a service's runs have come, each by its number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::pid1) struct Runs {
    /// The last that was begun.
    pub(in crate::pid1) begun: u64,
    /// The last that was ready; of a oneshot, that has ended well.
    pub(in crate::pid1) ready: u64,
    /// The last that has ended, or could not begin.
    pub(in crate::pid1) ended: u64,
}

#[derive(Debug)]
pub(in crate::pid1) struct Unit {
    pub(in crate::pid1) service: Service,
    /// What its file says by now, while a process of the last reading runs.
    next: Option<Service>,
    index: u32,
    machine: Machine,
    process: Option<Process>,
    draining: Option<Draining>,
    /// The process of a run before this that does not end, even by SIGKILL.
    unkillable: Option<i32>,
    /// Others of the last run do not end either.
    survivors: bool,
    probe: Probe,
    tail: Tail,
    last_exit: Option<ExitReport>,
    /// It is to be started as soon as what it waits for has settled.
    pub(in crate::pid1) wanted: bool,
    /// Its process, executed ahead, for the start that comes next.
    ahead: Option<ahead::Process>,
    /// Until it may start its process is one that waits at a gate; also the next one, where that ends.
    held: bool,
    /// It was ready once, has ended, or will not run: who waits for it need not any more.
    settled: bool,
    /// It will not run on this machine: a path of `only_if` is missing.
    pub(in crate::pid1) skipped: bool,
    runs: Runs,
    /// Why the last start failed.
    failure: Option<String>,
    /// What was said of a start that failed, until a program runs again.
    told: Option<String>,
    status_text: Option<String>,
}

/// What a unit works with.
#[derive(Debug, Clone, Copy)]
pub(in crate::pid1) struct World<'a> {
    pub(in crate::pid1) reactor: &'a Reactor,
    pub(in crate::pid1) tree: &'a Tree,
    pub(in crate::pid1) now: Moment,
}

impl Unit {
    pub(super) fn new(service: Service, index: u32) -> Self {
        Self {
            machine: Machine::new(program::policy(&service)),
            wanted: service.enabled,
            ahead: None,
            held: false,
            service,
            next: None,
            index,
            process: None,
            draining: None,
            unkillable: None,
            survivors: false,
            probe: Probe::default(),
            tail: Tail::default(),
            last_exit: None,
            settled: false,
            skipped: false,
            runs: Runs::default(),
            failure: None,
            told: None,
            status_text: None,
        }
    }

    pub(in crate::pid1) fn name(&self) -> &str {
        &self.service.name
    }

    /// Its file was read anew: that holds as soon as nothing of its last run is left.
    pub(super) fn redefine(&mut self, service: Service) {
        self.next = (service != self.service).then_some(service);
        if self.process.is_none() && self.draining.is_none() {
            self.take_next();
        }
    }

    /// It is given at least so many milliseconds from TERM to KILL.
    pub(super) fn let_take(&mut self, stop_ms: u64) {
        self.service.stop_timeout_ms = self.service.stop_timeout_ms.max(stop_ms);
        self.machine.set_policy(program::policy(&self.service));
    }

    fn take_next(&mut self) {
        if let Some(service) = self.next.take() {
            self.machine.set_policy(program::policy(&service));
            self.service = service;
        }
    }

    /// The machine stays up after all.
    pub(super) fn run_again(&mut self) {
        self.machine.set_policy(program::policy(&self.service));
    }

    /// The machine goes down: an end is not followed by another start, and what waits for one waits no longer.
    pub(super) fn run_no_more(&mut self, world: World<'_>) {
        self.next = None;
        let policy = program::policy(&self.service);
        self.machine.set_policy(Policy { restart: Restart::Never, ..policy });
        if self.process.is_none() && self.draining.is_none() {
            self.event(Event::Stop, world);
        }
    }

    pub(in crate::pid1) fn state(&self) -> State {
        self.machine.state()
    }

    pub(in crate::pid1) fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(|process| process.pid)
    }

    pub(in crate::pid1) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Nothing of it runs, and nothing of it will by itself.
    pub(in crate::pid1) fn is_down(&self) -> bool {
        self.process.is_none()
            && self.draining.is_none()
            && matches!(self.state(), State::Stopped | State::Exited)
    }

    pub(in crate::pid1) fn runs(&self) -> Runs {
        self.runs
    }

    /// The run that a start which is asked for now leads to: the one under way, or the next.
    pub(in crate::pid1) fn run_of_a_start(&self) -> u64 {
        let under_way =
            matches!(self.state(), State::Starting | State::Listening | State::Healthy | State::Unhealthy);
        self.runs.begun + u64::from(!under_way || self.is_draining())
    }

    /// The main process is dead, and others of its run are not.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// How the last run has ended or why it never began, in words.
    pub(in crate::pid1) fn end_in_words(&self) -> String {
        let failure = self.failure.clone();
        failure.or_else(|| self.last_exit.as_ref().map(report::describe)).unwrap_or_default()
    }

    pub(in crate::pid1) fn deadline(&self) -> Option<Moment> {
        let drained = self.draining.as_ref().map(|draining| draining.until);
        let gone = self.process.as_ref().and_then(|process| process.gone_by);
        [self.machine.deadline(), drained, gone].into_iter().flatten().min()
    }

    /// Hands an event to the machine and does what it says.
    pub(in crate::pid1) fn event(&mut self, event: Event, world: World<'_>) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.machine.on(event, world.now) {
                events.extend(self.act(action, world));
            }
        }
    }

    fn act(&mut self, action: Action, world: World<'_>) -> Option<Event> {
        match action {
            Action::Spawn => Some(self.spawn(world)),
            Action::Signal(signal) => {
                self.signal(signal, world);
                if let (Signal::SIGKILL, Some(process)) = (signal, &mut self.process) {
                    process.gone_by = Some(world.now + GONE_AFTER_KILL);
                }
                None
            }
            Action::Probe => Some(if self.probe.is_ready(&self.service.readiness) {
                Event::Ready
            } else {
                Event::ProbeFailed(ProbeFailure::Refused)
            }),
            Action::AbandonProbe => {
                self.probe = Probe::default();
                None
            }
            Action::JudgeProbe => Some(Event::ProbeFailed(ProbeFailure::TimedOut)),
            Action::Became(state, why) => {
                self.became(state, why.as_deref());
                None
            }
        }
    }

    fn became(&mut self, state: State, why: Option<&str>) {
        let name = self.name();
        match (state, why) {
            (State::Stopping, Some(why)) => info!("{name} is being stopped: {why}"),
            (state, why) => debug!("{name} is {} {}", state.as_str(), why.unwrap_or_default()),
        }
        if matches!(state, State::Healthy | State::Exited | State::Backoff | State::Stopped) {
            self.settled = true;
        }
        if state == State::Healthy {
            self.runs.ready = self.runs.begun;
        }
    }

    /// Its process is there already. It waits at a gate for what the service waits for, its cgroup included, unless it has passed it.
    pub(super) fn take_over(&mut self, process: ahead::Process, world: World<'_>) {
        self.held = process.passed.is_none();
        self.ahead = Some(process);
        self.event(Event::Start, world);
    }

    /// What it has waited for is there.
    pub(super) fn go(&mut self, world: World<'_>) {
        self.wanted = false;
        if !std::mem::take(&mut self.held) {
            return self.event(Event::Start, world);
        }
        let gate = self.process.as_mut().and_then(|process| Some((process.gate.take()?, process.pid)));
        if let Some((gate, pid)) = gate {
            let passed = gate::open(&gate, Pid::from_raw(pid), &self.service, world.tree);
            self.pass(&passed, world);
        }
    }

    /// Its process has passed its gate.
    fn pass(&mut self, passed: &Passed, world: World<'_>) {
        self.tell_first(&passed.problems);
        let Some(process) = &mut self.process else { return };
        process.group_entered = passed.group_entered;
        process.unsettled = passed.unsettled;
        if !passed.unsettled {
            process.oom_kills = world.tree.oom_kills(&self.service.group_path()).unwrap_or(0);
        }
    }

    /// Puts one that was started before there was its cgroup into it.
    pub(super) fn settle(&mut self, tree: &Tree) -> Option<String> {
        let process = self.process.as_mut().filter(|process| process.unsettled)?;
        process.unsettled = false;
        let entered = tree.enter(&self.service.group_path(), process.pid);
        entered.err().map(|error| format!("{}: {error}", self.service.name))
    }

    fn spawn(&mut self, world: World<'_>) -> Event {
        let (ahead, passed) = self.ahead.take().map(|ahead| (ahead.spawned, ahead.passed)).unzip();
        self.held &= self.wanted;
        self.wanted = self.held;
        self.skipped = false;
        self.failure = None;
        self.survivors = false;
        self.runs.begun += 1;
        match ahead.map_or_else(|| self.execute(world), Ok) {
            Ok(spawned) => {
                self.register(spawned, world);
                if let Some(passed) = passed.flatten() {
                    self.pass(&passed, world);
                }
                Event::Spawned
            }
            Err(why) => {
                self.failed(&why);
                self.runs.ended = self.runs.begun;
                Event::SpawnFailed
            }
        }
    }

    fn execute(&self, world: World<'_>) -> Result<Spawned, String> {
        let program = program::program(&self.service, world.tree)?;
        let program = match self.held {
            true => Program { held: true, cgroup: None, ..program },
            false => Program { cgroup_is_new: self.prepare_group(world.tree), ..program },
        };
        spawn::spawn(&program).map_err(|error| error.to_string())
    }

    fn failed(&mut self, why: &str) {
        // Said once, not at every try of a backoff that never ends.
        if self.told.as_deref() == Some(why) {
            debug!("{}: {why}", self.name());
        } else {
            warn!("{}: {why}", self.name());
        }
        self.failure = Some(why.to_owned());
        self.told = Some(why.to_owned());
    }

    fn prepare_group(&self, tree: &Tree) -> bool {
        let (is_new, problems) = gate::prepare_group(&self.service, tree);
        self.tell_first(&problems);
        is_new
    }

    /// Said at the first start alone.
    fn tell_first(&self, problems: &[CgroupError]) {
        if self.machine.restarts() == 0 {
            problems.iter().for_each(|problem| warn!("{}: {problem}", self.name()));
        }
    }

    /// From here on the process is known: nothing is reaped between the fork and this, for there is one thread.
    fn register(&mut self, spawned: Spawned, world: World<'_>) {
        let group = self.service.group_path();
        let held = spawned.gate.is_some(); // its cgroup is not there yet
        let process = Process {
            pid: spawned.pid.as_raw(),
            steps: self.watch(Some(spawned.steps), 0, world.reactor),
            pipes: [
                self.watch(spawned.stdout, 1, world.reactor),
                self.watch(spawned.stderr, 2, world.reactor),
            ],
            lines: [Lines::default(), Lines::default()],
            oom_kills: if held { 0 } else { world.tree.oom_kills(&group).unwrap_or(0) },
            group_entered: !held,
            gone_by: None,
            gate: spawned.gate,
            unsettled: false,
        };
        self.process = Some(process);
    }

    fn watch(&self, fd: Option<OwnedFd>, kind: u8, reactor: &Reactor) -> Option<Watched> {
        let token: Token = tokens::unit(self.index, kind);
        let watched = reactor.watch(fd?, token, Interest::Read);
        watched.inspect_err(|error| warn!("{}: {error}", self.name())).ok()
    }

    /// Something can be read.
    pub(in crate::pid1) fn ready(&mut self, kind: Kind, world: World<'_>) {
        match kind {
            Kind::Steps => self.read_steps(world),
            Kind::Stdout => drop(self.read_output(0)),
            Kind::Stderr => drop(self.read_output(1)),
        }
    }

    fn read_steps(&mut self, world: World<'_>) {
        let Some(process) = &mut self.process else { return };
        let Some(pipe) = &process.steps else { return };
        let steps = spawn::read_steps(pipe);
        if steps.ended {
            process.steps = None;
        }
        let path = self.service.program().unwrap_or(std::path::Path::new("")).to_owned();
        let mut ended_by = None;
        for failure in &steps.failures {
            if failure.is_final() {
                ended_by = Some(failure.describe(&path));
            } else {
                process.group_entered &= failure.step != spawn::Step::Cgroup;
                warn!("{}: {}", self.service.name, failure.describe(&path));
            }
        }
        match ended_by {
            Some(why) => self.failed(&why),
            None if steps.ended && self.failure.is_none() => {
                self.told = None;
                self.event(Event::Executed, world);
            }
            None => {}
        }
    }

    /// One bounded read; more comes with the next turn.
    fn read_output(&mut self, which: usize) -> bool {
        let Some(process) = &mut self.process else { return false };
        let Some(pipe) = &process.pipes[which] else { return false };
        let mut buffer = [0; READ];
        match read_ready(pipe, &mut buffer) {
            Ok(Some(count)) if count > 0 => {
                let (service, tail) = (&self.service, &mut self.tail);
                process.lines[which].push(&buffer[..count], |line| tell_line(service, tail, which, line));
                true
            }
            Ok(None) => false,
            _ => {
                process.pipes[which] = None;
                false
            }
        }
    }

    /// TERM and CONT go to everybody in its cgroup, as under systemd; KILL too. envd's wrapper ends envd itself.
    fn signal(&self, signal: Signal, world: World<'_>) {
        let Some(process) = &self.process else { return };
        let pid = Pid::from_raw(process.pid);
        let group = self.service.group_path();
        if signal == Signal::SIGKILL && self.owns_group() {
            let _ = world.tree.kill(&group);
        }
        if self.service.owns_group() && process.group_entered {
            let others = world.tree.processes(&group).into_iter().filter(|member| *member != process.pid);
            let others: Vec<i32> = others.collect();
            world.tree.signal(&group, &others, signal);
            world.tree.signal(&group, &others, Signal::SIGCONT);
        }
        // Not reaped yet, so the number is still its own; its children share its session's group.
        let _ = if signal == Signal::SIGTERM {
            kill(pid, signal)
        } else {
            killpg(pid, signal).or(kill(pid, signal))
        };
        let _ = kill(pid, Signal::SIGCONT);
    }

    /// Whether all that is in its cgroup is its own to end.
    fn owns_group(&self) -> bool {
        let entered = self.process.as_ref().is_none_or(|process| process.group_entered);
        entered && self.service.placement != Placement::InitScope
    }

    /// The main process was reaped.
    pub(in crate::pid1) fn died(&mut self, death: Reaped, world: World<'_>) -> Option<ExitReport> {
        self.read_steps(world);
        for which in 0..2 {
            // What it said last is worth reading, but a heir of the pipe that floods is not waited for.
            for _ in 0..16 {
                if !self.read_output(which) {
                    break;
                }
            }
        }
        let mut process = self.process.take()?;
        for (which, lines) in process.lines.iter_mut().enumerate() {
            lines.finish(|line| tell_line(&self.service, &mut self.tail, which, line));
        }
        let report = self.exit_report(death, &process, world);
        self.last_exit = Some(report.clone());
        let success = !death.by_signal && death.status == 0 && self.failure.is_none();
        self.drain_or_end(success, &process, world);
        Some(report)
    }

    fn exit_report(&mut self, death: Reaped, process: &Process, world: World<'_>) -> ExitReport {
        let group = self.service.group_path();
        let oom = world.tree.oom_kills(&group).unwrap_or(0) > process.oom_kills;
        let expected = self.service.is_oneshot() && !death.by_signal && death.status == 0;
        let about = Circumstances {
            service: &self.service.name,
            uptime: world.now.saturating_sub(self.machine.started()),
            restarts: self.machine.restarts(),
            oom,
            peak_memory_bytes: self.service.owns_group().then(|| world.tree.memory_peak(&group)).flatten(),
            reason: self.failure.as_deref().or(self.machine.reason()),
            last_lines: self.tail.take(),
            at: world.now,
        };
        let report = report::report(death, about);
        if self.failure.is_none() && !expected {
            report::tell(&report, self.state() == State::Stopping);
        }
        report
    }

    fn drain_or_end(&mut self, success: bool, process: &Process, world: World<'_>) {
        let group = self.service.group_path();
        let entered = process.group_entered && self.owns_group();
        if entered && world.tree.is_populated(&group) {
            let _ = world.tree.kill(&group);
            self.draining = Some(Draining { success, until: world.now + DRAIN });
        } else {
            self.end(success, world);
        }
    }

    /// Who of it is still there though it is down.
    pub(in crate::pid1) fn left_alive(&self, tree: &Tree) -> Option<String> {
        let others = || self.survivors && tree.is_populated(&self.service.group_path());
        let main = self.unkillable.map(|pid| format!("its process {pid} does not end, even by SIGKILL"));
        main.or_else(|| others().then(|| "processes of it do not end, even by SIGKILL".to_owned()))
    }

    /// To be called when the deadline has come.
    pub(super) fn look_whether_gone(&mut self, world: World<'_>) {
        let Some(process) = self.process.take_if(|process| process.gone_by.is_some_and(|at| at <= world.now))
        else {
            return;
        };
        let (name, pid) = (self.name(), process.pid);
        warn!("{name} (pid {pid}) does not end, even by SIGKILL: the kernel holds it; it is left to itself");
        self.unkillable = Some(pid);
        self.end(false, world);
    }

    /// Whether it was this one's that had been given up.
    pub(super) fn is_gone_after_all(&mut self, pid: i32) -> bool {
        let gone = self.unkillable.take_if(|unkillable| *unkillable == pid).is_some();
        if gone {
            info!("{} (pid {pid}), which was left to itself, has ended", self.name());
        }
        gone
    }

    /// To be called after something was reaped and when the deadline has come.
    pub(in crate::pid1) fn look_whether_drained(&mut self, world: World<'_>) {
        let Some(draining) = &self.draining else { return };
        let empty = !world.tree.is_populated(&self.service.group_path());
        if empty || draining.until <= world.now {
            self.survivors = !empty;
            if !empty {
                warn!("{}: processes of its last run do not end, even by SIGKILL", self.name());
            }
            let success = draining.success;
            self.end(success, world);
        }
    }

    fn end(&mut self, success: bool, world: World<'_>) {
        self.draining = None;
        if self.service.owns_group() {
            world.tree.remove(&self.service.group_path());
        }
        self.runs.ended = self.runs.begun;
        if success && self.service.is_oneshot() {
            self.runs.ready = self.runs.begun;
        }
        self.take_next();
        self.event(Event::Exited { success }, world);
    }

    /// `READY=1` or `STATUS=…`.
    pub(in crate::pid1) fn notified(&mut self, key: &str, value: &str, world: World<'_>) {
        match (key, value) {
            ("READY", "1") if self.service.readiness == Readiness::Notify => self.event(Event::Ready, world),
            ("STATUS", text) => self.status_text = Some(text.chars().take(200).collect()),
            _ => {}
        }
    }

    /// It will not run on this machine.
    pub(in crate::pid1) fn skip(&mut self, why: &str) {
        debug!("{}: passed over, {why}", self.name());
        self.skipped = true;
        self.wanted = false;
        self.settled = true;
    }

    /// Whether its last run has not ended well, or could not begin.
    fn has_failed(&self) -> bool {
        self.failure.is_some() || self.last_exit.as_ref().is_some_and(|exit| exit.status != Some(0))
    }

    pub(in crate::pid1) fn status(&self, tree: &Tree) -> ServiceStatus {
        let state = match self.state() {
            State::Healthy if self.service.readiness == Readiness::None => "running",
            State::Exited if self.has_failed() => "failed",
            _ if self.wanted && self.process.is_none() => "waiting",
            state => state.as_str(),
        };
        ServiceStatus {
            name: self.name().to_owned(),
            description: self.service.description.clone(),
            state: state.to_owned(),
            enabled: self.service.enabled,
            pid: self.pid(),
            restarts: self.machine.restarts(),
            since_ns: u64::try_from(self.machine.since().as_nanos()).unwrap_or(u64::MAX),
            memory_bytes: self.pid().and_then(|_| tree.memory_current(&self.service.group_path())),
            last_exit: self.last_exit.clone(),
        }
    }
}

fn tell_line(service: &Service, tail: &mut Tail, which: usize, line: &[u8]) {
    let (level, text) = record::split_level(line);
    let level = if which == 1 && level == Level::Debug { Level::Info } else { level };
    tail.push(text);
    match service.log {
        LogTo::Console => log::emit(&service.name, level, text),
        LogTo::Ring => log::keep(&service.name, level, text),
    }
}
