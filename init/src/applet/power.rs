//! `reboot`, `poweroff`, `halt`, `shutdown`: the options of systemd's own and of System V's, and never 0 for what was not done.

use std::process::ExitCode;

use guest::{
    cmdline::Cmdline,
    control::{Op, Reply, ShutdownKind},
};
use nix::sys::reboot::reboot;

use super::{USAGE, client::ask};

/// What the arguments ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    kind: ShutdownKind,
    /// Asks the kernel itself, without stopping anything; twice, without a sync.
    force: u8,
    sync: bool,
}

/// Why nothing is done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("there is no option {0}; --help says which there are")]
    Unknown(String),
    #[error("{0}: only `now` is supported by envd-init, where nothing keeps a time")]
    Later(String),
    #[error("{0} only writes a record of users, which envd-init does not keep; nothing is done")]
    RecordOnly(&'static str),
    #[error("-k only warns users at their terminals, of whom there are none; nothing is done")]
    WarnOnly,
    #[error("there is nothing to cancel: nothing is ever scheduled, and what has begun is not stopped")]
    Cancel,
    #[error("help was asked for")]
    Help,
}

const HELP: &str = "[-f] [-p]\n\n-f  at once, without stopping services; -ff or -f -n without a sync either\n\
                    -p  powers off, whichever of the three it is called as";
const SHUTDOWN_HELP: &str =
    "[-r | -h | -P | -H] [now]\n\n-r  reboots; -h, -P powers off (as without any); -H halts";

/// `reboot`, `poweroff`, `halt`.
pub(super) fn now(name: &str, arguments: &[String]) -> ExitCode {
    match wish(name, arguments) {
        Ok(Wish { kind, force: 0, .. }) => request(name, kind),
        Ok(wish) => at_once(name, wish.kind, wish.sync && wish.force < 2),
        Err(why) => refuse(name, &why, HELP),
    }
}

/// `shutdown`.
pub(super) fn shutdown(arguments: &[String]) -> ExitCode {
    match shutdown_kind(arguments) {
        Ok(kind) => request("shutdown", kind),
        Err(why) => refuse("shutdown", &why, SHUTDOWN_HELP),
    }
}

fn wish(name: &str, arguments: &[String]) -> Result<Wish, Refused> {
    let mut wish = Wish { kind: kind(name), force: 0, sync: true };
    for argument in arguments {
        match argument.as_str() {
            "--force" => wish.force += 1,
            "--halt" => wish.kind = ShutdownKind::Halt,
            "--poweroff" => wish.kind = ShutdownKind::Poweroff,
            "--reboot" => wish.kind = ShutdownKind::Reboot,
            "--no-sync" => wish.sync = false,
            "--wtmp-only" => return Err(Refused::RecordOnly("--wtmp-only")),
            "--no-wall" | "--no-wtmp" => {}
            "--help" => return Err(Refused::Help),
            // What systemd would hand to the firmware; written by those who think of `shutdown`.
            "now" if name == "reboot" => {}
            word => letters(word)?.try_for_each(|letter| wish.letter(letter, word))?,
        }
    }
    Ok(wish)
}

impl Wish {
    fn letter(&mut self, letter: char, word: &str) -> Result<(), Refused> {
        match letter {
            'f' => self.force += 1,
            'p' => self.kind = ShutdownKind::Poweroff,
            'n' => self.sync = false,
            'w' => return Err(Refused::RecordOnly("-w")),
            // No record, no network to take down, no disks to park.
            'd' | 'i' | 'h' => {}
            _ => return Err(Refused::Unknown(word.to_owned())),
        }
        Ok(())
    }
}

/// The options of a word `-xyz`.
fn letters(word: &str) -> Result<std::str::Chars<'_>, Refused> {
    let letters = word.strip_prefix('-').filter(|rest| !rest.is_empty() && !rest.starts_with('-'));
    letters.map(str::chars).ok_or_else(|| Refused::Unknown(word.to_owned()))
}

fn kind(name: &str) -> ShutdownKind {
    match name {
        "poweroff" => ShutdownKind::Poweroff,
        "halt" => ShutdownKind::Halt,
        _ => ShutdownKind::Reboot,
    }
}

/// Without a time it is done at once as well, where systemd waits a minute for somebody to cancel it.
fn shutdown_kind(arguments: &[String]) -> Result<ShutdownKind, Refused> {
    let mut kind = ShutdownKind::Poweroff;
    let mut when = None;
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--reboot" => kind = ShutdownKind::Reboot,
            "--poweroff" => kind = ShutdownKind::Poweroff,
            "--halt" => kind = ShutdownKind::Halt,
            "--no-wall" => {}
            "--help" => return Err(Refused::Help),
            "-t" => drop(words.next()),
            option if option.starts_with('-') => shutdown_letters(option, &mut kind)?,
            time if when.is_none() => when = Some(time),
            _ => {} // the message to the users, of whom there are none
        }
    }
    match when {
        None | Some("now" | "+0" | "0") => Ok(kind),
        Some(time) => Err(Refused::Later(time.to_owned())),
    }
}

