//! Keep mode: the image's own init is PID 1, so the wrapper answers the control protocol, with what it knows.
//!
//! | asked | answered |
//! |---|---|
//! | status | at once: envd, the relay, the network as found, the stages of this boot, the last deaths |
//! | start, stop, restart of envd | when the process has started, or is dead |
//! | restart of the relay | when the image's init has started another one |
//! | start and stop of anything else | `unsupported`: the image's init does that |
//! | shutdown | at once; the image's own reboot, poweroff or halt follows |

mod look;
mod machine_end;

use std::path::Path;
use std::time::Duration;

use guest::clock::{self, Moment};
use guest::control::server::{Call, ClientId, Server, error};
use guest::control::{
    self, EnvdStatus, ExitReport, Mode, Op, RelayStatus, Reply, ServiceStatus, Stage, Status,
};
use guest::reactor::{Reactor, Ready, Token};
use guest::supervise::State;
use guest::{json, log, ring};
use tracing::{info, warn};

use crate::args::Settings;

/// Tokens from here on are the control server's.
pub(crate) const TOKENS: Token = 1 << 32;
/// An order that is not carried out by then is answered with an error.
const GOAL_BOUND: Duration = Duration::from_secs(30);
/// While somebody waits for the relay to come back, which nothing tells us.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The stages of this boot, for a wrapper that is started later in it.
const STAGES: &str = "/run/envd-init/boot.json";
/// Deaths that are remembered.
const TALLY: usize = 100;

/// Whether the image's own init is PID 1.
pub(crate) fn is_kept() -> bool {
    let native =
        std::fs::read_link("/proc/1/exe").is_ok_and(|exe| exe == Path::new("/usr/lib/envd-init/init"));
    !(native || crate::report::is_our_inits_service())
}

/// Whether systemd or OpenRC runs us as a service, which then says what envd's world is.
pub(crate) fn has_service() -> bool {
    ["INVOCATION_ID", "RC_SVCNAME"].iter().any(|name| std::env::var_os(name).is_some())
}

/// What an order about envd asks of its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Start,
    Stop,
    Restart,
}

/// An order whose answer waits for what it leads to.
#[derive(Debug)]
struct Goal {
    client: ClientId,
    wanted: Wanted,
    until: Moment,
}

#[derive(Debug)]
enum Wanted {
    EnvdStarted {
        since: Moment,
    },
    /// Another one may run by then.
    EnvdStopped {
        old: Option<i32>,
    },
    OtherRelay {
        old: Option<i32>,
    },
}

/// The control protocol's side of the wrapper.
pub(crate) struct Keep {
    server: Server,
    network: control::Network,
    wants_vsock: bool,
    vsock_missing: bool,
    goals: Vec<Goal>,
    stages: Vec<Stage>,
    deaths: Vec<ExitReport>,
    warnings: Vec<String>,
}

impl Keep {
    pub(crate) fn new(settings: &Settings, reactor: &Reactor, now: Moment) -> Self {
        let mut keep = Self {
            server: Server::new(TOKENS, ring::FOLDER),
            network: look::wanted(&settings.config.network),
            wants_vsock: settings.config.control.vsock,
            vsock_missing: false,
            goals: Vec::new(),
            stages: earlier_stages().unwrap_or_else(|| vec![stage("image_init", 0, nanos(now))]),
            deaths: Vec::new(),
            warnings: Vec::new(),
        };
        info!("the image's own init stays PID 1 ({}): keep mode", look::init_name());
        if let Err(error) = keep.server.listen_unix(Path::new(control::SOCKET), reactor) {
            keep.warn(error.to_string());
        }
        keep.serve_vsock(reactor);
        keep
    }

    fn warn(&mut self, warning: String) {
        warn!("{warning}");
        self.warnings.push(warning);
    }

    /// Listens for the host, now or as soon as the device is there; that is tried again whenever we are awake anyway.
    pub(crate) fn serve_vsock(&mut self, reactor: &Reactor) {
        if !self.wants_vsock || self.server.listens_on_vsock() {
            return;
        }
        let Err(error) = self.server.listen_vsock(control::VSOCK_PORT, reactor) else {
            if self.vsock_missing {
                info!("the vsock device has come: the host can ask on port {}", control::VSOCK_PORT);
            }
            return;
        };
        if !std::mem::replace(&mut self.vsock_missing, true) {
            self.warn(format!("{error}; served when the device comes"));
        }
    }

    pub(crate) fn deadline(&self, now: Moment) -> Option<Moment> {
        let looks = self.goals.iter().map(|goal| match goal.wanted {
            Wanted::OtherRelay { .. } => now + LOOK_AGAIN,
            _ => goal.until,
        });
        looks.chain(self.server.deadline()).min()
    }

    pub(crate) fn tick(&mut self, now: Moment) {
        self.server.tick(now);
    }

    pub(crate) fn ready(&mut self, ready: Ready, reactor: &Reactor) -> Vec<Call> {
        self.server.ready(ready, reactor, clock::now())
    }

