//! What is measured, in the order in which it runs.

mod boot;
mod bridge;
mod bridge_scale;
mod idle;
mod images;
mod memory;
mod relay;
mod relay_native;
mod relay_vm;
mod supervise;

use anyhow::Result;

use crate::plan::Plan;
use crate::row::Findings;

/// One part, as `ONLY=` names it. What was found before something broke stays.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) measure: fn(&Plan, &mut Findings) -> Result<()>,
}

pub(crate) const ALL: [Part; 7] = [
    Part { name: "boot", measure: boot::measure },
    Part { name: "memory", measure: memory::measure },
    Part { name: "idle", measure: idle::measure },
    Part { name: "relay", measure: relay::measure },
    Part { name: "bridge", measure: bridge::measure },
    Part { name: "supervise", measure: supervise::measure },
    Part { name: "images", measure: images::measure },
];
