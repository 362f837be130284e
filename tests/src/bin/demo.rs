//! `make demo`: bake an image, boot it, and let the official E2B SDK get its answers through the host bridge: over TCP, over
//! vsock while TCP is broken, over TCP again; then with envd killed under it.
//!
//! Ends with a table and `N passed, N failed`; the same goes to `target/demo/result.json`. Exit codes: 0 all passed,
//! 1 a step failed, 3 something that the demo needs is missing.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tests::{Envd, Image, Kernel, Via, Vm, paths, wait};

const LISTEN: &str = "127.0.0.1:49983";
/// How long the bridge may take to change or to return.
const CHANGE: Duration = Duration::from_secs(55);
/// The SDK's own bound on a request is a minute.
const SDK_SCRIPT: &str = "tests/sdk/steps.py";

/// One line of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Step {
    name: String,
    #[serde(default)]
    route: String,
    ok: bool,
    seconds: f64,
    #[serde(default, skip_serializing)]
    detail: String,
}

#[derive(Debug, Serialize)]
struct Outcome<'a> {
    passed: usize,
    failed: usize,
    envd: &'static str,
    steps: &'a [Step],
}

fn main() -> ExitCode {
    if let Err(error) = ready() {
        eprintln!("demo: {error:#}");
        return ExitCode::from(3);
    }
    let mut demo = Demo { steps: Vec::new(), folder: paths::root().join("target/demo") };
    let broke_off = demo.run().is_err();
    match demo.finish(broke_off) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What must be there before anything begins.
fn ready() -> Result<()> {
    tests::require_root()?;
    if let Some(Envd::File(path)) = Envd::real() {
        ensure!(path.is_file(), "ENVD={} is no file", path.display());
    }
    ensure!(
        std::net::TcpListener::bind(LISTEN).is_ok(),
        "{LISTEN} is taken by another program, and the SDK's debug mode knows no other port: end that program first \
         (`ss -tlnp sport = 49983` names it)"
    );
    python().map(drop)
}

fn python() -> Result<PathBuf> {
    let path = paths::root().join("target/tools/venv/bin/python3");
    ensure!(path.exists(), "{} is missing: run scripts/setup sdk", path.display());
    Ok(path)
}

struct Demo {
    steps: Vec<Step>,
    /// Image, logs and result.
    folder: PathBuf,
}

impl Demo {
    /// An error is a step that failed and that the rest cannot do without; it stands in the table already.
    fn run(&mut self) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        let rootfs = self.folder.join("rootfs.ext4");
        let image =
            self.step("bake rootfs.ext4", "", || Image::native().envd(Envd::preferred()).bake_to(&rootfs))?;
        let vm = self.step("boot", "", || boot(&image))?;
        let bridge_log = self.folder.join("bridge.log");
        let bridge = self.step("start the bridge", "", || Bridge::start(&vm, &bridge_log))?;
        let outcome = self.with(&vm, &bridge);
        vm.copy_logs(&self.folder)?;
        if outcome.is_err() || self.failed() > 0 {
            diagnose(&vm, &self.folder.join("console.log"));
        }
        outcome
    }

    fn with(&mut self, vm: &Vm, bridge: &Bridge) -> Result<()> {
        self.step("envd answers", "tcp", || vm.wait_healthy(Via::Tcp))?;
        self.step("envd answers", "vsock", || vm.wait_healthy(Via::Vsock))?;
        self.step("POST /init", "tcp", || vm.init_envd(Via::Tcp))?;
        self.sdk("calls", "tcp")?;
        self.step("break TCP in the namespace", "", || tcp(vm, "-I"))?;
        self.sdk("calls", "vsock")?;
        self.step("the bridge took vsock", "vsock", || bridge.uses("firecracker:"))?;
        self.step("heal TCP in the namespace", "", || tcp(vm, "-D"))?;
        self.step("the bridge is back on TCP", "tcp", || bridge.returns(vm))?;
        self.sdk("calls", "tcp")?;
        self.call_after_kill(vm)?;
        self.step("POST /init", "vsock", || vm.init_envd(Via::Vsock))?;
        self.sdk("whoami", "tcp")
    }

    /// Times one step and keeps what came of it.
    fn step<T>(&mut self, name: &str, route: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = action();
        let detail = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        let seconds = begin.elapsed().as_secs_f64();
        self.add(Step {
            name: name.to_owned(),
            route: route.to_owned(),
            ok: result.is_ok(),
            seconds,
            detail,
        });
        result
    }

    fn add(&mut self, step: Step) {
        println!("demo: {}", line(&step));
        self.steps.push(step);
    }

    /// Runs the SDK; a call that fails is in the table, and the demo goes on.
    fn sdk(&mut self, mode: &str, route: &str) -> Result<()> {
        let mut sdk = Sdk::start(mode)?;
        ensure!(self.take_steps(&mut sdk, route)? > 0, "the SDK's script ended without a word");
        Ok(())
    }

    fn take_steps(&mut self, sdk: &mut Sdk, route: &str) -> Result<usize> {
        let mut count = 0;
        while let Some(json) = sdk.line()? {
            let step: Step =
                serde_json::from_str(&json).with_context(|| format!("the SDK's script said {json}"))?;
            self.add(Step { route: route.to_owned(), ..step });
            count += 1;
        }
        Ok(count)
    }

    /// The SDK holds a sandbox, envd is killed, and its first call comes at once. (Not a second one: a request that is
    /// already on its way over a kept connection when envd dies is lost, and nobody may send it again.)
    fn call_after_kill(&mut self, vm: &Vm) -> Result<()> {
        let mut sdk = Sdk::start("after-kill")?;
        let ready = sdk.line()?.unwrap_or_default();
        ensure!(ready.contains("ready"), "the SDK's script said {ready:?} instead of that it is ready");
        let mark = vm.console().mark();
        self.step("SIGKILL envd", "vsock", || kill_envd(vm))?;
        sdk.go_on()?;
        self.take_steps(&mut sdk, "tcp")?;
        self.step("the console tells of the kill", "", || vm.console().wait_after(mark, "SIGKILL").map(drop))
    }

    fn failed(&self) -> usize {
        self.steps.iter().filter(|step| !step.ok).count()
    }

    fn finish(&self, broke_off: bool) -> Result<bool> {
        // What broke off outside of any step is a failure too.
        let failed = self.failed().max(usize::from(broke_off));
        let passed = self.steps.iter().filter(|step| step.ok).count();
        println!("\n{:<30} {:<6} {:>8}", "step", "route", "seconds");
        self.steps.iter().for_each(|step| println!("{}", line(step)));
        println!();
        if failed > 0 {
            println!("logs:   {0}/console.log, {0}/bridge.log", self.folder.display());
        }
        let envd = if Envd::real().is_some() { "real" } else { "stand-in" };
        let outcome = Outcome { passed, failed, envd, steps: &self.steps };
        let result = self.folder.join("result.json");
        fs::create_dir_all(&self.folder)?;
        fs::write(&result, serde_json::to_vec_pretty(&outcome)?)?;
        println!("result: {} (envd: {envd})", result.display());
        println!("{passed} passed, {failed} failed");
        Ok(failed == 0)
    }
}

