//! Between fork and exec: this program starts itself once more as the child, which joins its cgroup, makes a session,
//! becomes its user and then turns into the command. So nothing runs in a forked copy of a threaded program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{cgroup, users};

/// The first argument of the child: `--launch USER pty|pipe COMMAND ARGS…`.
pub(crate) const FLAG: &str = "--launch";

/// The command that becomes `command` as `user`.
pub(crate) fn command(
    user: &str,
    pty: bool,
    command: &str,
    args: &[String],
) -> Result<tokio::process::Command> {
    let own = std::env::current_exe().context("finding our own program")?;
    let mut launcher = tokio::process::Command::new(own);
    launcher.arg0("launch").args([FLAG, user, if pty { "pty" } else { "pipe" }, command]).args(args);
    Ok(launcher)
}

/// The child. Exec does not return; as in a shell, 127 is a command that is not there.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    match launch(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(127)
        }
    }
}

/// A command has neither the server's priority nor its protection from the OOM killer, as under the real one.
fn be_ordinary() {
    const OOM_SCORE: &str = "100";
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let _ = rustix::process::setpriority_process(None, 0);
}

fn launch(args: &[OsString]) -> Result<()> {
    let [user, kind, command, args @ ..] = args else {
        anyhow::bail!("{FLAG} needs a user, a kind and a command")
    };
    let pty = kind == "pty";
    if let Some(cgroup) = cgroup::for_child(pty) {
        let _ = std::fs::write(cgroup.join("cgroup.procs"), "0");
    }
    nix::unistd::setsid().context("making a session")?;
    if pty {
        rustix::process::ioctl_tiocsctty(std::io::stdin()).context("taking the terminal")?;
    }
    let user = users::find(&user.to_string_lossy())?;
    let home = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    if nix::unistd::geteuid().is_root() {
        be_ordinary();
        users::become_user(&user)?;
    }
    let mut program = Command::new(command);
    program.args(args).current_dir(home);
    let error = program.exec();
    Err(error).with_context(|| format!("{}", command.display()))
}
