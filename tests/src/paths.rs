//! Where things lie in the working copy.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// The target of the guest's programs.
pub const MUSL: &str = "x86_64-unknown-linux-musl";

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's output folder.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// What `scripts/setup` installed.
pub fn tool(path: &str) -> Result<PathBuf> {
    existing(root().join("target/tools").join(path), "scripts/setup")
}

/// A program of the guest: `init`, `envd-wrapper`, `vsock-relay`.
pub fn guest_bin(name: &str) -> Result<PathBuf> {
    existing(guest_dir().join(name), "make build")
}

/// The folder of the guest's programs.
pub fn guest_dir() -> PathBuf {
    target().join(MUSL).join("release")
}

/// A program of the host: `envdctl`, `rootfs`.
pub fn host_bin(name: &str) -> Result<PathBuf> {
    existing(target().join("host").join(name), "make build")
}

/// The stand-in envd, static.
pub fn stand_in() -> Result<PathBuf> {
    existing(target().join(MUSL).join("host/envd-stand-in"), "make stand-in")
}

/// A folder for results, made when absent.
pub fn output(name: &str) -> Result<PathBuf> {
    let dir = root().join("target").join(name);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn existing(path: PathBuf, maker: &str) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing: run `{maker}`", path.display());
    Ok(path)
}
