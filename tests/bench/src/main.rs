//! `make bench`: every claim about speed, memory or cost as a ratio, measured side by side in one run.
//!
//! `ONLY=boot|memory|idle|relay|bridge|supervise|images` picks parts, and `ONLY=units` one that a full run leaves out. Results go to `target/bench/`: `bench.json`,
//! `report.md` and SVG plots. How to read them, and how each peer is set up: `docs/benchmarks.md`.
//!
//! Exit codes: 0 measured, whether or not goals are met; 1 a part could not be measured (the others are reported all the same);
//! 2 wrong `ONLY=`.

mod guest;
mod load;
mod parts;
mod peers;
mod plan;
mod process;
mod report;
mod row;
mod scene;
mod stamps;
mod turns;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use plan::Plan;
use row::Findings;

/// `ONLY=` names a part that does not exist.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let plan = match Plan::from_environment() {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("bench: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    match run(&plan) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(broken) => {
            eprintln!("bench: {broken} parts could not be measured; why stands above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures all that is wanted; a part that breaks costs itself only. Returns how many did.
fn run(plan: &Plan) -> Result<usize> {
    let begun = Instant::now();
    let (mut findings, mut broken) = (Findings::default(), 0);
    for part in parts::ALL.iter().filter(|part| plan.wants(part)) {
        let part_begun = Instant::now();
        if let Err(error) = (part.measure)(plan, &mut findings).with_context(|| format!("part {}", part.name))
        {
            eprintln!("bench: {error:#}");
            broken += 1;
        }
        plan.say(&format!("part {} took {:.0} s", part.name, part_begun.elapsed().as_secs_f64()));
    }
    let folder = tests::paths::output("bench")?;
    finish(&folder, &findings, begun.elapsed().as_secs())?;
    Ok(broken)
}

/// Writes the results down and shows them.
fn finish(folder: &Path, findings: &Findings, seconds: u64) -> Result<()> {
    let text = report::write(folder, findings, seconds)?;
    println!("{text}");
    let missed = findings.rows.iter().filter(|row| !row.met).count();
    println!("results: {}/bench.json, report.md and plots", folder.display());
    println!("{} rows, {missed} goals missed", findings.rows.len());
    Ok(())
}
