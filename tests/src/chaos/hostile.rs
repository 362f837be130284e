//! An account of the sandbox without any right tries to get something that root did not give it. What holds here is promised in
//! `docs/security.md`.

use anyhow::{Context, Result, ensure};

use super::guest::{Guest, Stage};
use super::kills;
use super::{Scenario, Trial};
use crate::{CommandOutput, Via, wait};

const fn scenario(name: &'static str, stage: Stage, full: u64, brief: u64) -> Scenario {
    let about = "an account without sudo attacks PID 1, the wrapper, the relay, the control socket, our files and the console";
    Scenario { name, about, stage, full, brief, wears_out: false, waits: false, run: hostile }
}

pub(super) const SCENARIOS: &[Scenario] =
    &[scenario("hostile", Stage::StandIn, 3, 0), scenario("hostile-real", Stage::Real, 1, 0)];

const ACCOUNT: &str = "mallory";
const UID: u32 = 1502;
/// What the account says where it could pass for somebody else.
const FORGED: &str = "forged-by-mallory";

/// Commands of bash that succeed only if the account got what it must not have.
const ATTACKS: &[(&str, &str)] = &[
    ("kills PID 1", "kill -KILL 1"),
    ("asks PID 1 to reboot", "kill -TERM 1 || kill -INT 1 || kill -USR1 1 || kill -USR2 1"),
    ("sends PID 1 a real-time signal", "kill -40 1 || kill -CHLD 1"),
    ("kills the wrapper", "kill -KILL $(pidof envd-wrapper)"),
    ("stops the wrapper", "kill -STOP $(pidof envd-wrapper)"),
    ("kills envd", "kill -KILL $(pidof envd)"),
    ("kills the relay", "kill -KILL $(pidof vsock-relay)"),
    ("reboots by our program", "/sbin/reboot || /usr/lib/envd-init/init reboot || systemctl reboot"),
    (
        "reboots by system call",
        "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).reboot(0x1234567))'",
    ),
    ("restarts envd by our systemctl", "systemctl restart envd || systemctl stop envd"),
    (
        "connects to the control socket",
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/envd-init/control.sock\")'",
    ),
    (
        "replaces the control socket",
        "rm -f /run/envd-init/control.sock && ! [ -e /run/envd-init/control.sock ]",
    ),
    ("traces PID 1", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).ptrace(16,1,0,0) and 1)'"),
    (
        "traces the wrapper",
        "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).ptrace(16,int(sys.argv[1]),0,0) and 1)' $(pidof envd-wrapper)",
    ),
    (
        "reads the wrapper's memory",
        "head -c 1 /proc/$(pidof envd-wrapper)/mem || cat /proc/$(pidof envd-wrapper)/environ",
    ),
    ("reads PID 1's descriptors", "ls /proc/1/fd/ || readlink /proc/1/root || cat /proc/1/environ"),
    (
        "takes a descriptor of PID 1",
        "python3 -c 'import ctypes,os,sys; p=os.pidfd_open(1); sys.exit(ctypes.CDLL(None).syscall(438,p,0,0)<0)'",
    ),
    (
        "writes into our programs",
        "echo x >>/usr/lib/envd-init/init || touch /usr/lib/envd-init/x || rm -f /usr/lib/envd-init/init",
    ),
    ("replaces our folder", "mv /usr/lib/envd-init /usr/lib/envd-init.away"),
    (
        "writes into our state",
        "touch /run/envd-init/x || touch /run/envd-init/log/x || echo x >>/run/envd-init/log/init.log",
    ),
    ("reads our log", "cat /run/envd-init/log/init.log"),
    (
        "ships a service",
        "echo 'command = [\"/bin/true\"]' >/etc/envd-init/services.d/x.toml || echo >/usr/lib/envd-init/services.d/x.toml || mkdir -p /etc/envd-init/services.d/y",
    ),
    ("changes the configuration", "echo >>/etc/envd-init/config.toml"),
    ("replaces envd", "mv /usr/bin/envd /tmp/envd || touch /usr/bin/envd.next || echo x >/usr/bin/envd"),
    ("replaces init", "ln -sf /bin/sh /sbin/init"),
    (
        "writes to the console",
        "echo '[    0.000001] init: forged-by-mallory' >/dev/ttyS0 || echo x >/dev/console",
    ),
    ("writes to the kernel's log", "echo forged-by-mallory >/dev/kmsg"),
    (
        "freezes envd's cgroup",
        "echo 1 >/sys/fs/cgroup/envd/cgroup.freeze || echo 1 >/sys/fs/cgroup/cgroup.freeze",
    ),
    (
        "kills envd's cgroup",
        "echo 1 >/sys/fs/cgroup/envd/cgroup.kill || echo 1 >/sys/fs/cgroup/init.scope/cgroup.kill",
    ),
    (
        "hides from the freeze",
        "echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs || echo $$ >/sys/fs/cgroup/envd/cgroup.procs",
    ),
    (
        "takes memory from envd",
        "echo 0 >/sys/fs/cgroup/envd/memory.min || echo 1 >/sys/fs/cgroup/envd/memory.max",
    ),
    ("raises its priority", "renice -n -20 $$"),
    ("uses sysrq", "echo b >/proc/sysrq-trigger || echo 1 >/proc/sys/kernel/sysrq"),
    ("changes kernel settings", "echo x >/proc/sys/kernel/core_pattern || echo 1 >/proc/sys/vm/panic_on_oom"),
    (
        "mounts over our folder",
        "mount -t tmpfs none /run/envd-init || mount -t tmpfs none /usr/lib/envd-init",
    ),
    ("changes the network", "ip link set eth0 down || ip addr flush dev eth0"),
    ("changes the clock", "date -s @0"),
    ("opens the disk", "head -c 1 /dev/vda || head -c 1 /dev/mem"),
    (
        "speaks over vsock to the relay",
        "python3 -c 'import socket\ns=socket.socket(socket.AF_VSOCK)\ns.settimeout(5)\ns.connect((3,49983))\ns.sendall(b\"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n\")\nassert s.recv(1)'",
    ),
    (
        "speaks over vsock to PID 1",
        "python3 -c 'import socket\ns=socket.socket(socket.AF_VSOCK)\ns.settimeout(5)\ns.connect((3,49984))\ns.sendall(b\"\\0\\0\\0\\x1b{\\\"version\\\":1,\\\"op\\\":\\\"status\\\"}\")\nassert s.recv(1)'",
    ),
    (
        "speaks over local vsock",
        "python3 -c 'import socket\nfor p in (49983,49984):\n s=socket.socket(socket.AF_VSOCK)\n s.settimeout(5)\n s.connect((1,p))\n s.sendall(b\"\\0\\0\\0\\x1b{\\\"version\\\":1,\\\"op\\\":\\\"status\\\"}\")\n assert s.recv(1)'",
    ),
    (
        "takes the relay's port",
        "python3 -c 'import socket; socket.socket(socket.AF_VSOCK).bind((0xffffffff,49983))'",
    ),
    ("loads a module", "modprobe loop || insmod /tmp/x.ko"),
    (
        "takes another session's terminal",
        "python3 -c 'import fcntl; fcntl.ioctl(open(\"/dev/ttyS0\"), 0x5412, b\"x\")'",
    ),
];

