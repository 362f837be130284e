//! What is logged, once more on standard error: for a program that is run by hand, by a script, or by an init that keeps what
//! its services print.
//!
//! journald gets its own form (`<6>component: text`), everybody else the console's. Nothing here waits: what a reader does not
//! take is lost here, counted and said; the ring has it all the same. A file cannot be written without waiting while its
//! filesystem is frozen, as the root filesystem is before some pauses.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{MsgFlags, send};

use crate::clock::Moment;
use crate::record::{self, Level};

/// Standard error, as a path that can be opened anew.
const STDERR: &str = "/proc/self/fd/2";
/// Set by systemd: device and inode of the socket to the journal.
const JOURNAL: &str = "JOURNAL_STREAM";
/// Major and minor number of /dev/console.
const CONSOLE: u64 = 5 << 8 | 1;

/// Standard error.
#[derive(Debug)]
pub struct Mirror {
    sink: Sink,
    journal: bool,
    /// The end of a line that was taken in part only.
    rest: Vec<u8>,
    lost: u64,
}

#[derive(Debug)]
enum Sink {
    /// Opened anew, so that it is non-blocking for us alone and not for everybody who shares it.
    File(File),
    Socket(OwnedFd),
}

impl Mirror {
    /// `None` where nobody would read it: there is none, or it is the console, which has everything already. A file on the root
    /// filesystem is taken for none, unless `may_wait`.
    pub fn open(console: Option<&Path>, may_wait: bool) -> Option<Self> {
        let stderr = io::stderr().as_fd().try_clone_to_owned().ok()?;
        let meta = fs::metadata(STDERR).ok()?;
        let kind = meta.file_type();
        let device = |path: &Path| fs::metadata(path).ok().map(|meta| meta.rdev());
        let is_null = device(Path::new("/dev/null")) == Some(meta.rdev());
        let is_console = meta.rdev() == CONSOLE || console.and_then(device) == Some(meta.rdev());
        if kind.is_char_device() && (is_null || is_console) {
            return None;
        }
        if kind.is_file() && !may_wait && fs::metadata("/").is_ok_and(|root| root.dev() == meta.dev()) {
            return None;
        }
        let journal = std::env::var(JOURNAL).is_ok_and(|id| id == format!("{}:{}", meta.dev(), meta.ino()));
        let sink = if kind.is_socket() { Sink::Socket(stderr) } else { Sink::File(reopen()?) };
        Some(Self { sink, journal, rest: Vec::new(), lost: 0 })
    }

    /// Prints one record.
    pub fn print(&mut self, at: Moment, level: Level, component: &str, text: &str) {
        if self.lost > 0 {
            let note = format!("{} lines lost here: nobody took them", self.lost);
            let line = self.line(at, Level::Warn, component, &note);
            if !self.write(line) {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        let line = self.line(at, level, component, text);
        if !self.write(line) {
            self.lost += 1;
        }
    }

    fn line(&self, at: Moment, level: Level, component: &str, text: &str) -> String {
        match self.journal {
            true => format!("<{}>{component}: {text}\n", level.syslog()),
            false => record::console_line(at, component, text),
        }
    }

    /// Whether the line was taken; a part of it is as good, since the rest comes first the next time.
    fn write(&mut self, line: String) -> bool {
        while !self.rest.is_empty() {
            match self.sink.write(&self.rest) {
                Ok(count) => drop(self.rest.drain(..count)),
                Err(_) => return false,
            }
        }
        let Ok(count) = self.sink.write(line.as_bytes()) else { return false };
        self.rest = line.into_bytes().split_off(count);
        true
    }
}

fn reopen() -> Option<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    OpenOptions::new().append(true).custom_flags(flags.bits()).open(STDERR).ok()
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Socket(socket) => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(socket.as_raw_fd(), bytes, flags).map_err(|errno: Errno| errno.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn mirror(sink: Sink, journal: bool) -> Mirror {
        Mirror { sink, journal, rest: Vec::new(), lost: 0 }
    }

    fn say(mirror: &mut Mirror, text: &str) {
        mirror.print(Duration::from_millis(1500), Level::Warn, "wrapper", text);
    }

    #[test]
    fn the_journal_gets_the_level_and_others_the_time() {
        for (journal, wanted) in [(true, "<4>wrapper: hello\n"), (false, "[    1.500000] wrapper: hello\n")] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            say(&mut mirror(Sink::Socket(ours.into()), journal), "hello");
            let mut text = String::new();
            theirs.read_to_string(&mut text).unwrap();
            assert_eq!(text, wanted);
        }
    }

    /// Lines stay whole, and what was lost is counted where it was.
    #[test]
    fn a_reader_that_sleeps_costs_lines_and_no_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut mirror = mirror(Sink::Socket(ours.into()), false);
        let long = "x".repeat(700);
        (0..2000).for_each(|_| say(&mut mirror, &long));
        assert!(mirror.lost > 0);
        theirs.set_nonblocking(true).unwrap();
        let mut text = Vec::new();
        let _ = theirs.read_to_end(&mut text);
        say(&mut mirror, "awake");
        let _ = theirs.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.starts_with("[    1.500000] wrapper: ")), "{text}");
        assert!(lines[lines.len() - 2].ends_with("lines lost here: nobody took them"));
        assert!(lines[lines.len() - 1].ends_with("wrapper: awake"));
    }

    #[test]
    fn a_reader_that_is_gone_costs_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut mirror = mirror(Sink::Socket(ours.into()), false);
        (0..3).for_each(|_| say(&mut mirror, "hello"));
        assert_eq!(mirror.lost, 3);
    }
}
