//! Where the relay's lines go: in a guest of ours to the serial console and the log ring, elsewhere to standard error.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    path::Path,
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Made by our PID 1, or by the wrapper and the units of an image that keeps its own.
const GUEST: &str = "/run/envd-init";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    /// The console where this is a guest of ours, else standard error.
    Auto,
    Console,
    Stderr,
}

pub(crate) fn init(log: Log) {
    let console = log == Log::Console || (log == Log::Auto && Path::new(GUEST).is_dir());
    if console {
        guest::log::init("relay");
    } else {
        // Fails only if there is a subscriber already, which there is not.
        let _ = tracing::subscriber::set_global_default(Stderr);
    }
}

/// One line an event.
struct Stderr;

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

impl Subscriber for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::from("vsock-relay: "));
        if *event.metadata().level() == Level::WARN {
            line.0.push_str("warning: ");
        }
        event.record(&mut line);
        line.0.push('\n');
        let _ = std::io::stderr().write_all(line.0.as_bytes());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
