//! The relay: on the host over unix sockets, where the pump is the same code and nothing is emulated, and in a guest over vsock.

use anyhow::Result;

use super::{relay_native, relay_vm};
use crate::plan::Plan;
use crate::row::Findings;

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    relay_native::measure(plan, found)?;
    relay_vm::measure(plan, found)
}
