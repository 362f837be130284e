//! Connections in bursts, echoes, idlers: the code of [`crate::relay`] at scale, and what it leaves behind.

use std::time::Duration;

use anyhow::Result;

use super::guest::{Guest, Stage};
use super::{Scenario, Trial};
use crate::{relay, wait};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "connections",
        about: "connections in bursts, each a request; none is lost",
        stage: Stage::StandIn,
        full: 10_000,
        brief: 0,
        wears_out: false,
        waits: false,
        run: connections,
    },
    Scenario {
        name: "echoes",
        about: "echoes of 1 MiB at once; no byte is wrong",
        stage: Stage::StandIn,
        full: 512,
        brief: 0,
        wears_out: false,
        waits: false,
        run: echoes,
    },
    Scenario {
        name: "idle",
        about: "idle connections; all are served when they wake",
        stage: Stage::StandIn,
        full: 1_000,
        brief: 0,
        wears_out: false,
        waits: false,
        run: idle,
    },
];

const MIB: usize = 1 << 20;
/// Memory that the relays may keep of a load (KiB): their heaps grow once.
const KEPT: u64 = 256;
/// A thousand connections that end at once are closed by then.
const CLOSING: Duration = Duration::from_secs(60);

fn connections(guest: &Guest, trial: &mut Trial) -> Result<()> {
    leaving_nothing(guest, trial, |trial| {
        trial.many_of(
            "connections",
            trial.count,
            relay::bursts(&guest.bed()?.firecracker(), trial.count as usize),
        );
        Ok(())
    })
}

fn echoes(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let seed = trial.dice.u64(..);
    leaving_nothing(guest, trial, |trial| {
        let door = guest.bed()?.firecracker();
        trial.many_of("echoes", trial.count, relay::echoes(&door, trial.count as usize, MIB, seed));
        Ok(())
    })
}

fn idle(guest: &Guest, trial: &mut Trial) -> Result<()> {
    leaving_nothing(guest, trial, |trial| {
        let bed = guest.bed()?;
        let bytes = relay::idle_memory(bed, &bed.firecracker(), trial.count as usize);
        trial.many_of(
            "idle connections",
            trial.count,
            bytes.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}")),
        );
        trial.figure(format!("{} bytes of private memory each", bytes.unwrap_or_default()));
        Ok(())
    })
}

/// Descriptors and memory of the relays are where they were once all is over, and no connection is left.
fn leaving_nothing(
    guest: &Guest,
    trial: &mut Trial,
    work: impl FnOnce(&mut Trial) -> Result<()>,
) -> Result<()> {
    let (bed, before) = (guest.bed()?, held(guest)?);
    work(trial)?;
    trial.attempt("connections that are left", bed.await_no_connections());
    let after = settled(guest, &before)?;
    trial.require(after.descriptors <= before.descriptors, || {
        format!("the relays had {} descriptors and have {}", before.descriptors, after.descriptors)
    });
    trial.require(after.kib <= before.kib + KEPT, || {
        format!("the relays had {} KiB of memory and have {}", before.kib, after.kib)
    });
    trial.figure(format!("relays' memory {} KiB before, {} KiB after", before.kib, after.kib));
    trial.attempt("at the end", guest.serves());
    Ok(())
}

/// What the relays hold once they have closed all that is over: only the image's own relay tells how many connections it has.
fn settled(guest: &Guest, before: &Held) -> Result<Held> {
    let closed = || Ok(Some(held(guest)?).filter(|held| held.descriptors <= before.descriptors));
    wait::gently("the relays to close what is over", CLOSING, closed).or_else(|_| held(guest))
}

/// What the relays hold.
struct Held {
    descriptors: u64,
    kib: u64,
}

fn held(guest: &Guest) -> Result<Held> {
    let printed = guest
        .sh("d=0; m=0; for p in $(pidof vsock-relay); do d=$((d + $(ls /proc/$p/fd | wc -l))); \
         m=$((m + $(awk '/^Private_Dirty/{print $2}' /proc/$p/smaps_rollup))); done; echo $d; echo $m")?;
    let mut numbers = printed.lines().map(str::parse::<u64>);
    let mut next = || numbers.next().unwrap_or(Ok(0));
    Ok(Held { descriptors: next()?, kib: next()? })
}
