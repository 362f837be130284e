//! sysusers.d(5): system users and groups that packages ask for, made at the first boot that misses them.
//!
//! | line | done |
//! |---|---|
//! | `u NAME ID "GECOS" HOME SHELL` | a user with a group of the same name; ID is `-`, a number, `UID:GID`, `UID:GROUP` or a path whose owner counts |
//! | `g NAME ID` | a group |
//! | `m USER GROUP` | membership |
//! | `r - FROM-TO` | where free ids are taken from |
//!
//! What exists is never changed, so on most images, whose packages made their accounts when they were installed, nothing is
//! written at all. Ids that are wanted and taken by somebody else are given from the free ones, as systemd does.

mod database;
mod line;
mod plan;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{accounts::Accounts, confdir, specifier};
use database::Database;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// What was made, and what was not understood.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `user redis (uid 998)`, `group redis (gid 998)`, `redis in adm`.
    pub made: Vec<String>,
    pub problems: Vec<String>,
}

/// Makes what is missing below `root`.
pub fn run(root: &Path) -> Result<Outcome, Error> {
    let folders = confdir::folders("sysusers.d").into_iter();
    let folders: Vec<PathBuf> =
        folders.map(|folder| root.join(folder.strip_prefix("/").unwrap_or(&folder))).collect();
    let mut outcome = Outcome::default();
    let lines = read(&confdir::files(&folders), root, &mut outcome.problems);
    if plan::is_met(&lines, &Accounts::read(root)) {
        return Ok(outcome);
    }
    let mut database = Database::open(root)?;
    plan::fulfil(&lines, &mut database, &mut outcome);
    database.save()?;
    Ok(outcome)
}

fn read(files: &[PathBuf], root: &Path, problems: &mut Vec<String>) -> Vec<line::Line> {
    let mut lines = Vec::new();
    for file in files {
        let text = fs::read(file).unwrap_or_default();
        for (index, text) in String::from_utf8_lossy(&text).lines().enumerate() {
            match line::parse(text, &|name| specifier::running(root, name)) {
                Ok(line) => lines.extend(line),
                Err(error) => {
                    problems.push(format!("{}:{}: not understood: {error}", file.display(), index + 1));
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests;
