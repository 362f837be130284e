//! The few questions and orders to the kernel's network, over one netlink socket, and a second one for its events.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use guest::config::Cidr;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
    },
};

use super::wire::{self, Answer, Message};

#[derive(Debug, thiserror::Error)]
pub(super) enum NetlinkError {
    #[error("cannot open a netlink socket: {}", .0.desc())]
    Open(Errno),
    #[error("cannot ask the kernel for {what}: {}", source.desc())]
    Ask { what: &'static str, source: Errno },
    #[error("cannot {what}: {}", source.desc())]
    Order { what: String, source: Errno },
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// The other end is there.
    pub(super) carrier: bool,
    pub(super) mac: Option<String>,
    pub(super) mtu: Option<u32>,
}

/// A socket for questions, and one that hears of changes to links, IPv4 addresses and IPv4 routes.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    events: OwnedFd,
}

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV4_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40;
/// The kernel sends no larger datagram (bytes).
const BUFFER: usize = 32 * 1024;

const INET: u8 = 2;
const UP: u32 = 0x1;
const LOWER_UP: u32 = 0x1_0000;
/// Sizes of `ifinfomsg`, `ifaddrmsg` and `rtmsg`.
const LINK_PART: usize = 16;
const ADDRESS_PART: usize = 8;
const ROUTE_PART: usize = 12;
/// The table that is looked into where no rule of somebody's leads to another.
const MAIN: u8 = 254;
/// Datagrams of events that are taken in one turn.
const EVENTS: usize = 256;

