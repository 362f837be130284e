//! `make demo`: bake an image, boot it, and let the official E2B SDK get its answers through the host bridge: over TCP, over
//! vsock while TCP is broken, over TCP again; then with envd killed under it.
//!
//! Ends with a table and `N passed, N failed`; the same goes to `target/demo/result.json`. Exit codes: 0 all passed,
//! 1 a step failed, 3 something that the demo needs is missing.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tests::{Envd, Image, Kernel, Via, Vm, paths, wait};

const LISTEN: &str = "127.0.0.1:49983";
/// How long the bridge may take to change or to return.
const CHANGE: Duration = Duration::from_secs(60);

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
    let mut demo = Demo { steps: Vec::new(), folder: paths::root().join("target/demo"), logs: Vec::new() };
    if let Err(error) = demo.run() {
        eprintln!("demo: {error:#}");
    }
    match demo.finish() {
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
    ensure!(
        std::net::TcpListener::bind(LISTEN).is_ok(),
        "{LISTEN} is taken by another program, and the SDK's debug mode knows no other port: end that program first"
    );
    python().map(drop)
}

fn python() -> Result<PathBuf> {
    let path = paths::root().join("target/tools/venv/bin/python");
    ensure!(path.exists(), "{} is missing: run scripts/setup sdk", path.display());
    Ok(path)
}

struct Demo {
    steps: Vec<Step>,
    folder: PathBuf,
    logs: Vec<PathBuf>,
}

impl Demo {
    fn run(&mut self) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        let image = self.step("bake rootfs.ext4", "", || Image::native().envd(Envd::preferred()).bake())?;
        let vm = self.step("boot to a healthy envd", "", || boot(&image))?;
        let outcome = self.with(&vm);
        self.logs.push(vm.save_logs());
        outcome
    }

    fn with(&mut self, vm: &Vm) -> Result<()> {
        self.step("POST /init", "tcp", || vm.init_envd(Via::Tcp))?;
        let log = self.folder.join("bridge.log");
        let bridge = self.step("start the bridge", "", || Bridge::start(vm, &log))?;
        self.logs.push(bridge.log.clone());
        self.sdk("calls", "tcp")?;
        self.step("break TCP in the namespace", "", || tcp(vm, "-I"))?;
        self.sdk("calls", "vsock")?;
        self.step("the bridge took vsock", "", || bridge.uses("firecracker:"))?;
        self.step("heal TCP in the namespace", "", || tcp(vm, "-D"))?;
        self.step("the bridge is back on tcp", "", || bridge.returns(vm))?;
        self.sdk("calls", "tcp again")?;
        self.step("SIGKILL envd", "", || kill_envd(vm))?;
        self.sdk("one", "tcp")?;
        self.step("POST /init", "vsock", || vm.init_envd(Via::Vsock))?;
        self.sdk("whoami", "tcp")
    }

    /// Times one step and keeps what came of it.
    fn step<T>(&mut self, name: &str, route: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = action();
        let detail = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        let seconds = begin.elapsed().as_secs_f64();
        self.add(Step { name: name.to_owned(), route: route.to_owned(), ok: result.is_ok(), seconds, detail });
        result
    }

    fn add(&mut self, step: Step) {
        println!("demo: {}", line(&step));
        self.steps.push(step);
    }

    /// Runs the SDK; a step that fails is in the table, and the demo goes on.
    fn sdk(&mut self, mode: &str, route: &str) -> Result<()> {
        let mut child = Command::new(python()?)
            .arg(paths::root().join("tests/sdk/steps.py"))
            .arg(mode)
            .stdout(Stdio::piped())
            .spawn()
            .context("start the SDK")?;
        let output = child.stdout.take().context("the SDK's output")?;
        let mut count = 0;
        for json in BufReader::new(output).lines() {
            let step: Step = serde_json::from_str(&json?).context("a line of the SDK's steps")?;
            self.add(Step { route: route.to_owned(), ..step });
            count += 1;
        }
        child.wait()?;
        ensure!(count > 0, "the SDK's steps ended without a word");
        Ok(())
    }

    fn finish(&self) -> Result<bool> {
        let failed = self.steps.iter().filter(|step| !step.ok).count();
        let passed = self.steps.len() - failed;
        println!("\n{:<36} {:<10} {:>8}", "step", "route", "seconds");
        self.steps.iter().for_each(|step| println!("{}", line(step)));
        if failed > 0 {
            self.logs.iter().for_each(|log| println!("see {}", log.display()));
        }
        println!("result: {}", self.folder.join("result.json").display());
        println!("{passed} passed, {failed} failed");
        let envd = if Envd::real().is_some() { "real" } else { "stand-in" };
        let outcome = Outcome { passed, failed, envd, steps: &self.steps };
        fs::create_dir_all(&self.folder)?;
        fs::write(self.folder.join("result.json"), serde_json::to_vec_pretty(&outcome)?)?;
        Ok(failed == 0)
    }
}

fn line(step: &Step) -> String {
    let mark = if step.ok { "ok" } else { "FAILED" };
    let detail = if step.ok { String::new() } else { format!("  {}", step.detail) };
    format!("{:<36} {:<10} {:>8.2} {mark}{detail}", step.name, step.route, step.seconds)
}

fn boot(image: &Image) -> Result<Vm> {
    let vm = Vm::of(image).kernel(Kernel::preferred()).boot()?;
    vm.console().echo("guest | ");
    vm.console().wait("envd is healthy")?;
    vm.wait_healthy(Via::Tcp)?;
    vm.wait_healthy(Via::Vsock)?;
    Ok(vm)
}

/// Adds or removes the rule that answers every connection to envd with a reset, as a bridge to nowhere does.
fn tcp(vm: &Vm, how: &str) -> Result<()> {
    let rule = ["OUTPUT", "-p", "tcp", "--dport", "49983", "-j", "REJECT", "--reject-with", "tcp-reset"];
    vm.netns().run("iptables", &[&[how], &rule[..]].concat()).map(drop)
}

fn kill_envd(vm: &Vm) -> Result<()> {
    let mark = vm.console().mark();
    // It takes the shell's own connection with it.
    let _ = vm.exec_as(Via::Vsock, "kill -KILL $(pidof envd)", Some("root"));
    vm.console().wait_after(mark, "ended by SIGKILL").map(drop)
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
            .args(["--route", &vm.tcp_endpoint(), "--route", &vm.vsock_endpoint(49983)])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start envdctl bridge")?;
        let mut bridge = Self { child, log: log.to_owned() };
        wait::until("the bridge to listen", CHANGE, || {
            ensure!(bridge.child.try_wait()?.is_none(), "the bridge ended: {}", bridge.text());
            Ok(std::net::TcpStream::connect(LISTEN).ok())
        })?;
        Ok(bridge)
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its last word about routes names this one.
    fn uses(&self, route: &str) -> Result<()> {
        let text = self.text();
        let last = text.lines().rev().find(|line| line.contains("route")).unwrap_or_default();
        ensure!(last.contains(route), "the bridge's last word on routes is: {last}");
        println!("demo: bridge | {last}");
        Ok(())
    }

    /// Clients keep coming until the preferred route is taken again.
    fn returns(&self, vm: &Vm) -> Result<()> {
        let change = self.text().len();
        wait::until("the bridge to return to tcp", CHANGE, || {
            let _ = std::net::TcpStream::connect(LISTEN);
            let text = self.text();
            let said = text.get(change..).unwrap_or_default();
            let back = said.lines().find(|line| line.contains("route") && line.contains(&vm.tcp_endpoint()));
            Ok(back.map(|line| println!("demo: bridge | {line}")))
        })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
