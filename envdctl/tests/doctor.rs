//! The doctor names the broken hop: one fault at a time, then two at once, then none; its command line is the same in
//! every scenario, values are random, faults are made by outside tools.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::semicolon_if_nothing_returned,
    reason = "helpers of tests fail like tests"
)]

mod world;

use std::process::Command;

use envdctl::doctor::hop::Hop;
use guest::control::ExitReport;
use world::{Envd, Vmm, World, between, is_root, run};

/// A fault: its name, what makes it, the hop that must be named, what must be said of it.
type Fault = (&'static str, fn(&mut World), &'static str, &'static str);

const HOST_FAULTS: &[Fault] = &[
    ("nothing listens", |world| world.end(1), "listener", "nothing listens"),
    ("an absent address", absent_address, "listener", "on no interface"),
    ("the listener is stopped", |world| signal(world.layer1.as_ref(), "STOP"), "listener", "is stopped"),
    (
        "the listener leads elsewhere",
        wrong_layer_1,
        "listener",
        "an address that the namespace does not have",
    ),
];

const NETWORK_FAULTS: &[Fault] = &[
    ("the tap is down", |world| world.in_sandbox("ip link set tap0 down"), "devices", "tap0 is down"),
    (
        "the tap has no address",
        |world| world.in_sandbox("ip addr flush dev tap0"),
        "devices",
        "tap0 has no address",
    ),
    (
        "a blackhole route",
        |world| world.in_sandbox(&format!("ip route add blackhole {}/32", world.guest.ip())),
        "devices",
        "meet a blackhole",
    ),
    (
        "the host's end is down",
        |world| world.in_host(&format!("ip link set {} down", world.veth)),
        "devices",
        "is down",
    ),
    ("the forwarder leads elsewhere", wrong_layer_2, "forwarder", "but the guest is"),
    ("the forwarder is dead", |world| world.end(2), "forwarder", "nothing listens on"),
    ("the forwarder is stopped", |world| signal(world.layer2.as_ref(), "STOP"), "forwarder", "is stopped"),
    (
        "the guest has no address",
        |world| world.in_guest("ip addr flush dev eth0"),
        "guest-address",
        "does not answer",
    ),
    ("the guest's link is down", |world| world.in_guest("ip link set eth0 down"), "devices", "tap0"),
];

const RULE_FAULTS: &[Fault] = &[
    (
        "iptables drops what goes out",
        |world| {
            world.in_sandbox(&format!("iptables -A OUTPUT -p tcp --dport {} -j DROP", world.guest.port()))
        },
        "rules",
        "drops the path",
    ),
    (
        "iptables drops what comes back",
        |world| world.in_sandbox(&format!("iptables -I INPUT -s {} -j DROP", world.guest.ip())),
        "rules",
        "drops the path",
    ),
    (
        "iptables rejects",
        |world| world.in_sandbox("iptables -A OUTPUT -o tap0 -p tcp -j REJECT --reject-with tcp-reset"),
        "rules",
        "rejects the path",
    ),
    ("a policy drops", |world| world.in_sandbox("iptables -P OUTPUT DROP"), "rules", "drops the path"),
    ("a chain of its own drops", own_chain, "rules", "drops the path"),
    (
        "raw drops",
        |world| world.in_sandbox("iptables -t raw -A PREROUTING -i tap0 -j DROP"),
        "rules",
        "drops the path",
    ),
    ("nft drops", nft_drop, "rules", "drops the path"),
    (
        "the host drops",
        |world| world.in_host(&format!("iptables -A OUTPUT -d {} -j DROP", world.entry.ip())),
        "rules",
        "drops the path",
    ),
    (
        "the host redirects",
        |world| {
            world.in_host(&format!(
                "iptables -t nat -A OUTPUT -p tcp --dport {} -j REDIRECT --to-ports 9",
                world.listen.port()
            ))
        },
        "rules",
        "sends the path elsewhere",
    ),
    (
        "an extension drops",
        |world| world.in_sandbox("iptables -A OUTPUT -p tcp -m owner --uid-owner 0 -j DROP"),
        "rules",
        "drops the path",
    ),
];

const ENVD_FAULTS: &[Fault] = &[
    ("envd is not there", World::end_envd, "port", "refuses connections"),
    ("envd hangs", |world| world.envd(Envd::Hangs), "health", "hangs"),
    ("envd fails", |world| world.envd(Envd::Fails), "health", "500"),
    ("envd resets", |world| world.envd(Envd::Resets), "health", "reset"),
    ("envd crashes again and again", crash_loop, "envd", "again and again"),
];

const VSOCK_FAULTS: &[Fault] = &[
    (
        "no vsock device",
        |world| std::fs::remove_file(&world.vmm_socket).unwrap(),
        "vsock-socket",
        "no vsock device",
    ),
    ("the VMM is gone", stale_socket, "vsock-socket", "nobody listens"),
    ("the VM is paused", |world| world.vmm(Vmm::Silent), "handshake", "no answer"),
    ("the relay is dead", |world| world.vmm(Vmm::RelayDead), "relay", "relay is dead"),
    ("an image without envd-init", |world| world.vmm(Vmm::NoPayload), "relay", "carries no envd-init"),
    ("PID 1 does not answer", |world| world.vmm(Vmm::ControlDead), "guest", "PID 1 does not answer"),
];

fn signal(child: Option<&std::process::Child>, name: &str) {
    run(&format!("kill -{name} {}", child.unwrap().id()));
}

/// The address goes away under a listener that is bound to it.
fn absent_address(world: &mut World) {
    world.end(1);
    let address = format!("10.{}.{}.2", between(20, 200), between(1, 250));
    world.in_host(&format!("ip addr add {address}/32 dev lo"));
    let at = format!("{address}:{}", world.listen.port()).parse().unwrap();
    world.layer1 = Some(World::forward(&world.host, at, world.entry));
    world.in_host(&format!("ip addr del {address}/32 dev lo"));
}

fn wrong_layer_1(world: &mut World) {
    world.end(1);
    let wrong = format!("10.{}.7.9:{}", between(20, 200), world.entry.port()).parse().unwrap();
    world.layer1 = Some(World::forward(&world.host, world.listen, wrong));
}

fn wrong_layer_2(world: &mut World) {
    world.end(2);
    let wrong = format!("169.254.{}.9:{}", between(1, 250), world.guest.port()).parse().unwrap();
    world.layer2 = Some(World::forward(&world.sandbox, world.entry, wrong));
}

fn own_chain(world: &mut World) {
    for line in ["-N guard", "-A guard -m conntrack --ctstate NEW -j DROP", "-A OUTPUT -o tap+ -j guard"] {
        world.in_sandbox(&format!("iptables {line}"));
    }
}

fn nft_drop(world: &mut World) {
    world.in_sandbox("nft add table inet t");
    let chain = "add chain inet t c { type filter hook output priority -5 ; }";
    let rule = format!(
        "add rule inet t c ip daddr {} tcp dport {{ 22, {} }} drop",
        world.guest.ip(),
        world.guest.port()
    );
    for line in [chain, &rule] {
        let status =
            Command::new("ip").args(["netns", "exec", &world.sandbox, "nft", line]).status().unwrap();
        assert!(status.success(), "nft {line}");
    }
}

fn crash_loop(world: &mut World) {
    let mut status = world.status.lock().unwrap();
    let now = status.now_ns;
    let envd = status.envd.as_mut().unwrap();
    envd.restarts = 7;
    envd.last_exit = Some(ExitReport {
        service: "envd".into(),
        pid: 70,
        status: Some(2),
        signal: None,
        core: false,
        oom: false,
        uptime_ms: 300,
        restarts: 7,
        peak_memory_bytes: None,
        reason: None,
        last_lines: vec!["panic: boom\x1b[2J".into()],
        at_ns: now - 1_000_000_000,
    });
}

fn stale_socket(world: &mut World) {
    std::fs::remove_file(&world.vmm_socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&world.vmm_socket).unwrap());
}

