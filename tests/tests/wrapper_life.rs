//! envd-wrapper as it is installed, over an envd with each of its faults: it is brought back, and its death is explained.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::net::UnixDatagram;

use tests::{Cell, paths, wait};

/// Short, so that a test takes seconds; what is guarded is the order of things, not their times.
const IMPATIENT: &str = "start_timeout_ms = 1500\nstop_timeout_ms = 500\n";
const WATCHFUL: &str = "liveness_interval_ms = 500\nliveness_window_ms = 1500\n";

fn cell(switches: &str, settings: &str) -> Cell {
    let builder = Cell::builder().unwrap().stand_in("bin/envd", switches).unwrap();
    builder.supervise("bin/envd", settings).unwrap()
}

#[test]
fn a_good_envd_is_started_and_said_to_be_healthy() {
    let cell = cell("", "");
    cell.wait(r"^\[ *\d+\.\d{6}\] wrapper: envd started: \S+/bin/envd \(pid \d+\)").unwrap();
    cell.wait(r"wrapper: envd is healthy, \d+\.\d{3} s after exec").unwrap();
    assert_eq!(cell.health().unwrap(), 204);
    let console = cell.console();
    assert!(console.lines().count() < 10 && console.len() < 2048, "few lines when all is well: {console}");
}

/// One that is asked at another port than its own would be ended for ever.
#[test]
fn an_envd_with_a_port_of_its_own_is_asked_there() {
    let builder = Cell::builder().unwrap().stand_in("bin/envd.real", "").unwrap();
    let builder = builder.program(&paths::guest_bin("envd-wrapper").unwrap(), "bin/envd").unwrap();
    let program = builder.folder().join("bin/envd");
    let cell = builder.run(program, &["-port", "5983"]).unwrap();
    let outcome = cell.wait("envd is healthy|ending envd").unwrap();
    assert!(outcome.contains("envd is healthy"), "{outcome}");
}

#[test]
fn every_kill_is_answered_by_a_start_and_explained() {
    let cell = cell("", "");
    let mut pid = cell.envd().unwrap_or(0);
    for turn in 1..=5 {
        cell.wait_nth("envd is healthy", turn).unwrap();
        pid = if pid == 0 { cell.envd().unwrap() } else { pid };
        cell.sh(&format!("kill -KILL {pid}")).unwrap();
        let report = cell.death(turn).unwrap();
        assert_eq!(report["signal"], "SIGKILL", "{report}");
        assert_eq!((&report["service"], report["pid"].as_u64()), (&"envd".into(), Some(pid.into())));
        assert_eq!(report["restarts"].as_u64(), Some(turn as u64 - 1), "{report}");
        assert_eq!(report["oom"], false);
        pid = cell.other_envd(pid).unwrap();
    }
}

#[test]
fn one_that_never_listens_is_ended_at_the_bound_and_the_next_one_serves() {
    let cell = cell("never-bind = yes\nonly-starts = 1\n", IMPATIENT);
    cell.wait("wrapper: ending envd: not listening 1 s after its start").unwrap();
    let report = cell.death(1).unwrap();
    assert_eq!(report["reason"], "not listening 1 s after its start");
    assert_eq!(report["signal"], "SIGQUIT", "asked for its goroutines first: {report}");
    cell.wait("envd is healthy").unwrap();
}

#[test]
fn one_that_listens_and_does_not_answer_is_ended_at_the_bound() {
    let cell = cell("hang-health = yes\nonly-starts = 1\n", IMPATIENT);
    let report = cell.death(1).unwrap();
    let reason = report["reason"].as_str().unwrap();
    assert!(reason.contains("1 s after its start") && !reason.contains("not listening"), "{reason}");
    cell.wait("envd is healthy").unwrap();
}

#[test]
fn a_wrong_answer_is_named() {
    let cell = cell("health-status = 500\nonly-starts = 1\n", IMPATIENT);
    let report = cell.death(1).unwrap();
    assert!(report["reason"].as_str().unwrap().contains("HTTP/1.1 500"), "{report}");
}

#[test]
fn one_that_binds_late_is_waited_for() {
    let cell = cell("bind-after = 0.7\n", IMPATIENT);
    cell.wait("envd is healthy").unwrap();
    assert_eq!(cell.deaths().len(), 0);
}

