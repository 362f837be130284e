//! The ways between host and guest break, in the guest and on the host; the bridge goes the other way, and comes back.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guest::{Guest, Stage};
use super::{Scenario, Trial};
use crate::bridge::fake::{Bridge, Vmm, get};
use crate::{Via, wait};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "eth0",
        about: "eth0 down, its address removed or doubled; the bridge goes over vsock, the console says it, it heals",
        stage: Stage::StandIn,
        full: 10,
        brief: 1,
        wears_out: false,
        waits: false,
        run: eth0,
    },
    Scenario {
        name: "tap-deleted",
        about: "the tap is deleted on the host; the bridge goes over vsock, and over TCP again after a restart of the VM",
        stage: Stage::StandIn,
        full: 1,
        brief: 0,
        wears_out: true,
        waits: false,
        run: tap_deleted,
    },
    Scenario {
        name: "vsock-socket",
        about: "the VMM's socket is replaced on the host; the next connection goes to the new one",
        stage: Stage::StandIn,
        full: 20,
        brief: 1,
        wears_out: false,
        waits: false,
        run: socket_replaced,
    },
    Scenario {
        name: "vsock-daemon",
        about: "vhost-device-vsock is killed; the bridge says so and uses TCP, and vsock again after a restart of the VM",
        stage: Stage::StandIn,
        full: 1,
        brief: 0,
        wears_out: true,
        waits: false,
        run: daemon_killed,
    },
];

/// How soon the bridge is to have gone the other way, where an answer takes no longer itself.
const CHANGE: Duration = Duration::from_secs(1);

/// Something that makes the TCP route useless.
struct Break {
    name: &'static str,
    /// In the guest.
    guest: &'static str,
    heal_guest: &'static str,
    /// On the host, arguments of `ip` in the sandbox's namespace.
    host: &'static [&'static str],
    heal_host: &'static [&'static str],
    /// What the guest's console says.
    says: Option<&'static str>,
}

const BREAKS: [Break; 4] = [
    Break {
        name: "eth0 down",
        guest: "ip link set eth0 down",
        heal_guest: "ip link set eth0 up; ip route replace default via 169.254.0.22",
        host: &[],
        heal_host: &[],
        says: Some("init: eth0 .*its link is down"),
    },
    Break {
        name: "address removed",
        guest: "ip addr flush dev eth0",
        heal_guest: "ip addr add 169.254.0.21/30 dev eth0; ip route replace default via 169.254.0.22",
        host: &[],
        heal_host: &[],
        says: Some("init: eth0 has not the address 169.254.0.21/30"),
    },
    Break {
        name: "address doubled on the host",
        guest: "true",
        heal_guest: "true",
        host: &["addr", "add", "169.254.0.21/32", "dev", "lo"],
        heal_host: &["addr", "del", "169.254.0.21/32", "dev", "lo"],
        says: None,
    },
    Break {
        name: "tap down",
        guest: "true",
        heal_guest: "true",
        host: &["link", "set", "tap0", "down"],
        heal_host: &["link", "set", "tap0", "up"],
        says: None,
    },
];

fn tcp(guest: &Guest) -> Result<String> {
    Ok(guest.vm()?.tcp_endpoint())
}

fn vsock(guest: &Guest) -> Result<String> {
    Ok(guest.vm()?.vsock_endpoint(envd_api::PORT.into()))
}

fn eth0(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let bridge = Bridge::start(&[tcp(guest)?, vsock(guest)?], &["--return-after", "1"]);
    let mut times = Vec::new();
    for turn in 1..=trial.count {
        for fault in &BREAKS {
            let name = format!("turn {turn}: {}", fault.name);
            over(&bridge, "netns:").with_context(|| format!("before {name}"))?;
            let mark = guest.vm()?.console().mark();
            guest.sh(fault.guest)?;
            if !fault.host.is_empty() {
                guest.vm()?.netns().ip(fault.host)?;
            }
            if let Some(took) = trial.attempt(&name, over(&bridge, "firecracker:")) {
                times.push(took);
            }
            if let Some(pattern) = fault.says {
                let said = guest.vm()?.console().wait_after(mark, pattern);
                trial.attempt(format!("{name}: what the console says"), said);
            }
            heal(guest, fault)?;
            trial.attempt(format!("{name}: healed"), over(&bridge, "netns:"));
        }
        trial.attempt(format!("turn {turn}: a second address"), second_address(guest));
    }
    soon(trial, "a route that broke was left", &times);
    Ok(())
}

fn heal(guest: &Guest, fault: &Break) -> Result<()> {
    if !fault.heal_host.is_empty() {
        guest.vm()?.netns().ip(fault.heal_host)?;
    }
    guest.sh(fault.heal_guest).map(drop)
}

