//! What the guest's programs read: the kernel's command line, the configuration, services, output of services.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use guest::cmdline::{Cmdline, ip::IpParam};
use guest::config;
use guest::lines::{Lines, MAX_LINE};
use guest::record::{self, MAX_PIECE};
use guest::service::{Service, check, load};
use guest::{notify, ring};

use super::{Seeds, Target};

const WORDS: &[&[u8]] = &[
    b"ip=",
    b":",
    b"off",
    b"dhcp",
    b"envd_init.",
    b"envd-init.",
    b"network.mtu=",
    b"\"",
    b" ",
    b"=",
    b"169.254.0.21",
    b"255.255.255.252",
    b"eth0",
    b"tap0",
    b"\n",
    b"on",
    b"both",
    b"rarp",
    b"bootp",
    b"255.0.255.0",
    b"0.0.0.0",
    b".",
];
const TOML: &[&[u8]] = &[
    b"[",
    b"]",
    b"[[",
    b"'",
    b"\"",
    b"\"\"\"",
    b"=",
    b"\n",
    b"true",
    b"[network]",
    b"[envd]",
    b"[boot.settings]",
    b"command = ['/bin/true']",
    b"restart = 'always'",
    b"after = ['b']",
    b"kind = 'oneshot'",
    b"readiness = {tcp='::1'}",
    b"[limits]",
    b"core = 'unlimited'",
    b"'1:2'",
    b"-1",
    b"1e9",
    b"0x7fff",
    b"{",
    b"}",
    b",",
    b".",
    b"inf",
    b"\n---\n",
    b"nice = 99",
    b"oom_score_adj = -2000",
    b"directory = 'x'",
    b"environment = {'=' = 'x'}",
];
const PRINTED: &[&[u8]] = &[
    b"\x1b[2J",
    b"\n",
    b"\r",
    b"\0",
    b"<4>",
    b"<7>",
    b"[    0.000001] init: ",
    b"envd-init: exit {",
    b"\xff",
    b"\xe2\x80\xae",
    b"1 2 info init ",
    b"READY=1",
    b"\xc2\x9b",
];

pub(super) const IP: Target =
    Target { name: "ip", run: ip, seeds: Seeds::Corpus(WORDS), sources: &["guest/src/cmdline/ip.rs"] };
pub(super) const CMDLINE: Target = Target {
    name: "cmdline",
    run: cmdline,
    seeds: Seeds::Corpus(WORDS),
    sources: &["guest/src/cmdline/mod.rs"],
};
pub(super) const CONFIG: Target =
    Target { name: "config", run: config, seeds: Seeds::Corpus(TOML), sources: &["guest/src/config.rs"] };
pub(super) const SERVICES: Target = Target {
    name: "services",
    run: services,
    seeds: Seeds::Corpus(TOML),
    sources: &["guest/src/service/mod.rs", "guest/src/service/check.rs", "guest/src/lenient.rs"],
};
pub(super) const LOG: Target = Target {
    name: "log",
    run: log,
    seeds: Seeds::Corpus(PRINTED),
    sources: &["guest/src/lines.rs", "guest/src/record.rs"],
};

fn ip(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let param = IpParam::parse(&text);
    assert!(param.prefix().is_none_or(|prefix| prefix <= 32));
    assert_eq!(param.prefix().is_some(), param.client.is_some());
    assert!(param.dns.len() <= 2 && param.notes.len() <= 16, "{} notes", param.notes.len());
    assert!(param.device.is_none_or(|name| name.len() < 16));
    let _ = param.autoconf.as_str();
}

fn cmdline(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let line = Cmdline::parse(&text);
    let _ = (line.value("ip"), line.flag("quiet"), line.value("reboot"));
    assert!(line.overrides().all(|(key, _)| !key.contains('=')));
    let _ = config::parse("", &line);
}

/// The file in front of the first NUL, words of the command line behind it.
fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (file, words) = text.split_once('\0').unwrap_or((&text, ""));
    let line = Cmdline::parse(words);
    let read = config::parse(file, &line);
    let network = &read.value.network;
    let _ = (network.address.to_string(), network.gateway(), config::check(&read.value));
    let again = config::parse(file, &line);
    assert_eq!(read, again);
    // The file is not there: the words alone.
    let _ = config::load(Path::new("/nonexistent/config.toml"), &line);
}

/// Several files, divided by `---`, as one folder.
fn services(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut services = BTreeMap::new();
    for (number, file) in text.split("\n---\n").take(8).enumerate() {
        let name = ["a", "b", "c", "d", "e", "f", "g", "h"][number];
        let service = Service::parse(name, file).value;
        let _ = (service.program(), service.owns_group(), service.is_oneshot(), service.limits.set().count());
        assert!(load::valid_name(&service.name) && service.group_path().len() < 128);
        services.insert(name.to_owned(), service);
    }
    let _ = check::check(&services, &|path| path.starts_with("/bin"));
    check::untangle(&mut services);
    let left = check::check(&services, &|_| true);
    assert!(!left.iter().any(|problem| problem.contains("wait for each other")), "{left:?}");
}

/// What a service prints, in two pieces, to the console's line and back from the ring.
fn log(bytes: &[u8]) {
    let mut lines = Lines::default();
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    lines.push(head, log_line);
    lines.push(tail, log_line);
    lines.finish(log_line);
    let _ = ring::parse(bytes);
    assert!(notify::fields(bytes).all(|(key, _)| !key.contains('\n')));
}

fn log_line(line: &[u8]) {
    assert!(line.len() < MAX_LINE * 16);
    let (level, text) = record::split_level(line);
    assert!(level.syslog() <= 7);
    let text = record::sanitize(text);
    for piece in record::pieces(&text) {
        assert!(piece.len() <= MAX_PIECE + 2 * record::SPLIT_MARK.len_utf8());
        let printed = record::console_line(Duration::from_micros(1), "web", &piece);
        assert!(printed.ends_with('\n') && printed.matches(char::is_control).count() == 1, "{printed:?}");
        let kept = format!("7 1000 {} web {piece}", level.as_str());
        let record = ring::parse(kept.as_bytes()).expect("what is written is read");
        assert_eq!(
            (record.seq, record.text.as_str(), record.level.as_str()),
            (7, piece.as_str(), level.as_str())
        );
    }
}
