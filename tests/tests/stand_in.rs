//! The stand-in envd: it answers as the real one does, and each of its faults is one.
//!
//! Runs in a network namespace, without a VM. What both must do is tried on the real envd too where `ENVD` names one.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail by panicking, as tests do

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use envd_api::files::{self, WriteInfo};
use envd_api::filesystem::{
    EntryResponse, FileType, LIST_DIR, ListDirRequest, ListDirResponse, MAKE_DIR, MOVE, MoveRequest,
    PathRequest, REMOVE, STAT,
};
use envd_api::process::{
    CLOSE_STDIN, Input, LIST, ListResponse, SEND_INPUT, SEND_SIGNAL, SelectRequest, Selector,
    SendInputRequest, SendSignalRequest, Signal, StartRequest,
};
use envd_api::{JSON, OCTET_STREAM, envelope};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tests::envd::{CommandOutput, collect, start_request};
use tests::http::{self, Request, Response, Stream};
use tests::net::NetNs;
use tests::vm::Process;
use tests::{Envd, paths, wait};

/// One envd, alone in a namespace and with a /run of its own.
struct Alone {
    process: Process,
    netns: NetNs,
    log: PathBuf,
}

impl Alone {
    /// Switches go by flags: `["--exit-after", "1"]`.
    fn start(program: &Path, flags: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        tests::require_root().unwrap();
        let name = format!("{}-s{}", tests::sweep::unique_name(), NEXT.fetch_add(1, Ordering::Relaxed));
        let netns = NetNs::new(&name).unwrap();
        let log = std::env::temp_dir().join(format!("{name}.log"));
        let script = "mount -t tmpfs tmpfs /run; exec \"$@\"";
        let mut args: Vec<std::ffi::OsString> =
            ["netns", "exec", &name, "sh", "-c", script, "sh"].map(Into::into).to_vec();
        args.push(program.into());
        args.extend(flags.iter().map(Into::into));
        let process = Process::start(Path::new("ip"), &args, &log).unwrap();
        Self { process, netns, log }
    }

    fn stand_in(flags: &[&str]) -> Self {
        Self::start(&paths::stand_in().unwrap(), flags)
    }

    /// Every envd there is to try.
    fn each() -> Vec<(&'static str, Self)> {
        let mut all = vec![("the stand-in", Self::stand_in(&[]))];
        if let Some(Envd::File(path)) = Envd::real() {
            all.push(("the real envd", Self::start(&path, &["-isnotfc", "-no-cgroups"])));
        }
        all.iter().for_each(|(_, envd)| envd.wait_listening());
        all
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        self.netns.connect("127.0.0.1:49983", Duration::from_secs(5))
    }

    fn wait_listening(&self) {
        wait::until("envd to listen", wait::BOUND, || Ok(self.connect().ok())).unwrap();
    }

    fn wait_end(&self) -> std::process::ExitStatus {
        wait::until("envd to end", wait::BOUND, || Ok(self.process.ended())).unwrap()
    }

    fn said(&self) -> Vec<u8> {
        std::fs::read(&self.log).unwrap_or_default()
    }

    fn send(&self, request: &Request<'_>) -> Response {
        http::send(Stream::Tcp(self.connect().unwrap()), request, wait::BOUND).unwrap()
    }

    fn get(&self, target: &str) -> Response {
        self.send(&Request { method: "GET", target, ..Request::default() })
    }

    fn health_within(&self, bound: Duration) -> anyhow::Result<u16> {
        let request = Request { method: "GET", target: envd_api::HEALTH, ..Request::default() };
        Ok(http::send(Stream::Tcp(self.connect()?), &request, bound)?.status)
    }

    fn unary(&self, target: &str, message: &impl Serialize) -> Response {
        let headers = vec![("content-type", JSON.to_owned()), ("connect-protocol-version", "1".to_owned())];
        let body = serde_json::to_vec(message).unwrap();
        self.send(&Request { method: "POST", target, headers, body })
    }

    fn ask<T: DeserializeOwned>(&self, target: &str, message: &impl Serialize) -> T {
        let answer = self.unary(target, message);
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        serde_json::from_slice(&answer.body)
            .unwrap_or_else(|error| panic!("{target}: {error} in {}", answer.text()))
    }

    fn run(&self, command: &str, user: Option<&str>) -> CommandOutput {
        let answer = self.send(&start_request(&StartRequest::shell(command), user).unwrap());
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(envd_api::CONNECT_JSON)));
        collect(&answer.body).unwrap()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Health, `/init`, and commands with their output, exit status and signal.
