//! `envdctl bridge`: clients on the host reach envd over the best of several routes.
//!
//! ```text
//! main process, no privileges                                          broker, CAP_SYS_ADMIN
//!  Fleet ── Listener ── Sandbox ── Client task (pump)  ── route 0 ──▶   namespaces, sockets of others
//!                          └────── Prober task         ── route 1 ──▶
//! ```
//!
//! One thread serves all sandboxes. A sandbox without clients has no task but its accept, no timer, and is not probed.

mod broker;
mod config;
mod connect;
mod fleet;
mod forward;
mod listener;
mod log;
mod metrics;
mod notify;
mod page;
mod places;
mod presence;
mod privilege;
mod probe;
mod prober;
mod sandbox;
mod schedule;
mod selector;
mod service;
mod target;
mod watch;

use std::{io, os::fd::AsFd, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args};
use vsock_relay::endpoint::{Endpoint, EndpointError};

pub use log::Format;
use places::Places;

use crate::exit::{Exit, Failure, Fatal};

/// Listeners that there may be one day: the limit of open files cannot be raised any more once privileges are dropped.
const LISTENERS: usize = 4096;

/// In seconds.
const SHORTEST_HOLD: f64 = 0.1;

/// What the command takes.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("sandboxes").required(true).args(["listen", "config"]))]
#[command(after_long_help = "Examples:\n  \
    envdctl bridge --listen tcp:127.0.0.1:49983 --route netns:ns-72/tcp:169.254.0.21:49983 \\\n      \
        --route firecracker:/srv/fc/72/v.sock:49983\n  \
    envdctl bridge --config /etc/envdctl/bridge.d --metrics unix:/run/envdctl/metrics.sock --log json\n\n\
    Endpoints:\n  tcp:127.0.0.1:49983, netns:NAME/tcp:169.254.0.21:49983, unix:/run/x.sock,\n  \
    firecracker:/path/v.sock:49983, vsock:3:49983\n\n\
    Exit codes: 0 ended by a signal, 1 failed, 2 wrong command line, 5 not permitted, 6 unreadable\n\
    configuration, 7 listen address taken")]
pub struct BridgeArgs {
    /// Where clients connect: tcp:, unix:, vsock: or netns:
    #[arg(long, value_name = "ENDPOINT", value_parser = listenable, requires = "route")]
    listen: Option<Endpoint>,
    /// A way to envd; several in order of preference
    #[arg(long, value_name = "ENDPOINT", value_parser = connectable, requires = "listen")]
    route: Vec<Endpoint>,
    /// A file with one [sandbox.NAME] each, or a folder of such files; watched for changes
    #[arg(long, value_name = "PATH", conflicts_with_all = ["listen", "route"])]
    config: Option<PathBuf>,
    /// How long a client waits while no route answers, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = hold)]
    hold: Duration,
    /// How long a preferred route must have been well before it is used again, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    return_after: Duration,
    /// How long open connections may go on after SIGTERM, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    drain: Duration,
    /// Serve metrics for Prometheus here: tcp: or unix:
    #[arg(long, value_name = "ENDPOINT", value_parser = listenable)]
    metrics: Option<Endpoint>,
    /// Form of the log on standard error
    #[arg(long, value_enum, default_value = "text")]
    log: Format,
    /// Run as this user once namespaces are taken care of (as root: without any capability, if not given)
    #[arg(long, value_name = "NAME[:GROUP]")]
    user: Option<String>,
    /// Client connections at once, of all sandboxes; further ones wait
    #[arg(long, value_name = "N", default_value = "16384", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
}

fn listenable(text: &str) -> Result<Endpoint, EndpointError> {
    text.parse::<Endpoint>()?.listenable()
}

fn connectable(text: &str) -> Result<Endpoint, EndpointError> {
    text.parse::<Endpoint>()?.connectable()
}

/// No route is known to be well until it was asked: a client that does not wait at all is never served.
fn hold(text: &str) -> Result<Duration, String> {
    seconds_from(SHORTEST_HOLD, text)
}

