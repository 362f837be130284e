//! Directories: read linearly, which is right for hash-indexed ones too.

use std::sync::{Arc, PoisonError};

use super::{Chunk, Directory, Error, Image, Ino, Inode, Kind, Result, le16, le32};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub ino: Ino,
}

impl Image {
    /// The entries but `.` and `..`, in the order of the disk.
    pub fn read_dir(&self, dir: &Inode) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        if dir.kind != Kind::Dir {
            return Err(Error::Damaged(format!("inode {} is no directory", dir.ino)));
        }
        dir.require_modest()?;
        if dir.is_inline() {
            // The first four bytes are the parent's number; there are no entries for `.` and `..`.
            parse(dir.ino, &dir.block[4..], &mut entries)?;
            parse(dir.ino, &self.inline_rest(dir)?, &mut entries)?;
            return Ok(entries);
        }
        let block_size = self.superblock.block_size as usize;
        self.for_each_chunk(dir, |chunk| match chunk {
            Chunk::Data(data) => {
                data.chunks(block_size).try_for_each(|block| parse(dir.ino, block, &mut entries))
            }
            Chunk::Hole(_) => Ok(()),
        })?;
        Ok(entries)
    }

    /// The entry of that name.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>> {
        Ok(self.directory(dir)?.get(name).copied())
    }

    fn directory(&self, dir: &Inode) -> Result<Arc<Directory>> {
        let known = || self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = known().get(&dir.ino) {
            return Ok(Arc::clone(directory));
        }
        let entries = self.read_dir(dir)?.into_iter().map(|entry| (entry.name, entry.ino));
        let directory = Arc::new(entries.collect());
        known().insert(dir.ino, Arc::clone(&directory));
        Ok(directory)
    }
}

fn parse(dir: Ino, mut block: &[u8], entries: &mut Vec<DirEntry>) -> Result<()> {
    while block.len() >= 8 {
        let ino = le32(block, 0);
        let len = match usize::from(le16(block, 4)) {
            // A whole block of 64 KiB does not fit into 16 bits.
            0xffff | 0 if block.len() == 65536 => 65536,
            len => len,
        };
        let name_len = usize::from(block[6]);
        if len < 8 || len > block.len() || (ino != 0 && name_len + 8 > len) {
            return Err(Error::Damaged(format!("directory inode {dir} has a broken entry")));
        }
        let name = &block[8..(8 + name_len).min(len)];
        if ino != 0 && name != b"." && name != b".." && !name.is_empty() {
            entries.push(DirEntry { name: name.to_vec(), ino });
        }
        block = &block[len..];
    }
    Ok(())
}
