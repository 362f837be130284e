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
mod units;

use anyhow::Result;

use crate::plan::Plan;
use crate::row::Findings;

/// One part, as `ONLY=` names it. What was found before something broke stays.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) measure: fn(&Plan, &mut Findings) -> Result<()>,
    /// Runs only when it is named: a full run is to end in less than half an hour.
    pub(crate) on_request: bool,
}

impl Part {
    const fn new(name: &'static str, measure: fn(&Plan, &mut Findings) -> Result<()>) -> Self {
        Self { name, measure, on_request: false }
    }
}

pub(crate) const ALL: [Part; 8] = [
    Part::new("boot", boot::measure),
    Part::new("memory", memory::measure),
    Part::new("idle", idle::measure),
    Part::new("relay", relay::measure),
    Part::new("bridge", bridge::measure),
    Part::new("supervise", supervise::measure),
    Part::new("images", images::measure),
    Part { on_request: true, ..Part::new("units", units::measure) },
];
