//! Keep mode on images: which init is served, which is refused by name, and what becomes of a service that was customised.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use rootfs::ext4::Image;
use support::*;

const UNIT: &str = "./etc/systemd/system/envd.service";
const DROP_IN: &str = "/usr/lib/systemd/system/envd.service.d/zz-envd-init.conf";

/// An image whose `/sbin/init` leads to `path`, a file that holds `text`.
fn booting(bench: &Bench, path: &str, text: &str, more: &[Entry]) -> PathBuf {
    let mut entries: Vec<Entry> = debian(true);
    entries.retain(|entry| entry.path != b"./usr/sbin/init");
    entries.push(link("./usr/sbin/init", path));
    entries.push(program(format!(".{path}"), elf(X86_64, text)));
    entries.extend_from_slice(more);
    bench.image("base", &entries)
}

fn with_unit(bench: &Bench, lines: &str) -> PathBuf {
    let mut entries = debian(true);
    let wanted = "./etc/systemd/system/multi-user.target.wants";
    entries.extend(["./etc/systemd", "./etc/systemd/system", wanted].map(dir));
    entries.push(file(UNIT, format!("[Service]\n{lines}")));
    entries.push(link(format!("{wanted}/envd.service"), "/etc/systemd/system/envd.service"));
    bench.image("base", &entries)
}

/// Keep mode is refused with these words and its own exit code; base and folder stay as they were.
fn refused(bench: &Bench, base: &Path, words: &[&str]) {
    let before = (bench.names(), fs::read(base).expect("read"));
    let output = bench.try_inject(base, &bench.path("out.ext4"), &["--init", "keep"]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(19), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    assert!((bench.names(), fs::read(base).expect("read")) == before, "something changed or was left behind");
}

fn text(image: &Path, path: &str) -> String {
    let image = Image::open(image).expect("opens");
    let found = image.locate(path.as_bytes()).expect("there");
    String::from_utf8(image.contents(&found.inode).expect("read")).expect("text")
}

#[test]
fn an_init_that_is_neither_is_refused_by_name_with_what_native_would_do() {
    let native = "INIT=native would make our PID 1 its /sbin/init: envd, the relay, the network";
    for (path, content, name) in [
        ("/usr/bin/busybox", "BusyBox", "boots busybox (/usr/bin/busybox)"),
        ("/usr/sbin/runit-init", "", "boots runit (/usr/sbin/runit-init)"),
        ("/usr/bin/s6-svscan", "", "boots s6-svscan"),
        ("/usr/sbin/dinit", "", "boots dinit"),
        ("/usr/sbin/tini", "tini", "boots an unknown program (/usr/sbin/tini)"),
        ("/usr/lib/sysvinit", "/etc/inittab", "boots sysvinit"),
    ] {
        let bench = Bench::new();
        refused(&bench, &booting(&bench, path, content, &[]), &[name, native]);
    }
}

#[test]
fn an_image_without_an_init_is_refused_with_what_native_would_do() {
    let bench = Bench::new();
    let mut entries = debian(true);
    entries.retain(|entry| entry.path != b"./usr/sbin/init");
    let base = bench.image("base", &entries);
    refused(&bench, &base, &["has no /sbin/init", "INIT=native puts our PID 1"]);
}

/// As the platform writes it for Alpine: busybox, whose inittab starts OpenRC.
#[test]
fn busybox_that_starts_openrc_is_kept() {
    let bench = Bench::new();
    let inittab = file("./etc/inittab", "::sysinit:/sbin/openrc sysinit\n::wait:/sbin/openrc default\n");
    let base = booting(&bench, "/usr/bin/busybox", "BusyBox", &[inittab]);
    let out = bench.inject(&base, "out.ext4", &["--init", "keep"]);
    assert!(text(&out, "/etc/rc.conf.d/envd-init.conf").contains("envd-wrapper"));
    assert!(text(&out, "/etc/init.d/envd").contains("supervise-daemon"), "the image had no service for envd");
    assert_clean(&out);
    bench.same(&base, &bench.revert(&out, "reverted.ext4"));
}

#[test]
fn a_customised_command_is_merged_and_the_unit_itself_stays() {
    for (command, merged) in [
        ("/usr/bin/envd -verbose", "envd-wrapper -- -verbose"),
        ("/opt/e2b/envd", "envd-wrapper --program /opt/e2b/envd"),
        ("/bin/bash -l -c \"/usr/bin/envd\"", "/bin/bash -l -c \"exec /usr/lib/envd-init/envd-wrapper\""),
    ] {
        let bench = Bench::new();
        let unit = format!("ExecStart={command}\nEnvironment=EXTRA=1\n");
        let out = bench.inject(&with_unit(&bench, &unit), "out.ext4", &["--init", "keep"]);
        assert!(text(&out, DROP_IN).contains(merged), "{command}: {}", text(&out, DROP_IN));
        assert_eq!(text(&out, UNIT.trim_start_matches('.')), format!("[Service]\n{unit}"));
    }
}

#[test]
fn what_the_drop_in_replaces_is_said_line_by_line_and_goes_in() {
    let bench = Bench::new();
    let base = with_unit(&bench, "ExecStart=/usr/bin/envd\nRestart=on-failure\nTimeoutStopSec=1\n");
    let output = bench.try_inject(&base, &bench.path("out.ext4"), &["--init", "keep"]);
    assert!(output.status.success(), "{}", said(&output));
    for line in ["envd.service:3: Restart=on-failure: replaced", "envd.service:4: TimeoutStopSec=1: replaced"]
    {
        assert!(said(&output).contains(line), "{line} is missing in: {}", said(&output));
    }
}

#[test]
fn what_cannot_be_merged_is_refused_line_by_line() {
    let bench = Bench::new();
    let base = with_unit(&bench, "Type=forking\nUser=user\nExecStart=/opt/start.sh\n");
    refused(
        &bench,
        &base,
        &[
            "change these lines",
            "envd.service:2: Type=forking",
            ":3: User=user",
            ":4: ExecStart=/opt/start.sh",
        ],
    );
}

#[test]
fn a_masked_service_is_refused() {
    let bench = Bench::new();
    let mut entries = debian(true);
    entries.extend(["./etc/systemd", "./etc/systemd/system"].map(dir));
    entries.push(link(UNIT, "/dev/null"));
    refused(&bench, &bench.image("base", &entries), &["envd.service is masked", "unmask it"]);
}
