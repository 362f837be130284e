//! QEMU's monitor: one JSON message a line; events come in between and are kept.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::wait;

#[derive(Debug)]
struct Connection {
    reader: BufReader<UnixStream>,
    events: Vec<Value>,
}

#[derive(Debug)]
pub struct Qmp {
    connection: Mutex<Connection>,
}

impl Qmp {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(wait::BOUND))?;
        let connection = Connection { reader: BufReader::new(stream), events: Vec::new() };
        let qmp = Self { connection: Mutex::new(connection) };
        qmp.connection.lock().unwrap_or_else(PoisonError::into_inner).read()?; // the greeting
        qmp.command("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Any command: what it returned.
    pub fn command(&self, name: &str, arguments: &Value) -> Result<Value> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let request = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        connection
            .reader
            .get_mut()
            .write_all(request.as_bytes())
            .with_context(|| format!("asking QEMU to {name}"))?;
        loop {
            let message = connection.read().with_context(|| format!("asking QEMU to {name}"))?;
            if message.get("event").is_some() {
                connection.events.push(message);
            } else if let Some(error) = message.get("error") {
                bail!("QEMU refuses to {name}: {error}");
            } else if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Freezes all virtual processors.
    pub fn stop(&self) -> Result<()> {
        self.command("stop", &json!({})).map(drop)
    }

    /// Lets them go on.
    pub fn cont(&self) -> Result<()> {
        self.command("cont", &json!({})).map(drop)
    }

    /// The reset button. The VM ends, unless it was built to survive a reboot.
    pub fn reset(&self) -> Result<()> {
        self.command("system_reset", &json!({})).map(drop)
    }

    /// Ends the VM at once.
    pub fn quit(&self) -> Result<()> {
        self.command("quit", &json!({})).map(drop)
    }

    /// Ctrl-Alt-Del, as a keyboard sends it.
    pub fn ctrl_alt_del(&self) -> Result<()> {
        let keys: Vec<Value> =
            ["ctrl", "alt", "delete"].map(|key| json!({ "type": "qcode", "data": key })).to_vec();
        self.command("send-key", &json!({ "keys": keys })).map(drop)
    }

    /// `running`, `paused`, `shutdown` …
    pub fn status(&self) -> Result<String> {
        let status = self.command("query-status", &json!({}))?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    /// The link of the network card.
    pub fn set_link(&self, up: bool) -> Result<()> {
        self.command("set_link", &json!({ "name": "net0", "up": up })).map(drop)
    }

    /// A line of the human monitor.
    pub fn human(&self, line: &str) -> Result<String> {
        let output = self.command("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(output.as_str().unwrap_or_default().to_owned())
    }

    /// The events seen between answers so far.
    pub fn events(&self) -> Vec<Value> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).events.clone()
    }
}

impl Connection {
    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("reading QEMU's monitor")? == 0 {
            bail!("QEMU closed its monitor");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor said {line:?}"))
    }
}
