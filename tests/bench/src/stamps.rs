//! What `tests/peers/stamp.c` prints on a guest's console: times of the guest's monotonic clock.

use ::tests::Vm;
use ::tests::keep::BOOT;
use ::tests::vm::Mark;
use anyhow::{Context, Result};

/// One start of envd, in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Stamps {
    /// PID 1's first instruction.
    pid1: f64,
    exec: f64,
    healthy: f64,
    /// The program that is PID 1.
    pub(crate) init: String,
}

impl Stamps {
    /// The first ones after `mark`.
    pub(crate) fn wait(vm: &Vm, mark: Mark) -> Result<Self> {
        let line = vm.console().wait_within(mark, "stamp: pid1 ", BOOT)?;
        Self::parse(&line).with_context(|| format!("the guest stamped {line:?}"))
    }

    fn parse(line: &str) -> Option<Self> {
        let init = line.split_once(" init ")?.1.trim().to_owned();
        let pid1 = seconds(line, "pid1 ").filter(|time| *time > 0.0)?;
        Some(Self { pid1, exec: seconds(line, "exec ")?, healthy: seconds(line, "healthy ")?, init })
    }

    /// Milliseconds from PID 1's start to envd's exec.
    pub(crate) fn to_exec(&self) -> f64 {
        (self.exec - self.pid1) * 1e3
    }

    /// Milliseconds from PID 1's start to envd's first 204.
    pub(crate) fn to_healthy(&self) -> f64 {
        (self.healthy - self.pid1) * 1e3
    }

    /// Milliseconds from PID 1's start to that second of the guest's monotonic clock.
    pub(crate) fn to_second(&self, at: f64) -> f64 {
        (at - self.pid1) * 1e3
    }

    /// Milliseconds from envd's exec to its first 204.
    pub(crate) fn own(&self) -> f64 {
        (self.healthy - self.exec) * 1e3
    }

    /// Milliseconds from the time of a kill to the first 204.
    pub(crate) fn healthy_since(&self, kill: f64) -> f64 {
        (self.healthy - kill) * 1e3
    }
}

/// When the first kill after `mark` was.
pub(crate) fn kill_after(vm: &Vm, mark: Mark) -> Result<f64> {
    let line = vm.console().wait_after(mark, "stamp: kill ")?;
    seconds(&line, "kill ").with_context(|| format!("the guest stamped {line:?}"))
}

fn seconds(line: &str, name: &str) -> Option<f64> {
    let rest = line.split_once(name)?.1;
    let nanoseconds: u64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stamps_is_read_whatever_stands_before_it() {
        let line = "e2b login: stamp: pid1 1000000 exec 31000000 healthy 231000000 init /sbin/init\r";
        let stamps = Stamps::parse(line).unwrap();
        assert!((stamps.to_exec() - 30.0).abs() < 1e-6);
        assert!((stamps.to_healthy() - 230.0).abs() < 1e-6);
        assert_eq!(stamps.init, "/sbin/init");
        assert!((seconds("stamp: kill 2000000000", "kill ").unwrap() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_boot_in_which_pid_1_was_not_stamped_does_not_count() {
        assert!(Stamps::parse("stamp: pid1 0 exec 31000000 healthy 231000000 init /sbin/init").is_none());
    }
}
