//! What init, envd-wrapper and vsock-relay share.
//!
//! Everything here is synchronous, holds no threads of its own and reads no clock behind its caller's back:
//! state machines take events and a `now` and return actions.

pub mod clock;
pub mod control;
