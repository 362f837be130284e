//! Load on `bench_server` (see `tests/peers/bench_server.c` for its commands), through whatever stands before it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tests::http::hybrid_vsock;

use crate::row::percentile;

const CHUNK: usize = 256 * 1024;
/// What answers at all answers sooner.
const BOUND: Duration = Duration::from_secs(60);

/// Where a client connects.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    Unix(PathBuf),
    /// A guest's vsock port, through the VMM's unix socket.
    Vsock(PathBuf, u32),
    Tcp(SocketAddr),
}

/// Which way the bytes go: from the client, who is on the host, or to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    HostToGuest,
    GuestToHost,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::HostToGuest, Self::GuestToHost];

    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            Self::HostToGuest => "h2g",
            Self::GuestToHost => "g2h",
        }
    }
}

pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Door {
    pub(crate) fn connect(&self) -> Result<Box<dyn Stream>> {
        match self {
            Self::Unix(path) => {
                let stream =
                    UnixStream::connect(path).with_context(|| format!("connect {}", path.display()))?;
                stream.set_read_timeout(Some(BOUND))?;
                Ok(Box::new(stream))
            }
            Self::Vsock(socket, port) => {
                let stream = hybrid_vsock(socket, *port, BOUND)?;
                stream.set_read_timeout(Some(BOUND))?;
                Ok(Box::new(stream))
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, BOUND)
                    .with_context(|| format!("connect {address}"))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(BOUND))?;
                Ok(Box::new(stream))
            }
        }
    }

    /// Waits until a connection is answered end to end.
    pub(crate) fn wait(&self) -> Result<()> {
        tests::wait::until(&format!("{self:?} to answer"), BOUND, || {
            Ok(self.connect().and_then(|mut stream| one_byte(stream.as_mut())).ok())
        })
    }

    /// Moves `bytes` over one connection; MB/s.
    pub(crate) fn throughput(&self, way: Way, bytes: u64) -> Result<f64> {
        let mut stream = self.connect()?;
        let begin = Instant::now();
        transfer(stream.as_mut(), way, bytes)?;
        Ok(bytes as f64 / 1e6 / begin.elapsed().as_secs_f64())
    }

    /// Moves `bytes` over one connection and leaves it open.
    pub(crate) fn transfer(&self, way: Way, bytes: u64) -> Result<Box<dyn Stream>> {
        let mut stream = self.connect()?;
        transfer(stream.as_mut(), way, bytes)?;
        Ok(stream)
    }

    /// Moves `bytes` in all over `connections` at the same time; MB/s of all together.
    pub(crate) fn throughput_of_many(&self, way: Way, bytes: u64, connections: usize) -> Result<f64> {
        let share = bytes / connections as u64;
        let mut streams = (0..connections).map(|_| self.connect()).collect::<Result<Vec<_>>>()?;
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> = streams
                .iter_mut()
                .map(|stream| scope.spawn(|| transfer(stream.as_mut(), way, share)))
                .collect();
            workers.into_iter().try_for_each(join)
        })?;
        Ok(bytes as f64 / 1e6 / begin.elapsed().as_secs_f64())
    }

    /// New connections, each with a request and an answer of one byte, by `workers` side by side; connections/s.
    pub(crate) fn connects_per_second(&self, count: usize, workers: usize) -> Result<f64> {
        let one = || one_byte(self.connect()?.as_mut());
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..workers).map(|_| scope.spawn(|| (0..count / workers).try_for_each(|_| one()))).collect();
            workers.into_iter().try_for_each(join)
        })?;
        Ok(count as f64 / begin.elapsed().as_secs_f64())
    }

    /// Round trips of `size` bytes over one connection.
    pub(crate) fn round_trips(&self, size: usize, count: usize) -> Result<Spread> {
        let mut stream = self.connect()?;
        stream.write_all(b"e")?;
        let mut buffer = vec![7; size];
        let times = (0..count).map(|_| {
            let begin = Instant::now();
            stream.write_all(&buffer)?;
            stream.read_exact(&mut buffer)?;
            Ok(begin.elapsed().as_secs_f64() * 1e6)
        });
        Ok(Spread::of(&times.collect::<Result<Vec<_>>>()?))
    }

    /// New connections with `GET /health` each, one after the other; microseconds from connect to the status.
    pub(crate) fn health_times(&self, count: usize) -> Result<Spread> {
        let times = (0..count).map(|_| {
            let begin = Instant::now();
            health(self.connect()?.as_mut())?;
            Ok(begin.elapsed().as_secs_f64() * 1e6)
        });
        Ok(Spread::of(&times.collect::<Result<Vec<_>>>()?))
    }

    /// Connections over which one byte went and came back, and which now rest.
    pub(crate) fn idle_connections(&self, count: usize) -> Result<Vec<Box<dyn Stream>>> {
        (0..count)
            .map(|_| {
                let mut stream = self.connect()?;
                stream.write_all(b"e1")?;
                stream.read_exact(&mut [0]).context("the echo")?;
                Ok(stream)
            })
            .collect()
    }
}

/// Median and 99th percentile, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Spread {
    fn of(times: &[f64]) -> Self {
        Self { p50: percentile(times, 0.5), p99: percentile(times, 0.99) }
    }
}

/// A single-byte request and its answer.
fn one_byte(stream: &mut dyn Stream) -> Result<()> {
    stream.write_all(b"c")?;
    stream.read_exact(&mut [0]).context("the answer of one byte")
}

/// `GET /health` must be answered 204.
pub(crate) fn health(stream: &mut dyn Stream) -> Result<()> {
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line).context("the answer to GET /health")?;
    ensure!(
        status_line.ends_with(b" 204"),
        "GET /health answered {:?}",
        String::from_utf8_lossy(&status_line)
    );
    Ok(())
}

fn transfer(stream: &mut dyn Stream, way: Way, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    match way {
        Way::HostToGuest => give(stream, bytes, &buffer),
        Way::GuestToHost => take(stream, bytes, &mut buffer),
    }
}

fn give(stream: &mut dyn Stream, bytes: u64, buffer: &[u8]) -> Result<()> {
    command(stream, b's', bytes)?;
    let mut left = bytes as usize;
    while left > 0 {
        let n = left.min(buffer.len());
        stream.write_all(&buffer[..n])?;
        left -= n;
    }
    stream.read_exact(&mut [0]).context("the server's acknowledgement")
}

fn take(stream: &mut dyn Stream, bytes: u64, buffer: &mut [u8]) -> Result<()> {
    command(stream, b'g', bytes)?;
    let mut left = bytes as usize;
    while left > 0 {
        let n = stream.read(buffer)?;
        ensure!(n > 0, "the connection ended {left} bytes early");
        left -= n;
    }
    Ok(())
}

fn command(stream: &mut dyn Stream, what: u8, bytes: u64) -> Result<()> {
    let mut line = [0; 9];
    line[0] = what;
    line[1..].copy_from_slice(&bytes.to_be_bytes());
    Ok(stream.write_all(&line)?)
}

fn join(worker: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    worker.join().map_err(|_| anyhow!("a load thread panicked"))?
}
