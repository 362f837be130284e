//! `make run`: boots the image with its console on this terminal, and says how to reach it.
//!
//! What is typed goes to the console. It ends with the guest (`reboot` in it) or with ctrl-c.

use std::io::BufRead;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use tests::{Envd, Image, Kernel, Vm, paths};

/// Where the guest's own state is asked for.
const CONTROL_PORT: u32 = 49984;
/// Between two looks whether the guest has ended.
const LOOK: Duration = Duration::from_millis(200);

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
    println!("run: baking the image");
    let image = Image::native().envd(Envd::preferred()).bake()?;
    let vm = Vm::of(&image).kernel(Kernel::preferred()).boot()?;
    println!("{}", how_to_reach(&vm));
    let mut painter = paint_console(&vm)?;
    forward_typing(&vm);
    while vm.ended().is_none() && asked_to_end.recv_timeout(LOOK).is_err() {}
    let _ = painter.kill();
    let _ = painter.wait();
    println!("\nrun: {}", if vm.ended().is_some() { "the guest ended the VM" } else { "ended the VM" });
    Ok(())
}

fn how_to_reach(vm: &Vm) -> String {
    let (tcp, vsock) = (vm.tcp_endpoint(), vm.vsock_endpoint(envd_api::PORT.into()));
    format!(
        "run: envd is reached at these endpoints\n\
         run:   {tcp}\n\
         run:   {vsock}\n\
         run: the SDK, from this machine, with this bridge in another terminal\n\
         run:   sudo target/host/envdctl bridge --listen tcp:127.0.0.1:49983 --route {tcp} --route {vsock}\n\
         run:   E2B_DEBUG=true target/tools/venv/bin/python3 -c \
         'from e2b import Sandbox; print(Sandbox.create().commands.run(\"uname -a\").stdout)'\n\
         run: the guest's state, without network and envd\n\
         run:   sudo target/host/envdctl status --fc-socket {}\n\
         run: ends with ctrl-c; vsock port {CONTROL_PORT} answers envdctl\n",
        vm.vsock_socket().display()
    )
}

/// The console as `envdctl console` shows it: coloured on a terminal.
fn paint_console(vm: &Vm) -> Result<Child> {
    Command::new(paths::host_bin("envdctl")?)
        .args(["console", "--follow"])
        .arg(vm.console().log())
        .stdin(Stdio::null())
        .spawn()
        .context("starting envdctl console")
}

fn forward_typing(vm: &Vm) {
    let console = vm.console().clone();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = console.send(&format!("{line}\n"));
        }
    });
}

/// Ctrl-c and TERM as a message, so that the VM and its namespace are taken down in order. Blocked before any thread
/// starts, so that all of them inherit it.
fn ending_signals() -> Result<mpsc::Receiver<Signal>> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || signals.wait().map(|signal| sender.send(signal)));
    Ok(receiver)
}
