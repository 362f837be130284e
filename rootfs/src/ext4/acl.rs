//! POSIX ACLs: ext4 stores them in a shorter form than `getxattr` shows them.

use super::{le16, le32};

const DISK_VERSION: u32 = 1;
const USER_VERSION: u32 = 2;
const TAG_USER: u16 = 0x02;
const TAG_GROUP: u16 = 0x08;
const NO_ID: u32 = u32::MAX;

/// The form `getxattr` shows; anything not understood is passed through as it is.
pub(super) fn to_user(disk: Vec<u8>) -> Vec<u8> {
    parse(&disk).unwrap_or(disk)
}

fn parse(disk: &[u8]) -> Option<Vec<u8>> {
    if disk.len() < 4 || le32(disk, 0) != DISK_VERSION {
        return None;
    }
    let mut user = USER_VERSION.to_le_bytes().to_vec();
    let mut rest = &disk[4..];
    while !rest.is_empty() {
        let named = rest.len() >= 2 && matches!(le16(rest, 0), TAG_USER | TAG_GROUP);
        let len = if named { 8 } else { 4 };
        let entry = rest.get(..len)?;
        user.extend_from_slice(&entry[..4]);
        user.extend_from_slice(&if named { le32(entry, 4) } else { NO_ID }.to_le_bytes());
        rest = &rest[len..];
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_user_keeps_its_id_and_the_others_get_none() {
        let disk = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0, 0x20, 0, 4, 0];
        let user = to_user(disk.to_vec());
        assert_eq!(user.len(), 4 + 3 * 8);
        assert_eq!(&user[12..20], &[2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(&user[20..28], &[0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn what_is_no_acl_is_passed_through() {
        assert_eq!(to_user(vec![9, 9]), vec![9, 9]);
        assert_eq!(to_user(vec![1, 0, 0, 0, 2, 0, 4]), vec![1, 0, 0, 0, 2, 0, 4]);
    }
}
