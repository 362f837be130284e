//! The bridge's life: start, reload, signals, drain.
//!
//! | state | leaves |
//! |---|---|
//! | serving | SIGHUP or a changed folder → reads the configuration and goes on; SIGTERM, SIGINT or the broker's end → draining |
//! | serving, though something could not be opened or watched | every [`RETRY`] it is tried again |
//! | draining | addresses closed; all connections done, the bound over, or a second signal → ended (as failed, without a broker) |

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

use super::{
    BridgeArgs, BridgeError,
    broker::{Broker, Started},
    config::{self, Entry},
    fleet::{Fleet, RETRY, page_of, warn_if_exposed},
    listener::bind,
    log::{Level, say},
    notify::{notify, reloading},
    page,
    places::Places,
    sandbox::{Policy, World},
    watch::Watch,
};

/// The name of the one sandbox that is given by flags.
const ONLY: &str = "sandbox";
/// How often a drain looks whether the last connection has gone.
const DRAIN_TICK: Duration = Duration::from_millis(20);

struct Service {
    args: BridgeArgs,
    fleet: Fleet,
    watch: Option<Watch>,
    /// That the configuration cannot be watched was said.
    unwatched: bool,
}

pub(super) async fn serve(
    args: BridgeArgs,
    broker: Option<Started>,
    places: Arc<Places>,
) -> Result<(), BridgeError> {
    let broker = broker.map(Broker::attach).transpose().map_err(setup("attaching the helper process"))?;
    let policy = Policy { hold: args.hold, return_after: args.return_after };
    let world = World { broker: broker.clone(), policy, started: Instant::now() };
    let mut signals = Signals::new().map_err(setup("watching for signals"))?;
    let mut service = Service { fleet: Fleet::new(world, places), args, watch: None, unwatched: false };
    service.begin().await?;
    service.serve_metrics(broker.as_ref()).await?;
    notify(&format!("READY=1\nSTATUS=serving {} sandboxes", service.fleet.len()));
    let end = service.run(&mut signals, broker.as_deref()).await;
    service.drain(&end.said(), &mut signals).await;
    match end {
        End::Signal(_) => Ok(()),
        End::Broker(how) => Err(BridgeError::BrokerEnded { how }),
    }
}

/// Why the bridge ends.
enum End {
    Signal(&'static str),
    Broker(String),
}

impl End {
    fn said(&self) -> String {
        match self {
            Self::Signal(name) => (*name).to_owned(),
            Self::Broker(how) => {
                let text =
                    format!("the helper process has ended ({how}): the bridge ends too, to be started anew");
                say(Level::Error, None, "helper", &text, &[("how", how)]);
                "without it".to_owned()
            }
        }
    }
}

fn setup(operation: &'static str) -> impl FnOnce(io::Error) -> BridgeError {
    move |source| BridgeError::Setup { operation, source }
}

/// The signals that mean something.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Whether to end, and why; `None`: read the configuration again.
    async fn next(&mut self) -> Option<&'static str> {
        tokio::select! {
            _ = self.terminate.recv() => Some("SIGTERM"),
            _ = self.interrupt.recv() => Some("SIGINT"),
            _ = self.hangup.recv() => None,
        }
    }

    async fn end(&mut self) {
        while self.next().await.is_none() {}
    }
}

impl Service {
    async fn begin(&mut self) -> Result<(), BridgeError> {
        let Some(path) = &self.args.config else {
            let listen = self
                .args
                .listen
                .clone()
                .ok_or_else(|| setup("reading the flags")(io::ErrorKind::InvalidInput.into()))?;
            let entry = Entry { listen, routes: self.args.route.clone() };
            return self.fleet.serve_only(ONLY, entry).await.map_err(BridgeError::Listen);
        };
        // Watched first: a change while it is read is not missed.
        let path = path.clone();
        self.renew_watch(&path);
        let config = config::read(&path).and_then(|config| config.serving_something(&path));
        let config = config.map_err(BridgeError::Config)?;
        self.fleet.apply(config).await;
        Ok(())
    }