#[test]
fn a_healthy_one_that_hangs_is_ended_after_the_window() {
    let cell = cell("hang-all-after = 1\nonly-starts = 1\n", WATCHFUL);
    cell.wait("envd is healthy").unwrap();
    cell.wait("envd is unhealthy: listening but not answering").unwrap();
    let report = cell.death(1).unwrap();
    assert!(report["reason"].as_str().unwrap().starts_with("listening but not answering for"), "{report}");
    cell.wait_nth("envd is healthy", 2).unwrap();
}

#[test]
fn one_that_was_stopped_for_good_is_ended_too() {
    let cell = cell("", WATCHFUL);
    cell.wait("envd is healthy").unwrap();
    cell.sh("kill -STOP $(pidof envd)").unwrap();
    cell.death(1).unwrap();
    cell.wait_nth("envd is healthy", 2).unwrap();
}

/// Rules of the sandbox's user: dropped or refused, from the start on or later, they are not envd's fault.
#[test]
fn a_packet_filter_on_loopback_ends_no_healthy_envd() {
    for rule in ["DROP", "REJECT --reject-with tcp-reset", "REJECT --reject-with icmp-host-unreachable"] {
        let cell = cell("", WATCHFUL);
        cell.wait("envd is healthy").unwrap();
        let filter = |change: &str| {
            cell.sh(&format!("iptables {change} INPUT -i lo -p tcp --dport 49983 -j {rule}")).unwrap();
        };
        filter("-A");
        cell.wait("wrapper: envd cannot be checked: it listens, but").unwrap();
        // The window over which failures end it, twice over.
        cell.sh("sleep 4").unwrap();
        filter("-D");
        cell.wait("wrapper: envd can be checked again").unwrap();
        assert_eq!(cell.deaths().len(), 0, "{rule}: {}", cell.console());
    }
}

#[test]
fn an_envd_that_starts_behind_a_packet_filter_is_not_ended_for_it() {
    let cell = cell("", &format!("{IMPATIENT}{WATCHFUL}"));
    cell.wait("envd is healthy").unwrap();
    cell.sh("iptables -A INPUT -i lo -j DROP; kill -KILL $(pidof envd)").unwrap();
    cell.death(1).unwrap();
    cell.wait("wrapper: envd cannot be checked: it listens, but").unwrap();
    cell.sh("sleep 4; iptables -D INPUT -i lo -j DROP").unwrap();
    cell.wait("wrapper: envd can be checked again").unwrap();
    assert_eq!(cell.deaths().len(), 1, "{}", cell.console());
}

/// A filter is no hiding place: one that accepts nobody is seen by what waits at its port.
#[test]
fn one_that_hangs_behind_a_packet_filter_is_ended_all_the_same() {
    let cell = cell("", WATCHFUL);
    cell.wait("envd is healthy").unwrap();
    cell.sh("kill -STOP $(pidof envd)").unwrap();
    cell.sh(
        "curl -s -m 1 http://127.0.0.1:49983/health; iptables -A INPUT -i lo -p tcp --dport 49983 -j DROP",
    )
    .unwrap();
    let report = cell.death(1).unwrap();
    assert!(report["reason"].as_str().unwrap().starts_with("listening but not answering"), "{report}");
}

#[test]
fn a_loopback_that_was_taken_down_ends_no_healthy_envd() {
    let cell = cell("", WATCHFUL);
    cell.wait("envd is healthy").unwrap();
    cell.sh("ip link set lo down").unwrap();
    cell.wait("wrapper: envd cannot be checked: it listens, but").unwrap();
    cell.sh("sleep 4; ip link set lo up").unwrap();
    cell.wait("wrapper: envd can be checked again").unwrap();
    assert_eq!(cell.deaths().len(), 0, "{}", cell.console());
}

#[test]
fn a_slow_answer_is_said_and_nobody_is_ended_for_it() {
    let cell = cell("slow-health = 1.3\n", "liveness_interval_ms = 4000\nliveness_window_ms = 1\n");
    cell.wait("envd is slow: /health took 1.[3-9] s").unwrap();
    assert_eq!(cell.deaths().len(), 0);
    assert_eq!(cell.health().unwrap(), 204);
}

