//! Extended attributes: in the inode, in a block of their own, or (big values) in an inode of their own.

use std::collections::BTreeMap;

use super::{Error, Image, Ino, Inode, Kind, Result, acl, le16, le32};

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY_HEADER: usize = 16;
/// The longest value that the kernel takes or gives (bytes).
const MAX_VALUE: u64 = 64 * 1024;
/// `name_index` and name under which the rest of an inline file is kept.
const SYSTEM: u8 = 7;

struct Raw {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Image {
    /// All attributes of a file that a user would see, by full name, with values as `getxattr` gives them.
    pub fn xattrs(&self, inode: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut all = self.body_attributes(inode)?;
        if inode.acl_block != 0 {
            let block = self.read_block(inode.acl_block)?;
            if le32(&block, 0) != MAGIC {
                return Err(Error::Damaged(format!("inode {}: its attribute block is broken", inode.ino)));
            }
            self.parse_attributes(inode, &block[BLOCK_HEADER..], &block, &mut all)?;
        }
        let visible = all.into_iter().filter(|raw| !(raw.index == SYSTEM && raw.name == b"data"));
        Ok(visible.map(full).collect())
    }

    /// The part of inline contents that did not fit into the inode's 60 bytes.
    pub(super) fn inline_rest(&self, inode: &Inode) -> Result<Vec<u8>> {
        let all = self.body_attributes(inode)?;
        let rest = all.into_iter().find(|raw| raw.index == SYSTEM && raw.name == b"data");
        Ok(rest.map(|raw| raw.value).unwrap_or_default())
    }

    fn body_attributes(&self, inode: &Inode) -> Result<Vec<Raw>> {
        let mut all = Vec::new();
        let extra = &inode.extra;
        let at = if extra.len() < 4 { 0 } else { usize::from(le16(extra, 0)) };
        if at >= 4 && at + 4 <= extra.len() && le32(extra, at) == MAGIC {
            let body = &extra[at + 4..];
            self.parse_attributes(inode, body, body, &mut all)?;
        }
        Ok(all)
    }

    fn parse_attributes(
        &self,
        inode: &Inode,
        mut list: &[u8],
        values: &[u8],
        all: &mut Vec<Raw>,
    ) -> Result<()> {
        let broken = || Error::Damaged(format!("inode {}: an extended attribute is broken", inode.ino));
        while list.len() >= 4 && le32(list, 0) != 0 {
            if list.len() < ENTRY_HEADER {
                return Err(broken());
            }
            let name_len = usize::from(list[0]);
            let name = list.get(ENTRY_HEADER..ENTRY_HEADER + name_len).ok_or_else(broken)?.to_vec();
            let (offset, value_ino, size) =
                (usize::from(le16(list, 2)), le32(list, 4), le32(list, 8) as usize);
            let value = if value_ino == 0 {
                values.get(offset..offset + size).ok_or_else(broken)?.to_vec()
            } else {
                self.large_value(value_ino)?.ok_or_else(broken)?
            };
            all.push(Raw { index: list[1], name, value });
            list = list.get((ENTRY_HEADER + name_len).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Image {
    /// A value in an inode of its own. That one has no attributes, or they could lead back here.
    fn large_value(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        let inode = self.inode(ino)?;
        let plain = inode.kind == Kind::File && !inode.is_inline() && inode.size <= MAX_VALUE;
        plain.then(|| self.contents(&inode)).transpose()
    }
}

fn full(raw: Raw) -> (Vec<u8>, Vec<u8>) {
    let prefix: &[u8] = match raw.index {
        1 => b"user.",
        2 => return (b"system.posix_acl_access".to_vec(), acl::to_user(raw.value)),
        3 => return (b"system.posix_acl_default".to_vec(), acl::to_user(raw.value)),
        4 => b"trusted.",
        6 => b"security.",
        7 => b"system.",
        8 => return (b"system.richacl".to_vec(), raw.value),
        _ => b"unknown.",
    };
    ([prefix, &raw.name].concat(), raw.value)
}
