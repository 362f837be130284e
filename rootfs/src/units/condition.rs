//! Conditions of units, as far as they can be judged when an image is baked, or asked again at each start.

use crate::{
    elf::{Elf, Machine},
    ext4::Error,
    keep::files::Files,
};

/// What is known of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judged {
    /// It holds in every sandbox.
    Holds,
    /// It holds now, and is about something that could change.
    HoldsNow,
    /// It is asked again at each start.
    Asked(Ask),
    /// At each start it is asked only whether the path is there at all.
    AskedRoughly(Ask),
    /// Such a unit does not start under systemd either, for this reason.
    Never(&'static str),
    Unknown(&'static str),
}

/// What PID 1 can ask at each start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// The path is there.
    Exists(String),
    /// There is something in the folder.
    Filled(String),
    /// The path is not there.
    Absent(String),
}

const NEVER: &str = "never so in a sandbox";
const NOT_HERE: &str = "it would not start either";
const CANNOT: &str = "it cannot be judged when an image is baked";

/// What lies there when a machine runs is not in its image.
const VOLATILE: [&str; 5] = ["/dev/", "/proc/", "/run/", "/sys/", "/tmp/"];
/// What PID 1 mounts.
const MOUNTS: [&str; 8] = ["/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/sys/fs/cgroup"];

/// Firecracker has no firmware, hence no measured boot.
const ABSENT_SECURITY: [&str; 5] = ["measured-uki", "measured-os", "tpm2", "uefi-secureboot", "cvm"];
/// What a sandbox is to `ConditionVirtualization=`, and what it is not. (Some systemds take Firecracker for `amazon`.)
const IS: [&str; 2] = ["vm", "kvm"];
const IS_NOT: [&str; 26] = [
    "container",
    "container-other",
    "docker",
    "podman",
    "lxc",
    "lxc-libvirt",
    "systemd-nspawn",
    "openvz",
    "rkt",
    "wsl",
    "proot",
    "pouch",
    "private-users",
    "qemu",
    "vmware",
    "microsoft",
    "oracle",
    "xen",
    "bochs",
    "uml",
    "parallels",
    "bhyve",
    "powervm",
    "zvm",
    "apple",
    "google",
];

pub(super) fn is_volatile(path: &str) -> bool {
    VOLATILE.iter().any(|folder| path.starts_with(folder))
}

/// Judges one condition; a `|` before its value is the caller's.
pub(super) fn judge(files: &impl Files, key: &str, value: &str) -> Result<Judged, Error> {
    let (value, negated) = value.strip_prefix('!').map_or((value, false), |value| (value.trim_start(), true));
    let key = key.strip_prefix("Condition").or_else(|| key.strip_prefix("Assert")).unwrap_or(key);
    if let Some(judged) = of_path(files, key, value, negated)? {
        return Ok(judged);
    }
    let so = match key {
        "Architecture" => architecture(files, value)?,
        "OSRelease" => os_release(files, value)?.map(|so| (so, NOT_HERE)),
        _ => so_in_a_sandbox(key, value).map(|so| (so, NEVER)),
    };
    Ok(match so {
        Some((so, _)) if so != negated => Judged::Holds,
        Some((_, why)) => Judged::Never(why),
        None => Judged::Unknown(CANNOT),
    })
}

/// The conditions about paths. What the image's own path is not now, it is not at a start either; what is not in the image could come.
fn of_path(files: &impl Files, key: &str, path: &str, negated: bool) -> Result<Option<Judged>, Error> {
    use Judged::{Asked, AskedRoughly, HoldsNow, Never, Unknown};
    let exists = || Ask::Exists(path.to_owned());
    let there = files.exists(path)? && !is_volatile(path);
    let now = match key {
        "PathExists" if negated => {
            return Ok(Some(if there { Never(NOT_HERE) } else { Asked(Ask::Absent(path.to_owned())) }));
        }
        "PathExists" => return Ok(Some(Asked(exists()))),
        "DirectoryNotEmpty" if !negated => return Ok(Some(Asked(Ask::Filled(path.to_owned())))),
        "DirectoryNotEmpty" => !files.names(path)?.is_empty(),
        "PathIsDirectory" => there && files.size(path)?.is_none(),
        "FileNotEmpty" => files.size(path)?.is_some_and(|size| size > 0),
        "FileIsExecutable" => files.is_executable(path)?,
        "PathIsSymbolicLink" => files.link(path)?.is_some(),
        // Nothing but a mount makes it read-only.
        "PathIsReadWrite" => there || is_volatile(path) || MOUNTS.contains(&path),
        "PathIsMountPoint" => {
            let is = MOUNTS.contains(&path);
            return Ok(Some(match (is, negated) {
                (true, false) => Judged::Holds,
                (true, true) => Never(NEVER),
                (false, _) => Unknown("what else is mounted is known only when the machine runs"),
            }));
        }
        "PathExistsGlob" if is_volatile(path) => return Ok(Some(Unknown(CANNOT))),
        "PathExistsGlob" => matches_glob(files, path)?,
        _ => return Ok(None),
    };
    Ok(Some(match (now, negated) {
        (true, false) if there => AskedRoughly(exists()),
        (true, false) => HoldsNow,
        (true, true) => Never(NOT_HERE),
        // There, and something else.
        (false, false) if there || key == "PathExistsGlob" => Never(NOT_HERE),
        (false, true) if there => HoldsNow,
        (false, true) if key == "PathExistsGlob" => HoldsNow,
        (false, false) => AskedRoughly(exists()),
        (false, true) => AskedRoughly(Ask::Absent(path.to_owned())),
    }))
}

