//! The relay in a guest, over the real vsock device. All relays run side by side in one guest, each on a port of its own, with one
//! server behind them, and are asked in turn.

use std::time::Duration;

use anyhow::Result;
use tests::image::Bake;
use tests::net::GUEST;
use tests::{Via, Vm};

use crate::load::{Door, Spread, Way};
use crate::plan::Plan;
use crate::row::{Curve, Findings, Growth, Row, Subject};
use crate::scene;
use crate::turns::{self, each};

const ROUNDS: usize = 5;
/// For figures whose spread from round to round is larger than the distance between the relays.
const CLOSE_ROUNDS: usize = 11;
const BYTES: u64 = 64 << 20;
const CONNECTS: usize = 200;
const WORKERS: usize = 4;
const ROUND_TRIPS: usize = 300;
const CONNECTIONS: [usize; 4] = [1, 8, 64, 512];
/// The server, behind every relay.
const SERVER_TCP: u16 = 7000;

/// What takes connections in the guest.
#[derive(Debug)]
struct Relay {
    name: &'static str,
    port: u32,
}

const OURS: Relay = Relay { name: "vsock-relay", port: 7002 };
const EPOLL: Relay = Relay { name: "C epoll relay", port: 7003 };
const SOCAT: Relay = Relay { name: "socat VSOCK-LISTEN,fork", port: 7004 };
const LARGE_SOCAT: Relay = Relay { name: "socat -b 262144 VSOCK-LISTEN,fork", port: 7005 };
/// In front of envd, as ours is.
const EPOLL_BEFORE_ENVD: Relay = Relay { name: "C epoll relay", port: 7006 };
/// The server itself, without a relay.
const RAW: Relay = Relay { name: "raw vsock", port: 7001 };

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    plan.say("relay, VM: boot");
    let vm = scene::boot_plain(&image()?.bake()?)?;
    vm.wait_healthy(Via::Tcp)?;
    let bed = Bed { vm };
    for relay in [&OURS, &EPOLL, &SOCAT, &LARGE_SOCAT, &RAW] {
        bed.door(relay).wait()?;
    }
    for figures in [Bed::throughput, Bed::connects, Bed::round_trips, Bed::health] {
        found.rows.extend(figures(&bed, plan)?);
    }
    found.growth.push(bed.growth(plan)?);
    Ok(())
}

/// Each is a service of our PID 1, in a cgroup of its own with the same weights. `nodelay` is what socat's manual has for requests
/// that wait for answers; a small read would otherwise be held back.
fn image() -> Result<Bake> {
    let (image, server) = scene::with_peer(scene::native(), "bench_server")?;
    let (mut image, epoll) = scene::with_peer(image, "epoll_relay")?;
    let tcp = format!("TCP4:127.0.0.1:{SERVER_TCP},nodelay");
    let socat = |relay: &Relay, options: &str| {
        format!("'/usr/bin/socat', {options}'VSOCK-LISTEN:{},fork', '{tcp}'", relay.port)
    };
    let services = [
        ("server", format!("'{server}', 'tcp:{SERVER_TCP}', 'vsock:{}'", RAW.port)),
        (
            "ours",
            format!(
                "'/usr/lib/envd-init/vsock-relay', '--map', 'vsock:any:{}=tcp:127.0.0.1:{SERVER_TCP}'",
                OURS.port
            ),
        ),
        ("epoll", format!("'{epoll}', 'vsock:{}', 'tcp:{SERVER_TCP}'", EPOLL.port)),
        ("epoll-envd", format!("'{epoll}', 'vsock:{}', 'tcp:{}'", EPOLL_BEFORE_ENVD.port, envd_api::PORT)),
        ("socat", socat(&SOCAT, "")),
        ("socat-large", socat(&LARGE_SOCAT, "'-b', '262144', ")),
    ];
    for (name, command) in services {
        let path = format!("/etc/envd-init/services.d/bench-{name}.toml");
        image = image.file(&path, format!("command = [{command}]\nrestart = 'always'\n"));
    }
    Ok(image)
}

struct Bed {
    vm: Vm,
}

impl Bed {
    fn door(&self, relay: &Relay) -> Door {
        Door::Vsock(self.vm.vsock_socket(), relay.port)
    }

