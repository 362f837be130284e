//! What the Go toolchain writes into every program: module, version, revision.
//!
//! The block begins with a magic of 14 bytes, a pointer size and flags. With flag 2 two strings follow at offset 32, each with its
//! length as a varint: the toolchain's version, and the module's description between two markers of 16 bytes.

use std::fmt;

use serde::Serialize;

const MAGIC: &[u8] = b"\xff Go buildinf:";
const INLINE_STRINGS: u8 = 2;
const MARKER: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Build {
    /// Go's version.
    pub go: String,
    /// The main package.
    pub package: Option<String>,
    pub version: Option<String>,
    pub revision: Option<String>,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.package.as_deref().unwrap_or("a Go program"))?;
        for part in [&self.version, &self.revision].into_iter().flatten() {
            write!(f, " {part}")?;
        }
        write!(f, ", {}", self.go)
    }
}

/// Reads the description, if the program has one.
pub fn read(program: &[u8]) -> Option<Build> {
    let at =
        (0..program.len().saturating_sub(32)).step_by(16).find(|at| program[*at..].starts_with(MAGIC))?;
    if program[at + 15] & INLINE_STRINGS == 0 {
        return None;
    }
    let (go, rest) = string(&program[at + 32..])?;
    let (module, _) = string(rest).unwrap_or((&[], &[]));
    let module = module.get(MARKER..module.len().saturating_sub(MARKER)).unwrap_or_default();
    let module = String::from_utf8_lossy(module).into_owned();
    let field = |name: &str| {
        module.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(['\t', '=']).map(str::to_owned))
    };
    let known = |version: &str| !version.is_empty() && version != "(devel)";
    Some(Build {
        go: String::from_utf8_lossy(go).into_owned(),
        package: field("path"),
        version: field("mod")
            .and_then(|line| line.split('\t').nth(1).map(str::to_owned))
            .filter(|version| known(version)),
        revision: field("build\tvcs.revision"),
    })
}

fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut len = 0_usize;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        len |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let rest = &bytes[index + 1..];
            return Some((rest.get(..len)?, &rest[len..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_found_on_its_alignment() {
        let module = format!(
            "{0}path\texample.org/envd\nmod\texample.org/envd\tv1.2.3\t\nbuild\tvcs.revision=abc\n{0}",
            "0123456789abcdef"
        );
        let mut program = vec![0; 48];
        program.extend_from_slice(MAGIC);
        program.extend_from_slice(&[8, 2]);
        program.extend_from_slice(&[0; 16]);
        program.push(6);
        program.extend_from_slice(b"go1.26");
        program.push((module.len() & 0x7f) as u8 | 0x80);
        program.push((module.len() >> 7) as u8);
        program.extend_from_slice(module.as_bytes());
        let build = read(&program).expect("a Go program");
        assert_eq!(build.to_string(), "example.org/envd v1.2.3 abc, go1.26");
        assert_eq!(read(&program[..60]), None);
    }
}
