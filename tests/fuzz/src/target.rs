//! The parsers, each as a function of bytes that must neither panic nor hang nor hoard.

/// One parser under test.
#[derive(Debug)]
pub(crate) struct Target {
    /// Also the name of its folder in the corpus.
    pub(crate) name: &'static str,
    /// Tokens of its grammar.
    pub(crate) dictionary: &'static [&'static [u8]],
    pub(crate) run: fn(&[u8]),
}

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "control-request", dictionary: JSON, run: control_request },
    Target { name: "control-reply", dictionary: JSON, run: control_reply },
    Target { name: "endpoint", dictionary: ENDPOINT, run: endpoint },
    Target { name: "envelope", dictionary: JSON, run: envelope },
];

const JSON: &[&[u8]] =
    &[b"{", b"}", b"[", b"]", b"\"", b":", b",", b"null", b"1e999", b"\\u0000", b"\"op\"", b"\"version\""];
const ENDPOINT: &[&[u8]] =
    &[b"tcp:", b"netns:", b"unix:", b"firecracker:", b"vsock:", b"any", b"/", b":", b"[::1]", b"\0"];

fn control_request(bytes: &[u8]) {
    frames::<guest::control::Request>(bytes, guest::control::frame::MAX_REQUEST);
}

fn control_reply(bytes: &[u8]) {
    frames::<guest::control::Reply>(bytes, guest::control::frame::MAX_REPLY);
}

/// Feeds a decoder in two pieces, as a socket would.
fn frames<T: serde::de::DeserializeOwned>(bytes: &[u8], limit: usize) {
    let mut decoder = guest::control::frame::Decoder::new(limit);
    for piece in [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]] {
        decoder.push(piece);
        while matches!(decoder.message::<T>(), Ok(Some(_))) {}
    }
}

fn endpoint(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(endpoint) = text.parse::<vsock_relay::endpoint::Endpoint>() else { return };
    let again = endpoint.to_string().parse::<vsock_relay::endpoint::Endpoint>();
    assert!(again.is_ok_and(|again| again == endpoint), "{endpoint} does not parse back to itself");
}

fn envelope(bytes: &[u8]) {
    let mut decoder = envd_api::envelope::Decoder::default();
    decoder.push(bytes);
    while let Ok(Some(frame)) = decoder.next_frame() {
        let _ = frame.json::<envd_api::process::StartResponse>();
        let _ = frame.end_error();
    }
}
