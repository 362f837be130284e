//! A stand-in for envd. It serves the calls that the SDK and the platform make, so that tests and the demo need nothing
//! but the registries, and it has the faults of which the real one cannot be made on demand (see `--help`).
//!
//! It is faithful where a supervisor looks: argv[0] is whatever it was called, it catches no signals, it prints nothing when
//! all is well, its children live in the cgroup `user` and not in its own, and it accepts envd's flags.

mod app;
mod cgroup;
mod error;
mod faults;
mod files;
mod filesystem;
mod launch;
mod process;
mod registry;
mod switches;
mod upgrade;
mod users;

use std::process::ExitCode;

use lexopt::prelude::*;
use switches::Switches;

const HELP: &str = "\
envd-stand-in: serves envd's HTTP API, with faults on demand

  -port, --port N        TCP port [49983]
  -version, --version    prints a version and ends
  --NAME VALUE           one of the switches below

Switches are read from /etc/envd-stand-in.conf, then /run/envd-stand-in.conf (`name = value` a line), then the environment
(ENVD_STAND_IN_NAME), then the flags; a later one wins.
";

enum Start {
    Serve { port: u16, switches: Switches, resumed: bool },
    Say(String),
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if args.get(1).is_some_and(|arg| arg == launch::FLAG) {
        return launch::main(&args[2..]);
    }
    match parse(args).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("envd-stand-in: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: Vec<std::ffi::OsString>) -> anyhow::Result<Start> {
    // The real one takes `-port`; lexopt reads long names behind two dashes only.
    let args = args.into_iter().map(|arg| match arg.to_str() {
        Some("-port") => "--port".into(),
        Some("-version") => "--version".into(),
        Some("-resume-handover") => upgrade::FLAG.into(),
        _ => arg,
    });
    let mut parser = lexopt::Parser::from_iter(args);
    let mut port = envd_api::PORT;
    let mut switches = Switches::from_surroundings()?;
    let mut resumed = false;
    while let Some(arg) = parser.next()? {
        match arg {
            Long("help") | Short('h') => return Ok(Start::Say(format!("{HELP}\n{}", Switches::help()))),
            Long("version") => {
                std::thread::sleep(std::time::Duration::from_secs_f64(switches.slow_version));
                return Ok(Start::Say("0.0.0-stand-in\n".into()));
            }
            Long("resume-handover") => resumed = true,
            Long("port") => port = parser.value()?.parse()?,
            Long(name) => {
                let name = name.to_owned();
                switches.set(&name, &parser.value()?.string()?)?;
            }
            _ => return Err(arg.unexpected().into()),
        }
    }
    Ok(Start::Serve { port, switches, resumed })
}

/// As Go's runtime does: as many files as the hard limit allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn run(start: Start) -> anyhow::Result<()> {
    match start {
        Start::Say(text) => print!("{text}"),
        Start::Serve { port, switches, resumed } => {
            raise_file_limit();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(app::serve(port, switches, resumed))?;
        }
    }
    Ok(())
}
