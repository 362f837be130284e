//! The relay on the host, over unix sockets in vsock's place: the pump is the same code and nothing is emulated.
//!
//! Peers, each set up as its own documentation advises for a relay: `socat` (its 8 KiB default), `socat -b 262144`, and
//! the C floors. All peers of a figure take turns, round by round.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::load::{self, Way};
use crate::plan::Plan;
use crate::process::Process;
use crate::row::{Row, Subject, median, percentile};

const ROUNDS: usize = 5;
const BYTES: u64 = 2 << 30;
const CONNECTS: usize = 2000;
const ROUND_TRIPS: usize = 20_000;
const GIB: f64 = (1u64 << 30) as f64;

/// Makes the command that relays from one unix socket to another.
type BetweenSockets = Box<dyn Fn(&Path, &Path) -> Command>;

/// How a relay under test is started.
struct Relay {
    name: &'static str,
    command: BetweenSockets,
}

fn ours(plan: &Plan) -> Relay {
    let program = plan.guest_program("vsock-relay");
    Relay {
        name: "vsock-relay",
        command: Box::new(move |from, to| {
            let mut command = Command::new(&program);
            command.arg("--map").arg(format!("unix:{}=unix:{}", from.display(), to.display()));
            command
        }),
    }
}

fn socat(name: &'static str, options: &'static [&'static str], listen: &'static str) -> Relay {
    Relay {
        name,
        command: Box::new(move |from, to| {
            let mut command = Command::new("socat");
            command.args(options);
            command.arg(format!("UNIX-LISTEN:{},backlog=1024{listen}", from.display()));
            command.arg(format!("UNIX-CONNECT:{}", to.display()));
            command
        }),
    }
}

fn floor(name: &'static str, program: PathBuf) -> Relay {
    Relay {
        name,
        command: Box::new(move |from, to| {
            let mut command = Command::new(&program);
            command.arg(format!("unix:{}", from.display())).arg(format!("unix:{}", to.display()));
            command
        }),
    }
}

fn bridge(plan: &Plan) -> Relay {
    let program = plan.host_program("envdctl");
    Relay {
        name: "envdctl bridge",
        command: Box::new(move |from, to| {
            let mut command = Command::new(&program);
            command.args(["bridge", "--listen"]).arg(format!("unix:{}", from.display()));
            command.arg("--route").arg(format!("unix:{}", to.display()));
            command
        }),
    }
}

/// What `ONLY=bridge` measures over one route.
pub(crate) fn run_bridge(plan: &Plan) -> Result<Vec<Row>> {
    let bed = Bed::new(plan)?;
    let relays = [bridge(plan), socat("socat", &[], ",fork")];
    let mut rows = Vec::new();
    for (way, name) in [(Way::Up, "up"), (Way::Down, "down")] {
        plan.say(&format!("bridge: throughput {name}"));
        let samples = bed.interleaved(&relays, ROUNDS, |front| load::throughput(front, way, BYTES))?;
        let subject = Subject::higher(format!("bridge.throughput_{name}"), "MB/s");
        rows.extend(beside(&subject, &relays, &samples, &[1.0]));
    }
    plan.say("bridge: new connections");
    let samples = bed.interleaved(&relays, ROUNDS, |front| load::connects(front, CONNECTS, 4))?;
    let subject = Subject::higher("bridge.connects_per_second", "1/s");
    rows.extend(beside(&subject, &relays, &samples, &[3.0]));
    Ok(rows)
}

/// Everything that `ONLY=relay` measures on the host.
pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let bed = Bed::new(plan)?;
    let mut rows = bed.throughput(plan)?;
    rows.extend(bed.connects(plan)?);
    rows.extend(bed.round_trips(plan)?);
    rows.extend(bed.cpu(plan)?);
    rows.extend(bed.growth(plan)?);
    Ok(rows)
}

/// A server behind, and a folder for the sockets.
struct Bed {
    folder: tempfile::TempDir,
    server: PathBuf,
    _process: Process,
}

