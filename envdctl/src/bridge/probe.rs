//! The question that decides about a route: `GET /health`, end to end, answered by envd with 204.
//!
//! That a connect succeeds says nothing: in the failure that the bridge heals, TCP connects and is then reset, and
//! behind a VMM's socket the guest's kernel says OK with nobody alive behind it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use vsock_relay::endpoint::Endpoint;

use super::{
    broker::Broker,
    connect::{ConnectError, Limits, Stream, connect},
};

const REQUEST: &[u8] =
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nUser-Agent: envdctl-bridge\r\nConnection: close\r\n\r\n";
/// A VMM that has taken CONNECT answers when its VM goes on, however long that was paused: to ask again and again
/// meanwhile would only pile up connections in it. But there are VMMs that forget what was asked before the guest's driver came.
const PAUSED: Duration = Duration::from_secs(5);
/// A status line is shorter than this (bytes).
const ENOUGH: usize = 64;
/// What envd answers.
const WELL: u16 = 204;

/// Why a route is not well; each reads as the reason for leaving it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it connects, and GET /health is then cut off ({0})")]
    Cut(#[source] io::Error),
    #[error("it connects, and GET /health has no answer for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("it connects, and is then closed without an answer to GET /health")]
    Closed,
    #[error("GET /health is answered {0}, not 204: that is no healthy envd")]
    Status(u16),
    #[error("GET /health is answered with something that is not HTTP")]
    NotHttp,
}

/// How far a probe that is under way has come: says what is silent.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<AtomicBool>);

impl Progress {
    fn connected(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The reason to give when it has taken `silence` so far.
    pub(super) fn reason(&self, silence: Duration) -> String {
        let ms = silence.as_millis();
        if self.0.load(Ordering::Relaxed) {
            format!("it connects, and GET /health has no answer for {ms} ms")
        } else {
            format!("no answer to connecting for {ms} ms")
        }
    }
}

/// Asks once. Connecting and the answer have `limit` each.
pub(super) async fn probe(
    endpoint: &Endpoint,
    broker: Option<&Arc<Broker>>,
    progress: &Progress,
    limit: Duration,
) -> Result<(), ProbeError> {
    let limits = Limits { connect: limit, handshake: PAUSED };
    let mut connected = connect(endpoint, broker, limits).await?;
    progress.connected();
    let answer = timeout(limit, ask(&mut connected.stream, connected.early)).await;
    answer.map_err(|_| ProbeError::Silent(limit))?
}

async fn ask(stream: &mut Stream, early: Vec<u8>) -> Result<(), ProbeError> {
    stream.write_all(REQUEST).await.map_err(ProbeError::Cut)?;
    let mut head = early;
    while head.len() < ENOUGH && !head.contains(&b'\n') {
        let count = stream.read_buf(&mut head).await.map_err(ProbeError::Cut)?;
        if count == 0 {
            return Err(if head.is_empty() { ProbeError::Closed } else { ProbeError::NotHttp });
        }
    }
    match status(&head) {
        Some(WELL) => Ok(()),
        Some(other) => Err(ProbeError::Status(other)),
        None => Err(ProbeError::NotHttp),
    }
}

/// The status of `HTTP/1.1 204 …`.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.strip_prefix(b"HTTP/1.")?;
    let (digits, rest) = line.get(2..)?.split_at_checked(3)?;
    let ends = rest.first().is_none_or(|byte| matches!(byte, b' ' | b'\r' | b'\n'));
    let plain = line[1] == b' ' && ends && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_has_a_status() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.0 502\r\n"), Some(502));
        for other in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/1.1 2",
            b"HTTP/1.1 2040 x\r\n",
            b"HTTP/1.1 -04 x",
            b"SSH-2.0-x\r\n",
        ] {
            assert_eq!(status(other), None, "{other:?}");
        }
    }
}
