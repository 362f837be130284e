//! `envdctl console`: follows the serial console – a file, or what a VMM prints – and colours it.

pub mod record;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
    thread,
    time::Duration,
};

use clap::Args;

use crate::{
    exit::{Exit, Failure, Fatal},
    logs, status,
    text::{self, ColorChoice, Paint, sanitise},
};
use record::Line;

/// How often a file that is followed is looked at when it had nothing new.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The longest line (bytes) that is held; what is longer is shown in pieces.
const MAX_LINE: u64 = 64 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  envdctl console /var/log/sandbox/console.log -f
  qemu-system-x86_64 … -serial stdio | envdctl console
  journalctl -u orchestrator -o cat -f | envdctl console")]
pub struct ConsoleArgs {
    /// A file with the console's output, raw or in the orchestrator's JSON lines; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Go on as the file grows; begins anew when it is replaced or truncated
    #[arg(short, long)]
    follow: bool,
    /// Show records of ours alone, not what else is printed on the console
    #[arg(long)]
    records: bool,
    /// One JSON object a line: {at_ns, component, text}
    #[arg(long)]
    json: bool,
    /// Colour the lines
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

/// Why a console cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error("cannot open the console log {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read the console log {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

impl Fatal for ConsoleError {
    fn exit(&self) -> Exit {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::NotPermitted
            }
            _ => Exit::BadInput,
        }
    }
}

/// Shows the console until it ends, or for ever when it is followed.
pub fn run(args: &ConsoleArgs) -> Result<Exit, Failure> {
    let view = View { paint: Paint::new(args.color), records: args.records, json: args.json };
    let mut source = open(&args.file)?;
    let mut line = Vec::new();
    loop {
        let read = next_line(&mut source, &mut line)
            .map_err(|source| ConsoleError::Read { path: args.file.clone(), source })?;
        if line.ends_with(b"\n")
            || line.len() as u64 >= MAX_LINE
            || (read == 0 && !line.is_empty() && !args.follow)
        {
            text::print(&view.line(&String::from_utf8_lossy(&line)));
            line.clear();
        } else if read == 0 {
            if !args.follow {
                return Ok(Exit::Ok);
            }
            thread::sleep(LOOK_AGAIN);
            if replaced(args, &source) {
                source = open(&args.file)?;
            }
        }
    }
}

/// What the console is read from.
enum Source {
    Input(BufReader<io::Stdin>),
    File(BufReader<File>),
}

fn open(path: &PathBuf) -> Result<Source, ConsoleError> {
    if path.as_os_str() == "-" {
        return Ok(Source::Input(BufReader::new(io::stdin())));
    }
    let file = File::open(path).map_err(|source| ConsoleError::Open { path: path.clone(), source })?;
    Ok(Source::File(BufReader::new(file)))
}

fn next_line(source: &mut Source, line: &mut Vec<u8>) -> io::Result<usize> {
    let room = MAX_LINE.saturating_sub(line.len() as u64).max(1);
    match source {
        Source::Input(input) => input.take(room).read_until(b'\n', line),
        Source::File(file) => file.take(room).read_until(b'\n', line),
    }
}

/// Whether the name now leads to another file, or the file was cut.
fn replaced(args: &ConsoleArgs, source: &Source) -> bool {
    use std::{io::Seek, os::unix::fs::MetadataExt};
    let Source::File(reader) = source else { return false };
    let (Ok(now), Ok(held)) = (std::fs::metadata(&args.file), reader.get_ref().metadata()) else {
        return false;
    };
    let at = reader.get_ref().try_clone().and_then(|mut file| file.stream_position()).unwrap_or(0);
    (now.dev(), now.ino()) != (held.dev(), held.ino()) || held.len() < at
}

/// How lines are shown.
struct View {
    paint: Paint,
    records: bool,
    json: bool,
}

impl View {
    /// One line of the console, with its newline; empty where it is not to be shown.
    fn line(&self, raw: &str) -> String {
        match record::parse(raw) {
            Line::Record(record) if self.json => text::json_line(&serde_json::json!({
                "at_ns": record.at_ns, "component": record.component, "text": record.text
            })),
            Line::Record(record) => {
                let level = level_of(&record.text);
                logs::line(self.paint, record.at_ns, &record.component, level, &record.text) + "\n"
            }
            Line::Boot(report) => self.machine("boot", &boot_summary(&report)),
            Line::Exit(report) => {
                let said = format!(
                    "{} ended: {}",
                    sanitise(&report.service),
                    status::exit_line(&report, report.at_ns)
                );
                self.machine("exit", &said)
            }
            Line::Panic(text) => self.paint.red(&sanitise(&text)) + "\n",
            Line::Other(_) if self.records || self.json => String::new(),
            Line::Other(text) => sanitise(&text).into_owned() + "\n",
        }
    }

    fn machine(&self, word: &str, said: &str) -> String {
        if self.json {
            return text::json_line(&serde_json::json!({ "machine": word, "text": said }));
        }
        format!("{} {}\n", self.paint.cyan(&format!("envd-init {word}:")), self.paint.bold(said))
    }
}

fn boot_summary(report: &record::BootReport) -> String {
    let end = report.stages.iter().map(|stage| stage.end_ns).max().unwrap_or(0);
    format!("healthy {} after the kernel started", text::nanos(end))
}

/// The console has no levels; words that an operator must not overlook are coloured all the same.
fn level_of(text: &str) -> Option<&'static str> {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["panic", "fatal", "killed", "died", "failed", "cannot", "exited"]) {
        Some("error")
    } else if has(&["warning", "dropped", "degraded", "no answer", "restart"]) {
        Some("warn")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: View = View { paint: Paint::plain(), records: false, json: false };

    #[test]
    fn records_and_foreign_lines_are_shown_harmlessly() {
        assert_eq!(PLAIN.line("[    0.012345] init: ready\n"), "[    0.012345] init: ready\n");
        assert_eq!(PLAIN.line("gar\x1b[2Jbage\0\n"), "gar\\x1b[2Jbage\\x00\n");
    }

    #[test]
    fn a_death_is_told_in_words() {
        let report = serde_json::to_string(&status::tests::death(5)).unwrap();
        let line = PLAIN.line(&format!("envd-init: exit {report}"));
        assert!(line.starts_with("envd-init exit: envd ended: SIGKILL (out of memory)"), "{line}");
    }
}
