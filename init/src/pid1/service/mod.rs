//! Services: each is a [unit](Unit) around one state machine of [`guest::supervise`]; the [`Services`] start them in order,
//! hand them their events, and tell of their ends.

mod ahead;
mod gate;
mod manager;
mod probe;
mod program;
mod report;
mod unit;

pub(super) use ahead::Ahead;
pub(super) use manager::{Services, StartError};
pub(super) use unit::{Kind, Unit, World};
