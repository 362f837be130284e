//! Progress on a terminal, one line for each step; nothing when the output is no terminal.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// Set to `STEP` or `STEP:N`, the program kills itself at the (N-th) begin of that step: so tests see what a crash leaves.
const KILL_AT: &str = "ROOTFS_TEST_KILL_AT";
/// How often the step to be killed at has begun.
static BEGUN: AtomicU32 = AtomicU32::new(0);

/// One step under way.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
}

/// Begins a step. `bytes` is how much there is to do, where that is known.
pub fn step(name: &'static str, text: impl Into<Cow<'static, str>>, bytes: Option<u64>) -> Step {
    kill_at(name);
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
fn kill_at(name: &str) {
    let Ok(at) = std::env::var(KILL_AT) else { return };
    let (step, count) = at.split_once(':').unwrap_or((&at, "1"));
    if step == name && Ok(BEGUN.fetch_add(1, Ordering::Relaxed) + 1) == count.parse() {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}
