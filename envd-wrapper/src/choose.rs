//! Which envd runs.
//!
//! In this order: the program named on the command line; called as a shim, a real ELF at `envd` in the shim's folder (an
//! updater has overwritten the shim), then the `envd.real` there; the configured one; then in `/usr/bin` and `/usr/local/bin`
//! a real ELF at `envd` (an updater writes there) before the `envd.real` beside it.
//!
//! A wrapper never runs a wrapper: not itself (the same device and inode, whatever the name) and not a copy of itself.
//! The platform's provisioning makes /usr/local writable to everybody, so a program that others than root can change is run
//! only when the configuration pins it by path and sha256, or when whoever called us named it. In `/usr/bin`, where only root
//! can put a file, a file is root's doing whoever owns it: updaters move uploads there. A link out of it is worth what it leads
//! to. Where others can write `/usr/bin` itself the machine is theirs anyway: that is told, and envd runs.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guest::trust::{self, ByFolder, FOLDERS, Look, Owned};

use crate::facts::{Kind, Known};

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
    candidates: Vec<(Candidate, Outcome)>,
}

/// One that may run; with the folder, where it had better not, because others than root can change that.
type Outcome = Result<Option<PathBuf>, Refusal>;

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
    /// Root's programs lie in its folder, and root put it there.
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
    #[error("is a file of which the configuration pins another content")]
    PinnedElsewhere,
}

impl Verdict {
    pub(crate) fn chosen(&self) -> Option<&Path> {
        let (candidate, outcome) = self.candidates.last()?;
        outcome.is_ok().then_some(candidate.path.as_path())
    }

    /// Candidates that were there and may not run, and one that runs and had better not.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        self.candidates.iter().filter_map(|(candidate, outcome)| match outcome {
            Err(Refusal::Missing | Refusal::Wrapper) | Ok(None) => None,
            Err(refusal) => Some(format!("{} is not run: {refusal}", candidate.path.display())),
            Ok(Some(folder)) => Some(format!(
                "{} is run as root although others than root can change {}: make that folder root's, and writable to root alone",
                candidate.path.display(),
                folder.display()
            )),
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
                Ok(None) => "runs".to_owned(),
                Ok(Some(folder)) => {
                    format!("runs, although others than root can change {}", folder.display())
                }
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
    first_fit(search.candidates(), known)
}

