//! The guests that are measured: images with the same envd and the same stamps, and what is PID 1 in them.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use tests::image::Bake;
use tests::keep::Init;
use tests::vm::Mark;
use tests::{Envd, Image, Vm, paths};

use crate::peers;
use crate::stamps::Stamps;

/// Where the images have what only benchmarks need.
const FOLDER: &str = "/usr/lib/bench";
/// A static shell with all that goes with it.
pub(crate) const BUSYBOX: &str = "/usr/lib/bench/busybox/busybox";
const SUPERVISED_FLOOR: &str = "c_floor_supervised";
const OUR_INIT: &str = "/usr/lib/envd-init/init";
/// The base has no host keys, without which Debian's sshd does not start.
const SSH_KEYS: &str =
    "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n";
/// MiB of memory in each guest: systemd's is the one that needs most.
const MEMORY: u32 = 768;
/// Boots of one guest before it is held to be broken.
const TRIES: usize = 3;

/// What is PID 1, and in which image.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    image: Image,
    /// Its path; none: the image's /sbin/init.
    init: Option<String>,
    /// What the stamps must name as PID 1.
    program: &'static str,
}

impl Contender {
    /// Our init, the C floor, busybox's init, systemd, and the C floor with a supervisor; each starts the same stamped envd.
    pub(crate) fn all() -> Result<[Self; 5]> {
        let native = stamped(native())?.bake()?;
        let systemd = stamped(Image::untouched(&Init::Systemd.base()?))?.bake()?;
        let named = |name, init: &str, program| Self {
            name,
            image: native.clone(),
            init: Some(format!("{FOLDER}/{init}")),
            program,
        };
        Ok([
            Self { name: "envd-init", image: native.clone(), init: None, program: OUR_INIT },
            named("c-floor", "c_floor", "/c_floor"),
            named("busybox-init", "busybox/init", "/busybox"),
            Self { name: "systemd", image: systemd, init: None, program: "/systemd" },
            named("c-floor with a supervisor", SUPERVISED_FLOOR, "/c_floor"),
        ])
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.program == OUR_INIT
    }

    /// Our init in an image with some more in it.
    pub(crate) fn ours(image: Bake) -> Result<Self> {
        Ok(Self { name: "envd-init", image: stamped(image)?.bake()?, init: None, program: OUR_INIT })
    }

    /// The same base under systemd, with the platform's unit for envd and the address of eth0.
    pub(crate) fn systemd_on(base: &Path) -> Result<Self> {
        let units = paths::root().join("tests/fixtures/keep/systemd/etc/systemd/system");
        let mut image = Image::untouched(base);
        for name in ["envd.service", "eth0.service"] {
            let text = fs::read(units.join(name)).with_context(|| format!("reading {name}"))?;
            let folder = "/etc/systemd/system";
            image = image
                .file(&format!("{folder}/{name}"), text)
                .link(&format!("{folder}/multi-user.target.wants/{name}"), &format!("../{name}"));
        }
        let image = image
            .script("/usr/local/bin/e2b-seed-certs", "#!/bin/sh\nexit 0\n")
            .file("/etc/systemd/system/ssh.service.d/keys.conf", SSH_KEYS);
        let image = stamped(image)?.bake()?;
        Ok(Self { name: "systemd", image, init: None, program: "/systemd" })
    }

    /// Boots it until its first stamps, and sees that it is this init that was measured. A VM that ends before them is one of those
    /// that the emulator loses (docs/benchmarks.md), and is said.
    pub(crate) fn boot(&self) -> Result<(Vm, Stamps)> {
        let mut tries = 0;
        loop {
            let vm = self.start()?;
            tries += 1;
            match Stamps::wait(&vm, Mark::default()) {
                Ok(stamps) => {
                    let program = &stamps.init;
                    ensure!(
                        program.ends_with(self.program),
                        "PID 1 is {program} instead of {}",
                        self.program
                    );
                    return Ok((vm, stamps));
                }
                Err(error) if vm.console().has_ended() && tries < TRIES => {
                    eprintln!("bench: {}: {error:#}; booting it again", self.name);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn start(&self) -> Result<Vm> {
        let named = self.init.as_ref().map(|path| format!(" bench_init={path}")).unwrap_or_default();
        Vm::of(&self.image)
            .memory_mib(MEMORY)
            .without_word("init=/sbin/init")
            .cmdline(&format!("init={FOLDER}/stamp-pid1{named}"))
            .boot()
            .with_context(|| format!("booting {}", self.name))
    }
}

/// An image as it would be used, without stamps.
pub(crate) fn boot_plain(image: &Image) -> Result<Vm> {
    Vm::of(image).memory_mib(MEMORY).boot()
}

/// Our image, with the real envd if there is one.
pub(crate) fn native() -> Bake {
    Image::native().envd(Envd::preferred())
}

/// systemd with the platform's unit for envd, and networkd.
pub(crate) fn systemd() -> Result<Bake> {
    let program = envd()?;
    Ok(Image::untouched(&Init::Systemd.base()?).script("/usr/bin/envd", program))
}

/// A program of `tests/peers` in the image; gives its path there.
pub(crate) fn with_peer(image: Bake, name: &str) -> Result<(Bake, String)> {
    let path = format!("{FOLDER}/{name}");
    Ok((image.script(&path, peers::compiled(name)?), path))
}

/// Puts the stamps in, before PID 1 and before envd, and the inits that are no image's own.
fn stamped(image: Bake) -> Result<Bake> {
    let stamp = peers::compiled("stamp")?;
    let image = image
        .script(&format!("{FOLDER}/stamp-pid1"), stamp.clone())
        .script(&format!("{FOLDER}/stamp-kill"), stamp.clone())
        .script("/usr/bin/envd.real", envd()?)
        .script("/usr/bin/envd", as_large_as_envd(stamp))
        .script(&format!("{FOLDER}/c_floor"), peers::compiled("c_floor")?)
        .link(&format!("{FOLDER}/{SUPERVISED_FLOOR}"), "c_floor");
    busybox_init(image)
}

/// The wrapper reads a small program to see whether it is itself, and no real envd is small.
fn as_large_as_envd(mut program: Vec<u8>) -> Vec<u8> {
    program.resize(5 << 20, 0);
    program
}

/// Just the program, for a shell that shares nothing with what is measured.
pub(crate) fn with_busybox(image: Bake) -> Result<Bake> {
    let program = fs::read("/bin/busybox").context("reading /bin/busybox (package busybox-static)")?;
    Ok(image.script(BUSYBOX, program))
}

/// As an init: one program, its applets as links to it.
fn busybox_init(image: Bake) -> Result<Bake> {
    let mut image = with_busybox(image)?;
    for applet in ["init", "mount", "mkdir", "ip", "hostname", "renice", "ionice"] {
        image = image.link(&format!("{FOLDER}/busybox/{applet}"), "busybox");
    }
    image = image.link(&format!("{FOLDER}/sh"), "busybox/busybox");
    let file = |name: &str| {
        let path = paths::root().join("tests/peers/busybox").join(name);
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    for script in ["rcS", "network", "envd"] {
        image = image.script(&format!("/etc/init.d/{script}"), file(script)?);
    }
    Ok(image.file("/etc/inittab", file("inittab")?))
}

fn envd() -> Result<Vec<u8>> {
    let path = Envd::preferred().path()?.context("no envd at all")?;
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// Kills envd in the guest, by a program that stamps the time.
pub(crate) fn kill_command() -> String {
    format!("{FOLDER}/stamp-kill $(pidof envd)")
}
