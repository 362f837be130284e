//! Does what lines say.

use std::{fs::File, io::Write as _, os::fd::OwnedFd, path::Path};

use nix::{
    dir::Type,
    errno::Errno,
    fcntl::{AtFlags, OFlag, readlinkat},
    sys::stat::{fchmod, fstatat, mkdirat},
    unistd::{mkfifoat, symlinkat},
};

use super::{
    Error,
    line::{Kind, Line},
    perms::Wanted,
    remove,
    walk::{self, Missing, Place},
};
use crate::{accounts::Accounts, glob};

/// Where it is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) root: &'a Path,
    pub(super) accounts: &'a Accounts,
}

type Report<'a> = &'a mut dyn FnMut(Error);

impl Machine<'_> {
    /// Removes what a line wants gone at boot.
    pub(super) fn remove(&self, line: &Line, report: Report<'_>) {
        let how: fn(&Place) -> Result<(), Error> = match line.kind {
            Kind::Dir { empty: true } => remove::contents,
            Kind::Remove { recursive: false } => remove::one,
            Kind::Remove { recursive: true } => remove::tree,
            _ => return,
        };
        for path in self.paths(line) {
            let removed = walk::reach(self.root, &path, Missing::Leave)
                .and_then(|place| place.map_or(Ok(()), |place| how(&place)));
            removed.unwrap_or_else(&mut *report);
        }
    }

    /// Makes or changes what a line says.
    pub(super) fn create(&self, line: &Line, report: Report<'_>) {
        for path in self.paths(line) {
            self.at(line, &path).unwrap_or_else(&mut *report);
        }
    }

    /// The line's path, or what its pattern finds.
    fn paths(&self, line: &Line) -> Vec<String> {
        if line.kind.globs() && glob::is_pattern(&line.path) {
            glob::matches(self.root, &line.path)
        } else {
            vec![line.path.clone()]
        }
    }

    fn at(&self, line: &Line, path: &str) -> Result<(), Error> {
        match line.kind {
            Kind::Remove { .. } | Kind::Ignore => return Ok(()),
            Kind::Other(letter) => return self.other(letter, line, path),
            _ => (),
        }
        let missing = if line.kind.globs() { Missing::Leave } else { Missing::Make };
        let Some(place) = walk::reach(self.root, path, missing)? else { return Ok(()) };
        let wanted = Wanted::of(line, self.accounts)?;
        match line.kind {
            Kind::Dir { .. } => dir(&place, &wanted, line),
            Kind::File { truncate } => file(&place, &wanted, line, truncate),
            Kind::Link { replace } => link(&place, line, replace),
            Kind::Fifo { replace } => fifo(&place, &wanted, replace || line.replace_type),
            Kind::Write { append } => write(&place, line, append),
            Kind::Adjust { recursive: true } => recurse(&place, &wanted),
            _ => wanted.apply(&place, false),
        }
    }

    /// A type that is not done is worth a word only where it would do something.
    fn other(&self, letter: char, line: &Line, path: &str) -> Result<(), Error> {
        let would_act = match letter {
            't' | 'T' | 'h' | 'H' | 'a' | 'A' => self.exists(path)?,
            'C' => {
                let factory = format!("/usr/share/factory{path}");
                !self.exists(path)? && self.exists(line.argument.as_deref().unwrap_or(&factory))?
            }
            _ => !self.exists(path)?,
        };
        if would_act { Err(Error::NotDone { letter, path: path.to_owned() }) } else { Ok(()) }
    }

    fn exists(&self, path: &str) -> Result<bool, Error> {
        let place = walk::reach(self.root, path, Missing::Leave)?;
        Ok(place.map(|place| place.stat()).transpose()?.flatten().is_some())
    }
}

fn dir(place: &Place, wanted: &Wanted, line: &Line) -> Result<(), Error> {
    match mkdirat(&place.folder, place.name.as_str(), wanted.new_mode(0o755)) {
        Ok(()) => return wanted.apply(place, true),
        Err(Errno::EEXIST) => (),
        Err(source) => return Err(place.failed("make the folder", source)),
    }
    let stat = place.stat()?;
    if stat.as_ref().is_some_and(walk::is_dir) {
        return wanted.apply(place, false);
    }
    if line.replace_type {
        remove::tree(place)?;
        mkdirat(&place.folder, place.name.as_str(), wanted.new_mode(0o755))
            .map_err(|source| place.failed("make the folder", source))?;
        return wanted.apply(place, true);
    }
    // A link to a folder serves as well as a folder; its mode is its own business.
    let leads_to_folder = fstatat(&place.folder, place.name.as_str(), AtFlags::empty());
    if leads_to_folder.is_ok_and(|stat| walk::is_dir(&stat)) {
        return Ok(());
    }
    Err(Error::InTheWay { path: place.path.clone(), wanted: "folder" })
}

