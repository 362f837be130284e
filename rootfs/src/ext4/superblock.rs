//! The superblock: geometry, features, free space.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use super::{Error, Result, le16, le32};
use crate::format;

const OFFSET: u64 = 1024;
const SIZE: usize = 1024;
const MAGIC: u16 = 0xef53;
/// As mke2fs makes them at least. Fewer would make the table of groups larger than any machine's memory.
const MIN_BLOCKS_PER_GROUP: u32 = 256;

/// `s_feature_incompat`: name, bit, and whether images that use it are handled here.
const INCOMPAT: &[(&str, u32, bool)] = &[
    ("compression", 0x1, false),
    ("filetype", 0x2, true),
    ("needs_recovery", 0x4, true),
    ("journal_dev", 0x8, false),
    ("meta_bg", 0x10, true),
    ("extent", 0x40, true),
    ("64bit", 0x80, true),
    ("mmp", 0x100, false),
    ("flex_bg", 0x200, true),
    ("ea_inode", 0x400, true),
    ("dirdata", 0x1000, false),
    ("metadata_csum_seed", 0x2000, true),
    ("large_dir", 0x4000, true),
    ("inline_data", 0x8000, true),
    ("encrypt", 0x1_0000, false),
    ("casefold", 0x2_0000, false),
];

/// `s_feature_ro_compat`, the same. Quota files would have to be kept in step with every write, so they are refused.
const RO_COMPAT: &[(&str, u32, bool)] = &[
    ("sparse_super", 0x1, true),
    ("large_file", 0x2, true),
    ("btree_dir", 0x4, false),
    ("huge_file", 0x8, true),
    ("uninit_bg", 0x10, true),
    ("dir_nlink", 0x20, true),
    ("extra_isize", 0x40, true),
    ("quota", 0x100, false),
    ("bigalloc", 0x200, true),
    ("metadata_csum", 0x400, true),
    ("replica", 0x800, false),
    ("read-only", 0x1000, false),
    ("project", 0x2000, false),
    ("shared_blocks", 0x4000, false),
    ("verity", 0x8000, false),
    ("orphan_present", 0x1_0000, true),
];

/// Those of the refused that `tune2fs` takes away without touching contents.
const REMOVABLE: [&str; 4] = ["mmp", "quota", "project", "read-only"];

const COMPAT: &[(&str, u32, bool)] = &[
    ("dir_prealloc", 0x1, true),
    ("imagic_inodes", 0x2, true),
    ("has_journal", 0x4, true),
    ("ext_attr", 0x8, true),
    ("resize_inode", 0x10, true),
    ("dir_index", 0x20, true),
    ("sparse_super2", 0x200, true),
    ("fast_commit", 0x400, true),
    ("stable_inodes", 0x800, true),
    ("orphan_file", 0x1000, true),
];

const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_NEEDS_RECOVERY: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_INLINE_DATA: u32 = 0x8000;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x1_0000;

#[derive(Debug, Clone)]
pub struct Superblock {
    pub block_size: u32,
    /// Blocks that are given out together: 1 but with `bigalloc`.
    pub blocks_per_cluster: u64,
    pub blocks: u64,
    pub free_blocks: u64,
    pub reserved_blocks: u64,
    pub inodes: u32,
    pub free_inodes: u32,
    pub label: String,
    pub uuid: [u8; 16],
    /// Last write, seconds since 1970.
    pub written: u32,
    /// State bits: 1 is "unmounted cleanly", 2 is "errors were seen".
    pub state: u16,
    pub inode_size: u32,
    pub(super) inodes_per_group: u32,
    pub(super) descriptor_size: u32,
    first_data_block: u32,
    blocks_per_group: u32,
    first_meta_group: u32,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    backup_groups: [u32; 2],
}

impl Superblock {
    pub(super) fn read(file: &File, path: &Path, len: u64) -> Result<Self> {
        let no = |reason: &str| Error::NotExt4 { path: path.to_owned(), reason: reason.to_owned() };
        let mut raw = [0; SIZE];
        file.read_exact_at(&mut raw, OFFSET).map_err(|_| no("it is too short for a superblock"))?;
        if le16(&raw, 0x38) != MAGIC {
            return Err(no(&format!("there is no ext4 superblock in it{}", format::hint(path))));
        }
        let superblock = Self::parse(&raw);
        superblock.check_features(path)?;
        superblock.check_geometry().map_err(|reason| no(&reason))?;
        let needed = superblock.blocks * u64::from(superblock.block_size);
        if len < needed {
            return Err(Error::Truncated { path: path.to_owned(), needed, len });
        }
        Ok(superblock)
    }

