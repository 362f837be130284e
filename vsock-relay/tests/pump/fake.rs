//! A peer that follows a script.

use std::{collections::VecDeque, io};

use vsock_relay::pump::Stream;

/// What one read gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    WouldBlock,
    End,
    Error(io::ErrorKind),
}

/// What one write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Takes(usize),
    WouldBlock,
    Error(io::ErrorKind),
}

/// A peer that follows a script; reads and writes have one each. A script that has run out repeats its last entry.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) reads: VecDeque<Read>,
    pub(crate) writes: VecDeque<Write>,
    pub(crate) sent: Vec<u8>,
    pub(crate) received: Vec<u8>,
    pub(crate) told: usize,
}

impl Fake {
    pub(crate) fn new(reads: &[Read], writes: &[Write]) -> Self {
        Self {
            reads: reads.iter().copied().collect(),
            writes: writes.iter().copied().collect(),
            ..Self::default()
        }
    }
}

fn next<T: Copy>(script: &mut VecDeque<T>, last: T) -> T {
    if script.len() > 1 {
        script.pop_front().unwrap_or(last)
    } else {
        script.front().copied().unwrap_or(last)
    }
}

impl Stream for Fake {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let is_last = self.reads.len() == 1;
        match next(&mut self.reads, Read::WouldBlock) {
            Read::Bytes(count) => {
                let from = self.sent.len();
                for (offset, byte) in buffer[..count].iter_mut().enumerate() {
                    *byte = ((from + offset) % 251) as u8;
                }
                self.sent.extend_from_slice(&buffer[..count]);
                if is_last {
                    self.reads = [Read::WouldBlock].into();
                }
                Ok(count)
            }
            Read::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
            Read::End => Ok(0),
            Read::Error(kind) => Err(kind.into()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match next(&mut self.writes, Write::Takes(usize::MAX)) {
            Write::Takes(count) => {
                let count = count.min(bytes.len());
                self.received.extend_from_slice(&bytes[..count]);
                Ok(count)
            }
            Write::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
            Write::Error(kind) => Err(kind.into()),
        }
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.told += 1;
        Ok(())
    }
}
