//! Gives up what the bridge does not need, once the broker runs: everything but, for root, its user id.

use std::ffi::CString;

use nix::unistd::{Group, User};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error("there is no user {name:?} on this machine")]
    NoUser { name: String },
    #[error("there is no group {name:?} on this machine")]
    NoGroup { name: String },
    #[error("--user needs root")]
    NotRoot,
    #[error("cannot become user {name:?}: {operation} fails ({errno})")]
    Become { name: String, operation: &'static str, errno: nix::Error },
    #[error("cannot give up capabilities ({0})")]
    Capabilities(rustix::io::Errno),
}

/// Whether this process may enter namespaces.
pub(super) fn may_enter_namespaces() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// The broker keeps what it needs: to enter namespaces, and to reach sockets through /proc/PID/root and folders that
/// belong to others.
pub(super) fn keep_broker_only() -> Result<(), PrivilegeError> {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_OVERRIDE;
    restrict(needed)
}

/// The bridge keeps nothing. As root it stays root by name, so that files of root are its own.
pub(super) fn drop_all(user: Option<&str>) -> Result<(), PrivilegeError> {
    if let Some(user) = user {
        become_user(user)?;
    }
    restrict(CapabilitySet::empty())
}

fn restrict(to: CapabilitySet) -> Result<(), PrivilegeError> {
    let sets = capabilities(None).map_err(PrivilegeError::Capabilities)?;
    let kept = sets.permitted & to;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(PrivilegeError::Capabilities)?;
    rustix::thread::set_no_new_privs(true).map_err(PrivilegeError::Capabilities)
}

/// `name` or `name:group`.
fn become_user(text: &str) -> Result<(), PrivilegeError> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    if !nix::unistd::geteuid().is_root() {
        return Err(PrivilegeError::NotRoot);
    }
    let user =
        User::from_name(name).ok().flatten().ok_or_else(|| PrivilegeError::NoUser { name: name.into() })?;
    let gid = match group {
        Some(group) => {
            let found = Group::from_name(group).ok().flatten();
            found.ok_or_else(|| PrivilegeError::NoGroup { name: group.into() })?.gid
        }
        None => user.gid,
    };
    let failed = |operation| move |errno| PrivilegeError::Become { name: name.to_owned(), operation, errno };
    let c_name = CString::new(name).map_err(|_| PrivilegeError::NoUser { name: name.into() })?;
    // With the groups that the user is a member of: that is how a service user is let at the sockets of VMMs.
    nix::unistd::initgroups(&c_name, gid).map_err(failed("initgroups"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(failed("setresgid"))?;
    nix::unistd::setresuid(user.uid, user.uid, user.uid).map_err(failed("setresuid"))
}