    /// Answers what can be answered; gives back the order for envd, whose answer waits, and further calls of this client.
    pub(crate) fn call(
        &mut self,
        call: &Call,
        envd: &EnvdStatus,
        reactor: &Reactor,
    ) -> (Option<Order>, Vec<Call>) {
        let (order, reply) = self.judge(call, envd);
        let calls = reply.map(|reply| self.server.answer(call.client, &reply, reactor, clock::now()));
        (order, calls.unwrap_or_default())
    }

    fn judge(&mut self, call: &Call, envd: &EnvdStatus) -> (Option<Order>, Option<Reply>) {
        let (order, service) = match &call.op {
            Op::Status => return (None, Some(Reply::Status(Box::new(self.status(envd))))),
            Op::Shutdown { kind } => return (None, Some(machine_end::ask(*kind))),
            Op::Logs { .. } => return (None, Some(error("failed", "the log is served by the transport"))),
            Op::Start { service, .. } => (Order::Start, service),
            Op::Stop { service, .. } => (Order::Stop, service),
            Op::Restart { service, .. } => (Order::Restart, service),
        };
        match service.strip_suffix(".service").unwrap_or(service) {
            "envd" => self.order_envd(call.client, order, envd),
            "relay" | "envd-init-relay" if order == Order::Restart => (None, self.restart_relay(call.client)),
            name @ ("relay" | "envd-init-relay") => {
                let text = format!(
                    "{} starts and stops {name}: ask it inside the guest for envd-init-relay",
                    look::init_name()
                );
                (None, Some(error("unsupported", text)))
            }
            name => {
                let text = format!(
                    "{name}: in keep mode services other than envd and relay are {}'s own",
                    look::init_name()
                );
                (None, Some(error("unknown_service", text)))
            }
        }
    }

    fn order_envd(
        &mut self,
        client: ClientId,
        order: Order,
        envd: &EnvdStatus,
    ) -> (Option<Order>, Option<Reply>) {
        let since = clock::now();
        let stays = envd.pid.is_some() && envd.state != State::Stopping.as_str();
        if order == Order::Start && stays {
            return (None, Some(Reply::Done));
        }
        let wanted = match order {
            Order::Stop => Wanted::EnvdStopped { old: envd.pid },
            Order::Start | Order::Restart => Wanted::EnvdStarted { since },
        };
        self.goals.push(Goal { client, wanted, until: since + GOAL_BOUND });
        (Some(order), None)
    }

    fn restart_relay(&mut self, client: ClientId) -> Option<Reply> {
        let old = look::relay_pid();
        if let Some(pid) = old {
            // Whoever runs the relay starts it again; TERM lets open connections end.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        self.goals.push(Goal {
            client,
            wanted: Wanted::OtherRelay { old },
            until: clock::now() + GOAL_BOUND,
        });
        None
    }

    /// Answers the orders whose goals are reached or missed; gives back what their clients ask next.
    pub(crate) fn settle(&mut self, envd: &EnvdStatus, reactor: &Reactor) -> Vec<Call> {
        let now = clock::now();
        let mut calls = Vec::new();
        let goals = std::mem::take(&mut self.goals);
        for goal in goals {
            match outcome(&goal, envd, now) {
                Some(reply) => calls.extend(self.server.answer(goal.client, &reply, reactor, now)),
                None => self.goals.push(goal),
            }
        }
        calls
    }

    /// Takes down a death, without its last lines: those are in the log.
    pub(crate) fn died(&mut self, report: &ExitReport) {
        if self.deaths.len() == TALLY {
            self.deaths.remove(0);
        }
        self.deaths.push(ExitReport { last_lines: Vec::new(), ..report.clone() });
    }

    /// Takes down the stages of the first start, and prints the line for machines once envd is healthy.
    pub(crate) fn healthy(&mut self, envd: &EnvdStatus) {
        if self.stages.iter().any(|stage| stage.name == "envd_healthy") {
            return;
        }
        let mut begin = self.stages.last().map_or(0, |stage| stage.end_ns);
        let ends = [
            ("envd_exec", envd.exec_ns),
            ("envd_listening", envd.listening_ns),
            ("envd_healthy", envd.healthy_ns),
        ];
        for (name, end) in ends {
            let Some(end) = end else { continue };
            self.stages.push(stage(name, begin, end));
            begin = end;
        }
        let line = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "mode": Mode::Keep, "stages": self.stages, "warnings": self.warnings.len(),
        });
        log::machine("boot", &line.to_string());
        let kept = serde_json::to_vec(&self.stages).unwrap_or_default();
        if let Err(why) = std::fs::write(STAGES, kept) {
            self.warn(format!("cannot keep the boot's stages in {STAGES}: {why}"));
        }
    }

    fn status(&self, envd: &EnvdStatus) -> Status {
        let uname = nix::sys::utsname::uname().ok();
        let text = |field: Option<&std::ffi::OsStr>| field.unwrap_or_default().to_string_lossy().into_owned();
        Status {
            mode: Mode::Keep,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: text(uname.as_ref().map(nix::sys::utsname::UtsName::release)),
            hostname: text(uname.as_ref().map(nix::sys::utsname::UtsName::nodename)),
            now_ns: nanos(clock::now()),
            stages: self.stages.clone(),
            network: look::network(&self.network),
            services: vec![envd_service(envd), relay_service()],
            envd: Some(envd.clone()),
            relay: RelayStatus::last_written(),
            console_dropped_bytes: log::dropped_bytes(),
            warnings: self.warnings.clone(),
            deaths: self.deaths.clone(),
        }
    }
}

