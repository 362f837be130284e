//! Progress on a terminal, one line for each step; nothing when the output is no terminal.

use std::{borrow::Cow, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// Set to a step's name, the program kills itself at its begin: so tests see what a crash leaves.
const KILL_AT: &str = "ROOTFS_TEST_KILL_AT";

/// One step under way.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
}

/// Begins a step. `bytes` is how much there is to do, where that is known.
pub fn step(name: &'static str, text: impl Into<Cow<'static, str>>, bytes: Option<u64>) -> Step {
    if std::env::var_os(KILL_AT).is_some_and(|at| at == name) {
        kill_self();
    }
    let bar = bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = match bytes {
        Some(_) => "{spinner} {msg} {wide_bar} {bytes}/{total_bytes}",
        None => "{spinner} {msg} {elapsed}",
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message(text);
    bar.enable_steady_tick(Duration::from_millis(100));
    Step { bar }
}

impl Step {
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// As `kill -9` would: nothing is cleaned up.
fn kill_self() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort();
}
