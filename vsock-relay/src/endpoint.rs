//! The grammar of endpoints: one way to write an address, the same in the guest, on the host, in flags and in files.
//!
//! ```text
//! tcp:127.0.0.1:49983                       TCP; the host is an IP address ([…] around IPv6) or `localhost`
//! netns:ns-72/tcp:169.254.0.21:49983        TCP from inside a network namespace: a name under /run/netns …
//! netns:/proc/4711/ns/net/tcp:10.0.0.1:80   … or a path (everything up to the last `/tcp:`)
//! unix:/run/x.sock                          unix socket
//! firecracker:/path/v.sock:49983            hybrid vsock: unix socket, then the CONNECT handshake
//! vsock:3:49983                             AF_VSOCK; the CID is a number, `any`, `local`, `host` or `hypervisor`
//! ```
//!
//! Names are not resolved: an address that depends on a resolver is not one to heal a sandbox with.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where the names of network namespaces live (`ip netns` puts them there).
pub const NETNS_DIR: &str = "/run/netns";
/// `VMADDR_CID_ANY`.
pub const CID_ANY: u32 = u32::MAX;
/// `VMADDR_CID_LOCAL`: loopback, where the kernel has it.
pub const CID_LOCAL: u32 = 1;
/// `VMADDR_CID_HOST`: who a guest may trust to be its host.
pub const CID_HOST: u32 = 2;

/// Why a text is not an endpoint, or not one that fits its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("{text:?} is no endpoint: it must begin with tcp:, netns:, unix:, firecracker: or vsock:")]
    Scheme { text: String },
    #[error("{text:?} needs a port (1-{max}) after its last colon", max = u16::MAX)]
    Port { text: String },
    #[error("{text:?} needs a vsock port (0-4294967294) after its last colon")]
    VsockPort { text: String },
    #[error(
        "{text:?}: {host:?} is no IP address (names other than localhost are not resolved; IPv6 goes into […])"
    )]
    Host { text: String, host: String },
    #[error("{text:?}: {cid:?} is no CID; write a number, any, local, host or hypervisor")]
    Cid { text: String, cid: String },
    #[error("{text:?} must read netns:NAME/tcp:ADDRESS:PORT (a name under /run/netns, or an absolute path)")]
    Netns { text: String },
    #[error("{text:?} needs an absolute path of a socket")]
    SocketPath { text: String },
    #[error("{text:?} must read LISTEN=TARGET, for example vsock:any:49983=tcp:127.0.0.1:49983")]
    Map { text: String },
    #[error("{endpoint} cannot be listened on: only tcp:, unix: and vsock: can")]
    NotListenable { endpoint: Endpoint },
    #[error("{endpoint} cannot be connected to: a connection needs one CID, not any")]
    NotConnectable { endpoint: Endpoint },
}

/// A network namespace, as the operator named it. It is opened anew for every connection, because names are
/// recycled: a handle kept from before would lead into the sandbox that had the name then.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Namespace {
    Name(String),
    Path(PathBuf),
}

impl Namespace {
    /// The file to open.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Name(name) => Path::new(NETNS_DIR).join(name),
            Self::Path(path) => path.clone(),
        }
    }
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Tcp(SocketAddr),
    NetnsTcp(Namespace, SocketAddr),
    Unix(PathBuf),
    Firecracker { path: PathBuf, port: u32 },
    Vsock { cid: u32, port: u32 },
}

/// What becomes of a half-close on its way through a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfClose {
    /// The peer sees the end of our bytes and can still send its own.
    Kept,
    /// Firecracker's vsock: a half-close of the host becomes a full close in the guest, and one of the guest
    /// never reaches the host. So a direction's end is kept to ourselves until both are through.
    Broken,
}

impl Endpoint {
    /// The rule of this kind of transport.
    pub fn half_close(&self) -> HalfClose {
        match self {
            Self::Tcp(_) | Self::NetnsTcp(..) | Self::Unix(_) => HalfClose::Kept,
            Self::Firecracker { .. } | Self::Vsock { .. } => HalfClose::Broken,
        }
    }

