//! What stands between a process that was executed ahead and its work: a pipe that is its standard input.
//!
//! Through it comes the folder of the cgroup that was made for the service, and then its end. The process is put into that cgroup
//! later, since moving it takes the kernel milliseconds.

use std::os::{fd::OwnedFd, unix::ffi::OsStrExt};

use guest::{
    cgroup::{CgroupError, Tree},
    service::{Placement, Service},
};
use nix::unistd::{Pid, write};

/// How a process has passed its gate.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// What is in the cgroup of its service is its own.
    pub(super) group_entered: bool,
    /// It is to be put into that cgroup.
    pub(super) unsettled: bool,
    pub(super) problems: Vec<CgroupError>,
}

/// Makes the cgroup of the service and lets the process go on.
pub(super) fn open(gate: &OwnedFd, pid: Pid, service: &Service, tree: &Tree) -> Passed {
    let group = service.group_path();
    let (is_new, problems) = prepare_group(service, tree);
    if is_new {
        // A pipe takes so little at once; one that is dead does not need it any more.
        let _ = write(gate, tree.path(&group).as_os_str().as_bytes());
    }
    Passed { group_entered: is_new || tree.enter(&group, pid.as_raw()).is_ok(), unsettled: is_new, problems }
}

/// Whether it is a new one. What is shared with others is never killed as a whole, and as good as new.
pub(super) fn prepare_group(service: &Service, tree: &Tree) -> (bool, Vec<CgroupError>) {
    let group = service.group_path();
    let made = if service.placement == Placement::InitScope {
        tree.make(&group).map(|()| true)
    } else {
        tree.make_anew(&group)
    };
    let is_new = matches!(made, Ok(true));
    let problems = made.err().into_iter().chain(tree.set(&group, &service.cgroup)).collect();
    (is_new, problems)
}
