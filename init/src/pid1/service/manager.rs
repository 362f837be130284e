//! All services: order of start and stop, events by unit, the tally of deaths.

use std::{collections::BTreeMap, fs, path::Path};

use guest::{
    cgroup::Tree,
    clock::Moment,
    control::{ExitReport, ServiceStatus},
    service::{Service, load},
    supervise::Event,
    sys::Reaped,
};
use tracing::{info, warn};

use super::{
    ahead::Ahead,
    report::Tally,
    unit::{Kind, Unit, World},
};
use crate::pid1::reap;

/// Why a service cannot be started or stopped.
#[derive(Debug, thiserror::Error)]
pub(in crate::pid1) enum StartError {
    #[error("there is no service {0}")]
    Unknown(String),
    #[error("{name} does not run on this machine: {why}")]
    NotHere { name: String, why: String },
}

#[derive(Debug, Default)]
pub(in crate::pid1) struct Services {
    units: Vec<Unit>,
    tally: Tally,
    /// Everything is being stopped, those that others wait for last.
    stopping: bool,
    /// What envd's wrapper takes to end envd, at the most (milliseconds).
    envd_stop_ms: u64,
}

/// From the wrapper's KILL of envd to its own end.
const AFTER_ENVDS_KILL_MS: u64 = 2000;

impl Services {
    /// Adds those whose name is not known yet.
    pub(in crate::pid1) fn add(&mut self, services: BTreeMap<String, Service>) {
        for service in services.into_values() {
            if self.find(&service.name).is_none() {
                self.units.push(Unit::new(self.fit(service), self.units.len() as u32));
            }
        }
    }

    /// The configuration says how long envd may take from TERM to KILL; its wrapper, who sees to that, may take longer.
    pub(in crate::pid1) fn let_envd_take(&mut self, stop_timeout_ms: u64) {
        self.envd_stop_ms = stop_timeout_ms.saturating_add(AFTER_ENVDS_KILL_MS);
        let (units, stop_ms) = (&mut self.units, self.envd_stop_ms);
        if let Some(unit) = units.iter_mut().find(|unit| unit.name() == "envd") {
            unit.let_take(stop_ms);
        }
    }

    fn fit(&self, mut service: Service) -> Service {
        if service.name == "envd" {
            service.stop_timeout_ms = service.stop_timeout_ms.max(self.envd_stop_ms);
        }
        service
    }

    /// Reads a service's files again, so that what is started or restarted on request is what they say now; one that came after
    /// the boot is known from here on. What is wrong with them is told, and what was known before holds.
    pub(in crate::pid1) fn read_anew(&mut self, name: &str) {
        let mut loaded = load::one(Path::new(load::SHIPPED), Path::new(load::OWN), name);
        for problem in loaded.problems {
            warn!("{problem}");
        }
        let Some(service) = loaded.services.remove(name).map(|service| self.fit(service)) else { return };
        match self.units.iter_mut().find(|unit| unit.name() == name) {
            Some(unit) => unit.redefine(service),
            None => self.add(BTreeMap::from([(name.to_owned(), service)])),
        }
    }

