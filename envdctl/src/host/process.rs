//! Processes of this host: who they are, which sockets they hold, in which namespace they live.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use procfs::process::{FDTarget, Process, all_processes};

use crate::text::sanitise;

/// One process, as far as we may look at it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Owner {
    pub pid: i32,
    /// The name of its program, without its path.
    pub name: String,
    pub arguments: Vec<String>,
    /// Stopped by a signal or a debugger: it serves nobody.
    pub stopped: bool,
}

impl Owner {
    /// `socat (pid 4711)`.
    pub fn label(&self) -> String {
        format!("{} (pid {})", self.name, self.pid)
    }

    /// Its command line, fit for a terminal and not endless.
    pub fn command(&self) -> String {
        let line = self.arguments.join(" ");
        let short: String = line.chars().take(200).collect();
        sanitise(&short).into_owned()
    }
}

/// Describes a process; `None` when it is gone.
pub fn describe(process: &Process) -> Option<Owner> {
    let stat = process.stat().ok()?;
    let arguments = process.cmdline().unwrap_or_default();
    let program = arguments.first().map(|path| Path::new(path.trim_end_matches('\0')));
    let name =
        program.and_then(Path::file_name).map_or(stat.comm, |name| name.to_string_lossy().into_owned());
    Some(Owner {
        pid: process.pid,
        name: sanitise(&name).into_owned(),
        arguments,
        stopped: matches!(stat.state, 'T' | 't'),
    })
}

/// Every process that can be listed.
pub fn all() -> Vec<Process> {
    all_processes().map(|list| list.flatten().collect()).unwrap_or_default()
}

/// Which process holds each socket, by inode.
pub fn socket_owners() -> HashMap<u64, i32> {
    let mut owners = HashMap::new();
    for process in all() {
        for inode in socket_inodes(&process) {
            // Of a listener and the children it forked, the oldest is the one to name.
            owners
                .entry(inode)
                .and_modify(|pid: &mut i32| *pid = (*pid).min(process.pid))
                .or_insert(process.pid);
        }
    }
    owners
}

/// The inodes of the sockets that a process holds.
pub fn socket_inodes(process: &Process) -> Vec<u64> {
    let Ok(fds) = process.fd() else { return Vec::new() };
    fds.flatten()
        .filter_map(|fd| match fd.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect()
}

/// The identity of a process's network namespace.
pub fn netns_of(pid: i32) -> Option<u64> {
    inode_of(&PathBuf::from(format!("/proc/{pid}/ns/net")))
}

/// The identity of the namespace that a file names.
pub fn inode_of(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

/// One variable of a process's environment.
pub fn environment(pid: i32) -> Vec<(String, String)> {
    let Ok(environment) = Process::new(pid).and_then(|process| process.environ()) else { return Vec::new() };
    environment
        .into_iter()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect()
}
