//! The relay's counters, in a file that PID 1 shows to whoever asks for the status.
//!
//! One padded line, rewritten in place; never while bytes are moving, but at the first quiet moment after a change.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use guest::control::RelayStatus;
use tracing::warn;

/// Wake-ups after which a relay that is never quiet writes its counters all the same.
const PATIENCE: u32 = 256;
/// The line's length (bytes), so that a shorter one never leaves a piece of a longer one behind it.
const WIDTH: usize = 256;

pub(super) struct Counters {
    pub(super) now: RelayStatus,
    written: RelayStatus,
    waited: u32,
    file: Option<File>,
}

impl Counters {
    /// Without a path nothing is written. A file that cannot be made is said once, and done without.
    pub(super) fn new(path: Option<&PathBuf>) -> Self {
        let empty = RelayStatus { connections: 0, total: 0, refused: 0 };
        let file = path.and_then(|path| {
            open(path).map_err(|error| warn!("cannot write counters to {}: {error}", path.display())).ok()
        });
        let mut counters = Self { now: empty.clone(), written: empty, waited: 0, file };
        counters.write();
        counters
    }

    /// Whether there is something to write at the next quiet moment.
    pub(super) fn is_dirty(&self) -> bool {
        self.file.is_some() && self.now != self.written
    }

    /// To be called after each wake-up.
    pub(super) fn after_wakeup(&mut self, quiet: bool) {
        if !self.is_dirty() {
            return;
        }
        self.waited += 1;
        if quiet || self.waited >= PATIENCE {
            self.write();
        }
    }

    pub(super) fn write(&mut self) {
        self.waited = 0;
        self.written = self.now.clone();
        guest::log::flush();
        let Some(file) = &self.file else { return };
        let Ok(mut line) = serde_json::to_string(&self.now) else { return };
        let padding = WIDTH.saturating_sub(line.len() + 1);
        line.extend(std::iter::repeat_n(' ', padding));
        line.push('\n');
        // A full /run costs the counters, not the connections.
        let _ = file.write_all_at(line.as_bytes(), 0);
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    File::options().write(true).create(true).truncate(true).mode(0o644).open(path)
}
