//! `envdctl start | stop | restart SERVICE`, and `envdctl reboot | poweroff | halt`.

use std::time::Duration;

use clap::Args;
use guest::control::{Op, ShutdownKind};

use crate::{
    client::Client,
    exit::{Exit, Failure},
    guest_args::GuestArgs,
    text,
};

/// How long a connection may take.
const CONNECT_BOUND: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// Name of the service, as `envdctl status` lists it
    service: String,
    #[command(flatten)]
    guest: GuestArgs,
    /// Seconds to wait for it to be done
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ShutdownArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What to do with a service.
#[derive(Debug, Clone, Copy)]
pub enum Verb {
    Start,
    Stop,
    Restart,
}

/// Starts, stops or restarts a service of the guest; returns when that is done.
pub fn run(verb: Verb, args: ServiceArgs) -> Result<Exit, Failure> {
    let service = args.service;
    let (op, done) = match verb {
        Verb::Start => (Op::Start { service: service.clone(), no_block: false }, "started"),
        Verb::Stop => (Op::Stop { service: service.clone(), no_block: false }, "stopped"),
        Verb::Restart => (Op::Restart { service: service.clone(), no_block: false }, "restarted"),
    };
    act(&args.guest, op, Duration::from_secs(args.timeout))?;
    report(args.json, &service, done);
    Ok(Exit::Ok)
}

/// Takes the guest down.
pub fn shutdown(kind: ShutdownKind, args: &ShutdownArgs) -> Result<Exit, Failure> {
    act(&args.guest, Op::Shutdown { kind }, CONNECT_BOUND)?;
    let done = match kind {
        ShutdownKind::Reboot => "reboots",
        ShutdownKind::Poweroff => "powers off",
        ShutdownKind::Halt => "halts",
    };
    report(args.json, "guest", done);
    Ok(Exit::Ok)
}

fn act(guest: &GuestArgs, op: Op, bound: Duration) -> Result<(), Failure> {
    let endpoint = guest.endpoint()?;
    Client::connect(&endpoint, CONNECT_BOUND)?.act(op, bound)?;
    Ok(())
}

fn report(json: bool, subject: &str, done: &str) {
    if json {
        text::print(&text::json(&serde_json::json!({ "ok": true, "subject": subject, "done": done })));
    } else {
        text::print(&format!("{}: {done}\n", text::sanitise(subject)));
    }
}
