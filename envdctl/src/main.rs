//! `envdctl`: the operator's tool on the host.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match envdctl::cli::Cli::parse().run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("envdctl: {failure}");
            failure.exit().into()
        }
    }
}
