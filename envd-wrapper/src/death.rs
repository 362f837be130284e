//! The report of a death: one line for people, one for machines.

use std::time::Duration;

use guest::cgroup::MemoryCounters;
use guest::clock::{Moment, Seconds};
use guest::control::ExitReport;
use guest::sys::Reaped;
use nix::libc::SIGKILL;
use nix::sys::signal::Signal;

use crate::cleanup::Home;

/// What the cgroup's counters said when the life began.
#[derive(Debug, Default)]
pub(crate) struct Before {
    oom_kills: Option<u64>,
}

/// Reads the counters.
pub(crate) fn before(home: &mut Home) -> Before {
    Before { oom_kills: home.memory().and_then(MemoryCounters::oom_kills) }
}

/// What is known of the life that ended.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) started: Moment,
    pub(crate) ended: Moment,
    pub(crate) before: Before,
    pub(crate) restarts: u64,
    /// Why we ended it, where we did.
    pub(crate) reason: Option<String>,
    /// We sent it KILL, also at the end of a stop that was asked for.
    pub(crate) killed: bool,
    pub(crate) last_lines: Vec<String>,
}

/// Puts it all together.
pub(crate) fn report(end: Reaped, life: Life, home: &mut Home) -> ExitReport {
    let memory = home.memory();
    let kills = memory.and_then(MemoryCounters::oom_kills);
    let oom = was_oom(&end, &life, kills);
    ExitReport {
        service: "envd".to_owned(),
        pid: end.pid,
        status: (!end.by_signal).then_some(end.status),
        signal: end.by_signal.then(|| signal_name(end.status)),
        core: end.core,
        oom,
        uptime_ms: life.ended.saturating_sub(life.started).as_millis() as u64,
        restarts: life.restarts,
        peak_memory_bytes: memory.and_then(MemoryCounters::peak),
        reason: life.reason,
        last_lines: life.last_lines,
        at_ns: life.ended.as_nanos() as u64,
    }
}

/// Whether the OOM killer did it: what it took of the cgroup may also have been a helper, earlier in this life.
fn was_oom(end: &Reaped, life: &Life, kills: Option<u64>) -> bool {
    let by_kill = end.by_signal && end.status == SIGKILL;
    let counted = life.before.oom_kills.zip(kills).is_some_and(|(before, now)| now > before);
    by_kill && counted && !life.killed
}

/// Also of a real-time signal, which has no name of its own.
fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// The line for people.
pub(crate) fn describe(report: &ExitReport) -> String {
    let how = match (&report.signal, report.status) {
        (Some(signal), _) if report.oom => format!("was killed by the OOM killer ({signal})"),
        (Some(signal), _) => format!("was ended by {signal}"),
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => "ended".to_owned(),
    };
    let uptime = Seconds(Duration::from_millis(report.uptime_ms));
    let core = if report.core { ", core dumped" } else { "" };
    let why = report.reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    format!("envd (pid {}) {how}{core} after {uptime:.3} s{why}", report.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(reason: Option<&str>, oom_kills: Option<u64>) -> Life {
        Life {
            started: Duration::from_secs(10),
            ended: Duration::from_millis(13_250),
            before: Before { oom_kills },
            restarts: 2,
            reason: reason.map(str::to_owned),
            killed: false,
            last_lines: Vec::new(),
        }
    }

    fn died(status: i32, by_signal: bool, reason: Option<&str>) -> String {
        let end = Reaped { pid: 57, status, by_signal, core: false };
        describe(&report(end, life(reason, None), &mut Home::default()))
    }

    /// A helper that the OOM killer took, or a counter that was not there before, says nothing of envd's own death.
    #[test]
    fn only_a_kill_that_was_not_ours_and_was_counted_is_the_oom_killers() {
        let end = |status| Reaped { pid: 57, status, by_signal: true, core: false };
        let ours = Life { killed: true, ..life(None, Some(1)) };
        assert!(was_oom(&end(SIGKILL), &life(None, Some(1)), Some(2)));
        assert!(!was_oom(&end(SIGKILL), &life(None, Some(1)), Some(1)), "nobody was killed");
        assert!(!was_oom(&end(SIGKILL), &ours, Some(2)), "the wrapper did it");
        assert!(!was_oom(&end(SIGKILL), &life(None, None), Some(0)), "there was no counter");
        assert!(!was_oom(&end(SIGKILL), &life(None, Some(1)), None), "the counter is gone");
        assert!(!was_oom(&end(Signal::SIGSEGV as i32), &life(None, Some(1)), Some(2)), "another signal");
    }

    #[test]
    fn a_person_reads_how_when_and_why() {
        assert_eq!(died(3, false, None), "envd (pid 57) exited with status 3 after 3.250 s");
        assert_eq!(
            died(3, true, Some("not listening 10 s after its start")),
            "envd (pid 57) was ended by SIGQUIT after 3.250 s (not listening 10 s after its start)"
        );
        assert_eq!(died(40, true, None), "envd (pid 57) was ended by signal 40 after 3.250 s");
    }
}
