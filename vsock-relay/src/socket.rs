//! Sockets of every kind: listening, accepting, connecting, and the pump's view of a descriptor. Nothing here waits.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::VsockAddr;
use rustix::{
    io::Errno,
    net::{self, AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::{
    endpoint::Endpoint,
    pool::LARGE,
    pump::Stream,
    unix::{ShortPath, remove_stale},
};

/// Our sockets neither block nor leak into children.
const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
/// The kernel caps it at `net.core.somaxconn` where there is a cap; vsock has none, and a burst beyond the backlog
/// is reset.
const BACKLOG: i32 = 4096;
/// A TCP client that is silent for this long is asked whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Asked again after this long, so many times; then it is gone: two minutes altogether. While bytes to it are unacknowledged the
/// kernel does not ask but sends those again, for about a quarter of an hour (`net.ipv4.tcp_retries2`). `TCP_USER_TIMEOUT` would
/// shorten that, and would also end a client that is there and only does not read: a terminal that is stopped, a debugger.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// A listening socket, bound. A network namespace is not entered: see [`listen_on`].
pub fn listen(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    if matches!(endpoint, Endpoint::NetnsTcp(..) | Endpoint::Firecracker { .. }) {
        return Err(Errno::OPNOTSUPP.into());
    }
    listen_on(new_socket(endpoint)?, endpoint)
}

/// As [`listen`], on a socket that was made elsewhere: in the namespace that `endpoint` names.
pub fn listen_on(socket: OwnedFd, endpoint: &Endpoint) -> io::Result<OwnedFd> {
    match endpoint {
        Endpoint::Vsock { cid, port } => {
            nix::sys::socket::bind(socket.as_raw_fd(), &VsockAddr::new(*cid, *port))?;
        }
        Endpoint::Unix(path) => {
            remove_stale(path)?;
            net::bind(&socket, &SocketAddrUnix::new(ShortPath::new(path)?.as_path())?)?;
        }
        Endpoint::Tcp(address) | Endpoint::NetnsTcp(_, address) => {
            net::sockopt::set_socket_reuseaddr(&socket, true)?;
            net::bind(&socket, address)?;
            prepare_clients(&socket)?;
        }
        Endpoint::Firecracker { .. } => return Err(Errno::OPNOTSUPP.into()),
    }
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// What every TCP client gets, because an accepted socket has its listener's options: small answers in a row do not wait for each
/// other's acknowledgement, and one that vanished without a word (a lost link, a machine without power) does not keep its place,
/// and its stream in the guest, for ever.
fn prepare_clients(listener: &OwnedFd) -> io::Result<()> {
    net::sockopt::set_tcp_nodelay(listener, true)?;
    net::sockopt::set_socket_keepalive(listener, true)?;
    net::sockopt::set_tcp_keepidle(listener, KEEPALIVE_IDLE)?;
    net::sockopt::set_tcp_keepintvl(listener, KEEPALIVE_INTERVAL)?;
    Ok(net::sockopt::set_tcp_keepcnt(listener, KEEPALIVE_PROBES)?)
}

/// A socket of the family that `endpoint` needs, in the namespace of the calling thread.
pub fn new_socket(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    let family = match endpoint {
        Endpoint::Vsock { .. } => AddressFamily::VSOCK,
        Endpoint::Unix(_) | Endpoint::Firecracker { .. } => AddressFamily::UNIX,
        Endpoint::Tcp(address) | Endpoint::NetnsTcp(_, address) if address.is_ipv6() => AddressFamily::INET6,
        Endpoint::Tcp(_) | Endpoint::NetnsTcp(..) => AddressFamily::INET,
    };
    let socket = net::socket_with(family, SocketType::STREAM, FLAGS, None)?;
    if family == AddressFamily::UNIX {
        widen(&socket);
    }
    Ok(socket)
}

/// Gives a unix socket's sending side room for a whole read of the pump: with the kernel's default (208 KiB) a part of each has to
/// wait for a wake-up of its own, which costs a third of the throughput. The kernel caps it at `net.core.wmem_max`.
pub fn widen(socket: &OwnedFd) {
    let _ = net::sockopt::set_socket_send_buffer_size(socket, 2 * LARGE);
}

/// Takes one connection.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    net::accept_with(listener, FLAGS)
}

/// The CID at the other end. It must be asked for at once: after a reset the kernel does not know it any more.
pub fn peer_cid(socket: &OwnedFd) -> io::Result<u32> {
    let address: VsockAddr = nix::sys::socket::getpeername(socket.as_raw_fd())?;
    Ok(address.cid())
}

/// A connection under way.
#[derive(Debug)]
pub enum Dialed {
    Connected(OwnedFd),
    Pending(OwnedFd),
}

/// Starts to connect. `WouldBlock` of a unix socket means that its backlog is full. A network namespace is not
/// entered: see [`dial_on`].
pub fn dial(endpoint: &Endpoint) -> io::Result<Dialed> {
    if matches!(endpoint, Endpoint::NetnsTcp(..)) {
        return Err(Errno::OPNOTSUPP.into());
    }
    dial_on(new_socket(endpoint)?, endpoint)
}

/// As [`dial`], on a socket that was made elsewhere: in the namespace that `endpoint` names.
pub fn dial_on(socket: OwnedFd, endpoint: &Endpoint) -> io::Result<Dialed> {
    let result = match endpoint {
        Endpoint::Tcp(address) | Endpoint::NetnsTcp(_, address) => {
            // Small answers in a row must not wait for each other's acknowledgement.
            net::sockopt::set_tcp_nodelay(&socket, true)?;
            connect_tcp(&socket, *address)
        }
        Endpoint::Unix(path) | Endpoint::Firecracker { path, .. } => {
            net::connect(&socket, &SocketAddrUnix::new(ShortPath::new(path)?.as_path())?)
        }
        Endpoint::Vsock { cid, port } => {
            nix::sys::socket::connect(socket.as_raw_fd(), &VsockAddr::new(*cid, *port))
                .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        }
    };
    match result {
        Ok(()) => Ok(Dialed::Connected(socket)),
        Err(Errno::INPROGRESS) => Ok(Dialed::Pending(socket)),
        Err(errno) => Err(errno.into()),
    }
}

/// On loopback the handshake is over before the first call returns, though that says that it has only begun; asking again
/// saves a wake-up.
fn connect_tcp(socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    match net::connect(socket, &address) {
        Err(Errno::INPROGRESS) if address.ip().is_loopback() => match net::connect(socket, &address) {
            Err(Errno::ALREADY) => Err(Errno::INPROGRESS),
            result => result,
        },
        result => result,
    }
}

/// The error with which a pending connect ended, if it did.
pub fn take_error(socket: &OwnedFd) -> Option<io::Error> {
    match net::sockopt::socket_error(socket) {
        Ok(Ok(())) => None,
        Ok(Err(errno)) | Err(errno) => Some(errno.into()),
    }
}

/// The pump's view of a descriptor.
pub struct Peer<'a> {
    socket: BorrowedFd<'a>,
    vsock: bool,
}

impl<'a> Peer<'a> {
    pub fn new(socket: &'a OwnedFd, vsock: bool) -> Self {
        Self { socket: socket.as_fd(), vsock }
    }

    /// Whether there is at least one byte to read.
    pub fn has_bytes(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use rustix::net::sockopt;

    use super::*;

    /// A stream's events came 40 ms late each when the first was not yet acknowledged, and a client whose link was lost kept its
    /// connection for ever.
    #[test]
    fn a_tcp_client_gets_small_answers_at_once_and_is_noticed_when_it_vanishes() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = listen(&Endpoint::Tcp(address.parse().unwrap())).unwrap();
            let bound: SocketAddr = net::getsockname(&listener).unwrap().try_into().unwrap();
            let _client = TcpStream::connect(bound).unwrap();
            let accepted = accept(&listener).unwrap();
            assert!(sockopt::tcp_nodelay(&accepted).unwrap(), "{address}");
            assert!(sockopt::socket_keepalive(&accepted).unwrap(), "{address}");
            assert_eq!(sockopt::tcp_keepidle(&accepted).unwrap(), KEEPALIVE_IDLE);
            assert_eq!(sockopt::tcp_keepintvl(&accepted).unwrap(), KEEPALIVE_INTERVAL);
            assert_eq!(sockopt::tcp_keepcnt(&accepted).unwrap(), KEEPALIVE_PROBES);
            assert_eq!(sockopt::tcp_user_timeout(&accepted).unwrap(), 0, "a client may pause");
        }
    }
}
