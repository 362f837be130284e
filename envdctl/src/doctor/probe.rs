//! Live probes: connect, `GET /health`, ping. Each is bounded, and what it may end in is told apart.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    dial::{self, Stream, is_timeout},
    text::{duration, sanitise_bytes},
};

/// How long a connection may take: on one machine it takes microseconds, in an emulated guest milliseconds.
pub const CONNECT_BOUND: Duration = Duration::from_millis(1500);
/// How long an answer may take once connected.
pub const ANSWER_BOUND: Duration = Duration::from_millis(2500);
/// How many pings are tried, and how long each may take.
const PINGS: u16 = 3;
const PING_BOUND: Duration = Duration::from_millis(700);
/// The most that is read of an answer's head (bytes).
const MAX_HEAD: usize = 8 * 1024;

/// How a `GET /health` ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Answer {
        status: u16,
        took: Duration,
    },
    /// Refused at once: the address is there, the port has no listener (or a rule rejects).
    Refused,
    /// No answer to the connection at all.
    ConnectTimeout,
    /// The kernel says that there is no way: no route, no answer to ARP, prohibited by a rule.
    Unreachable {
        error: String,
    },
    /// Connected, and then reset.
    Reset,
    /// Connected, and then closed without an answer.
    Closed,
    /// Connected, and then silence.
    Hang,
    /// Something else than HTTP answered.
    Garbage {
        said: String,
    },
}

impl Health {
    /// envd's own answer.
    pub fn is_well(&self) -> bool {
        matches!(self, Self::Answer { status: 204, .. })
    }

    /// Whether a TCP connection was made.
    pub fn connected(&self) -> bool {
        !matches!(self, Self::Refused | Self::ConnectTimeout | Self::Unreachable { .. })
    }

    /// As words behind "GET /health".
    pub fn said(&self) -> String {
        match self {
            Self::Answer { status, took } => format!("answers {status} in {}", duration(*took)),
            Self::Refused => "is refused".to_owned(),
            Self::ConnectTimeout => format!("gets no connection within {}", duration(CONNECT_BOUND)),
            Self::Unreachable { error } => format!("finds no way: {error}"),
            Self::Reset => "connects and is then reset".to_owned(),
            Self::Closed => "connects and is then closed without an answer".to_owned(),
            Self::Hang => format!("connects and then gets no answer within {}", duration(ANSWER_BOUND)),
            Self::Garbage { said } => format!("gets something that is no HTTP: {said}"),
        }
    }
}

/// `GET /health` of a TCP address, from the calling thread's namespace.
pub fn health(address: SocketAddr) -> Health {
    match dial::tcp(address, CONNECT_BOUND) {
        Ok(stream) => health_over(&stream, &address.to_string()),
        Err(error) => from_connect(&error),
    }
}

fn from_connect(error: &io::Error) -> Health {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Health::Refused,
        io::ErrorKind::ConnectionReset => Health::Reset,
        _ if is_timeout(error) => Health::ConnectTimeout,
        _ => Health::Unreachable { error: plain(error) },
    }
}

/// The operating system's words without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// The same over a connection that is there.
pub fn health_over(stream: &Stream, host: &str) -> Health {
    let request =
        format!("GET /health HTTP/1.1\r\nHost: {host}\r\nUser-Agent: envdctl\r\nConnection: close\r\n\r\n");
    exchange(stream, &request)
}

/// Sends a request and reads the status of its answer.
pub fn exchange(mut stream: &Stream, request: &str) -> Health {
    let begun = Instant::now();
    let ready = stream
        .set_read_timeout(Some(ANSWER_BOUND))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER_BOUND)))
        .and_then(|()| stream.write_all(request.as_bytes()));
    if let Err(error) = ready {
        return from_read(&error);
    }
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while begun.elapsed() < ANSWER_BOUND && head.len() < MAX_HEAD {
        match stream.read(&mut buffer) {
            Ok(0) if head.is_empty() => return Health::Closed,
            Ok(0) => break,
            Ok(read) => head.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return from_read(&error),
        }
        if head.contains(&b'\n') {
            return status_of(&head, begun.elapsed());
        }
    }
    if head.is_empty() { Health::Hang } else { status_of(&head, begun.elapsed()) }
}

