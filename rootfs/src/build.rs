//! Makes a filesystem from nothing but a source.
//!
//! | step | how |
//! |---|---|
//! | size and inodes | counted, with head-room, or given |
//! | filesystem | `mke2fs -d` on the source's folder |
//! | device nodes; owners, modes, times, attributes | what differs from what is wanted, by inode number, in one debugfs script |
//! | judgement | the tree is read back and compared with what is wanted, then `e2fsck -fn` |
//!
//! Inode numbers, not names, are what the scripts use, so a name may hold any byte.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::PathBuf,
};

use crate::{
    ext4::{self, Image, Kind, Time, show},
    hash,
    plan::{self, run_script, set_times},
    script::{BadName, Script, Target},
    source::{Contents, Source, Wanted},
    tools::{self, Tools},
    tree::{self, Node, Tree},
};

mod contents;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Image(#[from] ext4::Error),
    #[error(transparent)]
    Tool(#[from] tools::Error),
    #[error(transparent)]
    Plan(#[from] plan::Error),
    #[error(transparent)]
    Name(#[from] BadName),
    #[error("cannot {what} {}", path.display())]
    Host { what: &'static str, path: PathBuf, source: io::Error },
    #[error("SIZE={given} MiB is too small: the contents need {needed} MiB")]
    TooSmall { given: u64, needed: u64 },
    #[error("{path} was built, but reads back differently: {difference}")]
    Differs { path: String, difference: String },
}

type Result<T> = std::result::Result<T, Error>;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// The journal: enough for a small disk, and no more to fetch after a restore than need be.
const JOURNAL_MIB: u64 = 4;
/// Free space of a computed size: a quarter of the contents and this much.
const HEADROOM_MIB: u64 = 128;
/// Free inodes that a computed count leaves at least.
const HEADROOM_INODES: u64 = 16384;

#[derive(Debug, Clone, Default)]
pub struct Geometry {
    /// `None`: computed.
    pub size_mib: Option<u64>,
    /// `None`: `rootfs`.
    pub label: Option<String>,
    /// `None`: made from the digest of the source.
    pub uuid: Option<[u8; 16]>,
    /// Room for what is put in afterwards.
    pub reserve_mib: u64,
}

/// The times that go into the image: no time is later, and what has no time of its own gets this one.
pub fn epoch(source: &Source, given: Option<u64>) -> u64 {
    given.unwrap_or_else(|| source.newest().clamp(1, i64::from(u32::MAX)) as u64)
}

/// Makes `image` from the source.
pub fn build(source: &Source, geometry: &Geometry, tools: &Tools, image: &std::path::Path) -> Result<()> {
    let plan = Layout::new(source, geometry)?;
    fs::File::create(image)
        .and_then(|file| file.set_len(plan.size_mib * MIB))
        .map_err(|source| Error::Host { what: "make", path: image.to_owned(), source })?;
    tools.mke2fs(image, &plan.options(source, geometry), &source.folder)?;
    repair(source, tools, image)?;
    std::thread::scope(|scope| {
        let fsck = scope.spawn(|| tools.require_clean(image));
        judge(source, &Image::open(image)?, tools.epoch())?;
        fsck.join().expect("a thread that only waits for a program")?;
        Ok(())
    })
}

/// Requires that the image holds what the source holds, to the byte.
fn judge(source: &Source, image: &Image, epoch: u64) -> Result<()> {
    let tree = tree::read(image)?;
    match differences(&source.contents, &tree, epoch).into_iter().next() {
        Some((path, difference)) => {
            Err(Error::Differs { path: show(path), difference: difference.to_owned() })
        }
        None => contents::compare(source, image, &tree),
    }
}

struct Layout {
    size_mib: u64,
    inodes: u64,
}

impl Layout {
    fn new(source: &Source, geometry: &Geometry) -> Result<Self> {
        let used = source.contents.len() as u64;
        let content_mib = (source.blocks() * BLOCK).div_ceil(MIB);
        let reserve = geometry.reserve_mib;
        let default = content_mib + content_mib / 4 + reserve + HEADROOM_MIB;
        let size_mib = geometry.size_mib.unwrap_or_else(|| default.next_multiple_of(64).max(256));
        // As many inodes as one for 16 KiB gives, and never fewer than what is there and some.
        let inodes = (size_mib * MIB / 16384).max(used + used / 4 + HEADROOM_INODES.min(size_mib * 16));
        let tables = (inodes * 256).div_ceil(MIB);
        let needed = content_mib + tables + JOURNAL_MIB + reserve + 4 + size_mib / 512;
        if size_mib < needed {
            return Err(Error::TooSmall { given: size_mib, needed: needed.next_multiple_of(8) });
        }
        Ok(Self { size_mib, inodes })
    }

    fn options(&self, source: &Source, geometry: &Geometry) -> Vec<String> {
        let uuid = geometry.uuid.unwrap_or_else(|| hash::uuid_from(&source.sha256));
        let uuid = hash::uuid_text(&uuid);
        let label = geometry.label.clone().unwrap_or_else(|| "rootfs".into());
        let extended = [
            &format!("hash_seed={uuid}"),
            "root_owner=0:0",
            "lazy_itable_init=0",
            "lazy_journal_init=0",
            "nodiscard",
            "no_copy_xattrs",
        ];
        let mut options: Vec<String> =
            ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"].map(str::to_owned).into();
        options.extend(["-J".into(), format!("size={JOURNAL_MIB}"), "-N".into(), self.inodes.to_string()]);
        options.extend(["-L".into(), label, "-U".into(), uuid, "-E".into(), extended.join(",")]);
        options.push(format!("{}M", self.size_mib));
        options
    }
}

/// Sets what `mke2fs` could not know or got from this host, and makes the device nodes that the source's folder could not hold.
fn repair(source: &Source, tools: &Tools, path: &std::path::Path) -> Result<()> {
    let tree = tree::read(&Image::open(path)?)?;
    let mut script = Script::default();
    let mut attributes = Attributes { folder: tools.folder().join("xattr"), count: 0 };
    make_devices(source, &tree, tools.epoch(), &mut script, &mut attributes)?;
    let mut done = HashSet::new();
    for (path, node) in &tree {
        if !done.insert(node.inode.ino) {
            continue;
        }
        let target = Target::Inode(node.inode.ino);
        let Some(wanted) = source.contents.get(path) else {
            fix_times(&mut script, target, node, tools.epoch() as i64, tools.epoch())?;
            continue;
        };
        fix(&mut script, target, node, wanted, tools.epoch())?;
        attributes.fix(&mut script, target, node, wanted)?;
    }
    Ok(run_script(tools, path, &script)?)
}

fn make_devices(
    source: &Source,
    tree: &Tree,
    epoch: u64,
    script: &mut Script,
    attributes: &mut Attributes,
) -> Result<()> {
    let missing = source.contents.iter().filter(|(path, _)| !tree.contains_key(*path));
    for (path, wanted) in missing {
        let Some(device) = wanted.device else { continue };
        if let Some(group) = source.links.iter().find(|group| group[1..].contains(path)) {
            script.link(&group[0], path, group.len())?;
            continue;
        }
        let kind = if wanted.kind == Kind::Char { 'c' } else { 'b' };
        let parent = tree.get(tree::parent(path)).map_or(ext4::ROOT, |node| node.inode.ino);
        // debugfs takes no larger numbers; `fix` sets the real ones.
        let small = if device.1 > 0xffff { (1, 1) } else { device };
        script.mknod(parent, tree::name(path), kind, small)?;
        let made = unlike(wanted, small);
        fix(script, Target::Path(path), &made, wanted, epoch)?;
        attributes.fix(script, Target::Path(path), &made, wanted)?;
    }
    Ok(())
}

/// A node of which nothing but the device number is known, so that all is set.
fn unlike(wanted: &Wanted, device: (u32, u32)) -> Node {
    Node {
        kind: wanted.kind,
        mode: !wanted.mode,
        uid: !wanted.uid,
        gid: !wanted.gid,
        size: 0,
        mtime: Time::default(),
        device: Some(device),
        target: None,
        xattrs: BTreeMap::new(),
        inode: tree::Meta::default(),
    }
}

fn fix(script: &mut Script, target: Target<'_>, node: &Node, wanted: &Wanted, epoch: u64) -> Result<()> {
    if node.mode != wanted.mode {
        script.set(target, "mode", format!("0{:o}", wanted.kind.mode_bits() | wanted.mode))?;
    }
    if node.uid != wanted.uid {
        script.set(target, "uid", wanted.uid)?;
    }
    if node.gid != wanted.gid {
        script.set(target, "gid", wanted.gid)?;
    }
    if let Some((major, minor)) = wanted.device.filter(|_| node.device != wanted.device) {
        // The kernel's new encoding: 12 bits of major number, 20 of minor.
        script.set(target, "block[0]", 0)?;
        script.set(target, "block[1]", minor & 0xff | major << 8 | (minor & !0xff) << 12)?;
    }
    fix_times(script, target, node, wanted.mtime, epoch)
}

/// The change time is the one thing that no tool can set on the host before.
fn fix_times(script: &mut Script, target: Target<'_>, node: &Node, mtime: i64, epoch: u64) -> Result<()> {
    let at = |seconds| Time { seconds, nanos: 0 };
    let wanted = [at(mtime), at(epoch as i64), at(mtime)];
    let found = [node.inode.atime, node.inode.ctime, node.mtime];
    if found == wanted {
        return Ok(());
    }
    let simple =
        found.iter().chain(&wanted).all(|time| time.nanos == 0 && i32::try_from(time.seconds).is_ok());
    if !simple {
        return Ok(set_times(script, target, wanted)?);
    }
    for ((field, found), wanted) in ["atime", "ctime", "mtime"].into_iter().zip(found).zip(wanted) {
        if found != wanted {
            script.set(target, field, format!("@{}", wanted.seconds as u32))?;
        }
    }
    Ok(())
}

/// Values of attributes go through files: they may hold any byte.
struct Attributes {
    folder: PathBuf,
    count: usize,
}

impl Attributes {
    fn fix(&mut self, script: &mut Script, target: Target<'_>, node: &Node, wanted: &Wanted) -> Result<()> {
        for name in node.xattrs.keys().filter(|name| !wanted.xattrs.contains_key(*name)) {
            script.remove_xattr(target, name)?;
        }
        for (name, value) in
            wanted.xattrs.iter().filter(|(name, value)| node.xattrs.get(*name) != Some(*value))
        {
            let host = self.folder.join(self.count.to_string());
            fs::create_dir_all(&self.folder)
                .and_then(|()| fs::write(&host, value))
                .map_err(|source| Error::Host { what: "write", path: host.clone(), source })?;
            script.set_xattr(target, name, &format!("xattr/{}", self.count))?;
            self.count += 1;
        }
        Ok(())
    }
}

/// Where the image is not what was wanted.
fn differences<'a>(contents: &'a Contents, tree: &'a Tree, epoch: u64) -> Vec<(&'a [u8], &'static str)> {
    let mut found = Vec::new();
    for (path, wanted) in contents {
        let difference = match tree.get(path) {
            None => Some("it is missing"),
            Some(node) => difference(wanted, node, epoch),
        };
        found.extend(difference.map(|difference| (path.as_slice(), difference)));
    }
    let extra = tree.keys().filter(|path| !contents.contains_key(*path) && path.as_slice() != b"/lost+found");
    found.extend(extra.map(|path| (path.as_slice(), "it is not in the source")));
    found
}

fn difference(wanted: &Wanted, node: &Node, epoch: u64) -> Option<&'static str> {
    let at = |seconds| Time { seconds, nanos: 0 };
    [
        (wanted.kind == node.kind, "its type"),
        (wanted.mode == node.mode, "its mode"),
        ((wanted.uid, wanted.gid) == (node.uid, node.gid), "its owner"),
        (wanted.size == node.size, "its size"),
        (wanted.device == node.device, "its device numbers"),
        (wanted.target == node.target, "where it points"),
        (wanted.xattrs == node.xattrs, "its attributes"),
        (node.mtime == at(wanted.mtime) && node.inode.ctime == at(epoch as i64), "its times"),
    ]
    .into_iter()
    .find_map(|(same, what)| (!same).then_some(what))
}