/// It is somebody's purpose: said, and left alone.
fn second_address(guest: &Guest) -> Result<()> {
    let mark = guest.vm()?.console().mark();
    guest.sh("ip addr add 10.9.8.7/24 dev eth0")?;
    guest.vm()?.console().wait_after(mark, "init: eth0 .*but also 10.9.8.7/24")?;
    guest.serves()?;
    guest.sh("ip addr del 10.9.8.7/24 dev eth0").map(drop)
}

/// Asks until the answer comes over the route that begins so: how long that took.
fn over(bridge: &Bridge, route: &str) -> Result<Duration> {
    let begun = Instant::now();
    let what = format!("the bridge to lead over {route}");
    wait::until(&what, wait::BOUND, || {
        let served = get(&bridge.address(), "/health").is_ok();
        Ok((served && current(bridge)?.starts_with(route)).then_some(()))
    })
    .with_context(|| format!("the bridge said:\n{}", bridge.log()))?;
    Ok(begun.elapsed())
}

/// The route in use, as the bridge's metrics tell.
fn current(bridge: &Bridge) -> Result<String> {
    let page = bridge.metrics();
    let line = page
        .lines()
        .find(|line| line.starts_with("envd_bridge_route_in_use") && line.trim_end().ends_with(" 1"))
        .with_context(|| format!("no active route in\n{page}"))?;
    Ok(line.split("route=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned())
}

/// Within a second, where the machine answers at all in that time.
fn soon(trial: &mut Trial, what: &str, times: &[Duration]) {
    trial.times(what, times);
    let late = times.iter().filter(|time| **time > CHANGE).count();
    trial.figure(format!("{late} of {} later than {} s", times.len(), CHANGE.as_secs()));
    let median = super::trial::median(times).unwrap_or_default();
    trial.require(median <= CHANGE, || format!("{what} after {} ms (median)", median.as_millis()));
}

fn tap_deleted(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let bridge = Bridge::start(&[tcp(guest)?, vsock(guest)?], &["--return-after", "1"]);
    over(&bridge, "netns:")?;
    guest.vm()?.netns().ip(&["link", "del", "tap0"])?;
    let took = trial.attempt("over vsock", over(&bridge, "firecracker:"));
    soon(trial, "the route was left", &took.into_iter().collect::<Vec<_>>());
    trial.attempt("served over vsock", guest.healthy_over_vsock());
    // QEMU holds what is left of the tap: only a VM that starts anew opens another.
    let again = Guest::boot(Stage::StandIn)?;
    trial.attempt("after a restart of the VM", again.serves());
    Ok(())
}

fn daemon_killed(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let folder = crate::bridge::fake::dir();
    let link = folder.path().join("v.sock");
    symlink(guest.vm()?.vsock_socket(), &link)?;
    let way = format!("firecracker:{}:49983", link.display());
    let bridge = Bridge::start(&[way, tcp(guest)?], &["--return-after", "1"]);
    over(&bridge, "firecracker:")?;
    guest.vm()?.vsock_daemon().context("the VM has no vsock")?.kill();
    let took = trial.attempt("over TCP", over(&bridge, "netns:"));
    trial.require(bridge.log().contains(" -> netns:"), || {
        format!("the bridge does not say it:\n{}", bridge.log())
    });
    soon(trial, "the route was left", &took.into_iter().collect::<Vec<_>>());
    let answer = guest.vm()?.get(Via::Tcp, "/health");
    trial.attempt("served over TCP", answer);
    // QEMU cannot connect the device again: a VM that starts anew has it.
    let again = Guest::boot(Stage::StandIn)?;
    fs::remove_file(&link)?;
    symlink(again.vm()?.vsock_socket(), &link)?;
    trial.attempt("over vsock after a restart of the VM", over(&bridge, "firecracker:"));
    Ok(())
}

fn socket_replaced(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let folder = crate::bridge::fake::dir();
    let path = folder.path().join("v.sock");
    let real = guest.vm()?.vsock_socket();
    let bridge = Bridge::start(&[format!("firecracker:{}:49983", path.display())], &[]);
    for turn in 1..=trial.count {
        replace(&path, &real)?;
        trial.attempt(format!("turn {turn}: the VM"), answers(&bridge, ""));
        let other = Vmm::new("other");
        replace(&path, other.path())?;
        trial.attempt(format!("turn {turn}: another one"), answers(&bridge, "other"));
    }
    Ok(())
}

/// A link that is renamed over: there is no moment without one.
fn replace(path: &Path, with: &Path) -> Result<()> {
    let part = path.with_extension("part");
    symlink(with, &part)?;
    Ok(fs::rename(part, path)?)
}

/// The body that `/tag` has behind the socket that is there now; envd itself has none.
fn answers(bridge: &Bridge, tag: &str) -> Result<()> {
    let asked = || Ok(get(&bridge.address(), "/tag").ok().filter(|body| body == tag).map(drop));
    wait::until(&format!("an answer of {tag:?}"), wait::BOUND, asked)?;
    thread::sleep(Duration::from_millis(10));
    ensure!(get(&bridge.address(), "/tag")? == tag, "an answer came from the socket of before");
    Ok(())
}
