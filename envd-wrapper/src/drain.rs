//! envd's output, drained always: a pipe that nobody reads blocks envd, and one that is closed kills it.
//!
//! | stream | what comes | then |
//! |---|---|---|
//! | calm | lines, within the bucket | each is logged |
//! | calm | more lines than that | flood |
//! | flood | anything | only counted, its tail kept; read in naps rather than at each write |
//! | flood | the head of a crash | what came before it is counted, the crash begins |
//! | flood | a second has passed | the count and the tail are logged: calm |
//! | any | the head of a crash | crash: every line is logged, up to a bound |
//! | any | its end, or the process is dead | what is left is logged, an unfinished line included |
//!
//! A flood is not worth its CPU: reading it in large pieces costs little more than throwing it away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use guest::bucket::Bucket;
use guest::clock::Moment;
use guest::record::{self, Level};
use memchr::memmem;
use nix::fcntl::{FcntlArg, fcntl};

use crate::last::{LastLines, is_crash};

/// Lines that pass at once, and then a second: the ring must not be flushed by one burst.
const BURST: u32 = 400;
const PER_SECOND: u32 = 50;
/// A line longer than this is passed on in pieces.
const LONGEST_LINE: usize = 8 * 1024;
/// Bytes of a flood's end that are kept.
const FLOOD_TAIL: usize = 2 * 1024;
/// A flood is summed up once a second.
const FLOOD_SUM: Duration = Duration::from_secs(1);
/// Between two reads of a flood: longer and longer, as long as it takes far more time to fill the pipe (or envd would wait for us).
const SHORTEST_NAP: Duration = Duration::from_millis(2);
const LONGEST_NAP: Duration = Duration::from_millis(16);
/// Naps grow while after one less than this part of the pipe is full, and begin anew at twice as much.
const LITTLE: usize = 8;
/// Size of the pipe in bytes; its memory is only taken while something is in it.
const PIPE: i32 = 1 << 20;
/// Reads in one turn, so that one stream does not starve the loop: a whole pipe.
const READS: usize = 16;
/// Bytes of a line that a death report holds.
const REPORTED: usize = 400;
/// Lines of a crash that are kept whole: the ring holds no more.
const CRASH_LINES: u32 = 2000;
/// Every crash of a Go program has such a line, soon after its head.
const CRASH_SIGN: &[u8] = b"\ngoroutine ";
/// How far before it the head is looked for.
const CRASH_LOOKBACK: usize = 2 * 1024;

/// One of envd's two streams.
#[derive(Debug)]
pub(crate) struct Stream {
    pipe: OwnedFd,
    /// Bytes that the pipe holds.
    capacity: usize,
    partial: Vec<u8>,
    bucket: Bucket,
    flood: Option<Flood>,
    /// Lines of a crash that may still pass; 0: there is none.
    crash: u32,
    /// Not to be read before.
    nap: Option<Moment>,
}

#[derive(Debug)]
struct Flood {
    lines: u64,
    tail: Vec<u8>,
    sum_at: Moment,
    nap: Duration,
}

/// How a stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// To be read when there is something.
    Open,
    /// To be read when its nap is over.
    Napping,
    Ended,
}

