//! Peers for the bridge: an envd that can be made to fail, a VMM that behaves as Firecracker does, and the bridge itself.
#![expect(clippy::unwrap_used, reason = "a peer that cannot be made is a failed test")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::net::NetNs;
use crate::wait;

/// Far more than a bridge takes for anything.
const BOUND: Duration = Duration::from_secs(30);

/// A folder that goes when it is dropped.
#[derive(Debug)]
pub struct Dir(PathBuf);

pub fn dir() -> Dir {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("bridge-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&path).unwrap();
    Dir(path)
}

impl Dir {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A folder of entries for `--config`.
#[derive(Debug)]
pub struct Folder(Dir);

impl Folder {
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self(dir())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// As what starts a sandbox does: written under another name and renamed in.
    pub fn put(&self, name: &str, listen: &str, routes: &[String]) {
        let text = format!("listen = '{listen}'\nroutes = {routes:?}\n");
        let temporary = self.path().join(".tmp");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.file(name)).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.toml"))
    }

    /// A bridge that serves it.
    pub fn serve(&self, more: &[&str]) -> Bridge {
        let path = self.path().display().to_string();
        let bridge = Bridge::start_with(&[&["--config", &path][..], more].concat());
        bridge.wait_said("metrics on");
        bridge
    }
}

/// A free port of loopback.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How an envd treats connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Serve,
    /// Takes the connection and resets it; connections that are open are reset at their next request.
    Reset,
    /// Takes the connection and never says anything.
    Hang,
}

struct State {
    tag: &'static str,
    behaviour: Mutex<Behaviour>,
    counts: Mutex<HashMap<String, usize>>,
    open: Mutex<Vec<TcpStream>>,
    closed: AtomicBool,
}

pub struct Envd {
    state: Arc<State>,
    port: u16,
}

impl Envd {
    /// On a port of its own on loopback.
    pub fn new(tag: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let envd = Self { state: state(tag), port };
        envd.listen(listener);
        envd
    }

    pub fn in_namespace(ns: &NetNs, tag: &'static str) -> Self {
        let envd = Self { state: state(tag), port: 49983 };
        envd.reopen(ns);
        envd
    }

    pub fn route(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }

    /// As a dead process: the port refuses, open connections are gone.
    pub fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // The accepting thread polls: it needs a moment to drop the listener.
        thread::sleep(Duration::from_millis(5));
    }

    pub fn reopen(&self, ns: &NetNs) {
        let listener = ns.enter(|| Ok(TcpListener::bind("169.254.0.21:49983")?)).unwrap();
        self.listen(listener);
    }

    pub fn reopen_here(&self) {
        let bind = || Ok(TcpListener::bind(("127.0.0.1", self.port)).ok());
        self.listen(wait::until("the old port", wait::BOUND, bind).unwrap());
    }

    fn listen(&self, listener: TcpListener) {
        self.state.closed.store(false, Ordering::SeqCst);
        listener.set_nonblocking(true).unwrap();
        let state = Arc::clone(&self.state);
        thread::spawn(move || {
            while !state.closed.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => state.take(stream),
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
    }

    /// How many requests for `path` arrived.
    pub fn count(&self, path: &str) -> usize {
        self.state.counts.lock().unwrap().get(path).copied().unwrap_or_default()
    }
}

fn state(tag: &'static str) -> Arc<State> {
    Arc::new(State {
        tag,
        behaviour: Mutex::new(Behaviour::Serve),
        counts: Mutex::default(),
        open: Mutex::default(),
        closed: AtomicBool::new(false),
    })
}

impl State {
    fn take(self: &Arc<Self>, stream: TcpStream) {
        stream.set_nonblocking(false).unwrap();
        if self.behaviour() == Behaviour::Reset {
            return reset(&stream);
        }
        self.open.lock().unwrap().push(stream.try_clone().unwrap());
        let state = Arc::clone(self);
        thread::spawn(move || {
            let again = stream.try_clone().unwrap();
            if serve(stream, &state).is_err() {
                reset(&again);
            }
        });
    }

    fn behaviour(&self) -> Behaviour {
        *self.behaviour.lock().unwrap()
    }
}

/// A close with `SO_LINGER` 0 tells the peer by a reset.
pub(super) fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger);
    let _ = stream.shutdown(Shutdown::Read);
}

