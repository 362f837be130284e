//! The wire format of envd's HTTP API, for a server that stands in for envd and for clients of the real one.
//!
//! envd listens on TCP [`PORT`] and speaks HTTP/1.1. There are two kinds of call:
//!
//! - plain HTTP: `GET /health` (204 when well), `POST /init` ([`init::InitRequest`]), `GET` and `POST /files`;
//! - the Connect protocol with its JSON codec: `POST /SERVICE/METHOD`. A unary call carries one JSON message as
//!   `application/json` each way; an error is a JSON [`error::ConnectError`] with a status that follows from its
//!   code. A streaming call (`process.Process/Start`, `Connect`) carries [`envelope`]s as `application/connect+json`
//!   and always answers 200: an error travels in the last envelope.
//!
//! Messages follow protobuf's JSON mapping: camelCase names, zero values left out, bytes in base64, 64-bit integers as
//! strings, a `oneof` as the one key that is present.
//!
//! ```
//! use envd_api::{envelope, process::{ProcessEvent, StartRequest, StartResponse}};
//!
//! let request = StartRequest::shell("echo Hello");
//! let body = envelope::encode_json(&request)?;                 // what a client sends
//! # let mut decoder = envelope::Decoder::default();
//! # decoder.push(&envelope::encode_json(&StartResponse { event: ProcessEvent::Start { pid: 7 } })?);
//! # decoder.push(&envelope::end_of_stream(None));
//! while let Some(frame) = decoder.next_frame()? {              // what it reads, in any chunking
//!     if frame.is_end() {
//!         frame.end_error()?;
//!         break;
//!     }
//!     let response: StartResponse = frame.json()?;
//! #   assert_eq!(response.event, ProcessEvent::Start { pid: 7 });
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod envelope;
pub mod error;
pub mod files;
pub mod filesystem;
pub mod init;
pub mod process;
mod wire;

pub use wire::Base64;

/// The TCP port envd listens on, in every sandbox.
pub const PORT: u16 = 49983;

/// `GET`: 204 when envd serves.
pub const HEALTH: &str = "/health";
/// `POST`: the platform's first call, see [`init`].
pub const INIT: &str = "/init";
/// `GET` reads a file, `POST` writes one, see [`files`].
pub const FILES: &str = "/files";

/// Content type of unary calls.
pub const JSON: &str = "application/json";
/// Content type of raw bytes.
pub const OCTET_STREAM: &str = "application/octet-stream";
/// Content type of streaming calls.
pub const CONNECT_JSON: &str = "application/connect+json";
/// Header that every Connect call carries, with [`PROTOCOL_VERSION`].
pub const PROTOCOL_VERSION_HEADER: &str = "connect-protocol-version";
pub const PROTOCOL_VERSION: &str = "1";
/// Header with the deadline of a call in milliseconds.
pub const TIMEOUT_HEADER: &str = "connect-timeout-ms";
/// Header that asks for a keepalive event every so many seconds.
pub const KEEPALIVE_HEADER: &str = "keepalive-ping-interval";

/// The value of the `Authorization` header that runs a call as `user` (envd takes the name, with no password).
pub fn authorization(user: &str) -> String {
    format!("Basic {}", wire::encode(format!("{user}:").as_bytes()))
}

/// The user named by an `Authorization` header, if it is one that [`authorization`] makes.
pub fn authorized_user(header: &str) -> Option<String> {
    let bytes = wire::decode(header.strip_prefix("Basic ")?.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    Some(text.split_once(':').map_or(text.as_str(), |(user, _)| user).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_travels_as_the_sdk_sends_it() {
        assert_eq!(authorization("user"), "Basic dXNlcjo=");
        assert_eq!(authorized_user("Basic dXNlcjo=").as_deref(), Some("user"));
        assert_eq!(authorized_user("Bearer x"), None);
        assert_eq!(authorized_user("Basic !!!"), None);
    }
}
