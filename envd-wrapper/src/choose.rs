//! Which envd runs.
//!
//! In this order: the program named on the command line; called as a shim, a real ELF at `envd` in the shim's folder (an
//! updater has overwritten the shim), then the `envd.real` there; the configured one; then in `/usr/bin` and `/usr/local/bin`
//! a real ELF at `envd` (an updater writes there) before the `envd.real` beside it.
//!
//! A wrapper never runs a wrapper: not itself (the same device and inode, whatever the name) and not a copy of itself.
//! The platform's provisioning makes /usr/local writable to everybody, so a program that others than root can change is run
//! only when the configuration pins it by path and sha256, or when whoever called us named it. In `/usr/bin`, where only root
//! can put a file, a file is root's doing whoever owns it: updaters move uploads there.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guest::elf::{self, Program};
use sha2::{Digest, Sha256};

/// Folders that are searched, in order.
const FOLDERS: [&str; 2] = ["/usr/bin", "/usr/local/bin"];
/// Found in every build of this program, and in no other.
static MARK: &[u8] = b"envd-wrapper \x01 this file supervises envd and is not envd \x01";
/// A wrapper is smaller than this; envd is larger. It saves reading all of envd.
const LARGEST_WRAPPER: u64 = 4 << 20;
/// Writable by the group or by others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Where to look.
#[derive(Debug, Default)]
pub(crate) struct Search {
    pub(crate) named: Option<PathBuf>,
    pub(crate) shim_folder: Option<PathBuf>,
    pub(crate) configured: Option<PathBuf>,
    pub(crate) sha256: Option<String>,
}

/// Every candidate with what was found, up to the one that runs.
#[derive(Debug)]
pub(crate) struct Verdict {
    candidates: Vec<(Candidate, Result<(), Refusal>)>,
}

#[derive(Debug)]
struct Candidate {
    path: PathBuf,
    why: &'static str,
    /// A script at its place is some image's own shim, not envd.
    elf_only: bool,
    /// Whoever called us vouches for it.
    vouched: bool,
    sha256: Option<String>,
}

/// Why a candidate does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("not there")]
    Missing,
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error("is this supervisor, not envd")]
    Wrapper,
    #[error("neither an ELF program nor a script")]
    NotAProgram,
    #[error("not an ELF program")]
    NotElf,
    #[error("others than root can change {}: pin it in {} by envd.program and envd.sha256", path.display(), guest::config::PATH)]
    Untrusted { path: PathBuf },
    #[error("its sha256 is {found}, the configuration pins {pinned}")]
    OtherContent { found: String, pinned: String },
}

impl Verdict {
    pub(crate) fn chosen(&self) -> Option<&Path> {
        let (candidate, outcome) = self.candidates.last()?;
        outcome.is_ok().then_some(candidate.path.as_path())
    }

    /// Candidates that were there and may not run, worth a warning.
    pub(crate) fn refused(&self) -> impl Iterator<Item = String> {
        self.candidates.iter().filter_map(|(candidate, outcome)| match outcome {
            Err(Refusal::Missing | Refusal::Wrapper) | Ok(()) => None,
            Err(refusal) => Some(format!("{} is not run: {refusal}", candidate.path.display())),
        })
    }

    /// Where envd was looked for.
    pub(crate) fn places(&self) -> String {
        let paths: Vec<_> =
            self.candidates.iter().map(|(candidate, _)| candidate.path.display().to_string()).collect();
        paths.join(", ")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (candidate, outcome) in &self.candidates {
            let verdict = match outcome {
                Ok(()) => "runs".to_owned(),
                Err(refusal) => refusal.to_string(),
            };
            writeln!(f, "{} ({}): {verdict}", candidate.path.display(), candidate.why)?;
        }
        Ok(())
    }
}

/// Looks at the candidates in order, and stops at the first that may run. Asked anew before every start.
pub(crate) fn choose(search: &Search) -> Verdict {
    let mut candidates = Vec::new();
    for candidate in search.candidates() {
        let outcome = candidate.judge();
        let found = outcome.is_ok();
        candidates.push((candidate, outcome));
        if found {
            break;
        }
    }
    Verdict { candidates }
}

impl Search {
    fn candidates(&self) -> Vec<Candidate> {
        let plain =
            |path: PathBuf, why| Candidate { path, why, elf_only: false, vouched: false, sha256: None };
        if let Some(path) = &self.named {
            return vec![Candidate { vouched: true, ..plain(path.clone(), "named on the command line") }];
        }
        let mut list = Vec::new();
        if let Some(folder) = &self.shim_folder {
            let beside =
                |name| Candidate { vouched: true, ..plain(folder.join(name), "in the shim's folder") };
            list.push(Candidate { elf_only: true, ..beside("envd") });
            list.push(beside("envd.real"));
        }
        if let Some(path) = &self.configured {
            list.push(Candidate { sha256: self.sha256.clone(), ..plain(path.clone(), "configured") });
        }
        for folder in FOLDERS.map(Path::new) {
            let vouched = folder == Path::new(FOLDERS[0]) && changeable_by_others(folder).is_none();
            for name in ["envd", "envd.real"] {
                list.push(Candidate { elf_only: true, vouched, ..plain(folder.join(name), "found") });
            }
        }
        list
    }
}

