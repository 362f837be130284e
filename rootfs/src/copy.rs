//! Copies an image: as a reflink where the filesystem can, else sparse; and digests it on the way.
//!
//! The digest is the SHA-256 of the list of SHA-256s of the image's chunks of a MiB, as
//! `split -b 1M --filter=sha256sum IMAGE | sha256sum` prints it. Unlike a digest of the whole it is made by several threads, and holes,
//! of which an image has plenty, cost nothing.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use rustix::fs::{SeekFrom, seek};
use sha2::{Digest, Sha256};

use crate::hash;

const CHUNK: u64 = 1 << 20;
/// Read, written and digested at once: so much stays in the processor's cache.
const PIECE: usize = 128 << 10;
const BLOCK: usize = 4096;
/// More threads would only wait for the disk.
const MAX_THREADS: usize = 4;

/// Copies `from` to the new file `to`, which nobody may read who could not read the first. `seen` is told of bytes that are
/// dealt with. Returns the digest.
pub fn copy(from: &File, to: &Path, seen: impl Fn(u64) + Sync) -> io::Result<String> {
    let meta = from.metadata()?;
    let mode = meta.permissions().mode() & 0o666 | 0o600;
    let out = File::options().write(true).create_new(true).mode(mode).open(to)?;
    let cloned = rustix::fs::ioctl_ficlone(&out, from).is_ok();
    if !cloned {
        out.set_len(meta.len())?;
    }
    let job =
        Job { from, to: (!cloned).then_some(&out), len: meta.len(), next: AtomicU64::new(0), seen: &seen };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let mut digests = BTreeMap::new();
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| job.run())).collect();
        running.into_iter().try_for_each(|thread| {
            digests.extend(thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread has failed")))?);
            io::Result::Ok(())
        })
    })?;
    let list: String = digests.into_values().map(|digest| digest + "  -\n").collect();
    Ok(hash::sha256(list.as_bytes()))
}

/// A copy under way: its threads take one chunk after the other.
struct Job<'a, S> {
    from: &'a File,
    /// `None`: the blocks are shared already.
    to: Option<&'a File>,
    len: u64,
    next: AtomicU64,
    seen: &'a S,
}

impl<S: Fn(u64)> Job<'_, S> {
    /// Digests by number of chunk.
    fn run(&self) -> io::Result<Vec<(u64, String)>> {
        let mut digests = Vec::new();
        let mut buffer = vec![0; PIECE];
        let hole = hash::sha256(&vec![0; CHUNK as usize]);
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            let begin = chunk * CHUNK;
            if begin >= self.len {
                return Ok(digests);
            }
            let end = (begin + CHUNK).min(self.len);
            let is_hole = next_data(self.from, begin, self.len).is_none_or(|(data, _)| data >= end);
            let digest = if is_hole && end - begin == CHUNK {
                hole.clone()
            } else {
                self.chunk(begin, end, &mut buffer)?
            };
            digests.push((chunk, digest));
            (self.seen)(end - begin);
        }
    }

    fn chunk(&self, begin: u64, end: u64, buffer: &mut [u8]) -> io::Result<String> {
        let mut digest = Sha256::new();
        let mut at = begin;
        while at < end {
            let piece = &mut buffer[..(end - at).min(PIECE as u64) as usize];
            self.from.read_exact_at(piece, at)?;
            if let Some(to) = self.to {
                write_sparse(to, piece, at)?;
            }
            digest.update(&*piece);
            at += piece.len() as u64;
        }
        Ok(hash::hex(&digest.finalize()))
    }
}

/// The next range that is not a hole.
pub fn next_data(file: &File, at: u64, len: u64) -> Option<(u64, u64)> {
    if at >= len {
        return None;
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(begin) => {
            let end = seek(file, SeekFrom::Hole(begin)).unwrap_or(len);
            Some((begin, end.min(len)))
        }
        Err(rustix::io::Errno::NXIO) => None,
        Err(_) => Some((at, len)),
    }
}

/// Writes the runs of blocks that hold anything but zeros. Returns where the last one ends, 0 when there was none.
pub fn write_sparse(to: &File, data: &[u8], at: u64) -> io::Result<u64> {
    let (mut begin, mut written) = (0, 0);
    while begin < data.len() {
        let zero = is_zero(&data[begin..(begin + BLOCK).min(data.len())]);
        let mut end = (begin + BLOCK).min(data.len());
        while end < data.len() && is_zero(&data[end..(end + BLOCK).min(data.len())]) == zero {
            end = (end + BLOCK).min(data.len());
        }
        if !zero {
            to.write_all_at(&data[begin..end], at + begin as u64)?;
            written = at + end as u64;
        }
        begin = end;
    }
    Ok(written)
}

fn is_zero(block: &[u8]) -> bool {
    // Compared in words: this runs over every byte of an image.
    let (head, words, tail) =
        (&block[..block.len() % 16], block[block.len() % 16..].chunks_exact(16), [0; 16]);
    head.iter().all(|byte| *byte == 0) && words.into_iter().all(|word| word == tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_become_holes_the_bytes_stay_and_the_digest_is_what_coreutils_print() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let mut data = vec![0; (3 << 20) + 100];
        data[5000] = 7;
        data[(2 << 20) + 1] = 9;
        std::fs::write(&from, &data).expect("written");
        let seen = AtomicU64::new(0);
        let count = |bytes| {
            seen.fetch_add(bytes, Ordering::Relaxed);
        };
        let digest = copy(&File::open(&from).expect("opened"), &to, count).expect("copied");
        assert_eq!(std::fs::read(&to).expect("read"), data);
        assert_eq!(seen.into_inner(), data.len() as u64);
        assert!(to.metadata().expect("there").blocks() * 512 <= 64 << 10);
        let command = "split -b 1M --filter=sha256sum \"$0\" | sha256sum";
        let output =
            std::process::Command::new("sh").arg("-c").arg(command).arg(&from).output().expect("sh runs");
        assert_eq!(Some(digest.as_str()), String::from_utf8_lossy(&output.stdout).split(' ').next());
    }

    #[test]
    fn a_copy_of_what_is_private_is_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&from, "secret").expect("written");
        std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o400)).expect("set");
        copy(&File::open(&from).expect("opened"), &to, |_| ()).expect("copied");
        assert_eq!(to.metadata().expect("there").permissions().mode() & 0o777, 0o600);
    }
}
