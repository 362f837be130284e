//! Judges the hops from the namespace to the guest's port: namespace, forwarder, address, port, health.

use std::net::{IpAddr, SocketAddr};

use super::{
    cause,
    facts::{Facts, GuestFacts, Inside, NamespaceFacts, is_entry},
    forwarder,
    hop::{Finding, Hop},
    judge_rules,
    plan::{Netns, holder},
    probe::{Health, Ping},
};
use crate::{
    host::{process, socket::Listener},
    netns::NetnsError,
    text::sanitise,
};

/// The namespace: is it there, and may it be entered.
pub fn namespace(facts: &Facts) -> Finding {
    let Some(netns) = &facts.plan.netns else {
        let candidates = &facts.plan.candidates;
        if facts.plan.direct {
            return Finding::skipped(Hop::Namespace, "the route leads from this host's own namespace");
        }
        if candidates.is_empty() {
            return Finding::skipped(
                Hop::Namespace,
                "none given, and none with a tap found under /run/netns",
            );
        }
        return Finding::unknown(
            Hop::Namespace,
            format!("{} namespaces have a tap: {}", candidates.len(), candidates.join(", ")),
        )
        .then_do("# name one: envdctl doctor --netns NAME");
    };
    match &facts.namespace {
        Inside::Entered(_) => entered(facts, netns),
        Inside::Failed(error) => not_entered(netns, error),
        Inside::None => Finding::skipped(Hop::Namespace, "none"),
    }
}

fn entered(facts: &Facts, netns: &Netns) -> Finding {
    let inode = process::inode_of(&netns.path);
    let inside = facts.monitors.iter().filter(|monitor| monitor.netns == inode && inode.is_some());
    Finding::ok(Hop::Namespace, format!("{} is there", netns.label()))
        .because_all(inside.map(|monitor| format!("{} runs in it", monitor.process.label())))
}

fn not_entered(netns: &Netns, error: &NetnsError) -> Finding {
    let label = netns.label();
    match error {
        NetnsError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Finding::broken(Hop::Namespace, format!("there is no network namespace {label}"))
                .because(existing())
                .then_do("ip netns list")
                .then_do("# the sandbox is gone, or lives in another namespace: name that one")
        }
        NetnsError::NotOne { .. } => Finding::broken(
            Hop::Namespace,
            format!(
                "{} is a name without a namespace (left over after it was deleted)",
                netns.path.display()
            ),
        )
        .then_do(format!("ip netns del {label}")),
        NetnsError::NotPermitted { .. } => {
            Finding::unknown(Hop::Namespace, "entering a namespace needs root")
                .then_do("# run envdctl doctor as root")
        }
        error => Finding::unknown(Hop::Namespace, crate::exit::chain(error)),
    }
}

fn existing() -> String {
    let names: Vec<String> = std::fs::read_dir(vsock_relay::endpoint::NETNS_DIR)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    if names.is_empty() {
        "there is none at all under /run/netns".into()
    } else {
        format!("there are: {}", names.join(", "))
    }
}

/// What listens inside the namespace, and where it leads.
pub fn forwarder(facts: &Facts) -> Finding {
    let Inside::Entered(inside) = &facts.namespace else {
        return Finding::skipped(Hop::Forwarder, "no namespace was entered");
    };
    let Some(netns) = &facts.plan.netns else { return Finding::skipped(Hop::Forwarder, "no namespace") };
    let listeners = match &inside.listeners {
        Ok(listeners) => listeners,
        Err(error) => {
            return Finding::unknown(Hop::Forwarder, format!("its sockets cannot be read: {error}"));
        }
    };
    let entries: Vec<&Listener> =
        listeners.iter().filter(|l| is_entry(l, &facts.plan, listeners.len())).collect();
    if let Some(broken) = entries.iter().find_map(|listener| bad_forwarder(facts, inside, netns, listener)) {
        return broken;
    }
    match entries.first() {
        None => no_forwarder(facts, netns),
        Some(listener) => silent_forwarder(facts, netns, listener).unwrap_or_else(|| {
            let target = forwarder::target_of(listener)
                .map(|target| format!(" and leads to {}", sanitise(&target.text)));
            Finding::ok(
                Hop::Forwarder,
                format!("{} listens on {}{}", who(listener), listener.address, target.unwrap_or_default()),
            )
        }),
    }
}