impl Netlink {
    /// Subscribes before anything is asked, so that no change is lost in between.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let open = |groups| -> Result<OwnedFd, Errno> {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            Ok(fd)
        };
        let events = open(GROUPS).map_err(NetlinkError::Open)?;
        Ok(Self { socket: open(0).map_err(NetlinkError::Open)?, events })
    }

    /// What is to be watched for changes.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes in the changes, in bounded number; what they were is asked anew. Only that a link was down cannot be asked any more once it is up again:
    /// the indexes of those that were.
    pub(super) fn drain_events(&self) -> Vec<u32> {
        let mut buffer = vec![0; BUFFER];
        let mut were_down = Vec::new();
        for _ in 0..EVENTS {
            match recv(self.events.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(count @ 1..) => {
                    let links = Answer::all(&buffer[..count]).filter_map(|answer| link(&answer));
                    were_down.extend(links.filter(|link| !link.up).map(|link| link.index));
                }
                Err(Errno::ENOBUFS) => {} // some were lost, which is no loss here
                _ => break,
            }
        }
        were_down
    }

    pub(super) fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.dump("links", wire::GET_LINK, LINK_PART, |answer| link(&answer))
    }

    /// IPv4 addresses of an interface.
    pub(super) fn addresses(&self, index: u32) -> Result<Vec<Cidr>, NetlinkError> {
        self.dump("addresses", wire::GET_ADDRESS, ADDRESS_PART, |answer| address(&answer, index))
    }

    /// The gateways of the IPv4 default routes that hold where no rule says otherwise.
    pub(super) fn gateways(&self) -> Result<Vec<Ipv4Addr>, NetlinkError> {
        self.dump("routes", wire::GET_ROUTE, ROUTE_PART, |answer| gateway(&answer))
    }

    pub(super) fn set_up(&self, link: &Link) -> Result<(), NetlinkError> {
        self.order(&format!("bring {} up", link.name), set_link(link, UP))
    }

    pub(super) fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        let message = set_link(link, 0).attribute(4, &mtu.to_ne_bytes());
        self.order(&format!("set the MTU of {} to {mtu}", link.name), message)
    }

    pub(super) fn add_address(&self, link: &Link, wanted: Cidr) -> Result<(), NetlinkError> {
        let mut fixed = [INET, wanted.prefix, 0, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&link.index.to_ne_bytes());
        let own = wanted.address.octets();
        let flags = wire::ACK | wire::CREATE | wire::EXCLUSIVE;
        let mut message =
            Message::new(wire::NEW_ADDRESS, flags, &fixed).attribute(2, &own).attribute(1, &own);
        if wanted.prefix < 31 {
            message = message.attribute(4, &broadcast(wanted).octets());
        }
        self.order(&format!("set {wanted} on {}", link.name), message)
    }

    pub(super) fn add_default_route(&self, link: &Link, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
        const BOOT: u8 = 3;
        const UNICAST: u8 = 1;
        let fixed = [INET, 0, 0, 0, MAIN, BOOT, 0, UNICAST, 0, 0, 0, 0];
        let message = Message::new(wire::NEW_ROUTE, wire::ACK | wire::CREATE | wire::EXCLUSIVE, &fixed)
            .attribute(5, &gateway.octets())
            .attribute(4, &link.index.to_ne_bytes());
        self.order(&format!("set the default route by {gateway}"), message)
    }

    /// An order that finds its work done is carried out.
    fn order(&self, what: &str, message: Message) -> Result<(), NetlinkError> {
        let mut refused = None;
        let outcome =
            self.exchange(message, |answer| refused = refused.or(answer.errno().filter(|errno| *errno != 0)));
        let outcome = outcome.and(refused.map_or(Ok(()), |errno| Err(Errno::from_raw(errno))));
        match outcome {
            Err(Errno::EEXIST) | Ok(()) => Ok(()),
            Err(source) => Err(NetlinkError::Order { what: what.to_owned(), source }),
        }
    }

    fn dump<T>(
        &self,
        what: &'static str,
        kind: u16,
        fixed: usize,
        read: impl Fn(Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut part = vec![0; fixed];
        if kind != wire::GET_LINK {
            part[0] = INET;
        }
        let mut found = Vec::new();
        let outcome =
            self.exchange(Message::new(kind, wire::DUMP, &part), |answer| found.extend(read(answer)));
        outcome.map(|()| found).map_err(|source| NetlinkError::Ask { what, source })
    }

    /// The kernel answers while it is asked: what it says is there, and nothing is waited for.
    fn exchange(&self, message: Message, mut take: impl FnMut(Answer<'_>)) -> Result<(), Errno> {
        send(self.socket.as_raw_fd(), &message.finish(), MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => Answer::all(&buffer[..count]).for_each(&mut take),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// An order that sets `flags` of a link and leaves its other ones.
fn set_link(link: &Link, flags: u32) -> Message {
    let mut fixed = [0; LINK_PART];
    fixed[4..8].copy_from_slice(&link.index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    Message::new(wire::SET_LINK, wire::ACK, &fixed)
}

fn broadcast(cidr: Cidr) -> Ipv4Addr {
    let host_part = u32::MAX.checked_shr(u32::from(cidr.prefix)).unwrap_or(0);
    Ipv4Addr::from_bits(cidr.address.to_bits() | host_part)
}

fn link(answer: &Answer<'_>) -> Option<Link> {
    if answer.kind != wire::NEW_LINK {
        return None;
    }
    let flags = answer.number(8);
    let mut link = Link {
        index: answer.number(4),
        name: String::new(),
        up: flags & UP != 0,
        carrier: flags & LOWER_UP != 0,
        mac: None,
        mtu: None,
    };
    for (kind, value) in answer.attributes(LINK_PART) {
        match kind {
            1 => link.mac = Some(mac(value)),
            3 => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            4 => link.mtu = wire::value_number(value),
            _ => {}
        }
    }
    Some(link)
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn address(answer: &Answer<'_>, index: u32) -> Option<Cidr> {
    const LOCAL: u16 = 2;
    if answer.kind != wire::NEW_ADDRESS || answer.number(4) != index {
        return None;
    }
    let local = answer.attributes(ADDRESS_PART).find(|(kind, _)| *kind == LOCAL)?;
    Some(Cidr { address: wire::value_address(local.1)?, prefix: answer.byte(1) })
}

fn gateway(answer: &Answer<'_>) -> Option<Ipv4Addr> {
    const GATEWAY: u16 = 5;
    if answer.kind != wire::NEW_ROUTE || answer.byte(1) != 0 || answer.byte(4) != MAIN {
        return None;
    }
    let gateway = answer.attributes(ROUTE_PART).find(|(kind, _)| *kind == GATEWAY)?;
    wire::value_address(gateway.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_of_this_machine_is_found() {
        let netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        assert!(links.iter().any(|link| link.name == "lo"), "{links:?}");
    }

    /// A VPN's default route in a table of its own was taken for the machine's, which was then not set.
    #[test]
    fn only_a_default_route_of_the_main_table_is_the_machines() {
        let gateway_of = |length: u8, table: u8| {
            let fixed = [INET, length, 0, 0, table, 3, 0, 1, 0, 0, 0, 0];
            let bytes = Message::new(wire::NEW_ROUTE, 0, &fixed).attribute(5, &[10, 0, 0, 1]).finish();
            Answer::all(&bytes).find_map(|answer| gateway(&answer))
        };
        assert_eq!(gateway_of(0, MAIN), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!((gateway_of(0, 100), gateway_of(24, MAIN)), (None, None));
    }

    #[test]
    fn broadcast_addresses() {
        assert_eq!(broadcast("169.254.0.21/30".parse().unwrap()), Ipv4Addr::new(169, 254, 0, 23));
        assert_eq!(broadcast("10.0.0.1/0".parse().unwrap()), Ipv4Addr::BROADCAST);
    }
}