fn outcome(goal: &Goal, envd: &EnvdStatus, now: Moment) -> Option<Reply> {
    let reached = match goal.wanted {
        Wanted::EnvdStarted { since } => {
            envd.pid.is_some() && envd.exec_ns.is_some_and(|at| at >= nanos(since))
        }
        Wanted::EnvdStopped { old } => envd.pid.is_none() || envd.pid != old,
        Wanted::OtherRelay { old } => look::relay_pid().is_some_and(|pid| Some(pid) != old),
    };
    let late = || match goal.wanted {
        Wanted::EnvdStarted { .. } => format!("envd was not started in time; it is {}", envd.state),
        Wanted::EnvdStopped { .. } => format!("envd is still {}", envd.state),
        Wanted::OtherRelay { .. } => format!("{} has not started the relay again", look::init_name()),
    };
    if reached {
        return Some(Reply::Done);
    }
    (goal.until <= now).then(|| error("failed", late()))
}

/// The stages of this boot, where an earlier wrapper has seen them: a later start of ours is no stage of it.
fn earlier_stages() -> Option<Vec<Stage>> {
    json::from_slice(&std::fs::read(STAGES).ok()?).ok()
}

fn stage(name: &str, begin_ns: u64, end_ns: u64) -> Stage {
    Stage { name: name.to_owned(), begin_ns, end_ns, warning: None }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

fn envd_service(envd: &EnvdStatus) -> ServiceStatus {
    let since =
        [envd.healthy_ns, envd.listening_ns, envd.exec_ns, envd.last_exit.as_ref().map(|exit| exit.at_ns)];
    ServiceStatus {
        name: "envd".to_owned(),
        description: String::new(),
        state: envd.state.clone(),
        enabled: true,
        pid: envd.pid,
        restarts: envd.restarts,
        since_ns: since.into_iter().flatten().next().unwrap_or(0),
        memory_bytes: look::own_cgroup_memory(),
        last_exit: envd.last_exit.clone(),
    }
}

fn relay_service() -> ServiceStatus {
    let pid = look::relay_pid();
    ServiceStatus {
        name: "relay".to_owned(),
        description: String::new(),
        state: if pid.is_some() { "running" } else { "stopped" }.to_owned(),
        enabled: true,
        pid,
        restarts: 0,
        since_ns: pid.and_then(look::started_ns).unwrap_or(0),
        memory_bytes: pid.and_then(look::resident_bytes),
        last_exit: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envd(pid: Option<i32>, exec_ns: Option<u64>) -> EnvdStatus {
        EnvdStatus { pid, exec_ns, ..crate::supervisor::unborn() }
    }

    /// A restart is answered by the new process only, never by the one that was to be replaced.
    #[test]
    fn a_restart_is_done_when_a_later_process_was_executed() {
        let since = Moment::from_secs(10);
        let goal = |client| Goal { client, wanted: Wanted::EnvdStarted { since }, until: since + GOAL_BOUND };
        let client = client();
        assert!(outcome(&goal(client), &envd(Some(5), Some(nanos(since) - 1)), since).is_none());
        assert!(outcome(&goal(client), &envd(None, None), since).is_none());
        let done = outcome(&goal(client), &envd(Some(6), Some(nanos(since) + 1)), since);
        assert_eq!(done, Some(Reply::Done));
        let late = outcome(&goal(client), &envd(None, None), since + GOAL_BOUND);
        assert!(matches!(late, Some(Reply::Error { .. })));
    }

    /// A real client's number, from a server of its own.
    fn client() -> ClientId {
        use guest::control::{Request, frame};
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let reactor = Reactor::new(&[]).unwrap();
        let mut server = Server::new(TOKENS, folder.path());
        server.listen_unix(&folder.path().join("s"), &reactor).unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect(folder.path().join("s")).unwrap();
        stream.write_all(&frame::encode(&Request::new(Op::Status)).unwrap()).unwrap();
        loop {
            for event in reactor.wait(Some(Moment::ZERO)).unwrap() {
                if let guest::reactor::Event::Io(ready) = event
                    && let Some(call) = server.ready(ready, &reactor, clock::now()).pop()
                {
                    return call.client;
                }
            }
        }
    }
}
