//! The control protocol: how `envdctl` and the `systemctl` shim talk to PID 1 (in keep mode: to the wrapper).
//!
//! It is spoken on `/run/envd-init/control.sock` (root only, by `SO_PEERCRED`) and on vsock port 49984
//! (the host only, CID 2). Over a firecracker-style socket the usual `CONNECT 49984\n` comes first.
//!
//! ```text
//! client                                   server
//!   {"version":1,"op":"status"}        →
//!                                      ←   {"reply":"status", …}
//!   {"version":1,"op":"logs","follow":true} →
//!                                      ←   {"reply":"records","records":[…],"lost":0}   repeated
//!                                      ←   {"reply":"done"}                             unless following
//! ```
//!
//! Each message is a [frame](frame): a big-endian `u32` length and that many bytes of JSON. One connection
//! carries any number of requests, one after the other. A peer that sends what is no frame, or does not read
//! its answers, is closed. Unknown fields are ignored, so that old and new speak; an unknown `op` or a newer
//! `version` gets an [`Reply::Error`] with code `unsupported`.

pub mod frame;
mod message;
pub mod server;

pub use message::*;

/// The version of the protocol that this build speaks.
pub const VERSION: u32 = 1;
/// Where PID 1 (or the wrapper, in keep mode) listens inside the guest.
pub const SOCKET: &str = "/run/envd-init/control.sock";
/// The vsock port of the control protocol.
pub const VSOCK_PORT: u32 = 49984;
