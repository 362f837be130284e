//! A filesystem's tree in memory: what is compared, reported and repaired.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::ext4::{self, Chunk, Image, Ino, Inode, Kind, ROOT, Time};
use sha2::{Digest, Sha256};

/// Full path (`/` for the root) to node, sorted by bytes.
pub type Tree = BTreeMap<Vec<u8>, Node>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits, without the type.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Time,
    pub device: Option<(u32, u32)>,
    /// Where a link points.
    pub target: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub inode: Meta,
}

/// What the image knows of a node beyond what users see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    pub ino: Ino,
    pub links: u16,
    pub atime: Time,
    pub ctime: Time,
}

/// Reads the whole tree of an image.
pub fn read(image: &Image) -> Result<Tree, ext4::Error> {
    let mut tree = Tree::new();
    let mut todo = vec![(b"/".to_vec(), ROOT)];
    let mut directories = HashSet::new();
    while let Some((path, ino)) = todo.pop() {
        let inode = image.inode(ino)?;
        if inode.kind == Kind::Dir {
            if !directories.insert(ino) {
                return Err(ext4::Error::Damaged(format!(
                    "{} is a directory in two places",
                    ext4::show(&path)
                )));
            }
            for entry in image.read_dir(&inode)? {
                todo.push((join(&path, &entry.name), entry.ino));
            }
        }
        if tree.insert(path.clone(), node(image, &inode)?).is_some() {
            return Err(ext4::Error::Damaged(format!("{} is there twice", ext4::show(&path))));
        }
    }
    Ok(tree)
}

pub fn node(image: &Image, inode: &Inode) -> Result<Node, ext4::Error> {
    let target = if inode.kind == Kind::Link { Some(image.contents(inode)?) } else { None };
    Ok(Node {
        kind: inode.kind,
        mode: inode.permissions(),
        uid: inode.uid,
        gid: inode.gid,
        size: if matches!(inode.kind, Kind::File | Kind::Link) { inode.size } else { 0 },
        mtime: inode.mtime,
        device: inode.device,
        target,
        xattrs: image.xattrs(inode)?,
        inode: Meta { ino: inode.ino, links: inode.links, atime: inode.atime, ctime: inode.ctime },
    })
}

/// `/` and `a` make `/a`.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let parent = parent.strip_suffix(b"/").unwrap_or(parent);
    [parent, b"/", name].concat()
}

/// The path without its last component.
pub fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) => b"/",
        Some(at) => &path[..at],
    }
}

/// The last component.
pub fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// The SHA-256 of a file in an image.
pub fn sha256(image: &Image, inode: &Inode) -> Result<String, ext4::Error> {
    let mut digest = Sha256::new();
    let zeros = [0; 4096];
    image.for_each_chunk(inode, |chunk| {
        match chunk {
            Chunk::Data(data) => digest.update(data),
            Chunk::Hole(mut len) => {
                while len > 0 {
                    let part = len.min(zeros.len() as u64);
                    digest.update(&zeros[..part as usize]);
                    len -= part;
                }
            }
        }
        Ok::<(), ext4::Error>(())
    })?;
    Ok(crate::hash::hex(&digest.finalize()))
}

/// Paths that share an inode, as sets of names; files with one name are left out.
pub fn hard_links(tree: &Tree) -> Vec<Vec<&[u8]>> {
    let mut by_inode: HashMap<Ino, Vec<&[u8]>> = HashMap::new();
    for (path, node) in tree.iter().filter(|(_, node)| node.kind != Kind::Dir) {
        by_inode.entry(node.inode.ino).or_default().push(path);
    }
    let mut sets: Vec<_> = by_inode.into_values().filter(|names| names.len() > 1).collect();
    sets.sort();
    sets
}
