//! PID 1 in a VM: the platform's guest from its first start to its reboot, on each kernel, and machines on which something is
//! missing, wrong or late.

#![allow(clippy::unwrap_used, reason = "the parts of a test are functions here; each fails by panicking")]

use std::{io::Write, process::Command};

use serde_json::{Value, json};
use tests::{
    Kernel, Via, Vm,
    image::{Bake, Envd, Image},
    life::{self, detached},
    paths, wait,
};

/// Leaves behind what it saw of envd: nothing, since it is over before envd starts.
const SEED_CERTS: &str = "#!/bin/sh\nmkdir -p /run/e2b/certs\npidof envd >/run/e2b/envd-before-certs\n\
                          cat /proc/uptime >/run/e2b/seeded\n";
/// Stands in for the platform's own, which asks for /dev/ptp0.
const CHRONY_SOURCE: &str = "#!/bin/sh\nsleep 0.2\necho source >/run/chrony-source\n";
/// Tells what it found, and with which configuration it was started.
const CHRONYD: &str = "#!/bin/sh\n[ \"$2\" != -f ] || cat \"$3\" >/run/chronyd-conf\ncat /run/chrony-source >/run/chronyd-saw\n\
                       exec sleep 100000\n";
const CHRONY_CONF: &str = "pool 192.0.2.1\nrefclock PHC /dev/ptp0 poll -1\n";
const WEB: &str = "command = ['/bin/sh', '-c', 'env >/tmp/web.env; exec sleep 100000']\nuser = 'nobody'\n\
                   environment = { ONLY = 'this' }\nlimits = { open_files = 77 }\ncgroup = { cpu_weight = 33 }\n\
                   restart = 'always'\n";

const RESTORED: &str = "command = ['/bin/sh', '-c', 'date +%s >>/run/restored']\nkind = 'oneshot'\nenabled = false\non_restore = true\n";

fn image() -> Bake {
    Image::native().envd(Envd::preferred())
}

fn sh(vm: &Vm, command: &str) -> String {
    vm.sh(Via::Vsock, command).unwrap()
}