fn who(listener: &Listener) -> String {
    listener.owner.as_ref().map_or_else(|| "a process that cannot be seen".to_owned(), process::Owner::label)
}

fn socat(facts: &Facts, netns: &Netns, at: SocketAddr) -> String {
    let bind = if at.ip().is_unspecified() { String::new() } else { format!(",bind={}", at.ip()) };
    netns.run(&format!("socat TCP4-LISTEN:{}{bind},reuseaddr,fork TCP4:{}", at.port(), facts.plan.guest))
}

fn bad_forwarder(
    facts: &Facts,
    inside: &NamespaceFacts,
    netns: &Netns,
    listener: &Listener,
) -> Option<Finding> {
    let bound = listener.address;
    let broken = |what: String| {
        Finding::broken(Hop::Forwarder, what).because_all(
            listener.owner.as_ref().map(|owner| format!("its command line: {}", owner.command())),
        )
    };
    let end = listener.owner.as_ref().map(|owner| format!("kill {}", owner.pid));
    let with_end = |mut finding: Finding, at: SocketAddr| {
        finding.commands.extend(end.clone());
        finding.then_do(socat(facts, netns, at))
    };
    if let Some(owner) = listener.owner.as_ref().filter(|owner| owner.stopped) {
        return Some(
            broken(format!("{} holds {bound} but is stopped by a signal or a debugger", owner.label()))
                .then_do(format!("kill -CONT {}", owner.pid)),
        );
    }
    if let Some(target) = forwarder::target_of(listener)
        && let Some(address) = target.address
        && address != facts.plan.guest
    {
        let what = format!(
            "{} on {bound} forwards to {address}, but the guest is {}",
            who(listener),
            facts.plan.guest
        );
        return Some(with_end(broken(what), bound));
    }
    let has = |ip: IpAddr| {
        inside.links.iter().flat_map(|link| &link.addresses).any(|network| network.address == ip)
    };
    if !bound.ip().is_unspecified() && !bound.ip().is_loopback() && !has(bound.ip()) {
        let what = format!(
            "{} is bound to {bound}, an address that is on no interface of {}",
            who(listener),
            netns.label()
        );
        let veth = inside.links.iter().find(|link| link.kind.as_deref() == Some("veth"));
        let restore =
            veth.map(|veth| netns.run(&format!("ip addr add {}/PREFIX dev {}", bound.ip(), veth.name)));
        let mut finding = broken(what);
        finding.commands.extend(restore);
        return Some(finding.then_do("# or let it listen on an address that is there"));
    }
    None
}

