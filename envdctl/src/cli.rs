//! The command line: one module for each subcommand, each with its `Args` and its `run`.

use clap::{Parser, Subcommand};

use crate::exit::{Exit, Failure};

/// Reaches, watches and repairs the way to envd in an E2B sandbox.
#[derive(Debug, Parser)]
#[command(name = "envdctl", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Add a command: a variant that wraps the module's `Args`, and a line in `run` below. A module's `run` is
// `fn run(args: Args) -> Result<Exit, Failure>`; its error enum implements `exit::Fatal`.
#[derive(Debug, Subcommand)]
enum Command {}

impl Cli {
    /// Runs the command that was asked for.
    pub fn run(self) -> Result<Exit, Failure> {
        match self.command {}
    }
}