/// Whose fault a stall is: here not envd's, which would have answered, but that of a guest in which nobody got to run.
#[test]
fn a_guest_that_was_held_up_is_told_from_an_envd_that_is_slow() {
    let cell = cell("", WATCHFUL);
    cell.wait("envd is healthy").unwrap();
    cell.sh("w=$(pidof envd-wrapper); kill -STOP $w; sleep 4; kill -CONT $w").unwrap();
    cell.wait("wrapper: the guest itself was held up for ").unwrap();
    assert_eq!((cell.deaths().len(), cell.count("envd is slow")), (0, 0), "{}", cell.console());
}

#[test]
fn a_clean_exit_restarts_as_well() {
    let cell = cell("exit-after = 0.3\nexit-code = 0\n", "");
    let report = cell.death(2).unwrap();
    assert_eq!(report["status"].as_u64(), Some(0));
    cell.wait("exited with status 0 after").unwrap();
}

#[test]
fn one_that_forks_and_exits_does_not_leave_a_second_envd_behind() {
    let cell = cell("fork-and-exit = yes\nonly-starts = 1\n", "");
    assert_eq!(cell.death(1).unwrap()["status"].as_u64(), Some(0));
    cell.wait("left by the last envd: 1 helper ended").unwrap();
    cell.wait("envd is healthy").unwrap();
    cell.envd().unwrap();
}

#[test]
fn term_ends_envd_and_the_wrapper() {
    let mut cell = cell("", "");
    cell.wait("envd is healthy").unwrap();
    assert_eq!(cell.stop().unwrap().code(), Some(0));
    cell.wait("envd was stopped on request").unwrap();
    assert_eq!(cell.deaths()[0]["signal"], "SIGTERM");
    assert_eq!(cell.count("envd started"), 1, "a stop is not answered by a start");
}

/// As when a whole control group is told to end.
#[test]
fn a_term_that_comes_together_with_envds_death_is_handled_first() {
    let mut cell = cell("", "");
    cell.wait("envd is healthy").unwrap();
    let both = "kill -STOP $wrapper; kill -KILL $(pidof envd); kill -TERM $wrapper; kill -CONT $wrapper";
    // The shell may be ended with the cell, whose end is the wrapper's, before it can tell of its own.
    drop(cell.try_sh(&format!("touch /run/enough; wrapper=$(pidof envd-wrapper); {both}")).unwrap());
    assert_eq!(cell.wait_end().unwrap().code(), Some(0));
    assert_eq!(cell.count("envd started"), 1, "a stop is not answered by a start");
}

#[test]
fn one_that_ignores_term_is_killed_at_its_bound() {
    let mut cell = cell("ignore-term = yes\n", IMPATIENT);
    cell.wait("envd is healthy").unwrap();
    assert_eq!(cell.stop().unwrap().code(), Some(0));
    assert_eq!(cell.deaths()[0]["signal"], "SIGKILL");
}

#[test]
fn other_signals_are_not_passed_on() {
    let cell = cell("", "");
    cell.wait("envd is healthy").unwrap();
    let before = cell.envd().unwrap();
    cell.sh("for s in HUP QUIT USR1 USR2 ALRM PIPE WINCH CONT; do kill -$s $(pidof envd-wrapper); done")
        .unwrap();
    assert_eq!(cell.health().unwrap(), 204);
    assert_eq!(cell.envd().unwrap(), before);
}

#[test]
fn a_wrapper_that_is_killed_takes_envd_along_and_the_next_one_does_not_double_it() {
    let cell = cell("", "");
    cell.wait("envd is healthy").unwrap();
    for turn in 2..=4 {
        let old = cell.envd().unwrap();
        cell.sh("kill -KILL $(pidof envd-wrapper)").unwrap();
        cell.other_envd(old).unwrap();
        cell.wait_nth("envd is healthy", turn).unwrap();
        assert_eq!(cell.health().unwrap(), 204);
    }
    let ring = cell.ring().unwrap();
    let numbers: Vec<u64> = ring.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "the ring goes on: {ring}");
}

