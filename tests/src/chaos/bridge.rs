//! The bridge is killed under load and started again: see [`crate::bridge::Bed`].

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guest::{Guest, Stage};
use super::{Scenario, Trial};
use crate::bridge::fake::{self, Envd, Vmm, get, request};
use crate::net::NetNs;
use crate::{paths, sweep, wait};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "bridge-kills",
    about: "SIGKILL of the bridge under load; it listens again at once and leaves no socket and no namespace behind",
    stage: Stage::Host,
    full: 50,
    brief: 3,
    wears_out: false,
    waits: false,
    run: kills,
}];

const CLIENTS: usize = 4;
const PORT: u16 = 49_987;

/// A bridge with a listener in a namespace and one at a path, both leading into the namespace and to a VMM.
struct Bed {
    ns: NetNs,
    _envd: Envd,
    _vmm: Vmm,
    folder: fake::Dir,
}

impl Bed {
    fn new() -> Result<Self> {
        let ns = NetNs::new(&sweep::unique_name())?;
        ns.ip(&["addr", "add", "169.254.0.21/32", "dev", "lo"])?;
        let envd = Envd::in_namespace(&ns, "tcp");
        let vmm = Vmm::new("vsock");
        let folder = fake::dir();
        let entry = |listen: &str| {
            format!(
                "listen = '{listen}'\nroutes = ['netns:{}/tcp:169.254.0.21:49983', 'firecracker:{}:49983']\n",
                ns.name(),
                vmm.path().display()
            )
        };
        fs::create_dir(folder.path().join("config"))?;
        let socket = folder.path().join("listen.sock");
        fs::write(folder.path().join("config/unix.toml"), entry(&format!("unix:{}", socket.display())))?;
        fs::write(folder.path().join("config/tcp.toml"), entry(&format!("tcp:127.0.0.1:{PORT}")))?;
        Ok(Self { ns, _envd: envd, _vmm: vmm, folder })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("listen.sock")
    }

    fn start(&self) -> Result<Child> {
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        Command::new(paths::host_bin("envdctl")?)
            .args(["bridge", "--config"])
            .arg(self.folder.path().join("config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting the bridge")
    }

    /// Both listeners serve.
    fn serves(&self) -> Result<()> {
        let both = || {
            let tcp = get(&format!("127.0.0.1:{PORT}"), "/tag").is_ok();
            let unix = UnixStream::connect(self.socket()).is_ok_and(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(20))).is_ok()
                    && request(&mut stream, "/tag").is_ok()
            });
            Ok((tcp && unix).then_some(()))
        };
        wait::until("both listeners of the bridge", wait::BOUND, both)
            .with_context(|| format!("the bridge said:\n{}", self.log()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

fn kills(_: &Guest, trial: &mut Trial) -> Result<()> {
    let bed = Bed::new()?;
    let (enough, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut times = Vec::new();
    thread::scope(|scope| -> Result<()> {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let _ = get(&format!("127.0.0.1:{PORT}"), "/tag");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let outcome = rounds(&bed, trial, &mut times);
        enough.store(true, Ordering::Relaxed);
        outcome
    })?;
    trial.times("serving again", &times);
    trial.figure(format!("{} requests meanwhile", asked.into_inner()));
    let name = bed.ns.name().to_owned();
    drop(bed);
    trial.require(!Path::new("/run/netns").join(&name).exists(), || {
        format!("the namespace {name} is still there")
    });
    Ok(())
}

fn rounds(bed: &Bed, trial: &mut Trial, times: &mut Vec<Duration>) -> Result<()> {
    for turn in 1..=trial.count {
        let begun = Instant::now();
        let mut bridge = bed.start()?;
        let served = trial.attempt(format!("start {turn}"), bed.serves());
        times.extend(served.map(|()| begun.elapsed()));
        thread::sleep(Duration::from_millis(trial.dice.u64(..100)));
        let helpers = children(bridge.id());
        bridge.kill()?;
        bridge.wait()?;
        trial.attempt(format!("helpers after kill {turn}"), all_gone(&helpers));
    }
    Ok(())
}

/// The processes that the bridge has started.
fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// They end with the bridge: none keeps a namespace or a socket.
fn all_gone(helpers: &[u32]) -> Result<()> {
    ensure!(!helpers.is_empty(), "the bridge had no helper: was it looked for rightly?");
    wait::until("the bridge's helpers to end", wait::BOUND, || {
        let alive = helpers.iter().any(|pid| is_running(*pid));
        Ok((!alive).then_some(()))
    })
}

/// Not counting what is dead and waits for its parent.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
