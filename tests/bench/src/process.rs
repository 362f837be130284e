//! A program under measurement: started, awaited until it listens, ended, and its CPU time taken.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take until it listens.
const START_BOUND: Duration = Duration::from_secs(20);

/// A running program that is ended when it is dropped.
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { child, name })
    }

    /// Waits until the socket file is there. It does not connect: some peers serve one connection only.
    pub(crate) fn until_bound(mut self, socket: &Path) -> Result<Self> {
        let begin = Instant::now();
        while !socket.exists() {
            self.still_alive()?;
            if begin.elapsed() > START_BOUND {
                bail!("{} did not bind {} in {START_BOUND:?}", self.name, socket.display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(self)
    }

    /// Waits until a connection through it is answered.
    pub(crate) fn until_serving(mut self, socket: &Path) -> Result<Self> {
        let begin = Instant::now();
        while !UnixStream::connect(socket).is_ok_and(|stream| crate::load::one_byte(&stream).is_ok()) {
            self.still_alive()?;
            if begin.elapsed() > START_BOUND {
                bail!("{} did not serve {} in {START_BOUND:?}", self.name, socket.display());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(self)
    }

    fn still_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended at once: {status}", self.name),
            None => Ok(()),
        }
    }

    /// Ends it and gives the CPU time that it and the children it reaped have used.
    pub(crate) fn end(mut self) -> Result<Duration> {
        let before = cpu_of_children()?;
        self.terminate();
        Ok(cpu_of_children()?.saturating_sub(before))
    }

    fn terminate(&mut self) {
        let begin = Instant::now();
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > Duration::from_secs(5) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
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

fn cpu_of_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let total = usage.user_time() + usage.system_time();
    Ok(Duration::new(total.tv_sec() as u64, total.tv_usec() as u32 * 1000))
}
