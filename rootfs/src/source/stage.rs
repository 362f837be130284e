//! Unpacks a tar archive into plain files.
//!
//! Nothing in the folder is trusted to be what the archive says: directories are `0700`, files `0600`, all owned by whoever runs this. Links
//! of the archive are made, and never followed: parents are looked up in the list of what was unpacked.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use guest::accounts::Accounts;

use super::{
    Contents, Error, Source, Wanted, acl,
    ahead::ReadAhead,
    lossy,
    tar::{Archive, Entry, EntryKind},
};
use crate::{copy::write_sparse, ext4::Kind, tree};

type Result<T> = std::result::Result<T, Error>;

/// How the name of a file begins that a layer of a container image takes away.
const WHITEOUT: &[u8] = b".wh.";
const MAX_LINKS: u32 = 40;
const CHUNK: usize = 256 << 10;

/// Unpacks the archive into the new folder `folder`. Times after `latest` become `latest`.
pub fn unpack(input: impl Read + Send + 'static, folder: &Path, latest: Option<i64>) -> Result<Source> {
    fs::create_dir(folder).map_err(io_error("make", folder))?;
    let mut stage = Stage::new(folder, latest);
    let mut archive = Archive::new(ReadAhead::new(input));
    while let Some(entry) = archive.next_entry()? {
        stage.add(&mut archive, &entry)?;
    }
    archive.drain()?;
    if stage.holds_layers() {
        return Err(Error::Layers);
    }
    stage.set_times()?;
    let notes = stage.translate_acls()?;
    let sha256 = archive.into_inner().finish();
    let links = stage.links.into_iter().filter(|group| group.len() > 1).collect();
    Ok(Source { folder: folder.to_owned(), contents: stage.contents, links, sha256, notes })
}

struct Stage<'a> {
    folder: &'a Path,
    latest: Option<i64>,
    contents: Contents,
    /// Names of one file, the first one first.
    links: Vec<Vec<Vec<u8>>>,
    buffer: Vec<u8>,
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

fn dir(mtime: i64) -> Wanted {
    let (device, target, xattrs) = (None, None, std::collections::BTreeMap::new());
    Wanted { kind: Kind::Dir, mode: 0o755, uid: 0, gid: 0, mtime, device, target, xattrs, size: 0 }
}

impl<'a> Stage<'a> {
    fn new(folder: &'a Path, latest: Option<i64>) -> Self {
        let contents = Contents::from([(b"/".to_vec(), dir(0))]);
        Self { folder, latest, contents, links: Vec::new(), buffer: vec![0; CHUNK] }
    }

