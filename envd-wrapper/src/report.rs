//! What our own supervisor is told: readiness, and envd's state.
//!
//! What it could not be told is kept, the latest of each kind, and goes with the next message. Where its queue was full, that is
//! as soon as there is room: who was never told that we are ready would end us for it.

use std::io::ErrorKind;
use std::time::Duration;

use guest::clock::Moment;
use guest::control::EnvdStatus;
use guest::notify::{ENVD_FIELD, Notifier, SOCKET, VARIABLE};
use guest::reactor::{Interest, Reactor, Token};
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
    unsent: Unsent,
    /// Its queue was full.
    blocked: bool,
    /// A reactor tells when it is not.
    watched: bool,
}

/// What is to be told.
#[derive(Debug, Default)]
struct Unsent {
    status: Option<String>,
    /// envd's state as JSON.
    envd: Option<String>,
    ready: bool,
    ping: bool,
    stopping: bool,
}

impl Unsent {
    /// `None`: nothing.
    fn message(&self) -> Option<String> {
        let field =
            |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name}={value}"));
        let sign = |is_due: bool, sign: &str| is_due.then(|| sign.to_owned());
        let lines = [
            field("STATUS", &self.status),
            sign(self.ready, "READY=1"),
            sign(self.ping, "WATCHDOG=1"),
            sign(self.stopping, "STOPPING=1"),
            field(ENVD_FIELD, &self.envd),
        ];
        let lines: Vec<String> = lines.into_iter().flatten().collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

impl Reporter {
    pub(crate) fn from_environment(now: Moment) -> Self {
        Self::new(Notifier::from_environment(), now)
    }

    fn new(notifier: Option<Notifier>, now: Moment) -> Self {
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
            unsent: Unsent::default(),
            blocked: false,
            watched: false,
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
            self.say_ready();
            self.unsent.status = Some("envd is not healthy yet; see the serial console".to_owned());
            self.send();
        }
        // From half of its time on a ping goes along with whatever has woken us, so that it seldom wakes us itself.
        if let (Some(every), Some(at)) = (self.ping_every, self.next_ping)
            && now + every / 2 >= at
        {
            self.next_ping = Some(now + every);
            self.unsent.ping = true;
            self.send();
        }
    }

    /// Tells a change of envd's state.
    pub(crate) fn changed(&mut self, status: &EnvdStatus) {
        self.unsent.status = Some(format!("envd is {}", status.state));
        if status.state == "healthy" && !self.said_ready {
            self.say_ready();
        }
        // Only ours reads it; systemd takes no message over 4 KiB, and would lose the whole of it.
        if self.is_ours {
            self.unsent.envd = serde_json::to_string(status).ok();
        }
        self.send();
    }

    fn say_ready(&mut self) {
        self.said_ready = true;
        self.unsent.ready = true;
    }

    pub(crate) fn stopping(&mut self) {
        self.unsent.stopping = true;
        self.send();
    }

    /// Tells what is to be told, as far as it is taken.
    pub(crate) fn send(&mut self) {
        let (Some(notifier), Some(message)) = (&self.notifier, self.unsent.message()) else { return };
        match notifier.send(&message) {
            Ok(()) => (self.unsent, self.blocked) = (Unsent::default(), false),
            Err(error) => {
                debug!("our supervisor was not told: {error}");
                self.blocked = error.kind() == ErrorKind::WouldBlock && notifier.await_room().is_ok();
            }
        }
    }

    /// Has [`Reporter::send`] called under this token as soon as there is room in a queue that was full.
    pub(crate) fn watch(&mut self, reactor: &Reactor, token: Token) {
        let Some(notifier) = &self.notifier else { return };
        if self.blocked && !self.watched {
            self.watched = reactor.add(notifier, token, Interest::Write).is_ok();
        } else if self.watched && !self.blocked {
            reactor.remove(notifier);
            self.watched = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    use super::*;

    const TOKEN: Token = 1;

    /// A supervisor that has not read for so long that its queue is full.
    fn busy(path: &Path) -> UnixDatagram {
        let supervisor = UnixDatagram::bind(path).unwrap();
        supervisor.set_nonblocking(true).unwrap();
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        while other.send_to(b"STATUS=another's", path).is_ok() {}
        supervisor
    }

    /// Every line that waits there.
    fn read(supervisor: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 4096];
        let next = || supervisor.recv(&mut buffer).ok().map(|count| buffer[..count].to_vec());
        let messages: Vec<_> = std::iter::from_fn(next).collect();
        let text = messages.join(&b'\n');
        String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
    }

    fn envd(state: &str) -> EnvdStatus {
        EnvdStatus { state: state.to_owned(), ..crate::supervisor::unborn() }
    }

    #[test]
    fn readiness_waits_for_room_in_a_full_queue_and_wakes_nobody_until_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let supervisor = busy(&path);
        let mut reporter = Reporter::new(Notifier::to(path.to_str().unwrap()), Moment::ZERO);
        let reactor = Reactor::new(&[]).unwrap();
        let woken = || !reactor.wait(Some(Moment::ZERO)).unwrap().is_empty();
        reporter.changed(&envd("healthy"));
        reporter.watch(&reactor, TOKEN);
        assert!(!woken(), "there is no room");
        reporter.changed(&envd("unhealthy"));
        let waiting = read(&supervisor);
        assert!(waiting.iter().all(|line| line == "STATUS=another's"), "{waiting:?}");
        assert!(woken(), "there is room");
        reporter.send();
        assert_eq!(read(&supervisor), ["STATUS=envd is unhealthy", "READY=1"]);
        reporter.watch(&reactor, TOKEN);
        assert!(!woken(), "there is nothing more to tell");
        reporter.changed(&envd("healthy"));
        assert_eq!(read(&supervisor), ["STATUS=envd is healthy"], "ready is said once");
    }

    #[test]
    fn a_supervisor_that_is_away_is_told_with_the_next_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let mut reporter = Reporter::new(Notifier::to(path.to_str().unwrap()), Moment::ZERO);
        let reactor = Reactor::new(&[]).unwrap();
        reporter.changed(&envd("healthy"));
        reporter.watch(&reactor, TOKEN);
        assert_eq!(reactor.wait(Some(Moment::ZERO)).unwrap(), [], "nobody can tell when it comes back");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        supervisor.set_nonblocking(true).unwrap();
        reporter.stopping();
        assert_eq!(read(&supervisor), ["STATUS=envd is healthy", "READY=1", "STOPPING=1"]);
    }
}
