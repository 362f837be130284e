//! `init`: PID 1 of an envd guest, and the tools that talk to it.
//!
//! One program under many names: as process 1 it is the machine's init; as `systemctl`, `reboot`, `poweroff`, `halt`,
//! `shutdown` or `telinit` it asks that init for something. The invariant of process 1 is written in [`pid1`].

mod applet;
mod pid1;
mod service_name;

use std::process::ExitCode;

/// The program, under all its names but those of the wrapper and the relay.
pub fn main() -> ExitCode {
    if nix::unistd::getpid().as_raw() == 1 {
        pid1::run();
    }
    applet::run(std::env::args_os())
}
