//! Judges packet filter rules: leads the packets of each part of the path through the chains that they meet.

use std::net::{IpAddr, SocketAddr};

use vsock_relay::endpoint::Endpoint;

use super::{
    facts::{Counted, Facts, Inside},
    hop::{Finding, Hop},
    plan::Netns,
    probe::{Health, Ping},
    rules::{self, ACK, Action, Block, Hook, PSH, Packet, SYN},
};
use crate::host::net::{Link, Route};

/// One connection of the path, and how it fared when it was tried.
struct Flow<'a> {
    /// For people: `localhost to the listener`.
    label: String,
    netns: Option<&'a Netns>,
    rules: &'a Counted,
    live: &'a Health,
    client: IpAddr,
    server: SocketAddr,
    /// The interfaces that packets to the server leave by and enter by, where they pass this namespace's hooks.
    out: Option<String>,
    into: Option<String>,
    /// Hooks that packets to the server meet, in order.
    hooks: &'static [Hook],
    /// Whether an address rewrite to this address is the way as it should be.
    rewrite_to: Option<SocketAddr>,
}

const LOCAL: &[Hook] = &[Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input];
const OUTGOING: &[Hook] = &[Hook::Output, Hook::Postrouting, Hook::Egress];
const FORWARDED: &[Hook] = &[Hook::Forward];
const INCOMING: &[Hook] = &[Hook::Ingress, Hook::Prerouting, Hook::Input];

/// A rule in the way of a flow.
struct Hit {
    label: String,
    command: String,
    block: Block,
    /// Packets that it counted while the path was probed.
    moved: Option<u64>,
}

/// Which rule stands in the way, on this host or in the namespace.
pub fn judge(facts: &Facts) -> Finding {
    let hits: Vec<Hit> = flows(facts).iter().flat_map(hits).collect();
    let arp = arp_hits(facts);
    let sure =
        hits.iter().chain(&arp).find(|hit| hit.block.certain || hit.moved.is_some_and(|moved| moved > 0));
    if let Some(hit) = sure {
        return broken(hit);
    }
    let gaps: Vec<String> = gaps(facts).collect();
    if let Some(hit) = hits.iter().chain(&arp).find(|hit| hit.moved.is_none()) {
        return Finding::unknown(
            Hop::Rules,
            "a rule may stand in the way; whether it meets the path cannot be told",
        )
        .because(say(hit))
        .then_do(format!("# to find out, take it out for a moment: {}", hit.command));
    }
    if let Some(gap) = gaps.first() {
        return Finding::unknown(Hop::Rules, gap.clone());
    }
    let chains =
        |counted: &Counted| counted.after.chains.iter().map(|chain| chain.rules.len()).sum::<usize>();
    let inside = match &facts.namespace {
        Inside::Entered(inside) => chains(&inside.rules),
        _ => 0,
    };
    let count = chains(&facts.host.rules) + inside;
    Finding::ok(
        Hop::Rules,
        match count {
            0 => "no packet filter rules".to_owned(),
            1 => "the one packet filter rule does not touch the path".to_owned(),
            count => format!("none of {count} packet filter rules stops the path"),
        },
    )
}

fn gaps(facts: &Facts) -> impl Iterator<Item = String> {
    let inside = match &facts.namespace {
        Inside::Entered(inside) => inside.rules.after.gaps.clone(),
        _ => Vec::new(),
    };
    facts.host.rules.after.gaps.clone().into_iter().chain(inside)
}

fn say(hit: &Hit) -> String {
    let moved = match hit.moved {
        Some(0) | None => String::new(),
        Some(moved) => format!(" (it counted {moved} packets while the path was probed)"),
    };
    format!("{}: table {}, chain {}: {}{moved}", hit.label, hit.block.table, hit.block.chain, hit.block.text)
}

fn broken(hit: &Hit) -> Finding {
    let what = match &hit.block.action {
        Action::Redirect { to } => format!("sends the path elsewhere ({to})"),
        Action::Reject => "rejects the path".to_owned(),
        _ => "drops the path".to_owned(),
    };
    Finding::broken(Hop::Rules, format!("a rule {what}: {}", hit.block.text))
        .because(say(hit))
        .then_do(hit.command.clone())
}

/// Whether rules of this host explain that the listener cannot be connected to.
pub fn stops_listener(facts: &Facts) -> bool {
    listener_flow(facts).is_some_and(|flow| hits(&flow).iter().any(|hit| hit.block.certain))
}

