//! The real program as PID 1 of namespaces of its own (process, mount, network, cgroup, host name), in a root folder that shares
//! the machine's programs and nothing else. Needs root; says so and passes nothing off as tested without it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use guest::control::{
    Op, Reply, Request, ServiceStatus, Status,
    frame::{self, Decoder, MAX_REPLY},
};

const INIT: &str = env!("CARGO_BIN_EXE_init");
/// Longer than anything here takes on a busy machine.
const BOUND: Duration = Duration::from_secs(120);
/// What a namespace shares with the machine must not be changed from inside it.
const CONFIG: &str = "[boot]\nsysctl = false\ncore_pattern = ''\nptp_clock = false\n\
                      [control]\nvsock = false\n[shutdown]\ntimeout_ms = 15000\n[network]\n";
const UNMANAGED: &str = "manage = false\ndns = ['192.0.2.53']\n";
/// Without these two the machine's own envd and relay would be looked for.
const SLEEPER: &str = "command = ['/bin/sleep', '100000']\nrestart = 'always'\nlog = 'console'\n";

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < BOUND, "waited in vain: {what}");
        sleep(Duration::from_millis(20));
    }
}

fn receive(stream: &mut UnixStream) -> std::io::Result<Reply> {
    let mut decoder = Decoder::new(MAX_REPLY);
    let mut chunk = vec![0; 65536];
    loop {
        if let Some(reply) = decoder.message().map_err(std::io::Error::other)? {
            return Ok(reply);
        }
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => decoder.push(&chunk[..count]),
        }
    }
}

fn restart(service: &str) -> Op {
    Op::Restart { service: service.to_owned(), no_block: false }
}

/// A root folder, its console, and the process that is PID 1 in it.
struct World {
    root: tempfile::TempDir,
    console: OwnedFd,
    outer: Child,
    pid: i32,
}

impl World {
    fn boot(services: &[(&str, &str)]) -> Self {
        Self::boot_with(UNMANAGED, services)
    }

    /// With these keys in the configuration's table `[network]`.
    fn boot_with(network: &str, services: &[(&str, &str)]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test needs root for its namespaces: run it through `make test`"
        );
        let root = tempfile::tempdir().unwrap();
        let stage = root.path().join("stage");
        for folder in ["top", "outside"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        for folder in [
            "etc/envd-init/services.d",
            "proc",
            "sys/fs/cgroup",
            "dev",
            "run",
            "tmp",
            "usr",
            "bin",
            "sbin",
            "lib",
            "lib64",
            "outside",
            "init",
        ] {
            fs::create_dir_all(stage.join(folder)).unwrap();
        }
        fs::copy(INIT, stage.join("init/init")).unwrap();
        fs::write(stage.join("etc/envd-init/config.toml"), format!("{CONFIG}{network}")).unwrap();
        fs::write(stage.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(stage.join("etc/hostname"), "in-a-test\n").unwrap();
        let own = stage.join("etc/envd-init/services.d");
        for off in ["tmp", "tmpfiles", "seed-certs", "chrony-source"] {
            fs::write(own.join(format!("{off}.toml")), "").unwrap();
        }
        for (name, text) in [("envd", SLEEPER), ("relay", SLEEPER)].iter().chain(services) {
            fs::write(own.join(format!("{name}.toml")), text).unwrap();
        }
        let pty = nix::pty::openpty(None, None).unwrap();
        let slave = nix::unistd::ttyname(&pty.slave).unwrap();
        let outer = Command::new("unshare")
            .args([
                "--fork",
                "--pid",
                "--mount",
                "--net",
                "--uts",
                "--ipc",
                "--kill-child",
                "--propagation",
                "private",
                "--",
            ])
            .args(["/bin/sh", "-ec", OUTER, "sh"])
            .arg(root.path())
            .arg(&slave)
            .arg(cgroup_of(root.path()))
            .env("INNER", INNER)
            .env("SECRET_WORD", "of-the-command-line")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut world = Self { root, console: pty.master, outer, pid: 0 };
        world.pid = until("the namespace's first process", || world.find_pid());
        // It answers before it knows of all services.
        let begun = |status: &Status| status.stages.iter().any(|stage| stage.name == "services");
        until("the services", || world.status().ok().filter(begun));
        world
    }

    /// The child of `unshare` once it is init.
    fn find_pid(&mut self) -> Option<i32> {
        assert_eq!(self.outer.try_wait().unwrap(), None, "the namespace did not come up");
        let id = self.outer.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        let pid = children.split_whitespace().next()?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "init").then_some(pid)
    }

    fn socket(&self) -> PathBuf {
        format!("/proc/{}/root/run/envd-init/control.sock", self.pid).into()
    }

