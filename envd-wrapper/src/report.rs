//! What our own supervisor is told: readiness, and envd's state.

use std::time::Duration;

use guest::clock::Moment;
use guest::control::EnvdStatus;
use guest::notify::{ENVD_FIELD, Notifier, SOCKET, VARIABLE};
use tracing::debug;

/// An envd that is not healthy by then does not hold up a boot any longer: ready is said, with the reason in the status.
const READY_AT_THE_LATEST: Duration = Duration::from_secs(30);
/// A watchdog is pinged at a third of its time.
const PINGS_PER_WATCHDOG: u32 = 3;

/// Whether our own PID 1 runs us as its service: it gives them its own socket.
pub(crate) fn is_our_inits_service() -> bool {
    std::env::var(VARIABLE).is_ok_and(|socket| socket == SOCKET)
}

/// Tells our supervisor, where there is one.
#[derive(Debug)]
pub(crate) struct Reporter {
    notifier: Option<Notifier>,
    /// Our supervisor is our own PID 1.
    is_ours: bool,
    said_ready: bool,
    ready_by: Moment,
    ping_every: Option<Duration>,
    next_ping: Option<Moment>,
}

impl Reporter {
    pub(crate) fn from_environment(now: Moment) -> Self {
        let notifier = Notifier::from_environment();
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let ping_every =
            notifier.as_ref().and(watchdog).map(|usec| Duration::from_micros(usec) / PINGS_PER_WATCHDOG);
        Self {
            is_ours: is_our_inits_service(),
            said_ready: notifier.is_none(),
            notifier,
            ready_by: now + READY_AT_THE_LATEST,
            ping_every,
            next_ping: ping_every.map(|every| now + every),
        }
    }

    /// Whether it is our own PID 1 that is told.
    pub(crate) const fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// When [`Reporter::tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let ready_by = (!self.said_ready).then_some(self.ready_by);
        ready_by.into_iter().chain(self.next_ping).min()
    }

    pub(crate) fn tick(&mut self, now: Moment) {
        if !self.said_ready && now >= self.ready_by {
            self.said_ready = true;
            self.send("READY=1\nSTATUS=envd is not healthy yet; see the serial console");
        }
        // From half of its time on a ping goes along with whatever has woken us, so that it seldom wakes us itself.
        if let (Some(every), Some(at)) = (self.ping_every, self.next_ping)
            && now + every / 2 >= at
        {
            self.next_ping = Some(now + every);
            self.send("WATCHDOG=1");
        }
    }

    /// Tells a change of envd's state.
    pub(crate) fn changed(&mut self, status: &EnvdStatus) {
        let mut message = format!("STATUS=envd is {}", status.state);
        if status.state == "healthy" && !self.said_ready {
            self.said_ready = true;
            message.push_str("\nREADY=1");
        }
        // Only ours reads it; systemd takes no message over 4 KiB, and would lose the whole of it.
        if self.is_ours
            && let Ok(json) = serde_json::to_string(status)
        {
            message.push_str(&format!("\n{ENVD_FIELD}={json}"));
        }
        self.send(&message);
    }

    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some(Err(error)) = self.notifier.as_ref().map(|notifier| notifier.send(message)) {
            debug!("our supervisor was not told: {error}");
        }
    }
}
