//! `vsock-relay`: the guest's end of the second way to envd. `--help` says how it is used; exit codes are there too.

mod args;
mod logging;
mod setup;

use std::process::ExitCode;

use crate::relay::{Relay, RelayError};

/// The program, under the name `vsock-relay`.
pub fn main() -> ExitCode {
    let command = match args::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("vsock-relay: {error}; --help says how it is used");
            return ExitCode::from(2);
        }
    };
    match command {
        args::Command::Print(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        args::Command::Run(run) => start(run),
    }
}

fn start(args::Run { mut options, cgroup, log }: args::Run) -> ExitCode {
    logging::init(log);
    if let Some(cgroup) = &cgroup {
        setup::join_cgroup(cgroup);
    }
    options.max_connections = setup::connections(options.max_connections);
    match Relay::new(options).and_then(|mut relay| relay.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let source =
                std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            tracing::error!("{error}{source}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &RelayError) -> u8 {
    match error {
        RelayError::NoMap => 2,
        RelayError::Listen { .. } => 7,
        RelayError::Setup { .. } | RelayError::Wait { .. } => 1,
    }
}
