//! Reaping: the only place where a child's end is taken in.
//!
//! SIGCHLD coalesces, so one signal means "at least one". Supervised processes are looked at first and by their own
//! numbers, so that a fork storm elsewhere does not delay a restart of envd; orphans follow in bounded batches between
//! other events.

use guest::sys::{self, Reaped};
use nix::{errno::Errno, sys::signal::Signal};

/// Orphans taken in one turn of the loop.
pub(super) const BATCH: usize = 256;

/// What a batch found.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) deaths: Vec<Reaped>,
    /// More may be waiting.
    pub(super) more: bool,
    /// There is no child at all.
    pub(super) childless: bool,
}

/// The end of one child, if it has ended.
pub(super) fn one(pid: i32) -> Option<Reaped> {
    take(Some(pid)).ok().flatten()
}

/// Whoever has ended, at most [`BATCH`] of them.
pub(super) fn batch() -> Batch {
    let mut batch = Batch::default();
    for _ in 0..BATCH {
        match take(None) {
            Ok(Some(death)) => batch.deaths.push(death),
            Ok(None) => return batch,
            Err(error) => {
                batch.childless = error == Errno::ECHILD;
                return batch;
            }
        }
    }
    batch.more = true;
    batch
}

fn take(pid: Option<i32>) -> Result<Option<Reaped>, Errno> {
    loop {
        match sys::reap(pid) {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

/// `SIGKILL`, or `signal 35` for one without a name.
pub(super) fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_time_signals_have_no_name_and_are_told_by_number() {
        assert_eq!(signal_name(9), "SIGKILL");
        assert_eq!(signal_name(40), "signal 40");
    }
}
