//! The programs of e2fsprogs, run so that clock, locale, time zone and host configuration leave no trace in an image.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Geometry and features are pinned here, not taken from the host's `/etc/mke2fs.conf`.
pub const MKE2FS_CONF: &str = include_str!("../mke2fs.conf");

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{tool} is missing; install e2fsprogs")]
    Missing { tool: &'static str },
    #[error("cannot run {tool}")]
    Run { tool: &'static str, source: io::Error },
    #[error("{tool} could not {what}: {detail}")]
    Failed { tool: &'static str, what: &'static str, detail: String },
    #[error("{} needs the repair of e2fsck, so nothing is built on it: {detail}", image.display())]
    NotClean { image: PathBuf, detail: String },
    #[error("{} was not unmounted, and cannot be brought in order without loss: {detail}; run e2fsck on a copy", image.display())]
    Recovery { image: PathBuf, detail: String },
    #[error("the disk of {} is full: {tool} could not {what}; make room, or bake in another folder", folder.display())]
    DiskFull { tool: &'static str, what: &'static str, folder: PathBuf },
}

type Result<T> = std::result::Result<T, Error>;

/// What `e2fsck` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Clean,
    /// Free blocks or inodes are not counted rightly: the kernel counts anew at each mount.
    StaleCounts(String),
    Damaged(String),
}

/// Runs the tools with one fixed time, in one folder (relative paths of scripts are looked up there).
#[derive(Debug, Clone)]
pub struct Tools {
    folder: PathBuf,
    epoch: u64,
}