    fn host(&self, path: &[u8]) -> PathBuf {
        self.folder.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)))
    }

    /// What `docker save` and its like write.
    fn holds_layers(&self) -> bool {
        let has = |path: &[u8]| self.contents.contains_key(path);
        (has(b"/manifest.json") || has(b"/index.json"))
            && (has(b"/blobs") || has(b"/repositories"))
            && !has(b"/usr")
    }

    fn add<R: Read>(&mut self, archive: &mut Archive<R>, entry: &Entry) -> Result<()> {
        let path = self.place(&entry.path, entry.mtime)?;
        if tree::name(&path).starts_with(WHITEOUT) {
            return Err(Error::Whiteout(lossy(&entry.path)));
        }
        let mut wanted = self.wanted(entry);
        if wanted.kind != Kind::Dir || self.contents.get(&path).is_some_and(|old| old.kind != Kind::Dir) {
            self.make_way(&path)?;
        }
        let host = self.host(&path);
        match &entry.kind {
            EntryKind::Dir => {
                if !self.contents.contains_key(&path) {
                    fs::create_dir(&host).map_err(io_error("make", &host))?;
                }
            }
            EntryKind::File => self.write_file(archive, entry, &host)?,
            EntryKind::Symlink(target) => {
                std::os::unix::fs::symlink(OsStr::from_bytes(target), &host)
                    .map_err(io_error("make the link", &host))?;
            }
            EntryKind::Fifo => make_fifo(&host)?,
            EntryKind::Hardlink(target) => wanted = self.hard_link(&path, target, &host)?,
            // Device nodes are made in the image itself.
            EntryKind::Char(..) | EntryKind::Block(..) => (),
        }
        self.contents.insert(path, wanted);
        Ok(())
    }

    fn wanted(&self, entry: &Entry) -> Wanted {
        let (kind, device, target) = match &entry.kind {
            EntryKind::File | EntryKind::Hardlink(_) => (Kind::File, None, None),
            EntryKind::Dir => (Kind::Dir, None, None),
            EntryKind::Symlink(target) => (Kind::Link, None, Some(target.clone())),
            EntryKind::Char(major, minor) => (Kind::Char, Some((*major, *minor)), None),
            EntryKind::Block(major, minor) => (Kind::Block, Some((*major, *minor)), None),
            EntryKind::Fifo => (Kind::Fifo, None, None),
        };
        let size = match (&target, kind) {
            (Some(target), _) => target.len() as u64,
            (None, Kind::File) => entry.size,
            _ => 0,
        };
        let mtime = self.latest.map_or(entry.mtime, |latest| entry.mtime.min(latest));
        let mode = if kind == Kind::Link { 0o777 } else { entry.mode };
        Wanted {
            kind,
            mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime,
            device,
            target,
            xattrs: entry.xattrs.clone(),
            size,
        }
    }

    /// The clean full path of an entry; links among its parents are followed inside the archive, missing parents are made.
    fn place(&mut self, raw: &[u8], mtime: i64) -> Result<Vec<u8>> {
        let names = clean(raw)?;
        let Some((last, parents)) = names.split_last() else { return Ok(b"/".to_vec()) };
        let mut real = b"/".to_vec();
        let mut todo: Vec<Vec<u8>> = parents.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                real = tree::parent(&real).to_vec();
                continue;
            }
            let next = tree::join(&real, &name);
            match self.contents.get(&next).map(|there| (there.kind, there.target.clone())) {
                None => {
                    let host = self.host(&next);
                    fs::create_dir(&host).map_err(io_error("make", &host))?;
                    let mtime = self.latest.map_or(mtime, |latest| mtime.min(latest));
                    self.contents.insert(next.clone(), dir(mtime));
                    real = next;
                }
                Some((Kind::Dir, _)) => real = next,
                Some((Kind::Link, Some(target))) if links < MAX_LINKS => {
                    links += 1;
                    if target.first() == Some(&b'/') {
                        real = b"/".to_vec();
                    }
                    let parts =
                        target.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
                    todo.extend(parts.rev().map(<[u8]>::to_vec));
                }
                Some(_) => return Err(Error::NotBelowDir(lossy(raw))),
            }
        }
        Ok(tree::join(&real, last))
    }

    /// A later entry replaces an earlier one of the same name.
    fn make_way(&mut self, path: &[u8]) -> Result<()> {
        let Some(old) = self.contents.remove(path) else { return Ok(()) };
        let host = self.host(path);
        if old.kind == Kind::Dir {
            fs::remove_dir(&host).map_err(|_| Error::Conflict(lossy(path)))?;
        } else if old.device.is_none() {
            fs::remove_file(&host).map_err(io_error("replace", &host))?;
        }
        for group in &mut self.links {
            group.retain(|name| name != path);
        }
        Ok(())
    }

    fn write_file<R: Read>(&mut self, archive: &mut Archive<R>, entry: &Entry, host: &Path) -> Result<()> {
        let file = File::create_new(host).map_err(io_error("write", host))?;
        let mut written = 0;
        for (at, len) in &entry.pieces {
            let mut done = 0;
            while done < *len {
                let want = (len - done).min(CHUNK as u64) as usize;
                let got = archive.read_data(&mut self.buffer[..want])?;
                let end =
                    write_sparse(&file, &self.buffer[..got], at + done).map_err(io_error("write", host))?;
                written = end.max(written);
                done += got as u64;
            }
        }
        if written == entry.size { Ok(()) } else { file.set_len(entry.size).map_err(io_error("write", host)) }
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8], host: &Path) -> Result<Wanted> {
        let real = self.place(target, 0)?;
        let missing = || Error::NoTarget { path: lossy(path), target: lossy(target) };
        let wanted = self.contents.get(&real).ok_or_else(missing)?.clone();
        if wanted.kind == Kind::Dir {
            return Err(missing());
        }
        if wanted.device.is_none() {
            fs::hard_link(self.host(&real), host).map_err(io_error("link", host))?;
        }
        match self.links.iter_mut().find(|group| group.contains(&real)) {
            Some(group) => group.push(path.to_vec()),
            None => self.links.push(vec![real, path.to_vec()]),
        }
        Ok(wanted)
    }

    /// Last, because the accounts may come behind the files. Returns what is to be said.
    fn translate_acls(&mut self) -> Result<Vec<String>> {
        let accounts = Accounts::parse(&self.text(b"/etc/passwd"), &self.text(b"/etc/group"));
        let mut notes = Vec::new();
        for (path, wanted) in &mut self.contents {
            let unknown =
                acl::translate(&mut wanted.xattrs, &accounts).map_err(|acl::Bad| Error::Acl(lossy(path)))?;
            notes.extend(unknown.into_iter().map(|name| {
                format!(
                    "the ACL of {} names `{name}`, whom the archive's accounts do not have: without that entry",
                    lossy(path)
                )
            }));
        }
        Ok(notes)
    }

    /// Of a regular file of the archive: a link could lead out of it.
    fn text(&self, path: &[u8]) -> String {
        let is_file = self.contents.get(path).is_some_and(|there| there.kind == Kind::File);
        let bytes = is_file.then(|| fs::read(self.host(path)).unwrap_or_default());
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    /// Last, because making files in a directory changes its time. (Deeper paths sort later, so backwards is right.)
    fn set_times(&self) -> Result<()> {
        for (path, wanted) in self.contents.iter().rev().filter(|(_, wanted)| wanted.device.is_none()) {
            let host = self.host(path);
            let time = Timespec { tv_sec: wanted.mtime, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &host, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| Error::Io {
                what: "set the time of",
                path: host.clone(),
                source: error.into(),
            })?;
        }
        Ok(())
    }
}

fn make_fifo(host: &Path) -> Result<()> {
    mknodat(CWD, host, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(|error| Error::Io {
        what: "make the fifo",
        path: host.to_owned(),
        source: error.into(),
    })
}

/// The names of a path, without `.` and the leading slash; `..` is refused.
fn clean(raw: &[u8]) -> Result<Vec<Vec<u8>>> {
    let names = raw.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    if names.iter().any(|name| name == b"..") { Err(Error::Escapes(lossy(raw))) } else { Ok(names) }
}