#[test]
fn a_real_time_signal_is_a_death_like_any_other() {
    let cell = cell("", "");
    cell.wait("envd is healthy").unwrap();
    cell.sh("kill -40 $(pidof envd)").unwrap();
    assert_eq!(cell.death(1).unwrap()["signal"], "signal 40");
    cell.wait_nth("envd is healthy", 2).unwrap();
}

#[test]
fn port_forwards_and_helpers_of_a_dead_envd_are_ended_and_users_are_left_alone() {
    let cell = cell("", "");
    cell.wait("envd is healthy").unwrap();
    let sleeper = |group: &str| {
        let command = format!(
            "echo 0 >/sys/fs/cgroup/{group}/cgroup.procs; setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"
        );
        cell.sh(&format!("sh -c '{command}'")).unwrap()
    };
    let (forward, helper, user) = (sleeper("socats"), sleeper("envd"), sleeper("user"));
    cell.sh("kill -KILL $(pidof envd)").unwrap();
    cell.wait(&format!(
        r"left by the last envd: 1 helper ended, 1 port forward ended, 1 user process left alone \(sleep {user}\)"
    ))
    .unwrap();
    cell.wait_nth("envd is healthy", 2).unwrap();
    let alive = |pid: &str| cell.sh(&format!("[ -d /proc/{pid} ] && echo yes || echo no")).unwrap();
    assert_eq!((alive(&forward).as_str(), alive(&helper).as_str()), ("no", "no"));
    assert_eq!(alive(&user), "yes");
}

#[test]
fn at_rest_the_wrapper_sleeps_but_for_two_wakeups_a_check() {
    let cell = cell("", "liveness_interval_ms = 1000\n");
    // Asked for once, and over.
    cell.version().unwrap();
    let switches = || -> i64 {
        let status = "/proc/$(pidof envd-wrapper)/status";
        cell.sh(&format!("sed -n 's/^voluntary_ctxt_switches:\\t//p' {status}")).unwrap().parse().unwrap()
    };
    let before = switches();
    // Five checks, whatever else the machine does: counted by the clock that the wrapper goes by.
    cell.sh("sleep 5").unwrap();
    let woken = switches() - before;
    assert!((4..=13).contains(&woken), "{woken} wake-ups in five checks");
}

/// Starts one more wrapper, as a plain program.
const ANOTHER: &str = "setsid \"$0\" run --config \"$1\" --envd \"$2\" >/dev/null 2>&1 </dev/null &";

/// A shell script in the cell in which `$0` is the wrapper, `$1` its configuration and `$2` envd.
fn script(cell: &Cell, script: &str) -> std::process::Output {
    let at = |name: &str| cell.folder().join(name).display().to_string();
    let words = [at("lib/envd-wrapper"), at("config.toml"), at("bin/envd")].join(" ");
    cell.try_sh(&format!("timeout 60 sh -c '{script}' {words}")).unwrap()
}

