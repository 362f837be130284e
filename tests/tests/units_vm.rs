//! Debian's services under our PID 1, as `rootfs` turned their units: one image, one VM.

#![allow(clippy::unwrap_used, reason = "the parts of a test are functions here; each fails by panicking")]

use std::{path::PathBuf, time::Duration};

use tests::{
    Via, Vm,
    image::{Envd, Image},
    life,
    net::run,
    paths, wait,
};

/// Several databases start at once under emulation; a bound is no expectation.
const BOUND: Duration = Duration::from_secs(5 * 60);

/// Service, how it answers (as root), and how its main process is killed.
const SERVICES: [(&str, &str, &str); 6] = [
    ("nginx", "curl -sf -o /dev/null http://127.0.0.1/", "cat /run/nginx.pid"),
    ("redis-server", "redis-cli ping | grep -q PONG", "pgrep -x redis-server"),
    (
        "postgresql@15-main",
        "su postgres -c \"psql -Atc 'select 40+2'\" | grep -qx 42",
        "cat /run/postgresql/15-main.pid",
    ),
    (
        "sshd",
        "timeout 20 bash -c 'exec 3<>/dev/tcp/127.0.0.1/22; head -1 <&3' | grep -q SSH-2",
        "pgrep -o -x sshd",
    ),
    ("chronyd", "chronyc -n tracking", "pgrep -x chronyd"),
    ("cron", "pgrep -x cron", "pgrep -x cron"),
];

fn base() -> PathBuf {
    let script = paths::root().join("scripts/units-base").display().to_string();
    paths::root().join(run(&script, &[]).unwrap().lines().last().unwrap())
}

fn root(vm: &Vm, command: &str) -> (i32, String) {
    let output = vm.exec_as(Via::Tcp, command, Some("root")).unwrap();
    (output.exit_code, output.stdout.trim().to_owned())
}

fn answers(vm: &Vm, service: &str, question: &str) {
    wait::until(&format!("{service} to answer"), BOUND, || Ok((root(vm, question).0 == 0).then_some(())))
        .unwrap();
}

#[test]
#[ignore = "takes minutes under emulation; `make units` runs it"]
fn debians_services_answer_after_boot_after_a_kill_and_after_a_freeze_and_end_at_reboot() {
    tests::require_root().unwrap();
    let bake = Image::native().base(&base()).envd(Envd::preferred()).accept_lost_units();
    let vm = Vm::of(&bake.bake().unwrap()).memory_mib(1024).boot().unwrap();
    vm.wait_healthy_within(Via::Tcp, BOUND).unwrap();
    for (service, question, _) in SERVICES {
        answers(&vm, service, question);
    }
    for (service, question, main) in SERVICES {
        survives_a_kill(&vm, service, question, main);
    }
    if let Some(audit) = life::freeze(&vm).unwrap() {
        assert!(audit.is_clean() && audit.frozen >= SERVICES.len() as u64, "{audit:?}");
        for (service, question, _) in SERVICES {
            answers(&vm, service, question);
        }
    }
    ends_at_reboot(&vm);
}

/// PID 1 starts it again, in its own cgroup, where the freeze finds it.
fn survives_a_kill(vm: &Vm, service: &str, question: &str, main: &str) {
    let (_, old) = root(vm, main);
    assert_eq!(root(vm, &format!("kill -KILL {old}")).0, 0, "{service}");
    wait::until(&format!("another process of {service}"), BOUND, || {
        let (status, new) = root(vm, main);
        Ok((status == 0 && !new.is_empty() && new != old).then_some(()))
    })
    .unwrap();
    answers(vm, service, question);
    let (_, new) = root(vm, main);
    assert_eq!(root(vm, &format!("cat /proc/{new}/cgroup")).1, format!("0::/system.slice/{service}"));
}

/// Each is told to end before the machine goes down, and is gone by then.
fn ends_at_reboot(vm: &Vm) {
    let _ = vm.exec_as(Via::Tcp, "setsid sh -c 'sleep 1; reboot' </dev/null >/dev/null 2>&1 &", Some("root"));
    vm.wait_end().unwrap();
    for (service, ..) in SERVICES {
        let console = vm.console();
        assert!(console.has(&format!("init: {service} is being stopped")).unwrap(), "{service}");
        assert!(
            console.has(&format!("init: {service} (ended|was ended)[^\n]* stopped on request")).unwrap(),
            "{service}"
        );
    }
}
