//! Judges the hops of the way by vsock: socket, handshake, relay, the guest's status, envd, and the console.

use std::io;

use guest::control::Mode;
use vsock_relay::handshake::HandshakeError;

use super::{
    cause,
    console::ConsoleFacts,
    facts::{Facts, VsockFacts},
    hop::{Finding, Hop},
    plan::Vsock,
    probe::{self, Health},
};
use crate::{
    client::ClientError,
    dial::DialError,
    exit,
    status::exit_line,
    text::{nanos, sanitise},
};

const NO_WAY: &str = "no vsock socket was given, and none found (--fc-socket PATH)";

/// The hops of the way by vsock, in order.
pub fn walk(facts: &Facts) -> Vec<Finding> {
    let (Some(way), Some(found)) = (&facts.plan.vsock, &facts.vsock) else {
        return [Hop::VsockSocket, Hop::Handshake, Hop::Relay, Hop::Guest]
            .map(|hop| Finding::skipped(hop, NO_WAY))
            .into_iter()
            .chain([envd(facts)])
            .collect();
    };
    let socket = socket(facts, way, found);
    if socket.is_broken() || found.socket.is_err() {
        let rest = [Hop::Handshake, Hop::Relay, Hop::Guest];
        let rest = rest.map(|hop| Finding::skipped(hop, "vsock-socket (hop 10) stands before it"));
        return std::iter::once(socket).chain(rest).chain([envd(facts)]).collect();
    }
    let handshake = handshake(found);
    if handshake.is_broken() {
        let rest =
            [Hop::Relay, Hop::Guest].map(|hop| Finding::skipped(hop, "handshake (hop 11) stands before it"));
        return [socket, handshake].into_iter().chain(rest).chain([envd(facts)]).collect();
    }
    vec![socket, handshake, relay(facts, way, found), guest(facts, way, found), envd(facts)]
}

/// The VMM's socket on this host.
fn socket(facts: &Facts, way: &Vsock, found: &VsockFacts) -> Finding {
    let Vsock::Hybrid(path) = way else {
        return match &found.socket {
            Ok(()) => Finding::ok(Hop::VsockSocket, "/dev/vsock is there"),
            Err(error) => Finding::broken(Hop::VsockSocket, format!("/dev/vsock: {}", probe::plain(error)))
                .then_do("modprobe vhost_vsock"),
        };
    };
    let place = path.display();
    let Err(error) = &found.socket else {
        return Finding::ok(Hop::VsockSocket, format!("{place} takes connections"));
    };
    let broken = |what: String| {
        let others: Vec<String> = facts
            .monitors
            .iter()
            .flat_map(|m| {
                m.sockets.iter().map(|s| format!("{} listens on {}", m.process.label(), s.display()))
            })
            .collect();
        Finding::broken(Hop::VsockSocket, what).because_all(others)
    };
    match error.kind() {
        io::ErrorKind::NotFound => broken(format!("there is no {place}: the VM has no vsock device, or does not run"))
            .then_do("# give the VM one before it boots; of Firecracker's API (a snapshot without vsock never gains it):")
            .then_do("curl --unix-socket API.SOCK -X PUT http://localhost/vsock -d '{\"guest_cid\":3,\"uds_path\":\"v.sock\"}'")
            .then_do("# it may lie in Firecracker's own mount namespace: ls /proc/$(pgrep -o firecracker)/root/"),
        io::ErrorKind::ConnectionRefused => {
            broken(format!("nobody listens on {place}: the VMM that made it is gone"))
                .then_do(format!("fuser {place}"))
                .then_do(format!("rm {place}   # Firecracker does not start over an old one"))
        }
        io::ErrorKind::PermissionDenied => {
            Finding::unknown(Hop::VsockSocket, format!("{place} may not be opened: root is needed"))
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            broken(format!("{place} does not take connections: the VMM hangs")).then_do("pgrep -a firecracker")
        }
        _ => broken(format!("{place}: {}", probe::plain(error))),
    }
}

/// How one port answered the handshake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shaken {
    Open,
    /// A bare close: the guest's kernel says that nobody listens, or the VMM refuses.
    Closed,
    Silent,
    Strange,
}

fn shaken(error: &DialError) -> Shaken {
    match error {
        DialError::Handshake { source: HandshakeError::Refused { .. }, .. } => Shaken::Closed,
        DialError::NoAnswer { .. } => Shaken::Silent,
        DialError::Connect { source, .. } => match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused => Shaken::Closed,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Shaken::Silent,
            _ => Shaken::Strange,
        },
        _ => Shaken::Strange,
    }
}

fn control_shaken(found: &VsockFacts) -> Shaken {
    match &found.control {
        Err(ClientError::Dial(error)) => shaken(error),
        _ => Shaken::Open,
    }
}

