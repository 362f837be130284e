//! `/etc/envd-init/config.toml`, and the words `envd_init.KEY=value` of the kernel's command line over it.
//!
//! Every key has a default, so that an empty or absent file is a good one. docs/configuration.md says what each means; a test
//! holds its keys and defaults and those here together.

use std::{collections::BTreeMap, io, net::Ipv4Addr, path::Path, str::FromStr};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    cmdline::Cmdline,
    files,
    lenient::{self, Read},
    toml::{self, Table},
};

/// Where the image's owner puts the configuration.
pub const PATH: &str = "/etc/envd-init/config.toml";

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub boot: Boot,
    pub network: Network,
    pub envd: Envd,
    pub control: Control,
    pub shutdown: Shutdown,
    pub log: Log,
}

/// `[boot]`: what PID 1 sets up.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Boot {
    /// The host name; unset: `/etc/hostname`, then `ip=`.
    pub hostname: Option<String>,
    /// Whether `/etc/sysctl.conf` and `sysctl.d` are applied.
    pub sysctl: bool,
    /// Whether the clock is set once from `/dev/ptp0` when it is off by more than 50 ms.
    pub ptp_clock: bool,
    /// Where a crash's core goes (`kernel.core_pattern`); empty: left as the kernel has it.
    pub core_pattern: String,
    /// Further settings under /proc/sys, over the files', for example `"vm.swappiness" = "10"`.
    pub settings: BTreeMap<String, String>,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            hostname: None,
            sysctl: true,
            ptp_clock: true,
            // No core is ever written into a snapshot. (Not /dev/null: the kernel unlinks an existing target first.)
            core_pattern: "|/bin/false".to_owned(),
            settings: BTreeMap::new(),
        }
    }
}

/// `[network]`: the interface towards the host. `ip=` of the kernel's command line comes before all of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// `false`: only look and report, never change anything.
    pub manage: bool,
    pub interface: String,
    /// Address and prefix length.
    pub address: Cidr,
    /// The default route's; see [`Network::gateway`].
    pub gateway: Option<Ipv4Addr>,
    /// Bytes; unset: as the device has it.
    pub mtu: Option<u32>,
    /// Name servers for `/etc/resolv.conf`, used only when the image has none.
    pub dns: Vec<Ipv4Addr>,
    /// Milliseconds until a link that does not come is said to be missing; it is still served when it comes later.
    pub link_timeout_ms: u64,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            manage: true,
            interface: "eth0".to_owned(),
            address: Cidr { address: Ipv4Addr::new(169, 254, 0, 21), prefix: 30 },
            gateway: None,
            mtu: None,
            dns: Vec::new(),
            link_timeout_ms: 10_000,
        }
    }
}

impl Network {
    /// Unset, it is the platform's where the address is the platform's too; for another address that one leads nowhere.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        const PLATFORMS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
        let platforms = (self.address == Self::default().address).then_some(PLATFORMS);
        self.gateway.or(platforms)
    }
}

/// `[envd]`: read by envd-wrapper.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Envd {
    /// The program; unset: searched in /usr/bin, then in /usr/local/bin.
    pub program: Option<String>,
    /// Its sha256 in hexadecimal, which lets it lie where others than root can write.
    pub sha256: Option<String>,
    pub arguments: Vec<String>,
    /// Milliseconds from exec to the first healthy answer before it is killed and started again.
    pub start_timeout_ms: u64,
    /// Milliseconds between two checks of a healthy envd; 0 turns them off.
    pub liveness_interval_ms: u64,
    /// Milliseconds of guest-running time over which every check must fail before envd is restarted.
    pub liveness_window_ms: u64,
    /// Milliseconds that envd gets to end after TERM, before KILL.
    pub stop_timeout_ms: u64,
}

impl Default for Envd {
    fn default() -> Self {
        Self {
            program: None,
            sha256: None,
            arguments: Vec::new(),
            start_timeout_ms: 10_000,
            liveness_interval_ms: 30_000,
            liveness_window_ms: 60_000,
            stop_timeout_ms: 2_000,
        }
    }
}

/// `[control]`: who may ask PID 1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    /// Whether the host (CID 2) may speak on vsock port 49984.
    pub vsock: bool,
}

impl Default for Control {
    fn default() -> Self {
        Self { vsock: true }
    }
}

/// `[shutdown]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// Milliseconds from the request to the reboot, whatever does not end by then.
    pub timeout_ms: u64,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { timeout_ms: 8_000 }
    }
}

/// `[log]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Whether records of level debug are kept and shown.
    pub debug: bool,
}

/// `169.254.0.21/30`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no IPv4 address with a prefix length, like 169.254.0.21/30")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some(Self { address: address.parse().ok()?, prefix })
        };
        parse().ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Reads the file at `path` and lays the command line's words over it. Never fails; each problem names its file or word.
