//! Tells a supervisor how the bridge is, by the sd_notify protocol; nothing where nobody asked.

use std::os::{
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixDatagram},
};

/// Sends one message, for example `READY=1`. A supervisor that does not listen is none.
pub(super) fn notify(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let path = path.into_encoded_bytes();
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(std::path::Path::new(&*String::from_utf8_lossy(&path))),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(message.as_bytes(), &address);
    }
}

/// A reload has begun.
pub(super) fn reloading() {
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", guest::clock::now().as_micros()));
}
