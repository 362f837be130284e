//! Names of what a VM leaves in the system, and the removal of what a killed run left behind.
//!
//! Namespaces and folders are named after the process that made them. QEMU and its companions die with that process
//! (parent-death signal), so only the names stay; the next run removes those whose process is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "ei-";
const NETNS: &str = "/run/netns";
/// Short, since the paths of sockets end after 107 bytes.
const TEMP: &str = "/tmp";

/// A name that no other VM of this machine has.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The folder that goes with a name.
pub fn folder(name: &str) -> PathBuf {
    Path::new(TEMP).join(name)
}

fn sweep() {
    for name in stale(Path::new(NETNS)) {
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
    }
    for name in stale(Path::new(TEMP)) {
        let _ = fs::remove_dir_all(Path::new(TEMP).join(name));
    }
}

fn stale(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_stale(name)).collect()
}

fn is_stale(name: &str) -> bool {
    let pid =
        name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).and_then(|(pid, _)| pid.parse().ok());
    pid.is_some_and(|pid: u32| !Path::new("/proc").join(pid.to_string()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_living_process_or_to_others_is_kept() {
        assert!(!is_stale(&unique_name()));
        assert!(!is_stale("ns-72"));
        assert!(!is_stale("ei-garbage-1"));
        assert!(is_stale("ei-4294967295-0"));
    }
}
