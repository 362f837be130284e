//! What a VM is made of before it boots.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::console::Console;
use super::kernel::{Accel, Kernel};
use super::process::Process;
use super::qmp::Qmp;
use super::{Files, Vm};
use crate::net::{GUEST_MAC, NetNs};
use crate::{paths, sweep, wait};

/// The platform's command line, word for word but for `ip=` and what PCI makes different: no `pci=off`, and udev, which has no
/// other name for a network device that is not on PCI, is to leave eth0 its name.
const CMDLINE: &str = "clocksource=kvm-clock i8042.noaux i8042.nokbd init=/sbin/init ipv6.autoconf=1 ipv6.disable=0 \
    loglevel=1 panic=1 quiet random.trust_cpu=on reboot=k rootflags=discard root=/dev/vda rw net.ifnames=0";
/// The platform's network parameter, word for word.
pub const IP_ARG: &str = "ip=169.254.0.21::169.254.0.22:255.255.255.252:instance:eth0:off:tap0";

/// How often a machine is started that the emulator loses.
const TRIES: usize = 3;

/// Describes a VM; [`Builder::boot`] starts it.
#[derive(Debug, Clone)]
pub struct Builder {
    image: PathBuf,
    kernel: Kernel,
    words: Vec<String>,
    dropped: Vec<String>,
    memory_mib: u32,
    processors: u32,
    net: bool,
    vsock: bool,
    keep_disk: bool,
    read_only: bool,
    survive_reboot: bool,
    args: Vec<OsString>,
}

impl Builder {
    pub(super) fn new(image: &Path) -> Self {
        Self {
            image: image.to_owned(),
            kernel: Kernel::preferred(),
            words: vec![IP_ARG.to_owned()],
            dropped: Vec::new(),
            memory_mib: 512,
            processors: 2,
            net: true,
            vsock: true,
            keep_disk: false,
            read_only: false,
            survive_reboot: false,
            args: Vec::new(),
        }
    }

    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// More words of the kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.words.push(words.to_owned());
        self
    }

    /// Leaves a word of the command line out, or any word that begins with it when it ends in `=`.
    #[must_use]
    pub fn without_word(mut self, word: &str) -> Self {
        self.dropped.push(word.to_owned());
        self
    }

    /// Adds `console=ttyS0`, which the platform does not have.
    #[must_use]
    pub fn console_arg(self) -> Self {
        self.cmdline("console=ttyS0")
    }

    /// Leaves `ip=` out.
    #[must_use]
    pub fn no_ip_arg(self) -> Self {
        self.without_word("ip=")
    }

    /// A guest without a network card; the namespace and its tap are there all the same.
    #[must_use]
    pub fn without_net(mut self) -> Self {
        self.net = false;
        self
    }

    #[must_use]
    pub fn without_vsock(mut self) -> Self {
        self.vsock = false;
        self
    }

    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    #[must_use]
    pub fn processors(mut self, count: u32) -> Self {
        self.processors = count;
        self
    }

    /// Gives the VM a copy of the image, in [`Vm::disk`], that it writes to; else its writes are lost with it.
    #[must_use]
    pub fn keep_disk(mut self) -> Self {
        self.keep_disk = true;
        self
    }

    /// A root filesystem that is read-only, device included.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// A reboot of the guest boots it again; else it ends the VM, as it does under Firecracker.
    #[must_use]
    pub fn survive_reboot(mut self) -> Self {
        self.survive_reboot = true;
        self
    }

    /// More arguments for QEMU.
    #[must_use]
    pub fn qemu_args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Starts the VM. Returns when the guest has said its first word, or seems to have none; await what it does on its console.
    ///
    /// A machine that has ended before its first word was lost by the emulator, whose processors race (docs/benchmarks.md): it is booted
    /// again.
    pub fn boot(&self) -> Result<Vm> {
        for _ in 1..TRIES {
            let vm = self.start()?;
            if !vm.is_stillborn() {
                return Ok(vm);
            }
            eprintln!("the VM ended before it said a word; booting it again");
        }
        self.start()
    }

    fn start(&self) -> Result<Vm> {
        crate::require_root()?;
        let name = sweep::unique_name();
        let files = Files::new(sweep::folder(&name))?;
        let disk = self.disk(&files)?;
        let mut netns = NetNs::with_tap(&name)?;
        netns.serve_metadata()?;
        let vsock = self.vsock.then(|| start_vsock(&files)).transpose()?;
        let console = Console::listen(&files.at("console.sock"), &files.at("console.log"))?;
        let qemu = self.start_qemu(&files, &disk, &netns)?;
        let qmp = connect_qmp(&files, &qemu)?;
        Ok(Vm { qmp, console, qemu, vsock, netns, disk, files })
    }

    /// The kernel's command line.
    pub fn command_line(&self) -> String {
        let given =
            CMDLINE.split_whitespace().chain(self.words.iter().flat_map(|words| words.split_whitespace()));
        let kept = given.filter(|word| !self.dropped.iter().any(|dropped| drops(dropped, word)));
        let mut line = kept.collect::<Vec<_>>().join(" ");
        if self.read_only {
            line = line.replace(" rw", " ro");
        }
        line
    }

    fn disk(&self, files: &Files) -> Result<PathBuf> {
        if !self.keep_disk {
            return Ok(self.image.clone());
        }
        let copy = files.at("disk.ext4");
        crate::image::copy_sparse(&self.image, &copy)?;
        Ok(copy)
    }

    fn start_qemu(&self, files: &Files, disk: &Path, netns: &NetNs) -> Result<Process> {
        let mut args: Vec<OsString> = ["netns", "exec", netns.name(), "env"].map(OsString::from).to_vec();
        args.push(format!("TMPDIR={}", files.dir.display()).into()); // the overlay goes there
        args.push("qemu-system-x86_64".into());
        args.extend(Accel::choose()?.args());
        args.extend(self.machine_args());
        args.extend(self.kernel.args()?);
        args.extend(["-append".into(), self.command_line().into()]);
        args.extend(self.device_args(files, disk));
        args.extend(self.args.iter().cloned());
        Process::start(Path::new("ip"), &args, &files.at("qemu.log"))
    }

    fn machine_args(&self) -> Vec<OsString> {
        let memory = format!("memory-backend-memfd,id=m0,size={}M,share=on", self.memory_mib);
        let (megabytes, processors) = (format!("{}M", self.memory_mib), self.processors.to_string());
        let mut words =
            vec!["-M", "q35,memory-backend=m0", "-m", &megabytes, "-smp", &processors, "-object", &memory];
        words.extend(["-nodefaults", "-display", "none"]);
        if !self.survive_reboot {
            words.push("-no-reboot");
        }
        words.into_iter().map(OsString::from).collect()
    }

    fn device_args(&self, files: &Files, disk: &Path) -> Vec<OsString> {
        let path = |name: &str| files.at(name).display().to_string();
        let overlay = match (self.read_only, self.keep_disk) {
            (true, _) => "readonly=on",
            (false, true) => "snapshot=off",
            (false, false) => "snapshot=on",
        };
        let mut words = vec![
            "-drive".to_owned(),
            format!("file={},format=raw,if=none,id=d0,discard=unmap,{overlay}", comma_safe(disk)),
            "-device".into(),
            "virtio-blk-pci,drive=d0".into(),
            "-chardev".into(),
            format!("socket,id=con0,path={}", path("console.sock")),
            "-serial".into(),
            "chardev:con0".into(),
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", path("qmp.sock")),
        ];
        if self.net {
            words.extend(["-netdev".into(), "tap,id=net0,ifname=tap0,script=no,downscript=no".into()]);
            words.extend(["-device".into(), format!("virtio-net-pci,netdev=net0,mac={GUEST_MAC},romfile=")]);
        }
        if self.vsock {
            words.extend(["-chardev".into(), format!("socket,id=vs0,path={}", path("vhost.sock"))]);
            words.extend(["-device".into(), "vhost-user-vsock-pci,chardev=vs0".into()]);
        }
        words.into_iter().map(OsString::from).collect()
    }
}

