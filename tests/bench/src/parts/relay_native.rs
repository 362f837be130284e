//! The relay on the host, over unix sockets in vsock's place.
//!
//! Peers, each set up as its own documentation advises for a relay: `socat` (its 8 KiB default), `socat -b 262144`, and
//! the C floors.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use tests::paths;

use crate::load::{Door, Way};
use crate::peers;
use crate::plan::Plan;
use crate::process::Process;
use crate::row::{Curve, Findings, Growth, Row, Subject};
use crate::turns::{self, each};

const ROUNDS: usize = 5;
const BYTES: u64 = 2 << 30;
const CONNECTS: usize = 2000;
const WORKERS: usize = 4;
const ROUND_TRIPS: usize = 20_000;
const CONNECTIONS: [usize; 4] = [1, 8, 64, 512];
const GIB: f64 = (1u64 << 30) as f64;

/// Makes the command that relays from one unix socket to another.
type BetweenSockets = Box<dyn Fn(&Path, &Path) -> Command>;

/// How a relay under test is started.
pub(crate) struct Relay {
    pub(crate) name: &'static str,
    command: BetweenSockets,
}

impl Relay {
    pub(crate) fn ours() -> Result<Self> {
        let program = paths::guest_bin("vsock-relay")?;
        let command = move |from: &Path, to: &Path| {
            let mut command = Command::new(&program);
            command.arg("--map").arg(format!("unix:{}=unix:{}", from.display(), to.display()));
            command
        };
        Ok(Self { name: "vsock-relay", command: Box::new(command) })
    }

    pub(crate) fn socat(name: &'static str, options: &'static [&'static str]) -> Self {
        let command = move |from: &Path, to: &Path| {
            let mut command = Command::new("socat");
            command.args(options);
            command.arg(format!("UNIX-LISTEN:{},backlog=1024,fork", from.display()));
            command.arg(format!("UNIX-CONNECT:{}", to.display()));
            command
        };
        Self { name, command: Box::new(command) }
    }

    fn socat_with_large_buffer() -> Self {
        Self::socat("socat -b 262144", &["-b", "262144"])
    }

    fn floor(name: &'static str, program: &str) -> Result<Self> {
        let program: PathBuf = peers::compile(program)?;
        let command = move |from: &Path, to: &Path| {
            let mut command = Command::new(&program);
            command.arg(format!("unix:{}", from.display())).arg(format!("unix:{}", to.display()));
            command
        };
        Ok(Self { name, command: Box::new(command) })
    }
}

/// A server behind, and a folder for the sockets.
pub(crate) struct Bed {
    folder: tempfile::TempDir,
    server: PathBuf,
    _process: Process,
}

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    let bed = Bed::new()?;
    for figures in [Bed::throughput, Bed::connects, Bed::round_trips, Bed::cpu] {
        found.rows.extend(figures(&bed, plan)?);
    }
    found.growth.push(bed.growth(plan)?);
    Ok(())
}

