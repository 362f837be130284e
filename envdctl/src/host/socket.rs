//! Listening TCP sockets of the calling thread's network namespace.

use std::{collections::HashMap, net::SocketAddr};

use procfs::{
    ProcResult,
    net::{TcpNetEntry, TcpState},
    process::Process,
};
use serde::Serialize;

use super::process::{self, Owner};

/// A socket that listens, and who holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listener {
    pub address: SocketAddr,
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// Nobody where we may not look, or where the holder lives in another pid namespace.
    pub owner: Option<Owner>,
}

/// Every TCP listener of the calling thread's namespace.
pub fn listeners() -> ProcResult<Vec<Listener>> {
    // /proc/net belongs to the process's first thread; the caller may have entered another namespace.
    let here = Process::new(nix::unistd::gettid().as_raw())?;
    let mut entries: Vec<TcpNetEntry> = here.tcp()?;
    entries.extend(here.tcp6().unwrap_or_default());
    entries.retain(|entry| entry.state == TcpState::Listen);
    let owners = if entries.is_empty() { HashMap::new() } else { process::socket_owners() };
    Ok(entries.iter().map(|entry| listener(entry, &owners)).collect())
}

fn listener(entry: &TcpNetEntry, owners: &HashMap<u64, i32>) -> Listener {
    let owner = owners.get(&entry.inode).and_then(|pid| process::describe(&Process::new(*pid).ok()?));
    Listener { address: entry.local_address, waiting: entry.rx_queue, owner }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_our_own_is_found_with_its_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = listeners().unwrap().into_iter().find(|listener| listener.address == address).unwrap();
        assert_eq!(found.owner.unwrap().pid, std::process::id() as i32);
    }
}
