//! Orphans by the thousand and a fork storm, from an account of the sandbox without any right.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::guest::{Guest, Stage};
use super::kills;
use super::trial::median;
use super::{Scenario, Trial};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "orphans",
    about: "orphans and a fork storm; envd is restarted meanwhile, in at most three times its time at rest",
    stage: Stage::StandIn,
    full: 100_000,
    brief: 0,
    wears_out: false,
    waits: false,
    run: orphans,
}];

const ACCOUNT: &str = "storm";
const UID: u32 = 1501;
/// What makes them, in the guest.
pub(super) const MAKER: &str = "/opt/orphans";
/// Processes of the storm at a time.
const STORM: u32 = 200;
/// How much longer a restart may take under the storm.
const FACTOR: u32 = 3;
const RESTARTS: usize = 7;
const BOUND: Duration = Duration::from_secs(20 * 60);

fn orphans(guest: &Guest, trial: &mut Trial) -> Result<()> {
    guest.add_account(ACCOUNT, UID)?;
    let at_rest = restarts(guest, trial, "at rest")?;
    let before = processes(guest)?;
    make_orphans(guest, trial)?;
    let stormy = in_a_storm(guest, trial)?;
    let left = wait::gently("the storm to be over", wait::BOUND, || gone(guest));
    trial.many_of("orphans to be reaped", trial.count, left);
    let after = processes(guest)?;
    trial.require(after <= before + 2, || format!("{before} processes before, {after} after"));
    compare(trial, &at_rest, &stormy);
    trial.attempt("at the end", guest.serves());
    Ok(())
}

/// Makes them all, and kills envd meanwhile.
fn make_orphans(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let begun = Instant::now();
    guest.sh("rm -f /tmp/orphans-made")?;
    start(guest, "orphans", &format!("{MAKER} {} && touch /tmp/orphans-made", trial.count))?;
    restarts(guest, trial, "while orphans are made")?;
    wait::gently("the orphans to be made", BOUND, || Ok(guest.sh("test -e /tmp/orphans-made").ok()))?;
    trial.figure(format!("{} orphans in {:.0} s", trial.count, begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Forks without end, as much as the account may, and kills envd meanwhile.
fn in_a_storm(guest: &Guest, trial: &mut Trial) -> Result<Vec<Duration>> {
    let storm = format!(
        "ulimit -u {STORM}; bomb() {{ while :; do (sleep 0.01 &) 2>/dev/null; done; }}; for i in 1 2 3 4; do bomb & done; wait"
    );
    start(guest, "storm", &storm)?;
    let times = restarts(guest, trial, "in the storm");
    guest.sh(&format!("pkill -KILL -u {ACCOUNT}; true"))?;
    times
}

/// Runs a script of the account in the sandbox's cgroup, in the background.
fn start(guest: &Guest, name: &str, script: &str) -> Result<()> {
    let path = format!("/run/{name}.sh");
    guest
        .sh(&format!(
            "cat >{path} <<'END'\n{script}\nEND\nchmod 755 {path}\n\
         setsid sh -c 'echo 0 >/sys/fs/cgroup/user/cgroup.procs; echo 0 >/proc/self/oom_score_adj; \
         exec setpriv --reuid {UID} --regid {UID} --clear-groups bash {path}' </dev/null >/dev/null 2>&1 &"
        ))
        .map(drop)
}

fn restarts(guest: &Guest, trial: &mut Trial, when: &str) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..RESTARTS {
        thread::sleep(Duration::from_millis(1200));
        let recovered = trial.attempt(format!("restart {when}"), kills::recovery(guest));
        times.extend(recovered.map(|(_, took)| took));
    }
    ensure!(!times.is_empty(), "envd was never served {when}");
    Ok(times)
}

fn compare(trial: &mut Trial, at_rest: &[Duration], stormy: &[Duration]) {
    let (Some(calm), Some(storm)) = (median(at_rest), median(stormy)) else { return };
    trial.require(storm <= calm * FACTOR, || {
        format!("a restart takes {} ms in the storm and {} ms at rest", storm.as_millis(), calm.as_millis())
    });
    trial.figure(format!("restart {} ms at rest, {} ms in the storm", calm.as_millis(), storm.as_millis()));
}

/// No process of the account, and none that is dead and not reaped.
fn gone(guest: &Guest) -> Result<Option<()>> {
    let left = guest
        .sh(&format!("ps -eo user,stat,args | awk '$1 == \"{ACCOUNT}\" || $2 ~ /^Z/' | head -5; true"))?;
    Ok(left.is_empty().then_some(()))
}

fn processes(guest: &Guest) -> Result<u64> {
    Ok(guest.sh("ls -d /proc/[0-9]* | wc -l")?.trim().parse()?)
}
