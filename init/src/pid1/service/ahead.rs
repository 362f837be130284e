//! A service that is executed before PID 1 knows more of it than what is compiled in: envd's wrapper, which waits at its gate
//! while PID 1 makes what envd needs, and reads on another processor what its own start needs.
//!
//! Where an owner's files turn out to say otherwise, what was executed is ended at its gate, and the service starts in its turn.

use guest::{
    cgroup::Tree,
    service::{Service, builtin},
    spawn::{self, Program, Spawned},
};
use nix::sys::signal::{Signal, kill};

use super::program;

/// To be dropped before anything is reaped.
#[derive(Debug)]
pub(in crate::pid1) struct Ahead {
    service: Service,
    spawned: Option<Spawned>,
}

impl Ahead {
    /// `None` where that fails: the service's start in its turn meets the same, and tells it.
    pub(in crate::pid1) fn execute(name: &str) -> Option<Self> {
        let service = builtin::service(name)?;
        let program = program::program(&service, &Tree::default()).ok()?;
        let spawned = spawn::spawn(&Program { cgroup: None, held: true, ..program }).ok()?;
        Some(Self { service, spawned: Some(spawned) })
    }

    /// The process, if it is just what `service` would be.
    pub(super) fn hand_over_to(&mut self, service: &Service) -> Option<Spawned> {
        if self.service == *service { self.spawned.take() } else { None }
    }
}

impl Drop for Ahead {
    /// It has begun nothing, and is reaped like any orphan.
    fn drop(&mut self) {
        if let Some(spawned) = &self.spawned {
            let _ = kill(spawned.pid, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    fn ahead() -> Ahead {
        let program = Program { path: "/bin/cat".into(), held: true, ..Program::default() };
        let spawned = spawn::spawn(&program).unwrap();
        Ahead { service: builtin::service("envd").unwrap(), spawned: Some(spawned) }
    }

    #[test]
    fn what_was_executed_is_the_process_of_just_the_service_that_it_was_executed_for() {
        let mut ahead = ahead();
        let shipped = builtin::service("envd").unwrap();
        assert!(ahead.hand_over_to(&Service { nice: 1, ..shipped.clone() }).is_none());
        let process = ahead.hand_over_to(&shipped).unwrap();
        drop(ahead);
        drop(process.gate);
        assert_eq!(waitpid(process.pid, None).unwrap(), WaitStatus::Exited(process.pid, 0));
    }

    #[test]
    fn where_nobody_takes_it_over_it_ends_at_its_gate() {
        let ahead = ahead();
        let pid = ahead.spawned.as_ref().unwrap().pid;
        drop(ahead);
        let ended = waitpid(pid, None).unwrap();
        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{ended:?}");
    }
}
