//! What can be seen of the machine without being its init: read from /proc and /sys when somebody asks, never before.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;

use guest::cmdline::{Cmdline, ip::IpParam};
use guest::{config, control};
use nix::ifaddrs::getifaddrs;

const RELAY: &str = "vsock-relay";
const RELAY_CGROUP: &str = "/sys/fs/cgroup/init.scope/cgroup.procs";

/// Name of PID 1's program, for messages.
pub(super) fn init_name() -> String {
    let name = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    if name.trim().is_empty() { "the image's init".to_owned() } else { name.trim().to_owned() }
}

/// What the network should be: `ip=`, else the configuration, else the platform's defaults.
pub(super) fn wanted(config: &config::Network) -> control::Network {
    let cmdline = Cmdline::of_this_machine();
    let ip = cmdline.value("ip").map(IpParam::parse).unwrap_or_default();
    let address = match (ip.client, ip.prefix()) {
        (Some(address), Some(prefix)) => format!("{address}/{prefix}"),
        _ => config.address.to_string(),
    };
    control::Network {
        wanted: Some(address),
        interface: ip.device.unwrap_or_else(|| config.interface.clone()),
        ..control::Network::default()
    }
}

/// The network as it is now.
pub(super) fn network(wanted: &control::Network) -> control::Network {
    let name = &wanted.interface;
    let read = |file: &str| fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok();
    let trimmed = |file: &str| read(file).map(|text| text.trim().to_owned());
    let found = addresses(name);
    control::Network {
        configured_by: if found.is_empty() { "none" } else { "image" }.to_owned(),
        found,
        gateway: gateway(&fs::read_to_string("/proc/net/route").unwrap_or_default(), name),
        mac: trimmed("address"),
        mtu: trimmed("mtu").and_then(|text| text.parse().ok()),
        link_up: trimmed("carrier").as_deref() == Some("1"),
        ..wanted.clone()
    }
}

fn addresses(interface: &str) -> Vec<String> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    all.filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address.as_ref()?.as_sockaddr_in()?.ip();
            let mask = entry.netmask.as_ref()?.as_sockaddr_in()?.ip();
            Some(format!("{address}/{}", u32::from(mask).count_ones()))
        })
        .collect()
}

/// The default route's gateway in `/proc/net/route`, where addresses are hexadecimal in the machine's byte order.
fn gateway(routes: &str, interface: &str) -> Option<String> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (device, destination, gateway) = (fields.next()?, fields.next()?, fields.next()?);
        let number = u32::from_str_radix(gateway, 16).ok()?;
        (device == interface && destination == "00000000" && number != 0)
            .then(|| Ipv4Addr::from(number.to_ne_bytes()).to_string())
    })
}

/// The relay's process. It lives in `init.scope`, so few have to be looked at; without cgroup2 it may be anywhere.
pub(super) fn relay_pid() -> Option<i32> {
    let processes = fs::read_to_string(RELAY_CGROUP).unwrap_or_default();
    let found = processes.lines().filter_map(|line| line.parse().ok()).find(|pid| is_relay(*pid));
    found.or_else(|| {
        let entries = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid| is_relay(*pid))
    })
}

/// By its name, since the file that it runs from is that of all our programs; and root's, since anybody can take a name.
fn is_relay(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == RELAY)
        && fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == 0)
}

/// When a process was started, in guest-monotonic time (to the kernel's tick).
pub(super) fn started_ns(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some(ticks * (1_000_000_000 / TICKS_PER_SECOND))
}

/// `USER_HZ`, fixed on every architecture that we serve.
const TICKS_PER_SECOND: u64 = 100;

pub(super) fn resident_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory of the cgroup that we share with envd.
pub(super) fn own_cgroup_memory() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.current")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_gateway_is_read_from_the_kernels_table() {
        let table = "Iface\tDestination\tGateway\tFlags\neth0\t1400FEA9\t00000000\t0001\n\
                     eth1\t00000000\t0101A8C0\t0003\neth0\t00000000\t1600FEA9\t0003\n";
        assert_eq!(gateway(table, "eth0").as_deref(), Some("169.254.0.22"));
        assert_eq!(gateway(table, "lo"), None);
    }

    #[test]
    fn loopback_is_seen_with_its_prefix() {
        assert!(addresses("lo").contains(&"127.0.0.1/8".to_owned()));
    }
}