fn shutdown_letters(word: &str, kind: &mut ShutdownKind) -> Result<(), Refused> {
    for letter in letters(word)? {
        match letter {
            'r' => *kind = ShutdownKind::Reboot,
            'H' => *kind = ShutdownKind::Halt,
            'P' => *kind = ShutdownKind::Poweroff,
            'h' if *kind != ShutdownKind::Halt => *kind = ShutdownKind::Poweroff,
            // By way of init, with or without a check of disks at the next start: all as it is done here.
            'h' | 'a' | 'f' | 'F' => {}
            't' => return Ok(()), // its seconds follow in the same word
            'k' => return Err(Refused::WarnOnly),
            'c' => return Err(Refused::Cancel),
            _ => return Err(Refused::Unknown(word.to_owned())),
        }
    }
    Ok(())
}

/// Asks PID 1 to bring the machine down in order.
pub(super) fn request(name: &str, kind: ShutdownKind) -> ExitCode {
    match ask(Op::Shutdown { kind }) {
        Ok(Reply::Done) => ExitCode::SUCCESS,
        Ok(Reply::Error { message, .. }) => fail(name, &message),
        Ok(_) => fail(name, "init answered something else"),
        Err(error) => fail(name, &error.to_string()),
    }
}

pub(super) fn at_once(name: &str, kind: ShutdownKind, sync: bool) -> ExitCode {
    if sync {
        nix::unistd::sync();
    }
    let Err(error) = reboot(crate::pid1::way_down(kind, &Cmdline::of_this_machine()));
    fail(name, error.desc())
}

fn refuse(name: &str, why: &Refused, help: &str) -> ExitCode {
    match why {
        Refused::Help => {
            println!("{name} {help}");
            ExitCode::SUCCESS
        }
        Refused::Unknown(_) | Refused::Later(_) => {
            eprintln!("{name}: {why}");
            ExitCode::from(USAGE)
        }
        why => fail(name, &why.to_string()),
    }
}

fn fail(name: &str, why: &str) -> ExitCode {
    eprintln!("{name}: {why}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use ShutdownKind::{Halt, Poweroff, Reboot};

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn each_name_with_its_options_goes_down_as_systemds_does() {
        for (line, kind, force, sync) in [
            ("reboot", Reboot, 0, true),
            ("reboot now", Reboot, 0, true),
            ("reboot -f", Reboot, 1, true),
            ("reboot -p", Poweroff, 0, true),
            ("halt", Halt, 0, true),
            ("halt -p", Poweroff, 0, true),
            ("halt -dhip --no-wall", Poweroff, 0, true),
            ("poweroff -nf", Poweroff, 1, false),
            ("poweroff -ff", Poweroff, 2, true),
            ("poweroff --halt --force", Halt, 1, true),
        ] {
            let mut arguments = words(line);
            let name = arguments.remove(0);
            assert_eq!(wish(&name, &arguments), Ok(Wish { kind, force, sync }), "{line}");
        }
    }

    /// It only ever wrote a record, and ours brought the machine down.
    #[test]
    fn what_asks_for_no_way_down_brings_nothing_down() {
        for line in ["-w", "-fw", "--wtmp-only"] {
            assert!(matches!(wish("reboot", &words(line)), Err(Refused::RecordOnly(_))), "{line}");
        }
        for line in ["--frobnicate", "-x", "-", "--", "later"] {
            assert!(matches!(wish("reboot", &words(line)), Err(Refused::Unknown(_))), "{line}");
        }
        assert!(wish("halt", &words("now")).is_err());
        for (line, why) in
            [("-c", Refused::Cancel), ("-kh now", Refused::WarnOnly), ("--help", Refused::Help)]
        {
            assert_eq!(shutdown_kind(&words(line)), Err(why), "{line}");
        }
        for line in ["+1 going away", "12:00", "tomorrow"] {
            assert!(matches!(shutdown_kind(&words(line)), Err(Refused::Later(_))), "{line}");
        }
        assert!(matches!(shutdown_kind(&words("-z now")), Err(Refused::Unknown(_))));
    }

    #[test]
    fn shutdown_takes_its_options_alone_and_together() {
        for (line, kind) in [
            ("", Poweroff),
            ("now", Poweroff),
            ("-h now", Poweroff),
            ("-hP now", Poweroff),
            ("-P +0", Poweroff),
            ("-H now", Halt),
            ("-Hh now", Halt),
            ("-r now going down", Reboot),
            ("-rf 0", Reboot),
            ("-t 5 -r now", Reboot),
            ("-t5 -ar now", Reboot),
            ("--no-wall --halt", Halt),
        ] {
            assert_eq!(shutdown_kind(&words(line)), Ok(kind), "{line}");
        }
    }
}
