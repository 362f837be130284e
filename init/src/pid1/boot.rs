//! The boot, from the first instruction to the loop.
//!
//! Nothing stands between the start and envd's exec that envd does not need: /dev and /proc, console, mounts, cgroups,
//! envd. Everything else follows while envd starts.

use std::{path::Path, time::Duration};

use guest::{
    cgroup::{ENVD, INIT_SCOPE, SLICE, Tree},
    clock::{Moment, now},
    cmdline::Cmdline,
    config::{self, Config},
    log,
    reactor::Reactor,
    service::{
        check,
        load::{self, Loaded},
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tracing::{error, info};

use super::{
    cgroups,
    control::Control,
    machine::{Machine, SIGNALS},
    mounts,
    network::{Network, Plan},
    service::Services,
    setup,
    stages::Stages,
};

/// Sets the machine up and starts envd and everything else. `faults` tells how often this process has had to be executed
/// anew: then what the run before has left is ended first.
pub(super) fn boot(faults: u8) -> Machine {
    let begin = now();
    let early = mounts::first();
    own_stdio();
    log::init("init");
    if faults > 0 {
        error!(
            "init was executed anew after a fault of its own (the {faults}. time); its services start again"
        );
        std::thread::sleep(super::AFTER_A_FAULT * u32::from(faults));
        end_last_run(&Tree::default());
    }
    let mut machine = prepare(begin, early);
    start_envd(&mut machine);
    super::guarded("the boot", || machine.follow_up());
    machine
}

/// What the kernel or an initramfs has left open as 0 to 2 is replaced: nothing is ever read or written there.
fn own_stdio() {
    use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
    let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") else { return };
    let _ = dup2_stdin(&null).and(dup2_stdout(&null)).and(dup2_stderr(&null)); // what was there does as well
}

/// Services of a run that ended in a fault are nobody's: they are ended, before they would run twice.
fn end_last_run(tree: &Tree) {
    let _ = tree.kill(ENVD).and(tree.kill(SLICE));
    for pid in tree.processes(INIT_SCOPE).into_iter().filter(|pid| *pid > 1) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Up to the point where services can run.
fn prepare(begin: Moment, early: Vec<String>) -> Machine {
    let mut stages = Stages::default();
    let console = log::console_path().unwrap_or_else(|| "no console: nothing can be said here".to_owned());
    info!("envd-init {} on {console}", env!("CARGO_PKG_VERSION"));
    stages.add("console", begin, now(), None);
    let cmdline = Cmdline::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    stages.step("mounts", || {
        let mut warnings = early;
        warnings.extend(mounts::needed(cmdline.flag("ro")));
        warnings
    });
    log::reopen();
    let tree = Tree::default();
    stages.step("cgroups", || cgroups::lay_out(&tree));
    let config = config::load(Path::new(config::PATH), &cmdline);
    for problem in config.problems {
        stages.warn(problem);
    }
    log::set_debug(config.value.log.debug);
    let services = load_services(&mut stages);
    assemble(stages, tree, cmdline, config.value, services)
}

/// Mistakes in the files are warnings here; what can run, runs.
fn load_services(stages: &mut Stages) -> Services {
    let Loaded { mut services, problems } = load::load(&[Path::new(load::SHIPPED), Path::new(load::OWN)]);
    for problem in problems.into_iter().chain(check::check(&services, &|path: &Path| path.exists())) {
        stages.warn(problem);
    }
    check::untangle(&mut services);
    Services::new(services)
}

fn assemble(stages: Stages, tree: Tree, cmdline: Cmdline, config: Config, services: Services) -> Machine {
    let plan = Plan::new(&cmdline, &config.network);
    let network = Network::new(plan, Duration::from_millis(config.network.link_timeout_ms));
    Machine {
        reactor: reactor(),
        tree,
        config,
        cmdline,
        stages,
        services,
        network,
        notify: None,
        control: Control::new(),
        envd: None,
        shutdown: None,
        unmounting: None,
        unmounted: false,
        childless: false,
        more_orphans: true, // what died before the signals were watched is found at the first turn
        orphans: 0,
        console_watched: false,
        boot_told: false,
    }
}

/// Without it there is nothing to do but try again.
fn reactor() -> Reactor {
    let mut told = false;
    loop {
        match Reactor::new(&SIGNALS) {
            Ok(reactor) => return reactor,
            Err(why) if !told => error!("{why}; trying again"),
            Err(_) => {}
        }
        told = true;
        std::thread::sleep(super::AFTER_A_FAULT);
    }
}

/// envd, and what it waits for; the socket by which its wrapper tells how it is comes first.
fn start_envd(machine: &mut Machine) {
    super::guarded("starting envd", || {
        let begin = now();
        if let Some(warning) = machine.open_notify() {
            machine.stages.warn(warning);
        }
        let (services, world) = machine.split();
        services.pump_only("envd", world);
        machine.stages.add("envd_spawn", begin, now(), None);
    });
}

impl Machine {
    /// Everything that envd does not wait for.
    fn follow_up(&mut self) {
        let _ = nix::sys::reboot::set_cad_enabled(false); // ctrl-alt-del becomes SIGINT
        super::guarded("the network", || self.start_network());
        let warnings = self.control.open(self.config.control.vsock, &self.reactor);
        super::control::warn_all(&warnings);
        let begin = now();
        let (services, world) = self.split();
        services.pump(world);
        self.stages.add("services", begin, now(), None);
        self.set_up();
    }

    /// Each on its own, all of them one stage: what is degraded is named.
    fn set_up(&mut self) {
        let (config, plan) = (&self.config.boot, self.network.plan());
        let root = Path::new("/");
        let steps: [(&str, &dyn Fn() -> Vec<String>); 10] = [
            ("hostname", &|| setup::names::hostname(config.hostname.as_deref(), plan.hostname.as_deref())),
            ("core_pattern", &|| setup::sysctl::core_pattern(&config.core_pattern)),
            ("sysctl", &|| setup::sysctl::apply(root, config)),
            ("further mounts", &mounts::later),
            ("machine-id", &|| setup::names::machine_id(root)),
            ("hosts", &|| setup::names::hosts(root)),
            ("resolver", &|| setup::names::resolver(root, &plan.dns)),
            ("fuse", &setup::fuse),
            ("random", &setup::random::seed),
            ("clock", &|| if config.ptp_clock { setup::clock::set_from_ptp() } else { Vec::new() }),
        ];
        self.stages.step("setup", || {
            let each = |(name, step): (&str, &dyn Fn() -> Vec<String>)| {
                super::guarded(name, step).unwrap_or_else(|| vec![format!("{name} was cut short")])
            };
            steps.into_iter().flat_map(each).collect()
        });
    }
}
