//! `envdctl doctor`: walks the way from an SDK on this host to envd, and names the first hop that is broken.
//!
//! What is found ([`facts`]) is gathered first, by looking, connecting and pinging; then each hop is judged by
//! itself ([`hop`]). A hop is called broken only where something proves it; where an earlier hop hides a later one, the
//! later one is unknown. Nothing on the host or in the guest is changed.

pub mod cause;
pub mod console;
pub mod facts;
pub mod forwarder;
pub mod hop;
pub mod judge_devices;
pub mod judge_host;
pub mod judge_net;
pub mod judge_rules;
pub mod judge_vsock;
pub mod plan;
pub mod probe;
pub mod proxy;
pub mod rules;

use std::path::PathBuf;

use clap::Args as ClapArgs;
use vsock_relay::endpoint::EndpointError;

use crate::{
    exit::{Exit, Failure, Fatal},
    host::{socket, vmm},
    text::{self, ColorChoice, Paint},
};
use facts::Facts;
use hop::{Finding, Hop, Report};
use plan::Plan;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  envdctl doctor                                   finds listener, namespace and VM of this host by itself
  envdctl doctor --netns ns-72 --fc-socket /path/v.sock
  envdctl doctor --listen tcp:127.0.0.1:49983 --route netns:ns-72/tcp:169.254.0.21:49983 \\
                 --route firecracker:/path/v.sock:49983 --console /var/log/sandbox/console.log
  envdctl doctor --json | jq -r .first_broken

Exit code: 0 when no hop is broken, else 20 plus the number of the first broken hop:
  21 listener       24 devices        27 guest-address  30 vsock-socket   33 guest
  22 proxy          25 rules          28 port           31 handshake      34 envd
  23 namespace      26 forwarder      29 health         32 relay          35 console

Run it as root: other processes' sockets, namespaces and rules are hidden from everybody else.")]
pub struct Args {
    /// Where SDKs connect to on this host
    #[arg(long, value_name = "ENDPOINT", default_value = "tcp:127.0.0.1:49983")]
    pub listen: String,
    /// A route to envd, as given to the bridge; repeat it for each. Default: those of the bridge that runs
    #[arg(long, value_name = "ENDPOINT")]
    pub route: Vec<String>,
    /// The sandbox's network namespace: a name under /run/netns, or a path
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// The VM's vsock socket on this host
    #[arg(long, value_name = "PATH")]
    pub fc_socket: Option<PathBuf>,
    /// A log of the guest's serial console, raw or in the orchestrator's JSON lines
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Print the findings as JSON; the fields are documented in docs/envdctl.md
    #[arg(long)]
    pub json: bool,
    /// Print every hop with its evidence, also where all is well
    #[arg(short, long)]
    pub verbose: bool,
    /// Colour the report
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

/// Why the walk cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    #[error("doctor: {0}")]
    Endpoint(#[from] EndpointError),
}

impl Fatal for DoctorError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

/// Walks the hops and reports.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let listeners = socket::listeners().map_err(|error| error.to_string());
    let monitors = vmm::monitors();
    let plan =
        plan::make(args, listeners.as_deref().unwrap_or_default(), &monitors).map_err(DoctorError::from)?;
    let facts = facts::gather(plan, listeners, monitors);
    let report = Report::new(subject(&facts.plan), judge(&facts));
    let paint = Paint::new(args.color);
    text::print(&if args.json { text::json(&report) } else { report.render(paint, args.verbose) });
    Ok(report.exit())
}

fn subject(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("listener   {}", plan.listen)];
    if let Some(netns) = &plan.netns {
        lines.push(format!("namespace  {}", netns.label()));
    }
    lines.push(format!("guest      {}", plan.guest));
    if let Some(vsock) = &plan.vsock {
        lines.push(format!("vsock      {}", vsock.endpoint(plan.relay_port)));
    }
    if let Some(console) = &plan.console {
        lines.push(format!("console    {}", console.display()));
    }
    lines
}

/// Judges every hop.
fn judge(facts: &Facts) -> Vec<Finding> {
    let mut hops = vec![
        judge_host::listener(facts),
        judge_host::proxy(facts),
        judge_net::namespace(facts),
        judge_devices::judge(facts),
        judge_rules::judge(facts),
        judge_net::forwarder(facts),
    ];
    // What lies between the namespace and the guest hides what comes after it; a forwarder does not.
    let hides = |hops: &[Finding]| {
        let hiding = [Hop::Namespace, Hop::Devices, Hop::Rules, Hop::GuestAddress, Hop::Port];
        hops.iter()
            .find(|finding| finding.is_broken() && hiding.contains(&finding.hop))
            .map(|finding| finding.hop)
    };
    for next in [judge_net::guest_address, judge_net::port, judge_net::health] {
        let before = hides(&hops);
        hops.push(next(facts, before));
    }
    hops.extend(judge_vsock::walk(facts));
    hops.push(judge_vsock::console(facts));
    blame_listener(facts, &mut hops);
    hops
}

/// Where nothing comes through the listener and no hop behind it is found broken, it is the listener: since the way behind it is
/// well, or as far as can be seen from here.
fn blame_listener(facts: &Facts, hops: &mut [Finding]) {
    let by_tcp = |finding: &Finding| finding.hop <= Hop::Health;
    let explained = hops.iter().any(|finding| by_tcp(finding) && finding.is_broken());
    let Some(first) = hops.first_mut().filter(|_| !explained && !facts.host.health.is_well()) else { return };
    match &facts.guest {
        Some(guest) if guest.health.is_well() => *first = judge_host::listener_is_at_fault(facts, first),
        Some(_) => {}
        None => *first = judge_host::nothing_behind_is_seen(facts, first),
    }
}
