//! The serial console, which may be slow, blocked or absent, and costs nothing but its own output.
//!
//! In production there is no `console=`: `/dev/console` does not open and kmsg does not reach the serial port, so the tty
//! itself is found and written, without blocking. What it does not take is kept, bounded; when that overflows the OLDEST lines
//! go (the tail tells what happened last), and how many went is said in their place.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock;

/// Lines that wait for a console that does not drain, in bytes: the head of a crash has room while it is held.
const BACKLOG: usize = 64 * 1024;
/// Tried in this order after what `/proc/consoles` names.
const FALLBACKS: [&str; 3] = ["/dev/ttyS0", "/dev/hvc0", "/dev/kmsg"];

/// What writing to a terminal gives after `vhangup`, and to a serial port without hardware (EIO).
const HUNG_UP: i32 = nix::errno::Errno::EIO as i32;

/// Where records go that a person reads.
#[derive(Debug, Default)]
pub struct Console {
    device: Option<(PathBuf, File)>,
    /// What comes in question instead, until the device has taken a line: a port may have a node and no hardware.
    others: VecDeque<PathBuf>,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// How much of the first waiting line is out already.
    begun: usize,
    /// The device was opened anew for the first waiting line.
    opened_again: bool,
    /// Nothing is written now.
    held: bool,
    /// Lines that were dropped and not yet said.
    unsaid: u64,
    dropped_bytes: u64,
}

impl Console {
    /// Finds and opens the console, where none is open yet. Until then what comes is kept.
    pub fn reopen(&mut self) {
        if self.device.is_none() {
            self.others = candidates().into();
            self.open_next();
        }
    }

    /// Opens the best of the others; false: there is none, and what was open stays.
    fn open_next(&mut self) -> bool {
        while let Some(path) = self.others.pop_front() {
            if let Some(file) = open_tty(&path) {
                self.device = Some((path, file));
                self.opened_again = false;
                return true;
            }
        }
        false
    }

    /// The device that was found.
    pub fn path(&self) -> Option<&Path> {
        self.device.as_ref().map(|(path, _)| path.as_path())
    }

