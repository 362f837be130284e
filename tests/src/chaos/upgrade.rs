//! New files in envd's place, good and bad: each ends served or clearly said, and the good one is back as soon as it is there.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::guest::{Guest, Stage};
use super::{Scenario, Trial};
use crate::{life, wait};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "upgrade",
        about: "envd swapped, upgraded in place, truncated, foreign, one that forks and exits; the wrapper overwritten",
        stage: Stage::StandIn,
        full: 10,
        brief: 0,
        wears_out: false,
        waits: false,
        run: upgrade,
    },
    Scenario {
        name: "upgrade-real",
        about: "the same with the real envd",
        stage: Stage::Real,
        full: 3,
        brief: 0,
        wears_out: false,
        waits: false,
        run: upgrade,
    },
];

/// The console says it as soon as it is tried.
const SAID: Duration = Duration::from_secs(60);

/// A file that takes envd's place.
struct Swap {
    name: &'static str,
    /// Makes `/run/new` from `/run/good`.
    make: &'static str,
    /// What the console must say, when it is not served.
    says: Option<&'static str>,
}

const SWAPS: [Swap; 5] = [
    Swap { name: "a good one", make: "cp /run/good /run/new", says: None },
    Swap {
        name: "a truncated one",
        make: "head -c 300 /run/good >/run/new",
        says: Some("wrapper: .*(damaged|cannot execute|ended by SIG|neither)"),
    },
    Swap {
        name: "one that is cut in half",
        make: "head -c $(($(stat -c %s /run/good) / 2)) /run/good >/run/new",
        says: Some("wrapper: .*(damaged|cannot execute|SIGSEGV|SIGBUS|ended by SIG|neither)"),
    },
    Swap {
        name: "one of another architecture",
        make: "cp /run/good /run/new; printf '\\267' | dd of=/run/new bs=1 seek=18 conv=notrunc 2>/dev/null",
        says: Some("wrapper: .*is built for .*this machine is"),
    },
    Swap {
        name: "one that forks and exits",
        make: "cp /opt/envd-stand-in /run/new; rm -f /run/envd-stand-in.starts; \
               printf 'fork-and-exit = yes\\nonly-starts = 2\\n' >/run/envd-stand-in.conf",
        says: Some("envd-init: exit .*\"status\":0"),
    },
];

fn upgrade(guest: &Guest, trial: &mut Trial) -> Result<()> {
    guest.sh("cp -p /usr/bin/envd /run/good")?;
    for turn in 1..=trial.count {
        for swap in &SWAPS {
            let outcome = swapped(guest, swap);
            trial.attempt(format!("turn {turn}: {}", swap.name), outcome);
            if swap.says.is_some() {
                trial.attempt(format!("turn {turn}: the good one after {}", swap.name), good_back(guest));
            }
        }
        trial.attempt(format!("turn {turn}: the wrapper overwritten"), overwritten(guest));
        trial.attempt(format!("turn {turn}: an upgrade in place"), life::upgrade(guest.vm()?, None));
    }
    Ok(())
}

/// As an updater does it: beside its place, and then moved there.
fn put(file: &str) -> String {
    format!(
        "cp {file} /usr/bin/envd_updated && chmod 755 /usr/bin/envd_updated && mv /usr/bin/envd_updated /usr/bin/envd"
    )
}

fn swapped(guest: &Guest, swap: &Swap) -> Result<()> {
    guest.sh(swap.make)?;
    let mark = guest.vm()?.console().mark();
    guest.sh(&format!("{} && kill -TERM \"$(pidof envd)\"", put("/run/new")))?;
    match swap.says {
        None => good_again(guest),
        Some(pattern) => guest.vm()?.console().wait_within(mark, pattern, SAID).map(drop),
    }
}

/// Nobody asks for a restart: it is back as soon as it is there. One that serves already is told to end.
fn good_back(guest: &Guest) -> Result<()> {
    guest.sh(&format!("rm -f /run/envd-stand-in.conf; {}; pkill -TERM -x envd; true", put("/run/good")))?;
    good_again(guest)
}

/// Served by the file that is there, and by one envd alone.
fn good_again(guest: &Guest) -> Result<()> {
    let inodes = "stat -Lc %i /proc/$(pidof envd)/exe /usr/bin/envd | uniq | wc -l";
    wait::gently("/usr/bin/envd to be what runs", wait::BOUND, || {
        Ok(guest.sh(inodes).ok().filter(|count| count == "1").map(drop))
    })?;
    guest.serves_again()?;
    guest.pids().map(drop)
}

/// The layout of existing images, a shim at envd's place and the real one beside it, and an updater that overwrites the shim:
/// the newer one is the one to run.
fn overwritten(guest: &Guest) -> Result<()> {
    let shim = "cp /run/good /usr/bin/envd.real && cp /usr/lib/envd-init/envd-wrapper /usr/bin/envd.shim && mv /usr/bin/envd.shim /usr/bin/envd";
    let old = guest.pids()?.envd;
    guest.sh(&format!("{shim} && kill -TERM \"$(pidof envd)\""))?;
    let shimmed = other_envd(guest, old)?;
    let runs = guest.sh(&format!("readlink /proc/{shimmed}/exe"))?;
    ensure!(runs == "/usr/bin/envd.real", "beside a shim {runs} runs, not the real one");
    guest.sh(&format!("{} && kill -TERM \"$(pidof envd)\"", put("/run/good")))?;
    let updated = other_envd(guest, shimmed)?;
    let runs = guest.sh(&format!("readlink /proc/{updated}/exe"))?;
    guest.sh("rm -f /usr/bin/envd.real")?;
    ensure!(runs == "/usr/bin/envd", "{runs} runs, not the one that the updater brought");
    good_again(guest)
}

fn other_envd(guest: &Guest, old: u32) -> Result<u32> {
    let pid = wait::gently("another envd", wait::BOUND, || {
        Ok(guest.pids().ok().map(|pids| pids.envd).filter(|pid| *pid != old))
    })?;
    guest.serves_again()?;
    Ok(pid)
}
