//! `envdctl logs`: the guest's log ring, in order, with its gaps said.

use std::time::Duration;

use clap::Args;
use guest::control::{LogRecord, Op, Reply};

use crate::{
    client::{ANSWER_BOUND, Client},
    exit::{Exit, Failure},
    guest_args::GuestArgs,
    text::{self, ColorChoice, Paint, sanitise},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  envdctl logs --fc-socket /path/v.sock
  envdctl logs -f --service envd
  envdctl logs --since 5m --json | jq -r .text")]
pub struct LogsArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Go on printing as the guest writes
    #[arg(short, long)]
    follow: bool,
    /// Only this service or component: envd, wrapper, relay, init, …
    #[arg(short, long, value_name = "NAME")]
    service: Option<String>,
    /// Only what is younger: 90, 90s, 5m, 2h, 1d, 250ms
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    since: Option<Duration>,
    /// One JSON object a line: {seq, at_ns, component, level, text}; a gap is {"lost": N}
    #[arg(long)]
    json: bool,
    /// Colour the lines
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

/// Reads a span of time: digits and a unit; without a unit seconds.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no span of time: write 90s, 5m, 2h, 1d or 250ms");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let milliseconds: u64 = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)
}

/// Prints the ring.
pub fn run(args: LogsArgs) -> Result<Exit, Failure> {
    let endpoint = args.guest.endpoint()?;
    let mut client = Client::connect(&endpoint, ANSWER_BOUND)?;
    let since_ms = args.since.map(|age| age.as_millis() as u64);
    let printer = Printer::new(args.json, Paint::new(args.color));
    client.send(Op::Logs { follow: args.follow, service: args.service, since_ms })?;
    let bound = (!args.follow).then_some(ANSWER_BOUND);
    loop {
        match client.next(bound)? {
            Reply::Records { records, lost } => text::print(&printer.batch(&records, lost)),
            _ => return Ok(Exit::Ok),
        }
    }
}

/// Turns records into lines, and says what is missing between them (the guest counts that).
#[derive(Debug)]
struct Printer {
    json: bool,
    paint: Paint,
}

impl Printer {
    const fn new(json: bool, paint: Paint) -> Self {
        Self { json, paint }
    }

    fn batch(&self, records: &[LogRecord], lost: u64) -> String {
        let mut out = String::new();
        if lost > 0 {
            out.push_str(&self.gap(lost));
        }
        for record in records {
            out.push_str(&self.line(record));
        }
        out
    }

    fn gap(&self, lost: u64) -> String {
        if self.json {
            return format!("{{\"lost\":{lost}}}\n");
        }
        let said =
            format!("               … {} lost here (overwritten or dropped)\n", text::count(lost, "record"));
        self.paint.yellow(&said)
    }

    fn line(&self, record: &LogRecord) -> String {
        if self.json {
            return text::json_line(record);
        }
        line(self.paint, record.at_ns, &record.component, Some(&record.level), &record.text) + "\n"
    }
}

/// One record as the serial console shows it, coloured where a person looks.
pub fn line(paint: Paint, at_ns: u64, component: &str, level: Option<&str>, text: &str) -> String {
    let stamp = paint.dim(&format!("[{:5}.{:06}]", at_ns / 1_000_000_000, at_ns / 1000 % 1_000_000));
    let text = sanitise(text);
    let text = match level {
        Some("error") => paint.red(&text),
        Some("warn") => paint.yellow(&text),
        Some("debug") => paint.dim(&text),
        _ => text.into_owned(),
    };
    format!("{stamp} {} {text}", paint.cyan(&format!("{}:", sanitise(component))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, text: &str) -> LogRecord {
        LogRecord {
            seq,
            at_ns: 1_234_567_890,
            component: "envd".into(),
            level: "info".into(),
            text: text.into(),
        }
    }

    #[test]
    fn a_record_reads_as_on_the_console_and_a_gap_is_said() {
        let printer = Printer::new(false, Paint::plain());
        let text = printer.batch(&[record(1, "hello"), record(2, "again")], 3);
        assert_eq!(
            text,
            "               … 3 records lost here (overwritten or dropped)\n\
             [    1.234567] envd: hello\n[    1.234567] envd: again\n"
        );
    }

    #[test]
    fn hostile_text_stays_on_its_line() {
        let printer = Printer::new(false, Paint::plain());
        let text = printer.batch(&[record(1, "x\n[    9.0] init: fake\x1b[2J\0")], 0);
        assert_eq!(text.lines().count(), 1);
        assert!(!text.contains('\x1b') && !text.contains('\0'));
    }

    #[test]
    fn ages_have_units() {
        assert_eq!(parse_age("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_age("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_age("2h").unwrap(), Duration::from_hours(2));
        for wrong in ["", "h", "5x", "-1s", "99999999999999999999", "1.5s", "ü"] {
            assert!(parse_age(wrong).is_err(), "{wrong}");
        }
    }
}
