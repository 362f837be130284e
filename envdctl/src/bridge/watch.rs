//! Notices that the configuration changed: by watching the folder, and by SIGHUP.

use std::{
    ffi::OsStr,
    io,
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::{io::Interest, time::sleep};

use super::{
    config::is_config,
    connect::{Stream, adopt},
};

/// A change is often several events: files are written, then renamed. They are taken together.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Watch {
    inotify: Stream,
    /// The one file that matters, where the configuration is a file.
    file: Option<PathBuf>,
}

impl Watch {
    /// Watches a folder, or the folder of a file: editors replace files rather than write into them.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let is_folder = path.is_dir();
        let folder = if is_folder {
            path
        } else {
            path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
        };
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE;
        inotify::add_watch(&inotify, folder, flags)?;
        let file = if is_folder { None } else { path.file_name().map(PathBuf::from) };
        Ok(Self { inotify: adopt(inotify)?, file })
    }

    /// Ends when something that matters has changed, and has settled.
    pub(super) async fn changed(&self) {
        loop {
            let matters = self.inotify.async_io(Interest::READABLE, || self.read()).await;
            match matters {
                Ok(true) => break,
                Ok(false) => {}
                Err(_) => return std::future::pending().await,
            }
        }
        sleep(SETTLE).await;
        let _ = self.read();
    }

    /// Takes the events that are there; whether one of them matters.
    fn read(&self) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut space);
        let mut matters = false;
        loop {
            let event = reader.next()?;
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            matters |= name.is_none_or(|name| self.matters(Path::new(name)));
            if reader.is_buffer_empty() {
                return Ok(matters);
            }
        }
    }

    fn matters(&self, name: &Path) -> bool {
        self.file.as_deref().map_or_else(|| is_config(name), |file| file == name)
    }
}
