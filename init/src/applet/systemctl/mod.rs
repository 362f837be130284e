//! `systemctl`, as far as services of ours go; what we do not know is handed to the image's own, which was kept aside.
//!
//! Output and exit codes are the real one's where a script could look at them; docs/pid1.md says where they differ on
//! purpose. Never 0 for something that was not done.

mod arguments;
mod list;
mod own;
mod unit_files;
mod units;

use std::{os::unix::process::CommandExt, process::Command, process::ExitCode, time::Duration};

use guest::{
    control::{Op, Reply, ShutdownKind, Status},
    glob,
};

use super::{client::ask, power};
use arguments::Arguments;
use units::{State, Unit};

/// systemd's exit codes.
const NOT_RUNNING: u8 = 3;
const NO_SUCH_UNIT: u8 = 4;
const NOT_INSTALLED: u8 = 5;
/// The system's state until it is up.
const STARTING: &str = "starting";
/// Whoever waits for that looks this often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Verbs that take patterns of units' names; to all of them a pattern that matches nothing is nothing to do.
const WITH_PATTERNS: [&str; 13] = [
    "start",
    "stop",
    "restart",
    "reload-or-restart",
    "force-reload",
    "try-restart",
    "condrestart",
    "try-reload-or-restart",
    "status",
    "is-active",
    "is-failed",
    "show",
    "cat",
];

pub(super) fn run(words: &[String]) -> ExitCode {
    if words.iter().any(|word| word == "--version") {
        return version(words);
    }
    let Ok(mut arguments) = Arguments::parse(words) else { return hand_over(words) };
    let verb = arguments.verb.as_str();
    if WITH_PATTERNS.contains(&verb) && arguments.units.iter().any(|unit| glob::is_pattern(unit)) {
        match status() {
            Ok(status) => arguments.units = list::expand(&status, &arguments.units),
            Err(why) => return fail(&why),
        }
        if arguments.units.is_empty() {
            return nothing_matches(&arguments.verb);
        }
    }
    act(words, &arguments)
}

fn act(words: &[String], arguments: &Arguments) -> ExitCode {
    let units = &arguments.units;
    match (arguments.verb.as_str(), units.is_empty()) {
        ("start", false) => each(units, |unit| order(arguments, unit, start)),
        ("stop", false) => each(units, |unit| order(arguments, unit, stop)),
        ("restart" | "reload-or-restart" | "force-reload", false) => {
            each(units, |unit| order(arguments, unit, restart))
        }
        ("try-restart" | "condrestart" | "try-reload-or-restart", false) => {
            each(units, |unit| try_restart(arguments, unit))
        }
        ("status", false) => with_status(|status| units::print_status(status, units)),
        ("is-active", false) => with_status(|status| is_active(arguments, status)),
        ("is-failed", false) => with_status(|status| is_failed(arguments, status)),
        ("is-enabled", false) => known_or_hand_over(words, units, |status| is_enabled(arguments, status)),
        ("enable" | "disable" | "mask" | "unmask", false) => {
            known_or_hand_over(words, units, |status| change(arguments, status))
        }
        ("cat", false) if units.iter().all(|unit| unit_files::is_there(unit)) || !has_own_systemctl() => {
            ExitCode::from(unit_files::cat(units))
        }
        ("show", false) => with_status(|status| units::show(status, arguments)),
        ("list-units" | "status", _) => with_status(|status| list::print(status, arguments)),
        ("is-system-running", true) => with_status(|first| tell_system_state(arguments, first)),
        // Whatever is started or restarted on request is read anew: nothing is left to do.
        ("daemon-reload", true) => ExitCode::SUCCESS,
        ("reboot", true) => down(arguments, ShutdownKind::Reboot),
        ("poweroff", true) => down(arguments, ShutdownKind::Poweroff),
        ("halt", true) => down(arguments, ShutdownKind::Halt),
        _ => hand_over(words),
    }
}

/// Said twice, `--force` asks the kernel itself.
fn down(arguments: &Arguments, kind: ShutdownKind) -> ExitCode {
    if arguments.force > 1 {
        power::at_once("systemctl", kind, false)
    } else {
        power::request("systemctl", kind)
    }
}

/// Nothing was asked for, which went well; and nothing of it is active or has failed.
fn nothing_matches(verb: &str) -> ExitCode {
    ExitCode::from(match verb {
        "is-active" => NOT_RUNNING,
        "is-failed" => 1,
        _ => 0,
    })
}

