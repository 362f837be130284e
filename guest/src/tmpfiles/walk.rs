//! Reaches a path name by name from the root, as root, without being led astray.
//!
//! What is done here is done as root to places in which users may have put things: a link in a folder of theirs could turn
//! `chown` on /var/lib/app/x into one on /etc/shadow. So links are followed only where root alone could have made them, and
//! a step from something of one user to something of another is refused.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, mkdirat},
};

use super::Error;

/// As many links as the kernel follows.
const MAX_LINKS: u32 = 40;
const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;

/// A name in an open folder.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) folder: OwnedFd,
    pub(super) name: String,
    pub(super) path: String,
}

impl Place {
    /// What is there itself, a link too; `None` when nothing is.
    pub(super) fn stat(&self) -> Result<Option<FileStat>, Error> {
        match fstatat(&self.folder, self.name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(source) => Err(self.failed("look at", source)),
        }
    }

    pub(super) fn failed(&self, operation: &'static str, source: Errno) -> Error {
        Error::Failed { operation, path: self.path.clone(), source }
    }
}

pub(super) fn is_dir(stat: &FileStat) -> bool {
    stat.st_mode & S_IFMT == S_IFDIR
}

pub(super) fn is_link(stat: &FileStat) -> bool {
    stat.st_mode & S_IFMT == S_IFLNK
}

pub(super) fn is_file(stat: &FileStat) -> bool {
    stat.st_mode & S_IFMT == S_IFREG
}

/// How a missing folder on the way is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Leave,
}

/// The last name's folder, opened; `None` when it is missing and not to be made.
pub(super) fn reach(root: &Path, path: &str, missing: Missing) -> Result<Option<Place>, Error> {
    let mut walk = Walk::begin(root, path)?;
    while walk.names.len() > 1 {
        if !walk.step(missing)? {
            return Ok(None);
        }
    }
    let name = walk.names.pop().unwrap_or_else(|| ".".to_owned());
    Ok(Some(Place { folder: walk.at, name, path: path.to_owned() }))
}

struct Walk<'a> {
    root: &'a Path,
    path: &'a str,
    at: OwnedFd,
    owner: u32,
    /// Names still to go, the next one last.
    names: Vec<String>,
    links: u32,
}

impl<'a> Walk<'a> {
    fn begin(root: &'a Path, path: &'a str) -> Result<Self, Error> {
        let names = path.split('/').rev().filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let mut walk = Self { root, path, at: open_root(root, path)?, owner: 0, names, links: 0 };
        walk.owner = fstat(&walk.at).map_err(|source| walk.failed("look at", source))?.st_uid;
        Ok(walk)
    }

    fn failed(&self, operation: &'static str, source: Errno) -> Error {
        Error::Failed { operation, path: self.path.to_owned(), source }
    }

    /// One name further; `false` when it is missing and stays so.
    fn step(&mut self, missing: Missing) -> Result<bool, Error> {
        let Some(name) = self.names.pop() else { return Ok(true) };
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let next = match openat(&self.at, name.as_str(), flags, Mode::empty()) {
            Err(Errno::ENOENT) if missing == Missing::Leave => return Ok(false),
            Err(Errno::ENOENT) => self.make(&name, flags)?,
            other => other.map_err(|source| self.failed("reach", source))?,
        };
        let stat = fstat(&next).map_err(|source| self.failed("look at", source))?;
        if is_link(&stat) {
            return self.follow(&name, &stat).map(|()| true);
        }
        if !is_dir(&stat) {
            return Err(self.failed("reach", Errno::ENOTDIR));
        }
        if self.owner != 0 && self.owner != stat.st_uid {
            return Err(Error::Unsafe { path: self.path.to_owned(), name });
        }
        (self.at, self.owner) = (next, stat.st_uid);
        Ok(true)
    }

    fn make(&self, name: &str, flags: OFlag) -> Result<OwnedFd, Error> {
        match mkdirat(&self.at, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => (),
            Err(source) => return Err(self.failed("make the folder of", source)),
        }
        // A set-group-id bit comes down from the folder above; one that nobody asked for has none.
        let made = open_at(&self.at, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        made.and_then(|made| fchmod(made, Mode::from_bits_truncate(0o755)))
            .map_err(|source| self.failed("reach", source))?;
        openat(&self.at, name, flags, Mode::empty()).map_err(|source| self.failed("reach", source))
    }

    fn follow(&mut self, name: &str, link: &FileStat) -> Result<(), Error> {
        if self.owner != link.st_uid && link.st_uid != 0 || self.owner != 0 {
            return Err(Error::Unsafe { path: self.path.to_owned(), name: name.to_owned() });
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(self.failed("reach", Errno::ELOOP));
        }
        let target =
            readlinkat(&self.at, name).map_err(|source| self.failed("follow the link in", source))?;
        let target = target.into_string().map_err(|_| self.failed("follow the link in", Errno::EILSEQ))?;
        if target.starts_with('/') {
            (self.at, self.owner) = (open_root(self.root, self.path)?, 0);
        }
        self.names.extend(
            target.split('/').rev().filter(|name| !name.is_empty() && *name != ".").map(str::to_owned),
        );
        Ok(())
    }
}

fn open_root(root: &Path, path: &str) -> Result<OwnedFd, Error> {
    let opened = File::open(root).map(OwnedFd::from);
    opened.map_err(|source| Error::Failed {
        operation: "open the root for",
        path: path.to_owned(),
        source: Errno::from_raw(source.raw_os_error().unwrap_or_default()),
    })
}

/// Opens a file or folder for real, never through a link.
pub(super) fn open_at(folder: impl AsFd, name: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    openat(folder, name, flags, Mode::from_bits_truncate(0o600))
}
