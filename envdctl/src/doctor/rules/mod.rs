//! Packet filter rules: whether one of them stops, turns away or redirects the packets of the path.
//!
//! Rules of iptables (both kinds) and of nftables are read into one model, and the packets of a connection are led
//! through the chains of a hook in the order of their priority, as the kernel does. A match that is not
//! understood makes everything after it uncertain: such a verdict is believed only when a counter moved
//! while the path was probed.

pub mod iptables;
pub mod nft;
pub mod source;

use std::{collections::BTreeSet, net::IpAddr};

pub use source::{Rules, read};

/// Where in the kernel a chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Egress,
}

impl Hook {
    /// By the name of iptables' chains or nft's hooks.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "ingress" => Self::Ingress,
            "prerouting" => Self::Prerouting,
            "input" => Self::Input,
            "forward" => Self::Forward,
            "output" => Self::Output,
            "postrouting" => Self::Postrouting,
            "egress" => Self::Egress,
            _ => return None,
        })
    }
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// `ip filter`, `inet mine`, …
    pub table: String,
    pub name: String,
    /// Where it is hooked in, and its place among the chains there; none for a chain that is jumped to.
    pub hook: Option<(Hook, i32)>,
    /// The device that an ingress or egress chain is bound to.
    pub device: Option<String>,
    /// Whether packets that no rule decided are dropped.
    pub drops: bool,
    /// Packets that the policy decided.
    pub policy_packets: Option<u64>,
    pub rules: Vec<Rule>,
    /// Whether it sees ARP rather than IP.
    pub arp: bool,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// As the tool prints it.
    pub text: String,
    /// What takes it out again.
    pub delete: String,
    pub matches: Vec<Match>,
    pub action: Action,
    /// Packets that it matched; none where the rule does not count.
    pub packets: Option<u64>,
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    pub field: Field,
    pub negated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// By name or number; `tcp` is what we send.
    Protocol(Vec<String>),
    Source(Vec<Range>),
    Destination(Vec<Range>),
    SourcePort(Vec<(u16, u16)>),
    DestinationPort(Vec<(u16, u16)>),
    /// Either port.
    AnyPort(Vec<(u16, u16)>),
    /// Names, `tap+` and `tap*` stand for any that begin so.
    In(Vec<String>),
    Out(Vec<String>),
    /// `new`, `established`, …, in lower case.
    State(BTreeSet<String>),
    /// TCP flags: which are looked at, and which of them must be set.
    Flags {
        mask: u8,
        set: u8,
    },
    /// Always so (a comment).
    Always,
    /// Not understood.
    Unknown(String),
}

/// Addresses from the first to the last, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub first: u128,
    pub last: u128,
    pub v4: bool,
}

impl Range {
    /// `10.0.0.0/8`, `10.0.0.1`, `10.0.0.0/255.0.0.0`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address: IpAddr = address.parse().ok()?;
        let bits: u32 = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => bits,
            Some(length) => length.parse().ok().or_else(|| mask_length(length))?,
        };
        let host = bits.checked_sub(length)?;
        let number = number_of(address);
        let low = if host == 128 { u128::MAX } else { (1 << host) - 1 };
        Some(Self { first: number & !low, last: number | low, v4: address.is_ipv4() })
    }

    /// From one address to another.
    pub fn between(first: &str, last: &str) -> Option<Self> {
        let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
        Some(Self { first: number_of(first), last: number_of(last), v4: first.is_ipv4() })
    }

    pub fn holds(&self, address: IpAddr) -> bool {
        let number = number_of(address);
        self.v4 == address.is_ipv4() && self.first <= number && number <= self.last
    }
}

fn mask_length(mask: &str) -> Option<u32> {
    let mask: std::net::Ipv4Addr = mask.parse().ok()?;
    let bits = mask.to_bits();
    (bits.leading_ones() + bits.trailing_zeros() == 32 || bits == 0).then(|| bits.leading_ones())
}

fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Accept,
    Drop,
    Reject,
    /// Sends it to another address or port.
    Redirect {
        to: String,
    },
    Jump(String),
    Goto(String),
    Return,
    /// Counts, logs, marks: the packet goes on.
    Continue,
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const URG: u8 = 32;

/// A packet of a TCP connection, as it passes one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    pub input: Option<String>,
    pub output: Option<String>,
    pub established: bool,
    pub flags: u8,
}

/// A rule (or a policy) that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub table: String,
    pub chain: String,
    pub text: String,
    pub delete: String,
    pub action: Action,
    /// Every condition before it was understood.
    pub certain: bool,
    pub packets: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    Maybe,
}

