//! A unix socket in a folder of another user, with an envd behind it that does not come round to accepting anybody: its backlog
//! is full.
#![expect(clippy::unwrap_used, reason = "a peer that cannot be made is a failed test")]

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use super::fake;

/// `nobody`, whose folders root without capabilities cannot look into.
const OTHER: u32 = 65534;

#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    /// Who waits in front of it.
    waiting: Vec<UnixStream>,
}

impl Socket {
    pub fn new(folder: &Path) -> Self {
        let folder = folder.join("others");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("s");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
        chown(&folder, Some(OTHER), Some(OTHER)).unwrap();
        // Listening again changes the backlog: 0 has room for one.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let waiting = vec![UnixStream::connect(&path).unwrap()];
        Self { path, listener, waiting }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts from now on.
    pub fn serve(self, tag: &'static str) {
        drop(self.waiting);
        thread::spawn(move || fake::serve_unix(&self.listener, tag));
    }
}
