//! One connection over a route, handshake included, without waiting longer than is given.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    sync::Arc,
    time::Duration,
};

use tokio::{net::UnixStream, time::timeout};
use vsock_relay::{
    endpoint::Endpoint,
    handshake::{self, Handshake, HandshakeError},
    socket::{self, Dialed},
};

use super::{
    broker::{Broker, BrokerError},
    target::Target,
};

/// How long a unix socket whose backlog is full is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// A connected stream socket of any family: reading, writing and shutting down are the same system calls for all.
pub(super) type Stream = UnixStream;

/// A route that is open.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) stream: Target,
    /// What the target sent along with its handshake.
    pub(super) early: Vec<u8>,
}

/// Why a route could not be opened; each reads as the reason for leaving the route.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("connecting fails ({0})")]
    Connect(#[source] io::Error),
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Broker(#[from] BrokerError),
    #[error("no answer to the connect for {} ms: packets are dropped on the way", .0.as_millis())]
    Silent(Duration),
    #[error("no answer to CONNECT for {} ms: the VM hangs, is paused or has no vsock driver", .0.as_millis())]
    SilentVmm(Duration),
}

/// How long opening a route may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connect: Duration,
    /// For a VMM's answer to CONNECT.
    pub(super) handshake: Duration,
}

/// Opens `endpoint` within `limits`.
pub(super) async fn connect(
    endpoint: &Endpoint,
    broker: Option<&Arc<Broker>>,
    limits: Limits,
) -> Result<Connected, ConnectError> {
    let stream = timeout(limits.connect, open(endpoint, broker))
        .await
        .map_err(|_| ConnectError::Silent(limits.connect))??;
    match endpoint {
        Endpoint::Firecracker { port, .. } => timeout(limits.handshake, shake(stream, *port))
            .await
            .map_err(|_| ConnectError::SilentVmm(limits.handshake))?,
        _ => Ok(Connected { stream: Target::new(stream, false), early: Vec::new() }),
    }
}

async fn open(endpoint: &Endpoint, broker: Option<&Arc<Broker>>) -> Result<Stream, ConnectError> {
    loop {
        match start(endpoint, broker).await? {
            Ok(Dialed::Connected(socket)) => return adopt(socket).map_err(ConnectError::Connect),
            Ok(Dialed::Pending(socket)) => return pending(socket).await.map_err(ConnectError::Connect),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(BUSY_PAUSE).await,
            Err(error) => return Err(ConnectError::Connect(error)),
        }
    }
}

/// Namespaces, and sockets that this process may not reach itself, are opened by the broker.
async fn start(
    endpoint: &Endpoint,
    broker: Option<&Arc<Broker>>,
) -> Result<io::Result<Dialed>, ConnectError> {
    match (endpoint, broker) {
        (Endpoint::NetnsTcp(namespace, address), Some(broker)) => {
            let socket = broker.netns_socket(&namespace.path(), address.is_ipv6()).await?;
            Ok(socket::dial_on(socket, endpoint))
        }
        (Endpoint::NetnsTcp(..), None) => Err(BrokerError::Absent.into()),
        (Endpoint::Unix(path) | Endpoint::Firecracker { path, .. }, Some(broker)) => {
            match socket::dial(endpoint) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    match broker.unix_connect(path).await {
                        Err(BrokerError::Unix { source, .. })
                            if source.kind() == io::ErrorKind::WouldBlock =>
                        {
                            Ok(Err(source))
                        }
                        result => Ok(Ok(Dialed::Connected(result?))),
                    }
                }
                result => Ok(result),
            }
        }
        _ => Ok(socket::dial(endpoint)),
    }
}

pub(super) fn adopt(socket: OwnedFd) -> io::Result<Stream> {
    Stream::from_std(StdStream::from(socket))
}

async fn pending(socket: OwnedFd) -> io::Result<Stream> {
    let stream = adopt(socket)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// The hybrid handshake: the line in one write, nothing more before the answer, and what follows it is payload.
async fn shake(stream: Stream, port: u32) -> Result<Connected, ConnectError> {
    let stream = Target::new(stream, true);
    let request = handshake::request(port);
    let mut handshake = Handshake::new(port);
    // A socket that was just adopted counts as not writable until the reactor has looked at it.
    stream.writable().await.map_err(|error| handshake.ended(Some(error)))?;
    match stream.try_write(request.as_bytes()) {
        Ok(sent) if sent == request.len() => {}
        Ok(_) => return Err(HandshakeError::Split { port }.into()),
        Err(error) => return Err(handshake.ended(Some(error)).into()),
    }
    let mut answer = [0; 4096];
    loop {
        stream.readable().await.map_err(|error| handshake.ended(Some(error)))?;
        match stream.try_read(&mut answer) {
            Ok(0) => return Err(handshake.ended(None).into()),
            Ok(count) => {
                if let Some(opened) = handshake.push(&answer[..count])? {
                    return Ok(Connected { stream, early: answer[opened.used..count].to_vec() });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(handshake.ended(Some(error)).into()),
        }
    }
}
