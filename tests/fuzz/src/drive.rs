//! The child: runs one target on its inputs, in order.
//!
//! Before each input its number is written to a file, so that the parent knows at which one a child has died; an input that
//! takes too long ends the child in the same way.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::target::{self, Target};

/// The first argument of a child, followed by the target's name and the number of the first input to run.
pub(crate) const FLAG: &str = "--drive";

/// One input may take this much of the processor's time: whatever else a machine does is not counted.
const TIME_BOUND: Duration = Duration::from_secs(2);
/// An input that is not done by then never will be: the child ends itself.
const HANG: Duration = Duration::from_secs(20);

/// What a child prints, a line each, as it goes: what it has found is told also when a later input ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Line {
    /// The input of this number panicked or took too long.
    Failed(u64),
    /// All inputs are through.
    Done { slowest_us: u64 },
}

/// The lines of a child, up to where it died.
pub(crate) fn lines(output: &[u8]) -> Vec<Line> {
    serde_json::Deserializer::from_slice(output).into_iter().map_while(Result::ok).collect()
}

/// Where the number of the input under way is written.
pub(crate) fn progress_file(name: &str) -> Result<PathBuf> {
    Ok(::tests::paths::output("fuzz")?.join(format!("{name}.at")))
}

/// The input under way, or the last one.
pub(crate) fn progress(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap_or_default();
    bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

pub(crate) fn main(name: &str, from: &str) -> Result<()> {
    let target = target::find(name)?;
    let from: u64 = from.parse().context("the number of the first input")?;
    let (count, seed) = (target.count()?, crate::number("SEED", 1)?);
    std::panic::set_hook(Box::new(|_| {}));
    let at = File::create(progress_file(name)?)?;
    watch_for_hangs();
    let mut slowest_us = 0;
    for (number, input) in target.inputs(seed)?.take(count as usize).enumerate().skip(from as usize) {
        let number = number as u64;
        at.write_all_at(&number.to_le_bytes(), 0)?;
        CURRENT.store(number + 1, Ordering::Relaxed);
        if !run(target, &input, &mut slowest_us) {
            tell(Line::Failed(number))?;
        }
    }
    CURRENT.store(0, Ordering::Relaxed);
    tell(Line::Done { slowest_us })
}

fn tell(line: Line) -> Result<()> {
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}

/// Runs one input that was kept; a panic says where it was.
pub(crate) fn one(name: &str, file: &Path) -> Result<()> {
    let input = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let mut took_us = 0;
    let well = run(target::find(name)?, &input, &mut took_us);
    println!("{name}: {} after {took_us} us", if well { "well" } else { "failed" });
    Ok(())
}

fn run(target: &Target, input: &[u8], slowest_us: &mut u64) -> bool {
    let begun = used();
    let outcome = catch_unwind(|| (target.run)(input));
    let took = used().saturating_sub(begun);
    *slowest_us = (*slowest_us).max(took.as_micros() as u64);
    outcome.is_ok() && took <= TIME_BOUND
}

/// The processor's time that this thread has had.
fn used() -> Duration {
    let clock = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock");
    clock.into()
}

/// The number of the input under way, plus one; 0 when there is none.
static CURRENT: AtomicU64 = AtomicU64::new(0);

fn watch_for_hangs() {
    thread::spawn(|| {
        loop {
            let before = CURRENT.load(Ordering::Relaxed);
            thread::sleep(HANG);
            if before != 0 && CURRENT.load(Ordering::Relaxed) == before {
                std::process::abort();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_found_is_told_though_a_later_input_ended_it() {
        assert_eq!(lines(b"{\"Failed\":3}\n{\"Failed\":9}\n{\"Fai"), [Line::Failed(3), Line::Failed(9)]);
        assert_eq!(lines(b"{\"Done\":{\"slowest_us\":7}}\n"), [Line::Done { slowest_us: 7 }]);
    }
}
