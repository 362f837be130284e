//! The machine while it runs: one loop around the reactor.

use std::{collections::VecDeque, path::Path};

use guest::{
    cgroup::Tree,
    clock::{Moment, Seconds, now},
    cmdline::Cmdline,
    config::Config,
    control::{EnvdStatus, ShutdownKind},
    json, log, notify,
    reactor::{Event, Interest, Reactor, Ready, Received},
    sys::Reaped,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tracing::{debug, info, warn};

use super::{
    boot,
    control::Control,
    finish, guarded,
    kernel::KernelLog,
    network::Network,
    notify::NotifySocket,
    reap,
    restore::ClockWatch,
    service::{Kind, Services, Unit, World},
    shutdown::{Action, Phase, Seen, Shutdown},
    stages::Stages,
};

/// Whom a descriptor belongs to, in the highest byte of its token.
pub(super) mod tokens {
    use guest::reactor::Token;

    const AREA: u32 = 56;
    pub(in crate::pid1) const UNIT: u8 = 1;
    pub(in crate::pid1) const CONTROL_AREA: u8 = 2;
    pub(in crate::pid1) const CONTROL: Token = (CONTROL_AREA as Token) << AREA;
    pub(in crate::pid1) const NOTIFY: Token = 3 << AREA;
    pub(in crate::pid1) const NETLINK: Token = 4 << AREA;
    pub(in crate::pid1) const CONSOLE: Token = 5 << AREA;
    pub(in crate::pid1) const UEVENT: Token = 6 << AREA;
    pub(in crate::pid1) const KERNEL: Token = 7 << AREA;
    pub(in crate::pid1) const CLOCK: Token = 8 << AREA;

    pub(in crate::pid1) fn unit(index: u32, kind: u8) -> Token {
        (Token::from(UNIT) << AREA) | (Token::from(index) << 8) | Token::from(kind)
    }

    pub(in crate::pid1) fn area(token: Token) -> u8 {
        (token >> AREA) as u8
    }

    pub(in crate::pid1) fn unit_of(token: Token) -> (u32, u8) {
        ((token >> 8) as u32, token as u8)
    }
}

/// What systemd's tools and hypervisors send: SIGRTMIN+3, +4 and +5, counted from the C library's first, as they count.
const REAL_TIME: [(i32, ShutdownKind); 3] =
    [(37, ShutdownKind::Halt), (38, ShutdownKind::Poweroff), (39, ShutdownKind::Reboot)];

/// Signals that mean something to PID 1, by number; all others have no effect on it.
pub(super) const SIGNALS: [i32; 8] = [
    Signal::SIGCHLD as i32,
    Signal::SIGINT as i32,
    Signal::SIGTERM as i32,
    Signal::SIGUSR1 as i32,
    Signal::SIGUSR2 as i32,
    REAL_TIME[0].0,
    REAL_TIME[1].0,
    REAL_TIME[2].0,
];

/// Turns with events in a row by which a step of the boot is put off.
const MOST_PUT_OFF: u32 = 16;

/// A step of the boot after envd's start, and its name.
pub(super) type Step = (&'static str, fn(&mut Machine));

pub(super) struct Machine {
    /// What is left of the boot.
    pub(super) steps: VecDeque<Step>,
    /// Turns in which something else was to be done than the next step.
    put_off: u32,
    /// When the services start at the latest, once no step is left; `None` once they have. They start when envd is ready.
    pub(super) services_due: Option<Moment>,
    /// When PID 1 and envd's wrapper go into their cgroups at the latest; `None` once they have.
    pub(super) settles_at: Option<Moment>,
    pub(super) reactor: Reactor,
    pub(super) tree: Tree,
    pub(super) config: Config,
    pub(super) cmdline: Cmdline,
    pub(super) stages: Stages,
    pub(super) services: Services,
    pub(super) network: Network,
    pub(super) notify: Option<NotifySocket>,
    pub(super) control: Control,
    pub(super) kernel: Option<KernelLog>,
    pub(super) clock: Option<ClockWatch>,
    pub(super) envd: Option<EnvdStatus>,
    pub(super) shutdown: Option<Shutdown>,
    pub(super) unmounting: Option<i32>,
    pub(super) unmounted: bool,
    /// There was no child at the last look.
    pub(super) childless: bool,
    /// A batch of orphans was full: there may be more.
    pub(super) more_orphans: bool,
    pub(super) orphans: u64,
    pub(super) console_watched: bool,
    pub(super) boot_told: bool,
}

impl Machine {
    /// Knows nothing yet, and has all `steps` before it.
    pub(super) fn new(reactor: Reactor, tree: Tree, stages: Stages, steps: Vec<Step>) -> Self {
        let (config, cmdline) = (Config::default(), Cmdline::default());
        Self {
            steps: steps.into(),
            put_off: 0,
            services_due: Some(boot::services_due(now())),
            settles_at: Some(boot::settling(now())),
            reactor,
            tree,
            stages,
            services: Services::default(),
            network: Network::new(&cmdline, &config.network),
            notify: None,
            control: Control::new(),
            kernel: None,
            clock: None,
            envd: None,
            shutdown: None,
            unmounting: None,
            unmounted: false,
            childless: false,
            more_orphans: true, // what died before the signals were watched is found at the first turn
            orphans: 0,
            console_watched: false,
            boot_told: false,
            config,
            cmdline,
        }
    }

    /// Sleeps until something happens, and takes it in. While there are steps of the boot left it does not sleep: where
    /// nothing has happened the next one is done.
    pub(super) fn turn(&mut self) {
        let busy = self.more_orphans || !self.steps.is_empty();
        let deadline = if busy { Some(Moment::ZERO) } else { self.deadline() };
        let events = match self.reactor.wait(deadline) {
            Ok(events) => events,
            Err(error) => {
                warn!("{error}");
                std::thread::sleep(super::AFTER_A_FAULT);
                Vec::new()
            }
        };
        let quiet = events.is_empty();
        for event in events {
            guarded("an event", || self.event(event));
        }
        self.next_step(quiet);
        guarded("reaping", || self.reap_more());
        guarded("a timer", || self.timers());
        if self.may_start_services() && (self.services_due <= Some(now()) || self.envd_is_settled()) {
            self.begin_services();
        }
        guarded("the console", || self.watch_console());
    }

    /// Does the next step of the boot, in a quiet turn; or in any, when a flood of events has put it off for long.
    fn next_step(&mut self, quiet: bool) {
        self.put_off += 1;
        if !(quiet || self.put_off > MOST_PUT_OFF) {
            return;
        }
        self.put_off = 0;
        if let Some((name, step)) = self.steps.pop_front() {
            guarded(name, || step(self));
            self.tell_boot();
        }
    }

    fn deadline(&self) -> Option<Moment> {
        let shutdown = self.shutdown.as_ref().and_then(Shutdown::deadline);
        [
            self.services.deadline(),
            self.control.deadline(),
            self.network.deadline(),
            shutdown,
            self.services_due.filter(|_| self.may_start_services()),
            self.settles_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn split(&mut self) -> (&mut Services, World<'_>) {
        (&mut self.services, World { reactor: &self.reactor, tree: &self.tree, now: now() })
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Signal(received) => self.signal(received),
            Event::Io(ready) => self.io(ready),
        }
    }

    fn io(&mut self, ready: Ready) {
        match ready.token {
            tokens::NOTIFY => self.notified(),
            tokens::NETLINK => self.network_changed(),
            tokens::CONSOLE => log::flush(),
            tokens::UEVENT => self.device_changed(),
            tokens::KERNEL => self.kernel_spoke(),
            tokens::CLOCK => self.clock_was_set(),
            token if tokens::area(token) == tokens::CONTROL_AREA => self.control_ready(ready),
            token => {
                let (index, kind) = tokens::unit_of(token);
                let (services, world) = self.split();
                services.ready(index, Kind::from_number(kind), world);
            }
        }
    }

    /// busybox's meanings and systemd's, of which INT is ctrl-alt-del. Only root can send them.
    fn signal(&mut self, received: Received) {
        let real_time = REAL_TIME.iter().find(|(number, _)| *number == received.number);
        let kind = match (received.signal(), real_time) {
            (Some(Signal::SIGCHLD), _) => {
                self.more_orphans = true;
                return;
            }
            (Some(Signal::SIGINT | Signal::SIGTERM), _) => ShutdownKind::Reboot,
            (Some(Signal::SIGUSR1), _) => ShutdownKind::Halt,
            (Some(Signal::SIGUSR2), _) => ShutdownKind::Poweroff,
            (_, Some((_, kind))) => *kind,
            _ => return,
        };
        let whom =
            if received.pid == 0 { "the kernel".to_owned() } else { format!("process {}", received.pid) };
        self.begin_shutdown(kind, &format!("{} from {whom}", reap::signal_name(received.number)));
    }

    /// Supervised processes first, then a batch of orphans.
    fn reap_more(&mut self) {
        if !self.more_orphans {
            return;
        }
        let (services, world) = self.split();
        services.reap(world);
        let batch = reap::batch();
        self.more_orphans = batch.more;
        self.childless = batch.childless;
        for death in batch.deaths {
            self.reaped(death);
        }
        let (services, world) = self.split();
        services.look_whether_drained(world);
    }

    fn reaped(&mut self, death: Reaped) {
        if self.unmounting == Some(death.pid) {
            self.unmounted = true;
            if !finish::tell_unmounted(death) {
                self.unmounting = None;
            }
            return;
        }
        self.orphans += 1;
        let (services, world) = self.split();
        services.reaped(death, world);
    }

    fn timers(&mut self) {
        let (services, world) = self.split();
        services.tick(world);
        services.pump(world);
        self.control.tick(now());
        self.network_timer();
        self.control_goals();
        self.shutdown_turn();
        if self.settles_at.is_none_or(|at| at <= now()) {
            self.enter_scope();
        }
    }

    fn notified(&mut self) {
        let messages = self.notify.as_ref().map(NotifySocket::receive).unwrap_or_default();
        for message in messages {
            for (key, value) in notify::fields(&message.bytes) {
                let (services, world) = self.split();
                let from_envd = services
                    .notified(message.pid, key, value, world)
                    .is_some_and(|unit| unit.name() == "envd");
                if from_envd && key == notify::ENVD_FIELD {
                    self.envd_changed(value);
                }
            }
        }
    }

    fn kernel_spoke(&mut self) {
        match self.kernel.as_ref().map(KernelLog::killed) {
            Some(Ok(killed)) => killed.iter().for_each(|victim| warn!("{victim}")),
            Some(Err(error)) => {
                warn!("cannot read the kernel's log: {error}; what its OOM killer does is not told any more");
                self.kernel = None;
            }
            None => {}
        }
    }

    fn envd_changed(&mut self, text: &str) {
        match json::from_slice::<EnvdStatus>(text.as_bytes()) {
            Ok(status) => {
                let known = self.envd.as_ref().and_then(|envd| envd.last_exit.as_ref());
                if let Some(death) = status.last_exit.as_ref().filter(|death| Some(*death) != known) {
                    self.services.count_death(death);
                }
                self.envd = Some(status);
            }
            Err(error) => debug!("envd-wrapper's state cannot be read: {error}"),
        }
        self.tell_boot();
    }

    /// Whether the services have not been started, and could be.
    pub(super) fn may_start_services(&self) -> bool {
        self.services_due.is_some() && self.steps.is_empty() && self.shutdown.is_none()
    }

    pub(super) fn begin_services(&mut self) {
        self.services_due = None;
        guarded("the services", || self.start_services());
        self.tell_boot();
    }

    /// Whether nobody need wait for envd any more.
    fn envd_is_settled(&self) -> bool {
        self.services.find(boot::ENVD_SERVICE).is_none_or(Unit::is_settled)
    }

    /// Once envd is healthy and nothing of the boot is left: what the boot did, for machines.
    fn tell_boot(&mut self) {
        let Some(envd) = &self.envd else { return };
        let (Some(exec), Some(healthy)) = (envd.exec_ns, envd.healthy_ns) else { return };
        if self.boot_told || !self.steps.is_empty() || self.services_due.is_some() {
            return;
        }
        self.boot_told = true;
        let at = Moment::from_nanos;
        let spawned = self.stages.end_of("envd_spawn").unwrap_or(at(exec));
        let listening = envd.listening_ns.unwrap_or(healthy);
        self.stages.add("envd_exec", spawned.min(at(exec)), at(exec), None);
        self.stages.add("envd_listening", at(exec), at(listening), None);
        self.stages.add("envd_healthy", at(listening), at(healthy), None);
        log::machine("boot", &self.stages.boot_line());
        self.enter_scope();
    }

    /// Lines that the console did not take are written when it does; only then is it watched.
    fn watch_console(&mut self) {
        let watched = self.console_watched;
        let reactor = &self.reactor;
        let wanted = log::while_blocked(|fd| match (fd, watched) {
            (Some(fd), false) => reactor.add(fd, tokens::CONSOLE, Interest::Write).is_ok(),
            (Some(_), true) => true,
            (None, _) => false,
        });
        let wanted = wanted.unwrap_or(false);
        if watched && !wanted {
            log::with_device(|fd| self.reactor.remove(fd));
        }
        self.console_watched = wanted;
    }

    /// The first request begins, the second is final.
    pub(super) fn begin_shutdown(&mut self, kind: ShutdownKind, asked_by: &str) {
        let action = if let Some(shutdown) = &mut self.shutdown {
            warn!("asked again to go down ({asked_by}): at once");
            shutdown.again(kind)
        } else {
            let timeout = std::time::Duration::from_millis(self.config.shutdown.timeout_ms);
            info!("going down for {}: {asked_by}; by {:.1} s from now", kind_name(kind), Seconds(timeout));
            let (shutdown, action) = Shutdown::begin(kind, timeout, now());
            self.shutdown = Some(shutdown);
            action
        };
        self.shut_down(action);
    }

    fn shutdown_turn(&mut self) {
        loop {
            let seen = Seen {
                services_down: self.services.all_down(),
                childless: self.childless,
                unmounted: self.unmounted,
            };
            let Some(action) = self.shutdown.as_mut().and_then(|shutdown| shutdown.turn(seen, now())) else {
                return;
            };
            self.shut_down(action);
        }
    }

    fn shut_down(&mut self, action: Action) {
        match action {
            Action::StopServices => {
                let (services, world) = self.split();
                services.stop_all(world);
            }
            Action::TermAll => {
                self.tell_late_services();
                let (services, world) = self.split();
                services.stop_the_rest(world);
                self.signal_all(Signal::SIGTERM);
                self.signal_all(Signal::SIGCONT);
            }
            Action::KillAll => self.signal_all(Signal::SIGKILL),
            Action::Unmount => match finish::start_unmounting() {
                Ok(pid) => self.unmounting = Some(pid),
                Err(why) => {
                    warn!("file systems are synced and not unmounted: {why}");
                    self.unmounted = true;
                }
            },
            Action::Reboot(kind) => self.go_down(kind),
        }
    }

    fn signal_all(&mut self, signal: Signal) {
        let none = kill(Pid::from_raw(-1), signal).is_err();
        self.more_orphans = true; // what is left is counted at the next look
        self.childless = none;
    }

    fn tell_late_services(&self) {
        let late: Vec<_> =
            self.services.status(&self.tree).into_iter().filter(|service| service.pid.is_some()).collect();
        for service in late {
            warn!("{} has not ended in its time", service.name);
        }
    }

    fn go_down(&mut self, kind: ShutdownKind) {
        if self.shutdown.as_ref().is_some_and(|shutdown| shutdown.phase() == Phase::Down) && !self.unmounted {
            warn!("file systems were not all unmounted in time");
        }
        info!("{}", kind_name(kind));
        log::flush();
        if self.unmounting.is_none() {
            finish::sync();
        }
        finish::go_down(kind, &self.cmdline);
        // The kernel refused; the next request tries again.
        self.shutdown = None;
        (self.unmounting, self.unmounted) = (None, false);
        self.services.stay_up();
    }

    /// Where it is not open yet.
    pub(super) fn open_notify(&mut self) {
        if self.notify.is_some() {
            return;
        }
        match NotifySocket::open(Path::new(notify::SOCKET), &self.reactor) {
            Ok(socket) => self.notify = Some(socket),
            Err(error) => self.stages.warn(format!("cannot open {}: {error}", notify::SOCKET)),
        }
    }
}

pub(super) fn kind_name(kind: ShutdownKind) -> &'static str {
    match kind {
        ShutdownKind::Reboot => "reboot",
        ShutdownKind::Poweroff => "power-off",
        ShutdownKind::Halt => "halt",
    }
}
