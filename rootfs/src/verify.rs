//! Is an image fit to boot? A table of checks; nothing is changed.

use std::path::Path;

use serde::Serialize;

use crate::{
    elf::{Elf, Machine},
    ext4::{self, Image, Kind},
    keep::files::Files,
    layout::{self, Layout},
    manifest::{self, EnvdOrigin, Installed, InstalledKind, Manifest, Mode},
    payload,
    plan::Plan,
    revert, settings,
    tools::{Health, Tools},
};

/// Space an image should have left: envd, an update of it and a little for the workload's first steps.
const FREE_MIB: u64 = 32;
const FREE_INODES: u32 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found; for a failure also what to do.
    pub detail: String,
}

#[derive(Debug, Clone, Copy)]
pub struct Floors {
    pub free_mib: u64,
    pub free_inodes: u32,
}

impl Default for Floors {
    fn default() -> Self {
        Self { free_mib: FREE_MIB, free_inodes: FREE_INODES }
    }
}

type Found = Result<String, String>;
type Outcome = Result<Found, revert::Error>;

/// Runs every check. An error means that the image cannot even be read.
pub fn verify(path: &Path, tools: &Tools, floors: Floors) -> Result<Vec<Check>, revert::Error> {
    let image = Image::open(path)?;
    let mut checks = Checks(Vec::new());
    let (verdict, detail) = clean(&image, path, tools);
    checks.0.push(Check { name: "filesystem", verdict, detail });
    let Some(manifest) = revert::manifest(&image)? else {
        checks.add("payload", Err("there is no envd-init in it; bake it in with `rootfs inject`".into()));
        checks.add("space", space(&image, floors));
        return Ok(checks.0);
    };
    checks.add("payload", payload(&image, &manifest)?);
    checks.add("programs", programs(&image, manifest.arch)?);
    checks.add("init", init(&image, &manifest)?);
    checks.add("envd", envd(&image, &manifest)?);
    checks.add("configuration", configuration(&image)?);
    checks.add("services", services(&image)?);
    checks.add("shell", shell(&image)?);
    checks.add("space", space(&image, floors));
    checks.warn("user", user(&image)?);
    checks.warn("tools of envd", helpers(&image)?);
    Ok(checks.0)
}

struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, name: &'static str, found: Found) {
        self.push(name, found, Verdict::Failed);
    }

    fn warn(&mut self, name: &'static str, found: Found) {
        self.push(name, found, Verdict::Warning);
    }

    fn push(&mut self, name: &'static str, found: Found, bad: Verdict) {
        let (verdict, detail) = match found {
            Ok(detail) => (Verdict::Ok, detail),
            Err(detail) => (bad, detail),
        };
        self.0.push(Check { name, verdict, detail });
    }
}

/// The kernel counts free blocks anew at each mount: wrong counts are worth a word, and no failure.
fn clean(image: &Image, path: &Path, tools: &Tools) -> (Verdict, String) {
    if image.superblock.needs_recovery() {
        let detail = "its journal has to be replayed: it was not unmounted (e2fsck -fp on a copy)";
        return (Verdict::Failed, detail.into());
    }
    match tools.check(path) {
        Ok(Health::Clean) => (Verdict::Ok, "e2fsck finds nothing".into()),
        Ok(Health::StaleCounts(detail)) => (Verdict::Warning, detail),
        Ok(Health::Damaged(detail)) => (Verdict::Failed, format!("it needs the repair of e2fsck: {detail}")),
        Err(error) => (Verdict::Failed, error.to_string()),
    }
}

fn payload(image: &Image, manifest: &Manifest) -> Outcome {
    for installed in &manifest.installed {
        if let Some(problem) = differs(image, installed)? {
            return Ok(Err(format!("{} {problem}; inject again", installed.path)));
        }
    }
    let version = &manifest.version;
    Ok(Ok(format!("envd-init {version}, {} files and links as they were baked", manifest.installed.len())))
}

fn differs(image: &Image, installed: &Installed) -> Result<Option<&'static str>, ext4::Error> {
    let Some(found) = image.find_link(installed.path.as_bytes())? else { return Ok(Some("is missing")) };
    if !revert::is_unchanged(image, installed, &found.inode)? {
        // An updater may have put a newer envd there; that is judged by the check of envd.
        let updated = installed.path.ends_with("/envd") && found.inode.kind == Kind::File;
        return Ok((!updated).then_some("has been changed"));
    }
    if (found.inode.uid, found.inode.gid) != (0, 0) {
        return Ok(Some("does not belong to root"));
    }
    Ok(match installed.what {
        InstalledKind::File { mode, .. } if found.inode.permissions() != mode => Some("has another mode"),
        _ => None,
    })
}

fn programs(image: &Image, machine: Machine) -> Outcome {
    for name in payload::PROGRAMS {
        let path = format!("{}/{name}", manifest::HOME);
        if let Err(problem) = runnable(image, &path, machine)? {
            return Ok(Err(problem));
        }
    }
    Ok(Ok(format!("static, for {}, executable", machine.name())))
}

