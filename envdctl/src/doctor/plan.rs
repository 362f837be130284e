//! What the walk looks at: what the operator named, and for the rest what this host shows.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use vsock_relay::endpoint::{Endpoint, EndpointError, NETNS_DIR, Namespace};

use super::{Args, forwarder};
use crate::{
    guest_args::parse_guest,
    host::{
        net::{self, Link},
        process,
        socket::Listener,
        vmm::Monitor,
    },
    netns,
};

/// Where envd listens in every guest of the platform.
pub const GUEST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 0, 21)), ENVD_PORT);
/// envd's port, by TCP and by vsock.
pub const ENVD_PORT: u16 = 49983;

/// A network namespace and how commands enter it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    pub path: PathBuf,
    /// The name under /run/netns, where it has one.
    pub name: Option<String>,
}

impl Netns {
    pub fn of(namespace: &Namespace) -> Self {
        let path = namespace.path();
        let name = match namespace {
            Namespace::Name(name) => Some(name.clone()),
            Namespace::Path(path) => named(path),
        };
        Self { path, name }
    }

    fn from_path(path: PathBuf) -> Self {
        Self { name: named(&path), path }
    }

    /// As the operator says it.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.path.display().to_string())
    }

    /// A command that runs inside.
    pub fn run(&self, command: &str) -> String {
        match &self.name {
            Some(name) => format!("ip netns exec {name} {command}"),
            None => format!("nsenter --net={} {command}", self.path.display()),
        }
    }
}

fn named(path: &Path) -> Option<String> {
    let in_directory = path
        .parent()
        .is_some_and(|parent| parent == Path::new(NETNS_DIR) || parent == Path::new("/var/run/netns"));
    in_directory.then(|| path.file_name().map(|name| name.to_string_lossy().into_owned()))?
}

/// The way by vsock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vsock {
    /// A VMM's unix socket.
    Hybrid(PathBuf),
    /// The kernel's own.
    Cid(u32),
}

impl Vsock {
    pub fn endpoint(&self, port: u32) -> Endpoint {
        match self {
            Self::Hybrid(path) => Endpoint::Firecracker { path: path.clone(), port },
            Self::Cid(cid) => Endpoint::Vsock { cid: *cid, port },
        }
    }

    /// The option of other commands that means this guest.
    pub fn option(&self) -> String {
        match self {
            Self::Hybrid(path) => format!("--fc-socket {}", path.display()),
            Self::Cid(cid) => format!("-g vsock:{cid}"),
        }
    }
}

/// Everything that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub listen: Endpoint,
    pub netns: Option<Netns>,
    /// Namespaces that could be meant, where it is not clear which.
    pub candidates: Vec<String>,
    pub guest: SocketAddr,
    /// The guest is reached from this host's own namespace.
    pub direct: bool,
    pub vsock: Option<Vsock>,
    /// The port of the relay.
    pub relay_port: u32,
    pub console: Option<PathBuf>,
    /// The listener is a bridge of ours, which enters the namespace itself.
    pub bridge: bool,
}

/// What the routes say, given or taken from a bridge that runs.
#[derive(Debug, Default)]
struct Routes {
    netns: Option<Netns>,
    guest: Option<SocketAddr>,
    direct: bool,
    vsock: Option<(Vsock, u32)>,
}

impl Routes {
    fn read(endpoints: &[Endpoint]) -> Self {
        let mut routes = Self::default();
        for endpoint in endpoints {
            match endpoint {
                Endpoint::NetnsTcp(namespace, address) if routes.guest.is_none() => {
                    routes.netns = Some(Netns::of(namespace));
                    routes.guest = Some(*address);
                }
                Endpoint::Tcp(address) if routes.guest.is_none() => {
                    routes.guest = Some(*address);
                    routes.direct = true;
                }
                Endpoint::Firecracker { path, port } if routes.vsock.is_none() => {
                    routes.vsock = Some((Vsock::Hybrid(path.clone()), *port));
                }
                Endpoint::Vsock { cid, port } if routes.vsock.is_none() => {
                    routes.vsock = Some((Vsock::Cid(*cid), *port));
                }
                _ => {}
            }
        }
        routes
    }
}

/// Puts the plan together.
pub fn make(args: &Args, listeners: &[Listener], monitors: &[Monitor]) -> Result<Plan, EndpointError> {
    let listen: Endpoint = args.listen.parse::<Endpoint>()?.listenable()?;
    let given =
        args.route.iter().map(|text| parse_guest(text, ENVD_PORT.into())).collect::<Result<Vec<_>, _>>()?;
    let holder = holder(&listen, listeners);
    let running =
        holder.map(|listener| bridge_routes(listener.owner.as_ref().map_or(&[][..], |o| &o.arguments)));
    let bridge = running.as_ref().is_some_and(Option::is_some);
    let running = Routes::read(&running.flatten().unwrap_or_default());
    let given = Routes::read(&given);
    let guest = given.guest.or(running.guest).unwrap_or(GUEST);
    // A tcp: route to the namespace's own address leads to the forwarder there, not to the guest.
    let direct = given.direct && args.netns.is_none() || given.guest.is_none() && running.direct;
    let (netns, candidates) =
        match args.netns.as_deref().map(netns_argument).or(given.netns).or(running.netns) {
            Some(netns) => (Some(netns), Vec::new()),
            None => find_netns(guest, holder, monitors, args.fc_socket.as_deref()),
        };
    let vsock = vsock_argument(args).or(given.vsock).or(running.vsock);
    let vsock = vsock.or_else(|| find_vsock(netns.as_ref(), monitors));
    Ok(Plan {
        listen,
        direct: direct && netns.is_none(),
        netns,
        candidates,
        guest,
        relay_port: vsock.as_ref().map_or(ENVD_PORT.into(), |(_, port)| *port),
        vsock: vsock.map(|(way, _)| way),
        console: args.console.clone(),
        bridge,
    })
}

