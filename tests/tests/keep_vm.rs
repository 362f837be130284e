//! Keep mode on real images: Debian with systemd and with OpenRC, envd under the wrapper, the relay beside it.
//!
//! One VM an init, since both boot slowly under emulation; each part leaves envd running for the next.

#![allow(clippy::unwrap_used, reason = "the parts of a test are functions here; each fails by panicking")]

use std::process::{Command, Output};

use tests::image::Envd;
use tests::keep::{BOOT, Init};
use tests::life::{self, detached, envd_pid, wait_other_envd};
use tests::{Via, Vm, bridge, part, paths, sdk, wait};

/// Kills are few here; hundreds are chaos's.
const KILLS: usize = 5;

/// Side by side: each of them waits most of the time.
#[test]
fn systemd_and_openrc_keep_the_image_and_envd_is_never_silently_dead() {
    std::thread::scope(|scope| {
        for init in [Init::Systemd, Init::OpenRc] {
            scope.spawn(move || whole_life(init));
        }
    });
}

fn whole_life(init: Init) {
    tests::require_root().unwrap();
    let image = init.image(Envd::preferred()).unwrap().bake().unwrap();
    let part = |name: &str, run: &dyn Fn(&Vm), vm: &Vm| part(&format!("{}: {name}", init.name()), || run(vm));
    let vm = Vm::of(&image).memory_mib(768);
    // Booting systemd once more takes minutes on an emulated machine that has other work.
    let vm = if init == Init::OpenRc { vm.survive_reboot() } else { vm }.boot().unwrap();
    let vm = &vm;
    part("boot", &|vm| Via::BOTH.into_iter().for_each(|via| vm.wait_healthy_within(via, BOOT).unwrap()), vm);
    part("demo", &|vm| Via::BOTH.into_iter().for_each(|via| sdk::calls(vm, via).unwrap()), vm);
    part("console", &console_and_getty, vm);
    part("world", &|vm| envd_has_the_units_world(vm, init), vm);
    part("control", &control_says_keep, vm);
    if init == Init::Systemd {
        part("bridge", &|vm| bridge::unit::keeps_its_promises(vm).unwrap(), vm);
    }
    part("version", &|vm| life::version(vm).unwrap(), vm);
    part("kills", &|vm| drop(life::kills(vm, KILLS).unwrap()), vm);
    part("relay", &|vm| relay_comes_back(vm, init), vm);
    part("update", &|vm| life::updates(vm, init.restart()).unwrap(), vm);
    part("restart", &|vm| a_restart_by_envds_own_child_brings_it_back(vm, init), vm);
    part("upgrade", &|vm| life::upgrade(vm, None).unwrap(), vm);
    part("provisioning", &|vm| provisioning_does_not_undo_it(vm, init), vm);
    part("stop", &|vm| a_stop_is_not_answered_by_a_respawn(vm, init), vm);
    part("wrapper", &a_killed_wrapper_is_replaced, vm);
    part("root", &a_frozen_root_filesystem_stops_nobody, vm);
    part("freeze", &|vm| assert!(life::freeze(vm).unwrap().is_none_or(|audit| audit.is_clean())), vm);
    part("install", &it_goes_out_and_in_while_the_machine_runs, vm);
    part("reboot", &|vm| it_reboots(vm, init), vm);
}

/// The wrapper's lines stand beside what the image's init prints, and go on after a getty took the line: it can be
/// logged in there.
fn console_and_getty(vm: &Vm) {
    let console = vm.console();
    console.wait(r"^\[ +\d+\.\d{6}\] wrapper: ").unwrap();
    console.wait(r"envd-init: boot \{").unwrap();
    console.wait(r"Debian GNU/Linux 12 \S+ ttyS0").unwrap();
    let mark = console.mark();
    let old = envd_pid(vm, Via::Tcp).unwrap();
    let _ = vm.exec_as(Via::Tcp, &format!("kill -KILL {old}"), Some("root"));
    console.wait_after(mark, r"envd-init: exit \{").unwrap();
    wait_other_envd(vm, Via::Vsock, old).unwrap();
    let mark = console.mark();
    console.send("root\r").unwrap();
    let asked = || Ok(console.text_after(mark).contains("Password:").then_some(()));
    wait::until("the getty to ask for a password", wait::BOUND, asked).unwrap();
    console.send("root\r").unwrap();
    console.wait_after(mark, "ABSOLUTELY NO WARRANTY").unwrap();
    console.send("echo logged-$((40+2))-in\r").unwrap();
    console.wait_after(mark, "logged-42-in").unwrap();
    console.send("exit\r").unwrap();
}

