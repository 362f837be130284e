//! What a real template's environment needs besides: done while envd starts, each on its own, none in the way of another.

pub(super) mod clock;
pub(super) mod names;
pub(super) mod random;
pub(super) mod sysctl;

use std::{fs, io, os::unix::fs::PermissionsExt};

use guest::{spawn::Resource, sys};

/// Devices that every user of a sandbox may open, as udev's own rules have it; each is there only where the kernel has it.
const FOR_ALL: [&str; 3] = ["/dev/fuse", "/dev/net/tun", "/dev/vsock"];

/// Open files, soft and hard, of whatever names no limits of its own: what units have under systemd. The kernel's 4096 are few
/// for a server, and `sudo`, `su` and cron give PID 1's own limits to whom they start.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// PID 1's own limits, which its services inherit.
pub(super) fn limits() -> Vec<String> {
    let outcome = sys::set_limit(Resource::OpenFiles as u32, OPEN_FILES.0, OPEN_FILES.1);
    let failed =
        |why: nix::errno::Errno| format!("services have the kernel's limit of open files: {}", why.desc());
    outcome.err().map(failed).into_iter().collect()
}

/// Every user of the sandbox may use FUSE, and whatever else is nobody's in particular.
pub(super) fn devices() -> Vec<String> {
    let refused = |path| match fs::set_permissions(path, fs::Permissions::from_mode(0o666)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Some(format!("cannot open {path} to everybody: {error}"))
        }
        _ => None,
    };
    FOR_ALL.into_iter().filter_map(refused).collect()
}
