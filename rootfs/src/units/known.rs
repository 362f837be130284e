//! Units that are known by name: what we ship a definition for, and what PID 1 covers.

use guest::service::Service;

use crate::{ext4::Error, keep::files::Files, keep::unit};

macro_rules! shipped {
    ($name:literal) => {
        include_str!(concat!("../../overlay/services.d/", $name, ".toml"))
    };
}

/// Service, its file, and the units that it stands for.
pub(super) const SHIPPED: &[(&str, &str, &[&str])] = &[
    ("chronyd", shipped!("chronyd"), &["chrony.service", "chronyd.service"]),
    ("cron", shipped!("cron"), &["cron.service"]), // crond.service is of other crons: it is turned
    ("dbus", shipped!("dbus"), &["dbus.service", "dbus.socket"]),
    (
        "getty",
        shipped!("getty"),
        &["serial-getty@ttyS0.service", "console-getty.service", "getty@tty1.service"],
    ),
    // The freeze exempts `system.slice/rpcbind.service` by name.
    ("rpcbind.service", shipped!("rpcbind.service"), &["rpcbind.service", "rpcbind.socket"]),
    ("sshd", shipped!("sshd"), &["ssh.service", "sshd.service", "ssh.socket"]),
];

/// The definition that stands for a unit in this image.
pub(super) fn shipped_for(files: &impl Files, unit: &str) -> Result<Option<&'static str>, Error> {
    let Some((name, text, _)) = SHIPPED.iter().find(|(_, _, units)| units.contains(&unit)) else {
        return Ok(None);
    };
    Ok(fits(files, name, text)?.then_some(*name))
}

