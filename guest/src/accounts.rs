//! The users and groups of /etc/passwd and /etc/group, read without the C library's name services.

use std::path::Path;

use crate::files;

/// Bytes of a file with more users than a sandbox has.
const LARGEST: u64 = 4 << 20;

/// A line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
}

/// A line of /etc/group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub gid: u32,
    pub members: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    pub users: Vec<User>,
    pub groups: Vec<Group>,
}

impl Accounts {
    /// Reads both files below `root`; one that is missing has nobody in it, and a damaged line is nobody's.
    pub fn read(root: &Path) -> Self {
        let read = |name: &str| {
            let bytes = files::read_bytes(&root.join(name), LARGEST).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self::parse(&read("etc/passwd"), &read("etc/group"))
    }

    pub fn parse(passwd: &str, group: &str) -> Self {
        Self {
            users: passwd.lines().filter_map(user).collect(),
            groups: group.lines().filter_map(parse_group).collect(),
        }
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// A number, or the id of a name.
    pub fn uid(&self, name: &str) -> Option<u32> {
        name.parse().ok().or_else(|| self.user(name).map(|user| user.uid))
    }

    /// A number, or the id of a name.
    pub fn gid(&self, name: &str) -> Option<u32> {
        name.parse().ok().or_else(|| self.group(name).map(|group| group.gid))
    }
}

fn user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    let home = fields.nth(1)?.to_owned();
    Some(User { name, uid, gid, home, shell: fields.next()?.to_owned() })
}

fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let gid = fields.nth(1)?.parse().ok()?;
    let members = fields.next().unwrap_or_default().split(',').filter(|name| !name.is_empty());
    Some(Group { name, gid, members: members.map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name_and_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\nbroken\n:x:1:1::/:/x\npg:x:105:111:,,,:/var/lib/pg:/bin/sh\n";
        let accounts = Accounts::parse(passwd, "root:x:0:\nadm:x:4:user,pg\nbad:x:y:\n");
        assert_eq!(accounts.users.len(), 2);
        assert_eq!(
            (accounts.uid("pg"), accounts.uid("77"), accounts.uid("nobody")),
            (Some(105), Some(77), None)
        );
        assert_eq!(accounts.user("pg").unwrap().home, "/var/lib/pg");
        assert_eq!(accounts.group("adm").unwrap().members, ["user", "pg"]);
        assert_eq!((accounts.gid("adm"), accounts.gid("bad")), (Some(4), None));
    }
}