    /// Watches what is at the path now. Where that is not possible it is said once, and tried again.
    fn renew_watch(&mut self, path: &Path) {
        let result = match &mut self.watch {
            Some(watch) => watch.renew(),
            None => Watch::new(path).map(|watch| self.watch = Some(watch)),
        };
        let unwatched = std::mem::replace(&mut self.unwatched, result.is_err());
        if let Err(error) = result
            && !unwatched
        {
            let text = format!(
                "cannot watch {} ({error}), trying again every {} s: send SIGHUP after a change",
                path.display(),
                RETRY.as_secs()
            );
            say(Level::Warn, None, "watch", &text, &[]);
        }
    }

    async fn serve_metrics(&self, broker: Option<&Arc<Broker>>) -> Result<(), BridgeError> {
        let Some(listen) = &self.args.metrics else { return Ok(()) };
        let socket = bind(listen, broker).await.map_err(BridgeError::Listen)?;
        say(Level::Info, None, "metrics", &format!("metrics on {listen}"), &[("listen", listen)]);
        warn_if_exposed(None, listen, "sees which sandboxes there are and how they are used");
        let roster = self.fleet.roster();
        tokio::spawn(page::serve(socket, move || page_of(&roster)));
        Ok(())
    }

    /// Serves until there is a reason to end.
    async fn run(&mut self, signals: &mut Signals, broker: Option<&Broker>) -> End {
        loop {
            let retry = self.fleet.is_incomplete() || self.unwatched;
            tokio::select! {
                signal = signals.next() => match signal {
                    Some(name) => return End::Signal(name),
                    None => self.reload("SIGHUP").await,
                },
                how = ended(broker) => return End::Broker(how),
                () = changed(self.watch.as_mut()) => self.reload("a change of its files").await,
                () = sleep(RETRY), if retry => self.retry().await,
            }
        }
    }

    /// Tries again what could not be opened or watched. What changed while nothing was watched is read as well.
    async fn retry(&mut self) {
        self.fleet.retry().await;
        if let Some(path) = self.args.config.clone().filter(|_| self.unwatched) {
            self.renew_watch(&path);
            if !self.unwatched {
                self.reload("it could be watched again").await;
            }
        }
    }

    async fn reload(&mut self, cause: &str) {
        let Some(path) = self.args.config.clone() else {
            say(
                Level::Info,
                None,
                "reload",
                "SIGHUP: nothing to read again, the sandbox was given by flags",
                &[],
            );
            return;
        };
        reloading();
        // First, as at the start: the folder may be another one of the same name.
        self.renew_watch(&path);
        match config::read(&path) {
            Ok(config) => {
                self.fleet.apply(config).await;
                let count = self.fleet.len();
                let text = format!("configuration read again after {cause}: serving {count} sandboxes");
                say(Level::Info, None, "reload", &text, &[("sandboxes", &count)]);
            }
            Err(error) => {
                say(Level::Error, None, "reload", &format!("{error}; everything is left as it was"), &[]);
            }
        }
        notify(&format!("READY=1\nSTATUS=serving {} sandboxes", self.fleet.len()));
    }

    async fn drain(&mut self, cause: &str, signals: &mut Signals) {
        notify("STOPPING=1");
        let sandboxes = self.fleet.close_listeners();
        let open = || sandboxes.iter().map(|sandbox| sandbox.clients()).sum::<usize>();
        let text =
            format!("{cause}: no new connections, {} open ones have {} s", open(), self.args.drain.as_secs());
        say(Level::Info, None, "drain", &text, &[]);
        let drained = async {
            while open() > 0 {
                sleep(DRAIN_TICK).await;
            }
        };
        tokio::select! {
            () = drained => {}
            () = sleep(self.args.drain) => {}
            () = signals.end() => {}
        }
    }
}

/// Never ends where there is no broker.
async fn ended(broker: Option<&Broker>) -> String {
    match broker {
        Some(broker) => broker.ended().await,
        None => std::future::pending().await,
    }
}

/// Never ends where nothing is watched.
async fn changed(watch: Option<&mut Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
