//! Images whose own init stays, and what is done to them: shared by the tests of keep mode and by chaos.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::image::{Bake, Envd, Image};
use crate::net::run;
use crate::vm::Vm;
use crate::{Via, paths, wait};

/// Under emulation systemd takes its time; a bound is no expectation.
pub const BOOT: Duration = Duration::from_secs(5 * 60);

/// The init that an image keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    Systemd,
    OpenRc,
}

impl Init {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::OpenRc => "openrc",
        }
    }

    /// A Debian base with this init, as the platform's provisioning leaves one behind.
    pub fn base(self) -> Result<PathBuf> {
        let script = paths::root().join("scripts/keep-base").display().to_string();
        let output = run(&script, &[self.name()])?;
        let path = output.lines().last().context("scripts/keep-base printed no path")?;
        Ok(paths::root().join(path))
    }

    /// The same with keep mode in it.
    pub fn image(self, envd: Envd) -> Result<Bake> {
        Ok(Image::native().base(&self.base()?).keep_init().envd(envd))
    }

    /// Restarts envd as an operator would.
    pub const fn restart(self) -> &'static str {
        match self {
            Self::Systemd => "systemctl restart envd",
            Self::OpenRc => "rc-service envd restart",
        }
    }

    pub const fn stop(self) -> &'static str {
        match self {
            Self::Systemd => "systemctl stop envd",
            Self::OpenRc => "rc-service envd stop",
        }
    }

    pub const fn start(self) -> &'static str {
        match self {
            Self::Systemd => "systemctl start envd",
            Self::OpenRc => "rc-service envd start",
        }
    }
}

/// Pid of the one envd; more than one, or none, is an error.
pub fn envd_pid(vm: &Vm, via: Via) -> Result<u32> {
    let pids = vm.sh(via, "pidof envd")?;
    pids.parse().with_context(|| format!("pidof envd printed {pids:?}"))
}

/// Waits until an envd other than `old` answers, and returns its pid.
pub fn wait_other_envd(vm: &Vm, via: Via, old: u32) -> Result<u32> {
    let what = format!("an envd other than {old}");
    wait::until(&what, wait::BOUND, || Ok(envd_pid(vm, via).ok().filter(|pid| *pid != old)))
}

/// Runs a shell script that outlives envd, and returns what it printed once envd answers again.
pub fn detached(vm: &Vm, script: &str) -> Result<String> {
    let stamp = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
    let out = format!("/run/detached-{stamp}");
    let quoted = script.replace('\'', "'\\''");
    let command = format!(
        "setsid sh -c '{{ {quoted}\n}} >{out} 2>&1; mv {out} {out}.done' </dev/null >/dev/null 2>&1 &"
    );
    vm.sh(Via::Tcp, &command)?;
    let read = format!("cat {out}.done");
    wait::until(&format!("`{script}` to end"), wait::BOUND, || Ok(vm.sh(Via::Tcp, &read).ok()))
}

/// Kills envd `count` times; after each kill a call over vsock, sent at once, must be served. Returns the calls' times.
pub fn kills(vm: &Vm, count: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for turn in 1..=count {
        let old = envd_pid(vm, Via::Tcp)?;
        // The answer is lost together with envd.
        let _ = vm.exec_as(Via::Tcp, &format!("kill -KILL {old}"), Some("root"));
        let began = Instant::now();
        let answer = vm.get(Via::Vsock, "/health").with_context(|| format!("call after kill {turn}"))?;
        ensure!(answer.status == 204, "call after kill {turn} was answered {}", answer.status);
        times.push(began.elapsed());
        wait_other_envd(vm, Via::Vsock, old)?;
    }
    Ok(times)
}

/// Freezes the guest as before a pause, looks at the platform's audit over vsock, and thaws it again.
pub fn freeze_and_audit(vm: &Vm) -> Result<Audit> {
    vm.init_envd(Via::Tcp)?;
    let frozen = vm.post(Via::Tcp, "/freeze?mode=hierarchy", "")?;
    ensure!(frozen.status == 204, "freeze answered {}", frozen.status);
    for turn in 0..5 {
        let health = vm.get(Via::Vsock, "/health").with_context(|| format!("call {turn} while frozen"))?;
        ensure!(health.status == 204, "a call over vsock while frozen was answered {}", health.status);
    }
    let answer = vm.post(Via::Vsock, "/init", "{\"defaultUser\":\"user\"}")?;
    let audit = answer.header("x-envd-freeze-audit").context("/init did not audit the freeze")?.to_owned();
    let thawed = vm.post(Via::Vsock, "/unfreeze", "")?;
    ensure!(thawed.status == 204, "unfreeze answered {}", thawed.status);
    serde_json::from_str(&audit).with_context(|| format!("the audit {audit:?}"))
}

/// `X-Envd-Freeze-Audit`.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub struct Audit {
    pub visited: u64,
    pub frozen: u64,
    pub escaped: u64,
    pub violations: u64,
}
