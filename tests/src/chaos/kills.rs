//! envd, its wrapper and the relays are killed, again and again.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guest::{Guest, Pids, Stage};
use super::{Scenario, Trial};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "envd-kills",
        about: "SIGKILL of envd; a request over vsock that comes after it only waits",
        stage: Stage::StandIn,
        full: 300,
        brief: 4,
        wears_out: false,
        waits: true,
        run: envd,
    },
    Scenario {
        name: "envd-kills-real",
        about: "the same of the real envd",
        stage: Stage::Real,
        full: 30,
        brief: 0,
        wears_out: false,
        waits: true,
        run: envd,
    },
    Scenario {
        name: "wrapper-kills",
        about: "SIGKILL of the wrapper; init brings it back, with one envd",
        stage: Stage::StandIn,
        full: 100,
        brief: 2,
        wears_out: false,
        waits: true,
        run: wrapper,
    },
    Scenario {
        name: "relay-kills",
        about: "SIGKILL of the relay; init brings it back, and it listens",
        stage: Stage::StandIn,
        full: 100,
        brief: 2,
        wears_out: false,
        waits: true,
        run: relay,
    },
];

/// An envd that was healthy for so long is started again at once; before that there is a pause, which grows.
const SETTLED: Duration = Duration::from_millis(1050);

/// Mostly after a while, sometimes at once: so both ways back are gone.
pub(super) fn pause(trial: &mut Trial) {
    let share = if trial.dice.u8(..8) == 0 { trial.dice.f32() } else { 1.0 };
    thread::sleep(SETTLED.mul_f32(share));
}

/// Kills the one envd and returns its pid once it is dead and reaped: until the last of its threads has ended, its sockets are open.
pub(super) fn kill_envd(guest: &Guest) -> Result<u32> {
    let printed = guest.sh(
        "pid=$(pidof envd) && kill -KILL \"$pid\" && while [ -e \"/proc/$pid\" ]; do :; done; echo \"$pid\"",
    )?;
    printed.parse().with_context(|| format!("killing envd printed {printed:?}"))
}

/// Kills envd and asks for its health over vsock on a connection that opens afterwards: how long the answer took.
pub(super) fn recovery(guest: &Guest) -> Result<(u32, Duration)> {
    let pid = kill_envd(guest)?;
    let took = guest.healthy_over_vsock().with_context(|| format!("after envd {pid} was killed"))?;
    Ok((pid, took))
}

fn envd(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let before = guest.restarts()?.0;
    let (mut times, mut pids) = (Vec::new(), Vec::new());
    for turn in 1..=trial.count {
        pause(trial);
        if let Some((pid, took)) = trial.attempt(format!("kill {turn}"), recovery(guest)) {
            pids.push(pid);
            times.push(took);
        } else {
            guest.serves_again()?;
        }
    }
    trial.times("health over vsock after a kill", &times);
    let killed = pids.len();
    pids.sort_unstable();
    pids.dedup();
    trial.require(pids.len() == killed, || format!("{killed} kills met only {} envds", pids.len()));
    let counted = guest.restarts()?.0 - before;
    trial.require(counted >= killed as u64, || format!("{killed} kills, and {counted} restarts are counted"));
    trial.attempt("at the end", guest.serves());
    Ok(())
}

fn wrapper(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let mut times = Vec::new();
    for turn in 1..=trial.count {
        pause(trial);
        let before = guest.pids()?;
        guest.sh(&format!("kill -KILL {}", before.wrapper))?;
        let begun = Instant::now();
        let back = trial.attempt(format!("kill {turn}"), back_in_place(guest, &before));
        if back.is_none() {
            guest.serves_again()?;
        }
        times.extend(back.map(|()| begun.elapsed()));
    }
    trial.times("served and in place after a kill", &times);
    trial.attempt("at the end", guest.serves());
    Ok(())
}

/// Another wrapper, below it another envd and only that one, and both ways served. (Who asks at once may still meet the old envd, and
/// is cut off with it.)
fn back_in_place(guest: &Guest, before: &Pids) -> Result<()> {
    let after = wait::gently("another wrapper with one envd", wait::BOUND, || {
        Ok(guest.pids().ok().filter(|pids| pids.wrapper != before.wrapper && pids.envd != before.envd))
    })?;
    let parent = guest.sh(&format!("awk '/^PPid/{{print $2}}' /proc/{}/status", after.envd))?;
    ensure!(
        parent == after.wrapper.to_string(),
        "envd {} is a child of {parent}, not of the wrapper",
        after.envd
    );
    guest.serves_again()
}

fn relay(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let mut times = Vec::new();
    for turn in 1..=trial.count {
        pause(trial);
        let before = guest.pids()?;
        guest.sh("kill -KILL $(pidof vsock-relay)")?;
        let begun = Instant::now();
        let served = wait::until("the relay to listen", wait::BOUND, || Ok(guest.healthy_over_vsock().ok()));
        let took = begun.elapsed();
        let back = trial.attempt(format!("kill {turn}"), served.and_then(|_| all_are_back(guest, &before)));
        times.extend(back.map(|()| took));
    }
    trial.times("served over vsock after a kill", &times);
    trial.attempt("at the end", guest.serves());
    Ok(())
}

/// The image's own relays too, which start again after the pause of any service.
fn all_are_back(guest: &Guest, before: &Pids) -> Result<()> {
    let after = wait::until("as many relays as before, and none of those", wait::BOUND, || {
        let after = guest.pids()?;
        let anew = after.relays.is_disjoint(&before.relays) && after.relays.len() == before.relays.len();
        Ok(anew.then_some(after))
    })?;
    ensure!(after.envd == before.envd, "envd was restarted together with the relay");
    let groups = after.relays.iter().map(|pid| format!("cat /proc/{pid}/cgroup; ")).collect::<String>();
    let groups = guest.sh(&groups)?;
    ensure!(groups.lines().all(|group| group == "0::/init.scope"), "the relays are in {groups}");
    Ok(())
}
