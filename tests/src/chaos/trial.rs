//! One run of a scenario: its count, its dice, and what came of it.

use std::fmt::Display;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;

use super::report::Row;

/// Failures that are told; the rest is counted.
const TOLD: usize = 5;

#[derive(Debug)]
pub struct Trial {
    name: &'static str,
    /// How often the thing is to be done.
    pub count: u64,
    /// The same for the same seed and scenario.
    pub dice: Rng,
    tried: u64,
    failures: Vec<String>,
    failed: u64,
    figures: Vec<String>,
}

impl Trial {
    pub(super) fn new(name: &'static str, count: u64, seed: u64) -> Self {
        // Scenarios of one run do not share their dice, so that each is repeated alone.
        let own = name.bytes().fold(seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Self {
            name,
            count,
            dice: Rng::with_seed(own),
            tried: 0,
            failures: Vec::new(),
            failed: 0,
            figures: Vec::new(),
        }
    }

    /// Counts one try: what it gave, or nothing when it failed.
    pub fn attempt<T>(&mut self, what: impl Display, outcome: Result<T>) -> Option<T> {
        self.tried += 1;
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(format!("{what}: {error:#}"));
                None
            }
        }
    }

    /// Counts one try: whether what must hold holds.
    pub fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        self.tried += 1;
        if !holds {
            self.fail(what());
        }
    }

    /// Counts many tries at once.
    pub fn many(&mut self, tried: u64, failed: u64, what: impl FnOnce() -> String) {
        self.tried += tried;
        if failed > 0 {
            self.fail(what());
            self.failed += failed - 1;
        }
    }

    /// The same where one outcome tells of all of them.
    pub fn many_of(&mut self, what: &str, count: u64, outcome: Result<()>) {
        self.many(count, u64::from(outcome.is_err()), || match outcome {
            Err(error) => format!("{what}: {error:#}"),
            Ok(()) => String::new(),
        });
    }

    /// A figure for the table.
    pub fn figure(&mut self, text: impl Into<String>) {
        self.figures.push(text.into());
    }

    /// The median and the worst of some times, as a figure.
    pub fn times(&mut self, what: &str, times: &[Duration]) {
        if let (Some(median), Some(worst)) = (median(times), times.iter().max()) {
            self.figure(format!("{what}: median {} ms, worst {} ms", median.as_millis(), worst.as_millis()));
        }
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        if self.failures.len() < TOLD {
            self.failures.push(what);
        }
    }

    /// An error that ended the scenario is a failure too.
    pub(super) fn ended(&mut self, outcome: Result<()>) {
        if outcome.is_err() || self.tried == 0 {
            self.attempt("ended early", outcome);
        }
    }

    pub(super) fn row(&self) -> Row {
        let failures = self.failures.iter().map(|failure| format!("FAILED {failure}"));
        let figures = (!self.figures.is_empty()).then(|| self.figures.join("; "));
        let detail: Vec<String> = figures.into_iter().chain(failures).collect();
        Row { name: self.name.to_owned(), tried: self.tried, failed: self.failed, detail: detail.join("\n") }
    }
}

/// The middle one.
pub(super) fn median(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn what_was_tried_and_what_failed_is_counted_and_told() {
        let mut trial = Trial::new("x", 3, 1);
        trial.attempt("a", Ok(()));
        trial.attempt("b", Err::<(), _>(anyhow!("no")));
        trial.many(10, 4, || "four of ten".into());
        trial.figure("5 ms");
        let row = trial.row();
        assert_eq!((row.tried, row.failed), (12, 5));
        assert_eq!(row.detail, "5 ms\nFAILED b: no\nFAILED four of ten");
    }

    #[test]
    fn a_scenario_that_ends_early_has_failed() {
        let mut trial = Trial::new("x", 1, 1);
        trial.ended(Err(anyhow!("gone")));
        assert_eq!(trial.row().failed, 1);
    }

    #[test]
    fn the_dice_are_the_seeds_and_the_names() {
        let roll = |name, seed| Trial::new(name, 1, seed).dice.u64(..);
        assert_eq!(roll("a", 1), roll("a", 1));
        assert_ne!(roll("a", 1), roll("b", 1));
        assert_ne!(roll("a", 1), roll("a", 2));
    }
}
