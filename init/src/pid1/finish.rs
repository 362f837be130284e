//! The end: what may block is done by a child ([`unmount_all`]), and the machine goes down by the deadline in any case.

use std::{fs, path::PathBuf};

use guest::{
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

/// Starts the child. Its number comes back; `None` where there can be none.
pub(super) fn start_unmounting() -> Option<i32> {
    let program = Program {
        path: "/proc/self/exe".into(),
        name: Some("init".into()),
        arguments: vec![UNMOUNT.into()],
        output: Output::Null,
        ..Program::default()
    };
    spawn::spawn(&program).map(|spawned| spawned.pid.as_raw()).ok()
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

/// Says how the child has ended, where that is not well.
pub(super) fn tell_unmounted(death: Reaped) {
    if death.by_signal {
        warn!("file systems were not all unmounted: {}", reap::signal_name(death.status));
    } else if death.status != 0 {
        let why = Errno::from_raw(death.status);
        warn!("the root file system could not be made read-only: {}; it was synced", why.desc());
    }
}

/// Mount points to be unmounted, the last mounted first.
fn targets(mountinfo: &str) -> Vec<PathBuf> {
    let points = mountinfo.lines().rev().filter_map(|line| Some(unescape(line.split(' ').nth(4)?)));
    points.filter(|point| !is_kept(point)).map(PathBuf::from).collect()
}

fn is_kept(point: &str) -> bool {
    KEPT.contains(&point)
        || KEPT[..4].iter().any(|kept| point.strip_prefix(kept).is_some_and(|rest| rest.starts_with('/')))
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
    let reset_only = cfg!(target_arch = "x86_64") && resets_by_keyboard(cmdline);
    let Err(why) = reboot(mode(kind, reset_only));
    error!("the kernel refuses to go down: {}", why.desc());
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
            8 1 0:10 / /runner rw - tmpfs t rw\n";
        let found = targets(table);
        assert_eq!(found, ["/runner", "/etc/ssl/certs", "/data/in ner", "/data"].map(PathBuf::from));
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
