//! Waiting for what no event announces.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take that takes seconds: emulation on a busy machine is slow, and a bound that is met by a
/// broken program alone is no use. A test that passes never waits for it.
pub const BOUND: Duration = Duration::from_secs(170);

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Between two looks that keep the guest itself busy.
const GENTLE_INTERVAL: Duration = Duration::from_millis(200);

/// Looks again and again until `look` finds something.
pub fn until<T>(what: &str, bound: Duration, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    every(INTERVAL, what, bound, look)
}

/// The same for a look that runs a command in the guest, which on an emulated machine costs what is waited for.
pub fn gently<T>(what: &str, bound: Duration, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    every(GENTLE_INTERVAL, what, bound, look)
}

fn every<T>(
    interval: Duration,
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if begun.elapsed() > bound {
            bail!("waited {} s in vain for {what}", bound.as_secs());
        }
        thread::sleep(interval);
    }
}