pub fn load(path: &Path, cmdline: &Cmdline) -> Read<Config> {
    let (text, unreadable) = match files::read_text(path) {
        Ok(text) => (text, None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (String::new(), None),
        Err(error) => (String::new(), Some(format!("{} is passed over: {error}", path.display()))),
    };
    // As in most images. A boot waits for this: it is no time to run the parser over nothing.
    if text.is_empty() && cmdline.overrides().next().is_none() {
        return Read { value: Config::default(), problems: unreadable.into_iter().collect() };
    }
    let (table, in_file) = table(&text);
    let in_file = in_file.into_iter().map(|problem| format!("{}: {problem}", path.display()));
    let mut read = with_overrides(table, cmdline);
    read.problems.splice(0..0, unreadable.into_iter().chain(in_file));
    read
}

/// The same from text.
pub fn parse(text: &str, cmdline: &Cmdline) -> Read<Config> {
    let (table, problems) = table(text);
    let mut read = with_overrides(table, cmdline);
    read.problems.splice(0..0, problems);
    read
}

/// What of a file's text is good.
fn table(text: &str) -> (Table, Vec<String>) {
    match toml::parse(text) {
        Ok(table) => {
            let good = lenient::good_part::<Config>(&table);
            (good.value, good.problems)
        }
        Err(error) => (Table::new(), vec![format!("{error}; the whole file is passed over")]),
    }
}

fn with_overrides(mut table: Table, cmdline: &Cmdline) -> Read<Config> {
    let mut problems = Vec::new();
    for (key, value) in cmdline.overrides() {
        if let Err(reason) = lay_over(&mut table, key, value) {
            problems.push(format!("envd_init.{key} of the kernel's command line: {reason}"));
        }
    }
    Read { value: lenient::typed(table).unwrap_or_default(), problems }
}

/// A value of the command line is read as TOML (`1400`, `true`, `["1.1.1.1"]`), and where that does not fit as text.
fn lay_over(table: &mut Table, key: &str, value: &str) -> Result<(), String> {
    let path = path_of(key);
    let literal = toml::parse_value(value).ok();
    if let Some(literal) = literal
        && lenient::accept::<Config>(table, &path, literal).is_ok()
    {
        return Ok(());
    }
    lenient::accept::<Config>(table, &path, Value::String(value.to_owned()))
}

/// Values of the right type that can never be right. When booting whoever uses them says so.
pub fn check(config: &Config) -> Vec<String> {
    let (boot, network, envd) = (&config.boot, &config.network, &config.envd);
    let wrong = [
        boot.hostname
            .as_deref()
            .filter(|name| !is_hostname(name))
            .map(|name| format!("boot.hostname: {name:?} is no host name")),
        (!is_interface_name(&network.interface))
            .then(|| format!("network.interface: {:?} is no name of an interface", network.interface)),
        network
            .mtu
            .filter(|mtu| !(SMALLEST_MTU..=LARGEST_MTU).contains(mtu))
            .map(|mtu| format!("network.mtu: {mtu} is not between {SMALLEST_MTU} and {LARGEST_MTU}")),
        envd.program
            .as_deref()
            .filter(|program| !program.starts_with('/'))
            .map(|program| format!("envd.program: {program:?} is no whole path")),
        envd.sha256
            .as_deref()
            .filter(|sum| sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .map(|sum| format!("envd.sha256: {sum:?} is no sha256 in hexadecimal (64 digits)")),
        (envd.sha256.is_some() && envd.program.is_none())
            .then(|| "envd.sha256 pins nothing without envd.program".to_owned()),
    ];
    wrong.into_iter().flatten().collect()
}

/// What IPv4 needs, and the largest that a packet's length can tell (bytes).
const SMALLEST_MTU: u32 = 68;
const LARGEST_MTU: u32 = 65_535;

/// Whether the kernel and those who ask it take this for a name of a machine.
pub fn is_hostname(name: &str) -> bool {
    const LONGEST: usize = 64;
    (1..=LONGEST).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// IFNAMSIZ is 16 with its final zero; a slash or white space cannot be in a name.
pub(crate) fn is_interface_name(name: &str) -> bool {
    let impossible = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    (1..16).contains(&name.len()) && !name.contains(impossible)
}

/// What is behind `boot.settings.` is one name, with dots of its own, and stays as it is; elsewhere `-` is as good as `_`.
fn path_of(key: &str) -> Vec<String> {
    const SETTINGS: &str = "boot.settings.";
    match key.strip_prefix(SETTINGS) {
        Some(name) => vec!["boot".to_owned(), "settings".to_owned(), name.to_owned()],
        None => key.split('.').map(|part| part.replace('-', "_")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, cmdline: &str) -> Read<Config> {
        parse(text, &Cmdline::parse(cmdline))
    }

    #[test]
    fn nothing_at_all_is_the_platforms_sandbox() {
        let read = with("", "");
        assert_eq!(read, Read { value: Config::default(), problems: vec![] });
        assert_eq!(read.value.network.address.to_string(), "169.254.0.21/30");
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_takes_every_type() {
        let line = "envd_init.network.mtu=1400 envd_init.network.interface=eth7 envd_init.control.vsock=false \
                    envd_init.network.dns=[\"1.1.1.1\"] envd_init.network.address=10.0.0.2/24 envd_init.log.debug \
                    envd_init.boot.hostname=1234";
        // As the kernel hands it on: quotes inside a word are its grouping, so an array needs single quotes.
        let line = line.replace("\"1.1.1.1\"", "'1.1.1.1'");
        let config = with("[network]\nmtu = 9000\n", &line);
        assert_eq!(config.problems, [""; 0]);
        let network = config.value.network;
        assert_eq!((network.mtu, network.interface.as_str()), (Some(1400), "eth7"));
        assert_eq!(network.address.to_string(), "10.0.0.2/24");
        assert_eq!(network.dns.len(), 1);
        assert!(!config.value.control.vsock && config.value.log.debug);
        assert_eq!(config.value.boot.hostname.as_deref(), Some("1234"));
    }

    #[test]
    fn each_setting_of_the_kernel_can_stand_on_the_command_line() {
        let line = "envd_init.boot.settings.vm.swappiness=10 envd_init.boot.settings.kernel.core_uses_pid=1 \
                    envd-init.network.link-timeout-ms=5";
        let read = with("[boot.settings]\n'vm.swappiness' = '60'\n'fs.aio-max-nr' = '7'\n", line);
        assert_eq!(read.problems, [""; 0]);
        let settings: Vec<_> = read.value.boot.settings.iter().collect();
        let text = |text: &str| text.to_owned();
        let wanted = [("fs.aio-max-nr", "7"), ("kernel.core_uses_pid", "1"), ("vm.swappiness", "10")];
        assert_eq!(
            settings,
            wanted
                .map(|(name, value)| (text(name), text(value)))
                .each_ref()
                .map(|(name, value)| (name, value))
        );
        assert_eq!(read.value.network.link_timeout_ms, 5);
    }

    #[test]
    fn wrong_keys_and_values_are_named_and_the_rest_counts() {
        let read = with(
            "[network]\nmtu = 'big'\ninterface = 'eth3'\naddress = 'x'\n[nonsense]\na = 1\n",
            "envd_init.bogus=1 envd_init.shutdown.timeout_ms=soon envd_init.log.debug=true",
        );
        assert_eq!(read.value.network.interface, "eth3");
        assert_eq!(read.value.network.address, Network::default().address);
        assert!(read.value.log.debug);
        assert_eq!(read.problems.len(), 5, "{:#?}", read.problems);
    }

    #[test]
    fn a_file_that_is_no_toml_is_passed_over_and_the_command_line_still_counts() {
        let read = with("\u{7f}ELF garbage [[", "envd_init.shutdown.timeout_ms=5");
        assert_eq!(read.value.shutdown.timeout_ms, 5);
        assert_eq!(read.problems.len(), 1);
    }

    impl serde::Serialize for Cidr {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    #[test]
    fn every_key_is_documented_with_its_default_and_no_other_one_is() {
        let mut told = crate::documented::keys(include_str!("../../docs/configuration.md"));
        for (key, default) in crate::documented::defaults(&Config::default()) {
            let cell =
                told.remove(&key).unwrap_or_else(|| panic!("docs/configuration.md says nothing of {key}"));
            assert!(crate::documented::is_default(&cell, &default), "{key}: {cell:?} is not {default}");
        }
        assert!(told.is_empty(), "docs/configuration.md tells of keys that there are not: {told:?}");
    }

    #[test]
    fn what_can_never_be_right_is_named_when_an_image_is_baked() {
        let problems = |text: &str| check(&with(text, "").value);
        assert_eq!(problems(""), [""; 0]);
        let pinned = format!("[envd]\nprogram = '/p'\nsha256 = '{}'\n", "a1".repeat(32));
        assert_eq!(problems(&pinned), [""; 0]);
        let wrong = "[boot]\nhostname = 'a b'\n[network]\ninterface = 'a-name-that-is-too-long'\nmtu = 20\n\
                     [envd]\nprogram = 'envd'\nsha256 = 'abc'\n";
        let named = problems(wrong);
        for key in ["boot.hostname", "network.interface", "network.mtu", "envd.program", "envd.sha256"] {
            assert_eq!(
                named.iter().filter(|problem| problem.starts_with(key)).count(),
                1,
                "{key}: {named:?}"
            );
        }
        let alone = format!("[envd]\nsha256 = '{}'\n", "a1".repeat(32));
        assert_eq!(problems(&alone), ["envd.sha256 pins nothing without envd.program"]);
    }
}
