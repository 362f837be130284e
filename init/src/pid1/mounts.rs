//! The file systems of a guest: those that envd needs before it starts, and the rest.

use std::{fs, path::Path};

use guest::cmdline::Cmdline;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::statvfs::{FsFlags, statvfs},
};

/// One mount.
struct Entry {
    source: &'static str,
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
    /// Whether a kernel without this file system is worth a word.
    needed: bool,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

const fn entry(kind: &'static str, target: &'static str, flags: MsFlags, options: &'static str) -> Entry {
    Entry { source: kind, target, kind, flags, options, needed: true }
}

const fn optional(kind: &'static str, target: &'static str, flags: MsFlags, options: &'static str) -> Entry {
    Entry { source: kind, target, kind, flags, options, needed: false }
}

/// Before the first word: the console is found in /dev and /proc, and the log is kept in /run (and must not land in the
/// folder below it, on the root file system).
const FIRST: [Entry; 3] = [
    entry("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    entry("proc", "/proc", SAFE, ""),
    entry("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
];

/// Before envd. `ptmxmode` is not 0666 by itself, and then no terminal opens.
const NEEDED: [Entry; 4] = [
    entry("sysfs", "/sys", SAFE, ""),
    entry(
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "gid=5,mode=0620,ptmxmode=0666",
    ),
    entry("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    entry("cgroup2", "/sys/fs/cgroup", SAFE, "nsdelegate,memory_recursiveprot"),
];

/// While envd starts; a kernel that lacks one lacks it silently.
const LATER: [Entry; 8] = [
    // Debian's place for locks of everybody's programs; bounded, so that it does not use up /run.
    optional("tmpfs", "/run/lock", SAFE, "mode=1777,size=5120k"),
    optional("fusectl", "/sys/fs/fuse/connections", SAFE, ""),
    optional("mqueue", "/dev/mqueue", SAFE, ""),
    optional("hugetlbfs", "/dev/hugepages", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), ""),
    optional("debugfs", "/sys/kernel/debug", SAFE, ""),
    optional("tracefs", "/sys/kernel/tracing", SAFE, ""),
    optional("securityfs", "/sys/kernel/security", SAFE, ""),
    optional("bpf", "/sys/fs/bpf", SAFE, "mode=0700"),
];

/// `/dev`, `/proc`, `/run`: to be called before anything is logged, so the answer is for later.
pub(super) fn first() -> Vec<String> {
    FIRST.iter().filter_map(make).collect()
}

/// What envd needs. `early` is what [`first`] could not do: where a folder was missing on a root that was read-only then, it
/// is tried again.
pub(super) fn needed(early: &[String]) -> Vec<String> {
    let mut warnings: Vec<_> = root_writable().into_iter().collect();
    if !early.is_empty() {
        warnings.extend(first());
    }
    warnings.extend(NEEDED.iter().filter_map(make));
    warnings.extend(share_root());
    warnings.extend(temporary_folder());
    warnings
}

/// What can wait.
pub(super) fn later() -> Vec<String> {
    device_links();
    LATER
        .iter()
        .filter(|entry| !entry.kind.eq("bpf") || Path::new(entry.target).is_dir())
        .filter_map(make)
        .collect()
}

/// Mounts one entry; what is mounted already is as good.
fn make(entry: &Entry) -> Option<String> {
    let target = Path::new(entry.target);
    if is_mounted(entry) {
        return None;
    }
    if !target.is_dir() && fs::create_dir(target).is_err() && !entry.needed {
        return None;
    }
    let options = (!entry.options.is_empty()).then_some(entry.options);
    let outcome = mount_with(entry, options).or_else(|error| match error {
        // An option that this kernel does not know must not cost the mount.
        Errno::EINVAL if options.is_some() => mount_with(entry, None),
        error => Err(error),
    });
    match outcome {
        Ok(()) | Err(Errno::EBUSY) => None,
        Err(_) if !entry.needed => None,
        Err(error) => Some(format!("cannot mount {} on {}: {}", entry.kind, entry.target, error.desc())),
    }
}

fn mount_with(entry: &Entry, options: Option<&str>) -> Result<(), Errno> {
    mount(Some(entry.source), entry.target, Some(entry.kind), entry.flags, options)
}

/// The kernel may have mounted /dev, and an initramfs the others. A second tmpfs over them would hide what is there.
fn is_mounted(entry: &Entry) -> bool {
    let Some(parent) = Path::new(entry.target).parent() else { return false };
    let device = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).map(|about| about.dev()).ok()
    };
    match (device(Path::new(entry.target)), device(parent)) {
        (Some(own), Some(above)) => own != above,
        _ => false,
    }
}

/// What programs expect in /dev besides the kernel's own nodes.
fn device_links() {
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/core", "/proc/kcore"),
    ] {
        let _ = std::os::unix::fs::symlink(target, name); // there already, or /dev is no devtmpfs: nothing is lost
    }
}

fn share_root() -> Option<String> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SHARED;
    let outcome = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
    outcome.err().map(|error| format!("cannot make the root mount shared: {}", error.desc()))
}

/// A kernel that was told neither `ro` nor `rw` mounts the root read-only, and leaves the rest to PID 1.
fn root_writable() -> Option<String> {
    if !read_only("/") {
        return None;
    }
    if Cmdline::of_this_machine().flag("ro") {
        return Some("the root file system is read-only, as the kernel was told (ro)".to_owned());
    }
    let outcome = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT, None::<&str>);
    outcome.err().map(|error| format!("the root file system is read-only and stays so: {}", error.desc()))
}

/// envd takes updates and uploads in /tmp: it must be finished before envd answers. It is never wiped here.
fn temporary_folder() -> Option<String> {
    let target = Path::new("/tmp");
    if target.is_dir() && !read_only("/tmp") {
        return None;
    }
    if !target.is_dir() && fs::create_dir(target).is_err() {
        return Some("there is no /tmp, and it cannot be made".to_owned());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let outcome = mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, Some("mode=1777"));
    outcome.err().map(|error| format!("cannot mount a tmpfs on /tmp: {}", error.desc()))
}

fn read_only(path: &str) -> bool {
    statvfs(path).is_ok_and(|about| about.flags().contains(FsFlags::ST_RDONLY))
}
