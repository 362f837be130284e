//! What this host knows about itself, read from netlink and /proc; nothing here changes anything.

pub mod net;
pub mod process;
pub mod socket;
pub mod vmm;
