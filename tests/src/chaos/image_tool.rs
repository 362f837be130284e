//! The image tool is killed at each of its steps and at any moment, and its disk runs full: base and old output stay as they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::guest::{Guest, Stage};
use super::{Scenario, Trial};
use crate::image::copy_sparse;
use crate::net::run;
use crate::{Image, paths, sweep};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "image-kills",
        about: "the image tool is killed at each step, then at random moments; base and old output are unchanged",
        stage: Stage::Host,
        full: 30,
        brief: 0,
        wears_out: false,
        waits: false,
        run: kills,
    },
    Scenario {
        name: "image-disk-full",
        about: "the disk runs full while the image tool writes; base and old output are unchanged",
        stage: Stage::Host,
        full: 10,
        brief: 0,
        wears_out: false,
        waits: false,
        run: disk_full,
    },
];

/// Every step that an injection has.
const STEPS: [&str; 6] = ["copy", "check-base", "write", "check", "flush", "publish"];

/// A folder with a base and an old output; gone when dropped.
struct Desk {
    folder: PathBuf,
    mounted: bool,
    /// Of base and old output.
    digests: [String; 2],
}

impl Desk {
    /// `size`: of a filesystem of its own (MiB).
    fn new(size: Option<u64>) -> Result<Self> {
        let folder = paths::output("chaos")?.join(sweep::unique_name());
        fs::create_dir(&folder)?;
        let mut desk = Self { folder, mounted: false, digests: Default::default() };
        if let Some(size) = size {
            let options = format!("size={size}m");
            run("mount", &["-t", "tmpfs", "-o", &options, "chaos", &desk.folder.display().to_string()])?;
            desk.mounted = true;
        }
        copy_sparse(Image::native().bake()?.path(), &desk.base())?;
        // An old output is any file of that name.
        fs::write(desk.out(), vec![b'o'; 1 << 20])?;
        desk.digests = desk.look()?;
        Ok(desk)
    }

    fn base(&self) -> PathBuf {
        self.folder.join("base.ext4")
    }

    fn out(&self) -> PathBuf {
        self.folder.join("out.ext4")
    }

    fn look(&self) -> Result<[String; 2]> {
        Ok([digest(&self.base())?, digest(&self.out())?])
    }

    fn unchanged(&self) -> Result<()> {
        let now = self.look()?;
        ensure!(now[0] == self.digests[0], "the base has changed");
        ensure!(now[1] == self.digests[1], "the old output has changed");
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(paths::host_bin("rootfs")?);
        command.arg("inject").arg(self.base()).arg("--out").arg(self.out());
        command.arg("--guest").arg(paths::guest_dir()).stdin(Stdio::null()).stdout(Stdio::null());
        for name in ["BASE", "ENVD", "OUT", "SIZE", "INIT", "ARCH"] {
            command.env_remove(name);
        }
        Ok(command)
    }

    /// A run that nobody disturbs clears up and succeeds; then the old output is put back.
    fn recovers(&self) -> Result<()> {
        let output = self.command()?.output().context("starting rootfs")?;
        ensure!(output.status.success(), "the next run failed: {}", said(&output));
        let mut names: Vec<_> =
            fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        names.sort();
        ensure!(names == ["base.ext4", "out.ext4", "out.ext4.manifest.json"], "left behind: {names:?}");
        fs::write(self.out(), vec![b'o'; 1 << 20])?;
        Ok(fs::remove_file(self.folder.join("out.ext4.manifest.json"))?)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run("umount", &["-l", &self.folder.display().to_string()]);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn kills(_: &Guest, trial: &mut Trial) -> Result<()> {
    let desk = Desk::new(None)?;
    for step in STEPS {
        let output = desk.command()?.env("ROOTFS_TEST_KILL_AT", step).output().context("starting rootfs")?;
        trial.require(output.status.code().is_none(), || {
            format!("it was not killed at {step}: {}", said(&output))
        });
        trial.attempt(format!("killed at {step}"), desk.unchanged());
    }
    trial.attempt("the run after them", desk.recovers());
    let begun = Instant::now();
    trial.attempt("a run in peace", desk.recovers());
    let whole = begun.elapsed();
    for turn in 1..=trial.count {
        let after = whole.mul_f64(trial.dice.f64());
        trial.attempt(format!("kill {turn}, after {} ms", after.as_millis()), killed_after(&desk, after));
    }
    trial.attempt("the last run", desk.recovers());
    Ok(())
}

fn killed_after(desk: &Desk, after: Duration) -> Result<()> {
    let mut child = desk.command()?.stderr(Stdio::null()).spawn().context("starting rootfs")?;
    thread::sleep(after);
    let done = child.try_wait()?.is_some();
    child.kill()?;
    child.wait()?;
    // One that was done sooner than the one before has done its work.
    if done || digest(&desk.out())? != desk.digests[1] {
        return desk.recovers();
    }
    desk.unchanged()
}

fn disk_full(_: &Guest, trial: &mut Trial) -> Result<()> {
    let base = fs::metadata(Image::native().bake()?.path())?;
    let used = std::os::unix::fs::MetadataExt::blocks(&base) * 512 / (1 << 20);
    for turn in 1..=trial.count {
        // Enough for the base and the old output, and for a part of the new one.
        let room = used + 2 + used * turn / (trial.count + 1);
        trial.attempt(format!("{room} MiB in all"), no_room(room));
    }
    Ok(())
}

fn no_room(size: u64) -> Result<()> {
    let desk = Desk::new(Some(size))?;
    let output = desk.command()?.output().context("starting rootfs")?;
    ensure!(output.status.code() == Some(16), "it ended with {:?}: {}", output.status.code(), said(&output));
    ensure!(said(&output).contains("No space left"), "it does not say why: {}", said(&output));
    desk.unchanged()?;
    let names: Vec<_> =
        fs::read_dir(&desk.folder)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(names.len() == 2, "left behind: {names:?}");
    Ok(())
}

fn digest(path: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    std::io::copy(&mut file, &mut digest)?;
    Ok(format!("{:x}", digest.finalize()))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}
