//! Out of envd's name.
//!
//! The platform's updater ends envd with `kill -TERM "$(pidof envd)"`, quoted: two process ids, and it fails. `pidof` looks at
//! `argv[0]`, at the process's name and at its executable file, so a supervisor that was started as `envd` executes itself
//! again from a file and under a name of its own.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::memfd::{MFdFlags, memfd_create};

const INSTALLED: &str = "/usr/lib/envd-init/envd-wrapper";
const NAME: &str = "envd-wrapper";
/// Set for the second start, so that it is the last.
const AGAIN: &str = "ENVD_WRAPPER_REEXECUTED";

/// Executes this program again where it lies at a file called `envd`. Where that fails it goes on as it is.
pub(crate) fn leave_envds_name() {
    let _ = nix::sys::prctl::set_name(&CString::from(c"envd-wrapper"));
    let Ok(itself) = std::env::current_exe() else { return };
    let called = std::env::args_os().next().unwrap_or_default();
    let shows_envd = |path: &OsStr| Path::new(path).file_name() == Some(OsStr::new("envd"));
    if !(shows_envd(itself.as_os_str()) || shows_envd(&called)) || std::env::var_os(AGAIN).is_some() {
        return;
    }
    // The arguments that the shim was called with, in the words of its own command line.
    let mut arguments =
        vec!["run".into(), "--shim".into(), folder(&called, &itself).into_os_string(), "--".into()];
    arguments.extend(std::env::args_os().skip(1));
    for program in [installed_twin(), memory_copy(&itself)].into_iter().flatten() {
        // Returns only when it failed; then the next is tried.
        let _ = Command::new(program).arg0(NAME).args(&arguments).env(AGAIN, "1").exec();
    }
}

/// The folder of the file under whose name we were called. A bare name was found through PATH: the file itself tells.
pub(crate) fn folder(called: &OsStr, itself: &Path) -> PathBuf {
    let by_path = called.as_bytes().contains(&b'/').then(|| Path::new(called));
    let folder = by_path.unwrap_or(itself).parent().unwrap_or(Path::new("/"));
    // The wrapper does not stay in the folder that it was called from.
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf())
}

/// The installed wrapper, when it is the very same build.
fn installed_twin() -> Option<PathBuf> {
    let same = fs::read(INSTALLED).ok()? == fs::read("/proc/self/exe").ok()?;
    same.then(|| PathBuf::from(INSTALLED))
}

/// A copy in memory under the wrapper's name; it stays open across the exec, since that reads it.
fn memory_copy(itself: &Path) -> Option<PathBuf> {
    let file = memfd_create(c"envd-wrapper", MFdFlags::empty()).ok()?;
    let mut file = fs::File::from(file);
    file.write_all(&fs::read(itself).ok()?).ok()?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    std::mem::forget(file);
    Some(path)
}
