//! The kernel's `ip=` parameter.
//!
//! ```text
//! ip=<client>:<server>:<gateway>:<netmask>:<hostname>:<device>:<autoconf>:<dns0>:<dns1>:<ntp0>
//! ip=<autoconf>
//! ```
//!
//! Every field may be empty, and fields at the end may be left out. `<autoconf>` is `off` or `none`, `on` or `any`,
//! `dhcp` (also `dhcp,<client id>`), `bootp`, `rarp` or `both`. As in the kernel, a field that should be an address and is
//! none counts as empty; here it is noted besides. (The platform's own line has the host's device name, `tap0`, where
//! `<dns0>` belongs.)

use std::net::Ipv4Addr;

use crate::config::is_interface_name;

/// What `ip=` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpParam {
    pub client: Option<Ipv4Addr>,
    /// The boot server; nothing here uses it.
    pub server: Option<Ipv4Addr>,
    pub gateway: Option<Ipv4Addr>,
    pub netmask: Option<Ipv4Addr>,
    /// The part before the first dot, which is what the kernel takes.
    pub hostname: Option<String>,
    pub domain: Option<String>,
    pub device: Option<String>,
    pub autoconf: Autoconf,
    /// At most two.
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Option<Ipv4Addr>,
    /// What was passed over, in words.
    pub notes: Vec<String>,
}

/// The seventh field, or the whole value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Autoconf {
    /// Empty: the kernel would try all it can when there is no client address.
    #[default]
    Unset,
    /// `off`, `none`.
    Off,
    /// `on`, `any`.
    Any,
    Dhcp,
    Bootp,
    Rarp,
    Both,
}

impl Autoconf {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" => Self::Unset,
            "off" | "none" => Self::Off,
            "on" | "any" => Self::Any,
            "bootp" => Self::Bootp,
            "rarp" => Self::Rarp,
            "both" => Self::Both,
            "dhcp" => Self::Dhcp,
            other if other.starts_with("dhcp,") => Self::Dhcp,
            _ => return None,
        })
    }

    /// Whether a protocol is asked for that would have to be spoken to get an address.
    pub fn wants_protocol(self) -> bool {
        !matches!(self, Self::Unset | Self::Off)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "",
            Self::Off => "off",
            Self::Any => "any",
            Self::Dhcp => "dhcp",
            Self::Bootp => "bootp",
            Self::Rarp => "rarp",
            Self::Both => "both",
        }
    }
}

/// A field beyond the tenth means nothing to the kernel.
const FIELDS: usize = 10;

impl IpParam {
    /// Never fails: what cannot be used is in `notes`.
    pub fn parse(value: &str) -> Self {
        let mut param = Self::default();
        if !value.contains(':')
            && let Some(autoconf) = Autoconf::parse(value)
        {
            param.autoconf = autoconf;
        } else {
            for (index, field) in value.split(':').enumerate().filter(|(_, field)| !field.is_empty()) {
                param.field(index, field);
            }
            param.check_netmask();
        }
        if param.autoconf.wants_protocol() {
            param.notes.push(format!(
                "ip= asks for {}, which is not served here; {}",
                param.autoconf.as_str(),
                if param.client.is_some() {
                    "its client address is used"
                } else {
                    "the configured address is used"
                }
            ));
        }
        param
    }

    fn field(&mut self, index: usize, field: &str) {
        match index {
            0 => self.client = self.address("client", field),
            1 => self.server = self.address("server", field),
            2 => self.gateway = self.address("gateway", field),
            3 => self.netmask = self.address("netmask", field),
            4 => self.set_hostname(field),
            5 => self.device = self.device_name(field),
            6 => self.set_autoconf(field),
            7 => {
                let first = self.address("dns0", field);
                self.dns.extend(first);
            }
            8 => {
                let second = self.address("dns1", field);
                self.dns.extend(second);
            }
            9 => self.ntp = self.address("ntp0", field),
            FIELDS => self.notes.push("ip= has more than ten fields; the rest is passed over".to_owned()),
            _ => {}
        }
    }

    fn address(&mut self, name: &str, field: &str) -> Option<Ipv4Addr> {
        match field.parse::<Ipv4Addr>() {
            Ok(address) if !address.is_unspecified() => Some(address),
            Ok(_) => None,
            Err(_) => {
                self.notes.push(format!("{} in the {name} field of ip= is no IPv4 address", shown(field)));
                None
            }
        }
    }

    fn set_hostname(&mut self, field: &str) {
        let (host, domain) = field.split_once('.').unwrap_or((field, ""));
        self.hostname = (!host.is_empty()).then(|| host.to_owned());
        self.domain = (!domain.is_empty()).then(|| domain.to_owned());
    }

    fn device_name(&mut self, field: &str) -> Option<String> {
        let possible = is_interface_name(field);
        if !possible {
            self.notes.push(format!("{} in ip= is no interface name", shown(field)));
        }
        possible.then(|| field.to_owned())
    }

    fn set_autoconf(&mut self, field: &str) {
        match Autoconf::parse(field) {
            Some(autoconf) => self.autoconf = autoconf,
            None => self.notes.push(format!("{} in ip= is no autoconf value", shown(field))),
        }
    }

