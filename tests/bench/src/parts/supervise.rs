//! An envd that is killed: how soon another one is healthy, whether anybody over vsock notices, and what a flood of its log costs.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{Via, Vm};

use crate::guest::pid_of;
use crate::load::{Door, health};
use crate::plan::Plan;
use crate::row::{Findings, Row, Subject};
use crate::scene::{self, Contender};
use crate::stamps::{Stamps, kill_after};
use crate::turns::{self, each};

const KILLS: usize = 30;
/// Clients that ask at once after a kill.
const CLIENTS: usize = 4;
/// The wrapper starts an envd that was healthy for a second again at once; one that dies sooner is backed off.
const HEALTHY_FOR: Duration = Duration::from_millis(1200);
const LINES: usize = 200_000;
const FLOODS: usize = 5;

/// One kill and what followed, in milliseconds of guest time.
#[derive(Debug, Clone, Copy)]
struct Death {
    to_healthy: f64,
    /// The new envd's own exec to healthy.
    own: f64,
    failed_gets: f64,
}

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    let [ours, floor, ..] = Contender::all()?;
    plan.say("supervise: boot");
    let guests = [Guest::boot(&ours)?, Guest::boot(&floor)?];
    plan.say(&format!("supervise: {KILLS} kills"));
    let deaths = turns::take(&guests, KILLS, Guest::kill)?;
    found.rows.extend(of_deaths(&deaths));
    drop(guests);
    found.rows.push(flood(plan)?);
    Ok(())
}

fn of_deaths(deaths: &[Vec<Death>]) -> Vec<Row> {
    let subject = Subject::lower("supervise.sigkill_to_healthy", "ms");
    let [ours, floors] = [0, 1].map(|which| each(&deaths[which], |death| death.to_healthy));
    let [own, floors_own] = [0, 1].map(|which| each(&deaths[which], |death| death.own));
    let failed = each(&deaths[0], |death| death.failed_gets);
    let floor_itself = Subject::lower("supervise.sigkill_to_healthy_c_floor", "ms");
    vec![
        subject.against(&ours, "envd's own exec to healthy", &own, Some(1.05)),
        subject.against(&ours, "c-floor", &floors, None),
        floor_itself.against(&floors, "envd's own exec to healthy", &floors_own, None),
        Subject::lower("supervise.failed_gets_over_vsock", "").sum(&failed, 0.0),
    ]
}

struct Guest {
    vm: Vm,
    /// The C floor has no relay.
    has_relay: bool,
}

impl Guest {
    fn boot(contender: &Contender) -> Result<Self> {
        let (vm, _) = contender.boot()?;
        Ok(Self { vm, has_relay: contender.is_ours() })
    }

    fn kill(&self) -> Result<Death> {
        thread::sleep(HEALTHY_FOR);
        let mark = self.vm.console().mark();
        // Its answer dies with envd.
        let _ = self.vm.exec_as(Via::Tcp, &scene::kill_command(), Some("root"));
        let failed_gets = if self.has_relay { failed_gets(&self.vm) } else { 0.0 };
        let killed = kill_after(&self.vm, mark)?;
        let stamps = Stamps::wait(&self.vm, mark)?;
        Ok(Death { to_healthy: stamps.healthy_since(killed), own: stamps.own(), failed_gets })
    }
}

/// Of clients that connect while there is no envd.
fn failed_gets(vm: &Vm) -> f64 {
    let door = Door::Vsock(vm.vsock_socket(), envd_api::PORT.into());
    let failed = thread::scope(|scope| {
        let get = || door.connect().and_then(|mut stream| health(stream.as_mut())).is_err();
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(get)).collect();
        clients.into_iter().map(|client| client.join().unwrap_or(true)).filter(|failed| *failed).count()
    });
    failed as f64
}

/// The same lines into the pipe that the wrapper drains, and into one that `cat >/dev/null` drains.
fn flood(plan: &Plan) -> Result<Row> {
    plan.say("supervise: a flood of log lines");
    let (image, program) = scene::with_peer(scene::native(), "flood")?;
    let vm = scene::boot_plain(&image.bake()?)?;
    vm.wait_healthy(Via::Tcp)?;
    let wrapper = pid_of(&vm, "envd-wrapper")?;
    let commands =
        [format!("{program} {LINES} /proc/$(pidof envd)/fd/2 {wrapper}"), format!("{program} {LINES}")];
    let samples = turns::take(&commands, FLOODS, |command| {
        let nanoseconds: f64 = vm.sh(Via::Tcp, command)?.trim().parse().context("nanoseconds of CPU")?;
        Ok(nanoseconds / 1e3 / LINES as f64)
    })?;
    let subject = Subject::lower("supervise.log_flood_guest_cpu", "µs per line");
    Ok(subject.against(&samples[0], "cat >/dev/null", &samples[1], Some(1.5)))
}
