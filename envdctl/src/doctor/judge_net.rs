//! Judges the hops from the namespace to the guest's port: namespace, devices, forwarder, address, port, health.

use std::net::{IpAddr, SocketAddr};

use super::{
    cause,
    facts::{Facts, GuestFacts, Inside, NamespaceFacts, is_entry},
    forwarder,
    hop::{Finding, Hop},
    judge_rules,
    plan::{GUEST, Netns, holder},
    probe::{Health, Ping},
};
use crate::{
    host::{
        net::{Link, Route},
        process,
        socket::Listener,
    },
    netns::NetnsError,
    text::sanitise,
};

/// The tap's own address on the platform, with its prefix.
const TAP: &str = "169.254.0.22/30";
/// Queueing disciplines that lose or hold packets on purpose.
const LOSSY: [&str; 3] = ["netem", "plug", "blackhole"];

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

/// Interfaces, addresses and routes inside the namespace, and from this host into it.
pub fn devices(facts: &Facts) -> Finding {
    let Inside::Entered(inside) = &facts.namespace else {
        return Finding::skipped(Hop::Devices, "no namespace was entered");
    };
    let Some(netns) = &facts.plan.netns else { return Finding::skipped(Hop::Devices, "no namespace") };
    let check = Devices { facts, inside, netns, guest: facts.plan.guest.ip() };
    check.tap().or_else(|| check.veths()).or_else(|| check.way_in()).unwrap_or_else(|| check.well())
}

struct Devices<'a> {
    facts: &'a Facts,
    inside: &'a NamespaceFacts,
    netns: &'a Netns,
    guest: IpAddr,
}

