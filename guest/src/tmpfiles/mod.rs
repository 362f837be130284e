//! tmpfiles.d(5): what Debian's packages rely on of it, done once at boot by a process of its own.
//!
//! Two runs share the work. The first is over before envd starts and removes what is to be removed from /tmp, since files that
//! the platform uploads there must not be wiped afterwards; where /tmp is empty it is left out. The second does everything
//! else, before services start.
//!
//! | done | types |
//! |---|---|
//! | made | `f` `f+` `F` `d` `D` `v` `q` `Q` (folders all five) `p` `p+` `L` `L+` |
//! | changed | `w` `w+` `e` `z` `Z` `m` |
//! | removed | `r` `R`, and what is in a `D` |
//! | without effect | `x` `X` and ages: old files are not cleaned away, which would take a timer |
//! | said and passed over | `c` `b` `C` `a` `A` `t` `T` `h` `H` and the modifier `~`, where there is something to do |
//!
//! Lines with `^` do nothing, as under systemd when nobody passes the credential. /run/nologin is never made: nothing here
//! would remove it again, and it keeps users from logging in.

mod apply;
pub mod command;
mod line;
mod order;
mod perms;
mod remove;
mod walk;

pub use self::{
    line::{Kind, Line},
    order::{Entry, Origin},
};

use std::{fmt, path::PathBuf};

use nix::errno::Errno;

use crate::{accounts::Accounts, confdir, specifier};

/// What cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("cannot {operation} {path}: {}", source.desc())]
    Failed { operation: &'static str, path: String, source: Errno },
    #[error("{path} is left alone: {name} on the way belongs to a user who could lead it elsewhere")]
    Unsafe { path: String, name: String },
    #[error("{path} is there and is no {wanted}")]
    InTheWay { path: String, wanted: &'static str },
    #[error("{path} has several names; its mode and owner are left alone")]
    HardLink { path: String },
    #[error("there is no {kind} `{name}` for {path}")]
    NoAccount { kind: &'static str, name: String, path: String },
    #[error("lines of type `{letter}` are not done here ({path})")]
    NotDone { letter: char, path: String },
}

/// Which part of the work a run does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Removals from /tmp.
    Tmp,
    /// Everything else, but for /dev: the kernel and PID 1 make what is there.
    Rest,
    /// Everything.
    All,
}

impl Part {
    fn removes(&self, path: &str) -> bool {
        match self {
            Self::Tmp => is_below("/tmp", path),
            Self::Rest => !is_below("/tmp", path) && !is_below("/dev", path),
            Self::All => true,
        }
    }

    fn makes(&self, path: &str) -> bool {
        match self {
            Self::Tmp => false,
            Self::Rest => !is_below("/dev", path),
            Self::All => true,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    pub root: PathBuf,
    pub part: Part,
    /// Lines with `!` are done, and removals.
    pub boot: bool,
}

/// A line that could not be read, not be done, or only in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub origin: Origin,
    pub text: String,
    /// Worth a word, and no failure of the whole.
    pub harmless: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.origin.file.display(), self.origin.number, self.text)
    }
}

/// A file that another part of systemd would remove again, and the journal, which nobody writes here.
const NEVER: [&str; 3] = ["/run/nologin", "/run/log/journal", "/var/log/journal"];

/// Reads the configuration and does it. Everything is tried; what failed is returned.
pub fn run(options: &Options) -> Vec<Problem> {
    let folders: Vec<PathBuf> =
        confdir::folders("tmpfiles.d").iter().map(|folder| below(&options.root, folder)).collect();
    let (mut entries, mut problems) =
        order::read(&confdir::files(&folders), options.boot, &|name| specifier::running(&options.root, name));
    entries.retain(|entry| !NEVER.iter().any(|never| is_below(never, &entry.line.path)));
    let accounts = Accounts::read(&options.root);
    let machine = apply::Machine { root: &options.root, accounts: &accounts };
    if options.boot {
        let removed = order::for_removal(&entries).into_iter();
        for entry in removed.filter(|entry| options.part.removes(&entry.line.path)) {
            machine.remove(&entry.line, &mut |error| problems.extend(problem(entry, &error)));
        }
    }
    for entry in entries.iter().filter(|entry| options.part.makes(&entry.line.path)) {
        machine.create(&entry.line, &mut |error| problems.extend(problem(entry, &error)));
    }
    problems
}

fn problem(entry: &Entry, error: &Error) -> Option<Problem> {
    (!entry.line.may_fail).then(|| Problem {
        origin: entry.origin.clone(),
        text: error.to_string(),
        harmless: false,
    })
}

/// `path` itself or something in it.
fn is_below(folder: &str, path: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An absolute path inside another root.
fn below(root: &std::path::Path, path: &std::path::Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests;