/// What the image's own service sets, envd has; wrapper and envd share one cgroup; `pidof envd` prints one pid.
fn envd_has_the_units_world(vm: &Vm, init: Init) {
    let pid = envd_pid(vm, Via::Tcp).unwrap();
    let sh = |command: &str| vm.sh(Via::Tcp, &command.replace("PID", &pid.to_string())).unwrap();
    let environment = sh("tr '\\0' '\\n' </proc/PID/environ");
    for line in ["KEPT_FROM_THE_UNIT=yes", "GOMEMLIMIT=256MiB", "GOTRACEBACK=all"] {
        assert!(environment.lines().any(|found| found == line), "{line} is missing in\n{environment}");
    }
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        assert!(!environment.contains(name), "{name} is the wrapper's own, but envd has it");
    }
    assert_eq!(sh("cat /proc/PID/oom_score_adj"), "-1000");
    assert_eq!(sh("ps -o ni= -p PID | tr -d ' '"), "-20");
    let wrapper = sh("awk '/^PPid/{print $2}' /proc/PID/status");
    // envd lowers its own.
    let limits = vm.sh(Via::Tcp, &format!("grep 'Max core file size' /proc/{wrapper}/limits")).unwrap();
    assert!(limits.contains("unlimited"), "{limits}");
    assert_eq!(sh("cat /proc/PID/cgroup"), vm.sh(Via::Tcp, &format!("cat /proc/{wrapper}/cgroup")).unwrap());
    assert_eq!(vm.sh(Via::Tcp, &format!("cat /proc/{wrapper}/comm")).unwrap(), "envd-wrapper");
    assert_eq!(relay_cgroup(vm), "0::/init.scope");
    if init == Init::Systemd {
        assert_eq!(sh("cat /proc/PID/cgroup"), "0::/system.slice/envd.service");
        assert_eq!(sh("systemctl show envd -p OOMPolicy --value"), "continue");
        assert_eq!(sh("cat /sys/fs/cgroup/system.slice/envd.service/cpu.weight"), "1000");
        assert_eq!(sh("systemctl is-active envd envd-init-relay"), "active\nactive");
        assert_eq!(sh("systemctl show envd -p StatusText --value | grep -c healthy"), "1");
    }
}

fn relay_pid(vm: &Vm) -> u32 {
    let command = "for p in $(cat /sys/fs/cgroup/init.scope/cgroup.procs); do \
                   [ \"$(cat /proc/$p/comm)\" = vsock-relay ] && echo $p; done; true";
    vm.sh(Via::Tcp, command).unwrap().parse().expect("one relay in init.scope")
}

fn relay_cgroup(vm: &Vm) -> String {
    vm.sh(Via::Tcp, &format!("cat /proc/{}/cgroup", relay_pid(vm))).unwrap()
}

fn run_envdctl(vm: &Vm, arguments: &[&str]) -> Output {
    let mut command = Command::new(paths::host_bin("envdctl").unwrap());
    command.args(arguments).arg("--fc-socket").arg(vm.vsock_socket()).output().unwrap()
}

/// `envdctl` over vsock, with neither network nor envd in its way.
fn envdctl(vm: &Vm, arguments: &[&str]) -> String {
    let output = run_envdctl(vm, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "envdctl {arguments:?} failed: {out}{err}");
    out.into_owned()
}