fn matches_glob(files: &impl Files, pattern: &str) -> Result<bool, Error> {
    let mut paths = vec![String::new()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for base in &paths {
            let names = if guest::glob::is_pattern(part) {
                files.names(if base.is_empty() { "/" } else { base })?
            } else {
                vec![part.to_owned()]
            };
            next.extend(
                names
                    .iter()
                    .filter(|name| guest::glob::name_matches(part, name))
                    .map(|name| format!("{base}/{name}")),
            );
        }
        paths = next;
    }
    for path in paths {
        if files.link(&path)?.is_some() || files.exists(&path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// By the image's own shell: a sandbox's machine is its image's.
fn architecture(files: &impl Files, value: &str) -> Result<Option<(bool, &'static str)>, Error> {
    if value == "native" {
        return Ok(Some((true, NEVER)));
    }
    for path in ["/bin/sh", "/usr/lib/systemd/systemd"] {
        let bytes = files.read(path)?.unwrap_or_default();
        let name = match Elf::parse(&bytes).ok().and_then(|elf| elf.machine) {
            Some(Machine::X86_64) => "x86-64",
            Some(Machine::Aarch64) => "arm64",
            None => continue,
        };
        return Ok(Some((name == value, NEVER)));
    }
    Ok(None)
}

/// `FIELD=value` and `FIELD!=value`; the other comparisons are of versions.
fn os_release(files: &impl Files, value: &str) -> Result<Option<bool>, Error> {
    let text = match files.text("/etc/os-release")? {
        Some(text) => text,
        None => files.text("/usr/lib/os-release")?.unwrap_or_default(),
    };
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
    };
    let mut all = true;
    for word in value.split_whitespace() {
        let Some((name, wanted)) = word.split_once('=') else { return Ok(None) };
        let (name, equal) = name.strip_suffix('!').map_or((name, true), |name| (name, false));
        let plain =
            |text: &str| text.chars().all(|char| char.is_ascii_alphanumeric() || "_.-".contains(char));
        if name.is_empty() || !plain(name) || !plain(wanted) {
            return Ok(None);
        }
        all &= (field(name) == wanted) == equal;
    }
    Ok(Some(all))
}

/// What is the same in every sandbox: a virtual machine without firmware, in which PID 1 is root and may do all.
fn so_in_a_sandbox(key: &str, value: &str) -> Option<bool> {
    match key {
        "FirstBoot" => boolean(value).map(|wanted| !wanted),
        "NeedsUpdate" => Some(false),
        "Security" => ABSENT_SECURITY.contains(&value).then_some(false),
        "Capability" => value.starts_with("CAP_").then_some(true),
        "Virtualization" => boolean(value).or_else(|| {
            let is = IS.contains(&value);
            (is || IS_NOT.contains(&value)).then_some(is)
        }),
        "ACPower" => boolean(value), // what has no battery is on mains
        "User" | "Group" => Some(matches!(value, "root" | "0" | "@system")),
        "Firmware" => (value == "uefi").then_some(false),
        "Credential" => Some(false),
        "ControlGroupController" => match value {
            "v1" => Some(false),
            "v2" => Some(true),
            _ => None,
        },
        _ => None,
    }
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keep::files::fake::FakeFiles;

    fn judged(key: &str, value: &str) -> Judged {
        let files = FakeFiles::default()
            .file("/etc/here", "")
            .file("/etc/full", "text")
            .file("/etc/folder/file", "#!/bin/sh\n")
            .file("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n");
        judge(&files, key, value).unwrap()
    }

    fn exists(path: &str) -> Ask {
        Ask::Exists(path.to_owned())
    }

    fn absent(path: &str) -> Ask {
        Ask::Absent(path.to_owned())
    }

    #[test]
    fn what_every_sandbox_is_need_not_be_asked() {
        for (key, value) in [
            ("ConditionVirtualization", "!container"),
            ("ConditionVirtualization", "vm"),
            ("ConditionVirtualization", "on"),
            ("ConditionVirtualization", "!vmware"),
            ("AssertVirtualization", "!lxc"),
            ("ConditionCapability", "CAP_SYS_ADMIN"),
            ("ConditionSecurity", "!measured-uki"),
            ("ConditionFirstBoot", "no"),
            ("ConditionFirstBoot", "!yes"),
            ("ConditionNeedsUpdate", "!/etc"),
            ("ConditionUser", "root"),
            ("ConditionACPower", "true"),
            ("ConditionPathIsMountPoint", "/sys"),
            ("ConditionOSRelease", "ID=debian VERSION_ID!=11"),
            ("ConditionArchitecture", "native"),
        ] {
            assert_eq!(judged(key, value), Judged::Holds, "{key}={value}");
        }
        for (key, value) in [
            ("ConditionVirtualization", "container"),
            ("ConditionVirtualization", "no"),
            ("ConditionSecurity", "measured-uki"),
            ("ConditionSecurity", "tpm2"),
            ("ConditionFirstBoot", "yes"),
            ("ConditionNeedsUpdate", "/etc"),
            ("ConditionPathExists", "!/etc/here"),
            ("ConditionCapability", "!CAP_SYS_ADMIN"),
            ("ConditionOSRelease", "ID=fedora"),
            ("ConditionACPower", "false"),
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
            ("ConditionKernelCommandLine", "!word"),
            ("ConditionPathIsMountPoint", "!/data"),
            ("ConditionOSRelease", "VERSION_ID>=12"),
            ("ConditionMemory", ">=1G"),
            ("ConditionHost", "name"),
        ] {
            assert!(matches!(judged(key, value), Judged::Unknown(_)), "{key}={value}");
        }
    }

    #[test]
    fn paths_are_asked_again_at_each_start() {
        assert_eq!(judged("ConditionPathExists", "/etc/gone"), Judged::Asked(exists("/etc/gone")));
        assert_eq!(judged("ConditionPathExists", "!/etc/gone"), Judged::Asked(absent("/etc/gone")));
        assert_eq!(judged("ConditionPathExists", "!/sys/x"), Judged::Asked(absent("/sys/x")));
        assert_eq!(
            judged("ConditionDirectoryNotEmpty", "/etc/x"),
            Judged::Asked(Ask::Filled("/etc/x".to_owned()))
        );
    }

    /// They were all taken for a question whether the path exists.
    #[test]
    fn what_a_path_is_in_the_image_is_judged_and_the_rest_asked_as_well_as_can_be() {
        use Judged::{AskedRoughly, HoldsNow};
        for (condition, value, expected) in [
            ("PathIsDirectory", "/etc/folder", AskedRoughly(exists("/etc/folder"))),
            ("FileNotEmpty", "/etc/full", AskedRoughly(exists("/etc/full"))),
            ("FileIsExecutable", "/etc/folder/file", AskedRoughly(exists("/etc/folder/file"))),
            ("FileNotEmpty", "/etc/gone", AskedRoughly(exists("/etc/gone"))),
            ("FileNotEmpty", "!/etc/gone", AskedRoughly(absent("/etc/gone"))),
            ("FileNotEmpty", "!/etc/here", HoldsNow),
            ("PathIsReadWrite", "/etc", AskedRoughly(exists("/etc"))),
            ("PathIsReadWrite", "/sys", HoldsNow),
            ("PathExistsGlob", "/etc/f*r/fil?", HoldsNow),
            ("PathExistsGlob", "!/etc/*.conf", HoldsNow),
        ] {
            assert_eq!(judged(&format!("Condition{condition}"), value), expected, "{condition}={value}");
        }
        for (condition, value) in [
            ("PathIsDirectory", "/etc/here"),
            ("PathIsDirectory", "!/etc/folder"),
            ("FileNotEmpty", "/etc/here"),
            ("FileIsExecutable", "/etc/full"),
            ("DirectoryNotEmpty", "!/etc/folder"),
            ("PathIsSymbolicLink", "/etc/here"),
            ("PathExistsGlob", "/etc/*.conf"),
            ("PathIsReadWrite", "!/etc"),
        ] {
            let found = judged(&format!("Condition{condition}"), value);
            assert!(matches!(found, Judged::Never(_)), "{condition}={value}: {found:?}");
        }
    }
}
