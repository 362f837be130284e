//! The hybrid handshake: how a process on the host reaches a vsock port of the guest through a unix socket.
//!
//! ```text
//! host                                     VMM
//!   CONNECT 49983\n                   →         in ONE write: Firecracker reads it without waiting, and
//!                                               closes on a line that has not arrived whole
//!                                     ←  OK 1073741824\n   any u32; bytes after the newline are payload
//! ```
//!
//! Every refusal (bad line, nobody listens in the guest, backlog full, too many connections) is a bare close: end of
//! file, `EPIPE` or `ECONNRESET`, never a text. `OK` proves only that the guest's kernel queued the connection.
//! Payload must not be sent before `OK` has arrived: vhost-device-vsock answers that with a reset.

use std::io;

/// The longest line of either side (bytes), as Firecracker reads it.
pub const MAX_LINE: usize = 32;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("the VMM closed without an answer to CONNECT {port}: nothing in the guest takes the connection")]
    Refused { port: u32 },
    #[error("the VMM answered CONNECT {port} with {answer:?} instead of OK")]
    Answer { port: u32, answer: String },
    #[error("the VMM did not take CONNECT {port} in one piece")]
    Split { port: u32 },
    #[error("CONNECT {port} failed")]
    Io { port: u32, source: io::Error },
}

/// The line that asks for `port`; to be sent in one write.
pub fn request(port: u32) -> String {
    format!("CONNECT {port}\n")
}

/// The host's side: collects the answer.
#[derive(Debug)]
pub struct Handshake {
    port: u32,
    line: Vec<u8>,
}

/// The port is open.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// The port on the host's end, as the VMM named it.
    pub local_port: u32,
    /// How many of the bytes given to [`Handshake::push`] belong to the answer; those after are payload.
    pub used: usize,
}

impl Handshake {
    pub fn new(port: u32) -> Self {
        Self { port, line: Vec::with_capacity(MAX_LINE) }
    }

    /// Takes in what was read; `Ok(None)` while the line is not whole.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Opened>, HandshakeError> {
        let room = MAX_LINE - self.line.len();
        let window = &bytes[..bytes.len().min(room)];
        let Some(at) = window.iter().position(|byte| *byte == b'\n') else {
            self.line.extend_from_slice(window);
            return if self.line.len() < MAX_LINE { Ok(None) } else { Err(self.unexpected()) };
        };
        self.line.extend_from_slice(&window[..at]);
        let local_port = parse_ok(&self.line).ok_or_else(|| self.unexpected())?;
        Ok(Some(Opened { local_port, used: at + 1 }))
    }

    /// The peer closed, or the socket failed, before the answer was whole.
    pub fn ended(&self, source: Option<io::Error>) -> HandshakeError {
        match source {
            Some(source) if !is_quiet_end(&source) => HandshakeError::Io { port: self.port, source },
            _ if self.line.is_empty() => HandshakeError::Refused { port: self.port },
            _ => self.unexpected(),
        }
    }

    fn unexpected(&self) -> HandshakeError {
        let answer = String::from_utf8_lossy(&self.line).into_owned();
        HandshakeError::Answer { port: self.port, answer }
    }
}

/// `OK <u32>`, as any VMM writes it.
fn parse_ok(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"OK ")?;
    let digits = digits.strip_suffix(b"\r").unwrap_or(digits);
    parse_port(digits)
}

/// The VMM's side, for stand-ins: the port of a whole `CONNECT <u32>\n`.
pub fn parse_connect(line: &[u8]) -> Option<u32> {
    parse_port(line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?)
}

fn parse_port(digits: &[u8]) -> Option<u32> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

/// Whether an error is only the transport's way to say that the peer is gone: after a vsock reset a `recv` gives
/// 0 first and `ENOTCONN` afterwards, and a closed peer shows as `EPIPE` or `ECONNRESET`.
pub fn is_quiet_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_after_ok_are_payload() {
        let opened = Handshake::new(1).push(b"OK 1073741824\nHTTP").unwrap().unwrap();
        assert_eq!(opened, Opened { local_port: 1 << 30, used: 14 });
    }

    #[test]
    fn an_answer_may_arrive_byte_by_byte() {
        let mut handshake = Handshake::new(1);
        for byte in b"OK 7" {
            assert!(handshake.push(&[*byte]).unwrap().is_none());
        }
        assert_eq!(handshake.push(b"\n").unwrap().unwrap().local_port, 7);
    }

    #[test]
    fn anything_but_ok_is_named() {
        for answer in
            [&b"NO 1\n"[..], b"OK\n", b"OK -1\n", b"OK 4294967296\n", b"OK 1 2\n", b"\n", &[b'O'; 40]]
        {
            assert!(Handshake::new(1).push(answer).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn a_bare_close_is_a_refusal_and_a_real_error_keeps_its_source() {
        let handshake = Handshake::new(5);
        assert!(matches!(handshake.ended(None), HandshakeError::Refused { port: 5 }));
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(matches!(handshake.ended(Some(reset)), HandshakeError::Refused { .. }));
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(matches!(handshake.ended(Some(other)), HandshakeError::Io { .. }));
    }

    #[test]
    fn connect_lines_are_strict() {
        assert_eq!(parse_connect(b"CONNECT 49983\n"), Some(49983));
        for line in
            [&b"CONNECT 49983"[..], b"CONNECT\n", b"connect 1\n", b"CONNECT +1\n", b"CONNECT 4294967296\n"]
        {
            assert_eq!(parse_connect(line), None, "{line:?}");
        }
    }
}
