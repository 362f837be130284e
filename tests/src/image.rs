//! Images to boot: variants baked by our own tool, each cached under `target/test-images` by all that goes into it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::net::run;
use crate::paths;

/// The mode of a base that gets nothing of ours.
const UNTOUCHED: &str = "untouched";
/// How long an image is kept that nobody boots.
const UNUSED: Duration = Duration::from_hours(6);

/// The envd in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Envd {
    StandIn,
    /// An envd from elsewhere.
    File(PathBuf),
    /// None at all.
    None,
}

impl Envd {
    /// The real envd that `ENVD` names, if it names one.
    pub fn real() -> Option<Self> {
        let path = std::env::var_os("ENVD").filter(|path| !path.is_empty())?;
        Some(Self::File(paths::root().join(path)))
    }

    /// The real one where there is one, else the stand-in.
    pub fn preferred() -> Self {
        Self::real().unwrap_or(Self::StandIn)
    }

    /// Where it lies on the host.
    pub fn path(&self) -> Result<Option<PathBuf>> {
        match self {
            Self::StandIn => paths::stand_in().map(Some),
            Self::File(path) => Ok(Some(path.clone())),
            Self::None => Ok(None),
        }
    }
}

/// A baked image.
#[derive(Debug, Clone)]
pub struct Image {
    path: PathBuf,
}

impl Image {
    /// Our init in the default Debian base.
    pub fn native() -> Bake {
        Bake::new("native")
    }

    /// A base as it is, without anything of ours: a peer.
    pub fn untouched(base: &Path) -> Bake {
        Bake::new(UNTOUCHED).base(base).envd(Envd::None)
    }

    /// An image that was made elsewhere.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[derive(Debug, Clone)]
enum Change {
    File {
        path: String,
        content: Vec<u8>,
        mode: u32,
    },
    Link {
        path: String,
        target: String,
    },
    Remove {
        path: String,
    },
    /// Commands of debugfs.
    Debugfs {
        script: String,
    },
}

/// Describes an image; [`Bake::bake`] makes it, or finds it made.
#[derive(Debug, Clone)]
pub struct Bake {
    mode: &'static str,
    base: Option<PathBuf>,
    envd: Envd,
    size_mb: Option<u32>,
    accept_lost_units: bool,
    changes: Vec<Change>,
}

impl Bake {
    fn new(mode: &'static str) -> Self {
        Self {
            mode,
            base: None,
            envd: Envd::StandIn,
            size_mb: None,
            accept_lost_units: false,
            changes: Vec::new(),
        }
    }

    /// Another base than the default one: a tar, a folder or an ext4 image.
    #[must_use]
    pub fn base(mut self, path: &Path) -> Self {
        self.base = Some(path.to_owned());
        self
    }

    /// Leaves the base's own init in place.
    #[must_use]
    pub fn keep_init(mut self) -> Self {
        self.mode = "keep";
        self
    }

    #[must_use]
    pub fn envd(mut self, envd: Envd) -> Self {
        self.envd = envd;
        self
    }

    #[must_use]
    pub fn size_mb(mut self, size: u32) -> Self {
        self.size_mb = Some(size);
        self
    }

    /// Goes on although units of the base will no longer start.
    #[must_use]
    pub fn accept_lost_units(mut self) -> Self {
        self.accept_lost_units = true;
        self
    }

    /// Fault switches of the stand-in, one `name = value` a line (see `envd-stand-in --help`).
    #[must_use]
    pub fn switches(self, lines: &str) -> Self {
        self.file("/etc/envd-stand-in.conf", lines)
    }

    /// A file, root's, mode 0644. The path must not lead through a link (write `/usr/sbin`, not `/sbin`).
    #[must_use]
    pub fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.change(Change::File { path: path.to_owned(), content: content.into(), mode: 0o644 })
    }

    /// The same, mode 0755.
    #[must_use]
    pub fn script(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.change(Change::File { path: path.to_owned(), content: content.into(), mode: 0o755 })
    }

