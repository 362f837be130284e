//! The relay as a program, over unix and TCP sockets in vsock's place: what it holds, what it refuses, what it runs out of and
//! how it ends.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Far more than any of this takes.
const BOUND: Duration = Duration::from_secs(30);

struct Relay {
    child: Child,
    dir: tempfile::TempDir,
}

impl Relay {
    /// Between `front` and `back` in a folder of its own.
    fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let map = format!("unix:{0}/front=unix:{0}/back", dir.path().display());
        Self::start_in(dir, &[&["--map", &map], more].concat())
    }

    fn start_in(dir: tempfile::TempDir, args: &[&str]) -> Self {
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vsock-relay"))
            .args(args)
            .args(["--log", "stderr"])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let relay = Self { child, dir };
        until("the relay to listen or to end", || relay.log().contains('\n'));
        relay
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap()
    }

    fn said(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    fn client(&self) -> UnixStream {
        let stream = UnixStream::connect(self.at("front")).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream
    }

    /// What a client gets that asks and waits for the end.
    fn answer(&self) -> String {
        ask(self.client())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    fn counters(&self) -> String {
        std::fs::read_to_string(self.at("status")).unwrap_or_default()
    }

    /// How often it went to sleep so far.
    fn sleeps(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the relay said:\n{}", self.log());
        }
    }
}

fn until(what: &str, look: impl Fn() -> bool) {
    let begun = Instant::now();
    while !look() {
        assert!(begun.elapsed() < BOUND, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn ask(mut stream: impl Read + Write) -> String {
    stream.write_all(b"ask").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Answers each connection's first bytes with "served", and closes.
fn serve(listener: UnixListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = [0; 16];
            if stream.read(&mut bytes).unwrap_or(0) > 0 {
                let _ = stream.write_all(b"served");
            }
        }
    });
}

/// Ends the first `count` connections before a byte has moved, and serves the others. Counts those that it took.
fn serve_after_ending(listener: UnixListener, count: usize) -> Arc<AtomicUsize> {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if counter.fetch_add(1, Ordering::SeqCst) >= count {
                thread::spawn(move || {
                    if stream.read(&mut [0; 16]).unwrap_or(0) > 0 {
                        let _ = stream.write_all(b"served");
                    }
                });
            }
        }
    });
    taken
}

/// Keeps each connection open and sends back what it gets.
fn echo(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
}

fn round_trip(mut stream: &UnixStream) {
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
}

#[test]
fn a_client_waits_for_a_target_that_comes_late_and_one_that_left_never_reaches_it() {
    let relay = Relay::start(&["--status", "/dev/null"]);
    for _ in 0..10 {
        relay.client().write_all(b"stale").unwrap();
    }
    thread::scope(|scope| {
        let waiting = scope.spawn(|| relay.answer());
        until("the word about the target", || relay.said("takes no connections") == 1);
        serve(UnixListener::bind(relay.at("back")).unwrap());
        assert_eq!(waiting.join().unwrap(), "served");
    });
    until("the word about the end", || relay.said("takes connections again") == 1);
    assert_eq!(relay.said("(1 held, 0 given up)"), 1, "those that left are not led on");
}

/// The client was told the end of a target that had said nothing: the next one executed its request for nobody.
#[test]
fn a_target_that_takes_connections_only_to_end_them_is_replaced_unseen_and_given_up_in_the_open() {
    let relay = Relay::start(&[]);
    let taken = serve_after_ending(UnixListener::bind(relay.at("back")).unwrap(), 3);
    let mut client = relay.client();
    until("the connection that is kept", || taken.load(Ordering::SeqCst) == 4);
    client.set_nonblocking(true).unwrap();
    let end = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::WouldBlock, "the client has seen no end");
    client.set_nonblocking(false).unwrap();
    assert_eq!(ask(client), "served");

    let relay = Relay::start(&[]);
    let taken = serve_after_ending(UnixListener::bind(relay.at("back")).unwrap(), usize::MAX);
    assert_eq!(relay.client().read(&mut [0; 1]).unwrap(), 0, "what goes on and on is to be seen");
    assert_eq!(taken.load(Ordering::SeqCst), 4);
}

