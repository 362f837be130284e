//! The client's side of `sd_notify`: how a service tells its supervisor, systemd or our PID 1, how it is.
//!
//! One datagram of `KEY=VALUE` lines to the socket in `NOTIFY_SOCKET`. Nothing here blocks: where a supervisor's queue is full, the
//! message is refused, and [`Notifier::await_room`] has a reactor tell when to send it again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where our PID 1 takes them.
pub const SOCKET: &str = "/run/envd-init/notify.sock";
/// Names the socket, in a service's environment.
pub const VARIABLE: &str = "NOTIFY_SOCKET";
/// The field that holds an [`crate::control::EnvdStatus`] as JSON.
pub const ENVD_FIELD: &str = "X_ENVD";

/// A supervisor that wants to be told.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Notifier {
    /// The supervisor that the environment names; `None` where there is none.
    pub fn from_environment() -> Option<Self> {
        Self::to(&std::env::var(VARIABLE).ok()?)
    }

    /// The supervisor at a socket: a path, or `@` and an abstract name.
    pub fn to(name: &str) -> Option<Self> {
        let address = match name.strip_prefix('@') {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name).ok()?,
            None => SocketAddr::from_pathname(name).ok()?,
        };
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, address })
    }

    /// Sends lines of `KEY=VALUE`.
    pub fn send(&self, message: &str) -> io::Result<()> {
        self.socket.send_to_addr(message.as_bytes(), &self.address).map(drop)
    }

    /// From now on it is ready for writing when there is room in the supervisor's queue: the kernel tells that of a socket which is
    /// connected, and of another only whether its own buffer has room.
    pub fn await_room(&self) -> io::Result<()> {
        self.socket.connect_addr(&self.address)
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The fields of one message; lines that are none are passed over.
pub fn fields(message: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    message.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_fields_are_passed_over() {
        let message = b"READY=1\njunk\n\xff=x\nSTATUS=a=b";
        assert_eq!(fields(message).collect::<Vec<_>>(), [("READY", "1"), ("STATUS", "a=b")]);
    }
}
