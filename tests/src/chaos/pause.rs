//! The VM stands still, and its clock jumps.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::guest::{Guest, Stage};
use super::{Scenario, Trial};
use crate::relay;
use crate::vm::Mark;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "stopped",
        about: "the VM is stopped for 1, 30 and 90 s, with open connections and without; no restart, no false alarm",
        stage: Stage::StandIn,
        full: 3,
        brief: 0,
        wears_out: false,
        waits: true,
        run: stopped,
    },
    Scenario {
        name: "clock",
        about: "the guest's clock jumps by an hour each way; no restart, no false alarm",
        stage: Stage::StandIn,
        full: 4,
        brief: 1,
        wears_out: false,
        waits: true,
        run: clock,
    },
];

/// As many of them as the count says.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(30), Duration::from_secs(90)];
const OPEN: usize = 20;
const HOUR: i64 = 3600;
/// Long enough for a check that was due to come late.
const AFTERWARDS: Duration = Duration::from_secs(3);

fn stopped(guest: &Guest, trial: &mut Trial) -> Result<()> {
    for pause in PAUSES.into_iter().take(trial.count as usize) {
        let seconds = pause.as_secs();
        undisturbed(guest, trial, &format!("{seconds} s with open connections"), || {
            relay::stopped(guest.bed()?, OPEN, pause)
        })?;
        undisturbed(guest, trial, &format!("{seconds} s without connections"), || still(guest, pause))?;
    }
    Ok(())
}

fn still(guest: &Guest, pause: Duration) -> Result<()> {
    guest.vm()?.qmp().stop()?;
    thread::sleep(pause);
    guest.vm()?.qmp().cont()?;
    guest.serves()
}

fn clock(guest: &Guest, trial: &mut Trial) -> Result<()> {
    for turn in 0..trial.count {
        for jump in [HOUR, -HOUR] {
            undisturbed(guest, trial, &format!("turn {turn}: {jump:+} s"), || {
                guest.sh(&format!("date -s @$(($(date +%s) + {jump})) >/dev/null"))?;
                thread::sleep(AFTERWARDS);
                guest.serves()
            })?;
        }
    }
    Ok(())
}

/// Does something that must not be taken for a fault of envd.
fn undisturbed(
    guest: &Guest,
    trial: &mut Trial,
    what: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (before, mark) = (guest.pids()?, guest.vm()?.console().mark());
    trial.attempt(what, work());
    let after = guest.pids()?;
    trial.require(before == after, || format!("{what}: {before:?} have become {after:?}"));
    let alarm = alarm(guest, mark)?;
    trial.require(alarm.is_none(), || format!("{what}: the console says {:?}", alarm.unwrap_or_default()));
    Ok(())
}

/// A line that says that something is wrong with envd.
fn alarm(guest: &Guest, mark: Mark) -> Result<Option<String>> {
    let text = guest.vm()?.console().text_after(mark);
    let bad = ["unhealthy", "ending envd", "envd-init: exit", "cannot be checked"];
    Ok(text.lines().find(|line| bad.iter().any(|word| line.contains(word))).map(str::to_owned))
}
