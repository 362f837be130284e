//! What is known of a program's file. Read once: while a file is the same, a restart need not wait for it to be read again.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guest::elf::{self, Program};
use sha2::{Digest, Sha256};

/// Found in every build of this program, and in no other.
pub(crate) static MARK: &[u8] = b"envd-wrapper \x01 this file supervises envd and is not envd \x01";
/// A wrapper is smaller than this; envd is larger. It saves reading all of envd.
const LARGEST_WRAPPER: u64 = 4 << 20;

/// What kind of file it is, as far as running it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// This program, by inode or as a copy.
    Wrapper,
    Elf,
    Script,
    Other,
}

/// Tells one content from another: nobody changes a file without its change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    pub(crate) fn of(file: &Metadata) -> Self {
        let changed = (file.ctime(), file.ctime_nsec());
        Self { device: file.dev(), inode: file.ino(), size: file.len(), changed }
    }
}

#[derive(Debug)]
struct Facts {
    of: Identity,
    kind: Option<Kind>,
    sha256: Option<String>,
}

/// Everything that was read so far.
#[derive(Debug, Default)]
pub(crate) struct Known {
    files: BTreeMap<PathBuf, Facts>,
}

impl Known {
    pub(crate) fn kind(&mut self, path: &Path, file: &Metadata) -> io::Result<Kind> {
        let facts = self.facts(path, file);
        if let Some(kind) = facts.kind {
            return Ok(kind);
        }
        let kind = read_kind(path, file)?;
        facts.kind = Some(kind);
        Ok(kind)
    }

    /// In hexadecimal.
    pub(crate) fn sha256(&mut self, path: &Path, file: &Metadata) -> io::Result<String> {
        let facts = self.facts(path, file);
        if let Some(sum) = &facts.sha256 {
            return Ok(sum.clone());
        }
        let sum = read_sha256(path)?;
        facts.sha256 = Some(sum.clone());
        Ok(sum)
    }

    fn facts(&mut self, path: &Path, file: &Metadata) -> &mut Facts {
        let of = Identity::of(file);
        let unread = || Facts { of, kind: None, sha256: None };
        let facts = self.files.entry(path.to_path_buf()).or_insert_with(unread);
        if facts.of != of {
            *facts = unread();
        }
        facts
    }
}

fn read_kind(path: &Path, file: &Metadata) -> io::Result<Kind> {
    if is_wrapper(path, file) {
        return Ok(Kind::Wrapper);
    }
    Ok(match elf::inspect(path)? {
        Program::Elf { .. } => Kind::Elf,
        Program::Script { .. } => Kind::Script,
        Program::Other => Kind::Other,
    })
}

fn is_wrapper(path: &Path, file: &Metadata) -> bool {
    let itself = fs::metadata("/proc/self/exe");
    if itself.is_ok_and(|itself| (itself.dev(), itself.ino()) == (file.dev(), file.ino())) {
        return true;
    }
    file.len() <= LARGEST_WRAPPER
        && fs::read(path)
            .is_ok_and(|bytes| memchr::memmem::find(&bytes, std::hint::black_box(MARK)).is_some())
}

fn read_sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            count => digest.update(&chunk[..count]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changed_is_read_again_even_with_its_old_size_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("envd");
        let mut known = Known::default();
        fs::write(&path, "#!/bin/sh\n").unwrap();
        let before = fs::metadata(&path).unwrap();
        assert_eq!(known.kind(&path, &before).unwrap(), Kind::Script);
        let sum = known.sha256(&path, &before).unwrap();
        // The kernel's clock for files ticks every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, "no program").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(before.len(), after.len());
        assert_eq!(known.kind(&path, &after).unwrap(), Kind::Other);
        assert_ne!(known.sha256(&path, &after).unwrap(), sum);
    }
}
