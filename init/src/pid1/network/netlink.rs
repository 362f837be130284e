//! The few questions and orders to the kernel's network, over one netlink socket.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use guest::config::Cidr;

#[derive(Debug, thiserror::Error)]
pub(super) enum NetlinkError {
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    #[error("cannot ask the kernel for {what}: {source}")]
    Ask { what: &'static str, source: io::Error },
    #[error("cannot {what}: {source}")]
    Order { what: String, source: io::Error },
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

/// A socket that also hears of changes to links and IPv4 addresses.
pub(super) struct Netlink {
    socket: Socket,
    events: Socket,
}

/// RTMGRP_LINK and RTMGRP_IPV4_IFADDR.
const GROUPS: u32 = 1 | 0x10;
/// Large enough for any one message of the kernel's.
const BUFFER: usize = 32 * 1024;

impl Netlink {
    /// Subscribes before anything is asked, so that no change is lost in between.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let open = |groups| -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, groups))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let events = open(GROUPS).map_err(NetlinkError::Open)?;
        Ok(Self { socket: open(0).map_err(NetlinkError::Open)?, events })
    }

    /// What is to be watched for changes.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes in all changes; what they were is asked anew.
    pub(super) fn drain_events(&self) {
        let mut buffer = vec![0; BUFFER];
        let _ = self.events.as_raw_fd();
        while self.events.recv(&mut &mut buffer[..], 0).is_ok_and(|count| count > 0) {}
    }

    pub(super) fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump("links", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// IPv4 addresses of an interface.
    pub(super) fn addresses(&self, index: u32) -> Result<Vec<Cidr>, NetlinkError> {
        let mut question = AddressMessage::default();
        question.header.family = AddressFamily::Inet;
        let answers = self.dump("addresses", RouteNetlinkMessage::GetAddress(question))?;
        Ok(answers.into_iter().filter_map(|answer| address(answer, index)).collect())
    }

    /// The gateways of all IPv4 default routes.
    pub(super) fn gateways(&self) -> Result<Vec<Ipv4Addr>, NetlinkError> {
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        let answers = self.dump("routes", RouteNetlinkMessage::GetRoute(question))?;
        Ok(answers.into_iter().filter_map(gateway).collect())
    }

    pub(super) fn set_up(&self, link: &Link, mtu: Option<u32>) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.order(&format!("bring {} up", link.name), RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(super) fn add_address(&self, link: &Link, wanted: Cidr) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = wanted.prefix;
        message.header.index = link.index;
        let address = IpAddr::V4(wanted.address);
        message.attributes.extend([AddressAttribute::Local(address), AddressAttribute::Address(address)]);
        if wanted.prefix < 31 {
            let broadcast =
                wanted.address.to_bits() | u32::MAX.checked_shr(u32::from(wanted.prefix)).unwrap_or(0);
            message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::from_bits(broadcast)));
        }
        let message = RouteNetlinkMessage::NewAddress(message);
        self.order(&format!("set {wanted} on {}", link.name), message, NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(super) fn add_default_route(&self, link: &Link, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: AddressFamily::Inet,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message
            .attributes
            .extend([RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(link.index)]);
        let what = format!("set the default route by {gateway}");
        self.order(&what, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// An order that finds its work done is carried out.
    fn order(&self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        let failed = |source| NetlinkError::Order { what: what.to_owned(), source };
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags).map_err(failed)?;
        for answer in self.receive().map_err(failed)? {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                let source = error.to_io();
                if source.kind() != io::ErrorKind::AlreadyExists {
                    return Err(failed(source));
                }
            }
        }
        Ok(())
    }

    fn dump(
        &self,
        what: &'static str,
        question: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let failed = |source| NetlinkError::Ask { what, source };
        self.send(question, NLM_F_REQUEST | NLM_F_DUMP).map_err(failed)?;
        let answers = self.receive().map_err(failed)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer.payload {
                NetlinkPayload::InnerMessage(message) => Some(message),
                _ => None,
            })
            .collect())
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = flags;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// The kernel answers while it is asked: what it says is there, and nothing is waited for.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match self.socket.recv(&mut &mut buffer[..], 0) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(answers),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            parse_all(&buffer[..count], &mut answers);
        }
    }
}

/// One datagram holds many messages; one that cannot be read ends it.
fn parse_all(mut bytes: &[u8], answers: &mut Vec<NetlinkMessage<RouteNetlinkMessage>>) {
    const ALIGNMENT: usize = 4;
    while let Some(length) = bytes.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
        let Some(message) = bytes.get(..length).filter(|message| message.len() >= 16) else { return };
        // An attribute that this build does not know costs its message, not the others.
        answers.extend(NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok());
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mac: None,
        mtu: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = Some(mac(&bytes)),
            LinkAttribute::Mtu(mtu) => link.mtu = Some(mtu),
            _ => {}
        }
    }
    Some(link)
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn address(message: RouteNetlinkMessage, index: u32) -> Option<Cidr> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    if message.header.index != index {
        return None;
    }
    let prefix = message.header.prefix_len;
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(Cidr { address: *address, prefix }),
        _ => None,
    })
}

fn gateway(message: RouteNetlinkMessage) -> Option<Ipv4Addr> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if message.header.destination_prefix_length != 0 {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    })
}