fn netns_argument(name: &str) -> Netns {
    if name.contains('/') {
        return Netns::from_path(std::path::absolute(name).unwrap_or_else(|_| name.into()));
    }
    Netns::of(&Namespace::Name(name.to_owned()))
}

fn vsock_argument(args: &Args) -> Option<(Vsock, u32)> {
    let path = args.fc_socket.as_ref()?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    Some((Vsock::Hybrid(path), ENVD_PORT.into()))
}

/// The listener that serves the address asked for, or else any on its port.
pub fn holder<'a>(listen: &Endpoint, listeners: &'a [Listener]) -> Option<&'a Listener> {
    let Endpoint::Tcp(address) = listen else { return None };
    let on_port = || listeners.iter().filter(|listener| listener.address.port() == address.port());
    on_port().find(|listener| serves(listener.address, *address)).or_else(|| on_port().next())
}

/// Whether a socket bound to `bound` takes connections to `address`.
pub fn serves(bound: SocketAddr, address: SocketAddr) -> bool {
    let same = bound.ip().to_canonical() == address.ip();
    // [::] takes IPv4 as well, unless it was told not to; what it takes is seen when it is tried.
    let any = bound.ip().is_unspecified() && (bound.is_ipv6() || address.is_ipv4());
    bound.port() == address.port() && (same || any)
}

