//! Reading a configuration file that may be anything: PID 1 must neither wait for it nor swallow it whole.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::OFlag;

/// Configuration is a few KiB.
const LARGEST: u64 = 256 * 1024;
/// Device number of /dev/null, to which a link stands for an empty file.
const NULL: u64 = 1 << 8 | 3;

/// A text file's content. A pipe or a device in its place is an error, and so is a file that no person wrote.
pub fn read_text(path: &Path) -> io::Result<String> {
    // Non-blocking, or a pipe without a writer would hold up whoever opens it.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let about = file.metadata()?;
    if about.file_type().is_char_device() && about.rdev() == NULL {
        return Ok(String::new());
    }
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    read_bounded(&file)
}

fn read_bounded(file: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it is larger than {} KiB", LARGEST / 1024)));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is no UTF-8 text"))
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
