//! Framing of the control protocol: a big-endian `u32` length, then that many bytes of JSON.

use serde::{Serialize, de::DeserializeOwned};

use crate::json;

/// A request larger than this (bytes) is hostile or broken: requests are a hundred bytes.
pub const MAX_REQUEST: usize = 16 * 1024;
/// The largest answer (bytes); a batch of log records is cut to stay below it.
pub const MAX_REPLY: usize = 1024 * 1024;

const HEADER: usize = 4;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {length} bytes is larger than the limit of {limit}")]
    TooLarge { length: usize, limit: usize },
    #[error("frame holds no valid message")]
    Json(#[from] serde_json::Error),
}

/// Encodes one message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - HEADER;
    if length > MAX_REPLY {
        return Err(FrameError::TooLarge { length, limit: MAX_REPLY });
    }
    bytes[..HEADER].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// Collects bytes as they arrive and gives back whole messages.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    limit: usize,
}

impl Decoder {
    /// `limit` is the largest message accepted, in bytes: [`MAX_REQUEST`] in a server, [`MAX_REPLY`] in a client.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), limit }
    }

    /// Takes in what was read from the peer.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that are held of what is no whole message yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole message, `None` while more bytes are needed. After an error the connection is of no use.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        if length > self.limit {
            return Err(FrameError::TooLarge { length, limit: self.limit });
        }
        let Some(body) = self.buffer.get(HEADER..HEADER + length) else { return Ok(None) };
        let message = json::from_slice(body);
        self.buffer.drain(..HEADER + length);
        Ok(Some(message?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Op, Request};

    #[test]
    fn a_message_arriving_byte_by_byte_is_decoded_once() {
        let bytes = encode(&Request::new(Op::Status)).unwrap();
        let mut decoder = Decoder::new(MAX_REQUEST);
        let mut seen = 0;
        for byte in &bytes {
            decoder.push(&[*byte]);
            seen += usize::from(decoder.message::<Request>().unwrap().is_some());
        }
        assert_eq!(seen, 1);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::new(MAX_REQUEST);
        decoder.push(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.message::<Request>(), Err(FrameError::TooLarge { .. })));
    }
}
