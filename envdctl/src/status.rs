//! `envdctl status`: the state of the guest as PID 1 knows it, over vsock; needs neither network nor envd.

use std::{fmt::Write as _, io::IsTerminal, thread, time::Duration};

use clap::Args;
use guest::control::{EnvdStatus, ExitReport, Mode, Network, ServiceStatus, Stage, Status};

use crate::{
    client::{ANSWER_BOUND, Client, ClientError},
    exit::{Exit, Failure},
    guest_args::GuestArgs,
    text::{self, ColorChoice, Paint, Table, count, nanos, sanitise},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  envdctl status                                   the only VM of this host, or the guest one is in
  envdctl status --fc-socket /path/v.sock          over Firecracker's vsock socket
  envdctl status -g vsock:3 --watch=1              again every second
  envdctl status --json | jq .envd.state")]
pub struct StatusArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Print the status as JSON; its fields are documented in docs/envdctl.md
    #[arg(long)]
    json: bool,
    /// Ask again every so many seconds, until interrupted
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", require_equals = true)]
    watch: Option<f64>,
    /// Colour the table
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

/// Prints the status once, or again and again.
pub fn run(args: &StatusArgs) -> Result<Exit, Failure> {
    let endpoint = args.guest.endpoint()?;
    let paint = Paint::new(args.color);
    let ask = || Client::connect(&endpoint, ANSWER_BOUND)?.status();
    let Some(interval) = args.watch else {
        let status = ask()?;
        text::print(&if args.json { text::json(&status) } else { render(&status, paint) });
        return Ok(Exit::Ok);
    };
    let interval = Duration::try_from_secs_f64(interval.max(0.1)).unwrap_or(Duration::from_secs(2));
    let clear = if std::io::stdout().is_terminal() && !args.json { "\x1b[2J\x1b[H" } else { "" };
    loop {
        text::print(&format!("{clear}{}", watched(ask(), args.json, paint)));
        thread::sleep(interval);
    }
}

/// One turn of the watch: a guest that does not answer now may answer next time.
fn watched(answer: Result<Status, ClientError>, json: bool, paint: Paint) -> String {
    match answer {
        Ok(status) if json => text::json_line(&status),
        Ok(status) => render(&status, paint) + "\n",
        Err(error) => {
            let failure = Failure::from(error).to_string();
            if json {
                text::json_line(&serde_json::json!({ "error": failure }))
            } else {
                format!("{}\n", paint.red(&failure))
            }
        }
    }
}

/// The status as a person reads it.
pub fn render(status: &Status, paint: Paint) -> String {
    let mut out = headline(status, paint);
    out.push('\n');
    out.push_str(&facts(status, paint));
    out.push('\n');
    out.push_str(&services(status, paint));
    out.push('\n');
    out.push_str(&stages(&status.stages, paint));
    out.push_str(&warnings(&status.warnings, paint));
    out
}

fn headline(status: &Status, paint: Paint) -> String {
    let mode = match status.mode {
        Mode::Native => "as PID 1",
        Mode::Keep => "in keep mode, beside the image's own init",
    };
    format!(
        "{}  envd-init {} {mode}, {}, up {}\n",
        paint.bold(&sanitise(&status.hostname)),
        sanitise(&status.version),
        sanitise(&status.kernel),
        nanos(status.now_ns),
    )
}

fn facts(status: &Status, paint: Paint) -> String {
    let mut table = Table::default();
    let mut fact = |name: &str, value: String| table.row(vec![paint.dim(name), value]);
    fact("network", network(&status.network, paint));
    fact("envd", status.envd.as_ref().map_or_else(|| paint.red("not known"), |envd| self::envd(envd, paint)));
    if let Some(exit) = status.envd.as_ref().and_then(|envd| envd.last_exit.as_ref()) {
        fact("last exit", exit_line(exit, status.now_ns));
    }
    let relay = status.relay.as_ref().map(|relay| {
        let refused = if relay.refused > 0 { format!(", {} refused", relay.refused) } else { String::new() };
        format!("{} open, {} since it started{refused}", count(relay.connections, "connection"), relay.total)
    });
    fact("relay", relay.unwrap_or_else(|| paint.yellow("no figures (not running?)")));
    fact(
        "console",
        match status.console_dropped_bytes {
            0 => "nothing dropped".to_owned(),
            dropped => {
                paint.yellow(&format!("{} dropped: nobody reads the serial port", text::bytes(dropped)))
            }
        },
    );
    table.render(0)
}

/// Found beside wanted; red where they differ.
fn network(network: &Network, paint: Paint) -> String {
    let found = if network.found.is_empty() { "no address".into() } else { network.found.join(", ") };
    let link = if network.link_up { "up" } else { "down" };
    let mut line = format!("{} {} {link}", sanitise(&network.interface), sanitise(&found));
    let as_wanted =
        network.link_up && network.wanted.as_ref().is_none_or(|wanted| network.found.contains(wanted));
    if let (false, Some(wanted)) = (as_wanted, &network.wanted) {
        let _ = write!(line, ", wanted {}", sanitise(wanted));
    }
    let mut line = if as_wanted { line } else { paint.red(&line) };
    for (name, value) in [
        ("gateway", network.gateway.clone()),
        ("mac", network.mac.clone()),
        ("mtu", network.mtu.map(|mtu| mtu.to_string())),
        ("set by", Some(network.configured_by.clone()).filter(|who| !who.is_empty())),
    ] {
        if let Some(value) = value {
            let _ = write!(line, ", {name} {}", sanitise(&value));
        }
    }
    line
}

fn envd(envd: &EnvdStatus, paint: Paint) -> String {
    let version = envd.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
    let pid = envd.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let healthy = match (envd.exec_ns, envd.healthy_ns) {
        (Some(exec), Some(healthy)) => {
            format!(", healthy {} after exec", nanos(healthy.saturating_sub(exec)))
        }
        _ => String::new(),
    };
    format!(
        "{}  {}{}{pid}{healthy}, {}",
        state(&envd.state, paint),
        sanitise(&envd.program),
        sanitise(&version),
        count(envd.restarts, "restart"),
    )
}

/// How a process ended, on one line.
pub fn exit_line(exit: &ExitReport, now_ns: u64) -> String {
    let mut line = exit_cause(exit);
    let _ = write!(
        line,
        ", {} ago, after {}",
        nanos(now_ns.saturating_sub(exit.at_ns)),
        text::duration(Duration::from_millis(exit.uptime_ms))
    );
    if let Some(last) = exit.last_lines.iter().rev().find(|line| !line.trim().is_empty()) {
        let _ = write!(line, "; last line: {}", sanitise(last.trim()));
    }
    line
}

/// `exit status 3`, `SIGKILL (out of memory)`, `SIGTERM by us: no /health in 10 s`.
pub fn exit_cause(exit: &ExitReport) -> String {
    let mut cause = match (&exit.signal, exit.status) {
        (Some(signal), _) => sanitise(signal).into_owned(),
        (None, Some(status)) => format!("exit status {status}"),
        (None, None) => "ended".to_owned(),
    };
    if exit.oom {
        cause.push_str(" (out of memory)");
    }
    if exit.core {
        cause.push_str(" (core dumped)");
    }
    if let Some(reason) = &exit.reason {
        let _ = write!(cause, " by us: {}", sanitise(reason));
    }
    cause
}

fn state(state: &str, paint: Paint) -> String {
    let text = sanitise(state);
    match state {
        "healthy" | "running" => paint.green(&text),
        "starting" | "listening" | "stopping" => paint.yellow(&text),
        "stopped" | "exited" => paint.dim(&text),
        _ => paint.red(&text),
    }
}

fn services(status: &Status, paint: Paint) -> String {
    let mut table = Table::new(&["SERVICE", "STATE", "SINCE", "PID", "RESTARTS", "MEMORY", "LAST EXIT"]);
    for service in &status.services {
        table.row(service_row(service, status.now_ns, paint));
    }
    if table.is_empty() { "no services\n".to_owned() } else { table.render(0) }
}

fn service_row(service: &ServiceStatus, now_ns: u64, paint: Paint) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        sanitise(&service.name).into_owned(),
        state(&service.state, paint),
        nanos(now_ns.saturating_sub(service.since_ns)),
        service.pid.map_or_else(dash, |pid| pid.to_string()),
        service.restarts.to_string(),
        service.memory_bytes.map_or_else(dash, text::bytes),
        service.last_exit.as_ref().map_or_else(dash, exit_cause),
    ]
}

