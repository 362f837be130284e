//! envd's output, drained always: a pipe that nobody reads blocks envd, and one that is closed kills it.
//!
//! Line by line it goes to the log. A flood is not worth its CPU: beyond a burst, what was read is only counted and its tail
//! kept, and the count and the tail are logged when the flood has passed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest::bucket::Bucket;
use guest::clock::Moment;
use guest::record::{self, Level};

/// Lines that pass at once, and then a second.
const BURST: u32 = 2000;
const PER_SECOND: u32 = 200;
/// A line longer than this is passed on in pieces.
const LONGEST_LINE: usize = 8 * 1024;
/// Bytes of a flood's end that are kept.
const FLOOD_TAIL: usize = 2 * 1024;
/// Reads in one turn, so that one stream does not starve the loop.
const READS: usize = 4;
/// Lines that a death report holds.
const LAST_LINES: usize = 10;
/// Of these at most this many come from the head of a crash: the reason, and where.
const CRASH_HEAD: usize = 6;

/// What the last lines of a life were: kept for the report of its death.
#[derive(Debug, Default)]
pub(crate) struct LastLines {
    recent: VecDeque<String>,
    crash: Vec<String>,
}

impl LastLines {
    fn add(&mut self, line: String) {
        let crashing = !self.crash.is_empty() || is_crash(&line);
        if crashing && self.crash.len() < CRASH_HEAD {
            return self.crash.push(line);
        }
        if self.recent.len() == LAST_LINES {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    /// The head of a crash and what came last; empties it.
    pub(crate) fn take(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.crash);
        let room = LAST_LINES - lines.len();
        let skip = self.recent.len().saturating_sub(room);
        lines.extend(self.recent.drain(..).skip(skip));
        lines
    }
}

/// How a Go program begins to say why it dies.
fn is_crash(line: &str) -> bool {
    ["panic: ", "fatal error: ", "SIGQUIT: quit", "SIGSEGV: ", "runtime: "]
        .iter()
        .any(|head| line.starts_with(head))
}

/// One of envd's two streams.
#[derive(Debug)]
pub(crate) struct Stream {
    pipe: OwnedFd,
    partial: Vec<u8>,
    bucket: Bucket,
    flood: Option<Flood>,
}

#[derive(Debug, Default)]
struct Flood {
    lines: u64,
    tail: Vec<u8>,
}

/// Whether a stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    Ended,
}

impl Stream {
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self { pipe, partial: Vec::new(), bucket: Bucket::new(BURST, PER_SECOND), flood: None }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// When the end of a flood must be looked at.
    pub(crate) fn deadline(&self, now: Moment) -> Option<Moment> {
        self.flood.as_ref().map(|_| self.bucket.next_token(now))
    }

    /// Reads what is there. `buffer` is shared by all streams.
    pub(crate) fn drain(&mut self, buffer: &mut [u8], now: Moment, last: &mut LastLines) -> Flow {
        for _ in 0..READS {
            match guest::reactor::read_ready(&self.pipe, buffer) {
                Ok(Some(0)) | Err(_) => return Flow::Ended,
                Ok(Some(count)) => self.take(&buffer[..count], now, last),
                Ok(None) => break,
            }
        }
        Flow::Open
    }

    /// The process is dead: says what is left, unfinished line included.
    pub(crate) fn finish(&mut self, buffer: &mut [u8], now: Moment, last: &mut LastLines) {
        // What others who hold the pipe still write is not awaited.
        self.drain(buffer, now, last);
        self.end_flood(last);
        let rest = std::mem::take(&mut self.partial);
        if !rest.is_empty() {
            say(&rest, last);
        }
    }

    /// Logs a flood's count and tail once lines may pass again.
    pub(crate) fn settle(&mut self, now: Moment, last: &mut LastLines) {
        if self.flood.is_some() && self.bucket.take(now) {
            self.end_flood(last);
        }
    }

