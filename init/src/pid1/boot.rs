//! The boot, from the first instruction to the loop.
//!
//! Nothing stands between the start and envd's exec that envd does not need: /dev, /proc, /run and the other mounts, the
//! cgroups' controllers, and what envd's service waits for. That is compiled in, so no file is read before it but one that
//! an owner has put in its place; the console is opened afterwards, and says then what has waited. envd's wrapper is executed
//! first of all, [ahead](Ahead) of the rest, and held until all that is there: two processors do the two at the same time.
//! Everything else follows in [`STEPS`], one at a time and only while nothing else is to be done, so that a service which envd
//! waits for is reaped, and envd started, between two of them. The other services come last, when envd is ready: however many they
//! are, they do not take the processors away from it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use guest::{
    cgroup::{ENVD, INIT_SCOPE, SLICE, Tree},
    clock::{Moment, now},
    cmdline::Cmdline,
    config, log,
    reactor::Reactor,
    service::{
        Readiness, Service, check,
        load::{self, Loaded},
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tracing::{debug, error, info};

use super::{
    Faults, cgroups,
    kernel::KernelLog,
    machine::{Machine, SIGNALS, Step},
    mounts,
    network::Network,
    reap,
    service::Ahead,
    setup,
    stages::Stages,
};

pub(super) const ENVD_SERVICE: &str = "envd";

/// What follows envd's start, in this order.
pub(super) const STEPS: [Step; 16] = [
    ("the console", Machine::open_console),
    ("the configuration", Machine::configure),
    ("the network", Machine::start_network),
    ("the cgroups", Machine::lay_out_cgroups),
    ("the relay", Machine::start_relay),
    ("the control socket", Machine::open_control),
    ("the kernel's log", Machine::follow_kernel),
    ("hostname", |machine| machine.set_up("hostname", hostname)),
    ("core_pattern", |machine| {
        machine
            .set_up("core_pattern", |machine| setup::sysctl::core_pattern(&machine.config.boot.core_pattern));
    }),
    ("sysctl", |machine| {
        machine.set_up("sysctl", |machine| setup::sysctl::apply(Path::new("/"), &machine.config.boot));
    }),
    ("further mounts", |machine| machine.set_up("further mounts", |_| mounts::later())),
    ("machine-id", |machine| machine.set_up("machine-id", |_| setup::names::machine_id(Path::new("/")))),
    ("names", |machine| machine.set_up("names", names)),
    ("devices", |machine| machine.set_up("devices", |_| setup::devices())),
    ("random", |machine| machine.set_up("random", |_| setup::random::seed())),
    ("clock", |machine| machine.set_up("clock", clock)),
];

/// After so many faults only what is needed to reach envd and this machine is done: one of the other steps may be the cause.
const TOO_MANY_FAULTS: u8 = 3;
const STEPS_AFTER_FAULTS: [Step; 4] = [
    ("the console", Machine::open_console),
    ("the cgroups", Machine::lay_out_cgroups),
    ("the relay", Machine::start_relay),
    ("the control socket", Machine::open_control),
];
/// What a run that ended in a fault has left is dead after this in any case.
const LEFTOVERS: Duration = Duration::from_secs(3);

/// Starts envd, and leaves the rest for the loop. `faults` tells how often this process has had to be executed anew of late:
/// then what the run before has left is ended first.
pub(super) fn boot(faults: &Faults) -> Machine {
    let begin = now();
    let early = mounts::first();
    own_stdio();
    let limits = super::guarded("the limits", setup::limits).unwrap_or_default(); // which services inherit
    let (tree, mut stages) = (Tree::default(), Stages::default());
    let mut ahead = if faults.count == 0 { execute_ahead(&mut stages) } else { None };
    log::begin("init");
    if faults.count > 0 {
        super::guarded("ending the last run", || after_a_fault(&tree, &mut stages, faults));
    }
    stages.warn_all(limits);
    stages.step_since(begin, "mounts", || mounts::needed(&early));
    stages.step("cgroups", || cgroups::first(&tree));
    let services =
        super::guarded("reading envd's definition", envd_and_what_it_waits_for).unwrap_or_default();
    if let Some(ahead) = &mut ahead {
        super::guarded("letting envd start", || ahead.go_on(&services, &tree));
    }
    let mut machine = Machine::new(reactor(), tree, stages, STEPS.to_vec());
    if faults.count >= TOO_MANY_FAULTS {
        machine.steps = STEPS_AFTER_FAULTS.into();
        machine.services_due = None;
    }
    machine.start_envd(services, ahead);
    machine
}

/// What the kernel or an initramfs has left open as 0 to 2 is replaced: nothing is ever read or written there.
fn own_stdio() {
    use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
    let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") else { return };
    let _ = dup2_stdin(&null).and(dup2_stdout(&null)).and(dup2_stderr(&null)); // what was there does as well
}

/// envd's wrapper, which is busy with its own start while PID 1 makes what envd needs.
fn execute_ahead(stages: &mut Stages) -> Option<Ahead> {
    let begin = now();
    let ahead = super::guarded("executing envd's wrapper", || Ahead::execute(ENVD_SERVICE)).flatten();
    stages.add("wrapper", begin, now(), None);
    ahead
}

/// As the owner's files have it. What is wrong with them is told with all others'.
fn envd_and_what_it_waits_for() -> BTreeMap<String, Service> {
    let Loaded { mut services, .. } =
        load::chain(Path::new(load::SHIPPED), Path::new(load::OWN), ENVD_SERVICE);
    check::untangle(&mut services);
    services
}

/// Without it there is nothing to do but try again.
fn reactor() -> Reactor {
    let mut told = false;
    loop {
        match Reactor::with_signals(&SIGNALS) {
            Ok(reactor) => return reactor,
            Err(why) if !told => error!("{why}; trying again"),
            Err(_) => {}
        }
        told = true;
        std::thread::sleep(super::AFTER_A_FAULT);
    }
}

/// Services of a run that ended in a fault are nobody's: they are ended before they would run twice.
fn after_a_fault(tree: &Tree, stages: &mut Stages, &Faults { count: faults, signal }: &Faults) {
    let _ = nix::sys::prctl::set_name(c"init"); // executed by another path, it was named after that
    log::reopen();
    let signal = reap::signal_name(signal);
    error!("init was executed anew after {signal} (fault {faults} of late); its services start again");
    if faults >= TOO_MANY_FAULTS {
        let left = "it starts envd and the relay and answers envdctl, and leaves out configuration, network and the rest";
        stages.warn(format!("init has failed {faults} times of late: {left}"));
    }
    std::thread::sleep(super::AFTER_A_FAULT * u32::from(faults));
    let until = now() + LEFTOVERS;
    while end_leftovers(tree) && now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills what is left in the cgroups of services, and our own programs wherever they are. False: nobody was left.
fn end_leftovers(tree: &Tree) -> bool {
    let _ = tree.kill(ENVD).and(tree.kill(SLICE));
    let itself = fs::read_link("/proc/self/exe").ok();
    let ours = |pid: &i32| itself.is_some() && fs::read_link(format!("/proc/{pid}/exe")).ok() == itself;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut left: Vec<i32> = numbers.filter(|pid| *pid > 1).filter(ours).collect();
    left.extend(tree.processes(INIT_SCOPE).into_iter().filter(|pid| *pid > 1));
    for pid in &left {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    while let Ok(Some(_)) = guest::sys::reap(None) {}
    !left.is_empty() || !tree.processes(ENVD).is_empty()
}

impl Machine {
    /// What was executed ahead becomes envd's service's process; what is not there yet starts.
    fn start_envd(&mut self, services: BTreeMap<String, Service>, ahead: Option<Ahead>) {
        super::guarded("starting envd", || {
            let begin = now();
            // The wrapper has to tell that envd is healthy, which takes longer than this; another one may be ready at once.
            let tells = |service: &Service| service.readiness == Readiness::Notify;
            if services.values().any(|service| service.name != ENVD_SERVICE && tells(service)) {
                self.open_notify();
            }
            self.services.add(services);
            let (services, world) = self.split();
            if let Some(ahead) = ahead {
                services.take_over(ahead, world);
            }
            services.pump(world);
            self.stages.add("envd_spawn", begin, now(), None);
        });
        super::guarded("the notify socket", || self.open_notify());
    }

    fn open_console(&mut self) {
        let begin = now();
        log::reopen();
        let path =
            || log::console_path().unwrap_or_else(|| "no console: nothing can be said here".to_owned());
        let console = path();
        info!("envd-init {} on {console}", env!("CARGO_PKG_VERSION"));
        if path() != console {
            info!("the console is {}, since {console} takes nothing", path());
        }
        self.stages.add("console", begin, now(), None);
        let _ = nix::sys::reboot::set_cad_enabled(false); // ctrl-alt-del becomes SIGINT
    }

    fn configure(&mut self) {
        let begin = now();
        self.cmdline = Cmdline::of_this_machine();
        let config = config::load(Path::new(config::PATH), &self.cmdline);
        log::set_debug(config.value.log.debug);
        let first = config.problems.first().cloned();
        for problem in config.problems {
            self.stages.warn(problem);
        }
        self.config = config.value;
        self.services.let_envd_take(self.config.envd.stop_timeout_ms);
        self.network = Network::new(&self.cmdline, &self.config.network);
        self.stages.add("configuration", begin, now(), first);
    }

    fn lay_out_cgroups(&mut self) {
        for warning in cgroups::later(&self.tree) {
            self.stages.warn(warning);
        }
    }

    /// All the others. Mistakes in their files are warnings here; what can run, runs.
    pub(super) fn start_services(&mut self) {
        let begin = now();
        let Loaded { mut services, problems } = load::load(Path::new(load::SHIPPED), Path::new(load::OWN));
        let wrong = check::check(&services, &|path: &Path| path.exists());
        for problem in problems.into_iter().chain(wrong) {
            self.stages.warn(problem);
        }
        check::untangle(&mut services);
        self.services.add(services);
        let (services, world) = self.split();
        services.pump(world);
        self.watch_for_restores();
        self.stages.add("services", begin, now(), None);
    }

    fn start_relay(&mut self) {
        let Loaded { mut services, .. } =
            load::chain(Path::new(load::SHIPPED), Path::new(load::OWN), "relay");
        check::untangle(&mut services);
        self.services.add(services);
    }

    fn open_control(&mut self) {
        for warning in self.control.open(self.config.control.vsock, &self.reactor) {
            self.stages.warn(warning);
        }
    }

    /// Where it may not be read (in a container) nothing is missing that this machine needs.
    fn follow_kernel(&mut self) {
        match KernelLog::follow(&self.reactor) {
            Ok(log) => self.kernel = Some(log),
            Err(error) => debug!("the kernel's log cannot be followed: {error}"),
        }
    }

    /// One part of the stage `setup`: what is degraded is named.
    fn set_up(&mut self, name: &str, part: fn(&Self) -> Vec<String>) {
        let begin = now();
        let warnings =
            super::guarded(name, || part(self)).unwrap_or_else(|| vec![format!("{name} was cut short")]);
        let first = warnings.first().cloned();
        for warning in warnings {
            self.stages.warn(warning);
        }
        self.stages.extend("setup", begin, now(), first);
    }

    /// PID 1 and envd's wrapper leave the root's cgroup for their own once envd runs: the kernel holds every fork up while it
    /// moves a process, for milliseconds, and envd forks while it starts. A wrapper that was held for longer follows.
    pub(super) fn enter_scope(&mut self) {
        if self.settles_at.take().is_some() {
            self.stages.warn_all(cgroups::enter(&self.tree));
        }
        let unsettled = self.services.settle(&self.tree);
        self.stages.warn_all(unsettled);
    }
}

fn hostname(machine: &Machine) -> Vec<String> {
    let (configured, from_ip) = (machine.config.boot.hostname.as_deref(), &machine.network.plan().hostname);
    setup::names::hostname(configured, from_ip.as_deref())
}

fn names(machine: &Machine) -> Vec<String> {
    let root = Path::new("/");
    let mut warnings = setup::names::hosts(root);
    let plan = machine.network.plan();
    if plan.manage {
        warnings.extend(setup::names::resolver(root, &plan.dns));
    }
    warnings
}

fn clock(machine: &Machine) -> Vec<String> {
    if machine.config.boot.ptp_clock { setup::clock::set_from_ptp() } else { Vec::new() }
}

/// When the services start though envd is not ready yet. They read, as they start, the settings, names and identity that the steps
/// have made.
pub(super) fn services_due(begin: Moment) -> Moment {
    begin + Duration::from_secs(2)
}

/// When PID 1 goes into its cgroup though envd is not healthy yet.
pub(super) fn settling(begin: Moment) -> Moment {
    begin + Duration::from_secs(10)
}
