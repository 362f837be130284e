//! `reboot`, `poweroff`, `halt`, `shutdown`.

use std::process::ExitCode;

use guest::control::{Op, Reply, ShutdownKind};
use nix::sys::reboot::{RebootMode, reboot};

use super::{USAGE, client::ask};

/// `reboot [-f]`: `-f` asks the kernel itself, without stopping anything; twice, without a sync.
pub(super) fn now(name: &str, arguments: &[String]) -> ExitCode {
    let mut force = 0;
    for argument in arguments {
        match argument.as_str() {
            "-f" | "--force" => force += 1,
            "-ff" => force += 2,
            // Said by scripts of systemd and System V, and without a meaning here.
            "-w" | "-n" | "-d" | "-i" | "-h" | "-p" | "--no-wall" | "--no-sync" => {}
            "--help" => {
                println!("{name} [-f]\n\n-f  at once, without stopping services; -ff without a sync either");
                return ExitCode::SUCCESS;
            }
            other => {
                eprintln!("{name}: there is no option {other}; --help says which there are");
                return ExitCode::from(USAGE);
            }
        }
    }
    let kind = kind(name);
    if force > 0 { at_once(kind, force < 2) } else { request(name, kind) }
}

fn kind(name: &str) -> ShutdownKind {
    match name {
        "poweroff" => ShutdownKind::Poweroff,
        "halt" => ShutdownKind::Halt,
        _ => ShutdownKind::Reboot,
    }
}

/// `shutdown [-r|-h|-P|-H] [now|+0]`; another time is refused, since nothing here keeps it.
pub(super) fn shutdown(arguments: &[String]) -> ExitCode {
    let mut kind = ShutdownKind::Poweroff;
    let mut when = None;
    for argument in arguments {
        match argument.as_str() {
            "-r" | "--reboot" => kind = ShutdownKind::Reboot,
            "-h" | "-P" | "--poweroff" => kind = ShutdownKind::Poweroff,
            "-H" | "--halt" => kind = ShutdownKind::Halt,
            "--no-wall" => {}
            option if option.starts_with('-') => {
                eprintln!("shutdown: option {option} is not supported by envd-init");
                return ExitCode::from(USAGE);
            }
            time if when.is_none() => when = Some(time),
            _ => {} // the message to the users, of whom there are none
        }
    }
    match when {
        None | Some("now" | "+0" | "0") => request("shutdown", kind),
        Some(time) => {
            eprintln!("shutdown: {time}: only `now` is supported by envd-init");
            ExitCode::from(USAGE)
        }
    }
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

pub(super) fn at_once(kind: ShutdownKind, sync: bool) -> ExitCode {
    if sync {
        nix::unistd::sync();
    }
    let mode = match kind {
        ShutdownKind::Poweroff if cfg!(not(target_arch = "x86_64")) => RebootMode::RB_POWER_OFF,
        ShutdownKind::Halt if cfg!(not(target_arch = "x86_64")) => RebootMode::RB_HALT_SYSTEM,
        _ => RebootMode::RB_AUTOBOOT,
    };
    let Err(error) = reboot(mode);
    fail("reboot", error.desc())
}

fn fail(name: &str, why: &str) -> ExitCode {
    eprintln!("{name}: {why}");
    ExitCode::FAILURE
}