fn relay_shaken(found: &VsockFacts) -> Shaken {
    found.relay.as_ref().map_or_else(shaken, |_| Shaken::Open)
}

/// Whether the VMM and the guest's kernel pass connections at all.
fn handshake(found: &VsockFacts) -> Finding {
    let (control, relay) = (control_shaken(found), relay_shaken(found));
    if control == Shaken::Open || relay == Shaken::Open {
        return Finding::ok(Hop::Handshake, "the VMM answers CONNECT with OK");
    }
    if control == Shaken::Closed || relay == Shaken::Closed {
        return Finding::ok(Hop::Handshake, "the VMM passes CONNECT on, and it is turned away");
    }
    let said = [
        found.control.as_ref().err().map(|e| exit::chain(e)),
        found.relay.as_ref().err().map(|e| exit::chain(e)),
    ];
    let what = if control == Shaken::Silent {
        "CONNECT gets no answer: the VM is paused or hung, or its kernel has no vsock driver or device"
    } else {
        "what answers CONNECT is no VMM"
    };
    Finding::broken(Hop::Handshake, what)
        .because_all(said.into_iter().flatten().map(|line| sanitise(&line).into_owned()))
        .then_do("# resume the VM if it is paused; in the guest: ls /dev/vsock; zgrep VSOCK /proc/config.gz")
}

/// What listens on the relay's port in the guest, and whether it leads to envd.
fn relay(facts: &Facts, way: &Vsock, found: &VsockFacts) -> Finding {
    let port = facts.plan.relay_port;
    let option = way.option();
    match &found.relay {
        Ok(health) => relay_open(facts, health, &option),
        Err(_) if control_shaken(found) == Shaken::Closed => {
            Finding::broken(Hop::Relay, format!("nobody in the guest listens on vsock port {port}, nor on 49984: the image carries no envd-init, or its programs do not run"))
                .because_all(console_hint(facts))
                .then_do("rootfs inspect IMAGE.ext4   # says whether and how envd-init is in it")
                .then_do("make rootfs BASE=IMAGE.ext4 OUT=NEW.ext4")
        }
        Err(error) => Finding::broken(Hop::Relay, format!("the relay is dead: nobody in the guest listens on vsock port {port}"))
            .because(sanitise(&exit::chain(error)).into_owned())
            .because_all(relay_service(facts))
            .then_do(format!("envdctl restart relay {option}"))
            .then_do(format!("envdctl logs {option} --service relay")),
    }
}

fn relay_open(facts: &Facts, health: &Health, option: &str) -> Finding {
    if health.is_well() {
        return Finding::ok(Hop::Relay, format!("GET /health over vsock {}", health.said()));
    }
    let behind = cause::envd_trouble(facts);
    let by_tcp = facts.guest.as_ref().is_some_and(|guest| guest.health.is_well());
    let same_by_tcp =
        facts.guest.as_ref().is_some_and(|guest| guest.health.connected() || guest.health == Health::Refused);
    if let Some(trouble) = behind {
        return Finding::ok(Hop::Relay, "the relay takes connections; envd behind it does not answer")
            .because(trouble);
    }
    if !by_tcp && same_by_tcp {
        return Finding::ok(Hop::Relay, "the relay takes connections; envd behind it does not answer")
            .because(format!("GET /health over vsock {}", health.said()));
    }
    Finding::broken(
        Hop::Relay,
        format!("the relay takes connections and does not reach envd: GET /health {}", health.said()),
    )
    .because_all(relay_service(facts))
    .then_do(format!("envdctl restart relay {option}"))
    .then_do(format!("envdctl logs {option} --service relay"))
}

/// What PID 1 says of the relay.
fn relay_service(facts: &Facts) -> Option<String> {
    let status = cause::status(facts)?;
    let relay = status.services.iter().find(|service| service.name == "relay")?;
    let exit =
        relay.last_exit.as_ref().map(|exit| format!("; last exit: {}", exit_line(exit, status.now_ns)));
    Some(format!(
        "PID 1 says: relay is {}, {} restarts{}",
        sanitise(&relay.state),
        relay.restarts,
        exit.unwrap_or_default()
    ))
}

fn console_hint(facts: &Facts) -> Option<String> {
    let console = facts.console.as_ref()?.as_ref().ok()?;
    (console.records == 0)
        .then(|| format!("its console has {} lines and no record of envd-init", console.lines))
}

