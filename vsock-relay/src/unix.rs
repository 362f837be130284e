//! Paths of unix sockets that do not fit `sun_path` (107 bytes) are reached through their folder's descriptor.
//!
//! A VMM's socket often lies deep: `/proc/4711/root/srv/…/v.sock`. `/proc/self/fd/N/v.sock` names the same file.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

/// The longest path (bytes) that fits `sun_path` with its closing zero.
pub const MAX_SUN_PATH: usize = 107;

/// A name that fits `sun_path`, valid while this value lives.
#[derive(Debug)]
pub struct ShortPath {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

impl ShortPath {
    /// Opens the folder when the path is too long.
    pub fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= MAX_SUN_PATH {
            return Ok(Self { path: path.to_owned(), _folder: None });
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let folder =
            rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _folder: Some(folder) })
    }

    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// Removes a socket file that nobody listens on any more. `AddrInUse` when somebody does, or when it is no socket.
pub fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::{fs::FileTypeExt, net::UnixStream};

    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::from(io::ErrorKind::AddrInUse));
    }
    match UnixStream::connect(ShortPath::new(path)?.as_path()) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::AddrInUse)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn deep_folder(base: &Path) -> PathBuf {
        let folder = base.join("d".repeat(90)).join("e".repeat(90));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_path_longer_than_sun_path_is_bound_and_reached() {
        let base = tempfile::tempdir().unwrap();
        let path = deep_folder(base.path()).join("v.sock");
        let listener = UnixListener::bind(ShortPath::new(&path).unwrap().as_path()).unwrap();
        UnixStream::connect(ShortPath::new(&path).unwrap().as_path()).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn a_stale_socket_is_removed_and_one_in_use_or_a_plain_file_is_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(remove_stale(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        remove_stale(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(remove_stale(&path).is_err());
        assert!(path.exists());
    }
}
