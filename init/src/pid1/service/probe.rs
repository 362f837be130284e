//! Finding out whether a service is ready: one look that never waits.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use guest::service::Readiness;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, UnixAddr, connect,
        getsockopt, socket, sockopt,
    },
};

/// A connection that was not decided at the last look is looked at again at the next.
#[derive(Debug, Default)]
pub(super) struct Probe {
    under_way: Option<OwnedFd>,
}

impl Probe {
    /// Whether the service can be reached.
    pub(super) fn is_ready(&mut self, readiness: &Readiness) -> bool {
        match readiness {
            Readiness::None | Readiness::Notify => true,
            Readiness::File(path) => path.exists(),
            Readiness::Unix(path) => self.unix(path),
            Readiness::Tcp(SocketAddr::V4(address)) => {
                self.listens(AddressFamily::Inet, &SockaddrIn::from(*address))
            }
            Readiness::Tcp(SocketAddr::V6(address)) => {
                self.listens(AddressFamily::Inet6, &SockaddrIn6::from(*address))
            }
        }
    }

    fn unix(&mut self, path: &Path) -> bool {
        UnixAddr::new(path).is_ok_and(|address| self.listens(AddressFamily::Unix, &address))
    }

    fn listens(&mut self, family: AddressFamily, address: &dyn SockaddrLike) -> bool {
        if let Some(fd) = self.under_way.take() {
            return self.look_at(fd);
        }
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let Ok(fd) = socket(family, SockType::Stream, flags, None) else { return false };
        match connect(fd.as_raw_fd(), address) {
            // EAGAIN is a unix socket whose backlog is full: somebody listens.
            Ok(()) | Err(Errno::EAGAIN) => true,
            Err(Errno::EINPROGRESS) => self.look_at(fd),
            Err(_) => false,
        }
    }

    fn look_at(&mut self, fd: OwnedFd) -> bool {
        let mut watched = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut watched, PollTimeout::ZERO) == Ok(0) {
            self.under_way = Some(fd);
            return false;
        }
        getsockopt(&fd, sockopt::SocketError) == Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks until the answer is the one hoped for; a connection may need a moment.
    fn becomes(readiness: &Readiness, wanted: bool) -> bool {
        let mut probe = Probe::default();
        (0..1000).any(|_| {
            std::thread::yield_now();
            probe.is_ready(readiness) == wanted
        })
    }

    #[test]
    fn each_kind_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut probe = Probe::default();
        assert!(
            !probe.is_ready(&Readiness::Unix(path.clone()))
                && !probe.is_ready(&Readiness::File(path.clone()))
        );
        let _unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(probe.is_ready(&Readiness::Unix(path.clone())) && probe.is_ready(&Readiness::File(path)));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert!(becomes(&Readiness::Tcp(address), true));
        drop(tcp);
        assert!(becomes(&Readiness::Tcp(address), false));
    }
}
