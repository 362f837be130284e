//! What becomes of an image's OpenRC services: its scripts are code, so each is known by name, or lost.

use std::collections::BTreeMap;

use super::{Report, Verdict, command::Exec, known, service::Definition};
use crate::{ext4::Error, keep::files::Files};

/// What OpenRC goes through at boot, in this order.
const RUNLEVELS: [&str; 3] = ["sysinit", "boot", "default"];
const LOCAL: &str = "/etc/local.d";

const MOUNTS: &str = "PID 1 mounts what the kernel offers; other lines of fstab are named by themselves";
const NETWORK: &str = "PID 1 sets up lo and eth0";
const NODES: &str = "the kernel makes the device nodes; sandboxes have no hotplug";
const MODULES: &str = "the platform's kernel has no modules";
const SCREEN: &str = "sandboxes have no screen";
const SEED: &str = "PID 1 seeds the kernel from a source that differs for each clone";
const CLOCK: &str = "PID 1 sets the clock from /dev/ptp0";

/// How PID 1 covers a service; names may end in `*`.
const COVERED: &[(&str, &str)] = &[
    ("envd", "envd runs under envd-wrapper"),
    ("envd-init-relay", "the relay is a service of PID 1"),
    ("sysfs", MOUNTS),
    ("sysfsconf", MOUNTS),
    ("procfs", MOUNTS),
    ("cgroups", MOUNTS),
    ("root", MOUNTS),
    ("localmount", MOUNTS),
    ("netmount", MOUNTS),
    ("mtab", MOUNTS),
    ("swap", MOUNTS),
    ("fsck", "images are checked when they are baked"),
    ("devfs", NODES),
    ("dev", NODES),
    ("mdev", NODES),
    ("udev*", NODES),
    ("hwdrivers", MODULES),
    ("modules*", MODULES),
    ("binfmt", "the platform's kernel has no binfmt_misc"),
    ("bootmisc", "PID 1 makes /run and /tmp ready"),
    ("hostname", "PID 1 sets the name in /etc/hostname"),
    ("machine-id", "PID 1 makes a missing machine-id"),
    ("sysctl", "PID 1 applies sysctl.d"),
    ("loopback", NETWORK),
    ("networking", NETWORK),
    ("ifupdown-ng", NETWORK),
    ("net.lo", NETWORK),
    ("net.eth*", NETWORK),
    ("eth*", NETWORK),
    ("seedrng", SEED),
    ("urandom", SEED),
    ("hwclock", CLOCK),
    ("swclock", CLOCK),
    ("osclock", CLOCK),
    ("keymaps", SCREEN),
    ("loadkmap", SCREEN),
    ("save-keymaps", SCREEN),
    ("consolefont", SCREEN),
    ("numlock", SCREEN),
    ("termencoding", SCREEN),
    ("save-termencoding", SCREEN),
    ("dmesg", "PID 1 leaves the kernel's messages as the command line says"),
    ("acpid", "the platform's machine sends no ACPI events"),
];

/// A daemon of busybox: what its script in Alpine runs, said here once more, since a script cannot be turned.
struct Busybox {
    name: &'static str,
    description: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    after: &'static [&'static str],
}

const BUSYBOX: &[Busybox] = &[
    Busybox {
        name: "crond",
        description: "busybox's cron",
        program: "/usr/sbin/crond",
        arguments: &["-f", "$CRON_OPTS"],
        after: &["syslog"],
    },
    Busybox {
        name: "klogd",
        description: "busybox's kernel log",
        program: "/sbin/klogd",
        arguments: &["-n", "$KLOGD_OPTS"],
        after: &["syslog"],
    },
    Busybox {
        name: "syslog",
        description: "busybox's system log",
        program: "/sbin/syslogd",
        arguments: &["-n", "$SYSLOGD_OPTS"],
        after: &[],
    },
];

impl Busybox {
    /// The one that a script starts: another package's script of this name runs another program.
    fn find(files: &impl Files, name: &str) -> Result<Option<&'static Self>, Error> {
        let Some(found) = BUSYBOX.iter().find(|known| known.name == name) else { return Ok(None) };
        let is_busybox = files.real(found.program)?.is_some_and(|path| path.ends_with("/busybox"));
        Ok(is_busybox.then_some(found))
    }

    fn definition(&self) -> Definition {
        let words = [&[self.program], self.arguments].concat();
        Definition {
            name: self.name.to_owned(),
            unit: self.name.to_owned(),
            description: self.description.to_owned(),
            main: Exec { words: words.into_iter().map(str::to_owned).collect(), ..Exec::default() },
            launch: vec!["--environment-file".to_owned(), format!("-/etc/conf.d/{}", self.name)],
            keys: BTreeMap::from([("restart", "\"always\"".to_owned())]),
            after: self.after.iter().map(|name| (*name).to_owned()).collect(),
            ..Definition::default()
        }
    }
}

/// Services that would start at boot, each once; what is made for them comes into `definitions`.
pub(super) fn reports(files: &impl Files, definitions: &mut Vec<Definition>) -> Result<Vec<Report>, Error> {
    let mut services = BTreeMap::new();
    for level in RUNLEVELS {
        for name in files.names(&format!("/etc/runlevels/{level}"))? {
            services.entry(name).or_insert(level);
        }
    }
    let mut reports = Vec::new();
    for (name, level) in services {
        let verdict = match Busybox::find(files, &name)? {
            Some(found) => {
                definitions.push(found.definition());
                Verdict::Convertible { service: name.clone(), dropped: Vec::new() }
            }
            None => judge(files, &name)?,
        };
        reports.push(Report { unit: name, by: format!("runlevel {level}"), verdict });
    }
    Ok(reports)
}

fn judge(files: &impl Files, name: &str) -> Result<Verdict, Error> {
    if let Some(service) = known::shipped_for(files, &format!("{name}.service"))? {
        return Ok(Verdict::Shipped { service: service.to_owned() });
    }
    if name == "local" {
        return local(files);
    }
    Ok(match covered(name) {
        Some(how) => Verdict::Covered { how: how.to_owned() },
        None => Verdict::Lost { why: "scripts of OpenRC are not run; write a file of services.d".into() },
    })
}

/// How PID 1 covers what a script of this name does.
pub(super) fn covered(name: &str) -> Option<&'static str> {
    COVERED.iter().find(|(pattern, _)| known::matches(pattern, name)).map(|(_, how)| *how)
}

/// `local` itself does nothing: it runs what lies in a folder.
fn local(files: &impl Files) -> Result<Verdict, Error> {
    let names = files.names(LOCAL)?;
    let scripts: Vec<&str> =
        names.iter().filter(|name| name.ends_with(".start")).map(String::as_str).collect();
    Ok(if scripts.is_empty() {
        Verdict::Covered { how: format!("there is nothing to start in {LOCAL}") }
    } else {
        let why = format!("{LOCAL} is not run ({}); write a file of services.d", scripts.join(", "));
        Verdict::Lost { why }
    })
}
