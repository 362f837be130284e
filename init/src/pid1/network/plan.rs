//! What the network should be: `ip=` of the kernel's command line, else the configuration, else the platform's defaults.

use std::net::Ipv4Addr;

use guest::{
    cmdline::{Cmdline, ip::IpParam},
    config::{self, Cidr},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pid1) struct Plan {
    pub(in crate::pid1) manage: bool,
    pub(in crate::pid1) interface: String,
    pub(super) address: Cidr,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) mtu: Option<u32>,
    pub(in crate::pid1) dns: Vec<Ipv4Addr>,
    pub(in crate::pid1) hostname: Option<String>,
    /// What of `ip=` was passed over.
    pub(in crate::pid1) notes: Vec<String>,
}

impl Plan {
    pub(in crate::pid1) fn new(cmdline: &Cmdline, config: &config::Network) -> Self {
        let ip = cmdline.value("ip").map(IpParam::parse).unwrap_or_default();
        let (address, gateway) = match (ip.client, ip.prefix()) {
            // Of an address of its own the gateway is ip='s as well, or there is none.
            (Some(address), Some(prefix)) => (Cidr { address, prefix }, ip.gateway),
            _ => (config.address, ip.gateway.or_else(|| config.gateway())),
        };
        Self {
            manage: config.manage,
            interface: ip.device.unwrap_or_else(|| config.interface.clone()),
            address,
            gateway,
            mtu: config.mtu,
            dns: if ip.dns.is_empty() { config.dns.clone() } else { ip.dns },
            hostname: ip.hostname,
            notes: ip.notes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Plan {
        Plan::new(&Cmdline::parse(line), &config::Network::default())
    }

    #[test]
    fn without_a_word_it_is_the_platforms() {
        let plan = plan("quiet");
        assert_eq!((plan.interface.as_str(), plan.address.to_string().as_str()), ("eth0", "169.254.0.21/30"));
        assert_eq!(plan.gateway, Some("169.254.0.22".parse().unwrap()));
    }

    #[test]
    fn the_command_line_comes_first_and_brings_its_own_gateway() {
        let plan = plan("ip=10.0.0.2:::255.255.255.0:box:eth1:off");
        assert_eq!((plan.interface.as_str(), plan.address.to_string().as_str()), ("eth1", "10.0.0.2/24"));
        assert_eq!((plan.gateway, plan.hostname.as_deref()), (None, Some("box")));
    }

    #[test]
    fn an_address_of_its_own_has_no_gateway_of_the_platforms() {
        let configured = |text: &str| {
            let line = Cmdline::parse("quiet");
            Plan::new(&line, &config::parse(text, &line).value.network).gateway
        };
        assert_eq!(configured("[network]\naddress = '10.0.0.2/24'\n"), None);
        let with_gateway = "[network]\naddress = '10.0.0.2/24'\ngateway = '10.0.0.1'\n";
        assert_eq!(configured(with_gateway), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(configured("[network]\nmtu = 1400\n"), Some(Ipv4Addr::new(169, 254, 0, 22)));
    }

    #[test]
    fn dhcp_leaves_the_configured_address_and_says_so() {
        let plan = plan("ip=dhcp");
        assert_eq!(plan.address.to_string(), "169.254.0.21/30");
        assert_eq!(plan.notes.len(), 1);
    }
}
