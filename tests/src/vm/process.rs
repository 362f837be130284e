//! Child processes that die with this one, whatever ends it.
//!
//! The parent-death signal is sent when the THREAD that started a child ends, so one thread that lives as long as the
//! process starts them all; `setpriv` sets the signal, which an exec keeps.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

/// A child that is killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
}

impl Process {
    /// Starts `program`, its output in `log`.
    pub fn start(program: &Path, args: &[OsString], log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = spawn(command)?.with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child: Mutex::new(child) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.lock().id()
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.lock().try_wait().ok().flatten()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.lock(); // not reaped while we hold it
        kill(Pid::from_raw(child.id().cast_signed()), signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// SIGKILL, and waits until it is dead.
    pub fn kill(&self) {
        let mut child = self.lock();
        let _ = child.kill();
        let _ = child.wait();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(command: Command) -> Result<std::io::Result<Child>> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, result) = mpsc::channel();
    spawner.send((command, answer)).map_err(|_| anyhow!("the thread that starts processes is gone"))?;
    result.recv().context("the thread that starts processes is gone")
}
