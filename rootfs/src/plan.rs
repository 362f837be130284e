//! A plan: files, links and directories to put into an image, and what they displace.
//!
//! | step | function | what can go wrong |
//! |---|---|---|
//! | collected | [`Plan::file`], [`Plan::link`], … | – |
//! | resolved against an image | [`Plan::resolve`] | loops, dangling parents, a directory in the way |
//! | checked for space | [`Resolved::require_space`] | no room |
//! | written by one debugfs script | [`Resolved::write`] | whatever debugfs says |
//! | read back | [`Resolved::read_back`] | any byte, mode or owner that differs |
//!
//! A file of the image that is in the way is not copied: its directory entry is moved below [`manifest::SAVED`], so the very inode, with its
//! times, attributes and other names, comes back at a revert.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    ext4::{self, Image, Ino, Kind, show},
    hash,
    manifest::{self, Installed, InstalledKind, Saved, Touched},
    script::{BadName, Script, Target},
    tools::{self, Tools},
    tree,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Image(#[from] ext4::Error),
    #[error(transparent)]
    Tool(#[from] tools::Error),
    #[error(transparent)]
    Name(#[from] BadName),
    #[error("{path} is a {kind} in the image, where a file of ours has to go; move it away first")]
    InTheWay { path: String, kind: &'static str },
    #[error("the parent folder of {path} does not exist in the image")]
    NoParent { path: String },
    #[error("the path {0} in the image is not UTF-8; it cannot go into the manifest")]
    NotUtf8(String),
    #[error(
        "no space in the image: {needed} KiB and {inodes} inodes are needed, {free} KiB and {free_inodes} inodes are free; \
         bake with a larger SIZE (an ext4 image is enlarged to it)"
    )]
    NoSpace { needed: u64, free: u64, inodes: u64, free_inodes: u64 },
    #[error("cannot {what} {}", path.display())]
    Host { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} was written, but reads back differently: {difference}")]
    ReadBack { path: String, difference: String },
}

type Result<T> = std::result::Result<T, Error>;

/// Blocks that are left free on top of what the payload takes: directory growth, extent blocks, room to breathe.
const SLACK_BLOCKS: u64 = 256;

/// Where a file's bytes come from.
#[derive(Debug, Clone)]
pub enum Content {
    Bytes(Vec<u8>),
    Host(PathBuf),
}

impl Content {
    pub fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Host(path) => {
                fs::read(path).map_err(|source| Error::Host { what: "read", path: path.clone(), source })
            }
        }
    }
}

#[derive(Debug, Clone)]
pub enum What {
    Dir { mode: u16 },
    File { content: Content, mode: u16 },
    Link { target: String },
}

/// What happens to something of the image that has the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is moved to the saved files, to come back at a revert.
    Save,
    /// It stays, and ours is not written.
    Keep,
}

#[derive(Debug, Clone)]
pub struct Item {
    pub path: String,
    pub what: What,
    pub existing: Existing,
    /// Where to save to, when that is not the path itself below the saved files.
    pub save_as: Option<String>,
}

/// Things to put into an image, in order. A later item of the same path replaces an earlier one.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub items: Vec<Item>,
}

impl Plan {
    pub fn push(&mut self, item: Item) {
        self.items.retain(|other| other.path != item.path);
        self.items.push(item);
    }

    pub fn dir(&mut self, path: &str) {
        let what = What::Dir { mode: 0o755 };
        self.push(Item { path: path.into(), what, existing: Existing::Keep, save_as: None });
    }

    pub fn file(&mut self, path: &str, content: Content, mode: u16) {
        let what = What::File { content, mode };
        self.push(Item { path: path.into(), what, existing: Existing::Save, save_as: None });
    }

    /// A file that an image's owner may have changed: one that is there stays.
    pub fn default_file(&mut self, path: &str, content: Content, mode: u16) {
        let what = What::File { content, mode };
        self.push(Item { path: path.into(), what, existing: Existing::Keep, save_as: None });
    }

