//! Judges the hop of the devices: tap and veth, their addresses, and the routes that lead over them.

use std::net::IpAddr;

use super::{
    facts::{Facts, Inside, NamespaceFacts},
    hop::{Finding, Hop},
    plan::{GUEST, Netns},
    probe::Ping,
};
use crate::host::net::{Link, Route};

/// The tap's own address on the platform, with its prefix.
const TAP: &str = "169.254.0.22/30";
/// Queueing disciplines that lose or hold packets on purpose.
const LOSSY: [&str; 3] = ["netem", "plug", "blackhole"];

/// Interfaces, addresses and routes inside the namespace, and from this host into it.
pub fn judge(facts: &Facts) -> Finding {
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
