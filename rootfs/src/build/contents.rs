//! Reads every file back from the image and compares it with the source, byte for byte.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::Path,
};

use super::{Error, Result};
use crate::{
    ext4::{self, Chunk, Image, Kind, show},
    source::Source,
    tree::Tree,
};

/// Compares all regular files, and that names of one file still are names of one file.
pub(super) fn compare(source: &Source, image: &Image, tree: &Tree) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for (path, _) in source.contents.iter().filter(|(_, wanted)| wanted.kind == Kind::File) {
        let Some(node) = tree.get(path) else { return Err(differs(path, "it is missing")) };
        let host = source.folder.join(OsStr::from_bytes(&path[1..]));
        same_bytes(image, &image.inode(node.inode.ino)?, &host, path, &mut buffer)?;
    }
    for group in &source.links {
        let ino = |path: &Vec<u8>| tree.get(path).map(|node| node.inode.ino);
        if let Some(other) = group.iter().find(|path| ino(path) != ino(&group[0])) {
            return Err(differs(other, "it is no hard link any more"));
        }
    }
    Ok(())
}

fn differs(path: &[u8], difference: &str) -> Error {
    Error::Differs { path: show(path), difference: difference.to_owned() }
}

fn same_bytes(image: &Image, inode: &ext4::Inode, host: &Path, path: &[u8], buffer: &mut [u8]) -> Result<()> {
    let read = |source: io::Error| Error::Host { what: "read", path: host.to_owned(), source };
    let file = File::open(host).map_err(read)?;
    let mut at = 0;
    image.for_each_chunk(inode, |chunk| {
        let same = match chunk {
            Chunk::Data(data) => {
                let part = &mut buffer[..data.len()];
                file.read_exact_at(part, at).map_err(read)?;
                at += data.len() as u64;
                part == data
            }
            Chunk::Hole(len) => {
                let zeros = all_zero(&file, at, len, buffer).map_err(read)?;
                at += len;
                zeros
            }
        };
        if same { Ok(()) } else { Err(differs(path, "its contents")) }
    })
}

fn all_zero(file: &File, begin: u64, len: u64, buffer: &mut [u8]) -> io::Result<bool> {
    let (mut at, end) = (begin, begin + len);
    while at < end {
        // A hole of the host's file as well: nothing to read.
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => at = data,
            Err(rustix::io::Errno::NXIO) => return Ok(true),
            Err(_) => (),
        }
        if at >= end {
            break;
        }
        let want = (end - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..want], at)?;
        if buffer[..want].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += want as u64;
    }
    Ok(true)
}
