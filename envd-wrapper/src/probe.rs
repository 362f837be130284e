//! One `GET /health` of envd, without blocking: connect, ask, read the status line.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, getsockopt, send, socket, sockopt,
};

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// `HTTP/1.1 204`
const STATUS_LINE: usize = 12;
const HEALTHY: &[u8] = b"204";

/// How far a probe got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing new.
    Waiting,
    /// It has just been accepted; the answer is to come.
    Accepted,
    Healthy,
    Failed(Failure),
}

/// Why a probe has no good answer. [`crate::evidence`] tells what that proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// We could not even begin: no descriptor, no memory, no port of our own.
    NoSocket(Errno),
    /// No connection came about.
    NoWay(Errno),
    /// Connected, and the request was not acknowledged by the kernel at the other end.
    Lost,
    /// Connected and asked; nothing came back.
    Silence,
    /// It said something else.
    Answer(String),
}

/// A probe under way.
#[derive(Debug)]
pub(crate) struct Probe {
    socket: OwnedFd,
    asked: bool,
    answer: Vec<u8>,
}

impl Probe {
    /// Begins to connect. An error is the outcome of the probe.
    pub(crate) fn begin(port: u16) -> Result<Self, Failure> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).map_err(Failure::NoSocket)?;
        let address = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(Self { socket, asked: false, answer: Vec::new() }),
            Err(errno @ (Errno::EADDRNOTAVAIL | Errno::ENOBUFS | Errno::ENOMEM)) => {
                Err(Failure::NoSocket(errno))
            }
            Err(errno) => Err(Failure::NoWay(errno)),
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether it waits to write (else: to read).
    pub(crate) const fn is_connecting(&self) -> bool {
        !self.asked
    }

    /// Goes on, when the socket is ready.
    pub(crate) fn advance(&mut self) -> Outcome {
        if self.asked { self.read() } else { self.ask() }
    }

    /// It has taken too long: how far it got.
    pub(crate) fn give_up(self) -> Failure {
        match self.asked {
            false => Failure::NoWay(Errno::ETIMEDOUT),
            true if guest::sys::unacknowledged(&self.socket) > 0 => Failure::Lost,
            true => Failure::Silence,
        }
    }

    fn ask(&mut self) -> Outcome {
        match getsockopt(&self.socket, sockopt::SocketError) {
            Ok(0) => {}
            Ok(errno) => return Outcome::Failed(Failure::NoWay(Errno::from_raw(errno))),
            Err(errno) => return Outcome::Failed(Failure::NoWay(errno)),
        }
        match send(std::os::fd::AsRawFd::as_raw_fd(&self.socket), REQUEST, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => {
                self.asked = true;
                Outcome::Accepted
            }
            Err(Errno::EAGAIN | Errno::ENOTCONN | Errno::EINTR) => Outcome::Waiting,
            Err(errno) => Outcome::Failed(closed(errno)),
        }
    }

    fn read(&mut self) -> Outcome {
        let mut chunk = [0; 256];
        match guest::reactor::read_ready(&self.socket, &mut chunk) {
            Ok(None) => Outcome::Waiting,
            Ok(Some(0)) => Outcome::Failed(Failure::Answer("nothing".to_owned())),
            Ok(Some(count)) => {
                self.answer.extend_from_slice(&chunk[..count]);
                self.judge()
            }
            Err(errno) => Outcome::Failed(closed(errno)),
        }
    }

    fn judge(&self) -> Outcome {
        let Some(line) = self.answer.get(..STATUS_LINE) else { return Outcome::Waiting };
        match line.ends_with(HEALTHY) && line.starts_with(b"HTTP/1.") {
            true => Outcome::Healthy,
            false => Outcome::Failed(Failure::Answer(guest::record::sanitize(line))),
        }
    }
}

/// A connection that ended before the answer.
fn closed(errno: Errno) -> Failure {
    Failure::Answer(format!("nothing ({})", errno.desc().to_lowercase()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Runs a probe against a server that answers with `answer`.
    fn probe(answer: &'static str) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let _ = client.read(&mut request);
            let _ = client.write_all(answer.as_bytes());
        });
        let mut probe = Probe::begin(port).unwrap();
        let outcome = loop {
            let reactor = guest::reactor::Reactor::new(&[]).unwrap();
            let interest = match probe.is_connecting() {
                true => guest::reactor::Interest::Write,
                false => guest::reactor::Interest::Read,
            };
            reactor.add(probe.descriptor(), 1, interest).unwrap();
            reactor.wait(None).unwrap();
            match probe.advance() {
                Outcome::Waiting | Outcome::Accepted => {}
                done => break done,
            }
        };
        server.join().unwrap();
        outcome
    }

    #[test]
    fn only_204_is_healthy() {
        assert_eq!(probe("HTTP/1.1 204 No Content\r\n\r\n"), Outcome::Healthy);
        let wrong = Outcome::Failed(Failure::Answer("HTTP/1.1 500".to_owned()));
        assert_eq!(probe("HTTP/1.1 500 Oops\r\n\r\n"), wrong);
        assert_eq!(probe(""), Outcome::Failed(Failure::Answer("nothing".to_owned())));
    }

    #[test]
    fn nobody_listening_is_refused_at_once() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let failed = match Probe::begin(port) {
            Err(failure) => failure,
            Ok(mut probe) => match probe.advance() {
                Outcome::Failed(failure) => failure,
                other => panic!("{other:?}"),
            },
        };
        assert_eq!(failed, Failure::NoWay(Errno::ECONNREFUSED));
    }

    #[test]
    fn one_that_accepts_and_says_nothing_is_silent_and_not_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut probe = Probe::begin(listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(probe.advance(), Outcome::Accepted);
        assert_eq!(probe.give_up(), Failure::Silence);
    }
}