fn line(step: &Step) -> String {
    let mark = if step.ok { "ok" } else { "FAILED" };
    let detail = if step.ok { String::new() } else { format!("  {}", step.detail) };
    format!("{:<30} {:<6} {:>8.2}  {mark}{detail}", step.name, step.route, step.seconds)
}

/// Shows the guest's console from its first line on.
fn boot(image: &Image) -> Result<Vm> {
    let vm = Vm::of(image).kernel(Kernel::preferred()).boot()?;
    vm.console().echo("guest | ");
    vm.console().wait("envd is healthy")?;
    Ok(vm)
}

/// Adds or removes the rule that answers every connection to envd with a reset, as a bridge to nowhere does.
fn tcp(vm: &Vm, how: &str) -> Result<()> {
    let rule = ["OUTPUT", "-p", "tcp", "--dport", "49983", "-j", "REJECT", "--reject-with", "tcp-reset"];
    vm.netns().run("iptables", &[&[how], &rule[..]].concat()).map(drop)
}

/// The shell that kills envd loses its connection by it: an answer means that envd lives.
fn kill_envd(vm: &Vm) -> Result<()> {
    match vm.exec_as(Via::Vsock, "kill -KILL $(pidof envd); sleep 60", Some("root")) {
        Ok(out) => bail!("envd lives on: {}{}", out.stdout, out.stderr),
        Err(_) => Ok(()),
    }
}