impl Match {
    fn test(&self, packet: &Packet) -> Truth {
        let found = match &self.field {
            Field::Protocol(names) => names.iter().any(|name| matches!(name.as_str(), "tcp" | "6" | "all")),
            Field::Source(ranges) => ranges.iter().any(|range| range.holds(packet.source)),
            Field::Destination(ranges) => ranges.iter().any(|range| range.holds(packet.destination)),
            Field::SourcePort(ports) => return self.port(ports, packet.source_port),
            Field::DestinationPort(ports) => return self.port(ports, packet.destination_port),
            Field::AnyPort(ports) => {
                let both = [packet.source_port, packet.destination_port];
                both.into_iter().flatten().any(|port| within(ports, port))
            }
            Field::In(names) => packet.input.as_ref().is_some_and(|input| named(names, input)),
            Field::Out(names) => packet.output.as_ref().is_some_and(|output| named(names, output)),
            Field::State(states) => states.contains(if packet.established { "established" } else { "new" }),
            Field::Flags { mask, set } => packet.flags & mask == *set,
            Field::Always => true,
            Field::Unknown(_) => return Truth::Maybe,
        };
        if found == self.negated { Truth::No } else { Truth::Yes }
    }

    /// A port that the kernel will choose is known only to be a high one.
    fn port(&self, ports: &[(u16, u16)], port: Option<u16>) -> Truth {
        const EPHEMERAL: u16 = 1024;
        match port {
            Some(port) if within(ports, port) != self.negated => Truth::Yes,
            Some(_) => Truth::No,
            None if ports.iter().all(|(_, last)| *last < EPHEMERAL) => {
                if self.negated {
                    Truth::Yes
                } else {
                    Truth::No
                }
            }
            None if ports.iter().any(|(first, last)| *first <= EPHEMERAL && *last == u16::MAX) => {
                if self.negated { Truth::No } else { Truth::Yes }
            }
            None => Truth::Maybe,
        }
    }
}

fn within(ports: &[(u16, u16)], port: u16) -> bool {
    ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
}

fn named(names: &[String], interface: &str) -> bool {
    names.iter().any(|name| match name.strip_suffix(['+', '*']) {
        Some(start) => interface.starts_with(start),
        None => name == interface,
    })
}

impl Rule {
    fn test(&self, packet: &Packet) -> Truth {
        let mut all = Truth::Yes;
        for condition in &self.matches {
            match condition.test(packet) {
                Truth::No => return Truth::No,
                Truth::Maybe => all = Truth::Maybe,
                Truth::Yes => {}
            }
        }
        all
    }
}

/// How a walk through chains ended for a packet.
enum Walked {
    /// Decided: it passes this base chain.
    Accepted,
    /// No rule decided.
    Through,
}

/// Leads a packet through every chain of a hook; gives back what stands in its way, the surest first.
pub fn blocks(chains: &[Chain], hook: Hook, packet: &Packet) -> Vec<Block> {
    let mut bases: Vec<&Chain> = chains
        .iter()
        .filter(|chain| chain.hook.is_some_and(|(at, _)| at == hook) && !chain.arp)
        .filter(|chain| concerns(chain, packet))
        .collect();
    bases.sort_by_key(|chain| chain.hook.map(|(_, priority)| priority));
    let (mut found, mut left) = (Vec::new(), MAX_STEPS);
    for base in bases {
        Walk { chains, packet, found: &mut found, certain: true, left: &mut left }.base(base);
        if left == 0 {
            found.push(unfollowed(base));
            break;
        }
    }
    found.sort_by_key(|block| !block.certain);
    found
}

/// What ARP chains drop; their matches are understood only where there are none.
pub fn arp_blocks(chains: &[Chain]) -> Vec<Block> {
    let drops = |chain: &Chain| -> Vec<Block> {
        let rules = chain.rules.iter().filter(|rule| rule.action == Action::Drop);
        let by_rule = rules.map(|rule| block(chain, rule, rule.matches.is_empty()));
        let by_policy = chain.drops.then(|| policy_block(chain, chain.rules.is_empty()));
        by_rule.chain(by_policy).collect()
    };
    chains.iter().filter(|chain| chain.arp && chain.hook.is_some()).flat_map(drops).collect()
}

fn concerns(chain: &Chain, packet: &Packet) -> bool {
    let family = chain.table.split(' ').next().unwrap_or_default();
    let right_family = match family {
        "ip" => packet.destination.is_ipv4(),
        "ip6" => packet.destination.is_ipv6(),
        "bridge" => false,
        _ => true,
    };
    let right_device = chain
        .device
        .as_ref()
        .is_none_or(|device| packet.input.as_ref() == Some(device) || packet.output.as_ref() == Some(device));
    right_family && right_device
}

