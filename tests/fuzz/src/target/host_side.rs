//! What the host's tools read of a guest or of this machine: serial logs, packet filter rules, units, tars, programs.

use std::net::Ipv4Addr;

use envdctl::console::record::{self, Line};
use envdctl::doctor::rules::{self, Hook, iptables, nft};
use rootfs::elf::{Elf, Machine};
use rootfs::keep::files::Files;
use rootfs::source::tar::Archive;

use super::{Seeds, Target};

const CONSOLE_WORDS: &[&[u8]] = &[
    b"[    0.000001] ",
    b"init: ",
    b"envd-init: boot {",
    b"envd-init: exit {",
    b"Kernel panic - not syncing",
    b"\x1b[31m",
    b"{\"log\":\"",
    b"\\u001b[0m",
    b"\"}",
    b"]",
    b".",
    b"18446744073709551615",
];
const RULES_WORDS: &[&[u8]] = &[
    b"-A INPUT ",
    b"-j DROP",
    b"-j REJECT",
    b"-p tcp",
    b"--dport 49983",
    b"-s 169.254.0.0/30",
    b"! ",
    b"\n",
    b"*filter\n",
    b"COMMIT\n",
    b":INPUT ACCEPT [0:0]\n",
    b"-m multiport --dports ",
    b"\"drop\": null",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"{\"rule\":{",
    b"{\"chain\":{",
    b"-g ",
    b"-i tap0",
    b"1:65535",
];
const UNIT_WORDS: &[&[u8]] = &[
    b"[Service]\n",
    b"[Unit]\n",
    b"[Install]\n",
    b"ExecStart=",
    b"Type=notify\n",
    b"User=",
    b"Environment=",
    b"\\\n",
    b"%i",
    b"$VAR",
    b"\"",
    b"'",
    b"-/",
    b"@",
    b"Restart=always\n",
    b"LimitNOFILE=",
    b"infinity",
    b"WantedBy=",
    b"\n---\n",
    b"5min 3s",
    b"ConditionPathExists=!/x\n",
    b"EnvironmentFile=-",
    b"PIDFile=/run/x\n",
    b"Alias=",
];
const TAR_WORDS: &[&[u8]] = &[
    b"ustar",
    b"\x0012 path=x\n",
    b"GNU.sparse.map=",
    b"0000755\0",
    b"77777777777",
    b"\x80\xff",
    b"L",
    b"S",
];
const ELF_WORDS: &[&[u8]] =
    &[b"\x7fELF", b"\xff\xff\xff\xff", b"\xff Go buildinf:", b"go1.25", b"mod\t", b"\x03\0\0\0"];

pub(super) const CONSOLE: Target = Target {
    name: "console",
    run: console,
    seeds: Seeds::Corpus(CONSOLE_WORDS),
    sources: &["envdctl/src/console/record.rs"],
};
pub(super) const RULES: Target = Target {
    name: "rules",
    run: rules,
    seeds: Seeds::Corpus(RULES_WORDS),
    sources: &[
        "envdctl/src/doctor/rules/iptables.rs",
        "envdctl/src/doctor/rules/nft.rs",
        "envdctl/src/doctor/rules/mod.rs",
    ],
};
pub(super) const UNITS: Target = Target {
    name: "units",
    run: units,
    seeds: Seeds::Corpus(UNIT_WORDS),
    sources: &["rootfs/src/units/section.rs", "rootfs/src/units/convert.rs", "rootfs/src/units/command.rs"],
};
pub(super) const TAR: Target =
    Target { name: "tar", run: tar, seeds: Seeds::Corpus(TAR_WORDS), sources: &["rootfs/src/source/tar.rs"] };
pub(super) const ELF: Target = Target {
    name: "elf",
    run: elf,
    seeds: Seeds::Corpus(ELF_WORDS),
    sources: &["rootfs/src/elf.rs", "rootfs/src/goversion.rs"],
};

fn console(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for line in text.split('\n').take(64) {
        if let Line::Record(record) = record::parse(line) {
            assert!(!record.component.is_empty() && record.component.len() <= 64);
        }
    }
}

fn rules(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut chains = iptables::parse(&text, "iptables");
    let tables = iptables::tables(&text);
    chains.extend(nft::parse(&text, &tables).unwrap_or_default());
    for hook in [Hook::Input, Hook::Output, Hook::Forward] {
        for packet in packets() {
            let _ = rules::blocks(&chains, hook, &packet);
        }
    }
    let _ = rules::arp_blocks(&chains);
}

