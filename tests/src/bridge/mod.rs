//! The bridge as a program, between real sockets: what it leads to, and the ways in which a route breaks. Tests and benchmarks
//! share it.

pub mod fake;
pub mod full;
pub mod guest;
pub mod unit;

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use self::fake::{Behaviour, Bridge, Envd, Vmm, get};
use crate::net::NetNs;
use crate::wait;

/// Between two clients.
const ARRIVAL: Duration = Duration::from_millis(10);

/// A namespace with envd's address in it, an envd there, another one behind a VMM's socket, and a bridge that prefers the first.
pub struct Bed {
    ns: NetNs,
    tcp: Envd,
    _vmm: Vmm,
    pub bridge: Bridge,
}

/// How the preferred route breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens.
    Closed,
    /// A firewall drops its packets.
    Dropped,
    /// It takes connections and resets them.
    Reset,
    /// It takes connections and never says anything.
    Hung,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::Closed, Self::Dropped, Self::Reset, Self::Hung];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Dropped => "dropped",
            Self::Reset => "reset",
            Self::Hung => "hung",
        }
    }
}

impl Bed {
    /// `name` tells its namespace from those of others of this process.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, &[])
    }

    /// The same, with more words for the bridge.
    pub fn with(name: &str, more: &[&str]) -> Result<Self> {
        crate::require_root()?;
        let ns = NetNs::new(&format!("{name}-{}", std::process::id()))?;
        ns.ip(&["addr", "add", "169.254.0.21/32", "dev", "lo"])?;
        let tcp = Envd::in_namespace(&ns, "tcp");
        let vmm = Vmm::new("vsock");
        let routes = [
            format!("netns:{}/tcp:169.254.0.21:49983", ns.name()),
            format!("firecracker:{}:49983", vmm.path().display()),
        ];
        let bridge = Bridge::start(&routes, &[&["--return-after", "1"], more].concat());
        Ok(Self { ns, tcp, _vmm: vmm, bridge })
    }

    /// Whether the preferred route got a request for `path`.
    pub fn asked(&self, path: &str) -> bool {
        self.tcp.count(path) > 0
    }

    pub fn break_by(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Closed => self.tcp.close(),
            Fault::Dropped => self.drop_packets("-A")?,
            Fault::Reset => self.tcp.behave(Behaviour::Reset),
            Fault::Hung => self.tcp.behave(Behaviour::Hang),
        }
        Ok(())
    }

    pub fn heal(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Closed => self.tcp.reopen(&self.ns),
            Fault::Dropped => self.drop_packets("-D")?,
            Fault::Reset | Fault::Hung => self.tcp.behave(Behaviour::Serve),
        }
        Ok(())
    }

    fn drop_packets(&self, how: &str) -> Result<()> {
        let rule = ["INPUT", "-p", "tcp", "--dport", "49983", "-j", "DROP"];
        self.ns.run("iptables", &[&[how], &rule[..]].concat()).map(drop)
    }

    /// Clients arrive every few milliseconds: how long until one of them is answered over the route `tag`. Those before it may be
    /// stuck on the route that broke.
    pub fn new_client_served_by(&self, tag: &str) -> Result<Duration> {
        let (begun, (served, first)) = (Instant::now(), mpsc::channel());
        thread::scope(|scope| {
            loop {
                let (served, address) = (served.clone(), self.bridge.address());
                scope.spawn(move || {
                    if get(&address, "/tag").is_ok_and(|answer| answer == tag) {
                        let _ = served.send(begun.elapsed()); // nobody waits for the second one
                    }
                });
                if let Ok(elapsed) = first.recv_timeout(ARRIVAL) {
                    return Ok(elapsed);
                }
                ensure!(begun.elapsed() < wait::BOUND, "no client was served by {tag}");
            }
        })
    }

    /// Asks until the route `tag` answers, over new connections, and gives how long that took: a request that was on its way
    /// when a route broke may be lost, the next is not.
    pub fn served_by(&self, tag: &str) -> Result<Duration> {
        let begun = Instant::now();
        let asked =
            || Ok(get(&self.bridge.address(), "/tag").is_ok_and(|answer| answer == tag).then_some(()));
        wait::until(tag, wait::BOUND, asked)?;
        Ok(begun.elapsed())
    }
}