impl Stream {
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        // A smaller one, where that is not allowed, serves as well.
        let size =
            fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE)).or_else(|_| fcntl(&pipe, FcntlArg::F_GETPIPE_SZ));
        Self {
            pipe,
            capacity: size.map_or(0, |size| size as usize),
            partial: Vec::new(),
            bucket: Bucket::new(BURST, PER_SECOND),
            flood: None,
            crash: 0,
            nap: None,
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// When [`Stream::settle`] or, after a nap, [`Stream::drain`] is due.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.nap.into_iter().chain(self.flood.as_ref().map(|flood| flood.sum_at)).min()
    }

    /// Whether it is not to be watched now.
    pub(crate) fn is_napping(&self) -> bool {
        self.nap.is_some()
    }

    /// Whether a nap is over.
    pub(crate) fn slept(&self, now: Moment) -> bool {
        self.nap.is_some_and(|until| until <= now)
    }

    /// Reads what is there. `buffer` is shared by all streams.
    pub(crate) fn drain(&mut self, buffer: &mut [u8], now: Moment, last: &mut LastLines) -> Flow {
        self.nap = None;
        let mut found = 0;
        for _ in 0..READS {
            match guest::reactor::read_ready(&self.pipe, buffer) {
                Ok(Some(0)) | Err(_) => {
                    self.say_rest(last);
                    return Flow::Ended;
                }
                Ok(Some(count)) => {
                    found += count;
                    self.take(&buffer[..count], now, last);
                    if count < buffer.len() {
                        break;
                    }
                }
                Ok(None) => return Flow::Open,
            }
        }
        let Some(flood) = &mut self.flood else { return Flow::Open };
        let little = self.capacity / LITTLE;
        if found < little {
            flood.nap = (flood.nap * 2).min(LONGEST_NAP);
        } else if found > 2 * little {
            flood.nap = SHORTEST_NAP;
        }
        self.nap = Some(now + flood.nap);
        Flow::Napping
    }

    /// The process is dead: says what is left, unfinished line included.
    pub(crate) fn finish(&mut self, buffer: &mut [u8], now: Moment, last: &mut LastLines) {
        // What others who hold the pipe still write is not awaited.
        self.drain(buffer, now, last);
        self.say_rest(last);
    }

    fn say_rest(&mut self, last: &mut LastLines) {
        self.end_flood(last);
        let rest = std::mem::take(&mut self.partial);
        if !rest.is_empty() {
            self.say(&rest, last);
        }
    }

    /// Logs a flood's count and tail once it has been counted for a while.
    pub(crate) fn settle(&mut self, now: Moment, last: &mut LastLines) {
        if self.flood.as_ref().is_some_and(|flood| flood.sum_at <= now) {
            self.end_flood(last);
        }
    }

    fn take(&mut self, bytes: &[u8], now: Moment, last: &mut LastLines) {
        let Some(flood) = &mut self.flood else { return self.take_lines(bytes, now, last) };
        if let Some(crash) = flood.swallow(bytes) {
            self.end_flood(last);
            self.take_lines(&crash, now, last);
        }
    }

    fn take_lines(&mut self, bytes: &[u8], now: Moment, last: &mut LastLines) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (line, after) = split_line(rest);
            rest = after;
            self.partial.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
            if !line.ends_with(b"\n") && self.partial.len() < LONGEST_LINE {
                continue;
            }
            let whole = std::mem::take(&mut self.partial);
            if !self.passes(&whole, now) {
                self.flood = Some(Flood::of(&whole, now + FLOOD_SUM));
                return self.take(rest, now, last);
            }
            self.say(&whole, last);
        }
    }

    /// Whether a line may be logged.
    fn passes(&mut self, line: &[u8], now: Moment) -> bool {
        if self.crash == 0 && is_crash(line) {
            self.crash = CRASH_LINES;
        }
        self.crash > 0 || self.bucket.take(now)
    }

    fn say(&mut self, line: &[u8], last: &mut LastLines) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (level, text) = record::split_level(line);
        if self.crash > 0 {
            self.crash -= 1;
            guest::log::emit_crash("envd", level, text);
        } else {
            guest::log::emit("envd", level, text);
        }
        last.add(record::sanitize(&text[..text.len().min(REPORTED)]));
    }

    fn end_flood(&mut self, last: &mut LastLines) {
        let Some(flood) = self.flood.take() else { return };
        let mut lines: Vec<&[u8]> = flood.tail.split(|byte| *byte == b'\n').collect();
        // The last one is not finished.
        self.partial = lines.pop().unwrap_or_default().to_vec();
        // Of more than the tail holds, the first one in it is cut.
        let cut = usize::from(flood.lines > lines.len() as u64).min(lines.len());
        let dropped = flood.lines - (lines.len() - cut) as u64;
        if dropped > 0 {
            let text = format!("{dropped} lines dropped: too many a second");
            guest::log::emit("envd", Level::Warn, text.as_bytes());
        }
        lines[cut..].iter().for_each(|line| self.say(line, last));
    }
}

impl Flood {
    /// One that begins with `line`.
    fn of(line: &[u8], sum_at: Moment) -> Self {
        Self { lines: 1, tail: [line, b"\n"].concat(), sum_at, nap: SHORTEST_NAP }
    }

    /// Counts lines and keeps the tail. Where a crash begins, gives back everything from there on.
    fn swallow(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if let Some(sign) = self.crash_sign(bytes)
            && let Some(crash) = self.split_crash(bytes, sign)
        {
            return Some(crash);
        }
        self.lines += count_lines(bytes);
        let fresh = &bytes[bytes.len().saturating_sub(FLOOD_TAIL)..];
        let excess = (self.tail.len() + fresh.len()).saturating_sub(FLOOD_TAIL).min(self.tail.len());
        self.tail.drain(..excess);
        self.tail.extend_from_slice(fresh);
        None
    }

