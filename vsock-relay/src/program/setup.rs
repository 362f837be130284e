//! What the relay arranges for itself before it serves: descriptors and its cgroup.

use std::{fs, io, path::Path};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// Descriptors that are not connections: stdio, epoll, signals, listeners, log, counters, a folder now and then.
const RESERVED: u64 = 32;
/// Descriptors of one connection.
const PER_CONNECTION: u64 = 2;
const CGROUPS: &str = "/sys/fs/cgroup";

/// Raises the limit of open files as far as it goes, and bounds `wanted` connections by it.
pub(crate) fn connections(wanted: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let needed = wanted as u64 * PER_CONNECTION + RESERVED;
    let files = if soft >= needed {
        soft
    } else if setrlimit(Resource::RLIMIT_NOFILE, needed, needed.max(hard)).is_ok() {
        // Root may go beyond the hard limit.
        needed
    } else if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    let possible = (files.saturating_sub(RESERVED) / PER_CONNECTION).max(1);
    if possible < wanted as u64 {
        warn!("only {files} files may be open: serving {possible} connections at once instead of {wanted}");
    }
    possible.min(wanted as u64) as usize
}

/// Moves this process into a top-level cgroup, which is made where it is absent. Before a pause envd may freeze every
/// other cgroup; frozen, the relay could not be reached to thaw anything.
pub(crate) fn join_cgroup(name: &str) {
    match try_join(Path::new(CGROUPS), name) {
        Ok(true) => info!("moved into cgroup {name}"),
        Ok(false) => {}
        Err(error) => {
            warn!("cannot move into cgroup {name} ({error}): a freeze of the sandbox may stop the relay");
        }
    }
}

fn try_join(root: &Path, name: &str) -> io::Result<bool> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    if own.lines().any(|line| line.strip_prefix("0::/") == Some(name)) {
        return Ok(false);
    }
    if !root.join("cgroup.procs").exists() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup2 at /sys/fs/cgroup"));
    }
    match fs::create_dir(root.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(root.join(name).join("cgroup.procs"), "0")?;
    Ok(true)
}
