//! Gathers what the walk is judged by. Looks, connects and pings; changes nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use guest::control::{Status, VSOCK_PORT};
use vsock_relay::endpoint::Endpoint;

use super::{
    console::{self, ConsoleFacts},
    forwarder,
    plan::{Netns, Plan, Vsock},
    probe::{self, Health, Ping},
    proxy::{self, ProxyFacts},
    rules::{self, Rules},
};
use crate::{
    client::{Client, ClientError},
    dial::{self, DialError},
    host::{
        net::{self, Link, Neighbour, Route},
        socket::{self, Listener},
        vmm::Monitor,
    },
    netns::{self, NetnsError},
};

/// Everything that was found.
#[derive(Debug)]
pub struct Facts {
    pub plan: Plan,
    pub host: HostFacts,
    pub namespace: Inside,
    /// The guest, asked from inside the namespace (or from here, where there is none).
    pub guest: Option<GuestFacts>,
    pub vsock: Option<VsockFacts>,
    pub console: Option<Result<ConsoleFacts, String>>,
    pub monitors: Vec<Monitor>,
}

/// This host's own namespace.
#[derive(Debug)]
pub struct HostFacts {
    pub links: Vec<Link>,
    pub listeners: Result<Vec<Listener>, String>,
    /// `GET /health` through the listener, as an SDK would.
    pub health: Health,
    pub localhost: Vec<IpAddr>,
    pub proxy: ProxyFacts,
    pub rules: Counted,
    /// Where the listener forwards to, or where the namespace's forwarder listens, as seen from here.
    pub entry: Option<Entry>,
}

/// The way from this host into the namespace.
#[derive(Debug)]
pub struct Entry {
    pub address: SocketAddr,
    pub route: io::Result<Route>,
    pub health: Health,
}

/// Rules before and after the probes: what counted in between met a probe.
#[derive(Debug, Default)]
pub struct Counted {
    pub before: Rules,
    pub after: Rules,
}

/// The sandbox's namespace.
#[derive(Debug)]
pub enum Inside {
    /// None was given or found.
    None,
    Failed(NetnsError),
    Entered(Box<NamespaceFacts>),
}

#[derive(Debug)]
pub struct NamespaceFacts {
    pub links: Vec<Link>,
    pub listeners: Result<Vec<Listener>, String>,
    pub rules: Counted,
}

/// The guest's address, as reached by TCP.
#[derive(Debug)]
pub struct GuestFacts {
    pub route: io::Result<Route>,
    pub ping: Ping,
    pub health: Health,
    pub neighbour: Option<Neighbour>,
    /// How long all of this took.
    pub took: Duration,
}

/// The guest, as reached by vsock.
#[derive(Debug)]
pub struct VsockFacts {
    /// Whether the socket is there and somebody listens on it.
    pub socket: io::Result<()>,
    pub control: Result<Status, ClientError>,
    pub relay: Result<Health, DialError>,
}

/// Looks at everything. The ways by TCP and by vsock are walked at the same time.
pub fn gather(plan: Plan, listeners: Result<Vec<Listener>, String>, monitors: Vec<Monitor>) -> Facts {
    let (vsock, (host, namespace, guest)) = thread::scope(|scope| {
        let vsock = scope.spawn(|| plan.vsock.as_ref().map(|way| look_at_vsock(way, plan.relay_port)));
        let tcp = walk_tcp(&plan, listeners);
        (vsock.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), tcp)
    });
    let console = plan.console.as_deref().map(console::read);
    Facts { plan, host, namespace, guest, vsock, console, monitors }
}

fn walk_tcp(
    plan: &Plan,
    listeners: Result<Vec<Listener>, String>,
) -> (HostFacts, Inside, Option<GuestFacts>) {
    let before = rules::read();
    let health = listen_health(&plan.listen);
    let (namespace, mut guest) = look_inside(plan);
    if guest.is_none() && plan.direct {
        guest = Some(look_at_guest(plan.guest));
    }
    let entry = entry_of(plan, listeners.as_deref().unwrap_or_default(), &namespace).map(look_at_entry);
    let host = HostFacts {
        links: net::links().unwrap_or_default(),
        proxy: proxy::look(plan, listeners.as_deref().unwrap_or_default(), &health),
        listeners,
        health,
        localhost: resolve_localhost(),
        rules: Counted { before, after: rules::read() },
        entry,
    };
    (host, namespace, guest)
}

fn listen_health(listen: &Endpoint) -> Health {
    match listen {
        Endpoint::Tcp(address) => probe::health(reachable(*address)),
        endpoint => match dial::dial(endpoint, probe::CONNECT_BOUND) {
            Ok(stream) => probe::health_over(&stream, "localhost"),
            Err(error) => error.io().map_or_else(
                || Health::Unreachable { error: error.to_string() },
                |io| match io.kind() {
                    io::ErrorKind::ConnectionRefused => Health::Refused,
                    _ => Health::Unreachable { error: probe::plain(io) },
                },
            ),
        },
    }
}

