//! `make run`: boots the image with its console on this terminal, and says how to reach it.
//!
//! Ends with the guest (`reboot` in it) or with ctrl-c.

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use tests::{Envd, Image, Kernel, Vm};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    tests::require_root()?;
    let asked_to_end = ending_signals()?;
    let image = Image::native().envd(Envd::preferred()).bake()?;
    let vm = Vm::of(&image).kernel(Kernel::preferred()).boot()?;
    vm.console().echo("");
    println!("run: to reach it from this machine:");
    println!(
        "run:   target/host/envdctl bridge --listen tcp:127.0.0.1:49983 --route {} --route {}",
        vm.tcp_endpoint(),
        vm.vsock_endpoint(49983)
    );
    println!("run:   E2B_DEBUG=true target/tools/venv/bin/python      # the SDK then speaks to localhost:49983");
    println!("run:   target/host/envdctl status --guest {}", vm.vsock_endpoint(49984));
    println!("run: it ends with ctrl-c, or with `reboot` in the guest");
    while vm.ended().is_none() && asked_to_end.recv_timeout(Duration::from_millis(200)).is_err() {}
    Ok(())
}

/// Ctrl-c and TERM as a message, so that the VM and its namespace are taken down in order.
fn ending_signals() -> Result<mpsc::Receiver<Signal>> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || signals.wait().map(|signal| sender.send(signal)));
    Ok(receiver)
}
