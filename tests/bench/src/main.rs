//! `make bench`: every claim about speed, memory or cost as a ratio, measured side by side in one run.
//!
//! `ONLY=boot|memory|idle|relay|bridge|supervise|images` picks parts. Results go to `target/bench/`: `bench.json`, `report.md`
//! and SVG plots.

mod load;
mod native;
mod peers;
mod plan;
mod process;
mod report;
mod row;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use plan::Plan;
use row::Row;

fn main() -> ExitCode {
    match run() {
        Ok(missed) => {
            println!("{missed} goals missed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<usize> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().context("repository root")?;
    let plan = Plan::from_environment(root)?;
    let mut rows: Vec<Row> = Vec::new();
    if plan.wants("relay") {
        rows.extend(native::run(&plan)?);
    }
    if plan.wants("bridge") {
        rows.extend(native::run_bridge(&plan)?);
    }
    let machine = report::machine();
    report::write(&plan.root.join("target/bench"), &rows, &machine)?;
    println!("{}", report::markdown(&rows, &machine));
    Ok(rows.iter().filter(|row| !row.met).count())
}