    fn send(&self, op: Op) -> std::io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.write_all(&frame::encode(&Request::new(op)).unwrap())?;
        Ok(stream)
    }

    fn ask(&self, op: Op) -> std::io::Result<Reply> {
        receive(&mut self.send(op)?)
    }

    fn status(&self) -> std::io::Result<Status> {
        match self.ask(Op::Status)? {
            Reply::Status(status) => Ok(*status),
            other => panic!("{other:?}"),
        }
    }

    fn service(&self, name: &str) -> ServiceStatus {
        self.status().unwrap().services.into_iter().find(|service| service.name == name).unwrap()
    }

    fn wait_state(&self, name: &str, state: &str) -> ServiceStatus {
        until(&format!("{name} is {state}"), || {
            Some(self.service(name)).filter(|service| service.state == state)
        })
    }

    /// Runs a shell command inside.
    fn sh(&self, script: &str) -> Output {
        Command::new("nsenter")
            .args(["-t", &self.pid.to_string(), "-p", "-m", "-n", "-u", "-r", "--", "/bin/sh", "-c", script])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap()
    }

    fn text(&self, script: &str) -> String {
        String::from_utf8_lossy(&self.sh(script).stdout).trim().to_owned()
    }

    /// The tool `name`, inside: its output and its exit code.
    fn tool(&self, line: &str) -> (String, i32) {
        let output = self.sh(&format!("/init/init {line} 2>&1"));
        (String::from_utf8_lossy(&output.stdout).trim().to_owned(), output.status.code().unwrap())
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(format!("/proc/{}/root{path}", self.pid), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(format!("/proc/{}/root{path}", self.pid)).unwrap_or_default()
    }

    /// What init has logged so far.
    fn log(&self) -> String {
        self.read("/run/envd-init/log/init.log.1") + &self.read("/run/envd-init/log/init.log")
    }

    fn wait_log(&self, text: &str) {
        until(text, || self.log().contains(text).then_some(()));
    }

    /// What a machine that is down has left on its console.
    fn console(&self) -> String {
        let mut bytes = vec![0; 1 << 16];
        let count = nix::unistd::read(&self.console, &mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// Waits until the machine is down.
    fn down(mut self) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        let status = until("the machine is down", || self.outer.try_wait().unwrap());
        (status, begin.elapsed())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && self.pid != 0 {
            eprintln!("--- log of init\n{}", self.log());
        }
        if self.pid != 0 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::SIGKILL);
        }
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        remove_cgroup(&cgroup_of(self.root.path()));
    }
}

/// Name of the world's cgroup.
fn cgroup_of(root: &Path) -> String {
    format!("pid1-{}", root.file_name().unwrap().to_string_lossy())
}

/// Its last process may be on its way out still.
fn remove_cgroup(name: &str) {
    let script = format!(
        "mount -t cgroup2 none /mnt && for n in 1 2 3 4 5 6 7 8 9; do find /mnt/{name} -depth -type d -exec rmdir {{}} \\; \
         2>/dev/null; [ -d /mnt/{name} ] || break; sleep 0.1; done"
    );
    let _ = Command::new("unshare").args(["--mount", "sh", "-c", &script]).status();
}

/// $1 the root folder, $2 the console, $3 the cgroup's name. Two stages, since the root of a cgroup namespace is the group that one
/// is in when it is made.
const OUTER: &str = r#"
mkdir "$1/cgroup2"
mount -t cgroup2 none "$1/cgroup2"
mkdir "$1/cgroup2/$3"
echo 0 >"$1/cgroup2/$3/cgroup.procs"
umount "$1/cgroup2"
exec unshare --cgroup /bin/sh -ec "$INNER" sh "$@"
"#;

/// The root is a tmpfs, since init remounts it read-only at its end; /dev, /sys and cgroup are mounted here so that init leaves
/// the machine's own alone. Without a console the kernel gives PID 1 no descriptor at all, and so it is here.
const INNER: &str = r#"
mount -t tmpfs root "$1/top"
cp -a "$1/stage/." "$1/top"
root=$1/top
mount --bind "$1/outside" "$root/outside"
for folder in usr bin sbin lib lib64; do [ -d /$folder ] && mount --rbind /$folder "$root/$folder"; done
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
mount -t tmpfs dev "$root/dev"
for node in null zero urandom random tty; do touch "$root/dev/$node"; mount --bind /dev/$node "$root/dev/$node"; done
names=$(sed 's/ .*//' /proc/consoles)
for name in ttyS0 $names; do touch "$root/dev/$name"; mount --bind "$2" "$root/dev/$name"; done
exec chroot "$root" /init/init unknown.word=1 "$(printf 'no\377utf8')" other <&- >&- 2>&-
"#;

#[test]
fn services_run_in_order_in_a_world_of_their_own() {
    let first =
        "command = ['/bin/sh', '-c', 'env >/tmp/env; ls -l /proc/self/fd >/tmp/fds']\nkind = 'oneshot'\n";
    let second = "command = ['/bin/sh', '-c', 'test -s /tmp/env && exec sleep 1000']\nafter = ['first']\nrestart = 'never'\n";
    let world = World::boot(&[("first", first), ("second", second)]);
    world.wait_state("second", "running");
    assert_eq!(world.service("first").last_exit.unwrap().status, Some(0));
    let environment = world.read("/tmp/env");
    assert!(!environment.contains("SECRET_WORD") && !environment.contains("unknown"), "{environment}");
    assert_eq!(world.text("hostname"), "in-a-test");
    assert_eq!(world.text("readlink /proc/1/fd/[012] | uniq"), "/dev/null");
    assert!(!world.sh("[ -e /etc/resolv.conf ]").status.success(), "`manage = false` writes no name server");
}

/// What is wrong with one setting of the network costs no other, and is said once, however often it is tried.
#[test]
fn a_link_that_comes_late_gets_its_address_whatever_else_it_refuses() {
    let world = World::boot_with("mtu = 70000\n", &[]);
    let network = world.status().unwrap().network;
    assert_eq!((network.configured_by.as_str(), network.found), ("none", Vec::new()));
    let name = &network.interface;
    let made = world.sh(&format!("ip link add {name} type veth peer name other && ip link set other up"));
    assert!(made.status.success(), "{made:?}");
    let wanted = network.wanted.unwrap();
    let found = until("the address", || {
        let network = world.status().unwrap().network;
        (network.found == [wanted.clone()] && network.link_up).then_some(network)
    });
    assert_eq!(found.configured_by, "init");
    assert!(world.text("ip route").contains("default via "), "{found:?}");
    let said = format!("cannot set the MTU of {name} to 70000");
    world.wait_log(&said);
    world.sh("ip link set other down");
    world.wait_log("but its link is down");
    assert_eq!(world.log().matches(&said).count(), 1, "{}", world.log());
    assert!(world.text("ip -4 addr show lo").contains("127.0.0.1/8"));
}