/// Rewrites that the namespace's rules do to packets for `address`.
pub fn redirects(facts: &Facts, address: SocketAddr) -> Vec<String> {
    let Inside::Entered(inside) = &facts.namespace else { return Vec::new() };
    let veth = inside.links.iter().find(|link| link.kind.as_deref() == Some("veth"));
    let packet = Packet {
        source: address.ip(),
        destination: address.ip(),
        source_port: None,
        destination_port: Some(address.port()),
        input: veth.map(|link| link.name.clone()),
        output: None,
        established: false,
        flags: SYN,
    };
    let found = rules::blocks(&inside.rules.after.chains, Hook::Prerouting, &packet);
    found
        .into_iter()
        .filter_map(|block| match block.action {
            Action::Redirect { to } => Some(to),
            _ => None,
        })
        .collect()
}

fn flows(facts: &Facts) -> Vec<Flow<'_>> {
    let parts = [
        listener_flow(facts),
        entry_flow_host(facts),
        entry_flow_inside(facts),
        forwarded_flow(facts),
        guest_flow(facts),
    ];
    parts.into_iter().flatten().collect()
}

/// From an SDK on this host to the listener.
fn listener_flow(facts: &Facts) -> Option<Flow<'_>> {
    let Endpoint::Tcp(listen) = facts.plan.listen else { return None };
    let server = if listen.ip().is_unspecified() {
        SocketAddr::new([127, 0, 0, 1].into(), listen.port())
    } else {
        listen
    };
    Some(Flow {
        label: "from this host to the listener".into(),
        netns: None,
        rules: &facts.host.rules,
        live: &facts.host.health,
        client: server.ip(),
        server,
        out: Some("lo".into()),
        into: Some("lo".into()),
        hooks: LOCAL,
        rewrite_to: None,
    })
}

/// From this host into the namespace, as it leaves here.
fn entry_flow_host(facts: &Facts) -> Option<Flow<'_>> {
    let entry = facts.host.entry.as_ref()?;
    let Ok(Route::Via { interface, source, .. }) = &entry.route else { return None };
    let name = name_of(&facts.host.links, *interface);
    Some(Flow {
        label: "from this host into the namespace".into(),
        netns: None,
        rules: &facts.host.rules,
        live: &entry.health,
        client: source.unwrap_or(entry.address.ip()),
        server: entry.address,
        out: name,
        into: None,
        hooks: OUTGOING,
        rewrite_to: None,
    })
}

/// The same as it arrives in the namespace.
fn entry_flow_inside(facts: &Facts) -> Option<Flow<'_>> {
    let entry = facts.host.entry.as_ref()?;
    let Inside::Entered(inside) = &facts.namespace else { return None };
    let link = inside
        .links
        .iter()
        .find(|link| link.addresses.iter().any(|network| network.address == entry.address.ip()))
        .or_else(|| inside.links.iter().find(|link| link.kind.as_deref() == Some("veth")))?;
    let source = match &entry.route {
        Ok(Route::Via { source: Some(source), .. }) => *source,
        _ => entry.address.ip(),
    };
    Some(Flow {
        label: "arriving in the namespace".into(),
        netns: facts.plan.netns.as_ref(),
        rules: &inside.rules,
        live: &entry.health,
        client: source,
        server: entry.address,
        out: None,
        into: Some(link.name.clone()),
        hooks: INCOMING,
        rewrite_to: Some(facts.plan.guest),
    })
}

/// Where the namespace's rules rewrite the address, packets are forwarded to the guest rather than received.
fn forwarded_flow(facts: &Facts) -> Option<Flow<'_>> {
    let guest = facts.plan.guest;
    let arriving = entry_flow_inside(facts)?;
    let rewritten = redirects(facts, arriving.server);
    if !rewritten.iter().any(|to| to.split(':').next() == Some(guest.ip().to_string().as_str())) {
        return None;
    }
    let Inside::Entered(inside) = &facts.namespace else { return None };
    let Ok(Route::Via { interface, .. }) = &facts.guest.as_ref()?.route else { return None };
    let out = name_of(&inside.links, *interface);
    Some(Flow { label: "forwarded to the guest".into(), server: guest, out, hooks: FORWARDED, ..arriving })
}

/// From the namespace (or this host) to the guest.
fn guest_flow(facts: &Facts) -> Option<Flow<'_>> {
    let guest = facts.guest.as_ref()?;
    let (rules, links, netns) = match &facts.namespace {
        Inside::Entered(inside) => (&inside.rules, &inside.links, facts.plan.netns.as_ref()),
        _ => (&facts.host.rules, &facts.host.links, None),
    };
    let (out, client) = match &guest.route {
        Ok(Route::Via { interface, source, .. }) => {
            (name_of(links, *interface), source.unwrap_or(facts.plan.guest.ip()))
        }
        _ => return None,
    };
    Some(Flow {
        label: "to the guest".into(),
        netns,
        rules,
        live: &guest.health,
        client,
        server: facts.plan.guest,
        out,
        into: None,
        hooks: OUTGOING,
        rewrite_to: None,
    })
}