    /// Whether only this machine reaches it when it is listened on: loopback or a unix socket. What listens on vsock, but for its
    /// loopback, is open to every VM of the machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) | Self::NetnsTcp(_, address) => address.ip().is_loopback(),
            Self::Vsock { cid, .. } => *cid == CID_LOCAL,
            Self::Unix(_) | Self::Firecracker { .. } => true,
        }
    }

    /// Refuses what has no listening side.
    pub fn listenable(self) -> Result<Self, EndpointError> {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Vsock { .. } | Self::NetnsTcp(..) => Ok(self),
            Self::Firecracker { .. } => Err(EndpointError::NotListenable { endpoint: self }),
        }
    }

    /// Refuses what names no single peer.
    pub fn connectable(self) -> Result<Self, EndpointError> {
        match self {
            Self::Vsock { cid: CID_ANY, .. } => Err(EndpointError::NotConnectable { endpoint: self }),
            _ => Ok(self),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) =
            text.split_once(':').ok_or_else(|| EndpointError::Scheme { text: text.to_owned() })?;
        match scheme {
            "tcp" => parse_tcp(text, rest).map(Self::Tcp),
            "netns" => parse_netns(text, rest),
            "unix" => parse_path(text, rest).map(Self::Unix),
            "firecracker" => parse_firecracker(text, rest),
            "vsock" => parse_vsock(text, rest),
            _ => Err(EndpointError::Scheme { text: text.to_owned() }),
        }
    }
}

fn parse_tcp(text: &str, rest: &str) -> Result<SocketAddr, EndpointError> {
    let no_port = || EndpointError::Port { text: text.to_owned() };
    let (host, port) = rest.rsplit_once(':').ok_or_else(no_port)?;
    let port: u16 = decimal(port).filter(|port| *port != 0).ok_or_else(no_port)?;
    Ok(SocketAddr::new(parse_host(text, host)?, port))
}

fn parse_host(text: &str, host: &str) -> Result<IpAddr, EndpointError> {
    let unknown = || EndpointError::Host { text: text.to_owned(), host: host.to_owned() };
    if host == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return inner.parse().map(IpAddr::V6).map_err(|_| unknown());
    }
    host.parse().map(IpAddr::V4).map_err(|_| unknown())
}

fn parse_netns(text: &str, rest: &str) -> Result<Endpoint, EndpointError> {
    let malformed = || EndpointError::Netns { text: text.to_owned() };
    let at = rest.rfind("/tcp:").ok_or_else(malformed)?;
    let namespace = parse_namespace(&rest[..at]).ok_or_else(malformed)?;
    Ok(Endpoint::NetnsTcp(namespace, parse_tcp(text, &rest[at + "/tcp:".len()..])?))
}

fn parse_namespace(name: &str) -> Option<Namespace> {
    if name.contains('\0') || name.is_empty() || name == "." || name == ".." {
        return None;
    }
    if name.starts_with('/') {
        return Some(Namespace::Path(name.into()));
    }
    (!name.contains('/')).then(|| Namespace::Name(name.to_owned()))
}

fn parse_path(text: &str, path: &str) -> Result<PathBuf, EndpointError> {
    let fits = path.starts_with('/') && !path.ends_with('/') && !path.contains('\0');
    if fits { Ok(path.into()) } else { Err(EndpointError::SocketPath { text: text.to_owned() }) }
}

fn parse_firecracker(text: &str, rest: &str) -> Result<Endpoint, EndpointError> {
    let (path, port) =
        rest.rsplit_once(':').ok_or_else(|| EndpointError::VsockPort { text: text.to_owned() })?;
    Ok(Endpoint::Firecracker { port: parse_vsock_port(text, port)?, path: parse_path(text, path)? })
}

fn parse_vsock(text: &str, rest: &str) -> Result<Endpoint, EndpointError> {
    let (cid, port) =
        rest.rsplit_once(':').ok_or_else(|| EndpointError::VsockPort { text: text.to_owned() })?;
    let cid =
        parse_cid(cid).ok_or_else(|| EndpointError::Cid { text: text.to_owned(), cid: cid.to_owned() })?;
    Ok(Endpoint::Vsock { cid, port: parse_vsock_port(text, port)? })
}

fn parse_vsock_port(text: &str, port: &str) -> Result<u32, EndpointError> {
    decimal(port)
        .filter(|port| *port != u32::MAX)
        .ok_or_else(|| EndpointError::VsockPort { text: text.to_owned() })
}

/// Reads a CID: a number, or one of the names that the kernel's documentation uses.
pub fn parse_cid(cid: &str) -> Option<u32> {
    match cid {
        "any" => Some(CID_ANY),
        "hypervisor" => Some(0),
        "local" => Some(CID_LOCAL),
        "host" => Some(CID_HOST),
        number => decimal(number),
    }
}

