//! Text for people: tables, durations, sizes, colours – and making harmless whatever a guest sent.
//!
//! A guest is not trusted. Its log may hold escape sequences that repaint the operator's terminal, line breaks that
//! fake another record, or a megabyte without a pause. Everything that comes from outside goes through
//! [`sanitise`] before it is printed, also when the guest says that it has done so itself.

use std::{borrow::Cow, fmt::Write as _, io::IsTerminal, time::Duration};

/// The longest piece of foreign text (characters) that is printed on one line.
pub const MAX_FOREIGN: usize = 4096;

/// Makes text from a guest or a file fit for a terminal: control bytes and characters that reorder or hide text
/// become visible escapes, and what is over [`MAX_FOREIGN`] characters is cut with a mark.
pub fn sanitise(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_FOREIGN && !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len().min(MAX_FOREIGN + 32));
    for (count, (at, c)) in text.char_indices().enumerate() {
        if count == MAX_FOREIGN {
            let _ = write!(clean, " …[{} more bytes]", text.len() - at);
            break;
        }
        push_visible(&mut clean, c);
    }
    Cow::Owned(clean)
}

/// The same for bytes that may be no text at all.
pub fn sanitise_bytes(bytes: &[u8]) -> String {
    sanitise(&String::from_utf8_lossy(bytes)).into_owned()
}

fn push_visible(out: &mut String, c: char) {
    if !is_harmful(c) {
        out.push(c);
    } else if c == '\t' {
        out.push(' ');
    } else if (c as u32) < 0x100 {
        let _ = write!(out, "\\x{:02x}", c as u32);
    } else {
        let _ = write!(out, "\\u{{{:x}}}", c as u32);
    }
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and invisible or reordering marks.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A span of time as a person says it: `850 µs`, `12.3 ms`, `4.56 s`, `3 min 02 s`, `5 h 07 min`, `2 d 03 h`.
pub fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match span.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", span.as_secs_f64() * 1e3),
        1_000_000..60_000_000 => format!("{:.2} s", span.as_secs_f64()),
        _ if seconds < 3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ if seconds < 86400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// [`duration`] of a count of nanoseconds.
pub fn nanos(ns: u64) -> String {
    duration(Duration::from_nanos(ns))
}

/// A size in binary units: `512 B`, `12.3 KiB`, `4.0 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 restart`, `2 restarts`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Columns of text, each as wide as its widest cell; the last one is not padded.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether it has nothing below its header.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The lines of the table, each indented by `indent` blanks.
    pub fn render(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|c| cells(c)).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell}{}  ", " ".repeat(width - cells(cell)));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Terminal cells of a text, without its colour sequences.
fn cells(text: &str) -> usize {
    let mut count = 0;
    let mut in_colour = false;
    for c in text.chars() {
        match (in_colour, c) {
            (false, '\x1b') => in_colour = true,
            (false, _) => count += 1,
            (true, 'm') => in_colour = false,
            (true, _) => {}
        }
    }
    count
}

/// When to colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    Always,
    Never,
}

/// Colours, where a person looks; nothing elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    pub fn new(choice: ColorChoice) -> Self {
        let on = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            }
        };
        Self { on }
    }

    pub const fn plain() -> Self {
        Self { on: false }
    }

    pub fn red(self, text: &str) -> String {
        self.wrap("31;1", text)
    }

    pub fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub fn cyan(self, text: &str) -> String {
        self.wrap("36", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Writes to standard output; a reader that went away (`| head`) ends the program quietly.
pub fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// A value as indented JSON with a newline at its end.
pub fn json<T: serde::Serialize>(value: &T) -> String {
    visible_json(serde_json::to_string_pretty(value))
}

/// A value as JSON on one line.
pub fn json_line<T: serde::Serialize>(value: &T) -> String {
    visible_json(serde_json::to_string(value))
}

fn visible_json(text: serde_json::Result<String>) -> String {
    let text = text.unwrap_or_else(|error| format!("{{\"error\":\"cannot be written as JSON: {error}\"}}"));
    // JSON escapes C0 itself; C1 and reordering marks are text to it and would reach the terminal.
    let mut clean = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c != '\n' && is_harmful(c) {
            let _ = write!(clean, "\\u{:04x}", c as u32);
        } else {
            clean.push(c);
        }
    }
    clean.push('\n');
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bytes_become_visible_and_plain_text_is_left_alone() {
        assert_eq!(sanitise("plain – text ü"), "plain – text ü");
        assert_eq!(sanitise("a\x1b[2Jb\nc\0\u{9b}d\u{202e}e"), "a\\x1b[2Jb\\x0ac\\x00\\x9bd\\u{202e}e");
    }

    #[test]
    fn a_megabyte_is_cut_with_a_mark() {
        let clean = sanitise(&"x".repeat(1 << 20)).into_owned();
        assert!(clean.len() < MAX_FOREIGN + 64, "{}", clean.len());
        assert!(clean.ends_with(" more bytes]"));
    }

    #[test]
    fn json_hides_nothing_from_a_terminal() {
        let text = json(&serde_json::json!({"a": "\x1b[2J\u{9b}\u{202e}"}));
        assert!(!text.chars().any(|c| c != '\n' && is_harmful(c)), "{text:?}");
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["a"], "\x1b[2J\u{9b}\u{202e}");
    }

    #[test]
    fn spans_and_sizes_read_as_people_say_them() {
        let spans = [(850_000, "850 µs"), (12_345_678, "12.3 ms"), (4_560_000_000, "4.56 s")];
        for (ns, said) in spans {
            assert_eq!(nanos(ns), said);
        }
        assert_eq!(duration(Duration::from_secs(182)), "3 min 02 s");
        assert_eq!(duration(Duration::from_secs(90_061)), "1 d 01 h");
        assert_eq!(
            (bytes(512), bytes(12_595), bytes(5 << 30)),
            ("512 B".into(), "12.3 KiB".into(), "5.0 GiB".into())
        );
    }

    #[test]
    fn columns_line_up_whatever_their_colour() {
        let paint = Paint { on: true };
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec![paint.red("a"), "x".into()]);
        table.row(vec!["longer".into(), "y".into()]);
        assert_eq!(table.render(0), "NAME    STATE\n\x1b[31;1ma\x1b[0m       x\nlonger  y\n");
    }
}
