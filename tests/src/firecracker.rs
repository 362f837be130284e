//! A VMM's socket that behaves as Firecracker's does, in front of one that is kinder.
//!
//! | Firecracker | here |
//! |---|---|
//! | reads `CONNECT port\n` without waiting | a line that is not there whole at the first look is a bare close, and counted |
//! | answers OK with a local port from 2^30 up | the same |
//! | half-close of the host: both directions end in the guest, what the guest still sends is dropped | the same |
//! | half-close of the guest: the host never sees it | the same, as vhost-device-vsock already hides it |
//! | every failure is a bare close | the same |
//! | 1023 connections at most | the same |

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};

use crate::{http, wait};

/// Connections that Firecracker holds at most.
const LIMIT: usize = 1023;
/// The longest line that it reads (bytes).
const LINE: usize = 32;
const CHUNK: usize = 64 * 1024;

/// Lives as long as its owner; connections that are open go on.
#[derive(Debug)]
pub struct Firecracker {
    path: PathBuf,
    listener: UnixListener,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The kinder VMM's socket.
    behind: PathBuf,
    open: AtomicUsize,
    split: AtomicUsize,
    next_port: AtomicU32,
}

impl Firecracker {
    /// Listens at `path` in front of the VMM's socket `behind`.
    pub fn before(behind: &Path, path: &Path) -> Result<Self> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
        let shared = Arc::new(Shared {
            behind: behind.to_owned(),
            open: AtomicUsize::new(0),
            split: AtomicUsize::new(0),
            next_port: AtomicU32::new(1 << 30),
        });
        let (accepting, given) = (listener.try_clone()?, Arc::clone(&shared));
        thread::Builder::new().name("firecracker".into()).spawn(move || {
            while let Ok((host, _)) = accepting.accept() {
                let shared = Arc::clone(&given);
                thread::spawn(move || shared.serve(host));
            }
        })?;
        Ok(Self { path: path.to_owned(), listener, shared })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many CONNECT lines came in pieces, or were none.
    pub fn split(&self) -> usize {
        self.shared.split.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

impl Drop for Firecracker {
    fn drop(&mut self) {
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn serve(&self, host: UnixStream) {
        if self.open.fetch_add(1, Ordering::SeqCst) < LIMIT {
            let _ = self.carry(host);
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn carry(&self, mut host: UnixStream) -> Result<()> {
        let port = match whole_line(&host)? {
            Line::Connect(port) => port,
            Line::Split => {
                self.split.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            Line::None => return Ok(()),
        };
        let guest = http::hybrid_vsock(&self.behind, port, wait::BOUND)?;
        let local = self.next_port.fetch_add(1, Ordering::SeqCst);
        host.write_all(format!("OK {local}\n").as_bytes())?;
        let (dropped, guest_again) = (AtomicBool::new(false), guest.try_clone()?);
        thread::scope(|scope| {
            scope.spawn(|| to_the_guest(&host, &guest, &dropped));
            to_the_host(&guest_again, &host, &dropped);
        });
        Ok(())
    }
}

/// The host's end is a full close for the guest; the guest's own end loses nothing of what it has sent.
fn to_the_guest(mut host: &UnixStream, mut guest: &UnixStream, dropped: &AtomicBool) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = host.read(&mut buffer) {
        if guest.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    dropped.store(true, Ordering::SeqCst);
    let _ = guest.shutdown(Shutdown::Write);
}

/// What a host has said first.
enum Line {
    Connect(u32),
    /// A piece of a line, or another one.
    Split,
    /// Nothing: it has left.
    None,
}

/// What is there at the first look must be the whole line.
fn whole_line(host: &UnixStream) -> Result<Line> {
    let mut line = [0; LINE];
    let first = nix::sys::socket::recv(host.as_raw_fd(), &mut line, nix::sys::socket::MsgFlags::MSG_PEEK)?;
    let end = line[..first].iter().position(|byte| *byte == b'\n');
    (&*host).read_exact(&mut line[..end.map_or(first, |end| end + 1)])?;
    let Some(end) = end else { return Ok(if first == 0 { Line::None } else { Line::Split }) };
    let text = std::str::from_utf8(&line[..end]).unwrap_or_default();
    let port = text.strip_prefix("CONNECT ").and_then(|port| port.parse().ok());
    Ok(port.map_or(Line::Split, Line::Connect))
}

/// Until the guest has closed as a whole; then the host's socket is closed too.
fn to_the_host(mut guest: &UnixStream, mut host: &UnixStream, dropped: &AtomicBool) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = guest.read(&mut buffer) {
        if !dropped.load(Ordering::SeqCst) && host.write_all(&buffer[..count]).is_err() {
            // The other direction learns it from the host's end.
            let _ = host.shutdown(Shutdown::Both);
            dropped.store(true, Ordering::SeqCst);
        }
    }
    let _ = host.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A kind VMM: OK, and what it hears is sent back, the end included.
    fn kind_vmm(path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let _ = whole_line(&stream);
                    let _ = (&stream).write_all(b"OK 49983\n");
                    thread::sleep(Duration::from_millis(50));
                    let _ = std::io::copy(&mut &stream, &mut &stream);
                });
            }
        });
    }

    #[test]
    fn a_split_line_is_closed_a_port_is_random_and_a_half_close_is_a_whole_one() {
        let dir = std::env::temp_dir().join(format!("fc-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        kind_vmm(&dir.join("kind"));
        let firecracker = Firecracker::before(&dir.join("kind"), &dir.join("v.sock")).unwrap();
        let mut split = UnixStream::connect(firecracker.path()).unwrap();
        split.write_all(b"CONNECT 4").unwrap();
        assert_eq!(split.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(firecracker.split(), 1);
        let mut stream = UnixStream::connect(firecracker.path()).unwrap();
        stream.write_all(b"CONNECT 49983\n").unwrap();
        let mut answer = [0; 14];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"OK 1073741824\n");
        stream.write_all(b"echo").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "what the guest sent after the host's half-close is lost");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