    /// Bytes that nobody will ever read.
    pub const fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// The device, while something waits for it: watch it for writability and call [`Console::flush`].
    pub fn blocked(&self) -> Option<BorrowedFd<'_>> {
        let (_, file) = self.device.as_ref()?;
        (!self.waiting.is_empty() && !self.held).then(|| file.as_fd())
    }

    /// Lets lines wait until [`Console::release`], for a moment in which the device would be in the way.
    pub fn hold(&mut self) {
        self.held = true;
    }

    pub fn release(&mut self) {
        self.held = false;
        self.flush();
    }

    /// The open device.
    pub fn device(&self) -> Option<BorrowedFd<'_>> {
        self.device.as_ref().map(|(_, file)| file.as_fd())
    }

    /// Writes what waits, for a program that ends: waits for the device, but not longer than `bound`.
    pub fn drain(&mut self, bound: Duration) {
        self.release();
        let until = clock::now() + bound;
        while let Some(device) = self.blocked() {
            let left = until.saturating_sub(clock::now()).as_millis();
            let Ok(timeout @ 1..) = u16::try_from(left) else { return };
            let _ = poll(&mut [PollFd::new(device, PollFlags::POLLOUT)], PollTimeout::from(timeout));
            self.flush();
        }
    }

    /// Prints one line (with its newline), or keeps it until the device takes it.
    pub fn print(&mut self, line: Vec<u8>) {
        self.waiting_bytes += line.len();
        self.waiting.push_back(line);
        self.flush();
        self.drop_oldest();
    }

    /// Writes what waits, as far as the device takes it.
    pub fn flush(&mut self) {
        if self.held {
            return;
        }
        while let Some((length, outcome)) = self.write_first() {
            match outcome {
                Ok(count) if self.begun + count < length => self.begun += count,
                Ok(_) => {
                    self.others = VecDeque::new();
                    self.line_done();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A getty that takes the line for itself hangs it up for everybody else first: ours is opened anew.
                Err(error)
                    if error.raw_os_error() == Some(HUNG_UP) && (self.open_again() || self.open_next()) => {}
                // A device that fails otherwise takes the line with it, so that nothing piles up.
                Err(_) => {
                    self.dropped_bytes += length as u64;
                    self.line_done();
                }
            }
        }
    }

    /// One write of what is left of the first line: the line's length and how the write went.
    fn write_first(&self) -> Option<(usize, io::Result<usize>)> {
        let (_, device) = self.device.as_ref()?;
        let mut file: &File = device;
        let line = self.waiting.front()?;
        Some((line.len(), file.write(&line[self.begun..])))
    }

    /// Opens the device again, once a line. It is opened without becoming anybody's controlling terminal and its settings are
    /// left alone, so a login on the same line goes on beside ours.
    fn open_again(&mut self) -> bool {
        let Some((path, _)) = self.device.as_ref().filter(|_| !self.opened_again) else { return false };
        let Some(file) = open_tty(path) else { return false };
        self.device = Some((path.clone(), file));
        self.opened_again = true;
        true
    }

    fn line_done(&mut self) {
        self.begun = 0;
        self.opened_again = false;
        if let Some(line) = self.waiting.pop_front() {
            self.waiting_bytes -= line.len();
        }
    }

    /// Keeps the backlog within its bound. A line that is half out stays, so that the next one starts on a line of its own.
    fn drop_oldest(&mut self) {
        let first = usize::from(self.begun > 0);
        let mut cut = false;
        while self.waiting_bytes > BACKLOG
            && let Some(line) = self.waiting.remove(first)
        {
            self.waiting_bytes -= line.len();
            self.dropped_bytes += line.len() as u64;
            self.unsaid += 1;
            cut = true;
        }
        if cut {
            self.say_dropped(first);
        }
    }

    /// Puts the count of dropped lines where they were, replacing the count that stood there.
    fn say_dropped(&mut self, at: usize) {
        let note =
            format!("[ … {} lines dropped: the console did not take them … ]\n", self.unsaid).into_bytes();
        if self.waiting.get(at).is_some_and(|line| line.starts_with("[ … ".as_bytes()))
            && let Some(old) = self.waiting.remove(at)
        {
            self.waiting_bytes -= old.len();
        }
        self.waiting_bytes += note.len();
        self.waiting.insert(at, note);
        if self.waiting.len() == at + 1 {
            self.unsaid = 0;
        }
    }
}

/// Every device that may be the console, best first.
fn candidates() -> Vec<PathBuf> {
    let listed = fs::read_to_string("/proc/consoles").unwrap_or_default();
    let mut found: Vec<PathBuf> = parse_consoles(&listed).map(|name| Path::new("/dev").join(name)).collect();
    found.extend(FALLBACKS.iter().map(PathBuf::from));
    found
}

/// Names of the serial consoles in `/proc/consoles`; virtual terminals have no reader in a microVM.
fn parse_consoles(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("ttyS") || name.starts_with("hvc") || name.starts_with("ttyAMA"))
}