    pub(in crate::pid1) fn find(&self, name: &str) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.name() == name)
    }

    fn position(&self, name: &str) -> Result<usize, StartError> {
        let found = self.units.iter().position(|unit| unit.name() == name);
        found.ok_or_else(|| StartError::Unknown(name.to_owned()))
    }

    /// What was executed ahead is its service's process from here on, and held until that may start. Where the service is another
    /// one by now, the process is ended.
    pub(in crate::pid1) fn take_over(&mut self, mut ahead: Ahead, world: World<'_>) {
        let taken = self.units.iter_mut().find_map(|unit| Some((ahead.hand_over_to(&unit.service)?, unit)));
        let Some((process, unit)) = taken else { return };
        let names = if process.passed.is_some() { unit.service.after.clone() } else { Vec::new() };
        unit.take_over(process, world);
        for unit in self.units.iter_mut().filter(|unit| unit.wanted && names.contains(&unit.service.name)) {
            unit.skip("it had nothing to do when envd started");
        }
    }

    /// Puts those who were started before there was a cgroup for them into their own.
    pub(in crate::pid1) fn settle(&mut self, tree: &Tree) -> Vec<String> {
        self.units.iter_mut().filter_map(|unit| unit.settle(tree)).collect()
    }

    /// Starts whatever is wanted and need not wait any longer; in a shutdown, stops whoever nobody needs any longer.
    pub(in crate::pid1) fn pump(&mut self, world: World<'_>) {
        if self.stopping {
            return self.pump_stop(world);
        }
        while let Some(index) = self.units.iter().position(|unit| unit.wanted && self.may_start(unit)) {
            let unit = &mut self.units[index];
            match missing(&unit.service) {
                Some(why) => unit.skip(&why),
                None => unit.go(world),
            }
        }
    }

    fn may_start(&self, unit: &Unit) -> bool {
        unit.service.after.iter().all(|name| {
            self.find(name).is_none_or(|other| other.is_settled() || !other.wanted && other.is_down())
        })
    }

    fn pump_stop(&mut self, world: World<'_>) {
        for index in 0..self.units.len() {
            let needed = self.units.iter().any(|other| {
                !other.is_down() && other.service.after.iter().any(|name| name == self.units[index].name())
            });
            if !needed && !self.units[index].is_down() {
                self.units[index].event(Event::Stop, world);
            }
        }
    }

    /// Stops everything, those that others wait for last.
    pub(in crate::pid1) fn stop_all(&mut self, world: World<'_>) {
        self.stopping = true;
        for unit in &mut self.units {
            unit.wanted = false;
            unit.run_no_more(world);
        }
        self.pump_stop(world);
    }

    /// The kernel refused to go down: what is started from here on runs as ever.
    pub(in crate::pid1) fn stay_up(&mut self) {
        self.stopping = false;
        self.units.iter_mut().for_each(Unit::run_again);
    }

    /// Stops those as well that others still need: their time is over.
    pub(in crate::pid1) fn stop_the_rest(&mut self, world: World<'_>) {
        for unit in self.units.iter_mut().filter(|unit| !unit.is_down()) {
            unit.event(Event::Stop, world);
        }
    }

    pub(in crate::pid1) fn all_down(&self) -> bool {
        self.units.iter().all(Unit::is_down)
    }

    pub(in crate::pid1) fn start(&mut self, name: &str, world: World<'_>) -> Result<(), StartError> {
        let index = self.position(name)?;
        self.must_be_here(index)?;
        // While the rest of a run is ending, its state machine still takes it for one that lives.
        let event = if self.units[index].is_draining() { Event::Restart } else { Event::Start };
        self.units[index].event(event, world);
        Ok(())
    }

    pub(in crate::pid1) fn stop(&mut self, name: &str, world: World<'_>) -> Result<(), StartError> {
        let index = self.position(name)?;
        self.units[index].wanted = false;
        self.units[index].event(Event::Stop, world);
        Ok(())
    }

    pub(in crate::pid1) fn restart(&mut self, name: &str, world: World<'_>) -> Result<(), StartError> {
        let index = self.position(name)?;
        self.must_be_here(index)?;
        info!("{name} is restarted on request");
        self.units[index].event(Event::Restart, world);
        Ok(())
    }

    pub(in crate::pid1) fn any_wants_restores(&self) -> bool {
        self.units.iter().any(|unit| unit.service.on_restore)
    }

    /// Runs what wants to run after a restore: a oneshot once more, another one anew where it runs.
    pub(in crate::pid1) fn restored(&mut self, world: World<'_>) {
        for unit in self.units.iter_mut().filter(|unit| unit.service.on_restore) {
            match unit.service.is_oneshot() {
                true if missing(&unit.service).is_none() => unit.event(Event::Start, world),
                false if !unit.is_down() => unit.event(Event::Restart, world),
                _ => {}
            }
        }
    }

    fn must_be_here(&self, index: usize) -> Result<(), StartError> {
        let service = &self.units[index].service;
        match missing(service) {
            None => Ok(()),
            Some(why) => Err(StartError::NotHere { name: service.name.clone(), why }),
        }
    }

    /// Looks after the supervised ones by their own numbers, before any orphan.
    pub(in crate::pid1) fn reap(&mut self, world: World<'_>) {
        for index in 0..self.units.len() {
            if let Some(pid) = self.units[index].pid()
                && let Some(death) = reap::one(pid)
            {
                self.died(index, death, world);
            }
        }
    }

    /// One that was reaped with the orphans may be ours after all.
    pub(in crate::pid1) fn reaped(&mut self, death: Reaped, world: World<'_>) {
        if let Some(index) = self.units.iter().position(|unit| unit.pid() == Some(death.pid)) {
            self.died(index, death, world);
        } else {
            self.units.iter_mut().any(|unit| unit.is_gone_after_all(death.pid));
        }
    }

    fn died(&mut self, index: usize, death: Reaped, world: World<'_>) {
        if let Some(report) = self.units[index].died(death, world) {
            self.tally.add(&report);
        }
    }

    /// Adds a death that was told by another supervisor: envd's, by its wrapper.
    pub(in crate::pid1) fn count_death(&mut self, report: &ExitReport) {
        self.tally.add(report);
    }

    pub(in crate::pid1) fn look_whether_drained(&mut self, world: World<'_>) {
        for unit in &mut self.units {
            unit.look_whether_drained(world);
        }
    }

    pub(in crate::pid1) fn tick(&mut self, world: World<'_>) {
        for unit in &mut self.units {
            if unit.deadline().is_some_and(|at| at <= world.now) {
                unit.look_whether_drained(world);
                unit.look_whether_gone(world);
                unit.event(Event::Tick, world);
            }
        }
    }

    pub(in crate::pid1) fn deadline(&self) -> Option<Moment> {
        self.units.iter().filter_map(Unit::deadline).min()
    }

    pub(in crate::pid1) fn ready(&mut self, index: u32, kind: Kind, world: World<'_>) {
        if let Some(unit) = self.units.get_mut(index as usize) {
            unit.ready(kind, world);
        }
    }

    /// A message of a service to the notify socket; whose it is tells the sender's number, or his cgroup.
    pub(in crate::pid1) fn notified(
        &mut self,
        pid: i32,
        key: &str,
        value: &str,
        world: World<'_>,
    ) -> Option<&Unit> {
        let by_pid = self.units.iter().position(|unit| unit.pid() == Some(pid));
        let index = by_pid.or_else(|| self.by_group(pid))?;
        self.units[index].notified(key, value, world);
        Some(&self.units[index])
    }

    fn by_group(&self, pid: i32) -> Option<usize> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        self.units.iter().position(|unit| unit.service.owns_group() && unit.service.group_path() == group)
    }

    pub(in crate::pid1) fn status(&self, tree: &Tree) -> Vec<ServiceStatus> {
        self.units.iter().filter(|unit| !unit.skipped).map(|unit| unit.status(tree)).collect()
    }

    pub(in crate::pid1) fn deaths(&self) -> Vec<ExitReport> {
        self.tally.list().cloned().collect()
    }
}