/// A pair of interfaces, ours and `other`, whose link is there.
fn make_link(world: &World) -> String {
    let name = world.status().unwrap().network.interface;
    let made = world.sh(&format!("ip link add {name} type veth peer name other && ip link set other up"));
    assert!(made.status.success(), "{made:?}");
    until("the address and the route", || {
        let network = world.status().unwrap().network;
        (network.found.len() == 1 && network.link_up && network.gateway.is_some()).then_some(())
    });
    name
}

/// PID 1 sees no moment without an interface: it is held up while one is replaced by another.
#[test]
fn an_interface_that_takes_the_place_of_another_between_two_looks_is_set_up_too() {
    let world = World::boot_with("", &[]);
    let name = make_link(&world);
    let init = nix::unistd::Pid::from_raw(world.pid);
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let replaced = world.sh(&format!(
        "ip link del {name}; ip link add {name} type veth peer name other && ip link set other up"
    ));
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(replaced.status.success(), "{replaced:?}");
    until("the address of the new one", || {
        world.text(&format!("ip addr show {name}")).contains("inet ").then_some(())
    });
    until("its route", || world.text("ip route").contains("default via ").then_some(()));
}

/// The kernel drops the routes of a link that is taken down, tells nobody, and does not bring them back.
#[test]
fn the_default_route_comes_back_with_the_link_and_one_that_was_removed_on_purpose_does_not() {
    let world = World::boot_with("", &[]);
    let name = make_link(&world);
    let has_route = || world.text("ip route").contains("default via ");
    let gateway = || world.status().unwrap().network.gateway;
    for script in ["ip link set {} down", "ip link set {} up", "ip link set {} down; ip link set {} up"] {
        world.sh(&script.replace("{}", &name));
        if script.ends_with("up") {
            until("the route is back", || (has_route() && gateway().is_some()).then_some(()));
        } else {
            until("it is told", || gateway().is_none().then_some(()));
        }
    }
    world.sh("ip route del default");
    until("it is told", || gateway().is_none().then_some(()));
    assert!(
        world.log().lines().last().is_some_and(|line| line.contains(" warn ") && line.contains("no gateway"))
    );
    world.sh(&format!("ip link set {name} mtu 1400"));
    until("a later change is told", || (world.status().unwrap().network.mtu == Some(1400)).then_some(()));
    assert!(!has_route(), "it was removed on purpose");
}

/// The wrapper is PID 1's child, and envd is not: its deaths are told, and belong into the tally all the same.
#[test]
fn deaths_of_envd_that_its_wrapper_tells_are_in_the_tally_once_each() {
    if !Path::new("/usr/bin/python3").exists() {
        return println!("(needs python3)");
    }
    let envd = "command = ['/usr/bin/python3', '-c', '''\nimport json, socket, time\n\
                s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                for at in [1, 1, 2, 2, 3]:\n  \
                  death = dict(service=\"envd\", pid=at, signal=\"SIGKILL\", core=False, oom=False, uptime_ms=1, restarts=at, last_lines=[], at_ns=at)\n  \
                  status = dict(program=\"/e\", state=\"backoff\", restarts=at, last_exit=death)\n  \
                  s.sendto((\"X_ENVD=\" + json.dumps(status)).encode(), \"/run/envd-init/notify.sock\")\n\
                time.sleep(1000)''']\n";
    let world = World::boot(&[("envd", envd)]);
    let restarts = || -> Vec<u64> {
        let deaths = world.status().unwrap().deaths;
        deaths.iter().filter(|death| death.service == "envd").map(|death| death.restarts).collect()
    };
    until("three deaths", || (restarts() == [1, 2, 3]).then_some(()));
}

/// envd has the processors for itself while it starts; an envd that never gets ready costs the others nothing but a moment.
#[test]
fn services_start_once_envd_is_ready_and_without_it_all_the_same() {
    let envd = |script: &str| {
        format!("command = ['/bin/sh', '-c', '{script}']\nreadiness = {{ file = '/run/envd-is-ready' }}\n")
    };
    let web = "command = ['/bin/sh', '-c', 'test -e /run/envd-is-ready; echo $? >/outside/log']\nkind = 'oneshot'\n";
    for (script, found) in
        [("sleep 0.1; touch /run/envd-is-ready; exec sleep 1000", "0\n"), ("exec sleep 1000", "1\n")]
    {
        let world = World::boot(&[("envd", &envd(script)), ("web", web)]);
        let told = || fs::read_to_string(world.root.path().join("outside/log")).unwrap_or_default();
        assert_eq!(until("web has run", || Some(told()).filter(|told| !told.is_empty())), found);
    }
}

/// An order that came while the services still waited for envd met an unknown name, and the service was started after all.
#[test]
fn a_service_that_is_stopped_while_envd_starts_stays_down() {
    let envd = "command = ['/bin/sleep', '1000']\nreadiness = { file = '/run/never' }\n";
    let web = "command = ['/bin/sleep', '1000']\n";
    let world = World::boot(&[("envd", envd), ("web", web)]);
    let stop = || world.ask(Op::Stop { service: "web".into(), no_block: false });
    until("the order is taken", || (stop().unwrap() == Reply::Done).then_some(()));
    assert_eq!(world.wait_state("web", "stopped").pid, None);
}

