//! envd's life under the wrapper in a real guest, with the real envd where `ENVD` names one: killed, updated, upgraded in place,
//! out of memory, frozen.

#![allow(clippy::unwrap_used, reason = "the parts of a test are functions here; each fails by panicking")]

use tests::life::{self, detached, envd_pid};
use tests::{Envd, Image, Via, Vm, part};

/// Hundreds are chaos's.
const KILLS: usize = 10;

/// One VM: each part leaves envd running for the next.
#[test]
fn whatever_happens_to_envd_it_comes_back_and_its_death_is_explained() {
    tests::require_root().unwrap();
    let vm = Vm::of(&Image::native().envd(Envd::preferred()).bake().unwrap()).boot().unwrap();
    vm.wait_healthy(Via::Vsock).unwrap();
    part("world", || it_lives_in_the_platforms_world(&vm));
    part("version", || life::version(&vm).unwrap());
    part("kills", || drop(life::kills(&vm, KILLS).unwrap()));
    part("update", || life::updates(&vm, "systemctl restart envd").unwrap());
    part("upgrade in place", || life::upgrade(&vm, None).unwrap());
    part("upgrade to another program", || life::upgrade(&vm, Some(other_program(&vm))).unwrap());
    part("out of memory", || an_out_of_memory_kill_is_told_from_others(&vm));
    part("freeze", || assert!(life::freeze(&vm).unwrap().is_none_or(|audit| audit.is_clean())));
    part("pause", || a_paused_machine_restarts_nobody(&vm));
}

fn it_lives_in_the_platforms_world(vm: &Vm) {
    let pid = envd_pid(vm, Via::Tcp).unwrap();
    let of = |command: &str| vm.sh(Via::Tcp, &command.replace("PID", &pid.to_string())).unwrap();
    assert_eq!(of("ps -o ni= -p PID | tr -d ' '"), "-20");
    assert_eq!(of("ionice -p PID"), "realtime: prio 4");
    assert_eq!(of("cat /proc/PID/oom_score_adj"), "-1000");
    assert_eq!(of("cat /proc/PID/cgroup"), "0::/envd");
    assert_eq!(of("ps -o sid= -p PID | tr -d ' '"), pid.to_string());
    let wrapper = of("awk '/^PPid/{print $2}' /proc/PID/status");
    assert_eq!(of(&format!("cat /proc/{wrapper}/comm /proc/{wrapper}/cgroup")), "envd-wrapper\n0::/envd");
    // A Go program raises its own soft limit of open files, and lowers its core limit as it likes.
    let hard = of("awk '/^Max open files/{print $5}' /proc/PID/limits");
    assert_eq!(hard, "524288");
    let environment = of("tr '\\0' '\\n' </proc/PID/environ");
    let half = of("awk '/^MemTotal/{print int(int($2 / 1024) / 2)}' /proc/meminfo");
    for line in [
        format!("GOMEMLIMIT={half}MiB"),
        "GOTRACEBACK=all".to_owned(),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    ] {
        assert!(environment.lines().any(|found| found == line), "{line} is missing in\n{environment}");
    }
    assert!(!environment.contains("NOTIFY_SOCKET"), "the wrapper's own: {environment}");
}

/// What the platform would deliver: here the same program, read out of the guest.
fn other_program(vm: &Vm) -> Vec<u8> {
    let answer = vm.get(Via::Tcp, "/files?path=/usr/bin/envd&username=root").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.body.starts_with(b"\x7fELF"));
    answer.body
}

fn an_out_of_memory_kill_is_told_from_others(vm: &Vm) {
    let mark = vm.console().mark();
    // envd itself is exempt from the OOM killer, so that is taken back first. Less than it can do with, also without its file.
    let group = "/sys/fs/cgroup/envd/memory.max";
    let said = detached(
        vm,
        &format!("echo 0 >/proc/$(pidof envd)/oom_score_adj; echo 128K >{group}; sleep 2; echo max >{group}"),
    );
    said.unwrap();
    let line = vm.console().wait_after(mark, r#"envd-init: exit \{"service":"envd""#).unwrap();
    assert!(line.contains("\"oom\":true") && line.contains("\"peak_memory_bytes\":"), "{line}");
    vm.console().wait_after(mark, r"wrapper: envd \(pid \d+\) was killed by the OOM killer").unwrap();
    vm.wait_healthy(Via::Vsock).unwrap();
}

/// The long pauses are chaos's; this one is longer than any bound that runs meanwhile.
fn a_paused_machine_restarts_nobody(vm: &Vm) {
    let (mark, pid) = (vm.console().mark(), envd_pid(vm, Via::Tcp).unwrap());
    vm.pause().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    vm.resume().unwrap();
    assert_eq!(envd_pid(vm, Via::Vsock).unwrap(), pid);
    assert!(!vm.console().text_after(mark).contains("envd-init: exit"));
}
