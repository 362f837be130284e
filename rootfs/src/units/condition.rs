//! Conditions of units, as far as they can be judged when an image is baked.

use crate::{ext4::Error, keep::files::Files};

/// What is known of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judged {
    /// It holds in every sandbox.
    Holds,
    /// It holds now, and is about a path that could come.
    HoldsNow,
    /// It is asked again at each start: the path has to be there.
    Asked(String),
    /// Such a unit does not start under systemd either, for this reason.
    Never(&'static str),
    Unknown(&'static str),
}

/// Ends of the keys that ask for a path.
const PATHS: [&str; 5] =
    ["PathExists", "PathIsDirectory", "FileIsExecutable", "FileNotEmpty", "DirectoryNotEmpty"];
/// Firecracker has no firmware, hence no measured boot.
const ABSENT_SECURITY: [&str; 5] = ["measured-uki", "measured-os", "tpm2", "uefi-secureboot", "cvm"];
/// What a sandbox is to `ConditionVirtualization=`, and what it is not.
const IS: [&str; 4] = ["yes", "true", "1", "vm"];
const IS_NOT: [&str; 10] = [
    "no",
    "false",
    "0",
    "container",
    "docker",
    "podman",
    "lxc",
    "lxc-libvirt",
    "systemd-nspawn",
    "private-users",
];

pub(super) fn judge(files: &impl Files, key: &str, value: &str) -> Result<Judged, Error> {
    if value.starts_with('|') {
        return Ok(Judged::Unknown("alternatives have no counterpart"));
    }
    if key.ends_with("NeedsUpdate") || key.ends_with("FirstBoot") {
        return Ok(Judged::Never("never so in a sandbox"));
    }
    let (value, negated) = value.strip_prefix('!').map_or((value, false), |value| (value, true));
    if PATHS.iter().any(|end| key.ends_with(end)) {
        return Ok(match (files.exists(value)?, negated) {
            (true, true) => Judged::Never("it would not start either"),
            (false, true) => Judged::HoldsNow,
            (_, false) => Judged::Asked(value.to_owned()),
        });
    }
    Ok(match so_in_a_sandbox(key, value) {
        Some(so) if so != negated => Judged::Holds,
        Some(_) => Judged::Never("never so in a sandbox"),
        None => Judged::Unknown("it cannot be judged when an image is baked"),
    })
}

/// What is the same in every sandbox: a virtual machine without firmware, in which PID 1 may do all.
fn so_in_a_sandbox(key: &str, value: &str) -> Option<bool> {
    if key.ends_with("Security") {
        return ABSENT_SECURITY.contains(&value).then_some(false);
    }
    if key.ends_with("Capability") {
        return value.starts_with("CAP_").then_some(true);
    }
    if key.ends_with("Virtualization") {
        let is = IS.contains(&value);
        return (is || IS_NOT.contains(&value)).then_some(is);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keep::files::fake::FakeFiles;

    fn judged(key: &str, value: &str) -> Judged {
        judge(&FakeFiles::default().file("/etc/here", ""), key, value).unwrap()
    }

    #[test]
    fn what_every_sandbox_is_need_not_be_asked() {
        for (key, value) in [
            ("ConditionVirtualization", "!container"),
            ("ConditionVirtualization", "vm"),
            ("AssertVirtualization", "!lxc"),
            ("ConditionCapability", "CAP_SYS_ADMIN"),
            ("ConditionSecurity", "!measured-uki"),
        ] {
            assert_eq!(judged(key, value), Judged::Holds, "{key}={value}");
        }
        for (key, value) in [
            ("ConditionVirtualization", "container"),
            ("ConditionVirtualization", "no"),
            ("ConditionSecurity", "measured-uki"),
            ("ConditionSecurity", "tpm2"),
            ("ConditionFirstBoot", "yes"),
            ("ConditionPathExists", "!/etc/here"),
        ] {
            assert!(matches!(judged(key, value), Judged::Never(_)), "{key}={value}");
        }
    }

    #[test]
    fn what_depends_on_kernel_or_host_is_not_guessed() {
        for (key, value) in [
            ("ConditionSecurity", "apparmor"),
            ("ConditionVirtualization", "amazon"),
            ("ConditionKernelCommandLine", "word"),
            ("ConditionPathExists", "|/etc/here"),
        ] {
            assert!(matches!(judged(key, value), Judged::Unknown(_)), "{key}={value}");
        }
    }

    #[test]
    fn paths_are_asked_again_at_each_start() {
        assert_eq!(judged("ConditionPathExists", "/etc/gone"), Judged::Asked("/etc/gone".into()));
        assert_eq!(judged("AssertFileNotEmpty", "!/etc/gone"), Judged::HoldsNow);
    }
}