impl Bed {
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let server = folder.path().join("server");
        let process = peers::server_on(&server)?;
        Ok(Self { folder, server, _process: process })
    }

    /// Starts a relay, hands its socket to `measure`, ends it.
    pub(crate) fn with<T>(
        &self,
        relay: &Relay,
        measure: impl FnOnce(&Door, &Process) -> Result<T>,
    ) -> Result<T> {
        let front = self.folder.path().join("front");
        let _ = std::fs::remove_file(&front);
        let mut process = Process::start(&(relay.command)(&front, &self.server))?;
        process.until("its socket", || listens(&front).then_some(()))?;
        measure(&Door::Unix(front), &process)
    }

    fn interleaved<T>(
        &self,
        relays: &[Relay],
        rounds: usize,
        measure: impl Fn(&Door) -> Result<T>,
    ) -> Result<Vec<Vec<T>>> {
        turns::take(relays, rounds, |relay| self.with(relay, |door, _| measure(door)))
    }

    fn throughput(&self, plan: &Plan) -> Result<Vec<Row>> {
        let relays = [
            Relay::ours()?,
            Relay::socat("socat", &[]),
            Relay::socat_with_large_buffer(),
            Relay::floor("C copy loop", "copy_loop")?,
            Relay::floor("C epoll relay", "epoll_relay")?,
        ];
        let goals = [Some(1.5), Some(1.0), Some(0.9), None];
        let mut rows = Vec::new();
        for way in Way::BOTH {
            plan.say(&format!("relay, native: throughput {}", way.suffix()));
            let samples = self.interleaved(&relays, ROUNDS, |door| door.throughput(way, BYTES))?;
            let subject = Subject::higher(format!("relay.native.throughput_{}", way.suffix()), "MB/s");
            rows.extend(subject.beside(&names(&relays), &samples, &goals));
        }
        Ok(rows)
    }

    fn connects(&self, plan: &Plan) -> Result<Vec<Row>> {
        plan.say("relay, native: new connections");
        let relays = [
            Relay::ours()?,
            Relay::socat("socat …,fork", &[]),
            Relay::floor("C epoll relay", "epoll_relay")?,
        ];
        let samples =
            self.interleaved(&relays, ROUNDS, |door| door.connects_per_second(CONNECTS, WORKERS))?;
        let subject = Subject::higher("relay.native.connects_per_second", "1/s");
        Ok(subject.beside(&names(&relays), &samples, &[Some(5.0), None]))
    }

    fn round_trips(&self, plan: &Plan) -> Result<Vec<Row>> {
        let relays =
            [Relay::ours()?, Relay::socat("socat", &[]), Relay::floor("C epoll relay", "epoll_relay")?];
        let mut rows = Vec::new();
        for (size, name) in [(64, "64b"), (8192, "8kib")] {
            plan.say(&format!("relay, native: round trip {name}"));
            let samples = self.interleaved(&relays, ROUNDS, |door| door.round_trips(size, ROUND_TRIPS))?;
            let figures =
                |of: fn(&crate::load::Spread) -> f64| samples.iter().map(|s| each(s, of)).collect::<Vec<_>>();
            let p50 = Subject::lower(format!("relay.native.rtt_p50_{name}"), "µs");
            rows.extend(p50.beside(&names(&relays), &figures(|spread| spread.p50), &[Some(1.0), None]));
            let p99 = Subject::lower(format!("relay.native.rtt_p99_{name}"), "µs");
            rows.extend(p99.beside(&names(&relays), &figures(|spread| spread.p99), &[None, None]));
        }
        Ok(rows)
    }

    fn cpu(&self, plan: &Plan) -> Result<Vec<Row>> {
        plan.say("relay, native: CPU time per GiB");
        let relays = [
            Relay::ours()?,
            Relay::socat_with_large_buffer(),
            Relay::floor("C copy loop", "copy_loop")?,
            Relay::floor("C epoll relay", "epoll_relay")?,
        ];
        let samples = turns::take(&relays, ROUNDS, |relay| {
            self.with(relay, |door, process| {
                // Asked while the connection is open: a child that has ended takes its figure along.
                let _open = door.transfer(Way::HostToGuest, BYTES)?;
                Ok(process.cpu_seconds() / (BYTES as f64 / GIB))
            })
        })?;
        let subject = Subject::lower("relay.native.cpu_seconds_per_gib", "s/GiB");
        Ok(subject.beside(&names(&relays), &samples, &[Some(1.0), None, None]))
    }

    /// How throughput changes with the number of connections.
    fn growth(&self, plan: &Plan) -> Result<Growth> {
        let relays = [Relay::ours()?, Relay::socat("socat", &[]), Relay::socat_with_large_buffer()];
        let mut curves: Vec<_> =
            relays.iter().map(|relay| Curve { name: relay.name.into(), points: Vec::new() }).collect();
        for count in CONNECTIONS {
            plan.say(&format!("relay, native: {count} connections at once"));
            let measure = |door: &Door| door.throughput_of_many(Way::HostToGuest, BYTES / 2, count);
            for (curve, samples) in curves.iter_mut().zip(self.interleaved(&relays, 3, measure)?) {
                curve.points.push((count as f64, samples));
            }
        }
        Ok(Growth {
            name: "relay-connections",
            title: "Throughput of a relay on the host, all connections together",
            of: "connections at once",
            cost: "MB/s",
            curves,
        })
    }
}

/// Whether somebody listens there, by the kernel's own table: it is not connected to, since some peers serve one connection only.
fn listens(path: &Path) -> bool {
    const LISTENING: &str = "00010000";
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = path.display().to_string();
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(3) == Some(&LISTENING) && fields.last() == Some(&path.as_str())
    })
}

fn names(relays: &[Relay]) -> Vec<&'static str> {
    relays.iter().map(|relay| relay.name).collect()
}