/// Why a service is not for this machine: a path of `only_if` that is missing, a folder of `only_if_filled` that is empty, a path of
/// `only_if_absent` that is there.
pub(super) fn missing(service: &Service) -> Option<String> {
    let filled = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    let absent = service.only_if.iter().find(|path| !path.exists());
    let empty = || service.only_if_filled.iter().find(|path| !filled(path));
    let unwanted = || service.only_if_absent.iter().find(|path| path.exists());
    absent
        .map(|path| format!("there is no {}", path.display()))
        .or_else(|| empty().map(|path| format!("there is nothing in {}", path.display())))
        .or_else(|| unwanted().map(|path| format!("there is {}", path.display())))
}

#[cfg(test)]
mod tests {
    use guest::service::builtin;

    use super::*;

    #[test]
    fn a_service_is_passed_over_where_one_of_its_paths_is_not_as_it_should_be() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().to_owned();
        let not_here = || vec![here.join("no")];
        let why = |service: Service| missing(&service).unwrap_or_default();
        let only_if_absent = vec![here.join("no"), here.clone()];
        assert_eq!(
            why(Service { only_if_absent, ..Service::default() }),
            format!("there is {}", here.display())
        );
        assert_eq!(why(Service { only_if_absent: not_here(), ..Service::default() }), "");
        assert!(why(Service { only_if: not_here(), ..Service::default() }).starts_with("there is no "));
        assert!(
            why(Service { only_if_filled: vec![here.clone()], ..Service::default() }).contains("nothing in")
        );
    }

    #[test]
    fn envds_wrapper_is_not_killed_while_envd_may_still_end() {
        let stop_ms = |services: &Services| services.find("envd").unwrap().service.stop_timeout_ms;
        let mut services = Services::default();
        services.add(builtin::services());
        let shipped = stop_ms(&services);
        services.let_envd_take(1000);
        assert_eq!(stop_ms(&services), shipped);
        services.let_envd_take(9000);
        assert_eq!(stop_ms(&services), 9000 + AFTER_ENVDS_KILL_MS);
        services.read_anew("envd");
        assert_eq!(stop_ms(&services), 9000 + AFTER_ENVDS_KILL_MS);
    }
}
