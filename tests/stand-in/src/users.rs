//! Accounts of the image.

use std::ffi::CString;

use anyhow::{Context, Result};
use nix::unistd::{User, initgroups, setgid, setuid};

pub(crate) fn find(name: &str) -> Result<User> {
    User::from_name(name)
        .with_context(|| format!("looking up the user {name}"))?
        .with_context(|| format!("the image has no user {name}"))
}

/// Becomes the user for good.
pub(crate) fn become_user(user: &User) -> Result<()> {
    let name = CString::new(user.name.as_str())?;
    initgroups(&name, user.gid).with_context(|| format!("taking the groups of {}", user.name))?;
    setgid(user.gid).with_context(|| format!("becoming the group of {}", user.name))?;
    setuid(user.uid).with_context(|| format!("becoming {}", user.name))
}

/// A path as a request means it: `~` and relative ones are the user's.
pub(crate) fn resolve(path: &str, user: &str) -> std::path::PathBuf {
    let home = find(user).map_or_else(|_| "/".into(), |user| user.dir);
    match path.strip_prefix('~') {
        Some(rest) => home.join(rest.trim_start_matches('/')),
        None => home.join(path),
    }
}
