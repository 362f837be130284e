//! Guest time.
//!
//! The platform sets the wall clock at every `/init`, so every timer and every stamp of ours is monotonic:
//! a [`Moment`] counts nanoseconds of `CLOCK_MONOTONIC`, that is since the guest's kernel started.

use std::{fmt, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// Time since the guest's kernel started.
pub type Moment = Duration;

/// Reads `CLOCK_MONOTONIC`. Zero where the kernel refuses, which it never does for this clock.
pub fn now() -> Moment {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// A time as seconds, with as many digits as the format says (`{:.1}`), else three. In whole numbers: floating point and its
/// formatting would be a larger part of a small program than all that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(3).clamp(1, 9);
        let unit = 10_u64.pow(9 - digits as u32);
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        let rounded = nanos.saturating_add(unit / 2) / unit;
        let scale = 10_u64.pow(digits as u32);
        write!(f, "{}.{:0digits$}", rounded / scale, rounded % scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_to_the_digits_that_are_asked_for() {
        let time = Seconds(Duration::from_micros(1_049_960));
        assert_eq!(format!("{time:.1} {time} {time:.6}"), "1.0 1.050 1.049960");
        assert_eq!(format!("{:.1}", Seconds(Duration::from_millis(9950))), "10.0");
        assert_eq!(Seconds(Duration::ZERO).to_string(), "0.000");
    }
}
