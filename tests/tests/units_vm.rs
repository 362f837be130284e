//! Debian's services under our PID 1, as `rootfs` turned their units: one image, one VM.

#![allow(clippy::unwrap_used, reason = "the parts of a test are functions here; each fails by panicking")]

use std::time::Duration;

use tests::{
    Via, Vm,
    image::{Envd, Image},
    life,
    units::{self, SERVICES, Service},
    wait,
};

/// Several databases start at once under emulation; a bound is no expectation.
const BOUND: Duration = Duration::from_secs(5 * 60);

fn root(vm: &Vm, command: &str) -> (i32, String) {
    let output = vm.exec_as(Via::Tcp, command, Some("root")).unwrap();
    (output.exit_code, output.stdout.trim().to_owned())
}

fn answers(vm: &Vm, service: &Service) {
    let answered = || Ok((root(vm, service.answers).0 == 0).then_some(()));
    wait::until(&format!("{} to answer", service.name), BOUND, answered).unwrap();
}

#[test]
#[ignore = "takes minutes under emulation; `make units` runs it"]
fn debians_services_answer_after_boot_after_a_kill_and_after_a_freeze_and_end_at_reboot() {
    tests::require_root().unwrap();
    let bake = Image::native().base(&units::base().unwrap()).envd(Envd::preferred()).accept_lost_units();
    let vm = Vm::of(&bake.bake().unwrap()).memory_mib(1024).boot().unwrap();
    vm.wait_healthy_within(Via::Tcp, BOUND).unwrap();
    for service in &SERVICES {
        answers(&vm, service);
    }
    for service in &SERVICES {
        survives_a_kill(&vm, service);
    }
    if let Some(audit) = life::freeze(&vm).unwrap() {
        assert!(audit.is_clean() && audit.frozen >= SERVICES.len() as u64, "{audit:?}");
        for service in &SERVICES {
            answers(&vm, service);
        }
    }
    ends_at_reboot(&vm);
}

/// PID 1 starts it again, in its own cgroup, where the freeze finds it.
fn survives_a_kill(vm: &Vm, service: &Service) {
    let Service { name, main, .. } = *service;
    let (_, old) = root(vm, main);
    assert_eq!(root(vm, &format!("kill -KILL {old}")).0, 0, "{name}");
    wait::until(&format!("another process of {name}"), BOUND, || {
        let (status, new) = root(vm, main);
        Ok((status == 0 && !new.is_empty() && new != old).then_some(()))
    })
    .unwrap();
    answers(vm, service);
    let (_, new) = root(vm, main);
    assert_eq!(root(vm, &format!("cat /proc/{new}/cgroup")).1, format!("0::/system.slice/{name}"));
}

/// Each is told to end before the machine goes down, and is gone by then.
fn ends_at_reboot(vm: &Vm) {
    let _ = vm.exec_as(Via::Tcp, "setsid sh -c 'sleep 1; reboot' </dev/null >/dev/null 2>&1 &", Some("root"));
    vm.wait_end().unwrap();
    for Service { name: service, .. } in SERVICES {
        let console = vm.console();
        assert!(console.has(&format!("init: {service} is being stopped")).unwrap(), "{service}");
        assert!(
            console.has(&format!("init: {service} (ended|was ended)[^\n]* stopped on request")).unwrap(),
            "{service}"
        );
    }
}
