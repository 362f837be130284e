//! The clock, once, from the host's: `/dev/ptp0` where the kernel has it.

use std::{fs::File, os::fd::AsRawFd, time::Duration};

use guest::clock::Seconds;
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};
use tracing::info;

/// envd corrects the clock itself at each `/init`, with this tolerance; a finer one here would only fight it.
const TOLERANCE: Duration = Duration::from_millis(50);

pub(in crate::pid1) fn set_from_ptp() -> Vec<String> {
    let Ok(device) = File::open("/dev/ptp0") else { return Vec::new() };
    let set = || -> nix::Result<Option<Duration>> {
        let host = Duration::from(clock_gettime(clock_of(&device))?);
        let own = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
        let off = host.abs_diff(own);
        if off <= TOLERANCE {
            return Ok(None);
        }
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(host))?;
        Ok(Some(off))
    };
    match set() {
        Ok(None) => Vec::new(),
        Ok(Some(off)) => {
            info!("the clock was off by {:.3} s; set from /dev/ptp0", Seconds(off));
            Vec::new()
        }
        Err(error) => vec![format!("cannot set the clock from /dev/ptp0: {}", error.desc())],
    }
}

/// The kernel's number of a clock that a descriptor stands for (`FD_TO_CLOCKID`).
fn clock_of(device: &File) -> ClockId {
    const CLOCK_FD: i32 = 3;
    ClockId::from_raw((!device.as_raw_fd() << 3) | CLOCK_FD)
}
