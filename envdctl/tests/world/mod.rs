//! A host, a sandbox's namespace and a guest, each a network namespace, wired as on a self-hosted platform:
//!
//! ```text
//! host 127.0.0.1:P  socat ──veth── sandbox 10.x.y.2:Q  socat ──tap0── guest 169.254.x.y:R  envd
//! a unix socket that answers CONNECT as a VMM does: the relay and PID 1's control protocol behind it
//! ```
//!
//! Addresses, ports and names are drawn at random. Needs root and iproute2, iptables, socat.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use envdctl::netns;
use guest::control::{EnvdStatus, Mode, Network, Reply, Request, Status, VSOCK_PORT, frame};

/// How envd in the guest behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Envd {
    Well,
    Hangs,
    Fails,
    Resets,
}

/// What answers behind the VMM's socket.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Vmm {
    Well,
    RelayDead,
    ControlDead,
    NoPayload,
    Silent,
}

pub(crate) struct World {
    pub(crate) host: String,
    pub(crate) sandbox: String,
    pub(crate) guest_ns: String,
    pub(crate) veth: String,
    pub(crate) listen: SocketAddr,
    pub(crate) entry: SocketAddr,
    pub(crate) guest: SocketAddr,
    pub(crate) vmm_socket: PathBuf,
    pub(crate) status: Arc<Mutex<Status>>,
    envd: Arc<AtomicU8>,
    vmm: Arc<AtomicU8>,
    listener: Option<TcpListener>,
    pub(crate) layer1: Option<Child>,
    pub(crate) layer2: Option<Child>,
    others: Vec<Child>,
    dir: tempfile::TempDir,
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A number from `low` up to, not including, `high`.
pub(crate) fn between(low: u64, high: u64) -> u64 {
    low + random() % (high - low)
}

pub(crate) fn run(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not run: it makes network namespaces, which needs root");
    }
    root
}

impl World {
    pub(crate) fn new() -> Self {
        let id = random() % 0x00ff_ffff;
        let (host, sandbox, guest_ns) = (format!("ey-h{id:x}"), format!("ey-s{id:x}"), format!("ey-g{id:x}"));
        let (veth, vpeer) = (format!("vh{id:x}"), format!("vp{id:x}"));
        let link = (between(1, 255), between(0, 64) * 4);
        let of_veth = |last: u64| format!("10.{}.{}.{}", between(12, 13), link.0, link.1 + last);
        let (outside, inside) = (of_veth(1), of_veth(2));
        let of_tap = (between(0, 255), between(1, 63) * 4);
        let tap_address = format!("169.254.{}.{}", of_tap.0, of_tap.1 + 2);
        let guest_address = format!("169.254.{}.{}", of_tap.0, of_tap.1 + 1);
        for name in [&host, &sandbox, &guest_ns] {
            run(&format!("ip netns add {name}"));
            run(&format!("ip -n {name} link set lo up"));
        }
        run(&format!("ip -n {host} link add {veth} type veth peer name {vpeer} netns {sandbox}"));
        run(&format!("ip -n {host} addr add {outside}/30 dev {veth}"));
        run(&format!("ip -n {sandbox} addr add {inside}/30 dev {vpeer}"));
        run(&format!("ip -n {sandbox} link add tap0 type veth peer name eth0 netns {guest_ns}"));
        run(&format!("ip -n {sandbox} addr add {tap_address}/30 dev tap0"));
        run(&format!("ip -n {guest_ns} addr add {guest_address}/30 dev eth0"));
        for (name, link) in [
            (&host, &veth),
            (&sandbox, &vpeer),
            (&sandbox, &"tap0".to_owned()),
            (&guest_ns, &"eth0".to_owned()),
        ] {
            run(&format!("ip -n {name} link set {link} up"));
        }
        let port = || between(20_000, 30_000);
        let listen = format!("127.0.0.1:{}", port()).parse().unwrap();
        let entry = format!("{inside}:{}", port()).parse().unwrap();
        let guest: SocketAddr = format!("{guest_address}:{}", port()).parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut world = Self {
            vmm_socket: dir.path().join("v.sock"),
            status: Arc::new(Mutex::new(status(&guest))),
            envd: Arc::new(AtomicU8::new(Envd::Well as u8)),
            vmm: Arc::new(AtomicU8::new(Vmm::Well as u8)),
            listener: None,
            layer1: None,
            layer2: None,
            others: Vec::new(),
            host,
            sandbox,
            guest_ns,
            veth,
            listen,
            entry,
            guest,
            dir,
        };
        world.start_envd();
        world.start_vmm();
        world.layer2 = Some(World::forward(&world.sandbox, world.entry, world.guest));
        world.layer1 = Some(World::forward(&world.host, world.listen, world.entry));
        world
    }

