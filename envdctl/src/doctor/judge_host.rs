//! Judges the hops on the host's side: the listener, and proxies.

use std::net::{IpAddr, SocketAddr};

use vsock_relay::endpoint::Endpoint;

use super::{
    facts::{Facts, Inside},
    forwarder,
    hop::{Finding, Hop},
    judge_rules,
    plan::{Plan, holder, serves},
    probe::Health,
    proxy::Applied,
};
use crate::{host::socket::Listener, text::sanitise};

/// The listener: who holds the port, on which address, and does it take connections.
pub fn listener(facts: &Facts) -> Finding {
    let Endpoint::Tcp(address) = facts.plan.listen else { return unix_listener(facts) };
    let listeners = match &facts.host.listeners {
        Ok(listeners) => listeners,
        Err(error) => {
            return Finding::unknown(Hop::Listener, format!("/proc/net/tcp cannot be read: {error}"));
        }
    };
    if !address.ip().is_loopback() && !address.ip().is_unspecified() && !on_this_host(facts, address) {
        return absent_address(facts, listeners, address);
    }
    match holder(&facts.plan.listen, listeners) {
        None => nobody(facts, listeners, address),
        Some(found) if !serves(found.address, address) => elsewhere(facts, found, address),
        Some(found) => serving(facts, found, address),
    }
}

fn on_this_host(facts: &Facts, address: SocketAddr) -> bool {
    facts.host.links.iter().flat_map(|link| &link.addresses).any(|network| network.address == address.ip())
}

fn who(listener: &Listener) -> String {
    listener.owner.as_ref().map_or_else(
        || "a process that cannot be seen from here (another pid namespace, or root is needed)".to_owned(),
        crate::host::process::Owner::label,
    )
}

fn command_of(listener: &Listener) -> Option<String> {
    listener.owner.as_ref().map(|owner| format!("its command line: {}", owner.command()))
}

fn bridge_command(plan: &Plan) -> String {
    let by_tcp = match &plan.netns {
        Some(netns) => format!("netns:{}/tcp:{}", netns.label(), plan.guest),
        None if plan.direct => format!("tcp:{}", plan.guest),
        None => format!("netns:NAME/tcp:{}", plan.guest),
    };
    let by_vsock = plan.vsock.as_ref().map(|way| format!(" --route {}", way.endpoint(plan.relay_port)));
    format!("envdctl bridge --listen {} --route {by_tcp}{}", plan.listen, by_vsock.unwrap_or_default())
}

fn nobody(facts: &Facts, listeners: &[Listener], address: SocketAddr) -> Finding {
    let bridges = listeners.iter().filter(|listener| {
        listener
            .owner
            .as_ref()
            .is_some_and(|owner| matches!(owner.name.as_str(), "envdctl" | "socat" | "orchestrator"))
    });
    Finding::broken(
        Hop::Listener,
        format!("nothing listens on {address}, on no address of port {}", address.port()),
    )
    .because_all(bridges.map(|listener| format!("{} listens on {}", who(listener), listener.address)))
    .then_do(bridge_command(&facts.plan))
}

/// The port is held, but on another address: one that exists, or one that does not.
fn elsewhere(facts: &Facts, found: &Listener, address: SocketAddr) -> Finding {
    let bound = found.address;
    let exists = bound.ip().is_loopback() || on_this_host(facts, bound);
    let what = if exists {
        format!("{} listens on {bound} and not on {address}: clients of {address} are refused", who(found))
    } else {
        format!(
            "{} listens on {bound}, an address that is on no interface of this host: nobody can reach it",
            who(found)
        )
    };
    let mut finding = Finding::broken(Hop::Listener, what).because_all(command_of(found));
    if !exists {
        finding = finding.because_all(Some(addresses(facts)));
    }
    finding
        .then_do(format!("# make it listen on {address}, or put the bridge in its place:"))
        .then_do(bridge_command(&facts.plan))
}

fn addresses(facts: &Facts) -> String {
    let found: Vec<String> = facts
        .host
        .links
        .iter()
        .flat_map(|link| {
            link.addresses.iter().filter(|a| a.address.is_ipv4()).map(|a| format!("{} {a}", link.name))
        })
        .collect();
    format!("addresses of this host: {}", if found.is_empty() { "none".into() } else { found.join(", ") })
}

