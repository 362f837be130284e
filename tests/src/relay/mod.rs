//! What the way over vsock must endure, in a VM with the real device: each scenario takes a count and a seed, so that tests
//! run it short and the campaign at scale. What goes wrong is an error that says so.

mod endure;
mod load;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use endure::*;
pub use load::*;

use crate::{Envd, Image, Vm, firecracker::Firecracker, http, image::Bake, paths, wait};

/// envd behind the relay of every image.
pub const ENVD: u32 = envd_api::PORT as u32;
/// The peer of the benchmarks behind a second relay (see `tests/peers/bench_server.c`).
pub const PEER: u32 = 7777;

/// Hundreds of connections at full speed fill hundreds of megabytes of socket buffers.
pub const MEMORY: u32 = 2048;

/// The port on the host that a third relay leads to, from a unix socket in the guest.
pub const OUTWARDS: u32 = 9999;

/// Where connections to a guest's vsock ports begin.
#[derive(Debug, Clone)]
pub enum Door {
    /// A VMM's socket: any port.
    Vmm(PathBuf),
    /// A bridge's listening socket: the one port that it leads to.
    Bridge(PathBuf),
}

impl Door {
    /// A connection to `port`, which a bridge has chosen already.
    pub fn open(&self, port: u32) -> Result<UnixStream> {
        let stream = match self {
            Self::Vmm(socket) => http::hybrid_vsock(socket, port, wait::BOUND)?,
            Self::Bridge(socket) => {
                UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?
            }
        };
        stream.set_read_timeout(Some(wait::BOUND))?;
        Ok(stream)
    }

    /// Whether envd answers its health over a connection of its own.
    pub fn is_healthy(&self) -> bool {
        let asked = self.open(ENVD).and_then(|mut stream| {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        asked.is_ok_and(|answer| answer.starts_with("HTTP/1.1 204"))
    }
}

/// A guest with a relay to envd and one to a peer that echoes, swallows and gives.
#[derive(Debug)]
pub struct Bed {
    pub vm: Vm,
    firecracker: Firecracker,
}

impl Bed {
    pub fn boot() -> Result<Self> {
        Self::boot_with(Envd::preferred())
    }

    pub fn boot_with(envd: Envd) -> Result<Self> {
        crate::require_root()?;
        Self::of(Vm::of(&bake(envd)?.bake()?).memory_mib(MEMORY).boot()?)
    }

    /// A VM of an image as [`bake`] describes it, once its envd answers.
    pub fn of(vm: Vm) -> Result<Self> {
        let firecracker = Firecracker::before(&vm.vsock_socket(), &vm.dir().join("fc.sock"))?;
        let bed = Self { vm, firecracker };
        let healthy = || Ok(bed.kind().is_healthy().then_some(()));
        wait::until("envd over vsock", wait::BOUND, healthy).inspect_err(|_| bed.vm.keep_logs())?;
        Ok(bed)
    }

    /// The VMM's own socket.
    pub fn kind(&self) -> Door {
        Door::Vmm(self.vm.vsock_socket())
    }

    /// The same through a socket that behaves as Firecracker's.
    pub fn firecracker(&self) -> Door {
        Door::Vmm(self.firecracker.path().to_owned())
    }

    /// envd's port behind the socket that behaves as Firecracker's, as `envdctl` writes endpoints.
    pub fn firecracker_endpoint(&self) -> String {
        format!("firecracker:{}:{ENVD}", self.firecracker.path().display())
    }

    /// Both, by name.
    pub fn doors(&self) -> [(&'static str, Door); 2] {
        [("the VMM's socket", self.kind()), ("Firecracker's socket", self.firecracker())]
    }

    /// What Firecracker would have refused to read.
    pub fn split_lines(&self) -> usize {
        self.firecracker.split()
    }

    /// The relay's counters, as the guest's status shows them.
    pub fn relay_status(&self) -> Result<serde_json::Value> {
        let socket = self.vm.vsock_socket().display().to_string();
        let output = Command::new(paths::host_bin("envdctl")?)
            .args(["status", "--json", "--fc-socket", &socket])
            .output()
            .context("starting envdctl status")?;
        ensure!(
            output.status.success(),
            "envdctl status: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(status["relay"].clone())
    }

    /// Waits until the relay to envd has no connection: none may be left behind by clients that have gone.
    pub fn await_no_connections(&self) -> Result<()> {
        let none = || Ok((self.relay_status()?["connections"] == 0).then_some(()));
        wait::until("the relay to have no connections left", Duration::from_secs(60), none)
    }
}

/// What the guest is made of.
pub fn bake(envd: Envd) -> Result<Bake> {
    // Killed a hundred times in a row they would pause longer and longer, as any service does.
    let relay = |map: &str| {
        format!(
            "command = ['/usr/lib/envd-init/vsock-relay', '--map', '{map}']\nrestart = 'always'\n\
             backoff.max_ms = 100\nplacement = 'init.scope'\nlog = 'console'\n"
        )
    };
    let peer = "command = ['/opt/bench_server', 'unix:/run/peer.sock']\nrestart = 'always'\n[limits]\nopen_files = 65536\n";
    Ok(Image::native()
        .envd(envd)
        .script("/opt/bench_server", std::fs::read(compile_peer("bench_server")?)?)
        .file("/etc/envd-init/services.d/peer-relay.toml", relay("vsock:any:7777=unix:/run/peer.sock"))
        .file("/etc/envd-init/services.d/outwards.toml", relay("unix:/run/outwards.sock=vsock:host:9999"))
        .file("/etc/envd-init/services.d/peer.toml", peer))
}

/// A program of `tests/peers`, static.
pub fn compile_peer(name: &str) -> Result<PathBuf> {
    let source = paths::root().join("tests/peers").join(name).with_extension("c");
    let program = paths::output("peers")?.join(name);
    if is_newer(&program, &source) {
        return Ok(program);
    }
    let status = Command::new("cc")
        .args(["-O2", "-static", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .context("starting cc (package gcc)")?;
    ensure!(status.success(), "cc failed on {}", source.display());
    Ok(program)
}

fn is_newer(program: &Path, source: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|meta| meta.modified());
    matches!((modified(program), modified(source)), (Ok(program), Ok(source)) if program > source)
}
