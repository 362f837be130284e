//! The network: what the kernel has done already is verified and left alone, the rest is done, and all of it is told.
//!
//! | state | left by |
//! |---|---|
//! | no interface | a link event → as below; the bound → said once, and still waited for |
//! | interface found | address and route right: reported; absent: set; other addresses: reported |
//! | settled | a link, address or route event → looked at again; a change is said |
//! | its link was taken down and up | the default route, which the kernel has dropped, is set again: once for each time |
//! | another interface of its name | as found for the first time |
//!
//! Nothing is ever removed: a second address may be somebody's purpose. What somebody else removes while the link is up is
//! not set again, only said. Nothing waits: links come by event.

mod netlink;
mod plan;
mod wire;

use std::{net::Ipv4Addr, time::Duration};

use guest::{
    clock::{Moment, now},
    cmdline::Cmdline,
    config, control,
    reactor::{Interest, Reactor},
};
use tracing::{debug, info, warn};

use super::machine::{Machine, tokens};
use netlink::{Link, Netlink, NetlinkError};
use plan::Plan;

pub(super) struct Network {
    plan: Plan,
    netlink: Option<Netlink>,
    status: control::Network,
    link_timeout: Duration,
    /// Until when the interface may take its time.
    awaited: Option<Moment>,
    /// The last report, so that only a change is said.
    told: String,
    /// The interface that was set up once: what goes from it again was somebody's doing, and is only said.
    configured: Option<u32>,
    /// It was down since its default route was seen: the kernel has dropped that, and does not bring it back.
    was_down: bool,
    /// What of that could not be done at the last try, so that only another reason is said.
    refused: Vec<String>,
}

/// What one look led to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) warnings: Vec<String>,
    pub(super) settled: bool,
}

