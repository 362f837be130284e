//! A virtual machine: QEMU in a network namespace of its own, with the platform's devices and command line.

mod builder;
pub mod console;
mod kernel;
mod process;
mod qmp;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

pub use builder::{Builder, IP_ARG, qemu_version};
pub use console::{Console, Mark};
pub use kernel::{Accel, Kernel};
pub use process::Process;
pub use qmp::Qmp;

use crate::image::Image;
use crate::net::{GUEST, NetNs};
use crate::{paths, wait};

/// From QEMU's start to the console's first line: that of PID 1, for the kernel is quiet.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// A running VM. Dropping it ends QEMU and its companions and removes the namespace and all files.
#[derive(Debug)]
pub struct Vm {
    // The order is the order of the drop: processes end before what they use is removed.
    qmp: Qmp,
    console: Console,
    qemu: Process,
    vsock: Option<Process>,
    netns: NetNs,
    disk: PathBuf,
    files: Files,
}

/// The VM's folder: sockets, logs, overlay.
#[derive(Debug)]
struct Files {
    dir: PathBuf,
}

impl Files {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if thread::panicking() {
            keep_logs(self);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Vm {
    /// Describes a VM that boots this image.
    pub fn of(image: &Image) -> Builder {
        Builder::new(image.path())
    }

    /// The same for any ext4 image.
    pub fn of_file(image: &Path) -> Builder {
        Builder::new(image)
    }

    pub fn console(&self) -> &Console {
        &self.console
    }

    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// QEMU itself.
    pub fn qemu(&self) -> &Process {
        &self.qemu
    }

    /// vhost-device-vsock, where the VM has vsock.
    pub fn vsock_daemon(&self) -> Option<&Process> {
        self.vsock.as_ref()
    }

    /// The VMM's unix socket that leads to the guest's vsock ports.
    pub fn vsock_socket(&self) -> PathBuf {
        self.files.at("v.sock")
    }

    /// The image's copy that the VM writes to when it was built with `keep_disk`, else the image.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// A folder that goes when the VM goes.
    pub fn dir(&self) -> &Path {
        &self.files.dir
    }

    /// envd over TCP, as `envdctl` writes endpoints.
    pub fn tcp_endpoint(&self) -> String {
        format!("netns:{}/tcp:{GUEST}:{}", self.netns.name(), envd_api::PORT)
    }

    /// A vsock port of the guest, as `envdctl` writes endpoints.
    pub fn vsock_endpoint(&self, port: u32) -> String {
        format!("firecracker:{}:{port}", self.vsock_socket().display())
    }

    /// Lets the machine stand still while its clock goes on, so that every timer comes late: as after a VMM's pause, or on a
    /// starved host. Under QMP's `stop` the guest's clock stands still too, and nothing is ever late.
    pub fn pause(&self) -> Result<()> {
        self.qemu.signal(Signal::SIGSTOP)
    }

    /// Ends a pause.
    pub fn resume(&self) -> Result<()> {
        self.qemu.signal(Signal::SIGCONT)
    }

    /// How QEMU ended, once it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.qemu.ended()
    }

    /// Whether it has ended without a word. Some say nothing for long: they are not waited for.
    fn is_stillborn(&self) -> bool {
        let _ = self.console().wait_within(Mark::default(), "", FIRST_WORD);
        self.console().has_ended() && self.console().bytes() == 0
    }

    /// Waits until the guest has ended the VM.
    pub fn wait_end(&self) -> Result<ExitStatus> {
        wait::until("the VM to end", wait::BOUND, || Ok(self.ended()))
    }

    /// Keeps them for whoever asks why, and says where.
    pub fn keep_logs(&self) {
        keep_logs(&self.files);
    }

    /// Copies `console.log`, `qemu.log` and `vsock.log` into a folder.
    pub fn copy_logs(&self, folder: &Path) -> Result<()> {
        copy_logs(&self.files, folder)
    }
}

fn keep_logs(files: &Files) {
    let name = files.dir.file_name().unwrap_or_default();
    let folder = paths::root().join("target/vm-logs").join(name);
    match copy_logs(files, &folder) {
        Ok(()) => eprintln!("the VM's console and logs are kept in {}", folder.display()),
        Err(error) => eprintln!("the VM's logs could not be kept: {error:#}"),
    }
}

fn copy_logs(files: &Files, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for log in ["console.log", "qemu.log", "vsock.log"].iter().filter(|log| files.at(log).exists()) {
        fs::copy(files.at(log), folder.join(log))?;
    }
    Ok(())
}
