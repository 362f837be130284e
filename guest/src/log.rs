//! The one logger of the guest programs: to the serial console, for people, and to the ring, for later.
//!
//! Code logs by the macros of `tracing`; what children print comes in by [`emit`]. Both end in the same record. Each
//! component has a token bucket for the console, because a serial line costs a VM exit a byte; what the bucket refuses
//! still goes to the ring, and is counted and said.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span;

use crate::bucket::Bucket;
use crate::clock::{self, Moment};
use crate::console::Console;
use crate::mirror::Mirror;
use crate::record::{self, Level};
use crate::ring::{self, Ring};

/// Lines a component may print on the console at once, and then a second.
const BURST: u32 = 60;
const PER_SECOND: u32 = 10;
/// Lines of a crash that are printed whatever was printed before them, and then a second.
const CRASH_BURST: u32 = 200;
const CRASH_PER_SECOND: u32 = 2;

static LOGGER: Mutex<Option<Logger>> = Mutex::new(None);

#[derive(Debug)]
struct Logger {
    component: &'static str,
    console: Console,
    ring: Ring,
    mirror: Option<Mirror>,
    sources: BTreeMap<String, Source>,
    debug: bool,
}

/// What one component may still print on the console.
#[derive(Debug)]
struct Source {
    bucket: Bucket,
    crash: Bucket,
    suppressed: u64,
}

/// Makes this process log as `component`. To be called once, first thing in `main`.
pub fn init(component: &'static str) {
    begin(component);
    reopen();
}

/// The same, and opens nothing yet: what is said is kept until [`reopen`]. For a program that has something to do first.
pub fn begin(component: &'static str) {
    let ring = Ring::new(ring::FOLDER, component);
    let console = Console::default();
    let logger = Logger { component, console, ring, mirror: None, sources: BTreeMap::new(), debug: false };
    *LOGGER.lock().unwrap_or_else(PoisonError::into_inner) = Some(logger);
    let _ = tracing::subscriber::set_global_default(Bridge);
}

/// From now on everything goes to standard error as well, where somebody reads it; see [`Mirror::open`].
pub fn mirror_on_stderr(may_wait: bool) {
    with(|logger| logger.mirror = Mirror::open(logger.console.path(), may_wait));
}

/// Lets records of level debug through.
pub fn set_debug(on: bool) {
    with(|logger| logger.debug = on);
}

/// Opens what is not open yet, console and ring, and says what has waited for that.
pub fn reopen() {
    with(|logger| {
        logger.console.reopen();
        let _ = logger.ring.open();
        logger.console.flush();
    });
}

/// Logs one line that a child printed, or that a component says of itself. Any bytes will do.
pub fn emit(component: &str, level: Level, text: &[u8]) {
    let now = clock::now();
    with(|logger| logger.record(now, component, level, text, false));
}

/// The same, for a line of a crash: it is printed even after a flood, because a crash says most of all.
pub fn emit_crash(component: &str, level: Level, text: &[u8]) {
    let now = clock::now();
    with(|logger| logger.record(now, component, level, text, true));
}

/// The same, to the ring alone.
pub fn keep(component: &str, level: Level, text: &[u8]) {
    let now = clock::now();
    with(|logger| {
        for piece in record::pieces(&record::sanitize(text)) {
            logger.ring.push(now, level, component, &piece);
        }
    });
}

/// Prints a line for machines: whole, and past every bucket.
pub fn machine(kind: &str, json: &str) {
    let now = clock::now();
    with(|logger| {
        let text = format!("{kind} {}", record::sanitize(json.as_bytes()));
        logger.console.print(record::console_line(now, "envd-init", &text).into_bytes());
        logger.keep(now, Level::Info, "envd-init", &text);
    });
}

/// Name of the console's device.
pub fn console_path() -> Option<String> {
    with(|logger| logger.console.path().map(|path| path.display().to_string())).flatten()
}

/// Bytes that the console did not take.
pub fn dropped_bytes() -> u64 {
    with(|logger| logger.console.dropped_bytes()).unwrap_or(0)
}