fn first_fit(list: Vec<Candidate>, known: &mut Known) -> Verdict {
    let mut candidates = Vec::new();
    // A file that its pin has refused is refused under its other names too.
    let mut refused = None;
    for candidate in list {
        let file = candidate.inode();
        let outcome = match file.is_some() && file == refused {
            true => Err(Refusal::PinnedElsewhere),
            false => candidate.judge(known),
        };
        let outcome = match outcome {
            // Who pins a program does not get one instead that anybody may have put there.
            Ok(Some(path)) if refused.is_some() => Err(Refusal::Untrusted { path }),
            outcome => outcome,
        };
        if matches!(outcome, Err(Refusal::OtherContent { .. })) {
            refused = file;
        }
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
    /// Device and number of the file behind the name.
    fn inode(&self) -> Option<(u64, u64)> {
        fs::metadata(&self.path).ok().map(|file| (file.dev(), file.ino()))
    }

    fn judge(&self, known: &mut Known) -> Outcome {
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

    fn judge_pin(&self, pinned: &str, file: &fs::Metadata, known: &mut Known) -> Outcome {
        let found = known.sha256(&self.path, file).map_err(Refusal::Unreadable)?;
        match found.eq_ignore_ascii_case(pinned) {
            true => Ok(None),
            false => Err(Refusal::OtherContent { found, pinned: pinned.to_owned() }),
        }
    }

    fn judge_trust(&self) -> Outcome {
        let changeable = match self.trust {
            Trust::Vouched => None,
            Trust::OfItsFolder => return self.judge_by_folder(),
            Trust::OfItsOwn => changeable_by_others(&self.path),
        };
        changeable.map_or(Ok(None), |path| Err(Refusal::Untrusted { path }))
    }

    /// What its own folder and the way there are worth is worth all that lies there.
    fn judge_by_folder(&self) -> Outcome {
        let real = |path: &Path| fs::canonicalize(path).map_err(Refusal::Unreadable);
        let folder = real(self.path.parent().unwrap_or(Path::new("/")))?;
        let file = real(&self.path)?;
        let Ok(verdict) = trust::by_folder(&Root, &folder, &file);
        match verdict {
            ByFolder::Runs => Ok(None),
            ByFolder::RunsAlthough(path) => Ok(Some(path)),
            ByFolder::Refused(path) => Err(Refusal::Untrusted { path }),
        }
    }
}

/// The file or the last folder on its way that somebody else than root can write.
fn changeable_by_others(path: &Path) -> Option<PathBuf> {
    let Ok(found) = trust::changeable_by_others(&Root, &fs::canonicalize(path).ok()?);
    found
}

/// The files that are there.
struct Root;

impl Look for Root {
    type Error = Infallible;

    fn look(&self, path: &Path) -> Result<Option<Owned>, Infallible> {
        let owned = |meta: fs::Metadata| Owned { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() };
        Ok(fs::metadata(path).ok().map(owned))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;

    fn judge(path: &Path, why: &'static str, sha256: Option<&str>) -> Outcome {
        let sha256 = sha256.map(str::to_owned);
        let (elf_only, trust) = (why == "found", Trust::OfItsOwn);
        let mut known = Known::default();
        Candidate { path: path.to_path_buf(), why, elf_only, trust, sha256 }.judge(&mut known)
    }

    /// As what lies in `/usr/bin` is judged.
    fn judge_by_folder(path: &Path) -> Outcome {
        let (elf_only, trust) = (true, Trust::OfItsFolder);
        let candidate = Candidate { path: path.to_path_buf(), why: "found", elf_only, trust, sha256: None };
        candidate.judge(&mut Known::default())
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
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
        assert!(matches!(judge(&path, "configured", Some(&sum)), Ok(None)));
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

    /// Images made for arbitrary users have `chmod g=u` everywhere.
    #[test]
    fn what_roots_own_group_can_write_is_roots_and_another_groups_is_not() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let path = program(folder.path(), "envd");
        [folder.path(), &path].into_iter().for_each(|part| set_mode(part, 0o775));
        assert!(matches!(judge(&path, "found", None), Ok(None)));
        std::os::unix::fs::chown(&path, None, Some(1000)).unwrap();
        assert!(matches!(judge(&path, "found", None), Err(Refusal::Untrusted { .. })));
    }

    /// Whoever can write `/usr/bin` is root already; a sandbox without an envd is dead.
    #[test]
    fn in_usr_bin_a_folder_that_others_can_write_is_told_and_envd_runs() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let path = program(folder.path(), "envd");
        set_mode(folder.path(), 0o777);
        let Ok(Some(doubtful)) = judge_by_folder(&path) else { panic!("it does not run, or quietly") };
        assert_eq!(doubtful, folder.path());
    }

    #[test]
    fn a_file_in_usr_bin_is_roots_doing_whoever_owns_it() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        set_mode(folder.path(), 0o755);
        let path = program(folder.path(), "envd");
        std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
        assert!(matches!(judge_by_folder(&path), Ok(None)));
    }

    #[test]
    fn a_script_at_envds_place_is_passed_over() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        let path = folder.path().join("envd");
        fs::write(&path, "#!/bin/sh\nexec envd.real\n").unwrap();
        assert!(matches!(judge(&path, "found", None), Err(Refusal::NotElf)));
    }

    /// The link is root's, what it leads to is not.
    #[test]
    fn a_link_in_usr_bin_is_worth_what_it_leads_to() {
        let (bin, elsewhere) =
            (tempfile::tempdir_in("/var/lib").unwrap(), tempfile::tempdir_in("/var/lib").unwrap());
        [bin.path(), elsewhere.path()].into_iter().for_each(|folder| set_mode(folder, 0o755));
        let (link, target) = (bin.path().join("envd"), program(elsewhere.path(), "envd"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(judge_by_folder(&link), Ok(None)), "root's alone");
        set_mode(&target, 0o777);
        assert!(matches!(judge_by_folder(&link), Err(Refusal::Untrusted { path }) if path == target));
        set_mode(bin.path(), 0o777);
        assert!(judge_by_folder(&link).is_err(), "its own folder is no excuse");
    }

    #[test]
    fn what_a_pin_has_refused_runs_under_no_other_name() {
        let folder = tempfile::tempdir_in("/var/lib").unwrap();
        set_mode(folder.path(), 0o755);
        let (pinned, link) = (program(folder.path(), "envd"), folder.path().join("link"));
        std::os::unix::fs::symlink(&pinned, &link).unwrap();
        let one = |path: &Path, why, sha256: Option<String>| Candidate {
            path: path.to_path_buf(),
            why,
            elf_only: true,
            trust: Trust::OfItsFolder,
            sha256,
        };
        let list = vec![one(&pinned, "configured", Some("0".repeat(64))), one(&link, "found", None)];
        let verdict = first_fit(list, &mut Known::default());
        assert_eq!(verdict.chosen(), None, "{verdict}");
        assert!(verdict.to_string().contains("the configuration pins another content"), "{verdict}");
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