/// The image's own tells the version that its scripts expect.
fn version(words: &[String]) -> ExitCode {
    if has_own_systemctl() {
        return hand_over(words);
    }
    println!("envd-init {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}

/// Does all, and tells the first failure's code.
fn each(units: &[String], act: impl FnMut(&str) -> u8) -> ExitCode {
    ExitCode::from(first_failure(units, act))
}

fn first_failure(units: &[String], mut act: impl FnMut(&str) -> u8) -> u8 {
    let codes: Vec<u8> = units.iter().map(|unit| act(unit)).collect();
    codes.into_iter().find(|code| *code != 0).unwrap_or(0)
}

fn start(service: String, no_block: bool) -> Op {
    Op::Start { service, no_block }
}

fn stop(service: String, no_block: bool) -> Op {
    Op::Stop { service, no_block }
}

fn restart(service: String, no_block: bool) -> Op {
    Op::Restart { service, no_block }
}

fn order(arguments: &Arguments, unit: &str, op: fn(String, bool) -> Op) -> u8 {
    let (verb, full) = (arguments.verb.as_str(), units::full_name(unit));
    match ask(op(units::our_name(unit), arguments.no_block)) {
        Ok(Reply::Done) => 0,
        Ok(Reply::Error { code, .. }) if code == "unknown_service" => {
            let state = if verb == "stop" { "loaded" } else { "found" };
            eprintln!("Failed to {verb} {full}: Unit {full} not {state}.");
            NOT_INSTALLED
        }
        Ok(Reply::Error { message, .. }) => {
            eprintln!("Failed to {verb} {full}: {message}");
            1
        }
        Ok(_) => {
            eprintln!("Failed to {verb} {full}: init answered something else");
            1
        }
        Err(error) => {
            eprintln!("Failed to {verb} {full}: {error}");
            1
        }
    }
}

/// Only what runs is restarted; what does not is as it should be, or is starting anyway.
fn try_restart(arguments: &Arguments, unit: &str) -> u8 {
    match status() {
        Ok(status) if Unit::find(&status, unit).is_some_and(|unit| unit.state != State::Active) => 0,
        _ => order(arguments, unit, restart),
    }
}

/// With `--now` a unit is also started or stopped, once its file says so.
fn change(arguments: &Arguments, status: &Status) -> u8 {
    let code = unit_files::change(arguments, status);
    let op = match arguments.verb.as_str() {
        _ if code != 0 || !arguments.now => return code,
        "enable" => start,
        "disable" => stop,
        _ => return code,
    };
    let as_said = Arguments {
        verb: if arguments.verb == "enable" { "start" } else { "stop" }.to_owned(),
        ..arguments.clone()
    };
    first_failure(&arguments.units, |unit| order(&as_said, unit, op))
}

fn status() -> Result<Status, String> {
    match ask(Op::Status) {
        Ok(Reply::Status(status)) => Ok(*status),
        Ok(Reply::Error { message, .. }) => Err(message),
        Ok(_) => Err("init answered something else".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn with_status(act: impl FnOnce(&Status) -> u8) -> ExitCode {
    match status() {
        Ok(status) => ExitCode::from(act(&status)),
        Err(why) => fail(&why),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("systemctl: {why}");
    ExitCode::FAILURE
}

/// Units of ours are answered for; of any other the image's own systemctl knows more.
fn known_or_hand_over(words: &[String], units: &[String], act: impl FnOnce(&Status) -> u8) -> ExitCode {
    match status() {
        Ok(status) if units.iter().all(|unit| Unit::find(&status, unit).is_some()) => {
            ExitCode::from(act(&status))
        }
        _ => hand_over(words),
    }
}

fn is_active(arguments: &Arguments, status: &Status) -> u8 {
    let states: Vec<_> =
        arguments.units.iter().map(|unit| Unit::find(status, unit).map(|unit| unit.state)).collect();
    for state in &states {
        arguments.say(state.map_or("inactive", State::as_str));
    }
    if states.contains(&Some(State::Active)) { 0 } else { NOT_RUNNING }
}

fn is_failed(arguments: &Arguments, status: &Status) -> u8 {
    let states: Vec<_> =
        arguments.units.iter().map(|unit| Unit::find(status, unit).map(|unit| unit.state)).collect();
    for state in &states {
        arguments.say(state.map_or("inactive", State::as_str));
    }
    u8::from(!states.contains(&Some(State::Failed)))
}

fn is_enabled(arguments: &Arguments, status: &Status) -> u8 {
    let states: Vec<_> = arguments
        .units
        .iter()
        .filter_map(|unit| Unit::find(status, unit))
        .map(|unit| unit.file_state())
        .collect();
    for state in &states {
        arguments.say(state);
    }
    u8::from(!states.contains(&"enabled"))
}

/// With `--wait` once everything has started or failed to.
fn tell_system_state(arguments: &Arguments, first: &Status) -> u8 {
    let mut state = system_state(first);
    while arguments.wait && state == STARTING {
        std::thread::sleep(LOOK_AGAIN);
        state = match status() {
            Ok(status) => system_state(&status),
            Err(_) => "unknown",
        };
    }
    arguments.say(state);
    u8::from(state != "running")
}

/// One that failed and is tried again has been started.
fn system_state(status: &Status) -> &'static str {
    let begun = status.stages.iter().any(|stage| stage.name == "services");
    let is_first_start = |unit: &Unit<'_>| {
        unit.state == State::Activating && unit.service.restarts == 0 && !unit.is_backing_off()
    };
    if !begun || Unit::all(status).any(|unit| is_first_start(&unit)) {
        return STARTING;
    }
    if Unit::all(status).any(|unit| unit.state == State::Failed) { "degraded" } else { "running" }
}

fn has_own_systemctl() -> bool {
    own::program().is_some()
}

/// The image's own systemctl takes the place of this process.
fn hand_over(words: &[String]) -> ExitCode {
    if let Some(program) = own::program() {
        let error = Command::new(&program).arg0("systemctl").args(words).exec();
        return fail(&format!("cannot run {}: {error}", program.display()));
    }
    eprintln!(
        "systemctl: `{}` is not supported by envd-init, and this image has no systemctl of its own",
        words.join(" ")
    );
    ExitCode::FAILURE
}
