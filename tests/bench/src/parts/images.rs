//! Images: putting our programs into one, and making one from a tar, beside the bare tools that the work cannot do without.
//!
//! All files lie on one disk and are in the page cache; every subject ends with its output flushed to that disk.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tests::net::run;
use tests::{Envd, Image, image, paths};

use crate::plan::Plan;
use crate::row::{Curve, Findings, Growth, Row, Subject};
use crate::turns;

const ROUNDS: usize = 5;
const GROWTH_ROUNDS: usize = 3;
/// MiB, and how their rows are called.
const SIZES: [(u64, &str); 3] = [(256, "256m"), (1024, "1g_of_noise"), (4096, "4g")];
/// How full the images of noise are, in percent.
const FULL: u64 = 60;
const FILE: usize = 64 * 1024;
/// Where a peer unpacks a tar.
const UNPACKED: &str = "unpacked";
const PEER: &str = "cp --sparse=always, two e2fsck -fn, fsync";

/// Work of which the time is taken; it makes the file that it is given.
type Work<'a> = (&'static str, Box<dyn Fn(&Path) -> Result<()> + 'a>);

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    let bench = Bench::new()?;
    let tar = image::default_base()?;
    found.rows.extend(bench.inject_debian(plan, &tar)?);
    found.rows.extend(bench.build(plan, &tar)?);
    bench.growth(plan, found)
}

struct Bench {
    folder: TempDir,
    memory: TempDir,
}

impl Bench {
    /// On the disk of the working copy: /tmp may be memory.
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir_in(paths::output("bench")?)?;
        Ok(Self { folder, memory: tempfile::tempdir_in("/dev/shm")? })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Seconds of each, in turn; what one has made is gone before the next begins.
    fn times(&self, works: &[Work<'_>], rounds: usize) -> Result<Vec<Vec<f64>>> {
        turns::take(works, rounds, |(name, work)| {
            let out = self.at("out.ext4");
            let begin = Instant::now();
            work(&out).with_context(|| (*name).to_owned())?;
            let elapsed = begin.elapsed().as_secs_f64();
            fs::remove_file(&out)?;
            for place in [&self.folder, &self.memory] {
                let _ = fs::remove_dir_all(place.path().join(UNPACKED));
            }
            Ok(elapsed)
        })
    }

    /// A GiB of image with Debian in it.
    fn inject_debian(&self, plan: &Plan, tar: &Path) -> Result<Vec<Row>> {
        plan.say("images: inject into 1 GiB with Debian in it");
        let envd = fs::read(envd()?).context("reading envd")?;
        let base = Image::untouched(tar).size_mb(1024).script("/usr/bin/envd", envd).bake()?;
        let samples = self.times(&injection(base.path()), ROUNDS)?;
        Ok(vec![Subject::lower("images.inject_1g", "s").against(&samples[0], PEER, &samples[1], Some(1.5))])
    }

    /// An image from a tar. `mke2fs` takes none (before 1.47.1), so it is given a folder: unpacked before; and unpacked by tar as part
    /// of the work, in memory (as we do it, so that is the floor) and on the disk.
    fn build(&self, plan: &Plan, tar: &Path) -> Result<Vec<Row>> {
        plan.say("images: build from a tar");
        let tree = self.at("tree");
        fs::create_dir(&tree)?;
        unpack(tar, &tree)?;
        let size = built_size(&self.at("probe.ext4"), tar)?;
        let unpacked = |place: &TempDir, out: &Path| {
            let again = place.path().join(UNPACKED);
            fs::create_dir(&again)?;
            unpack(tar, &again)?;
            mke2fs(&again, out, &size)
        };
        let works: [Work<'_>; 4] = [
            ("rootfs build", Box::new(|out| rootfs(&["build", &text(tar), "--out", &text(out)]))),
            ("mke2fs -d", Box::new(|out| mke2fs(&tree, out, &size))),
            ("tar -x into memory, mke2fs -d", Box::new(|out| unpacked(&self.memory, out))),
            ("tar -x to the disk, mke2fs -d", Box::new(|out| unpacked(&self.folder, out))),
        ];
        let samples = self.times(&works, ROUNDS)?;
        fs::remove_dir_all(&tree)?;
        let subject = Subject::lower("images.build", "s");
        Ok(vec![
            subject.against(&samples[0], "mke2fs -d of a folder", &samples[1], Some(1.2)),
            subject.against(&samples[0], works[2].0, &samples[2], None),
            subject.against(&samples[0], works[3].0, &samples[3], None),
        ])
    }

    fn growth(&self, plan: &Plan, found: &mut Findings) -> Result<()> {
        let mut curves = ["rootfs bake", PEER].map(|name| Curve { name: name.into(), points: Vec::new() });
        for (mib, name) in SIZES {
            plan.say(&format!("images: inject into {mib} MiB"));
            let base = self.noise(mib)?;
            let samples = self.times(&injection(&base), GROWTH_ROUNDS)?;
            fs::remove_file(base)?;
            found.rows.push(Subject::lower(format!("images.inject_{name}"), "s").against(
                &samples[0],
                PEER,
                &samples[1],
                None,
            ));
            for (curve, of) in curves.iter_mut().zip(samples) {
                curve.points.push((mib as f64 / 1024.0, of));
            }
        }
        found.growth.push(Growth {
            name: "images-size",
            title: "Injecting into an image, 60 % full",
            of: "GiB of image",
            cost: "seconds",
            curves: curves.into(),
        });
        Ok(())
    }

    /// An image of files that do not compress and have no holes, with just enough of a system in it to be injected.
    fn noise(&self, mib: u64) -> Result<PathBuf> {
        let tree = self.at("noise");
        for folder in ["bin", "sbin", "etc", "usr/bin", "usr/lib", "data"] {
            fs::create_dir_all(tree.join(folder))?;
        }
        fs::copy("/bin/busybox", tree.join("bin/bash")).context("copying /bin/busybox")?;
        fs::copy(envd()?, tree.join("usr/bin/envd")).context("copying envd")?;
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n")?;
        let mut state = 0x9E37_79B9_7F4A_7C15;
        for number in 0..(mib << 20) * FULL / 100 / FILE as u64 {
            let folder = tree.join("data").join((number / 256).to_string());
            fs::create_dir_all(&folder)?;
            fs::File::create(folder.join(number.to_string()))?.write_all(&noise(&mut state))?;
        }
        let out = self.at("noise.ext4");
        mke2fs(&tree, &out, &format!("{mib}M"))?;
        fs::remove_dir_all(&tree)?;
        Ok(out)
    }
}

/// Bytes of one file (xorshift).
fn noise(state: &mut u64) -> Vec<u8> {
    let words = std::iter::repeat_with(|| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()
    });
    words.take(FILE / 8).flatten().collect()
}