/// Rules that a packet is led through at most. The largest rulesets have tens of thousands; but chains that jump to each other many
/// times over have more ways through them than anybody can walk.
const MAX_STEPS: usize = 200_000;

struct Walk<'a> {
    chains: &'a [Chain],
    packet: &'a Packet,
    found: &'a mut Vec<Block>,
    certain: bool,
    /// Of [`MAX_STEPS`].
    left: &'a mut usize,
}

impl Walk<'_> {
    fn base(&mut self, base: &Chain) {
        if matches!(self.chain(base, 0), Walked::Through) && base.drops {
            self.found.push(policy_block(base, self.certain));
        }
    }

    fn chain(&mut self, chain: &Chain, depth: usize) -> Walked {
        // nftables allows 16 jumps, iptables as many as there are chains: a loop cannot exist in the kernel.
        if depth > 64 {
            return Walked::Through;
        }
        for rule in &chain.rules {
            if *self.left == 0 {
                self.certain = false;
                return Walked::Through;
            }
            *self.left -= 1;
            let truth = rule.test(self.packet);
            if truth == Truth::No {
                continue;
            }
            if let Some(end) = self.apply(chain, rule, truth == Truth::Yes, depth) {
                return end;
            }
        }
        Walked::Through
    }

    /// What a rule that matches (or may) does; `Some` ends the chain.
    fn apply(&mut self, chain: &Chain, rule: &Rule, sure: bool, depth: usize) -> Option<Walked> {
        match &rule.action {
            Action::Continue => None,
            // Addresses are rewritten for the first packet of a connection; the rest follows it.
            Action::Redirect { .. } if self.packet.established => None,
            Action::Accept if sure => Some(Walked::Accepted),
            Action::Return if sure => Some(Walked::Through),
            Action::Accept | Action::Return => {
                self.certain = false;
                None
            }
            Action::Drop | Action::Reject | Action::Redirect { .. } => {
                self.found.push(block(chain, rule, sure && self.certain));
                // A drop ends the walk; so does an address rewrite, for this chain.
                sure.then_some(Walked::Accepted)
            }
            Action::Jump(target) | Action::Goto(target) => self.jump(chain, rule, target, sure, depth),
        }
    }

    fn jump(&mut self, from: &Chain, rule: &Rule, target: &str, sure: bool, depth: usize) -> Option<Walked> {
        let target = self.chains.iter().find(|chain| chain.table == from.table && chain.name == target)?;
        let before = self.certain;
        self.certain &= sure;
        let end = self.chain(target, depth + 1);
        if sure {
            let goes_on = matches!(end, Walked::Through) && !matches!(rule.action, Action::Goto(_));
            return (!goes_on).then_some(end);
        }
        // Whether it went there is open, so nothing that was decided there is certain.
        self.certain = before && matches!(end, Walked::Through);
        None
    }
}

fn block(chain: &Chain, rule: &Rule, certain: bool) -> Block {
    Block {
        table: chain.table.clone(),
        chain: chain.name.clone(),
        text: rule.text.clone(),
        delete: rule.delete.clone(),
        action: rule.action.clone(),
        certain,
        packets: rule.packets,
    }
}

/// A chain that was not walked to its end may well stop the packet there.
fn unfollowed(chain: &Chain) -> Block {
    Block {
        table: chain.table.clone(),
        chain: chain.name.clone(),
        text: format!("it leads on to more than {MAX_STEPS} rules, which were not followed to their end"),
        delete: "nft -a list ruleset   # or iptables-save: see which chains jump to each other".into(),
        action: Action::Drop,
        certain: false,
        packets: None,
    }
}

fn policy_block(chain: &Chain, certain: bool) -> Block {
    let iptables = chain.name.chars().all(|c| c.is_ascii_uppercase());
    let delete = if iptables {
        let table = chain.table.split(' ').next_back().unwrap_or("filter");
        format!("iptables -t {table} -P {} ACCEPT", chain.name)
    } else {
        format!("nft 'chain {} {} {{ policy accept ; }}'", chain.table, chain.name)
    };
    Block {
        table: chain.table.clone(),
        chain: chain.name.clone(),
        text: "policy drop: what no rule accepts is dropped".into(),
        delete,
        action: Action::Drop,
        certain,
        packets: chain.policy_packets,
    }
}
