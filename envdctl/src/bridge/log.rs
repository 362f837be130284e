//! What the bridge says: one line an event, for people or (`--log json`) for machines, on standard error.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use clap::ValueEnum;
use serde_json::{Map, Value, json};

static JSON: AtomicBool = AtomicBool::new(false);

/// The form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Time, sandbox and text
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Info,
    Warn,
    Error,
}

/// To be called once, at start.
pub(super) fn init(format: Format) {
    JSON.store(format == Format::Json, Ordering::Relaxed);
}

/// Says one event. `fields` are for machines; `text` holds the same for people.
pub(super) fn say(
    level: Level,
    sandbox: Option<&str>,
    event: &str,
    text: &str,
    fields: &[(&str, &dyn ToString)],
) {
    let line = if JSON.load(Ordering::Relaxed) {
        json_line(level, sandbox, event, text, fields)
    } else {
        text_line(level, sandbox, text)
    };
    // Whoever reads the log may have gone; the connections have not.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn text_line(level: Level, sandbox: Option<&str>, text: &str) -> String {
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    let mark = match level {
        Level::Info => "",
        Level::Warn => "warning: ",
        Level::Error => "error: ",
    };
    let name = sandbox.map(|name| format!("{name}: ")).unwrap_or_default();
    format!("{now} bridge: {}{mark}{}\n", escape(&name), escape(text))
}

fn json_line(
    level: Level,
    sandbox: Option<&str>,
    event: &str,
    text: &str,
    fields: &[(&str, &dyn ToString)],
) -> String {
    let mut record = Map::new();
    record.insert("time".into(), json!(humantime::format_rfc3339_millis(SystemTime::now()).to_string()));
    record.insert("level".into(), json!(format!("{level:?}").to_lowercase()));
    record.insert("event".into(), json!(event));
    if let Some(name) = sandbox {
        record.insert("sandbox".into(), json!(name));
    }
    for (key, value) in fields {
        record.insert((*key).to_owned(), json!(value.to_string()));
    }
    record.insert("text".into(), json!(text));
    format!("{}\n", Value::Object(record))
}

/// Names and errors may hold what a file system allows; a terminal gets no control bytes.
fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_whatever_it_quotes() {
        let line = text_line(Level::Warn, Some("a\nb"), "x\u{1b}[31m");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(!line.contains('\u{1b}'));
        assert!(line.contains("warning: "));
    }

    #[test]
    fn a_json_line_carries_the_fields() {
        let line = json_line(Level::Info, Some("s"), "route", "text", &[("from", &"a"), ("to", &7)]);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["sandbox"], "s");
        assert_eq!(value["to"], "7");
    }
}
