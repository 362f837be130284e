//! The world that envd is started in: what the platform's own unit gives it, and nothing of its supervisor's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tests::{Cell, paths};

fn healthy(cell: Cell) -> Cell {
    cell.wait("envd is healthy").unwrap();
    cell
}

fn supervised() -> Cell {
    let builder = Cell::builder().unwrap().stand_in("bin/envd", "").unwrap();
    healthy(builder.environment("NOTIFY_SOCKET", "/run/nobody").supervise("bin/envd", "").unwrap())
}

/// Of envd's process; `PID` in the command is its pid.
fn of(cell: &Cell, command: &str) -> String {
    cell.sh(&command.replace("PID", "$(pidof envd)")).unwrap()
}

#[test]
fn its_environment_is_the_platforms_and_not_its_supervisors() {
    let cell = supervised();
    let environment = of(&cell, "tr '\\0' '\\n' </proc/PID/environ");
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    for line in ["GOTRACEBACK=all", "GOMEMLIMIT=512MiB", path] {
        assert!(environment.lines().any(|found| found == line), "{line} in {environment}");
    }
    assert!(!environment.contains("NOTIFY_SOCKET"), "{environment}");
}

#[test]
fn it_leads_a_session_of_its_own_with_clean_signals_and_no_descriptor_of_ours() {
    let cell = supervised();
    let pid = cell.envd().unwrap().to_string();
    assert_eq!(of(&cell, "ps -o sid=,pgid= -p PID | tr -s ' '").trim(), format!("{pid} {pid}"));
    for mask in ["SigBlk", "SigIgn"] {
        let bits = of(&cell, &format!("sed -n 's/^{mask}:[[:space:]]*//p' /proc/PID/status"));
        // The stand-in's runtime ignores SIGPIPE for itself, as every Rust program does.
        let pipe = if mask == "SigIgn" { 0x1000 } else { 0 };
        assert_eq!(u64::from_str_radix(&bits, 16).unwrap() & !pipe, 0, "{mask} {bits}");
    }
    let wrappers = cell.sh("readlink /proc/$(pidof envd-wrapper)/fd/*").unwrap();
    let own = of(&cell, "readlink /proc/PID/fd/*");
    assert_eq!(of(&cell, "readlink /proc/PID/fd/0"), "/dev/null");
    for descriptor in own.lines().filter(|name| !name.starts_with("anon_inode:")) {
        let shared = wrappers.lines().any(|theirs| theirs == descriptor);
        // Its two pipes, and where both have nothing.
        assert!(!shared || descriptor.starts_with("pipe:") || descriptor == "/dev/null", "{descriptor}");
    }
    assert_eq!(of(&cell, "readlink /proc/PID/cwd"), "/");
}

#[test]
fn it_shares_its_supervisors_cgroup() {
    let cell = supervised();
    assert_eq!(of(&cell, "grep ^0: /proc/PID/cgroup"), "0::/envd");
    assert_eq!(cell.sh("grep ^0: /proc/$(pidof envd-wrapper)/cgroup").unwrap(), "0::/envd");
}

/// Without the rights for them the steps are named, each with its reason, and envd runs all the same.
#[test]
fn steps_that_are_not_allowed_are_named_and_passed_over() {
    let builder = Cell::builder().unwrap().stand_in("bin/envd", "").unwrap();
    let wrapper = paths::guest_bin("envd-wrapper").unwrap();
    let builder = builder.program(&wrapper, "lib/envd-wrapper").unwrap();
    let path = |name: &str| builder.folder().join(name).display().to_string();
    let (wrapper, envd) = (path("lib/envd-wrapper"), path("bin/envd"));
    let dropped = "-sys_nice,-sys_resource,-sys_admin";
    let arguments =
        ["--bounding-set", dropped, "--", &wrapper, "--envd", &envd, "--cgroup", "/sys/fs/cgroup/no-such"];
    let cell = healthy(builder.run("setpriv", &arguments).unwrap());
    for step in [
        "enter its cgroup: No such file",
        "set oom_score_adj: Permission denied",
        "set its nice value: Permission denied",
    ] {
        cell.wait(&format!("wrapper: envd: cannot {step}.*; started without")).unwrap();
    }
    cell.wait("wrapper: envd: cannot set its I/O priority: Operation not permitted; started without")
        .unwrap();
}

/// What ends a wrapper must end envd as well, or the next one would find its port taken.
#[test]
fn it_dies_with_its_supervisor_also_after_an_upgrade_in_place() {
    let cell = supervised();
    let pid = cell.envd().unwrap();
    cell.sh(
        "curl -s -X POST http://127.0.0.1:49983/init; curl -s -X POST http://127.0.0.1:49983/upgrade || true",
    )
    .unwrap();
    assert_eq!(cell.envd().unwrap(), pid);
    cell.sh("kill -KILL $(pidof envd-wrapper)").unwrap();
    cell.other_envd(pid).unwrap();
}