impl Bed {
    fn new(plan: &Plan) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let server = folder.path().join("server");
        let mut command = Command::new(crate::peers::compile(&plan.root, "bench_server")?);
        command.arg(format!("unix:{}", server.display()));
        let process = Process::start(&mut command)?.until_serving(&server)?;
        Ok(Self { folder, server, _process: process })
    }

    /// Starts a relay, hands its socket to `measure`, ends it; gives the figure and the CPU seconds it took.
    fn with<T>(&self, relay: &Relay, measure: impl FnOnce(&Path) -> Result<T>) -> Result<(T, f64)> {
        let front = self.folder.path().join("front");
        let _ = std::fs::remove_file(&front);
        let process = Process::start(&mut (relay.command)(&front, &self.server))?.until_bound(&front)?;
        let figure = measure(&front)?;
        Ok((figure, process.end()?.as_secs_f64()))
    }

    /// `rounds` samples for each relay, taking turns.
    fn interleaved(
        &self,
        relays: &[Relay],
        rounds: usize,
        measure: impl Fn(&Path) -> Result<f64>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut samples = vec![Vec::new(); relays.len()];
        for round in 0..rounds {
            for offset in 0..relays.len() {
                let which = (round + offset) % relays.len();
                samples[which].push(self.with(&relays[which], &measure)?.0);
            }
        }
        Ok(samples)
    }

    fn throughput(&self, plan: &Plan) -> Result<Vec<Row>> {
        let relays = [
            ours(plan),
            socat("socat", &[], ",fork"),
            socat("socat -b 262144", &["-b", "262144"], ",fork"),
            floor("C copy loop", crate::peers::compile(&plan.root, "copy_loop")?),
        ];
        let goals = [1.5, 1.0, 0.9];
        let mut rows = Vec::new();
        for (way, name) in [(Way::Up, "up"), (Way::Down, "down")] {
            plan.say(&format!("relay, native: throughput {name}"));
            let samples = self.interleaved(&relays, ROUNDS, |front| load::throughput(front, way, BYTES))?;
            let subject = Subject::higher(format!("relay.native.throughput_{name}"), "MB/s");
            rows.extend(beside(&subject, &relays, &samples, &goals));
        }
        Ok(rows)
    }

    fn connects(&self, plan: &Plan) -> Result<Vec<Row>> {
        plan.say("relay, native: new connections");
        let relays = [
            ours(plan),
            socat("socat …,fork", &[], ",fork"),
            floor("C epoll relay", crate::peers::compile(&plan.root, "epoll_relay")?),
        ];
        let samples = self.interleaved(&relays, ROUNDS, |front| load::connects(front, CONNECTS, 4))?;
        let subject = Subject::higher("relay.native.connects_per_second", "1/s");
        let mut rows = beside(&subject, &relays[..2], &samples[..2], &[5.0]);
        rows.push(subject.against(&samples[0], relays[2].name, &samples[2], None));
        Ok(rows)
    }

    fn round_trips(&self, plan: &Plan) -> Result<Vec<Row>> {
        let relays = [ours(plan), socat("socat", &[], ",fork")];
        let mut rows = Vec::new();
        for (size, name) in [(64, "64b"), (8192, "8kib")] {
            plan.say(&format!("relay, native: round trip {name}"));
            for (fraction, rank) in [(0.5, "p50"), (0.99, "p99")] {
                let samples = self.interleaved(&relays, ROUNDS, |front| {
                    Ok(percentile(&load::round_trips(front, size, ROUND_TRIPS)?, fraction))
                })?;
                let subject = Subject::lower(format!("relay.native.rtt_{rank}_{name}"), "µs");
                let goal = (rank == "p50").then_some(1.0);
                rows.push(subject.against(&samples[0], relays[1].name, &samples[1], goal));
            }
        }
        Ok(rows)
    }

    fn cpu(&self, plan: &Plan) -> Result<Vec<Row>> {
        plan.say("relay, native: CPU time per GiB");
        let relays = [ours(plan), socat("socat -b 262144", &["-b", "262144"], ",fork")];
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (relay, samples) in relays.iter().zip(&mut samples) {
                let (_, seconds) = self.with(relay, |front| load::throughput(front, Way::Up, BYTES))?;
                samples.push(seconds / (BYTES as f64 / GIB));
            }
        }
        let subject = Subject::lower("relay.native.cpu_seconds_per_gib", "s/GiB");
        Ok(vec![subject.against(&samples[0], relays[1].name, &samples[1], Some(1.0))])
    }

    /// How throughput grows with the number of connections.
    fn growth(&self, plan: &Plan) -> Result<Vec<Row>> {
        let relays = [ours(plan), socat("socat -b 262144", &["-b", "262144"], ",fork")];
        let mut rows = Vec::new();
        for connections in [1usize, 8, 64, 512] {
            plan.say(&format!("relay, native: {connections} connections at once"));
            let bytes = BYTES / connections as u64;
            let samples = self.interleaved(&relays, 3, |front| {
                load::parallel_throughput(front, Way::Up, bytes, connections)
            })?;
            let subject = Subject::higher(format!("relay.native.throughput_at_{connections}"), "MB/s");
            rows.push(subject.against(&samples[0], relays[1].name, &samples[1], None));
        }
        Ok(rows)
    }
}

/// The first relay's samples as rows beside each other one.
fn beside(subject: &Subject, relays: &[Relay], samples: &[Vec<f64>], goals: &[f64]) -> Vec<Row> {
    debug_assert!(median(&samples[0]).is_finite());
    (1..relays.len())
        .map(|peer| {
            subject.against(&samples[0], relays[peer].name, &samples[peer], goals.get(peer - 1).copied())
        })
        .collect()
}
