//! What comes over a socket: the VMM's handshake, the control protocol, envd's answers; and how sockets are named.

use envd_api::envelope::{self, Decoder, EnvelopeError, Frame};
use envd_api::files::WriteInfo;
use envd_api::filesystem::ListDirResponse;
use envd_api::process::StartResponse;
use envdctl::run_check::api;
use guest::control::{Reply, Request, frame};
use vsock_relay::endpoint::{Endpoint, Map};
use vsock_relay::handshake::{self, Handshake};

use super::{Seeds, Target};

const LINE: &[&[u8]] =
    &[b"OK ", b"CONNECT ", b"\n", b"\r\n", b"4294967295", b"4294967296", b"49983", b"+1", b" "];
const JSON: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"1e999",
    b"\\u0000",
    b"\"op\"",
    b"\"version\"",
    b"\\ud800",
    b"\0\0\0\x02{}",
    b"\x02\0\0\0\x02{}",
    b"\"stdout\"",
    b"\"exitCode\"",
    b"\"error\"",
    b"==",
];
const ENDPOINT_WORDS: &[&[u8]] = &[
    b"tcp:",
    b"netns:",
    b"unix:",
    b"firecracker:",
    b"vsock:",
    b"any",
    b"host",
    b"local",
    b"hypervisor",
    b"/",
    b":",
    b"[::1]",
    b"\0",
    b"=",
    b"127.0.0.1",
    b"0.0.0.0",
    b"..",
    b"localhost",
    b"+1",
    b"65536",
];

pub(super) const CONNECT: Target = Target {
    name: "connect",
    run: connect,
    seeds: Seeds::Corpus(LINE),
    sources: &["vsock-relay/src/handshake.rs"],
};
pub(super) const OK: Target =
    Target { name: "ok", run: ok, seeds: Seeds::Corpus(LINE), sources: &["vsock-relay/src/handshake.rs"] };
pub(super) const CONTROL_REQUEST: Target = Target {
    name: "control-request",
    run: control_request,
    seeds: Seeds::Corpus(JSON),
    sources: &["guest/src/control/frame.rs"],
};
pub(super) const CONTROL_REPLY: Target = Target {
    name: "control-reply",
    run: control_reply,
    seeds: Seeds::Corpus(JSON),
    sources: &["guest/src/control/frame.rs"],
};
pub(super) const ENDPOINT: Target = Target {
    name: "endpoint",
    run: endpoint,
    seeds: Seeds::Corpus(ENDPOINT_WORDS),
    sources: &["vsock-relay/src/endpoint.rs"],
};
pub(super) const ENVD_ANSWER: Target = Target {
    name: "envd-answer",
    run: envd_answer,
    seeds: Seeds::Corpus(JSON),
    sources: &["envd-api/src/envelope.rs", "envd-api/src/wire.rs", "envd-api/src/error.rs"],
};

/// The VMM's side.
fn connect(bytes: &[u8]) {
    let port = handshake::parse_connect(bytes);
    let again = handshake::parse_connect(handshake::request(port.unwrap_or(49983)).as_bytes());
    assert!(again.is_some() && (port.is_none() || port == again));
    shake(bytes);
}

/// The host's side.
fn ok(bytes: &[u8]) {
    shake(bytes);
    let _ = handshake::parse_connect(handshake::request(bytes.len() as u32).as_bytes());
}

/// In two pieces: never more of the payload is taken than the line is long.
fn shake(bytes: &[u8]) {
    let mut handshake = Handshake::new(49983);
    let (head, tail) = bytes.split_at(bytes.len().min(3));
    match handshake.push(head) {
        Ok(None) => match handshake.push(tail) {
            Ok(Some(opened)) => {
                assert!(tail[..opened.used].ends_with(b"\n") && opened.used <= handshake::MAX_LINE);
            }
            Ok(None) => {
                let _ = handshake.ended(None).to_string();
                let _ = handshake.ended(Some(std::io::ErrorKind::ConnectionReset.into())).to_string();
                let _ = handshake.ended(Some(std::io::ErrorKind::Other.into())).to_string();
            }
            Err(error) => assert!(error.to_string().len() < 512),
        },
        Ok(Some(opened)) => assert!(head[..opened.used].ends_with(b"\n")),
        Err(error) => assert!(error.to_string().len() < 512),
    }
}

