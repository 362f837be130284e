//! Reads and digests a stream in a thread of its own, so that whoever uses the bytes does not wait for either.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use sha2::{Digest, Sha256};

use crate::hash::hex;

const BLOCK: usize = 256 << 10;
/// Blocks that may wait to be used.
const AHEAD: usize = 16;

/// A stream that is read ahead.
#[derive(Debug)]
pub(super) struct ReadAhead {
    blocks: Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    used: usize,
    thread: JoinHandle<String>,
}

impl ReadAhead {
    pub(super) fn new(input: impl Read + Send + 'static) -> Self {
        let (sender, blocks) = sync_channel(AHEAD);
        let thread = thread::spawn(move || read(input, &sender));
        Self { blocks, block: Vec::new(), used: 0, thread }
    }

    /// The SHA-256 of everything, once all was read.
    pub(super) fn finish(self) -> String {
        drop(self.blocks);
        self.thread.join().unwrap_or_default()
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.block.len() {
            match self.blocks.recv() {
                Ok(block) => (self.block, self.used) = (block?, 0),
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.block[self.used..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.used += len;
        Ok(len)
    }
}

/// Until the end, an error, or until nobody wants more.
fn read(mut input: impl Read, sender: &SyncSender<io::Result<Vec<u8>>>) -> String {
    let mut digest = Sha256::new();
    loop {
        let mut block = Vec::with_capacity(BLOCK);
        let outcome = (&mut input).take(BLOCK as u64).read_to_end(&mut block);
        digest.update(&block);
        let is_last = !matches!(outcome, Ok(BLOCK));
        if !block.is_empty() && sender.send(Ok(block)).is_err() {
            break;
        }
        if let Err(error) = outcome {
            let _ = sender.send(Err(error));
        }
        if is_last {
            break;
        }
    }
    hex(&digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends with an error after some bytes.
    struct Breaking(usize);

    impl Read for Breaking {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.0.min(buffer.len()).min(1000);
            self.0 -= len;
            if len == 0 { Err(io::Error::other("broken")) } else { Ok(len) }
        }
    }

    #[test]
    fn every_byte_arrives_in_order_and_is_digested() {
        let data: Vec<u8> = (0..3 * BLOCK + 17).map(|at| (at % 251) as u8).collect();
        let mut ahead = ReadAhead::new(io::Cursor::new(data.clone()));
        let mut read = Vec::new();
        ahead.read_to_end(&mut read).expect("read");
        assert!(read == data);
        assert_eq!(ahead.finish(), crate::hash::sha256(&data));
    }

    #[test]
    fn an_error_arrives_after_the_bytes_before_it() {
        let mut ahead = ReadAhead::new(Breaking(BLOCK + 5));
        let mut read = Vec::new();
        let error = ahead.read_to_end(&mut read).expect_err("it breaks");
        assert_eq!((read.len(), error.to_string().as_str()), (BLOCK + 5, "broken"));
    }

    #[test]
    fn a_reader_that_is_dropped_ends_its_thread() {
        let ahead = ReadAhead::new(io::repeat(1));
        assert_eq!(ahead.finish().len(), 64);
    }
}