fn from_read(error: &io::Error) -> Health {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => {
            Health::Reset
        }
        _ if is_timeout(error) => Health::Hang,
        _ => Health::Unreachable { error: plain(error) },
    }
}

/// The number in `HTTP/1.1 204 No Content`.
fn status_of(head: &[u8], took: Duration) -> Health {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let number = line
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok());
    number.map_or_else(
        || Health::Garbage { said: sanitise_bytes(&line[..line.len().min(60)]) },
        |status| Health::Answer { status, took },
    )
}

/// How a ping ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ping {
    Answered,
    Silent,
    Unreachable {
        error: String,
    },
    /// Could not be tried, for want of a right.
    Untried {
        error: String,
    },
}

/// Pings an address from the calling thread's namespace.
pub fn ping(address: IpAddr) -> Ping {
    let IpAddr::V4(address) = address else { return Ping::Untried { error: "IPv6 is not pinged".into() } };
    let socket = match Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)) {
        Ok(socket) => socket,
        Err(error) => return Ping::Untried { error: plain(&error) },
    };
    let id = nix::unistd::gettid().as_raw() as u16;
    for sequence in 1..=PINGS {
        match ping_once(&socket, address, id, sequence) {
            Ok(true) => return Ping::Answered,
            Ok(false) => {}
            Err(error) => return Ping::Unreachable { error: plain(&error) },
        }
    }
    Ping::Silent
}

fn ping_once(mut socket: &Socket, address: Ipv4Addr, id: u16, sequence: u16) -> io::Result<bool> {
    let begun = Instant::now();
    socket.send_to(&echo_request(id, sequence), &SocketAddr::new(address.into(), 0).into())?;
    let mut buffer = [0; 256];
    while let Some(left) = PING_BOUND.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut buffer) {
            Ok(read) if is_reply(&buffer[..read], address, id) => return Ok(true),
            Ok(_) => {}
            Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// An ICMP echo request with its checksum.
fn echo_request(id: u16, sequence: u16) -> [u8; 8] {
    let mut packet = [8, 0, 0, 0, 0, 0, 0, 0];
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let words = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}

/// An echo reply to us, behind its IPv4 header.
fn is_reply(packet: &[u8], from: Ipv4Addr, id: u16) -> bool {
    let Some(header) = packet.first().map(|first| usize::from(first & 0x0f) * 4) else { return false };
    packet.get(12..16) == Some(&from.octets())
        && packet.get(header..header + 2) == Some(&[0, 0])
        && packet.get(header + 4..header + 6) == Some(&id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// A server that takes one connection and does `work` with it.
    fn server(work: impl FnOnce(std::net::TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || work(listener.accept().unwrap().0));
        address
    }

    fn read_request(peer: &mut std::net::TcpStream) {
        let _ = peer.read(&mut [0; 1024]);
    }

    #[test]
    fn answers_and_their_absence_are_told_apart() {
        let well = server(|mut peer| {
            read_request(&mut peer);
            peer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        });
        assert!(health(well).is_well());
        let closed = server(|mut peer| read_request(&mut peer));
        assert_eq!(health(closed), Health::Closed);
        let junk = server(|mut peer| {
            read_request(&mut peer);
            peer.write_all(b"\x1b[2Jhello\r\n").unwrap();
        });
        assert_eq!(health(junk), Health::Garbage { said: "\\x1b[2Jhello\\x0d".into() });
    }

    #[test]
    fn a_reset_is_told_from_a_close() {
        // Closing with unread bytes makes the kernel send a reset.
        let reset = server(|peer| {
            let mut byte = [0];
            let _ = peer.peek(&mut byte);
        });
        assert_eq!(health(reset), Health::Reset);
    }

    #[test]
    fn a_port_without_a_listener_is_refused() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(health(free), Health::Refused);
    }

    #[test]
    fn an_echo_request_carries_a_right_checksum() {
        let packet = echo_request(0x1234, 1);
        let sum: u32 = packet.chunks_exact(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
