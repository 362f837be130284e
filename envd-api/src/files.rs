//! `GET /files?path=P&username=U` answers the bytes; `POST` takes them as `application/octet-stream`, or as
//! `multipart/form-data` with the bytes in the field [`FIELD`], and answers a list of [`WriteInfo`].

use serde::{Deserialize, Serialize};

/// Field of the multipart form that holds the file.
pub const FIELD: &str = "file";

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteInfo {
    pub path: String,
    pub name: String,
    /// `file` or `dir`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The error body of the plain HTTP calls: `{"code":404,"message":"…"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct HttpError {
    /// The HTTP status once more.
    pub code: u16,
    #[serde(default)]
    pub message: String,
}

/// `/files` with its query, for a path in the sandbox.
pub fn target(path: &str, user: Option<&str>) -> String {
    let mut target = format!("{}?path={}", crate::FILES, escape(path));
    if let Some(user) = user {
        target.push_str("&username=");
        target.push_str(&escape(user));
    }
    target
}

/// Percent-encodes all but what a query value may hold as it is.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(byte.into());
            }
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(HEX[usize::from(byte >> 4)].into());
                out.push(HEX[usize::from(byte & 15)].into());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_anything_in_it_stays_one_query_value() {
        assert_eq!(target("/tmp/a b&c=%", Some("user")), "/files?path=/tmp/a%20b%26c%3D%25&username=user");
    }
}