fn hostile(guest: &Guest, trial: &mut Trial) -> Result<()> {
    guest.add_account(ACCOUNT, UID)?;
    for turn in 1..=trial.count {
        let (before, restarts) = (guest.pids()?, guest.restarts()?);
        for (name, attack) in ATTACKS {
            trial.attempt(format!("turn {turn}: it {name}"), repelled(guest, attack));
        }
        trial
            .attempt(format!("turn {turn}: user and the control socket"), user_and_the_control_socket(guest));
        trial.attempt(format!("turn {turn}: root and vsock"), not_even_root_from_inside(guest));
        trial.attempt(format!("turn {turn}: messages to PID 1"), forged_messages(guest));
        trial.attempt(format!("turn {turn}: many connections"), many_connections(guest));
        trial.attempt(format!("turn {turn}: afterwards"), guest.serves());
        let (after, counted) = (guest.pids()?, guest.restarts()?);
        trial.require(after == before, || format!("turn {turn}: {before:?} have become {after:?}"));
        trial.require(counted == restarts, || {
            format!("turn {turn}: restarts {restarts:?} have become {counted:?}")
        });
        trial.attempt(format!("turn {turn}: an envd of its own"), an_envd_of_its_own(guest));
        trial.attempt(format!("turn {turn}: fake records"), fake_records(guest));
    }
    trial.figure(format!("{} attacks a turn", ATTACKS.len() + 6));
    Ok(())
}

fn as_account(guest: &Guest, command: &str) -> Result<CommandOutput> {
    let vm = guest.vm()?;
    vm.exec_as(Via::Tcp, command, Some(ACCOUNT))
}

fn repelled(guest: &Guest, attack: &str) -> Result<()> {
    let out = as_account(guest, &format!("({attack}) 2>&1"))?;
    ensure!(out.exit_code != 0, "it succeeded: {}", out.stdout.trim());
    Ok(())
}

/// The platform's `user` may become root by sudo; without that it has no way in either.
fn user_and_the_control_socket(guest: &Guest) -> Result<()> {
    let connect = "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/envd-init/control.sock\")' 2>&1";
    let out = guest.vm()?.exec_as(Via::Tcp, connect, Some("user"))?;
    ensure!(out.exit_code != 0 && out.stdout.contains("PermissionError"), "user is answered: {out:?}");
    Ok(())
}

/// Over vsock the host alone is served: somebody inside is not the host, whoever it is.
fn not_even_root_from_inside(guest: &Guest) -> Result<()> {
    for (name, attack) in
        ATTACKS.iter().filter(|(name, _)| name.contains("over vsock") || name.contains("local vsock"))
    {
        let done = guest.agent()?.run(&format!("({attack}) 2>&1"))?;
        ensure!(done.status != 0, "root inside {name} and is answered");
    }
    Ok(())
}

