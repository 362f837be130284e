//! The envelope of streaming calls: one flag byte, a four-byte big-endian length, then that many bytes of JSON.
//!
//! The last envelope of a stream has [`END_STREAM`] set and holds `{}` or `{"error":{…}}`. A stream that ends without it
//! was cut off.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ConnectError;

/// Flag of the last envelope of a stream.
pub const END_STREAM: u8 = 0x02;
/// Flag of a compressed envelope. envd compresses none unless asked; the decoder refuses them.
pub const COMPRESSED: u8 = 0x01;
/// Flag byte and length.
pub const HEADER_LEN: usize = 5;
/// The longest message a [`Decoder`] takes, so that a hostile length cannot ask for all memory. Bytes.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the stream announces a message of {0} bytes, more than {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("the stream carries a compressed message, which was not asked for")]
    Compressed,
    #[error("the stream carries a message that is not the JSON expected")]
    Json(#[source] serde_json::Error),
    #[error("the stream ended inside a message, after {0} bytes of it")]
    CutOff(usize),
    #[error(transparent)]
    Remote(#[from] ConnectError),
}

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub flags: u8,
    pub payload: Vec<u8>,
}

#[derive(Serialize, serde::Deserialize)]
struct EndMessage {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<ConnectError>,
}

impl Frame {
    /// Whether this is the last one of its stream.
    pub fn is_end(&self) -> bool {
        self.flags & END_STREAM != 0
    }

    /// The message in it.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, EnvelopeError> {
        serde_json::from_slice(&self.payload).map_err(EnvelopeError::Json)
    }

    /// The error that the last message of a stream carries, if it carries one.
    pub fn end_error(&self) -> Result<(), EnvelopeError> {
        let end: EndMessage = self.json()?;
        end.error.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// One envelope around `payload`.
pub fn encode(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    out.push(flags);
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// One envelope around `message` as JSON.
pub fn encode_json<T: Serialize>(message: &T) -> Result<Vec<u8>, EnvelopeError> {
    let payload = serde_json::to_vec(message).map_err(EnvelopeError::Json)?;
    Ok(encode(0, &payload))
}

/// The last envelope of a stream.
pub fn end_of_stream(error: Option<ConnectError>) -> Vec<u8> {
    let payload = serde_json::to_vec(&EndMessage { error }).unwrap_or_else(|_| b"{}".to_vec());
    encode(END_STREAM, &payload)
}

/// Cuts a stream into frames, however it was chunked on the way.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, EnvelopeError> {
        let Some((&[flags, a, b, c, d], rest)) = self.buffer.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if len > MAX_MESSAGE {
            return Err(EnvelopeError::TooLong(len));
        }
        if flags & COMPRESSED != 0 {
            return Err(EnvelopeError::Compressed);
        }
        let Some(payload) = rest.get(..len).map(<[u8]>::to_vec) else { return Ok(None) };
        self.buffer.drain(..HEADER_LEN + len);
        Ok(Some(Frame { flags, payload }))
    }

    /// To be asked at the end of the body: whether it ended between two frames.
    pub fn finish(&self) -> Result<(), EnvelopeError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(EnvelopeError::CutOff(self.buffer.len())) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Code;

    #[test]
    fn the_last_frame_is_the_one_the_sdk_knows() {
        assert_eq!(end_of_stream(None), b"\x02\0\0\0\x02{}");
    }

    #[test]
    fn an_error_at_the_end_reaches_the_caller() {
        let error = ConnectError::new(Code::NotFound, "no such process");
        let mut decoder = Decoder::default();
        decoder.push(&end_of_stream(Some(error)));
        let frame = decoder.next_frame().unwrap().unwrap();
        let failure = frame.end_error().unwrap_err();
        assert_eq!(failure.to_string(), "not_found: no such process");
    }

    #[test]
    fn a_hostile_length_is_refused_before_memory_is_taken() {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next_frame(), Err(EnvelopeError::TooLong(_))));
    }

    #[test]
    fn a_compressed_frame_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&encode(COMPRESSED, b"x"));
        assert!(matches!(decoder.next_frame(), Err(EnvelopeError::Compressed)));
    }

    #[test]
    fn a_stream_cut_off_inside_a_frame_is_noticed() {
        let mut decoder = Decoder::default();
        decoder.push(&encode(0, b"{}")[..6]);
        assert_eq!(decoder.next_frame().unwrap(), None);
        assert!(matches!(decoder.finish(), Err(EnvelopeError::CutOff(6))));
    }

    proptest! {
        #[test]
        fn frames_survive_any_chunking(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1_usize..17,
        ) {
            let stream: Vec<u8> = payloads.iter().flat_map(|payload| encode(0, payload)).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(cut) {
                decoder.push(chunk);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame.payload);
                }
            }
            prop_assert_eq!(seen, payloads);
            prop_assert!(decoder.finish().is_ok());
        }

        #[test]
        fn no_input_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                let _ = frame.end_error();
            }
        }
    }
}
