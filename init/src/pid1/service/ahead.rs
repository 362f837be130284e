//! A service that is executed before PID 1 knows more of it than what is compiled in: envd's wrapper, which waits at its [gate](super::gate)
//! while PID 1 makes what envd needs, and reads on another processor what its own start needs.
//!
//! | state | left by |
//! |---|---|
//! | held | its files are read: the service is as it was executed, and waits for nobody → passed; else, taken over or dropped |
//! | passed | taken over |
//! | taken over | it is its [`Unit`](super::Unit)'s process, which opens the gate where that is not done |
//! | dropped | an owner's files say otherwise, so the service starts in its turn, and this one ends at its gate |

use std::collections::BTreeMap;

use guest::{
    cgroup::Tree,
    service::{Service, builtin},
    spawn::{self, Program, Spawned},
};
use nix::sys::signal::{Signal, kill};

use super::{
    gate::{self, Passed},
    manager::missing,
    program,
};

/// To be dropped before anything is reaped.
#[derive(Debug)]
pub(in crate::pid1) struct Ahead {
    service: Service,
    process: Option<Process>,
}

/// The process, and how it has passed its gate where it has.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) spawned: Spawned,
    pub(super) passed: Option<Passed>,
}

impl Ahead {
    /// `None` where that fails: the service's start in its turn meets the same, and tells it.
    pub(in crate::pid1) fn execute(name: &str) -> Option<Self> {
        let service = builtin::service(name)?;
        let program = program::program(&service, &Tree::default()).ok()?;
        let spawned = spawn::spawn(&Program { cgroup: None, held: true, ..program }).ok()?;
        Some(Self { service, process: Some(Process { spawned, passed: None }) })
    }

    /// Lets it go on, if it is as its files have it, and nobody that it waits for is to run on this machine.
    pub(in crate::pid1) fn go_on(&mut self, services: &BTreeMap<String, Service>, tree: &Tree) {
        let Some(service) = services.get(&self.service.name) else { return };
        let runs =
            |name: &String| services.get(name).is_some_and(|other| other.enabled && missing(other).is_none());
        if !self.is_of(service) || service.after.iter().any(runs) {
            return;
        }
        let Some(process) = &mut self.process else { return };
        if let Some(gate) = process.spawned.gate.take() {
            process.passed = Some(Passed::default()); // also where the next line is cut short
            process.passed = Some(gate::open(&gate, process.spawned.pid, service, tree));
        }
    }

    /// Whether this is what would be executed for `service`. Whom it waits for is nothing of its process.
    fn is_of(&mut self, service: &Service) -> bool {
        self.service.after.clone_from(&service.after);
        self.service == *service
    }

    /// The process, if it is just what `service` would be.
    pub(super) fn hand_over_to(&mut self, service: &Service) -> Option<Process> {
        if self.is_of(service) { self.process.take() } else { None }
    }
}

impl Drop for Ahead {
    /// At its gate it has begun nothing; behind it, where a fault has come between, its envd ends with it. It is reaped like any orphan.
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            let _ = kill(process.spawned.pid, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    fn shipped() -> Service {
        builtin::service("envd").unwrap()
    }

    /// `cat` ends at its gate's end, and says what came through it.
    fn ahead() -> Ahead {
        let program = Program { path: "/bin/cat".into(), held: true, ..Program::default() };
        let spawned = spawn::spawn(&program).unwrap();
        Ahead { service: shipped(), process: Some(Process { spawned, passed: None }) }
    }

    #[test]
    fn what_was_executed_is_the_process_of_just_the_service_that_it_was_executed_for() {
        let mut ahead = ahead();
        assert!(ahead.hand_over_to(&Service { nice: 1, ..shipped() }).is_none());
        let process = ahead.hand_over_to(&shipped()).unwrap();
        drop(ahead);
        let pid = process.spawned.pid;
        drop(process.spawned.gate);
        assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
    }

    #[test]
    fn where_nobody_takes_it_over_it_ends_at_its_gate() {
        let ahead = ahead();
        let pid = ahead.process.as_ref().unwrap().spawned.pid;
        drop(ahead);
        let ended = waitpid(pid, None).unwrap();
        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{ended:?}");
    }

    /// Whoever it waits for may not be on this machine; a path that everybody has stands for one who is.
    #[test]
    fn it_goes_on_where_it_is_what_its_files_say_and_waits_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::new(folder.path());
        let passes = |envd: Service, waits_for: &str| {
            let certificates = Service { only_if: vec![waits_for.into()], ..Service::default() };
            let services = [("envd".to_owned(), envd), ("seed-certs".to_owned(), certificates)];
            let mut ahead = ahead();
            ahead.go_on(&services.into(), &tree);
            ahead.process.as_ref().unwrap().passed.is_some()
        };
        assert!(!passes(shipped(), "/"));
        assert!(!passes(Service { nice: 1, ..shipped() }, "/no/such"));
        assert!(!folder.path().join("envd").exists());
        assert!(passes(Service { after: Vec::new(), ..shipped() }, "/"), "an owner has turned it off");
        fs::remove_dir_all(folder.path().join("envd")).unwrap();
        assert!(passes(shipped(), "/no/such"));
        assert!(folder.path().join("envd").is_dir());
    }
}