impl Candidate {
    fn judge(&self) -> Result<(), Refusal> {
        let file = fs::metadata(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::Missing,
            _ => Refusal::Unreadable(error),
        })?;
        if !file.is_file() {
            return Err(Refusal::NotAFile);
        }
        if is_wrapper(&self.path, &file) {
            return Err(Refusal::Wrapper);
        }
        self.judge_content()?;
        self.judge_trust()
    }

    fn judge_content(&self) -> Result<(), Refusal> {
        match elf::inspect(&self.path).map_err(Refusal::Unreadable)? {
            Program::Script { .. } if self.elf_only => Err(Refusal::NotElf),
            Program::Elf { .. } | Program::Script { .. } => Ok(()),
            Program::Other => Err(Refusal::NotAProgram),
        }
    }

    fn judge_trust(&self) -> Result<(), Refusal> {
        if let Some(pinned) = &self.sha256 {
            let found = sha256(&self.path).map_err(Refusal::Unreadable)?;
            return match found.eq_ignore_ascii_case(pinned) {
                true => Ok(()),
                false => Err(Refusal::OtherContent { found, pinned: pinned.clone() }),
            };
        }
        match changeable_by_others(&self.path) {
            Some(path) if !self.vouched => Err(Refusal::Untrusted { path }),
            _ => Ok(()),
        }
    }
}

/// Whether a file is this program, by inode or as a copy.
fn is_wrapper(path: &Path, file: &Metadata) -> bool {
    let itself = fs::metadata("/proc/self/exe");
    if itself.is_ok_and(|itself| (itself.dev(), itself.ino()) == (file.dev(), file.ino())) {
        return true;
    }
    file.len() <= LARGEST_WRAPPER
        && fs::read(path)
            .is_ok_and(|bytes| memchr::memmem::find(&bytes, std::hint::black_box(MARK)).is_some())
}

/// The file or the first folder on its way that somebody else than root can write.
fn changeable_by_others(path: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(path).ok()?;
    let guarded = |part: &Path| {
        fs::metadata(part)
            .is_ok_and(|meta| meta.uid() == 0 && meta.permissions().mode() & WRITABLE_BY_OTHERS == 0)
    };
    real.ancestors().find(|part| !guarded(part)).map(Path::to_path_buf)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            count => digest.update(&chunk[..count]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn judge(path: &Path, why: &'static str, sha256: Option<&str>) -> Result<(), Refusal> {
        let sha256 = sha256.map(str::to_owned);
        let elf_only = why == "found";
        Candidate { path: path.to_path_buf(), why, elf_only, vouched: false, sha256 }.judge()
    }

    /// A copy of a real ELF program, in a folder of root's alone.
    fn program(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        fs::copy("/bin/true", &path).unwrap();
        path
    }

    #[test]
    fn a_wrapper_never_runs_itself_under_whatever_name() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let link = folder.path().join("envd");
        std::os::unix::fs::symlink("/proc/self/exe", &link).unwrap();
        assert!(matches!(judge(&link, "found", None), Err(Refusal::Wrapper)));
        let copy = folder.path().join("copy");
        let mut bytes = fs::read("/bin/true").unwrap();
        bytes.extend_from_slice(MARK);
        fs::write(&copy, bytes).unwrap();
        assert!(matches!(judge(&copy, "found", None), Err(Refusal::Wrapper)), "another build of it");
    }

    #[test]
    fn what_others_can_write_is_run_only_when_it_is_pinned() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let path = program(folder.path(), "envd.real");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(judge(&path, "found", None), Err(Refusal::Untrusted { .. })));
        let sum = sha256(&path).unwrap();
        assert!(judge(&path, "configured", Some(&sum)).is_ok());
        fs::write(&path, fs::read("/bin/false").unwrap()).unwrap();
        assert!(matches!(judge(&path, "configured", Some(&sum)), Err(Refusal::OtherContent { .. })));
    }

    #[test]
    fn a_folder_on_the_way_counts_as_much_as_the_file() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let path = program(folder.path(), "envd");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(
            matches!(judge(&path, "found", None), Err(Refusal::Untrusted { path }) if path == folder.path())
        );
    }

    #[test]
    fn a_script_at_envds_place_is_passed_over() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let path = folder.path().join("envd");
        fs::write(&path, "#!/bin/sh\nexec envd.real\n").unwrap();
        assert!(matches!(judge(&path, "found", None), Err(Refusal::NotElf)));
    }

    #[test]
    fn the_shim_runs_the_real_one_beside_it() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let real = program(folder.path(), "envd.real");
        let search = Search { shim_folder: Some(folder.path().to_path_buf()), ..Search::default() };
        assert_eq!(choose(&search).chosen(), Some(real.as_path()));
    }

    #[test]
    fn an_updater_that_overwrote_the_shim_is_served() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        program(folder.path(), "envd.real");
        let newer = program(folder.path(), "envd");
        let search = Search { shim_folder: Some(folder.path().to_path_buf()), ..Search::default() };
        assert_eq!(choose(&search).chosen(), Some(newer.as_path()));
    }

    #[test]
    fn a_named_program_is_the_only_candidate() {
        let search = Search { named: Some("/no/such/envd".into()), ..Search::default() };
        let verdict = choose(&search);
        assert_eq!(verdict.chosen(), None);
        assert_eq!(verdict.to_string(), "/no/such/envd (named on the command line): not there\n");
    }
}
