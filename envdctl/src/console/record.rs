//! Reading the serial console: records, the two lines for machines, and what the kernel says when it dies.
//!
//! A saved log may be the raw bytes of the serial port, or a log of the orchestrator, which passes Firecracker's
//! output on inside its own JSON lines. Both may hold anything that a program in the guest chose to print: a
//! record counts as ours only where it stands at the very start of what the console printed.

use guest::control::{ExitReport, Stage};
use serde::Deserialize;

/// The start of the lines that are meant for machines.
const MACHINE: &str = "envd-init: ";
/// How deep a record may be wrapped in JSON that is a string in JSON.
const MAX_NESTING: usize = 4;

/// One line of the console, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    Record(Record),
    /// `envd-init: boot {json}`.
    Boot(BootReport),
    /// `envd-init: exit {json}`.
    Exit(Box<ExitReport>),
    /// The kernel cannot go on.
    Panic(String),
    Other(String),
}

/// `[    0.012345] init: text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub at_ns: u64,
    pub component: String,
    pub text: String,
}

/// What PID 1 prints once envd is healthy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct BootReport {
    #[serde(default)]
    pub stages: Vec<Stage>,
}

/// Understands one line, with or without its newline.
pub fn parse(raw: &str) -> Line {
    let line = strip_colours(raw.trim_end_matches(['\r', '\n']));
    unwrap_json(&line, 0).unwrap_or_else(|| plain(&line))
}

fn plain(line: &str) -> Line {
    let (stamp, rest) = split_stamp(line).map_or((None, line), |(at, rest)| (Some(at), rest));
    if let Some(machine) = rest.strip_prefix(MACHINE).and_then(machine) {
        return machine;
    }
    if rest.starts_with("Kernel panic - not syncing") {
        return Line::Panic(rest.to_owned());
    }
    let record = stamp.zip(split_component(rest));
    record.map_or_else(
        || Line::Other(line.to_owned()),
        |(at_ns, (component, text))| {
            Line::Record(Record { at_ns, component: component.to_owned(), text: text.to_owned() })
        },
    )
}

fn machine(rest: &str) -> Option<Line> {
    let (word, json) = rest.split_once(' ')?;
    match word {
        "boot" => serde_json::from_str(json).ok().map(Line::Boot),
        "exit" => serde_json::from_str(json).ok().map(|report| Line::Exit(Box::new(report))),
        _ => None,
    }
}

/// `[    0.012345] rest`: the time in nanoseconds, and the rest.
fn split_stamp(line: &str) -> Option<(u64, &str)> {
    let (stamp, rest) = line.strip_prefix('[')?.split_once("] ")?;
    let (seconds, fraction) = stamp.trim_start().split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if fraction.len() != 6 || !digits(seconds) || !digits(fraction) {
        return None;
    }
    let seconds: u64 = seconds.parse().ok()?;
    let micros: u64 = fraction.parse().ok()?;
    Some((seconds.checked_mul(1_000_000_000)?.checked_add(micros * 1000)?, rest))
}

/// `component: text`, where a component is one short word.
fn split_component(rest: &str) -> Option<(&str, &str)> {
    let (component, text) = rest.split_once(':')?;
    let word = !component.is_empty()
        && component.len() <= 64
        && component.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte));
    word.then(|| (component, text.strip_prefix(' ').unwrap_or(text)))
}

/// A line that is a JSON object: the console's line is one of its strings, perhaps behind a prefix of the writer.
fn unwrap_json(line: &str, depth: usize) -> Option<Line> {
    if depth > MAX_NESTING || !line.starts_with('{') {
        return None;
    }
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let mut strings = Vec::new();
    collect_strings(&value, &mut strings);
    strings.into_iter().find_map(|text| {
        let text = strip_colours(text.trim_end_matches(['\r', '\n']));
        unwrap_json(&text, depth + 1)
            .or_else(|| understood(&text))
            .or_else(|| understood(after_prefix(&text)?))
    })
}

fn understood(text: &str) -> Option<Line> {
    match plain(text) {
        Line::Other(_) => None,
        line => Some(line),
    }
}

/// `[sandbox x stdout]: [    0.1] init: …` and the like: from the last stamp that can be one on.
fn after_prefix(text: &str) -> Option<&str> {
    let stamp = text.match_indices('[').map(|(at, _)| &text[at..]).find(|rest| split_stamp(rest).is_some());
    stamp.or_else(|| {
        let at = ["envd-init: boot {", "envd-init: exit {", "Kernel panic - not syncing"]
            .iter()
            .filter_map(|start| text.find(start))
            .min()?;
        Some(&text[at..])
    })
}

fn collect_strings<'a>(value: &'a serde_json::Value, out: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::String(text) => out.push(text),
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_strings(item, out)),
        serde_json::Value::Object(fields) => fields.values().for_each(|field| collect_strings(field, out)),
        _ => {}
    }
}

/// Without the colour sequences that a tool between the guest and the file may have put in.
fn strip_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("\x1b[") {
        let tail = &rest[at + 2..];
        let end = tail.find(|c: char| c.is_ascii_alphabetic());
        match end {
            Some(end)
                if tail[..end].bytes().all(|b| b.is_ascii_digit() || b == b';')
                    && tail[end..].starts_with('m') =>
            {
                out.push_str(&rest[..at]);
                rest = &tail[end + 1..];
            }
            _ => {
                out.push_str(&rest[..at + 2]);
                rest = tail;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(line: &str) -> Record {
        match parse(line) {
            Line::Record(record) => record,
            other => panic!("{line:?} was read as {other:?}"),
        }
    }

    #[test]
    fn a_record_is_split_into_its_parts() {
        let found = record("[    0.012345] init: eth0 169.254.0.21/30 already up\r\n");
        assert_eq!((found.at_ns, found.component.as_str()), (12_345_000, "init"));
        assert_eq!(found.text, "eth0 169.254.0.21/30 already up");
    }

    #[test]
    fn the_orchestrators_json_is_looked_through() {
        for line in [
            r#"{"level":"info","msg":"[    1.500000] wrapper: envd is healthy","ts":1.5}"#,
            r#"{"msg":"[sandbox i4x stdout]: [    1.500000] wrapper: envd is healthy"}"#,
            r#"{"stream":{"line":"{\"message\":\"[    1.500000] wrapper: envd is healthy\\n\"}"}}"#,
        ] {
            assert_eq!(record(line).text, "envd is healthy", "{line}");
        }
    }

    #[test]
    fn a_machine_line_counts_only_at_the_start_of_what_the_console_printed() {
        let boot = r#"envd-init: boot {"stages":[{"name":"mounts","begin_ns":1,"end_ns":2}],"more":1}"#;
        assert!(matches!(parse(boot), Line::Boot(report) if report.stages.len() == 1));
        assert!(matches!(parse(&format!("[    0.731002] {boot}")), Line::Boot(_)));
        assert!(matches!(parse(&format!("[    0.731002] app: {boot}")), Line::Record(_)));
        assert!(matches!(parse(&serde_json::json!({ "msg": boot }).to_string()), Line::Boot(_)));
    }

    #[test]
    fn what_is_no_record_is_kept_as_it_is() {
        for line in ["", "login:", "[x] y: z", "[ 1.2] a: b", "{\"a\":1}", "{", "[    0.000001] two words: x"]
        {
            assert!(matches!(parse(line), Line::Other(_)), "{line:?}");
        }
    }

    #[test]
    fn a_dying_kernel_is_noticed() {
        let line = "[    0.400000] Kernel panic - not syncing: No working init found.";
        assert!(matches!(parse(line), Line::Panic(text) if text.contains("No working init")));
    }
}
