use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    rootfs::interrupt::watch();
    match rootfs::commands::run(rootfs::cli::Cli::parse_from(rootfs::cli::arguments())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rootfs: {failure}");
            failure.exit.into()
        }
    }
}