#[test]
fn ten_thousand_orphans_are_reaped_and_a_service_restarts_meanwhile() {
    let world = World::boot(&[]);
    let storm = "for i in 1 2 3 4 5 6 7 8 9 10; do ( n=0; while [ $n -lt 1000 ]; do (true & ) ; n=$((n+1)); done ) & done; wait";
    let mut storm = Command::new("nsenter")
        .args(["-t", &world.pid.to_string(), "-p", "-m", "-r", "--", "/bin/sh", "-c", storm])
        .spawn()
        .unwrap();
    let before = world.service("envd").pid;
    assert_eq!(world.ask(restart("envd")).unwrap(), Reply::Done);
    assert_ne!(world.service("envd").pid, before);
    assert!(storm.wait().unwrap().success());
    until("no zombie is left", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", world.pid)).unwrap();
        (children.split_whitespace().count() <= 2).then_some(())
    });
}

#[test]
fn signals_that_mean_nothing_do_nothing_and_a_fault_starts_anew() {
    let world = World::boot(&[]);
    world.sh("for s in HUP QUIT PIPE ALRM TSTP TTIN WINCH KILL STOP 40 64; do kill -$s 1; done");
    let before = world.wait_state("envd", "running").pid;
    world.sh("kill -SEGV 1");
    world.wait_log("executed anew after SIGSEGV (fault 1 of late)");
    let after = until("envd runs again", || running(&world, "envd"));
    assert_ne!(before, Some(after));
    assert_eq!(world.text("cat /proc/1/comm"), "init");
    let sleepers = "grep -lx sleep /proc/[0-9]*/comm | wc -l";
    assert_eq!(world.text(sleepers), "2", "what the run before left behind is gone");
    assert_eq!(
        world.status().unwrap().deaths,
        [],
        "and nobody was killed at birth, in a cgroup that was killed before"
    );
}

/// The pid of a service that runs, while PID 1 may be on its way from one run to the next.
fn running(world: &World, name: &str) -> Option<i32> {
    let service = world.status().ok()?.services.into_iter().find(|service| service.name == name)?;
    service.pid.filter(|_| service.state == "running")
}

#[test]
fn after_a_third_fault_only_what_reaches_the_machine_is_started() {
    let world = World::boot(&[("web", "command = ['/bin/sleep', '1000']\n")]);
    for fault in 1..=3 {
        until("envd runs", || running(&world, "envd"));
        world.sh("kill -ABRT 1");
        world.wait_log(&format!("executed anew after SIGABRT (fault {fault} of late)"));
    }
    world.wait_log("init has failed 3 times of late");
    let services = until("envd and the relay run", || {
        running(&world, "relay").and(running(&world, "envd"))?;
        Some(world.status().ok()?.services)
    });
    assert!(services.iter().all(|service| service.name != "web"), "{services:?}");
    assert_eq!(world.tool("systemctl restart envd").1, 0);
}

#[test]
fn a_service_that_dies_is_told_restarted_and_counted() {
    let script = "echo going down >&2; sleep 0.2; exit 7";
    let text = format!(
        "command = ['/bin/sh', '-c', '{script}']\nrestart = 'always'\nbackoff = {{ min_ms = 50, max_ms = 100 }}\n"
    );
    let world = World::boot(&[("flaky", &text)]);
    let deaths = until("three deaths", || {
        let deaths = world.status().unwrap().deaths;
        (deaths.iter().filter(|death| death.service == "flaky").count() >= 3).then_some(deaths)
    });
    assert_eq!(deaths[0].status, Some(7));
    let exit = world.service("flaky").last_exit.unwrap();
    assert_eq!((exit.status, exit.last_lines), (Some(7), vec!["going down".to_owned()]));
    world.wait_log(r#"exit {"service":"flaky""#);
    world.wait_log("flaky ended with status 7");
}

#[test]
fn a_missing_program_is_said_and_everybody_else_runs() {
    let world = World::boot(&[("ghost", "command = ['/no/such/program']\n"), ("junk", "\u{1}[[[")]);
    world.wait_log("ghost: there is no program /no/such/program");
    world.wait_log("/no/such/program is missing");
    world.wait_log("junk.toml");
    world.wait_state("envd", "running");
    let (text, code) = world.tool("systemctl start ghost");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("/no/such/program"), "{text}");
}

/// The first start that fails after a program has run is told, and the ones after it are not news.
#[test]
fn a_program_that_goes_after_it_has_run_is_told_once() {
    let world = World::boot(&[]);
    world.write("/init/program", "#!/bin/sh\nrm /init/program\nsleep 0.2\n");
    world.sh("chmod 755 /init/program");
    let text = "command = ['/init/program']\nrestart = 'always'\nbackoff = { min_ms = 20, max_ms = 50 }\n";
    world.write("/etc/envd-init/services.d/gone.toml", text);
    assert_eq!(world.tool("systemctl start gone"), (String::new(), 0));
    let said = "gone: cannot execute: /init/program is missing";
    world.wait_log(said);
    let before = world.service("gone").restarts;
    until("more starts", || (world.service("gone").restarts > before + 3).then_some(()));
    let warnings = world.log().lines().filter(|line| line.contains(" warn ") && line.contains(said)).count();
    assert_eq!(warnings, 1, "{}", world.log());
}

/// A service may make cgroups below its own, as those that run containers do.
#[test]
fn what_a_service_left_in_cgroups_below_its_own_does_not_outlive_it() {
    let text = r#"restart = 'always'
command = ['/bin/sh', '-c', '''
[ -e /tmp/ran ] && exec sleep 1000
touch /tmp/ran
mkdir /sys/fs/cgroup/system.slice/box/sub
setsid sh -c 'echo $$ >/sys/fs/cgroup/system.slice/box/sub/cgroup.procs && exec sleep 4321' &
exec sleep 1000''']
"#;
    let world = World::boot(&[("box", text)]);
    let left = || world.text("cat /proc/[0-9]*/cmdline").contains("sleep\x004321\0");
    until("the process below", || left().then_some(()));
    let first = world.service("box").pid.unwrap();
    world.sh(&format!("kill -KILL {first}"));
    until("it runs again", || running(&world, "box").filter(|pid| *pid != first));
    assert!(!left(), "what the run before left behind is gone");
    assert!(world.text("ls /sys/fs/cgroup/system.slice/box").contains("cgroup.procs"));
    assert!(!world.sh("[ -e /sys/fs/cgroup/system.slice/box/sub ]").status.success());
}

