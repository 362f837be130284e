//! One line of log, made safe.
//!
//! What a service prints may hold escape sequences, fake prefixes or megabytes without a newline. Everything that
//! reaches the console or the ring goes through here: control bytes are escaped, invalid UTF-8 is shown as bytes, long lines are
//! split with a mark, and each piece carries the prefix of who really spoke.

use std::fmt::Write as _;

use crate::clock::Moment;

/// A piece of text longer than this (bytes, after escaping) is split.
pub const MAX_PIECE: usize = 900;
/// Where a line was split: at the end of a piece and at the head of the next.
pub const SPLIT_MARK: char = '…';

/// How much a record matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// The inverse of [`Level::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Debug, Self::Info, Self::Warn, Self::Error].into_iter().find(|level| level.as_str() == text)
    }

    /// The digit of a `<4>` prefix.
    pub const fn syslog(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warn => 4,
            Self::Info => 6,
            Self::Debug => 7,
        }
    }

    /// From the digit of a `<4>` prefix, as syslog counts.
    const fn from_syslog(digit: u8) -> Self {
        match digit {
            b'0'..=b'3' => Self::Error,
            b'4' => Self::Warn,
            b'7' => Self::Debug,
            _ => Self::Info,
        }
    }
}

/// Takes a `<4>` prefix off a line that a service printed.
pub fn split_level(line: &[u8]) -> (Level, &[u8]) {
    match line {
        [b'<', digit @ b'0'..=b'7', b'>', rest @ ..] => (Level::from_syslog(*digit), rest),
        _ => (Level::Info, line),
    }
}

/// Makes bytes harmless: one line, no control characters, valid UTF-8.
pub fn sanitize(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|letter| push_harmless(&mut text, letter));
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

fn push_harmless(text: &mut String, letter: char) {
    match letter {
        '\t' => text.push(' '),
        '\0'..='\x1f' | '\x7f' => {
            let _ = write!(text, "\\x{:02x}", u32::from(letter));
        }
        _ if is_deceptive(letter) => {
            let _ = write!(text, "\\u{{{:x}}}", u32::from(letter));
        }
        _ => text.push(letter),
    }
}

/// Characters that steer a terminal or reorder what a person reads.
const fn is_deceptive(letter: char) -> bool {
    matches!(letter,
        '\u{80}'..='\u{9f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Cuts sanitised text into pieces of at most [`MAX_PIECE`] bytes, with the mark where it was cut.
pub fn pieces(text: &str) -> impl Iterator<Item = String> {
    let mut rest = Some(text);
    let mut first = true;
    std::iter::from_fn(move || {
        let whole = rest.take()?;
        let head =
            if whole.len() <= MAX_PIECE { whole } else { &whole[..whole.floor_char_boundary(MAX_PIECE)] };
        let mut piece = String::with_capacity(head.len() + 8);
        if !std::mem::take(&mut first) {
            piece.push(SPLIT_MARK);
        }
        piece.push_str(head);
        if head.len() < whole.len() {
            piece.push(SPLIT_MARK);
            rest = Some(&whole[head.len()..]);
        }
        Some(piece)
    })
}

/// The console's line: seconds since boot, who speaks, what.
pub fn console_line(at: Moment, component: &str, text: &str) -> String {
    format!("[{:>5}.{:06}] {component}: {text}\n", at.as_secs(), at.subsec_micros())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_console_line_reads_like_the_kernels() {
        let line = console_line(Duration::from_micros(12_345), "init", "eth0 169.254.0.21/30 already up");
        assert_eq!(line, "[    0.012345] init: eth0 169.254.0.21/30 already up\n");
    }

    #[test]
    fn escape_sequences_and_fake_lines_are_shown_not_obeyed() {
        assert_eq!(sanitize(b"\x1b[2Jboo\n[ 0.1] init: fake"), "\\x1b[2Jboo\\x0a[ 0.1] init: fake");
        assert_eq!(sanitize("\u{202e}evil\u{9b}".as_bytes()), "\\u{202e}evil\\u{9b}");
        assert_eq!(sanitize(b"bin\xff\xfe"), "bin\\xff\\xfe");
    }

    #[test]
    fn a_syslog_prefix_becomes_the_level() {
        assert_eq!(split_level(b"<4>low memory"), (Level::Warn, &b"low memory"[..]));
        assert_eq!(split_level(b"<nil>"), (Level::Info, &b"<nil>"[..]));
    }

    #[test]
    fn a_long_line_is_split_with_marks_and_loses_nothing() {
        let text = "ä".repeat(2000);
        let pieces: Vec<String> = pieces(&text).collect();
        assert!(pieces.len() > 1 && pieces[0].ends_with(SPLIT_MARK) && pieces[1].starts_with(SPLIT_MARK));
        assert_eq!(pieces.concat().replace(SPLIT_MARK, ""), text);
    }

    proptest! {
        #[test]
        fn whatever_comes_in_one_harmless_line_comes_out(bytes: Vec<u8>) {
            let text = sanitize(&bytes);
            prop_assert!(text.chars().all(|letter| !letter.is_control() && !is_deceptive(letter)));
        }
    }
}
