//! What a real template's environment needs besides: done while envd starts, each on its own, none in the way of another.

pub(super) mod clock;
pub(super) mod names;
pub(super) mod random;
pub(super) mod sysctl;

use std::{fs, os::unix::fs::PermissionsExt};

/// Every user of the sandbox may use FUSE.
pub(super) fn fuse() -> Vec<String> {
    match fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            vec![format!("cannot open /dev/fuse to everybody: {error}")]
        }
        _ => Vec::new(), // a kernel without FUSE has no node
    }
}
