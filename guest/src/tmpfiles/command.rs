//! `init tmpfiles` and `init sysusers`.

use std::path::{Path, PathBuf};

use super::{Options, Part};
use crate::sysusers;

/// Some lines could not be done; the others were.
const INCOMPLETE: i32 = 1;
/// The arguments are wrong.
const USAGE: i32 = 2;
/// As many problems are printed; on a serial line more would only hide them.
const MOST_SAID: usize = 20;

/// `tmpfiles --tmp|--rest|--all [--root DIR]`. Before the rest come the users of sysusers.d, whom its lines name.
pub fn run(arguments: &[String]) -> i32 {
    let (part, root) = match arguments.split_first() {
        Some((part, rest)) => (part.as_str(), root(rest)),
        None => ("", None),
    };
    let (part, Some(root)) = (part_of(part), root) else { return usage() };
    let Some(part) = part else { return usage() };
    let mut problems = if part == Part::Tmp { Vec::new() } else { accounts(&root) };
    let boot = true;
    let of_lines = super::run(&Options { root, part, boot });
    let is_complete = problems.is_empty() && of_lines.iter().all(|problem| problem.harmless);
    problems.extend(of_lines.iter().map(ToString::to_string));
    say(&problems);
    if is_complete { 0 } else { INCOMPLETE }
}

fn part_of(word: &str) -> Option<Part> {
    match word {
        "--tmp" => Some(Part::Tmp),
        "--rest" => Some(Part::Rest),
        "--all" => Some(Part::All),
        _ => None,
    }
}

/// `sysusers [--root DIR]`
pub fn run_sysusers(arguments: &[String]) -> i32 {
    let Some(root) = root(arguments) else { return usage() };
    let problems = accounts(&root);
    say(&problems);
    if problems.is_empty() { 0 } else { INCOMPLETE }
}

fn root(arguments: &[String]) -> Option<PathBuf> {
    match arguments {
        [] => Some(PathBuf::from("/")),
        [flag, root] if flag == "--root" => Some(PathBuf::from(root)),
        _ => None,
    }
}

fn usage() -> i32 {
    eprintln!("usage: init tmpfiles --tmp|--rest|--all [--root DIR]\n       init sysusers [--root DIR]");
    USAGE
}

fn accounts(root: &Path) -> Vec<String> {
    match sysusers::run(root) {
        Ok(outcome) => {
            for made in &outcome.made {
                println!("sysusers.d: made {made}");
            }
            outcome.problems
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            vec![format!("sysusers.d: {error}{}", source.unwrap_or_default())]
        }
    }
}

fn say(problems: &[String]) {
    for problem in problems.iter().take(MOST_SAID) {
        eprintln!("<4>{problem}");
    }
    if problems.len() > MOST_SAID {
        eprintln!("<4>and {} more", problems.len() - MOST_SAID);
    }
}
