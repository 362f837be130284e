//! Interfaces, addresses, routes and neighbours of the calling thread's network namespace, by rtnetlink.

use std::{io, net::IpAddr, time::Duration};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use serde::Serialize;

/// The unit of the kernel's times towards programs: USER_HZ is 100 on every machine we run on.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// An address with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Network {
    /// Whether `other` lies in this network.
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.prefix.min(32));
                u64::from(a.to_bits()) >> shift == u64::from(b.to_bits()) >> shift
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.prefix.min(128));
                a.to_bits().checked_shr(shift) == b.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `tun` (a tap), `veth`, `bridge`, …; none for hardware and loopback.
    pub kind: Option<String>,
    pub loopback: bool,
    /// Switched on by the administrator.
    pub up: bool,
    /// Something is at the other end: for a tap a process that has it open, for a veth a peer that is up.
    pub carrier: bool,
    pub mac: Option<String>,
    pub mtu: u32,
    pub qdisc: Option<String>,
    /// The bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Index of a veth's other end, in that end's own namespace.
    pub peer: Option<u32>,
    pub addresses: Vec<Network>,
}

/// Where the kernel would send a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Route {
    /// Out of this interface (by index), perhaps through a gateway, with this source address.
    Via { interface: u32, gateway: Option<IpAddr>, source: Option<IpAddr> },
    /// To this namespace itself.
    Local,
    /// Nowhere: `blackhole`, `unreachable`, `prohibit`, or no route at all.
    Nowhere { why: String },
}

/// What is known of a neighbour's hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    pub interface: u32,
    pub mac: Option<String>,
    /// `reachable`, `stale`, `delay`, `probe`, `incomplete`, `failed`, `permanent`, `noarp`.
    pub state: String,
    /// How long ago the neighbour was last heard of.
    pub confirmed: Option<Duration>,
}

/// Every interface with its addresses.
pub fn links() -> io::Result<Vec<Link>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut links = Vec::new();
    for reply in ask(request, NLM_F_DUMP)? {
        if let RouteNetlinkMessage::NewLink(message) = reply {
            links.push(link(&message));
        }
    }
    for reply in ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)? {
        if let RouteNetlinkMessage::NewAddress(message) = reply {
            let owner = links.iter_mut().find(|link| link.index == message.header.index);
            if let (Some(link), Some(address)) = (owner, address(&message)) {
                link.addresses.push(address);
            }
        }
    }
    Ok(links)
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        loopback: flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) if !link.loopback => link.mac = Some(mac(bytes)),
            LinkAttribute::Qdisc(name) => link.qdisc = Some(name.clone()),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkInfo(infos) => link.kind = infos.iter().find_map(kind),
            _ => {}
        }
    }
    link
}

fn kind(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

/// The address of this end: of a point-to-point link `Local`, else `Address`.
fn address(message: &AddressMessage) -> Option<Network> {
    let prefix = message.header.prefix_len;
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false)).map(|address| Network { address, prefix })
}

/// How the kernel would route a packet to `target`.
pub fn route_to(target: IpAddr) -> io::Result<Route> {
    let mut message = RouteMessage::default();
    message.header.address_family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = if target.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(target.into()));
    match ask(RouteNetlinkMessage::GetRoute(message), 0) {
        Ok(replies) => Ok(replies.iter().find_map(route).unwrap_or(nowhere("no route"))),
        Err(error) => match error.raw_os_error().map(nix::Error::from_raw) {
            Some(nix::Error::ENETUNREACH) => Ok(nowhere("no route")),
            Some(nix::Error::EHOSTUNREACH) => Ok(nowhere("an unreachable route")),
            Some(nix::Error::EACCES) => Ok(nowhere("a prohibit route")),
            Some(nix::Error::EINVAL) => Ok(nowhere("a blackhole route")),
            _ => Err(error),
        },
    }
}

fn nowhere(why: &str) -> Route {
    Route::Nowhere { why: why.to_owned() }
}

fn route(reply: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = reply else { return None };
    match message.header.kind {
        RouteType::Local => return Some(Route::Local),
        RouteType::BlackHole => return Some(nowhere("a blackhole route")),
        RouteType::Unreachable => return Some(nowhere("an unreachable route")),
        RouteType::Prohibit => return Some(nowhere("a prohibit route")),
        _ => {}
    }
    let find = |pick: fn(&RouteAttribute) -> Option<&RouteAddress>| {
        message.attributes.iter().find_map(pick).and_then(ip_of)
    };
    let interface = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })?;
    Some(Route::Via {
        interface,
        gateway: find(|attribute| match attribute {
            RouteAttribute::Gateway(address) => Some(address),
            _ => None,
        }),
        source: find(|attribute| match attribute {
            RouteAttribute::PrefSource(address) => Some(address),
            _ => None,
        }),
    })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// What the neighbour table holds for `target`, if anything.
pub fn neighbour(target: IpAddr) -> io::Result<Option<Neighbour>> {
    let replies = ask(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), NLM_F_DUMP)?;
    Ok(replies.iter().find_map(|reply| match reply {
        RouteNetlinkMessage::NewNeighbour(message) => neighbour_of(message, target),
        _ => None,
    }))
}

fn neighbour_of(message: &NeighbourMessage, target: IpAddr) -> Option<Neighbour> {
    let is_target = message.attributes.iter().any(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => target == IpAddr::V4(*address),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => target == IpAddr::V6(*address),
        _ => false,
    });
    is_target.then(|| Neighbour {
        interface: message.header.ifindex,
        state: state_name(message.header.state).to_owned(),
        mac: message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => Some(mac(bytes)),
            _ => None,
        }),
        confirmed: message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::CacheInfo(info) => Some(CLOCK_TICK * info.confirmed),
            _ => None,
        }),
    })
}

const fn state_name(state: NeighbourState) -> &'static str {
    match state {
        NeighbourState::Incomplete => "incomplete",
        NeighbourState::Reachable => "reachable",
        NeighbourState::Stale => "stale",
        NeighbourState::Delay => "delay",
        NeighbourState::Probe => "probe",
        NeighbourState::Failed => "failed",
        NeighbourState::Noarp => "noarp",
        NeighbourState::Permanent => "permanent",
        _ => "none",
    }
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Sends one request and collects its answers.
fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    collect(&socket, flags & NLM_F_DUMP != 0)
}

fn collect(socket: &Socket, dump: bool) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut replies = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(replies),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(reply) => replies.push(reply),
                _ => {}
            }
            if length == 0 || length >= rest.len() {
                break;
            }
            rest = &rest[length..];
        }
        if !dump {
            return Ok(replies);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_with_its_address() {
        let links = links().unwrap();
        let lo = links.iter().find(|link| link.loopback).unwrap();
        assert_eq!((lo.name.as_str(), lo.index), ("lo", 1));
    }

    #[test]
    fn a_packet_to_oneself_is_routed_locally() {
        assert_eq!(route_to("127.0.0.1".parse().unwrap()).unwrap(), Route::Local);
    }

    #[test]
    fn a_network_holds_its_own_addresses_only() {
        let network = Network { address: "169.254.0.22".parse().unwrap(), prefix: 30 };
        assert!(network.contains("169.254.0.21".parse().unwrap()));
        assert!(!network.contains("169.254.0.24".parse().unwrap()));
        assert!(Network { prefix: 0, ..network }.contains("8.8.8.8".parse().unwrap()));
    }
}
