//! The command line: one module for each subcommand, each with its `Args` and its `run`.

use clap::{CommandFactory, Parser, Subcommand};
use guest::control::ShutdownKind;

use crate::{
    boot::{self, BootArgs},
    bridge::{self, BridgeArgs},
    console::{self, ConsoleArgs},
    doctor,
    exit::{Exit, Failure},
    logs::{self, LogsArgs},
    manual::{self, CompletionsArgs, ManArgs},
    run_check::{self, RunCheckArgs},
    service::{self, ServiceArgs, ShutdownArgs, Verb},
    status::{self, StatusArgs},
};

/// Reaches, watches and repairs the way to envd in an E2B sandbox.
#[derive(Debug, Parser)]
#[command(
    name = "envdctl",
    version,
    max_term_width = 110,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:
  envdctl doctor                                   name the broken hop, and what to do
  envdctl status --fc-socket /path/v.sock          ask the guest, with no network and no envd
  envdctl bridge --listen tcp:127.0.0.1:49983 --route netns:ns-72/tcp:169.254.0.21:49983 \\
                 --route firecracker:/path/v.sock:49983
  envdctl run-check                                create, echo, python, file: as an SDK would

Exit codes: 0 done, 1 failed, 2 usage, 3 not reached, 4 refused by the guest, 5 not permitted,
  6 bad input, 7 address taken, 8 run-check failed, 20 + N: doctor found hop N broken"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Add a command: a variant that wraps the module's `Args`, and a line in `run` below. A module's `run` is
// `fn run(args: Args) -> Result<Exit, Failure>`; its error enum implements `exit::Fatal`.
#[derive(Debug, Subcommand)]
enum Command {
    /// Lead clients on the host to envd over the best of several routes
    Bridge(BridgeArgs),
    /// The bridge's helper process; not for people
    #[command(hide = true)]
    BridgeBroker,
    /// Walk the way to envd hop by hop and name the first that is broken
    Doctor(doctor::Args),
    /// Print the state of the guest: boot, network, services, envd, relay
    Status(StatusArgs),
    /// Print the guest's log ring
    Logs(LogsArgs),
    /// Show where the time of a boot went
    Boot(BootArgs),
    /// Prove a sandbox with the four calls of an SDK, without one
    RunCheck(RunCheckArgs),
    /// Follow a serial console, coloured
    Console(ConsoleArgs),
    /// Start a service of the guest
    Start(ServiceArgs),
    /// Stop a service of the guest
    Stop(ServiceArgs),
    /// Restart a service of the guest, for example envd
    Restart(ServiceArgs),
    /// Reboot the guest (Firecracker then ends: it has no reboot)
    Reboot(ShutdownArgs),
    /// Power the guest off
    Poweroff(ShutdownArgs),
    /// Halt the guest
    Halt(ShutdownArgs),
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions(CompletionsArgs),
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man(ManArgs),
}

impl Cli {
    /// Runs the command that was asked for.
    pub fn run(self) -> Result<Exit, Failure> {
        match self.command {
            Command::Bridge(args) => bridge::run(args),
            Command::BridgeBroker => bridge::run_broker(),
            Command::Doctor(args) => doctor::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Logs(args) => logs::run(args),
            Command::Boot(args) => boot::run(&args),
            Command::Console(args) => console::run(&args),
            Command::Start(args) => service::run(Verb::Start, args),
            Command::Stop(args) => service::run(Verb::Stop, args),
            Command::Restart(args) => service::run(Verb::Restart, args),
            Command::Reboot(args) => service::shutdown(ShutdownKind::Reboot, &args),
            Command::Poweroff(args) => service::shutdown(ShutdownKind::Poweroff, &args),
            Command::Halt(args) => service::shutdown(ShutdownKind::Halt, &args),
            Command::RunCheck(args) => run_check::run(&args),
            Command::Completions(args) => Ok(manual::completions(&args, Self::command())),
            Command::Man(args) => manual::man(&args, Self::command()),
        }
    }
}
