//! cgroup2, as PID 1 lays it out.
//!
//! ```text
//! /sys/fs/cgroup              controllers cpu, io, memory, pids; envd makes `user`, `ptys` and `socats` here
//!  ├─ init.scope              PID 1 and the relay: a freeze never touches it
//!  ├─ envd                    envd-wrapper and envd: top level, so that its weights compete with `user` and `ptys`
//!  └─ system.slice/NAME       every other service
//! ```
//!
//! `cgroup.freeze` is never written: envd takes what it finds there for the guest's own freeze and keeps it.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::sys;

/// Where cgroup2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// PID 1's own cgroup and the relay's.
pub const INIT_SCOPE: &str = "init.scope";
/// The wrapper's and envd's.
pub const ENVD: &str = "envd";
/// What other services are put below.
pub const SLICE: &str = "system.slice";
/// Each is switched on alone: one that the kernel lacks must not take the others with it.
pub const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// No file of counters is larger.
const COUNTERS_SIZE: usize = 512;
/// Processes that are held open at a time.
const AT_ONCE: usize = 64;
/// Levels of cgroups below a service's own that are taken away with it.
const DEEPEST: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot make the cgroup {}: {source}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {}: {source}", path.display())]
    Write { path: PathBuf, value: String, source: io::Error },
}

/// Weights and memory bounds of one cgroup. What is unset stays as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Share of the CPU against its siblings, 1 to 10000; the kernel's default is 100.
    pub cpu_weight: Option<u64>,
    /// Share of disk bandwidth against its siblings, 1 to 10000; the kernel's default is 100.
    pub io_weight: Option<u64>,
    /// Bytes that are never reclaimed.
    pub memory_min: Option<u64>,
    /// Bytes that are reclaimed only when nothing else is left.
    pub memory_low: Option<u64>,
    /// Bytes above which the service is slowed and reclaimed.
    pub memory_high: Option<u64>,
    /// Bytes above which the OOM killer acts.
    pub memory_max: Option<u64>,
    /// Number of processes and threads.
    pub pids_max: Option<u64>,
}

impl Weights {
    /// File and text for each property that is set.
    fn properties(&self) -> impl Iterator<Item = (&'static str, String)> {
        let plain = |name, value: Option<u64>| value.map(|value| (name, value.to_string()));
        [
            plain("memory.min", self.memory_min),
            plain("memory.low", self.memory_low),
            plain("memory.high", self.memory_high),
            plain("memory.max", self.memory_max),
            plain("cpu.weight", self.cpu_weight),
            self.io_weight.map(|value| ("io.weight", format!("default {value}"))),
            plain("pids.max", self.pids_max),
        ]
        .into_iter()
        .flatten()
    }
}

/// A cgroup2 hierarchy; the root is a parameter so that tests can lay one out in a folder.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new(ROOT)
    }
}

impl Tree {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn path(&self, group: &str) -> PathBuf {
        self.root.join(group)
    }

    /// Switches on what can be switched on for the children of `group`; the answer is what could not be.
    pub fn enable_controllers(&self, group: &str) -> Vec<CgroupError> {
        let file = self.path(group).join("cgroup.subtree_control");
        CONTROLLERS.iter().filter_map(|name| write(&file, &format!("+{name}")).err()).collect()
    }

    /// Makes `group` with its parents; one that is there is fine. In `system.slice` the controllers are passed on.
    pub fn make(&self, group: &str) -> Result<(), CgroupError> {
        self.create(group).map(drop)
    }

    /// As [`Tree::make`]; whether it was not there.
    fn create(&self, group: &str) -> Result<bool, CgroupError> {
        if let Some((parent, _)) = group.rsplit_once('/') {
            self.make(parent)?;
            self.enable_controllers(parent); // a controller that the root lacks was told about there
        }
        let path = self.path(group);
        match fs::create_dir(&path) {
            Ok(()) => Ok(true),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(CgroupError::Make { path, source }),
        }
    }

    /// Sets each property; one whose file the kernel does not have is passed over, as envd does with its own.
    pub fn set(&self, group: &str, weights: &Weights) -> Vec<CgroupError> {
        let path = self.path(group);
        weights
            .properties()
            .filter_map(|(name, value)| write(&path.join(name), &value).err())
            .filter(|error| !matches!(error, CgroupError::Write { source, .. } if source.kind() == io::ErrorKind::NotFound))
            .collect()
    }

    pub fn enter(&self, group: &str, pid: i32) -> Result<(), CgroupError> {
        write(&self.path(group).join("cgroup.procs"), &pid.to_string())
    }

