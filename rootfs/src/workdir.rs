//! Atomic output: everything is made in a folder beside it, and renamed into place when all is well.
//!
//! The folder's name follows from the output's, and it is locked while in use. So two runs on one output take turns, and what a
//! killed run left behind is found and removed by the next one.
//!
//! | state | on disk | what a kill leaves | who clears it |
//! |---|---|---|---|
//! | locked | `.NAME.baking/` with parts | the folder | the next run on that output |
//! | unpacked | `/dev/shm/rootfs-USER-…/`, when memory allows | that folder | the same |
//! | published | `NAME` renamed from the folder | the folder, perhaps an older `NAME.manifest.json` | the same |
//! | done | no folder | – | – |
//!
//! Ctrl-C and TERM clear it at once ([`interrupt`]).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

use crate::{interrupt, progress};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} names no file; give the path of the image to write", .0.display())]
    NoName(PathBuf),
    #[error("{} is a folder; give the path of the image to write", .0.display())]
    IsFolder(PathBuf),
    #[error("{} is {kind}, which a new image would replace; write to a file, and copy that (dd)", path.display())]
    NotFile { path: PathBuf, kind: &'static str },
    #[error("the output folder {} is missing; make it first", .0.display())]
    NoFolder(PathBuf),
    #[error("cannot write in the output folder {}", folder.display())]
    NotWritable { folder: PathBuf, source: io::Error },
    #[error("cannot {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

type Result<T> = std::result::Result<T, Error>;

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

/// A locked folder beside the output. Dropped, it and all in it are gone.
#[derive(Debug)]
pub struct Workdir {
    path: PathBuf,
    output: PathBuf,
    /// Where small trees are unpacked: in memory, under a name that follows from the output's, so that it is found again.
    memory: PathBuf,
    /// Flushes under way that began before the end.
    ahead: Mutex<Vec<(PathBuf, JoinHandle<io::Result<()>>)>>,
    /// Folders that are being removed.
    discarded: Mutex<Vec<JoinHandle<()>>>,
    /// Holds the lock.
    handle: File,
}

impl Workdir {
    /// Waits for its turn, then starts with an empty folder. `waiting` is called once if another run is at work.
    pub fn lock(output: &Path, waiting: impl FnOnce()) -> Result<Self> {
        let target = followed(output);
        let name = target.file_name().ok_or_else(|| Error::NoName(output.to_owned()))?;
        require_replaceable(&target)?;
        let parent = parent_folder(&target);
        let folder = parent.canonicalize().map_err(|_| Error::NoFolder(parent.to_owned()))?;
        let path = folder.join([".".as_ref(), name, ".baking".as_ref()].join("".as_ref()));
        let handle = acquire(&path, &folder, waiting)?;
        let output = folder.join(name);
        let (ahead, discarded) = (Mutex::default(), Mutex::default());
        let workdir = Self { memory: memory_folder(&output), output, path, ahead, discarded, handle };
        interrupt::remove_at_end(&workdir.path);
        interrupt::remove_at_end(&workdir.memory);
        workdir.clear()?;
        Ok(workdir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn output(&self) -> &Path {
        &self.output
    }

    /// The image under its temporary name.
    pub fn image(&self) -> PathBuf {
        self.path.join("image")
    }

    /// A path for a folder of `bytes` that nobody keeps: in memory when there is plenty, else in the working folder.
    pub fn staging(&self, bytes: Option<u64>) -> Result<PathBuf> {
        if !bytes.is_some_and(fits_in_memory) {
            return Ok(self.path.join("tree"));
        }
        // Fails if it exists: what somebody else made there is not used.
        match fs::DirBuilder::new().mode(0o700).create(&self.memory) {
            Ok(()) => Ok(self.memory.join("tree")),
            Err(_) => Ok(self.path.join("tree")),
        }
    }

    /// Begins to flush a file that will change only a little, so that the disk is at work before [`Workdir::publish`] waits
    /// for it.
    pub fn flush_ahead(&self, path: &Path) {
        let subject = path.to_owned();
        let thread = thread::spawn(move || File::open(subject)?.sync_data());
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner).push((path.to_owned(), thread));
    }

    /// Flushes a file again and again while it is being written, so that disk and processor are at work at the same time.
    pub fn flush_while<T>(&self, path: &Path, work: impl FnOnce() -> T) -> Result<T> {
        thread::scope(|scope| {
            let (sender, done) = mpsc::channel::<()>();
            let flusher = scope.spawn(move || flush_until(path, &done));
            let outcome = work();
            drop(sender);
            flusher.join().unwrap_or_else(|_| Err(thread_failed())).map_err(io_error("flush", path))?;
            Ok(outcome)
        })
    }

    /// Removes a folder that is not needed any more, while other work goes on.
    pub fn discard(&self, folder: &Path) {
        let folder = folder.to_owned();
        let thread = thread::spawn(move || {
            // What is left is removed at the end, or by the next run.
            let _ = fs::remove_dir_all(folder);
        });
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Gives files that were made in the folder their final names, one after the other. All are on the disk before the first
    /// is renamed.
    pub fn publish(&self, files: &[(&Path, &Path)]) -> Result<()> {
        let step = progress::step("flush", "flushing to the disk", None);
        for (path, thread) in self.ahead.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let flushed = thread.join().unwrap_or_else(|_| Err(thread_failed()));
            flushed.map_err(io_error("flush", &path))?;
        }
        for (from, _) in files {
            File::open(from).and_then(|file| file.sync_all()).map_err(io_error("flush", from))?;
        }
        drop(step);
        for (from, to) in files {
            let _step = progress::step("publish", "renaming into place", None);
            fs::rename(from, to).map_err(io_error("rename into place", to))?;
        }
        let folder = parent_folder(&self.output);
        File::open(folder).and_then(|handle| handle.sync_all()).map_err(io_error("flush", folder))
    }

    /// Removes what an earlier run left.
    fn clear(&self) -> Result<()> {
        remove_own(&self.memory);
        for entry in fs::read_dir(&self.path).map_err(io_error("read", &self.path))? {
            let entry = entry.map_err(io_error("read", &self.path))?.path();
            let removed = if entry.is_dir() && !entry.is_symlink() {
                fs::remove_dir_all(&entry)
            } else {
                fs::remove_file(&entry)
            };
            removed.map_err(io_error("remove", &entry))?;
        }
        Ok(())
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        for thread in self.discarded.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
        remove_own(&self.memory);
        // Still under the lock. A failure here leaves what the next run removes.
        let _ = fs::remove_dir_all(&self.path);
        interrupt::forget(&self.path);
        interrupt::forget(&self.memory);
        let _ = flock(&self.handle, FlockOperation::Unlock);
    }
}

fn thread_failed() -> io::Error {
    io::Error::other("the thread has failed")
}

/// Between two flushes of a file that is being written.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

fn flush_until(path: &Path, done: &mpsc::Receiver<()>) -> io::Result<()> {
    while done.recv_timeout(FLUSH_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
        match File::open(path) {
            Ok(file) => file.sync_data()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

const MEMORY: &str = "/dev/shm";

fn memory_folder(output: &Path) -> PathBuf {
    let digest = crate::hash::sha256(output.as_os_str().as_encoded_bytes());
    let user = rustix::process::getuid().as_raw();
    Path::new(MEMORY).join(format!("rootfs-{user}-{}", &digest[..24]))
}

/// A third of what is available is plenty: the page cache holds the tar and the image as well.
fn fits_in_memory(bytes: u64) -> bool {
    let free = rustix::fs::statvfs(MEMORY).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
    bytes < free / 2 && bytes < kib * 1024 / 3
}

/// Removes a folder of ours; one that belongs to somebody else, or a link, is left alone.
fn remove_own(folder: &Path) {
    let user = rustix::process::getuid().as_raw();
    if fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir() && meta.uid() == user) {
        let _ = fs::remove_dir_all(folder);
    }
}

/// What a link leads to is replaced, not the link.
fn followed(output: &Path) -> PathBuf {
    match fs::read_link(output) {
        Ok(target) => output.canonicalize().unwrap_or_else(|_| parent_folder(output).join(target)),
        Err(_) => output.to_owned(),
    }
}

fn require_replaceable(path: &Path) -> Result<()> {
    let Ok(meta) = fs::metadata(path) else { return Ok(()) };
    let kind = meta.file_type();
    if kind.is_dir() {
        return Err(Error::IsFolder(path.to_owned()));
    }
    let kind = match kind.is_block_device() {
        true => "a block device",
        false if !kind.is_file() => "no regular file",
        false => return Ok(()),
    };
    Err(Error::NotFile { path: path.to_owned(), kind })
}

fn parent_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// What an image keeps from others (/etc/shadow, keys) lies in plain files while it is made.
const PRIVATE: u32 = 0o700;

/// The folder may vanish between opening and locking it, when the run before ends: then it is made anew.
fn acquire(path: &Path, folder: &Path, waiting: impl FnOnce()) -> Result<File> {
    let mut waiting = Some(waiting);
    loop {
        match fs::DirBuilder::new().mode(PRIVATE).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::NotWritable { folder: folder.to_owned(), source: error });
            }
            _ => (),
        }
        let handle = match File::open(path) {
            Ok(handle) => handle,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(Error::Io {
                    what: "open the folder of another run,",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        if flock(&handle, FlockOperation::NonBlockingLockExclusive).is_err() {
            if let Some(say) = waiting.take() {
                say();
            }
            flock(&handle, FlockOperation::LockExclusive).map_err(|error| Error::Io {
                what: "lock",
                path: path.to_owned(),
                source: error.into(),
            })?;
        }
        let held = handle.metadata().map_err(io_error("look at", path))?;
        if fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
            // An older version's was open to all.
            let private = fs::Permissions::from_mode(PRIVATE);
            handle.set_permissions(private).map_err(io_error("make private", path))?;
            return Ok(handle);
        }
    }
}