    /// A symbolic link, where there is nothing yet.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        self.change(Change::Link { path: path.to_owned(), target: target.to_owned() })
    }

    /// Removes a file or link of the base.
    #[must_use]
    pub fn remove(self, path: &str) -> Self {
        self.change(Change::Remove { path: path.to_owned() })
    }

    /// Any damage: commands of debugfs, one a line.
    #[must_use]
    pub fn debugfs(self, script: &str) -> Self {
        self.change(Change::Debugfs { script: script.to_owned() })
    }

    fn change(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    /// The image, made now or before.
    pub fn bake(&self) -> Result<Image> {
        let plain = self.plain()?;
        if self.changes.is_empty() {
            return Ok(Image { path: plain });
        }
        let changes: String = self.changes.iter().map(Change::key).collect();
        let out = self.cached(&format!("{}{changes}", plain.display()))?;
        made_once(&out, |part| {
            copy_sparse(&plain, part)?;
            for change in &self.changes {
                change.apply(part)?;
            }
            Ok(())
        })?;
        Ok(Image { path: out })
    }

    /// The image without changes, made anew at `out`.
    pub fn bake_to(&self, out: &Path) -> Result<Image> {
        ensure!(self.changes.is_empty(), "an image with changes is made by bake()");
        let base = self.base.clone().map_or_else(default_base, Ok)?;
        self.bake_plain(&base, self.envd.path()?.as_deref(), out)?;
        Ok(Image { path: out.to_owned() })
    }

    /// The image without the changes.
    fn plain(&self) -> Result<PathBuf> {
        let base = self.base.clone().map_or_else(default_base, Ok)?;
        let envd = self.envd.path()?;
        let mut inputs = vec![base.clone(), paths::host_bin("rootfs")?];
        for name in ["init", "envd-wrapper", "vsock-relay"] {
            inputs.push(paths::guest_bin(name)?);
        }
        inputs.extend(envd.clone());
        let stamps = inputs.iter().map(|path| stamp(path)).collect::<Result<Vec<_>>>()?;
        let out = self.cached(&format!("{}{:?}{stamps:?}", self.mode, self.size_mb))?;
        made_once(&out, |part| self.bake_plain(&base, envd.as_deref(), part))?;
        Ok(out)
    }

    fn bake_plain(&self, base: &Path, envd: Option<&Path>, out: &Path) -> Result<()> {
        let mut command = Command::new(paths::host_bin("rootfs")?);
        if self.mode == UNTOUCHED {
            command.arg("build").arg(base);
        } else {
            command.arg("bake").arg("--guest").arg(paths::guest_dir()).arg("--base").arg(base);
            command.args(["--init", self.mode]);
        }
        command.arg("--out").arg(out);
        if self.accept_lost_units {
            command.arg("--accept-lost-units");
        }
        if let Some(envd) = envd {
            command.arg("--envd").arg(envd);
        }
        if let Some(size) = self.size_mb {
            command.args(["--size", &size.to_string()]);
        }
        for name in ["BASE", "ENVD", "OUT", "SIZE", "INIT", "ARCH"] {
            command.env_remove(name);
        }
        let output = command.current_dir(paths::root()).output().context("starting rootfs")?;
        ensure!(
            output.status.success(),
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    fn cached(&self, key: &str) -> Result<PathBuf> {
        let digest = Sha256::digest(key.as_bytes());
        let short = digest.first_chunk::<8>().copied().map_or(0, u64::from_be_bytes);
        Ok(paths::output("test-images")?.join(format!("{}-{short:016x}.ext4", self.mode)))
    }
}

/// The default base's tar, made when absent.
pub fn default_base() -> Result<PathBuf> {
    let output = run(&paths::root().join("scripts/base-image").display().to_string(), &[])?;
    let path = output.lines().last().context("scripts/base-image printed no path")?;
    Ok(paths::root().join(path))
}

/// What tells one version of a file from another without reading it.
fn stamp(path: &Path) -> Result<(PathBuf, u64, SystemTime)> {
    let meta = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    Ok((path.to_owned(), meta.len(), meta.modified()?))
}

/// Makes `out` under a temporary name when it is absent; several processes may ask at once.
fn made_once(out: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let lock = fs::File::create(out.with_extension("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("locking {}", out.display()))?;
    if out.exists() {
        return Ok(fs::File::options().write(true).open(out)?.set_modified(SystemTime::now())?);
    }
    forget_old(out);
    let part = out.with_extension(format!("part-{}.ext4", std::process::id()));
    let result = make(&part).and_then(|()| Ok(fs::rename(&part, out)?));
    if result.is_err() {
        let _ = fs::remove_file(&part);
    }
    result
}

/// Each build of the guest makes new images; those that nobody used for long go.
fn forget_old(out: &Path) {
    let entries = out.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    for entry in entries {
        let modified = entry.metadata().and_then(|meta| meta.modified());
        if modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > UNUSED)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A copy that shares blocks where it can and keeps holes.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    run("cp", &["--reflink=auto", "--sparse=always", &from, &to])?;
    Ok(fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?)
}

impl Change {
    /// What tells it from any other.
    fn key(&self) -> String {
        match self {
            Self::File { path, content, mode } => {
                format!("file {path} {mode:o} {:x?}\n", Sha256::digest(content))
            }
            Self::Link { path, target } => format!("link {path} {target}\n"),
            Self::Remove { path } => format!("remove {path}\n"),
            Self::Debugfs { script } => format!("debugfs {script}\n"),
        }
    }

    fn apply(&self, image: &Path) -> Result<()> {
        match self {
            Self::Remove { path } => debugfs(image, &format!("rm {path}\n")),
            Self::Link { path, target } => {
                debugfs(image, &format!("{}symlink {path} {target}\n", missing_folders(image, path)?))
            }
            Self::Debugfs { script } => debugfs(image, script),
            Self::File { path, content, mode } => {
                let source = image.with_extension("content");
                fs::write(&source, content)?;
                let result = put(image, &source, path, *mode);
                fs::remove_file(&source)?;
                result
            }
        }
    }
}

/// Writes one file into the image, with the folders above it.
fn put(image: &Path, source: &Path, path: &str, mode: u32) -> Result<()> {
    let mut script = missing_folders(image, path)?;
    if exists(image, path)? {
        script += &format!("rm {path}\n");
    }
    script += &format!("write {} {path}\nsif {path} mode 0100{mode:o}\n", source.display());
    script += &format!("sif {path} uid 0\nsif {path} gid 0\n");
    debugfs(image, &script)
}

/// What makes the folders above `path` that are not there.
fn missing_folders(image: &Path, path: &str) -> Result<String> {
    let mut script = String::new();
    for parent in Path::new(path).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev().skip(1) {
        if !exists(image, &parent.display().to_string())? {
            script += &format!("mkdir {0}\nsif {0} mode 040755\n", parent.display());
        }
    }
    Ok(script)
}

fn exists(image: &Path, path: &str) -> Result<bool> {
    let output = Command::new("debugfs").args(["-R", &format!("stat {path}")]).arg(image).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("Inode:"))
}

/// Runs a script; debugfs exits 0 when it fails, so any line on stderr but the version is a failure.
fn debugfs(image: &Path, script: &str) -> Result<()> {
    let file = image.with_extension("debugfs");
    fs::write(&file, script)?;
    let output = Command::new("debugfs").arg("-w").arg("-f").arg(&file).arg(image).output();
    fs::remove_file(&file)?;
    let stderr = String::from_utf8_lossy(&output.context("starting debugfs")?.stderr).into_owned();
    if let Some(line) = stderr.lines().find(|line| !line.starts_with("debugfs ")) {
        bail!("changing {}: {line}", image.display());
    }
    Ok(())
}