/// The daemon between the guest's vsock device and the unix socket; it must listen before QEMU starts.
fn start_vsock(files: &Files) -> Result<Process> {
    let program = paths::tool("vhost-device-vsock/bin/vhost-device-vsock")?;
    let (socket, uds) = (files.at("vhost.sock"), files.at("v.sock"));
    let vm = format!("guest-cid=3,socket={},uds-path={}", socket.display(), uds.display());
    let daemon = Process::start(&program, &["--vm".into(), vm.into()], &files.at("vsock.log"))?;
    wait::until("vhost-device-vsock to listen", wait::BOUND, || {
        ensure!(daemon.ended().is_none(), "vhost-device-vsock ended: {}", files.read("vsock.log"));
        Ok(socket.exists().then_some(()))
    })?;
    Ok(daemon)
}

fn connect_qmp(files: &Files, qemu: &Process) -> Result<Qmp> {
    let socket = files.at("qmp.sock");
    wait::until("QEMU to open its monitor", wait::BOUND, || {
        ensure!(qemu.ended().is_none(), "QEMU ended: {}", files.read("qemu.log").trim());
        Ok(Qmp::connect(&socket).ok())
    })
}

fn drops(dropped: &str, word: &str) -> bool {
    if dropped.ends_with('=') { word.starts_with(dropped) } else { word == dropped }
}

/// QEMU's option lists double a comma that is meant.
fn comma_safe(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

impl Files {
    fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { dir })
    }
}

/// The first line of QEMU's version, for reports.
pub fn qemu_version() -> Result<String> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .context("starting qemu-system-x86_64")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_the_platforms() {
        let line = Builder::new(Path::new("x")).command_line();
        assert!(
            line.contains(IP_ARG) && line.contains("init=/sbin/init") && !line.contains("console="),
            "{line}"
        );
        assert!(!line.contains("  "), "{line}");
    }

    #[test]
    fn words_can_be_added_and_left_out() {
        let line =
            Builder::new(Path::new("x")).no_ip_arg().without_word("quiet").cmdline("a=b").command_line();
        assert!(!line.contains(" ip=") && !line.contains("quiet") && line.ends_with("a=b"), "{line}");
    }
}
