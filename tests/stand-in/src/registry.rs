//! The processes that were started over the API and still run.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use envd_api::error::Code;
use envd_api::process::{ProcessConfig, ProcessEvent, ProcessInfo, Selector};
use tokio::process::ChildStdin;
use tokio::sync::broadcast;

use crate::error::Rpc;

/// Events that a slow follower may be behind before it loses some.
pub(crate) const EVENTS: usize = 4096;

/// What a process reads.
#[derive(Debug)]
pub(crate) enum Input {
    Pipe(ChildStdin),
    Terminal(OwnedFd),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) config: ProcessConfig,
    pub(crate) tag: Option<String>,
    pub(crate) input: Arc<tokio::sync::Mutex<Option<Input>>>,
    pub(crate) events: broadcast::Sender<ProcessEvent>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    entries: Arc<Mutex<BTreeMap<u32, Entry>>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, pid: u32, entry: Entry) {
        self.lock().insert(pid, entry);
    }

    pub(crate) fn remove(&self, pid: u32) {
        self.lock().remove(&pid);
    }

    pub(crate) fn find(&self, selector: &Selector) -> Result<(u32, Entry), Rpc> {
        let entries = self.lock();
        let found = match selector {
            Selector::Pid(pid) => entries.get_key_value(pid),
            Selector::Tag(tag) => entries.iter().find(|(_, entry)| entry.tag.as_ref() == Some(tag)),
        };
        let missing = match selector {
            Selector::Pid(pid) => format!("process with pid {pid} not found"),
            Selector::Tag(tag) => format!("process with tag {tag} not found"),
        };
        found.map(|(pid, entry)| (*pid, entry.clone())).ok_or_else(|| Rpc::new(Code::NotFound, missing))
    }

    pub(crate) fn list(&self) -> Vec<ProcessInfo> {
        let entries = self.lock();
        let info = |(pid, entry): (&u32, &Entry)| ProcessInfo {
            config: entry.config.clone(),
            pid: *pid,
            tag: entry.tag.clone(),
        };
        entries.iter().map(info).collect()
    }
}