fn absent_address(facts: &Facts, listeners: &[Listener], address: SocketAddr) -> Finding {
    let held = holder(&facts.plan.listen, listeners);
    let who = held.map_or_else(
        || "nobody listens there".to_owned(),
        |held| format!("{} is bound to {}", who(held), held.address),
    );
    Finding::broken(
        Hop::Listener,
        format!("the address {} is on no interface of this host; {who}", address.ip()),
    )
    .because_all(held.and_then(command_of))
    .because(addresses(facts))
    .then_do(format!("# listen on 127.0.0.1:{} instead", address.port()))
}

fn serving(facts: &Facts, found: &Listener, address: SocketAddr) -> Finding {
    let health = &facts.host.health;
    let who = who(found);
    if let Some(owner) = found.owner.as_ref().filter(|owner| owner.stopped) {
        return Finding::broken(
            Hop::Listener,
            format!("{who} holds {address} but is stopped by a signal or a debugger"),
        )
        .because(format!("GET /health through it {}", health.said()))
        .then_do(format!("kill -CONT {}", owner.pid));
    }
    let ok = || {
        Finding::ok(Hop::Listener, format!("{who} listens on {}", found.address))
            .because(format!("GET /health through it {}", health.said()))
            .because_all(command_of(found))
    };
    if health.connected() || judge_rules::stops_listener(facts) {
        return wrong_target(facts, found).or_else(|| wrong_localhost(facts, address)).unwrap_or_else(ok);
    }
    let lo_down = facts.host.links.iter().any(|link| link.loopback && !link.up);
    let broken = Finding::broken(
        Hop::Listener,
        format!("{who} listens on {}, yet a connection {}", found.address, health.said()),
    )
    .because_all(command_of(found));
    match health {
        _ if lo_down && address.ip().is_loopback() => {
            broken.because("the interface lo is down").then_do("ip link set lo up")
        }
        Health::ConnectTimeout if found.waiting > 0 => broken
            .because(format!("{} connections wait to be accepted: the process accepts none", found.waiting))
            .then_do("# restart it, or put the bridge in its place:")
            .then_do(bridge_command(&facts.plan)),
        _ => broken.then_do(format!("ss -tlnp 'sport = :{}'", address.port())),
    }
}

/// A listener whose command line leads to an address that the namespace does not have.
fn wrong_target(facts: &Facts, found: &Listener) -> Option<Finding> {
    let target = forwarder::target_of(found)?;
    let address = target.address?;
    let Inside::Entered(inside) = &facts.namespace else { return None };
    if facts.host.health.is_well() || address.ip() == facts.plan.guest.ip() || address.ip().is_loopback() {
        return None;
    }
    let veths: Vec<String> = inside
        .links
        .iter()
        .filter(|link| link.kind.as_deref() == Some("veth"))
        .flat_map(|link| &link.addresses)
        .filter(|network| network.address.is_ipv4())
        .map(|network| network.address.to_string())
        .collect();
    let known =
        inside.links.iter().flat_map(|link| &link.addresses).any(|network| network.address == address.ip());
    if veths.is_empty() || known || !judge_rules::redirects(facts, address).is_empty() {
        return None;
    }
    // An address that the namespace's own forwarder is bound to has gone missing there: that is the forwarder's hop.
    let bound =
        inside.listeners.as_deref().unwrap_or_default().iter().any(|l| l.address.ip() == address.ip());
    if bound {
        return None;
    }
    let port = inside
        .listeners
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|listener| {
            super::facts::is_entry(listener, &facts.plan, inside.listeners.as_deref().map_or(0, <[_]>::len))
        })
        .map_or(address.port(), |listener| listener.address.port());
    Some(
        Finding::broken(
            Hop::Listener,
            format!(
                "{} forwards to {}, an address that the namespace does not have",
                who(found),
                sanitise(&target.text)
            ),
        )
        .because(format!("addresses of the namespace's veth: {}", veths.join(", ")))
        .because_all(command_of(found))
        .then_do(format!("# let it forward to {}:{port}, or put the bridge in its place:", veths[0]))
        .then_do(bridge_command(&facts.plan)),
    )
}

/// SDKs connect to the name `localhost`.
fn wrong_localhost(facts: &Facts, address: SocketAddr) -> Option<Finding> {
    let found = &facts.host.localhost;
    if !address.ip().is_loopback() || found.contains(&address.ip()) || found.iter().any(IpAddr::is_loopback) {
        return None;
    }
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    let what = if found.is_empty() {
        "does not resolve".to_owned()
    } else {
        format!("resolves to {}", found.join(", "))
    };
    Some(
        Finding::broken(
            Hop::Listener,
            format!("the name localhost {what}: SDKs connect to http://localhost"),
        )
        .then_do("# put this line into /etc/hosts: 127.0.0.1 localhost")
        .then_do("getent ahosts localhost"),
    )
}