fn each(faults: &[Fault]) {
    if !is_root() {
        return;
    }
    for (name, make, hop, said) in faults {
        eprintln!("fault: {name}");
        let mut world = World::new();
        make(&mut world);
        world.doctor(&[]).assert_first(hop, said);
    }
}

#[test]
fn faults_of_the_listener_are_named_first() {
    each(HOST_FAULTS);
}

#[test]
fn faults_between_host_and_guest_are_named_first() {
    each(NETWORK_FAULTS);
}

#[test]
fn rules_in_the_path_are_named_first() {
    each(RULE_FAULTS);
}

#[test]
fn faults_of_envd_are_named_first() {
    each(ENVD_FAULTS);
}

#[test]
fn faults_of_the_way_by_vsock_are_named_first() {
    each(VSOCK_FAULTS);
}

#[test]
fn a_namespace_that_is_gone_is_named() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    world.end(2);
    run(&format!("ip netns del {}", world.sandbox));
    world.doctor(&[]).assert_first("namespace", "there is no network namespace");
}

#[test]
fn a_proxy_that_takes_localhost_away_is_named() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let proxy = format!("http://127.0.0.1:{}", between(31_000, 32_000));
    world.doctor(&[("HTTP_PROXY", &proxy)]).assert_first("proxy", "HTTP_PROXY=http://127.0.0.1:");
    world.doctor(&[("HTTP_PROXY", &proxy), ("NO_PROXY", "localhost,127.0.0.1")]).assert_well();
}

