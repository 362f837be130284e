//! What the control protocol asks of PID 1: the unix socket for root, vsock for the host.
//!
//! vsock may come late (its driver is a module in some kernels). Its device node tells: kernel events are listened to while
//! the port is not served, and only then.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use guest::{
    clock::{Moment, now},
    control::{
        self, EnvdStatus, Mode, Op, RelayStatus, Reply, ShutdownKind, Status,
        server::{Call, ClientId, Server, error},
    },
    log,
    reactor::{Interest, Reactor, Ready, Watched},
    ring,
    service::{Readiness, Service},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tracing::info;

use super::{
    machine::{Machine, kind_name, tokens},
    service::{StartError, Unit},
};
use crate::service_name;

/// An order that is not carried out by then is answered with an error, where the service's own bounds leave it no longer.
const GOAL_BOUND: Duration = Duration::from_secs(30);
/// What the end of a run may take beyond its bound.
const AFTER_KILL: Duration = Duration::from_secs(15);
/// Orders whose answers wait; each holds a client, and there must be some left for those that only ask.
const MAX_GOALS: usize = 24;

#[derive(Debug)]
pub(super) struct Control {
    server: Server,
    uevents: Option<Watched>,
    goals: Vec<Goal>,
}

/// An order whose answer waits for what it leads to.
#[derive(Debug)]
struct Goal {
    client: ClientId,
    service: String,
    wanted: Wanted,
    /// `None`: a service that may take as long as it likes to get ready, and so may the answer.
    until: Option<Moment>,
}

#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// This run is ready, or one after it.
    Started {
        run: u64,
        since: Moment,
    },
    Stopped,
}

impl Control {
    pub(super) fn new() -> Self {
        Self { server: Server::new(tokens::CONTROL, ring::FOLDER), uevents: None, goals: Vec::new() }
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        self.goals.iter().filter_map(|goal| goal.until).chain(self.server.deadline()).min()
    }

    pub(super) fn tick(&mut self, now: Moment) {
        self.server.tick(now);
    }

    /// Opens both doors; what does not open is said.
    pub(super) fn open(&mut self, vsock: bool, reactor: &Reactor) -> Vec<String> {
        let mut warnings = Vec::new();
        warnings.extend(
            self.server.listen_unix(Path::new(control::SOCKET), reactor).err().map(|e| e.to_string()),
        );
        if vsock && let Err(error) = self.server.listen_vsock(control::VSOCK_PORT, reactor) {
            warnings.push(format!("{error}; served when the device comes"));
            self.await_device(reactor);
        }
        warnings
    }

    /// Listens to the kernel's device events.
    fn await_device(&mut self, reactor: &Reactor) {
        let open = || -> nix::Result<OwnedFd> {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Datagram,
                flags,
                SockProtocol::NetlinkKObjectUEvent,
            )?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
            Ok(fd)
        };
        self.uevents = open().ok().and_then(|fd| reactor.watch(fd, tokens::UEVENT, Interest::Read).ok());
        self.try_vsock(reactor); // it may have come in between
    }

    fn try_vsock(&mut self, reactor: &Reactor) {
        if self.server.listen_vsock(control::VSOCK_PORT, reactor).is_ok() {
            self.uevents = None;
            info!("the vsock device has come: the host can ask on port {}", control::VSOCK_PORT);
        }
    }

    fn device_changed(&mut self, reactor: &Reactor) {
        let Some(fd) = &self.uevents else { return };
        let mut buffer = [0; 4096];
        while recv(fd.as_fd().as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok_and(|count| count > 0) {
        }
        self.try_vsock(reactor);
    }
}

impl Machine {
    pub(super) fn device_changed(&mut self) {
        self.control.device_changed(&self.reactor);
    }

    pub(super) fn control_ready(&mut self, ready: Ready) {
        let calls = self.control.server.ready(ready, &self.reactor, now());
        self.answer_calls(calls);
    }