    pub fn link(&mut self, path: &str, target: &str) {
        let what = What::Link { target: target.into() };
        self.push(Item { path: path.into(), what, existing: Existing::Save, save_as: None });
    }

    /// Finds out where each item really goes and what is there now.
    pub fn resolve(&self, image: &Image) -> Result<Resolved> {
        let mut resolved = Resolved { tiny_dirs: image.superblock.has_inline_data(), ..Resolved::default() };
        for item in &self.items {
            resolved.add(image, item)?;
        }
        resolved.files.retain(|file| !matches!(file.what, What::Dir { .. }));
        Ok(resolved)
    }
}

/// An item with its place in one image.
#[derive(Debug)]
struct Placed {
    /// Without links.
    path: Vec<u8>,
    what: What,
    /// What has to be moved away first, and where to.
    displaced: Option<(Ino, Vec<u8>)>,
}

/// A plan for one image.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Directories to make, parents first, with their modes.
    dirs: Vec<(Vec<u8>, u16)>,
    files: Vec<Placed>,
    /// New directories are tiny in this image, and have to be expanded before names are moved into them.
    tiny_dirs: bool,
    /// Directories of the image in which names come or go.
    touched: BTreeMap<Vec<u8>, ext4::Inode>,
}

impl Resolved {
    fn add(&mut self, image: &Image, item: &Item) -> Result<()> {
        let path = item.path.as_bytes();
        if let What::Dir { mode } = item.what {
            return self.need_dir(image, path, mode).map(|_| ());
        }
        let parent = self.need_dir(image, tree::parent(path), 0o755)?;
        let real = tree::join(&parent, tree::name(path));
        if self.files.iter().any(|file| file.path == real) {
            return Ok(());
        }
        let existing = image.find_link(&real)?;
        if existing.is_some() && item.existing == Existing::Keep {
            return Ok(());
        }
        let displaced = match existing {
            None => None,
            Some(there) if matches!(there.inode.kind, Kind::File | Kind::Link) => {
                Some((there.inode.ino, self.save_path(image, item, &real)?))
            }
            Some(there) => {
                let path = show(&real);
                return Err(Error::InTheWay { path, kind: there.inode.kind.name() });
            }
        };
        self.files.push(Placed { path: real, what: item.what.clone(), displaced });
        Ok(())
    }

    fn save_path(&mut self, image: &Image, item: &Item, real: &[u8]) -> Result<Vec<u8>> {
        let name = item.save_as.as_ref().map_or(real, |name| name.as_bytes());
        let wanted = [manifest::SAVED.as_bytes(), name].concat();
        let parent = self.need_dir(image, tree::parent(&wanted), 0o755)?;
        let wanted = tree::join(&parent, tree::name(&wanted));
        // What an earlier revert left there stays: debugfs would make a second entry of the same name.
        let mut place = wanted.clone();
        let mut number = 0;
        while image.find_link(&place)?.is_some() || self.saves_to(&place) {
            number += 1;
            place = [&wanted[..], format!(".{number}").as_bytes()].concat();
        }
        Ok(place)
    }

    fn saves_to(&self, place: &[u8]) -> bool {
        self.files.iter().any(|file| file.displaced.as_ref().is_some_and(|(_, at)| at == place))
    }

    /// The real path of a directory, which is noted down to be made where it is missing.
    fn need_dir(&mut self, image: &Image, path: &[u8], mode: u16) -> Result<Vec<u8>> {
        let found = image.resolve_dir(path)?;
        let mut real = found.real_parent;
        let mut in_image = Some(found.parent);
        for (index, name) in found.names.iter().enumerate() {
            let next = tree::join(&real, name);
            if !self.dirs.iter().any(|(dir, _)| *dir == next) {
                if let Some(parent) = in_image.take() {
                    self.touched.insert(real.clone(), parent);
                }
                let last = index + 1 == found.names.len();
                self.dirs.push((next.clone(), if last { mode } else { 0o755 }));
            }
            in_image = None;
            real = next;
        }
        if let Some(inode) = in_image {
            self.touched.insert(real.clone(), inode);
        }
        Ok(real)
    }