fn name_of(links: &[Link], index: u32) -> Option<String> {
    links.iter().find(|link| link.index == index).map(|link| link.name.clone())
}

impl Flow<'_> {
    /// The packets of the connection that pass here, each with its hooks: those that a live connection disproves
    /// as stopped are left out.
    fn packets(&self) -> Vec<(Packet, Vec<Hook>)> {
        let answered = matches!(self.live, Health::Answer { .. });
        if answered {
            return Vec::new();
        }
        let mut packets = Vec::new();
        if !self.live.connected() {
            packets.push((self.request(false, SYN), self.hooks.to_vec()));
            packets.push((self.reply(SYN | ACK), self.reply_hooks()));
        }
        packets.push((self.request(true, PSH | ACK), self.hooks.to_vec()));
        packets.push((self.reply(PSH | ACK), self.reply_hooks()));
        packets
    }

    /// A packet of the client's.
    fn request(&self, established: bool, flags: u8) -> Packet {
        Packet {
            source: self.client,
            destination: self.server.ip(),
            source_port: None,
            destination_port: Some(self.server.port()),
            input: self.into.clone(),
            output: self.out.clone(),
            established,
            flags,
        }
    }

    /// A packet of the server's.
    fn reply(&self, flags: u8) -> Packet {
        Packet {
            source: self.server.ip(),
            destination: self.client,
            source_port: Some(self.server.port()),
            destination_port: None,
            input: self.out.clone(),
            output: self.into.clone(),
            established: true,
            flags,
        }
    }

    fn reply_hooks(&self) -> Vec<Hook> {
        match self.hooks {
            hooks if hooks == OUTGOING => INCOMING.to_vec(),
            hooks if hooks == INCOMING => OUTGOING.to_vec(),
            hooks => hooks.to_vec(),
        }
    }

    /// Whether a rewrite leads where it should.
    fn is_wanted(&self, action: &Action) -> bool {
        let (Action::Redirect { to }, Some(wanted)) = (action, self.rewrite_to) else { return false };
        to.split(':').next().is_some_and(|address| address == wanted.ip().to_string())
    }
}

fn hits(flow: &Flow<'_>) -> Vec<Hit> {
    let mut found: Vec<Hit> = Vec::new();
    for (packet, hooks) in flow.packets() {
        for hook in hooks {
            let packet = at_hook(&packet, hook);
            for block in rules::blocks(&flow.rules.after.chains, hook, &packet) {
                let known =
                    found.iter().any(|hit| hit.block.delete == block.delete && hit.block.text == block.text);
                if !known && !flow.is_wanted(&block.action) {
                    found.push(hit(&flow.label, flow.netns, flow.rules, block));
                }
            }
        }
    }
    found.sort_by_key(|hit| !hit.block.certain);
    found
}

/// A hook knows the interface of its side alone.
fn at_hook(packet: &Packet, hook: Hook) -> Packet {
    let mut packet = packet.clone();
    match hook {
        Hook::Ingress | Hook::Prerouting | Hook::Input => packet.output = None,
        Hook::Output | Hook::Postrouting | Hook::Egress => packet.input = None,
        Hook::Forward => {}
    }
    packet
}

fn hit(label: &str, netns: Option<&Netns>, counted: &Counted, block: Block) -> Hit {
    let before = packets_of(&counted.before, &block);
    let moved = block.packets.zip(before).map(|(after, before)| after.saturating_sub(before));
    let command = netns.map_or_else(|| block.delete.clone(), |netns| netns.run(&block.delete));
    Hit { label: label.to_owned(), command, moved, block }
}

fn packets_of(rules: &rules::Rules, block: &Block) -> Option<u64> {
    let chain = rules.chains.iter().find(|chain| chain.table == block.table && chain.name == block.chain)?;
    match chain.rules.iter().find(|rule| rule.delete == block.delete) {
        Some(rule) => rule.packets,
        None => chain.policy_packets,
    }
}

/// Rules against ARP matter where the guest stays silent.
fn arp_hits(facts: &Facts) -> Vec<Hit> {
    let Some(guest) = &facts.guest else { return Vec::new() };
    if guest.ping == Ping::Answered || guest.health.connected() {
        return Vec::new();
    }
    let (rules, netns) = match &facts.namespace {
        Inside::Entered(inside) => (&inside.rules, facts.plan.netns.as_ref()),
        _ => (&facts.host.rules, None),
    };
    rules::arp_blocks(&rules.after.chains)
        .into_iter()
        .map(|block| hit("ARP to the guest", netns, rules, block))
        .collect()
}
