//! The services that every machine has, compiled in: what a boot starts first is known without reading a file.
//!
//! `guest/services/*.toml` says the same for people, and is put into images to be read; a test holds the two together. An
//! owner changes one by a file of its name in `/etc/envd-init/services.d`.

use std::collections::BTreeMap;

use super::{Kind, Limit, Limits, LogTo, Placement, Readiness, Restart, Service};
use crate::{cgroup::Weights, control::RelayStatus};

/// Name, service, and what its file says.
type Entry = (&'static str, fn() -> Service, &'static str);

const ALL: [Entry; 6] = [
    ("chrony-source", chrony_source, include_str!("../../services/chrony-source.toml")),
    ("envd", envd, include_str!("../../services/envd.toml")),
    ("relay", relay, include_str!("../../services/relay.toml")),
    ("seed-certs", seed_certs, include_str!("../../services/seed-certs.toml")),
    ("tmp", tmp, include_str!("../../services/tmp.toml")),
    ("tmpfiles", tmpfiles, include_str!("../../services/tmpfiles.toml")),
];

/// By name.
pub fn services() -> BTreeMap<String, Service> {
    ALL.into_iter().map(|(name, make, _)| (name.to_owned(), make())).collect()
}

/// One alone.
pub fn service(name: &str) -> Option<Service> {
    ALL.into_iter().find(|(known, ..)| *known == name).map(|(_, make, _)| make())
}

/// Each one's file, by name.
pub fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.into_iter().map(|(name, _, text)| (name, text))
}

/// The reason for this machine. Its start is bounded by the wrapper itself.
fn envd() -> Service {
    Service {
        after: words(&["seed-certs", "tmp"]),
        restart: Restart::Always,
        stop_timeout_ms: 4000,
        placement: Placement::Envd,
        readiness: Readiness::Notify,
        start_timeout_ms: 0,
        nice: -20,
        oom_score_adj: -1000,
        log: LogTo::Console,
        cgroup: Weights {
            memory_min: Some(50 << 20),
            memory_low: Some(100 << 20),
            cpu_weight: Some(1000),
            io_weight: Some(10_000),
            ..Weights::default()
        },
        ..named("envd", "envd and its supervisor", &["/usr/lib/envd-init/envd-wrapper", "run"])
    }
}

/// Two descriptors for each connection.
fn relay() -> Service {
    let command = [
        "/usr/lib/envd-init/vsock-relay",
        "--status",
        RelayStatus::PATH,
        "--map",
        "vsock:any:49983=tcp:127.0.0.1:49983",
    ];
    let files = Limit { soft: 16_384, hard: 16_384 };
    Service {
        restart: Restart::Always,
        placement: Placement::InitScope,
        oom_score_adj: -1000,
        log: LogTo::Console,
        limits: Limits { open_files: Some(files), ..Limits::default() },
        ..named("relay", "vsock 49983 to envd", &command)
    }
}

/// The platform's certificate bundle, unpacked before envd adds its own to it.
fn seed_certs() -> Service {
    const PROGRAM: &str = "/usr/local/bin/e2b-seed-certs";
    Service {
        only_if: vec![PROGRAM.into()],
        kind: Kind::Oneshot,
        start_timeout_ms: 5000,
        ..named("seed-certs", "the platform's certificates", &[PROGRAM])
    }
}

/// Where /tmp holds nothing, nothing is to be removed from it, and envd need not wait.
fn tmp() -> Service {
    Service {
        only_if: vec!["/usr/lib/tmpfiles.d".into()],
        only_if_filled: vec!["/tmp".into()],
        kind: Kind::Oneshot,
        restart: Restart::Never,
        start_timeout_ms: 5000,
        log: LogTo::Console,
        ..named("tmp", "what tmpfiles.d removes from /tmp", &["/usr/lib/envd-init/init", "tmpfiles", "--tmp"])
    }
}

fn tmpfiles() -> Service {
    Service {
        kind: Kind::Oneshot,
        restart: Restart::Never,
        log: LogTo::Console,
        ..named("tmpfiles", "sysusers.d and tmpfiles.d", &["/usr/lib/envd-init/init", "tmpfiles", "--rest"])
    }
}

fn chrony_source() -> Service {
    const PROGRAM: &str = "/usr/local/bin/e2b-chrony-source";
    Service {
        only_if: vec![PROGRAM.into(), "/usr/sbin/chronyd".into()],
        kind: Kind::Oneshot,
        start_timeout_ms: 10_000,
        ..named("chrony-source", "chronyd's time source", &[PROGRAM])
    }
}

fn named(name: &str, description: &str, command: &[&str]) -> Service {
    Service {
        name: name.to_owned(),
        description: description.to_owned(),
        command: words(command),
        ..Service::default()
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_in_is_what_its_file_says() {
        let mut services = services();
        for (name, text) in texts() {
            let read = Service::parse(name, text);
            assert_eq!(read.problems, [""; 0], "{name}");
            assert_eq!(services.remove(name), Some(read.value));
        }
        assert!(services.is_empty(), "{services:?}");
    }

    #[test]
    fn envd_and_the_relay_are_what_the_platform_asks_for() {
        let (envd, relay) = (envd(), relay());
        assert_eq!(envd.group_path(), "envd");
        assert_eq!(envd.cgroup.memory_max, None, "helpers of envd run in its cgroup");
        assert_eq!(relay.group_path(), "init.scope", "a frozen relay could not be reached to thaw the guest");
    }
}