impl Devices<'_> {
    fn broken(&self, what: String) -> Finding {
        Finding::broken(Hop::Devices, what).because(self.interfaces())
    }

    fn interfaces(&self) -> String {
        let all: Vec<String> = self.inside.links.iter().filter(|link| !link.loopback).map(describe).collect();
        let all = if all.is_empty() { "none but lo".to_owned() } else { all.join("; ") };
        format!("interfaces of {}: {all}", self.netns.label())
    }

    /// `ip` inside the namespace.
    fn ip(&self, command: &str) -> String {
        match &self.netns.name {
            Some(name) => format!("ip -n {name} {command}"),
            None => self.netns.run(&format!("ip {command}")),
        }
    }

    /// The interface that leads to the guest: the one with the guest's network, else the tap.
    fn to_guest(&self) -> Option<&Link> {
        let in_network = |link: &&Link| {
            link.addresses.iter().any(|a| a.prefix > 0 && a.contains(self.guest) && a.address != self.guest)
        };
        let is_tap = |link: &&Link| link.kind.as_deref() == Some("tun");
        let links = || self.inside.links.iter().filter(|link| !link.loopback);
        let routed = match self.facts.guest.as_ref().map(|guest| &guest.route) {
            Some(Ok(Route::Via { interface, gateway: None, .. })) => Some(*interface),
            _ => None,
        };
        links()
            .find(|link| is_tap(link) && in_network(link))
            .or_else(|| links().find(|link| is_tap(link) && Some(link.index) == routed))
            .or_else(|| links().find(|link| link.name == "tap0"))
            .or_else(|| links().find(is_tap))
            .or_else(|| links().find(in_network))
    }

    fn tap(&self) -> Option<Finding> {
        let Some(link) = self.to_guest() else {
            return Some(
                self.broken(format!("{} has no tap: the VM's network device is missing", self.netns.label()))
                    .then_do("# start the VM anew: its tap is made before it boots; by hand:")
                    .then_do(self.ip("tuntap add tap0 mode tap"))
                    .then_do(self.ip(&format!("addr add {TAP} dev tap0")))
                    .then_do(self.ip("link set tap0 up")),
            );
        };
        let name = &link.name;
        if !link.up {
            return Some(
                self.broken(format!("{name} is down")).then_do(self.ip(&format!("link set {name} up"))),
            );
        }
        self.own_address()
            .or_else(|| self.address(link))
            .or_else(|| self.route(link))
            .or_else(|| self.carrier(link))
            .or_else(|| self.queue(link))
    }

    /// The guest's address on an interface of the namespace: packets for the guest would never leave.
    fn own_address(&self) -> Option<Finding> {
        let link =
            self.inside.links.iter().find(|link| link.addresses.iter().any(|a| a.address == self.guest))?;
        let network = link.addresses.iter().find(|a| a.address == self.guest)?;
        Some(
            self.broken(format!(
                "the guest's own address {} is on {} in the namespace: packets for it never leave",
                self.guest, link.name
            ))
            .then_do(self.ip(&format!("addr del {network} dev {}", link.name))),
        )
    }

    fn address(&self, link: &Link) -> Option<Finding> {
        let bridge = self.inside.links.iter().find(|other| Some(other.index) == link.controller);
        let addresses = || link.addresses.iter().chain(bridge.map(|b| &b.addresses).into_iter().flatten());
        let v4 = addresses().filter(|network| network.address.is_ipv4());
        let on_way = self.goes_by(link);
        if v4.clone().any(|network| network.contains(self.guest)) || on_way && v4.clone().next().is_some() {
            return None;
        }
        let has: Vec<String> = v4.map(ToString::to_string).collect();
        let has = if has.is_empty() { "no address".to_owned() } else { format!("only {}", has.join(", ")) };
        let wanted = if self.guest == GUEST.ip() { TAP.to_owned() } else { neighbour_of(self.guest) };
        Some(
            self.broken(format!("{} has {has}, none in the network of the guest {}", link.name, self.guest))
                .then_do(self.ip(&format!("addr add {wanted} dev {}", link.name))),
        )
    }

    /// Whether the kernel sends packets for the guest out of this interface (or the bridge that it is a port of).
    fn goes_by(&self, link: &Link) -> bool {
        let route = self.facts.guest.as_ref().and_then(|guest| guest.route.as_ref().ok());
        matches!(route, Some(Route::Via { interface, gateway: None, .. })
            if *interface == link.index || Some(*interface) == link.controller)
    }

    fn route(&self, link: &Link) -> Option<Finding> {
        if self.goes_by(link) {
            return None;
        }
        let route = self.facts.guest.as_ref()?.route.as_ref().ok()?;
        let what = match route {
            Route::Via { interface, gateway, .. } => {
                let name = self
                    .inside
                    .links
                    .iter()
                    .find(|l| l.index == *interface)
                    .map_or("another interface", |l| &l.name);
                let gateway = gateway.map(|gateway| format!(" by way of {gateway}")).unwrap_or_default();
                format!(
                    "packets for the guest {} go out of {name}{gateway}, not of {}",
                    self.guest, link.name
                )
            }
            Route::Local => format!("packets for the guest {} are kept in the namespace itself", self.guest),
            Route::Nowhere { why } => format!("packets for the guest {} meet {why}", self.guest),
        };
        Some(
            self.broken(what)
                .then_do(self.ip(&format!("route get {}", self.guest)))
                .then_do(
                    self.ip("rule list; ip route show table all")
                        .replace("; ip", &format!("; {}", self.ip("").trim_end())),
                )
                .then_do(self.ip(&format!("route replace {}/32 dev {}", self.guest, link.name))),
        )
    }

    fn carrier(&self, link: &Link) -> Option<Finding> {
        if link.carrier || link.kind.as_deref() != Some("tun") {
            return None;
        }
        Some(
            self.broken(format!(
                "no process has {} open: the VM does not run, or uses another tap",
                link.name
            ))
            .then_do("pgrep -a 'firecracker|qemu'")
            .then_do("# start the VM anew"),
        )
    }

    fn queue(&self, link: &Link) -> Option<Finding> {
        let qdisc = link.qdisc.as_deref().filter(|qdisc| LOSSY.contains(qdisc))?;
        let silent = self
            .facts
            .guest
            .as_ref()
            .is_some_and(|guest| guest.ping != Ping::Answered && !guest.health.connected());
        silent.then(|| {
            self.broken(format!(
                "{} has the queueing discipline {qdisc}, which loses or holds packets",
                link.name
            ))
            .then_do(self.netns.run(&format!("tc qdisc del dev {} root", link.name)))
        })
    }

    /// Both ends of each veth: it is a pair, and either end can be down.
    fn veths(&self) -> Option<Finding> {
        self.inside
            .links
            .iter()
            .filter(|link| link.kind.as_deref() == Some("veth"))
            .find_map(|link| self.veth(link))
    }

    fn veth(&self, link: &Link) -> Option<Finding> {
        let name = &link.name;
        if !link.up {
            return Some(
                self.broken(format!("{name} is down")).then_do(self.ip(&format!("link set {name} up"))),
            );
        }
        let outside = self.facts.host.links.iter().find(|other| {
            Some(other.index) == link.peer
                && other.kind.as_deref() == Some("veth")
                && other.peer == Some(link.index)
        });
        if let Some(outside) = outside.filter(|outside| !outside.up) {
            return Some(
                self.broken(format!("{}, this host's end of {name}, is down", outside.name))
                    .then_do(format!("ip link set {} up", outside.name)),
            );
        }
        if !link.carrier {
            return Some(
                self.broken(format!("{name} has no carrier: its other end is down or gone"))
                    .then_do("ip -br link show type veth"),
            );
        }
        let has_v4 = |link: &Link| link.addresses.iter().any(|network| network.address.is_ipv4());
        let needed =
            !self.facts.plan.bridge && !self.facts.host.health.is_well() && link.controller.is_none();
        if needed && !has_v4(link) {
            return Some(
                self.broken(format!("{name} has no address: nothing can be forwarded to it"))
                    .then_do(self.ip(&format!("addr add ADDRESS/PREFIX dev {name}")))
                    .because_all(outside.map(|outside| format!("the other end: {}", describe(outside)))),
            );
        }
        None
    }

    /// The route from this host to where the namespace is entered.
    fn way_in(&self) -> Option<Finding> {
        let entry = self.facts.host.entry.as_ref().filter(|entry| !entry.health.connected())?;
        let link = self
            .inside
            .links
            .iter()
            .find(|link| link.addresses.iter().any(|a| a.address == entry.address.ip()))?;
        if link.loopback || link.kind.as_deref() != Some("veth") {
            return None;
        }
        let what = match entry.route.as_ref().ok()? {
            Route::Nowhere { why } => format!("packets of this host for {} meet {why}", entry.address.ip()),
            Route::Local => {
                format!("{} is an address of this host as well as of {}", entry.address.ip(), link.name)
            }
            Route::Via { interface, .. } => {
                let found = self.facts.host.links.iter().find(|other| other.index == *interface)?;
                let right = found.index == link.peer?
                    || found.controller.is_some()
                    || found.kind.as_deref() == Some("bridge");
                if right {
                    return None;
                }
                format!(
                    "packets of this host for {} go out of {}, not to {}",
                    entry.address.ip(),
                    found.name,
                    link.name
                )
            }
        };
        let outside = self.facts.host.links.iter().find(|other| Some(other.index) == link.peer);
        let command =
            outside.map(|outside| format!("ip route replace {}/32 dev {}", entry.address.ip(), outside.name));
        let mut finding = self
            .broken(what)
            .because_all(outside.map(|outside| format!("this host's end: {}", describe(outside))));
        finding.commands.push(format!("ip route get {}", entry.address.ip()));
        finding.commands.extend(command);
        Some(finding)
    }

    fn well(&self) -> Finding {
        let name = self.to_guest().map_or("", |link| &link.name);
        Finding::ok(Hop::Devices, format!("{name} is up and leads to {}", self.guest))
            .because(self.interfaces())
    }
}

/// `tap0 tun up 169.254.0.22/30`.
fn describe(link: &Link) -> String {
    let kind = link.kind.as_deref().unwrap_or("device");
    let state = match (link.up, link.carrier) {
        (false, _) => "down",
        (true, false) => "up without carrier",
        (true, true) => "up",
    };
    let addresses: Vec<String> =
        link.addresses.iter().filter(|a| a.address.is_ipv4()).map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(" ") };
    format!("{} {kind} {state} {addresses}", link.name)
}

/// The other address of the /30 that the platform gives to a tap.
fn neighbour_of(guest: IpAddr) -> String {
    match guest {
        IpAddr::V4(address) => {
            let number = address.to_bits();
            let other = if number & 3 == 1 { number + 1 } else { (number & !3) + 1 };
            format!("{}/30", std::net::Ipv4Addr::from_bits(other))
        }
        IpAddr::V6(_) => "ADDRESS/PREFIX".to_owned(),
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