/// It had asked something, and the relay, which had read that already, took it for one that had not.
#[test]
fn a_client_that_half_closes_while_its_request_is_kept_for_the_next_target_is_served() {
    let relay = Relay::start(&[]);
    let back = UnixListener::bind(relay.at("back")).unwrap();
    let mut client = relay.client();
    let (ending, _) = back.accept().unwrap();
    drop(back);
    std::fs::remove_file(relay.at("back")).unwrap();
    relay.signal(Signal::SIGSTOP);
    client.write_all(b"ask").unwrap();
    drop(ending);
    relay.signal(Signal::SIGCONT);
    until("the word about the target", || relay.said("takes no connections") == 1);
    client.shutdown(Shutdown::Write).unwrap();
    let before = relay.sleeps();
    until("the relay to see the end", || relay.sleeps() > before + 10);
    serve(UnixListener::bind(relay.at("back")).unwrap());
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "served");
}

#[test]
fn a_client_is_let_go_when_the_hold_time_is_over() {
    let relay = Relay::start(&["--hold", "0.3"]);
    assert_eq!(relay.answer(), "");
    assert_eq!(relay.said("has taken no connection for the whole hold time"), 1);
}

/// A listener on loopback whose backlog is full, so that further connects get no answer, and what fills it.
fn full_listener(address: SocketAddr) -> (OwnedFd, Vec<TcpStream>) {
    use nix::sys::socket::{self as sockets, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage};
    let listener =
        sockets::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    sockets::setsockopt(&listener, sockets::sockopt::ReuseAddr, &true).unwrap();
    sockets::bind(listener.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    sockets::listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    (listener, std::iter::from_fn(connect).collect())
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn relay_to(target: SocketAddr, more: &[&str]) -> Relay {
    let dir = tempfile::tempdir().unwrap();
    let map = format!("unix:{}/front=tcp:{target}", dir.path().display());
    Relay::start_in(dir, &[&["--map", &map], more].concat())
}

/// With nothing else to wake the relay the kernel's own patience of two minutes was what bounded it.
#[test]
fn a_connect_without_an_answer_is_bounded_by_the_hold_time() {
    let address = free_address();
    let _full = full_listener(address);
    let relay = relay_to(address, &["--hold", "0.3"]);
    assert_eq!(relay.client().read(&mut [0; 1]).unwrap(), 0, "the client is let go");
    assert_eq!(relay.said("no answer"), 1);
}

/// A client that was held, and then dialled in vain, was held for both.
#[test]
fn what_a_client_was_held_counts_for_its_connect() {
    let (address, hold) = (free_address(), Duration::from_secs(2));
    let relay = relay_to(address, &["--hold", "2"]);
    let mut client = relay.client();
    thread::sleep(hold / 2);
    relay.signal(Signal::SIGSTOP);
    let _full = full_listener(address);
    let dialled = Instant::now();
    relay.signal(Signal::SIGCONT);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    assert!(dialled.elapsed() < hold, "it had waited before");
}

#[test]
fn connections_beyond_the_limit_wait_and_are_served_when_one_ends() {
    let relay = Relay::start(&["--max-connections", "2"]);
    echo(&relay.at("back"));
    let (first, second) = (relay.client(), relay.client());
    round_trip(&first);
    round_trip(&second);
    let third = relay.client();
    (&third).write_all(b"x").unwrap();
    until("the word about the limit", || relay.said("2 connections, the limit") == 1);
    drop(first);
    (&third).read_exact(&mut [0; 1]).unwrap();
    assert_eq!(relay.said("the limit"), 1);
}

#[test]
fn out_of_files_is_said_once_and_clients_wait() {
    let relay = Relay::start(&[]);
    echo(&relay.at("back"));
    let served = relay.client();
    round_trip(&served);
    let pid = relay.child.id().to_string();
    let limit = |files: &str| {
        assert!(Command::new("prlimit").args(["--pid", &pid, files]).status().unwrap().success());
    };
    limit("--nofile=8:");
    let waiting = relay.client();
    (&waiting).write_all(b"x").unwrap();
    until("the word about files", || relay.said("Too many open files") == 1);
    round_trip(&served);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(relay.said("Too many open files"), 1, "it is said once");
    limit("--nofile=1000:");
    (&waiting).read_exact(&mut [0; 1]).unwrap();
}

/// Each client that came meanwhile began a chain of timers of its own, which lasted as long as the want of files.
#[test]
fn clients_that_come_while_files_are_short_wake_the_relay_no_more_often() {
    let relay = Relay::start(&[]);
    echo(&relay.at("back"));
    let pid = relay.child.id().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=8:"]).status().unwrap().success());
    let come = |_| {
        thread::sleep(Duration::from_millis(20));
        relay.client()
    };
    let _waiting: Vec<_> = (0..50).map(come).collect();
    until("the word about files", || relay.said("Too many open files") == 1);
    let before = relay.sleeps();
    thread::sleep(Duration::from_secs(2));
    let sleeps = relay.sleeps() - before;
    assert!(sleeps < 25, "it woke {sleeps} times in two seconds, for 50 clients");
}

/// One that was missing at the start stayed missing for as long as the others were served.
#[test]
fn an_address_that_is_taken_is_listened_on_once_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let holder = UnixListener::bind(dir.path().join("taken")).unwrap();
    let map = |name: &str| format!("unix:{0}/{name}=unix:{0}/back", dir.path().display());
    let (front, taken) = (map("front"), map("taken"));
    let relay = Relay::start_in(dir, &["--map", &taken, "--map", &front]);
    serve(UnixListener::bind(relay.at("back")).unwrap());
    until("the other address", || relay.said("front ->") == 1);
    assert_eq!(relay.answer(), "served");
    holder.set_nonblocking(true).unwrap();
    for look in ["the first look", "another look, and the address is taken still"] {
        until(look, || holder.accept().is_ok());
    }
    drop(holder);
    until("the address", || relay.said("taken: listening now") == 1);
    assert_eq!(ask(UnixStream::connect(relay.at("taken")).unwrap()), "served");
    assert_eq!(relay.said("cannot listen"), 1, "it is said once");
}

#[test]
fn errors_of_accept_neither_end_the_relay_nor_lose_the_next_client() {
    for (error, told) in [("ENFILE", 1), ("ENOMEM", 1), ("ENOBUFS", 1), ("ECONNABORTED", 0), ("EPROTO", 0)] {
        let relay = Relay::start(&[]);
        serve(UnixListener::bind(relay.at("back")).unwrap());
        let mut strace = Command::new("strace")
            .args([
                "-qq",
                "-e",
                "trace=accept4",
                "-o",
                "/dev/null",
                "-e",
                &format!("inject=accept4:error={error}:when=1..3"),
            ])
            .args(["-p", &relay.child.id().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", relay.child.id());
        until("strace to hold the relay", || {
            !std::fs::read_to_string(&status).unwrap().contains("TracerPid:\t0")
        });
        assert_eq!(relay.answer(), "served", "{error}");
        assert_eq!(relay.said("cannot accept"), told, "{error}: {}", relay.log());
        let _ = strace.kill();
        let _ = strace.wait();
    }
}

#[test]
fn a_term_lets_open_connections_go_on_for_the_drain_time_and_a_second_one_does_not() {
    let mut relay = Relay::start(&["--drain", "20"]);
    echo(&relay.at("back"));
    let open = relay.client();
    round_trip(&open);
    relay.signal(Signal::SIGTERM);
    until("the word about the drain", || relay.said("no new connections, 1 open ones have 20 s") == 1);
    round_trip(&open);
    assert!(UnixStream::connect(relay.at("front")).is_err(), "nobody new is taken");
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.exit_code(), Some(0));

    let mut relay = Relay::start(&["--drain", "0.2"]);
    echo(&relay.at("back"));
    let open = relay.client();
    round_trip(&open);
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.exit_code(), Some(0), "the drain is bounded");
    assert_eq!((&open).read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn several_maps_lead_from_and_to_tcp_and_unix() {
    let dir = tempfile::tempdir().unwrap();
    let (front, back) = (free_address().port(), TcpListener::bind("127.0.0.1:0").unwrap());
    let to_tcp = format!("unix:{}/front=tcp:{}", dir.path().display(), back.local_addr().unwrap());
    let to_unix = format!("tcp:127.0.0.1:{front}=unix:{}/back", dir.path().display());
    let relay = Relay::start_in(dir, &["--map", &to_tcp, "--map", &to_unix]);
    serve(UnixListener::bind(relay.at("back")).unwrap());
    thread::spawn(move || {
        for mut stream in back.incoming().flatten() {
            let _ = stream.read(&mut [0; 16]).and_then(|_| stream.write_all(b"by tcp"));
        }
    });
    until("both listeners", || relay.said(" -> ") == 2);
    assert_eq!(relay.answer(), "by tcp");
    assert_eq!(ask(TcpStream::connect(("127.0.0.1", front)).unwrap()), "served");
    assert_eq!(relay.said("is published by envd"), 1, "a TCP listener in a sandbox is warned of");
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_refused_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(dir.path().join("front")).unwrap());
    let map = format!("unix:{0}/front=unix:{0}/back", dir.path().display());
    let relay = Relay::start_in(dir, &["--map", &map]);
    serve(UnixListener::bind(relay.at("back")).unwrap());
    assert_eq!(relay.answer(), "served");
    let mut second = Relay::start_in(tempfile::tempdir().unwrap(), &["--map", &map]);
    assert_eq!(second.exit_code(), Some(7));
    assert!(second.log().contains("cannot listen on unix:"), "{}", second.log());
    let mut wrong =
        Relay::start_in(tempfile::tempdir().unwrap(), &["--map", "vsock:any:1=netns:x/tcp:1.2.3.4:5"]);
    assert_eq!(wrong.exit_code(), Some(2));
}

#[test]
fn idle_connections_wake_nobody_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let map = format!("unix:{0}/front=unix:{0}/back", dir.path().display());
    let status = dir.path().join("status").display().to_string();
    let relay = Relay::start_in(dir, &["--map", &map, "--status", &status]);
    echo(&relay.at("back"));
    let idle: Vec<_> = (0..50).map(|_| relay.client()).collect();
    idle.iter().for_each(round_trip);
    until("the counters", || relay.counters().contains("\"connections\":50"));
    let before = relay.sleeps();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(relay.sleeps(), before, "something woke the relay");
    drop(idle);
    until("the counters", || relay.counters().contains("\"connections\":0,\"total\":50"));
}

/// What bounded a connection while it lasted wakes nobody when it is over.
#[test]
fn connections_that_have_ended_leave_nothing_to_wake_for() {
    let dir = tempfile::tempdir().unwrap();
    let map = format!("unix:{0}/front=unix:{0}/back", dir.path().display());
    let status = dir.path().join("status").display().to_string();
    let relay = Relay::start_in(dir, &["--map", &map, "--status", &status]);
    serve(UnixListener::bind(relay.at("back")).unwrap());
    // More than the target reads: the rest is taken from the client for a bounded time, and the client leaves earlier.
    let mut client = relay.client();
    let _ = client.write_all(&vec![0; 1 << 20]);
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    drop(client);
    until("the counters", || relay.counters().contains("\"connections\":0,\"total\":1"));
    thread::sleep(guest::rest::PAUSE + Duration::from_millis(500)); // by then it is at rest, and has let go of its pages
    let before = relay.sleeps();
    thread::sleep(vsock_relay::pump::LINGER);
    assert_eq!(relay.sleeps(), before, "something woke the relay");
}