/// Nothing listens inside. That is as it should be for our bridge, which enters the namespace itself, and where rules
/// rewrite the address.
fn no_forwarder(facts: &Facts, netns: &Netns) -> Finding {
    if facts.plan.bridge {
        return Finding::skipped(Hop::Forwarder, "none is needed: the bridge enters the namespace itself");
    }
    if facts.host.health.is_well() {
        return Finding::skipped(
            Hop::Forwarder,
            "none listens, and none is needed: the listener reaches envd",
        );
    }
    let listeners = facts.host.listeners.as_deref().unwrap_or_default();
    let held = holder(&facts.plan.listen, listeners);
    let target = held.and_then(forwarder::target_of).and_then(|target| target.address);
    let entry = target.or(facts.host.entry.as_ref().map(|entry| entry.address));
    if let Some(entry) = entry {
        let rewritten = judge_rules::redirects(facts, entry);
        if let Some(to) = rewritten.first() {
            return Finding::ok(Hop::Forwarder, format!("rules lead {entry} to {to}"));
        }
    }
    let guest_well = facts.guest.as_ref().is_some_and(|guest| guest.health.is_well());
    match target {
        Some(target) if target != facts.plan.guest => Finding::broken(
            Hop::Forwarder,
            format!("nothing listens on {target} in {}, where the listener forwards to", netns.label()),
        )
        .because_all(held.map(|held| format!("the listener is {}", who(held))))
        .then_do(socat(facts, netns, target)),
        None if held.is_some() && guest_well && facts.host.health.connected() => Finding::broken(
            Hop::Forwarder,
            format!("nothing listens in {}, and the listener does not enter it itself", netns.label()),
        )
        .because(format!("GET /health through the listener {}", facts.host.health.said()))
        .then_do(socat(facts, netns, SocketAddr::new([0, 0, 0, 0].into(), facts.plan.guest.port()))),
        _ => Finding::skipped(Hop::Forwarder, format!("nothing listens in {}", netns.label())),
    }
}

/// A forwarder that is there, with the guest well behind it, and yet does not pass on.
fn silent_forwarder(facts: &Facts, netns: &Netns, listener: &Listener) -> Option<Finding> {
    let entry = facts.host.entry.as_ref().filter(|entry| entry.address.port() == listener.address.port())?;
    let guest = facts.guest.as_ref()?;
    if entry.health.is_well() || !guest.health.is_well() || judge_rules::judge(facts).is_broken() {
        return None;
    }
    let mut finding = Finding::broken(
        Hop::Forwarder,
        format!(
            "{} on {} does not pass requests on to the guest, which is well",
            who(listener),
            listener.address
        ),
    )
    .because(format!("GET /health of {} {}", entry.address, entry.health.said()))
    .because_all(listener.owner.as_ref().map(|owner| format!("its command line: {}", owner.command())));
    finding.commands.extend(listener.owner.as_ref().map(|owner| format!("kill {}", owner.pid)));
    Some(finding.then_do(socat(facts, netns, listener.address)))
}

/// The guest's address: does anybody answer to it.
pub fn guest_address(facts: &Facts, before: Option<Hop>) -> Finding {
    let Some(guest) = &facts.guest else {
        return Finding::skipped(Hop::GuestAddress, "no namespace to ask from");
    };
    let address = facts.plan.guest.ip();
    let neighbour = neighbour_words(guest);
    if guest.ping == Ping::Answered {
        return Finding::ok(Hop::GuestAddress, format!("{address} answers ping")).because_all(neighbour);
    }
    if guest.health.connected() || guest.health == Health::Refused {
        return Finding::ok(Hop::GuestAddress, format!("{address} answers (not ping, but on its port)"))
            .because_all(neighbour);
    }
    if let Some(before) = before {
        return hidden(Hop::GuestAddress, before, &format!("{address} does not answer"));
    }
    if fresh(guest) {
        return Finding::ok(Hop::GuestAddress, format!("{address} answers ARP, though not ping"))
            .because_all(neighbour);
    }
    let mut finding = Finding::broken(
        Hop::GuestAddress,
        format!("{address} does not answer, neither to ping nor on its port"),
    )
    .because_all(neighbour)
    .because(ping_words(&guest.ping))
    .because_all(cause::network_trouble(facts));
    if let Some(trouble) = cause::network_trouble(facts) {
        finding.summary = format!("{address} does not answer: {trouble}");
    }
    finding.then_do(status_command(facts)).then_do("# the guest's own view: the line \"network\"; without vsock: its console, the lines of init about eth0")
}

fn ping_words(ping: &Ping) -> String {
    match ping {
        Ping::Answered => "ping is answered".to_owned(),
        Ping::Silent => "three pings were not answered".to_owned(),
        Ping::Unreachable { error } => format!("ping: {error}"),
        Ping::Untried { error } => format!("ping could not be tried: {error}"),
    }
}