/// Which hop is broken, as an operator would ask.
fn diagnose(vm: &Vm, console: &Path) {
    println!("demo: a step failed; what `envdctl doctor` says:");
    let Ok(envdctl) = paths::host_bin("envdctl") else { return };
    let _ = Command::new(envdctl)
        .args(["doctor", "--listen", &format!("tcp:{LISTEN}"), "--netns", vm.netns().name()])
        .args(["--route", &vm.tcp_endpoint(), "--route", &vm.vsock_endpoint(envd_api::PORT.into())])
        .arg("--console")
        .arg(console)
        .status();
}

/// The script that drives the official SDK.
struct Sdk {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Sdk {
    fn start(mode: &str) -> Result<Self> {
        let mut child = Command::new(python()?)
            .arg(paths::root().join(SDK_SCRIPT))
            .arg(mode)
            .env("PYTHONWARNINGS", "ignore")
            .env_remove("http_proxy")
            .env_remove("HTTP_PROXY")
            .env_remove("ALL_PROXY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the SDK's script")?;
        let output = BufReader::new(child.stdout.take().context("the SDK's script has no output")?);
        Ok(Self { child, output })
    }

    /// The next line that it prints; none when it has ended.
    fn line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).context("reading from the SDK's script")?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }

    fn go_on(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("the SDK's script has no input")?;
        input.write_all(b"go\n").context("telling the SDK's script to go on")
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The host bridge, ended when it is dropped.
struct Bridge {
    child: Child,
    log: PathBuf,
}

impl Bridge {
    fn start(vm: &Vm, log: &Path) -> Result<Self> {
        let file = File::create(log)?;
        let child = Command::new(paths::host_bin("envdctl")?)
            .args(["bridge", "--listen", &format!("tcp:{LISTEN}")])
            .args(["--route", &vm.tcp_endpoint(), "--route", &vm.vsock_endpoint(envd_api::PORT.into())])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting envdctl bridge")?;
        let mut bridge = Self { child, log: log.to_owned() };
        wait::until("the bridge to listen", CHANGE, || {
            ensure!(bridge.child.try_wait()?.is_none(), "the bridge ended: {}", bridge.text().trim());
            Ok(std::net::TcpStream::connect(LISTEN).ok())
        })?;
        Ok(bridge)
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its last word about routes leads to this one.
    fn uses(&self, route: &str) -> Result<()> {
        let text = self.text();
        let last =
            text.lines().rev().find(|line| line.contains(" -> ")).unwrap_or("(it said nothing of routes)");
        let taken = last.split_once(" -> ").is_some_and(|(_, to)| to.starts_with(route));
        ensure!(taken, "the bridge's last word on routes is: {last}");
        println!("demo: bridge | {last}");
        Ok(())
    }

    /// Clients keep coming until the preferred route is taken again.
    fn returns(&self, vm: &Vm) -> Result<()> {
        wait::until("the bridge to return to TCP", CHANGE, || {
            let status = health()?;
            if status != 204 {
                bail!("GET /health through the bridge answered {status}");
            }
            Ok(self
                .text()
                .lines()
                .any(|line| line.contains(&format!(" -> {}", vm.tcp_endpoint())))
                .then_some(()))
        })?;
        self.uses("netns:")
    }
}

/// One request through the bridge.
fn health() -> Result<u16> {
    let stream = std::net::TcpStream::connect(LISTEN)?;
    let request = tests::http::Request { method: "GET", target: envd_api::HEALTH, ..Default::default() };
    Ok(tests::http::send(tests::http::Stream::Tcp(stream), &request, CHANGE)?.status)
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
