//! Notices that the configuration changed: by watching the folder, and by SIGHUP.
//!
//! | watched is | leaves |
//! |---|---|
//! | the folder (of the file) | deleted or moved away → a change; renewed → as below |
//! | for a folder that is not there: its parent | the folder is there again → a change; renewed → the folder |
//! | nothing: the parent is not there either | renewed, now and then |
//!
//! A change counts as told only when [`Watch::changed`] has returned: whoever gives up waiting for it hears of it the next time.

use std::{
    ffi::OsStr,
    io,
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::{io::Interest, time::sleep};

use super::{
    config::is_config,
    connect::{Stream, adopt},
};

/// A change is often several events: files are written, then renamed. They are taken together.
const SETTLE: Duration = Duration::from_millis(100);

const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

#[derive(Debug)]
pub(super) struct Watch {
    inotify: Stream,
    path: PathBuf,
    /// What is watched now, by the kernel's number for it.
    watched: Option<i32>,
    /// The one file there that matters, where the configuration is no folder.
    file: Option<PathBuf>,
    /// A change was seen that has not been told.
    pending: bool,
}

impl Watch {
    /// Watches a folder, or the folder of a file: editors replace files rather than write into them.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let inotify = adopt(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)?;
        let mut watch = Self { inotify, path: path.to_owned(), watched: None, file: None, pending: false };
        watch.renew()?;
        Ok(watch)
    }

    /// Watches what is at the path now: a watch stays on the folder that was there, though it was deleted or moved away.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        loop {
            let is_folder = self.path.is_dir();
            self.watch(is_folder)?;
            // What appeared just before it was watched has given no event.
            if self.path.is_dir() == is_folder {
                return Ok(());
            }
        }
    }

    fn watch(&mut self, is_folder: bool) -> io::Result<()> {
        let parent = || self.path.parent().filter(|path| !path.as_os_str().is_empty());
        let folder = if is_folder { &self.path } else { parent().unwrap_or(Path::new(".")) };
        let added = inotify::add_watch(&self.inotify, folder, EVENTS);
        let before = std::mem::replace(&mut self.watched, added.ok());
        if let Some(before) = before.filter(|before| added != Ok(*before)) {
            // An error: it went with its folder.
            let _ = inotify::remove_watch(&self.inotify, before);
        }
        self.file = if is_folder { None } else { self.path.file_name().map(PathBuf::from) };
        added.map(drop).map_err(io::Error::from)
    }

    /// Ends when something that matters has changed, and has settled.
    pub(super) async fn changed(&mut self) {
        while !self.pending {
            match self.inotify.async_io(Interest::READABLE, || self.read()).await {
                Ok(matters) => self.pending = matters,
                Err(_) => return std::future::pending().await,
            }
        }
        sleep(SETTLE).await;
        let _ = self.read();
        self.pending = false;
    }

    /// Takes the events that are there; whether one of them matters.
    fn read(&self) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut space);
        let mut matters = false;
        loop {
            let event = reader.next()?;
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            // What was watched before matters no more; when events were lost, anything may have happened.
            let watched =
                Some(event.wd()) == self.watched || event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            matters |= watched && name.is_none_or(|name| self.matters(Path::new(name)));
            if reader.is_buffer_empty() {
                return Ok(matters);
            }
        }
    }

    fn matters(&self, name: &Path) -> bool {
        self.file.as_deref().map_or_else(|| is_config(name), |file| file == name)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// What is awaited is given up whenever something else comes first; the events have been taken by then.
    #[tokio::test]
    async fn a_change_is_told_although_the_one_who_waited_for_it_was_called_away() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(folder.path()).unwrap();
        std::fs::write(folder.path().join("a.toml"), "").unwrap();
        if timeout(SETTLE / 2, watch.changed()).await.is_ok() {
            return; // this machine was so slow that it had settled
        }
        timeout(SETTLE * 100, watch.changed()).await.expect("the change is told");
        let told_again = timeout(SETTLE * 2, watch.changed()).await;
        assert!(told_again.is_err(), "once");
    }

    #[tokio::test]
    async fn a_folder_that_is_deleted_or_moved_away_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        for change in [
            |path: &Path| std::fs::remove_dir(path),
            |path: &Path| std::fs::rename(path, path.with_extension("old")),
        ] {
            let path = folder.path().join("bridge.d");
            std::fs::create_dir(&path).unwrap();
            let mut watch = Watch::new(&path).unwrap();
            change(&path).unwrap();
            timeout(SETTLE * 100, watch.changed()).await.expect("the change is told");
        }
    }
}
