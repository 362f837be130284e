//! One wrapper supervises envd, and no second one beside it: that one would end the first one's port forwards, take its control
//! socket, and start an envd whose port is taken.
//!
//! Who supervises holds a lock that the kernel lets go of when that process ends, however it ends: it is of POSIX, of which no
//! child has a share, not even one that waits in a frozen cgroup for its exec. Its place in the file is the network namespace's
//! number, since a container with a network of its own has an envd of its own, even where it shares `/run`. The port does not
//! count: port forwards, log and control socket are shared by all of a machine.
//!
//! A newcomer waits as long as a predecessor may take to end. Where no lock can be had, envd comes first.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use guest::clock::{self, Moment};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::warn;

/// In a folder of root's: whoever could open it could keep envd from starting.
const LOCK: &str = "/run/envd-init/wrapper.lock";
const NETWORK: &str = "/proc/self/ns/net";
/// What a wrapper needs for its own end, after its envd's.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Somebody else supervises.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("another envd-wrapper ({}) supervises envd here: end it first, or restart the service that it runs as", process(*pid))]
pub(crate) struct Taken {
    pid: i32,
}

fn process(pid: i32) -> String {
    if pid > 0 { format!("pid {pid}") } else { "in another pid namespace".to_owned() }
}

/// Held as long as this lives.
#[derive(Debug)]
pub(crate) struct Alone {
    lock: io::Result<File>,
}

/// Waits for a predecessor that is ending, whose envd has `stop_bound` for that.
pub(crate) fn claim(stop_bound: Duration) -> Result<Alone, Taken> {
    claim_at(Path::new(LOCK), stop_bound + LAST_WORDS)
}

fn claim_at(path: &Path, patience: Duration) -> Result<Alone, Taken> {
    let until = clock::now() + patience;
    let lock = match open(path) {
        Ok(file) => take(&file, until)?.map(|()| file).map_err(io::Error::from),
        Err(error) => Err(error),
    };
    Ok(Alone { lock })
}

impl Alone {
    /// That there is no lock, where there is none.
    pub(crate) fn tell(&self) {
        if let Err(error) = &self.lock {
            warn!("{LOCK} cannot be locked ({error}): a second envd-wrapper would not be noticed");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    // What is no file is not waited for, and a link is followed by nobody.
    options.custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits());
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o755).create(path.parent().unwrap_or(path))?;
            options.open(path)
        }
        opened => opened,
    }
}

/// The inner error: this file cannot be locked at all.
fn take(lock: &File, until: Moment) -> Result<Result<(), Errno>, Taken> {
    loop {
        match fcntl(lock, FcntlArg::F_SETLK(&ours(libc::F_WRLCK))) {
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            settled => return Ok(settled.map(drop)),
        }
        // Nobody: it has just been let go of.
        let Some(pid) = holder(lock) else { continue };
        if !ends(pid, until) {
            return Err(Taken { pid });
        }
    }
}

/// Who has it; 0: one who is not seen from here.
fn holder(lock: &File) -> Option<i32> {
    let mut asked = ours(libc::F_WRLCK);
    let known = fcntl(lock, FcntlArg::F_GETLK(&mut asked));
    let is_free = known.is_ok() && i32::from(asked.l_type) == libc::F_UNLCK;
    (!is_free).then_some(asked.l_pid.max(0))
}

/// Waits for the end of a process. One that has ended has let go of its locks.
fn ends(pid: i32, until: Moment) -> bool {
    let process = match guest::sys::open_process(pid) {
        Ok(process) => process,
        Err(error) => return error == Errno::ESRCH && clock::now() < until,
    };
    loop {
        let left = until.saturating_sub(clock::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            ended => return ended.is_ok_and(|count| count > 0),
        }
    }
}

/// The byte that stands for our network.
fn ours(kind: libc::c_int) -> libc::flock {
    let network = fs::metadata(NETWORK).map_or(0, |namespace| namespace.ino());
    let short = |number: libc::c_int| number.try_into().unwrap_or_default();
    libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: network.try_into().unwrap_or_default(),
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds the lock as another process does: a lock of the open file is none of this process's.
    fn other(path: &Path) -> File {
        let lock = open(path).unwrap();
        fcntl(&lock, FcntlArg::F_OFD_SETLK(&ours(libc::F_WRLCK))).unwrap();
        lock
    }

    #[test]
    fn who_comes_second_is_refused_while_the_first_one_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("envd-init/wrapper.lock");
        let first = other(&path);
        let refused = claim_at(&path, Duration::ZERO).unwrap_err();
        assert!(refused.to_string().starts_with("another envd-wrapper (in another pid namespace)"));
        drop(first);
        assert!(claim_at(&path, Duration::ZERO).unwrap().lock.is_ok());
    }

    /// A container whose `/run` is another's.
    #[test]
    fn one_in_another_network_namespace_is_no_rival() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wrapper.lock");
        let lock = open(&path).unwrap();
        let elsewhere = libc::flock { l_start: ours(libc::F_WRLCK).l_start - 1, ..ours(libc::F_WRLCK) };
        fcntl(&lock, FcntlArg::F_OFD_SETLK(&elsewhere)).unwrap();
        assert!(claim_at(&path, Duration::ZERO).unwrap().lock.is_ok());
    }

    #[test]
    fn where_no_lock_can_be_made_envd_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("wrapper.lock");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        for path in [Path::new("/proc/no/wrapper.lock"), folder.path(), &link] {
            assert!(claim_at(path, Duration::ZERO).unwrap().lock.is_err(), "{}", path.display());
        }
    }
}
