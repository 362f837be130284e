//! What kind of image this is: machine, /usr merged or not, init, package manager, where its envd is.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use guest::trust::{self, ByFolder, Look, Owned};
use serde::Serialize;

use crate::{
    elf::{Elf, Machine},
    ext4::{self, Image, Kind, Located},
    keep::recognise::recognise,
    tree,
};

type Result<T> = std::result::Result<T, ext4::Error>;

/// Programs that tell an image's machine, in this order.
const WITNESSES: &[&str] =
    &["/bin/sh", "/bin/bash", "/bin/busybox", "/usr/bin/env", "/lib/systemd/systemd", "/sbin/init"];

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layout {
    pub machine: Option<Machine>,
    /// `/bin`, `/sbin` and `/lib` are links into `/usr`.
    pub merged_usr: bool,
    /// In words: `systemd`, `OpenRC (started by busybox)`, …
    pub init: String,
    pub packages: Packages,
    pub envd: Option<EnvdFound>,
    pub os: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Packages {
    Dpkg,
    Apk,
    Rpm,
    Pacman,
    Unknown,
}

/// An envd in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnvdFound {
    /// The real program.
    pub path: String,
    /// In the fork's layout: the wrapper beside it, which is called `envd`.
    pub shim: Option<String>,
}

/// Text that every build of our wrapper holds, so that it is never taken for an envd.
const WRAPPER_MARK: &[u8] = b"envd-wrapper \x01 this file supervises envd and is not envd \x01";

impl Layout {
    pub fn of(image: &Image) -> Result<Self> {
        Ok(Self {
            machine: machine(image)?,
            merged_usr: image.find_link(b"/sbin")?.is_some_and(|sbin| sbin.inode.kind == Kind::Link),
            init: recognise(image)?.to_string(),
            packages: packages(image)?,
            envd: envd(image)?,
            os: os_name(image)?,
        })
    }
}

fn machine(image: &Image) -> Result<Option<Machine>> {
    for path in WITNESSES {
        if let Some(bytes) = head(image, path)?
            && let Ok(Elf { machine: Some(machine), .. }) = Elf::parse(&bytes)
        {
            return Ok(Some(machine));
        }
    }
    Ok(None)
}

/// A regular file's contents, links followed; one that is too large for what is looked for is passed over.
fn head(image: &Image, path: &str) -> Result<Option<Vec<u8>>> {
    match image.find(path.as_bytes())? {
        Some(found) if found.inode.kind == Kind::File && found.inode.size <= ext4::MAX_CONTENTS => {
            image.contents(&found.inode).map(Some)
        }
        _ => Ok(None),
    }
}

fn packages(image: &Image) -> Result<Packages> {
    let known = [
        ("/var/lib/dpkg/status", Packages::Dpkg),
        ("/lib/apk/db", Packages::Apk),
        ("/usr/lib/apk/db", Packages::Apk),
        ("/var/lib/rpm", Packages::Rpm),
        ("/usr/lib/sysimage/rpm", Packages::Rpm),
        ("/var/lib/pacman", Packages::Pacman),
    ];
    for (path, packages) in known {
        if image.find(path.as_bytes())?.is_some() {
            return Ok(packages);
        }
    }
    Ok(Packages::Unknown)
}

fn os_name(image: &Image) -> Result<Option<String>> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        let Some(bytes) = head(image, path)? else { continue };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        return Ok(name.map(|name| name.trim_matches('"').to_owned()));
    }
    Ok(None)
}

/// A real program called `envd` comes before an `envd.real` beside it: an updater writes to `envd`.
fn envd(image: &Image) -> Result<Option<EnvdFound>> {
    for folder in trust::FOLDERS {
        let (plain, real) = (format!("{folder}/envd"), format!("{folder}/envd.real"));
        if is_envd(image, &plain)? {
            return Ok(Some(EnvdFound { path: plain, shim: None }));
        }
        if is_envd(image, &real)? {
            let shim = image.find(plain.as_bytes())?.map(|_| plain);
            return Ok(Some(EnvdFound { path: real, shim }));
        }
    }
    Ok(None)
}

fn is_envd(image: &Image, path: &str) -> Result<bool> {
    let is_ours = |real: &[u8]| real.starts_with(crate::manifest::HOME.as_bytes());
    if image.find(path.as_bytes())?.is_none_or(|found| is_ours(&found.real)) {
        return Ok(false);
    }
    Ok(head(image, path)?.is_some_and(|bytes| Elf::parse(&bytes).is_ok() && !is_wrapper(&bytes)))
}

/// Whether a program is our own wrapper.
pub fn is_wrapper(bytes: &[u8]) -> bool {
    // A wrapper is small; searching all of a large envd would take its time.
    bytes.len() <= 4 << 20 && memchr::memmem::find(bytes, WRAPPER_MARK).is_some()
}

/// Whether the wrapper runs envd at this path without a pin, by the one rule of both. The platform's provisioning makes all of
/// /usr/local writable to everybody, perhaps after us.
pub fn runs_unpinned(image: &Image, path: &str) -> Result<bool> {
    if path.starts_with("/usr/local/") {
        return Ok(false);
    }
    let Some(found) = image.find(path.as_bytes())? else { return Ok(true) };
    let file = Path::new(OsStr::from_bytes(&found.real));
    if tree::parent(path.as_bytes()) != trust::FOLDERS[0].as_bytes() {
        return Ok(trust::changeable_by_others(image, file)?.is_none());
    }
    let folder = image.locate(trust::FOLDERS[0].as_bytes())?.real;
    let verdict = trust::by_folder(image, Path::new(OsStr::from_bytes(&folder)), file)?;
    Ok(!matches!(verdict, ByFolder::Refused(_)))
}

impl Look for Image {
    type Error = ext4::Error;

    fn look(&self, path: &Path) -> Result<Option<Owned>> {
        let found = self.find(path.as_os_str().as_bytes())?;
        Ok(found.map(|Located { inode, .. }| Owned {
            uid: inode.uid,
            gid: inode.gid,
            mode: u32::from(inode.permissions()),
        }))
    }
}
