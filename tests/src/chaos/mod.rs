//! The campaign: the system is broken on purpose, and what was lost is counted.
//!
//! A [`Scenario`] does one thing many times: it takes a count and a seed, and tells what it tried and what failed. Those that want the
//! same guest follow each other and share it, so that few boots serve many; after a failure the next one gets a fresh
//! guest. `make chaos` runs all of them at their full counts, `make test` a short selection through the same code. Those that mostly
//! wait (for a restart to settle, for a VM that is stopped) go on beside the others, in guests of their own.
//!
//! What failed leaves its guest's console and logs and the command that repeats it under `target/chaos/NAME/`.

mod agent;
mod bridge;
mod console;
mod exhaust;
mod freeze;
mod guest;
mod hostile;
mod image_tool;
mod kills;
mod load;
mod network;
mod pause;
pub mod report;
mod storm;
mod trial;
mod upgrade;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

pub use guest::Guest;
pub use trial::Trial;

use guest::Stage;
use report::{Report, Row};

use crate::paths;

/// One thing that is done to the system.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// What is done, in a few words.
    pub about: &'static str,
    stage: Stage,
    /// How often in the campaign.
    full: u64,
    /// How often in `make test`; 0: not there.
    brief: u64,
    /// Whether its guest is of no use afterwards.
    wears_out: bool,
    /// Whether it mostly waits, and leaves the machine to others meanwhile.
    waits: bool,
    run: fn(&Guest, &mut Trial) -> Result<()>,
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Words that names begin with; none: all scenarios.
    pub only: Vec<String>,
    pub seed: u64,
    /// Instead of each scenario's own count.
    pub count: Option<u64>,
    /// The short selection.
    pub brief: bool,
}

/// All scenarios, those that share a guest behind each other.
pub fn scenarios() -> Vec<&'static Scenario> {
    let mut all: Vec<&Scenario> = [
        kills::SCENARIOS,
        storm::SCENARIOS,
        load::SCENARIOS,
        exhaust::SCENARIOS,
        console::SCENARIOS,
        pause::SCENARIOS,
        freeze::SCENARIOS,
        upgrade::SCENARIOS,
        hostile::SCENARIOS,
        network::SCENARIOS,
        bridge::SCENARIOS,
        image_tool::SCENARIOS,
    ]
    .into_iter()
    .flatten()
    .collect();
    all.sort_by_key(|scenario| (scenario.stage, scenario.wears_out));
    all
}

/// Runs what is asked for, prints the table and writes `target/chaos/chaos.json`.
pub fn campaign(options: &Options) -> Result<Report> {
    crate::require_root()?;
    let chosen = choose(options)?;
    let begun = Instant::now();
    println!("seed {}", options.seed);
    println!("{:<18} {:>9} {:>6} {:>7}  detail", "scenario", "tried", "failed", "seconds");
    let report = Mutex::new(Report::default());
    let (waiting, working): (Vec<_>, Vec<_>) =
        chosen.into_iter().partition(|scenario| scenario.waits && !options.brief);
    thread::scope(|scope| {
        let beside = scope.spawn(|| run_all(&waiting, options, &report));
        run_all(&working, options, &report)?;
        beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed: Vec<&str> =
        report.rows().iter().filter(|row| row.failed > 0).map(|row| row.name.as_str()).collect();
    let verdict = if failed.is_empty() {
        "nothing was lost".to_owned()
    } else {
        format!("failed: {}", failed.join(" "))
    };
    println!("{} scenarios in {:.0} s: {verdict}", report.rows().len(), begun.elapsed().as_secs_f64());
    Ok(report)
}

/// One after the other; each row is told and written as soon as it is there.
fn run_all(scenarios: &[&Scenario], options: &Options, report: &Mutex<Report>) -> Result<()> {
    let mut guest = None;
    for scenario in scenarios {
        let began = Instant::now();
        let row = run(scenario, options, &mut guest)?;
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        print(&row, began.elapsed());
        report.add(row);
        report.write()?;
    }
    Ok(())
}

fn choose(options: &Options) -> Result<Vec<&'static Scenario>> {
    let named = |scenario: &Scenario| {
        options.only.is_empty() || options.only.iter().any(|word| scenario.name.starts_with(word.as_str()))
    };
    let chosen: Vec<_> = scenarios()
        .into_iter()
        .filter(|scenario| named(scenario) && (!options.brief || scenario.brief > 0))
        .collect();
    let names = || scenarios().iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(" ");
    ensure!(!chosen.is_empty(), "ONLY={}: no such scenario; there are {}", options.only.join(" "), names());
    Ok(chosen)
}

fn print(row: &Row, took: Duration) {
    let mut lines = row.detail.lines();
    println!(
        "{:<18} {:>9} {:>6} {:>7.0}  {}",
        row.name,
        row.tried,
        row.failed,
        took.as_secs_f64(),
        lines.next().unwrap_or_default()
    );
    lines.for_each(|line| println!("{:>45}{line}", ""));
}

/// Runs one scenario on the guest that the one before it left, if that is of its kind.
fn run(scenario: &Scenario, options: &Options, guest: &mut Option<Guest>) -> Result<Row> {
    let count = options.count.unwrap_or(if options.brief { scenario.brief } else { scenario.full });
    if let Some(why) = scenario.stage.missing() {
        return Ok(Row {
            name: scenario.name.to_owned(),
            tried: 0,
            failed: 0,
            detail: format!("not run: {why}"),
        });
    }
    let mut trial = Trial::new(scenario.name, count, options.seed);
    if guest.as_ref().is_none_or(|guest| guest.stage() != scenario.stage) {
        drop(guest.take());
        match Guest::boot(scenario.stage) {
            Ok(booted) => *guest = Some(booted),
            Err(error) => trial.ended(Err(error.context("booting the guest"))),
        }
    }
    if let Some(guest) = guest.as_ref() {
        let outcome = catch_unwind(AssertUnwindSafe(|| (scenario.run)(guest, &mut trial)));
        trial.ended(outcome.unwrap_or_else(|panic| Err(anyhow!("it panicked: {}", words(&*panic)))));
    }
    let row = trial.row();
    if row.failed > 0 {
        keep(scenario, options, guest.as_ref(), &row)?;
    }
    if row.failed > 0 || scenario.wears_out {
        drop(guest.take());
    }
    Ok(row)
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("(no message)").to_owned()
}

/// What is needed to understand a failure and to see it again.
fn keep(scenario: &Scenario, options: &Options, guest: Option<&Guest>, row: &Row) -> Result<()> {
    let folder: PathBuf = paths::output("chaos")?.join(scenario.name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    if let Some(guest) = guest {
        guest.keep_logs(&folder);
    }
    let again = format!("make chaos ONLY={} SEED={} COUNT={}", scenario.name, options.seed, row.tried.max(1));
    fs::write(folder.join("failure.txt"), format!("{}\n\nagain: {again}\n", row.detail))
        .with_context(|| format!("writing to {}", folder.display()))?;
    println!("{:>45}console, logs and seed are kept in {}", "", folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_each_scenario_has_work() {
        let mut names: Vec<_> = scenarios().iter().map(|scenario| scenario.name).collect();
        assert!(scenarios().iter().all(|scenario| scenario.full > 0 && scenario.brief <= scenario.full));
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_part_is_chosen_by_the_beginning_of_its_name_and_a_wrong_one_is_told() {
        let options = |only: &str| Options { only: vec![only.to_owned()], ..Options::default() };
        assert!(choose(&options("envd-kills")).unwrap().len() >= 2);
        assert!(choose(&options("nonsense")).unwrap_err().to_string().contains("envd-kills"));
    }
}
