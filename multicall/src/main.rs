//! The one program of the guest. It is installed as `/usr/lib/envd-init/init`, and the name that it is called by decides what it
//! is; all of its roles share their pages in memory, and most of what one of them needs another has already loaded.
//!
//! | called as | is |
//! |---|---|
//! | `envd-wrapper`, `envd` | envd's supervisor, also as the first process of a container |
//! | `vsock-relay` | the relay |
//! | anything else, as process 1 | init |
//! | `init`, `systemctl`, `reboot`, … | the tools that ask init |

use std::{ffi::OsStr, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(OsStr::to_str).unwrap_or_default();
    match name {
        "envd-wrapper" | "envd" => envd_wrapper::main(),
        "vsock-relay" => vsock_relay::program::main(),
        _ => init::main(),
    }
}
