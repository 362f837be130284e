//! `envdctl`: the operator's tool on the host.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match envdctl::cli::Cli::parse().run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            let next_step = failure.exit().next_step().map(|step| format!(" ({step})")).unwrap_or_default();
            eprintln!("envdctl: {failure}{next_step}");
            failure.exit().into()
        }
    }
}