    /// Fails when the image has no room for the plan.
    pub fn require_space(&self, image: &Image) -> Result<()> {
        let block = u64::from(image.superblock.block_size);
        let cluster = image.superblock.blocks_per_cluster;
        let whole = |blocks: u64| blocks.next_multiple_of(cluster);
        let mut blocks = whole(SLACK_BLOCKS) + self.dirs.len() as u64 * cluster;
        for file in &self.files {
            let bytes = match &file.what {
                What::File { content: Content::Bytes(bytes), .. } => bytes.len() as u64,
                What::File { content: Content::Host(path), .. } => {
                    let meta = fs::metadata(path);
                    meta.map_err(|source| Error::Host { what: "read", path: path.clone(), source })?.len()
                }
                What::Link { target } if target.len() >= 60 => 1,
                What::Link { .. } | What::Dir { .. } => continue,
            };
            blocks += whole(bytes.div_ceil(block) + 1);
        }
        let inodes = (self.dirs.len() + self.files.len()) as u64;
        let (free, free_inodes) =
            (image.superblock.available_blocks(), u64::from(image.superblock.free_inodes));
        if blocks <= free && inodes <= free_inodes {
            return Ok(());
        }
        Err(Error::NoSpace { needed: blocks * block / 1024, free: free * block / 1024, inodes, free_inodes })
    }

    /// What the manifest says of this plan: installed, saved, made and touched.
    pub fn record(&self) -> Result<Record> {
        let mut record = Record::default();
        for (dir, _) in &self.dirs {
            record.directories.push(text(dir)?);
        }
        for file in &self.files {
            let path = text(&file.path)?;
            let what = match &file.what {
                What::File { content, mode } => {
                    let bytes = content.read()?;
                    InstalledKind::File {
                        sha256: hash::sha256(&bytes),
                        size: bytes.len() as u64,
                        mode: *mode,
                    }
                }
                What::Link { target } => InstalledKind::Link { target: target.clone() },
                What::Dir { .. } => continue,
            };
            if let Some((_, at)) = &file.displaced {
                record.saved.push(Saved { path: path.clone(), at: text(at)? });
            }
            record.installed.push(Installed { path, what });
        }
        for (dir, inode) in &self.touched {
            let (atime, ctime, mtime) = (inode.atime, inode.ctime, inode.mtime);
            record.touched.push(Touched { path: text(dir)?, atime, ctime, mtime });
        }
        Ok(record)
    }

    /// Writes everything with one script.
    pub fn write(&self, tools: &Tools, image: &Path) -> Result<()> {
        let folder = tools.folder().join("payload");
        fs::create_dir_all(&folder).map_err(|source| Error::Host {
            what: "make",
            path: folder.clone(),
            source,
        })?;
        let script = self.script(&folder, tools.epoch())?;
        run_script(tools, image, &script)
    }

    fn script(&self, folder: &Path, epoch: u64) -> Result<Script> {
        let mut script = Script::default();
        for (dir, mode) in &self.dirs {
            script.mkdir(dir)?;
            own(&mut script, dir, Kind::Dir, *mode, epoch)?;
        }
        let mut expanded = BTreeSet::new();
        for file in &self.files {
            if let Some((ino, to)) = &file.displaced {
                if self.tiny_dirs && expanded.insert(tree::parent(to)) {
                    script.expand(tree::parent(to))?;
                }
                script.rename(*ino, &file.path, to)?;
            }
        }
        for (index, file) in self.files.iter().enumerate() {
            match &file.what {
                What::File { content, mode } => {
                    let source = folder.join(index.to_string());
                    fs::write(&source, content.read()?).map_err(|error| Error::Host {
                        what: "write",
                        path: source.clone(),
                        source: error,
                    })?;
                    script.write(&format!("payload/{index}"), &file.path)?;
                    own(&mut script, &file.path, Kind::File, *mode, epoch)?;
                }
                What::Link { target } => {
                    script.symlink(&file.path, target.as_bytes())?;
                    own(&mut script, &file.path, Kind::Link, 0o777, epoch)?;
                }
                What::Dir { .. } => (),
            }
        }
        for inode in self.touched.values() {
            set_times(&mut script, Target::Inode(inode.ino), [inode.atime, inode.ctime, inode.mtime])?;
        }
        Ok(script)
    }