/// Status, logs, boot and restart are answered by the wrapper, which says that it is keep mode.
fn control_says_keep(vm: &Vm) {
    let status: serde_json::Value = serde_json::from_str(&envdctl(vm, &["status", "--json"])).unwrap();
    let status = status.get("status").unwrap_or(&status);
    assert_eq!(status["mode"], "keep", "{status:#}");
    assert_eq!(status["envd"]["state"], "healthy");
    assert_eq!(status["envd"]["pid"], envd_pid(vm, Via::Tcp).unwrap());
    assert_eq!(status["network"]["found"][0], "169.254.0.21/30");
    let services: Vec<&str> =
        status["services"].as_array().unwrap().iter().filter_map(|s| s["name"].as_str()).collect();
    assert!(services.contains(&"envd") && services.contains(&"relay"), "{services:?}");
    assert!(envdctl(vm, &["status"]).contains("keep"), "the table says the mode as well");
    // No bridge listens on the host, which is its verdict; what it finds in the guest is said all the same.
    let doctor = run_envdctl(vm, &["doctor", "--route", &vm.tcp_endpoint()]).stdout;
    let doctor = String::from_utf8_lossy(&doctor);
    assert!(doctor.contains("in keep mode, beside the image's own init"), "{doctor}");
    assert!(envdctl(vm, &["logs"]).contains("wrapper"));
    assert!(envdctl(vm, &["boot"]).contains("envd"));
    let old = envd_pid(vm, Via::Tcp).unwrap();
    envdctl(vm, &["restart", "envd"]);
    wait_other_envd(vm, Via::Vsock, old).unwrap();
}

/// The relay is killed and stopped and started: calls over vsock are served again, from init.scope.
fn relay_comes_back(vm: &Vm, init: Init) {
    let old = relay_pid(vm);
    vm.sh(Via::Tcp, &format!("kill -KILL {old}")).unwrap();
    vm.wait_healthy(Via::Vsock).unwrap();
    assert_ne!(relay_pid(vm), old);
    if init == Init::Systemd {
        vm.sh(Via::Tcp, "systemctl stop envd-init-relay && systemctl start envd-init-relay").unwrap();
        assert_eq!(
            vm.sh(Via::Tcp, "systemctl daemon-reexec; systemctl is-active envd-init-relay").unwrap(),
            "active"
        );
    } else {
        detached(vm, "rc-service envd-init-relay restart").unwrap();
    }
    vm.wait_healthy(Via::Vsock).unwrap();
    assert_eq!(relay_cgroup(vm), "0::/init.scope");
}

/// As from the SDK: the command's standard output is a pipe to the envd that it ends, and OpenRC prints on it between stop and
/// start.
fn a_restart_by_envds_own_child_brings_it_back(vm: &Vm, init: Init) {
    let old = envd_pid(vm, Via::Tcp).unwrap();
    // The answer is lost together with envd.
    let _ = vm.exec_as(Via::Tcp, init.restart(), Some("root"));
    wait_other_envd(vm, Via::Vsock, old).unwrap();
}

/// What the platform's provisioning does after a template's Dockerfile: envd, its service and the link to the init are
/// written anew. The wrapper stays in place.
fn provisioning_does_not_undo_it(vm: &Vm, init: Init) {
    let old = envd_pid(vm, Via::Tcp).unwrap();
    let (service, link, reload) = match init {
        Init::Systemd => (
            "/etc/systemd/system/envd.service",
            "ln -sf /lib/systemd/systemd /usr/sbin/init",
            "systemctl daemon-reload",
        ),
        Init::OpenRc => ("/etc/init.d/envd", "ln -sf /bin/busybox /usr/sbin/init", "rc-update -u"),
    };
    let steps = format!(
        "set -e; cp /usr/bin/envd /usr/bin/envd.new; mv /usr/bin/envd.new /usr/bin/envd; chmod -R 777 /usr/local; {link}; \
         sed 's/KEPT_FROM_THE_UNIT=yes/KEPT_FROM_THE_UNIT=again/' {service} >/run/service; cat /run/service >{service}; \
         {reload}; {}",
        init.restart()
    );
    detached(vm, &steps).unwrap();
    let pid = wait_other_envd(vm, Via::Vsock, old).unwrap();
    assert_eq!(parent(vm), "envd-wrapper");
    let set = vm.sh(Via::Tcp, &format!("tr '\\0' '\\n' </proc/{pid}/environ | grep KEPT")).unwrap();
    assert_eq!(set, "KEPT_FROM_THE_UNIT=again", "the new service's settings hold");
}

