//! Load on `bench_server` (see `tests/peers/bench_server.c` for its commands), through whatever stands before it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

const CHUNK: usize = 256 * 1024;

/// Which way the bytes go, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// One connection's answer to a single-byte request.
pub(crate) fn one_byte<S>(stream: S) -> Result<()>
where
    S: Read + Write,
{
    let mut stream = stream;
    stream.write_all(b"c")?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(())
}

fn connect(socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))
}

/// Moves `bytes` over one connection; MB/s.
pub(crate) fn throughput(socket: &Path, way: Way, bytes: u64) -> Result<f64> {
    let mut stream = connect(socket)?;
    let begin = Instant::now();
    transfer(&mut stream, way, bytes)?;
    Ok(bytes as f64 / 1e6 / begin.elapsed().as_secs_f64())
}

/// Moves `bytes` over each of `connections` at the same time; MB/s of all together.
pub(crate) fn parallel_throughput(socket: &Path, way: Way, bytes: u64, connections: usize) -> Result<f64> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..connections).map(|_| scope.spawn(|| transfer(&mut connect(socket)?, way, bytes))).collect();
        workers.into_iter().try_for_each(join)
    })?;
    Ok((bytes * connections as u64) as f64 / 1e6 / begin.elapsed().as_secs_f64())
}

fn join(worker: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    worker.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))?
}

fn transfer(stream: &mut UnixStream, way: Way, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    match way {
        Way::Up => give(stream, bytes, &buffer),
        Way::Down => take(stream, bytes, &mut buffer),
    }
}

fn give(stream: &mut UnixStream, bytes: u64, buffer: &[u8]) -> Result<()> {
    command(stream, b's', bytes)?;
    let mut left = bytes as usize;
    while left > 0 {
        let n = left.min(buffer.len());
        stream.write_all(&buffer[..n])?;
        left -= n;
    }
    stream.read_exact(&mut [0]).context("the server's acknowledgement")
}

fn take(stream: &mut UnixStream, bytes: u64, buffer: &mut [u8]) -> Result<()> {
    command(stream, b'g', bytes)?;
    let mut left = bytes as usize;
    while left > 0 {
        let n = stream.read(buffer)?;
        ensure!(n > 0, "the connection ended {left} bytes early");
        left -= n;
    }
    Ok(())
}

fn command(stream: &mut UnixStream, what: u8, bytes: u64) -> Result<()> {
    let mut line = [0; 9];
    line[0] = what;
    line[1..].copy_from_slice(&bytes.to_be_bytes());
    Ok(stream.write_all(&line)?)
}

/// New connections, each with a request and an answer of one byte, by `workers` side by side; connections/s.
pub(crate) fn connects(socket: &Path, count: usize, workers: usize) -> Result<f64> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|_| scope.spawn(|| (0..count / workers).try_for_each(|_| one_byte(connect(socket)?))))
            .collect();
        workers.into_iter().try_for_each(join)
    })?;
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

/// Round trips of `size` bytes over one connection; microseconds each.
pub(crate) fn round_trips(socket: &Path, size: usize, count: usize) -> Result<Vec<f64>> {
    let mut stream = connect(socket)?;
    stream.write_all(b"e")?;
    let mut buffer = vec![7; size];
    (0..count)
        .map(|_| {
            let begin = Instant::now();
            stream.write_all(&buffer)?;
            stream.read_exact(&mut buffer)?;
            Ok(begin.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}
