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
    Target { name: "tar", dictionary: TAR, run: tar },
    Target { name: "units", dictionary: UNIT, run: units },
    Target { name: "image", dictionary: IMAGE, run: image },
];

const JSON: &[&[u8]] =
    &[b"{", b"}", b"[", b"]", b"\"", b":", b",", b"null", b"1e999", b"\\u0000", b"\"op\"", b"\"version\""];
const ENDPOINT: &[&[u8]] =
    &[b"tcp:", b"netns:", b"unix:", b"firecracker:", b"vsock:", b"any", b"/", b":", b"[::1]", b"\0"];

const TAR: &[&[u8]] = &[
    b"ustar\x0000",
    b"./",
    b"../",
    b"30 GNU.sparse.map=0,1,2,3\n",
    b"22 GNU.sparse.major=1\n",
    b"\x80\xff\xff\xff",
    b"0000000\0",
    b"77777777777\0",
];
const UNIT: &[&[u8]] = &[
    b"[Service]\n",
    b"[Unit]\n",
    b"Type=forking\n",
    b"ExecStart=-@/bin/sh",
    b"ExecStartPre=",
    b"Environment=\"A=b\"\n",
    b"\\\n",
    b"%i%%%I",
    b"LimitNOFILE=1:2K\n",
    b"RestartSec=1min 3s\n",
    b"ConditionPathExists=|!/x\n",
    b"Requires=a.service\n",
];
const IMAGE: &[&[u8]] = &[
    b"\x0a\xf3",
    b"\x02\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\x02\xea",
    b"\x04\0\x0c\x01",
    b"\xed\x41",
    b"\xff\xa1",
];

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

/// Reads every entry and its data. What follows needs the sums of headers to be right, so they are made right.
fn tar(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for header in bytes.chunks_exact_mut(512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    let mut archive = rootfs::source::tar::Archive::new(bytes.as_slice());
    let mut buffer = [0; 4096];
    while let Ok(Some(_)) = archive.next_entry() {
        while archive.read_data(&mut buffer).is_ok_and(|read| read > 0) {}
    }
}

/// A unit's file in an image of systemd.
struct OneUnit<'a>(&'a [u8]);

impl rootfs::keep::files::Files for OneUnit<'_> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, rootfs::ext4::Error> {
        Ok(match path {
            "/etc/systemd/system/default.target" => Some(b"[Unit]\nWants=a.service\n".to_vec()),
            "/etc/systemd/system/a.service" => Some(self.0.to_vec()),
            _ => None,
        })
    }

    fn real(&self, path: &str) -> Result<Option<String>, rootfs::ext4::Error> {
        let there = ["/sbin/init", "/usr/lib/systemd/systemd", "/bin/sh"].contains(&path)
            || self.read(path)?.is_some();
        let real = if path == "/sbin/init" { "/usr/lib/systemd/systemd" } else { path };
        Ok(there.then(|| real.to_owned()))
    }

    fn link(&self, _: &str) -> Result<Option<String>, rootfs::ext4::Error> {
        Ok(None)
    }

    fn names(&self, _: &str) -> Result<Vec<String>, rootfs::ext4::Error> {
        Ok(Vec::new())
    }
}

/// Whatever a unit says, what it is turned into is a service that PID 1 understands.
fn units(bytes: &[u8]) {
    let Ok(survey) = rootfs::units::survey(&OneUnit(bytes)) else { return };
    for (name, text) in survey.services {
        let parsed = guest::service::Service::parse(&name, &text);
        assert!(parsed.problems.is_empty(), "{name}: {:?}", parsed.problems);
    }
}

/// Everything that is read before `e2fsck` has seen an image.
fn image(bytes: &[u8]) {
    let path = std::path::Path::new("/dev/shm").join(format!("fuzz-image-{}", std::process::id()));
    if std::fs::write(&path, bytes).is_ok()
        && let Ok(image) = rootfs::ext4::Image::open(&path)
    {
        let _ = rootfs::tree::read(&image);
        let _ = rootfs::inspect::facts(&image);
        let _ = rootfs::units::survey(&image);
    }
    let _ = std::fs::remove_file(&path);
}