/// Runs `watch` on the console's descriptor while lines wait for it: an event loop waits for it to become writable.
pub fn while_blocked<T>(watch: impl FnOnce(Option<BorrowedFd<'_>>) -> T) -> Option<T> {
    with(|logger| watch(logger.console.blocked()))
}

/// Runs `act` on the console's descriptor, where there is one.
pub fn with_device<T>(act: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    with(|logger| logger.console.device().map(act)).flatten()
}

/// Leaves the console alone until [`release_console`]: each byte of a serial line costs a virtual machine an exit.
pub fn hold_console() {
    with(|logger| logger.console.hold());
}

/// Writes what was held, and from now on what comes.
pub fn release_console() {
    with(|logger| logger.console.release());
}

/// Writes what waits for the console before the program ends, and waits for it no longer than `bound`.
pub fn drain_console(bound: Duration) {
    with(|logger| logger.console.drain(bound));
}

/// Writes what the console takes now.
pub fn flush() {
    with(|logger| logger.console.flush());
}

/// Runs `act` on the logger. `None`: there is none yet, or it is in use, which in a program of one thread is ourselves: a panic
/// while logging is told by its hook before the lock is released, and waiting for that would be for ever. A poisoned lock only
/// means that such a panic has been: what is there is still good.
fn with<T>(act: impl FnOnce(&mut Logger) -> T) -> Option<T> {
    match LOGGER.try_lock() {
        Ok(mut logger) => logger.as_mut().map(act),
        Err(TryLockError::Poisoned(broken)) => broken.into_inner().as_mut().map(act),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Logger {
    fn record(&mut self, now: Moment, component: &str, level: Level, text: &[u8], crash: bool) {
        if level == Level::Debug && !self.debug {
            return;
        }
        let text = record::sanitize(text);
        for piece in record::pieces(&text) {
            self.keep(now, level, component, &piece);
            if self.admit(now, component, crash) {
                self.console.print(record::console_line(now, component, &piece).into_bytes());
            }
        }
    }

    fn keep(&mut self, now: Moment, level: Level, component: &str, text: &str) {
        self.ring.push(now, level, component, text);
        if let Some(mirror) = &mut self.mirror {
            mirror.print(now, level, component, text);
        }
    }

    /// Whether the component's bucket lets a line through; what it refused before is said first.
    fn admit(&mut self, now: Moment, component: &str, crash: bool) -> bool {
        if !self.sources.contains_key(component) {
            let source = Source {
                bucket: Bucket::new(BURST, PER_SECOND),
                crash: Bucket::new(CRASH_BURST, CRASH_PER_SECOND),
                suppressed: 0,
            };
            self.sources.insert(component.to_owned(), source);
        }
        let Some(source) = self.sources.get_mut(component) else { return true };
        let admitted = source.bucket.take(now) || (crash && source.crash.take(now));
        if !admitted {
            source.suppressed += 1;
        } else if source.suppressed > 0 {
            let note = format!("{} lines not shown here: too many a second", source.suppressed);
            source.suppressed = 0;
            self.console.print(record::console_line(now, component, &note).into_bytes());
        }
        admitted
    }
}

/// The subscriber behind `tracing`'s macros: no spans, no filters, no buffers.
#[derive(Debug)]
struct Bridge;

impl tracing::Subscriber for Bridge {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::DEBUG
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::DEBUG)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let now = clock::now();
        let level = level_of(*event.metadata().level());
        with(|logger| logger.record(now, logger.component, level, line.finish().as_bytes(), false));
    }
}

fn level_of(level: tracing::Level) -> Level {
    match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warn,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    }
}

/// Collects an event: its message, then `key=value` for each field.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        self.message
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_while_logging_waits_for_nobody_and_ends_no_later_line() {
        begin("test");
        let panics = || with(|_| std::panic::resume_unwind(Box::new(with(|_| "the lock is held"))));
        let told: Option<()> = std::panic::catch_unwind(panics).unwrap_or_else(|inner| {
            assert_eq!(inner.downcast_ref::<Option<&str>>(), Some(&None));
            None
        });
        assert_eq!((told, with(|logger| logger.component)), (None, Some("test")));
    }
}
