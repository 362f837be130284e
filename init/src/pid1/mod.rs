//! Process 1.
//!
//! # Invariant
//!
//! PID 1 never exits, never blocks, never panics out. When it ends, the kernel panics and the sandbox is lost. So:
//!
//! * each step of the boot and each turn of the loop runs under [`guarded`]: a panic is logged, line by line, and the next
//!   step or turn goes on;
//! * a step that can fail says why, once, and is passed over; what can come back is retried by event ([`network`],
//!   [`control`]);
//! * nothing waits but the [reactor](guest::reactor): no child, no socket, no console is waited for;
//! * a fault that is no panic (a memory fault, an abort) executes the program anew, with the same number;
//! * what must block ([`finish`]: sync and unmount) is done by a child, inside a deadline, or where there can be none by a
//!   thread, as the last thing of all.

mod boot;
mod cgroups;
mod control;
mod finish;
mod kernel;
mod machine;
mod mounts;
mod network;
mod notify;
mod reap;
mod restore;
mod service;
mod setup;
mod shutdown;
mod stages;

use std::{
    fs::File,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use nix::fcntl::OFlag;
use tracing::error;

pub(crate) use finish::{UNMOUNT, unmount_all, way_down};

/// A turn of the loop that fails is followed by this pause, so that a fault that stays does not eat the CPU.
const AFTER_A_FAULT: Duration = Duration::from_millis(100);

/// Runs the machine. There is nothing to return to.
pub(crate) fn run() -> ! {
    install_panic_hook();
    // Not `args`, which panics at an unknown word that is no UTF-8.
    let arguments = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let faults = Faults::from_arguments(arguments);
    guest::sys::execute_again_after_fault(faults.count);
    let mut machine = boot::boot(&faults);
    loop {
        if guarded("the main loop", || machine.turn()).is_none() {
            std::thread::sleep(AFTER_A_FAULT);
        }
    }
}

/// How often of late this process had to be executed anew, and after which signal the last time.
#[derive(Debug, Default, PartialEq, Eq)]
struct Faults {
    count: u8,
    signal: i32,
}

impl Faults {
    /// All other arguments are unknown words of the kernel's command line.
    fn from_arguments(arguments: impl Iterator<Item = String>) -> Self {
        let marked = |word: &String| Some(word.as_str()) != guest::sys::AFTER_FAULT.to_str().ok();
        let mut rest = arguments.skip_while(marked).skip(1);
        let count = rest.next().and_then(|count| count.parse().ok()).unwrap_or(0);
        let signal = rest.next().and_then(|signal| signal.parse().ok()).unwrap_or(0);
        Self { count, signal }
    }
}

/// Runs a piece of work; a panic in it is its own end only.
fn guarded<T>(what: &str, work: impl FnOnce() -> T) -> Option<T> {
    let outcome = catch_unwind(AssertUnwindSafe(work));
    if outcome.is_err() {
        error!("{what} was cut short by a fault of init's own (above); init goes on");
    }
    outcome.ok()
}

/// Says a panic where somebody may read it, instead of on a standard error that may not be there.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let kernels = File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg");
        tell_fault(&info.to_string(), kernels.ok());
    }));
}

/// Line by line: in the kernel's log, which is there even where our own is at fault, and in our own.
fn tell_fault(text: &str, mut kernels: Option<impl Write>) {
    for line in text.lines() {
        if let Some(log) = &mut kernels {
            let _ = log.write_all(format!("<3>init: fault: {line}").as_bytes()); // one write is one record
        }
        error!("fault: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_from_words_of_the_kernels_command_line() {
        let faults = |line: &str| Faults::from_arguments(line.split(' ').map(str::to_owned));
        assert_eq!(faults("init quiet splash 3"), Faults::default());
        assert_eq!(faults("init --after-fault 2 11"), Faults { count: 2, signal: 11 });
        assert_eq!(faults("init --after-fault x"), Faults::default());
    }

    #[test]
    fn each_line_of_a_fault_is_a_record_of_the_kernels_log() {
        struct Records(Vec<String>);
        impl Write for &mut Records {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.push(String::from_utf8_lossy(bytes).into_owned());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut records = Records(Vec::new());
        tell_fault("panicked at x.rs:\nwhy", Some(&mut records));
        assert_eq!(records.0, ["<3>init: fault: panicked at x.rs:", "<3>init: fault: why"]);
    }

    #[test]
    fn a_panic_ends_only_the_work_it_happened_in() {
        assert_eq!(guarded("a test", || -> u8 { panic!("on purpose") }), None);
        assert_eq!(guarded("a test", || 1), Some(1));
    }
}
