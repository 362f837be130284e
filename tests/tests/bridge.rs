//! The bridge as a program, between real sockets: routes break in every way that matters, and clients do not suffer.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bridge::fake::{self, Behaviour, Bridge, Envd, Folder, Vmm, free_port, get, request};
use tests::bridge::{Bed, Fault};
use tests::wait;

/// Far more than any of this takes; what is broken does not end at all.
const BOUND: Duration = Duration::from_secs(30);

fn until(what: &str, look: impl Fn() -> bool) {
    wait::until(what, BOUND, || Ok(look().then_some(()))).unwrap();
}

fn changes_over(fault: Fault) {
    let bed = Bed::new(&format!("br{}", fault.name())).unwrap();
    let served_by = |tag: &str| bed.served_by(tag).unwrap();
    assert_eq!(get(&bed.bridge.address(), "/tag").unwrap(), "tcp");
    let mut pooled = TcpStream::connect(bed.bridge.address()).unwrap();
    assert_eq!(request(&mut pooled, "/tag").unwrap(), "tcp");
    bed.break_by(fault).unwrap();
    let elapsed = served_by("vsock");
    println!("{}: served over the other route after {} ms", fault.name(), elapsed.as_millis());
    // A pool finds out that its connection is no good: it has been closed.
    pooled.set_read_timeout(Some(BOUND)).unwrap();
    assert!(matches!(pooled.read(&mut [0; 1]), Ok(0) | Err(_)) && pooled.take_error().unwrap().is_none());
    // A stream over the route that is well outlives the return to the other.
    let mut stream = TcpStream::connect(bed.bridge.address()).unwrap();
    assert_eq!(request(&mut stream, "/tag").unwrap(), "vsock");
    bed.heal(fault).unwrap();
    served_by("tcp");
    assert_eq!(request(&mut stream, "/tag").unwrap(), "vsock");
    let log = bed.bridge.log();
    assert_eq!(log.lines().filter(|line| line.contains(" -> ")).count(), 2, "one line a change:\n{log}");
}

#[test]
fn a_route_whose_port_is_closed_is_left_and_taken_back() {
    changes_over(Fault::Closed);
}

#[test]
fn a_route_that_drops_packets_is_left_and_taken_back() {
    changes_over(Fault::Dropped);
}

#[test]
fn a_route_that_connects_and_resets_is_left_and_taken_back() {
    changes_over(Fault::Reset);
}

#[test]
fn a_route_that_accepts_and_hangs_is_left_and_taken_back() {
    changes_over(Fault::Hung);
}

#[test]
fn a_client_waits_while_nobody_answers_and_is_then_served() {
    let envd = Envd::new("late");
    envd.close();
    let bridge = Bridge::start(&[envd.route()], &[]);
    let address = bridge.address();
    let waiting = std::thread::spawn(move || get(&address, "/tag"));
    until("the client to wait", || bridge.log().contains("no route answers; 1 clients wait"));
    envd.reopen_here();
    assert_eq!(waiting.join().unwrap().unwrap(), "late");
}

#[test]
fn a_client_that_leaves_while_it_waits_never_reaches_the_guest() {
    let envd = Envd::new("late");
    envd.close();
    let bridge = Bridge::start(&[envd.route()], &[]);
    for _ in 0..20 {
        let mut client = TcpStream::connect(bridge.address()).unwrap();
        client.write_all(b"GET /stale HTTP/1.1\r\n\r\n").unwrap();
    }
    let metrics = || bridge.metrics();
    until("the clients to be forgotten", || metrics().contains("connections_open{sandbox=\"sandbox\"} 0\n"));
    envd.reopen_here();
    assert_eq!(get(&bridge.address(), "/tag").unwrap(), "late");
    assert_eq!(envd.count("/stale"), 0);
}

#[test]
fn clients_that_wait_cost_next_to_nothing() {
    let envd = Envd::new("hung");
    envd.behave(Behaviour::Hang);
    let bridge = Bridge::start(&[envd.route()], &[]);
    let mut waiting: Vec<_> = (0..3).map(|_| TcpStream::connect(bridge.address()).unwrap()).collect();
    waiting.iter_mut().for_each(|client| client.write_all(b"GET /tag HTTP/1.1\r\n\r\n").unwrap());
    until("the clients to wait", || bridge.log().contains("no route answers; 3 clients wait"));
    let before = (bridge.sleeps(), bridge.ticks());
    std::thread::sleep(Duration::from_secs(1));
    let (sleeps, ticks) = (bridge.sleeps() - before.0, bridge.ticks() - before.1);
    assert!(
        sleeps < 500 && ticks < 25,
        "it slept {sleeps} times and worked {ticks} ticks in a second of waiting"
    );
}