fn runnable(image: &Image, path: &str, machine: Machine) -> Result<Result<(), String>, ext4::Error> {
    let Some(found) = image.find(path.as_bytes())? else { return Ok(Err(format!("{path} is missing"))) };
    if found.inode.kind != Kind::File || found.inode.permissions() & 0o111 == 0 {
        return Ok(Err(format!("{path} is not executable")));
    }
    let elf = Elf::parse(&image.contents(&found.inode)?).and_then(|elf| elf.require_static(machine));
    Ok(elf.map_err(|error| format!("{path} {error}")))
}

fn init(image: &Image, manifest: &Manifest) -> Outcome {
    let found = image.find(b"/sbin/init")?.map(|found| ext4::show(&found.real));
    let shown = found.clone().unwrap_or_else(|| "nowhere".into());
    Ok(match (manifest.mode, found.as_deref()) {
        (Mode::Native, Some(payload::INIT)) => Ok(format!("/sbin/init leads to {}", payload::INIT)),
        (Mode::Native, _) => {
            Err(format!("/sbin/init leads to {shown}, not to {}; inject again", payload::INIT))
        }
        (Mode::Keep, None) => Err("there is no /sbin/init, and keep mode needs the image's own".into()),
        (Mode::Keep, Some(_)) => Ok(format!("the image's own: {shown}")),
    })
}

fn envd(image: &Image, manifest: &Manifest) -> Outcome {
    let Some(found) = Layout::of(image)?.envd else {
        return Ok(Err("there is none in /usr/bin or /usr/local/bin; bake one in with ENVD=path".into()));
    };
    let (program, pin) = settings::pinned(image)?;
    let path = program.unwrap_or(found.path);
    if let Err(problem) = runnable(image, &path, manifest.arch)? {
        return Ok(Err(problem));
    }
    let digest = crate::tree::sha256(image, &image.locate(path.as_bytes())?.inode)?;
    let matches = pin.as_ref().is_some_and(|pin| pin.eq_ignore_ascii_case(&digest));
    if !matches && !layout::runs_unpinned(image, &path)? {
        return Ok(Err(match pin {
            Some(_) => format!("{path} is not the one that the configuration pins; it will not run"),
            None => format!("others than root can write {path}, and it is not pinned; inject again"),
        }));
    }
    let stand_in = manifest.envd.as_ref().filter(|envd| envd.origin == EnvdOrigin::StandIn);
    Ok(Ok(match stand_in {
        Some(envd) if envd.sha256 == digest => format!("{path} (the stand-in for tests, not a real one)"),
        _ => path,
    }))
}

fn configuration(image: &Image) -> Outcome {
    let problems = settings::configuration_problems(image)?;
    Ok(if problems.is_empty() { Ok("parses".into()) } else { Err(problems.join("; ")) })
}

fn services(image: &Image) -> Outcome {
    Ok(match settings::check_services(&Plan::default(), image) {
        Ok(shipped) if shipped.is_empty() => Ok("parse, and their programs are there".into()),
        Ok(shipped) => Ok(shipped.join("; ")),
        Err(settings::Error::Image(error)) => return Err(error.into()),
        Err(error) => Err(error.to_string()),
    })
}

/// User commands run as `/bin/bash -l -c …`.
fn shell(image: &Image) -> Outcome {
    let found = image.find(b"/bin/bash")?;
    let good =
        found.is_some_and(|found| found.inode.kind == Kind::File && found.inode.permissions() & 0o111 != 0);
    Ok(if good {
        Ok("/bin/bash is there".into())
    } else {
        Err("/bin/bash is missing: every command of the SDK runs in it".into())
    })
}

fn user(image: &Image) -> Outcome {
    let passwd = image.text("/etc/passwd")?.unwrap_or_default();
    let has = |name: &str| passwd.lines().any(|line| line.split(':').next() == Some(name));
    Ok(match (has("root"), has("user")) {
        (true, true) => Ok("root and user are in /etc/passwd".into()),
        (false, _) => Err("there is no root in /etc/passwd".into()),
        (true, false) => Err(
            "there is no `user` in /etc/passwd: the SDK's default user; the platform's provisioning makes it"
                .into(),
        ),
    })
}

/// Programs that envd calls.
fn helpers(image: &Image) -> Outcome {
    let mut missing = Vec::new();
    for name in ["socat", "iptables", "mount", "umount"] {
        let mut found = false;
        for folder in ["/usr/bin", "/usr/sbin", "/bin", "/sbin"] {
            found |= image.exists(&format!("{folder}/{name}"))?;
        }
        if !found {
            missing.push(name);
        }
    }
    Ok(if missing.is_empty() {
        Ok("are there".into())
    } else {
        Err(format!("missing: {}", missing.join(", ")))
    })
}

fn space(image: &Image, floors: Floors) -> Found {
    let superblock = &image.superblock;
    let free = superblock.available_blocks() * u64::from(superblock.block_size) / (1 << 20);
    let text = format!("{free} MiB and {} inodes free", superblock.free_inodes);
    if free >= floors.free_mib && superblock.free_inodes >= floors.free_inodes {
        return Ok(text);
    }
    Err(format!("{text}; the floor is {} MiB and {} inodes: enlarge it", floors.free_mib, floors.free_inodes))
}
