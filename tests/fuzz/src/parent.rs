//! The parent: a child for each target, a row for each in the table.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io::Write};

use anyhow::{Context, Result, ensure};
use tests::chaos::report::{FUZZ, Report, Row};

use crate::coverage::Coverage;
use crate::drive::{self, FLAG, Line};
use crate::target::{TARGETS, Target};

/// What kills the child this often is no single finding any more.
const MAX_DEATHS: usize = 20;

/// False when an input failed, or a parser's lines were not reached as promised.
pub(crate) fn run() -> Result<bool> {
    let only = std::env::var("ONLY").unwrap_or_default();
    let targets: Vec<_> = TARGETS.iter().filter(|target| only.is_empty() || target.name == only).collect();
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(" ");
    ensure!(!targets.is_empty(), "ONLY={only}: no such target; there are {}", names());
    let seed = crate::number("SEED", 1)?;
    println!("seed {seed}");
    println!(
        "{:<16} {:>9} {:>6} {:>10} {:>8} {:>6}  lines reached",
        "parser", "inputs", "failed", "slowest", "seconds", ""
    );
    let mut report = Report::default();
    for target in targets {
        let row = drive(target, seed)?;
        report.add(row);
    }
    report.write()?;
    Ok(report.is_well())
}

/// Runs one target to its end, whatever its inputs do to the child.
fn drive(target: &Target, seed: u64) -> Result<Row> {
    let begun = Instant::now();
    let count = target.count()?;
    let coverage = Coverage::begin(target)?;
    let (mut from, mut failed, mut slowest, mut deaths) = (0, Vec::new(), 0, 0);
    while from < count {
        let (lines, at) = child(target, from, &coverage)?;
        let mut done = false;
        for line in lines {
            match line {
                Line::Failed(number) => failed.push(number),
                Line::Done { slowest_us } => (done, slowest) = (true, slowest_us),
            }
        }
        if done {
            break;
        }
        failed.push(at);
        deaths += 1;
        ensure!(deaths < MAX_DEATHS, "{}: {MAX_DEATHS} inputs have ended the process", target.name);
        from = at + 1;
    }
    keep(target, seed, &failed)?;
    let reached = coverage.finish(target)?;
    let row = Row {
        name: format!("{FUZZ}{}", target.name),
        tried: count,
        failed: failed.len() as u64,
        detail: detail(target, seed, &failed, reached, slowest),
    };
    print(target, &row, slowest, begun.elapsed(), reached);
    Ok(row)
}

fn print(target: &Target, row: &Row, slowest_us: u64, took: Duration, reached: Option<f64>) {
    let slowest = slowest_us as f64 / 1e3;
    let reached = reached.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}%"));
    println!(
        "{:<16} {:>9} {:>6} {slowest:>8.1}ms {:>8.0} {reached:>6}  {}",
        target.name,
        row.tried,
        row.failed,
        took.as_secs_f64(),
        target.sources.join(" ")
    );
    let _ = std::io::stdout().flush();
}

fn detail(target: &Target, seed: u64, failed: &[u64], reached: Option<f64>, slowest_us: u64) -> String {
    let slowest = slowest_us as f64 / 1e3;
    let lines = reached.map_or_else(
        || "lines not measured".to_owned(),
        |percent| format!("{percent:.1} % of its lines reached"),
    );
    let kept: String = failed
        .iter()
        .take(5)
        .map(|number| format!("; target/fuzz/{}-{seed}-{number}", target.name))
        .collect();
    format!("seed {seed}, {lines}, slowest input {slowest:.1} ms{kept}")
}

/// Runs a child from input `from` on: what it told, and the number of the last input it began.
fn child(target: &Target, from: u64, coverage: &Coverage) -> Result<(Vec<Line>, u64)> {
    let progress = drive::progress_file(target.name)?;
    let output = Command::new(std::env::current_exe()?)
        .args([FLAG, target.name, &from.to_string()])
        .env("LLVM_PROFILE_FILE", coverage.pattern())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting the child")?;
    ensure!(output.status.code() != Some(2), "{}: the child could not begin", target.name);
    let at = drive::progress(&progress);
    let _ = fs::remove_file(progress);
    Ok((drive::lines(&output.stdout), at))
}

/// Makes the inputs that failed again, and keeps them.
fn keep(target: &Target, seed: u64, failed: &[u64]) -> Result<()> {
    let Some(last) = failed.iter().max() else { return Ok(()) };
    let folder = tests::paths::output("fuzz")?;
    for (number, input) in target.inputs(seed)?.take(*last as usize + 1).enumerate() {
        if failed.contains(&(number as u64)) {
            write(&folder.join(format!("{}-{seed}-{number}", target.name)), &input)?;
        }
    }
    Ok(())
}

fn write(path: &Path, input: &[u8]) -> Result<()> {
    eprintln!("fuzz: an input that failed is kept as {}", path.display());
    fs::write(path, input).with_context(|| format!("writing {}", path.display()))
}
