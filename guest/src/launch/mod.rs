//! `init launch`: starts a service in ways that its TOML file has no keys for, outside of PID 1.
//!
//! Units of the image that were turned into services are started through it where they need one of these:
//!
//! | option | from the unit's |
//! |---|---|
//! | `--user NAME` `--group NAME` `--supplementary A,B` | `User=` `Group=` `SupplementaryGroups=`, with `$HOME` and the like |
//! | `--runtime NAME:MODE` `--state` `--cache` `--logs` `--configuration` | `RuntimeDirectory=` and its kin, made for the user |
//! | `--environment-file [-]PATH` | `EnvironmentFile=`, read at each start |
//! | `--before COMMAND` | `ExecStartPre=`, at each start |
//! | `--umask BITS` | `UMask=` |
//! | `--stdout HOW:PATH` `--stderr HOW:PATH` | `StandardOutput=` `StandardError=` with `file:`, `append:` or `truncate:` |
//! | `--name NAME` | `ExecStart=@…` |
//! | `--may-fail` | `ExecStart=-…` |
//! | `--pid-file PATH` | `Type=forking` with `PIDFile=` |
//!
//! Then `-- PROGRAM ARGUMENT…`, in which `$NAME` and `${NAME}` stand for variables. Without `--pid-file` and `--may-fail` the
//! program takes launch's place, and nothing of it stays in memory. With `--pid-file` it stays as the daemon's parent ([`forking`]),
//! so that the daemon's end is seen by event, and passes signals on.

mod arguments;
mod environment;
mod forking;
mod output;
mod prepare;

use std::{io, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use nix::{errno::Errno, sys::signal::SigSet};

use crate::words;

/// It could not be started at all.
pub const FAILED: i32 = 200;
/// The arguments are wrong.
pub const USAGE: i32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}; see docs/services.md")]
    Usage(String),
    #[error("cannot read the environment file {path}: {source}")]
    EnvironmentFile { path: PathBuf, source: io::Error },
    #[error("`{text}`: {source}")]
    Words { text: String, source: words::Error },
    #[error("there is no {kind} `{name}`")]
    NoAccount { kind: &'static str, name: String },
    #[error("cannot make {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot open {file} for the output: {source}")]
    Output { file: String, source: io::Error },
    #[error("cannot become the user {user}: {}", source.desc())]
    Become { user: String, source: Errno },
    #[error("cannot execute {program}: {source}")]
    Execute { program: String, source: io::Error },
    #[error("before the start: {command}: {how}")]
    Before { command: String, how: String },
    #[error("{program} has forked, and {path} does not name the process that went on: {how}")]
    PidFile { program: String, path: PathBuf, how: String },
    #[error("cannot {operation}: {}", source.desc())]
    System { operation: &'static str, source: Errno },
}

/// Everything of it; returns only what the caller has to exit with.
pub fn run(arguments: &[String]) -> i32 {
    // A launch that was started by another has its blocked signals, and so would the program.
    let _ = SigSet::empty().thread_set_mask();
    let result = arguments::parse(arguments).and_then(|options| launch(&options));
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("<3>{error}");
            if matches!(error, Error::Usage(_)) { USAGE } else { FAILED }
        }
    }
}

fn launch(options: &arguments::Options) -> Result<i32, Error> {
    let prepared = prepare::prepare(options)?;
    if let Some(pid_file) = &options.pid_file {
        return forking::supervise(options, &prepared, pid_file);
    }
    let mut command = command(options, &prepared)?;
    if options.may_fail {
        let ended = command.status().map_err(|source| execute_failed(options, source))?;
        if !ended.success() {
            eprintln!("<5>{} ended with {ended}, which its unit allows", options.program);
        }
        return Ok(0);
    }
    prepared.become_user()?;
    Err(execute_failed(options, command.exec()))
}

fn execute_failed(options: &arguments::Options, source: io::Error) -> Error {
    Error::Execute { program: options.program.clone(), source }
}

/// The program with its arguments, in which variables have been replaced.
fn command(options: &arguments::Options, prepared: &prepare::Prepared) -> Result<Command, Error> {
    let mut command = Command::new(&options.program);
    command.args(environment::expand(&options.arguments, &prepared.environment));
    command.env_clear().envs(&prepared.environment);
    if let Some(name) = &options.name {
        command.arg0(name);
    }
    prepared.outputs.give(&mut command)?;
    Ok(command)
}

#[cfg(test)]
mod tests;