fn open_tty(path: &Path) -> Option<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path)
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn on(file: OwnedFd) -> Console {
        Console { device: Some((PathBuf::from("test"), File::from(file))), ..Console::default() }
    }

    #[test]
    fn a_serial_console_is_preferred_to_a_virtual_terminal() {
        let text = "tty0                 -WU (EC  p  )    4:7\nttyS0                -W- (E   p a)    4:64\n";
        assert_eq!(parse_consoles(text).collect::<Vec<_>>(), ["ttyS0"]);
    }

    #[test]
    fn a_blocked_console_keeps_the_tail_and_counts_what_went() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        let mut console = on(writer);
        for number in 0..5000 {
            console.print(format!("line {number} of a flood that nobody reads\n").into_bytes());
        }
        assert!(console.dropped_bytes() > 0 && console.waiting_bytes <= BACKLOG + 100);
        let mut text = Vec::new();
        let mut chunk = vec![0; 65536];
        while let Ok(count @ 1..) = nix::unistd::read(&reader, &mut chunk) {
            text.extend_from_slice(&chunk[..count]);
            console.flush();
        }
        let text = String::from_utf8(text).unwrap();
        assert!(text.ends_with("line 4999 of a flood that nobody reads\n"), "the tail is kept");
        assert!(text.contains("lines dropped: the console did not take them"), "the loss is said");
        assert!(console.blocked().is_none());
    }

    /// A getty's vhangup ends every descriptor that is open on its line; here the terminal's other end went away.
    #[test]
    fn a_terminal_that_was_hung_up_is_opened_anew_and_no_line_is_lost() {
        let pty = nix::pty::openpty(None, None).unwrap();
        drop(pty.master);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tty");
        fs::write(&path, "").unwrap();
        let mut console =
            Console { device: Some((path.clone(), File::from(pty.slave))), ..Console::default() };
        console.print(b"after the getty came\n".to_vec());
        assert_eq!(fs::read_to_string(&path).unwrap(), "after the getty came\n");
        assert_eq!(console.dropped_bytes(), 0);
    }

    /// As /dev/ttyS0 on a machine that has hvc0 alone: the node is there, it opens, and it takes nothing.
    #[test]
    fn a_port_without_hardware_is_left_for_the_next_one_and_no_line_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hvc0");
        fs::write(&path, "").unwrap();
        // Nothing is mapped at its beginning, and writing there gives EIO.
        let others =
            ["/no/such/console", "/proc/self/mem"].map(PathBuf::from).into_iter().chain([path.clone()]);
        let mut console = Console { others: others.collect(), ..Console::default() };
        console.open_next();
        assert_eq!(console.path(), Some(Path::new("/proc/self/mem")));
        console.print(b"first\n".to_vec());
        assert_eq!((console.path(), console.dropped_bytes()), (Some(path.as_path()), 0));
        assert_eq!(fs::read_to_string(&path).unwrap(), "first\n");
    }

    #[test]
    fn lines_that_are_held_come_out_whole_and_in_order() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        let mut console = on(writer);
        console.hold();
        ["one\n", "two\n"].iter().for_each(|line| console.print(line.as_bytes().to_vec()));
        let mut chunk = [0; 64];
        assert!(nix::unistd::read(&reader, &mut chunk).is_err() && console.blocked().is_none());
        console.release();
        assert_eq!(nix::unistd::read(&reader, &mut chunk), Ok(8));
        assert_eq!(&chunk[..8], b"one\ntwo\n");
    }

    #[test]
    fn a_program_that_ends_waits_for_its_last_lines_but_not_for_ever() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        let mut console = on(writer);
        (0..2000).for_each(|_| console.print(b"one of many lines that a pipe does not hold\n".to_vec()));
        console.drain(Duration::from_millis(20));
        assert!(console.blocked().is_some(), "nobody reads");
        let reading = std::thread::spawn(move || {
            let mut chunk = vec![0; 65536];
            while nix::unistd::read(&reader, &mut chunk) != Ok(0) {
                std::thread::yield_now();
            }
        });
        console.drain(Duration::from_secs(60));
        assert!(console.blocked().is_none());
        drop(console);
        reading.join().unwrap();
    }

    #[test]
    fn without_a_device_lines_wait_for_one() {
        let mut console = Console::default();
        console.print(b"early\n".to_vec());
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        console.device = Some((PathBuf::from("test"), File::from(writer)));
        console.flush();
        let mut chunk = [0; 16];
        assert_eq!(nix::unistd::read(&reader, &mut chunk), Ok(6));
    }
}
