//! Debian's services in one image: shared by the test that boots them and by the benchmark that sets them beside systemd.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::net::run;
use crate::paths;

/// One of the services in the image.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// As PID 1 calls it.
    pub name: &'static str,
    /// A command of root's that succeeds when it answers.
    pub answers: &'static str,
    /// A command that prints its main process.
    pub main: &'static str,
}

pub const SERVICES: [Service; 6] = [
    Service { name: "nginx", answers: "curl -sf -o /dev/null http://127.0.0.1/", main: "cat /run/nginx.pid" },
    Service { name: "redis-server", answers: "redis-cli ping | grep -q PONG", main: "pgrep -x redis-server" },
    Service {
        name: "postgresql@15-main",
        answers: "su postgres -c \"psql -Atc 'select 40+2'\" | grep -qx 42",
        main: "cat /run/postgresql/15-main.pid",
    },
    Service {
        name: "sshd",
        answers: "timeout 20 bash -c 'exec 3<>/dev/tcp/127.0.0.1/22; head -1 <&3' | grep -q SSH-2",
        main: "pgrep -o -x sshd",
    },
    Service { name: "chronyd", answers: "chronyc -n tracking", main: "pgrep -x chronyd" },
    Service { name: "cron", answers: "pgrep -x cron", main: "pgrep -x cron" },
];

/// A Debian base with all of them, booted by systemd, and without an envd.
pub fn base() -> Result<PathBuf> {
    let script = paths::root().join("scripts/units-base").display().to_string();
    let output = run(&script, &[])?;
    Ok(paths::root().join(output.lines().last().context("scripts/units-base printed no path")?))
}