/// A number in plain digits: no sign, no blanks.
fn decimal<T: FromStr>(digits: &str) -> Option<T> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::NetnsTcp(Namespace::Name(name), address) => write!(f, "netns:{name}/tcp:{address}"),
            Self::NetnsTcp(Namespace::Path(path), address) => {
                write!(f, "netns:{}/tcp:{address}", path.display())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Firecracker { path, port } => write!(f, "firecracker:{}:{port}", path.display()),
            Self::Vsock { cid: CID_ANY, port } => write!(f, "vsock:any:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

/// `LISTEN=TARGET`: where the relay takes connections and where it leads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    pub listen: Endpoint,
    pub target: Endpoint,
}

impl FromStr for Map {
    type Err = EndpointError;

    /// A path may hold `=`, so the split is at the first `=` that is followed by an endpoint's scheme.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let schemes = ["tcp:", "netns:", "unix:", "firecracker:", "vsock:"];
        let (at, _) = text
            .match_indices('=')
            .find(|(at, _)| schemes.iter().any(|scheme| text[at + 1..].starts_with(scheme)))
            .ok_or_else(|| EndpointError::Map { text: text.to_owned() })?;
        Ok(Self {
            listen: text[..at].parse::<Endpoint>()?.listenable()?,
            target: text[at + 1..].parse::<Endpoint>()?.connectable()?,
        })
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.listen, self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Endpoint, EndpointError> {
        text.parse()
    }

    #[test]
    fn every_kind_reads_back_as_it_was_written() {
        for text in [
            "tcp:127.0.0.1:49983",
            "tcp:[::1]:80",
            "netns:ns-72/tcp:169.254.0.21:49983",
            "netns:/proc/1/ns/net/tcp:10.0.0.1:80",
            "unix:/run/x.sock",
            "firecracker:/path/v.sock:49983",
            "firecracker:/a:b/v:sock:1",
            "vsock:3:49983",
            "vsock:any:49983",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_of_well_known_peers_are_numbers() {
        assert_eq!(parse("vsock:host:5").unwrap(), Endpoint::Vsock { cid: 2, port: 5 });
        assert_eq!(parse("vsock:local:5").unwrap(), Endpoint::Vsock { cid: 1, port: 5 });
        assert_eq!(parse("tcp:localhost:5").unwrap().to_string(), "tcp:127.0.0.1:5");
    }

    #[test]
    fn a_name_that_needs_a_resolver_is_refused_by_name() {
        let error = parse("tcp:example.org:80").unwrap_err().to_string();
        assert!(error.contains("example.org"), "{error}");
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "tcp",
            "tcp:",
            "tcp:1.2.3.4",
            "tcp:1.2.3.4:",
            "tcp:1.2.3.4:0",
            "tcp:1.2.3.4:70000",
            "tcp:1.2.3.4:+80",
            "tcp:::1:80",
            "tcp:[1.2.3.4]:80",
            "udp:1.2.3.4:1",
            "unix:",
            "unix:relative",
            "unix:/dir/",
            "unix:/a\0b",
            "netns:x",
            "netns:/tcp:1.2.3.4:80",
            "netns:a/b/tcp:1.2.3.4:80",
            "netns:../tcp:1.2.3.4:80",
            "netns:x/unix:/y",
            "firecracker:/x",
            "firecracker:x:1",
            "firecracker:/x:4294967295",
            "vsock:3",
            "vsock:x:1",
            "vsock:-1:1",
            "vsock:3:4294967295",
        ] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_map_splits_where_an_endpoint_begins() {
        let map: Map = "unix:/a=b=tcp:127.0.0.1:1".parse().unwrap();
        assert_eq!(map.listen, Endpoint::Unix("/a=b".into()));
        assert_eq!(map.to_string(), "unix:/a=b=tcp:127.0.0.1:1");
        assert!("vsock:any:1".parse::<Map>().is_err());
        assert!("firecracker:/x:1=tcp:127.0.0.1:1".parse::<Map>().is_err());
        assert!("vsock:any:1=vsock:any:1".parse::<Map>().is_err());
    }

    #[test]
    fn an_address_is_local_when_nobody_outside_reaches_it() {
        for (text, local) in [
            ("tcp:127.0.0.1:1", true),
            ("tcp:0.0.0.0:1", false),
            ("unix:/x", true),
            ("vsock:local:1", true),
            ("vsock:any:1", false),
            ("vsock:host:1", false),
        ] {
            assert_eq!(parse(text).unwrap().is_local(), local, "{text}");
        }
    }

    #[test]
    fn half_close_is_a_property_of_the_kind() {
        assert_eq!(parse("unix:/x").unwrap().half_close(), HalfClose::Kept);
        assert_eq!(parse("firecracker:/x:1").unwrap().half_close(), HalfClose::Broken);
        assert_eq!(parse("vsock:2:1").unwrap().half_close(), HalfClose::Broken);
    }
}
