//! What a dead envd leaves behind.
//!
//! Its helpers in its own cgroup and its port forwards (`socats`) are ended, because the next envd makes new ones and cannot
//! bind where old ones listen. What users started (`user`, `ptys`) is theirs and is never touched, only
//! counted and named.

use std::fs;
use std::path::Path;

use guest::cgroup::{self, MemoryCounters, Tree};
use nix::sys::signal::Signal;

/// envd's port forwards.
const FORWARDS: &str = "socats";
/// Where envd runs what users ask for.
const USERS: [&str; 2] = ["user", "ptys"];
/// Of those so many are named.
const NAMED: usize = 5;
/// A cgroup of one of these names holds envd, its helpers, and those who supervise it; any other one may be a whole login.
const OWN_GROUPS: [&str; 3] = [cgroup::ENVD, "envd.service", "openrc.envd"];

/// The cgroup that envd runs in.
#[derive(Debug, Default)]
pub(crate) struct Home {
    /// Below the root of cgroup2; `None` where there is no cgroup2.
    group: Option<String>,
    /// Nobody is in it but envd, its helpers, ourselves and those above us.
    own: bool,
    memory: Option<MemoryCounters>,
}

impl Home {
    /// `chosen` is a cgroup's folder; without one envd shares ours.
    pub(crate) fn find(chosen: Option<&Path>) -> Self {
        let group = match chosen {
            Some(folder) => folder.strip_prefix(cgroup::ROOT).ok().map(|path| path.display().to_string()),
            None => our_group(),
        };
        let name = group.as_deref().and_then(|group| Path::new(group).file_name());
        let own = chosen.is_some() || name.is_some_and(|name| OWN_GROUPS.iter().any(|own| name == *own));
        Self { group, own, memory: None }
    }

    /// Opened at the first call, and held.
    pub(crate) fn memory(&mut self) -> Option<&MemoryCounters> {
        let group = self.group.as_deref()?;
        Some(self.memory.get_or_insert_with(|| Tree::default().memory_counters(group)))
    }

    /// envd's helpers: everybody in its cgroup but ourselves and our ancestors (a supervisor that runs us there).
    fn helpers(&self, tree: &Tree) -> Vec<i32> {
        let Some(group) = self.group.as_deref().filter(|_| self.own) else { return Vec::new() };
        let members = tree.processes(group);
        let itself = std::process::id() as i32;
        // An envd that could not make its cgroups runs what users ask for in its own.
        if members.iter().all(|pid| *pid == itself) || !tree.path(USERS[0]).is_dir() {
            return Vec::new();
        }
        let spared: Vec<i32> = lineage().collect();
        let ours = |pid: &i32| !spared.contains(pid) && !works_for_others(*pid, &members);
        members.iter().copied().filter(ours).collect()
    }
}

/// How many processes were ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    helpers: usize,
    forwards: usize,
}

/// Ends helpers and port forwards.
pub(crate) fn end_remains(home: &Home) -> Ended {
    let tree = Tree::default();
    let end = |group: &str, pids: &[i32]| tree.signal(group, pids, Signal::SIGKILL);
    let own = home.group.as_deref().unwrap_or_default();
    Ended { helpers: end(own, &home.helpers(&tree)), forwards: end(FORWARDS, &tree.processes(FORWARDS)) }
}

/// Processes of users.
#[derive(Debug, Default)]
pub(crate) struct Users {
    count: usize,
    /// The first of them by name and number.
    first: Vec<String>,
}

/// Who of the users' processes is there.
pub(crate) fn users() -> Users {
    let tree = Tree::default();
    let pids: Vec<String> = USERS.iter().flat_map(|group| below(&tree.path(group))).collect();
    let name = |pid: &String| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let named = pids.iter().filter_map(|pid| Some(format!("{} {pid}", name(pid)?.trim_end())));
    Users { count: pids.len(), first: named.take(NAMED).collect() }
}

/// One line for the log; `None` when nothing was left.
pub(crate) fn describe(ended: &Ended, users: &Users) -> Option<String> {
    let parts = [
        (ended.helpers, "helper", "helpers", "ended"),
        (ended.forwards, "port forward", "port forwards", "ended"),
        (users.count, "user process", "user processes", "left alone"),
    ];
    let said: Vec<String> = parts
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, many, fate)| format!("{count} {} {fate}", if count == 1 { one } else { many }))
        .collect();
    let more = if users.count > users.first.len() { ", …" } else { "" };
    let names =
        if users.first.is_empty() { String::new() } else { format!(" ({}{more})", users.first.join(", ")) };
    (!said.is_empty()).then(|| format!("left by the last envd: {}{names}", said.join(", ")))
}

/// Our own cgroup, below the root of cgroup2.
fn our_group() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(path.to_owned())
}

/// Ourselves, our parent, its parent …
fn lineage() -> impl Iterator<Item = i32> {
    ancestry(std::process::id() as i32)
}

/// A process, its parent, its parent … up to PID 1.
fn ancestry(pid: i32) -> impl Iterator<Item = i32> {
    std::iter::successors(Some(pid), |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        parent.trim().parse().ok().filter(|parent| *parent > 0)
    })
}

/// Whether somebody outside of the cgroup has this process at work: OpenRC's script that is just starting us is in there too.
/// What a dead envd left has only PID 1 above it.
fn works_for_others(pid: i32, members: &[i32]) -> bool {
    ancestry(pid).any(|above| above != 1 && !members.contains(&above))
}

/// Everybody in a cgroup and in those below it.
fn below(folder: &Path) -> Vec<String> {
    let here = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<String> = here.lines().map(str::to_owned).collect();
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        pids.extend(below(&entry.path()));
    }
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_is_not_envds_is_left_alone() {
        let login = Home { group: Some("user.slice/session-1.scope".to_owned()), own: false, memory: None };
        assert_eq!(login.helpers(&Tree::default()), Vec::<i32>::new());
        assert!(!Home::find(None).own, "tests do not run in envd's cgroup");
    }

    #[test]
    fn those_above_us_are_spared() {
        let lineage: Vec<i32> = lineage().collect();
        assert_eq!(lineage[0], std::process::id() as i32);
        assert_eq!(lineage[1], nix::unistd::getppid().as_raw());
    }

    #[test]
    fn what_was_left_is_said_in_words() {
        let users =
            |count, first: &[&str]| Users { count, first: first.iter().map(ToString::to_string).collect() };
        let said = "left by the last envd: 1 helper ended, 2 port forwards ended, 1 user process left alone (node 57)";
        assert_eq!(
            describe(&Ended { helpers: 1, forwards: 2 }, &users(1, &["node 57"])).as_deref(),
            Some(said)
        );
        let many = describe(&Ended::default(), &users(9, &["bash 5", "node 6"]));
        assert_eq!(
            many.as_deref(),
            Some("left by the last envd: 9 user processes left alone (bash 5, node 6, …)")
        );
        assert_eq!(describe(&Ended::default(), &Users::default()), None);
    }
}