fn seconds(text: &str) -> Result<Duration, String> {
    seconds_from(0.0, text)
}

fn seconds_from(least: f64, text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (least..=86400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("must be a number of seconds from {least} to 86400"))
}

/// Why the bridge cannot run.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    #[error(transparent)]
    Config(config::ConfigError),
    #[error(transparent)]
    Listen(listener::ListenError),
    #[error(transparent)]
    Privilege(privilege::PrivilegeError),
    #[error(transparent)]
    Broker(broker::BrokerError),
    #[error("route {route} needs root or CAP_SYS_ADMIN: only then can a network namespace be entered")]
    NotPermitted { route: Endpoint },
    #[error("route {route} is given twice")]
    SameRoute { route: Endpoint },
    #[error("the helper process that enters network namespaces has ended ({how}): start the bridge again")]
    BrokerEnded { how: String },
    #[error("cannot set up the bridge ({operation})")]
    Setup { operation: &'static str, source: io::Error },
}

impl Fatal for BridgeError {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::BadInput,
            Self::Listen(listener::ListenError::Busy { .. }) => Exit::Busy,
            Self::Listen(listener::ListenError::Io { source, .. })
                if source.kind() != io::ErrorKind::PermissionDenied =>
            {
                Exit::Failed
            }
            Self::Listen(
                listener::ListenError::Io { .. }
                | listener::ListenError::Broker { source: broker::BrokerError::Absent, .. },
            )
            | Self::NotPermitted { .. }
            | Self::Privilege(privilege::PrivilegeError::NotRoot) => Exit::NotPermitted,
            Self::SameRoute { .. }
            | Self::Privilege(
                privilege::PrivilegeError::NoUser { .. } | privilege::PrivilegeError::NoGroup { .. },
            ) => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}

/// Serves until a signal ends it.
pub fn run(args: BridgeArgs) -> Result<Exit, Failure> {
    log::init(args.log);
    check_routes(&args)?;
    let max_connections = args.max_connections as usize;
    let places = Places::new(max_connections, raise_files(max_connections));
    let broker = if privilege::may_enter_namespaces() {
        Some(broker::start().map_err(BridgeError::Broker)?)
    } else {
        check_namespaces(&args)?;
        None
    };
    privilege::drop_all(args.user.as_deref()).map_err(BridgeError::Privilege)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| BridgeError::Setup { operation: "starting the event loop", source })?;
    runtime.block_on(service::serve(args, broker, places))?;
    Ok(Exit::Ok)
}

/// The helper process that enters namespaces for the bridge; not for people.
pub fn run_broker() -> Result<Exit, Failure> {
    privilege::keep_broker_only().map_err(BridgeError::Privilege)?;
    broker::serve(io::stdin().as_fd())
        .map_err(|source| BridgeError::Setup { operation: "answering the bridge", source })?;
    Ok(Exit::Ok)
}

fn check_routes(args: &BridgeArgs) -> Result<(), BridgeError> {
    for (index, route) in args.route.iter().enumerate() {
        if args.route[..index].contains(route) {
            return Err(BridgeError::SameRoute { route: route.clone() });
        }
    }
    Ok(())
}

fn check_namespaces(args: &BridgeArgs) -> Result<(), BridgeError> {
    let mut endpoints = args.listen.iter().chain(&args.route);
    match endpoints.find(|endpoint| matches!(endpoint, Endpoint::NetnsTcp(..))) {
        Some(route) => Err(BridgeError::NotPermitted { route: route.clone() }),
        None => Ok(()),
    }
}

/// Raises the limit of open files as far as it goes; returns what it is then.
fn raise_files(clients: usize) -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let needed = places::files_for(clients, LISTENERS) as u64;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return needed as usize };
    // Root may go beyond the hard limit.
    let possible = [needed.max(hard), hard];
    let raised =
        possible.into_iter().find(|files| setrlimit(Resource::RLIMIT_NOFILE, *files, *files).is_ok());
    usize::try_from(raised.unwrap_or(soft)).unwrap_or(usize::MAX)
}