/// The routes of an `envdctl bridge`, from its command line; `None` for every other program.
fn bridge_routes(arguments: &[String]) -> Option<Vec<Endpoint>> {
    let at = arguments.iter().position(|argument| argument == "bridge")?;
    let mut routes = Vec::new();
    let mut words = arguments[at + 1..].iter();
    while let Some(word) = words.next() {
        let route = match word.strip_prefix("--route") {
            Some("") => words.next().map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        routes.extend(route.and_then(|route| route.parse::<Endpoint>().ok()));
    }
    Some(routes)
}

/// The namespace of the sandbox: that of the VM whose socket was given; the one that the listener forwards into;
/// the only one with a tap.
fn find_netns(
    guest: SocketAddr,
    holder: Option<&Listener>,
    monitors: &[Monitor],
    socket: Option<&Path>,
) -> (Option<Netns>, Vec<String>) {
    let named = named_namespaces();
    if let Some(netns) = socket.and_then(|socket| netns_of_vm(socket, monitors, &named)) {
        return (Some(netns), Vec::new());
    }
    let target = holder.and_then(forwarder::target_of).and_then(|target| target.address);
    let mut found: Vec<(Netns, Vec<Link>)> = named
        .into_iter()
        .filter_map(|netns| links_with_tap(&netns, guest).map(|links| (netns, links)))
        .collect();
    let leads_into = |links: &[Link]| {
        target.is_some_and(|target| links.iter().flat_map(|l| &l.addresses).any(|a| a.address == target.ip()))
    };
    if let Some(at) = found.iter().position(|(_, links)| leads_into(links)) {
        return (Some(found.swap_remove(at).0), Vec::new());
    }
    match found.len() {
        0 => (only_vm(monitors), Vec::new()),
        1 => (found.pop().map(|(netns, _)| netns), Vec::new()),
        _ => (None, found.iter().map(|(netns, _)| netns.label()).collect()),
    }
}

fn named_namespaces() -> Vec<Netns> {
    let Ok(directory) = std::fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let mut found: Vec<Netns> = directory.flatten().map(|entry| Netns::from_path(entry.path())).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The interfaces of a namespace that could be a sandbox's: it has a tap, or an address beside the guest's.
fn links_with_tap(netns: &Netns, guest: SocketAddr) -> Option<Vec<Link>> {
    let links = netns::within(Some(&netns.path), net::links).ok()?.ok()?;
    let fits = links.iter().any(|link| {
        link.kind.as_deref() == Some("tun")
            || link.addresses.iter().any(|network| network.contains(guest.ip()))
    });
    fits.then_some(links)
}

fn netns_of_vm(socket: &Path, monitors: &[Monitor], named: &[Netns]) -> Option<Netns> {
    let wanted = process::inode_of(socket)?;
    let holds =
        |monitor: &&Monitor| monitor.sockets.iter().any(|path| process::inode_of(path) == Some(wanted));
    netns_of_monitor(monitors.iter().find(holds)?, named)
}

fn netns_of_monitor(monitor: &Monitor, named: &[Netns]) -> Option<Netns> {
    let inode = monitor.netns?;
    if process::netns_of(std::process::id() as i32) == Some(inode) {
        return None;
    }
    let by_name = named.iter().find(|netns| process::inode_of(&netns.path) == Some(inode)).cloned();
    Some(by_name.unwrap_or_else(|| Netns {
        path: PathBuf::from(format!("/proc/{}/ns/net", monitor.process.pid)),
        name: None,
    }))
}

/// The namespace of the only VM of this host, where it has one of its own.
fn only_vm(monitors: &[Monitor]) -> Option<Netns> {
    let mut apart = monitors.iter().filter_map(|monitor| netns_of_monitor(monitor, &[]));
    let first = apart.next()?;
    apart.next().is_none().then_some(first)
}

/// The socket of the VM in the namespace, or of the only VM of this host.
fn find_vsock(netns: Option<&Netns>, monitors: &[Monitor]) -> Option<(Vsock, u32)> {
    let inode = netns.and_then(|netns| process::inode_of(&netns.path));
    let own = process::netns_of(std::process::id() as i32);
    let pool = of_this_guest(inode, own, monitors);
    let mut sockets = pool.iter().flat_map(|monitor| &monitor.sockets);
    let first = sockets.next()?;
    sockets.next().is_none().then(|| (Vsock::Hybrid(first.clone()), ENVD_PORT.into()))
}

/// The monitors that may serve the guest of a namespace: those inside; where there is none, those outside of every sandbox (a
/// device of its own, as vhost-device-vsock, may run there). One in another sandbox's namespace is another guest's.
fn of_this_guest(namespace: Option<u64>, own: Option<u64>, monitors: &[Monitor]) -> Vec<&Monitor> {
    if namespace.is_none() {
        return monitors.iter().collect();
    }
    let inside: Vec<&Monitor> = monitors.iter().filter(|monitor| monitor.netns == namespace).collect();
    if !inside.is_empty() {
        return inside;
    }
    monitors.iter().filter(|monitor| monitor.netns.is_none() || monitor.netns == own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guest of another namespace was asked by vsock, and its troubles told as this one's.
    #[test]
    fn a_monitor_in_another_sandbox_is_never_this_guests() {
        let monitor = |pid, netns, sockets: &[&str]| Monitor {
            process: process::Owner {
                pid,
                name: "firecracker".into(),
                arguments: Vec::new(),
                stopped: false,
            },
            netns: Some(netns),
            sockets: sockets.iter().map(PathBuf::from).collect(),
        };
        let pids = |namespace, monitors: &[Monitor]| {
            of_this_guest(namespace, Some(1), monitors).iter().map(|m| m.process.pid).collect::<Vec<_>>()
        };
        let all = [monitor(10, 2, &[]), monitor(11, 3, &["/b.sock"]), monitor(12, 1, &["/host.sock"])];
        assert_eq!(pids(Some(2), &all), [10], "its own has no vsock");
        assert_eq!(pids(Some(4), &all), [12], "nobody is inside");
        assert_eq!(pids(None, &all), [10, 11, 12], "it is not known which is meant");
    }

    #[test]
    fn the_routes_of_a_running_bridge_are_read_from_its_command_line() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line = "envdctl bridge --listen tcp:127.0.0.1:1 --route netns:ns-7/tcp:10.1.2.3:5 --route=firecracker:/v:6";
        let routes = Routes::read(&bridge_routes(&words(line)).unwrap());
        assert_eq!(routes.guest, Some("10.1.2.3:5".parse().unwrap()));
        assert_eq!(routes.netns.unwrap().name.as_deref(), Some("ns-7"));
        assert_eq!(routes.vsock, Some((Vsock::Hybrid("/v".into()), 6)));
        assert!(bridge_routes(&words("socat TCP-LISTEN:1 TCP:2")).is_none());
    }

    #[test]
    fn a_wildcard_serves_every_address_of_its_family() {
        let serves = |bound: &str, asked: &str| serves(bound.parse().unwrap(), asked.parse().unwrap());
        assert!(serves("0.0.0.0:5", "127.0.0.1:5") && serves("[::]:5", "127.0.0.1:5"));
        assert!(serves("[::ffff:127.0.0.1]:5", "127.0.0.1:5"));
        assert!(!serves("10.11.0.2:5", "127.0.0.1:5") && !serves("0.0.0.0:6", "127.0.0.1:5"));
    }

    #[test]
    fn commands_enter_a_namespace_by_its_name_or_its_path() {
        let named = Netns::from_path("/run/netns/ns-7".into());
        assert_eq!(named.run("ss -tlnp"), "ip netns exec ns-7 ss -tlnp");
        let bare = Netns::from_path("/proc/5/ns/net".into());
        assert_eq!(bare.run("ss -tlnp"), "nsenter --net=/proc/5/ns/net ss -tlnp");
    }
}
