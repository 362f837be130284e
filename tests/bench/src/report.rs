//! `bench.json` and the Markdown report.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::row::Row;

/// Writes `bench.json` and `report.md` into `folder`.
pub(crate) fn write(folder: &Path, rows: &[Row], machine: &str) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::write(folder.join("bench.json"), serde_json::to_vec_pretty(rows)?)?;
    std::fs::write(folder.join("report.md"), markdown(rows, machine))?;
    Ok(())
}

/// The table that people read.
pub(crate) fn markdown(rows: &[Row], machine: &str) -> String {
    let mut text = format!("{machine}\n\n");
    text.push_str("| figure | ours (min–max) | peer | peer's | ratio | goal | met |\n");
    text.push_str("|---|---|---|---|---|---|---|\n");
    for row in rows {
        let _ = writeln!(
            text,
            "| `{}` | {} {} ({}–{}) | {} | {} | {} | {} | {} |",
            row.name,
            figure(row.value),
            row.unit,
            figure(row.min),
            figure(row.max),
            row.peer.as_deref().unwrap_or("–"),
            row.peer_value.map_or("–".to_owned(), figure),
            row.ratio.map_or("–".to_owned(), figure),
            row.goal.map_or("–".to_owned(), |goal| bound(row, goal)),
            if row.goal.is_none() {
                "–"
            } else if row.met {
                "yes"
            } else {
                "**no**"
            },
        );
    }
    text
}

fn bound(row: &Row, goal: f64) -> String {
    let sign = if row.better == crate::row::Better::Lower { "≤" } else { "≥" };
    format!("{sign} {goal}")
}

/// Three significant digits, without an exponent.
fn figure(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let decimals = (2 - digits).clamp(0, 4) as usize;
    format!("{value:.decimals$}")
}

/// The machine, in one line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown CPU");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {cores} cores, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}
