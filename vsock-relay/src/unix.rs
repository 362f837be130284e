//! Paths of unix sockets that do not fit `sun_path` (107 bytes) are reached through their folder's descriptor.
//!
//! A VMM's socket often lies deep: `/proc/4711/root/srv/…/v.sock`. `/proc/self/fd/N/v.sock` names the same file.

use std::{
    fs::FileType,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

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

/// Removes a socket file that nobody listens on any more. `AddrInUse` when somebody does; any other error says what is there
/// instead. It never waits: an owner that is stopped would make it wait for ever.
pub fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(no_socket(path, metadata.file_type()));
    }
    match try_connect(path) {
        Ok(Err(Errno::CONNREFUSED)) => std::fs::remove_file(path),
        Ok(Err(Errno::NOENT)) => Ok(()),
        Ok(Err(errno @ (Errno::ACCESS | Errno::PERM))) => Err(unknown_owner(errno)),
        // Somebody takes the connection, has a backlog that is full, or a socket of another type.
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

fn try_connect(path: &Path) -> io::Result<Result<(), Errno>> {
    let flags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let short = ShortPath::new(path)?;
    Ok(net::connect(&socket, &SocketAddrUnix::new(short.as_path())?))
}

fn no_socket(path: &Path, kind: FileType) -> io::Error {
    let what = match std::fs::read_link(path) {
        Ok(target) => format!("a symbolic link to {}", target.display()),
        Err(_) if kind.is_dir() => "a folder".to_owned(),
        Err(_) if kind.is_file() => "a plain file".to_owned(),
        Err(_) => "a device or pipe".to_owned(),
    };
    let text = format!("{what} is there, and no socket: move it away, or listen elsewhere");
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

fn unknown_owner(errno: Errno) -> io::Error {
    let reason = io::Error::from(errno);
    let text = format!(
        "a socket is there that may not be connected to, so nobody can tell whether it is in use ({reason}): remove it, or \
         listen elsewhere"
    );
    io::Error::new(io::ErrorKind::PermissionDenied, text)
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

    /// Its owner is stopped, and as many wait for it as may: a connect that waits would hang whoever starts, or reloads.
    #[test]
    fn a_socket_whose_owner_takes_nobody_is_in_use() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("s");
        let address = SocketAddrUnix::new(&path).unwrap();
        let new_socket =
            || net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None);
        let listener = new_socket().unwrap();
        net::bind(&listener, &address).unwrap();
        net::listen(&listener, 1).unwrap();
        let waiting = std::iter::from_fn(|| {
            let socket = new_socket().unwrap();
            net::connect(&socket, &address).ok().map(|()| socket)
        });
        let _waiting: Vec<_> = waiting.collect();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(remove_stale(&path).map_err(|error| error.kind())));
        let result = told.recv_timeout(std::time::Duration::from_secs(30)).expect("it does not wait");
        assert_eq!(result, Err(io::ErrorKind::AddrInUse));
    }

    #[test]
    fn what_is_no_socket_is_said_to_be_what_it_is() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        std::fs::write(at("file"), "precious").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("/nowhere", at("link")).unwrap();
        for (name, is) in [
            ("file", "a plain file is there"),
            ("folder", "a folder is there"),
            ("link", "a symbolic link to /nowhere is there"),
        ] {
            let error = remove_stale(&at(name)).unwrap_err();
            assert_ne!(error.kind(), io::ErrorKind::AddrInUse, "{name}");
            assert!(error.to_string().contains(is), "{name}: {error}");
            assert!(at(name).symlink_metadata().is_ok(), "{name} is left alone");
        }
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
