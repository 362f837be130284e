//! What the guest itself says: asked over vsock, else read from its console. It turns "nobody listens" into why.

use guest::control::{EnvdStatus, ExitReport, Status};

use super::facts::Facts;
use crate::{
    status::{exit_cause, exit_line},
    text::{count, sanitise},
};

/// How recent a death must be to count as a crash loop together with others.
const RECENT_NS: u64 = 60_000_000_000;
/// This many restarts with a recent death are no accident.
const LOOP_RESTARTS: u64 = 2;

/// The guest's status, where it answered.
pub fn status(facts: &Facts) -> Option<&Status> {
    facts.vsock.as_ref()?.control.as_ref().ok()
}

/// Whether envd is not (or not reliably) serving, in words; from the guest or its console.
pub fn envd_trouble(facts: &Facts) -> Option<String> {
    match status(facts) {
        Some(status) => match &status.envd {
            Some(envd) => trouble(envd, status.now_ns),
            None => Some("the guest knows of no envd".to_owned()),
        },
        None => facts.console.as_ref()?.as_ref().ok().and_then(|console| {
            if console.healthy {
                return None;
            }
            console.last_exit.as_ref().map(|exit| format!("on the console, envd died: {}", last(exit)))
        }),
    }
}

/// What is wrong with envd, if anything.
pub fn trouble(envd: &EnvdStatus, now_ns: u64) -> Option<String> {
    let death = envd.last_exit.as_ref();
    let ended = death.map(|exit| format!("; last exit: {}", exit_line(exit, now_ns))).unwrap_or_default();
    if is_looping(envd, now_ns) {
        return Some(format!("envd crashes again and again ({}){ended}", count(envd.restarts, "restart")));
    }
    (envd.state != "healthy")
        .then(|| format!("envd is {} ({}){ended}", sanitise(&envd.state), count(envd.restarts, "restart")))
}

/// Restarted more than once, the last time just now.
fn is_looping(envd: &EnvdStatus, now_ns: u64) -> bool {
    let recent = envd.last_exit.as_ref().is_some_and(|exit| now_ns.saturating_sub(exit.at_ns) < RECENT_NS);
    envd.restarts >= LOOP_RESTARTS && recent
}

/// A death in words, for a console that has no clock to compare with.
pub fn last(exit: &ExitReport) -> String {
    let line = exit.last_lines.iter().rev().find(|line| !line.trim().is_empty());
    let line = line.map(|line| format!("; last line: {}", sanitise(line.trim()))).unwrap_or_default();
    format!("{} after {} restarts{line}", exit_cause(exit), exit.restarts)
}

/// Whether the guest's own network is not as wanted, in words.
pub fn network_trouble(facts: &Facts) -> Option<String> {
    let network = &status(facts)?.network;
    let interface = sanitise(&network.interface);
    if network.found.is_empty() {
        let wanted = network.wanted.as_deref().map(|wanted| format!(", wanted {}", sanitise(wanted)));
        return Some(format!("the guest says: {interface} has no address{}", wanted.unwrap_or_default()));
    }
    if !network.link_up {
        return Some(format!("the guest says: {interface} is down"));
    }
    let wanted = network.wanted.as_ref()?;
    (!network.found.contains(wanted)).then(|| {
        let found: Vec<_> = network.found.iter().map(|address| sanitise(address)).collect();
        format!("the guest says: {interface} has {}, wanted {}", found.join(", "), sanitise(wanted))
    })
}
