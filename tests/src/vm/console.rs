//! The serial console: captured whole, awaited by pattern, and blocked on demand.
//!
//! QEMU writes the serial port into a unix socket; a thread reads it into memory and a log file. A reader that stops
//! reading blocks the guest's serial port, as a host does that does not drain it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use regex_lite::Regex;

use crate::wait;

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// QEMU is gone: nothing more will come.
    ended: bool,
    /// The reader stands still.
    blocked: bool,
    /// Printed on standard output as it comes, each line behind this.
    echo: Option<String>,
    echoed: usize,
    input: Option<UnixStream>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone)]
pub struct Console {
    shared: Arc<Shared>,
    log: PathBuf,
}

/// A place in the console's text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

impl Console {
    /// Listens at `socket` for QEMU and keeps a copy of all in the file `log`.
    pub(super) fn listen(socket: &Path, log: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| format!("binding {}", socket.display()))?;
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let console = Self { shared: Arc::default(), log: log.to_owned() };
        let shared = Arc::clone(&console.shared);
        thread::Builder::new().name("console".into()).spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                shared.lock().input = stream.try_clone().ok();
                read_all(&shared, stream, file);
            }
            shared.lock().ended = true;
            shared.changed.notify_all();
        })?;
        Ok(console)
    }

    /// Where the log lies while the VM lives.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All that came so far.
    pub fn text(&self) -> String {
        self.text_after(Mark(0))
    }

    pub fn text_after(&self, mark: Mark) -> String {
        String::from_utf8_lossy(self.shared.lock().bytes.get(mark.0..).unwrap_or_default()).into_owned()
    }

    /// How many bytes came so far.
    pub fn bytes(&self) -> usize {
        self.shared.lock().bytes.len()
    }

    /// Whether nothing more will come: QEMU has closed it, which is the first that is seen of its end.
    pub fn has_ended(&self) -> bool {
        self.shared.lock().ended
    }

    /// The place behind all that came so far.
    pub fn mark(&self) -> Mark {
        Mark(self.bytes())
    }

    /// Waits for a line that matches the regular expression, from the boot on; returns the line.
    pub fn wait(&self, pattern: &str) -> Result<String> {
        self.wait_after(Mark(0), pattern)
    }

    /// The same, only in what came after `mark`.
    pub fn wait_after(&self, mark: Mark, pattern: &str) -> Result<String> {
        self.wait_within(mark, pattern, wait::BOUND)
    }

    pub fn wait_within(&self, mark: Mark, pattern: &str, bound: Duration) -> Result<String> {
        let regex = Regex::new(pattern).with_context(|| format!("{pattern:?} is no regular expression"))?;
        let begun = Instant::now();
        let mut state = self.shared.lock();
        loop {
            let text = String::from_utf8_lossy(state.bytes.get(mark.0..).unwrap_or_default()).into_owned();
            if let Some(line) = whole_lines(&text, state.ended).find(|line| regex.is_match(line)) {
                return Ok(line.to_owned());
            }
            let left = bound.saturating_sub(begun.elapsed());
            if state.ended {
                bail!(
                    "the VM ended and its console never said {pattern:?}; its last lines:\n{}",
                    tail(&text, 15)
                );
            }
            if left.is_zero() {
                bail!(
                    "waited {} s for {pattern:?} on the console; its last lines:\n{}",
                    bound.as_secs(),
                    tail(&text, 15)
                );
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a line came that matches.
    pub fn has(&self, pattern: &str) -> Result<bool> {
        let regex = Regex::new(pattern).with_context(|| format!("{pattern:?} is no regular expression"))?;
        Ok(self.text().lines().any(|line| regex.is_match(line)))
    }

    /// The last lines, for a report.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.text(), lines)
    }

    /// Stops draining the serial port. The few hundred KiB that sockets hold still go through.
    pub fn block(&self) {
        self.shared.lock().blocked = true;
    }

    /// Drains again.
    pub fn unblock(&self) {
        self.shared.lock().blocked = false;
        self.shared.changed.notify_all();
    }

    /// Types into the console.
    pub fn send(&self, text: &str) -> Result<()> {
        let mut input =
            self.shared.lock().input.as_ref().context("QEMU has not opened the console yet")?.try_clone()?;
        input.write_all(text.as_bytes()).context("typing into the console")
    }

    /// From now on prints each line on standard output, behind `prefix`; what came before is printed first.
    pub fn echo(&self, prefix: &str) {
        let mut state = self.shared.lock();
        state.echo = Some(prefix.to_owned());
        print_lines(&mut state);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_all(shared: &Shared, mut stream: UnixStream, mut log: File) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        let _ = log.write_all(&buffer[..read]);
        let mut state = shared.lock();
        state.bytes.extend_from_slice(&buffer[..read]);
        print_lines(&mut state);
        shared.changed.notify_all();
        while state.blocked {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Prints the whole lines that were not printed yet.
fn print_lines(state: &mut State) {
    let Some(prefix) = state.echo.clone() else { return };
    while let Some(length) = state.bytes[state.echoed..].iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&state.bytes[state.echoed..state.echoed + length]).into_owned();
        println!("{prefix}{}", line.trim_end_matches('\r'));
        state.echoed += length + 1;
    }
}

/// The lines that are complete; the last one too when nothing more will come.
fn whole_lines(text: &str, ended: bool) -> impl Iterator<Item = &str> {
    let end = if ended { text.len() } else { text.rfind('\n').map_or(0, |last| last + 1) };
    text[..end].lines()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let last = &all[all.len().saturating_sub(lines)..];
    if last.is_empty() { "(nothing)".to_owned() } else { last.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (Console, UnixStream, PathBuf) {
        let dir = std::env::temp_dir().join(crate::sweep::unique_name());
        std::fs::create_dir_all(&dir).unwrap();
        let console = Console::listen(&dir.join("c.sock"), &dir.join("c.log")).unwrap();
        let guest = UnixStream::connect(dir.join("c.sock")).unwrap();
        (console, guest, dir)
    }

    #[test]
    fn a_line_is_found_when_it_is_complete_and_an_end_is_said_at_once() {
        let (console, mut guest, dir) = console();
        guest.write_all(b"one\r\ntwo\r\nthr").unwrap();
        assert_eq!(console.wait("^two$").unwrap(), "two");
        let mark = console.mark();
        guest.write_all(b"ee\n").unwrap();
        drop(guest);
        assert_eq!(console.wait("^three").unwrap(), "three");
        let error = console.wait_after(mark, "never").unwrap_err().to_string();
        assert!(error.contains("ended"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_blocked_console_takes_nothing_in_until_it_is_unblocked() {
        let (console, mut guest, dir) = console();
        console.block();
        guest.write_all(b"first\n").unwrap();
        console.wait("first").unwrap();
        guest.write_all(b"second\n").unwrap();
        assert!(console.wait_within(Mark(0), "second", Duration::from_millis(50)).is_err());
        console.unblock();
        console.wait("second").unwrap();
        drop(guest);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
