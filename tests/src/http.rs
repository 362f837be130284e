//! HTTP/1.1 over whatever stream leads to the guest, one connection a request, as the platform does it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

/// A connected stream of either family.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A request without its stream.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    pub method: &'a str,
    pub target: &'a str,
    pub headers: Vec<(&'a str, String)>,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Opens a stream to a guest's vsock port through the VMM's unix socket.
pub fn hybrid_vsock(socket: &Path, port: u32, bound: Duration) -> Result<UnixStream> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(bound))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\n") {
        if stream.read(&mut byte).context("waiting for the VMM's OK")? == 0 {
            bail!("the VMM closed instead of OK: nobody listens on vsock port {port} in the guest");
        }
        answer.push(byte[0]);
    }
    if !answer.starts_with(b"OK ") {
        bail!("the VMM answered {:?} instead of OK", String::from_utf8_lossy(&answer));
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// Sends the request and reads the whole answer, within `bound`.
pub fn send(stream: Stream, request: &Request<'_>, bound: Duration) -> Result<Response> {
    send_streaming(stream, request, bound, |_| true)
}

/// The same, and hands each piece of the body to `piece` as it comes; when that returns false the connection is closed.
pub fn send_streaming(
    stream: Stream,
    request: &Request<'_>,
    bound: Duration,
    piece: impl FnMut(&[u8]) -> bool,
) -> Result<Response> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exchange = async {
        match stream {
            Stream::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                exchange(tokio::net::TcpStream::from_std(stream)?, request, piece).await
            }
            Stream::Unix(stream) => {
                stream.set_nonblocking(true)?;
                exchange(tokio::net::UnixStream::from_std(stream)?, request, piece).await
            }
        }
    };
    runtime
        .block_on(async { tokio::time::timeout(bound, exchange).await })
        .with_context(|| {
            format!("no answer to {} {} within {} s", request.method, request.target, bound.as_secs())
        })?
        .with_context(|| format!("{} {}", request.method, request.target))
}

async fn exchange<S>(
    stream: S,
    request: &Request<'_>,
    mut piece: impl FnMut(&[u8]) -> bool,
) -> Result<Response>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(build(request)?).await?;
    let (parts, mut incoming): (_, Incoming) = response.into_parts();
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        if let Ok(data) = frame.context("the answer was cut off")?.into_data() {
            body.extend_from_slice(&data);
            if !piece(&data) {
                break;
            }
        }
    }
    connection.abort();
    Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body })
}

fn build(request: &Request<'_>) -> Result<hyper::Request<Full<Bytes>>> {
    let mut builder = hyper::Request::builder()
        .method(request.method)
        .uri(request.target)
        .header("host", "localhost:49983")
        .header("connection", "close");
    for (name, value) in &request.headers {
        builder = builder.header(*name, value);
    }
    Ok(builder.body(Full::new(Bytes::from(request.body.clone())))?)
}
