//! The bridge on the host: beside the socat that it replaces, when a route breaks, and with many sandboxes.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use tests::bridge::{Bed as FailoverBed, Fault};
use tests::paths;

use super::bridge_scale;
use crate::load::{Door, Way};
use crate::peers;
use crate::plan::Plan;
use crate::process::Process;
use crate::row::{Findings, Row, Subject};
use crate::turns;

const ROUNDS: usize = 5;
const BYTES: u64 = 2 << 30;
const CONNECTS: usize = 2000;
const WORKERS: usize = 4;

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    found.rows.extend(beside_socat(plan)?);
    found.rows.extend(failover(plan)?);
    bridge_scale::measure(plan, found)
}

/// What stands between a port of loopback and the server on another.
#[derive(Debug, Clone, Copy)]
enum Forwarder {
    Bridge,
    /// As the platform's self-hosted bridge has it in each namespace.
    Socat,
}

impl Forwarder {
    fn command(self, listen: SocketAddr, server: SocketAddr) -> Result<Command> {
        Ok(match self {
            Self::Bridge => {
                let mut command = Command::new(paths::host_bin("envdctl")?);
                command.args(["bridge", "--listen", &format!("tcp:{listen}")]);
                command.args(["--route", &format!("tcp:{server}")]);
                command
            }
            Self::Socat => {
                let mut command = Command::new("socat");
                command.arg(format!(
                    "TCP4-LISTEN:{},bind=127.0.0.1,reuseaddr,backlog=1024,nodelay,fork",
                    listen.port()
                ));
                command.arg(format!("TCP4:{server},nodelay"));
                command
            }
        })
    }
}

fn beside_socat(plan: &Plan) -> Result<Vec<Row>> {
    let server = free_address()?;
    let mut command = Command::new(peers::compile("bench_server")?);
    command.arg(format!("tcp:{}", server.port()));
    let _server = Process::start(&command)?;
    Door::Tcp(server).wait()?;
    let both = [Forwarder::Bridge, Forwarder::Socat];
    let through = |forwarder: Forwarder, measure: &dyn Fn(&Door) -> Result<f64>| {
        let listen = free_address()?;
        let _process = Process::start(&forwarder.command(listen, server)?)?;
        let door = Door::Tcp(listen);
        door.wait()?;
        measure(&door)
    };
    let mut rows = Vec::new();
    for way in Way::BOTH {
        plan.say(&format!("bridge: throughput {}", way.suffix()));
        let samples =
            turns::take(&both, ROUNDS, |which| through(*which, &|door| door.throughput(way, BYTES)))?;
        let subject = Subject::higher(format!("bridge.throughput_{}", way.suffix()), "MB/s");
        rows.push(subject.against(&samples[0], "socat", &samples[1], Some(1.0)));
    }
    plan.say("bridge: new connections");
    let measure = |door: &Door| door.connects_per_second(CONNECTS, WORKERS);
    let samples = turns::take(&both, ROUNDS, |which| through(*which, &measure))?;
    let subject = Subject::higher("bridge.connects_per_second", "1/s");
    rows.push(subject.against(&samples[0], "socat", &samples[1], Some(3.0)));
    Ok(rows)
}

/// A port of loopback that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr().context("a free port of loopback")
}

/// From the moment a route breaks: until a new client is answered over the other one, and, for the record, until a client whose
/// request was caught on its way has been closed, has come again and is answered.
fn failover(plan: &Plan) -> Result<Vec<Row>> {
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for fault in Fault::ALL {
        plan.say(&format!("bridge: failover, the route is {}", fault.name()));
        let (new, caught): (Vec<_>, Vec<_>) = failover_times(fault)?.into_iter().unzip();
        let row = |name: &str, samples: &[f64], goal| {
            Subject::lower(format!("bridge.{name}_seconds_{}", fault.name()), "s").alone(samples, goal)
        };
        rows.extend([row("failover", &new, Some(1.0)), row("caught_client", &caught, None)]);
        all.extend(new);
    }
    rows.insert(0, Subject::lower("bridge.failover_seconds", "s").alone(&all, Some(1.0)));
    Ok(rows)
}

fn failover_times(fault: Fault) -> Result<Vec<(f64, f64)>> {
    let bed = FailoverBed::new(&format!("bench-{}", fault.name()))?;
    bed.served_by("tcp")?;
    (0..ROUNDS)
        .map(|_| {
            bed.break_by(fault)?;
            let (new, caught) = thread::scope(|scope| {
                let caught = scope.spawn(|| bed.served_by("vsock"));
                (bed.new_client_served_by("vsock"), caught.join())
            });
            let caught = caught.map_err(|_| anyhow!("the caught client's thread panicked"))?;
            bed.heal(fault)?;
            bed.served_by("tcp")?;
            Ok((new?.as_secs_f64(), caught?.as_secs_f64()))
        })
        .collect()
}