#[test]
fn readiness_holds_back_whoever_waits() {
    let slow = "command = ['/bin/sh', '-c', 'sleep 0.5; touch /tmp/ready; exec sleep 1000']\nreadiness = { file = '/tmp/ready' }\n";
    let after = "command = ['/bin/sh', '-c', 'ls /tmp >/tmp/seen']\nkind = 'oneshot'\nafter = ['slow']\n";
    let notify = "command = ['/usr/bin/python3', '-c', '''\nimport os, socket, time\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                  s.sendto(b\"READY=1\", os.environ[\"NOTIFY_SOCKET\"])\ntime.sleep(1000)''']\nreadiness = 'notify'\n";
    let world = World::boot(&[("slow", slow), ("next", after), ("told", notify)]);
    world.wait_state("next", "exited");
    assert!(world.read("/tmp/seen").contains("ready"));
    if Path::new("/usr/bin/python3").exists() {
        world.wait_state("told", "healthy");
    }
}

#[test]
fn shutdown_stops_in_order_kills_the_stubborn_and_keeps_its_deadline() {
    let orderly = |name: &str| {
        format!(
            "command = ['/bin/sh', '-c', 'trap \"echo {name} >>/outside/log; exit 0\" TERM; while :; do sleep 0.05; done']\n"
        )
    };
    let stubborn =
        "command = ['/bin/sh', '-c', 'trap \"\" TERM; while :; do sleep 1; done']\nstop_timeout_ms = 60000\n";
    let later = format!("{}after = ['base']\n", orderly("later"));
    let world = World::boot(&[("base", &orderly("base")), ("later", &later), ("stubborn", stubborn)]);
    for name in ["base", "later", "stubborn"] {
        world.wait_state(name, "running");
    }
    assert_eq!(world.tool("reboot"), (String::new(), 0));
    let (text, code) = world.tool("systemctl start base");
    assert!(code != 0 && text.contains("going down"), "{text}");
    let (status, took) = {
        let keep = world.root.path().join("outside/log");
        until("both have ended in order", || {
            (fs::read_to_string(&keep).unwrap_or_default() == "later\nbase\n").then_some(())
        });
        world.down()
    };
    assert_eq!(status.signal(), Some(nix::libc::SIGHUP), "a reboot, as a namespace tells it: {status:?}");
    assert!(took < BOUND);
}

/// One whose dependent does not end in its time dies of the TERM to everybody: it came up once more, and was killed.
#[test]
fn nothing_is_started_again_while_the_machine_goes_down() {
    let base = "command = ['/bin/sh', '-c', 'echo up >>/outside/log; exec sleep 1000']\nrestart = 'always'\n";
    let stubborn = "command = ['/bin/sh', '-c', 'trap \"\" TERM; while :; do sleep 1; done']\nstop_timeout_ms = 60000\nafter = ['base']\n";
    let mut world = World::boot(&[("base", base), ("stubborn", stubborn)]);
    world.wait_state("stubborn", "running");
    assert_eq!(world.tool("reboot").1, 0);
    until("the machine is down", || world.outer.try_wait().unwrap());
    assert_eq!(fs::read_to_string(world.root.path().join("outside/log")).unwrap(), "up\n");
}

/// A start that fails at once was tried again in the same breath, for ever; and a cycle kept the relay from starting.
#[test]
fn neither_a_pause_of_nothing_nor_a_cycle_with_the_relay_costs_the_machine() {
    let lost =
        "command = ['/bin/sleep', '1000']\nuser = 'nobody-at-all'\nbackoff = { min_ms = 0, max_ms = 0 }\n";
    let relay = format!("{SLEEPER}after = ['web']\n");
    let web = format!("{SLEEPER}after = ['relay']\n");
    let world = World::boot(&[("lost", lost), ("relay", &relay), ("web", &web)]);
    for name in ["envd", "relay", "web"] {
        world.wait_state(name, "running");
    }
    world.wait_log("lost: there is no user nobody-at-all");
}

#[test]
fn a_second_request_is_final_at_once() {
    let stubborn =
        "command = ['/bin/sh', '-c', 'trap \"\" TERM; while :; do sleep 1; done']\nstop_timeout_ms = 60000\n";
    let world = World::boot(&[("stubborn", stubborn)]);
    world.wait_state("stubborn", "running");
    world.tool("poweroff");
    world.wait_log("going down for power-off");
    let _ = world.ask(Op::Shutdown { kind: guest::control::ShutdownKind::Reboot });
    let (status, _) = world.down();
    assert!(status.signal().is_some(), "{status:?}");
}

#[test]
fn signals_of_the_kernel_busybox_and_systemd_bring_it_down() {
    // The last three are systemd's: SIGRTMIN+3, +4 and +5.
    for (signal, kind) in [
        ("INT", "reboot"),
        ("TERM", "reboot"),
        ("USR1", "halt"),
        ("USR2", "power-off"),
        ("37", "halt"),
        ("38", "power-off"),
        ("39", "reboot"),
    ] {
        let mut world = World::boot(&[]);
        world.sh(&format!("kill -{signal} 1"));
        let status = until("the machine is down", || world.outer.try_wait().unwrap());
        assert!(status.signal().is_some(), "{signal}: {status:?}");
        let told = world.console();
        assert!(told.contains(&format!("going down for {kind}: ")), "{signal}: {told}");
    }
}