#[test]
fn a_client_that_left_is_ended_and_one_that_half_closed_is_waited_with() {
    let vmm = Vmm::new("vsock");
    let bridge = Bridge::start(&[format!("firecracker:{}:49983", vmm.path().display())], &[]);
    let ask = || {
        let mut client = TcpStream::connect(bridge.address()).unwrap();
        client.write_all(b"GET /never HTTP/1.1\r\n\r\n").unwrap();
        client
    };
    let open = |count: usize| {
        bridge.metrics().contains(&format!("connections_open{{sandbox=\"sandbox\"}} {count}\n"))
    };
    let (patient, leaving) = (ask(), ask());
    until("both", || open(2) && !bridge.metrics().contains("_waiting{sandbox=\"sandbox\"} 1"));
    patient.shutdown(Shutdown::Write).unwrap();
    drop(leaving);
    until("the one that left to be ended", || open(1));
    patient.set_nonblocking(true).unwrap();
    let end = (&patient).read(&mut [0; 1]).unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::WouldBlock, "the other one is still waited with");
}

#[test]
fn a_request_that_was_sent_is_never_sent_again() {
    let (first, second) = (Envd::new("first"), Envd::new("second"));
    let bridge = Bridge::start(&[first.route(), second.route()], &[]);
    assert_eq!(get(&bridge.address(), "/tag").unwrap(), "first");
    // Read by the first, which dies over it.
    assert!(get(&bridge.address(), "/die").is_err());
    assert_eq!((first.count("/die"), second.count("/die")), (1, 0));
}

#[test]
fn a_connection_that_the_vmm_refuses_at_first_is_dialled_again() {
    let vmm = Vmm::new("vsock");
    let bridge = Bridge::start(&[format!("firecracker:{}:49983", vmm.path().display())], &[]);
    assert_eq!(get(&bridge.address(), "/tag").unwrap(), "vsock");
    vmm.refuse_next(3);
    assert_eq!(get(&bridge.address(), "/tag").unwrap(), "vsock");
    assert_eq!(vmm.malformed(), 0, "every CONNECT came in one piece");
}

/// The client was told the end of a connection over which nothing had been asked, and got no answer over the next one.
#[test]
fn a_connection_that_the_guest_ends_before_a_byte_has_moved_is_dialled_again_unseen() {
    let vmm = Vmm::new("vsock");
    let bridge = Bridge::start(&[format!("firecracker:{}:49983", vmm.path().display())], &[]);
    vmm.end_silent(true);
    let mut client = TcpStream::connect(bridge.address()).unwrap();
    let none = "redials_total{sandbox=\"sandbox\"} 0\n";
    until("a redial", || !bridge.metrics().contains(none));
    vmm.end_silent(false);
    client.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!(request(&mut client, "/tag").unwrap(), "vsock");
}

/// Nobody is left to serve it: it is closed, never answered, and not left without an end.
#[test]
fn a_guest_that_ends_every_connection_is_given_up_when_the_hold_time_is_over() {
    let vmm = Vmm::new("vsock");
    let route = format!("firecracker:{}:49983", vmm.path().display());
    let bridge = Bridge::start(&[route], &["--hold", "1"]);
    vmm.end_silent(true);
    let mut client = TcpStream::connect(bridge.address()).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    let none = "redials_total{sandbox=\"sandbox\"} 0\n";
    assert!(!bridge.metrics().contains(none), "it was tried more than once");
}

