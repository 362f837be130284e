//! The world envd lives in, as the platform's own unit makes it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use guest::spawn::{Limit, Output, Program, Resource};
use nix::sys::signal::Signal;

use crate::args::Settings;
use crate::keep;

/// Set where the wrapper's own environment does not have them.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TRACEBACK: &str = "all";
/// The Go heap's soft limit: half of memory, at most this.
const LARGEST_MEMORY_LIMIT_MIB: u64 = 512;
const OPEN_FILES: (u64, u64) = (1024, 524_288);
/// What belongs between us and our own supervisor, not to envd.
const OURS: [&str; 10] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "MAINPID",
    "FDSTORE",
    "JOURNAL_STREAM",
    "ENVD_WRAPPER_REEXECUTED",
];

/// envd as it is to be started. A service of the image's init made our own world, and envd gets just that; otherwise it is the
/// platform's.
pub(crate) fn envd(path: &Path, settings: &Settings) -> Program {
    let platform = platform(path, settings);
    if !(settings.kept && keep::has_service()) {
        return platform;
    }
    let environment = std::env::vars_os().filter(|(name, _)| !is_ours(name)).collect();
    Program {
        environment,
        limits: Vec::new(),
        nice: None,
        io_priority: None,
        oom_score_adj: None,
        directory: None,
        ..platform
    }
}

fn platform(path: &Path, settings: &Settings) -> Program {
    Program {
        path: path.to_path_buf(),
        name: Some("envd".into()),
        arguments: settings.arguments.clone(),
        environment: environment(std::env::vars_os(), settings.memory_mib),
        directory: Some(PathBuf::from("/")),
        identity: None,
        limits: vec![
            Limit { resource: Resource::Core, soft: None, hard: None },
            Limit { resource: Resource::OpenFiles, soft: Some(OPEN_FILES.0), hard: Some(OPEN_FILES.1) },
        ],
        nice: Some(-20),
        io_priority: Some((1, 4)),
        oom_score_adj: Some(-1000),
        cgroup: settings.cgroup().map(Path::to_path_buf),
        cgroup_is_new: settings.cgroup.is_none() && settings.home.is_some(),
        death_signal: Some(Signal::SIGKILL),
        alias_of: None,
        output: Output::Pipes,
        held: false,
    }
}

fn is_ours(name: &OsStr) -> bool {
    OURS.iter().any(|ours| name == *ours)
}

/// Our own environment without what is ours, and with what envd needs.
fn environment(
    own: impl Iterator<Item = (OsString, OsString)>,
    memory_mib: Option<u64>,
) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<_> = own.filter(|(name, _)| !is_ours(name)).collect();
    let limit = memory_mib.map(|total| format!("{}MiB", (total / 2).min(LARGEST_MEMORY_LIMIT_MIB)));
    let defaults =
        [("PATH", Some(PATH.to_owned())), ("GOTRACEBACK", Some(TRACEBACK.to_owned())), ("GOMEMLIMIT", limit)];
    for (name, value) in defaults {
        if let Some(value) = value.filter(|_| !variables.iter().any(|(known, _)| known == name)) {
            variables.push((name.into(), value.into()));
        }
    }
    variables
}

/// Memory of the machine: what /proc/meminfo has as `MemTotal`, without all else that the kernel adds up for that file.
pub(crate) fn memory_mib() -> Option<u64> {
    nix::sys::sysinfo::sysinfo().ok().map(|info| info.ram_total() >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(variables: &[(OsString, OsString)], name: &str) -> Option<String> {
        let (_, value) = variables.iter().find(|(known, _)| known == name)?;
        value.to_str().map(str::to_owned)
    }

    #[test]
    fn the_memory_limit_is_half_of_memory_and_512_mib_at_most() {
        let limit = |mib| variable(&environment([].into_iter(), Some(mib)), "GOMEMLIMIT");
        assert_eq!(limit(256).as_deref(), Some("128MiB"));
        assert_eq!(limit(8192).as_deref(), Some("512MiB"));
    }

    #[test]
    fn a_units_own_environment_is_kept_and_the_supervisors_is_not() {
        let own = [("GOMEMLIMIT", "99MiB"), ("NOTIFY_SOCKET", "/run/x"), ("EXTRA", "1")];
        let own = own.into_iter().map(|(name, value)| (name.into(), value.into()));
        let variables = environment(own, Some(512));
        assert_eq!(variable(&variables, "GOMEMLIMIT").as_deref(), Some("99MiB"));
        assert_eq!(variable(&variables, "EXTRA").as_deref(), Some("1"));
        assert_eq!(variable(&variables, "NOTIFY_SOCKET"), None);
        assert_eq!(variable(&variables, "PATH").as_deref(), Some(PATH));
    }
}
