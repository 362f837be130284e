//! Finding out whether a service is ready: one non-blocking look.

use std::{net::SocketAddr, os::fd::AsRawFd, path::Path};

use guest::service::Readiness;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, UnixAddr, connect, socket,
    },
};

/// Whether the service can be reached now. On loopback and on unix sockets the answer is there at once.
pub(super) fn is_ready(readiness: &Readiness) -> bool {
    match readiness {
        Readiness::None | Readiness::Notify => true,
        Readiness::File(path) => path.exists(),
        Readiness::Unix(path) => unix_listens(path),
        Readiness::Tcp(SocketAddr::V4(address)) => listens(AddressFamily::Inet, &SockaddrIn::from(*address)),
        Readiness::Tcp(SocketAddr::V6(address)) => {
            listens(AddressFamily::Inet6, &SockaddrIn6::from(*address))
        }
    }
}

fn unix_listens(path: &Path) -> bool {
    UnixAddr::new(path).is_ok_and(|address| listens(AddressFamily::Unix, &address))
}

fn listens(family: AddressFamily, address: &dyn SockaddrLike) -> bool {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(fd) = socket(family, SockType::Stream, flags, None) else { return false };
    // EAGAIN is a unix socket whose backlog is full: somebody listens.
    matches!(connect(fd.as_raw_fd(), address), Ok(()) | Err(Errno::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!is_ready(&Readiness::Unix(path.clone())) && !is_ready(&Readiness::File(path.clone())));
        let _unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(is_ready(&Readiness::Unix(path.clone())) && is_ready(&Readiness::File(path)));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert!(is_ready(&Readiness::Tcp(address)));
        drop(tcp);
        assert!(!is_ready(&Readiness::Tcp(address)));
    }
}
