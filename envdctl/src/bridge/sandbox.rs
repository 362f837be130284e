//! One sandbox: who listens, which routes there are, who is connected over which, and the probes that decide.
//!
//! | a client | leaves |
//! |---|---|
//! | waits for a route that has answered within the last second | such a route → dials; its own end, or the hold time → closed |
//! | dials | connected → forwarded; failed → waits again, after a pause with jitter |
//! | is forwarded | the pump is done → closed; its route broke → closed; the target ended before a byte went either way → waits again |
//!
//! Where the routes change in the configuration a sandbox is retired, and its successor takes over its clients: those who are forwarded over
//! a route that stays go on, those over one that is gone are closed, and those who wait or dial wait for the new routes. A route that stays
//! keeps its counters.
//!
//! A byte that was written to a route is never written to another: a request is not replayed.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::sleep,
};
use vsock_relay::{
    endpoint::{Endpoint, HalfClose},
    pump::Pump,
};

use super::{
    broker::Broker,
    connect::{Connected, Limits, Stream, adopt, connect},
    forward::{Meter, Outcome, PooledPump, forward, with_pool},
    log::{Level, say},
    metrics::{RouteMetrics, RouteSample, Sample, SandboxMetrics},
    places::Place,
    presence::{self, Presence},
    prober,
    schedule::HEDGE,
    selector::Selector,
};

/// How long one connect over a route may take before another route is considered.
const CONNECT_LIMITS: Limits = Limits { connect: Duration::from_secs(1), handshake: Duration::from_secs(1) };
/// A client whose bytes have ended has this long to get a route where nobody can tell whether it has left.
const ENDED_CLIENT: Duration = Duration::from_secs(1);
/// Clients that have sent nothing for this long are at rest.
const QUIET: Duration = Duration::from_secs(2);
/// Pauses between dials of one client: a random part of twice as much each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// How a sandbox is to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// How long a client waits for a route that answers.
    pub(super) hold: Duration,
    /// How long a preferred route must have been well to be taken back.
    pub(super) return_after: Duration,
}

/// What all sandboxes share.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) broker: Option<Arc<Broker>>,
    pub(super) policy: Policy,
    pub(super) started: Instant,
}

/// A route of a sandbox.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    pub(super) metrics: RouteMetrics,
    /// When bytes last came from the guest, in milliseconds since the bridge started.
    heard: AtomicU64,
}

impl Route {
    fn new(endpoint: Endpoint) -> Arc<Self> {
        Arc::new(Self { endpoint, metrics: RouteMetrics::default(), heard: AtomicU64::new(0) })
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) selector: Selector,
    pub(super) waiting: usize,
    pub(super) probing: bool,
    /// Another has taken over.
    retired: bool,
    open: HashMap<u64, Open>,
    next_id: u64,
}

/// The sandbox that a client belongs to; a successor when the routes have changed.
type Home = Arc<Mutex<Arc<Sandbox>>>;

/// A client's connection.
#[derive(Debug)]
struct Open {
    home: Home,
    /// Over which it is forwarded, if it is.
    route: Option<usize>,
    task: AbortHandle,
    heard: Arc<AtomicU64>,
}

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) name: String,
    pub(super) world: World,
    pub(super) routes: Vec<Arc<Route>>,
    pub(super) state: Mutex<State>,
    /// Changes whenever more is known of a route.
    pub(super) news: watch::Sender<u64>,
    /// Wakes the prober.
    pub(super) wanted: Notify,
    /// When a client last came or sent something, in milliseconds since the bridge started.
    asked: AtomicU64,
    pub(super) metrics: Arc<SandboxMetrics>,
}

impl State {
    /// Whether there is anybody to probe for.
    pub(super) fn has_clients(&self) -> bool {
        !self.open.is_empty()
    }
}

impl Sandbox {
    pub(super) fn new(name: String, routes: Vec<Endpoint>, world: World) -> Arc<Self> {
        Self::with(name, routes.into_iter().map(Route::new).collect(), world, Arc::default())
    }

    fn with(name: String, routes: Vec<Arc<Route>>, world: World, metrics: Arc<SandboxMetrics>) -> Arc<Self> {
        let selector = Selector::new(routes.len(), world.policy.return_after);
        let open = HashMap::new();
        let state = State { selector, waiting: 0, probing: false, retired: false, open, next_id: 0 };
        Arc::new(Self {
            name,
            world,
            routes,
            state: Mutex::new(state),
            news: watch::Sender::new(0),
            wanted: Notify::new(),
            asked: AtomicU64::new(0),
            metrics,
        })
    }

