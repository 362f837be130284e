//! Telling a death: one line for people, one for machines, and the tally of the last hundred.

use std::{collections::VecDeque, time::Duration};

use guest::{
    clock::{Moment, Seconds},
    control::ExitReport,
    log,
    sys::Reaped,
};
use tracing::{info, warn};

use crate::pid1::reap::signal_name;

/// Deaths that are kept.
const TALLY: usize = 100;
/// Last lines of a service that its death report carries, and their length in bytes.
const TAIL_LINES: usize = 5;
const TAIL_LENGTH: usize = 160;

/// The last deaths, of every service.
#[derive(Debug, Default)]
pub(super) struct Tally {
    deaths: VecDeque<ExitReport>,
}

impl Tally {
    pub(super) fn add(&mut self, report: &ExitReport) {
        if self.deaths.len() >= TALLY {
            self.deaths.pop_front();
        }
        // The lines are in the log; kept a hundred times they would be memory for nothing.
        self.deaths.push_back(ExitReport { last_lines: Vec::new(), ..report.clone() });
    }

    pub(super) fn list(&self) -> impl Iterator<Item = &ExitReport> {
        self.deaths.iter()
    }
}

/// The last lines of a service.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    pub(super) fn push(&mut self, line: &[u8]) {
        if self.lines.len() >= TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(String::from_utf8_lossy(&line[..line.len().min(TAIL_LENGTH)]).into_owned());
    }

    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines).into()
    }
}

/// What is known of a death besides its status.
#[derive(Debug)]
pub(super) struct Circumstances<'a> {
    pub(super) service: &'a str,
    pub(super) uptime: Duration,
    pub(super) restarts: u64,
    pub(super) oom: bool,
    pub(super) peak_memory_bytes: Option<u64>,
    pub(super) reason: Option<&'a str>,
    pub(super) last_lines: Vec<String>,
    pub(super) at: Moment,
}

pub(super) fn report(death: Reaped, about: Circumstances<'_>) -> ExitReport {
    ExitReport {
        service: about.service.to_owned(),
        pid: death.pid,
        status: (!death.by_signal).then_some(death.status),
        signal: death.by_signal.then(|| signal_name(death.status)),
        core: death.core,
        oom: about.oom,
        uptime_ms: u64::try_from(about.uptime.as_millis()).unwrap_or(u64::MAX),
        restarts: about.restarts,
        peak_memory_bytes: about.peak_memory_bytes,
        reason: about.reason.map(str::to_owned),
        last_lines: about.last_lines,
        at_ns: u64::try_from(about.at.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// Says it on the console; an end that was to be expected is only a line for people.
pub(super) fn tell(report: &ExitReport, expected: bool) {
    let text = describe(report);
    if expected {
        info!("{text}");
        return;
    }
    warn!("{text}");
    if let Ok(json) = serde_json::to_string(report) {
        log::machine("exit", &json);
    }
}

pub(super) fn describe(report: &ExitReport) -> String {
    let how = match (&report.signal, report.status) {
        (Some(signal), _) => format!("was ended by {signal}"),
        (None, Some(0)) => "ended".to_owned(),
        (None, status) => format!("ended with status {}", status.unwrap_or_default()),
    };
    let oom = if report.oom { " (out of memory)" } else { "" };
    let core = if report.core { " (dumped core)" } else { "" };
    let why = report.reason.as_ref().map(|reason| format!("; {reason}")).unwrap_or_default();
    let seconds = Seconds(Duration::from_millis(report.uptime_ms));
    format!("{} {how}{oom}{core} after {seconds:.1} s (pid {}){why}", report.service, report.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(status: i32, by_signal: bool) -> ExitReport {
        let about = Circumstances {
            service: "web",
            uptime: Duration::from_millis(1540),
            restarts: 2,
            oom: by_signal,
            peak_memory_bytes: None,
            reason: None,
            last_lines: vec!["x".to_owned()],
            at: Duration::from_secs(2),
        };
        report(Reaped { pid: 7, status, by_signal, core: false }, about)
    }

    #[test]
    fn a_death_is_told_in_words() {
        assert_eq!(describe(&death(3, false)), "web ended with status 3 after 1.5 s (pid 7)");
        assert_eq!(describe(&death(9, true)), "web was ended by SIGKILL (out of memory) after 1.5 s (pid 7)");
    }

    #[test]
    fn the_tally_keeps_the_last_hundred_without_their_lines() {
        let mut tally = Tally::default();
        for status in 0..150 {
            tally.add(&death(status, false));
        }
        assert_eq!(tally.list().count(), 100);
        assert_eq!(tally.list().next().unwrap().status, Some(50));
        assert!(tally.list().all(|death| death.last_lines.is_empty()));
    }
}
