//! An image with Debian's nginx, postgresql, redis, sshd, chrony and cron, as `rootfs` has turned it for our PID 1, and under
//! systemd: until envd is healthy, until each service answers, and what all of it keeps in memory.
//!
//! On request only, since systemd takes minutes for it under emulation.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::image::{Envd, Image};
use tests::keep::BOOT;
use tests::{Via, Vm, units, wait};

use super::boot::disk_kib;
use crate::guest::Memory;
use crate::plan::Plan;
use crate::row::{Findings, Subject};
use crate::scene::Contender;
use crate::stamps::Stamps;
use crate::turns::{self, each};

const ROUNDS: usize = 3;
/// After the last service answers, until what starts late has started.
const SETTLE: Duration = Duration::from_secs(5);
/// Where the guest writes down when all of them answered.
const ANSWERED: &str = "/run/all-answered";

/// One boot.
#[derive(Debug)]
struct Boot {
    stamps: Stamps,
    all_answering: f64,
    disk_kib: f64,
    memory: Memory,
}

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    plan.say("units: making the images");
    let base = units::base()?;
    let native = Image::native().base(&base).envd(Envd::preferred()).accept_lost_units();
    let contenders = [Contender::ours(native)?, Contender::systemd_on(&base)?];
    let boots = turns::take(&contenders, ROUNDS, |contender| {
        plan.say(&format!("units: {}", contender.name));
        Boot::of(contender)
    })?;
    let mut row = |name: &str, unit, figure: fn(&Boot) -> f64| {
        let (ours, theirs) = (each(&boots[0], figure), each(&boots[1], figure));
        found.rows.push(Subject::lower(name, unit).against(&ours, "systemd", &theirs, None));
    };
    row("units.pid1_to_envd_exec", "ms", |boot| boot.stamps.to_exec());
    row("units.pid1_to_healthy", "ms", |boot| boot.stamps.to_healthy());
    row("units.pid1_to_all_answering", "ms", |boot| boot.all_answering);
    row("units.disk_kib_to_all_answering", "KiB", |boot| boot.disk_kib);
    row("units.pss_kib", "KiB", Boot::pss);
    Ok(())
}

impl Boot {
    fn of(contender: &Contender) -> Result<Self> {
        let (vm, stamps) = contender.boot()?;
        let all_answering = stamps.to_second(all_answering(&vm)?);
        let disk_kib = disk_kib(&vm)?;
        std::thread::sleep(SETTLE);
        Ok(Self { stamps, all_answering, disk_kib, memory: Memory::of(&vm)? })
    }

    /// Everything but envd: init, supervisors and services.
    fn pss(&self) -> f64 {
        self.memory.of_the_init().iter().map(|process| process.pss).sum::<f64>() + self.memory.run
    }
}

/// The second of the guest's clock at which the last of them answered; the guest asks, one after the other.
fn all_answering(vm: &Vm) -> Result<f64> {
    let questions: String = units::SERVICES
        .iter()
        .map(|service| format!("until {}; do sleep 0.1; done >/dev/null 2>&1\n", service.answers))
        .collect();
    let script =
        format!("{questions}cut -d\" \" -f1 /proc/uptime >{ANSWERED}.new; mv {ANSWERED}.new {ANSWERED}");
    let quoted = script.replace('\'', "'\\''");
    vm.sh(Via::Tcp, &format!("setsid sh -c '{quoted}' </dev/null >/dev/null 2>&1 &"))?;
    let written = || {
        let text = vm.sh(Via::Tcp, &format!("cat {ANSWERED} 2>/dev/null || true"))?;
        Ok((!text.is_empty()).then_some(text))
    };
    let text = wait::gently("all services to answer", BOOT, written)?;
    text.parse().with_context(|| format!("the guest wrote {text:?}"))
}
