//! What an operator sees of a real guest: status, log, boot, run-check and doctor, over vsock and through the bridge.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tests::image::Image;
use tests::{Vm, wait};

/// A bridge on a port of its own; ended when dropped.
struct Bridge {
    child: Child,
    listen: String,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn envdctl() -> PathBuf {
    tests::paths::host_bin("envdctl").unwrap()
}

fn ctl(args: &[&str]) -> Output {
    let mut command = Command::new(envdctl());
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

/// What a command prints, when it succeeds.
fn said(args: &[&str]) -> String {
    let output = ctl(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "envdctl {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

impl Bridge {
    fn start(vm: &Vm) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = format!("tcp:127.0.0.1:{port}");
        let child = Command::new(envdctl())
            .args(["bridge", "--listen", &listen, "--route", &vm.tcp_endpoint()])
            .args(["--route", &vm.vsock_endpoint(49983)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        await_true("the bridge listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { child, listen }
    }
}

fn await_true(what: &str, mut look: impl FnMut() -> bool) {
    wait::until(what, wait::BOUND, || Ok(look().then_some(()))).unwrap();
}

/// The doctor, with the command line that is the same in every scenario.
fn doctor(vm: &Vm, listen: &str) -> (Value, i32) {
    let socket = vm.vsock_socket().display().to_string();
    let console = vm.console().log().display().to_string();
    let route = vm.tcp_endpoint();
    let output = ctl(&[
        "doctor",
        "--json",
        "--listen",
        listen,
        "--route",
        &route,
        "--fc-socket",
        &socket,
        "--console",
        &console,
    ]);
    let report = serde_json::from_slice(&output.stdout).unwrap();
    (report, output.status.code().unwrap())
}

fn assert_first(vm: &Vm, bridge: &Bridge, hop: &str) {
    let (report, code) = doctor(vm, &bridge.listen);
    let pretty = serde_json::to_string_pretty(&report).unwrap();
    assert_eq!(report["first_broken"], hop, "{pretty}");
    assert_eq!(code, report["exit_code"].as_i64().unwrap() as i32);
}

fn booted(image: &Image) -> Vm {
    let vm = Vm::of(image).boot().unwrap();
    vm.console().wait("envd is healthy").unwrap();
    // envd comes first: what answers an operator may come a moment after it.
    vm.wait_control().unwrap();
    vm
}

/// One healthy guest, asked everything; then broken hop by hop by outside tools, and mended again.
#[test]
fn a_guest_is_seen_through_and_its_broken_hop_named() {
    let vm = booted(&Image::native().bake().unwrap());
    let bridge = Bridge::start(&vm);
    let socket = vm.vsock_socket().display().to_string();
    let guest = ["--fc-socket", socket.as_str()];

    let status: Value = serde_json::from_str(&said(&[&["status", "--json"], &guest[..]].concat())).unwrap();
    assert_eq!(
        (status["mode"].as_str(), status["envd"]["state"].as_str()),
        (Some("native"), Some("healthy"))
    );
    assert!(said(&[&["status"], &guest[..]].concat()).contains("169.254.0.21/30 up"));
    assert!(said(&[&["logs"], &guest[..]].concat()).contains("envd is healthy"));
    let only = said(&[&["logs", "--service", "wrapper"], &guest[..]].concat());
    assert!(only.lines().all(|line| line.contains("wrapper:")) && !only.is_empty(), "{only}");

    see_the_boot(&vm, &guest);
    assert!(said(&["run-check", &bridge.listen]).contains("4 passed, 0 failed"));
    assert!(said(&["run-check", "--fc-socket", &socket]).contains("4 passed, 0 failed"));
    let (report, code) = doctor(&vm, &bridge.listen);
    assert!(code == 0 && report["healthy"] == true, "{report:#}");
    assert_eq!(ctl(&[&["restart", "no-such-service"], &guest[..]].concat()).status.code(), Some(4));

    vm.netns().ip(&["link", "set", "tap0", "down"]).unwrap();
    assert_first(&vm, &bridge, "devices");
    vm.netns().ip(&["link", "set", "tap0", "up"]).unwrap();
    vm.netns().run("iptables", &["-A", "OUTPUT", "-d", "169.254.0.21", "-j", "DROP"]).unwrap();
    assert_first(&vm, &bridge, "rules");
    vm.netns().run("iptables", &["-F"]).unwrap();

    said(&[&["stop", "envd"], &guest[..]].concat());
    assert_first(&vm, &bridge, "port");
    said(&[&["start", "envd"], &guest[..]].concat());
    said(&[&["stop", "relay"], &guest[..]].concat());
    await_true("envd serves again", || doctor(&vm, &bridge.listen).0["first_broken"] == "relay");
    assert_first(&vm, &bridge, "relay");
    said(&[&["start", "relay"], &guest[..]].concat());

    vm.qmp().stop().unwrap();
    assert_first(&vm, &bridge, "guest-address");
}

/// The timeline from the guest and from its console agree, and the picture is a picture.
fn see_the_boot(vm: &Vm, guest: &[&str]) {
    let live: Value = serde_json::from_str(&said(&[&["boot", "--json"], guest].concat())).unwrap();
    let console = vm.console().log().display().to_string();
    let saved: Value = serde_json::from_str(&said(&["boot", "--json", "--from", &console])).unwrap();
    assert_eq!(live["healthy_ns"]["median"], saved["healthy_ns"]["median"]);
    assert!(said(&["boot", "--from", &console]).contains("envd_healthy"));
    let picture = vm.dir().join("boot.svg");
    said(&["boot", "--from", &console, "--svg", &picture.display().to_string()]);
    assert!(fs::read_to_string(&picture).unwrap().starts_with("<svg "));
    let shown = said(&["console", &console]);
    assert!(shown.contains("envd-init boot: healthy"), "{shown}");
}

/// envd that crashes again and again is named as such, with its last words.
#[test]
fn a_crash_loop_is_told_with_the_last_words() {
    let image = Image::native().switches("exit-after = 0.3\n").bake().unwrap();
    let vm = Vm::of(&image).boot().unwrap();
    let mark = vm.console().mark();
    for _ in 0..3 {
        vm.console().wait_after(mark, "envd-init: exit").unwrap();
    }
    let bridge = Bridge::start(&vm);
    let (report, _) = doctor(&vm, &bridge.listen);
    let envd = report["hops"].as_array().unwrap().iter().find(|hop| hop["hop"] == "envd").unwrap();
    assert_eq!(envd["state"], "broken", "{report:#}");
}

/// Without a vsock device the way by vsock is named at its first hop.
#[test]
fn a_missing_vsock_device_is_named() {
    let vm = Vm::of(&Image::native().bake().unwrap()).without_vsock().boot().unwrap();
    vm.console().wait("envd is healthy").unwrap();
    let bridge = Bridge::start(&vm);
    assert!(!Path::new(&vm.vsock_socket()).exists());
    assert_first(&vm, &bridge, "vsock-socket");
}
