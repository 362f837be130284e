//! Virtual machine monitors of this host, and the sockets through which their guests' vsock is reached.

use std::path::{Path, PathBuf};

use procfs::{
    net::{UnixNetEntry, UnixState},
    process::Process,
};
use serde::Serialize;

use super::process::{self, Owner};

/// Programs whose unix sockets may be hybrid vsock.
const MONITORS: [&str; 3] = ["firecracker", "cloud-hypervisor", "vhost-device-vsock"];
/// Options that name a socket which is something else.
const OTHER_SOCKETS: [&str; 3] = ["--api-sock", "--api-socket", "--socket"];

/// A process that serves virtual machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Monitor {
    pub process: Owner,
    pub netns: Option<u64>,
    /// Sockets that speak the hybrid handshake, as paths that this host can open.
    pub sockets: Vec<PathBuf>,
}

/// Every monitor that runs on this host.
pub fn monitors() -> Vec<Monitor> {
    process::all().iter().filter_map(monitor).collect()
}

fn monitor(process: &Process) -> Option<Monitor> {
    let owner = process::describe(process)?;
    is_monitor(&owner.name).then(|| Monitor {
        netns: process::netns_of(owner.pid),
        sockets: sockets(process, &owner),
        process: owner,
    })
}

/// Versioned names (`firecracker-v1.14.1`) count as well.
fn is_monitor(name: &str) -> bool {
    MONITORS.iter().any(|monitor| name == *monitor || name.starts_with(&format!("{monitor}-")))
}

/// The stream sockets that it listens on, but those that its own command line gives to something else.
fn sockets(process: &Process, owner: &Owner) -> Vec<PathBuf> {
    let held = process::socket_inodes(process);
    let foreign = other_sockets(&owner.arguments);
    let Ok(table) = process.unix() else { return Vec::new() };
    let mut paths: Vec<PathBuf> = table
        .into_iter()
        .filter(|entry| listens(entry) && held.contains(&entry.inode))
        .filter_map(|entry| entry.path)
        .filter(|path| !foreign.iter().any(|other| other == path))
        .filter_map(|path| reachable(process.pid, &path))
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// A listening socket is unconnected, of type stream, and has a path in the file system.
fn listens(entry: &UnixNetEntry) -> bool {
    const STREAM: u16 = 1;
    entry.socket_type == STREAM
        && entry.state == UnixState::UNCONNECTED
        && entry.path.as_ref().is_some_and(|path| !path.to_string_lossy().starts_with('@'))
}

/// Paths of sockets that the command line gives another purpose: `--api-sock PATH`, `--socket=PATH`,
/// and within vhost-device-vsock's `--vm guest-cid=3,socket=PATH,uds-path=PATH` what `socket` says.
fn other_sockets(arguments: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (at, argument) in arguments.iter().enumerate() {
        for option in OTHER_SOCKETS {
            if argument == option {
                found.extend(arguments.get(at + 1).map(PathBuf::from));
            } else if let Some(value) = argument.strip_prefix(option).and_then(|rest| rest.strip_prefix('='))
            {
                found.push(PathBuf::from(value));
            }
        }
        found.extend(argument.split(',').filter_map(|part| part.strip_prefix("socket=")).map(PathBuf::from));
    }
    found
}

/// The path as this host can open it: the same, or through the process's own root and working directory.
fn reachable(pid: i32, path: &Path) -> Option<PathBuf> {
    let inside = match path.strip_prefix("/") {
        Ok(relative) => Path::new(&format!("/proc/{pid}/root")).join(relative),
        Err(_) => Path::new(&format!("/proc/{pid}/cwd")).join(path),
    };
    let there = process::inode_of(&inside);
    if path.is_absolute() && (there.is_none() || process::inode_of(path) == there) {
        return path.exists().then(|| path.to_owned());
    }
    there.map(|_| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn sockets_with_another_purpose_are_known_by_the_command_line() {
        let found = other_sockets(&words("firecracker --api-sock /run/fc.sock --id x"));
        assert_eq!(found, [PathBuf::from("/run/fc.sock")]);
        let found =
            other_sockets(&words("vhost-device-vsock --vm guest-cid=3,socket=/a/vhost,uds-path=/a/v"));
        assert_eq!(found, [PathBuf::from("/a/vhost")]);
    }

    #[test]
    fn versioned_names_of_monitors_are_known() {
        assert!(is_monitor("firecracker-v1.14.1") && is_monitor("firecracker") && !is_monitor("fire"));
    }
}