    fn answer_calls(&mut self, mut calls: Vec<Call>) {
        while let Some(call) = calls.pop() {
            if let Some(reply) = self.call(&call) {
                calls.extend(self.control.server.answer(call.client, &reply, &self.reactor, now()));
            }
        }
    }

    /// `None`: the answer comes when the goal is reached.
    fn call(&mut self, call: &Call) -> Option<Reply> {
        match &call.op {
            Op::Status => Some(Reply::Status(Box::new(self.status()))),
            Op::Start { service, no_block } => self.order(call.client, service, Order::Start, *no_block),
            Op::Stop { service, no_block } => self.order(call.client, service, Order::Stop, *no_block),
            Op::Restart { service, no_block } => self.order(call.client, service, Order::Restart, *no_block),
            Op::Shutdown { kind } => Some(self.ask_shutdown(*kind)),
            Op::Logs { .. } => Some(error("failed", "the log is served by the transport")),
        }
    }

    /// The answer goes out before the machine goes down: the first steps of a shutdown take longer than that.
    fn ask_shutdown(&mut self, kind: ShutdownKind) -> Reply {
        self.begin_shutdown(kind, &format!("{} asked for over the control socket", kind_name(kind)));
        Reply::Done
    }

    fn order(&mut self, client: ClientId, service: &str, order: Order, no_block: bool) -> Option<Reply> {
        if self.shutdown.is_some() && !matches!(order, Order::Stop) {
            return Some(error("shutting_down", "the machine is going down"));
        }
        if self.control.goals.len() >= MAX_GOALS && !no_block {
            return Some(error("busy", format!("{MAX_GOALS} orders are waiting for their services already")));
        }
        // An order is about services that are known, and what they wait for.
        if self.may_start_services() {
            self.begin_services();
        }
        let names = service_name::candidates(service);
        if !matches!(order, Order::Stop) {
            names.iter().for_each(|name| self.services.read_anew(name));
            self.watch_for_restores();
        }
        let name =
            names.iter().find(|name| self.services.find(name).is_some()).map_or(service, String::as_str);
        let run = self.services.find(name).map_or(0, |unit| match order {
            Order::Restart => unit.runs().begun + 1,
            _ => unit.run_of_a_start(),
        });
        let (services, world) = self.split();
        let since = world.now;
        let outcome = match order {
            Order::Start => services.start(name, world),
            Order::Stop => services.stop(name, world),
            Order::Restart => services.restart(name, world),
        };
        let wanted = match (order, outcome) {
            (_, Err(why)) => return Some(refusal(&why)),
            (_, Ok(())) if no_block => return Some(Reply::Done),
            (Order::Stop, Ok(())) => Wanted::Stopped,
            (_, Ok(())) => Wanted::Started { run, since },
        };
        let until = self.services.find(name).and_then(|unit| bound(&unit.service, wanted));
        let goal = Goal { client, service: name.to_owned(), wanted, until: until.map(|bound| since + bound) };
        self.control.goals.push(goal);
        None
    }

    /// Answers the orders whose goals are reached, missed or given up.
    pub(super) fn control_goals(&mut self) {
        let mut at = 0;
        while at < self.control.goals.len() {
            let goal = &self.control.goals[at];
            let answer = if self.control.server.has(goal.client) {
                self.outcome(goal)
            } else {
                Some(Reply::Done) // nobody waits for it any more
            };
            let Some(reply) = answer else {
                at += 1;
                continue;
            };
            let goal = self.control.goals.swap_remove(at);
            let calls = self.control.server.answer(goal.client, &reply, &self.reactor, now());
            self.answer_calls(calls);
        }
    }

