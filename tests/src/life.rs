//! What happens to envd in the life of a sandbox, under whichever init: it is killed, updated, upgraded, frozen. Tests of native
//! and keep mode share it with chaos.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::http::{self, Request};
use crate::vm::Vm;
use crate::{Via, wait};

/// Pid of the one envd; more than one, or none, is an error.
pub fn envd_pid(vm: &Vm, via: Via) -> Result<u32> {
    let pids = vm.sh(via, "pidof envd")?;
    pids.parse().with_context(|| format!("pidof envd printed {pids:?}"))
}

/// Waits until an envd other than `old` answers, and returns its pid.
pub fn wait_other_envd(vm: &Vm, via: Via, old: u32) -> Result<u32> {
    let what = format!("an envd other than {old}");
    wait::gently(&what, wait::BOUND, || Ok(envd_pid(vm, via).ok().filter(|pid| *pid != old)))
}

/// Waits until the status tells envd's version, which must be what the program itself says.
pub fn version(vm: &Vm) -> Result<()> {
    let own = vm.sh(Via::Tcp, "/usr/bin/envd -version")?;
    let told = || Ok(vm.status()?["envd"]["version"].as_str().map(str::to_owned));
    let told = wait::gently("envd's version in the status", wait::BOUND, told)?;
    ensure!(told == own.trim(), "the status says version {told:?}, envd itself {own:?}");
    envd_pid(vm, Via::Tcp).map(drop)
}

/// Runs a shell script that outlives envd, and returns what it printed once envd answers again.
pub fn detached(vm: &Vm, script: &str) -> Result<String> {
    let stamp = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
    let out = format!("/run/detached-{stamp}");
    let quoted = script.replace('\'', "'\\''");
    let command = format!(
        "setsid sh -c '{{ {quoted}\n}} >{out} 2>&1; mv {out} {out}.done' </dev/null >/dev/null 2>&1 &"
    );
    vm.sh(Via::Tcp, &command)?;
    let read = format!("/files?path={out}.done&username=root");
    wait::gently(&format!("`{script}` to end"), wait::BOUND, || {
        Ok(vm.get(Via::Tcp, &read).ok().filter(|answer| answer.status == 200).map(|answer| answer.text()))
    })
}

/// Healthy this long, envd is started again at once; killed sooner, it would meet the backoff that grows to 2 s.
const SETTLED: Duration = Duration::from_millis(1100);

