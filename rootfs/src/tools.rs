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
    Failed { tool: &'static str, what: String, detail: String },
    #[error("{} needs the repair of e2fsck, so nothing is built on it: {detail}", image.display())]
    NotClean { image: PathBuf, detail: String },
    #[error("the journal of {} cannot be replayed: {detail}", image.display())]
    Journal { image: PathBuf, detail: String },
}

type Result<T> = std::result::Result<T, Error>;

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
        self.command(tool).args(args).output().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { tool },
            _ => Error::Run { tool, source },
        })
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
        Err(Error::Failed { tool: "mke2fs", what: "make the filesystem".into(), detail: said })
    }

    /// Runs a script of `debugfs`. It exits 0 whatever happens, so any word on stderr but its banner is a failure.
    pub fn debugfs(&self, image: &Path, script: &Path) -> Result<()> {
        let args = [OsStr::new("-w"), OsStr::new("-f"), script.as_os_str(), image.as_os_str()];
        let output = self.run("debugfs", &args)?;
        let said = first_lines(&output.stderr, "debugfs ");
        if output.status.success() && said.is_empty() {
            return Ok(());
        }
        Err(Error::Failed { tool: "debugfs", what: "change the image".into(), detail: said })
    }

    /// Requires that `e2fsck` finds nothing at all to say about the filesystem.
    pub fn require_clean(&self, image: &Path) -> Result<()> {
        let output = self.run("e2fsck", &[OsStr::new("-fn"), image.as_os_str()])?;
        if output.status.code() == Some(0) {
            return Ok(());
        }
        let mut detail = first_lines(&[output.stdout, output.stderr].concat(), "e2fsck ");
        if detail.is_empty() {
            detail = output.status.to_string();
        }
        Err(Error::NotClean { image: image.to_owned(), detail })
    }

    /// Replays the journal of an image that was not unmounted.
    pub fn replay_journal(&self, image: &Path) -> Result<()> {
        let args = [OsStr::new("-p"), OsStr::new("-E"), OsStr::new("journal_only"), image.as_os_str()];
        let output = self.run("e2fsck", &args)?;
        // Bits 1 and 2: something was corrected, and a reboot would be due if it were mounted.
        if output.status.code().is_some_and(|code| code & !3 == 0) {
            return Ok(());
        }
        let detail = first_lines(&[output.stdout, output.stderr].concat(), "e2fsck ");
        Err(Error::Journal { image: image.to_owned(), detail })
    }

    /// The version of e2fsprogs, for manifests: another one may write other bytes.
    pub fn version(&self) -> Result<String> {
        let output = self.run("mke2fs", &[OsStr::new("-V")])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(text.split_whitespace().nth(1).unwrap_or("unknown").to_owned())
    }
}

/// The first lines of what a tool said, without its version banner, on one line.
fn first_lines(said: &[u8], banner: &str) -> String {
    let text = String::from_utf8_lossy(said);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.filter(|line| !is_banner(line, banner)).take(4).collect::<Vec<_>>().join("; ")
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