    /// Retires in favour of a sandbox with other routes. Returns that, and how many connections were closed.
    pub(super) fn succeeded_by(&self, routes: Vec<Endpoint>) -> (Arc<Self>, usize) {
        let route = |endpoint| {
            self.index_of(&endpoint)
                .map_or_else(|| Route::new(endpoint), |index| Arc::clone(&self.routes[index]))
        };
        let routes = routes.into_iter().map(route).collect();
        let next = Self::with(self.name.clone(), routes, self.world.clone(), Arc::clone(&self.metrics));
        next.asked.store(self.asked.load(Ordering::Relaxed), Ordering::Relaxed);
        let closed = self.hand_over(&next);
        closed.iter().for_each(AbortHandle::abort);
        if next.clients() > 0 {
            prober::watch(&next);
        }
        // Who waits here finds out, and the prober ends.
        self.tell();
        self.wanted.notify_one();
        (next, closed.len())
    }

    /// Gives all clients to `next`. Returns those whose route it does not have.
    fn hand_over(&self, next: &Arc<Self>) -> Vec<AbortHandle> {
        let (mut ours, mut theirs) = (self.lock(), next.lock());
        ours.retired = true;
        theirs.next_id = ours.next_id;
        let mut closed = Vec::new();
        for (id, mut open) in ours.open.drain() {
            if let Some(route) = open.route {
                open.route = next.index_of(&self.routes[route].endpoint);
                if open.route.is_none() {
                    closed.push(open.task);
                    continue;
                }
            }
            *open.home.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(next);
            theirs.open.insert(id, open);
        }
        closed
    }

    fn index_of(&self, endpoint: &Endpoint) -> Option<usize> {
        self.routes.iter().position(|route| route.endpoint == *endpoint)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.lock().retired
    }

    /// Ends when another has taken over.
    async fn retired(&self) {
        let mut news = self.news.subscribe();
        while !self.is_retired() {
            // The sender lives in the sandbox.
            let _ = news.changed().await;
        }
    }

    /// Tells those who wait that more is known.
    pub(super) fn tell(&self) {
        self.news.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the bridge started.
    pub(super) fn millis(&self, at: Instant) -> u64 {
        millis_between(self.world.started, at)
    }

    /// A client has come, or has sent something: routes are watched closely again.
    fn asked(&self, now: u64) {
        let before = self.asked.swap(now, Ordering::Relaxed);
        if now.saturating_sub(before) > QUIET.as_millis() as u64 {
            self.wanted.notify_one();
        }
    }

    /// Whether no client has asked anything for a while.
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        self.millis(now).saturating_sub(asked) > QUIET.as_millis() as u64
    }

    /// Whether the guest has sent anything over a route since `since`.
    pub(super) fn heard_since(&self, route: usize, since: Instant) -> bool {
        self.routes[route].heard.load(Ordering::Relaxed) > self.millis(since)
    }

    /// Whether what routes say means nothing: those that need the broker fail without it, though their connections live.
    pub(super) fn is_blind(&self) -> bool {
        self.world.broker.as_ref().is_some_and(|broker| broker.is_gone())
    }

    pub(super) fn say(&self, level: Level, event: &str, text: &str, fields: &[(&str, &dyn ToString)]) {
        say(level, Some(&self.name), event, text, fields);
    }

    /// Takes over a client that was accepted.
    pub(super) fn take(self: &Arc<Self>, client: OwnedFd, rule: HalfClose, place: Place) {
        self.metrics.accepted.add(1);
        self.asked(self.millis(Instant::now()));
        let client = match adopt(client) {
            Ok(client) => client,
            Err(error) => {
                return self.say(Level::Error, "client", &format!("cannot watch a client ({error})"), &[]);
            }
        };
        let heard = Arc::new(AtomicU64::new(0));
        let membership = Membership::new(self);
        let (id, home) = (membership.id, Arc::clone(&membership.home));
        let task = tokio::spawn(
            Client { stream: client, rule, membership, heard: Arc::clone(&heard), _place: place }.serve(),
        );
        // The task cannot have run yet: the bridge is one thread.
        self.lock().open.insert(id, Open { home, route: None, task: task.abort_handle(), heard });
        prober::watch(self);
    }

    /// Closes the connections over a route that broke, but for those that the guest has sent something over since
    /// `since`. Returns how many were closed and how many were spared.
    pub(super) fn close_over(&self, route: usize, since: Instant) -> (usize, usize) {
        let since = self.millis(since);
        let state = self.lock();
        let over = state.open.values().filter(|open| open.route == Some(route));
        let (spared, broken): (Vec<_>, Vec<_>) =
            over.partition(|open| open.heard.load(Ordering::Relaxed) > since);
        let tasks: Vec<AbortHandle> = broken.iter().map(|open| open.task.clone()).collect();
        let counts = (broken.len(), spared.len());
        drop(state);
        tasks.iter().for_each(AbortHandle::abort);
        counts
    }

