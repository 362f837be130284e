//! The documents are kept honest: each command that they tell a reader to type exists, with the options they give it, and
//! each page that they link to is there.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail by panicking, as tests do

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex_lite::Regex;
use tests::paths;

fn documents() -> Vec<PathBuf> {
    let root = paths::root();
    let in_docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = in_docs.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    ["README.md", "CONTRIBUTING.md"].map(|name| root.join(name)).into_iter().chain(pages).collect()
}

/// The commands in fenced blocks of shell, each with its continuation lines joined.
fn commands(text: &str) -> Vec<String> {
    let (mut commands, mut in_shell, mut joined) = (Vec::new(), false, String::new());
    for line in text.lines() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            in_shell = !in_shell && matches!(kind.trim(), "sh" | "bash" | "shell" | "console");
            continue;
        }
        if !in_shell {
            continue;
        }
        let code = line.split(" #").next().unwrap_or_default().trim().trim_start_matches("$ ");
        match code.strip_suffix('\\') {
            Some(begun) => joined.push_str(begun),
            None if !(joined.clone() + code).is_empty() => commands.push(std::mem::take(&mut joined) + code),
            None => {}
        }
    }
    commands
}

/// The words of a command after the given program's name, wherever it stands in the line (`sudo`, a path, a variable before it).
fn words_after<'a>(command: &'a str, program: &str) -> Option<Vec<&'a str>> {
    let mut words = command.split_whitespace();
    words.find(|word| word.rsplit('/').next() == Some(program))?;
    Some(words.take_while(|word| !matches!(*word, "|" | "||" | "&&" | ";" | "&" | ">")).collect())
}

fn all_commands() -> Vec<(PathBuf, String)> {
    let each = documents().into_iter().flat_map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        commands(&text).into_iter().map(move |command| (path.clone(), command))
    });
    each.collect()
}

/// `make TARGET` names a target that the Makefile has.
#[test]
fn every_make_target_of_the_documents_exists() {
    let makefile = fs::read_to_string(paths::root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|line| line.split_once(':')).map(|(target, _)| target).collect();
    let mut seen = 0;
    for (path, command) in all_commands() {
        for target in words_after(&command, "make").unwrap_or_default() {
            if target.contains(['=', '<', '[']) || target.starts_with('-') {
                continue;
            }
            assert!(targets.contains(target), "{}: `{command}` names no target", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 5, "only {seen} targets were found in the documents: are they read at all?");
}

/// The README's two commands are what they are said to be.
#[test]
fn the_readme_shows_how_to_try_and_how_to_test() {
    let readme = fs::read_to_string(paths::root().join("README.md")).unwrap();
    let commands = commands(&readme);
    for command in ["make demo", "make test"] {
        assert!(commands.iter().any(|found| found == command), "the README does not show `{command}`");
    }
}

/// Subcommands and options of our programs are known to them.
#[test]
fn every_option_of_the_documents_exists() {
    let option = Regex::new(r"^--[a-z][a-z-]*").unwrap();
    for (path, command) in all_commands() {
        for program in ["envdctl", "rootfs"] {
            let Some(words) = words_after(&command, program) else { continue };
            let Some(subcommand) =
                words.first().filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
            else {
                continue;
            };
            if subcommand.starts_with('-') {
                continue;
            }
            let output = Command::new(paths::host_bin(program).unwrap())
                .args([subcommand, "--help"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}: `{command}`: no such subcommand", path.display());
            let help = String::from_utf8_lossy(&output.stdout).into_owned();
            for word in words.iter().filter_map(|word| option.find(word)) {
                assert!(
                    help.contains(word.as_str()),
                    "{}: `{command}`: no option {}",
                    path.display(),
                    word.as_str()
                );
            }
        }
    }
}

/// The fixed words of a console line as it is documented: what stands between its placeholders (`PATH`, `…`).
fn fixed_words(line: &str) -> Vec<String> {
    let mut said = line;
    while let Some((_, rest)) = said.split_once(": ").filter(|(who, _)| !who.contains(' ')) {
        said = rest;
    }
    let placeholder = Regex::new(r"\b[A-Z][A-Z]*( s\b|\b)|…|\([a-z]* ?N\)").unwrap();
    let pieces =
        placeholder.split(said).map(|piece| piece.trim_matches([' ', ',', ':', '(', ')']).to_owned());
    pieces.filter(|piece| piece.contains(' ')).collect()
}

fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| if path.is_dir() { sources(&path) } else { fs::read_to_string(path).unwrap() };
    entries.map(read).collect()
}

/// An operator who looks a console line up finds it as the guest's programs print it.
#[test]
fn every_console_line_of_the_troubleshooting_is_printed() {
    let page = fs::read_to_string(paths::root().join("docs/troubleshooting.md")).unwrap();
    let table = page.split("line by line").nth(1).unwrap().split("\n## ").next().unwrap();
    let programs = ["guest", "init", "envd-wrapper", "vsock-relay"];
    let printed: String = programs.map(|name| sources(&paths::root().join(name).join("src"))).concat();
    let quoted = Regex::new("`([^`]+)`").unwrap();
    let mut seen = 0;
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let first = row.split(" | ").next().unwrap();
        for line in quoted.captures_iter(first).map(|captures| captures[1].to_owned()) {
            for words in fixed_words(&line).iter().filter(|_| !line.starts_with("Kernel")) {
                assert!(printed.contains(words.as_str()), "`{line}`: nothing prints \"{words}\"");
                seen += 1;
            }
        }
    }
    assert!(seen >= 10, "only {seen} lines were looked up: is the table read at all?");
}

/// Links between the documents lead somewhere.
#[test]
fn every_link_of_the_documents_leads_to_a_file() {
    let link = Regex::new(r"\]\(([^)#\s]+)[^)]*\)").unwrap();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for found in link.captures_iter(&text).map(|captures| captures[1].to_owned()) {
            if !found.contains("://") && !found.starts_with("mailto:") {
                let target = path.parent().unwrap_or(Path::new("/")).join(&found);
                assert!(target.exists(), "{}: the link to {found} leads nowhere", path.display());
            }
        }
    }
}

#[test]
fn commands_are_found_in_their_blocks() {
    let text = "make no\n```sh\nmake demo   # all of it\nenvdctl bridge \\\n  --listen x\n```\n```json\nmake no\n```\n";
    assert_eq!(commands(text), ["make demo", "envdctl bridge --listen x"]);
    assert_eq!(
        words_after("sudo target/host/envdctl status --json | jq .", "envdctl").unwrap(),
        ["status", "--json"]
    );
}

/// Every block of `unsafe` is in the one module, says why it is sound, and is in the table of the document.
#[test]
fn unsafe_code_is_counted_and_explained() {
    let source = fs::read_to_string(paths::root().join("guest/src/sys.rs")).unwrap();
    let count = |what: &str| source.matches(what).count();
    let text = fs::read_to_string(paths::root().join("docs/security.md")).unwrap();
    let table = text.split("| for | blocks |").nth(1).unwrap().split("\n\n").next().unwrap();
    let told: usize =
        table.lines().filter_map(|line| line.split('|').nth(2)?.trim().parse::<usize>().ok()).sum();
    assert_eq!(told, count("unsafe {"), "docs/security.md tells of another number of blocks");
    assert_eq!(
        count("SAFETY:"),
        count("unsafe {") + count("#[unsafe("),
        "a block does not say why it is sound"
    );
}
