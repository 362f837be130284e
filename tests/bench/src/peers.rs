//! The programs that we are measured against: the C floors of `tests/peers`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::paths;

use crate::load::Door;
use crate::process::Process;

/// Compiles `tests/peers/NAME.c`, static and optimised, and gives its path.
pub(crate) fn compile(name: &str) -> Result<PathBuf> {
    let source = paths::root().join("tests/peers").join(format!("{name}.c"));
    let program = paths::output("bench/peers")?.join(name);
    let status = Command::new("cc")
        .args(["-O2", "-static", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .context("run cc (package gcc)")?;
    ensure!(status.success(), "cc failed on {}", source.display());
    Ok(program)
}

/// The same, as bytes for an image.
pub(crate) fn compiled(name: &str) -> Result<Vec<u8>> {
    let program = compile(name)?;
    fs::read(&program).with_context(|| format!("reading {}", program.display()))
}

/// `bench_server` on a unix socket, once it answers.
pub(crate) fn server_on(socket: &Path) -> Result<Process> {
    let mut command = Command::new(compile("bench_server")?);
    command.arg(format!("unix:{}", socket.display()));
    let process = Process::start(&command)?;
    Door::Unix(socket.to_owned()).wait()?;
    Ok(process)
}