    fn take(&mut self, bytes: &[u8], now: Moment, last: &mut LastLines) {
        let mut rest = bytes;
        while self.flood.is_none() && !rest.is_empty() {
            let (line, after) = split_line(rest);
            self.partial.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
            let whole = line.ends_with(b"\n") || self.partial.len() >= LONGEST_LINE;
            if whole && self.bucket.take(now) {
                say(&std::mem::take(&mut self.partial), last);
            } else if whole {
                let tail = std::mem::take(&mut self.partial);
                self.flood = Some(Flood { lines: 1, tail });
            }
            rest = after;
        }
        if let Some(flood) = &mut self.flood {
            flood.swallow(rest);
        }
    }

    fn end_flood(&mut self, last: &mut LastLines) {
        let Some(flood) = self.flood.take() else { return };
        let mut lines = flood.tail.split(|byte| *byte == b'\n').collect::<Vec<_>>();
        // The first is cut, and the last is not finished.
        self.partial = lines.pop().unwrap_or_default().to_vec();
        let shown = lines.len().saturating_sub(1);
        let dropped = flood.lines.saturating_sub(shown as u64);
        guest::log::emit(
            "envd",
            Level::Warn,
            format!("{dropped} lines dropped: too many a second").as_bytes(),
        );
        for line in lines.iter().skip(1) {
            say(line, last);
        }
    }
}

impl Flood {
    fn swallow(&mut self, bytes: &[u8]) {
        self.lines += memchr::memchr_iter(b'\n', bytes).count() as u64;
        let fresh = &bytes[bytes.len().saturating_sub(FLOOD_TAIL)..];
        let excess = (self.tail.len() + fresh.len()).saturating_sub(FLOOD_TAIL).min(self.tail.len());
        self.tail.drain(..excess);
        self.tail.extend_from_slice(fresh);
    }
}

/// The first line with its newline (at most [`LONGEST_LINE`]), and what follows.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
    bytes.split_at(end.min(LONGEST_LINE))
}

fn say(line: &[u8], last: &mut LastLines) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (level, text) = record::split_level(line);
    guest::log::emit("envd", level, text);
    last.add(record::sanitize(&text[..text.len().min(400)]));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn stream() -> (Stream, OwnedFd) {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        (Stream::new(read), write)
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_one_line() {
        let (mut stream, write) = stream();
        let (mut last, mut buffer) = (LastLines::default(), vec![0; 4096]);
        for piece in ["hel", "lo\nwor", "ld"] {
            nix::unistd::write(&write, piece.as_bytes()).unwrap();
            stream.drain(&mut buffer, Duration::ZERO, &mut last);
        }
        stream.finish(&mut buffer, Duration::ZERO, &mut last);
        assert_eq!(last.take(), ["hello", "world"]);
    }

    #[test]
    fn a_flood_is_counted_and_its_tail_is_kept() {
        let (mut stream, _write) = stream();
        let mut last = LastLines::default();
        let now = Duration::from_secs(1);
        let flood: String = (0..50_000).map(|number| format!("line {number}\n")).collect();
        for chunk in flood.as_bytes().chunks(65_536) {
            stream.take(chunk, now, &mut last);
        }
        let swallowed = stream.flood.as_ref().unwrap().lines;
        assert_eq!(swallowed, 50_000 - u64::from(BURST));
        stream.settle(now + Duration::from_secs(1), &mut last);
        assert_eq!(last.take().last().map(String::as_str), Some("line 49999"));
    }

    #[test]
    fn a_line_without_an_end_is_passed_on_in_pieces_and_bounded() {
        let (mut stream, _write) = stream();
        let mut last = LastLines::default();
        stream.take(&vec![b'x'; 1 << 20], Duration::from_secs(1), &mut last);
        assert!(stream.partial.len() <= 2 * LONGEST_LINE);
    }

    #[test]
    fn the_head_of_a_crash_is_in_the_report_however_long_it_is() {
        let mut last = LastLines::default();
        last.add("panic: runtime error: index out of range".to_owned());
        (0..500).for_each(|number| last.add(format!("goroutine {number}")));
        let lines = last.take();
        assert!(lines[0].starts_with("panic: ") && lines.len() <= LAST_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("goroutine 499"));
    }
}
