//! One bridge, many sandboxes without clients: what it costs to have them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use tempfile::TempDir;
use tests::paths;

use crate::load::Door;
use crate::peers;
use crate::plan::Plan;
use crate::process::Process;
use crate::row::{Curve, Findings, Growth, Subject};

const SANDBOXES: [usize; 4] = [1, 10, 100, 1000];
const ROUNDS: usize = 3;
/// Of rest.
const WINDOW: Duration = Duration::from_secs(5);
/// After the last client has gone: probes end with the clients.
const SETTLE: Duration = Duration::from_secs(2);
const MIB: f64 = 1024.0 * 1024.0;

/// Samples of one size.
#[derive(Debug, Default)]
struct Cost {
    cpu_percent: Vec<f64>,
    memory_mib: Vec<f64>,
}

pub(crate) fn measure(plan: &Plan, found: &mut Findings) -> Result<()> {
    let (mut cpu, mut memory) = (Vec::new(), Vec::new());
    let mut last = Cost::default();
    for count in SANDBOXES {
        plan.say(&format!("bridge: {count} sandboxes without clients"));
        last = cost(count)?;
        cpu.push((count as f64, last.cpu_percent.clone()));
        memory.push((count as f64, last.memory_mib.clone()));
    }
    found.rows.extend([
        Subject::lower("bridge.idle_cpu_1000_routes", "% of a core").alone(&last.cpu_percent, Some(1.0)),
        Subject::lower("bridge.memory_1000_routes_mib", "MiB").alone(&last.memory_mib, Some(50.0)),
    ]);
    let growth = |name, title, cost, points| Growth {
        name,
        title,
        of: "sandboxes",
        cost,
        curves: vec![Curve { name: "envdctl bridge".into(), points }],
    };
    found.growth.extend([
        growth("bridge-cpu", "CPU of a bridge without clients", "% of a core", cpu),
        growth("bridge-memory", "Memory of a bridge", "MiB (PSS)", memory),
    ]);
    Ok(())
}

/// Every sandbox has been used once, so that nothing is measured that was never there.
fn cost(count: usize) -> Result<Cost> {
    let bed = Bed::new(count)?;
    let bridge = bed.start()?;
    for listen in bed.listens() {
        Door::Unix(listen).wait()?;
    }
    thread::sleep(SETTLE);
    let mut cost = Cost::default();
    for _ in 0..ROUNDS {
        let (before, begin) = (bridge.cpu_seconds(), Instant::now());
        thread::sleep(WINDOW);
        let used = bridge.cpu_seconds() - before;
        cost.cpu_percent.push(used / begin.elapsed().as_secs_f64() * 100.0);
        cost.memory_mib.push(bridge.pss()? / MIB);
    }
    Ok(cost)
}

/// A folder with an entry for each sandbox, and one server behind them all.
struct Bed {
    folder: TempDir,
    count: usize,
    _server: Process,
}

impl Bed {
    fn new(count: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let server = folder.path().join("server");
        let process = peers::server_on(&server)?;
        let bed = Self { folder, count, _server: process };
        bed.write_entries(&server)?;
        Ok(bed)
    }

    fn write_entries(&self, server: &Path) -> Result<()> {
        fs::create_dir(self.config())?;
        for (number, listen) in self.listens().enumerate() {
            let entry =
                format!("listen = 'unix:{}'\nroutes = ['unix:{}']\n", listen.display(), server.display());
            fs::write(self.config().join(format!("s{number}.toml")), entry)?;
        }
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    fn listens(&self) -> impl Iterator<Item = PathBuf> {
        (0..self.count).map(|number| self.folder.path().join(format!("s{number}.sock")))
    }

    fn start(&self) -> Result<Process> {
        let mut command = Command::new(paths::host_bin("envdctl")?);
        command.arg("bridge").arg("--config").arg(self.config());
        let mut process = Process::start(&command)?;
        let listens: Vec<_> = self.listens().collect();
        process.until("its sandboxes", || listens.iter().all(|listen| listen.exists()).then_some(()))?;
        Ok(process)
    }
}
