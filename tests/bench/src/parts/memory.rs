//! What our programs keep in memory: in a guest at rest, per idle connection of the relay, and as files.
//!
//! tmpfs that somebody fills is his memory: `/run` without what envd puts there is added on both sides.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::keep::{BOOT, Init};
use tests::{Image, Via, paths, wait};

use super::relay_native::{Bed, Relay};
use crate::guest::{Memory, Process};
use crate::plan::Plan;
use crate::row::{Curve, Findings, Growth, Row, Subject};
use crate::scene;
use crate::turns::{self, each};

const ROUNDS: usize = 3;
const OURS: [&str; 3] = ["init", "envd-wrapper", "vsock-relay"];
const CONNECTIONS: [usize; 4] = [1, 8, 64, 512];
const CONNECTION_ROUNDS: usize = 3;
/// After the boot, until what starts late has started.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    found.rows.extend(guests(plan)?);
    connections(plan, found)?;
    found.rows.extend(sizes()?);
    Ok(())
}

/// What is compared, each in a guest of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    Systemd,
}

fn guests(plan: &Plan) -> Result<Vec<Row>> {
    let subjects = [
        (Kind::Ours, scene::with_busybox(scene::native())?.bake()?),
        (Kind::Systemd, scene::with_busybox(scene::systemd()?)?.bake()?),
    ];
    let samples = turns::take(&subjects, ROUNDS, |(kind, image)| {
        plan.say(&format!("memory: a guest at rest, {kind:?}"));
        at_rest(*kind, image)
    })?;
    let ours_dirty = each(&samples[0], |memory| {
        memory.named(&OURS).iter().map(|process| process.private_dirty).sum::<f64>() + memory.run
    });
    let pss = |of: &[Memory]| {
        each(of, |memory| memory.of_the_init().iter().map(|process| process.pss).sum::<f64>() + memory.run)
    };
    let mut rows = vec![
        Subject::lower("memory.private_dirty_kib", "KiB").alone(&ours_dirty, Some(600.0)),
        Subject::lower("memory.pss_kib", "KiB").against(
            &pss(&samples[0]),
            "systemd",
            &pss(&samples[1]),
            Some(0.07),
        ),
    ];
    rows.extend(shares(&samples[0]));
    Ok(rows)
}

/// Who has how much of it, for the record.
fn shares(samples: &[Memory]) -> Vec<Row> {
    let row = |what: &str, name: &str, figure: fn(&Process) -> f64| {
        let of = each(samples, |memory| memory.named(&[name]).into_iter().map(figure).sum());
        let name = name.replace('-', "_");
        Subject::lower(format!("memory.{what}_kib_{name}"), "KiB").alone(&of, None)
    };
    let mut rows: Vec<_> =
        OURS.iter().map(|name| row("private_dirty", name, |process| process.private_dirty)).collect();
    rows.extend(OURS.iter().map(|name| row("pss", name, |process| process.pss)));
    rows.push(Subject::lower("memory.tmpfs_kib", "KiB").alone(&each(samples, |memory| memory.run), None));
    rows
}

fn at_rest(kind: Kind, image: &Image) -> Result<Memory> {
    let vm = scene::boot_plain(image)?;
    vm.wait_healthy_within(Via::Tcp, BOOT)?;
    if kind == Kind::Systemd {
        Init::Systemd.wait_booted(&vm)?;
    }
    std::thread::sleep(SETTLE);
    let memory = Memory::of(&vm)?;
    for name in OURS.iter().filter(|_| kind == Kind::Ours) {
        ensure!(memory.named(&[*name]).len() == 1, "not one {name} in {:?}", memory.processes);
    }
    Ok(memory)
}

/// On the host, over unix sockets: the memory of the relay does not depend on the transport.
fn connections(plan: &Plan, found: &mut Findings) -> Result<()> {
    let bed = Bed::new()?;
    let relays = [Relay::ours()?, Relay::socat("socat", &[])];
    let mut curves =
        relays.iter().map(|relay| Curve { name: relay.name.into(), points: Vec::new() }).collect::<Vec<_>>();
    for count in CONNECTIONS {
        plan.say(&format!("memory: {count} idle connections"));
        let samples = turns::take(&relays, CONNECTION_ROUNDS, |relay| per_connection(&bed, relay, count))?;
        for (curve, of) in curves.iter_mut().zip(samples) {
            curve.points.push((count as f64, of));
        }
    }
    let last = |curve: &Curve| curve.points.last().map(|(_, samples)| samples.clone()).unwrap_or_default();
    let subject = Subject::lower("memory.per_idle_connection_bytes", "B");
    found.rows.push(subject.against(&last(&curves[0]), "socat", &last(&curves[1]), Some(0.05)));
    found.growth.push(Growth {
        name: "memory-connections",
        title: "Memory of a relay per idle connection",
        of: "idle connections",
        cost: "bytes per connection (PSS)",
        curves,
    });
    Ok(())
}

fn per_connection(bed: &Bed, relay: &Relay, count: usize) -> Result<f64> {
    bed.with(relay, |door, process| {
        // One connection that has come and gone: what is made once is not a connection's cost.
        drop(door.idle_connections(1)?);
        let before = settled(|| process.pss())?;
        let _open = door.idle_connections(count)?;
        Ok((settled(|| process.pss())? - before) / count as f64)
    })
}

/// Until it has been the same twice.
fn settled(look: impl Fn() -> Result<f64>) -> Result<f64> {
    let mut before = f64::NAN;
    wait::until("memory to settle", wait::BOUND, || {
        std::thread::sleep(Duration::from_millis(100));
        // A child that has just gone cannot be asked.
        let Ok(now) = look() else { return Ok(None) };
        let same = (now - before).abs() < 1.0;
        before = now;
        Ok(same.then_some(now))
    })
}

/// One file under several names counts for each name by its share, as pages that processes share do in Pss.
fn sizes() -> Result<Vec<Row>> {
    let files = OURS.iter().map(|name| program_file(name)).collect::<Result<Vec<_>>>()?;
    let share = |(inode, bytes): (u64, u64)| {
        let names = files.iter().filter(|(other, _)| *other == inode).count();
        bytes as f64 / 1024.0 / names as f64
    };
    let row = |name: &str, kib: f64, goal| Subject::lower(name, "KiB").alone(&[kib], Some(goal));
    let shares: Vec<f64> = files.iter().map(|file| share(*file)).collect();
    Ok(vec![
        row("size.init_kib", shares[0], 700.0),
        row("size.wrapper_kib", shares[1], 700.0),
        row("size.relay_kib", shares[2], 1500.0),
        row("size.total_kib", shares.iter().sum(), 2900.0),
    ])
}

/// Inode and bytes.
fn program_file(name: &str) -> Result<(u64, u64)> {
    let path = paths::guest_bin(name)?;
    let file = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
    Ok((file.ino(), file.len()))
}