    fn parse(raw: &[u8; SIZE]) -> Self {
        let incompat = le32(raw, 0x60);
        let wide = incompat & INCOMPAT_64BIT != 0;
        let pair = |low: usize, high: usize| {
            u64::from(le32(raw, low)) | if wide { u64::from(le32(raw, high)) << 32 } else { 0 }
        };
        let old = le32(raw, 0x4c) == 0;
        let label = raw[0x78..0x88].split(|byte| *byte == 0).next().unwrap_or_default();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&raw[0x68..0x78]);
        Self {
            block_size: 1024_u32.checked_shl(le32(raw, 0x18)).unwrap_or(0),
            blocks_per_cluster: match le32(raw, 0x64) & RO_COMPAT_BIGALLOC {
                0 => 1,
                _ => 1_u64.checked_shl(le32(raw, 0x1c).saturating_sub(le32(raw, 0x18))).unwrap_or(1),
            },
            blocks: pair(0x4, 0x150),
            free_blocks: pair(0xc, 0x158),
            reserved_blocks: pair(0x8, 0x154),
            inodes: le32(raw, 0x0),
            free_inodes: le32(raw, 0x10),
            label: String::from_utf8_lossy(label).into_owned(),
            uuid,
            written: le32(raw, 0x30),
            state: le16(raw, 0x3a),
            inode_size: if old { 128 } else { u32::from(le16(raw, 0x58)) },
            inodes_per_group: le32(raw, 0x28),
            descriptor_size: if wide { u32::from(le16(raw, 0xfe)) } else { 32 },
            first_data_block: le32(raw, 0x14),
            blocks_per_group: le32(raw, 0x20),
            first_meta_group: le32(raw, 0x104),
            compat: le32(raw, 0x5c),
            incompat,
            ro_compat: le32(raw, 0x64),
            backup_groups: [le32(raw, 0x24c), le32(raw, 0x250)],
        }
    }

    fn check_features(&self, path: &Path) -> Result<()> {
        let mut refused = Vec::new();
        for (bits, known, word) in
            [(self.incompat, INCOMPAT, "incompat"), (self.ro_compat, RO_COMPAT, "ro_compat")]
        {
            let handled: u32 = known.iter().filter(|(_, _, ok)| *ok).map(|(_, bit, _)| bit).sum();
            let rest = bits & !handled;
            let named = known.iter().filter(|(_, bit, _)| rest & bit != 0);
            refused.extend(named.clone().map(|(name, _, _)| (*name).to_owned()));
            let unknown = named.fold(rest, |rest, (_, bit, _)| rest & !bit);
            if unknown != 0 {
                refused.push(format!("unknown {word} bits {unknown:#x}"));
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        let removable = refused.iter().all(|name| REMOVABLE.contains(&name.as_str()));
        let way_out = if removable {
            format!("turn them off on a copy (tune2fs -O ^{})", refused.join(",^"))
        } else {
            "bake from what is in it (mount it, BASE=that folder)".to_owned()
        };
        Err(Error::Features { path: path.to_owned(), features: refused.join(", "), way_out })
    }

    /// Numbers that later code divides by or multiplies with.
    fn check_geometry(&self) -> std::result::Result<(), String> {
        let power =
            |value: u32, low: u32, high: u32| value.is_power_of_two() && (low..=high).contains(&value);
        if !power(self.block_size, 1024, 65536) {
            return Err(format!("its block size is {}", self.block_size));
        }
        if !power(self.inode_size, 128, self.block_size) || !power(self.descriptor_size, 32, self.block_size)
        {
            return Err(format!("inode size {}, descriptor size {}", self.inode_size, self.descriptor_size));
        }
        if self.inodes_per_group == 0 || self.blocks_per_group < MIN_BLOCKS_PER_GROUP || self.blocks == 0 {
            return Err("a group has too few blocks or no inodes".into());
        }
        if self.blocks > u64::from(u32::MAX) * 16
            || u64::from(self.inodes_per_group) * u64::from(self.group_count()) < u64::from(self.inodes)
        {
            return Err("its counts contradict each other".into());
        }
        Ok(())
    }

    pub(super) fn group_count(&self) -> u32 {
        let blocks = self.blocks.saturating_sub(u64::from(self.first_data_block));
        blocks.div_ceil(u64::from(self.blocks_per_group)) as u32
    }

    /// Where the `index`th block of group descriptors is.
    pub(super) fn descriptor_block(&self, index: u32) -> u64 {
        if self.incompat & INCOMPAT_META_BG == 0 || index < self.first_meta_group {
            // Behind the superblock, which lies at byte 1024 whatever the first data block is (0 with bigalloc).
            return OFFSET / u64::from(self.block_size) + 1 + u64::from(index);
        }
        let group = index * (self.block_size / self.descriptor_size);
        if group == 0 {
            return OFFSET / u64::from(self.block_size) + 1;
        }
        u64::from(self.first_data_block)
            + u64::from(group) * u64::from(self.blocks_per_group)
            + u64::from(self.has_backup(group))
    }

    fn has_backup(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return self.backup_groups.contains(&group);
        }
        let is_power = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 || group == 1 || [3, 5, 7].into_iter().any(is_power)
    }

    /// It was not unmounted: the journal has to be replayed, or files that were deleted while in use wait to be freed.
    pub fn needs_recovery(&self) -> bool {
        self.incompat & INCOMPAT_NEEDS_RECOVERY != 0 || self.ro_compat & RO_COMPAT_ORPHAN_PRESENT != 0
    }

    /// Small directories then lie in their inodes, with room for a few names only.
    pub fn has_inline_data(&self) -> bool {
        self.incompat & INCOMPAT_INLINE_DATA != 0
    }

    pub fn size(&self) -> u64 {
        self.blocks * u64::from(self.block_size)
    }

    /// Blocks an ordinary writer may still use.
    pub fn available_blocks(&self) -> u64 {
        self.free_blocks.saturating_sub(self.reserved_blocks)
    }

    /// Names of all features in use, as `dumpe2fs` prints them.
    pub fn features(&self) -> Vec<String> {
        [(self.compat, COMPAT), (self.incompat, INCOMPAT), (self.ro_compat, RO_COMPAT)]
            .into_iter()
            .flat_map(|(bits, known)| known.iter().filter(move |(_, bit, _)| bits & bit != 0))
            .map(|(name, _, _)| (*name).to_owned())
            .collect()
    }

    pub fn uuid_text(&self) -> String {
        crate::hash::uuid_text(&self.uuid)
    }
}
