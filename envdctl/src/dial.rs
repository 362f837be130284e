//! Connecting to an endpoint of any kind, with a bound on the time it may take.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::SocketAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};
use vsock_relay::{
    endpoint::Endpoint,
    handshake::{self, Handshake, HandshakeError},
};

use crate::{
    exit::{Exit, Fatal},
    netns::{self, NetnsError},
};

/// The longest path (bytes) that fits into a socket's address.
const SUN_PATH: usize = 107;

/// A connected stream socket of any family: reading, writing and timeouts are the same system calls for all of them,
/// so the standard library's unix stream carries a TCP or vsock socket as well.
pub type Stream = UnixStream;

/// Why an endpoint was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot reach {endpoint}")]
    Connect { endpoint: Endpoint, source: io::Error },
    #[error("cannot reach {endpoint}")]
    Handshake { endpoint: Endpoint, source: HandshakeError },
    #[error("cannot reach {endpoint}: no answer to CONNECT within {} s (VM paused, hung or without a vsock driver)", waited.as_secs_f32())]
    NoAnswer { endpoint: Endpoint, waited: Duration },
    #[error("cannot reach {endpoint}")]
    Netns { endpoint: Endpoint, source: NetnsError },
}

impl DialError {
    /// The operating system's error, where there is one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Connect { source, .. }
            | Self::Handshake { source: HandshakeError::Io { source, .. }, .. } => Some(source),
            _ => None,
        }
    }
}

impl Fatal for DialError {
    fn exit(&self) -> Exit {
        match (self, self.io().map(io::Error::kind)) {
            (Self::Netns { source: NetnsError::NotPermitted { .. }, .. }, _)
            | (_, Some(io::ErrorKind::PermissionDenied)) => Exit::NotPermitted,
            _ => Exit::Unreachable,
        }
    }
}

/// Connects, handshake included, within `timeout`. Reads and writes of the stream are bounded by it as well.
pub fn dial(endpoint: &Endpoint, timeout: Duration) -> Result<Stream, DialError> {
    let connect = |source| DialError::Connect { endpoint: endpoint.clone(), source };
    match endpoint {
        Endpoint::Tcp(address) => tcp(*address, timeout).map_err(connect),
        Endpoint::NetnsTcp(namespace, address) => {
            netns::within(Some(&namespace.path()), || tcp(*address, timeout))
                .map_err(|source| DialError::Netns { endpoint: endpoint.clone(), source })?
                .map_err(connect)
        }
        Endpoint::Unix(path) => unix(path, timeout).map_err(connect),
        Endpoint::Firecracker { path, port } => {
            let stream = unix(path, timeout).map_err(connect)?;
            shake(&stream, *port, endpoint, timeout)?;
            Ok(stream)
        }
        Endpoint::Vsock { cid, port } => {
            connect_any(Domain::VSOCK, &SockAddr::vsock(*cid, *port), timeout).map_err(connect)
        }
    }
}

/// A TCP connection from the namespace of the calling thread.
pub fn tcp(address: SocketAddr, timeout: Duration) -> io::Result<Stream> {
    let stream = connect_any(Domain::for_address(address), &address.into(), timeout)?;
    Socket::from(OwnedFd::from(stream.try_clone()?)).set_tcp_nodelay(true)?;
    Ok(stream)
}

/// A unix socket; a path too long for an address is reached through its directory's descriptor.
pub fn unix(path: &Path, timeout: Duration) -> io::Result<Stream> {
    let directory;
    let mut short = PathBuf::from(path);
    if path.as_os_str().len() > SUN_PATH {
        let (parent, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        directory = File::open(parent)?;
        short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    }
    connect_any(Domain::UNIX, &SockAddr::unix(short)?, timeout)
}

fn connect_any(domain: Domain, address: &SockAddr, timeout: Duration) -> io::Result<Stream> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.connect_timeout(address, timeout)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    Ok(Stream::from(OwnedFd::from(socket)))
}

/// The host's side of the hybrid handshake. Reads byte by byte, so that what follows the answer stays unread.
fn shake(mut stream: &Stream, port: u32, endpoint: &Endpoint, timeout: Duration) -> Result<(), DialError> {
    let failed = |source| DialError::Handshake { endpoint: endpoint.clone(), source };
    let mut shake = Handshake::new(port);
    let request = handshake::request(port);
    match stream.write(request.as_bytes()) {
        Ok(sent) if sent == request.len() => {}
        Ok(_) => return Err(failed(HandshakeError::Split { port })),
        Err(error) => return Err(failed(shake.ended(Some(error)))),
    }
    let begun = Instant::now();
    let mut byte = [0];
    while begun.elapsed() < timeout {
        match stream.read(&mut byte) {
            Ok(0) => return Err(failed(shake.ended(None))),
            Ok(_) => {
                if shake.push(&byte).map_err(failed)?.is_some() {
                    return Ok(());
                }
            }
            Err(error) if is_timeout(&error) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(shake.ended(Some(error)))),
        }
    }
    Err(DialError::NoAnswer { endpoint: endpoint.clone(), waited: timeout })
}

/// Whether a read or write ended because its time was over.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    /// A VMM that answers the handshake with `answer` and then sends `payload`.
    fn vmm(path: &Path, answer: &'static [u8]) -> thread::JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut line = [0; 64];
            let read = peer.read(&mut line).unwrap();
            assert_eq!(handshake::parse_connect(&line[..read]), Some(7));
            peer.write_all(answer).unwrap();
        })
    }

    fn dial_vmm(answer: &'static [u8]) -> Result<Stream, DialError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let server = vmm(&path, answer);
        let result = dial(&Endpoint::Firecracker { path, port: 7 }, BOUND);
        server.join().unwrap();
        result
    }

    #[test]
    fn bytes_after_ok_are_left_for_the_reader() {
        let mut text = String::new();
        dial_vmm(b"OK 99\nhello").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_bare_close_says_that_nobody_listens_in_the_guest() {
        let error = dial_vmm(b"").unwrap_err();
        assert!(matches!(error, DialError::Handshake { source: HandshakeError::Refused { port: 7 }, .. }));
        assert_eq!(error.exit(), Exit::Unreachable);
    }

    #[test]
    fn a_path_too_long_for_an_address_is_reached_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let directory = File::open(&deep).unwrap();
        let _listener = UnixListener::bind(format!("/proc/self/fd/{}/s", directory.as_raw_fd())).unwrap();
        unix(&deep.join("s"), BOUND).unwrap();
    }

    #[test]
    fn silence_after_connect_is_told_from_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let _silent = UnixListener::bind(&path).unwrap();
        let error = dial(&Endpoint::Firecracker { path, port: 7 }, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, DialError::NoAnswer { .. }), "{error:?}");
    }
}
