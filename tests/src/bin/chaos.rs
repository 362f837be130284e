//! `make chaos`: breaks the system on purpose and counts what is lost (see [`tests::chaos`]).
//!
//! `ONLY=` names of scenarios or their beginnings, `SEED=` to repeat a run, `COUNT=` instead of each scenario's own. The table is
//! also in `target/chaos/chaos.json`. Exit codes: 0 nothing was lost, 1 something was, 2 it could not run.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tests::chaos::{self, Options};

fn main() -> ExitCode {
    match options().and_then(|options| chaos::campaign(&options)) {
        Ok(report) if report.is_well() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Options> {
    let only = std::env::var("ONLY").unwrap_or_default();
    // Any seed will do: what counts is that it is told.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    Ok(Options {
        only: only.split([' ', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        seed: number("SEED")?.unwrap_or(now),
        count: number("COUNT")?,
        brief: false,
    })
}

fn number(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().map(Some).with_context(|| format!("{name}={text}: not a number"))
        }
        _ => Ok(None),
    }
}