/// A group of an old hierarchy of the machine's own, for what the new one does not do. Dropped, it lets go of whom it holds.
struct OldGroup(PathBuf);

impl OldGroup {
    fn with(controller: &str, pid: i32) -> Option<Self> {
        let group = Self(format!("/sys/fs/cgroup/{controller}/pid1-{pid}").into());
        fs::create_dir(&group.0).ok()?;
        group.set("cgroup.procs", &pid.to_string());
        Some(group)
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap();
    }
}

impl Drop for OldGroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        let begin = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begin.elapsed() < BOUND {
            sleep(Duration::from_millis(20));
        }
    }
}

/// Whoever waits in the kernel for a disk that does not answer dies of no signal. The old freezer does that to a process.
#[test]
fn a_service_that_not_even_sigkill_ends_does_not_keep_the_next_from_starting() {
    let text = "command = ['/bin/sleep', '1000']\nrestart = 'always'\nstop_timeout_ms = 100\n";
    let world = World::boot(&[("stuck", text)]);
    let first = world.wait_state("stuck", "running").pid.unwrap();
    let outside = fs::read_to_string(format!("/proc/{0}/task/{0}/children", world.pid)).unwrap();
    let is_first = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with(&format!("\t{first}")))
    };
    let outside = outside.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_first).unwrap();
    let Some(freezer) = OldGroup::with("freezer", outside) else {
        return println!("(needs the old freezer)");
    };
    freezer.set("freezer.state", "FROZEN");
    assert_eq!(world.tool("systemctl restart stuck"), (String::new(), 0));
    world.wait_log("does not end, even by SIGKILL");
    let second = running(&world, "stuck").unwrap();
    assert_ne!(first, second);
    drop(freezer);
    world.wait_log("which was left to itself, has ended");
    assert_eq!(world.service("stuck").pid, Some(second));
}

/// A stop was told as done while something of the service was still there.
#[test]
fn a_stop_tells_of_whom_not_even_sigkill_ends() {
    let number = std::process::id() + 100_000;
    let text = format!("command = ['/bin/sh', '-c', 'sleep {number} & exec sleep 1000']\n");
    let world = World::boot(&[("parent", &text)]);
    world.wait_state("parent", "running");
    let is_child = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line == format!("sleep\0{number}\0").as_bytes())
    };
    let child = until("the child", || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_child)
    });
    let Some(freezer) = OldGroup::with("freezer", child) else {
        return println!("(needs the old freezer)");
    };
    freezer.set("freezer.state", "FROZEN");
    let (text, code) = world.tool("systemctl stop parent");
    assert_eq!(code, 1);
    assert!(text.contains("processes of it do not end, even by SIGKILL"), "{text}");
    drop(freezer);
    until("it has ended", || (!is_child(&child)).then_some(()));
    assert_eq!(world.tool("systemctl stop parent"), (String::new(), 0));
    assert_eq!(world.tool("systemctl start parent"), (String::new(), 0));
    assert_eq!(world.tool("systemctl stop parent"), (String::new(), 0));
}

/// The machine went down with what was not written yet.
#[test]
fn without_a_child_that_unmounts_the_disks_are_synced_all_the_same() {
    let mut world = World::boot(&[]);
    let Some(group) = OldGroup::with("pids", world.pid) else {
        return println!("(needs the old hierarchy of pids)");
    };
    group.set("pids.max", "1");
    world.ask(Op::Shutdown { kind: guest::control::ShutdownKind::Reboot }).unwrap();
    until("the machine is down", || world.outer.try_wait().unwrap());
    let told = world.console();
    assert!(told.contains("file systems are synced and not unmounted: "), "{told}");
}

#[test]
fn a_console_that_nobody_reads_costs_nothing_but_its_own_output() {
    let flood = "command = ['/bin/sh', '-c', 'while :; do echo a line that floods the console without end; done']\nlog = 'console'\n";
    let world = World::boot(&[("flood", flood)]);
    world.wait_state("flood", "running");
    for _ in 0..20 {
        assert_eq!(world.service("flood").state, "running");
    }
    assert_eq!(world.ask(restart("envd")).unwrap(), Reply::Done);
    drop(world.console.try_clone().unwrap());
}