fn unix_listener(facts: &Facts) -> Finding {
    let health = &facts.host.health;
    if health.connected() {
        return Finding::ok(Hop::Listener, format!("{} takes connections", facts.plan.listen))
            .because(format!("GET /health through it {}", health.said()));
    }
    Finding::broken(Hop::Listener, format!("{}: a connection {}", facts.plan.listen, health.said()))
        .then_do(bridge_command(&facts.plan))
}

/// Found by elimination: everything behind the listener is well, and what it passes on is not.
pub fn listener_is_at_fault(facts: &Facts, finding: &Finding) -> Finding {
    let mut broken = Finding::broken(
        Hop::Listener,
        format!("GET /health through it {}, though the way behind it is well", facts.host.health.said()),
    );
    broken.evidence.push(finding.summary.clone());
    broken.evidence.extend(finding.evidence.iter().filter(|line| !line.starts_with("GET ")).cloned());
    if let Some(entry) = &facts.host.entry {
        broken.evidence.push(format!("GET /health of {} behind it {}", entry.address, entry.health.said()));
    }
    broken
        .then_do("# it forwards somewhere else, or is another program: put the bridge in its place:")
        .then_do(bridge_command(&facts.plan))
}

/// Nothing comes through, and where it leads was neither given nor found. An answer that is not envd's may be meant: a proxy for
/// many sandboxes serves none without being told which.
pub fn nothing_behind_is_seen(facts: &Facts, finding: &Finding) -> Finding {
    let health = &facts.host.health;
    let through = format!("GET /health through it {}, and what lies behind it was not found", health.said());
    let mut judged = match health {
        Health::Answer { status: 200..=499, .. } => Finding::unknown(Hop::Listener, through),
        _ => Finding::broken(Hop::Listener, through),
    };
    judged.evidence.push(finding.summary.clone());
    judged.evidence.extend(finding.evidence.iter().filter(|line| !line.starts_with("GET ")).cloned());
    if !facts.plan.candidates.is_empty() {
        judged.evidence.push(format!("namespaces that it may lead to: {}", facts.plan.candidates.join(", ")));
    }
    judged
        .then_do("# say what lies behind it, and run this as root:")
        .then_do(format!("envdctl doctor --listen {} --netns NAME --fc-socket PATH", facts.plan.listen))
}

/// Proxy variables, and what they do to a request for localhost.
pub fn proxy(facts: &Facts) -> Finding {
    let proxy = &facts.host.proxy;
    let notes = proxy.elsewhere.iter().map(|(place, applied)| {
        format!(
            "{place} sets {} without an exemption: {}",
            say(applied),
            "programs that take it from there are misled"
        )
    });
    let Some(own) = &proxy.own else {
        return Finding::ok(Hop::Proxy, "no proxy variable reaches localhost").because_all(notes);
    };
    if own.health.as_ref().is_some_and(Health::is_well) || own.reaches_localhost == Some(true) {
        return Finding::ok(
            Hop::Proxy,
            format!("{} takes requests for localhost, and serves them", say(own)),
        )
        .because_all(notes);
    }
    let through =
        own.health.as_ref().map(|health| format!("GET http://localhost/health through it {}", health.said()));
    Finding::broken(
        Hop::Proxy,
        format!(
            "{} takes requests for localhost away: SDKs that honour it never reach the listener",
            say(own)
        ),
    )
    .because_all(through)
    .because_all(own.no_proxy.as_ref().map_or_else(
        || Some("NO_PROXY is not set".to_owned()),
        |list| Some(format!("NO_PROXY={} does not name localhost", sanitise(list))),
    ))
    .because_all(notes)
    .then_do("export NO_PROXY=localhost,127.0.0.1 no_proxy=localhost,127.0.0.1")
    .then_do(format!("# or: unset {}", own.variable))
}

/// The password that a proxy's URL may hold is nobody's business.
fn say(applied: &Applied) -> String {
    let value =
        match applied.value.split_once("://").map_or(("", applied.value.as_str()), |(s, rest)| (s, rest)) {
            (scheme, rest) if rest.contains('@') => {
                format!("{scheme}://…@{}", rest.rsplit_once('@').map_or(rest, |(_, place)| place))
            }
            _ => applied.value.clone(),
        };
    format!("{}={}", applied.variable, sanitise(&value))
}
