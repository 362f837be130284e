//! The tools that are links to init, by name.

mod client;
mod power;
mod systemctl;

use std::{ffi::OsString, path::Path, process::ExitCode};

/// Wrong usage.
const USAGE: u8 = 2;

/// Runs as `arguments[0]` says; `init NAME …` runs as NAME.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut words: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    if words.is_empty() {
        words.push("init".to_owned());
    }
    let name = base_name(&words.remove(0));
    match name.as_str() {
        "init" if words.first().is_some_and(|word| is_applet(word)) => {
            let name = words.remove(0);
            applet(&name, &words)
        }
        "init" | "telinit" => change_runlevel(&words),
        name => applet(name, &words),
    }
}

fn base_name(path: &str) -> String {
    Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_applet(name: &str) -> bool {
    [
        "systemctl",
        "reboot",
        "poweroff",
        "halt",
        "shutdown",
        "runlevel",
        "launch",
        "tmpfiles",
        "sysusers",
        crate::pid1::UNMOUNT,
    ]
    .contains(&name)
}

fn applet(name: &str, arguments: &[String]) -> ExitCode {
    match name {
        "systemctl" => systemctl::run(arguments),
        "reboot" | "poweroff" | "halt" => power::now(name, arguments),
        "shutdown" => power::shutdown(arguments),
        "runlevel" => {
            println!("N 3"); // scripts of packages ask; what starts with the machine is what level 3 has
            ExitCode::SUCCESS
        }
        "launch" => code(guest::launch::run(arguments)),
        "tmpfiles" => code(guest::tmpfiles::command::run(arguments)),
        "sysusers" => code(guest::tmpfiles::command::run_sysusers(arguments)),
        crate::pid1::UNMOUNT => ExitCode::from(crate::pid1::unmount_all()),
        other => {
            eprintln!(
                "init: called as {other}, which is none of its names: init, systemctl, reboot, poweroff, halt, shutdown"
            );
            ExitCode::from(USAGE)
        }
    }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// `init 0` and `init 6`, as System V had them.
fn change_runlevel(arguments: &[String]) -> ExitCode {
    match arguments.first().map(String::as_str) {
        Some("0") => power::now("poweroff", &[]),
        Some("6") => power::now("reboot", &[]),
        Some("--version") => {
            println!("init (envd-init) {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "init: this is not process 1; to go down write `init 6` (reboot) or `init 0` (power off)"
            );
            ExitCode::from(USAGE)
        }
    }
}
