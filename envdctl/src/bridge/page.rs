//! The page of metrics: the little HTTP that a scrape needs, on an address or unix socket of the operator's choice.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    sync::Semaphore,
    time::timeout,
};
use vsock_relay::socket;

use super::connect::{Stream, adopt};

/// The longest request head (bytes), and how long it may take.
const MAX_HEAD: usize = 8 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// Scrapes at once.
const SCRAPES: usize = 8;
const PAUSE: Duration = Duration::from_millis(200);

/// Serves `render` as `/metrics` until the task is dropped.
pub(super) async fn serve(
    listener: OwnedFd,
    render: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> io::Result<()> {
    let listener = adopt(listener)?;
    let scrapes = Arc::new(Semaphore::new(SCRAPES));
    loop {
        let Ok(permit) = Arc::clone(&scrapes).acquire_owned().await else { return Ok(()) };
        let accepted = listener.async_io(Interest::READABLE, || Ok(socket::accept(&listener)?)).await;
        let Ok(stream) = accepted.and_then(adopt) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let render = render.clone();
        tokio::spawn(async move {
            // A scraper that is slow or gone has itself to blame.
            let _ = timeout(PATIENCE, answer(stream, render)).await;
            drop(permit);
        });
    }
}

async fn answer(mut stream: Stream, render: impl Fn() -> String) -> io::Result<()> {
    let mut head = Vec::new();
    while !ends(&head) {
        if head.len() > MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, kind, body) = respond(&head, render);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn ends(head: &[u8]) -> bool {
    head.windows(4).any(|window| window == b"\r\n\r\n") || head.windows(2).any(|window| window == b"\n\n")
}

fn respond(head: &[u8], render: impl Fn() -> String) -> (&'static str, &'static str, String) {
    let line = head.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    match (method, path) {
        (b"GET", b"/metrics" | b"/") => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", render()),
        (b"GET", _) => ("404 Not Found", "text/plain", "only /metrics is here\n".into()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET is answered\n".into()),
    }
}
