//! Which version of envd runs: asked of the program itself, once, by running it with `-version`.
//!
//! It is for people who look at the status, so it must disturb nobody: asked when envd has been serving for a moment, at the
//! lowest priority, and under a name by which nobody finds it who looks for envd's process. What does not answer like envd has
//! no version.
//!
//! | state | left by |
//! |---|---|
//! | `Settled` (asked, given up, or nobody has served yet) | another program serves → `Due` |
//! | `Due` | its time, envd still runs → `Asking`; envd dies → `Settled`, and asked when it serves again |
//! | `Asking` | its end, with an answer → `Settled`; its end without one, or the bound, which ends it → `Settled`, and asked again
//! |   | at the next check, three times in all; another program serves → the answer is thrown away, `Due` |

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest::clock::Moment;
use guest::reactor::{self, Interest, Reactor, Token, Watched};
use guest::spawn::{self, Program};
use guest::sys::Reaped;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::debug;

use crate::facts::Identity;

/// Serving this long; the time in which a sandbox is made ready is over.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
const BOUND: Duration = Duration::from_secs(5);
const TRIES: u8 = 3;
/// A version is short; whatever prints more is not read further.
const LONGEST_OUTPUT: usize = 256;
const LONGEST_VERSION: usize = 64;
/// Bound over by the program, in a mount namespace of its own: by its command, its `argv[0]` and its file it is not `envd`.
const ALIAS: &str = "/run/envd-init/envd-version";

/// When to ask, without asking.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    of: Option<Identity>,
    version: Option<String>,
    tries: u8,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Settled,
    Due(Moment),
    Asking {
        until: Moment,
        /// Another program serves by now.
        outdated: bool,
    },
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Ask,
    Kill,
}

impl Schedule {
    /// A program serves: at its start, and at each check of its liveness.
    pub(crate) fn serves(&mut self, program: Identity, now: Moment) {
        if self.of != Some(program) {
            let state = match self.state {
                State::Asking { until, .. } => State::Asking { until, outdated: true },
                _ => State::Settled,
            };
            *self = Self { of: Some(program), state, ..Self::default() };
        }
        if self.version.is_none() && self.tries < TRIES && self.state == State::Settled {
            self.state = State::Due(now + SETTLED_AFTER);
        }
    }

    /// envd is dead; one that is just being asked tells its version all the same.
    pub(crate) fn died(&mut self) {
        if matches!(self.state, State::Due(_)) {
            self.state = State::Settled;
        }
    }

    pub(crate) fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Settled => None,
            State::Due(at) | State::Asking { until: at, .. } => Some(at),
        }
    }

    pub(crate) fn tick(&mut self, now: Moment) -> Option<Due> {
        match self.state {
            State::Due(at) if at <= now => {
                self.tries += 1;
                self.state = State::Asking { until: now + BOUND, outdated: false };
                Some(Due::Ask)
            }
            // Killed again should it still be there then.
            State::Asking { until, outdated } if until <= now => {
                self.state = State::Asking { until: now + BOUND, outdated };
                Some(Due::Kill)
            }
            _ => None,
        }
    }

    /// What was asked has ended, or could not be asked.
    pub(crate) fn answered(&mut self, version: Option<String>, now: Moment) {
        let outdated = matches!(self.state, State::Asking { outdated: true, .. });
        self.state = if outdated { State::Due(now + SETTLED_AFTER) } else { State::Settled };
        if !outdated {
            self.version = version;
        }
    }

    /// What is known of a program.
    pub(crate) fn version(&self, program: Identity) -> Option<&str> {
        self.version.as_deref().filter(|_| self.of == Some(program))
    }
}

/// A program on its way to tell its version.
#[derive(Debug)]
pub(crate) struct Question {
    pid: Pid,
    stdout: Option<Watched>,
    steps: OwnedFd,
    text: Vec<u8>,
}

impl Question {
    /// Starts the program that `pid` runs once more.
    pub(crate) fn ask(pid: i32, reactor: &Reactor, token: Token) -> Result<Self, String> {
        let path = path(pid).ok_or("its file was replaced or removed")?;
        if !Path::new(ALIAS).exists() {
            File::create(ALIAS).map_err(|error| format!("cannot make {ALIAS}: {error}"))?;
        }
        let spawned = spawn::spawn(&program(path)).map_err(|error| error.to_string())?;
        let stdout = spawned.stdout.and_then(|stdout| reactor.watch(stdout, token, Interest::Read).ok());
        Ok(Self { pid: spawned.pid, stdout, steps: spawned.steps, text: Vec::new() })
    }

    /// Reads what there is, without waiting.
    pub(crate) fn read(&mut self) {
        let Some(stdout) = &self.stdout else { return };
        let mut buffer = [0; LONGEST_OUTPUT];
        match reactor::read_ready(stdout, &mut buffer) {
            Ok(Some(count @ 1..)) if self.text.len() + count <= LONGEST_OUTPUT => {
                self.text.extend_from_slice(&buffer[..count]);
            }
            Ok(None) => {}
            // Its end, or more than a version.
            Ok(Some(_)) | Err(_) => self.stdout = None,
        }
    }

