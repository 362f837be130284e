//! What a dead envd leaves behind.
//!
//! Its helpers in its own cgroup and its port forwards (`socats`) are ended, because the next envd makes new ones and cannot
//! bind where old ones listen. What users started (`user`, `ptys`) is theirs and is never touched, only counted.

use std::fs;
use std::path::{Path, PathBuf};

use guest::cgroup::{self, Tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// envd's port forwards.
const FORWARDS: &str = "socats";
/// Where envd runs what users ask for.
const USERS: [&str; 2] = ["user", "ptys"];
/// Only in a cgroup of one of these names do we share our cgroup with nobody but envd and its helpers.
const OWN_GROUPS: [&str; 2] = [cgroup::ENVD, "envd.service"];

/// How many processes were found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    pub(crate) helpers: usize,
    pub(crate) forwards: usize,
    pub(crate) users: usize,
}

impl Leftovers {
    /// One line for the log; `None` when nothing was left.
    pub(crate) fn describe(&self) -> Option<String> {
        let ended = self.helpers + self.forwards;
        (ended + self.users > 0).then(|| {
            format!(
                "after envd's end: {} helpers and {} port forwards ended, {} user processes left alone",
                self.helpers, self.forwards, self.users
            )
        })
    }
}

/// Ends helpers and port forwards.
pub(crate) fn sweep() -> Leftovers {
    let tree = Tree::default();
    Leftovers {
        helpers: end(&own_group_members()),
        forwards: end(&tree.processes(FORWARDS)),
        users: USERS.iter().map(|group| count_below(&tree.path(group))).sum(),
    }
}

/// Everybody in our own cgroup but ourselves, when that cgroup is envd's.
fn own_group_members() -> Vec<i32> {
    let Some(group) = own_group() else { return Vec::new() };
    let name = Path::new(&group).file_name().unwrap_or_default();
    if !OWN_GROUPS.iter().any(|own| name == *own) {
        return Vec::new();
    }
    let ourselves = std::process::id() as i32;
    let members = Tree::default().processes(&group);
    members.into_iter().filter(|pid| *pid != ourselves).collect()
}

/// Our own cgroup, below the root of cgroup2.
pub(crate) fn own_group() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(path.to_owned())
}

fn end(pids: &[i32]) -> usize {
    pids.iter().filter(|pid| kill(Pid::from_raw(**pid), Signal::SIGKILL).is_ok()).count()
}

fn count_below(folder: &PathBuf) -> usize {
    let here = fs::read_to_string(folder.join("cgroup.procs")).map_or(0, |text| text.lines().count());
    let Ok(entries) = fs::read_dir(folder) else { return here };
    let folders =
        entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    here + folders.map(|entry| count_below(&entry.path())).sum::<usize>()
}
