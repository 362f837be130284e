//! A way into the guest that shares nothing with what is broken in it: a small program on a vsock port of its own.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{http, wait};

/// What runs in the guest.
pub(super) const PROGRAM: &str = include_str!("agent.py");
/// Its service: never frozen, never the OOM killer's.
pub(super) const SERVICE: &str = "command = ['/usr/bin/python3', '/opt/chaos-agent.py']\nrestart = 'always'\n\
    placement = 'init.scope'\noom_score_adj = -1000\n";
const PORT: u32 = 7001;

/// The host's side.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: PathBuf,
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Done {
    /// Negative: the number of the signal that ended it.
    pub status: i32,
    /// Both streams, without the last newline.
    pub output: String,
}

impl Agent {
    /// Through the VMM's socket.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// A shell command as root that must succeed: what it printed.
    pub fn sh(&self, command: &str) -> Result<String> {
        let done = self.run(command)?;
        ensure!(done.status == 0, "`{command}` ended with {}: {}", done.status, done.output);
        Ok(done.output)
    }

    /// The same, whatever its status. What it leaves in the background must not hold its output open.
    pub fn run(&self, command: &str) -> Result<Done> {
        self.run_within(command, wait::BOUND)
    }

    pub fn run_within(&self, command: &str, bound: Duration) -> Result<Done> {
        self.exchange(command, bound).with_context(|| format!("running `{command}` in the guest, past envd"))
    }

    fn exchange(&self, command: &str, bound: Duration) -> Result<Done> {
        let mut stream = http::hybrid_vsock(&self.socket, PORT, bound)?;
        stream.set_read_timeout(Some(bound))?;
        stream.write_all(&(command.len() as u32).to_be_bytes())?;
        stream.write_all(command.as_bytes())?;
        let (mut status, mut length) = ([0; 4], [0; 4]);
        stream.read_exact(&mut status).context("waiting for its end")?;
        stream.read_exact(&mut length)?;
        let mut output = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut output)?;
        let output = String::from_utf8_lossy(&output).trim_end_matches('\n').to_owned();
        Ok(Done { status: i32::from_be_bytes(status), output })
    }
}