#[test]
fn commands_tell_output_status_and_signal() {
    for (name, envd) in Alone::each() {
        assert_eq!(envd.get("/health").status, 204, "{name}");
        let init = Request { method: "POST", target: "/init", body: b"{}".to_vec(), ..Request::default() };
        assert_eq!(envd.send(&init).status, 204, "{name}");
        let out = envd.run("echo out; echo err >&2; exit 3", None);
        assert_eq!(
            (out.stdout.as_str(), out.stderr.as_str(), out.exit_code),
            ("out\n", "err\n", 3),
            "{name}"
        );
        assert_eq!(out.status, "exit status 3", "{name}");
        let killed = envd.run("kill -9 $$", None);
        assert_eq!((killed.exit_code, killed.status.as_str()), (-1, "signal: killed"), "{name}");
        assert_eq!(envd.run("id -un", Some("daemon")).stdout, "daemon\n", "{name}");
    }
}

/// Bytes written are the bytes read, raw and as a form; what is not there is a 404 with a message.
#[test]
fn files_are_written_and_read_back() {
    for (name, envd) in Alone::each() {
        let path = format!("/tmp/{}/ü \"x\".bin", tests::sweep::unique_name());
        let target = files::target(&path, Some("root"));
        let content: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        let raw = vec![("content-type", OCTET_STREAM.to_owned())];
        let written =
            envd.send(&Request { method: "POST", target: &target, headers: raw, body: content.clone() });
        let infos: Vec<WriteInfo> = serde_json::from_slice(&written.body).unwrap();
        assert_eq!((infos[0].path.as_str(), infos[0].kind.as_str()), (path.as_str(), "file"), "{name}");
        assert!(envd.get(&target).body == content, "{name}: other bytes came back");
        let form = vec![("content-type", "multipart/form-data; boundary=XX".to_owned())];
        let body = b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nhello\r\n--XX--\r\n";
        let answer =
            envd.send(&Request { method: "POST", target: &target, headers: form, body: body.to_vec() });
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(envd.get(&target).text(), "hello", "{name}");
        let missing = envd.get("/files?path=/no/such&username=root");
        assert_eq!(missing.status, 404, "{name}");
        assert!(missing.text().contains("\"message\""), "{name}: {}", missing.text());
        std::fs::remove_dir_all(Path::new(&path).parent().unwrap()).unwrap();
    }
}

/// The calls about the tree answer alike.
#[test]
fn the_tree_is_listed_and_changed() {
    for (name, envd) in Alone::each() {
        let top = format!("/tmp/{}", tests::sweep::unique_name());
        let inner = format!("{top}/a/b");
        let path = |path: &str| PathRequest { path: path.to_owned() };
        let made: EntryResponse = envd.ask(MAKE_DIR, &path(&inner));
        assert_eq!((made.entry.kind, made.entry.name.as_str()), (FileType::Directory, "b"), "{name}");
        assert_eq!(envd.unary(MAKE_DIR, &path(&inner)).status, 409, "{name}");
        std::fs::write(format!("{top}/f"), "12345").unwrap();
        std::os::unix::fs::symlink("f", format!("{top}/link")).unwrap();
        let stat: EntryResponse = envd.ask(STAT, &path(&format!("{top}/f")));
        assert_eq!(
            (stat.entry.size, stat.entry.kind, stat.entry.owner.as_str()),
            (5, FileType::File, "root"),
            "{name}"
        );
        let list: ListDirResponse = envd.ask(LIST_DIR, &ListDirRequest { path: top.clone(), depth: 2 });
        let mut names: Vec<&str> = list.entries.iter().map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b", "f", "link"], "{name}");
        let moved = MoveRequest { source: format!("{top}/f"), destination: format!("{top}/g") };
        assert_eq!(envd.ask::<EntryResponse>(MOVE, &moved).entry.name, "g", "{name}");
        let gone = envd.unary(STAT, &path(&format!("{top}/f")));
        assert_eq!(gone.status, 404, "{name}");
        assert!(gone.text().contains("\"code\":\"not_found\""), "{name}: {}", gone.text());
        assert_eq!(envd.unary(REMOVE, &path(&top)).status, 200, "{name}");
        assert!(!Path::new(&top).exists(), "{name}");
    }
}

