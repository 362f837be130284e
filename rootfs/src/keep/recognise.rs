//! Which init an image boots: keep mode works with systemd and OpenRC, and names what else it meets.

use std::fmt;

use super::files::Files;
use crate::ext4::Error;

/// What the kernel would run as `/sbin/init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Init {
    Systemd,
    /// OpenRC, with the PID 1 that starts it: `openrc-init`, `sysvinit` or `busybox`.
    OpenRc {
        by: &'static str,
    },
    /// Ours: the image was baked with `INIT=native`.
    Native,
    /// An init that keep mode does not know, with its name and where `/sbin/init` leads.
    Other {
        name: String,
        path: String,
    },
    /// There is no program at `/sbin/init`, or a link that leads nowhere.
    None,
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Systemd => f.write_str("systemd"),
            Self::OpenRc { by } => write!(f, "OpenRC (started by {by})"),
            Self::Native => f.write_str("envd-init (native)"),
            Self::Other { name, path } => write!(f, "{name} ({path})"),
            Self::None => f.write_str("none"),
        }
    }
}

/// Our own PID 1, wherever links lead to it.
const OURS: &str = "/usr/lib/envd-init/init";

/// Recognises the init of an image.
pub fn recognise(files: &impl Files) -> Result<Init, Error> {
    recognise_at(files, "/sbin/init")
}

/// Recognises the init that a path leads to.
pub(crate) fn recognise_at(files: &impl Files, path: &str) -> Result<Init, Error> {
    let Some(path) = files.real(path)? else { return Ok(Init::None) };
    let name = path.rsplit('/').next().unwrap_or_default();
    Ok(match name {
        _ if path == OURS => Init::Native,
        "systemd" => Init::Systemd,
        "openrc-init" => Init::OpenRc { by: "openrc-init" },
        "busybox" | "busybox.static" if inittab_starts_openrc(files)? => Init::OpenRc { by: "busybox" },
        "busybox" | "busybox.static" => other("busybox", path),
        "runit" | "runit-init" => other("runit", path),
        "s6-svscan" | "s6-linux-init" | "dinit" | "finit" => other(&name.to_owned(), path),
        _ => by_contents(files, path)?,
    })
}

fn other(name: &str, path: String) -> Init {
    Init::Other { name: name.to_owned(), path }
}

/// A program that is plainly called `init` tells by its own text who it is.
fn by_contents(files: &impl Files, path: String) -> Result<Init, Error> {
    let Some(bytes) = files.read(&path)? else { return Ok(Init::None) }; // a folder
    if bytes.starts_with(b"#!") {
        return Ok(other("a script", path));
    }
    // In this order: busybox and sysvinit name others in their messages, the first two are named by nobody else's.
    if holds(&bytes, b"libsystemd-shared") {
        return Ok(Init::Systemd);
    }
    if holds(&bytes, b"OpenRC init version") {
        return Ok(Init::OpenRc { by: "openrc-init" });
    }
    let by = if holds(&bytes, b"BusyBox") {
        "busybox"
    } else if holds(&bytes, b"/etc/inittab") {
        "sysvinit"
    } else {
        return Ok(other("an unknown program", path));
    };
    Ok(if inittab_starts_openrc(files)? { Init::OpenRc { by } } else { other(by, path) })
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(bytes, needle).is_some()
}

/// Alpine's inittab calls `/sbin/openrc` itself; Debian's calls `/etc/init.d/rc`, which OpenRC replaces.
fn inittab_starts_openrc(files: &impl Files) -> Result<bool, Error> {
    let inittab = files.text("/etc/inittab")?.unwrap_or_default();
    let mut commands = inittab.lines().filter(|line| !line.trim_start().starts_with('#'));
    if commands.clone().any(|line| line.contains("/openrc")) {
        return Ok(true);
    }
    let calls_rc = commands.any(|line| line.contains("/etc/init.d/rc"));
    Ok(calls_rc && files.text("/etc/init.d/rc")?.is_some_and(|script| script.contains("openrc")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keep::files::fake::FakeFiles;

    fn image(path: &str, contents: &str) -> FakeFiles {
        FakeFiles::default().to("/sbin/init", path).file(path, contents)
    }

    #[test]
    fn the_inits_of_real_distributions_are_recognised() {
        let debian = image("/usr/lib/systemd/systemd", "\x7fELF");
        assert_eq!(recognise(&debian).unwrap(), Init::Systemd);
        let openrc = image("/usr/sbin/openrc-init", "\x7fELF");
        assert_eq!(recognise(&openrc).unwrap(), Init::OpenRc { by: "openrc-init" });
        let alpine =
            image("/bin/busybox", "\x7fELF").file("/etc/inittab", "::sysinit:/sbin/openrc sysinit\n");
        assert_eq!(recognise(&alpine).unwrap(), Init::OpenRc { by: "busybox" });
        let devuan = FakeFiles::default()
            .file("/sbin/init", "\x7fELF … /etc/inittab …")
            .file("/etc/inittab", "l2:2:wait:/etc/init.d/rc 2\n")
            .file("/etc/init.d/rc", "exec /sbin/openrc default\n");
        assert_eq!(recognise(&devuan).unwrap(), Init::OpenRc { by: "sysvinit" });
        assert_eq!(recognise(&image(OURS, "\x7fELF")).unwrap(), Init::Native);
    }

    #[test]
    fn what_is_neither_is_named() {
        let name = |tree: FakeFiles| recognise(&tree).unwrap().to_string();
        assert_eq!(name(image("/bin/busybox", "")), "busybox (/bin/busybox)");
        assert_eq!(name(image("/sbin/runit-init", "")), "runit (/sbin/runit-init)");
        assert_eq!(name(image("/opt/start", "#!/bin/sh\n")), "a script (/opt/start)");
        assert_eq!(name(image("/opt/start", "\x7fELF")), "an unknown program (/opt/start)");
        let sysvinit = FakeFiles::default().file("/sbin/init", "\x7fELF /etc/inittab");
        assert_eq!(name(sysvinit), "sysvinit (/sbin/init)");
        assert_eq!(name(FakeFiles::default()), "none");
        assert_eq!(name(FakeFiles::default().to("/sbin/init", "/lib/systemd/systemd")), "none", "dangling");
    }

    #[test]
    fn an_inittab_that_only_mentions_openrc_in_a_comment_is_not_openrc() {
        let tree = image("/bin/busybox", "").file("/etc/inittab", "# was: /sbin/openrc sysinit\n");
        assert!(matches!(recognise(&tree).unwrap(), Init::Other { .. }));
    }
}
