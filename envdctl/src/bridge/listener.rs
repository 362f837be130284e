//! The listening side of one sandbox: a task that accepts, and survives a want of descriptors or memory.
//!
//! | state | leaves |
//! |---|---|
//! | idle | a client comes → a place is sought |
//! | a place is sought | one is free, now or once another client has left → accepts |
//! | accepts | taken over, or the client has gone → idle; no descriptor or memory → pauses, then idle |

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::io::Errno;
use tokio::{io::Interest, task::JoinHandle, time::sleep};
use vsock_relay::{
    endpoint::{Endpoint, HalfClose},
    socket,
};

use super::{
    broker::{Broker, BrokerError},
    connect::{Stream, adopt},
    log::Level,
    places::Places,
    sandbox::Sandbox,
};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {listen}: another process has it")]
    Busy { listen: Endpoint },
    #[error("cannot listen on {listen}: this machine has no such address")]
    NoAddress { listen: Endpoint },
    #[error("cannot listen on {listen}: {source}")]
    Io { listen: Endpoint, source: io::Error },
    #[error("cannot listen on {listen}: {source}")]
    Broker { listen: Endpoint, source: BrokerError },
}

/// A sandbox's listener; dropped, it closes in a while (and a unix socket's file is removed), see [`Self::close`].
#[derive(Debug)]
pub(super) struct Listener {
    /// Who the clients are given to; changes when the sandbox's routes do.
    sandbox: Arc<Mutex<Arc<Sandbox>>>,
    task: JoinHandle<()>,
    file: Option<PathBuf>,
}

/// Opens the address. A namespace is entered by the broker.
pub(super) async fn bind(listen: &Endpoint, broker: Option<&Arc<Broker>>) -> Result<OwnedFd, ListenError> {
    let failed = |source: io::Error| {
        let listen = listen.clone();
        match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::Busy { listen },
            io::ErrorKind::AddrNotAvailable => ListenError::NoAddress { listen },
            _ => ListenError::Io { listen, source },
        }
    };
    let Endpoint::NetnsTcp(namespace, address) = listen else {
        return socket::listen(listen).map_err(failed);
    };
    let in_namespace = match broker {
        Some(broker) => broker.netns_socket(&namespace.path(), address.is_ipv6()).await,
        None => Err(BrokerError::Absent),
    };
    let socket = in_namespace.map_err(|source| ListenError::Broker { listen: listen.clone(), source })?;
    socket::listen_on(socket, listen).map_err(failed)
}

impl Listener {
    pub(super) fn start(
        endpoint: Endpoint,
        socket: OwnedFd,
        sandbox: Arc<Sandbox>,
        places: Arc<Places>,
    ) -> io::Result<Self> {
        let socket = adopt(socket)?;
        let sandbox = Arc::new(Mutex::new(sandbox));
        let accepting = accept_all(socket, endpoint.half_close(), Arc::clone(&sandbox), places);
        let task = tokio::spawn(accepting);
        let file = if let Endpoint::Unix(path) = endpoint { Some(path) } else { None };
        Ok(Self { sandbox, task, file })
    }

    /// New clients go to `sandbox` from now on.
    pub(super) fn lead_to(&self, sandbox: Arc<Sandbox>) {
        *self.sandbox.lock().unwrap_or_else(PoisonError::into_inner) = sandbox;
    }
}

impl Listener {
    /// Once this has ended another may have the address: a task that is aborted lets go of its socket only when it is its turn.
    pub(super) async fn close(mut self) {
        self.task.abort();
        // An error: it was aborted.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(file) = &self.file {
            // Gone already, or not ours to remove: the next one who listens there finds out.
            let _ = std::fs::remove_file(file);
        }
    }
}

async fn accept_all(socket: Stream, rule: HalfClose, sandbox: Arc<Mutex<Arc<Sandbox>>>, places: Arc<Places>) {
    let current = || Arc::clone(&sandbox.lock().unwrap_or_else(PoisonError::into_inner));
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        // Only a client that has come takes a place.
        if socket.readable().await.is_err() {
            return;
        }
        let Some(place) = places.take(&current().name).await else { return };
        match socket.try_io(Interest::READABLE, || Ok(socket::accept(&socket)?)) {
            Ok(client) => {
                pause = FIRST_PAUSE;
                told = false;
                current().take(client, rule, place);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                if !told {
                    let text = format!("cannot accept ({error}): clients wait, trying again");
                    current().say(Level::Error, "accept", &text, &[]);
                }
                told = true;
                drop(place);
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// The one connection failed, not the listener.
fn is_the_clients(error: &io::Error) -> bool {
    let errors = [Errno::INTR, Errno::CONNABORTED, Errno::PROTO, Errno::PERM, Errno::CONNRESET];
    error.raw_os_error().is_some_and(|errno| errors.iter().any(|one| one.raw_os_error() == errno))
}
