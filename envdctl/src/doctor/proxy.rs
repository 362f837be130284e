//! Proxy variables: an SDK that honours them sends requests for localhost to a machine whose localhost is another.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    time::{Duration, Instant},
};

use vsock_relay::endpoint::Endpoint;

use super::{
    forwarder,
    plan::{self, Plan},
    probe::{self, Health},
};
use crate::{
    dial,
    host::{process, socket::Listener},
};

/// Variables that name a proxy for http, the stronger first.
const PROXIES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
const EXEMPTIONS: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// What was found about proxies.
#[derive(Debug, Default)]
pub struct ProxyFacts {
    /// In the environment of this command.
    pub own: Option<Applied>,
    /// Elsewhere: of the machine, of the listener's process. Where, and what.
    pub elsewhere: Vec<(String, Applied)>,
}

/// A proxy that applies to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub variable: String,
    pub value: String,
    pub no_proxy: Option<String>,
    /// `GET /health` through it.
    pub health: Option<Health>,
    /// Whether it leads back to this host's localhost; none where it was not tried.
    pub reaches_localhost: Option<bool>,
}

/// Looks at the environments that matter.
pub fn look(plan: &Plan, listeners: &[Listener], direct: &Health) -> ProxyFacts {
    let Endpoint::Tcp(listen) = plan.listen else { return ProxyFacts::default() };
    let environment: Vec<(String, String)> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect();
    let host = if listen.ip().is_loopback() || listen.ip().is_unspecified() {
        "localhost".to_owned()
    } else {
        listen.ip().to_string()
    };
    let own = applied(&environment, &host).map(|proxy| try_out(proxy, &host, listen.port(), direct));
    ProxyFacts { own, elsewhere: elsewhere(plan, listeners, &host) }
}

fn elsewhere(plan: &Plan, listeners: &[Listener], host: &str) -> Vec<(String, Applied)> {
    let machine = std::fs::read_to_string("/etc/environment").unwrap_or_default();
    let mut found: Vec<(String, Applied)> = applied(&assignments(&machine), host)
        .map(|proxy| ("/etc/environment".to_owned(), proxy))
        .into_iter()
        .collect();
    // The listener's own requests go to the namespace, not to localhost.
    if let Some(holder) = plan::holder(&plan.listen, listeners)
        && let Some(owner) =
            holder.owner.as_ref().filter(|_| !plan.bridge && forwarder::target_of(holder).is_none())
    {
        let next = plan.guest.ip().to_string();
        found.extend(
            applied(&process::environment(owner.pid), &next)
                .map(|proxy| (format!("the environment of {}", owner.label()), proxy)),
        );
    }
    found
}

/// `NAME=value` lines, with or without `export` and quotes.
fn assignments(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.trim().trim_start_matches("export ").split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().trim_matches(['"', '\'']).to_owned()))
        .collect()
}

/// The proxy that a request to `host` would take, if any.
fn applied(environment: &[(String, String)], host: &str) -> Option<Applied> {
    let find = |names: &[&str]| -> Option<(String, String)> {
        names.iter().find_map(|name| {
            environment.iter().find(|(key, value)| key == name && !value.is_empty()).cloned()
        })
    };
    let (variable, value) = find(&PROXIES)?;
    let no_proxy = find(&EXEMPTIONS).map(|(_, value)| value);
    if no_proxy.as_ref().is_some_and(|list| exempts(list, host)) {
        return None;
    }
    Some(Applied { variable, value, no_proxy, health: None, reaches_localhost: None })
}

/// Whether a `NO_PROXY` list names the host: itself, a domain that it ends in, a network, or everything.
fn exempts(list: &str, host: &str) -> bool {
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let name = entry
            .split_once(':')
            .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
            .map_or(entry, |(name, _)| name);
        let bare = name.trim_start_matches('*').trim_start_matches('.');
        let in_network =
            || super::rules::Range::parse(entry).zip(host.parse().ok()).is_some_and(|(r, h)| r.holds(h));
        entry == "*"
            || bare.eq_ignore_ascii_case(host)
            || !bare.is_empty() && host.ends_with(&format!(".{bare}"))
            || in_network()
    })
}

