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
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::facts::{Kind, Known};

/// Folders that are searched, in order.
const FOLDERS: [&str; 2] = ["/usr/bin", "/usr/local/bin"];
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
    trust: Trust,
    sha256: Option<String>,
}

/// Why a program may run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Whoever called us named it, or put it beside us.
    Vouched,
    /// Only root can put a file into its folder, if that is so.
    OfItsFolder,
    /// Nobody but root can change it.
    OfItsOwn,
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

/// Looks at the candidates in order, and stops at the first that may run. Asked anew before every start; files that are
/// `known` are not read again.
pub(crate) fn choose(search: &Search, known: &mut Known) -> Verdict {
    let mut candidates = Vec::new();
    for candidate in search.candidates() {
        let outcome = candidate.judge(known);
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
        let plain = |path: PathBuf, why, trust| Candidate { path, why, elf_only: false, trust, sha256: None };
        if let Some(path) = &self.named {
            return vec![plain(path.clone(), "named on the command line", Trust::Vouched)];
        }
        let mut list = Vec::new();
        if let Some(folder) = &self.shim_folder {
            let beside = |name| plain(folder.join(name), "in the shim's folder", Trust::Vouched);
            list.push(Candidate { elf_only: true, ..beside("envd") });
            list.push(beside("envd.real"));
        }
        if let Some(path) = &self.configured {
            let configured = plain(path.clone(), "configured", Trust::OfItsOwn);
            list.push(Candidate { sha256: self.sha256.clone(), ..configured });
        }
        for folder in FOLDERS {
            let trust = if folder == FOLDERS[0] { Trust::OfItsFolder } else { Trust::OfItsOwn };
            for name in ["envd", "envd.real"] {
                list.push(Candidate {
                    elf_only: true,
                    ..plain(Path::new(folder).join(name), "found", trust)
                });
            }
        }
        list
    }
}

impl Candidate {
    fn judge(&self, known: &mut Known) -> Result<(), Refusal> {
        let file = fs::metadata(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::Missing,
            _ => Refusal::Unreadable(error),
        })?;
        if !file.is_file() {
            return Err(Refusal::NotAFile);
        }
        match known.kind(&self.path, &file).map_err(Refusal::Unreadable)? {
            Kind::Wrapper => return Err(Refusal::Wrapper),
            Kind::Other => return Err(Refusal::NotAProgram),
            Kind::Script if self.elf_only => return Err(Refusal::NotElf),
            Kind::Script | Kind::Elf => {}
        }
        match &self.sha256 {
            Some(pinned) => self.judge_pin(pinned, &file, known),
            None => self.judge_trust(),
        }
    }

    fn judge_pin(&self, pinned: &str, file: &fs::Metadata, known: &mut Known) -> Result<(), Refusal> {
        let found = known.sha256(&self.path, file).map_err(Refusal::Unreadable)?;
        match found.eq_ignore_ascii_case(pinned) {
            true => Ok(()),
            false => Err(Refusal::OtherContent { found, pinned: pinned.to_owned() }),
        }
    }

    fn judge_trust(&self) -> Result<(), Refusal> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let changeable = match self.trust {
            Trust::Vouched => None,
            Trust::OfItsFolder => changeable_by_others(folder),
            Trust::OfItsOwn => changeable_by_others(&self.path),
        };
        changeable.map_or(Ok(()), |path| Err(Refusal::Untrusted { path }))
    }
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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn judge(path: &Path, why: &'static str, sha256: Option<&str>) -> Result<(), Refusal> {
        let sha256 = sha256.map(str::to_owned);
        let (elf_only, trust) = (why == "found", Trust::OfItsOwn);
        let mut known = Known::default();
        Candidate { path: path.to_path_buf(), why, elf_only, trust, sha256 }.judge(&mut known)
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
        bytes.extend_from_slice(crate::facts::MARK);
        fs::write(&copy, bytes).unwrap();
        assert!(matches!(judge(&copy, "found", None), Err(Refusal::Wrapper)), "another build of it");
    }

    #[test]
    fn what_others_can_write_is_run_only_when_it_is_pinned() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let path = program(folder.path(), "envd.real");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(judge(&path, "found", None), Err(Refusal::Untrusted { .. })));
        let sum = Known::default().sha256(&path, &fs::metadata(&path).unwrap()).unwrap();
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
        assert_eq!(choose(&search, &mut Known::default()).chosen(), Some(real.as_path()));
    }

    #[test]
    fn an_updater_that_overwrote_the_shim_is_served() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        program(folder.path(), "envd.real");
        let newer = program(folder.path(), "envd");
        let search = Search { shim_folder: Some(folder.path().to_path_buf()), ..Search::default() };
        assert_eq!(choose(&search, &mut Known::default()).chosen(), Some(newer.as_path()));
    }

    #[test]
    fn a_named_program_is_the_only_candidate() {
        let search = Search { named: Some("/no/such/envd".into()), ..Search::default() };
        let verdict = choose(&search, &mut Known::default());
        assert_eq!(verdict.chosen(), None);
        assert_eq!(verdict.to_string(), "/no/such/envd (named on the command line): not there\n");
    }
}
