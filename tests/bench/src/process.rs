//! A program under measurement on the host: started, ended, and what it costs with all its descendants.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take until it listens, or to end.
const BOUND: Duration = Duration::from_secs(20);

/// A running program that is ended when it is dropped.
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Its output is thrown away. It gets a process group, so that children of its own (a fork a connection) end with it, and dies
    /// with this program.
    pub(crate) fn start(command: &Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        let quiet = bound.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.process_group(0).spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { child, name })
    }

    /// Waits until `look` finds something, and fails when the program ends before.
    pub(crate) fn until<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once: {status}", self.name);
            }
            if begin.elapsed() > BOUND {
                bail!("{}: waited {BOUND:?} in vain for {what}", self.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its own pid and all its descendants'.
    pub(crate) fn tree(&self) -> Vec<u32> {
        let mut pids = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = pids.get(next) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            next += 1;
        }
        pids
    }

    /// Proportional set size of the whole tree, in bytes.
    pub(crate) fn pss(&self) -> Result<f64> {
        let pss = |pid: u32| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
            let kib = line.trim().trim_end_matches("kB").trim();
            kib.parse::<f64>().map(|kib| kib * 1024.0).with_context(|| format!("Pss of process {pid}"))
        };
        self.tree().into_iter().map(pss).sum()
    }

    /// CPU time of the whole tree while it lives, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let threads = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let nanoseconds = |path: std::path::PathBuf| {
            let stat = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            stat.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or(0.0)
        };
        let all: f64 = self.tree().iter().flat_map(threads).map(|thread| nanoseconds(thread.path())).sum();
        all / 1e9
    }

    fn terminate(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let group = Pid::from_raw(-(self.child.id() as i32));
        let _ = kill(group, Signal::SIGTERM);
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > Duration::from_secs(5) {
                let _ = kill(group, Signal::SIGKILL);
                let _ = self.child.wait();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate();
    }
}