/// Sends the request as an SDK would. Where that fails although the direct way is open, or the proxy does not even lead
/// back to this host, the proxy is at fault; else it is only on the way.
fn try_out(mut proxy: Applied, host: &str, port: u16, direct: &Health) -> Applied {
    let Some(address) = address_of(&proxy.value) else { return proxy };
    let health = through(address, host, port);
    if !health.is_well() && !direct.is_well() && health.connected() {
        proxy.reaches_localhost = leads_back(address);
    }
    proxy.health = Some(health);
    proxy
}

/// `http://[user@]host:port/` as an address; none for proxies of another kind.
fn address_of(value: &str) -> Option<SocketAddr> {
    let rest = match value.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => value,
    };
    let place = rest.split('/').next()?;
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let with_port = if place.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()) {
        place.to_owned()
    } else {
        format!("{place}:80")
    };
    with_port.to_socket_addrs().ok()?.next()
}

fn through(proxy: SocketAddr, host: &str, port: u16) -> Health {
    match dial::tcp(proxy, probe::CONNECT_BOUND) {
        Ok(stream) => probe::exchange(&stream, &request(host, port)),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Health::Refused,
        Err(error) => Health::Unreachable { error: probe::plain(&error) },
    }
}

fn request(host: &str, port: u16) -> String {
    format!(
        "GET http://{host}:{port}/health HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: envdctl\r\nConnection: close\r\n\r\n"
    )
}

/// Asks the proxy for a page of a socket of our own on localhost: does the request arrive?
fn leads_back(proxy: SocketAddr) -> Option<bool> {
    let own = TcpListener::bind(("127.0.0.1", 0)).ok()?;
    own.set_nonblocking(true).ok()?;
    let port = own.local_addr().ok()?.port();
    let mut stream = dial::tcp(proxy, probe::CONNECT_BOUND).ok()?;
    stream.write_all(request("localhost", port).as_bytes()).ok()?;
    let begun = Instant::now();
    while begun.elapsed() < probe::CONNECT_BOUND {
        if own.accept().is_ok() {
            return Some(true);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_proxy_applies_unless_the_host_is_exempt() {
        let proxy = ("HTTP_PROXY", "http://10.0.0.1:7890");
        for (no_proxy, applies) in [
            ("", true),
            ("127.0.0.1", true),
            ("example.org", true),
            ("local", true),
            ("localhost", false),
            ("a.b, localhost", false),
            ("*", false),
            ("localhost:49983", false),
        ] {
            let found = applied(&environment(&[proxy, ("no_proxy", no_proxy)]), "localhost");
            assert_eq!(found.is_some(), applies, "no_proxy={no_proxy}");
        }
        assert!(applied(&environment(&[proxy, ("NO_PROXY", "10.12.0.0/16")]), "10.12.0.3").is_none());
        assert!(applied(&environment(&[("HTTPS_PROXY", "http://x:1")]), "localhost").is_none());
        assert!(applied(&environment(&[("HTTP_PROXY", "")]), "localhost").is_none());
    }

    #[test]
    fn a_proxys_address_is_read_from_its_url() {
        for (value, address) in [
            ("http://127.0.0.1:7890", Some("127.0.0.1:7890")),
            ("http://user:word@127.0.0.1:7890/", Some("127.0.0.1:7890")),
            ("127.0.0.1:3128", Some("127.0.0.1:3128")),
            ("http://127.0.0.1", Some("127.0.0.1:80")),
            ("socks5://127.0.0.1:1080", None),
        ] {
            assert_eq!(address_of(value), address.map(|a| a.parse().unwrap()), "{value}");
        }
    }

    #[test]
    fn a_proxy_that_is_not_there_is_found_out() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = applied(&environment(&[("http_proxy", &format!("http://{free}"))]), "localhost").unwrap();
        assert_eq!(try_out(proxy, "localhost", 1, &Health::Hang).health, Some(Health::Refused));
    }
}
