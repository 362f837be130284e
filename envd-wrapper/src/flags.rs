//! envd's own arguments, as Go's `flag` package reads them: one dash or two, `-name=value` or `-name value`, the last one wins,
//! and flags end at `--` or at the first word that is none.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Flags without a value of their own; it may follow `=`.
const SWITCHES: [&[u8]; 6] =
    [b"commit", b"isnotfc", b"no-cgroups", b"resume-handover", b"verbose", b"version"];
/// Flags with one.
const VALUED: [&[u8]; 2] = [b"cgroup-root", b"port"];
/// Switches at which envd says something and ends.
const QUESTIONS: [&[u8]; 2] = [b"commit", b"version"];
/// No switches of envd's, so that Go tells how it is used, whatever their value.
const HELP: [&[u8]; 2] = [b"h", b"help"];
/// Values that turn a switch off.
const OFF: [&[u8]; 6] = [b"0", b"f", b"F", b"false", b"False", b"FALSE"];
/// What a live upgrade passes to the new program.
const RESUME_HANDOVER: &[u8] = b"resume-handover";

struct Flag<'a> {
    name: &'a [u8],
    value: Option<&'a [u8]>,
}

/// Where envd is told to listen, if it is.
pub(crate) fn port(arguments: &[OsString]) -> Option<u16> {
    std::str::from_utf8(last(arguments, b"port")?.value?).ok()?.parse().ok()
}

/// Whether envd is to say something and end, instead of serving.
pub(crate) fn is_question(arguments: &[OsString]) -> bool {
    let is_on = |flag: Flag<'_>| !flag.value.is_some_and(|value| OFF.contains(&value));
    flags(arguments).any(|flag| HELP.contains(&flag.name))
        || QUESTIONS.iter().any(|name| last(arguments, name).is_some_and(is_on))
}

/// Whether a word tells envd to wait for a predecessor.
pub(crate) fn is_handover(word: &OsStr) -> bool {
    split(word.as_bytes()).is_some_and(|(name, _)| name == RESUME_HANDOVER)
}

fn last<'a>(arguments: &'a [OsString], name: &[u8]) -> Option<Flag<'a>> {
    flags(arguments).filter(|flag| flag.name == name).last()
}

fn flags(arguments: &[OsString]) -> impl Iterator<Item = Flag<'_>> {
    let mut words = arguments.iter().map(|word| word.as_bytes()).peekable();
    std::iter::from_fn(move || {
        let (name, inline) = split(words.next()?)?;
        let value = match inline {
            None if takes_next(name, words.peek().copied()) => words.next(),
            inline => inline,
        };
        Some(Flag { name, value })
    })
}

/// Whether the next word is the flag's value. Of a flag that is not known here that word tells: one of a later envd.
fn takes_next(name: &[u8], next: Option<&[u8]>) -> bool {
    let may_be_value = || next.is_some_and(|next| !next.starts_with(b"-"));
    VALUED.contains(&name) || (!SWITCHES.contains(&name) && !HELP.contains(&name) && may_be_value())
}

/// A flag's name and the value behind its `=`; `None`: no flag.
fn split(word: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let flag = word.strip_prefix(b"--").or_else(|| word.strip_prefix(b"-"))?;
    if flag.is_empty() || flag.starts_with(b"-") || flag.starts_with(b"=") {
        return None;
    }
    Some(match memchr::memchr(b'=', flag) {
        Some(at) => (&flag[..at], Some(&flag[at + 1..])),
        None => (flag, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_port_is_found_in_each_of_gos_spellings_and_the_last_wins() {
        for spelling in ["-port 5", "--port 5", "-port=5", "--port=5", "-verbose -port 7 -port=5"] {
            assert_eq!(port(&words(spelling)), Some(5), "{spelling}");
        }
        let others = "-cgroup-root /x -unknown y -new -port 5";
        assert_eq!(port(&words(others)), Some(5), "values are passed over");
    }

    #[test]
    fn what_is_no_flag_ends_the_flags() {
        let none = ["", "-port", "-port x", "-- -port 5", "-verbose word -port 5", "- -port 5", "---port=5"];
        for spelling in none {
            assert_eq!(port(&words(spelling)), None, "{spelling}");
        }
        assert_eq!(port(&words("-cgroup-root -port 5")), None, "a value, whatever it looks like");
    }

    /// Compared with what envd itself does of each.
    #[test]
    fn a_question_is_told_from_a_start() {
        let questions = [
            "-version",
            "--version",
            "-commit",
            "--commit=true",
            "-h",
            "-help",
            "--help",
            "-h=false",
            "-port 5 -version",
            "-cgroup-root /x --commit",
            "-version=false -version=1",
            "-verbose=false -isnotfc -version",
            "-version word",
        ];
        for spelling in questions {
            assert!(is_question(&words(spelling)), "{spelling}");
        }
        let starts = [
            "",
            "-verbose",
            "-version=false",
            "-version -version=F",
            "-cgroup-root -version",
            "-- -version",
            "word -h",
            "-versions",
            "-port 5",
        ];
        for spelling in starts {
            assert!(!is_question(&words(spelling)), "{spelling}");
        }
    }

    #[test]
    fn a_handover_is_known_in_each_spelling() {
        let is = |word: &str| is_handover(OsStr::new(word));
        assert!(["-resume-handover", "--resume-handover", "-resume-handover=true"].into_iter().all(is));
        assert!(!["resume-handover", "-resume-handovers", "-port"].into_iter().any(is));
    }
}
