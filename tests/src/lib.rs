//! The harness: VMs to test in, and the ways to reach what runs in them. Tests, demo and benchmarks share it.
//!
//! ```no_run
//! use tests::{Image, Vm, Via};
//!
//! # fn main() -> anyhow::Result<()> {
//! tests::require_root()?;                                   // namespaces and taps need it: fails with one clear line
//! let image = Image::native().bake()?;                      // our init and the stand-in envd; baked once, then cached
//! let vm = Vm::of(&image).boot()?;                          // returns when QEMU runs; drop ends it and cleans up
//! vm.console().wait("envd is healthy")?;                    // a regular expression; generous bound, fails at once if the VM ends
//! assert_eq!(vm.get(Via::Tcp, "/health")?.status, 204);
//! assert_eq!(vm.get(Via::Vsock, "/health")?.status, 204);
//! let out = vm.exec(Via::Vsock, "id -un")?;                 // a shell command through envd
//! assert_eq!((out.stdout.as_str(), out.exit_code), ("root\n", 0));
//! # Ok(())
//! # }
//! ```
//!
//! **Images.** [`Image`] bakes variants and caches each by what goes into it under `target/test-images`:
//!
//! ```no_run
//! # use tests::{Image, Envd};
//! # fn main() -> anyhow::Result<()> {
//! let image = Image::native()
//!     .envd(Envd::StandIn)                                                  // or Envd::real(), Envd::File(path), Envd::None
//!     .switches("exit-after = 3\nflood = 1000\n")                           // faults of the stand-in, see its --help
//!     .file("/etc/envd-init/config.toml", "envd.start_bound_s = 3\n")       // any file, 0644
//!     .script("/etc/envd-init/hook", "#!/bin/sh\nexit 0\n")                 // the same, 0755
//!     .remove("/etc/hostname")
//!     .bake()?;
//! # Ok(())
//! # }
//! ```
//!
//! A VM never changes its image: it writes to an overlay of its own ([`vm::Builder::keep_disk`] gives it a copy that can
//! be read afterwards). So many VMs may run off one image, side by side.
//!
//! **VMs.** [`Vm::of`] gives a [`vm::Builder`]: `.kernel(…)`, `.cmdline("envd_init.x=1")`, `.console_arg()`,
//! `.without_net()`, `.without_vsock()`, `.memory_mib(…)`, `.no_ip_arg()`. The command line is the platform's, which has
//! no `console=`. [`Kernel::preferred`] is what `VM_KERNEL` names, else Debian's cloud kernel, whose drivers are modules;
//! [`Kernel::each`] is both, for what must work on both. A booted [`Vm`] has `console()`, `qmp()` (stop, cont, reset …),
//! `netns()` (run programs in the namespace, enter it), endpoints as `envdctl` writes them (`tcp_endpoint()`,
//! `vsock_endpoint(port)`), and `get`, `post`, `exec` by either route.
//!
//! **Several tests on one VM**: keep it in a `static LazyLock`, or, since statics are never dropped, simply boot it in one
//! test that calls the parts; what a killed run leaves behind is ended by the kernel or swept by the next run.
//!
//! **When a test panics** the console's log is kept under `target/vm-logs` and its path printed.
//!
//! Nothing here is shared with the programs under test but the wire format of envd's API: what judges them does not
//! inherit their errors.

pub mod bridge;
pub mod cell;
pub mod chaos;
pub mod control;
pub mod envd;
pub mod firecracker;
pub mod http;
pub mod image;
pub mod keep;
pub mod life;
pub mod net;
pub mod paths;
pub mod relay;
pub mod sdk;
pub mod sweep;
pub mod units;
pub mod vm;
pub mod wait;

pub use cell::Cell;
pub use envd::{CommandOutput, Via};
pub use image::{Envd, Image};
pub use vm::{Kernel, Vm};

/// Fails with one clear line when the caller cannot make namespaces and taps.
pub fn require_root() -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "this needs root (network namespace, tap device): run it through `make test`, or under sudo"
    );
    anyhow::ensure!(
        std::path::Path::new("/dev/net/tun").exists(),
        "/dev/net/tun is missing: load the module (modprobe tun), or give this container the device"
    );
    Ok(())
}

/// Runs one part of a test and says which: the name stands above what a failure prints.
pub fn part(name: &str, run: impl FnOnce()) {
    let began = std::time::Instant::now();
    eprintln!("part {name} …");
    run();
    eprintln!("part {name}: {:.1} s", began.elapsed().as_secs_f64());
}
