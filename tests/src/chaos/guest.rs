//! The guests that scenarios share.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::agent::{self, Agent};
use super::storm;
use crate::image::Bake;
use crate::keep::{self, Init};
use crate::relay::{self, Bed};
use crate::{Envd, Image, Via, Vm, paths, wait};

/// What a scenario runs on, in the order of the campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Our init, and the stand-in with its faults.
    StandIn,
    /// Our init and the real envd.
    Real,
    /// systemd stays, with the real envd.
    Systemd,
    /// OpenRC stays, with the real envd.
    OpenRc,
    /// This machine alone.
    Host,
}

impl Stage {
    fn envd(self) -> Option<Envd> {
        match self {
            Self::StandIn => Some(Envd::StandIn),
            Self::Real | Self::Systemd | Self::OpenRc => Envd::real(),
            Self::Host => None,
        }
    }

    /// Why it cannot be had.
    pub(super) fn missing(self) -> Option<&'static str> {
        (self != Self::Host && self.envd().is_none()).then_some("it needs a real envd (ENVD=path)")
    }

    /// The init that stays.
    const fn init(self) -> Option<Init> {
        match self {
            Self::Systemd => Some(Init::Systemd),
            Self::OpenRc => Some(Init::OpenRc),
            _ => None,
        }
    }

    fn image(self) -> Result<Option<Image>> {
        let Some(envd) = self.envd() else { return Ok(None) };
        let bake = match self.init() {
            Some(init) => init.image(envd)?,
            None => with_agent(relay::bake(envd)?)?,
        };
        bake.bake().map(Some)
    }
}

/// A service that prints long lines without end, through PID 1; started when it is wanted.
const NOISE: &str = "command = ['/bin/sh', '-c', 'l=0123456789; l=$l$l$l$l$l; l=$l$l$l$l$l$l; while :; do echo \"noise $l\"; sleep 0.02; done']\n\
    restart = 'always'\nenabled = false\nlog = 'console'\n";

/// With our way in, and with a stand-in at hand whatever envd the image has.
fn with_agent(bake: Bake) -> Result<Bake> {
    Ok(bake
        .file("/opt/chaos-agent.py", agent::PROGRAM)
        .file("/etc/envd-init/services.d/chaos-agent.toml", agent::SERVICE)
        .file("/etc/envd-init/services.d/noise.toml", NOISE)
        .script(storm::MAKER, fs::read(relay::compile_peer("orphans")?)?)
        .script("/opt/envd-stand-in", fs::read(paths::stand_in()?)?))
}

/// A VM and the ways into it; on the stage [`Stage::Host`] there is none.
#[derive(Debug)]
pub struct Guest {
    stage: Stage,
    world: World,
}

#[derive(Debug)]
enum World {
    Nothing,
    /// Our init, with what the relay's scenarios want.
    Native(Box<Bed>),
    /// An init of the image's own.
    Kept(Box<Vm>),
}

/// The pids that must not change unnoticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pids {
    pub envd: u32,
    pub wrapper: u32,
    pub relays: BTreeSet<u32>,
}

