//! envd-wrapper: envd is never silently dead.
//!
//! It starts envd, sees it become healthy, watches it, starts it again when it ends, and explains every death on the serial
//! console. It works as a service of our PID 1, under systemd and OpenRC, and as a plain program:
//!
//! ```text
//! envd-wrapper [run] [--envd PATH] [-- ARGUMENTS…]      supervise
//! envd-wrapper --check                                  say what would run, and why
//! envd [ARGUMENTS…]                                     the same program under envd's name: supervises the envd.real beside it
//! envd -version, -commit, -help                         envd itself answers, in the wrapper's place
//! ```
//!
//! Exit codes: 0 stopped on request, 1 nothing could be supervised, 2 wrong usage, 3 (`--check`, `envd -version`) no envd that may
//! run, 4 another wrapper supervises envd here.

mod alone;
mod args;
mod choose;
mod cleanup;
mod death;
mod drain;
mod evidence;
mod facts;
mod flags;
mod gate;
mod keep;
mod last;
mod probe;
mod report;
mod shim;
mod supervisor;
mod version;
mod world;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use args::{Command, Settings};
use guest::reactor::ReactorError;
use supervisor::Supervisor;
use tracing::error;

/// Wrong usage.
const USAGE: u8 = 2;
/// There is no envd that may run, and nobody waits until there is.
const NOTHING_TO_RUN: u8 = 3;
/// Another wrapper supervises envd here.
const NOT_ALONE: u8 = 4;

/// The program, under the names `envd-wrapper` and `envd`.
pub fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(Command::Run(settings)) => run(settings),
        Ok(Command::Ask(settings, arguments)) => ask(&settings, &arguments),
        Ok(Command::Check(settings)) => check(&settings),
        Ok(Command::Print(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("envd-wrapper: {error}\n{}", args::USAGE);
            ExitCode::from(USAGE)
        }
    }
}

fn run(settings: Settings) -> ExitCode {
    shim::leave_envds_name();
    // Before anything is touched that the other one may own.
    let alone = match alone::claim(settings.stop_bound()) {
        Ok(alone) => alone,
        Err(taken) => {
            eprintln!("envd-wrapper: {taken}");
            return ExitCode::from(NOT_ALONE);
        }
    };
    supervise(settings, &alone)
}

fn supervise(settings: Settings, alone: &alone::Alone) -> ExitCode {
    // Nothing is opened for the log before envd has started.
    guest::log::begin("wrapper");
    // Our own PID 1 would take it for more to log, and has read the same configuration.
    if !report::is_our_inits_service() {
        guest::log::reopen();
        guest::log::mirror_on_stderr(!keep::has_service());
        settings.tell_problems();
    }
    alone.tell();
    guest::log::set_debug(settings.config.log.debug);
    match Supervisor::new(settings).and_then(begin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            guest::log::reopen();
            error!("cannot supervise envd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What needs nothing but the root file system is done on this side of the gate.
fn begin(mut supervisor: Supervisor) -> Result<(), ReactorError> {
    supervisor.look_ahead();
    if supervisor.wait_at(gate::Gate::find())? { supervisor.run() } else { Ok(()) }
}

/// The same program runs that would be supervised, as if it lay where we were called: descriptors, signals and exit code are its own.
fn ask(settings: &Settings, arguments: &[OsString]) -> ExitCode {
    let verdict = choose::choose(&settings.search(), &mut facts::Known::default());
    let Some(path) = verdict.chosen() else {
        eprint!("envd-wrapper: no envd that could answer:\n{verdict}");
        return ExitCode::from(NOTHING_TO_RUN);
    };
    let called = std::env::args_os().next().unwrap_or_default();
    let error = std::process::Command::new(path).arg0(called).args(arguments).exec();
    eprintln!("envd-wrapper: cannot execute {}: {error}", path.display());
    ExitCode::FAILURE
}

fn check(settings: &Settings) -> ExitCode {
    let verdict = choose::choose(&settings.search(), &mut facts::Known::default());
    print!("{verdict}");
    if verdict.chosen().is_some() { ExitCode::SUCCESS } else { ExitCode::from(NOTHING_TO_RUN) }
}