    /// Makes `group` as one that has never been. False: it was there and stays as it is, because somebody is in it or below.
    pub fn make_anew(&self, group: &str) -> Result<bool, CgroupError> {
        if self.create(group)? {
            return Ok(true);
        }
        self.remove(group);
        self.create(group)
    }

    /// Takes away a cgroup and those below it as far as nobody is in them; the others stay.
    pub fn remove(&self, group: &str) {
        remove_empty(&self.path(group), DEEPEST);
    }

    /// Whether anybody is in `group` or below it.
    pub fn is_populated(&self, group: &str) -> bool {
        match fs::read_to_string(self.path(group).join("cgroup.events")) {
            Ok(events) => events.lines().any(|line| line == "populated 1"),
            Err(_) => !self.processes(group).is_empty(),
        }
    }

    /// Everybody in `group` itself, not below it. A process of another namespace is told as 0, which to `kill` would mean
    /// everybody in our own process group: it is left out.
    pub fn processes(&self, group: &str) -> Vec<i32> {
        let text = fs::read_to_string(self.path(group).join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// Sends `signal` to those of `members` that are still in `group`; how many it reached. A number that was read may be another
    /// process's by now: so each is opened, then looked for in the group once more, and signalled as what was opened.
    pub fn signal(&self, group: &str, members: &[i32], signal: Signal) -> usize {
        let reached = |batch: &[i32]| {
            let opened = |pid: &i32| Some((*pid, sys::open_process(*pid).ok()?));
            let opened: Vec<_> = batch.iter().filter_map(opened).collect();
            let still = self.processes(group);
            let there = opened.into_iter().filter(|(pid, _)| still.contains(pid));
            there.filter(|(_, process)| sys::signal_process(process, signal).is_ok()).count()
        };
        members.chunks(AT_ONCE).map(reached).sum()
    }

    /// Kills everybody in `group` and below it, frozen or not.
    pub fn kill(&self, group: &str) -> Result<(), CgroupError> {
        write(&self.path(group).join("cgroup.kill"), "1")
    }

    pub fn memory_current(&self, group: &str) -> Option<u64> {
        self.number(group, "memory.current")
    }

    pub fn memory_peak(&self, group: &str) -> Option<u64> {
        self.number(group, "memory.peak")
    }

    /// How often the OOM killer took somebody of `group` or below.
    pub fn oom_kills(&self, group: &str) -> Option<u64> {
        oom_kills(&fs::read_to_string(self.path(group).join("memory.events")).ok()?)
    }

    /// Opens the counters of `group`'s memory.
    pub fn memory_counters(&self, group: &str) -> MemoryCounters {
        let open = |file| Counter::open(self.path(group).join(file));
        MemoryCounters { events: open("memory.events"), peak: open("memory.peak") }
    }

    fn number(&self, group: &str, file: &str) -> Option<u64> {
        fs::read_to_string(self.path(group).join(file)).ok()?.trim().parse().ok()
    }
}

/// Counters of one cgroup's memory, held open: whoever is inside when it runs out of memory can open nothing until it is over.
#[derive(Debug)]
pub struct MemoryCounters {
    events: Counter,
    peak: Counter,
}

impl MemoryCounters {
    /// How often the OOM killer took somebody of the cgroup or below.
    pub fn oom_kills(&self) -> Option<u64> {
        oom_kills(&self.events.read()?)
    }

    /// The most it has held since it was made, in bytes.
    pub fn peak(&self) -> Option<u64> {
        self.peak.read()?.trim().parse().ok()
    }
}

fn oom_kills(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[derive(Debug)]
struct Counter {
    path: PathBuf,
    /// `None`: the cgroup or its memory controller was not there yet.
    held: Option<fs::File>,
}

impl Counter {
    /// Reads once, which is when the kernel takes the memory that a reading needs.
    fn open(path: PathBuf) -> Self {
        let held = fs::File::open(&path).ok();
        let counter = Self { path, held };
        counter.read_held();
        counter
    }

    /// A cgroup that was made anew is another one to what is held.
    fn read(&self) -> Option<String> {
        self.read_held().or_else(|| fs::read_to_string(&self.path).ok())
    }

    fn read_held(&self) -> Option<String> {
        let mut bytes = [0; COUNTERS_SIZE];
        let length = self.held.as_ref()?.read_at(&mut bytes, 0).ok()?;
        std::str::from_utf8(&bytes[..length]).ok().map(str::to_owned)
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

fn remove_empty(path: &Path, levels: usize) {
    if fs::remove_dir(path).is_ok() || levels == 0 {
        return;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for entry in below {
        remove_empty(&entry.path(), levels - 1);
    }
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_with(files: &[&str]) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let tree = Tree::new(dir.path());
        (dir, tree)
    }

    #[test]
    fn a_property_that_the_kernel_lacks_is_passed_over_and_the_others_are_set() {
        let (dir, tree) = tree_with(&["envd/cpu.weight", "envd/memory.min"]);
        let weights = Weights {
            cpu_weight: Some(1000),
            io_weight: Some(10_000),
            memory_min: Some(5),
            ..Weights::default()
        };
        assert!(tree.set("envd", &weights).is_empty());
        assert_eq!(fs::read_to_string(dir.path().join("envd/cpu.weight")).unwrap(), "1000");
        assert_eq!(fs::read_to_string(dir.path().join("envd/memory.min")).unwrap(), "5");
    }

    #[test]
    fn processes_of_other_namespaces_are_left_out() {
        let (dir, tree) = tree_with(&["a/cgroup.procs"]);
        fs::write(dir.path().join("a/cgroup.procs"), "0\n17\n0\n4\n").unwrap();
        assert_eq!(tree.processes("a"), [17, 4]);
    }

    #[test]
    fn a_cgroup_is_made_anew_with_nothing_of_what_was_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path());
        assert!(tree.make_anew("a").unwrap());
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        assert!(tree.make_anew("a").unwrap());
        assert!(!dir.path().join("a/b").exists());
        // A file stands for a process: such a folder cannot be taken away either.
        fs::create_dir(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/busy"), "").unwrap();
        assert!(!tree.make_anew("a").unwrap());
        assert!(dir.path().join("a/b/busy").exists());
    }

    #[test]
    fn a_signal_reaches_members_and_nobody_who_has_their_number_no_longer() {
        let (dir, tree) = tree_with(&["a/cgroup.procs"]);
        let sleeper = || std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (mut member, mut stranger) = (sleeper(), sleeper());
        let [inside, outside] = [&member, &stranger].map(|child| child.id() as i32);
        fs::write(dir.path().join("a/cgroup.procs"), inside.to_string()).unwrap();
        assert_eq!(tree.signal("a", &[outside, inside], Signal::SIGTERM), 1);
        let ended = std::os::unix::process::ExitStatusExt::signal(&member.wait().unwrap());
        assert_eq!((ended, stranger.try_wait().unwrap()), (Some(Signal::SIGTERM as i32), None));
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert_eq!(tree.signal("a", &[inside], Signal::SIGTERM), 0, "it was reaped");
    }

    #[test]
    fn a_group_is_made_with_its_parents_and_twice_is_fine() {
        let (dir, tree) = tree_with(&[]);
        tree.make("system.slice/web").unwrap();
        tree.make("system.slice/web").unwrap();
        assert!(dir.path().join("system.slice/web").is_dir());
    }

    #[test]
    fn each_missing_controller_is_told_by_name() {
        let (_dir, tree) = tree_with(&[]);
        let errors = tree.enable_controllers("");
        assert_eq!(errors.len(), CONTROLLERS.len());
        assert!(errors[1].to_string().contains("\"+io\""));
    }

    #[test]
    fn the_oom_counter_is_not_taken_for_its_neighbour() {
        let (dir, tree) = tree_with(&["a/memory.events"]);
        fs::write(dir.path().join("a/memory.events"), "low 0\noom 7\noom_kill 2\noom_group_kill 9\n")
            .unwrap();
        assert_eq!(tree.oom_kills("a"), Some(2));
        assert_eq!(tree.oom_kills("b"), None);
    }

    /// In a cgroup without memory `open` fails; and a cgroup that comes later is not missed.
    #[test]
    fn counters_that_are_held_need_no_open_and_those_that_were_missing_are_looked_for_again() {
        let (dir, tree) = tree_with(&["a/memory.events"]);
        let (held, missing) = (tree.memory_counters("a"), tree.memory_counters("b"));
        fs::write(dir.path().join("a/memory.events"), "oom_kill 3\n").unwrap();
        fs::remove_file(dir.path().join("a/memory.events")).unwrap();
        assert_eq!(held.oom_kills(), Some(3));
        assert_eq!((missing.oom_kills(), missing.peak()), (None, None));
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/memory.peak"), "4096\n").unwrap();
        assert_eq!(missing.peak(), Some(4096));
    }
}