    /// Ends every connection: the sandbox was taken out of the configuration. Returns how many there were.
    pub(super) fn close_all(&self) -> usize {
        let tasks: Vec<AbortHandle> = self.lock().open.values().map(|open| open.task.clone()).collect();
        tasks.iter().for_each(AbortHandle::abort);
        tasks.len()
    }

    /// How many clients there are.
    pub(super) fn clients(&self) -> usize {
        self.lock().open.len()
    }

    /// A connection over a route failed: the next client has the route probed before it is used.
    fn doubt(&self, route: usize) {
        self.lock().selector.doubt(route);
    }

    /// Waits until a route has answered within the last second.
    async fn usable_route(self: &Arc<Self>) -> Found {
        let mut news = self.news.subscribe();
        loop {
            news.mark_unchanged();
            if self.is_retired() {
                return Found::Successor;
            }
            if let Some(route) = self.lock().selector.usable(Instant::now()) {
                return Found::Route(route);
            }
            prober::want(self);
            // The sender lives in the sandbox, which lives in us.
            let _ = news.changed().await;
        }
    }

    /// Connects over a route, for as long as there is hope for it. Why it failed is found out, and said, by the probe that
    /// the doubt brings.
    async fn dial(self: &Arc<Self>, route: usize) -> Option<Connected> {
        let connecting = connect(&self.routes[route].endpoint, self.world.broker.as_ref(), CONNECT_LIMITS);
        tokio::select! {
            biased;
            () = self.retired() => None,
            connected = connecting => connected.ok(),
            () = self.gives_up(route) => None,
        }
    }

    /// Ends when a route, over which a connect is silent, turns out to be broken.
    async fn gives_up(self: &Arc<Self>, route: usize) {
        sleep(HEDGE).await;
        self.doubt(route);
        let _waiting = Waiting::new(self);
        let mut news = self.news.subscribe();
        prober::want(self);
        while !self.lock().selector.is_broken(route) {
            // The sender lives in the sandbox, which lives in us.
            let _ = news.changed().await;
        }
    }

    pub(super) fn sample(&self) -> Sample<'_> {
        let state = self.lock();
        let (current, selector) = (state.selector.current(), &state.selector);
        let routes = self.routes.iter().enumerate().map(|(index, route)| RouteSample {
            endpoint: &route.endpoint,
            in_use: current == index,
            latency: selector.latency(index),
            metrics: &route.metrics,
        });
        let routes = routes.collect();
        Sample { name: &self.name, metrics: &self.metrics, routes }
    }
}

/// What a client that waits for a route gets.
enum Found {
    Route(usize),
    /// It belongs to another sandbox now.
    Successor,
    /// It is to be closed.
    Nothing,
}

/// Counts a client in, and out again however its task ends.
struct Membership {
    home: Home,
    id: u64,
}

impl Membership {
    fn new(sandbox: &Arc<Sandbox>) -> Self {
        let mut state = sandbox.lock();
        let id = state.next_id;
        state.next_id += 1;
        drop(state);
        sandbox.metrics.open.add(1);
        Self { home: Arc::new(Mutex::new(Arc::clone(sandbox))), id }
    }

    fn home(&self) -> Arc<Sandbox> {
        Arc::clone(&self.home.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The client's bytes have gone over its route.
    fn asked(&self, at: Instant) {
        let home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        home.asked(home.millis(at));
    }

    fn lead_over(&self, route: usize) {
        if let Some(open) = self.home().lock().open.get_mut(&self.id) {
            open.route = Some(route);
        }
    }

    /// The client's route, which may have another place by now, was no good.
    fn leave_route(&self) {
        let home = self.home();
        let route = home.lock().open.get_mut(&self.id).and_then(|open| open.route.take());
        if let Some(route) = route {
            home.doubt(route);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let home = self.home();
        home.metrics.open.sub(1);
        let mut state = home.lock();
        state.open.remove(&self.id);
        if state.open.is_empty() {
            drop(state);
            // Nobody is left: the prober may end.
            home.wanted.notify_one();
        }
    }
}

/// Counts a client that waits for a route.
struct Waiting<'a>(&'a Sandbox);

impl<'a> Waiting<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        sandbox.lock().waiting += 1;
        sandbox.metrics.waiting.add(1);
        Self(sandbox)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
        self.0.metrics.waiting.sub(1);
    }
}