fn control_request(bytes: &[u8]) {
    frames::<Request>(bytes, frame::MAX_REQUEST);
}

fn control_reply(bytes: &[u8]) {
    frames::<Reply>(bytes, frame::MAX_REPLY);
}

/// Feeds a decoder in two pieces, as a socket would; what is understood reads the same once it was written again.
fn frames<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq>(bytes: &[u8], limit: usize) {
    let mut decoder = frame::Decoder::new(limit);
    for piece in [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]] {
        decoder.push(piece);
        loop {
            match decoder.message::<T>() {
                Ok(Some(message)) => same_again(&message),
                Ok(None) => break,
                Err(error) => {
                    let _ = error.to_string();
                    return;
                }
            }
        }
    }
    assert!(decoder.buffered() <= bytes.len());
}

fn same_again<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq>(message: &T) {
    let Ok(encoded) = frame::encode(message) else { return };
    let mut decoder = frame::Decoder::new(frame::MAX_REPLY);
    decoder.push(&encoded);
    assert!(decoder.message::<T>().is_ok_and(|again| again.as_ref() == Some(message)));
}

fn endpoint(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match text.parse::<Endpoint>() {
        Ok(endpoint) => {
            let again = endpoint.to_string().parse::<Endpoint>();
            assert!(again.is_ok_and(|again| again == endpoint), "{endpoint} does not parse back to itself");
            let _ = (endpoint.half_close(), endpoint.is_local(), endpoint.clone().listenable());
            if let Endpoint::NetnsTcp(namespace, _) = &endpoint {
                assert!(namespace.path().is_absolute());
            }
            let _ = endpoint.connectable();
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
    if let Ok(map) = text.parse::<Map>() {
        let _ = map.to_string();
    }
}

/// The stream of a process as the client reads it whole, and unary answers; what is understood is the same once it was written
/// and read again.
fn envd_answer(bytes: &[u8]) {
    match api::read_events("POST /process.Process/Start".to_owned(), bytes) {
        Ok(ran) => assert!(ran.stdout.len() + ran.stderr.len() <= bytes.len()),
        Err(error) => assert!(!envdctl::exit::chain(&error).is_empty()),
    }
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    while let Ok(Some(frame)) = decoder.next_frame() {
        let mut again = Decoder::default();
        again.push(&envelope::encode(frame.flags, &frame.payload));
        assert_eq!(again.next_frame().ok().flatten().as_ref(), Some(&frame));
        same::<StartResponse>(&frame);
        same::<ListDirResponse>(&frame);
        let _ = frame.json::<Vec<WriteInfo>>();
        if let Err(EnvelopeError::Remote(error)) = frame.end_error() {
            assert!((400..600).contains(&error.code.http_status()) && !error.to_string().is_empty());
            again.push(&envelope::end_of_stream(Some(error)));
            assert!(
                again.next_frame().is_ok_and(|frame| frame.is_some_and(|frame| frame.end_error().is_err()))
            );
        }
    }
    let _ = decoder.finish();
    let user = envd_api::authorized_user(&String::from_utf8_lossy(bytes)).unwrap_or_default();
    let plain = user.split(':').next().unwrap_or_default();
    assert_eq!(envd_api::authorized_user(&envd_api::authorization(plain)).as_deref(), Some(plain));
}

fn same<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq>(frame: &Frame) {
    let Ok(message) = frame.json::<T>() else { return };
    let Ok(encoded) = envelope::encode_json(&message) else { return };
    let mut decoder = Decoder::default();
    decoder.push(&encoded);
    let again = decoder.next_frame().ok().flatten().and_then(|frame| frame.json::<T>().ok());
    assert!(again == Some(message));
}