/// Stopped, envd stays down until it is started.
fn a_stop_is_not_answered_by_a_respawn(vm: &Vm, init: Init) {
    let (stop, start) = (init.stop(), init.start());
    let said =
        detached(vm, &format!("{stop} >/dev/null; sleep 4; pidof envd || echo none; {start} >/dev/null"))
            .unwrap();
    assert_eq!(said.trim(), "none", "envd came back by itself after `{stop}`");
    vm.wait_healthy(Via::Vsock).unwrap();
}

/// The init starts another wrapper, and with it another envd.
fn a_killed_wrapper_is_replaced(vm: &Vm) {
    let old = envd_pid(vm, Via::Tcp).unwrap();
    let _ = vm.sh(Via::Tcp, "kill -KILL $(pidof envd-wrapper)");
    wait_other_envd(vm, Via::Vsock, old).unwrap();
    assert_eq!(parent(vm), "envd-wrapper");
}

/// As before some pauses: who would write to the root filesystem waits until the thaw, and nobody here may.
fn a_frozen_root_filesystem_stops_nobody(vm: &Vm) {
    let old = envd_pid(vm, Via::Tcp).unwrap();
    vm.sh(Via::Tcp, "fsfreeze -f /").unwrap();
    let _ = vm.sh(Via::Tcp, "kill -KILL $(pidof envd)");
    let other = wait_other_envd(vm, Via::Vsock, old);
    let thawed = vm.sh(Via::Vsock, "fsfreeze -u /");
    other.and(thawed).unwrap();
}

/// By hand, from the payload: without a trace, and back again.
fn it_goes_out_and_in_while_the_machine_runs(vm: &Vm) {
    let tar = vm.dir().join("payload.tar");
    let rootfs = Command::new(paths::host_bin("rootfs").unwrap())
        .arg("payload")
        .arg("--guest")
        .arg(paths::guest_dir())
        .arg("--out")
        .arg(&tar)
        .output()
        .unwrap();
    assert!(rootfs.status.success(), "{}", String::from_utf8_lossy(&rootfs.stderr));
    vm.upload("/run/payload.tar", std::fs::read(&tar).unwrap()).unwrap();
    let install = "sh /run/payload/usr/lib/envd-init/install.sh";
    let said = detached(
        vm,
        &format!(
            "mkdir -p /run/payload && tar -xf /run/payload.tar -C /run/payload && {install} --uninstall"
        ),
    )
    .unwrap();
    assert!(said.contains("keep mode is out"), "{said}");
    assert_ne!(parent(vm), "envd-wrapper");
    assert_eq!(vm.sh(Via::Tcp, "find /etc /usr/lib/systemd -name '*envd-init*'").unwrap(), "");
    assert!(vm.health(Via::Vsock).is_err(), "the relay still runs");
    let said = detached(vm, install).unwrap();
    assert!(said.contains("keep mode is in"), "{said}");
    vm.wait_healthy(Via::Vsock).unwrap();
    assert_eq!(parent(vm), "envd-wrapper");
}

/// Name of envd's parent.
fn parent(vm: &Vm) -> String {
    vm.sh(Via::Tcp, "cat /proc/$(awk '/^PPid/{print $2}' /proc/$(pidof envd)/status)/comm").unwrap()
}

/// What provisioning wrote anew, init and all, boots into keep mode again.
fn it_reboots(vm: &Vm, init: Init) {
    let mark = vm.console().mark();
    let _ = vm.sh(Via::Tcp, "setsid sh -c 'sleep 1; reboot' </dev/null >/dev/null 2>&1 &");
    if init == Init::Systemd {
        vm.wait_end().unwrap();
        return;
    }
    vm.console().wait_within(mark, r"envd-init: boot \{", BOOT).unwrap();
    vm.wait_healthy(Via::Vsock).unwrap();
    assert_eq!(parent(vm), "envd-wrapper");
}
