//! The bridge in front of a real guest: TCP over the tap first, then vsock through a socket that behaves as Firecracker's.

use std::io::Read;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Fault;
use super::fake::Bridge;
use crate::relay::{self, Bed, Door};
use crate::wait;

/// A guest, and a bridge with two routes into it.
#[derive(Debug)]
pub struct GuestBed {
    // Dropped first.
    pub bridge: Bridge,
    pub guest: Bed,
    /// Stands where envd was for whom the namespace redirects, and resets or hangs.
    decoy: TcpListener,
}

impl GuestBed {
    pub fn boot() -> Result<Self> {
        let guest = Bed::boot()?;
        let listen = format!("unix:{}", guest.vm.dir().join("bridge.sock").display());
        let (tcp, vsock) = (guest.vm.tcp_endpoint(), guest.firecracker_endpoint());
        let bridge = Bridge::start_with(&[
            "--listen",
            &listen,
            "--route",
            &tcp,
            "--route",
            &vsock,
            "--return-after",
            "1",
        ]);
        let decoy = guest.vm.netns().enter(|| Ok(TcpListener::bind("0.0.0.0:0")?))?;
        let bed = Self { bridge, guest, decoy };
        wait::until("envd through the bridge", wait::BOUND, || Ok(bed.door().is_healthy().then_some(())))?;
        Ok(bed)
    }

    /// The bridge's listening socket.
    pub fn door(&self) -> Door {
        Door::Bridge(self.guest.vm.dir().join("bridge.sock"))
    }

    /// Breaks the way over TCP for new connections, and for old ones where packets no longer pass.
    pub fn break_by(&self, fault: Fault) -> Result<()> {
        if matches!(fault, Fault::Reset | Fault::Hung) {
            self.man_the_decoy(fault == Fault::Reset)?;
        }
        self.rule("-I", fault)
    }

    pub fn heal(&self, fault: Fault) -> Result<()> {
        self.rule("-D", fault)
    }

    fn rule(&self, how: &str, fault: Fault) -> Result<()> {
        let port = self.decoy.local_addr()?.port().to_string();
        let (table, action): (&str, &[&str]) = match fault {
            Fault::Closed => ("filter", &["REJECT", "--reject-with", "tcp-reset"]),
            Fault::Dropped => ("filter", &["DROP"]),
            Fault::Reset | Fault::Hung => ("nat", &["REDIRECT", "--to-ports", &port]),
        };
        let rule = ["OUTPUT", "-d", crate::net::GUEST, "-p", "tcp", "--dport", "49983", "-j"];
        let args = [&["-t", table, how], &rule[..], action].concat();
        self.guest.vm.netns().run("iptables", &args).map(drop)
    }

    /// Takes what was redirected: resets it, or keeps it and says nothing.
    fn man_the_decoy(&self, resets: bool) -> Result<()> {
        let decoy = self.decoy.try_clone()?;
        thread::spawn(move || {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = decoy.accept() {
                if resets {
                    super::fake::reset(&stream);
                } else {
                    kept.push(stream);
                }
            }
        });
        Ok(())
    }

    /// Whether the bridge's last word on routes leads to one that begins so.
    fn leads_to(&self, route: &str) -> bool {
        let log = self.bridge.log();
        let last = log.lines().rev().find_map(|line| line.split_once(" -> "));
        last.is_some_and(|(_, to)| to.starts_with(route))
    }
}

impl Drop for GuestBed {
    fn drop(&mut self) {
        // Ends the threads that accept.
        let _ = nix::sys::socket::shutdown(self.decoy.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

/// A break of the preferred route, and its mending: the next client is served over the other one, a stream that was left on the
/// broken route is closed, and the preferred one is taken back. Returns how long the first client after the break waited.
pub fn changes_over(bed: &GuestBed, fault: Fault) -> Result<Duration> {
    let door = bed.door();
    let mut left_behind = relay::open_stream(&door)?;
    bed.break_by(fault)?;
    let begun = Instant::now();
    wait::until("an answer over the other route", wait::BOUND, || Ok(door.is_healthy().then_some(())))?;
    let waited = begun.elapsed();
    wait::until("the change", wait::BOUND, || Ok(bed.leads_to("firecracker:").then_some(())))?;
    left_behind.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut rest = Vec::new();
    let end = left_behind.read_to_end(&mut rest);
    let hangs = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    ensure!(!hangs, "{}: a stream on the broken route was not closed", fault.name());
    let over_vsock = relay::open_stream(&door)?;
    bed.heal(fault)?;
    wait::until("the return", wait::BOUND, || {
        Ok((door.is_healthy() && bed.leads_to("netns:")).then_some(()))
    })?;
    relay::is_alive(&over_vsock)?;
    Ok(waited)
}
