//! What a sandbox can use up: memory, blocks, inodes, /run, and a root filesystem that turns read-only.

use anyhow::{Context, Result, ensure};

use super::guest::{Guest, Stage};
use super::kills;
use super::{Scenario, Trial};
use crate::Via;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "memory",
        about: "the sandbox eats all memory; who was killed, and why, is said on the console",
        stage: Stage::StandIn,
        full: 10,
        brief: 0,
        wears_out: false,
        waits: false,
        run: memory,
    },
    Scenario {
        name: "memory-real",
        about: "the same under the limits of the real envd",
        stage: Stage::Real,
        full: 3,
        brief: 0,
        wears_out: false,
        waits: false,
        run: memory,
    },
    Scenario {
        name: "disk",
        about: "disk full, inodes used up, /run full, root read-only; all keeps serving and comes back",
        stage: Stage::StandIn,
        full: 3,
        brief: 0,
        wears_out: true,
        waits: false,
        run: disk,
    },
];

const EATER: &str = "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'";

/// Leaves so much to eat (MiB): the rest goes to the pool of huge pages, since an emulated machine takes minutes to fill gigabytes.
const LEFT: u32 = 300;

fn memory(guest: &Guest, trial: &mut Trial) -> Result<()> {
    guest.sh(&format!(
        "awk '/^MemAvailable/{{pages = int(($2 / 1024 - {LEFT}) / 2); if (pages > 0) print pages}}' /proc/meminfo >/proc/sys/vm/nr_hugepages"
    ))?;
    let outcome = eaten(guest, trial);
    guest.sh("echo 0 >/proc/sys/vm/nr_hugepages")?;
    outcome
}

fn eaten(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let before = guest.pids()?;
    for turn in 1..=trial.count {
        let mark = guest.vm()?.console().mark();
        let outcome = guest.vm()?.exec_as(Via::Tcp, EATER, Some("user"));
        let killed = outcome.and_then(|out| {
            ensure!(out.exit_code != 0, "the eater ended well: {out:?}");
            Ok(())
        });
        trial.attempt(format!("turn {turn}: the eater"), killed);
        let said = guest
            .vm()?
            .console()
            .wait_after(mark, "init: out of memory: the kernel killed python3 .*the machine had none left");
        trial.attempt(format!("turn {turn}: who was killed, and why"), said);
        let after = guest.pids()?;
        trial.require(after == before, || format!("{before:?} have become {after:?}"));
        trial.attempt(format!("turn {turn}: service"), guest.serves());
    }
    Ok(())
}

/// A state of the guest's disk: how it comes about, and how it goes.
struct Plight {
    name: &'static str,
    begin: &'static str,
    /// Must print something, or it has not come about.
    proof: &'static str,
    end: &'static str,
}

/// Directories without an index are searched name by name: so many small ones.
const USE_UP_INODES: &str = "python3 -c 'import os
try:
  for n in range(1 << 22):
    if n % 256 == 0: os.makedirs(f\"/nodes/{n}\"); os.chdir(f\"/nodes/{n}\")
    os.mknod(str(n))
except OSError: pass'";

const PLIGHTS: [Plight; 4] = [
    Plight {
        name: "disk full",
        begin: "cat /dev/zero >/fill 2>/dev/null; cat /dev/zero >/fill2 2>/dev/null; true",
        proof: "! dd if=/dev/zero of=/fill3 bs=1M count=1 2>/dev/null && echo full; rm -f /fill3",
        end: "rm -f /fill /fill2",
    },
    Plight {
        name: "inodes used up",
        begin: USE_UP_INODES,
        proof: "! touch /node 2>/dev/null && echo full",
        end: "rm -rf /nodes",
    },
    Plight {
        name: "/run full",
        begin: "cat /dev/zero >/run/fill 2>/dev/null; true",
        proof: "! dd if=/dev/zero of=/run/fill2 bs=1M count=1 2>/dev/null && echo full; rm -f /run/fill2",
        end: "rm -f /run/fill",
    },
    Plight {
        name: "root read-only",
        begin: "echo u >/proc/sysrq-trigger; n=0; while touch /probe 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done; true",
        proof: "! touch /probe 2>/dev/null && echo full",
        end: "mount -o remount,rw / && touch /probe && rm /probe",
    },
];

fn disk(guest: &Guest, trial: &mut Trial) -> Result<()> {
    for _ in 0..trial.count {
        for plight in &PLIGHTS {
            guest.sh(plight.begin)?;
            let proof = guest.sh(plight.proof).with_context(|| format!("making it so: {}", plight.name))?;
            ensure!(proof.contains("full"), "it could not be made so: {}", plight.name);
            endure(guest, trial, plight.name)?;
            guest.sh(plight.end).with_context(|| format!("undoing: {}", plight.name))?;
            trial.attempt(format!("after {}", plight.name), guest.serves());
        }
        logs_go_on(guest, trial)?;
    }
    Ok(())
}

/// Everything is killed, and comes back.
fn endure(guest: &Guest, trial: &mut Trial, name: &str) -> Result<()> {
    trial.attempt(format!("{name}: service"), guest.serves());
    trial.attempt(format!("{name}: envd killed"), kills::recovery(guest));
    guest.sh("kill -KILL $(pidof envd-wrapper) $(pidof vsock-relay)")?;
    trial.attempt(format!("{name}: wrapper and relays killed"), guest.serves_again());
    trial.attempt(format!("{name}: status"), guest.status());
    Ok(())
}

/// The ring takes records again.
fn logs_go_on(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let mark = guest.sh("cat /run/envd-init/log/*.log | wc -c")?;
    kills::recovery(guest)?;
    let after = guest.sh("cat /run/envd-init/log/*.log | wc -c")?;
    trial.require(after != mark, || "the log ring takes no more records".to_owned());
    Ok(())
}
