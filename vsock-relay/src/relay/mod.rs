//! The guest's relay: one thread, one epoll, and whatever was read is written in the same wake-up.
//!
//! Sockets are watched edge-triggered, once; a side's writability is watched only after a write fell short. There is no
//! timer and no buffer at rest. What can run out (descriptors, memory, patience) is bounded and said once.
//!
//! | state of the whole | new connections | leaves |
//! |---|---|---|
//! | serving | taken | SIGTERM or SIGINT → draining |
//! | draining | none: listeners are closed, held clients are let go | all done, the bound is over, or a second signal → ended |

mod connection;
mod counters;
mod listener;
mod quiet;
mod server;
mod target;
mod timers;

use std::{io, path::PathBuf, time::Duration};

pub use server::Relay;

use crate::endpoint::{CID_HOST, Map};

/// How the relay is to behave.
#[derive(Debug, Clone)]
pub struct Options {
    pub maps: Vec<Map>,
    /// The only CID whose connections are taken on vsock; `None` takes all.
    pub peer_cid: Option<u32>,
    /// How long a new connection waits for a target that takes none.
    pub hold: Duration,
    /// How long open connections may go on after SIGTERM.
    pub drain: Duration,
    /// Connections at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// Where the counters go.
    pub status: Option<PathBuf>,
}

impl Options {
    pub const HOLD: Duration = Duration::from_secs(10);
    pub const DRAIN: Duration = Duration::from_secs(3);
    pub const MAX_CONNECTIONS: usize = 4096;

    pub fn new(maps: Vec<Map>) -> Self {
        Self {
            maps,
            peer_cid: Some(CID_HOST),
            hold: Self::HOLD,
            drain: Self::DRAIN,
            max_connections: Self::MAX_CONNECTIONS,
            status: None,
        }
    }
}

/// Why the relay cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("no map is given: at least one --map LISTEN=TARGET is needed")]
    NoMap,
    #[error("cannot listen on {listen}")]
    Listen { listen: crate::endpoint::Endpoint, source: io::Error },
    #[error("cannot set up the event loop ({operation})")]
    Setup { operation: &'static str, source: io::Error },
    #[error("the event loop failed")]
    Wait { source: io::Error },
}
