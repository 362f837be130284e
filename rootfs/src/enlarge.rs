//! Enlarges an image, and requires that nothing in it changed: `resize2fs` had errors with some geometries that `e2fsck` does not see.

use std::{collections::BTreeMap, path::Path};

use crate::{
    ext4::{self, Image, Kind, show},
    progress,
    tools::{self, Tools},
    tree::{self, Meta, Node},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Image(#[from] ext4::Error),
    #[error(transparent)]
    Tool(#[from] tools::Error),
    #[error("SIZE={given} MiB is smaller than the image ({is} MiB); an image can only be enlarged")]
    Smaller { given: u64, is: u64 },
    #[error(
        "{0} is not what it was after enlarging the filesystem; use a newer e2fsprogs, or bake without SIZE"
    )]
    Changed(String),
}

type Result<T> = std::result::Result<T, Error>;

/// Every path with what users see of it, and the digests of files.
type Contents = BTreeMap<Vec<u8>, (Node, Option<String>)>;

/// Makes a clean image that nobody else uses `mib` MiB large.
pub fn enlarge(tools: &Tools, path: &Path, mib: u64) -> Result<()> {
    let image = Image::open(path)?;
    let (is, wanted) = (image.superblock.size(), mib << 20);
    if wanted < is {
        return Err(Error::Smaller { given: mib, is: is >> 20 });
    }
    if wanted == is {
        return Ok(());
    }
    let _step = progress::step("enlarge", "enlarging the filesystem", None);
    let before = contents(&image)?;
    tools.enlarge(path, mib)?;
    tools.require_clean(path)?;
    let after = contents(&Image::open(path)?)?;
    let mut paths = before.keys().chain(after.keys());
    match paths.find(|path| before.get(*path) != after.get(*path)) {
        Some(path) => Err(Error::Changed(show(path))),
        None => Ok(()),
    }
}

fn contents(image: &Image) -> std::result::Result<Contents, ext4::Error> {
    let mut contents = Contents::new();
    for (path, mut node) in tree::read(image)? {
        let digest = match node.kind {
            Kind::File => Some(tree::sha256(image, &image.inode(node.inode.ino)?)?),
            _ => None,
        };
        // Inodes may move to other groups.
        node.inode = Meta::default();
        contents.insert(path, (node, digest));
    }
    Ok(contents)
}
