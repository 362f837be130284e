//! `docs/errors.md` is a table of mistakes, each with what is said of it and the exit code. Every row is run here and compared.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking, as tests do")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::net::run;
use tests::{paths, wait};

/// At least so many mistakes are described.
const AT_LEAST: usize = 30;
/// Each is told at once.
const BOUND: Duration = Duration::from_secs(120);

/// One mistake.
#[derive(Debug)]
struct Row {
    mistake: String,
    command: String,
    code: i32,
    said: String,
}

/// The rows of all tables: `| mistake | command | code | said |`.
fn rows() -> Vec<Row> {
    let text = fs::read_to_string(paths::root().join("docs/errors.md")).unwrap();
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
    let [mistake, command, code, said] = cells.as_slice() else { return None };
    let code = code.parse().ok()?;
    let plain = |cell: &str| cell.trim_matches('`').trim().replace("\\|", "|");
    Some(Row { mistake: (*mistake).to_owned(), command: plain(command), code, said: plain(said) })
}

/// What the rows speak of.
fn lay_out(folder: &Path) -> UnixListener {
    let at = |name: &str| folder.join(name);
    fs::write(at("notes.txt"), "a shopping list\n").unwrap();
    fs::write(at("broken.toml"), "[[sandbox\n").unwrap();
    fs::write(at("typo.toml"), "lisen = 'tcp:127.0.0.1:49983'\n").unwrap();
    fs::write(at("guest-typo.toml"), "[network]\nadress = '10.0.0.2/24'\n").unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("services")).unwrap();
    fs::write(at("services/web.toml"), "command = ['/usr/bin/envd']\nrestart = 'sometimes'\n").unwrap();
    symlink(paths::guest_dir(), at("programs")).unwrap();
    symlink(paths::root().join("scripts"), at("scripts")).unwrap();
    foreign_envd(&at("arm-envd"));
    images(folder);
    UnixListener::bind(at("taken.sock")).unwrap()
}

/// A stand-in that claims to be for another machine.
fn foreign_envd(path: &Path) {
    const AARCH64: u8 = 183;
    let mut program = fs::read(paths::stand_in().unwrap()).unwrap();
    program[18] = AARCH64;
    fs::write(path, program).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn images(folder: &Path) {
    let at = |name: &str| folder.join(name).display().to_string();
    let stage = folder.join("stage");
    for name in ["usr/bin", "usr/sbin", "usr/lib", "etc"] {
        fs::create_dir_all(stage.join(name)).unwrap();
    }
    for name in ["bin", "sbin"] {
        symlink(format!("usr/{name}"), stage.join(name)).unwrap();
    }
    fs::copy(paths::stand_in().unwrap(), stage.join("usr/bin/envd")).unwrap();
    // A program by which the image's machine is told.
    fs::hard_link(stage.join("usr/bin/envd"), stage.join("usr/bin/sh")).unwrap();
    let make = |name: &str, size: &str| {
        run(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", "-b", "4096", "-d", &stage.display().to_string(), &at(name), size],
        )
        .unwrap();
    };
    make("base.ext4", "64M");
    make("full.ext4", "10M");
    run("tar", &["-C", &stage.display().to_string(), "-cf", &at("base.tar"), "."]).unwrap();
    fs::remove_dir_all(&stage).unwrap();
    cut(folder, "base.ext4", "cut.ext4", 1_000_000);
    cut(folder, "base.tar", "cut.tar", 100_000);
    fs::copy(at("base.ext4"), at("damaged.ext4")).unwrap();
    run("debugfs", &["-w", "-R", "clri /etc", &at("damaged.ext4")]).unwrap();
}

fn cut(folder: &Path, whole: &str, part: &str, bytes: usize) {
    let content = fs::read(folder.join(whole)).unwrap();
    fs::write(folder.join(part), &content[..bytes]).unwrap();
}

/// Exit code and both streams.
fn try_command(folder: &Path, row: &Row) -> (i32, String) {
    let here = folder.display().to_string();
    let command = row.command.replace("$PWD", &here);
    let mut words = command.split(' ');
    let programs = [paths::target().join("host"), paths::guest_dir()].map(|path| path.display().to_string());
    let log = fs::File::create(folder.join("said")).unwrap();
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .current_dir(folder)
        .env_clear()
        .env("PATH", format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", programs[0], programs[1]))
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let ended = wait::until(&format!("`{command}` to end"), BOUND, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill().and_then(|()| child.wait()).unwrap();
    }
    let text = fs::read_to_string(folder.join("said")).unwrap().replace(&here, "$PWD");
    // One that goes on, or ends by a signal, has no code.
    (ended.ok().and_then(|status| status.code()).unwrap_or(-1), text)
}

/// Whether a line says it; `…` stands for anything.
fn says(text: &str, wanted: &str) -> bool {
    text.lines().any(|line| matches(line.trim(), wanted))
}

fn matches(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    for (index, part) in parts.iter().enumerate() {
        if index + 1 == parts.len() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

#[test]
fn every_mistake_of_the_table_is_told_as_it_says() {
    let rows = rows();
    assert!(rows.len() >= AT_LEAST, "only {} mistakes are described", rows.len());
    let folder = tempfile::tempdir().unwrap();
    let _taken = lay_out(folder.path());
    let names = |folder: &Path| -> Vec<_> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "said");
        names.sort();
        names
    };
    let before = names(folder.path());
    let mut wrong = Vec::new();
    for row in &rows {
        let (code, text) = try_command(folder.path(), row);
        if code != row.code || !says(&text, &row.said) {
            wrong.push(format!("{} (`{}`): exit {code}, said:\n{text}", row.mistake, row.command));
        }
        assert_eq!(names(folder.path()), before, "`{}` left something behind", row.command);
    }
    assert!(wrong.is_empty(), "{} of {} rows are not true:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn a_line_is_compared_with_gaps() {
    assert!(matches("cannot open x: gone", "cannot open …: gone") && matches("a b c", "a … c"));
    assert!(!matches("cannot open x", "cannot open …: gone") && !matches("ab", "a"));
}