#[test]
fn through_a_vmm_that_breaks_half_close_answers_come_whole() {
    let vmm = Vmm::new("vsock");
    let bridge = Bridge::start(&[format!("firecracker:{}:49983", vmm.path().display())], &[]);
    // A client that half-closes after its request.
    let mut client = TcpStream::connect(bridge.address()).unwrap();
    client.write_all(b"GET /slow HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(&"x".repeat(1 << 20)), "{} bytes", answer.len());
    // An early 413 while the client still sends.
    let mut client = TcpStream::connect(bridge.address()).unwrap();
    let mut sender = client.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let _ = sender.write_all(b"POST /early HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n");
        let block = vec![0; 1 << 16];
        while sender.write_all(&block).is_ok() {}
    });
    let mut head = [0; 12];
    client.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 413");
    drop(client);
    sending.join().unwrap();
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_refused() {
    let envd = Envd::new("e");
    let dir = fake::dir();
    let path = dir.path().join("listen.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listen = format!("unix:{}", path.display());
    let first = Bridge::start_with(&["--listen", &listen, "--route", &envd.route()]);
    until("the bridge", || first.log().contains("listening on unix:"));
    let second = Bridge::start_with(&["--listen", &listen, "--route", &envd.route()]);
    assert_eq!(second.exit_code(), 7);
    let log = second.log();
    assert!(log.contains("another process has it") && log.lines().count() <= 2, "{log}");
}

#[test]
fn a_socket_that_is_anothers_is_not_said_to_be_in_use() {
    let (envd, dir) = (Envd::new("e"), fake::dir());
    let path = dir.path().join("listen.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    let listen = format!("unix:{}", path.display());
    let bridge = Bridge::start_with(&["--listen", &listen, "--route", &envd.route()]);
    assert_eq!(bridge.exit_code(), 5);
    let log = bridge.log();
    assert!(log.contains("nobody can tell whether it is in use (Permission denied"), "{log}");
}

#[test]
fn a_socket_deeper_than_an_address_allows_is_reached() {
    let dir = fake::dir();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let vmm = Vmm::at(&deep, "deep");
    let bridge = Bridge::start(&[format!("firecracker:{}:49983", vmm.path().display())], &[]);
    assert_eq!(get(&bridge.address(), "/tag").unwrap(), "deep");
}

/// The kernel takes no address over 107 bytes, and clients have ways of their own around it.
#[test]
fn a_socket_deeper_than_an_address_allows_is_listened_on_and_a_stale_one_there_replaced() {
    let (envd, dir) = (Envd::new("e"), fake::dir());
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let path = deep.join("listen.sock");
    let listen = format!("unix:{}", path.display());
    let ask = || {
        let folder = std::fs::File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/listen.sock", folder.as_raw_fd());
        request(&mut UnixStream::connect(short).unwrap(), "/tag").unwrap()
    };
    let start = || Bridge::start_with(&["--listen", &listen, "--route", &envd.route()]);
    let first = start();
    first.wait_said("listening on unix:");
    assert_eq!(ask(), "e");
    let second = start();
    assert_eq!(second.exit_code(), 7, "{}", second.log());
    first.signal(Signal::SIGKILL);
    until("its end", || first.has_ended());
    let third = start();
    third.wait_said("listening on unix:");
    assert_eq!(ask(), "e");
    third.signal(Signal::SIGTERM);
    assert_eq!(third.exit_code(), 0);
    assert!(!path.exists(), "its socket is left behind");
}

#[test]
fn a_folder_of_sandboxes_is_followed_without_touching_the_others() {
    let (envd, dir) = (Envd::new("kept"), fake::dir());
    let entry = |name: &str, route: &str| {
        let listen = dir.path().join(format!("{name}.sock"));
        let text = format!("listen = 'unix:{}'\nroutes = ['{route}']\n", listen.display());
        let (file, temporary) = (dir.path().join(format!("{name}.toml")), dir.path().join(".tmp"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, file).unwrap();
        listen
    };
    let kept = entry("kept", &envd.route());
    let bridge = Bridge::start_with(&["--config", &dir.path().display().to_string()]);
    until("the first", || bridge.log().contains("kept: listening on"));
    let mut open = UnixStream::connect(&kept).unwrap();
    assert_eq!(request(&mut open, "/tag").unwrap(), "kept");
    // Clients come all the while: none of them may notice that 500 others are taken in.
    let loading = AtomicBool::new(true);
    let many: Vec<_> = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut served = 0;
            while loading.load(Ordering::SeqCst) {
                let mut client = UnixStream::connect(&kept).unwrap();
                assert_eq!(request(&mut client, "/tag").unwrap(), "kept");
                served += 1;
            }
            served
        });
        let many: Vec<_> = (0..500).map(|number| entry(&format!("s{number}"), &envd.route())).collect();
        until("the last of many", || many.iter().all(|listen| listen.exists()));
        loading.store(false, Ordering::SeqCst);
        assert!(load.join().unwrap() > 0);
        many
    });
    entry("broken", "nonsense");
    until("the refusal", || bridge.log().contains("broken: error: ") && bridge.log().contains("not served"));
    assert_eq!(request(&mut open, "/tag").unwrap(), "kept");
    let mut one = UnixStream::connect(&many[250]).unwrap();
    assert_eq!(request(&mut one, "/tag").unwrap(), "kept");
    std::fs::remove_file(dir.path().join("s250.toml")).unwrap();
    until("the removal", || !many[250].exists());
    assert!(request(&mut one, "/tag").is_err(), "a sandbox that is gone has no connections");
    assert_eq!(request(&mut open, "/tag").unwrap(), "kept");
}

