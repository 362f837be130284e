//! Copies an image: as a reflink where the filesystem can, else sparse, hashing on the way.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use rustix::fs::{SeekFrom, seek};

const CHUNK: usize = 1 << 20;
const BLOCK: usize = 4096;

/// Copies `from` to the new file `to`; `seen` is told of bytes that are dealt with.
pub fn copy(from: &File, to: &Path, mut seen: impl FnMut(u64)) -> io::Result<()> {
    let len = from.metadata()?.len();
    let out = File::create(to)?;
    if rustix::fs::ioctl_ficlone(&out, from).is_ok() {
        seen(len);
        return Ok(());
    }
    out.set_len(len)?;
    let mut at = 0;
    while let Some((begin, end)) = next_data(from, at, len) {
        seen(begin - at);
        copy_range(from, &out, begin, end, &mut seen)?;
        at = end;
    }
    seen(len - at);
    Ok(())
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

/// Blocks of zeros become holes.
fn copy_range(from: &File, to: &File, begin: u64, end: u64, seen: &mut impl FnMut(u64)) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = begin;
    while at < end {
        let want = (end - at).min(CHUNK as u64) as usize;
        from.read_exact_at(&mut buffer[..want], at)?;
        write_sparse(to, &buffer[..want], at)?;
        seen(want as u64);
        at += want as u64;
    }
    Ok(())
}

/// Writes the runs of blocks that hold anything but zeros.
pub fn write_sparse(to: &File, data: &[u8], at: u64) -> io::Result<()> {
    let mut begin = 0;
    while begin < data.len() {
        let zero = is_zero(&data[begin..(begin + BLOCK).min(data.len())]);
        let mut end = (begin + BLOCK).min(data.len());
        while end < data.len() && is_zero(&data[end..(end + BLOCK).min(data.len())]) == zero {
            end = (end + BLOCK).min(data.len());
        }
        if !zero {
            to.write_all_at(&data[begin..end], at + begin as u64)?;
        }
        begin = end;
    }
    Ok(())
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
    fn zeros_become_holes_and_the_bytes_stay() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let mut data = vec![0; 3 << 20];
        data[5000] = 7;
        data[(2 << 20) + 1] = 9;
        std::fs::write(&from, &data).expect("written");
        let mut seen = 0;
        copy(&File::open(&from).expect("opened"), &to, |bytes| seen += bytes).expect("copied");
        assert_eq!(std::fs::read(&to).expect("read"), data);
        assert_eq!(seen, data.len() as u64);
        assert!(to.metadata().expect("there").blocks() * 512 <= 64 << 10);
    }
}
