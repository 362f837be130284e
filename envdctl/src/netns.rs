//! Network namespaces: entered by a thread of their own, because a thread that entered one is not given back.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot open the network namespace {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is no network namespace (a name left over after it was deleted?)", path.display())]
    NotOne { path: PathBuf },
    #[error("entering the network namespace {} needs root", path.display())]
    NotPermitted { path: PathBuf },
    #[error("cannot enter the network namespace {}", path.display())]
    Enter { path: PathBuf, source: io::Error },
    #[error("cannot start a thread to enter {}", path.display())]
    Thread { path: PathBuf, source: io::Error },
}

/// Runs `work` on a thread that lives in the namespace `path`, or on a plain thread where there is none.
/// Sockets that it makes, and programs that it starts, belong to that namespace for good.
pub fn within<T: Send>(path: Option<&Path>, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let Some(path) = path else { return Ok(work()) };
    let file = File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, || enter(&file, path).map(|()| work()))
            .map_err(|source| NetnsError::Thread { path: path.to_owned(), source })?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter(file: &File, path: &Path) -> Result<(), NetnsError> {
    let path = path.to_owned();
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| match error {
        nix::Error::EINVAL => NetnsError::NotOne { path },
        nix::Error::EPERM => NetnsError::NotPermitted { path },
        error => NetnsError::Enter { path, source: error.into() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_named() {
        assert!(matches!(within(Some(Path::new("/no/such")), || ()), Err(NetnsError::Open { .. })));
        assert!(matches!(within(Some(Path::new("/proc/version")), || ()), Err(NetnsError::NotOne { .. })));
    }

    #[test]
    fn without_a_namespace_the_work_is_simply_done() {
        assert_eq!(within(None, || 7).unwrap(), 7);
    }
}
