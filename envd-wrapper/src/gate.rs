//! The gate: our own PID 1 starts us while it still makes what envd needs, so that we are there when it has.
//!
//! Standard input is a pipe then. At its end everything is in place. What came through it before is the folder of a cgroup that
//! was made for envd: envd is born in it, and PID 1 puts us there once envd runs, since moving a process takes the kernel
//! milliseconds. At all other starts standard input is /dev/null, and nothing is waited for.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use crate::report;

/// No path is longer.
const LONGEST: u64 = 4096;

/// Readable once envd may be started.
#[derive(Debug)]
pub(crate) struct Gate {
    pipe: File,
}

impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Gate {
    /// Standard input, where it is our own PID 1's pipe.
    pub(crate) fn find() -> Option<Self> {
        if !report::is_our_inits_service() {
            return None;
        }
        let pipe = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
        pipe.metadata().is_ok_and(|about| about.file_type().is_fifo()).then_some(Self { pipe })
    }

    /// The cgroup that was made for envd. Who tells it closes his end with that.
    pub(crate) fn pass(self) -> Option<PathBuf> {
        let told = read(self.pipe);
        if let Ok(null) = File::open("/dev/null") {
            let _ = nix::unistd::dup2_stdin(null); // a pipe at its end does as well
        }
        told
    }
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