/// A file that is a link is changed where nobody watches: only the signal tells. A mistake in it costs nobody anything.
#[test]
fn a_file_that_is_a_link_is_read_again_at_a_signal() {
    let (one, two, dir, elsewhere) = (Envd::new("one"), Envd::new("two"), fake::dir(), fake::dir());
    let (file, target) = (dir.path().join("bridge.toml"), elsewhere.path().join("bridge.toml"));
    let listens = ["one", "two"].map(|name| dir.path().join(format!("{name}.sock")));
    let entry = |name: &str, listen: &Path, route: &str| {
        format!("[sandbox.{name}]\nlisten = 'unix:{}'\nroutes = ['{route}']\n", listen.display())
    };
    let first = entry("one", &listens[0], &one.route());
    std::fs::write(&target, &first).unwrap();
    std::os::unix::fs::symlink(&target, &file).unwrap();
    let bridge = Bridge::start_with(&["--config", &file.display().to_string()]);
    bridge.wait_said("one: listening on");
    let mut open = UnixStream::connect(&listens[0]).unwrap();
    assert_eq!(request(&mut open, "/tag").unwrap(), "one");
    std::fs::write(&target, format!("{first}{}", entry("two", &listens[1], &two.route()))).unwrap();
    bridge.signal(Signal::SIGHUP);
    bridge.wait_said("configuration read again after SIGHUP: serving 2 sandboxes");
    assert_eq!(request(&mut UnixStream::connect(&listens[1]).unwrap(), "/tag").unwrap(), "two");
    std::fs::write(&target, "[sandbox.one\n").unwrap();
    bridge.signal(Signal::SIGHUP);
    bridge.wait_said("; left as it was");
    for (stream, tag) in [(&mut open, "one"), (&mut UnixStream::connect(&listens[1]).unwrap(), "two")] {
        assert_eq!(request(stream, "/tag").unwrap(), tag);
    }
}

/// A listener without clients took a place for the client that might come: with fewer places than sandboxes the last ones never
/// accepted anybody.
#[test]
fn sandboxes_without_clients_take_no_place_from_those_who_have_some() {
    let (envd, folder) = (Envd::new("served"), Folder::new());
    let addresses = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    for (name, address) in ["a", "b"].iter().zip(&addresses) {
        folder.put(name, &format!("tcp:{address}"), &[envd.route()]);
    }
    let bridge = folder.serve(&["--max-connections", "1"]);
    for address in [0, 0, 1, 1, 0].map(|index: usize| &addresses[index]) {
        assert_eq!(get(address, "/tag").unwrap(), "served");
    }
    let mut first = TcpStream::connect(&addresses[0]).unwrap();
    assert_eq!(request(&mut first, "/tag").unwrap(), "served");
    let waiting = std::thread::spawn({
        let address = addresses[1].clone();
        move || get(&address, "/tag")
    });
    bridge.wait_said("1 connections, the limit: new ones wait until one ends");
    drop(first);
    assert_eq!(waiting.join().unwrap().unwrap(), "served");
}