    /// Compares everything that was written with what is in the image now.
    pub fn read_back(&self, image: &Image) -> Result<()> {
        for (dir, mode) in &self.dirs {
            let found = image.locate_link(dir)?;
            require(dir, found.inode.kind == Kind::Dir && found.real == *dir, "it is no directory")?;
            require_owned(dir, &found.inode, *mode)?;
        }
        for file in &self.files {
            let found = image.locate_link(&file.path)?;
            let (kind, mode, bytes) = match &file.what {
                What::File { content, mode } => (Kind::File, *mode, content.read()?),
                What::Link { target } => (Kind::Link, 0o777, target.clone().into_bytes()),
                What::Dir { .. } => continue,
            };
            require(&file.path, found.inode.kind == kind, "its type")?;
            require_owned(&file.path, &found.inode, mode)?;
            require(&file.path, found.inode.size == bytes.len() as u64, "its size")?;
            require(&file.path, image.contents(&found.inode)? == bytes, "its contents")?;
            if let Some((ino, at)) = &file.displaced {
                require(at, image.locate_link(at)?.inode.ino == *ino, "it is another file")?;
            }
        }
        Ok(())
    }

    /// The names that are displaced: for messages.
    pub fn displaced(&self) -> BTreeSet<String> {
        self.files.iter().filter(|file| file.displaced.is_some()).map(|file| show(&file.path)).collect()
    }
}

/// The part of a manifest that follows from a plan.
#[derive(Debug, Default, Clone)]
pub struct Record {
    pub installed: Vec<Installed>,
    pub saved: Vec<Saved>,
    pub directories: Vec<String>,
    pub touched: Vec<Touched>,
}

/// Writes a script into the tools' folder and runs it.
pub fn run_script(tools: &Tools, image: &Path, script: &Script) -> Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let path = tools.folder().join("script");
    fs::write(&path, script.bytes()).map_err(|source| Error::Host {
        what: "write",
        path: path.clone(),
        source,
    })?;
    Ok(tools.debugfs(image, &path)?)
}

/// Sets the times of an inode, to the nanosecond.
pub fn set_times(
    script: &mut Script,
    target: Target<'_>,
    times: [ext4::Time; 3],
) -> std::result::Result<(), BadName> {
    for (name, time) in ["atime", "ctime", "mtime"].into_iter().zip(times) {
        // The field holds 32 bits; the two bits above them are kept with the nanoseconds.
        let epoch = (time.seconds - i64::from(time.seconds as i32)) >> 32 & 3;
        script.set(target, name, format!("@{}", time.seconds as u32))?;
        script.set(target, &format!("{name}_extra"), u64::from(time.nanos) << 2 | epoch as u64)?;
    }
    Ok(())
}

fn own(script: &mut Script, path: &[u8], kind: Kind, mode: u16, epoch: u64) -> Result<()> {
    let target = Target::Path(path);
    script.set(target, "mode", format!("0{:o}", kind.mode_bits() | mode))?;
    script.set(target, "uid", 0)?;
    script.set(target, "gid", 0)?;
    for field in ["atime", "ctime", "mtime", "crtime"] {
        script.set(target, field, format!("@{epoch}"))?;
    }
    Ok(())
}

fn require(path: &[u8], holds: bool, difference: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::ReadBack { path: show(path), difference: difference.into() }) }
}

fn require_owned(path: &[u8], inode: &ext4::Inode, mode: u16) -> Result<()> {
    require(path, inode.permissions() == mode, "its mode")?;
    require(path, (inode.uid, inode.gid) == (0, 0), "its owner")
}

fn text(path: &[u8]) -> Result<String> {
    String::from_utf8(path.to_vec()).map_err(|_| Error::NotUtf8(show(path)))
}
