//! The programs that we are measured against: C floors of `tests/peers`, and socat.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Compiles `tests/peers/NAME.c`, static and optimised, and gives its path.
pub(crate) fn compile(root: &Path, name: &str) -> Result<PathBuf> {
    let source = root.join("tests/peers").join(format!("{name}.c"));
    let program = root.join("target/bench/peers").join(name);
    std::fs::create_dir_all(program.parent().context("peers folder")?)?;
    let status = Command::new("cc")
        .args(["-O2", "-static", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .context("run cc (package gcc)")?;
    ensure!(status.success(), "cc failed on {}", source.display());
    Ok(program)
}
