//! Images whose own init stays: shared by the tests of keep mode and by chaos.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::image::{Bake, Envd, Image};
use crate::net::run;
use crate::{Via, Vm, paths, wait};

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

    /// Waits until it has started all that it starts at boot; whether something failed is not asked here.
    pub fn wait_booted(self, vm: &Vm) -> Result<()> {
        let at_work = match self {
            Self::Systemd => "systemctl is-system-running | grep starting || true",
            Self::OpenRc => "pgrep -x openrc || true",
        };
        let rests = || Ok(vm.sh(Via::Tcp, at_work)?.is_empty().then_some(()));
        wait::until(&format!("{} to have booted", self.name()), BOOT, rests)
    }
}