/// Started by hand, it ended the running envd's port forwards, took its control socket and fought for its port.
#[test]
fn a_second_wrapper_says_who_supervises_and_touches_nothing() {
    let cell = cell("", "");
    cell.wait("envd is healthy").unwrap();
    let (envd, wrapper) = (cell.envd().unwrap(), cell.sh("pidof envd-wrapper").unwrap());
    let join =
        "echo 0 >/sys/fs/cgroup/socats/cgroup.procs; setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!";
    let forward = cell.sh(&format!("sh -c '{join}'")).unwrap();
    let log = cell.ring().unwrap();
    for more in ["", "--port 5 -- -port 5"] {
        let output = script(&cell, &format!("\"$0\" run --config \"$1\" --envd \"$2\" {more}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        let who = format!("envd-wrapper: another envd-wrapper (pid {wrapper}) supervises envd here: ");
        assert!(said.starts_with(&who) && output.stdout.is_empty(), "{said}");
    }
    cell.sh(&format!("kill -0 {forward}")).unwrap();
    assert_eq!((cell.envd().unwrap(), cell.health().unwrap()), (envd, 204));
    assert_eq!(cell.status().unwrap()["envd"]["pid"].as_u64(), Some(envd.into()), "its control socket");
    assert_eq!(cell.ring().unwrap(), log);
}

/// It was said to run, since it was not dead yet, and then stayed stopped; whoever had asked for the stop waited in vain.
#[test]
fn a_start_while_envd_ends_is_one_and_the_stop_is_done_too() {
    let cell = cell("ignore-term = yes\n", "stop_timeout_ms = 3000\n");
    cell.wait("envd is healthy").unwrap();
    let envd = cell.envd().unwrap();
    let envdctl = paths::host_bin("envdctl").unwrap().display().to_string();
    cell.sh(&format!("{envdctl} stop envd >/run/stop 2>&1 </dev/null &")).unwrap();
    let ends = || Ok((cell.status()?["envd"]["state"] == "stopping").then_some(()));
    wait::until("envd to be told to end", wait::BOUND, ends).unwrap();
    cell.sh(&format!("timeout 60 {envdctl} start envd")).unwrap();
    assert_ne!(cell.envd().unwrap(), envd);
    cell.wait_nth("envd is healthy", 2).unwrap();
    let answered = || Ok(Some(cell.sh("cat /run/stop")?).filter(|said| !said.is_empty()));
    assert_eq!(wait::until("the stop's answer", wait::BOUND, answered).unwrap(), "envd: stopped");
}

/// A cell in which nothing is supervised yet.
fn idle(switches: &str, settings: &str) -> Cell {
    let wrapper = paths::guest_bin("envd-wrapper").unwrap();
    let builder = Cell::builder().unwrap().stand_in("bin/envd", switches).unwrap();
    let builder = builder.file("config.toml", &format!("[envd]\n{settings}"));
    builder.program(&wrapper, "lib/envd-wrapper").unwrap().run("sleep", &["1000"]).unwrap()
}

/// A restart by whoever does not wait for the first one's end.
#[test]
fn a_wrapper_that_is_ending_is_waited_for() {
    let cell = idle("ignore-term = yes\n", IMPATIENT);
    script(&cell, ANOTHER);
    cell.wait("envd is healthy").unwrap();
    let (envd, wrapper) = (cell.envd().unwrap(), cell.sh("pidof envd-wrapper").unwrap());
    script(&cell, &format!("kill -TERM {wrapper}; {ANOTHER}"));
    cell.other_envd(envd).unwrap();
    cell.wait_nth("envd is healthy", 2).unwrap();
}

/// In a container that is another's in all but its network, there is an envd of its own.
#[test]
fn a_wrapper_in_a_network_of_its_own_is_no_rival() {
    let cell = cell("", "");
    cell.wait("envd is healthy").unwrap();
    script(&cell, &ANOTHER.replace("setsid", "setsid unshare --net"));
    cell.wait_nth("envd started", 2).unwrap();
}

#[test]
fn where_run_cannot_be_written_envd_runs_all_the_same_and_that_is_said() {
    let cell = idle("", "");
    cell.sh("mount -t tmpfs -o ro tmpfs /run").unwrap();
    script(&cell, ANOTHER);
    cell.wait("/run/envd-init/wrapper.lock cannot be locked .Read-only file system").unwrap();
    cell.wait("envd is healthy").unwrap();
}

/// A supervisor that was busy while envd became healthy would end it for never being ready.
#[test]
fn readiness_is_told_as_soon_as_a_busy_supervisor_takes_messages_again() {
    let builder = Cell::builder().unwrap().stand_in("bin/envd", "").unwrap();
    let path = builder.folder().join("notify.sock");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_nonblocking(true).unwrap();
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to(b"STATUS=busy", &path).is_ok() {}
    let builder = builder.environment("NOTIFY_SOCKET", path.to_str().unwrap());
    let cell = builder.supervise("bin/envd", "").unwrap();
    cell.wait("envd is healthy").unwrap();
    let mut buffer = [0; 8192];
    let mut is_told = || {
        let count = supervisor.recv(&mut buffer).unwrap_or(0);
        Ok(String::from_utf8_lossy(&buffer[..count]).lines().any(|line| line == "READY=1").then_some(()))
    };
    wait::until("READY=1", wait::BOUND, &mut is_told).unwrap();
}
