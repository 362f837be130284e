//! The guest is frozen as before a pause; see [`crate::life::freeze`].

use anyhow::{Context, Result, ensure};

use super::guest::{Guest, Stage};
use super::{Scenario, Trial};
use crate::life;

const fn scenario(name: &'static str, stage: Stage) -> Scenario {
    let about = "freeze over the hierarchy, calls over vsock meanwhile, and the platform's own audit";
    Scenario { name, about, stage, full: 5, brief: 0, wears_out: false, waits: false, run: freeze }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("freeze", Stage::Real),
    scenario("freeze-systemd", Stage::Systemd),
    scenario("freeze-openrc", Stage::OpenRc),
];

fn freeze(guest: &Guest, trial: &mut Trial) -> Result<()> {
    let mut visited = Vec::new();
    for turn in 1..=trial.count {
        let audit = life::freeze(guest.vm()?).and_then(|audit| {
            let audit = audit.context("/init did not audit the freeze")?;
            ensure!(audit.is_clean(), "the audit says {audit:?}");
            Ok(audit)
        });
        visited.extend(trial.attempt(format!("freeze {turn}"), audit).map(|audit| audit.visited));
        trial.attempt(format!("after freeze {turn}"), guest.serves());
    }
    trial.figure(format!("cgroups visited {visited:?}, violations and escaped 0"));
    Ok(())
}
