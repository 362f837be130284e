//! The last lines of a life: kept for the report of its death, the head of a crash before all.

use std::collections::VecDeque;

/// Lines that a death report holds.
const LAST_LINES: usize = 10;
/// Of these at most this many come from the head of a crash: the reason, and where.
const CRASH_HEAD: usize = 6;
/// After so many lines in a row that belong to no crash it was none that ended the life: Go programs recover, and go on.
/// The longest such stretch in a crash is one of registers, about twenty lines.
const ORDINARY_LINES: u32 = 100;

/// What the last lines of a life were: kept for the report of its death.
#[derive(Debug, Default)]
pub(crate) struct LastLines {
    recent: VecDeque<String>,
    /// The head of the last crash.
    crash: Vec<String>,
    /// Lines in a row that belong to no crash.
    ordinary: u32,
    after_blank: bool,
}

impl LastLines {
    pub(crate) fn add(&mut self, line: String) {
        self.ordinary = if is_of_dump(&line) { 0 } else { self.ordinary.saturating_add(1) };
        if self.ordinary > ORDINARY_LINES || self.begins_another(&line) {
            self.crash.clear();
        }
        self.after_blank = line.is_empty();
        let crashing = !self.crash.is_empty() || is_crash(line.as_bytes());
        if crashing && self.crash.len() < CRASH_HEAD {
            return self.crash.push(line);
        }
        if self.recent.len() == LAST_LINES {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    /// Whether a crash begins that is another one than the one that is held. A dump itself may have lines like a head: one of
    /// the runtime's remarks in its middle, and with `GOTRACEBACK=crash` one of SIGQUIT, after a blank line, for each thread.
    fn begins_another(&self, line: &str) -> bool {
        let of_the_same = line.starts_with(RUNTIME) || (line.starts_with(QUIT) && self.after_blank);
        // While the head is taken down, all that comes is of it.
        self.crash.len() == CRASH_HEAD && is_crash(line.as_bytes()) && !of_the_same
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

const QUIT: &str = "SIGQUIT: quit";
const RUNTIME: &str = "runtime: ";

/// How a Go program begins to say why it dies.
pub(crate) fn is_crash(line: &[u8]) -> bool {
    let heads = ["panic: ", "fatal error: ", RUNTIME];
    heads.iter().any(|head| line.starts_with(head.as_bytes())) || names_signal(line)
}

/// `SIGABRT: abort`, and so of every signal at which Go's runtime dumps what it does.
fn names_signal(line: &[u8]) -> bool {
    let Some(rest) = line.strip_prefix(b"SIG") else { return false };
    let name = rest.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    name > 0 && rest[name..].starts_with(b": ")
}

/// Whether a line, in which a tab has become a space, shows that a crash still goes on. What stands between such lines, functions
/// of goroutines, may look like anything.
fn is_of_dump(line: &str) -> bool {
    line.is_empty() || line.starts_with("goroutine ") || line.starts_with(' ') || is_crash(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_crash_is_in_the_report_however_long_it_is() {
        let mut last = LastLines::default();
        last.add("panic: runtime error: index out of range".to_owned());
        (0..500).for_each(|number| last.add(format!("goroutine {number}")));
        let lines = last.take();
        assert!(lines[0].starts_with("panic: ") && lines.len() <= LAST_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("goroutine 499"));
    }

    /// As Go's runtime prints it.
    fn crash(last: &mut LastLines, reason: &str) {
        let trace = ["", "goroutine 7 [running]:", "main.serve(0x1, 0x2)", " /src/main.go:57 +0x1d"];
        let all = [reason].into_iter().chain(trace).chain(["created by main.main", " /src/main.go:9 +0x5"]);
        all.for_each(|line| last.add(line.to_owned()));
    }

    /// A handler that panicked and was recovered, with its trace in the log, is not what ended envd an hour later.
    #[test]
    fn the_last_crash_is_told_and_not_an_older_one() {
        let mut last = LastLines::default();
        crash(&mut last, "panic: recovered");
        crash(&mut last, "fatal error: concurrent map writes");
        let lines = last.take();
        assert_eq!(lines[0], "fatal error: concurrent map writes");
        assert!(lines.len() <= LAST_LINES && !lines.contains(&"panic: recovered".to_owned()), "{lines:?}");
    }

    #[test]
    fn a_crash_that_envd_outlived_is_no_reason_of_its_death() {
        let mut last = LastLines::default();
        crash(&mut last, "panic: recovered");
        (0..=ORDINARY_LINES).for_each(|number| last.add(format!("request {number}")));
        let lines = last.take();
        assert!(lines.iter().all(|line| line.starts_with("request ")), "{lines:?}");
    }

    /// As Go's runtime prints them. The dump of one that was sent ABRT was ten lines of its end, without why.
    #[test]
    fn a_dump_on_each_signal_begins_with_that_signal() {
        for head in
            ["SIGABRT: abort", "SIGBUS: bus error", "SIGILL: illegal instruction", "SIGTRAP: trace trap"]
        {
            let mut last = LastLines::default();
            crash(&mut last, head);
            (0..20).for_each(|number| last.add(format!("goroutine {number}")));
            assert_eq!(last.take()[0], head);
        }
        for other in ["SIGNAL", "SIG: x", "SIGTERM received: ending", "SIGnal: x"] {
            assert!(!is_crash(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn heads_within_a_crash_are_of_the_same() {
        let mut last = LastLines::default();
        last.add("runtime: goroutine stack exceeds 1000000000-byte limit".to_owned());
        crash(&mut last, "fatal error: stack overflow");
        last.add("runtime: unexpected return pc".to_owned());
        ["-----", "", "SIGQUIT: quit", "PC=0x1 m=1"].iter().for_each(|line| last.add((*line).to_owned()));
        let lines = last.take();
        assert_eq!(
            lines[..2],
            ["runtime: goroutine stack exceeds 1000000000-byte limit", "fatal error: stack overflow"]
        );
    }
}