impl Tools {
    /// `epoch` is the time that goes into whatever the tools write; 0 would mean "now" to them.
    pub fn new(folder: &Path, epoch: u64) -> Self {
        Self { folder: folder.to_owned(), epoch: epoch.max(1) }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn command(&self, tool: &'static str) -> Command {
        let mut command = Command::new(tool);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"))
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("MKE2FS_CONFIG", self.folder.join("mke2fs.conf"))
            .stdin(Stdio::null());
        for name in ["SOURCE_DATE_EPOCH", "E2FSPROGS_FAKE_TIME", "E2FSCK_TIME"] {
            command.env(name, self.epoch.to_string());
        }
        command
    }

    fn run(&self, tool: &'static str, args: &[&OsStr]) -> Result<Output> {
        run(self.command(tool).args(args), tool)
    }

    /// Makes a filesystem with the contents of a folder in `image`.
    pub fn mke2fs(&self, image: &Path, options: &[String], source: &Path) -> Result<()> {
        std::fs::write(self.folder.join("mke2fs.conf"), MKE2FS_CONF)
            .map_err(|source| Error::Run { tool: "mke2fs", source })?;
        let mut args: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        let blocks = args.pop();
        args.extend([OsStr::new("-d"), source.as_os_str(), image.as_os_str()]);
        args.extend(blocks);
        let output = self.run("mke2fs", &args)?;
        let said = first_lines(&output.stderr, "mke2fs ");
        if output.status.success() && said.is_empty() {
            return Ok(());
        }
        Err(self.failed("mke2fs", "make the filesystem", said))
    }

    /// Runs a script of `debugfs`. It exits 0 whatever happens, so any word on stderr but its banner is a failure.
    pub fn debugfs(&self, image: &Path, script: &Path) -> Result<()> {
        let args = [OsStr::new("-w"), OsStr::new("-f"), script.as_os_str(), image.as_os_str()];
        let output = self.run("debugfs", &args)?;
        let said = first_lines(&output.stderr, "debugfs ");
        if output.status.success() && said.is_empty() {
            return Ok(());
        }
        Err(self.failed("debugfs", "change the image", said))
    }

    /// The tools say "no space" of this host's disk; of the image they say it in other words.
    fn failed(&self, tool: &'static str, what: &'static str, detail: String) -> Error {
        if detail.contains("No space left on device") {
            return Error::DiskFull { tool, what, folder: self.folder.clone() };
        }
        Error::Failed { tool, what, detail }
    }

    /// Requires that `e2fsck` finds nothing at all to say about the filesystem.
    pub fn require_clean(&self, image: &Path) -> Result<()> {
        match self.check(image)? {
            Health::Clean => Ok(()),
            Health::StaleCounts(detail) | Health::Damaged(detail) => {
                Err(Error::NotClean { image: image.to_owned(), detail })
            }
        }
    }

    /// What `e2fsck -n` says. Its exit code is 0 for counts that are out of date, so its words count as well.
    pub fn check(&self, image: &Path) -> Result<Health> {
        // Whatever the clock says, no time in the image lies in the future.
        let mut command = self.command("e2fsck");
        command.env("E2FSCK_TIME", u32::MAX.to_string());
        let output = run(command.arg("-fn").arg(image), "e2fsck")?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let complains = said.contains("Fix? no") || said.contains("Clear? no");
        Ok(match output.status.code() {
            Some(0) if !complains => Health::Clean,
            Some(0) => Health::StaleCounts(complaints(&said)),
            _ if complaints(&said).is_empty() => Health::Damaged(output.status.to_string()),
            _ => Health::Damaged(complaints(&said)),
        })
    }

    /// What a kernel does when it mounts an image that was not unmounted: the journal is replayed, files that were deleted while
    /// in use are freed, and counts are brought up to date. Whatever needs more than that is refused.
    pub fn recover(&self, image: &Path) -> Result<()> {
        let output = self.run("e2fsck", &[OsStr::new("-fp"), image.as_os_str()])?;
        // Bits 1 and 2: something was corrected, and a reboot would be due if it were mounted.
        if output.status.code().is_some_and(|code| code & !3 == 0) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Err(Error::Recovery { image: image.to_owned(), detail: complaints(&said) })
    }

    /// Enlarges a clean filesystem, and the file that it is in.
    pub fn enlarge(&self, image: &Path, mib: u64) -> Result<()> {
        // Forced, since it would ask for a check that was just made without writing the date of it down.
        let size = format!("{mib}M");
        let args = [OsStr::new("-f"), image.as_os_str(), OsStr::new(&size)];
        let output = self.run("resize2fs", &args)?;
        if output.status.success() {
            return Ok(());
        }
        Err(self.failed("resize2fs", "enlarge the filesystem", first_lines(&output.stderr, "resize2fs ")))
    }

    /// The version of e2fsprogs, for manifests: another one may write other bytes.
    pub fn version(&self) -> Result<String> {
        let output = self.run("mke2fs", &[OsStr::new("-V")])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(text.split_whitespace().nth(1).unwrap_or("unknown").to_owned())
    }
}

fn run(command: &mut Command, tool: &'static str) -> Result<Output> {
    command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { tool },
        _ => Error::Run { tool, source },
    })
}

/// The first lines of what a tool said, without its version banner, on one line.
fn first_lines(said: &[u8], banner: &str) -> String {
    let text = String::from_utf8_lossy(said);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.filter(|line| !is_banner(line, banner)).take(4).collect::<Vec<_>>().join("; ")
}

/// The lines of `e2fsck` that name something wrong.
fn complaints(said: &str) -> String {
    let chatter = |line: &str| {
        line.starts_with("Pass ") || line.contains(" files (") || line.contains("WARNING: Filesystem still")
    };
    let lines: Vec<&str> = said.lines().filter(|line| !chatter(line)).collect();
    first_lines(lines.join("\n").as_bytes(), "e2fsck ")
}

fn is_banner(line: &str, tool: &str) -> bool {
    let version = line.strip_prefix(tool);
    version.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()) && rest.ends_with(')'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_banner_is_silence() {
        assert_eq!(first_lines(b"debugfs 1.47.0 (5-Feb-2023)\n", "debugfs "), "");
        let said =
            first_lines(b"debugfs 1.47.0 (5-Feb-2023)\n/x: File not found by ext2_lookup \n", "debugfs ");
        assert_eq!(said, "/x: File not found by ext2_lookup");
    }
}
