//! A serial console that nobody drains, while envd floods it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::guest::{Guest, Stage};
use super::kills;
use super::{Scenario, Trial};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "console-blocked",
    about: "the console is blocked (a count is a second) while envd floods it; nothing stalls, drops are counted",
    stage: Stage::StandIn,
    full: 60,
    brief: 0,
    wears_out: false,
    waits: false,
    run: blocked,
}];

const SAID: Duration = Duration::from_secs(30);
const FLOOD: &str = "echo 'flood = 2000' >/run/envd-stand-in.conf";

fn blocked(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let console = guest.vm()?.console();
    guest.sh(FLOOD)?;
    kills::recovery(guest)?;
    guest.vm()?.order("start", "noise")?;
    let before = dropped(guest)?;
    console.block();
    let blocked_at = console.mark();
    // What the sockets of the host hold has to be full first: written by hand, until nothing more is taken.
    guest.sh("timeout -s KILL 30 sh -c 'yes filler >/dev/ttyS0'; true")?;
    serve_meanwhile(guest, trial);
    console.unblock();
    guest.sh("rm -f /run/envd-stand-in.conf")?;
    guest.vm()?.order("stop", "noise")?;
    kills::recovery(guest)?;
    let mark = console.mark();
    kills::recovery(guest)?;
    trial.attempt("the console speaks again", console.wait_after(mark, "wrapper: envd is healthy").map(drop));
    let said = console.wait_within(blocked_at, "lines dropped: the console did not take them", SAID);
    trial.attempt("what was dropped is said", said);
    let lost = dropped(guest)?.saturating_sub(before);
    trial.require(lost > 0, || "PID 1 counts no byte that its console did not take".to_owned());
    trial.figure(format!("{lost} bytes of PID 1 dropped and counted"));
    Ok(())
}

/// Requests, restarts and questions go on.
fn serve_meanwhile(guest: &Guest, trial: &mut Trial) {
    let (begun, mut times, mut turn) = (Instant::now(), Vec::new(), 0_u64);
    while begun.elapsed() < Duration::from_secs(trial.count) {
        turn += 1;
        times.extend(trial.attempt(format!("request {turn}"), guest.healthy_over_vsock()));
        if turn % 20 == 0 {
            trial.attempt(format!("kill at request {turn}"), kills::recovery(guest));
            trial.attempt(format!("status at request {turn}"), guest.status());
        }
        thread::sleep(Duration::from_millis(100));
    }
    trial.times("requests", &times);
    let worst = times.iter().max().copied().unwrap_or_default();
    trial.require(worst < wait::BOUND, || format!("a request took {} s", worst.as_secs()));
}

fn dropped(guest: &Guest) -> Result<u64> {
    Ok(guest.status()?["console_dropped_bytes"].as_u64().unwrap_or(0))
}