#[test]
fn the_tools_answer_as_systemctl_does() {
    let world = World::boot(&[("web", "command = ['/bin/sleep', '1000']\n")]);
    world.wait_state("web", "running");
    let table = [
        ("systemctl is-active web", "active", 0),
        ("systemctl is-active web.service nope", "active\ninactive", 0),
        ("systemctl is-active nope", "inactive", 3),
        ("systemctl -q is-active web", "", 0),
        ("systemctl stop web", "", 0),
        ("systemctl is-active web", "inactive", 3),
        ("systemctl try-restart web", "", 0),
        ("systemctl is-failed web", "inactive", 1),
        ("systemctl start web", "", 0),
        ("systemctl restart web", "", 0),
        ("systemctl show -p ActiveState --value web", "active", 0),
        ("systemctl is-enabled web", "enabled", 0),
        ("systemctl restart nope", "Failed to restart nope.service: Unit nope.service not found.", 5),
        ("systemctl stop nope", "Failed to stop nope.service: Unit nope.service not loaded.", 5),
        ("systemctl status nope", "Unit nope.service could not be found.", 4),
        ("runlevel", "N 3", 0),
        (
            "shutdown 12:00",
            "shutdown: 12:00: only `now` is supported by envd-init, where nothing keeps a time",
            2,
        ),
        (
            "shutdown +1 bye",
            "shutdown: +1: only `now` is supported by envd-init, where nothing keeps a time",
            2,
        ),
        (
            "reboot -w",
            "reboot: -w only writes a record of users, which envd-init does not keep; nothing is done",
            1,
        ),
        (
            "shutdown -c",
            "shutdown: there is nothing to cancel: nothing is ever scheduled, and what has begun is not stopped",
            1,
        ),
    ];
    for (line, text, code) in table {
        assert_eq!(world.tool(line), (text.to_owned(), code), "{line}");
    }
    let off = "command = ['/bin/sleep', '2000']\nenabled = false\n";
    world.write("/etc/envd-init/services.d/late.toml", off);
    let once = "command = ['/bin/false']\nkind = 'oneshot'\nenabled = false\n";
    world.write("/etc/envd-init/services.d/once.toml", once);
    for (line, text, code) in [
        ("systemctl daemon-reload", "", 0),
        ("systemctl start late", "", 0),
        ("systemctl is-active late", "active", 0),
        ("systemctl is-enabled late", "disabled", 1),
        ("systemctl is-enabled late web", "disabled\nenabled", 0),
        ("systemctl disable late", "", 0),
        ("systemctl enable web", "", 0),
        ("systemctl show -p LoadState,ActiveState nope", "LoadState=not-found\nActiveState=inactive", 0),
    ] {
        assert_eq!(world.tool(line), (text.to_owned(), code), "{line}");
    }
    // As systemd 252 has it; the comparison with it needs a VM.
    for (line, text, code) in [
        ("systemctl cat late", format!("# /etc/envd-init/services.d/late.toml\n{off}").trim(), 0),
        ("systemctl cat nope", "No files found for nope.service.", 1),
        ("systemctl disable --now late", "", 0),
        ("systemctl is-active late", "inactive", 3),
        ("systemctl stop web", "", 0),
        ("systemctl enable --now web", "", 0),
        ("systemctl is-active web", "active", 0),
        (
            "systemctl enable --now late",
            "Failed to enable late.service: envd-init changes no files; put `enabled = true` into /etc/envd-init/services.d/late.toml",
            1,
        ),
        ("systemctl is-active late", "inactive", 3),
        (
            "systemctl list-units --plain --no-legend 'we*'",
            "web.service loaded active running web.service",
            0,
        ),
        ("systemctl list-units -q late", "", 0),
        (
            "systemctl list-units --no-legend --state=dead late.service web.service",
            "late.service loaded inactive dead late.service",
            0,
        ),
        (
            "systemctl list-units -t timer",
            "UNIT LOAD ACTIVE SUB DESCRIPTION\n\n0 loaded units listed. Pass --all to see loaded but inactive units, too.",
            0,
        ),
        ("systemctl --version", concat!("envd-init ", env!("CARGO_PKG_VERSION")), 0),
        ("systemctl start once", "Failed to start once.service: once ended with status 1", 1),
        ("systemctl try-restart once", "", 0),
        ("systemctl show -P ActiveState once", "failed", 0),
        ("systemctl list-units --failed --no-legend", "● once.service loaded failed failed once.service", 0),
    ] {
        let (told, ended) = world.tool(line);
        assert!(
            ended == code && told.starts_with(text) && told.is_empty() == text.is_empty(),
            "{line}: {told}"
        );
    }
    for line in ["enable late", "disable web", "mask web", "daemon-reexec", "kill web"] {
        let (text, code) = world.tool(&format!("systemctl {line}"));
        assert!(code == 1 && !text.is_empty(), "{line}: {text}");
    }
    let (text, code) = world.tool("systemctl edit web");
    assert!(code != 0 && text.contains("not supported"), "{text}");
    let (text, code) = world.tool("systemctl list-units");
    assert!(code == 0 && text.contains("web.service") && text.contains("running"), "{text}");
    let pid = world.service("web").pid;
    assert_eq!(world.tool("systemctl restart web").1, 0);
    assert_ne!(world.service("web").pid, pid, "restart answers when the new one runs");
}

/// A script that starts a database and then uses it takes the answer for "it serves"; it came when the program was executed.
#[test]
fn a_start_is_answered_when_the_service_is_ready_and_one_that_does_not_get_so_has_failed() {
    let shell = |script: &str| format!("command = ['/bin/sh', '-c', '{script}']\nenabled = false\n");
    let ready = |script: &str, path: &str| {
        format!("{}restart = 'never'\nreadiness = {{ file = '{path}' }}\n", shell(script))
    };
    let slow = ready("rm -f /tmp/up; sleep 0.5; touch /tmp/up; exec sleep 1000", "/tmp/up");
    let dies = ready("echo no licence >&2; exit 3", "/tmp/never");
    let hangs = ready("exec sleep 1000", "/tmp/never") + "start_timeout_ms = 300\n";
    let once = shell("sleep 0.5; touch /tmp/done") + "kind = 'oneshot'\nstart_timeout_ms = 0\n";
    let fails = shell("sleep 0.2; exit 4") + "kind = 'oneshot'\n";
    let waits = ready("exec sleep 1000", "/tmp/later");
    let nobodys = ready("exec sleep 1000", "/tmp/never") + "user = 'nobody-at-all'\n";
    let world = World::boot(&[
        ("slow", &slow),
        ("dies", &dies),
        ("hangs", &hangs),
        ("once", &once),
        ("fails", &fails),
        ("waits", &waits),
        ("nobodys", &nobodys),
    ]);
    for (line, state) in [
        ("start slow; [ -e /tmp/up ]", "active"),
        ("restart slow; [ -e /tmp/up ]", "active"),
        ("start once; [ -e /tmp/done ]", "inactive"),
        ("start --no-block waits && ! /init/init systemctl status waits", "activating"),
    ] {
        let output = world.sh(&format!("set -e; /init/init systemctl {line}"));
        assert!(output.status.success(), "{line}: {output:?}");
        let service = line.replace("--no-block ", "").split([' ', ';']).nth(1).unwrap().to_owned();
        assert_eq!(world.tool(&format!("systemctl is-active {service}")).0, state, "{line}");
    }
    for (service, why) in [
        ("dies", "it did not get ready: dies ended with status 3"),
        ("hangs", "it did not get ready: hangs was ended by SIGKILL"),
        ("fails", "fails ended with status 4"),
        ("nobodys", "it did not get ready: there is no user nobody-at-all"),
    ] {
        for verb in ["start", "restart"] {
            let (text, code) = world.tool(&format!("systemctl {verb} {service}"));
            assert_eq!(code, 1, "{text}");
            assert!(text.starts_with(&format!("Failed to {verb} {service}.service: {why}")), "{text}");
        }
        assert_eq!(world.tool(&format!("systemctl is-failed {service}")), ("failed".to_owned(), 0));
    }
    // Who comes while it starts waits as well, and is told when it is stopped instead.
    let mut waiting = world.send(Op::Start { service: "waits".to_owned(), no_block: false }).unwrap();
    assert_eq!(world.tool("systemctl stop waits"), (String::new(), 0));
    let reply = receive(&mut waiting).unwrap();
    assert!(
        matches!(&reply, Reply::Error { message, .. } if message.contains("stopped on request")),
        "{reply:?}"
    );
}

