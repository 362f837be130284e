//! The cgroups that envd makes at the root of the hierarchy, and the freeze of the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

const ROOT: &str = "/sys/fs/cgroup";
/// Never frozen, nor what lies under them.
const EXEMPT: &[&str] = &[
    "init.scope",
    "socats",
    "system.slice/systemd-journald.service",
    "system.slice/rpcbind.service",
    "system.slice/rpcbind.socket",
    "system.slice/rpc-statd.service",
];

/// What was frozen, so that the guest's own freezes are left alone at the thaw.
static FROZEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn available() -> bool {
    statfs(ROOT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Makes the cgroups of children. Where there is no cgroup2 they do without.
pub(crate) fn prepare() {
    if available() {
        for name in ["user", "ptys", "socats"] {
            let _ = fs::create_dir(Path::new(ROOT).join(name));
        }
    }
}

/// Where a child goes.
pub(crate) fn for_child(pty: bool) -> Option<PathBuf> {
    let cgroup = Path::new(ROOT).join(if pty { "ptys" } else { "user" });
    (available() && cgroup.exists()).then_some(cgroup)
}

/// `hierarchy`: every cgroup but our own ancestors and the exempt ones; else the children's cgroups alone.
pub(crate) fn freeze(hierarchy: bool) {
    if !available() {
        return;
    }
    let mut chosen = Vec::new();
    if hierarchy {
        choose(Path::new(""), &own_path(), &mut chosen);
    } else {
        chosen = ["user", "ptys"].map(PathBuf::from).to_vec();
    }
    let frozen = chosen.into_iter().filter(|cgroup| fs::write(control(cgroup), "1").is_ok());
    if let Ok(mut list) = FROZEN.lock() {
        list.extend(frozen);
    }
}

/// After a live upgrade: what the predecessor froze is ours to thaw.
pub(crate) fn take_over() {
    if let Ok(mut list) = FROZEN.lock() {
        list.extend(["user", "ptys"].map(PathBuf::from));
    }
}

pub(crate) fn thaw() {
    let frozen = FROZEN.lock().map(|mut list| std::mem::take(&mut *list)).unwrap_or_default();
    for cgroup in frozen {
        let _ = fs::write(control(&cgroup), "0");
    }
}

fn control(cgroup: &Path) -> PathBuf {
    Path::new(ROOT).join(cgroup).join("cgroup.freeze")
}

/// Our cgroup, relative to the root.
fn own_path() -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    PathBuf::from(path)
}

/// The highest cgroups under `at` that may be frozen whole.
fn choose(at: &Path, own: &Path, chosen: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(Path::new(ROOT).join(at)).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let cgroup = at.join(entry.file_name());
        if EXEMPT.iter().any(|exempt| cgroup == Path::new(exempt)) {
            continue;
        }
        let holds_exempt = EXEMPT.iter().any(|exempt| Path::new(exempt).starts_with(&cgroup));
        if own.starts_with(&cgroup) || holds_exempt {
            choose(&cgroup, own, chosen);
        } else {
            chosen.push(cgroup);
        }
    }
}
