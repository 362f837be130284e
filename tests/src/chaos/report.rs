//! What was tried and what failed: a row for each scenario or parser, as a table and as `target/chaos/chaos.json`.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::paths;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub tried: u64,
    pub failed: u64,
    /// Figures, and what failed first.
    pub detail: String,
}

/// The rows of one run. Runs share the file: each replaces the rows that it ran and keeps the others.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

/// The names of the parsers that `make fuzz` drives begin so.
pub const FUZZ: &str = "fuzz/";

impl Report {
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Nothing failed.
    pub fn is_well(&self) -> bool {
        self.rows.iter().all(|row| row.failed == 0)
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Writes the file; returns its path.
    pub fn write(&self) -> Result<String> {
        let path = paths::output("chaos")?.join("chaos.json");
        let before: Vec<Row> =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let rows = merge(before, self);
        fs::write(&path, serde_json::to_string_pretty(&rows)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path.display().to_string())
    }
}

/// Scenarios first, then parsers.
fn merge(before: Vec<Row>, report: &Report) -> Vec<Row> {
    let again = |row: &Row| report.rows.iter().any(|new| new.name == row.name);
    let mut rows: Vec<Row> = before.into_iter().filter(|row| !again(row)).collect();
    rows.extend(report.rows.iter().cloned());
    rows.sort_by_key(|row| row.name.starts_with(FUZZ));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, tried: u64) -> Row {
        Row { name: name.to_owned(), tried, failed: 0, detail: String::new() }
    }

    #[test]
    fn a_run_replaces_what_it_ran_and_keeps_the_rest() {
        let mut report = Report::default();
        report.add(row("memory", 5));
        let rows = merge(vec![row("memory", 1), row("fuzz/ip", 2), row("disk", 3)], &report);
        let names: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.tried)).collect();
        assert_eq!(names, [("disk", 3), ("memory", 5), ("fuzz/ip", 2)]);
    }
}
