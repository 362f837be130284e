//! The end: what may block is done by a child ([`unmount_all`]), and the machine goes down by the deadline in any case.

use std::{fs, path::PathBuf, thread, time::Duration};

use guest::{
    clock::now,
    cmdline::Cmdline,
    control::ShutdownKind,
    spawn::{self, Output, Program},
    sys::Reaped,
};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::reboot::{RebootMode, reboot},
};
use tracing::{error, warn};

use super::reap;

/// The argument by which init is told to be that child.
pub(crate) const UNMOUNT: &str = "unmount-all";
/// Kernel interfaces hold no data, and the control socket lives in one of them to the end.
const KEPT: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/"];
/// What is mounted below those and holds no data either. Anything else there is somebody's disk.
const WITHOUT_DATA: [&str; 22] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];
/// A sync that no child makes is given this long.
const SYNC: Duration = Duration::from_secs(2);

/// Starts the child. Its number comes back.
pub(super) fn start_unmounting() -> Result<i32, String> {
    let program = Program {
        path: "/proc/self/exe".into(),
        name: Some("init".into()),
        arguments: vec![UNMOUNT.into()],
        output: Output::Null,
        ..Program::default()
    };
    spawn::spawn(&program).map(|spawned| spawned.pid.as_raw()).map_err(|error| error.to_string())
}

/// Writes to the disks what is not there yet, within a bound: there is no child that does, and the machine goes down next. A
/// thread that a dead disk holds for ever is no reason to stay.
pub(super) fn sync() {
    let until = now() + SYNC;
    match thread::Builder::new().name("sync".to_owned()).spawn(nix::unistd::sync) {
        Ok(syncing) => {
            while !syncing.is_finished() && now() < until {
                thread::sleep(Duration::from_millis(2));
            }
            if !syncing.is_finished() {
                warn!("the disks do not take all that is to be written, within {} s", SYNC.as_secs());
            }
        }
        // Where there can be neither, what is not written yet is worth more than an end in time.
        Err(_) => nix::unistd::sync(),
    }
}

/// Syncs, unmounts in reverse order, remounts the root read-only and syncs again. Anything here may block. The answer is the
/// errno of a root that stays writable, or 0: the child's exit status.
pub(crate) fn unmount_all() -> u8 {
    nix::unistd::sync();
    for target in targets(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()) {
        let _ = umount2(&target, MntFlags::UMOUNT_NOFOLLOW)
            .or_else(|_| umount2(&target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH));
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let outcome = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
    nix::unistd::sync();
    outcome.err().map_or(0, |errno| errno as u8)
}

/// Says how the child has ended, where that is not well. False: it has not even synced.
pub(super) fn tell_unmounted(death: Reaped) -> bool {
    if death.by_signal {
        warn!("file systems were not all unmounted: {}", reap::signal_name(death.status));
    } else if death.status == spawn::EXEC_FAILED {
        warn!("file systems were not unmounted: the program for it could not be executed");
    } else if death.status != 0 {
        let why = Errno::from_raw(death.status);
        warn!("the root file system could not be made read-only: {}; it was synced", why.desc());
    }
    !death.by_signal && death.status != spawn::EXEC_FAILED
}

/// Mount points to be unmounted, the last mounted first.
fn targets(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().rev().filter_map(|line| {
        let kind = line.split_once(" - ").map_or("", |(_, rest)| rest).split(' ').next()?;
        Some((unescape(line.split(' ').nth(4)?), kind))
    });
    mounts.filter(|(point, kind)| !is_kept(point, kind)).map(|(point, _)| PathBuf::from(point)).collect()
}

fn is_kept(point: &str, kind: &str) -> bool {
    let below = |kept: &&str| point.strip_prefix(*kept).is_some_and(|rest| rest.starts_with('/'));
    KEPT.contains(&point) || WITHOUT_DATA.contains(&kind) && KEPT[..4].iter().any(below)
}

/// The kernel writes blanks and backslashes of a name in octal.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        rest = after;
        if let (b'\\', Some(value)) = (byte, octal) {
            bytes.push(value);
            rest = &after[3..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Ends the machine.
pub(super) fn go_down(kind: ShutdownKind, cmdline: &Cmdline) {
    let Err(why) = reboot(way_down(kind, cmdline));
    error!("the kernel refuses to go down: {}", why.desc());
}

/// What the kernel of this machine is to be asked for.
pub(crate) fn way_down(kind: ShutdownKind, cmdline: &Cmdline) -> RebootMode {
    mode(kind, cfg!(target_arch = "x86_64") && resets_by_keyboard(cmdline))
}

/// Firecracker on x86 knows only the reset: power-off and halt would leave it running for ever.
fn mode(kind: ShutdownKind, reset_only: bool) -> RebootMode {
    match kind {
        _ if reset_only => RebootMode::RB_AUTOBOOT,
        ShutdownKind::Reboot => RebootMode::RB_AUTOBOOT,
        ShutdownKind::Poweroff => RebootMode::RB_POWER_OFF,
        ShutdownKind::Halt => RebootMode::RB_HALT_SYSTEM,
    }
}

/// `reboot=k`, by which Firecracker is told from other machines; the kernel takes several words there (`reboot=t,k`).
fn resets_by_keyboard(cmdline: &Cmdline) -> bool {
    cmdline.value("reboot").is_some_and(|how| how.split(',').any(|word| word.starts_with('k')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_unmounted_in_reverse_and_kernel_interfaces_stay() {
        let table = "1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 0:5 / /dev rw - devtmpfs d rw\n\
            3 2 0:6 / /dev/pts rw - devpts d rw\n4 1 0:7 / /run rw - tmpfs t rw\n5 1 0:8 / /data rw - ext4 e rw\n\
            6 5 0:9 / /data/in\\040ner rw - nfs n rw\n7 4 0:9 / /etc/ssl/certs rw - tmpfs t rw\n\
            8 1 0:10 / /runner rw - tmpfs t rw\n9 4 254:16 / /run/media/disk rw shared:7 - ext4 /dev/vdb rw\n\
            10 4 0:11 / /run/lock rw - tmpfs t rw\n11 2 254:0 /etc/x /dev/x rw - ext4 /dev/vda rw\n";
        let found = targets(table);
        let disks = ["/dev/x", "/run/media/disk"].map(PathBuf::from);
        assert_eq!(found[..2], disks, "what is below them and holds data goes as well");
        assert_eq!(found[2..], ["/runner", "/etc/ssl/certs", "/data/in ner", "/data"].map(PathBuf::from));
    }

    #[test]
    fn under_firecracker_each_way_down_is_the_reset() {
        use ShutdownKind::{Halt, Poweroff, Reboot};
        for kind in [Reboot, Poweroff, Halt] {
            assert_eq!(mode(kind, true), RebootMode::RB_AUTOBOOT, "{kind:?}");
        }
        let elsewhere = [Reboot, Poweroff, Halt].map(|kind| mode(kind, false));
        assert_eq!(
            elsewhere,
            [RebootMode::RB_AUTOBOOT, RebootMode::RB_POWER_OFF, RebootMode::RB_HALT_SYSTEM]
        );
        for (line, by_keyboard) in
            [("panic=1 reboot=k", true), ("reboot=t,k", true), ("reboot=a", false), ("quiet", false)]
        {
            assert_eq!(resets_by_keyboard(&Cmdline::parse(line)), by_keyboard, "{line}");
        }
    }

    #[test]
    fn a_table_that_is_no_table_has_no_targets() {
        assert!(targets("garbage\n\n1 2 3\n").is_empty());
        assert_eq!(unescape("a\\134b\\0"), "a\\b\\0");
    }
}