    fn check_netmask(&mut self) {
        if let Some(mask) = self.netmask
            && prefix_of(mask).is_none()
        {
            self.notes.push(format!("the netmask {mask} of ip= has holes; it is passed over"));
            self.netmask = None;
        }
    }

    /// The prefix length: of the netmask, else of the class of the client's address, as in the kernel.
    pub fn prefix(&self) -> Option<u8> {
        let client = self.client?;
        Some(self.netmask.and_then(prefix_of).unwrap_or_else(|| class_prefix(client)))
    }
}

/// At most 32 characters of a field, for a message.
fn shown(field: &str) -> String {
    format!("{:?}", field.chars().take(32).collect::<String>())
}

/// The prefix length of a netmask without holes.
pub fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    (bits.leading_ones() + bits.trailing_zeros() == 32 || bits == u32::MAX)
        .then_some(bits.leading_ones() as u8)
}

fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> Option<Ipv4Addr> {
        text.parse().ok()
    }

    #[test]
    fn the_platforms_line_with_tap0_in_the_eighth_field() {
        let param = IpParam::parse("169.254.0.21::169.254.0.22:255.255.255.252:instance:eth0:off:tap0");
        assert_eq!(param.client, v4("169.254.0.21"));
        assert_eq!(param.server, None);
        assert_eq!(param.gateway, v4("169.254.0.22"));
        assert_eq!(param.prefix(), Some(30));
        assert_eq!(param.hostname.as_deref(), Some("instance"));
        assert_eq!(param.device.as_deref(), Some("eth0"));
        assert_eq!(param.autoconf, Autoconf::Off);
        assert!(param.dns.is_empty());
        assert_eq!(param.notes, [r#""tap0" in the dns0 field of ip= is no IPv4 address"#]);
    }

    #[test]
    fn all_ten_fields() {
        let param = IpParam::parse(
            "10.0.0.2:10.0.0.9:10.0.0.1:255.0.0.0:h.example.org:eth1:none:1.1.1.1:8.8.8.8:10.0.0.3",
        );
        assert_eq!((param.server, param.ntp), (v4("10.0.0.9"), v4("10.0.0.3")));
        assert_eq!((param.hostname.as_deref(), param.domain.as_deref()), (Some("h"), Some("example.org")));
        assert_eq!(param.dns, [v4("1.1.1.1").unwrap(), v4("8.8.8.8").unwrap()]);
        assert_eq!(param.autoconf, Autoconf::Off);
        assert!(param.notes.is_empty());
    }

    #[test]
    fn autoconf_alone_and_as_a_field_mean_the_same() {
        let table = [
            ("off", Autoconf::Off),
            ("none", Autoconf::Off),
            ("on", Autoconf::Any),
            ("any", Autoconf::Any),
            ("dhcp", Autoconf::Dhcp),
            ("dhcp,1,abc", Autoconf::Dhcp),
            ("bootp", Autoconf::Bootp),
            ("rarp", Autoconf::Rarp),
            ("both", Autoconf::Both),
            ("", Autoconf::Unset),
        ];
        for (text, wanted) in table {
            assert_eq!(IpParam::parse(text).autoconf, wanted, "alone: {text}");
            assert_eq!(IpParam::parse(&format!("::::::{text}")).autoconf, wanted, "field: {text}");
        }
    }

    #[test]
    fn dhcp_is_named_as_not_served_and_a_client_address_beside_it_is_used() {
        let param = IpParam::parse("dhcp");
        assert_eq!(param.client, None);
        assert_eq!(
            param.notes,
            ["ip= asks for dhcp, which is not served here; the configured address is used"]
        );
        let param = IpParam::parse("10.0.0.2::::h:eth0:dhcp");
        assert_eq!(param.notes, ["ip= asks for dhcp, which is not served here; its client address is used"]);
    }

    #[test]
    fn without_a_netmask_the_class_decides() {
        for (client, prefix) in [("10.0.0.2", 8), ("172.16.0.2", 16), ("192.168.1.2", 24)] {
            assert_eq!(IpParam::parse(client).prefix(), Some(prefix));
        }
        assert_eq!(IpParam::parse("::10.0.0.1").prefix(), None);
    }

    #[test]
    fn netmasks_with_holes_are_passed_over() {
        assert_eq!(prefix_of(Ipv4Addr::new(255, 255, 0, 255)), None);
        assert_eq!(prefix_of(Ipv4Addr::BROADCAST), Some(32));
        assert_eq!(prefix_of(Ipv4Addr::new(255, 255, 255, 252)), Some(30));
        assert_eq!(prefix_of(Ipv4Addr::UNSPECIFIED), Some(0));
        let param = IpParam::parse("10.0.0.2:::255.0.255.0");
        assert_eq!((param.prefix(), param.notes.len()), (Some(8), 1));
    }

    #[test]
    fn garbage_is_noted_and_harmless() {
        for text in
            [":::::::::::::::", "a:b:c:d:e:f/g:h:i:j:k:l:m", "[fe80::1]", "\u{1b}[0m", "999.1.1.1", "1.2.3"]
        {
            let param = IpParam::parse(text);
            assert_eq!(param.client, None, "{text}");
        }
        assert!(IpParam::parse("::::h:a-very-long-interface-name").device.is_none());
        assert!(IpParam::parse("0.0.0.0::::h:eth0").client.is_none());
    }
}
