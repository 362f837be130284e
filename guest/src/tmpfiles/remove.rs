//! Removing trees: never through a link, never into another filesystem.

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::stat::{FileStat, Mode, fstat, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{
    Error,
    walk::{self, Place},
};

/// Removes a file, a link or an empty folder; a folder that is not empty stays, and that is no failure.
pub(super) fn one(place: &Place) -> Result<(), Error> {
    let Some(stat) = place.stat()? else { return Ok(()) };
    match unlink(&place.folder, &place.name, &stat) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        Err(source) => Err(place.failed("remove", source)),
    }
}

/// Removes a tree with its root.
pub(super) fn tree(place: &Place) -> Result<(), Error> {
    let Some(stat) = place.stat()? else { return Ok(()) };
    if walk::is_dir(&stat) {
        contents(place)?;
    }
    match unlink(&place.folder, &place.name, &stat) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(source) => Err(place.failed("remove", source)),
    }
}

/// Empties a folder.
pub(super) fn contents(place: &Place) -> Result<(), Error> {
    let failed = |source| place.failed("empty", source);
    let mut folder = match open_dir(&place.folder, &place.name) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
        other => other.map_err(failed)?,
    };
    let device = fstat(&folder).map_err(failed)?.st_dev;
    empty(&mut folder, device).map_err(failed)
}

fn open_dir(folder: impl std::os::fd::AsFd, name: &str) -> Result<Dir, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Dir::openat(folder, name, flags, Mode::empty())
}

/// Goes on after a failure, so that one stubborn file does not keep the rest; the first failure is returned.
fn empty(folder: &mut Dir, device: u64) -> Result<(), Errno> {
    let entries: Vec<_> = folder.iter().flatten().collect();
    let mut result = Ok(());
    for entry in entries {
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        let stat = fstatat(&*folder, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let removed = match stat {
            Ok(stat) if stat.st_dev != device => Ok(()), // something is mounted there
            Ok(stat) => remove(folder, name, &stat, device),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) | Err(Errno::ENOENT | Errno::EBUSY) => (),
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}

fn remove(folder: &Dir, name: &std::ffi::CStr, stat: &FileStat, device: u64) -> Result<(), Errno> {
    if walk::is_dir(stat) {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        empty(&mut Dir::openat(folder, name, flags, Mode::empty())?, device)?;
    }
    unlinkat(folder, name, flags_for(stat))
}

fn unlink(folder: impl std::os::fd::AsFd, name: &str, stat: &FileStat) -> Result<(), Errno> {
    unlinkat(folder, name, flags_for(stat))
}

fn flags_for(stat: &FileStat) -> UnlinkatFlags {
    if walk::is_dir(stat) { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir }
}

/// A name in a folder, and what it is where the filesystem says.
pub(super) type Named = (String, Option<Type>);

/// The names in a folder with what they are, for recursive changes.
pub(super) fn names(place: &Place) -> Result<(Dir, Vec<Named>), Error> {
    let failed = |source| place.failed("read", source);
    let mut folder = open_dir(&place.folder, &place.name).map_err(failed)?;
    let entries = folder.iter().flatten();
    let named =
        entries.filter_map(|entry| Some((entry.file_name().to_str().ok()?.to_owned(), entry.file_type())));
    let names = named.filter(|(name, _)| name != "." && name != "..").collect();
    Ok((folder, names))
}
