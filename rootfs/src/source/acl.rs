//! ACLs as `tar --acls` writes them: text with names, of which the archive's own /etc/passwd and /etc/group know the numbers.

use std::collections::BTreeMap;

use guest::accounts::Accounts;

/// Key in the archive, and the attribute that it becomes.
pub(super) const KEYS: [(&[u8], &[u8]); 2] = [
    (b"SCHILY.acl.access", b"system.posix_acl_access"),
    (b"SCHILY.acl.default", b"system.posix_acl_default"),
];

/// Of `getxattr`'s form.
const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
/// Tags of this form, in the order that the kernel wants.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The text cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad;

/// Replaces the texts among a file's attributes by what they mean. Returns the names of those whom the archive does not know, whose
/// entries are left out.
pub(super) fn translate(xattrs: &mut Xattrs, accounts: &Accounts) -> Result<Vec<String>, Bad> {
    let mut unknown = Vec::new();
    for (key, name) in KEYS {
        let Some(text) = xattrs.remove(key) else { continue };
        let acl = parse(&text, accounts, &mut unknown)?;
        // What the mode says as well is no ACL; the attribute itself, where it was kept too, needs no name to be known.
        if acl.len() > 3 || (name.ends_with(b"default") && !acl.is_empty()) {
            xattrs.entry(name.to_vec()).or_insert_with(|| value(&acl));
        }
    }
    Ok(unknown)
}

/// Tag and id, to rights.
type Acl = BTreeMap<(u16, u32), u16>;

fn parse(text: &[u8], accounts: &Accounts, unknown: &mut Vec<String>) -> Result<Acl, Bad> {
    let text = std::str::from_utf8(text).map_err(|_| Bad)?;
    let mut acl = Acl::new();
    for line in text.split(['\n', ',']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let [tag, who, rights, more @ ..] = fields.as_slice() else { return Err(Bad) };
        let tag = match (*tag, who.is_empty()) {
            ("user" | "u", true) => USER_OBJ,
            ("user" | "u", false) => USER,
            ("group" | "g", true) => GROUP_OBJ,
            ("group" | "g", false) => GROUP,
            ("mask" | "m", true) => MASK,
            ("other" | "o", true) => OTHER,
            _ => return Err(Bad),
        };
        // Other tars than GNU's write the number behind the rights.
        let number = more.first().and_then(|number| number.parse().ok());
        let id = match tag {
            USER => number.or_else(|| accounts.uid(who)),
            GROUP => number.or_else(|| accounts.gid(who)),
            _ => Some(NO_ID),
        };
        match id {
            Some(id) => {
                acl.insert((tag, id), bits(rights)?);
            }
            None => unknown.push((*who).to_owned()),
        }
    }
    Ok(acl)
}

fn bits(rights: &str) -> Result<u16, Bad> {
    if rights.is_empty() {
        return Err(Bad);
    }
    rights.chars().try_fold(0, |bits, right| match right {
        'r' => Ok(bits | 4),
        'w' => Ok(bits | 2),
        'x' => Ok(bits | 1),
        '-' => Ok(bits),
        _ => Err(Bad),
    })
}

fn value(acl: &Acl) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for ((tag, id), rights) in acl {
        value.extend(tag.to_le_bytes());
        value.extend(rights.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(text: &str) -> (Result<Vec<String>, Bad>, Xattrs) {
        let accounts = Accounts::parse("web:x:33:33::/:/bin/sh\n", "adm:x:4:\n");
        let mut xattrs = BTreeMap::from([(KEYS[0].0.to_vec(), text.as_bytes().to_vec())]);
        (translate(&mut xattrs, &accounts), xattrs)
    }

    #[test]
    fn names_become_the_archives_numbers_and_entries_the_kernels_order() {
        let text = "user::rw-\nuser:web:r--\nuser:7:rwx\ngroup::r--\ngroup:adm:r-x\nmask::rwx\nother::---\n";
        let (unknown, xattrs) = translated(text);
        assert_eq!(unknown, Ok(vec![]));
        let value = &xattrs[KEYS[0].1];
        let entries: Vec<(u8, u8, u32)> = value[4..]
            .chunks(8)
            .map(|entry| (entry[0], entry[2], u32::from_le_bytes(entry[4..8].try_into().unwrap())))
            .collect();
        let expected =
            [(1, 6, NO_ID), (2, 7, 7), (2, 4, 33), (4, 4, NO_ID), (8, 5, 4), (16, 7, NO_ID), (32, 0, NO_ID)];
        assert_eq!(entries, expected);
        let star = translated("user::rw-,user:other:r--:33,group::r--,mask::r--,other::---").1;
        assert_eq!(&star[KEYS[0].1][12..20], &[2, 0, 4, 0, 33, 0, 0, 0]);
    }

    #[test]
    fn what_the_mode_says_is_no_acl_and_strangers_are_named() {
        assert_eq!(translated("user::rwx\ngroup::r-x\nother::r-x\n").1.len(), 0);
        let (unknown, xattrs) = translated("user::rwx\nuser:who:r--\ngroup::r-x\nmask::r-x\nother::r-x\n");
        assert_eq!((unknown, xattrs.len()), (Ok(vec!["who".to_owned()]), 1));
        for text in ["user", "user:::r", "owner::rwx", "user::rwq", "mask:web:r--"] {
            assert_eq!(translated(text).0, Err(Bad), "{text}");
        }
    }
}
