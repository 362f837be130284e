//! The gate: our own PID 1 starts us while it still makes what envd needs, so that we are there when it has.
//!
//! Standard input is a pipe then. At its end everything is in place. What came through it before is the folder of a cgroup that
//! was made for envd: envd is born in it, and PID 1 puts us there once envd runs, since moving a process takes the kernel
//! milliseconds. At all other starts standard input is /dev/null, and nothing is waited for.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use crate::report;

/// No path is longer.
const LONGEST: u64 = 4096;

/// Waits until envd may be started. The answer is the cgroup that was made for it.
pub(crate) fn pass() -> Option<PathBuf> {
    let gate = report::is_our_inits_service().then(pipe).flatten()?;
    let told = read(gate);
    if let Ok(null) = File::open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(null); // a pipe at its end does as well
    }
    told
}

/// Standard input, if it is a pipe.
fn pipe() -> Option<File> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    input.metadata().is_ok_and(|about| about.file_type().is_fifo()).then_some(input)
}

fn read(gate: impl Read) -> Option<PathBuf> {
    let mut told = Vec::new();
    // An error is an end as well: whoever held us is gone.
    let _ = gate.take(LONGEST).read_to_end(&mut told);
    (!told.is_empty()).then(|| OsString::from_vec(told).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_the_end_is_envds_cgroup_and_nothing_is_none() {
        assert_eq!(read(&b"/sys/fs/cgroup/envd"[..]), Some("/sys/fs/cgroup/envd".into()));
        assert_eq!(read(&b""[..]), None);
    }
}