/// A process with input is listed, fed, and ends at the end of its input; an unknown one is not found.
#[test]
fn a_running_process_is_listed_fed_and_signalled() {
    for (name, envd) in Alone::each() {
        let mut start = StartRequest::shell("read line; echo \"got $line\"; cat");
        start.stdin = Some(true);
        let request = start_request(&start, None).unwrap();
        let stream = Stream::Tcp(envd.connect().unwrap());
        let out = std::thread::scope(|scope| {
            let running = scope.spawn(|| http::send(stream, &request, wait::BOUND).unwrap());
            let listed = wait::until("the process to be listed", wait::BOUND, || {
                Ok(envd.ask::<ListResponse>(LIST, &serde_json::json!({})).processes.pop())
            });
            let process = Selector::Pid(listed.unwrap().pid);
            let input = Input::Stdin("hello\n".into());
            let fed = SendInputRequest { process: process.clone(), input };
            assert_eq!(envd.unary(SEND_INPUT, &fed).status, 200, "{name}");
            assert_eq!(envd.unary(CLOSE_STDIN, &SelectRequest { process }).status, 200, "{name}");
            collect(&running.join().unwrap().body).unwrap()
        });
        assert_eq!((out.stdout.as_str(), out.exit_code), ("got hello\n", 0), "{name}");
        let unknown = SendSignalRequest { process: Selector::Pid(4_000_000), signal: Signal::Kill };
        assert_eq!(envd.unary(SEND_SIGNAL, &unknown).status, 404, "{name}");
    }
}

/// Starting as nobody that exists is an error in the stream, which a client must see.
#[test]
fn an_unknown_user_is_refused() {
    for (name, envd) in Alone::each() {
        let request = start_request(&StartRequest::shell("true"), Some("no-such-user")).unwrap();
        let answer = envd.send(&request);
        let mut decoder = envelope::Decoder::default();
        decoder.push(&answer.body);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert!(frame.is_end() && frame.end_error().is_err(), "{name}: {}", answer.text());
    }
}

/// Faults of starting: late, never, and only at the first starts.
#[test]
fn it_binds_late_or_never() {
    let begun = Instant::now();
    let late = Alone::stand_in(&["--bind-after", "1.5"]);
    late.wait_listening();
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    let never = Alone::stand_in(&["--never-bind", "yes", "--say", "here I am"]);
    wait::until("its first word", wait::BOUND, || Ok((!never.said().is_empty()).then_some(()))).unwrap();
    assert!(never.connect().is_err() && never.process.ended().is_none());
}

/// Faults of health: hangs, answers late, answers something else; the rest goes on serving.
#[test]
fn health_hangs_or_answers_wrongly() {
    let hanging = Alone::stand_in(&["--hang-health", "yes"]);
    hanging.wait_listening();
    assert!(hanging.health_within(Duration::from_millis(500)).is_err());
    assert_eq!(hanging.run("echo alive", None).stdout, "alive\n");
    let wrong = Alone::stand_in(&["--health-status", "503"]);
    wrong.wait_listening();
    assert_eq!(wrong.health_within(wait::BOUND).unwrap(), 503);
    let stuck = Alone::stand_in(&["--hang-all-after", "0.01"]);
    wait::until("it to be stuck", wait::BOUND, || {
        Ok(stuck.connect().ok().and_then(|_| stuck.health_within(Duration::from_secs(1)).err()))
    })
    .unwrap();
    assert!(stuck.process.ended().is_none());
}

/// Faults of dying: by itself, on a request, as a Go program panics.
#[test]
fn it_dies_when_told() {
    let clean = Alone::stand_in(&["--exit-after", "0.2", "--exit-code", "7"]);
    assert_eq!(clean.wait_end().code(), Some(7));
    let crashing = Alone::stand_in(&["--crash-on", "/crash"]);
    crashing.wait_listening();
    let request = Request { method: "GET", target: "/crash", ..Request::default() };
    let answer = http::send(Stream::Tcp(crashing.connect().unwrap()), &request, wait::BOUND);
    assert!(answer.is_err());
    assert!(!crashing.wait_end().success());
    let panicking = Alone::stand_in(&["--panic-after", "0.2"]);
    assert_eq!(panicking.wait_end().code(), Some(2));
    assert!(String::from_utf8_lossy(&panicking.said()).contains("goroutine 1 [running]"));
}

/// Faults of output, and a SIGTERM that it ignores.
#[test]
fn it_floods_prints_junk_and_ignores_sigterm() {
    let loud = Alone::stand_in(&["--flood", "10000", "--binary-junk", "yes", "--ignore-term", "yes"]);
    loud.wait_listening();
    wait::until("a flood", wait::BOUND, || Ok((loud.said().len() > 100_000).then_some(()))).unwrap();
    assert!(loud.said().contains(&0) && loud.said().contains(&0x1b));
    let pid = nix::unistd::Pid::from_raw(loud.process.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(loud.health_within(wait::BOUND).unwrap(), 204);
    let plain = Alone::stand_in(&[]);
    plain.wait_listening();
    assert!(plain.said().is_empty(), "it prints when all is well");
    let pid = nix::unistd::Pid::from_raw(plain.process.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    plain.wait_end();
}
