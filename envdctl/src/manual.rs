//! Hidden commands of the build: shell completions and man pages, made from the command line's own description.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Command};
use clap_complete::Shell;

use crate::exit::{Exit, Failure, Fatal};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder that the pages go into; it is made where it is absent
    folder: PathBuf,
}

/// Why the manual cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct ManualError {
    path: PathBuf,
    source: io::Error,
}

impl Fatal for ManualError {
    fn exit(&self) -> Exit {
        Exit::Failed
    }
}

/// Prints the completions of a shell.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "envdctl", &mut script);
    crate::text::print(&String::from_utf8_lossy(&script));
    Exit::Ok
}

/// Writes `envdctl.1` and a page for each command.
pub fn man(args: &ManArgs, command: Command) -> Result<Exit, Failure> {
    let failed = |path: &Path, source| ManualError { path: path.to_owned(), source };
    fs::create_dir_all(&args.folder).map_err(|source| failed(&args.folder, source))?;
    // Pages are named by the whole command: envdctl-boot.1, not boot.1.
    let mut command = command.flatten_help(false);
    command.build();
    clap_mangen::generate_to(command, &args.folder).map_err(|source| failed(&args.folder, source))?;
    Ok(Exit::Ok)
}