    /// Its session as well: it may be a script.
    pub(crate) fn kill(&self) {
        let _ = kill(Pid::from_raw(-self.pid.as_raw()), Signal::SIGKILL);
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    pub(crate) fn is(&self, pid: i32) -> bool {
        self.pid.as_raw() == pid
    }

    /// What it said, once it has ended.
    pub(crate) fn answer(mut self, end: Reaped) -> Option<String> {
        self.read();
        let version = (!end.by_signal && end.status == 0).then(|| parse(&self.text)).flatten();
        if version.is_none() {
            let failed = spawn::read_steps(&self.steps).failures.pop();
            let why = failed
                .map_or_else(String::new, |failure| format!(", {}", failure.describe(Path::new(ALIAS))));
            debug!("envd does not tell its version (status {}{why})", end.status);
        }
        version
    }
}

fn running(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

/// Of the file that a process runs, whatever was put at its path meanwhile.
pub(crate) fn identity(pid: i32) -> Option<Identity> {
    fs::metadata(running(pid)).ok().map(|file| Identity::of(&file))
}

/// Where that file is, if it is there still. A mount namespace cannot bind by `/proc/PID/exe`, which leads into another one.
fn path(pid: i32) -> Option<PathBuf> {
    let path = fs::read_link(running(pid)).ok()?;
    let there = fs::metadata(&path).ok().map(|file| Identity::of(&file));
    (there.is_some() && there == identity(pid)).then_some(path)
}

fn program(path: PathBuf) -> Program {
    Program {
        path: ALIAS.into(),
        alias_of: Some(path),
        name: Some("envd-version".into()),
        arguments: vec!["-version".into()],
        environment: vec![("GOMAXPROCS".into(), "1".into())],
        nice: Some(19),
        io_priority: Some((3, 0)),
        oom_score_adj: Some(1000),
        death_signal: Some(Signal::SIGKILL),
        ..Program::default()
    }
}

/// One word that begins like a number, on the first line; an interpreter whose script is envd says something else.
fn parse(text: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(text).ok()?.lines().next()?.trim();
    let is_version = line.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit())
        && line.len() <= LONGEST_VERSION
        && line.bytes().all(|byte| byte.is_ascii_graphic());
    is_version.then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::from_secs(100);

    fn seconds(count: u64) -> Moment {
        START + Duration::from_secs(count)
    }

    fn program(name: &str) -> Identity {
        Identity::of(&fs::metadata(name).unwrap())
    }

    fn said(text: &str) -> Option<String> {
        parse(text.as_bytes())
    }

    #[test]
    fn a_version_is_one_word_that_begins_like_a_number() {
        assert_eq!(said("0.6.13\n").as_deref(), Some("0.6.13"));
        assert_eq!(said("v1.0.0-rc1+5\nmore\n").as_deref(), Some("v1.0.0-rc1+5"));
        for other in
            ["", "\n0.6.13", "GNU bash, version 5.2", "0.6.13 \u{1b}[31m", "flag provided but not defined"]
        {
            assert_eq!(said(other), None, "{other:?}");
        }
        assert_eq!(said(&"1".repeat(65)), None);
    }

    #[test]
    fn a_program_is_asked_once_however_often_it_is_started() {
        let mut schedule = Schedule::default();
        schedule.serves(program("/bin/sh"), START);
        assert_eq!(schedule.tick(seconds(1)), None, "it has just begun to serve");
        assert_eq!(schedule.tick(seconds(2)), Some(Due::Ask));
        schedule.answered(Some("1.2".into()), seconds(3));
        schedule.died();
        schedule.serves(program("/bin/sh"), seconds(4));
        assert_eq!((schedule.deadline(), schedule.version(program("/bin/sh"))), (None, Some("1.2")));
    }

    #[test]
    fn another_program_at_the_old_path_is_asked_anew() {
        let mut schedule = Schedule::default();
        schedule.serves(program("/bin/sh"), START);
        schedule.tick(seconds(2));
        schedule.answered(Some("1.2".into()), seconds(3));
        schedule.serves(program("/bin/cat"), seconds(30));
        assert_eq!((schedule.version(program("/bin/cat")), schedule.deadline()), (None, Some(seconds(32))));
    }

    #[test]
    fn an_answer_that_another_program_has_overtaken_is_thrown_away() {
        let mut schedule = Schedule::default();
        schedule.serves(program("/bin/sh"), START);
        schedule.tick(seconds(2));
        schedule.serves(program("/bin/cat"), seconds(3));
        schedule.answered(Some("1.2".into()), seconds(4));
        assert_eq!((schedule.version(program("/bin/cat")), schedule.deadline()), (None, Some(seconds(6))));
        assert_eq!(schedule.tick(seconds(6)), Some(Due::Ask));
        schedule.answered(Some("1.3".into()), seconds(7));
        assert_eq!(schedule.version(program("/bin/cat")), Some("1.3"));
    }

    #[test]
    fn one_that_dies_before_its_time_is_asked_when_it_serves_again() {
        let mut schedule = Schedule::default();
        schedule.serves(program("/bin/sh"), START);
        schedule.died();
        assert_eq!(schedule.deadline(), None);
        schedule.serves(program("/bin/sh"), seconds(9));
        assert_eq!(schedule.tick(seconds(11)), Some(Due::Ask));
    }

    #[test]
    fn one_that_does_not_answer_is_ended_at_the_bound_and_asked_three_times_at_most() {
        let mut schedule = Schedule::default();
        for turn in 0..3 {
            let begun = turn * 30;
            schedule.serves(program("/bin/sh"), seconds(begun));
            assert_eq!(schedule.tick(seconds(begun + 2)), Some(Due::Ask));
            assert_eq!(schedule.tick(seconds(begun + 6)), None);
            assert_eq!(schedule.tick(seconds(begun + 7)), Some(Due::Kill));
            assert_eq!(schedule.tick(seconds(begun + 7)), None);
            schedule.answered(None, seconds(begun + 8));
        }
        schedule.serves(program("/bin/sh"), seconds(100));
        assert_eq!(schedule.deadline(), None);
    }
}
