//! The last lines of a life: kept for the report of its death, the head of a crash before all.

use std::collections::VecDeque;

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
    pub(crate) fn add(&mut self, line: String) {
        let crashing = !self.crash.is_empty() || is_crash(line.as_bytes());
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
pub(crate) fn is_crash(line: &[u8]) -> bool {
    ["panic: ", "fatal error: ", "SIGQUIT: quit", "SIGSEGV: ", "runtime: "]
        .iter()
        .any(|head| line.starts_with(head.as_bytes()))
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
}