impl Guest {
    pub(super) fn boot(stage: Stage) -> Result<Self> {
        let Some(image) = stage.image()? else { return Ok(Self { stage, world: World::Nothing }) };
        let builder = Vm::of(&image);
        if let Some(init) = stage.init() {
            let vm = builder.memory_mib(768).boot()?;
            vm.wait_healthy_within(Via::Tcp, keep::BOOT)?;
            vm.wait_healthy(Via::Vsock)?;
            // A unit that is started during a freeze is not frozen: the audit would speak of it.
            init.wait_booted(&vm)?;
            return Ok(Self { stage, world: World::Kept(Box::new(vm)) });
        }
        // The load of the relay's scenarios wants much, the others do better with little.
        let builder = if stage == Stage::StandIn { builder.memory_mib(relay::MEMORY) } else { builder };
        let bed = Bed::of(builder.boot()?)?;
        bed.vm.wait_healthy(Via::Tcp)?;
        let guest = Self { stage, world: World::Native(Box::new(bed)) };
        wait::gently("the campaign's agent", wait::BOUND, || Ok(guest.agent()?.run("true").ok()))?;
        Ok(guest)
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    pub fn vm(&self) -> Result<&Vm> {
        match &self.world {
            World::Native(bed) => Ok(&bed.vm),
            World::Kept(vm) => Ok(vm),
            World::Nothing => bail!("this scenario has no VM"),
        }
    }

    /// For the relay's own scenarios.
    pub fn bed(&self) -> Result<&Bed> {
        match &self.world {
            World::Native(bed) => Ok(bed),
            _ => bail!("this guest is not one of the relay's"),
        }
    }

    /// Past envd, relay and network.
    pub fn agent(&self) -> Result<Agent> {
        Ok(Agent::new(self.vm()?.vsock_socket()))
    }

    /// A shell command as root, past envd.
    pub fn sh(&self, command: &str) -> Result<String> {
        self.agent()?.sh(command)
    }

    /// A connection over vsock that opens now is answered 204: how long that took.
    pub fn healthy_over_vsock(&self) -> Result<Duration> {
        let begun = Instant::now();
        let answer = self.vm()?.get(Via::Vsock, envd_api::HEALTH)?;
        ensure!(answer.status == 204, "GET /health over vsock was answered {}", answer.status);
        Ok(begun.elapsed())
    }

    /// Both ways answer at once.
    pub fn serves(&self) -> Result<()> {
        self.healthy_over_vsock()?;
        let answer = self.vm()?.get(Via::Tcp, envd_api::HEALTH)?;
        ensure!(answer.status == 204, "GET /health over TCP was answered {}", answer.status);
        Ok(())
    }

    /// Both ways answer, after a while.
    pub fn serves_again(&self) -> Result<()> {
        self.vm()?.wait_healthy(Via::Vsock)?;
        self.vm()?.wait_healthy(Via::Tcp)
    }

    /// PID 1's state.
    pub fn status(&self) -> Result<Value> {
        self.vm()?.status()
    }

    /// How often envd was restarted, and the wrapper.
    pub fn restarts(&self) -> Result<(u64, u64)> {
        let status = self.status()?;
        let service =
            status["services"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "envd"));
        let of = |value: Option<&Value>| value.and_then(|value| value["restarts"].as_u64()).unwrap_or(0);
        Ok((of(status.get("envd")), of(service)))
    }

    /// The one envd below the one wrapper, and the relays.
    pub fn pids(&self) -> Result<Pids> {
        let printed = self.sh("pidof envd; echo; pidof envd-wrapper; echo; pidof vsock-relay; true")?;
        let groups: Vec<BTreeSet<u32>> = printed
            .split("\n\n")
            .map(|group| group.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
            .collect();
        let [envd, wrapper, relays] = groups.as_slice() else {
            bail!("pidof printed {printed:?}");
        };
        let one = |name: &str, pids: &BTreeSet<u32>| {
            ensure!(pids.len() == 1, "there is not one {name}, but {pids:?}");
            pids.first().copied().context("no pid")
        };
        Ok(Pids { envd: one("envd", envd)?, wrapper: one("envd-wrapper", wrapper)?, relays: relays.clone() })
    }

    /// An account without any right, and what it runs is the sandbox's.
    pub fn add_account(&self, name: &str, uid: u32) -> Result<()> {
        self.sh(&format!(
            "grep -q '^{name}:' /etc/passwd || {{ echo '{name}:x:{uid}:{uid}::/tmp:/bin/bash' >>/etc/passwd; \
             echo '{name}:x:{uid}:' >>/etc/group; }}"
        ))
        .map(drop)
    }

    pub(super) fn keep_logs(&self, folder: &Path) {
        let Ok(vm) = self.vm() else { return };
        let kept = vm.copy_logs(folder);
        let status = self.status().map_or_else(|error| format!("{error:#}"), |status| format!("{status:#}"));
        let processes = self.sh("ps -eo pid,ppid,user,stat,args | tail -n +2 | head -300");
        let _ = fs::write(folder.join("status.json"), status);
        let _ =
            fs::write(folder.join("processes.txt"), processes.unwrap_or_else(|error| format!("{error:#}")));
        if let Err(error) = kept {
            eprintln!("the VM's logs could not be kept: {error:#}");
        }
    }
}
