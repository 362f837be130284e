//! One life of envd: its start, its output, its end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use guest::clock;
use guest::reactor::{Interest, Token};
use guest::spawn::{self, Spawned};
use guest::supervise::Event;
use guest::sys::Reaped;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::{error, info, warn};

use super::{STDERR, STDOUT, STEPS, Supervisor};
use crate::choose;
use crate::cleanup::{self, Ended};
use crate::death::{self, Before, Life};
use crate::drain::{Flow, Stream};
use crate::last::LastLines;
use crate::world;

/// The process, and what of it we hold.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    steps: Option<OwnedFd>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    last: LastLines,
    before: Before,
    /// We sent it KILL.
    killed: bool,
}

impl Child {
    pub(super) fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.stdout.iter().chain(&self.stderr)
    }

    fn slot(&mut self, token: Token) -> &mut Option<Stream> {
        if token == STDOUT { &mut self.stdout } else { &mut self.stderr }
    }
}

/// A death of which nobody knows yet: the next envd comes first.
#[derive(Debug)]
pub(super) struct Untold {
    end: Reaped,
    life: Life,
    ended: Ended,
}

impl Supervisor {
    pub(super) fn spawn(&mut self) -> Event {
        let verdict = choose::choose(&self.settings.search(), &mut self.known);
        let refusals: Vec<String> = verdict.warnings().collect();
        if refusals != self.refusals {
            refusals.iter().for_each(|refusal| warn!("{refusal}"));
            self.refusals = refusals;
        }
        let Some(path) = verdict.chosen() else {
            return self.not_spawned(&format!("no envd to run; looked at {}", verdict.places()));
        };
        match spawn::spawn(&world::envd(path, &self.settings)) {
            Ok(spawned) => {
                self.status.program = path.display().to_string();
                guest::files::read_ahead(path, None); // in one go, instead of piece by piece as envd comes to need it
                self.adopt(spawned);
                Event::Spawned
            }
            Err(error) => self.not_spawned(&error.to_string()),
        }
    }

    fn not_spawned(&mut self, why: &str) -> Event {
        self.tell_death();
        error!("{why}");
        Event::SpawnFailed
    }

    fn adopt(&mut self, spawned: Spawned) {
        let child = Child {
            pid: spawned.pid,
            steps: Some(spawned.steps),
            stdout: spawned.stdout.map(Stream::new),
            stderr: spawned.stderr.map(Stream::new),
            last: LastLines::default(),
            before: death::before(&mut self.home),
            killed: false,
        };
        let watch = |descriptor, token| {
            if let Err(error) = self.reactor.add(descriptor, token, Interest::Read) {
                warn!("{error}");
            }
        };
        child.steps.iter().for_each(|steps| watch(steps.as_fd(), STEPS));
        child.stdout.iter().for_each(|stream| watch(stream.descriptor(), STDOUT));
        child.stderr.iter().for_each(|stream| watch(stream.descriptor(), STDERR));
        self.status.pid = Some(spawned.pid.as_raw());
        self.child = Some(child);
        (self.slow, self.blind) = (false, false);
    }

    /// What the child has told on its way to its program.
    pub(super) fn read_steps(&mut self) {
        let Some(child) = &mut self.child else { return };
        let Some(pipe) = &child.steps else { return };
        let steps = spawn::read_steps(pipe);
        let program = Path::new(&self.status.program);
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
                self.status.exec_ns = Some(clock::now().as_nanos() as u64);
                info!("envd started: {} (pid {})", self.status.program, child.pid);
                self.recall_version();
                self.feed(Event::Executed);
            }
        }
    }

    /// Reads what is due: streams whose flood is to be summed up, or whose nap is over.
    pub(super) fn wake_streams(&mut self) {
        let now = clock::now();
        for token in [STDOUT, STDERR] {
            let Some(child) = &mut self.child else { return };
            let slot = if token == STDOUT { &mut child.stdout } else { &mut child.stderr };
            let Some(stream) = slot else { continue };
            stream.settle(now, &mut child.last);
            if stream.slept(now) {
                self.drain(token);
            }
        }
    }

    pub(super) fn drain(&mut self, token: Token) {
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
            Flow::Ended => *child.slot(token) = None,
        }
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        if let Some(child) = &mut self.child {
            child.killed |= signal == Signal::SIGKILL;
            // It was not reaped, so the number is still its own.
            let _ = kill(child.pid, signal);
            // One that was stopped takes nothing but KILL before it goes on.
            let _ = kill(child.pid, Signal::SIGCONT);
        }
    }

    pub(super) fn reap(&mut self) {
        while let Ok(Some(end)) = guest::sys::reap(None) {
            if self.child.as_ref().is_some_and(|child| child.pid.as_raw() == end.pid) {
                self.on_death(end);
            } else {
                self.take_version(end);
            }
        }
    }

    /// Whatever can wait until the next envd is on its way waits: counters, users' processes, and the serial line before all.
    fn on_death(&mut self, end: Reaped) {
        self.hold_console();
        // A failed exec is told by its pipe, which may be read after the death.
        self.read_steps();
        let Some(mut child) = self.child.take() else { return };
        let now = clock::now();
        for stream in [&mut child.stdout, &mut child.stderr].into_iter().flatten() {
            stream.finish(&mut self.buffer, now, &mut child.last);
        }
        let life = Life {
            started: self.machine.started(),
            ended: now,
            before: child.before,
            restarts: self.machine.restarts(),
            reason: self.machine.reason().map(str::to_owned),
            killed: child.killed,
            last_lines: child.last.take(),
        };
        self.untold = Some(Untold { end, life, ended: cleanup::end_remains(&self.home) });
        self.status.pid = None;
        self.version.died();
        (self.status.exec_ns, self.status.listening_ns, self.status.healthy_ns) = (None, None, None);
        self.feed(Event::Exited { success: !end.by_signal && end.status == 0 });
        self.tell_death();
    }

    pub(super) fn tell_death(&mut self) {
        let Some(Untold { end, life, ended }) = self.untold.take() else { return };
        let report = death::report(end, life, &mut self.home);
        if self.stopping {
            info!("{}", death::describe(&report));
        } else {
            warn!("{}", death::describe(&report));
        }
        if let Ok(json) = serde_json::to_string(&report) {
            guest::log::machine("exit", &json);
        }
        if let Some(line) = cleanup::describe(&ended, &cleanup::users()) {
            info!("{line}");
        }
        if let Some(keep) = &mut self.keep {
            keep.died(&report);
        }
        self.status.last_exit = Some(report);
        // Not left to the next change of state, before which envd may die once more.
        self.reporter.changed(&self.status);
    }
}
