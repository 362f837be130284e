//! Inodes and where their contents lie.

use super::{Chunk, Error, Image, Ino, MAX_CONTENTS, Result, le16, le32};

const FLAG_ENCRYPT: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
/// An extent longer than this is allocated but never written: it reads as zeros.
const MAX_WRITTEN_EXTENT: u32 = 32768;
/// As deep as the kernel follows a tree of extents.
const MAX_EXTENT_DEPTH: u16 = 5;
/// No longer target can be followed by the kernel (PATH_MAX), nor made.
const MAX_LINK: u64 = 4096;
/// Contents are handed on in pieces of at most this many bytes.
const CHUNK_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    File,
    Dir,
    Link,
    Char,
    Block,
    Fifo,
    Socket,
}

impl Kind {
    pub fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Dir,
            0o120_000 => Self::Link,
            0o020_000 => Self::Char,
            0o060_000 => Self::Block,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }

    pub const fn mode_bits(self) -> u16 {
        match self {
            Self::File => 0o100_000,
            Self::Dir => 0o040_000,
            Self::Link => 0o120_000,
            Self::Char => 0o020_000,
            Self::Block => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "directory",
            Self::Link => "link",
            Self::Char => "character device",
            Self::Block => "block device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// A point in time: seconds (with the epoch bits applied) and nanoseconds.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

#[derive(Debug, Clone)]
pub struct Inode {
    pub ino: Ino,
    pub kind: Kind,
    /// Type and permission bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub links: u16,
    pub atime: Time,
    pub ctime: Time,
    pub mtime: Time,
    /// Major and minor of a device node.
    pub device: Option<(u32, u32)>,
    pub(super) flags: u32,
    pub(super) block: [u8; 60],
    pub(super) acl_block: u64,
    /// Everything behind the first 128 bytes.
    pub(super) extra: Vec<u8>,
    /// 512-byte sectors (or blocks) the inode accounts for.
    pub sectors: u64,
}

impl Inode {
    pub const fn permissions(&self) -> u16 {
        self.mode & 0o7777
    }

    pub(super) fn require_modest(&self) -> Result<()> {
        let (ino, size) = (self.ino, self.size);
        if self.kind == Kind::Link && size > MAX_LINK {
            return Err(Error::Damaged(format!("inode {ino} is a link of {size} bytes")));
        }
        if size > MAX_CONTENTS { Err(Error::TooLarge { ino, size }) } else { Ok(()) }
    }

    pub(super) const fn is_inline(&self) -> bool {
        self.flags & FLAG_INLINE_DATA != 0
    }
}

impl Image {
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        let sb = &self.superblock;
        if ino == 0 || ino > sb.inodes {
            return Err(Error::Damaged(format!("inode {ino} does not exist")));
        }
        let (group, index) = ((ino - 1) / sb.inodes_per_group, (ino - 1) % sb.inodes_per_group);
        let table = self.groups.get(group as usize).copied().unwrap_or(0);
        let offset = table * u64::from(sb.block_size) + u64::from(index) * u64::from(sb.inode_size);
        let mut raw = vec![0; sb.inode_size as usize];
        self.read_at(offset, &mut raw)?;
        parse(ino, &raw)
    }

    /// Hands the contents on piece by piece, in order; what lies behind the last piece up to the size is a hole.
    pub fn for_each_chunk<E: From<Error>>(
        &self,
        inode: &Inode,
        mut take: impl FnMut(Chunk<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if let Some(data) = self.small_contents(inode)? {
            return take(Chunk::Data(&data));
        }
        let block_size = u64::from(self.superblock.block_size);
        let mut at = 0;
        let mut buffer = Vec::new();
        for run in self.runs(inode)? {
            let begin = (run.logical * block_size).min(inode.size);
            let end = (begin + run.len * block_size).min(inode.size);
            if begin > at {
                take(Chunk::Hole(begin - at))?;
                at = begin;
            }
            while at < end {
                let len = (end - at).min(CHUNK_BYTES);
                buffer.resize(len as usize, 0);
                let offset = run.physical * block_size + (at - run.logical * block_size);
                self.read_at(offset, &mut buffer)?;
                take(Chunk::Data(&buffer))?;
                at += len;
            }
        }
        if at < inode.size { take(Chunk::Hole(inode.size - at)) } else { Ok(()) }
    }

    /// Contents that live in the inode itself: short links and inline data.
    fn small_contents(&self, inode: &Inode) -> Result<Option<Vec<u8>>> {
        let size = inode.size as usize;
        if inode.flags & FLAG_ENCRYPT != 0 {
            return Err(Error::Damaged(format!("inode {} is encrypted", inode.ino)));
        }
        if inode.is_inline() {
            let mut data = inode.block.to_vec();
            if size > data.len() {
                data.extend(self.inline_rest(inode)?);
            }
            data.resize(size, 0);
            return Ok(Some(data));
        }
        if inode.kind == Kind::Link && inode.flags & FLAG_EXTENTS == 0 && size < inode.block.len() {
            return Ok(Some(inode.block[..size].to_vec()));
        }
        Ok(None)
    }

    /// The mapped runs of blocks, ascending.
    fn runs(&self, inode: &Inode) -> Result<Vec<Run>> {
        let mut runs = Runs { ino: inode.ino, list: Vec::new(), left: self.superblock.blocks };
        if inode.flags & FLAG_EXTENTS != 0 {
            self.extent_runs(&inode.block, MAX_EXTENT_DEPTH, &mut runs)?;
        } else {
            self.mapped_runs(inode, &mut runs)?;
        }
        if runs.list.windows(2).any(|pair| pair[0].logical + pair[0].len > pair[1].logical) {
            return Err(Error::Damaged(format!("inode {}: its extents overlap", inode.ino)));
        }
        Ok(runs.list)
    }

    fn extent_runs(&self, node: &[u8], levels: u16, runs: &mut Runs) -> Result<()> {
        let (magic, entries, depth) = (le16(node, 0), usize::from(le16(node, 2)), le16(node, 6));
        if magic != EXTENT_MAGIC || depth > levels || 12 * (entries + 1) > node.len() {
            return Err(Error::Damaged(format!("inode {}: its extent tree is broken", runs.ino)));
        }
        for raw in node[12..12 * (entries + 1)].chunks_exact(12) {
            if depth > 0 {
                let block = u64::from(le32(raw, 4)) | u64::from(le16(raw, 8)) << 32;
                runs.count(1)?;
                self.extent_runs(&self.read_block(block)?, depth - 1, runs)?;
                continue;
            }
            let len = u32::from(le16(raw, 4));
            if len <= MAX_WRITTEN_EXTENT {
                let physical = u64::from(le32(raw, 8)) | u64::from(le16(raw, 6)) << 32;
                runs.push(Run { logical: u64::from(le32(raw, 0)), physical, len: u64::from(len) })?;
            }
        }
        Ok(())
    }

    /// The block map of ext2: 12 direct blocks, then one, two and three levels of indirection.
    fn mapped_runs(&self, inode: &Inode, runs: &mut Runs) -> Result<()> {
        let block_size = u64::from(self.superblock.block_size);
        let mut map = Map { end: inode.size.div_ceil(block_size), logical: 0, runs };
        for slot in 0..15 {
            let block = u64::from(le32(&inode.block, slot * 4));
            self.map_slot(block, slot.saturating_sub(11) as u32, &mut map)?;
        }
        Ok(())
    }

    fn map_slot(&self, block: u64, level: u32, map: &mut Map<'_>) -> Result<()> {
        if block == 0 || map.logical >= map.end {
            map.logical += (u64::from(self.superblock.block_size) / 4).pow(level);
            return Ok(());
        }
        if level == 0 {
            map.runs.push(Run { logical: map.logical, physical: block, len: 1 })?;
            map.logical += 1;
            return Ok(());
        }
        map.runs.count(1)?;
        for raw in self.read_block(block)?.chunks_exact(4) {
            self.map_slot(u64::from(le32(raw, 0)), level - 1, map)?;
        }
        Ok(())
    }
}

/// Blocks that follow each other both in the file and on the disk.
#[derive(Debug, Clone, Copy)]
struct Run {
    logical: u64,
    physical: u64,
    len: u64,
}

/// Runs of one inode. It cannot have more blocks than the filesystem has, which ends the search in a tree that leads back to
/// itself.
struct Runs {
    ino: Ino,
    list: Vec<Run>,
    left: u64,
}

impl Runs {
    fn count(&mut self, blocks: u64) -> Result<()> {
        let too_many = || Error::Damaged(format!("inode {} has more blocks than the filesystem", self.ino));
        self.left = self.left.checked_sub(blocks).ok_or_else(too_many)?;
        Ok(())
    }

    fn push(&mut self, run: Run) -> Result<()> {
        self.count(run.len)?;
        match self.list.last_mut() {
            Some(last)
                if last.logical + last.len == run.logical && last.physical + last.len == run.physical =>
            {
                last.len += run.len;
            }
            _ => self.list.push(run),
        }
        Ok(())
    }
}

/// A walk through a block map.
struct Map<'a> {
    /// The file's length in blocks.
    end: u64,
    logical: u64,
    runs: &'a mut Runs,
}

fn parse(ino: Ino, raw: &[u8]) -> Result<Inode> {
    let mode = le16(raw, 0);
    let kind = Kind::from_mode(mode)
        .ok_or_else(|| Error::Damaged(format!("inode {ino} has the unknown mode {mode:o}")))?;
    let mut block = [0; 60];
    block.copy_from_slice(&raw[0x28..0x64]);
    let extra = raw[128..].to_vec();
    let time = |low: usize, high: usize| time(le32(raw, low), extra_field(&extra, high));
    let is_device = matches!(kind, Kind::Char | Kind::Block);
    Ok(Inode {
        ino,
        kind,
        mode,
        uid: u32::from(le16(raw, 2)) | u32::from(le16(raw, 0x78)) << 16,
        gid: u32::from(le16(raw, 0x18)) | u32::from(le16(raw, 0x7a)) << 16,
        size: u64::from(le32(raw, 4)) | u64::from(le32(raw, 0x6c)) << 32,
        links: le16(raw, 0x1a),
        atime: time(8, 0x8c),
        ctime: time(0xc, 0x84),
        mtime: time(0x10, 0x88),
        device: is_device.then(|| device(&block)),
        flags: le32(raw, 0x20),
        block,
        acl_block: u64::from(le32(raw, 0x68)) | u64::from(le16(raw, 0x76)) << 32,
        sectors: u64::from(le32(raw, 0x1c)) | u64::from(le16(raw, 0x74)) << 32,
        extra,
    })
}

/// A field behind the first 128 bytes, if this inode is large enough to have it.
fn extra_field(extra: &[u8], offset: usize) -> Option<u32> {
    let at = offset - 128;
    let present = extra.len() >= 4 && usize::from(le16(extra, 0)) >= at + 4 && extra.len() >= at + 4;
    present.then(|| le32(extra, at))
}

fn time(low: u32, extra: Option<u32>) -> Time {
    let extra = extra.unwrap_or(0);
    Time { seconds: i64::from(low as i32) + (i64::from(extra & 3) << 32), nanos: extra >> 2 }
}

/// The old 8:8 encoding in the first word, or the new 12:20 one in the second.
fn device(block: &[u8; 60]) -> (u32, u32) {
    let (old, new) = (le32(block, 0), le32(block, 4));
    if old != 0 {
        return (old >> 8 & 0xff, old & 0xff);
    }
    (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
}
