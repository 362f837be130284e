//! Mode and owner of one thing.

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat},
    unistd::{Gid, Uid, fchownat},
};

use super::{
    Error,
    line::{self, Line, Owner},
    walk::{self, Place},
};
use crate::accounts::Accounts;

const PERMISSIONS: u32 = 0o7777;

/// What a line wants, with ids for names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    mode: Option<line::Mode>,
    uid: Option<(u32, bool)>,
    gid: Option<(u32, bool)>,
}

impl Wanted {
    pub(super) fn of(line: &Line, accounts: &Accounts) -> Result<Self, Error> {
        let missing = |kind, owner: &Owner| Error::NoAccount {
            kind,
            name: owner.name.clone(),
            path: line.path.clone(),
        };
        let uid = line.user.as_ref().map(|owner| {
            let uid = accounts.uid(&owner.name).ok_or_else(|| missing("user", owner))?;
            Ok((uid, owner.only_new))
        });
        let gid = line.group.as_ref().map(|owner| {
            let gid = accounts.gid(&owner.name).ok_or_else(|| missing("group", owner))?;
            Ok((gid, owner.only_new))
        });
        Ok(Self { mode: line.mode, uid: uid.transpose()?, gid: gid.transpose()? })
    }

    /// Permission bits for something that is made anew.
    pub(super) fn new_mode(&self, default: u32) -> Mode {
        Mode::from_bits_truncate(self.mode.map_or(default, |mode| mode.bits))
    }

    /// Gives it to what is at a place; a link is left as it is.
    pub(super) fn apply(&self, place: &Place, new: bool) -> Result<(), Error> {
        let Some(stat) = place.stat()? else { return Ok(()) };
        if walk::is_link(&stat) {
            return Ok(());
        }
        let applies = |only_new: bool| new || !only_new;
        let pick =
            |wanted: Option<(u32, bool)>| wanted.filter(|(_, only_new)| applies(*only_new)).map(|(id, _)| id);
        let (uid, gid) =
            (pick(self.uid).filter(|id| *id != stat.st_uid), pick(self.gid).filter(|id| *id != stat.st_gid));
        let mode = self.mode.filter(|mode| applies(mode.only_new)).map(|mode| bits(mode, &stat, new));
        let mode = mode.filter(|bits| *bits != stat.st_mode & PERMISSIONS || uid.or(gid).is_some());
        if uid.or(gid).or(mode).is_none() {
            return Ok(());
        }
        if walk::is_file(&stat) && stat.st_nlink > 1 && !new {
            return Err(Error::HardLink { path: place.path.clone() });
        }
        change(place, &stat, uid, gid, mode)
    }
}

/// `~` takes away what the existing thing gives to nobody, and special bits from what is no folder.
fn bits(mode: line::Mode, stat: &FileStat, new: bool) -> u32 {
    let mut bits = mode.bits;
    if mode.masked && !new {
        for kind in [0o111, 0o222, 0o444] {
            if stat.st_mode & kind == 0 {
                bits &= !kind;
            }
        }
        if !walk::is_dir(stat) {
            bits &= 0o777;
        }
    }
    bits
}

/// The owner first: changing it clears special bits.
fn change(
    place: &Place,
    stat: &FileStat,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
) -> Result<(), Error> {
    if uid.or(gid).is_some() {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        fchownat(&place.folder, place.name.as_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|source| place.failed("change the owner of", source))?;
    }
    match mode {
        Some(bits) => {
            change_mode(place, stat, bits).map_err(|source| place.failed("change the mode of", source))
        }
        None => Ok(()),
    }
}

fn change_mode(place: &Place, stat: &FileStat, bits: u32) -> Result<(), Errno> {
    let mode = Mode::from_bits_truncate(bits);
    if walk::is_dir(stat) || walk::is_file(stat) {
        let open = walk::open_at(&place.folder, &place.name, OFlag::O_RDONLY)?;
        return fchmod(open, mode);
    }
    // Sockets cannot be opened, and opening a device may do something.
    fchmodat(&place.folder, place.name.as_str(), mode, FchmodatFlags::FollowSymlink)
}
