//! The sockets of the relay: opening, accepting, connecting, and the pump's view of a descriptor.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::VsockAddr;
use rustix::{
    io::Errno,
    net::{self, AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::{
    endpoint::Endpoint,
    pump::Stream,
    unix::{ShortPath, remove_stale},
};

/// Our sockets neither block nor leak into children.
const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
/// The kernel caps it at `net.core.somaxconn` where there is a cap; vsock has none, and a burst beyond the backlog
/// is reset.
const BACKLOG: i32 = 4096;

/// A listening socket, bound.
pub(super) fn listen(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    let socket = new_socket(endpoint)?;
    match endpoint {
        Endpoint::Vsock { cid, port } => {
            nix::sys::socket::bind(socket.as_raw_fd(), &VsockAddr::new(*cid, *port))?;
        }
        Endpoint::Unix(path) => {
            remove_stale(path)?;
            net::bind(&socket, &SocketAddrUnix::new(ShortPath::new(path)?.as_path())?)?;
        }
        Endpoint::Tcp(address) => {
            net::sockopt::set_socket_reuseaddr(&socket, true)?;
            net::bind(&socket, address)?;
        }
        Endpoint::NetnsTcp(..) | Endpoint::Firecracker { .. } => return Err(Errno::OPNOTSUPP.into()),
    }
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn new_socket(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    let family = match endpoint {
        Endpoint::Vsock { .. } => AddressFamily::VSOCK,
        Endpoint::Unix(_) | Endpoint::Firecracker { .. } => AddressFamily::UNIX,
        Endpoint::Tcp(address) | Endpoint::NetnsTcp(_, address) if address.is_ipv6() => AddressFamily::INET6,
        Endpoint::Tcp(_) | Endpoint::NetnsTcp(..) => AddressFamily::INET,
    };
    Ok(net::socket_with(family, SocketType::STREAM, FLAGS, None)?)
}

/// Takes one connection.
pub(super) fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    net::accept_with(listener, FLAGS)
}

/// The CID at the other end. It must be asked for at once: after a reset the kernel does not know it any more.
pub(super) fn peer_cid(socket: &OwnedFd) -> io::Result<u32> {
    let address: VsockAddr = nix::sys::socket::getpeername(socket.as_raw_fd())?;
    Ok(address.cid())
}

/// A connection under way.
pub(super) enum Dialed {
    Connected(OwnedFd),
    Pending(OwnedFd),
}

/// Starts to connect. `WouldBlock` of a unix socket means that its backlog is full.
pub(super) fn dial(endpoint: &Endpoint) -> io::Result<Dialed> {
    let socket = new_socket(endpoint)?;
    let result = match endpoint {
        Endpoint::Tcp(address) => {
            // Small answers in a row must not wait for each other's acknowledgement.
            net::sockopt::set_tcp_nodelay(&socket, true)?;
            net::connect(&socket, address)
        }
        Endpoint::Unix(path) => net::connect(&socket, &SocketAddrUnix::new(ShortPath::new(path)?.as_path())?),
        Endpoint::Vsock { cid, port } => {
            nix::sys::socket::connect(socket.as_raw_fd(), &VsockAddr::new(*cid, *port))
                .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        }
        Endpoint::NetnsTcp(..) | Endpoint::Firecracker { .. } => Err(Errno::OPNOTSUPP),
    };
    match result {
        Ok(()) => Ok(Dialed::Connected(socket)),
        Err(Errno::INPROGRESS) => Ok(Dialed::Pending(socket)),
        Err(errno) => Err(errno.into()),
    }
}

/// The error with which a pending connect ended, if it did.
pub(super) fn take_error(socket: &OwnedFd) -> Option<io::Error> {
    match net::sockopt::socket_error(socket) {
        Ok(Ok(())) => None,
        Ok(Err(errno)) | Err(errno) => Some(errno.into()),
    }
}

/// The pump's view of a descriptor.
pub(super) struct Peer<'a> {
    socket: BorrowedFd<'a>,
    vsock: bool,
}

impl<'a> Peer<'a> {
    pub(super) fn new(socket: &'a OwnedFd, vsock: bool) -> Self {
        Self { socket: socket.as_fd(), vsock }
    }

    /// Whether there is at least one byte to read.
    pub(super) fn has_bytes(&self) -> bool {
        let mut byte = [0; 1];
        net::recv(self.socket, &mut byte, net::RecvFlags::PEEK).is_ok_and(|(count, _)| count > 0)
    }
}

impl Stream for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.socket, buffer)?)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(net::send(self.socket, bytes, SendFlags::NOSIGNAL)?)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(net::shutdown(self.socket, Shutdown::Write)?)
    }

    /// A vsock peer behind Firecracker that closed one half has closed both: an empty send then says so.
    fn is_gone(&mut self) -> bool {
        self.vsock
            && net::send(self.socket, &[], SendFlags::NOSIGNAL).is_err_and(|errno| errno != Errno::AGAIN)
    }
}