/// The new owner's address was opened before the old one's was closed: it counted as another process's, and was tried again only
/// five seconds later.
#[test]
fn addresses_that_change_hands_in_one_reload_are_served_at_once() {
    let (one, two, dir) = (Envd::new("one"), Envd::new("two"), fake::dir());
    let addresses = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let (file, temporary) = (dir.path().join("all.toml"), dir.path().join("all.tmp"));
    let write = |entries: [(&str, &str, &Envd); 2]| {
        let entry = |(name, address, envd): (&str, &str, &Envd)| {
            format!("[sandbox.{name}]\nlisten = 'tcp:{address}'\nroutes = ['{}']\n", envd.route())
        };
        std::fs::write(&temporary, entries.map(entry).concat()).unwrap();
        std::fs::rename(&temporary, &file).unwrap();
    };
    let [first, second] = [addresses[0].as_str(), addresses[1].as_str()];
    write([("a", first, &one), ("b", second, &two)]);
    let bridge = Bridge::start_with(&["--config", &file.display().to_string()]);
    bridge.wait_said("metrics on");
    let served = || addresses.each_ref().map(|address| get(address, "/tag").unwrap());
    assert_eq!(served(), ["one", "two"]);
    let reloads = |count| bridge.log().matches("configuration read again").count() == count;
    write([("a", second, &one), ("b", first, &two)]);
    until("the swap", || reloads(1));
    assert!(!bridge.log().contains("error: "), "{}", bridge.log());
    assert_eq!(served(), ["two", "one"]);
    write([("c", second, &one), ("b", first, &two)]);
    until("the new name", || reloads(2));
    assert!(!bridge.log().contains("error: "), "{}", bridge.log());
    assert_eq!(served(), ["two", "one"]);
}

/// The watch went with the folder it was on, without a word.
#[test]
fn a_folder_that_is_replaced_or_made_anew_is_followed_again() {
    let (envd, folder) = (Envd::new("again"), Folder::new());
    let put = |name: &str| {
        let address = format!("127.0.0.1:{}", free_port());
        folder.put(name, &format!("tcp:{address}"), &[envd.route()]);
        address
    };
    let first = put("first");
    let bridge = folder.serve(&[]);
    std::fs::rename(folder.path(), folder.path().with_extension("old")).unwrap();
    bridge.wait_said("everything is left as it was");
    assert_eq!(get(&first, "/tag").unwrap(), "again");
    std::fs::create_dir(folder.path()).unwrap();
    until("the empty folder", || get(&first, "/tag").is_err());
    let second = put("second");
    until("an entry of the new folder", || get(&second, "/tag").is_ok());
    std::fs::remove_dir_all(folder.path()).unwrap();
    until("the loss", || bridge.log().matches("everything is left as it was").count() == 2);
    std::fs::rename(folder.path().with_extension("old"), folder.path()).unwrap();
    until("an entry of the folder that came back", || get(&first, "/tag").is_ok());
    let third = put("third");
    until("a new entry in it", || get(&third, "/tag").is_ok());
}

/// The routes that a client waits in vain for may be mended by a change of the configuration: it was closed instead.
#[test]
fn clients_that_wait_are_served_over_the_routes_that_a_change_brings() {
    let (dead, well, folder) = (Envd::new("dead"), Envd::new("well"), Folder::new());
    dead.close();
    let address = format!("127.0.0.1:{}", free_port());
    folder.put("s", &format!("tcp:{address}"), &[dead.route()]);
    let bridge = folder.serve(&[]);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let address = address.clone();
            std::thread::spawn(move || get(&address, "/tag"))
        })
        .collect();
    bridge.wait_said("no route answers; 3 clients wait");
    folder.put("s", &format!("tcp:{address}"), &[well.route()]);
    for client in waiting {
        assert_eq!(client.join().unwrap().unwrap(), "well");
    }
    until("all to be counted out", || bridge.metrics().contains("connections_open{sandbox=\"s\"} 0\n"));
}