/// Answers requests until the peer has no more. An error means that the connection is to be reset.
fn serve(stream: impl Read + Write, state: &State) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_until(b'\n', &mut head)? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        *state.counts.lock().unwrap().entry(path.clone()).or_default() += 1;
        match state.behaviour() {
            Behaviour::Serve => {}
            Behaviour::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
            Behaviour::Hang => {
                hang(state);
                return Ok(());
            }
        }
        if !answer(stream.get_mut(), &path, state.tag)? || head.contains("Connection: close") {
            return Ok(());
        }
    }
}

fn hang(state: &State) {
    while state.behaviour() == Behaviour::Hang {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the connection goes on.
fn answer(stream: &mut impl Write, path: &str, tag: &str) -> io::Result<bool> {
    match path {
        "/health" => stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").map(|()| true),
        "/die" => Err(io::ErrorKind::ConnectionReset.into()),
        "/early" => stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").map(|()| false),
        "/never" => loop {
            thread::sleep(Duration::from_secs(60));
        },
        // Later than a route that is asked meanwhile is found broken.
        "/late" => {
            thread::sleep(Duration::from_millis(1500));
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").map(|()| true)
        }
        "/slow" => {
            thread::sleep(Duration::from_millis(100));
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1 << 20)).map(|()| false)
        }
        _ => write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{tag}", tag.len()).map(|()| true),
    }
}

/// The route to something that answers `GET /health`, and closes every connection over which nothing has come for a second.
pub fn only_health() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let route = format!("tcp:{}", listener.local_addr().unwrap());
    let state = state("health");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            thread::spawn(move || serve(stream, &state));
        }
    });
    route
}

/// An envd on a unix socket.
pub(super) fn serve_unix(listener: &UnixListener, tag: &'static str) {
    let state = state(tag);
    for stream in listener.incoming().flatten() {
        let state = Arc::clone(&state);
        thread::spawn(move || serve(stream, &state));
    }
}

/// A VMM's socket with an envd behind it. As Firecracker: CONNECT in one piece or a bare close, a random port in OK, and a
/// half-close broken both ways.
pub struct Vmm {
    path: PathBuf,
    refuse: Arc<AtomicUsize>,
    ends_silent: Arc<AtomicBool>,
    malformed: Arc<AtomicUsize>,
    _dir: Dir,
}

impl Vmm {
    pub fn new(tag: &'static str) -> Self {
        let dir = dir();
        let path = dir.path().to_owned();
        Self { _dir: dir, ..Self::at(&path, tag) }
    }

    pub fn at(folder: &Path, tag: &'static str) -> Self {
        // Bound under a short name: the path may be longer than an address.
        let here = dir();
        let short = here.path().join("v");
        let listener = UnixListener::bind(&short).unwrap();
        let path = folder.join("v.sock");
        std::fs::rename(&short, &path).unwrap();
        let (refuse, malformed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let ends_silent = Arc::new(AtomicBool::new(false));
        let vmm = Self {
            path,
            refuse: Arc::clone(&refuse),
            ends_silent: Arc::clone(&ends_silent),
            malformed: Arc::clone(&malformed),
            _dir: here,
        };
        let state = state(tag);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if refuse.load(Ordering::SeqCst) > 0 {
                    refuse.fetch_sub(1, Ordering::SeqCst);
                    continue;
                }
                let (state, malformed) = (Arc::clone(&state), Arc::clone(&malformed));
                let ends_silent = ends_silent.load(Ordering::SeqCst);
                thread::spawn(move || shake(stream, &state, &malformed, ends_silent));
            }
        });
        vmm
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn refuse_next(&self, count: usize) {
        self.refuse.store(count, Ordering::SeqCst);
    }

    /// From now on it says OK and ends the connection again unless something is asked at once: as a guest's kernel in front of
    /// a relay that is going down.
    pub fn end_silent(&self, ends: bool) {
        self.ends_silent.store(ends, Ordering::SeqCst);
    }

    pub fn malformed(&self) -> usize {
        self.malformed.load(Ordering::SeqCst)
    }
}

fn shake(mut stream: UnixStream, state: &State, malformed: &AtomicUsize, ends_silent: bool) {
    let mut line = [0; 32];
    let count = stream.read(&mut line).unwrap_or(0);
    if &line[..count] != b"CONNECT 49983\n" {
        malformed.fetch_add(1, Ordering::SeqCst);
        return;
    }
    let port = (1 << 30) + std::process::id() % 1000;
    // The answer and the first payload may come in one piece.
    let _ = stream.write_all(format!("OK {port}\n").as_bytes());
    if ends_silent && is_silent(&stream) {
        return;
    }
    let _ = serve(Firecracker { stream, ended: false }, state);
}

