//! Netlink messages, as few as PID 1 needs.
//!
//! A message is a header (length, type, flags, sequence, port), a fixed part that depends on the type, and attributes: each
//! a length, a type and a value, padded to four bytes. Numbers are in the machine's byte order. (The crates for it
//! know every message there is; that costs a megabyte of a program that is to stay small.)

use std::net::Ipv4Addr;

pub(super) const NEW_LINK: u16 = 16;
pub(super) const GET_LINK: u16 = 18;
pub(super) const SET_LINK: u16 = 19;
pub(super) const NEW_ADDRESS: u16 = 20;
pub(super) const GET_ADDRESS: u16 = 22;
pub(super) const NEW_ROUTE: u16 = 24;
pub(super) const GET_ROUTE: u16 = 26;
const ERROR: u16 = 2;

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;

const HEADER: usize = 16;

/// A message on its way to the kernel.
#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]); // sequence and port: one question at a time
        bytes.extend(fixed);
        Self { bytes }
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.pad();
        self.bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.pad();
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    pub(super) kind: u16,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// All messages of one datagram; what is cut off or makes no sense ends it.
    pub(super) fn all(mut bytes: &'a [u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let length = number(bytes, 0)? as usize;
            let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some(Self { kind: short(message, 4)?, body: &message[HEADER..] })
        })
    }

    /// The errno of an error message; 0 is an acknowledgement.
    pub(super) fn errno(&self) -> Option<i32> {
        (self.kind == ERROR).then(|| number(self.body, 0).map(|code| -(code as i32)))?
    }

    pub(super) fn byte(&self, at: usize) -> u8 {
        self.body.get(at).copied().unwrap_or(0)
    }

    pub(super) fn number(&self, at: usize) -> u32 {
        number(self.body, at).unwrap_or(0)
    }

    /// Type and value of each attribute behind a fixed part of `fixed` bytes.
    pub(super) fn attributes(&self, fixed: usize) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.body.get(fixed..).unwrap_or_default();
        std::iter::from_fn(move || {
            let length = usize::from(short(rest, 0)?);
            let value = rest.get(4..length)?;
            let kind = short(rest, 2)? & 0x3fff; // the two highest bits are flags
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number that is an attribute's value.
pub(super) fn value_number(value: &[u8]) -> Option<u32> {
    number(value, 0)
}

/// An address that is an attribute's value.
pub(super) fn value_address(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = Message::new(NEW_ADDRESS, ACK, &[2, 30, 0, 0, 7, 0, 0, 0])
            .attribute(3, b"odd")
            .attribute(2, &[169, 254, 0, 21])
            .finish();
        assert_eq!(bytes.len() % 4, 0);
        let twice = [bytes.clone(), bytes].concat();
        let answers: Vec<_> = Answer::all(&twice).collect();
        assert_eq!(answers.len(), 2);
        let answer = answers[1];
        assert_eq!((answer.kind, answer.byte(1), answer.errno()), (NEW_ADDRESS, 30, None));
        let attributes: Vec<_> = answer.attributes(8).collect();
        assert_eq!(attributes[0], (3, &b"odd"[..]));
        assert_eq!(value_address(attributes[1].1), Some(Ipv4Addr::new(169, 254, 0, 21)));
    }

    #[test]
    fn errors_carry_an_errno() {
        let bytes = Message::new(ERROR, 0, &(-17_i32).to_ne_bytes()).finish();
        assert_eq!(Answer::all(&bytes).next().unwrap().errno(), Some(17));
    }

    #[test]
    fn garbage_ends_without_a_panic_and_without_a_loop() {
        for seed in 0..2000_u32 {
            let bytes: Vec<u8> = (0..64_u32)
                .map(|at| (seed.wrapping_mul(2_654_435_761).wrapping_add(at * 40_503) >> 11) as u8)
                .collect();
            for answer in Answer::all(&bytes).take(100) {
                assert!(answer.attributes(8).take(100).count() < 100);
            }
        }
        assert_eq!(Answer::all(&[0; 64]).count(), 0);
    }
}