/// Connections over a route that stays were no longer counted after a change, nor their bytes.
#[test]
fn connections_over_a_route_that_stays_are_counted_on_and_watched_on() {
    let (first, kept, folder) = (Envd::new("first"), Envd::new("kept"), Folder::new());
    let address = format!("127.0.0.1:{}", free_port());
    let put = |routes: &[&Envd]| {
        let routes: Vec<_> = routes.iter().map(|envd| envd.route()).collect();
        folder.put("s", &format!("tcp:{address}"), &routes);
    };
    put(&[&kept]);
    let bridge = folder.serve(&[]);
    let mut open = TcpStream::connect(&address).unwrap();
    assert_eq!(request(&mut open, "/tag").unwrap(), "kept");
    put(&[&first, &kept]);
    bridge.wait_said("routes are now");
    let metric = |name: &str| {
        let page = bridge.metrics();
        let line = page.lines().find(|line| line.starts_with(name) && !line.contains(&first.route()));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_default() as usize
    };
    assert_eq!(metric("envd_bridge_connections_open"), 1);
    assert_eq!(metric("envd_bridge_connections_total"), 1);
    let before = metric("envd_bridge_bytes_from_guest_total");
    assert!(before > 0, "what was counted before the change");
    assert_eq!(request(&mut open, "/tag").unwrap(), "kept");
    until("its bytes", || metric("envd_bridge_bytes_from_guest_total") > before);
    // It is closed when its route breaks, as any other.
    kept.behave(Behaviour::Reset);
    put(&[&kept, &first]);
    until("the route to be left", || bridge.log().contains(" -> "));
    open.set_read_timeout(Some(BOUND)).unwrap();
    assert!(matches!(open.read(&mut [0; 1]), Ok(0) | Err(_)) && open.take_error().unwrap().is_none());
    until("it to be counted out", || metric("envd_bridge_connections_open") == 0);
    assert_eq!(bridge.log().matches(" -> ").count(), 1, "one line a change: {}", bridge.log());
}

/// A deleted namespace lives, with its devices and addresses, as long as one process is in it.
#[test]
fn a_namespace_is_left_again_once_its_socket_is_made() {
    let bed = Bed::new("brhome").unwrap();
    assert_eq!(get(&bed.bridge.address(), "/tag").unwrap(), "tcp");
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let [bridge, broker] = bed.bridge.processes();
    assert_eq!(namespace(broker), namespace(bridge));
}

/// As a service manager stops a service, and a terminal interrupts a command: all processes get the signal.
#[test]
fn connections_are_drained_although_the_signal_reached_the_helper_too() {
    let bed = Bed::new("brstop").unwrap();
    let address = bed.bridge.address();
    let late = std::thread::spawn(move || get(&address, "/late"));
    until("the request", || bed.asked("/late"));
    for pid in bed.bridge.processes() {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
    }
    assert_eq!(late.join().unwrap().unwrap(), "late");
    assert_eq!(bed.bridge.exit_code(), 0);
}

/// A client that never ends would hold up a stop for as long as `--drain` says; whoever asks twice does not want to wait.
#[test]
fn a_second_signal_ends_a_drain_at_once() {
    let envd = Envd::new("e");
    let bridge = Bridge::start(&[envd.route()], &["--drain", "3600"]);
    let mut stays = TcpStream::connect(bridge.address()).unwrap();
    assert_eq!(request(&mut stays, "/tag").unwrap(), "e");
    bridge.signal(Signal::SIGTERM);
    bridge.wait_said("SIGTERM: no new connections, 1 open ones have 3600 s");
    assert_eq!(request(&mut stays, "/tag").unwrap(), "e", "it is served while it is drained");
    assert!(!bridge.has_ended());
    bridge.signal(Signal::SIGTERM);
    assert_eq!(bridge.exit_code(), 0);
}

