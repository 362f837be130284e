//! The kernel's own log, for the one thing that only it knows: whom its OOM killer has ended.
//!
//! In production nothing of it reaches the serial console (`quiet`, no `console=`), and a sandbox whose program was killed for
//! want of memory looks as if that had ended by itself.

use std::{
    fmt,
    fs::File,
    io::{self, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
};

use guest::reactor::{Interest, Reactor, Watched};
use nix::{errno::Errno, fcntl::OFlag};

use super::machine::tokens;

const PATH: &str = "/dev/kmsg";
/// Records taken in one turn.
const BATCH: usize = 64;
/// The kernel gives no longer record (bytes).
const MAX_RECORD: usize = 8 * 1024;
/// Below this the facility is the kernel's: what processes write into the log has another.
const KERNELS_OWN: u32 = 8;

#[derive(Debug)]
pub(super) struct KernelLog {
    fd: Watched,
}

/// A victim of the OOM killer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Killed {
    name: String,
    pid: u32,
    /// Memory of its own that it held.
    kib: u64,
    /// The limit of its cgroup was reached, not the machine's memory.
    by_limit: bool,
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, pid, kib, by_limit } = self;
        let whose =
            if *by_limit { "its cgroup was at its memory limit" } else { "the machine had none left" };
        write!(
            f,
            "out of memory: the kernel killed {name} (pid {pid}), which held {} MiB: {whose}",
            kib / 1024
        )
    }
}

impl KernelLog {
    /// Follows what is said from now on.
    pub(super) fn follow(reactor: &Reactor) -> io::Result<Self> {
        let mut file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(PATH)?;
        file.seek(SeekFrom::End(0))?;
        let fd =
            reactor.watch(OwnedFd::from(file), tokens::KERNEL, Interest::Read).map_err(io::Error::other)?;
        Ok(Self { fd })
    }

    /// Whom the records tell of that have come, in bounded number. An error is one that stays.
    pub(super) fn killed(&self) -> io::Result<Vec<Killed>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; MAX_RECORD];
        for _ in 0..BATCH {
            match nix::unistd::read(&self.fd, &mut buffer) {
                Ok(0) | Err(Errno::EAGAIN) => break,
                Ok(count) => all.extend(parse(&String::from_utf8_lossy(&buffer[..count]))),
                // EPIPE: records were lost; the next read goes on with the oldest that is left.
                Err(Errno::EPIPE | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all)
    }
}

/// One record: `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT`, and lines of what is known besides.
fn parse(record: &str) -> Option<Killed> {
    let (head, rest) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    let (cause, victim) = rest.lines().next()?.split_once(": Killed process ")?;
    if priority >= KERNELS_OWN || !cause.to_lowercase().ends_with("out of memory") {
        return None;
    }
    let (pid, victim) = victim.split_once(" (")?;
    // A name may hold a bracket itself.
    let (name, memory) = victim.rsplit_once(") total-vm:")?;
    let kib = |key: &str| memory.split_once(key)?.1.split_once("kB")?.0.parse::<u64>().ok();
    let kib = kib("anon-rss:").unwrap_or(0) + kib("shmem-rss:").unwrap_or(0);
    Some(Killed {
        name: name.to_owned(),
        pid: pid.parse().ok()?,
        kib,
        by_limit: cause.starts_with("Memory cgroup"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "3,801,320511834,-;Out of memory: Killed process 3544 (python3) total-vm:1946660kB, anon-rss:1935360kB, \
        file-rss:4kB, shmem-rss:0kB, UID:1000 pgtables:3844kB oom_score_adj:100\n";

    #[test]
    fn a_victim_is_told_with_what_it_held_and_why() {
        let told = parse(MACHINE).map(|killed| killed.to_string());
        let wanted = "out of memory: the kernel killed python3 (pid 3544), which held 1890 MiB: the machine had none left";
        assert_eq!(told.as_deref(), Some(wanted));
        let limit = parse(&MACHINE.replace("Out of", "Memory cgroup out of")).unwrap();
        assert!(limit.by_limit && limit.to_string().ends_with("its cgroup was at its memory limit"));
    }

    #[test]
    fn a_name_with_brackets_is_told_whole() {
        let killed = parse(&MACHINE.replace("python3", "a) total-vm:1kB")).unwrap();
        assert_eq!((killed.name.as_str(), killed.kib), ("a) total-vm:1kB", 1_935_360));
    }

    #[test]
    fn what_a_process_wrote_into_the_log_or_is_about_something_else_is_passed_over() {
        assert_eq!(parse(&MACHINE.replacen('3', "11", 1)), None);
        for other in
            ["", "3", "3,1,2,-;usb 1-1: new device", "x,1,2,-;Out of memory: Killed process 1 (a) total-vm:"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