    fn outcome(&self, goal: &Goal) -> Option<Reply> {
        let name = &goal.service;
        let Some(unit) = self.services.find(name) else { return Some(error("failed", "it is gone")) };
        let outcome = match goal.wanted {
            Wanted::Stopped => unit
                .is_down()
                .then(|| unit.left_alive(&self.tree).map_or(Reply::Done, |who| error("failed", who))),
            Wanted::Started { run, since } => self.outcome_of_start(unit, run, since),
        };
        let late = || goal.until.is_some_and(|at| at <= now());
        outcome
            .or_else(|| late().then(|| error("failed", format!("{name} is still {}", unit.state().as_str()))))
    }

    fn outcome_of_start(&self, unit: &Unit, run: u64, since: Moment) -> Option<Reply> {
        let (name, runs) = (unit.name(), unit.runs());
        if runs.ready >= run || runs.begun >= run && name == "envd" && self.envd_started(since) {
            return Some(Reply::Done);
        }
        if runs.ended >= run {
            let not_ready = if unit.service.is_oneshot() { "" } else { "it did not get ready: " };
            return Some(error("failed", format!("{not_ready}{}", unit.end_in_words())));
        }
        let given_up = runs.begun < run && unit.is_down();
        given_up.then(|| error("failed", format!("{name} was stopped meanwhile")))
    }

    /// Whether the wrapper has told of an envd that was executed after `since`. That it is healthy is not waited for: the
    /// platform's own unit is of a type that is started once it is executed.
    fn envd_started(&self, since: Moment) -> bool {
        let since = u64::try_from(since.as_nanos()).unwrap_or(0);
        let told = self.envd.as_ref();
        told.is_some_and(|envd| envd.pid.is_some() && envd.exec_ns.is_some_and(|at| at >= since))
    }

    fn status(&self) -> Status {
        let uname = nix::sys::utsname::uname().ok();
        let text = |field: Option<&std::ffi::OsStr>| field.unwrap_or_default().to_string_lossy().into_owned();
        Status {
            mode: Mode::Native,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: text(uname.as_ref().map(nix::sys::utsname::UtsName::release)),
            hostname: text(uname.as_ref().map(nix::sys::utsname::UtsName::nodename)),
            now_ns: u64::try_from(now().as_nanos()).unwrap_or(u64::MAX),
            stages: self.stages.list().to_vec(),
            network: self.network.status().clone(),
            services: self.services.status(&self.tree),
            envd: self.envd_status(),
            relay: RelayStatus::last_written(),
            console_dropped_bytes: log::dropped_bytes(),
            warnings: self.stages.warnings().to_vec(),
            deaths: self.services.deaths(),
        }
    }

    /// What the wrapper told last; while there is no wrapper that is history.
    fn envd_status(&self) -> Option<EnvdStatus> {
        let mut envd = self.envd.clone()?;
        if self.services.find("envd").is_none_or(|unit| unit.pid().is_none()) {
            "exited".clone_into(&mut envd.state);
            envd.pid = None;
        }
        Some(envd)
    }
}

#[derive(Debug, Clone, Copy)]
enum Order {
    Start,
    Stop,
    Restart,
}

/// How long an answer may be waited for: as long as the service may take to end and to start, and no less than [`GOAL_BOUND`].
fn bound(service: &Service, wanted: Wanted) -> Option<Duration> {
    let ms = Duration::from_millis;
    let end = ms(service.stop_timeout_ms) + AFTER_KILL;
    let at_once = !service.is_oneshot() && service.readiness == Readiness::None || service.name == "envd";
    let start = match (wanted, service.start_timeout_ms) {
        (Wanted::Started { .. }, 0) if !at_once => return None,
        (Wanted::Started { .. }, bound) if !at_once => ms(bound),
        _ => Duration::ZERO,
    };
    Some(GOAL_BOUND.max(end + start))
}

fn refusal(why: &StartError) -> Reply {
    let code = match why {
        StartError::Unknown(_) => "unknown_service",
        StartError::NotHere { .. } => "failed",
    };
    error(code, why.to_string())
}