/// What faces clients has no user id that anybody else's files belong to, no group but those of that user, and no capability; what
/// needs them is done by the helper, behind it.
#[test]
fn as_another_user_the_bridge_has_that_users_groups_and_nothing_else() {
    let user = nix::unistd::User::from_name("backup").unwrap().expect("Debian has it");
    let bed = Bed::with("bruser", &["--user", "backup"]).unwrap();
    assert_eq!(get(&bed.bridge.address(), "/tag").unwrap(), "tcp");
    let [bridge, broker] = bed.bridge.processes();
    let status = |pid: u32, field: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let (uid, gid) = (user.uid, user.gid);
    assert_eq!(status(bridge, "Uid"), format!("{uid} {uid} {uid} {uid}"));
    assert_eq!(status(bridge, "Gid"), format!("{gid} {gid} {gid} {gid}"));
    assert_eq!(status(bridge, "Groups"), gid.to_string());
    for set in ["CapPrm", "CapEff", "CapInh"] {
        assert_eq!(status(bridge, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(broker, "Uid"), "0 0 0 0");
    assert_ne!(status(broker, "CapEff"), "0000000000000000");
}

/// Without its helper no namespace could be entered any more, until somebody looked.
#[test]
fn a_bridge_whose_helper_is_killed_lets_connections_end_and_ends_for_its_service_manager_to_start_it_anew() {
    let bed = Bed::new("brkill").unwrap();
    let address = bed.bridge.address();
    let late = std::thread::spawn(move || get(&address, "/late"));
    until("the request", || bed.asked("/late"));
    let [_, broker] = bed.bridge.processes();
    kill(Pid::from_raw(broker.cast_signed()), Signal::SIGKILL).unwrap();
    assert_eq!(late.join().unwrap().unwrap(), "late");
    until("the end", || bed.bridge.has_ended());
    assert_eq!(bed.bridge.exit_code(), 1);
    let log = bed.bridge.log();
    assert!(log.contains("the helper process has ended (signal: 9"), "{log}");
}

/// A burst fills the backlog of a socket that only the helper may reach: that is no failure, but to be tried again.
#[test]
fn a_full_backlog_behind_the_helper_is_tried_again() {
    let dir = fake::dir();
    let socket = tests::bridge::full::Socket::new(dir.path());
    let bridge = Bridge::start(&[format!("unix:{}", socket.path().display())], &[]);
    let address = bridge.address();
    let waiting = std::thread::spawn(move || get(&address, "/tag"));
    bridge.wait_said("no route answers; 1 clients wait");
    let log = bridge.log();
    assert!(!log.contains("os error 11"), "{log}");
    socket.serve("emptied");
    assert_eq!(waiting.join().unwrap().unwrap(), "emptied");
}

/// Whoever is closed because no route led anywhere is counted, also where that shows only when the time is over.
#[test]
fn a_client_that_is_closed_after_a_dial_in_vain_is_counted() {
    let bridge = Bridge::start(&[fake::only_health()], &["--hold", "0.5"]);
    let mut client = TcpStream::connect(bridge.address()).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    assert!(matches!(client.read(&mut [0; 1]), Ok(0)));
    let metrics = bridge.metrics();
    assert!(metrics.contains("envd_bridge_given_up_total{sandbox=\"sandbox\"} 1\n"), "{metrics}");
}

#[test]
fn addresses_that_others_reach_are_warned_of() {
    let [port, metrics] = [free_port(), free_port()];
    let listen = format!("tcp:0.0.0.0:{port}");
    let bridge = Bridge::start_alone(&[
        "--listen",
        &listen,
        "--route",
        "tcp:127.0.0.1:1",
        "--metrics",
        &format!("tcp:0.0.0.0:{metrics}"),
    ]);
    bridge.wait_said("metrics on");
    let warns = |what: &str| {
        let log = bridge.log();
        log.lines().any(|line| {
            line.contains("warning: ") && line.contains(what) && line.contains("can be reached from")
        })
    };
    assert!(warns(&listen), "{}", bridge.log());
    until("the warning of the metrics", || warns(&format!("tcp:0.0.0.0:{metrics}")));
}

#[test]
fn what_is_wrong_on_the_command_line_is_said_in_one_line_with_its_code() {
    let listen = ["--listen", "tcp:127.0.0.1:1"];
    for (args, code, says) in [
        (&["--route", "udp:1.2.3.4:5"][..], 2, "is no endpoint"),
        (&["--route", "tcp:example.org:5"], 2, "example.org"),
        (&["--route", "unix:/a", "--route", "unix:/a"], 2, "given twice"),
        (&["--route", "unix:/a", "--user", "nobody-of-this-name"], 2, "nobody-of-this-name"),
        (&["--route", "unix:/a", "--hold", "never"], 2, "--hold"),
        (&["--route", "unix:/a", "--hold", "0"], 2, "--hold"),
    ] {
        let bridge = Bridge::start_with(&[&listen[..], args].concat());
        assert_eq!(bridge.exit_code(), code, "{args:?}: {}", bridge.log());
        assert!(bridge.log().contains(says), "{args:?}: {}", bridge.log());
    }
    let absent = Bridge::start_with(&["--listen", "tcp:10.11.0.2:49983", "--route", "unix:/a"]);
    assert_eq!(absent.exit_code(), 1);
    assert!(absent.log().contains("this machine has no such address"), "{}", absent.log());
}
