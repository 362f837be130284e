//! What the boot did, and when: for the status, and for the console's `envd-init: boot {json}`.

use std::time::Duration;

use guest::{
    clock::{Moment, now},
    control::Stage,
};
use serde::Serialize;
use tracing::warn;

/// Warnings that are kept for the status; older ones are in the log ring.
const MAX_WARNINGS: usize = 64;
const MAX_STAGES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Stages {
    stages: Vec<Stage>,
    warnings: Vec<String>,
}

/// The console's line for machines.
#[derive(Serialize)]
pub(super) struct BootLine<'a> {
    pub(super) version: &'static str,
    pub(super) stages: &'a [Stage],
    pub(super) warnings: usize,
}

impl Stages {
    /// Does one step under guard; a warning that it gives back is said and kept.
    pub(super) fn step(&mut self, name: &str, work: impl FnOnce() -> Vec<String>) {
        self.step_since(now(), name, work);
    }

    /// The same, of a step that has begun before.
    pub(super) fn step_since(&mut self, begin: Moment, name: &str, work: impl FnOnce() -> Vec<String>) {
        let warnings = super::guarded(name, work).unwrap_or_else(|| vec![format!("{name} was cut short")]);
        let first = warnings.first().cloned();
        self.warn_all(warnings);
        self.add(name, begin, now(), first);
    }

    /// A stage that is done in parts: the first begins it, each other one moves its end.
    pub(super) fn extend(&mut self, name: &str, begin: Moment, end: Moment, warning: Option<String>) {
        match self.stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => {
                stage.end_ns = nanos(end);
                stage.warning = stage.warning.take().or(warning);
            }
            None => self.add(name, begin, end, warning),
        }
    }

    pub(super) fn add(&mut self, name: &str, begin: Moment, end: Moment, warning: Option<String>) {
        if self.stages.len() < MAX_STAGES && !self.stages.iter().any(|stage| stage.name == name) {
            let (begin_ns, end_ns) = (nanos(begin), nanos(end));
            self.stages.push(Stage { name: name.to_owned(), begin_ns, end_ns, warning });
        }
    }

    pub(super) fn warn_all(&mut self, warnings: Vec<String>) {
        warnings.into_iter().for_each(|warning| self.warn(warning));
    }

    /// Says something that is degraded, and keeps it for the status.
    pub(super) fn warn(&mut self, warning: String) {
        warn!("{warning}");
        if self.warnings.len() >= MAX_WARNINGS {
            self.warnings.remove(0);
        }
        self.warnings.push(warning);
    }

    /// When a stage ended.
    pub(super) fn end_of(&self, name: &str) -> Option<Moment> {
        let stage = self.stages.iter().find(|stage| stage.name == name)?;
        Some(Duration::from_nanos(stage.end_ns))
    }

    pub(super) fn list(&self) -> &[Stage] {
        &self.stages
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(super) fn boot_line(&self) -> String {
        let line = BootLine {
            version: env!("CARGO_PKG_VERSION"),
            stages: &self.stages,
            warnings: self.warnings.len(),
        };
        serde_json::to_string(&line).unwrap_or_default()
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_panics_is_a_warning_and_a_stage_all_the_same() {
        let mut stages = Stages::default();
        stages.step("mounts", || panic!("on purpose"));
        stages.step("cgroups", Vec::new);
        assert_eq!(stages.warnings(), ["mounts was cut short"]);
        assert_eq!(stages.list().len(), 2);
    }

    #[test]
    fn warnings_are_bounded_and_the_newest_stay() {
        let mut stages = Stages::default();
        for number in 0..100 {
            stages.warn(number.to_string());
        }
        assert_eq!(stages.warnings().len(), MAX_WARNINGS);
        assert_eq!(stages.warnings().last().map(String::as_str), Some("99"));
    }
}