/// Kills envd `count` times; after each kill a call over vsock, sent at once, must be served, and the console must tell of the
/// death. Returns how long the calls took.
pub fn kills(vm: &Vm, count: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for turn in 1..=count {
        let mark = vm.console().mark();
        kill(vm)?;
        let began = Instant::now();
        let answer = vm.get(Via::Vsock, "/health").with_context(|| format!("call after kill {turn}"))?;
        ensure!(answer.status == 204, "call after kill {turn} was answered {}", answer.status);
        times.push(began.elapsed());
        vm.console().wait_after(mark, r#"envd-init: exit \{"service":"envd",.*"SIGKILL""#)?;
        vm.console().wait_after(mark, "wrapper: envd is healthy")?;
        thread::sleep(SETTLED);
    }
    Ok(times)
}

/// Kills envd, and returns as soon as it is dead: a process that ends closes its connections before the socket that it listens on,
/// and a request that comes in between is taken by nobody.
fn kill(vm: &Vm) -> Result<()> {
    let mark = vm.console().mark();
    let script = "p=$(pidof envd); (kill -KILL $p; while kill -0 $p; do :; done; printf '\\nenvd is dead\\n' >/dev/ttyS0) 2>/dev/null &";
    // The answer may be lost together with envd.
    let _ = vm.exec_as(Via::Tcp, script, Some("root"));
    vm.console().wait_after(mark, "envd is dead").map(drop)
}

/// The two ways in which the platform's builder brings in a new envd: afterwards the new file runs, and the old one was
/// dead before the command returned. `restart` is the command where there is a `systemctl`.
pub fn updates(vm: &Vm, restart: &str) -> Result<()> {
    let swap = "cp /usr/bin/envd /tmp/envd_updated && mv /tmp/envd_updated /usr/bin/envd && ";
    let old = envd_pid(vm, Via::Tcp)?;
    let said =
        detached(vm, &format!("{swap} {restart} >/dev/null; kill -0 {old} 2>/dev/null && echo alive"))?;
    ensure!(!said.contains("alive"), "{restart} returned before the old envd was dead");
    runs_the_new_file(vm, wait_other_envd(vm, Via::Vsock, old)?)?;
    let old = envd_pid(vm, Via::Tcp)?;
    let _ = vm.sh(Via::Tcp, &format!("{swap} kill -TERM \"$(pidof envd)\""));
    runs_the_new_file(vm, wait_other_envd(vm, Via::Vsock, old)?)
}

fn runs_the_new_file(vm: &Vm, pid: u32) -> Result<()> {
    let inodes = vm.sh(Via::Tcp, &format!("stat -Lc %i /proc/{pid}/exe /usr/bin/envd | uniq | wc -l"))?;
    ensure!(inodes == "1", "envd {pid} still runs the old file");
    Ok(())
}

/// The live upgrade: envd executes `program` (or itself) in its own place while a command runs. The command goes on once
/// `/init` has come, nobody is taken for dead, and a crash afterwards runs the old path again.
pub fn upgrade(vm: &Vm, program: Option<Vec<u8>>) -> Result<()> {
    let pid = envd_pid(vm, Via::Tcp)?;
    let wrapper = vm.sh(Via::Tcp, "pidof envd-wrapper")?;
    vm.init_envd(Via::Tcp)?;
    let mark = vm.console().mark();
    thread::scope(|scope| {
        // A byte a tick: a file that is written anew is empty for the reader who comes between.
        let ticker = "echo $$ >/run/ticker; while :; do printf . >>/run/ticks; sleep 0.1; done";
        // Its stream ends with the upgrade; the command does not.
        scope.spawn(move || vm.exec_as(Via::Tcp, ticker, Some("root")));
        let begun = || Ok(ticks(vm).ok().filter(|ticks| *ticks > 2));
        wait::gently("the command to run", wait::BOUND, begun)?;
        let body = program.unwrap_or_default();
        // It never answers: it is another program by then.
        let _ = vm
            .request(Via::Vsock, &Request { method: "POST", target: "/upgrade", body, ..Request::default() });
        let resumed = || Ok(is_gated(vm).unwrap_or(false).then_some(()));
        wait::gently("the upgraded envd, closed to all but /init", wait::BOUND, resumed)?;
        vm.init_envd(Via::Vsock)
    })?;
    let before = ticks(vm)?;
    let on = || Ok((ticks(vm)? > before).then_some(()));
    wait::gently("the command to go on after /init", wait::BOUND, on)?;
    // By its parent: a program from elsewhere is not called envd until its next start.
    let child = vm.sh(Via::Tcp, &format!("ps -o pid= --ppid {wrapper}"))?;
    ensure!(child.trim() == pid.to_string(), "the upgraded envd has pid {child}, not {pid}");
    ensure!(vm.sh(Via::Tcp, "pidof envd-wrapper")? == wrapper, "the wrapper was replaced");
    let said = vm.console().text_after(mark);
    ensure!(!said.contains("envd-init: exit"), "the upgrade was taken for a death:\n{said}");
    let arguments = format!("tr '\\0' ' ' </proc/{pid}/cmdline");
    ensure!(vm.sh(Via::Tcp, &arguments)?.contains("--resume-handover"), "envd was not upgraded");
    let _ = vm.sh(Via::Tcp, &format!("kill $(cat /run/ticker); rm /run/ticks; kill -KILL {pid}"));
    let next = wait_other_envd(vm, Via::Vsock, pid)?;
    let called = vm.sh(Via::Tcp, &format!("tr '\\0' ' ' </proc/{next}/cmdline"))?;
    ensure!(called.trim() == "envd", "after a crash envd was called {called:?}");
    runs_the_new_file(vm, next)
}

fn ticks(vm: &Vm) -> Result<u64> {
    vm.sh(Via::Vsock, "stat -c %s /run/ticks")?.trim().parse().context("the command's count")
}

/// Whether envd answers, and lets nothing through until `/init`.
fn is_gated(vm: &Vm) -> Result<bool> {
    let request = Request { method: "GET", target: "/envs", ..Request::default() };
    Ok(http::send(vm.stream(Via::Vsock)?, &request, Duration::from_secs(10))?.status == 401)
}

/// Freezes the guest as before a pause: calls over vsock are answered meanwhile. Returns the platform's audit of the freeze,
/// which the real envd makes, and thaws.
pub fn freeze(vm: &Vm) -> Result<Option<Audit>> {
    vm.init_envd(Via::Tcp)?;
    let frozen = vm.post(Via::Tcp, "/freeze?mode=hierarchy", "")?;
    ensure!(frozen.status == 204, "freeze answered {}", frozen.status);
    for turn in 0..5 {
        let health = vm.get(Via::Vsock, "/health").with_context(|| format!("call {turn} while frozen"))?;
        ensure!(health.status == 204, "a call over vsock while frozen was answered {}", health.status);
    }
    let answer = vm.post(Via::Vsock, "/init", "{\"defaultUser\":\"user\"}")?;
    ensure!(answer.status == 204, "/init while frozen answered {}", answer.status);
    let thawed = vm.post(Via::Vsock, "/unfreeze", "")?;
    ensure!(thawed.status == 204, "unfreeze answered {}", thawed.status);
    let audit = answer.header("x-envd-freeze-audit");
    audit.map(|audit| serde_json::from_str(audit).with_context(|| format!("the audit {audit:?}"))).transpose()
}

/// `X-Envd-Freeze-Audit`.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub struct Audit {
    pub visited: u64,
    pub frozen: u64,
    pub escaped: u64,
    pub violations: u64,
}

impl Audit {
    /// Everything that should be frozen was, and nothing that should not.
    pub fn is_clean(&self) -> bool {
        self.visited > 0 && self.frozen > 0 && self.escaped == 0 && self.violations == 0
    }
}