/// One that is tried again and again was told as one that the machine is still starting, for ever.
#[test]
fn whoever_waits_for_the_system_is_told_when_all_has_started() {
    let slow = "command = ['/bin/sh', '-c', 'sleep 0.5; touch /tmp/up; exec sleep 1000']\nreadiness = { file = '/tmp/up' }\n";
    let loops = "command = ['/bin/false']\nrestart = 'always'\n";
    let world = World::boot(&[("slow", slow), ("loops", loops)]);
    let output = world.sh("/init/init systemctl is-system-running --wait && [ -e /tmp/up ]");
    assert_eq!(
        (String::from_utf8_lossy(&output.stdout).as_ref(), output.status.code()),
        ("running\n", Some(0))
    );
    world.write("/etc/envd-init/services.d/once.toml", "command = ['/bin/false']\nkind = 'oneshot'\n");
    assert_eq!(world.tool("systemctl start once").1, 1);
    assert_eq!(world.tool("systemctl is-system-running"), ("degraded".to_owned(), 1));
}

/// One of ours is called so because the platform's freeze exempts the cgroup of that name.
#[test]
fn a_service_whose_name_ends_like_a_units_is_found_with_and_without_that() {
    let sleeper = "command = ['/bin/sleep', '1000']\n";
    let world = World::boot(&[("bind.service", sleeper)]);
    world.wait_state("bind.service", "running");
    world.write("/etc/envd-init/services.d/late.service.toml", sleeper);
    for (line, text) in [
        ("systemctl is-active bind bind.service", "active\nactive"),
        ("systemctl restart bind", ""),
        ("systemctl restart bind.service", ""),
        ("systemctl stop bind", ""),
        ("systemctl is-active bind.service", "inactive"),
        ("systemctl start bind.service", ""),
        ("systemctl show -p Id --value bind", "bind.service"),
        ("systemctl is-enabled bind", "enabled"),
        ("systemctl start late", ""),
        ("systemctl is-active late", "active"),
    ] {
        assert_eq!(world.tool(line).0, text, "{line}");
    }
    for name in ["bind", "bind.service"] {
        assert_eq!(world.ask(restart(name)).unwrap(), Reply::Done, "{name}");
    }
}

#[test]
fn a_restart_on_request_reads_the_services_file_anew() {
    let web = |seconds: u32, more: &str| format!("command = ['/bin/sleep', '{seconds}']\n{more}");
    let world = World::boot(&[("web", &web(1000, ""))]);
    let runs = |seconds: u32| world.text("cat /proc/[0-9]*/cmdline").contains(&format!("sleep\0{seconds}\0"));
    let path = "/etc/envd-init/services.d/web.toml";
    world.wait_state("web", "running");
    world.write(path, &web(2000, "user = '65534'\n"));
    assert_eq!(world.tool("systemctl restart web"), (String::new(), 0));
    assert!(runs(2000) && !runs(1000));
    world.write(path, "\u{1}[[[");
    assert_eq!(world.tool("systemctl restart web"), (String::new(), 0));
    world.wait_log("web.toml: ");
    assert!(runs(2000), "a file that is no use changes nothing");
    assert_eq!(world.tool("systemctl stop web").1, 0);
    world.write(path, &web(3000, ""));
    assert_eq!(world.tool("systemctl start web").1, 0);
    assert!(runs(3000));
}

#[test]
fn hostile_clients_cost_only_themselves_and_only_root_may_speak() {
    let world = World::boot(&[]);
    let mut crowd: Vec<UnixStream> =
        (0..200).filter_map(|_| UnixStream::connect(world.socket()).ok()).collect();
    for (at, stream) in crowd.iter_mut().enumerate() {
        let _ = stream.set_nonblocking(true);
        let _ = stream.write_all(&vec![at as u8; at]);
    }
    assert!(world.status().is_ok());
    world.wait_state("envd", "running");
    let mode = fs::metadata(world.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let output = world
        .sh("command -v setpriv >/dev/null && setpriv --reuid 65534 /init/init systemctl status envd 2>&1");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && (text.is_empty() || text.contains("only root")), "{text}");
    drop(crowd);
}
