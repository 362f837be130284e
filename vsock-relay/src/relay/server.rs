//! The event loop.

use std::{io, os::fd::OwnedFd, time::Duration};

use guest::{
    clock::{Moment, now},
    rest::Rest,
};
use nix::sys::{
    inotify::{AddWatchFlags, InitFlags, Inotify},
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, Event, EventData, EventFlags},
};
use tracing::{info, warn};

use super::{
    Options, RelayError,
    connection::{Connection, Key, Stage, Table},
    counters::Counters,
    listener::{Accepted, Listener},
    quiet::Quiet,
    target::Target,
    timers::{Timer, Timers},
};
use crate::{
    endpoint::Endpoint,
    pool::{Limits, Pool},
    pump::{Phase, Pump, Side},
    socket::{self, Dialed},
};

/// Events taken in one wake-up.
const BATCH: usize = 128;
/// Connections accepted in one wake-up before the others have their turn.
const ACCEPTS: usize = 256;
/// How long the relay must be quiet before it writes its counters.
const QUIET: Duration = Duration::from_millis(100);
/// A kernel module that made its device node needs a moment more for its sockets.
const OPEN_PAUSE: Duration = Duration::from_millis(100);
const OPEN_TRIES: u32 = 20;
/// How often to look for vsock where /dev cannot be watched.
const UNWATCHED_PAUSE: Duration = Duration::from_secs(5);
/// How often a target may end before a byte went either way until its client is told.
const EARLY_ENDS: u8 = 3;

const LISTENERS: u64 = 1 << 40;
const SIGNALS: u64 = 1 << 41;
const DEVICES: u64 = 1 << 42;

/// What watching a socket means: each edge of something to read, and the peer's end.
const READING: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);
const LOST: EventFlags = EventFlags::ERR.union(EventFlags::HUP);

/// The relay.
pub struct Relay {
    options: Options,
    epoll: OwnedFd,
    signals: SignalFd,
    devices: Option<Inotify>,
    listeners: Vec<Listener>,
    targets: Vec<Target>,
    table: Table,
    pool: Pool,
    timers: Timers,
    counters: Counters,
    /// Connections whose turn ended with work left, and listeners with clients left.
    runnable: Vec<Key>,
    unaccepted: Vec<usize>,
    /// Dials of this wake-up; those still without an answer after the next get a bound.
    dials: Vec<Key>,
    open_tries: u32,
    at_limit: bool,
    quiet_limit: Quiet,
    quiet_refusals: Quiet,
    rest: Rest,
    draining: bool,
    ended: bool,
}

