//! Reading a configuration file that may be anything: PID 1 must neither wait for it nor swallow it whole.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};

/// Configuration is a few KiB.
const LARGEST: u64 = 256 * 1024;
/// Device number of /dev/null, to which a link stands for an empty file.
const NULL: u64 = 1 << 8 | 3;

/// A text file's content. A pipe or a device in its place is an error, and so is a file that no person wrote.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_bytes(path, LARGEST)?).map_err(|_| io::Error::other("it is no UTF-8 text"))
}

/// The same, of at most `limit` bytes of any kind.
pub fn read_bytes(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = without_waiting().read(true).open(path)?;
    let about = file.metadata()?;
    if about.file_type().is_char_device() && about.rdev() == NULL {
        return Ok(Vec::new());
    }
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {} KiB", limit / 1024)));
    }
    Ok(bytes)
}

/// Writes a file, made where there is none, in place.
pub fn write_text(path: &Path, text: &str) -> io::Result<()> {
    without_waiting().write(true).create(true).truncate(true).open(path)?.write_all(text.as_bytes())
}

/// Has the kernel load a file's first bytes, or all of it for `None`, while the caller goes on. Only a hint: what fails is passed
/// over, and found again by whoever needs the file.
pub fn read_ahead(path: &Path, bytes: Option<u32>) {
    if let Ok(file) = without_waiting().read(true).open(path) {
        let to_its_end = 0;
        let length = bytes.map_or(to_its_end, i64::from);
        let _ = posix_fadvise(file, 0, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// A pipe without another end would hold up whoever opens it.
fn without_waiting() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_file_is_an_error_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        std::fs::write(path("binary"), [0xff, 0xfe]).unwrap();
        std::fs::write(path("huge"), vec![b'x'; LARGEST as usize + 1]).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("device")).unwrap();
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        for name in ["pipe", "folder", "binary", "huge", "device", "loop", "missing"] {
            assert!(read_text(&path(name)).is_err(), "{name}");
        }
        assert!(write_text(&path("pipe"), "x").is_err());
    }

    #[test]
    fn text_is_read_and_a_link_to_dev_null_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("text"), "a = 1\n").unwrap();
        std::os::unix::fs::symlink("/dev/null", path("off")).unwrap();
        assert_eq!(read_text(&path("text")).unwrap(), "a = 1\n");
        assert_eq!(read_text(&path("off")).unwrap(), "");
        assert!(read_text(Path::new("/proc/self/status")).unwrap().starts_with("Name:"));
    }
}