impl Network {
    pub(super) fn new(cmdline: &Cmdline, config: &config::Network) -> Self {
        let plan = Plan::new(cmdline, config);
        let link_timeout = Duration::from_millis(config.link_timeout_ms);
        let status = control::Network {
            wanted: Some(plan.address.to_string()),
            interface: plan.interface.clone(),
            configured_by: "none".to_owned(),
            ..control::Network::default()
        };
        Self {
            plan,
            netlink: None,
            status,
            link_timeout,
            awaited: None,
            told: String::new(),
            configured: None,
            was_down: false,
            refused: Vec::new(),
        }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn status(&self) -> &control::Network {
        &self.status
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        self.awaited
    }

    /// Subscribes, then looks for the first time.
    pub(super) fn start(&mut self, reactor: &Reactor) -> Outcome {
        let open = || -> Result<Netlink, String> {
            let netlink = Netlink::open().map_err(|error| error.to_string())?;
            reactor
                .add(netlink.events(), tokens::NETLINK, Interest::Read)
                .map_err(|error| error.to_string())?;
            Ok(netlink)
        };
        match open() {
            Ok(netlink) => self.netlink = Some(netlink),
            Err(why) => return Outcome { warnings: vec![why], settled: true },
        }
        self.awaited = Some(now() + self.link_timeout);
        self.look()
    }

    /// Sees what is there and does what is missing.
    fn look(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(netlink) = self.netlink.take() else { return outcome };
        if let Err(error) = self.look_with(&netlink, &mut outcome) {
            outcome.warnings.push(error.to_string());
        }
        self.netlink = Some(netlink);
        outcome
    }

    fn look_with(&mut self, netlink: &Netlink, outcome: &mut Outcome) -> Result<(), NetlinkError> {
        let links = netlink.links()?;
        if let Some(loopback) = links.iter().find(|link| link.name == "lo" && !link.up) {
            netlink.set_up(loopback)?;
        }
        let Some(link) = links.into_iter().find(|link| link.name == self.plan.interface) else {
            self.interface_missing();
            return Ok(());
        };
        self.awaited = None;
        outcome.settled = true;
        if self.plan.manage {
            let refused = if self.configured == Some(link.index) {
                self.restore_route(netlink, &link).err().map(|error| error.to_string()).into_iter().collect()
            } else {
                let refused = self.configure(netlink, &link);
                self.configured = refused.is_empty().then_some(link.index);
                refused
            };
            outcome.warnings.extend(refused.iter().filter(|why| !self.refused.contains(why)).cloned());
            self.refused = refused;
        }
        self.report(netlink, link.index)
    }

    /// After each time that the link was down, once; without our address the network is somebody else's business.
    fn restore_route(&mut self, netlink: &Netlink, link: &Link) -> Result<(), NetlinkError> {
        self.was_down |= !link.up;
        let Some(gateway) = self.plan.gateway.filter(|_| self.was_down && link.up) else { return Ok(()) };
        if netlink.addresses(link.index)?.iter().any(|cidr| cidr.address == self.plan.address.address) {
            ensure_route(netlink, link, gateway)?;
            self.was_down = false;
        }
        Ok(())
    }

    fn interface_missing(&mut self) {
        let had = self.status.link_up || !self.status.found.is_empty();
        self.status = control::Network {
            wanted: self.status.wanted.take(),
            interface: std::mem::take(&mut self.status.interface),
            configured_by: "none".to_owned(),
            ..control::Network::default()
        };
        if had {
            self.configured = None; // when it comes back, it comes back empty
            self.tell(format!("{} is gone; waiting for it to come back", self.plan.interface), true);
        }
    }

    /// Brings the link up and adds what is missing. What cannot be done keeps nothing else from being done, and is given back;
    /// it is tried again at the next event.
    fn configure(&mut self, netlink: &Netlink, link: &Link) -> Vec<String> {
        let outcomes = [
            self.plan.mtu.filter(|mtu| link.mtu != Some(*mtu)).map(|mtu| netlink.set_mtu(link, mtu)),
            (!link.up).then(|| netlink.set_up(link)),
            Some(self.ensure_address(netlink, link)),
            self.plan.gateway.map(|gateway| ensure_route(netlink, link, gateway)),
        ];
        outcomes.into_iter().flatten().filter_map(Result::err).map(|error| error.to_string()).collect()
    }

    fn ensure_address(&mut self, netlink: &Netlink, link: &Link) -> Result<(), NetlinkError> {
        let found = netlink.addresses(link.index)?;
        let by = if found.iter().any(|cidr| cidr.address == self.plan.address.address) {
            if self.status.configured_by == "init" { "init" } else { "kernel" }
        } else {
            netlink.add_address(link, self.plan.address)?;
            "init"
        };
        by.clone_into(&mut self.status.configured_by);
        Ok(())
    }

    /// Takes down what is there now, and says it when it is news.
    fn report(&mut self, netlink: &Netlink, index: u32) -> Result<(), NetlinkError> {
        let Some(link) = netlink.links()?.into_iter().find(|link| link.index == index) else { return Ok(()) };
        let found = netlink.addresses(index)?;
        let gateways = netlink.gateways()?;
        self.status.link_up = link.up && link.carrier;
        self.status.mac = link.mac;
        self.status.mtu = link.mtu;
        self.status.found = found.iter().map(ToString::to_string).collect();
        self.status.gateway = gateways.first().map(ToString::to_string);
        let right = found.contains(&self.plan.address);
        let others: Vec<_> =
            found.iter().filter(|cidr| **cidr != self.plan.address).map(ToString::to_string).collect();
        let text = self.describe(right, &others);
        let no_way_out = self.plan.manage && self.plan.gateway.is_some() && gateways.is_empty();
        self.tell(text, !right || !others.is_empty() || !self.status.link_up || no_way_out);
        Ok(())
    }

    fn describe(&self, right: bool, others: &[String]) -> String {
        let (name, wanted) = (&self.plan.interface, self.plan.address);
        let mut text = match (right, self.status.configured_by.as_str()) {
            (true, "kernel") => format!("{name} {wanted} already up"),
            (true, _) => format!("{name} {wanted} up"),
            (false, _) => format!("{name} has not the address {wanted}"),
        };
        if !others.is_empty() {
            text.push_str(&format!(", but also {}", others.join(", ")));
        }
        if !self.status.link_up {
            text.push_str(", but its link is down");
        }
        match &self.status.gateway {
            Some(gateway) => text.push_str(&format!(", gateway {gateway}")),
            None => text.push_str(", no gateway"),
        }
        let unknown = || "?".to_owned();
        let mac = self.status.mac.clone().unwrap_or_else(unknown);
        let mtu = self.status.mtu.map_or_else(unknown, |mtu| mtu.to_string());
        text.push_str(&format!(", mac {mac}, mtu {mtu}"));
        text
    }

    fn tell(&mut self, text: String, wrong: bool) {
        if text == self.told {
            return;
        }
        if wrong {
            warn!("{text}");
        } else {
            info!("{text}");
        }
        self.told = text;
    }

    /// The bound has passed: said once, and still waited for.
    fn give_notice(&mut self) -> String {
        self.awaited = None;
        format!("there is no interface {}; it is set up when it comes", self.plan.interface)
    }
}

/// Any default route that is there is somebody's, and stays.
fn ensure_route(netlink: &Netlink, link: &Link, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
    if netlink.gateways()?.is_empty() { netlink.add_default_route(link, gateway) } else { Ok(()) }
}

impl Machine {
    /// The first look, in the boot.
    pub(super) fn start_network(&mut self) {
        let begin = now();
        for note in self.network.plan.notes.clone() {
            debug!("{note}");
        }
        let outcome = self.network.start(&self.reactor);
        self.network_outcome(begin, outcome);
    }

    pub(super) fn network_changed(&mut self) {
        let begin = now();
        if let Some(netlink) = &self.network.netlink {
            let were_down = netlink.drain_events();
            self.network.was_down |= self.network.configured.is_some_and(|index| were_down.contains(&index));
        }
        let outcome = self.network.look();
        self.network_outcome(begin, outcome);
    }

    pub(super) fn network_timer(&mut self) {
        if self.network.awaited.is_some_and(|at| at <= now()) {
            let warning = self.network.give_notice();
            self.stages.warn(warning);
        }
    }

    fn network_outcome(&mut self, begin: Moment, outcome: Outcome) {
        let first = outcome.warnings.first().cloned();
        for warning in outcome.warnings {
            self.stages.warn(warning);
        }
        if outcome.settled {
            self.stages.add("network", begin, now(), first);
        }
    }
}