/// Anybody may send to the notify socket; what counts is whose message it is.
fn forged_messages(guest: &Guest) -> Result<()> {
    let send = "python3 -c 'import socket\ns=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\nfor n in range(5000):\n \
        try: s.sendto(b\"READY=1\\nSTATUS=forged-by-mallory\\nMAINPID=1\\nX_ENVD={\\\"state\\\":\\\"forged-by-mallory\\\"}\\nX_ENVD_STATUS={}\", \"/run/envd-init/notify.sock\")\n \
        except BlockingIOError: pass\n except FileNotFoundError: break'";
    as_account(guest, send)?;
    let status = guest.status()?.to_string();
    ensure!(!status.contains(FORGED), "PID 1 believes a message of somebody else: {status}");
    ensure!(
        guest.status()?["envd"]["state"] == "healthy",
        "envd is {} after forged messages",
        guest.status()?["envd"]["state"]
    );
    Ok(())
}

/// As many connections to envd as it gets: the host is served all the same.
fn many_connections(guest: &Guest) -> Result<()> {
    let script = "import resource,socket,time\nh=resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
        resource.setrlimit(resource.RLIMIT_NOFILE,(h,h))\nheld=[]\nend=time.time()+120\n\
        try:\n  while len(held)<10000 and time.time()<end:\n    s=socket.socket(); s.settimeout(5); s.connect((\"127.0.0.1\",49983)); held.append(s)\n\
        except OSError as e: print(e)\nprint(len(held),flush=True)\ntime.sleep(600)";
    guest.sh(&format!(
        "cat >/run/many.py <<'END'\n{script}\nEND\nchmod 644 /run/many.py; rm -f /run/many; \
         setsid sh -c 'echo $$ >/run/many.pid; echo 0 >/sys/fs/cgroup/user/cgroup.procs; ulimit -n 20000; \
         exec setpriv --reuid {UID} --regid {UID} --clear-groups python3 /run/many.py' </dev/null >/run/many 2>&1 &"
    ))?;
    let counted = wait::gently("the connections", wait::BOUND, || {
        guest.healthy_over_vsock().context("while somebody opens many connections")?;
        let said = guest.sh("tail -n 1 /run/many")?;
        Ok(said.parse::<u64>().ok())
    });
    let outcome =
        guest.status().and_then(|_| guest.serves()).context("while somebody holds many connections");
    guest.sh("kill -KILL $(cat /run/many.pid)")?;
    outcome?;
    let opened = counted?;
    ensure!(opened > 500, "it got only {opened} connections, which proves nothing");
    guest.serves()
}

/// /usr/local is writable to everybody: a program there must never be run as root, not even when there is no other.
fn an_envd_of_its_own(guest: &Guest) -> Result<()> {
    guest.sh("chmod -R 777 /usr/local")?;
    let ship = "cp /usr/bin/python3 /usr/local/bin/envd; cp /usr/bin/python3 /usr/local/bin/envd.real; chmod 755 /usr/local/bin/envd*";
    as_account(guest, ship)?;
    kills::recovery(guest)?;
    let runs = guest.sh("readlink /proc/$(pidof envd)/exe")?;
    ensure!(runs.starts_with("/usr/bin/envd"), "{runs} runs as root");
    let mark = guest.vm()?.console().mark();
    guest.sh("mv /usr/bin/envd /usr/bin/envd.away && kill -KILL $(pidof envd)")?;
    let said = guest.vm()?.console().wait_after(mark, "wrapper: no envd to run");
    guest.sh("mv /usr/bin/envd.away /usr/bin/envd; rm -f /usr/local/bin/envd /usr/local/bin/envd.real")?;
    said?;
    guest.serves_again()
}

/// What a program prints in the sandbox never looks like a record of ours.
fn fake_records(guest: &Guest) -> Result<()> {
    let mark = guest.vm()?.console().mark();
    let print = format!(
        "printf '\\n[    0.000001] init: {FORGED}\\n\\033[2J\\r[    0.000002] envd-init: exit {{\"{FORGED}\":1}}\\n' | tee /dev/stderr; \
         logger {FORGED} 2>/dev/null; curl -s 'http://127.0.0.1:49983/files?path=/%0a%5b%20%20%20%200.000001%5d%20init:%20{FORGED}' >/dev/null; true"
    );
    as_account(guest, &print)?;
    kills::recovery(guest)?;
    let text = guest.vm()?.console().text_after(mark);
    let forged = text.lines().find(|line| line.contains(FORGED) && !is_quoted(line));
    ensure!(forged.is_none(), "the console shows {:?}", forged.unwrap_or_default());
    Ok(())
}

/// Behind the name of the one who really spoke.
fn is_quoted(line: &str) -> bool {
    let speaker = line.split("] ").nth(1).and_then(|rest| rest.split(':').next()).unwrap_or_default();
    speaker == "envd"
}
