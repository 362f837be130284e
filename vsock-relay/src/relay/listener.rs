//! A listening socket that outlives what is missing or short: the device, descriptors, memory.
//!
//! | state | accepts | leaves |
//! |---|---|---|
//! | `Absent` | no: the kernel has no such transport yet | /dev changes, or its pause is over → `Open` |
//! | `Refused` | no: another process has the address, or it may not be used | its pause is over → `Open`, or another pause |
//! | `Open` | at each edge, until there is no more | out of descriptors or memory → `Paused` |
//! | `Paused` | no: clients wait in the backlog, and their edges are passed over | its pause is over → `Open` |
//!
//! What waits for time has one timer, however many clients come meanwhile. At the limit of connections a listener stays `Open`, and
//! is looked at again when one ends.
//!
//! A vsock listener survives a transport reset (a restored snapshot, a driver bound anew): it is never bound again.

use std::{io, os::fd::OwnedFd, time::Duration};

use guest::clock::Moment;
use rustix::io::Errno;
use tracing::{info, warn};

use crate::{endpoint::Endpoint, socket};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Between two tries to listen on an address that was refused. Each costs the one who has a unix socket a connection.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) endpoint: Endpoint,
    socket: Option<OwnedFd>,
    pause: Duration,
    told: bool,
    retry: Duration,
    /// When it is looked at again: its one timer.
    pub(super) due: Option<Moment>,
}

/// What an accept gave.
pub(super) enum Accepted {
    Client(OwnedFd),
    /// Nothing more for now.
    Empty,
    /// Something is short: try again after the pause.
    Pause(Duration),
}

impl Listener {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, socket: None, pause: FIRST_PAUSE, told: false, retry: FIRST_RETRY, due: None }
    }

    pub(super) fn is_vsock(&self) -> bool {
        matches!(self.endpoint, Endpoint::Vsock { .. })
    }

    pub(super) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// Opens the socket. `Ok(None)`: this kernel has no vsock yet; that is said once.
    pub(super) fn open(&mut self) -> io::Result<Option<&OwnedFd>> {
        match socket::listen(&self.endpoint) {
            Ok(socket) => {
                if self.is_vsock() && !has_vsock_device() {
                    info!("{}: no vsock device yet; connections come as soon as there is one", self.endpoint);
                } else if self.told || self.is_refused() {
                    info!("{}: listening now", self.endpoint);
                }
                self.told = false;
                self.retry = FIRST_RETRY;
                Ok(Some(self.socket.insert(socket)))
            }
            Err(error) if self.is_vsock() && is_absent(&error) => {
                if !self.told {
                    warn!("{}: the kernel has no vsock ({error}); waiting for it", self.endpoint);
                }
                self.told = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether its address was refused when it was last tried.
    pub(super) fn is_refused(&self) -> bool {
        self.retry > FIRST_RETRY
    }

    /// The address was refused. Returns how long to leave it alone.
    pub(super) fn refused(&mut self) -> Duration {
        let pause = self.retry;
        self.retry = (pause * 2).min(LONGEST_RETRY);
        pause
    }

    pub(super) fn close(&mut self) {
        self.socket = None;
    }

    pub(super) fn accept(&mut self) -> Accepted {
        let Some(listener) = &self.socket else { return Accepted::Empty };
        loop {
            match socket::accept(listener) {
                Ok(client) => {
                    if matches!(self.endpoint, Endpoint::Unix(_)) {
                        socket::widen(&client);
                    }
                    self.recovered();
                    return Accepted::Client(client);
                }
                Err(Errno::AGAIN) => return Accepted::Empty,
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                    return Accepted::Pause(self.short(errno));
                }
                // The one connection failed, not the listener.
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::PERM | Errno::CONNRESET) => {}
                Err(errno) => return Accepted::Pause(self.short(errno)),
            }
        }
    }

    fn short(&mut self, errno: Errno) -> Duration {
        if !self.told {
            warn!(
                "{}: cannot accept ({}): clients wait, trying again",
                self.endpoint,
                io::Error::from(errno)
            );
        }
        self.told = true;
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    fn recovered(&mut self) {
        if self.told {
            info!("{}: accepting again", self.endpoint);
            self.told = false;
            self.pause = FIRST_PAUSE;
        }
    }
}

/// The address family or the transport is not there: modules may still be loading, a device may still be attached.
fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::AFNOSUPPORT, Errno::NODEV, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| absent.contains(&errno))
}

/// Whether a virtio-vsock device is bound to its driver. Only for the words: a listener works without one and wakes
/// up when one comes.
fn has_vsock_device() -> bool {
    let driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
    let Ok(entries) = std::fs::read_dir(driver) else {
        return !std::path::Path::new("/sys/bus/virtio").exists();
    };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("virtio"))
}
