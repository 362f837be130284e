//! Where a filesystem's contents come from: a tar archive or a directory.
//!
//! Both end as a folder for `mke2fs -d` and a list of what the result must be. A tar is unpacked into a folder of plain files that belong to
//! whoever runs this; owners, modes, attributes and device nodes are in the list, and go into the image afterwards. So no root is needed.

mod acl;
mod ahead;
mod folder;
pub mod input;
mod stage;
pub mod tar;

pub use self::{folder::scan, stage::unpack};

use std::{collections::BTreeMap, io, path::PathBuf};

use crate::ext4::{Kind, show};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tar(#[from] tar::Error),
    #[error("cannot {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {what} {}", path.display())]
    Unreadable { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} in the tar archive leads out of it")]
    Escapes(String),
    #[error("{0} in the tar archive lies below something that is no directory")]
    NotBelowDir(String),
    #[error("{path} in the tar archive is a hard link to {target}, which is not in it")]
    NoTarget { path: String, target: String },
    #[error("{0} in the tar archive is both a directory and something else")]
    Conflict(String),
    #[error("the ACL of {0} in the tar archive cannot be understood")]
    Acl(String),
    #[error(
        "{0} in the tar archive says that a file of the layer below is gone: this is one layer of a container image, not a filesystem; \
         use `docker export` of a container (a folder that holds such names is taken as it is)"
    )]
    Whiteout(String),
    #[error(
        "the tar archive holds the layers of a container image, not a filesystem: use `docker export` of a container instead of \
         `docker save`"
    )]
    Layers,
}

/// What one path of the result must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub device: Option<(u32, u32)>,
    pub target: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub size: u64,
}

/// Full path to what it must be, sorted.
pub type Contents = BTreeMap<Vec<u8>, Wanted>;

/// A folder for `mke2fs -d` and what has to come out.
#[derive(Debug)]
pub struct Source {
    pub folder: PathBuf,
    pub contents: Contents,
    /// Names that share a file: each group's first one stands for the others.
    pub links: Vec<Vec<Vec<u8>>>,
    /// SHA-256 of the tar, or of the list of a directory's contents.
    pub sha256: String,
    /// What was not taken as it is, for people.
    pub notes: Vec<String>,
}

impl Source {
    /// The newest time in it.
    pub fn newest(&self) -> i64 {
        self.contents.values().map(|wanted| wanted.mtime).max().unwrap_or(0)
    }

    /// Blocks of 4 KiB that the contents take at most.
    pub fn blocks(&self) -> u64 {
        let shared: u64 = self
            .links
            .iter()
            .flat_map(|group| &group[1..])
            .filter_map(|path| self.contents.get(path))
            .map(file_blocks)
            .sum();
        self.contents.values().map(file_blocks).sum::<u64>() - shared
    }
}

fn file_blocks(wanted: &Wanted) -> u64 {
    match wanted.kind {
        Kind::File => wanted.size.div_ceil(4096) + wanted.size.div_ceil(64 << 20),
        Kind::Dir => 1,
        Kind::Link => u64::from(wanted.size >= 60),
        _ => 0,
    }
}

fn lossy(path: &[u8]) -> String {
    show(path)
}