/// A wildcard is listened on, not connected to.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => ([127, 0, 0, 1], address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => ([0, 0, 0, 0, 0, 0, 0, 1_u16], address.port()).into(),
        _ => address,
    }
}

fn resolve_localhost() -> Vec<IpAddr> {
    ("localhost", 0)
        .to_socket_addrs()
        .map(|found| found.map(|address| address.ip()).collect())
        .unwrap_or_default()
}

fn look_inside(plan: &Plan) -> (Inside, Option<GuestFacts>) {
    let Some(Netns { path, .. }) = &plan.netns else { return (Inside::None, None) };
    match netns::within(Some(path), || look_around(plan.guest)) {
        Ok((namespace, guest)) => (Inside::Entered(Box::new(namespace)), Some(guest)),
        Err(error) => (Inside::Failed(error), None),
    }
}

/// Runs inside the namespace.
fn look_around(target: SocketAddr) -> (NamespaceFacts, GuestFacts) {
    let before = rules::read();
    let guest = look_at_guest(target);
    let namespace = NamespaceFacts {
        links: net::links().unwrap_or_default(),
        listeners: socket::listeners().map_err(|error| error.to_string()),
        rules: Counted { before, after: rules::read() },
    };
    (namespace, guest)
}

fn look_at_guest(target: SocketAddr) -> GuestFacts {
    let begun = Instant::now();
    let route = net::route_to(target.ip());
    let ping = probe::ping(target.ip());
    let health = probe::health(target);
    let neighbour = net::neighbour(target.ip()).ok().flatten();
    GuestFacts { route, ping, health, neighbour, took: begun.elapsed() }
}

/// Where the host enters the namespace: what the listener's command line says, else where a forwarder listens inside.
fn entry_of(plan: &Plan, listeners: &[Listener], namespace: &Inside) -> Option<SocketAddr> {
    let holder = super::plan::holder(&plan.listen, listeners);
    if let Some(address) = holder.and_then(forwarder::target_of).and_then(|target| target.address) {
        return Some(address);
    }
    let Inside::Entered(inside) = namespace else { return None };
    let forwarders = inside.listeners.as_deref().unwrap_or_default();
    let bound = forwarders.iter().find(|listener| is_entry(listener, plan, forwarders.len()))?.address;
    if !bound.ip().is_unspecified() {
        return (!bound.ip().is_loopback()).then_some(bound);
    }
    let veth = inside.links.iter().find(|link| link.kind.as_deref() == Some("veth"))?;
    let address = veth.addresses.iter().find(|network| network.address.is_ipv4())?.address;
    Some(SocketAddr::new(address, bound.port()))
}

/// Whether a listener inside the namespace is (meant to be) the way to envd.
pub fn is_entry(listener: &Listener, plan: &Plan, listeners: usize) -> bool {
    let port = listener.address.port();
    let listen_port = match &plan.listen {
        Endpoint::Tcp(address) => address.port(),
        _ => plan.guest.port(),
    };
    let target = forwarder::target_of(listener);
    let leads_to_port =
        target.as_ref().and_then(|t| t.address).is_some_and(|t| t.port() == plan.guest.port());
    port == plan.guest.port() || port == listen_port || leads_to_port || target.is_some() && listeners == 1
}

fn look_at_entry(address: SocketAddr) -> Entry {
    Entry { address, route: net::route_to(address.ip()), health: probe::health(address) }
}

fn look_at_vsock(way: &Vsock, relay_port: u32) -> VsockFacts {
    let socket = match way {
        Vsock::Hybrid(path) => look_at_socket(path),
        Vsock::Cid(_) => std::fs::metadata("/dev/vsock").map(|_| ()),
    };
    let bound = probe::CONNECT_BOUND;
    let control = Client::connect(&way.endpoint(VSOCK_PORT), bound).and_then(|mut client| client.status());
    let relay = way.endpoint(relay_port);
    let relay = dial::dial(&relay, bound).map(|stream| probe::health_over(&stream, "localhost"));
    VsockFacts { socket, control, relay }
}

fn look_at_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    if !std::fs::metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
    }
    // With the handshake, though only the socket matters here: a connection that is closed without a word keeps
    // vhost-device-vsock busy for ever.
    let endpoint = Endpoint::Firecracker { path: path.to_owned(), port: VSOCK_PORT };
    match dial::dial(&endpoint, probe::CONNECT_BOUND) {
        Err(DialError::Connect { source, .. }) => Err(source),
        _ => Ok(()),
    }
}