    /// Where in the tail and `bytes` behind it a crash shows; the sign may lie across the seam.
    fn crash_sign(&self, bytes: &[u8]) -> Option<usize> {
        let kept = self.tail.len();
        let before = &self.tail[kept - kept.min(CRASH_SIGN.len() - 1)..];
        let seam = [before, &bytes[..bytes.len().min(CRASH_SIGN.len() - 1)]].concat();
        let at_seam = memmem::find(&seam, CRASH_SIGN).map(|at| kept - before.len() + at);
        at_seam.or_else(|| memmem::find(bytes, CRASH_SIGN).map(|at| kept + at))
    }

    /// Looks for the head of the crash whose sign is at `sign`; it may be in the tail already.
    fn split_crash(&mut self, bytes: &[u8], sign: usize) -> Option<Vec<u8>> {
        let mut window = std::mem::take(&mut self.tail);
        let kept = window.len();
        window.extend_from_slice(bytes);
        let from = sign.saturating_sub(CRASH_LOOKBACK);
        let starts = memchr::memchr_iter(b'\n', &window[from..sign]).map(|end| from + end + 1);
        let Some(head) = starts.chain((from == 0).then_some(0)).filter(|at| is_crash(&window[*at..])).min()
        else {
            window.truncate(kept);
            self.tail = window;
            return None;
        };
        let crash = window.split_off(head);
        self.lines = self.lines + count_lines(&window) - count_lines(&window[..kept.min(head)]);
        self.lines -= count_lines(&crash[..kept.saturating_sub(head)]);
        window.drain(..window.len().saturating_sub(FLOOD_TAIL));
        self.tail = window;
        Some(crash)
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

/// The first line with its newline (at most [`LONGEST_LINE`]), and what follows.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
    bytes.split_at(end.min(LONGEST_LINE))
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

    /// envd closes it, or has died and that is not known yet.
    #[test]
    fn at_its_end_a_stream_says_what_is_left() {
        let flood: String = (0..1_000).map(|number| format!("line {number}\n")).collect();
        for before in ["", &flood] {
            let (mut stream, write) = stream();
            let (mut last, mut buffer) = (LastLines::default(), vec![0; 65_536]);
            nix::unistd::write(&write, format!("{before}unfinished").as_bytes()).unwrap();
            drop(write);
            while stream.drain(&mut buffer, Duration::ZERO, &mut last) != Flow::Ended {}
            assert_eq!(last.take().last().map(String::as_str), Some("unfinished"));
        }
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
    fn a_crash_in_the_middle_of_a_flood_stays_whole() {
        for cut in [0, 10, 30, 50] {
            let (mut stream, _write) = stream();
            let mut last = LastLines::default();
            let now = Duration::from_secs(1);
            let flood: String = (0..10_000).map(|number| format!("line {number}\n")).collect();
            let crash = "panic: out of cheese\n\ngoroutine 7 [running]:\nmain.main()\n";
            stream.take(flood.as_bytes(), now, &mut last);
            stream.take(&[b"before\n", &crash.as_bytes()[..cut]].concat(), now, &mut last);
            stream.take(&crash.as_bytes()[cut..], now, &mut last);
            assert!(stream.flood.is_none() && stream.crash > 0, "cut at {cut}");
            assert_eq!(
                last.take()[..4],
                ["panic: out of cheese", "", "goroutine 7 [running]:", "main.main()"]
            );
        }
    }

    #[test]
    fn a_flood_is_read_in_naps_and_summed_up_once_a_second() {
        let (mut stream, write) = stream();
        let (mut last, mut buffer) = (LastLines::default(), vec![0; 4096]);
        let now = Duration::from_secs(1);
        let flood: String = (0..2_000).map(|number| format!("line {number}\n")).collect();
        nix::unistd::write(&write, flood.as_bytes()).unwrap();
        assert_eq!(stream.drain(&mut buffer, now, &mut last), Flow::Napping);
        let after = now + SHORTEST_NAP * 2;
        assert_eq!(stream.deadline(), Some(after));
        nix::unistd::write(&write, b"and another\n").unwrap();
        assert_eq!(stream.drain(&mut buffer, after, &mut last), Flow::Napping);
        assert_eq!(stream.deadline(), Some(after + SHORTEST_NAP * 4), "it sleeps longer");
        assert_eq!(stream.drain(&mut buffer, after, &mut last), Flow::Open, "nothing more came");
        assert_eq!(stream.deadline(), Some(now + FLOOD_SUM));
        stream.settle(now + FLOOD_SUM, &mut last);
        assert_eq!(stream.deadline(), None);
    }
}