fn warnings(status: &Value) -> Vec<&str> {
    status["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

fn await_console(vm: &Vm, pattern: &str) {
    vm.console().wait(pattern).unwrap();
}

/// Each part prints its name, so that a failure's place is known.
macro_rules! parts {
    ($vm:expr; $($part:ident),* $(,)?) => {$(
        println!("part: {}", stringify!($part));
        $part($vm);
    )*};
}

#[test]
fn the_platforms_guest_is_whole_from_its_first_start_to_its_reboot() {
    let bake = image()
        .script("/usr/local/bin/e2b-seed-certs", SEED_CERTS)
        .script("/usr/local/bin/e2b-chrony-source", CHRONY_SOURCE)
        .script("/usr/sbin/chronyd", CHRONYD)
        .file("/etc/chrony/chrony.conf", CHRONY_CONF)
        .file("/etc/machine-id", "uninitialized\n")
        .file("/etc/hostname", "e2b.local\n")
        .file("/etc/sysctl.conf", "fs.inotify.max_user_watches=65536\nvm.compaction_proactiveness=0\n")
        .file("/etc/sysctl.d/50-own.conf", "# own\nkernel.pid_max = 99999\n-no.such.thing = 1\n")
        .file("/etc/envd-init/services.d/web.toml", WEB)
        .file("/etc/envd-init/services.d/restored.toml", RESTORED);
    let image = bake.bake().unwrap();
    for kernel in Kernel::each() {
        println!("kernel: {}", kernel.name());
        let mut machine = Vm::of(&image).kernel(kernel.clone()).keep_disk();
        if kernel.has_keyboard() {
            machine = machine.without_word("i8042.nokbd");
        }
        let vm = machine.boot().unwrap();
        vm.wait_healthy(Via::Vsock).unwrap();
        await_console(&vm, r"envd-init: boot \{");
        network_was_found_or_set_up(&vm, kernel.serves_ip());
        parts!(&vm; the_boot_is_told, file_systems, groups, surroundings, services, what_children_see);
        parts!(&vm; nothing_wakes_at_rest, freeze, addresses, hostile_clients, blocked_console);
        parts!(&vm; a_clock_that_jumps, new_envd_by_systemctl, a_death_of_envd, fault_of_init);
        goes_down(&vm, if kernel.has_keyboard() { Down::Keys } else { Down::Command });
        clean_disk(&vm);
    }
}

fn network_was_found_or_set_up(vm: &Vm, by_kernel: bool) {
    let how = if by_kernel { "already up" } else { "up" };
    let line =
        format!("init: eth0 169.254.0.21/30 {how}, gateway 169.254.0.22, mac 02:fc:00:00:00:05, mtu 1500");
    await_console(vm, &line.replace('.', r"\."));
    let network = &vm.wait_control().unwrap()["network"];
    assert_eq!(network["configured_by"], if by_kernel { "kernel" } else { "init" });
    assert_eq!((&network["found"], &network["link_up"]), (&json!(["169.254.0.21/30"]), &json!(true)));
    assert!(sh(vm, "ip -4 addr show lo").contains("127.0.0.1/8"));
    assert!(sh(vm, "ip route").contains("default via 169.254.0.22 dev eth0"));
    vm.wait_healthy(Via::Tcp).unwrap();
}

/// Every stage has its time on the console, in a line for machines, and nothing was degraded.
fn the_boot_is_told(vm: &Vm) {
    let console = vm.console().text();
    let line = console.lines().find_map(|line| line.split_once("envd-init: boot ")).unwrap().1;
    let boot: Value = serde_json::from_str(line).unwrap();
    assert_eq!(boot["warnings"], 0, "{console}");
    let names: Vec<&str> =
        boot["stages"].as_array().unwrap().iter().filter_map(|stage| stage["name"].as_str()).collect();
    for name in ["mounts", "cgroups", "envd_spawn", "network", "services", "envd_exec", "envd_healthy"] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    assert!(console.len() <= 2048, "{} bytes on the console until envd is healthy", console.len());
    let status = vm.status().unwrap();
    assert_eq!((&status["mode"], &status["envd"]["state"]), (&json!("native"), &json!("healthy")));
    assert_eq!(warnings(&status), [""; 0]);
}

fn file_systems(vm: &Vm) {
    assert_eq!(sh(vm, "findmnt -no PROPAGATION /"), "shared");
    assert_eq!(sh(vm, "stat -c %a /dev/pts/ptmx /dev/shm /run"), "666\n1777\n755");
    assert_eq!(sh(vm, "stat -fc %T /sys/fs/cgroup /run /dev/shm"), "cgroup2fs\ntmpfs\ntmpfs");
    let options = sh(vm, "findmnt -no OPTIONS /sys/fs/cgroup");
    assert!(options.contains("nsdelegate") && options.contains("memory_recursiveprot"), "{options}");
    assert_eq!(sh(vm, "readlink /dev/fd /dev/stdin"), "/proc/self/fd\n/proc/self/fd/0");
    for (kind, path) in [
        ("mqueue", "/dev/mqueue"),
        ("hugetlbfs", "/dev/hugepages"),
        ("tracefs", "/sys/kernel/tracing"),
        ("fusectl", "/sys/fs/fuse/connections"),
    ] {
        let wanted = sh(vm, &format!("grep -qw {kind} /proc/filesystems && echo {kind} || true"));
        assert_eq!(sh(vm, &format!("findmnt -no FSTYPE {path} || true")), wanted, "{path}");
    }
    let for_all = "for d in /dev/fuse /dev/net/tun /dev/vsock; do [ ! -e $d ] || stat -c '%a %n' $d; done | grep -v ^666";
    assert_eq!(sh(vm, &format!("{for_all} || true")), "", "any user may open them");
    // Programs of users put their locks there, as under Debian's own init.
    assert_eq!(
        sh(vm, "sudo -u user touch /var/lock/a && stat -fc %T /run/lock && stat -c %a /run/lock"),
        "tmpfs\n1777"
    );
    assert_eq!(
        sh(vm, "findmnt -no FSTYPE /tmp || echo root"),
        "root",
        "a /tmp that can be written is left alone"
    );
}

fn groups(vm: &Vm) {
    assert_eq!(sh(vm, "cat /sys/fs/cgroup/cgroup.subtree_control"), "cpu io memory pids");
    let group = |pid: &str| sh(vm, &format!("cat /proc/{pid}/cgroup"));
    assert_eq!(group("1"), "0::/init.scope");
    assert_eq!(group("$(pidof vsock-relay)"), "0::/init.scope");
    assert_eq!(group("$(pidof envd-wrapper)"), "0::/envd");
    assert_eq!(group("$(pidof envd)"), "0::/envd");
    assert_eq!(group("$(pgrep -u nobody sleep)"), "0::/system.slice/web");
    assert_eq!(
        sh(vm, "cd /sys/fs/cgroup/envd; cat memory.min memory.low cpu.weight"),
        "52428800\n104857600\n1000"
    );
    assert!(sh(vm, "cat /sys/fs/cgroup/envd/io.weight 2>/dev/null || echo default 10000").contains("10000"));
    assert_eq!(sh(vm, "cat /sys/fs/cgroup/envd/memory.max"), "max");
    assert_eq!(sh(vm, "cd /sys/fs/cgroup; ls -d user ptys socats | wc -l"), "3", "envd has made its own");
}

fn surroundings(vm: &Vm) {
    assert_eq!(sh(vm, "hostname"), "e2b.local");
    assert_eq!(sh(vm, "grep -Ec '^[0-9a-f]{32}$' /etc/machine-id"), "1");
    let values =
        "cat /proc/sys/fs/inotify/max_user_watches /proc/sys/kernel/pid_max /proc/sys/kernel/core_pattern";
    assert_eq!(sh(vm, values), "65536\n99999\n|/bin/false");
    assert_eq!(sh(vm, "cat /run/e2b/envd-before-certs"), "", "envd ran before its certificates were there");
    let seeded: f64 = sh(vm, "cut -d' ' -f1 /run/e2b/seeded").parse().unwrap();
    let exec_ns = vm.status().unwrap()["envd"]["exec_ns"].as_f64().unwrap();
    assert!(seeded <= exec_ns / 1e9, "seeded at {seeded}, envd at {exec_ns}");
    wait::until("chronyd", wait::BOUND, || {
        Ok((sh(vm, "cat /run/chronyd-saw || true") == "source").then_some(()))
    })
    .unwrap();
    let conf = sh(vm, "[ -e /dev/ptp0 ] || cat /run/chronyd-conf");
    assert!(conf.is_empty() || conf == "pool 192.0.2.1", "without its device a refclock is fatal: {conf}");
}

fn services(vm: &Vm) {
    assert_eq!(
        sh(vm, "sort /tmp/web.env | grep -v '^\\(PWD\\|_\\|SHLVL\\)='"),
        "ONLY=this\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    );
    let pid = sh(vm, "pgrep -u nobody sleep");
    assert!(sh(vm, &format!("grep 'Max open files' /proc/{pid}/limits")).contains("77"));
    assert_eq!(sh(vm, "cat /sys/fs/cgroup/system.slice/web/cpu.weight"), "33");
    let _ = vm.exec_as(Via::Vsock, &format!("kill -KILL {pid}"), Some("root"));
    await_console(vm, r#"envd-init: exit \{"service":"web".*"signal":"SIGKILL""#);
    wait::until("web to be back", wait::BOUND, || {
        Ok((sh(vm, "pgrep -u nobody sleep || true").parse::<u32>().is_ok_and(|new| new.to_string() != pid))
            .then_some(()))
    })
    .unwrap();
}

/// Nothing of PID 1's own: neither the kernel's unknown words, nor descriptors, nor masked signals.
fn what_children_see(vm: &Vm) {
    let environment = sh(vm, "tr '\\0' '\\n' </proc/$(pidof envd)/environ | sort");
    let names: Vec<&str> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert_eq!(names, ["GOMEMLIMIT", "GOTRACEBACK", "PATH"], "{environment}");
    assert_eq!(sh(vm, "readlink /proc/1/fd/[012] | uniq"), "/dev/null");
    let signals = "grep -E '^Sig(Blk|Ign)' /proc/$(pgrep -u nobody sleep)/status | tr -d '\\t '";
    assert_eq!(sh(vm, signals), "SigBlk:0000000000000000\nSigIgn:0000000000000000");
    assert_eq!(sh(vm, "ls /proc/$(pgrep -u nobody sleep)/fd | tr '\\n' ' '").trim(), "0 1 2");
    assert_eq!(sh(vm, "pidof envd | wc -w"), "1");
    // What names no limit has what a unit has under systemd: `sudo`, `su` and cron take PID 1's.
    assert_eq!(sh(vm, "sudo -u user bash -c 'ulimit -Sn; ulimit -Hn'"), "1024\n524288");
    assert_eq!(
        sh(vm, "grep 'Max open files' /proc/1/limits | tr -s ' '").trim(),
        "Max open files 1024 524288 files"
    );
    // Whatever else listened on TCP, envd would publish by a socat.
    let listeners = "grep -hE '^ *[0-9]+: [^ ]+ [^ ]+ 0A ' /proc/net/tcp /proc/net/tcp6 | sed 's/.*:C33F 0.*/envd/' | sort -u";
    assert_eq!(sh(vm, listeners), "envd", "port 49983 alone");
}

/// Three seconds, in which neither PID 1 nor the relay is scheduled once. (Asked over TCP, which wakes neither, and from
/// when the relay has no connection any more.)
/// Nor is more of the program mapped then than what each of the three has just run.
fn nothing_wakes_at_rest(vm: &Vm) {
    let script = "count() { cat /proc/1/status /proc/$(pidof vsock-relay)/status | grep ctxt_switches; }; \
                  until grep -q '\"connections\":0,' /run/envd-init/relay.json; do sleep 0.1; done; \
                  sleep 2; count >/tmp/a; sleep 3; count >/tmp/b; diff /tmp/a /tmp/b && echo same";
    assert_eq!(vm.sh(Via::Tcp, script).unwrap(), "same");
    let script = "for pid in 1 $(pidof vsock-relay) $(pidof envd-wrapper); do \
                  awk '/envd-init.init$/ { ours = 1 } /^VmFlags/ { ours = 0 } \
                       ours && /^Size/ { size += $2 } ours && /^Rss/ { mapped += $2 } \
                       END { print (mapped * 2 < size) ? \"little\" : mapped \" of \" size \" KiB\" }' /proc/$pid/smaps; done";
    assert_eq!(vm.sh(Via::Tcp, script).unwrap(), "little\nlittle\nlittle");
}

/// As before a pause: the workload stands still, PID 1 and the relay answer, and the platform's own audit is content.
fn freeze(vm: &Vm) {
    vm.init_envd(Via::Tcp).unwrap();
    assert_eq!(vm.post(Via::Vsock, "/freeze?mode=hierarchy", "").unwrap().status, 204);
    for _ in 0..3 {
        assert_eq!(vm.status().unwrap()["reply"], "status");
    }
    assert_eq!(vm.post(Via::Vsock, "/unfreeze", "").unwrap().status, 204);
    match life::freeze(vm).unwrap() {
        Some(audit) => assert!(audit.is_clean(), "{audit:?}"),
        None => println!("(the stand-in audits nothing: ENVD names the real one)"),
    }
}

/// A second, a wrong and a missing address, a link that goes and comes: each is said, none is meddled with.
fn addresses(vm: &Vm) {
    let after = |command: &str, pattern: &str| {
        let mark = vm.console().mark();
        sh(vm, command);
        vm.console().wait_after(mark, pattern).unwrap();
    };
    after("ip addr add 10.9.9.9/24 dev eth0", r"init: eth0 169\.254\.0\.21/30 .*but also 10\.9\.9\.9/24");
    after(
        "ip addr del 169.254.0.21/30 dev eth0",
        r"init: eth0 has not the address 169\.254\.0\.21/30, but also 10\.9\.9\.9/24",
    );
    after("ip addr add 169.254.0.21/30 dev eth0", r"init: eth0 169\.254\.0\.21/30 .*but also");
    after("ip addr del 10.9.9.9/24 dev eth0", r"init: eth0 169\.254\.0\.21/30 .*mtu 1500");
    let mark = vm.console().mark();
    vm.qmp().set_link(false).unwrap();
    vm.console().wait_after(mark, "init: eth0 .* its link is down").unwrap();
    let mark = vm.console().mark();
    vm.qmp().set_link(true).unwrap();
    vm.console().wait_after(mark, r"init: eth0 169\.254\.0\.21/30 .*mtu 1500").unwrap();
    sh(vm, "ip route replace default via 169.254.0.22");
}

/// A crowd that begins requests and ends none, and one that sends garbage; and a user of the guest who is not root.
fn hostile_clients(vm: &Vm) {
    let mut crowd: Vec<_> = (0..50).filter_map(|_| vm.vsock(49984).ok()).collect();
    for (at, stream) in crowd.iter_mut().enumerate() {
        let _ = stream.write_all(&vec![if at % 2 == 0 { 0 } else { 0xff }; at % 4 + 1]);
    }
    assert_eq!(vm.status().unwrap()["reply"], "status");
    assert_eq!(vm.control("dance", &json!({})).unwrap()["code"], "unsupported");
    let other = vm.exec_as(Via::Vsock, "systemctl stop envd 2>&1", Some("user")).unwrap();
    assert!(other.exit_code != 0 && other.stdout.contains("only root"), "{other:?}");
    drop(crowd);
}

/// The serial port takes nothing any more: all the rest goes on, and the tail is read when it drains again.
fn blocked_console(vm: &Vm) {
    vm.console().block();
    sh(vm, "(head -c 600000 /dev/zero | tr '\\0' x >/dev/ttyS0) >/dev/null 2>&1 &");
    for _ in 0..10 {
        vm.order("restart", "web").unwrap();
    }
    let old = sh(vm, "pidof envd");
    vm.order("restart", "envd").unwrap();
    vm.wait_healthy(Via::Vsock).unwrap();
    assert_ne!(sh(vm, "pidof envd"), old);
    let mark = vm.console().mark();
    vm.console().unblock();
    vm.console().wait_after(mark, "wrapper: envd is healthy").unwrap();
}

/// What the platform's builder does: the new program is put in place, and `restart` comes back when the old one is dead and
/// the new one runs.
fn new_envd_by_systemctl(vm: &Vm) {
    let script = "old=$(pidof envd); cp /usr/bin/envd /tmp/envd_updated; echo >>/tmp/envd_updated; \
                  mv /tmp/envd_updated /usr/bin/envd; systemctl restart envd; echo code $?; \
                  [ -e /proc/$old ] && echo old lives; new=$(pidof envd); echo pids $(echo $new | wc -w); \
                  [ \"$new\" != \"$old\" ] && echo another; cmp /proc/$new/exe /usr/bin/envd && echo the new one";
    assert_eq!(detached(vm, script).unwrap().trim(), "code 0\npids 1\nanother\nthe new one");
}

/// As after a restore, when envd sets the clock of a machine that is as late as its snapshot is old.
fn a_clock_that_jumps(vm: &Vm) {
    assert_eq!(sh(vm, "cat /run/restored 2>/dev/null || true"), "", "it does not run at boot");
    let set = |by: &str| drop(vm.exec_as(Via::Vsock, &format!("date -s '{by}'"), Some("root")).unwrap());
    let mark = vm.console().mark();
    set("1 hour");
    vm.console()
        .wait_after(mark, r"init: the clock was set forward by 3\d{3}\.\d s, as after a restore")
        .unwrap();
    let runs = || Ok((sh(vm, "cat /run/restored 2>/dev/null | wc -l") == "1").then_some(()));
    wait::until("the service of after a restore", wait::BOUND, runs).unwrap();
    set("1 hour ago");
    vm.wait_healthy(Via::Vsock).unwrap();
    assert_eq!(sh(vm, "wc -l </run/restored"), "1", "backwards is none");
}

/// The first thing that an operator asks for.
fn a_death_of_envd(vm: &Vm) {
    let old = sh(vm, "pidof envd");
    let _ = vm.exec_as(Via::Vsock, &format!("kill -KILL {old}"), Some("root"));
    vm.wait_healthy(Via::Vsock).unwrap();
    let status = vm.status().unwrap();
    let death = status["deaths"].as_array().unwrap().iter().rfind(|death| death["service"] == "envd");
    let how = death.map(|death| (death["pid"].to_string(), death["signal"].clone()));
    assert_eq!(how, Some((old, json!("SIGKILL"))), "{status:#}");
}

/// A memory fault in PID 1 is neither the machine's end nor envd's: both are back.
fn fault_of_init(vm: &Vm) {
    let mark = vm.console().mark();
    let _ = vm.exec_as(Via::Vsock, "kill -SEGV 1", Some("root"));
    vm.console().wait_after(mark, r"init was executed anew after SIGSEGV \(fault 1 of late\)").unwrap();
    vm.console().wait_after(mark, "wrapper: envd is healthy").unwrap();
    vm.wait_healthy(Via::Vsock).unwrap();
    assert_eq!(sh(vm, "pidof envd envd-wrapper vsock-relay | wc -w"), "3", "of each there is one");
    wait::until("web", wait::BOUND, || Ok((sh(vm, "pgrep -cu nobody sleep || true") == "1").then_some(())))
        .unwrap();
    assert_eq!(sh(vm, "cat /proc/1/comm /proc/1/cgroup"), "init\n0::/init.scope");
}

/// The ways down.
enum Down {
    /// `reboot` in the guest.
    Command,
    /// Ctrl-alt-del.
    Keys,
    Control(&'static str),
}

fn goes_down(vm: &Vm, how: Down) {
    let mark = vm.console().mark();
    match how {
        Down::Command => drop(vm.exec_as(Via::Vsock, "reboot", Some("root"))),
        Down::Keys => vm.qmp().ctrl_alt_del().unwrap(),
        Down::Control(kind) => vm.shut_down(kind).unwrap(),
    }
    vm.console().wait_after(mark, "init: going down for ").unwrap();
    vm.wait_end().unwrap();
    let said = vm.console().text_after(mark);
    for trouble in ["not all unmounted", "could not be made read-only", "has not ended"] {
        assert!(!said.contains(trouble), "{said}");
    }
}

/// The root was unmounted: nothing is to be repaired.
fn clean_disk(vm: &Vm) {
    let output = Command::new("e2fsck").arg("-n").arg(vm.disk()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("clean"), "{text}");
}

/// No network card, no vsock, no `ip=`: PID 1 says so, envd runs, and a card that comes later is set up.
#[test]
fn a_machine_without_network_and_vsock_runs_and_a_late_card_is_served() {
    let image = Image::native().bake().unwrap();
    let vm = Vm::of(&image)
        .kernel(Kernel::Cloud)
        .without_net()
        .without_vsock()
        .no_ip_arg()
        .cmdline("envd_init.network.link_timeout_ms=500")
        .qemu_args(&["-device", "pcie-root-port,id=late,chassis=1,slot=1"])
        .boot()
        .unwrap();
    await_console(&vm, "init: there is no interface eth0; it is set up when it comes");
    await_console(&vm, "wrapper: envd is healthy");
    let card =
        json!({ "driver": "virtio-net-pci", "id": "card", "netdev": "net0", "bus": "late", "romfile": "" });
    let tap = json!({ "type": "tap", "id": "net0", "ifname": "tap0", "script": "no", "downscript": "no" });
    vm.qmp().command("netdev_add", &tap).unwrap();
    vm.qmp().command("device_add", &card).unwrap();
    await_console(&vm, r"init: eth0 169\.254\.0\.21/30 up, gateway 169\.254\.0\.22");
    vm.wait_healthy(Via::Tcp).unwrap();
    let _ = vm.exec_as(Via::Tcp, "systemctl poweroff", Some("root"));
    await_console(&vm, "init: going down for power-off");
    vm.wait_end().unwrap();
}

/// Junk in each file that is read: named on the console, and everything that can run runs.
#[test]
fn garbage_in_every_configuration_file_is_named_and_costs_nothing_else() {
    const JUNK: &[u8] = b"\x7fELF\x02\x01\xff\xfe[[[ = \n\0garbage\n\x1b[2J";
    let mut bake = image()
        .file("/etc/envd-init/services.d/relay.toml", "")
        .file("/etc/envd-init/services.d/b@d!.toml", JUNK);
    for path in [
        "/etc/envd-init/config.toml",
        "/etc/envd-init/services.d/envd.toml",
        "/etc/envd-init/services.d/web.toml",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/machine-id",
        "/etc/resolv.conf",
        "/etc/sysctl.conf",
        "/etc/sysctl.d/x.conf",
        "/etc/fstab",
        "/usr/lib/tmpfiles.d/x.conf",
    ] {
        bake = bake.file(path, JUNK);
    }
    bake = bake.file("/etc/sysctl.d/y.conf", "../../etc/passwd = 1\nkernel.pid_max = many\n");
    let words = "envd_init.bogus=1 envd_init.network.mtu=huge =odd envd_init. \"half";
    let vm = Vm::of(&bake.bake().unwrap()).cmdline(words).boot().unwrap();
    for pattern in [
        r"config\.toml",
        r"envd_init\.bogus of the kernel's command line",
        r"envd_init\.network\.mtu of the kernel's command line",
        r"services\.d/envd\.toml: .*; the shipped one is used",
        r"services\.d/relay\.toml",
        r"services\.d/web\.toml",
        r"services\.d/b@d!\.toml",
        r"etc/hosts does not name localhost",
        r"etc/hostname is passed over",
        r"etc/sysctl\.conf: ",
        r"y\.conf: cannot set ",
    ] {
        await_console(&vm, &format!("init: .*{pattern}"));
    }
    for via in Via::BOTH {
        vm.wait_healthy(via).unwrap();
    }
    assert_eq!(vm.wait_control().unwrap()["hostname"], "instance", "of ip=, since the file has none");
    goes_down(&vm, Down::Control("halt"));
}

/// A disk that cannot be written, with an empty /etc on it.
#[test]
fn a_read_only_root_with_an_empty_etc_still_gives_an_envd() {
    let image = image().debugfs("unlink /etc\nmkdir /etc").bake().unwrap();
    let vm = Vm::of(&image).read_only().boot().unwrap();
    for pattern in
        ["the root file system is read-only", "cannot write /etc/machine-id", "does not name localhost"]
    {
        await_console(&vm, &format!("init: .*{pattern}"));
    }
    for via in Via::BOTH {
        vm.wait_healthy(via).unwrap();
    }
    let status = vm.wait_control().unwrap();
    assert!(warnings(&status).iter().any(|warning| warning.contains("read-only")), "{status:#}");
    goes_down(&vm, Down::Control("poweroff"));
}

/// /etc cannot be read, folders that are mounted on are gone, /tmp is a file; the kernel makes such a disk read-only at the first error.
/// Without /dev the kernel can give PID 1 no descriptors, and there is no /dev/null to take instead.
#[test]
fn a_damaged_root_still_gives_an_envd() {
    let kernel = Kernel::preferred();
    let mut damage = "clri /etc\nrmdir /tmp\nwrite /etc/hostname /tmp\nunlink /run\nunlink /sys".to_owned();
    if kernel.serves_ip() {
        damage.push_str("\nunlink /proc\nunlink /dev"); // the other one's initramfs moves its own there
    }
    let image = image().debugfs(&damage).bake().unwrap();
    let vm = Vm::of(&image)
        .kernel(kernel)
        .without_word("rootflags=discard")
        .cmdline("rootflags=errors=remount-ro")
        .boot()
        .unwrap();
    await_console(&vm, "init: .*/etc/");
    for via in Via::BOTH {
        vm.wait_healthy(via).unwrap();
    }
    assert!(!warnings(&vm.wait_control().unwrap()).is_empty());
    vm.shut_down("reboot").unwrap();
    vm.wait_end().unwrap();
}

/// PID 1 and the relay are there, say what is missing, and an envd that comes is run.
#[test]
fn without_any_envd_the_machine_stays_and_a_later_one_is_run() {
    let stand_in = std::fs::read(paths::stand_in().unwrap()).unwrap();
    let bring =
        "command = ['/bin/cp', '/opt/envd-to-come', '/usr/bin/envd']\nkind = 'oneshot'\nenabled = false\n";
    let image = Image::native()
        .envd(Envd::None)
        .script("/opt/envd-to-come", stand_in)
        .file("/etc/envd-init/services.d/bring.toml", bring)
        .bake()
        .unwrap();
    let vm = Vm::of(&image).boot().unwrap();
    await_console(&vm, "wrapper: no envd to run; looked at /usr/bin/envd");
    let status = vm.wait_control().unwrap();
    assert_ne!(status["envd"]["state"], "healthy", "{status:#}");
    assert_eq!(status["network"]["found"], json!(["169.254.0.21/30"]));
    vm.order("start", "bring").unwrap();
    await_console(&vm, "wrapper: envd is healthy");
    for via in Via::BOTH {
        vm.wait_healthy(via).unwrap();
    }
    goes_down(&vm, Down::Control("reboot"));
}