/// Rules, devices and listeners that have nothing to do with the path are no reason to cry.
#[test]
fn where_all_is_well_the_doctor_is_silent() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    world.doctor(&[]).assert_well();
    for line in [
        "-A OUTPUT -p udp -j DROP",
        "-A INPUT -p tcp --dport 22 -j DROP",
        "-A OUTPUT -d 192.0.2.0/24 -j REJECT",
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "-t nat -A POSTROUTING -o tap0 -j MASQUERADE",
    ] {
        world.in_sandbox(&format!("iptables {line}"));
    }
    world.in_sandbox("ip tuntap add spare mode tap");
    let other = format!("127.0.0.1:{}", between(33_000, 34_000)).parse().unwrap();
    let child = World::forward(&world.sandbox, other, "192.0.2.1:80".parse().unwrap());
    world.keep(child);
    world.doctor(&[]).assert_well();
}

/// Connected and then closed is the failure that this tool is for: it is told as one even where nothing behind the listener was
/// given or can be told from its neighbours.
#[test]
fn a_listener_that_serves_nobody_is_named_though_nothing_behind_it_is_found() {
    if !is_root() {
        return;
    }
    let (mut world, neighbour) = (World::new(), World::new());
    for either in [&world, &neighbour] {
        either.in_sandbox("ip tuntap add spare mode tap");
    }
    world.end(1);
    let child = World::serve_nobody(&world.host, world.listen);
    world.keep(child);
    world.doctor_with(&[], &[]).assert_first("listener", "what lies behind it was not found");
}

/// Of two faults the one that a request meets first comes first.
#[test]
fn of_two_faults_the_earlier_is_named_first() {
    if !is_root() {
        return;
    }
    let place = |fault: &&Fault| Hop::ALL.iter().position(|hop| hop.name() == fault.2);
    let mut all: Vec<&Fault> =
        [HOST_FAULTS, NETWORK_FAULTS, RULE_FAULTS, ENVD_FAULTS, VSOCK_FAULTS].into_iter().flatten().collect();
    all.sort_by_key(place);
    for _ in 0..6 {
        let first = between(0, all.len() as u64 - 1) as usize;
        let second = between(first as u64 + 1, all.len() as u64) as usize;
        let ((name, make, hop, _), (other, spoil, later, _)) = (all[first], all[second]);
        // Two faults of one hop, or two of the stand-in for the VMM, cannot be had at once.
        let both_vsock = [name, other].iter().all(|name| VSOCK_FAULTS.iter().any(|fault| fault.0 == **name));
        if hop == later || both_vsock {
            continue;
        }
        eprintln!("faults: {name}; {other}");
        let mut world = World::new();
        make(&mut world);
        spoil(&mut world);
        world.doctor(&[]).assert_first(hop, "");
    }
}