fn stages(stages: &[Stage], paint: Paint) -> String {
    let mut table = Table::new(&["BOOT STAGE", "AT", "TOOK", ""]);
    for stage in stages {
        table.row(vec![
            sanitise(&stage.name).into_owned(),
            nanos(stage.begin_ns),
            nanos(stage.end_ns.saturating_sub(stage.begin_ns)),
            stage.warning.as_deref().map(|warning| paint.yellow(&sanitise(warning))).unwrap_or_default(),
        ]);
    }
    table.render(0)
}

fn warnings(warnings: &[String], paint: Paint) -> String {
    let mut out = String::new();
    for warning in warnings {
        let _ = writeln!(out, "{} {}", paint.yellow("warning:"), sanitise(warning));
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}

#[cfg(test)]
pub(crate) mod tests {
    use guest::control::RelayStatus;

    use super::*;

    /// A guest in which all is well.
    pub(crate) fn well() -> Status {
        Status {
            mode: Mode::Native,
            version: "0.1.0".into(),
            kernel: "Linux 6.1.158".into(),
            hostname: "e2b.local".into(),
            now_ns: 182_000_000_000,
            stages: vec![
                stage("mounts", 412_000_000, 415_500_000),
                stage("envd_exec", 415_500_000, 431_000_000),
                stage("envd_healthy", 431_000_000, 731_000_000),
            ],
            network: Network {
                wanted: Some("169.254.0.21/30".into()),
                interface: "eth0".into(),
                found: vec!["169.254.0.21/30".into()],
                gateway: Some("169.254.0.22".into()),
                mac: Some("02:fc:00:00:00:05".into()),
                mtu: Some(1500),
                link_up: true,
                configured_by: "kernel".into(),
            },
            services: vec![service("envd", "healthy"), service("relay", "running")],
            envd: Some(EnvdStatus {
                program: "/usr/bin/envd".into(),
                version: Some("0.6.13".into()),
                state: "healthy".into(),
                pid: Some(71),
                restarts: 0,
                exec_ns: Some(431_000_000),
                listening_ns: Some(700_000_000),
                healthy_ns: Some(731_000_000),
                last_exit: None,
            }),
            relay: Some(RelayStatus { connections: 1, total: 12, refused: 0 }),
            console_dropped_bytes: 0,
            warnings: vec![],
            deaths: vec![],
        }
    }

    pub(crate) fn stage(name: &str, begin_ns: u64, end_ns: u64) -> Stage {
        Stage { name: name.into(), begin_ns, end_ns, warning: None }
    }

    fn service(name: &str, state: &str) -> ServiceStatus {
        ServiceStatus {
            name: name.into(),
            description: String::new(),
            state: state.into(),
            enabled: true,
            pid: Some(70),
            restarts: 0,
            since_ns: 731_000_000,
            memory_bytes: Some(13 << 20),
            last_exit: None,
        }
    }

    /// A death as envd's supervisor reports it.
    pub(crate) fn death(at_ns: u64) -> ExitReport {
        ExitReport {
            service: "envd".into(),
            pid: 70,
            status: None,
            signal: Some("SIGKILL".into()),
            core: false,
            oom: true,
            uptime_ms: 4200,
            restarts: 3,
            peak_memory_bytes: Some(1 << 30),
            reason: None,
            last_lines: vec!["fatal error: out of memory".into(), String::new()],
            at_ns,
        }
    }

    #[test]
    fn the_table_of_a_healthy_guest() {
        let expected = "\
e2b.local  envd-init 0.1.0 as PID 1, Linux 6.1.158, up 3 min 02 s

network  eth0 169.254.0.21/30 up, gateway 169.254.0.22, mac 02:fc:00:00:00:05, mtu 1500, set by kernel
envd     healthy  /usr/bin/envd 0.6.13, pid 71, healthy 300.0 ms after exec, 0 restarts
relay    1 connection open, 12 since it started
console  nothing dropped

SERVICE  STATE    SINCE         PID  RESTARTS  MEMORY    LAST EXIT
envd     healthy  3 min 01 s    70   0         13.0 MiB  -
relay    running  3 min 01 s    70   0         13.0 MiB  -

BOOT STAGE    AT        TOOK
mounts        412.0 ms  3.5 ms
envd_exec     415.5 ms  15.5 ms
envd_healthy  431.0 ms  300.0 ms
";
        let squeezed = |text: &str| {
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&render(&well(), Paint::plain())), squeezed(expected));
    }

    #[test]
    fn what_is_wrong_is_said_where_it_belongs() {
        let mut status = well();
        status.network.found.clear();
        status.console_dropped_bytes = 4096;
        status.warnings = vec!["eth0: no link\x1b[2J after 2 s".into()];
        status.envd.as_mut().unwrap().last_exit = Some(death(180_000_000_000));
        let text = render(&status, Paint::plain());
        for said in [
            "eth0 no address up, wanted 169.254.0.21/30",
            "SIGKILL (out of memory), 2.00 s ago, after 4.20 s; last line: fatal error: out of memory",
            "4.0 KiB dropped",
            "warning: eth0: no link\\x1b[2J after 2 s",
        ] {
            assert!(text.contains(said), "{said} is not in\n{text}");
        }
    }
}