fn envd() -> Result<PathBuf> {
    Envd::preferred().path()?.context("no envd at all")
}

/// Ours, which keeps the image's own envd, and what cannot be left out: a copy, a check before and one after, a flush.
fn injection(base: &Path) -> [Work<'_>; 2] {
    let guest = text(&paths::guest_dir());
    let base = text(base);
    let copied = base.clone();
    [
        (
            "rootfs bake",
            Box::new(move |out| rootfs(&["bake", "--guest", &guest, "--base", &base, "--out", &text(out)])),
        ),
        (
            PEER,
            Box::new(move |out| {
                let out = text(out);
                run("cp", &["--sparse=always", &copied, &out])?;
                run("e2fsck", &["-fn", &out])?;
                run("e2fsck", &["-fn", &out])?;
                run("sync", &[&out]).map(drop)
            }),
        ),
    ]
}

fn rootfs(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(paths::host_bin("rootfs")?);
    for name in ["BASE", "ENVD", "OUT", "SIZE", "INIT", "ARCH"] {
        command.env_remove(name);
    }
    let output = command.args(arguments).output().context("starting rootfs")?;
    ensure!(
        output.status.success(),
        "rootfs {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let out = arguments.iter().skip_while(|argument| **argument != "--out").nth(1).context("no --out")?;
    let manifest = PathBuf::from(format!("{}.manifest.json", out.trim_end_matches(".ext4")));
    let _ = fs::remove_file(manifest);
    Ok(())
}

fn unpack(tar: &Path, folder: &Path) -> Result<()> {
    run("tar", &["-xf", &text(tar), "-C", &text(folder)]).map(drop)
}

/// With the geometry that `rootfs` has.
fn mke2fs(tree: &Path, out: &Path, size: &str) -> Result<()> {
    let config = paths::root().join("rootfs/mke2fs.conf");
    let options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-J", "size=4"];
    let output = Command::new("mke2fs")
        .env("MKE2FS_CONFIG", config)
        .args(options)
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-d"])
        .arg(tree)
        .arg(out)
        .arg(size)
        .output()
        .context("starting mke2fs")?;
    ensure!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The size that `rootfs` computes, as mke2fs takes it.
fn built_size(probe: &Path, tar: &Path) -> Result<String> {
    rootfs(&["build", &text(tar), "--out", &text(probe)])?;
    let kib = fs::metadata(probe)?.len() / 1024;
    fs::remove_file(probe)?;
    Ok(format!("{kib}k"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
