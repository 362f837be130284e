//! How often our programs wake a guest that does nothing. Counted by the kernel: every switch onto a processor is followed by one away.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tests::{Image, Via, Vm};

use crate::guest::{Wakeups, pid_of};
use crate::plan::Plan;
use crate::row::{Findings, Subject};
use crate::scene;

/// Guests that rest side by side: a guest at rest takes next to nothing from the others.
const GUESTS: usize = 3;
/// Of rest: several liveness checks of the wrapper (every 30 s).
const WINDOW: Duration = Duration::from_secs(120);
/// After the boot, until what starts late has started.
const SETTLE: Duration = Duration::from_secs(5);

/// Wake-ups a minute.
#[derive(Debug)]
struct Rest {
    init: f64,
    relay: f64,
    wrapper: f64,
}

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    let image = scene::native().bake()?;
    plan.say(&format!("idle: {GUESTS} guests at rest for {} s", WINDOW.as_secs()));
    let rests: Vec<Rest> = thread::scope(|scope| {
        let guests: Vec<_> = (0..GUESTS).map(|_| scope.spawn(|| rest(&image))).collect();
        guests
            .into_iter()
            .map(|guest| guest.join().map_err(|_| anyhow!("a guest's thread panicked"))?)
            .collect::<Result<_>>()
    })?;
    let of = |figure: fn(&Rest) -> f64| rests.iter().map(figure).collect::<Vec<_>>();
    let row = |name: &str, samples: &[f64], goal| {
        Subject::lower(format!("idle.wakeups_per_minute_{name}"), "1/min").alone(samples, goal)
    };
    found.rows.extend([
        row("init_and_relay", &of(|rest| rest.init + rest.relay), Some(0.0)),
        row("wrapper", &of(|rest| rest.wrapper), Some(6.0)),
        row("init", &of(|rest| rest.init), None),
        row("relay", &of(|rest| rest.relay), None),
    ]);
    Ok(())
}

fn rest(image: &Image) -> Result<Rest> {
    let vm = scene::boot_plain(image)?;
    vm.wait_healthy(Via::Tcp)?;
    thread::sleep(SETTLE);
    let pids = [1, pid_of(&vm, "vsock-relay")?, pid_of(&vm, "envd-wrapper")?];
    let before = look(&vm, pids)?;
    thread::sleep(WINDOW);
    let after = look(&vm, pids)?;
    let [init, relay, wrapper] = [0, 1, 2].map(|which| after[which].per_minute_since(before[which]));
    Ok(Rest { init, relay, wrapper })
}

fn look(vm: &Vm, pids: [u32; 3]) -> Result<[Wakeups; 3]> {
    Ok([Wakeups::of(vm, pids[0])?, Wakeups::of(vm, pids[1])?, Wakeups::of(vm, pids[2])?])
}
