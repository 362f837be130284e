//! Digests, and identifiers made from them.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use sha2::{Digest, Sha256};

use crate::copy;

/// A SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file's contents. Holes are not read: zeros are hashed in their place.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let zeros = vec![0; 1 << 18];
    let mut at = 0;
    while at < len {
        let (begin, end) = copy::next_data(&file, at, len).unwrap_or((len, len));
        while at < begin {
            let part = (begin - at).min(zeros.len() as u64);
            digest.update(&zeros[..part as usize]);
            at += part;
        }
        while at < end {
            let part = (end - at).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..part], at)?;
            digest.update(&buffer[..part]);
            at += part as u64;
        }
    }
    Ok(hex(&digest.finalize()))
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A UUID (version 8: "made by the application's own rule") from a digest.
pub fn uuid_from(seed: &str) -> [u8; 16] {
    let digest = Sha256::digest(seed.as_bytes());
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = hex(uuid);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_of_a_seed_is_a_valid_version_8_one() {
        let text = uuid_text(&uuid_from("seed"));
        assert_eq!(text.len(), 36);
        assert_eq!(&text[14..15], "8");
        assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"));
    }
}
