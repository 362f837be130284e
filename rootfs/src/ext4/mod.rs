//! A reader for ext2/3/4 images: what e2fsprogs wrote is judged by code that shares nothing with it.
//!
//! Read-only, without mounting and without root. Everything the kernel lets a root filesystem use is understood
//! (extents and block maps, inline data, extended attributes in inodes, blocks and inodes of their own, `meta_bg`); features that would
//! make a wrong answer possible are refused by name when the image is opened.

mod acl;
mod dir;
mod inode;
mod path;
mod superblock;
mod xattr;

pub use self::{
    dir::DirEntry,
    inode::{Inode, Kind, Time},
    path::{Located, Missing, show},
    superblock::Superblock,
};

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Number of an inode.
pub type Ino = u32;

/// The root directory's inode.
pub const ROOT: Ino = 2;

/// Files that are read into memory as a whole, and directories, are smaller than this (bytes): an image may come from anybody, and
/// a file of holes costs it nothing.
pub const MAX_CONTENTS: u64 = 256 << 20;

/// What can be wrong with an image or a path in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is no ext4 image: {reason}", path.display())]
    NotExt4 { path: PathBuf, reason: String },
    #[error("{} is truncated: its filesystem needs {needed} bytes, the file has {len}", path.display())]
    Truncated { path: PathBuf, needed: u64, len: u64 },
    #[error("{} uses ext4 features that cannot be handled here: {features}; {way_out}", path.display())]
    Features { path: PathBuf, features: String, way_out: String },
    #[error("cannot read {len} bytes at {offset} of the image")]
    Read { offset: u64, len: usize, source: io::Error },
    #[error("damaged filesystem: {0}; run e2fsck on a copy of the image")]
    Damaged(String),
    #[error("inode {ino} of the image has {size} bytes, where a program or a text of at most {} MiB was expected", MAX_CONTENTS >> 20)]
    TooLarge { ino: Ino, size: u64 },
    #[error("{path}: no such file in the image")]
    NotFound { path: String },
    #[error("{path}: {component} is not a directory in the image")]
    NotDirectory { path: String, component: String },
    #[error("{path}: too many symbolic links in the image (a loop?)")]
    Loop { path: String },
    #[error("{path}: the link {link} leads to {target}, which does not exist in the image")]
    Dangling { path: String, link: String, target: String },
}

type Result<T> = std::result::Result<T, Error>;

/// An open image.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    pub superblock: Superblock,
    groups: Vec<u64>,
    /// Directories that names were looked up in: the same few, again and again. (Whoever writes opens the image anew.)
    directories: Mutex<HashMap<Ino, Arc<Directory>>>,
}

/// Names to inodes.
type Directory = HashMap<Vec<u8>, Ino>;

impl Image {
    /// Opens an image and checks that it can be read reliably. Does not look at the journal.
    pub fn open(path: &Path) -> Result<Self> {
        let open = |source| Error::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(open)?;
        let len = file.metadata().map_err(open)?.len();
        let superblock = Superblock::read(&file, path, len)?;
        let (path, groups, directories) = (path.to_owned(), Vec::new(), Mutex::default());
        let mut image = Self { file, path, superblock, groups, directories };
        image.groups = image.inode_tables()?;
        Ok(image)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole contents of a regular file of a modest size, or the target of a link.
    pub fn contents(&self, inode: &Inode) -> Result<Vec<u8>> {
        inode.require_modest()?;
        let mut data = Vec::new();
        self.for_each_chunk(inode, |chunk| {
            match chunk {
                Chunk::Data(bytes) => data.extend_from_slice(bytes),
                Chunk::Hole(len) => data.resize(data.len() + len as usize, 0),
            }
            std::result::Result::<(), Error>::Ok(())
        })?;
        Ok(data)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let len = buffer.len();
        self.file.read_exact_at(buffer, offset).map_err(|source| Error::Read { offset, len, source })
    }

    fn read_block(&self, block: u64) -> Result<Vec<u8>> {
        if block >= self.superblock.blocks {
            return Err(Error::Damaged(format!("block {block} lies behind the end of the filesystem")));
        }
        let mut buffer = vec![0; self.superblock.block_size as usize];
        self.read_at(block * u64::from(self.superblock.block_size), &mut buffer)?;
        Ok(buffer)
    }

    /// The first block of each group's inode table.
    fn inode_tables(&self) -> Result<Vec<u64>> {
        let sb = &self.superblock;
        let per_block = sb.block_size / sb.descriptor_size;
        let mut tables = Vec::new();
        for first in (0..sb.group_count()).step_by(per_block as usize) {
            let block = self.read_block(sb.descriptor_block(first / per_block))?;
            for raw in block.chunks_exact(sb.descriptor_size as usize) {
                if tables.len() == sb.group_count() as usize {
                    break;
                }
                let high = if sb.descriptor_size >= 64 { u64::from(le32(raw, 0x28)) << 32 } else { 0 };
                tables.push(high | u64::from(le32(raw, 8)));
            }
        }
        Ok(tables)
    }
}

/// A piece of a file's contents, in order.
#[derive(Debug, Clone, Copy)]
pub enum Chunk<'a> {
    Data(&'a [u8]),
    Hole(u64),
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
