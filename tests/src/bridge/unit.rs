//! The systemd unit of `docs/operations.md`, run as it stands there by the systemd of a guest: the guest plays the host, its envd
//! the envd of a sandbox, in a network namespace that appears after the bridge has started.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Via, Vm, paths, wait};

const UNIT: &str = "/etc/systemd/system/envd-bridge.service";
const PROGRAM: &str = "/usr/local/bin/envdctl";
const FOLDER: &str = "/etc/envdctl/bridge.d";
/// What answers in the namespace is the guest's own envd, two hops away.
const SANDBOX: &str = "
set -e
ip netns add later
ip -n later link set lo up
systemd-run -q --unit=way-in ip netns exec later \
    socat TCP-LISTEN:49983,bind=127.0.0.1,fork,reuseaddr UNIX-CONNECT:/run/way-in
systemd-run -q --unit=way-on socat UNIX-LISTEN:/run/way-in,fork TCP:127.0.0.1:49983
";
const CLEAN: &str = "
systemctl stop way-in way-on
ip netns del later
rm -rf /etc/systemd/system/envd-bridge.service /usr/local/bin/envdctl /etc/envdctl /run/way-in
";

/// All that the document promises of the unit.
pub fn keeps_its_promises(vm: &Vm) -> Result<()> {
    let host = Host(vm);
    host.install()?;
    host.sh("systemctl start envd-bridge").context("readiness")?;
    host.sh("test -S /run/envd-bridge/metrics.sock").context("metrics once it is ready")?;
    host.sh(SANDBOX)?;
    host.add("first", 50001, "netns:later/tcp:127.0.0.1:49983")?;
    host.sh("systemctl reload envd-bridge").context("reload")?;
    host.wait_served(50001)?;
    host.privileges_are_the_brokers()?;
    host.a_reload_leaves_connections_alone()?;
    host.comes_back_after_a_kill()?;
    host.metrics_and_journal_tell()?;
    host.stops_cleanly()?;
    host.sh(CLEAN).map(drop)
}

/// The block of the document, word for word.
fn unit() -> Result<String> {
    let page = fs::read_to_string(paths::root().join("docs/operations.md"))?;
    let block = page.split_once("```ini\n").and_then(|(_, rest)| rest.split_once("```"));
    Ok(block.context("docs/operations.md has no unit")?.0.to_owned())
}

struct Host<'a>(&'a Vm);

