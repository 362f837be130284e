//! What is missing, and with which ids it is made: groups first, then users, then who belongs where.

use std::{collections::HashSet, os::unix::fs::MetadataExt as _, path::Path};

use super::{
    Outcome,
    database::{Database, NewUser},
    line::{Id, Line},
};
use crate::accounts::Accounts;

/// Where free ids are taken from when no line says so, the highest first.
const SYSTEM_IDS: (u32, u32) = (1, 999);
const NOLOGIN: &str = "/usr/sbin/nologin";

/// Whether everything is there: the usual case, in which nothing is opened for writing.
pub(super) fn is_met(lines: &[Line], accounts: &Accounts) -> bool {
    lines.iter().all(|line| match line {
        Line::User { name, .. } => accounts.user(name).is_some(),
        Line::Group { name, .. } => accounts.group(name).is_some(),
        Line::Member { user, group } => is_member(accounts, user, group),
        Line::Range { .. } => true,
    })
}

fn is_member(accounts: &Accounts, user: &str, group: &str) -> bool {
    accounts.user(user).is_some()
        && accounts.group(group).is_some_and(|group| group.members.iter().any(|name| name == user))
}

/// Makes all that is missing in the database.
pub(super) fn fulfil(lines: &[Line], database: &mut Database, outcome: &mut Outcome) {
    let mut maker = Maker { ranges: ranges(lines), database, outcome };
    for line in lines {
        if let Line::Group { name, id } = line {
            maker.group(name, id);
        }
    }
    for line in lines {
        if let Line::User { .. } = line {
            maker.user(line);
        }
    }
    for line in lines {
        if let Line::Member { user, group } = line {
            maker.member(user, group);
        }
    }
}

fn ranges(lines: &[Line]) -> Vec<(u32, u32)> {
    let given = lines.iter().filter_map(|line| match line {
        Line::Range { from, to } => Some((*from, *to)),
        _ => None,
    });
    let given: Vec<_> = given.collect();
    if given.is_empty() { vec![SYSTEM_IDS] } else { given }
}

struct Maker<'a> {
    ranges: Vec<(u32, u32)>,
    database: &'a mut Database,
    outcome: &'a mut Outcome,
}

impl Maker<'_> {
    /// The gid of a group, which is made when it is missing.
    fn group(&mut self, name: &str, id: &Id) -> Option<u32> {
        if let Some(group) = self.database.accounts().group(name) {
            return Some(group.gid);
        }
        let wanted = match id {
            Id::Number(gid) => Some(*gid),
            Id::OwnerOf(path) => self.owner(path).map(|(_, gid)| gid),
            Id::Any | Id::WithGroup(..) => None,
        };
        let taken: HashSet<u32> = self.database.accounts().groups.iter().map(|group| group.gid).collect();
        let Some(gid) = wanted.filter(|gid| !taken.contains(gid)).or_else(|| self.free()) else {
            self.full("group", name);
            return None;
        };
        self.database.add_group(name, gid);
        self.outcome.made.push(format!("group {name} (gid {gid})"));
        Some(gid)
    }

    fn user(&mut self, line: &Line) {
        let Line::User { name, id, gecos, home, shell } = line else { return };
        if self.database.accounts().user(name).is_some() {
            return;
        }
        let Some((wanted, gid)) = self.ids(name, id) else { return };
        let taken: HashSet<u32> = self.database.accounts().users.iter().map(|user| user.uid).collect();
        let uid = wanted.filter(|uid| !taken.contains(uid));
        let uid = uid.or_else(|| Some(gid).filter(|gid| !taken.contains(gid) && *id == Id::Any));
        let Some(uid) = uid.or_else(|| self.free()) else { return self.full("user", name) };
        let default_shell = if uid == 0 { "/bin/sh" } else { NOLOGIN };
        self.database.add_user(&NewUser {
            name,
            uid,
            gid,
            gecos,
            home: home.as_deref().unwrap_or("/"),
            shell: shell.as_deref().unwrap_or(default_shell),
        });
        self.outcome.made.push(format!("user {name} (uid {uid})"));
    }

    /// The wanted uid, and the gid of the user's own group or of the one that is named.
    fn ids(&mut self, name: &str, id: &Id) -> Option<(Option<u32>, u32)> {
        match id {
            Id::WithGroup(uid, group) => {
                let known = |gid: &u32| self.database.accounts().groups.iter().any(|group| group.gid == *gid);
                let Some(gid) = self.database.accounts().gid(group).filter(known) else {
                    self.outcome.problems.push(format!("user {name} is not made: there is no group {group}"));
                    return None;
                };
                Some((*uid, gid))
            }
            Id::Number(uid) => Some((Some(*uid), self.group(name, id)?)),
            Id::OwnerOf(path) => Some((self.owner(path).map(|(uid, _)| uid), self.group(name, id)?)),
            Id::Any => Some((None, self.group(name, id)?)),
        }
    }

    fn member(&mut self, user: &str, group: &str) {
        if is_member(self.database.accounts(), user, group) {
            return;
        }
        if self.group(group, &Id::Any).is_none() {
            return;
        }
        let missing =
            Line::User { name: user.to_owned(), id: Id::Any, gecos: String::new(), home: None, shell: None };
        self.user(&missing);
        self.database.add_member(user, group);
        self.outcome.made.push(format!("{user} in {group}"));
    }

    /// The highest id that neither a user nor a group has, so that both of one name can share it.
    fn free(&self) -> Option<u32> {
        let accounts = self.database.accounts();
        let uids = accounts.users.iter().map(|user| user.uid);
        let taken: HashSet<u32> = uids.chain(accounts.groups.iter().map(|group| group.gid)).collect();
        self.ranges
            .iter()
            .rev()
            .find_map(|(from, to)| (*from..=*to).rev().find(|id| *id != 0 && !taken.contains(id)))
    }

    fn owner(&self, path: &str) -> Option<(u32, u32)> {
        let inside = self.database.root().join(Path::new(path).strip_prefix("/").ok()?);
        let meta = inside.metadata().ok()?;
        Some((meta.uid(), meta.gid()))
    }

    fn full(&mut self, kind: &str, name: &str) {
        self.outcome.problems.push(format!("{kind} {name} is not made: no id is free for it"));
    }
}