/// Whether nothing comes for a moment.
fn is_silent(stream: &UnixStream) -> bool {
    let mut watched = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut watched, 50_u8).is_ok_and(|ready| ready == 0)
}

/// The guest's view through Firecracker: once the host has half-closed, what the guest sends is dropped.
struct Firecracker {
    stream: UnixStream,
    ended: bool,
}

impl Read for Firecracker {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.ended |= count == 0;
        Ok(count)
    }
}

impl Write for Firecracker {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Looks whether the host has half-closed meanwhile.
        self.stream.set_nonblocking(true)?;
        let mut byte = [0; 1];
        let peeked = nix::sys::socket::recv(
            std::os::fd::AsRawFd::as_raw_fd(&self.stream),
            &mut byte,
            nix::sys::socket::MsgFlags::MSG_PEEK,
        );
        self.stream.set_nonblocking(false)?;
        self.ended |= peeked == Ok(0);
        if self.ended { Ok(bytes.len()) } else { self.stream.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bridge under test; ended when dropped.
#[derive(Debug)]
pub struct Bridge {
    process: Mutex<Child>,
    port: u16,
    metrics: PathBuf,
    dir: Dir,
}

impl Bridge {
    /// On a free port of loopback; returns when it listens.
    pub fn start(routes: &[String], more: &[&str]) -> Self {
        let port = free_port();
        let listen = format!("tcp:127.0.0.1:{port}");
        let mut args = vec!["--listen", &listen];
        routes.iter().for_each(|route| args.extend(["--route", route]));
        args.extend(more);
        let mut bridge = Self::start_with(&args);
        bridge.port = port;
        bridge.wait_said("metrics on");
        bridge
    }

    /// Waits until it has said `text`.
    pub fn wait_said(&self, text: &str) {
        wait::until(text, BOUND, || Ok(self.log().contains(text).then_some(()))).unwrap();
    }

    pub fn start_with(args: &[&str]) -> Self {
        let dir = dir();
        // The bridge may be told to become somebody else.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let metrics = dir.path().join("metrics.sock");
        let endpoint = format!("unix:{}", metrics.display());
        Self::spawn(dir, metrics, &[args, &["--metrics", &endpoint]].concat())
    }

    /// With nothing but `args`.
    pub fn start_alone(args: &[&str]) -> Self {
        Self::spawn(dir(), PathBuf::new(), args)
    }

    fn spawn(dir: Dir, metrics: PathBuf, args: &[&str]) -> Self {
        let log = File::create(dir.path().join("log")).unwrap();
        let process = Command::new(crate::paths::host_bin("envdctl").unwrap())
            .arg("bridge")
            .args(args)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process: Mutex::new(process), port: 0, metrics, dir }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.process.lock().unwrap().id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    pub fn has_ended(&self) -> bool {
        self.process.lock().unwrap().try_wait().unwrap().is_some()
    }

    pub fn exit_code(&self) -> i32 {
        self.process.lock().unwrap().wait().unwrap().code().unwrap_or(-1)
    }

    /// The bridge and its helper that enters namespaces, each by its pid.
    pub fn processes(&self) -> [u32; 2] {
        let pid = self.process.lock().unwrap().id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        [pid, children.trim().parse().unwrap()]
    }

    /// How often it went to sleep so far: what turns round and round never does, or does it thousands of times a second.
    pub fn sleeps(&self) -> u64 {
        let pid = self.process.lock().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let count = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().last().unwrap().parse().unwrap()
        };
        count("voluntary_ctxt_switches") + count("nonvoluntary_ctxt_switches")
    }

    /// Clock ticks of processor time so far.
    pub fn ticks(&self) -> u64 {
        let pid = self.process.lock().unwrap().id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    pub fn metrics(&self) -> String {
        let mut stream = UnixStream::connect(&self.metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
        if thread::panicking() {
            eprintln!("the bridge said:\n{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
        }
    }
}

/// One request over a new connection.
pub fn get(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    request(&mut stream, path)
}

/// One request over a connection that stays open; gives the answer's body.
pub fn request(stream: &mut (impl Read + Write), path: &str) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}