/// PID 1's own answer.
fn guest(facts: &Facts, way: &Vsock, found: &VsockFacts) -> Finding {
    let status = match &found.control {
        Ok(status) => status,
        Err(error) if relay_shaken(found) == Shaken::Closed && control_shaken(found) == Shaken::Closed => {
            return Finding::unknown(Hop::Guest, "relay (hop 12) stands before it")
                .because(exit::chain(error));
        }
        Err(error) => {
            return Finding::broken(Hop::Guest, "PID 1 does not answer on vsock port 49984")
                .because(sanitise(&exit::chain(error)).into_owned())
                .because_all(console_hint(facts))
                .then_do("# a foreign init or an older envd-init? rootfs inspect IMAGE.ext4")
                .then_do(format!("envdctl status {}", way.option()));
        }
    };
    let warnings = status.warnings.iter().map(|warning| format!("warning: {}", sanitise(warning)));
    // Where the guest's address was not seen from outside, what it says itself has to do.
    if facts.guest.is_none()
        && let Some(trouble) = cause::network_trouble(facts)
    {
        return Finding::broken(Hop::Guest, trouble)
            .because_all(warnings)
            .then_do(format!("envdctl logs {} --service init", way.option()));
    }
    Finding::ok(
        Hop::Guest,
        format!(
            "{} envd-init {}{}, up {}",
            sanitise(&status.hostname),
            sanitise(&status.version),
            if status.mode == Mode::Keep { " in keep mode, beside the image's own init" } else { "" },
            nanos(status.now_ns)
        ),
    )
    .because_all(cause::network_trouble(facts))
    .because_all(warnings)
}

/// envd as its supervisor sees it, and its last death.
fn envd(facts: &Facts) -> Finding {
    let Some(status) = cause::status(facts) else {
        return match cause::envd_trouble(facts) {
            Some(trouble) if !envd_answers(facts) => {
                Finding::broken(Hop::Envd, trouble).then_do("envdctl console CONSOLE.LOG")
            }
            _ => Finding::skipped(Hop::Envd, "the guest's status was not had"),
        };
    };
    let option = facts.plan.vsock.as_ref().map(Vsock::option).unwrap_or_default();
    let Some(envd) = &status.envd else {
        return Finding::broken(
            Hop::Envd,
            "the guest knows of no envd: none was found in the image, or it was never started",
        )
        .because_all(status.warnings.iter().map(|warning| sanitise(warning).into_owned()))
        .then_do(format!("envdctl logs {option} --service wrapper"))
        .then_do("make rootfs BASE=IMAGE.ext4 OUT=NEW.ext4 ENVD=./envd");
    };
    let lines = envd
        .last_exit
        .iter()
        .flat_map(|exit| exit.last_lines.iter().map(|line| format!("it said: {}", sanitise(line))));
    match cause::trouble(envd, status.now_ns) {
        Some(trouble) => Finding::broken(Hop::Envd, trouble)
            .because(format!("program: {}", sanitise(&envd.program)))
            .because_all(lines)
            .then_do(format!("envdctl logs {option} --service envd"))
            .then_do(format!("envdctl restart envd {option}")),
        None => Finding::ok(Hop::Envd, format!("{} is healthy", sanitise(&envd.program))).because_all(
            envd.last_exit.as_ref().map(|exit| format!("last exit: {}", exit_line(exit, status.now_ns))),
        ),
    }
}

fn envd_answers(facts: &Facts) -> bool {
    facts.guest.as_ref().is_some_and(|guest| guest.health.is_well()) || facts.host.health.is_well()
}

/// What the saved console tells.
pub fn console(facts: &Facts) -> Finding {
    let console = match &facts.console {
        None => return Finding::skipped(Hop::Console, "no console log was given (--console FILE)"),
        Some(Err(error)) => {
            return Finding::unknown(
                Hop::Console,
                format!("the console log cannot be read: {}", sanitise(error)),
            );
        }
        Some(Ok(console)) => console,
    };
    let tail = console.tail.iter().map(|line| format!("last lines: {line}"));
    if let Some(panic) = &console.panic {
        return Finding::broken(Hop::Console, format!("the guest's kernel gave up: {panic}"))
            .because_all(tail)
            .then_do("# panic=1 ends Firecracker: the sandbox is lost; boot it anew, and keep this log")
            .then_do("rootfs verify IMAGE.ext4");
    }
    if console.records == 0 && console.lines > 0 && cause::status(facts).is_none() {
        return Finding::broken(
            Hop::Console,
            format!("{} lines, and none of them from envd-init: the image does not carry it", console.lines),
        )
        .then_do("rootfs inspect IMAGE.ext4");
    }
    let said = summary(console);
    Finding::ok(Hop::Console, said).because_all(tail)
}

fn summary(console: &ConsoleFacts) -> String {
    let deaths = match console.exits {
        0 => "no death of envd".to_owned(),
        1 => "one death of envd".to_owned(),
        many => format!("{many} deaths of envd"),
    };
    let health = if console.healthy { "envd became healthy" } else { "envd is not known to be healthy" };
    format!("{} lines, {} of them ours; {health}, {deaths}", console.lines, console.records)
}
