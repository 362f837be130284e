//! The vsock path to envd.
//!
//! The library holds what the guest's relay and the host's bridge share: the grammar of [endpoints](endpoint), the
//! [handshake] through a VMM's unix socket, and the [pump] that moves bytes between two sockets. The program (and
//! [`relay`], its event loop) is the guest's end: it takes connections on vsock and leads them to envd.

pub mod endpoint;
pub mod handshake;
pub mod pool;
pub mod program;
pub mod pump;
pub mod relay;
pub mod socket;
pub mod unix;
