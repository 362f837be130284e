//! A program that forks and leaves: launch becomes the parent of what goes on (`PR_SET_CHILD_SUBREAPER`), and ends as that ends.
//!
//! | state | left by |
//! |---|---|
//! | starting | the program ends well → waiting; badly → launch ends with its status |
//! | waiting | the file names a living process of our cgroup → running; 5 s → launch fails |
//! | running | that process ends → running, when the file names a successor by then; else launch ends in the same way |
//!
//! TERM and other signals are passed on to the program or the daemon in every state. After a TERM nothing new is begun: a daemon
//! that has come up meanwhile gets it too, and launch ends with it.

use std::{
    fs,
    os::fd::AsFd,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill, raise},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    Error,
    arguments::Options,
    execute_failed,
    prepare::{Prepared, as_launched},
};
use crate::{notify, sys};

/// How long the file may stay away after the program has ended.
const PID_FILE_BOUND: Duration = Duration::from_secs(5);
/// Its writer cannot be waited for by event on every filesystem.
const PID_FILE_EVERY: u16 = 20;
/// Passed on to the daemon.
const FORWARDED: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

pub(super) fn supervise(options: &Options, prepared: &Prepared, pid_file: &Path) -> Result<i32, Error> {
    let failed = |operation| move |source| Error::System { operation, source };
    sys::become_subreaper().map_err(|error| {
        failed("adopt the daemon")(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
    })?;
    let mut signals = SigSet::empty();
    for signal in FORWARDED.into_iter().chain([Signal::SIGCHLD]) {
        signals.add(signal);
    }
    signals.thread_block().map_err(failed("block signals"))?;
    let events = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failed("read signals"))?;
    let mut start = start(options, prepared)?;
    let _ = fs::remove_file(pid_file); // of another boot, or of a daemon that was killed
    let program = start.spawn().map_err(|source| execute_failed(options, source))?;
    let mut watch = Watch { events, main: as_pid(&program), ended: None, stopping: false };
    let ended = watch.until_main_ends()?;
    if watch.stopping {
        return watch.end_daemon(ended, pid_file);
    }
    if !succeeded(ended) && !options.may_fail {
        return Ok(end_like(ended));
    }
    run(options, &mut watch, pid_file)
}

/// Launch once more, without the signals that are blocked here, which becomes the user and then the program.
fn start(options: &Options, prepared: &Prepared) -> Result<Command, Error> {
    let mut start = as_launched(false, options)?;
    if let Some(name) = &options.name {
        start.args(["--name", name]);
    }
    start.arg("--").arg(&options.program).args(&options.arguments);
    start.env_clear().envs(&prepared.environment).env_remove(notify::VARIABLE);
    prepared.outputs.give(&mut start)?;
    Ok(start)
}

fn as_pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// From the program's end to the daemon's.
fn run(options: &Options, watch: &mut Watch, pid_file: &Path) -> Result<i32, Error> {
    let Some(main) = watch.find_daemon(options, pid_file)? else { return Ok(0) };
    watch.main = main;
    if let Some(supervisor) = notify::Notifier::from_environment() {
        let _ = supervisor.send("READY=1");
    }
    loop {
        let ended = watch.until_main_ends()?;
        match daemon(pid_file) {
            // A daemon that replaces itself, as at an upgrade of the program.
            Ok(successor) if successor != watch.main => watch.main = successor,
            _ => return Ok(end_like(ended)),
        }
    }
}

struct Watch {
    events: SignalFd,
    main: Pid,
    ended: Option<WaitStatus>,
    /// It is to end: TERM has come.
    stopping: bool,
}

impl Watch {
    fn until_main_ends(&mut self) -> Result<WaitStatus, Error> {
        loop {
            self.handle(PollTimeout::NONE)?;
            if let Some(ended) = self.ended.take() {
                return Ok(ended);
            }
        }
    }

    /// TERM came before the daemon was known: one that is there by now gets it too.
    fn end_daemon(&mut self, ended: WaitStatus, pid_file: &Path) -> Result<i32, Error> {
        let Ok(daemon) = daemon(pid_file) else { return Ok(end_like(ended)) };
        self.main = daemon;
        let _ = kill(daemon, Signal::SIGTERM);
        self.until_main_ends().map(end_like)
    }

    /// `None` when it is to end and there is none.
    fn find_daemon(&mut self, options: &Options, pid_file: &Path) -> Result<Option<Pid>, Error> {
        let begin = Instant::now();
        loop {
            match daemon(pid_file) {
                Ok(pid) if self.stopping => {
                    let _ = kill(pid, Signal::SIGTERM);
                    return Ok(Some(pid));
                }
                Ok(pid) => return Ok(Some(pid)),
                Err(_) if self.stopping => return Ok(None),
                Err(how) if begin.elapsed() > PID_FILE_BOUND => {
                    return Err(Error::PidFile {
                        program: options.program.clone(),
                        path: pid_file.to_owned(),
                        how,
                    });
                }
                Err(_) => self.handle(PollTimeout::from(PID_FILE_EVERY))?,
            }
        }
    }

    /// Waits for a signal and does what it asks.
    fn handle(&mut self, timeout: PollTimeout) -> Result<(), Error> {
        let failed = |operation| move |source| Error::System { operation, source };
        match poll(&mut [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => (),
            Err(source) => return Err(failed("wait for signals")(source)),
        }
        while let Some(event) = self.events.read_signal().map_err(failed("read signals"))? {
            match Signal::try_from(event.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(signal) => {
                    self.stopping |= signal == Signal::SIGTERM;
                    let _ = kill(self.main, signal);
                }
                Err(_) => (),
            }
        }
        Ok(())
    }

    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            match status.pid() {
                None => break,
                Some(pid) if pid == self.main => self.ended = Some(status),
                Some(_) => (),
            }
        }
    }
}

/// The process that the file names, when it lives and is of our cgroup: another's file proves nothing.
fn daemon(pid_file: &Path) -> Result<Pid, String> {
    let text = fs::read_to_string(pid_file).map_err(|error| error.to_string())?;
    let pid: i32 = text.trim().parse().ok().filter(|pid| *pid > 1).ok_or("it holds no process id")?;
    let group = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let (own, its) = (group("self"), group(&pid.to_string()));
    match (own, its) {
        (Ok(own), Ok(its)) if own == its => Ok(Pid::from_raw(pid)),
        (_, Err(_)) => Err(format!("there is no process {pid}")),
        _ => Err(format!("process {pid} is none of this service")),
    }
}

fn succeeded(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Exited(_, 0))
}

/// The daemon's status, or the signal that ended it: what PID 1 sees and tells is the daemon's end.
fn end_like(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, status) => status,
        WaitStatus::Signaled(_, signal, _) => {
            let _ = sys::set_limit(4, 0, 0); // no core of launch itself
            sys::reset_signals();
            let _ = SigSet::all().thread_unblock();
            let _ = raise(signal);
            128 + signal as i32
        }
        _ => 0,
    }
}