/// Whether a definition's paths are there. Another distribution has the same unit with other ones (Fedora's chronyd has
/// /etc/chrony.conf), and there the definition would start nothing.
fn fits(files: &impl Files, name: &str, text: &str) -> Result<bool, Error> {
    for path in Service::parse(name, text).value.only_if {
        if !files.exists(&path.to_string_lossy())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether one of the units is there at all. A getty's always is; it never starts by itself.
pub(super) fn is_installed(files: &impl Files, units: &[&str]) -> Result<bool, Error> {
    for unit in units.iter().filter(|unit| !unit.contains("getty")) {
        if unit::find(files, unit)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How PID 1 covers a unit; names may end in `*`.
pub(super) fn covered(name: &str) -> Option<&'static str> {
    COVERED.iter().find(|(pattern, _)| matches(pattern, name)).map(|(_, how)| *how)
}

/// Units that this image does without, whatever another one would lose with them.
pub(super) fn covered_here(files: &impl Files, name: &str) -> Result<Option<&'static str>, Error> {
    let how = match name {
        "tmp.mount" => {
            let is_the_owners = unit::find(files, name)?.is_some_and(|path| path.starts_with("/etc/"));
            (!is_the_owners).then_some("/tmp stays a folder of the root filesystem")
        }
        "systemd-resolved.service" => {
            (!leads_to_resolved(files)?).then_some("/etc/resolv.conf names its servers by itself")
        }
        _ => None,
    };
    Ok(how)
}

/// Whether systemd's package pulls the unit in by itself: a step of its own boot, or a socket on which its own tools ask.
/// Each release brings more of them. What an owner wants of systemd is enabled below /etc.
pub(super) fn is_systemds_own(files: &impl Files, name: &str) -> Result<bool, Error> {
    const OWNERS: &str = "/etc/systemd/system";
    if !name.starts_with("systemd-") || unit::find(files, name)?.is_none_or(|path| path.starts_with("/etc/"))
    {
        return Ok(false);
    }
    for folder in files.names(OWNERS)? {
        let pulls = [".wants", ".requires", ".upholds"].iter().any(|end| folder.ends_with(end));
        if pulls && files.names(&format!("{OWNERS}/{folder}"))?.iter().any(|link| link == name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether names cannot be looked up without systemd-resolved.
fn leads_to_resolved(files: &impl Files) -> Result<bool, Error> {
    const FILE: &str = "/etc/resolv.conf";
    if files.link(FILE)?.is_some_and(|target| target.contains("run/systemd/resolve/")) {
        return Ok(true);
    }
    Ok(files.text(FILE)?.is_some_and(|text| text.contains("127.0.0.53")))
}

pub(super) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((begin, end)) => {
            name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
        }
        None => pattern == name,
    }
}

pub(super) const NOTHING: &str = "means nothing without systemd";
const UPKEEP: &str = "upkeep of packages; bake a new image instead";

/// Generators that write nothing a sandbox needs, unless a file is there.
const HARMLESS_GENERATORS: &[(&str, &str)] =
    &[("rpc-pipefs-generator", "/etc/nfs.conf.local"), ("nfs-server-generator", "/etc/exports")];

pub(super) fn is_harmless_generator(files: &impl Files, name: &str) -> Result<bool, Error> {
    let known = HARMLESS_GENERATORS.iter().find(|(generator, _)| *generator == name);
    // Ubuntu's tells ssh.socket the ports of sshd_config; our sshd reads that file itself.
    let is_of_sshd = name == "sshd-socket-generator";
    known.map_or(Ok(is_of_sshd), |(_, file)| Ok(!files.exists(file)?))
}

const COVERED: &[(&str, &str)] = &[
    ("envd.service", "envd runs under envd-wrapper"),
    ("envd-init-relay.service", "the relay is a service of PID 1"),
    ("systemd-journal*", "what services print goes to the log ring (envdctl logs)"),
    ("syslog.socket", "what services print goes to the log ring (envdctl logs)"),
    ("systemd-udev*", "the kernel makes the device nodes; sandboxes have no hotplug"),
    ("systemd-hwdb-update.service", "the kernel makes the device nodes; sandboxes have no hotplug"),
    ("udev.service", "the kernel makes the device nodes; sandboxes have no hotplug"),
    ("systemd-tmpfiles-setup*", "PID 1 has tmpfiles.d applied"),
    ("systemd-sysusers.service", "PID 1 has sysusers.d applied"),
    ("systemd-sysctl.service", "PID 1 applies sysctl.d"),
    ("procps.service", "PID 1 applies sysctl.d"),
    ("systemd-random-seed.service", "PID 1 seeds the kernel from a source that differs for each clone"),
    ("systemd-machine-id-commit.service", "PID 1 makes a missing machine-id"),
    ("systemd-networkd*", "PID 1 sets up eth0"),
    ("systemd-network-generator.service", "PID 1 sets up eth0"),
    ("networking.service", "PID 1 sets up lo and eth0"),
    ("ifupdown-*", "PID 1 sets up lo and eth0"),
    ("systemd-remount-fs.service", "the kernel mounts the root writable"),
    ("systemd-fsck*", "images are checked when they are baked"),
    ("-.mount", "the kernel mounts the root"),
    ("dev-hugepages.mount", "PID 1 mounts it"),
    ("dev-mqueue.mount", "PID 1 mounts it"),
    ("sys-*.mount", "PID 1 mounts it where the kernel has it"),
    ("run-*.mount", NOTHING),
    ("proc-sys-fs-binfmt_misc.*", "the platform's kernel has no binfmt_misc"),
    ("systemd-binfmt.service", "the platform's kernel has no binfmt_misc"),
    ("systemd-modules-load.service", "the platform's kernel has no modules"),
    ("kmod-static-nodes.service", "the platform's kernel has no modules"),
    ("modprobe@*", "the platform's kernel has no modules"),
    ("kmod.service", "the platform's kernel has no modules"),
    ("getty-static.service", "a getty runs on request only (systemctl start getty)"),
    ("getty@*", "a getty runs on request only (systemctl start getty)"),
    ("autovt@*", "a getty runs on request only (systemctl start getty)"),
    ("serial-getty@*", "a getty runs on request only (systemctl start getty)"),
    ("systemd-logind*", "sandboxes have no seats and no login sessions"),
    ("systemd-user-sessions.service", "logins are never held back"),
    ("systemd-vconsole-setup.service", "sandboxes have no screen"),
    ("console-setup.service", "sandboxes have no screen"),
    ("keyboard-setup.service", "sandboxes have no screen"),
    ("systemd-update-*", NOTHING),
    ("systemd-firstboot.service", NOTHING),
    // Measured boot: what a TPM would be told, and its keys.
    ("systemd-pcr*", NOTHING),
    ("systemd-tpm2-*", NOTHING),
    ("systemd-sysext*", "images of extensions are not merged; put their files into the image"),
    ("systemd-confext*", "images of extensions are not merged; put their files into the image"),
    ("systemd-hibernate-*", "sandboxes do not hibernate"),
    ("systemd-pstore.service", NOTHING),
    ("systemd-repart.service", NOTHING),
    ("systemd-growfs*", NOTHING),
    ("systemd-initctl.socket", NOTHING),
    ("systemd-ask-password-*", NOTHING),
    ("systemd-boot-*", NOTHING),
    ("systemd-quotacheck.service", NOTHING),
    ("ldconfig.service", NOTHING),
    ("initrd-*", NOTHING),
    ("e2scrub_*", "sandboxes have no LVM"),
    ("fstrim.timer", "the platform mounts the root with discard"),
    ("systemd-tmpfiles-clean.timer", "old files are not cleaned away; sandboxes are too young for it"),
    ("apt-daily*", UPKEEP),
    ("dpkg-db-backup.*", UPKEEP),
    ("man-db.*", UPKEEP),
    ("motd-news.*", UPKEEP),
    ("e2b-chrony-source.service", "PID 1 runs it before chronyd"),
    ("auth-rpcgss-module.service", "the platform's kernel has no modules"),
    ("rpc-statd-notify.service", "no lock of an NFS volume outlives a sandbox"),
    ("var-lib-nfs-rpc_pipefs.mount", "only Kerberos and pNFS need it"),
    ("lvm2-*", "sandboxes have no LVM"),
    ("dm-event.*", "sandboxes have no LVM"),
    ("first-boot-complete.target", NOTHING),
];

/// Lost for reasons that their files do not tell.
pub(super) fn lost(name: &str) -> Option<&'static str> {
    const LOST: &[(&str, &str)] = &[
        (
            "docker.service",
            "dockerd takes its socket from systemd (-H fd://) and needs containerd, bridges and cgroup delegation",
        ),
        ("docker.socket", "it hands dockerd its socket"),
        (
            "containerd.service",
            "it needs cgroup delegation by systemd and modules that the platform's kernel does not have",
        ),
        (
            "systemd-resolved.service",
            "names are looked up as /etc/resolv.conf says; where that leads to 127.0.0.53, put real servers into it",
        ),
        ("systemd-timesyncd.service", "the clock is set from /dev/ptp0 at boot; install chrony to keep it"),
        ("NetworkManager.service", "PID 1 sets up eth0; nothing else is configured"),
        (
            "rsyslog.service",
            "nothing passes it what services print; programs that write to /dev/log find no listener",
        ),
    ];
    LOST.iter().find(|(unit, _)| *unit == name).map(|(_, why)| *why)
}
