//! Kernels a VM can boot, and how its processors are run.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};

use crate::paths;

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's cloud kernel with the initramfs that loads its drivers: the network driver is a module, so the kernel
    /// does not serve `ip=`, and the parameter reaches PID 1.
    Cloud,
    /// A kernel whose drivers are built in, as the platform has it: it has served `ip=` before PID 1 runs.
    BuiltIn(PathBuf),
}

impl Kernel {
    /// What `VM_KERNEL` names, else the cloud kernel.
    pub fn preferred() -> Self {
        Self::from_env().unwrap_or(Self::Cloud)
    }

    /// The cloud kernel, and what `VM_KERNEL` names.
    pub fn each() -> Vec<Self> {
        [Some(Self::Cloud), Self::from_env()].into_iter().flatten().collect()
    }

    fn from_env() -> Option<Self> {
        let path = env::var_os("VM_KERNEL").filter(|path| !path.is_empty())?;
        Some(Self::BuiltIn(paths::root().join(path)))
    }

    /// Whether it serves `ip=` itself.
    pub fn serves_ip(&self) -> bool {
        matches!(self, Self::BuiltIn(_))
    }

    /// Whether it hears a keyboard: Firecracker's own configuration has no driver for one.
    pub fn has_keyboard(&self) -> bool {
        matches!(self, Self::Cloud)
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Cloud => "Debian's cloud kernel",
            Self::BuiltIn(_) => "a kernel with built-in drivers",
        }
    }

    /// QEMU's arguments.
    pub(super) fn args(&self) -> Result<Vec<OsString>> {
        let (image, initramfs) = match self {
            Self::Cloud => (paths::tool("kernel/vmlinuz")?, Some(paths::tool("kernel/initramfs")?)),
            Self::BuiltIn(path) => {
                ensure!(path.exists(), "VM_KERNEL={} does not exist", path.display());
                (path.clone(), None)
            }
        };
        let mut args = vec!["-kernel".into(), image.into_os_string()];
        args.extend(initramfs.into_iter().flat_map(|path| ["-initrd".into(), path.into_os_string()]));
        Ok(args)
    }
}

/// How processors are run: KVM where it serves, else emulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    /// `VM_ACCEL`, else what a probe found.
    pub fn choose() -> Result<Self> {
        static PROBED: OnceLock<Accel> = OnceLock::new();
        match env::var("VM_ACCEL").unwrap_or_default().as_str() {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            "" => Ok(*PROBED.get_or_init(|| if probe() { Self::Kvm } else { Self::Tcg })),
            other => bail!("VM_ACCEL={other} is unknown: say kvm or tcg"),
        }
    }

    pub(super) fn args(self) -> Vec<OsString> {
        let words: &[&str] = match self {
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max"],
        };
        words.iter().map(OsString::from).collect()
    }
}

/// A device that exists need not be able to boot a kernel (nested virtualisation that hangs is common): whether the
/// kernel prints a line under KVM within a few seconds. The answer is kept until the machine boots anew.
fn probe() -> bool {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let memo = paths::root().join("target/tools/kvm-probe");
    let known = fs::read_to_string(&memo).unwrap_or_default();
    if let Some(answer) = known.strip_prefix(boot.trim()) {
        return answer.trim() == "works";
    }
    let kernel = paths::root().join("target/tools/kernel/vmlinuz");
    if !kernel.exists() {
        return false;
    }
    let works = boots_under_kvm(&kernel);
    let _ = fs::write(memo, format!("{} {}\n", boot.trim(), if works { "works" } else { "hangs" }));
    works
}

fn boots_under_kvm(kernel: &Path) -> bool {
    let output = Command::new("timeout")
        .args([
            "-s",
            "KILL",
            "5",
            "qemu-system-x86_64",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-M",
            "q35",
            "-m",
            "128",
        ])
        .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Linux version"))
}
