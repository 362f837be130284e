//! How long from PID 1's first instruction to envd's exec, and to its first healthy answer, by the guest's own clock.
//!
//! The stamps (`tests/peers/stamp.c`) are the same under every init. All start from a cold cache: a fresh VM each.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::Vm;

use crate::plan::Plan;
use crate::row::{Curve, Findings, Growth, Row, Subject};
use crate::scene::{self, Contender};
use crate::stamps::Stamps;
use crate::turns::{self, each};

const ROUNDS: usize = 7;
const GROWTH_ROUNDS: usize = 3;
const SERVICES: [usize; 3] = [0, 10, 50];
/// What a boot still says after envd is healthy has come by then.
const SETTLE: Duration = Duration::from_secs(2);

/// One boot.
#[derive(Debug)]
struct Boot {
    stamps: Stamps,
    /// Read from disk until envd was healthy.
    disk_kib: f64,
    console_bytes: Option<f64>,
}

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    plan.say("boot: making the images");
    let contenders = Contender::all()?;
    let mut round = 0;
    let boots = turns::take(&contenders, ROUNDS, |contender| {
        round += 1;
        plan.say(&format!("boot {round} of {}: {}", ROUNDS * contenders.len(), contender.name));
        Boot::of(contender)
    })?;
    found.rows.extend(compare(&contenders, &boots));
    let bytes: Vec<_> = boots[0].iter().filter_map(|boot| boot.console_bytes).collect();
    found.rows.push(Subject::lower("boot.console_bytes", "B").alone(&bytes, Some(2048.0)));
    services(plan, found)
}

impl Boot {
    fn of(contender: &Contender) -> Result<Self> {
        let (vm, stamps) = contender.boot()?;
        let disk_kib = disk_kib(&vm)?;
        let console_bytes = contender.is_ours().then(|| console_bytes(&vm)).transpose()?;
        Ok(Self { stamps, disk_kib, console_bytes })
    }
}

/// Ours beside each other contender.
fn compare(contenders: &[Contender], boots: &[Vec<Boot>]) -> Vec<Row> {
    let row = |subject: &Subject, peer: usize, figure: fn(&Boot) -> f64, goal| {
        subject.against(&each(&boots[0], figure), contenders[peer].name, &each(&boots[peer], figure), goal)
    };
    let exec_goal = |peer: usize| match contenders[peer].name {
        "c-floor" => Some(1.3),
        "systemd" => Some(0.03),
        "busybox-init" => Some(1.0),
        _ => None,
    };
    let healthy_goal = |peer: usize| (contenders[peer].name == "c-floor").then_some(1.1);
    let exec = Subject::lower("boot.pid1_to_envd_exec", "ms");
    let healthy = Subject::lower("boot.pid1_to_healthy", "ms");
    let disk = Subject::lower("boot.disk_kib_to_healthy", "KiB");
    let peers = || 1..contenders.len();
    let mut rows = Vec::new();
    rows.extend(peers().map(|peer| row(&exec, peer, |boot| boot.stamps.to_exec(), exec_goal(peer))));
    rows.extend(peers().map(|peer| row(&healthy, peer, |boot| boot.stamps.to_healthy(), healthy_goal(peer))));
    rows.extend(peers().map(|peer| row(&disk, peer, |boot| boot.disk_kib, None)));
    rows
}

/// What QEMU has read from the image so far.
pub(super) fn disk_kib(vm: &Vm) -> Result<f64> {
    let stats = vm.qmp().command("query-blockstats", &serde_json::json!({}))?;
    let bytes = stats[0]["stats"]["rd_bytes"].as_f64();
    bytes.map(|bytes| bytes / 1024.0).with_context(|| format!("QEMU told no bytes read: {stats}"))
}

/// All that a boot without `console=` puts on the serial line, but for the stamps.
fn console_bytes(vm: &Vm) -> Result<f64> {
    vm.console().wait(r"envd-init: boot \{")?;
    std::thread::sleep(SETTLE);
    let text = vm.console().text();
    let stamps: usize =
        text.split_inclusive('\n').filter(|line| line.starts_with("stamp: ")).map(str::len).sum();
    Ok((text.len() - stamps) as f64)
}

/// What services cost a boot: each is `sleep infinity`.
fn services(plan: &Plan, found: &mut Findings) -> Result<()> {
    let contenders = SERVICES.map(|count| with_services(count).map(|contender| (count, contender)));
    let contenders = contenders.into_iter().collect::<Result<Vec<_>>>()?;
    let stamps = turns::take(&contenders, GROWTH_ROUNDS, |(count, contender)| {
        plan.say(&format!("boot: with {count} services"));
        Ok(contender.boot()?.1)
    })?;
    let figures: Vec<_> = stamps.iter().map(|of| each(of, Stamps::to_healthy)).collect();
    let row = |which: usize| {
        let name = format!("boot.pid1_to_healthy_at_{}_services", SERVICES[which]);
        Subject::lower(name, "ms").against(&figures[which], "envd-init without services", &figures[0], None)
    };
    let points = |figure: &dyn Fn(&Stamps) -> f64| {
        let sizes = SERVICES.iter().zip(&stamps);
        sizes.map(|(count, of)| (*count as f64, each(of, figure))).collect()
    };
    let curves = vec![
        Curve { name: "PID 1 to envd's exec".into(), points: points(&Stamps::to_exec) },
        Curve { name: "PID 1 to healthy".into(), points: points(&Stamps::to_healthy) },
    ];
    found.rows.extend((1..SERVICES.len()).map(row));
    found.growth.push(Growth {
        name: "boot-services",
        title: "Boot with services",
        of: "services",
        cost: "ms of guest time",
        curves,
    });
    Ok(())
}

fn with_services(count: usize) -> Result<Contender> {
    let mut image = scene::native();
    for number in 0..count {
        let path = format!("/etc/envd-init/services.d/bench-{number}.toml");
        image = image.file(&path, "command = ['/usr/bin/sleep', 'infinity']\n");
    }
    Contender::ours(image)
}
