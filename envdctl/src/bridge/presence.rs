//! Whether a client whose bytes have ended is still there to read an answer, or has left altogether.
//!
//! A TCP client that closes and one that only half-closes look the same from the outside. Behind a transport that breaks
//! half-close the difference matters: the end of the one is passed on at once, the other is waited for. On this machine the
//! kernel can be asked: a unix socket hangs up when it is closed, and of a TCP socket on loopback `sock_diag` tells whether a
//! process still has it.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::{self, SocketAddrNetlink},
    },
};

use super::connect::Stream;

/// What is known of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    There,
    Gone,
    /// It is on another machine, or the kernel does not tell.
    Unknown,
}

pub(super) fn of(client: &Stream) -> Presence {
    match net::getsockname(client).map(|ours| ours.address_family()) {
        Ok(AddressFamily::UNIX) => of_unix(client),
        Ok(AddressFamily::INET | AddressFamily::INET6) => of_tcp(client).unwrap_or(Presence::Unknown),
        _ => Presence::Unknown,
    }
}

fn of_unix(client: &Stream) -> Presence {
    let mut watched = [PollFd::new(client, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = poll(&mut watched, Some(&now)).is_ok() && watched[0].revents().contains(PollFlags::HUP);
    if gone { Presence::Gone } else { Presence::There }
}

/// Asks for our own end first: where that is not found the kernel does not tell, or the client is in another namespace.
fn of_tcp(client: &Stream) -> Result<Presence, Errno> {
    let ours: SocketAddr = net::getsockname(client)?.try_into()?;
    let theirs: SocketAddr = net::getpeername(client)?.ok_or(Errno::NOTCONN)?.try_into()?;
    if !theirs.ip().is_loopback() {
        return Ok(Presence::Unknown);
    }
    let socket = net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    if inode(&socket, ours, theirs)?.is_none() {
        return Ok(Presence::Unknown);
    }
    Ok(match inode(&socket, theirs, ours)? {
        Some(0) | None => Presence::Gone,
        Some(_) => Presence::There,
    })
}

/// `SOCK_DIAG_BY_FAMILY`, and of which protocol.
const BY_FAMILY: u16 = 20;
const IPPROTO_TCP: u8 = 6;
const NLM_F_REQUEST: u16 = 1;
/// A header of netlink, and with it a `struct inet_diag_req_v2` (bytes).
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
/// Where an answer (`struct inet_diag_msg`) has the inode: 0 when no process has the socket.
const INODE: usize = HEADER + 68;
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The inode of the TCP socket at `local` that is connected to `remote`; `None` where there is no such socket.
fn inode(socket: &OwnedFd, local: SocketAddr, remote: SocketAddr) -> Result<Option<u32>, Errno> {
    net::sendto(socket, &request(local, remote), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 1024];
    // The kernel has answered before the send returns.
    let (length, _) = net::recv(socket, &mut answer, RecvFlags::DONTWAIT)?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let word = |at: usize| u32::from_ne_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]]);
    Ok((kind == BY_FAMILY && length >= INODE + 4).then(|| word(INODE)))
}

fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend((REQUEST as u32).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence, sender
    bytes.extend([family.as_raw() as u8, IPPROTO_TCP, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes()); // in any state
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(address(local.ip()));
    bytes.extend(address(remote.ip()));
    bytes.extend([0; 4]); // on any interface
    bytes.extend(NO_COOKIE);
    bytes
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;
    use crate::bridge::connect::adopt;

    fn pair(listen: &str) -> (TcpStream, Stream) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        accepted.set_nonblocking(true).unwrap();
        (client, adopt(accepted.into()).unwrap())
    }

    #[tokio::test]
    async fn a_tcp_client_that_half_closed_is_there_and_one_that_closed_is_gone() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (client, accepted) = pair(listen);
            assert_eq!(of(&accepted), Presence::There);
            client.shutdown(Shutdown::Write).unwrap();
            accepted.readable().await.unwrap();
            assert_eq!(of(&accepted), Presence::There);
            drop(client);
            assert_eq!(of(&accepted), Presence::Gone);
        }
    }

    #[tokio::test]
    async fn a_unix_client_that_half_closed_is_there_and_one_that_closed_is_gone() {
        let (client, accepted) = Stream::pair().unwrap();
        net::shutdown(&client, net::Shutdown::Write).unwrap();
        assert_eq!(of(&accepted), Presence::There);
        drop(client);
        assert_eq!(of(&accepted), Presence::Gone);
    }
}
