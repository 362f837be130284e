//! The kernel's random numbers: ready at once where the CPU or the hypervisor seeds them. Where they are not, a hardware
//! source of the machine is credited, since it differs for each clone. A seed file of the image never is: every
//! sandbox of a template has the same.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::OpenOptionsExt,
};

use guest::sys;
use tracing::info;

/// Bytes that seed the kernel's generator in full.
const SEED: usize = 64;
/// `entropy_avail` of a generator that is ready.
const READY: u32 = 256;

pub(in crate::pid1) fn seed() -> Vec<String> {
    if is_ready() {
        return Vec::new();
    }
    let Some(seed) = hardware_seed() else {
        return vec!["the kernel's random numbers are not seeded yet, and there is no /dev/hwrng".to_owned()];
    };
    match File::options()
        .write(true)
        .open("/dev/urandom")
        .map_err(|error| error.to_string())
        .and_then(|device| sys::credit_entropy(&device, &seed).map_err(|errno| errno.desc().to_owned()))
    {
        Ok(()) => {
            info!("the kernel's random numbers are seeded from /dev/hwrng");
            Vec::new()
        }
        Err(error) => vec![format!("cannot seed the kernel's random numbers: {error}")],
    }
}

fn is_ready() -> bool {
    let text = fs::read_to_string("/proc/sys/kernel/random/entropy_avail").unwrap_or_default();
    text.trim().parse::<u32>().is_ok_and(|bits| bits >= READY)
}

fn hardware_seed() -> Option<[u8; SEED]> {
    let mut device = File::options()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open("/dev/hwrng")
        .ok()?;
    let mut seed = [0; SEED];
    device.read_exact(&mut seed).ok()?;
    seed.iter().any(|byte| *byte != 0).then_some(seed)
}