/// One client and its way through the states above.
struct Client {
    stream: Stream,
    /// What the transport towards it makes of a half-close.
    rule: HalfClose,
    membership: Membership,
    heard: Arc<AtomicU64>,
    /// Its place among all connections of the bridge.
    _place: Place,
}

/// Counts the bytes of one connection.
struct RouteMeter<'a> {
    membership: &'a Membership,
    started: Instant,
    route: &'a Route,
    heard: &'a AtomicU64,
}

impl Meter for RouteMeter<'_> {
    fn moved(&self, up: u64, down: u64) {
        self.route.metrics.bytes_up.add(up);
        self.route.metrics.bytes_down.add(down);
        let now = Instant::now();
        if up > 0 {
            self.membership.asked(now);
        }
        if down > 0 {
            let now = millis_between(self.started, now);
            self.heard.store(now, Ordering::Relaxed);
            self.route.heard.store(now, Ordering::Relaxed);
        }
    }
}

impl Client {
    async fn serve(mut self) {
        let mut pump = PooledPump::new(self.rule, HalfClose::Kept);
        let deadline = Instant::now() + self.membership.home().world.policy.hold;
        let mut pause = FIRST_PAUSE;
        loop {
            let sandbox = self.membership.home();
            let route = match self.wait_for_route(&sandbox, deadline).await {
                Found::Route(route) => route,
                Found::Successor => continue,
                Found::Nothing => break,
            };
            if self.attempt(&sandbox, route, &mut pump).await {
                break;
            }
            if Instant::now() >= deadline {
                sandbox.metrics.given_up.add(1);
                break;
            }
            sandbox.metrics.redials.add(1);
            sleep(jitter(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn wait_for_route(&self, sandbox: &Arc<Sandbox>, deadline: Instant) -> Found {
        if let Some(route) = sandbox.lock().selector.usable(Instant::now()) {
            return Found::Route(route);
        }
        let _waiting = Waiting::new(sandbox);
        tokio::select! {
            biased;
            found = sandbox.usable_route() => found,
            () = self.left() => Found::Nothing,
            () = tokio::time::sleep_until(deadline.into()) => {
                sandbox.metrics.given_up.add(1);
                Found::Nothing
            }
        }
    }

    /// Ends when the client has left. One whose bytes have ended, but which may still read, is given a little time.
    async fn left(&self) {
        if self.stream.readable().await.is_err() {
            return;
        }
        let mut byte = [0; 1];
        match rustix::net::recv(self.stream.as_fd(), &mut byte, rustix::net::RecvFlags::PEEK) {
            Ok((0, _)) => return,
            Err(errno) if errno != rustix::io::Errno::AGAIN => return,
            _ => {}
        }
        // It has asked something. Its end cannot be awaited without reading, so it is looked for now and then.
        loop {
            sleep(ENDED_CLIENT / 4).await;
            if self.has_ended() {
                match presence::of(&self.stream) {
                    Presence::There => {}
                    Presence::Gone => return,
                    Presence::Unknown => return sleep(ENDED_CLIENT).await,
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut watched = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut watched, Some(&now)).is_ok() && !watched[0].revents().is_empty()
    }

    /// Leads the client over `route`; whether it is through. `false`: nothing was sent, another try is allowed.
    async fn attempt(&mut self, sandbox: &Arc<Sandbox>, index: usize, pump: &mut Pump) -> bool {
        let route = &sandbox.routes[index];
        let Some(connected) = sandbox.dial(index).await else {
            sandbox.doubt(index);
            return false;
        };
        self.membership.lead_over(index);
        route.metrics.connections.add(1);
        pump.retarget();
        pump.set_target_rule(route.endpoint.half_close());
        with_pool(|pool| pump.preload_down(&connected.early, pool));
        let mut target = connected.stream;
        let (membership, started) = (&self.membership, sandbox.world.started);
        let meter = RouteMeter { membership, started, route, heard: &self.heard };
        let outcome = forward(&mut self.stream, &mut target, pump, &meter).await;
        if outcome == Outcome::Untouched {
            self.membership.leave_route();
        }
        outcome != Outcome::Untouched
    }
}

fn millis_between(start: Instant, end: Instant) -> u64 {
    end.saturating_duration_since(start).as_millis() as u64
}

/// A random part of `pause`, so that a burst that was refused does not come back as one.
fn jitter(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(Instant::now()) % 1024;
    pause / 4 + pause * random as u32 / 1024
}