fn neighbour_words(guest: &GuestFacts) -> Option<String> {
    let neighbour = guest.neighbour.as_ref()?;
    let mac = neighbour.mac.as_deref().unwrap_or("no answer");
    Some(format!("ARP: {mac} ({})", neighbour.state))
}

/// Whether the kernel has an answer to ARP that it made sure of while the probes ran.
fn fresh(guest: &GuestFacts) -> bool {
    // A neighbour stays "reachable" for half a minute after it was last heard of.
    guest.neighbour.as_ref().and_then(|neighbour| neighbour.confirmed).is_some_and(|age| age < guest.took)
}

fn hidden(hop: Hop, before: Hop, what: &str) -> Finding {
    Finding::unknown(hop, format!("{what}; {} (hop {}) stands before it", before.name(), before.number()))
}

/// The command that asks the guest itself, or reads what it printed.
fn status_command(facts: &Facts) -> String {
    match &facts.plan.vsock {
        Some(way) => format!("envdctl status {}", way.option()),
        None => "envdctl console -f CONSOLE.LOG".to_owned(),
    }
}

/// The port: does anybody listen.
pub fn port(facts: &Facts, before: Option<Hop>) -> Finding {
    let Some(guest) = &facts.guest else { return Finding::skipped(Hop::Port, "no namespace to ask from") };
    let target = facts.plan.guest;
    if guest.health.connected() {
        return Finding::ok(Hop::Port, format!("{target} takes connections"));
    }
    if let Some(before) = before {
        return hidden(
            Hop::Port,
            before,
            &format!("a connection to {target} {}", connect_words(&guest.health)),
        );
    }
    let trouble = cause::envd_trouble(facts);
    let what = match (&guest.health, &trouble) {
        (Health::Refused, Some(trouble)) => format!("{target} refuses connections: {trouble}"),
        (Health::Refused, None) => {
            format!("{target} refuses connections: nothing listens there in the guest")
        }
        (health, _) => format!("a connection to {target} {}: a filter in the guest?", connect_words(health)),
    };
    envd_commands(Finding::broken(Hop::Port, what), facts)
}

fn connect_words(health: &Health) -> String {
    match health {
        Health::Refused => "is refused".to_owned(),
        Health::ConnectTimeout => "is not answered".to_owned(),
        other => other.said(),
    }
}

fn envd_commands(finding: Finding, facts: &Facts) -> Finding {
    let Some(way) = &facts.plan.vsock else {
        return finding
            .then_do("# no vsock is given: look at the guest's console")
            .then_do("envdctl console CONSOLE.LOG");
    };
    let option = way.option();
    finding
        .then_do(format!("envdctl logs {option} --service envd"))
        .then_do(format!("envdctl status {option}"))
        .then_do(format!("envdctl restart envd {option}"))
}

/// envd's own answer.
pub fn health(facts: &Facts, before: Option<Hop>) -> Finding {
    let Some(guest) = &facts.guest else { return Finding::skipped(Hop::Health, "no namespace to ask from") };
    let said = guest.health.said();
    if guest.health.is_well() {
        return Finding::ok(Hop::Health, format!("GET /health {said}"));
    }
    if let Some(before) = before {
        return hidden(Hop::Health, before, &format!("GET /health {said}"));
    }
    let what = match (&guest.health, cause::envd_trouble(facts)) {
        (_, Some(trouble)) => format!("GET /health of {} {said}: {trouble}", facts.plan.guest),
        (Health::Hang, None) => format!("envd listens and hangs: GET /health of {} {said}", facts.plan.guest),
        (Health::Answer { .. }, None) => {
            format!("GET /health of {} {said} instead of 204: is it envd?", facts.plan.guest)
        }
        (_, None) => format!("GET /health of {} {said}", facts.plan.guest),
    };
    envd_commands(Finding::broken(Hop::Health, what), facts)
}
