//! Load: connections in bursts, echoes, idlers, slow peers, early answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Door, ENVD, PEER};

/// Clients at once in a burst.
const CLIENTS: usize = 16;
/// Threads that move echoes need little stack (bytes).
const STACK: usize = 128 * 1024;

/// `count` connections to envd in bursts, each a request of its own; none may be lost.
pub fn bursts(door: &Door, count: usize) -> Result<()> {
    let (next, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    lost.fetch_add(usize::from(!door.is_healthy()), Ordering::Relaxed);
                }
            });
        }
    });
    let lost = lost.into_inner();
    ensure!(lost == 0, "{lost} of {count} connections were lost");
    Ok(())
}

/// `count` echoes of `size` bytes at once; each must come back as it went.
pub fn echoes(door: &Door, count: usize, size: usize, seed: u64) -> Result<()> {
    each_of(count, |number| echo(&door.open(PEER)?, seed.wrapping_add(number as u64), size))
}

/// Runs `work` for each number at once; what failed is counted, and the first failure told.
fn each_of(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let failures: Vec<_> = thread::scope(|scope| {
        let start = |number| {
            let work = &work;
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || work(number))
        };
        let threads: Vec<_> = (0..count).map(start).collect();
        let ends = threads.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => Err(error.into()),
        });
        ends.filter_map(Result::err).collect()
    });
    match failures.first() {
        Some(first) => bail!("{} of {count} failed; the first: {first:#}", failures.len()),
        None => Ok(()),
    }
}

fn echo(stream: &UnixStream, seed: u64, size: usize) -> Result<()> {
    let (mut source, mut sink) = (stream, stream);
    let bytes = noise(seed, size);
    let mut back = vec![0; size];
    thread::scope(|scope| -> Result<()> {
        let sender = thread::Builder::new().stack_size(STACK);
        let sending = sender.spawn_scoped(scope, || {
            sink.write_all(b"e")?;
            sink.write_all(&bytes)
        })?;
        source.read_exact(&mut back).context("reading the echo")?;
        sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("sending")
    })?;
    ensure!(
        back == bytes,
        "the echo of seed {seed} differs from byte {:?} on",
        first_difference(&back, &bytes)
    );
    Ok(())
}

fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    one.iter().zip(other).position(|(one, other)| one != other)
}

/// Bytes that no two seeds share (xorshift).
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(step).take(size).collect()
}

/// `count` connections that have said one word and are then silent: held open by the caller.
pub fn idlers(door: &Door, count: usize) -> Result<Vec<UnixStream>> {
    let open = (0..count).map(|_| door.open(PEER)).collect::<Result<Vec<_>>>()?;
    for mut stream in &open {
        stream.write_all(b"e")?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0; 1]).context("the echo of an idler's one byte")?;
    }
    Ok(open)
}

/// Every idler is still served.
pub fn wake_idlers(idlers: &[UnixStream]) -> Result<()> {
    for mut stream in idlers {
        stream.write_all(b"again")?;
        let mut back = [0; 5];
        stream.read_exact(&mut back).context("the echo of an idler that woke")?;
        ensure!(&back == b"again", "an idler got {back:?}");
    }
    Ok(())
}

/// A request that envd refuses before it was read to its end: the answer must reach a client that still sends.
pub fn early_refusal(door: &Door) -> Result<()> {
    let mut stream = door.open(ENVD)?;
    // More header than any server takes (431), followed by a body without end.
    let head = format!("POST /files?path=/tmp/x HTTP/1.1\r\nHost: x\r\nX-Long: {}", "x".repeat(1 << 16));
    let sender = stream.try_clone()?;
    let answer = thread::scope(|scope| {
        scope.spawn(|| {
            let _ = (&sender).write_all(head.as_bytes());
            let block = vec![b'x'; 1 << 16];
            while (&sender).write_all(&block).is_ok() {}
        });
        let mut line = [0; 12];
        let answer = stream.read_exact(&mut line).map(|()| String::from_utf8_lossy(&line).into_owned());
        let _ = sender.shutdown(std::net::Shutdown::Both);
        answer
    });
    let answer = answer.context("reading the refusal")?;
    ensure!(answer.starts_with("HTTP/1.1 4"), "the refusal read {answer:?}");
    Ok(())
}

/// A client that reads a little at a time gets `size` bytes whole.
pub fn slow_reader(door: &Door, size: usize) -> Result<()> {
    let mut stream = door.open(PEER)?;
    stream.write_all(&[&b"g"[..], &(size as u64).to_be_bytes()].concat())?;
    let (mut taken, mut buffer) = (0, vec![0; 32 * 1024]);
    loop {
        match stream.read(&mut buffer).context("reading slowly")? {
            0 => break,
            count => taken += count,
        }
        thread::sleep(Duration::from_millis(2));
    }
    ensure!(taken == size, "a slow reader got {taken} of {size} bytes");
    Ok(())
}

/// A client that writes a little at a time is heard to its end.
pub fn slow_writer(door: &Door, size: usize) -> Result<()> {
    let mut stream = door.open(PEER)?;
    stream.write_all(&[&b"s"[..], &(size as u64).to_be_bytes()].concat())?;
    for chunk in vec![b'x'; size].chunks(16 * 1024) {
        stream.write_all(chunk)?;
        thread::sleep(Duration::from_millis(1));
    }
    stream.read_exact(&mut [0; 1]).context("the word that all has arrived")
}