impl Host<'_> {
    fn sh(&self, command: &str) -> Result<String> {
        self.0.sh(Via::Tcp, command)
    }

    /// A script that needs bash, for connections of its own; not by a login shell, which is slow to start.
    fn bash(&self, script: String) -> Result<String> {
        self.0.upload("/run/script", script.into_bytes())?;
        self.sh("bash /run/script")
    }

    /// systemd has nothing to say against a single line of it.
    fn install(&self) -> Result<()> {
        self.0.upload(PROGRAM, fs::read(paths::host_bin("envdctl")?)?)?;
        self.0.upload(UNIT, unit()?.into_bytes())?;
        self.sh(&format!("chmod 755 {PROGRAM} && {PROGRAM} --version"))?;
        let said = self.sh(&format!("systemd-analyze verify {UNIT} 2>&1"))?;
        ensure!(said.is_empty(), "systemd says of the unit: {said}");
        Ok(())
    }

    fn shows(&self, properties: &[&str]) -> Result<()> {
        let state = self.sh("systemctl show envd-bridge")?;
        for property in properties {
            let name = property.split('=').next().unwrap_or_default();
            let found = state.lines().find(|line| line.starts_with(&format!("{name}=")));
            ensure!(found == Some(*property), "{found:?} instead of {property}");
        }
        Ok(())
    }

    /// As what starts a sandbox does: written beside the folder and renamed in.
    fn add(&self, name: &str, port: u16, route: &str) -> Result<()> {
        self.sh(&entry(name, port, route)).map(drop)
    }

    fn wait_served(&self, port: u16) -> Result<()> {
        let ask = format!("curl -sS -m 20 -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{port}/health");
        let served = || Ok(self.sh(&ask).is_ok_and(|status| status == "204").then_some(()));
        wait::gently(&format!("port {port} to be served"), wait::BOUND, served)
    }

    /// The process that clients talk to holds no capability; its helper holds those that it needs.
    fn privileges_are_the_brokers(&self) -> Result<()> {
        let held = self.sh(
            "p=$(systemctl show envd-bridge -P MainPID); grep -h CapEff /proc/$p/status /proc/$(pgrep -P $p)/status",
        )?;
        let held: Vec<_> = held.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        // CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_DAC_OVERRIDE
        ensure!(held == ["0000000000000000", "0000000000280002"], "capabilities: {held:?}");
        Ok(())
    }

    /// A connection that was open before a reload is used after it, when the new entry is served.
    fn a_reload_leaves_connections_alone(&self) -> Result<()> {
        let said = self.bash(format!(
            "exec 3<>/dev/tcp/127.0.0.1/50001
            ask() {{
                printf 'GET /health HTTP/1.1\\r\\nHost: envd\\r\\n\\r\\n' >&3
                read -r -t 60 status <&3; echo \"$status\"
                while read -r -t 60 line && [ \"$line\" != $'\\r' ]; do :; done <&3
            }}
            ask
            {}
            systemctl reload envd-bridge
            until curl -sf -m 20 http://127.0.0.1:50002/health; do sleep 0.2; done
            ask",
            entry("second", 50002, "tcp:127.0.0.1:49983")
        ))?;
        ensure!(said.matches("HTTP/1.1 204").count() == 2, "the two answers: {said:?}");
        Ok(())
    }

    fn comes_back_after_a_kill(&self) -> Result<()> {
        let main = || self.sh("systemctl show envd-bridge -P MainPID");
        let old = main()?;
        self.sh("systemctl kill -s KILL --kill-who=main envd-bridge")?;
        self.wait_served(50001)?;
        self.wait_served(50002)?;
        ensure!(main()? != old, "the bridge was not killed");
        self.shows(&["NRestarts=1", "StatusText=serving 2 sandboxes"]).context("after a kill")
    }

    fn metrics_and_journal_tell(&self) -> Result<()> {
        let page = self.sh("curl -sSf --unix-socket /run/envd-bridge/metrics.sock http://bridge/metrics")?;
        let used = r#"envd_bridge_route_in_use{sandbox="first",route="netns:later/tcp:127.0.0.1:49983"} 1"#;
        ensure!(page.contains(used), "the metrics tell: {page}");
        let journal = self.sh("journalctl --sync; journalctl -o cat _COMM=envdctl")?;
        let events = journal.lines().map(|line| {
            let record: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            Ok(format!("{} {}", record["event"], record["sandbox"]))
        });
        let events = events.collect::<Result<Vec<_>>>()?;
        for sandbox in ["first", "second"] {
            let listening = format!(r#""listening" "{sandbox}""#);
            // Once at first, once after the kill.
            ensure!(
                events.iter().filter(|event| **event == listening).count() == 2,
                "the journal: {events:?}"
            );
        }
        Ok(())
    }

    fn stops_cleanly(&self) -> Result<()> {
        self.sh("systemctl stop envd-bridge")?;
        self.shows(&["Result=success", "ExecMainStatus=0"]).context("after a stop")?;
        let left = "! curl -s http://127.0.0.1:50001/health && ! test -e /run/envd-bridge";
        self.sh(left).context("what a stop leaves behind").map(drop)
    }
}

/// Commands that put one sandbox's entry into the folder.
fn entry(name: &str, port: u16, route: &str) -> String {
    let text = format!("listen = \"tcp:127.0.0.1:{port}\"\\nroutes = [\"{route}\"]\\n");
    format!("printf '{text}' >{FOLDER}.{name} && mv {FOLDER}.{name} {FOLDER}/{name}.toml")
}