    fn throughput(&self, plan: &Plan) -> Result<Vec<Row>> {
        let relays = [&OURS, &EPOLL, &SOCAT, &LARGE_SOCAT, &RAW];
        let goals = [Some(0.95), Some(2.0), Some(1.0), None];
        let mut rows = Vec::new();
        for way in Way::BOTH {
            plan.say(&format!("relay, VM: throughput {}", way.suffix()));
            let samples =
                turns::take(&relays, CLOSE_ROUNDS, |relay| self.door(relay).throughput(way, BYTES))?;
            let subject = Subject::higher(format!("relay.vm.throughput_{}", way.suffix()), "MB/s");
            rows.extend(subject.beside(&names(&relays), &samples, &goals));
        }
        Ok(rows)
    }

    fn connects(&self, plan: &Plan) -> Result<Vec<Row>> {
        plan.say("relay, VM: new connections");
        let relays = [&OURS, &SOCAT, &EPOLL, &RAW];
        let measure = |relay: &&Relay| self.door(relay).connects_per_second(CONNECTS, WORKERS);
        let samples = turns::take(&relays, ROUNDS, measure)?;
        let subject = Subject::higher("relay.vm.connects_per_second", "1/s");
        Ok(subject.beside(&names(&relays), &samples, &[Some(2.0), Some(0.95), None]))
    }

    fn round_trips(&self, plan: &Plan) -> Result<Vec<Row>> {
        let relays = [&OURS, &SOCAT, &EPOLL, &RAW];
        let mut rows = Vec::new();
        for (size, name) in [(64, "64b"), (8192, "8kib")] {
            plan.say(&format!("relay, VM: round trip {name}"));
            let samples =
                turns::take(&relays, CLOSE_ROUNDS, |relay| self.door(relay).round_trips(size, ROUND_TRIPS))?;
            let p50: Vec<_> = samples.iter().map(|of| each(of, |spread| spread.p50)).collect();
            let subject = Subject::lower(format!("relay.vm.rtt_p50_{name}"), "µs");
            rows.extend(subject.beside(&names(&relays), &p50, &[Some(0.9), None, None]));
        }
        Ok(rows)
    }

    /// A health check as the platform makes it: over vsock through the relay that every image has, and over the tap.
    fn health(&self, plan: &Plan) -> Result<Vec<Row>> {
        plan.say("relay, VM: health checks");
        let vsock = Door::Vsock(self.vm.vsock_socket(), envd_api::PORT.into());
        let tap = Door::Tcp(format!("{GUEST}:{}", envd_api::PORT).parse()?);
        let floor = self.door(&EPOLL_BEFORE_ENVD);
        let routes = [(Via::Vsock, vsock), (Via::Tcp, tap), (Via::Vsock, floor)];
        let samples: Vec<Vec<Spread>> = turns::take(&routes, 7, |(via, door)| match via {
            Via::Vsock => door.health_times(50),
            Via::Tcp => self.vm.netns().enter(|| door.health_times(50)),
        })?;
        let p50: Vec<_> = samples.iter().map(|of| each(of, |spread| spread.p50)).collect();
        let subject = Subject::lower("relay.vm.health_rtt_p50", "µs");
        let names = ["vsock-relay", "TCP over the tap", EPOLL_BEFORE_ENVD.name];
        Ok(subject.beside(&names, &p50, &[Some(2.0), None]))
    }

    /// How throughput changes with the number of connections; a fork a connection is left out, being the slowest throughout.
    fn growth(&self, plan: &Plan) -> Result<Growth> {
        let relays = [&OURS, &EPOLL, &RAW];
        let mut curves: Vec<_> =
            relays.iter().map(|relay| Curve { name: relay.name.into(), points: Vec::new() }).collect();
        for count in CONNECTIONS {
            plan.say(&format!("relay, VM: {count} connections at once"));
            let measure =
                |relay: &&Relay| self.door(relay).throughput_of_many(Way::HostToGuest, BYTES / 2, count);
            for (curve, samples) in curves.iter_mut().zip(turns::take(&relays, 3, measure)?) {
                curve.points.push((count as f64, samples));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(Growth {
            name: "relay-vm-connections",
            title: "Throughput into a guest over vsock, all connections together",
            of: "connections at once",
            cost: "MB/s",
            curves,
        })
    }
}

fn names(relays: &[&Relay]) -> Vec<&'static str> {
    relays.iter().map(|relay| relay.name).collect()
}