impl Relay {
    /// Opens the listeners and blocks the signals that the loop takes.
    pub fn new(options: Options) -> Result<Self, RelayError> {
        if options.maps.is_empty() {
            return Err(RelayError::NoMap);
        }
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|errno| RelayError::Setup { operation: "epoll_create", source: errno.into() })?;
        let signals = take_signals().map_err(|source| RelayError::Setup { operation: "signalfd", source })?;
        let counters = Counters::new(options.status.as_ref());
        let mut relay = Self {
            listeners: options.maps.iter().map(|map| Listener::new(map.listen.clone())).collect(),
            targets: options.maps.iter().map(|map| Target::new(map.target.clone())).collect(),
            options,
            epoll,
            signals,
            devices: None,
            table: Table::default(),
            pool: Pool::new(Limits { lent: 32, kept: 1 }),
            timers: Timers::default(),
            counters,
            runnable: Vec::new(),
            unaccepted: Vec::new(),
            dials: Vec::new(),
            open_tries: OPEN_TRIES,
            at_limit: false,
            quiet_limit: Quiet::default(),
            quiet_refusals: Quiet::default(),
            rest: Rest::default(),
            draining: false,
            ended: false,
        };
        relay.watch_signals()?;
        relay.open_listeners()?;
        Ok(relay)
    }

    fn watch_signals(&self) -> Result<(), RelayError> {
        epoll::add(&self.epoll, &self.signals, EventData::new_u64(SIGNALS), EventFlags::IN)
            .map_err(|errno| RelayError::Setup { operation: "epoll_ctl", source: errno.into() })
    }

    fn open_listeners(&mut self) -> Result<(), RelayError> {
        let mut failure = None;
        for map in 0..self.listeners.len() {
            if let Err(error) = self.open_listener(map) {
                self.refused(map, &error);
                failure = Some(error);
            }
        }
        let any = self.listeners.iter().any(Listener::is_open) || self.devices.is_some();
        failure.filter(|_| !any).map_or(Ok(()), Err)
    }

    fn open_listener(&mut self, map: usize) -> Result<(), RelayError> {
        let listener = &mut self.listeners[map];
        let listen = listener.endpoint.clone();
        match listener.open() {
            Ok(Some(socket)) => {
                let data = EventData::new_u64(LISTENERS + map as u64);
                if let Err(errno) = epoll::add(&self.epoll, socket, data, EventFlags::IN | EventFlags::ET) {
                    // One that nobody watches would take clients and never serve them.
                    listener.close();
                    return Err(RelayError::Setup { operation: "epoll_ctl", source: errno.into() });
                }
                info!("{listen} -> {}", self.targets[map].endpoint);
                warn_of_tcp(&listen);
                Ok(())
            }
            Ok(None) => {
                self.watch_devices();
                self.open_later(map);
                Ok(())
            }
            Err(source) => Err(RelayError::Listen { listen, source }),
        }
    }

    /// The others are served meanwhile. That it was refused is said once.
    fn refused(&mut self, map: usize, error: &RelayError) {
        if !self.listeners[map].is_refused() {
            say(error);
        }
        let pause = self.listeners[map].refused();
        self.look_at_listener(map, now() + pause);
    }

    /// Sets the listener's one timer, unless it is due earlier.
    fn look_at_listener(&mut self, map: usize, at: Moment) {
        let timer = Timer::Listener { map };
        let due = &mut self.listeners[map].due;
        match *due {
            Some(earlier) if earlier <= at => return,
            Some(later) => self.timers.disarm(later, timer),
            None => {}
        }
        *due = Some(at);
        self.timers.arm(at, timer);
    }

    /// Between two device events there is a bounded number of tries; where devices cannot be watched it goes on.
    fn open_later(&mut self, map: usize) {
        if self.open_tries > 0 {
            self.open_tries -= 1;
            self.look_at_listener(map, now() + OPEN_PAUSE);
        } else if self.devices.is_none() {
            self.look_at_listener(map, now() + UNWATCHED_PAUSE);
        }
    }

    /// A vsock module that is loaded later makes /dev/vsock: that is the event to wait for.
    fn watch_devices(&mut self) {
        if self.devices.is_some() {
            return;
        }
        let watch = || -> io::Result<Inotify> {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            inotify.add_watch("/dev", AddWatchFlags::IN_CREATE)?;
            epoll::add(&self.epoll, &inotify, EventData::new_u64(DEVICES), EventFlags::IN)?;
            Ok(inotify)
        };
        match watch() {
            Ok(inotify) => self.devices = Some(inotify),
            Err(error) => warn!("cannot watch /dev for a vsock device: {error}"),
        }
    }

    /// Serves until a signal ends it.
    pub fn run(&mut self) -> Result<(), RelayError> {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        while !self.ended {
            let timeout = self.timeout().or_else(|| self.rest());
            let idle = timeout.is_some_and(|timeout| !timeout.is_zero());
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, timeout.map(timespec).as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(RelayError::Wait { source: errno.into() }),
            }
            let quiet = idle && events.is_empty();
            self.wake_up(&events);
            self.counters.after_wakeup(quiet);
        }
        self.counters.write();
        Ok(())
    }

    /// With no connection and nothing due. An answer is how long to sleep until it can be said that this is so.
    fn rest(&mut self) -> Option<Duration> {
        if self.table.len() > 0 {
            return None;
        }
        let now = now();
        self.rest.begin(now).map(|settled| settled.saturating_sub(now))
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.runnable.is_empty() || !self.unaccepted.is_empty() {
            return Some(Duration::ZERO);
        }
        let timer = if self.timers.is_empty() { None } else { self.timers.wait(now()) };
        let timer = self.dials_over().into_iter().chain(timer).min();
        if self.counters.is_dirty() { Some(timer.map_or(QUIET, |timer| timer.min(QUIET))) } else { timer }
    }

    /// How long the dials of the last wake-up may go without an answer. Most have it with the next one, and never need a timer.
    fn dials_over(&self) -> Option<Duration> {
        let since = self.dials.iter().filter_map(|key| self.table.peek(*key)?.dialing_since).min()?;
        Some((since + self.options.hold).saturating_sub(now()))
    }

    fn wake_up(&mut self, events: &[Event]) {
        let dials = std::mem::take(&mut self.dials);
        let runnable = std::mem::take(&mut self.runnable);
        let unaccepted = std::mem::take(&mut self.unaccepted);
        for event in events {
            self.dispatch(event.data.u64(), event.flags);
        }
        for key in runnable {
            self.turn(key);
        }
        for map in unaccepted {
            self.accept(map);
        }
        for key in dials {
            self.bound_dial(key);
        }
        self.fire_timers();
        self.table.settle();
        if self.table.len() == 0 {
            self.pool.release();
            self.ended |= self.draining;
        }
    }

    fn dispatch(&mut self, token: u64, flags: EventFlags) {
        match token {
            SIGNALS => self.signal(),
            DEVICES => self.devices_changed(),
            token if token >= LISTENERS => self.accept((token - LISTENERS) as usize),
            token => {
                let side = if token & 1 == 0 { Side::Client } else { Side::Target };
                self.socket_event((token >> 1) as usize, side, flags);
            }
        }
    }

    fn accept(&mut self, map: usize) {
        if self.listeners[map].due.is_some() {
            return;
        }
        for _ in 0..ACCEPTS {
            if self.is_full(map) {
                return;
            }
            match self.listeners[map].accept() {
                Accepted::Client(client) => self.begin(map, client),
                Accepted::Empty => return,
                Accepted::Pause(pause) => return self.look_at_listener(map, now() + pause),
            }
        }
        self.unaccepted.push(map);
    }

    fn is_full(&mut self, map: usize) -> bool {
        if self.table.len() < self.options.max_connections {
            return false;
        }
        self.at_limit = true;
        if self.quiet_limit.is_over(now()) {
            warn!(
                "{}: {} connections, the limit: new ones wait until one ends",
                self.listeners[map].endpoint,
                self.table.len()
            );
        }
        true
    }

    fn begin(&mut self, map: usize, client: OwnedFd) {
        let listener = &self.listeners[map];
        let client_is_vsock = listener.is_vsock();
        if client_is_vsock && !self.is_welcome(&client) {
            self.counters.now.refused += 1;
            return;
        }
        let key = self.table.next_key();
        let data = EventData::new_u64((key.slot as u64) << 1);
        if let Err(errno) = epoll::add(&self.epoll, &client, data, READING) {
            warn!("cannot watch a new connection: {}", io::Error::from(errno));
            self.counters.now.refused += 1;
            return;
        }
        let target = &self.targets[map].endpoint;
        let mut pump = Pump::new(self.listeners[map].endpoint.half_close(), target.half_close());
        pump.set_writable(Side::Client);
        let target_is_vsock = matches!(target, Endpoint::Vsock { .. });
        self.table.insert(Connection {
            id: key.id,
            map,
            stage: Stage::Held,
            client,
            target: None,
            client_is_vsock,
            target_is_vsock,
            client_armed: false,
            target_armed: false,
            pump,
            phase: Phase::Open,
            timer: None,
            moved: 0,
            held_since: None,
            dialing_since: None,
            early_ends: 0,
        });
        self.counters.now.connections += 1;
        self.counters.now.total += 1;
        if self.targets[map].is_down() { self.hold(key) } else { self.dial(key) }
    }

    fn is_welcome(&mut self, client: &OwnedFd) -> bool {
        let Some(wanted) = self.options.peer_cid else { return true };
        match socket::peer_cid(client) {
            Ok(cid) if cid == wanted => true,
            Ok(cid) => {
                if self.quiet_refusals.is_over(now()) {
                    warn!("refused a vsock connection from CID {cid}: only CID {wanted} is served");
                }
                false
            }
            // Reset already: it has left.
            Err(_) => false,
        }
    }

    /// Waits for its turn at a target that is down.
    fn hold(&mut self, key: Key) {
        let Some(connection) = self.table.get(key) else { return };
        connection.stage = Stage::Held;
        connection.held_since.get_or_insert_with(now);
        let map = connection.map;
        self.targets[map].hold(key);
        self.arm_probe(map);
    }

    fn arm_probe(&mut self, map: usize) {
        if let Some(at) = self.targets[map].next_probe() {
            self.timers.arm(at, Timer::Probe { map });
        }
    }

    fn dial(&mut self, key: Key) {
        let Some(connection) = self.table.get(key) else { return };
        let map = connection.map;
        connection.stage = Stage::Dialing;
        let (socket, connected) = match socket::dial(&self.targets[map].endpoint) {
            Ok(Dialed::Connected(socket)) => (socket, true),
            Ok(Dialed::Pending(socket)) => (socket, false),
            Err(error) => return self.dial_failed(key, &error),
        };
        let data = EventData::new_u64((key.slot as u64) << 1 | 1);
        let flags = if connected { READING } else { READING | EventFlags::OUT };
        if let Err(errno) = epoll::add(&self.epoll, &socket, data, flags) {
            return self.dial_failed(key, &errno.into());
        }
        let Some(connection) = self.table.get(key) else { return };
        connection.target = Some(socket);
        connection.target_armed = !connected;
        if connected {
            self.connected(key);
            self.turn(key);
        } else {
            connection.dialing_since = Some(connection.held_since.unwrap_or_else(now));
            self.dials.push(key);
        }
    }

    /// No answer at once: the kernel drops SYNs when the target's backlog is full.
    fn bound_dial(&mut self, key: Key) {
        let Some(since) = self.table.get(key).and_then(|connection| connection.dialing_since) else { return };
        self.arm_at(key, since + self.options.hold, Timer::Dial(key));
    }

    fn dial_failed(&mut self, key: Key, error: &io::Error) {
        let Some(connection) = self.table.get(key) else { return };
        connection.stage = Stage::Held;
        connection.target = None;
        disarm(&mut self.timers, connection);
        let now = now();
        let since = connection.dialing_since.take().unwrap_or(now);
        connection.held_since.get_or_insert(since);
        let map = connection.map;
        if self.draining {
            return self.refuse(key);
        }
        self.targets[map].failed(key, error, self.options.hold, now);
        self.arm_probe(map);
    }

    fn connected(&mut self, key: Key) {
        let Some(connection) = self.table.get(key) else { return };
        connection.stage = Stage::Open;
        connection.dialing_since = None;
        disarm(&mut self.timers, connection);
        connection.pump.set_writable(Side::Target);
        let map = connection.map;
        for held in self.targets[map].connected(now) {
            self.dial(held);
        }
    }

    fn socket_event(&mut self, slot: usize, side: Side, flags: EventFlags) {
        let Some(connection) = self.table.at(slot) else { return };
        let key = Key { slot, id: connection.id };
        match (connection.stage, side) {
            (Stage::Open, _) => {
                note(connection, side, flags);
                self.disarm_idle(key, side, flags);
                self.turn(key);
            }
            (Stage::Dialing, Side::Target) => self.dialing_event(key, flags),
            (Stage::Dialing | Stage::Held, Side::Client) => {
                let ended = flags.contains(EventFlags::RDHUP);
                note(connection, side, flags);
                if flags.intersects(LOST) || (ended && connection.client_left()) {
                    self.close(key);
                }
            }
            (Stage::Held, Side::Target) => {}
        }
    }

    fn dialing_event(&mut self, key: Key, flags: EventFlags) {
        let Some(connection) = self.table.get(key) else { return };
        let Some(socket) = &connection.target else { return };
        if flags.intersects(LOST)
            && let Some(error) = socket::take_error(socket)
        {
            return self.dial_failed(key, &error);
        }
        if flags.contains(EventFlags::OUT) {
            note(connection, Side::Target, flags);
            self.connected(key);
            self.turn(key);
        }
    }

    /// A side was watched for room, and there is room while nothing waits for it: watch it no more. TCP reports room
    /// only where it was short, so there the watch costs nothing.
    fn disarm_idle(&mut self, key: Key, side: Side, flags: EventFlags) {
        if !flags.contains(EventFlags::OUT) {
            return;
        }
        let Some(connection) = self.table.get(key) else { return };
        let known = connection.pump.set_writable(side);
        let interest = connection.pump.interest();
        let idle = match side {
            Side::Client => known && !interest.client_write && connection.client_armed,
            Side::Target => known && !interest.target_write && connection.target_armed,
        };
        if idle && !is_tcp(side, &self.listeners[connection.map], &self.targets[connection.map]) {
            self.watch(key, side, false);
        }
    }

    fn watch(&mut self, key: Key, side: Side, writing: bool) {
        let Some(connection) = self.table.get(key) else { return };
        let (socket, armed, bit) = match side {
            Side::Client => (Some(&connection.client), &mut connection.client_armed, 0),
            Side::Target => (connection.target.as_ref(), &mut connection.target_armed, 1),
        };
        let Some(socket) = socket else { return };
        *armed = writing;
        let flags = if writing { READING | EventFlags::OUT } else { READING };
        // Fails only for want of memory; then the next edge of reading tries again.
        let _ = epoll::modify(&self.epoll, socket, EventData::new_u64((key.slot as u64) << 1 | bit), flags);
    }

    fn turn(&mut self, key: Key) {
        let Some(connection) = self.table.get(key) else { return };
        if connection.stage != Stage::Open {
            return;
        }
        let mut phase = connection.turn(&mut self.pool);
        if connection.pump.is_replaceable() {
            if self.retarget(key) {
                return;
            }
            let Some(connection) = self.table.get(key) else { return };
            phase = connection.give_up_target(&mut self.pool);
        }
        let Some(connection) = self.table.get(key) else { return };
        if phase == Phase::Done {
            return self.close(key);
        }
        if connection.pump.is_runnable() {
            self.runnable.push(key);
        }
        let waiting = connection.pump.waiting();
        let arm_client = waiting.client_write && !connection.client_armed;
        let arm_target = waiting.target_write && !connection.target_armed;
        if phase != connection.phase {
            self.enter(key, phase);
        }
        if arm_client {
            self.watch(key, Side::Client, true);
        }
        if arm_target {
            self.watch(key, Side::Target, true);
        }
    }

    /// The target ended before a byte went either way: as if it had refused. Not for ever: a target that takes
    /// connections only to end them is to be seen by the client.
    fn retarget(&mut self, key: Key) -> bool {
        let Some(connection) = self.table.get(key) else { return false };
        let lost = connection.pump.target_lost();
        if self.draining || (!lost && connection.early_ends >= EARLY_ENDS) || connection.early_ends == u8::MAX
        {
            return false;
        }
        if connection.held_since.is_some_and(|since| now().saturating_sub(since) > self.options.hold) {
            return false;
        }
        connection.early_ends += 1;
        connection.pump.retarget();
        let error = if lost { io::ErrorKind::ConnectionReset } else { io::ErrorKind::UnexpectedEof };
        self.dial_failed(key, &io::Error::from(error));
        true
    }

    fn enter(&mut self, key: Key, phase: Phase) {
        let Some(connection) = self.table.get(key) else { return };
        connection.phase = phase;
        connection.moved = connection.total_moved();
        match phase.limit() {
            Some(limit) => self.arm(key, limit, Timer::Phase(key)),
            None => disarm(&mut self.timers, connection),
        }
    }

    /// Sets the connection's timer, in place of the one it had.
    fn arm(&mut self, key: Key, after: Duration, timer: Timer) {
        self.arm_at(key, now() + after, timer);
    }

    fn arm_at(&mut self, key: Key, at: Moment, timer: Timer) {
        let Some(connection) = self.table.get(key) else { return };
        disarm(&mut self.timers, connection);
        connection.timer = Some((at, timer));
        self.timers.arm(at, timer);
    }

    fn close(&mut self, key: Key) {
        let Some(mut connection) = self.table.remove(key.slot) else { return };
        disarm(&mut self.timers, &mut connection);
        connection.pump.close(&mut self.pool);
        if connection.stage == Stage::Held {
            self.targets[connection.map].forget(key);
        }
        self.counters.now.connections -= 1;
        if self.at_limit {
            self.at_limit = false;
            self.unaccepted.extend(0..self.listeners.len());
        }
    }

    fn refuse(&mut self, key: Key) {
        self.counters.now.refused += 1;
        self.close(key);
    }

    fn fire_timers(&mut self) {
        if self.timers.is_empty() {
            return;
        }
        let now = now();
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Probe { map } => self.probe(map, now),
                Timer::Dial(key) => self.dial_overdue(key),
                Timer::Phase(key) => self.phase_over(key),
                Timer::Listener { map } => self.listener_due(map),
                Timer::Drain => self.ended = true,
            }
        }
    }

    fn probe(&mut self, map: usize, now: Moment) {
        let (table, hold) = (&self.table, self.options.hold);
        let is_due = |key| {
            let since = table.peek(key).and_then(|connection| connection.held_since);
            since.is_none_or(|since| now.saturating_sub(since) >= hold)
        };
        for key in self.targets[map].expire(is_due) {
            self.refuse(key);
        }
        if let Some(key) = self.targets[map].probe(now) {
            self.dial(key);
        }
        self.arm_probe(map);
    }

    fn dial_overdue(&mut self, key: Key) {
        if self.table.get(key).is_some_and(|connection| connection.stage == Stage::Dialing) {
            warn!("a connect to the target had no answer within the hold time: its client is let go");
            self.refuse(key);
        }
    }

    fn phase_over(&mut self, key: Key) {
        let Some(connection) = self.table.get(key) else { return };
        let Some(limit) = connection.phase.limit() else { return };
        let moved = connection.total_moved();
        if moved == connection.moved {
            return self.close(key);
        }
        connection.moved = moved;
        self.arm(key, limit, Timer::Phase(key));
    }

    fn listener_due(&mut self, map: usize) {
        self.listeners[map].due = None;
        if self.draining {
            return;
        }
        if self.listeners[map].is_open() {
            return self.accept(map);
        }
        if let Err(error) = self.open_listener(map) {
            self.refused(map, &error);
        }
    }

    fn devices_changed(&mut self) {
        if let Some(devices) = &self.devices {
            let _ = devices.read_events();
        }
        self.open_tries = OPEN_TRIES;
        for map in 0..self.listeners.len() {
            if self.listeners[map].is_vsock() && !self.listeners[map].is_open() {
                self.look_at_listener(map, now());
            }
        }
    }

    fn signal(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if self.draining {
                info!("second signal: closing {} connections", self.table.len());
                self.ended = true;
                return;
            }
            let name = Signal::try_from(info.ssi_signo as i32).map_or("signal", Signal::as_str);
            self.drain(name);
        }
    }

    fn drain(&mut self, name: &str) {
        self.draining = true;
        self.listeners.iter_mut().for_each(Listener::close);
        for key in self.table.keys() {
            if self.table.get(key).is_some_and(|connection| connection.stage == Stage::Held) {
                self.refuse(key);
            }
        }
        info!(
            "{name}: no new connections, {} open ones have {} s",
            self.table.len(),
            self.options.drain.as_secs()
        );
        self.timers.arm(now() + self.options.drain, Timer::Drain);
        self.ended |= self.table.len() == 0;
    }
}

/// What the connection had a timer for is over.
fn disarm(timers: &mut Timers, connection: &mut Connection) {
    if let Some((at, timer)) = connection.timer.take() {
        timers.disarm(at, timer);
    }
}

fn say(error: &RelayError) {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    warn!("{error}{source}");
}

/// Tells the pump what became ready. An error is found by reading.
fn note(connection: &mut Connection, side: Side, flags: EventFlags) {
    if flags.intersects(EventFlags::RDHUP.union(LOST)) {
        connection.pump.set_hangup(side);
    } else if flags.contains(EventFlags::IN) {
        connection.pump.set_readable(side);
    }
}

fn is_tcp(side: Side, listener: &Listener, target: &Target) -> bool {
    let endpoint = match side {
        Side::Client => &listener.endpoint,
        Side::Target => &target.endpoint,
    };
    matches!(endpoint, Endpoint::Tcp(_))
}

/// envd publishes every port that listens on TCP in the guest.
fn warn_of_tcp(listen: &Endpoint) {
    if matches!(listen, Endpoint::Tcp(_)) {
        warn!("{listen}: a TCP listener inside a sandbox is published by envd; use vsock: or unix: there");
    }
}

fn take_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}
