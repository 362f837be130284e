//! Guest time.
//!
//! The platform sets the wall clock at every `/init`, so every timer and every stamp of ours is monotonic:
//! a [`Moment`] counts nanoseconds of `CLOCK_MONOTONIC`, that is since the guest's kernel started.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the guest's kernel started.
pub type Moment = Duration;

/// Reads `CLOCK_MONOTONIC`. Zero where the kernel refuses, which it never does for this clock.
pub fn now() -> Moment {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