fn file(place: &Place, wanted: &Wanted, line: &Line, truncate: bool) -> Result<(), Error> {
    let there = place.stat()?;
    if there.as_ref().is_some_and(|stat| !walk::is_file(stat)) {
        if !line.replace_type {
            return Err(Error::InTheWay { path: place.path.clone(), wanted: "file" });
        }
        remove::tree(place)?;
    }
    let new = !there.as_ref().is_some_and(walk::is_file);
    if new || truncate {
        let flags = if new { OFlag::O_CREAT | OFlag::O_EXCL } else { OFlag::O_TRUNC };
        let open = walk::open_at(&place.folder, &place.name, OFlag::O_WRONLY | flags);
        let open = open.map_err(|source| place.failed("make", source))?;
        if new {
            let mode = wanted.new_mode(0o644);
            fchmod(&open, mode).map_err(|source| place.failed("change the mode of", source))?;
        }
        fill(place, open, line)?;
    }
    wanted.apply(place, new)
}

fn fill(place: &Place, open: OwnedFd, line: &Line) -> Result<(), Error> {
    let Some(argument) = &line.argument else { return Ok(()) };
    let written = File::from(open).write_all(argument.as_bytes());
    written.map_err(|error| place.failed("write", Errno::from_raw(error.raw_os_error().unwrap_or_default())))
}

fn write(place: &Place, line: &Line, append: bool) -> Result<(), Error> {
    let flags = OFlag::O_WRONLY | if append { OFlag::O_APPEND } else { OFlag::empty() };
    match walk::open_at(&place.folder, &place.name, flags) {
        Ok(open) => fill(place, open, line),
        Err(Errno::ENOENT) => Ok(()),
        Err(source) => Err(place.failed("write", source)),
    }
}

fn link(place: &Place, line: &Line, replace: bool) -> Result<(), Error> {
    let factory = format!("/usr/share/factory{}", line.path);
    let target = line.argument.as_deref().unwrap_or(&factory);
    let make = || symlinkat(target, &place.folder, place.name.as_str());
    match make() {
        Ok(()) => return Ok(()),
        Err(Errno::EEXIST) => (),
        Err(source) => return Err(place.failed("make the link", source)),
    }
    let there = readlinkat(&place.folder, place.name.as_str());
    if there.is_ok_and(|there| there == target) || !replace {
        return Ok(());
    }
    remove::tree(place)?;
    make().map_err(|source| place.failed("make the link", source))
}

fn fifo(place: &Place, wanted: &Wanted, replace: bool) -> Result<(), Error> {
    let make = || mkfifoat(&place.folder, place.name.as_str(), wanted.new_mode(0o644));
    match make() {
        Ok(()) => return wanted.apply(place, true),
        Err(Errno::EEXIST) => (),
        Err(source) => return Err(place.failed("make the pipe", source)),
    }
    if place.stat()?.is_some_and(|stat| stat.st_mode & 0o170_000 == 0o010_000) {
        return wanted.apply(place, false);
    }
    if !replace {
        return Err(Error::InTheWay { path: place.path.clone(), wanted: "pipe" });
    }
    remove::tree(place)?;
    make().map_err(|source| place.failed("make the pipe", source))?;
    wanted.apply(place, true)
}

/// The thing and all that is in it. Goes on after a failure; the first one is returned.
fn recurse(place: &Place, wanted: &Wanted) -> Result<(), Error> {
    let Some(stat) = place.stat()? else { return Ok(()) };
    let mut result = wanted.apply(place, false);
    if walk::is_dir(&stat) {
        let (folder, names) = remove::names(place)?;
        for (name, kind) in names {
            if kind == Some(Type::Symlink) {
                continue;
            }
            let path = format!("{}/{name}", place.path);
            let folder = walk::open_at(&folder, ".", OFlag::O_RDONLY)
                .map_err(|source| place.failed("read", source))?;
            result = result.and(recurse(&Place { folder, name, path }, wanted));
        }
    }
    result
}