    fn start_envd(&mut self) {
        let path = PathBuf::from(format!("/run/netns/{}", self.guest_ns));
        let address = self.guest;
        let listener = netns::within(Some(&path), || TcpListener::bind(address)).unwrap().unwrap();
        self.listener = Some(listener.try_clone().unwrap());
        let mode = Arc::clone(&self.envd);
        thread::spawn(move || {
            for peer in listener.incoming() {
                let Ok(peer) = peer else { return };
                let mode = mode.load(Ordering::SeqCst);
                thread::spawn(move || serve_envd(peer, mode));
            }
        });
    }

    pub(crate) fn envd(&self, mode: Envd) {
        self.envd.store(mode as u8, Ordering::SeqCst);
    }

    pub(crate) fn vmm(&self, mode: Vmm) {
        self.vmm.store(mode as u8, Ordering::SeqCst);
    }

    /// envd's process is gone, its port closed.
    pub(crate) fn end_envd(&mut self) {
        use std::os::fd::AsFd;
        let listener = self.listener.take().unwrap();
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&listener.as_fd()),
            nix::sys::socket::Shutdown::Both,
        )
        .unwrap();
    }

    fn start_vmm(&self) {
        let listener = UnixListener::bind(&self.vmm_socket).unwrap();
        let (mode, status) = (Arc::clone(&self.vmm), Arc::clone(&self.status));
        thread::spawn(move || {
            for peer in listener.incoming().flatten() {
                let (mode, status) = (mode.load(Ordering::SeqCst), status.lock().unwrap().clone());
                thread::spawn(move || serve_vmm(peer, mode, &status));
            }
        });
    }

    /// A socat in a namespace; awaited until it listens.
    pub(crate) fn forward(name: &str, at: SocketAddr, to: SocketAddr) -> Child {
        Self::listen(name, at, &format!("TCP4:{to}"))
    }

    /// Takes connections, and ends each without a word.
    pub(crate) fn serve_nobody(name: &str, at: SocketAddr) -> Child {
        Self::listen(name, at, "EXEC:/bin/false")
    }

    fn listen(name: &str, at: SocketAddr, to: &str) -> Child {
        let child = Command::new("ip")
            .args(["netns", "exec", name, "socat"])
            .arg(format!("TCP4-LISTEN:{},bind={},reuseaddr,fork", at.port(), at.ip()))
            .arg(to)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self::await_port(name, at.port(), true);
        child
    }

    /// Waits until a port of a namespace is listened on, or no more.
    pub(crate) fn await_port(name: &str, port: u16, wanted: bool) {
        let begun = Instant::now();
        let wanted_text = format!(":{port:04X} 00000000:0000 0A");
        while begun.elapsed() < Duration::from_secs(20) {
            let output =
                Command::new("ip").args(["netns", "exec", name, "cat", "/proc/net/tcp"]).output().unwrap();
            if String::from_utf8_lossy(&output.stdout).contains(&wanted_text) == wanted {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("port {port} of {name} did not become as awaited");
    }

    pub(crate) fn end(&mut self, layer: u8) {
        let (name, port) =
            if layer == 1 { (&self.host, self.listen.port()) } else { (&self.sandbox, self.entry.port()) };
        let child = if layer == 1 { &mut self.layer1 } else { &mut self.layer2 };
        let mut child = child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (name, port) = (name.clone(), port);
        Self::await_port(&name, port, false);
    }

    pub(crate) fn keep(&mut self, child: Child) {
        self.others.push(child);
    }

    pub(crate) fn in_host(&self, line: &str) {
        run(&format!("ip netns exec {} {line}", self.host));
    }

    pub(crate) fn in_sandbox(&self, line: &str) {
        run(&format!("ip netns exec {} {line}", self.sandbox));
    }

    pub(crate) fn in_guest(&self, line: &str) {
        run(&format!("ip netns exec {} {line}", self.guest_ns));
    }

    /// The command line that is the same in every scenario.
    pub(crate) fn doctor(&self, environment: &[(&str, &str)]) -> Report {
        let route = format!("netns:{}/tcp:{}", self.sandbox, self.guest);
        let (socket, console) = (self.vmm_socket.display().to_string(), self.console().display().to_string());
        self.doctor_with(&["--route", &route, "--fc-socket", &socket, "--console", &console], environment)
    }

    pub(crate) fn doctor_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Report {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.host, env!("CARGO_BIN_EXE_envdctl"), "doctor", "--json"])
            .args(["--listen", &format!("tcp:{}", self.listen)])
            .args(arguments)
            .env_remove("HTTP_PROXY")
            .env_remove("http_proxy")
            .env_remove("ALL_PROXY")
            .env_remove("all_proxy")
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        Report { json, code: output.status.code().unwrap() }
    }

    /// The console's log, as the orchestrator passes it on.
    fn console(&self) -> PathBuf {
        let path = self.dir.path().join("console.log");
        let line = |text: &str| serde_json::json!({"level": "info", "msg": text}).to_string() + "\n";
        let text =
            line("[    0.412345] init: eth0 already up") + &line("[    0.731002] wrapper: envd is healthy");
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in
            [self.layer1.take(), self.layer2.take()].into_iter().flatten().chain(self.others.drain(..))
        {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in [&self.host, &self.sandbox, &self.guest_ns] {
            end_processes_of(name);
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

/// Children that a forking socat left behind.
fn end_processes_of(name: &str) {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() else { return };
    for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
    }
}

pub(crate) struct Report {
    pub(crate) json: serde_json::Value,
    pub(crate) code: i32,
}

impl Report {
    /// The first broken hop, and what is said of it; the exit code belongs to it.
    pub(crate) fn assert_first(&self, hop: &str, said: &str) {
        let pretty = serde_json::to_string_pretty(&self.json).unwrap();
        assert_eq!(self.json["first_broken"], hop, "{pretty}");
        let finding =
            self.json["hops"].as_array().unwrap().iter().find(|finding| finding["hop"] == hop).unwrap();
        assert!(
            finding["summary"].as_str().unwrap().contains(said),
            "{said:?} is not said of {hop}:\n{pretty}"
        );
        assert!(!finding["commands"].as_array().unwrap().is_empty(), "nothing to do is said:\n{pretty}");
        assert_eq!(self.code, 20 + finding["number"].as_i64().unwrap() as i32);
    }

    pub(crate) fn assert_well(&self) {
        let pretty = serde_json::to_string_pretty(&self.json).unwrap();
        assert!(self.json["first_broken"].is_null() && self.code == 0, "{pretty}");
        let unknown =
            self.json["hops"].as_array().unwrap().iter().filter(|f| f["state"] == "unknown").count();
        assert_eq!(unknown, 0, "{pretty}");
    }
}

fn serve_envd(mut peer: TcpStream, mode: u8) {
    let mut request = [0; 4096];
    if mode == Envd::Resets as u8 {
        // Closing with unread bytes makes the kernel send a reset.
        let _ = peer.peek(&mut request);
        return;
    }
    let _ = peer.read(&mut request);
    if mode == Envd::Hangs as u8 {
        let _ = peer.read_to_end(&mut Vec::new());
    } else {
        let status = if mode == Envd::Fails as u8 { "500 Internal Server Error" } else { "204 No Content" };
        let _ = peer.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
    }
}

fn serve_vmm(mut peer: UnixStream, mode: u8, status: &Status) {
    let mut line = [0; 32];
    let Ok(read) = peer.read(&mut line) else { return };
    let port = vsock_relay::handshake::parse_connect(&line[..read]);
    if mode == Vmm::Silent as u8 {
        let _ = peer.read_to_end(&mut Vec::new());
        return;
    }
    let control_dead = mode == Vmm::ControlDead as u8 || mode == Vmm::NoPayload as u8;
    let relay_dead = mode == Vmm::RelayDead as u8 || mode == Vmm::NoPayload as u8;
    match port {
        Some(VSOCK_PORT) if !control_dead => {
            let _ = peer.write_all(b"OK 1073741824\n");
            serve_control(peer, status);
        }
        Some(49983) if !relay_dead => {
            let _ = peer.write_all(b"OK 1073741825\n");
            let mut request = [0; 4096];
            let _ = peer.read(&mut request);
            let _ = peer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        }
        _ => {}
    }
}

fn serve_control(mut peer: UnixStream, status: &Status) {
    let mut decoder = frame::Decoder::new(frame::MAX_REQUEST);
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = peer.read(&mut buffer) {
        decoder.push(&buffer[..read]);
        while let Ok(Some(_)) = decoder.message::<Request>() {
            let _ = peer.write_all(&frame::encode(&Reply::Status(Box::new(status.clone()))).unwrap());
        }
    }
}

fn status(guest: &SocketAddr) -> Status {
    let address = format!("{}/30", guest.ip());
    Status {
        mode: Mode::Native,
        version: "0.1.0".into(),
        kernel: "Linux 6.1".into(),
        hostname: "e2b.local".into(),
        now_ns: 90_000_000_000,
        stages: vec![],
        network: Network {
            wanted: Some(address.clone()),
            interface: "eth0".into(),
            found: vec![address],
            link_up: true,
            configured_by: "kernel".into(),
            ..Network::default()
        },
        services: vec![],
        envd: Some(EnvdStatus {
            program: "/usr/bin/envd".into(),
            version: None,
            state: "healthy".into(),
            pid: Some(70),
            restarts: 0,
            exec_ns: None,
            listening_ns: None,
            healthy_ns: None,
            last_exit: None,
        }),
        relay: None,
        console_dropped_bytes: 0,
        warnings: vec![],
        deaths: vec![],
    }
}
