//! What a saved serial console tells about the guest, its last boot alone.

use std::path::Path;

use guest::control::ExitReport;

use crate::{
    boot,
    console::record::{self, Line},
    text::sanitise,
};

/// How many of its last lines are shown.
const TAIL: usize = 5;
/// Components that are ours; of other writers a line is no sign that our PID 1 runs.
const OURS: [&str; 3] = ["init", "wrapper", "relay"];

/// The last boot of a console log.
#[derive(Debug, Default, PartialEq)]
pub struct ConsoleFacts {
    pub lines: usize,
    /// Records of our programs.
    pub records: usize,
    pub healthy: bool,
    pub panic: Option<String>,
    pub last_exit: Option<ExitReport>,
    /// Deaths of envd.
    pub exits: usize,
    /// What our programs said last.
    pub tail: Vec<String>,
}

/// Reads a console log, raw or in the orchestrator's JSON lines.
pub fn read(path: &Path) -> Result<ConsoleFacts, String> {
    let bytes = boot::read_log(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(understand(&String::from_utf8_lossy(&bytes)))
}

fn understand(text: &str) -> ConsoleFacts {
    let mut facts = ConsoleFacts::default();
    let mut last_ns = 0;
    for raw in text.lines().filter(|line| !line.trim().is_empty()) {
        let line = record::parse(raw);
        if let Line::Record(found) = &line
            && OURS.contains(&found.component.as_str())
        {
            // Time that runs backwards by more than writers can be apart is another boot.
            if found.at_ns + 1_000_000_000 < last_ns {
                facts = ConsoleFacts::default();
            }
            last_ns = found.at_ns;
        }
        facts.take(line);
    }
    facts
}

impl ConsoleFacts {
    fn take(&mut self, line: Line) {
        self.lines += 1;
        match line {
            Line::Record(found) => {
                let ours = OURS.contains(&found.component.as_str());
                self.records += usize::from(ours);
                self.healthy |= found.component == "wrapper" && found.text.starts_with("envd is healthy");
                if ours || found.component == "envd" {
                    self.remember(&format!("{}: {}", found.component, found.text));
                }
            }
            Line::Boot(_) => {
                self.records += 1;
                self.healthy = true;
            }
            Line::Exit(report) => {
                self.records += 1;
                if report.service == "envd" {
                    self.exits += 1;
                    self.healthy = false;
                    self.last_exit = Some(*report);
                }
            }
            Line::Panic(text) => self.panic = Some(sanitise(&text).into_owned()),
            Line::Other(_) => {}
        }
    }

    fn remember(&mut self, line: &str) {
        if self.tail.len() == TAIL {
            self.tail.remove(0);
        }
        self.tail.push(sanitise(line).into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_boot_counts() {
        let text = "[    9.000000] init: a\n[   12.000000] wrapper: b\n[    0.100000] init: c\n[    0.200000] app: d\n";
        let facts = understand(text);
        assert_eq!((facts.records, facts.tail), (1, vec!["init: c".to_owned()]));
    }

    #[test]
    fn a_panic_and_a_death_are_kept() {
        let exit = serde_json::to_string(&crate::status::tests::death(5)).unwrap();
        let text = format!(
            "envd-init: exit {exit}\n[    0.4] x\nKernel panic - not syncing: Attempted to kill init!\n"
        );
        let facts = understand(&text);
        assert_eq!(facts.last_exit.unwrap().signal.as_deref(), Some("SIGKILL"));
        assert!(facts.panic.unwrap().contains("Attempted to kill init"));
    }

    #[test]
    fn a_log_of_something_else_has_no_records_of_ours() {
        assert_eq!(
            understand("Debian GNU/Linux 12 ttyS0\nlogin: \n[    1.000000] app: init: x\n").records,
            0
        );
    }
}