/// An image with one unit that is enabled; the corpus divides it from its drop-in by `---`.
#[derive(Debug)]
struct OneUnit<'a> {
    unit: &'a str,
    drop_in: Option<&'a str>,
}

const UNIT: &str = "/etc/systemd/system/web.service";

impl Files for OneUnit<'_> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, rootfs::ext4::Error> {
        Ok(match path {
            UNIT => Some(self.unit.as_bytes().to_vec()),
            "/etc/systemd/system/web.service.d/x.conf" => self.drop_in.map(|text| text.as_bytes().to_vec()),
            "/etc/systemd/system/multi-user.target" => Some(b"[Unit]\nDescription=x\n".to_vec()),
            _ => None,
        })
    }

    fn real(&self, path: &str) -> Result<Option<String>, rootfs::ext4::Error> {
        Ok(match path {
            "/sbin/init" | "/usr/sbin/init" | "/lib/systemd/systemd" | "/usr/lib/systemd/systemd" => {
                Some("/usr/lib/systemd/systemd".to_owned())
            }
            "/etc/systemd/system/multi-user.target.wants/web.service" => Some(UNIT.to_owned()),
            "/etc/systemd/system/default.target" => Some("/etc/systemd/system/multi-user.target".to_owned()),
            _ if path.starts_with("/usr/bin/") => Some(path.to_owned()),
            _ => self.read(path)?.map(|_| path.to_owned()),
        })
    }

    fn link(&self, path: &str) -> Result<Option<String>, rootfs::ext4::Error> {
        let real = self.real(path)?;
        Ok(real.filter(|real| real != path))
    }

    fn is_executable(&self, path: &str) -> Result<bool, rootfs::ext4::Error> {
        self.exists(path)
    }

    fn names(&self, directory: &str) -> Result<Vec<String>, rootfs::ext4::Error> {
        let names: &[&str] = match directory {
            "/etc/systemd/system" => &["default.target", "multi-user.target", "web.service"],
            "/etc/systemd/system/multi-user.target.wants" => &["web.service"],
            "/etc/systemd/system/web.service.d" if self.drop_in.is_some() => &["x.conf"],
            _ => &[],
        };
        Ok(names.iter().map(|name| (*name).to_owned()).collect())
    }
}

/// What becomes of a unit is a service without mistakes, or a reason.
fn units(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (unit, drop_in) =
        text.split_once("\n---\n").map_or((&*text, None), |(unit, more)| (unit, Some(more)));
    let survey = rootfs::units::survey(&OneUnit { unit, drop_in }).expect("nothing here fails to be read");
    for (name, text) in &survey.services {
        let read = guest::service::Service::parse(name, text);
        assert!(read.problems.is_empty(), "{name}: {:?} in\n{text}", read.problems);
    }
    let _ = (rootfs::units::text(&survey), rootfs::units::json(&survey));
}

/// What follows a header is read only when its sum is right, so sums are made right.
fn tar(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for header in bytes.chunks_exact_mut(512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    let mut archive = Archive::new(bytes.as_slice());
    let mut buffer = [0; 512];
    while let Ok(Some(entry)) = archive.next_entry() {
        assert!(entry.pieces.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "pieces overlap");
        while archive.read_data(&mut buffer).is_ok_and(|count| count > 0) {}
    }
}

fn elf(bytes: &[u8]) {
    match Elf::parse(bytes) {
        Ok(elf) => {
            let _ = elf.require_static(Machine::X86_64).map_err(|error| error.to_string());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let _ = rootfs::goversion::read(bytes).map(|build| build.to_string());
}

/// The first packet to the guest, and one of its answers.
fn packets() -> [rules::Packet; 2] {
    let [host, guest] = [[169, 254, 0, 22], [169, 254, 0, 21]].map(|octets| Ipv4Addr::from(octets).into());
    let first = rules::Packet {
        source: host,
        destination: guest,
        source_port: None,
        destination_port: Some(envd_api::PORT),
        input: None,
        output: Some("tap0".to_owned()),
        established: false,
        flags: rules::SYN,
    };
    let answer = rules::Packet {
        source: guest,
        destination: host,
        source_port: Some(envd_api::PORT),
        destination_port: None,
        input: Some("tap0".to_owned()),
        output: None,
        established: true,
        flags: rules::ACK,
    };
    [first, answer]
}
