//! The official E2B SDK against one route to the guest, inside the VM's namespace, so that tests do not meet at one port.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::vm::{Process, Vm};
use crate::{Via, net, paths, wait};

/// The only place where the SDK's debug mode looks.
const LISTEN: &str = "127.0.0.1:49983";

/// What the bridge says, in the VM's folder.
const LOG: &str = "bridge.log";

/// Creates a sandbox, runs commands, writes and reads a file: every call must succeed.
pub fn calls(vm: &Vm, via: Via) -> Result<()> {
    let _bridge = bridge(vm, via)?;
    let python = paths::tool("venv/bin/python3")?;
    let output = Command::new("ip")
        .args(["netns", "exec", vm.netns().name()])
        .arg(python)
        .arg(paths::root().join("tests/sdk/steps.py"))
        .arg("calls")
        .env("PYTHONWARNINGS", "ignore")
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("ALL_PROXY")
        .output()
        .context("starting the SDK's script")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let good = said.lines().filter(|line| line.contains("\"ok\": true")).count();
    ensure!(
        output.status.success() && good >= 5,
        "the SDK over {via:?} ended with {}:\n{said}{}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        std::fs::read_to_string(vm.dir().join(LOG)).unwrap_or_default()
    );
    Ok(())
}

/// `envdctl bridge` with this route alone.
fn bridge(vm: &Vm, via: Via) -> Result<Process> {
    let route = match via {
        Via::Tcp => format!("tcp:{}:{}", net::GUEST, envd_api::PORT),
        Via::Vsock => vm.vsock_endpoint(envd_api::PORT.into()),
    };
    let listen = format!("tcp:{LISTEN}");
    let program = paths::host_bin("envdctl")?.display().to_string();
    let words =
        ["netns", "exec", vm.netns().name(), &program, "bridge", "--listen", &listen, "--route", &route];
    let words: Vec<std::ffi::OsString> = words.map(Into::into).to_vec();
    let log = vm.dir().join(LOG);
    let bridge = Process::start(Path::new("ip"), &words, &log)?;
    wait::until("the bridge to listen", wait::BOUND, || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        ensure!(bridge.ended().is_none(), "the bridge ended: {}", said.trim());
        Ok(said.contains("listening on").then_some(()))
    })?;
    Ok(bridge)
}
