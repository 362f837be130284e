//! Ctrl-C and TERM: what is under way is removed, and the program ends. (KILL leaves it to the next run on the same output.)

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{Mutex, PoisonError},
    thread,
};

use nix::sys::signal::{SigSet, Signal};

/// Folders that are nobody's once this program has ended.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// From now on signals are waited for by a thread of their own. Called before there is any other thread; programs that are started
/// get the default handling.
pub fn watch() {
    let ignored = ignored();
    let wanted = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let signals: SigSet =
        wanted.into_iter().filter(|signal| ignored >> (*signal as i32 - 1) & 1 == 0).collect();
    if signals.thread_block().is_err() {
        return;
    }
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            end(signal);
        }
    });
}

/// What the caller wants ignored, as `nohup` does, stays ignored: one bit a signal.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn end(signal: Signal) -> ! {
    // Held to the end, so that no folder is made after this.
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in folders.iter() {
        let _ = fs::remove_dir_all(folder);
    }
    eprintln!("rootfs: ended by {signal}; what was not finished is removed");
    process::exit(128 + signal as i32);
}

/// Notes a folder down to be removed.
pub fn remove_at_end(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}

/// It is gone, or belongs to somebody else now.
pub fn forget(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other != folder);
}
