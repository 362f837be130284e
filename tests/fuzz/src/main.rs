//! `make fuzz`: every parser, at least a million inputs each.
//!
//! `COUNT=` inputs a target (default 1,000,000), `SEED=` to replay, `ONLY=` for one target. What fails is written to
//! `target/fuzz/TARGET-SEED-N`, to be added to the corpus in `tests/fuzz/corpus/TARGET/` with the fix; `INPUT=` runs such a file
//! alone, and says where it fails.

mod mutate;
mod target;

use std::alloc::System;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cap::Cap;

use mutate::Mutator;
use target::{TARGETS, Target};

/// A parser that wants more memory than this for an input of 64 KiB hoards; the allocation fails, and that is the finding.
const MEMORY_BOUND: usize = 512 << 20;
/// One input may take this long, on a machine that does other things besides.
const TIME_BOUND: Duration = Duration::from_secs(2);

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY_BOUND);

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<usize> {
    let count = number("COUNT", 1_000_000)?;
    let seed = number("SEED", 1)?;
    let only = std::env::var("ONLY").unwrap_or_default();
    let targets: Vec<_> = TARGETS.iter().filter(|target| only.is_empty() || target.name == only).collect();
    ensure!(!targets.is_empty(), "ONLY={only}: no such target");
    if let Some(path) = std::env::var_os("INPUT").filter(|path| !path.is_empty()) {
        let input = fs::read(&path).with_context(|| format!("read INPUT={}", path.display()))?;
        targets.iter().for_each(|target| (target.run)(&input));
        return Ok(0);
    }
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = 0;
    println!("{:<18} {:>10} {:>7} {:>10}", "target", "inputs", "failed", "slowest");
    for target in targets {
        failed += drive(target, count, seed)?;
    }
    Ok(failed)
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("{name}={text}: not a number")),
        _ => Ok(default),
    }
}

/// Runs one target; gives how many inputs failed.
fn drive(target: &Target, count: u64, seed: u64) -> Result<usize> {
    let corpus = corpus(target.name)?;
    let mut mutator = Mutator::new(&corpus, target.dictionary, seed);
    let (mut failed, mut slowest) = (0, Duration::ZERO);
    let inputs = corpus.iter().cloned().chain(std::iter::repeat_with(|| mutator.input()));
    for (number, input) in inputs.take(count as usize).enumerate() {
        let begin = Instant::now();
        let outcome = catch_unwind(|| (target.run)(&input));
        let took = begin.elapsed();
        slowest = slowest.max(took);
        if outcome.is_err() || took > TIME_BOUND {
            failed += 1;
            keep(target.name, seed, number, &input)?;
        }
    }
    println!("{:<18} {count:>10} {failed:>7} {:>8.1}ms", target.name, slowest.as_secs_f64() * 1e3);
    Ok(failed)
}

fn corpus(name: &str) -> Result<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&folder).with_context(|| format!("read the corpus {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    ensure!(!paths.is_empty(), "the corpus {} is empty", folder.display());
    Ok(paths.iter().map(fs::read).collect::<std::io::Result<_>>()?)
}

fn keep(name: &str, seed: u64, number: usize, input: &[u8]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}-{seed}-{number}"));
    eprintln!("fuzz: {name}: input {number} failed, kept as {}", path.display());
    Ok(fs::write(path, input)?)
}
