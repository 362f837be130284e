//! The pump: two directions of bytes between a client and a target, without any I/O of its own.
//!
//! It is driven from outside, by the relay's epoll loop and by the bridge's tokio tasks alike: the driver says what
//! became ready, calls [`Pump::turn`], and arranges for the wake-ups that the pump asks for.
//!
//! # One direction
//!
//! | state | its source | its sink | left when |
//! |---|---|---|---|
//! | `Flowing` | is read when nothing is pending | gets what was read, at once | source ends → `Flushing`; sink is lost → `Discarding` |
//! | `Flushing` | has ended | gets what is pending | nothing pending, or sink lost → `Ended` |
//! | `Discarding` | is read and thrown away, so that our peer can end in peace | is lost | source ends → `Ended` |
//! | `Ended` | – | – | never |
//!
//! A turn that is interrupted (would block, budget used up) leaves the state as it is: the next turn goes on there.
//!
//! # Both together
//!
//! The end of one direction must not lose the bytes of the other. What happens depends on whether the transport
//! towards the sink keeps a half-close ([`HalfClose`]):
//!
//! | event | sink keeps half-close | sink breaks it |
//! |---|---|---|
//! | client's bytes end | the target is told (`SHUT_WR`); its answer flows on ([`Phase::HalfOpen`]) | the target is told nothing; its answer is drained, bounded in time ([`Phase::Draining`]) |
//! | target's bytes end | the client is told; what it still sends flows on (`HalfOpen`) | flushed, then done: only a full close reaches a client behind Firecracker |
//! | target takes no more bytes | the client's are thrown away, the target's last words (an early 413) still reach the client ([`Phase::Lingering`]) | the same |
//! | client takes no more bytes | what it has sent still reaches the target (`Lingering`) | the same |
//! | client is lost | what was read from it is flushed, then done | the same |
//! | target is lost | what was read from it is flushed, then done | the same |
//! | target ends, is lost or takes no bytes, and no byte has gone either way | the client is told nothing: another target may take its place ([`Pump::is_replaceable`]), until the driver gives up | the same |
//!
//! `ENOTCONN`, `ECONNRESET` and `EPIPE` are ends like any other: a vsock peer that was reset (a snapshot was restored)
//! shows as end of file first and as `ENOTCONN` afterwards.

use std::{io, time::Duration};

use crate::{endpoint::HalfClose, pool::Pool};

/// After the client's end over a transport without half-close, the target may be silent this long.
pub const DRAIN_IDLE: Duration = Duration::from_secs(10);
/// A half-open connection may be silent this long: longer than what the platform's proxy (620 s) and envd (640 s) allow.
pub const HALF_OPEN_IDLE: Duration = Duration::from_secs(660);
/// Bytes nobody wants any more are taken from a peer for this long, so that it can read our last ones.
pub const LINGER: Duration = Duration::from_secs(2);
/// A direction moves about this much (bytes) in one turn before the others have theirs.
const BUDGET: usize = 1024 * 1024;

/// A byte stream that never blocks.
pub trait Stream {
    /// As `read(2)`; `WouldBlock` when there is nothing yet, 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// As `write(2)`; `WouldBlock` when nothing fits.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Tells the peer that no more bytes come.
    fn shutdown_write(&mut self) -> io::Result<()>;
    /// Whether the peer, whose bytes have ended, can no longer receive either. Asked once, at that end.
    fn is_gone(&mut self) -> bool {
        false
    }
}

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source said so.
    Finished,
    /// The source is gone, in both directions.
    SourceLost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Flowing,
    Flushing(End),
    Discarding,
    Ended(End),
}

/// What was read and not yet written.
#[derive(Debug)]
struct Pending {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Direction {
    state: State,
    pending: Option<Pending>,
    /// Bytes that the sink took.
    moved: u64,
    /// What the driver last heard, less what the pump found out since. Edge-triggered: a short read or write clears it.
    readable: bool,
    writable: bool,
    /// The source's end is near: a short read is then not the last.
    hangup: bool,
    /// The sink was told of the end.
    told: bool,
}

impl Direction {
    const fn new() -> Self {
        Self {
            state: State::Flowing,
            pending: None,
            moved: 0,
            readable: false,
            writable: false,
            hangup: false,
            told: false,
        }
    }

    /// Bytes that the sink took.
    pub const fn moved(&self) -> u64 {
        self.moved
    }

    fn wants_read(&self) -> bool {
        matches!(self.state, State::Flowing | State::Discarding) && self.pending.is_none()
    }

    fn wants_write(&self) -> bool {
        self.pending.is_some() && !matches!(self.state, State::Discarding)
    }

    /// More can be done without waiting.
    fn runnable(&self) -> bool {
        (self.wants_read() && self.readable) || (self.wants_write() && self.writable)
    }

    fn ended(&self) -> Option<End> {
        if let State::Ended(end) = self.state { Some(end) } else { None }
    }

    /// Whether nothing more will come out of it.
    fn is_silent(&self) -> bool {
        matches!(self.state, State::Ended(_) | State::Discarding)
    }

    /// Moves what can be moved now.
    fn run(&mut self, source: &mut impl Stream, sink: &mut impl Stream, pool: &mut Pool) {
        let mut budget = BUDGET;
        while budget > 0 && self.runnable() {
            let step = match self.state {
                State::Ended(_) => return,
                State::Discarding => self.discard(source, pool),
                State::Flowing | State::Flushing(_) if self.pending.is_some() => self.flush(sink, pool),
                State::Flowing | State::Flushing(_) => self.carry(source, sink, pool),
            };
            budget = budget.saturating_sub(step);
        }
    }

    /// Reads once and writes what was read at once. Returns how much was read.
    fn carry(&mut self, source: &mut impl Stream, sink: &mut impl Stream, pool: &mut Pool) -> usize {
        let mut buffer = pool.take();
        let count = self.read(source, &mut buffer);
        if count == 0 {
            pool.give(buffer);
            return 1;
        }
        self.pending = Some(Pending { buffer, start: 0, end: count });
        if self.writable {
            self.flush(sink, pool);
        }
        count
    }

    fn discard(&mut self, source: &mut impl Stream, pool: &mut Pool) -> usize {
        let mut buffer = pool.take();
        let count = self.read(source, &mut buffer);
        pool.give(buffer);
        count.max(1)
    }

    /// Reads once; 0 when nothing came, and then the state says why.
    fn read(&mut self, source: &mut impl Stream, buffer: &mut [u8]) -> usize {
        match source.read(buffer) {
            Ok(0) => self.source_ended(if source.is_gone() { End::SourceLost } else { End::Finished }),
            Ok(count) => {
                self.readable = self.hangup || count == buffer.len();
                return count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.source_ended(End::SourceLost),
        }
        0
    }

    fn source_ended(&mut self, end: End) {
        self.state = if self.wants_write() { State::Flushing(end) } else { State::Ended(end) };
    }

    /// Writes once. Returns how much was written, at least 1.
    fn flush(&mut self, sink: &mut impl Stream, pool: &mut Pool) -> usize {
        let Some(pending) = &mut self.pending else { return 1 };
        let rest = pending.end - pending.start;
        match sink.write(&pending.buffer[pending.start..pending.end]) {
            Ok(0) => self.sink_lost(pool),
            Ok(count) => {
                self.moved += count as u64;
                pending.start += count;
                self.writable = count == rest;
                if count == rest {
                    self.settle_pending(pool);
                }
                return count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.sink_lost(pool),
        }
        1
    }

    /// Everything pending was written.
    fn settle_pending(&mut self, pool: &mut Pool) {
        self.drop_pending(pool);
        if let State::Flushing(end) = self.state {
            self.state = State::Ended(end);
        }
    }

    /// Bytes of which the sink took nothing at all are kept: they may go to another target (see [`Pump::retarget`]).
    fn sink_lost(&mut self, pool: &mut Pool) {
        if self.moved > 0 {
            self.drop_pending(pool);
        }
        self.state = match self.state {
            State::Flushing(end) => State::Ended(end),
            _ => State::Discarding,
        };
    }

    fn drop_pending(&mut self, pool: &mut Pool) {
        if let Some(pending) = self.pending.take() {
            pool.give(pending.buffer);
        }
    }
}

/// What the driver waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interest {
    pub client_read: bool,
    pub client_write: bool,
    pub target_read: bool,
    pub target_write: bool,
}

/// How far a connection is, and with that how long it may stay silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Both directions are open: no bound.
    Open,
    /// One side has ended and the other was told.
    HalfOpen,
    /// The client has ended, the target could not be told.
    Draining,
    /// Only last words are being passed on.
    Lingering,
    /// Both sides are to be closed now.
    Done,
}

impl Phase {
    /// How long it may last since a sink last took bytes.
    pub const fn limit(self) -> Option<Duration> {
        match self {
            Self::Open | Self::Done => None,
            Self::HalfOpen => Some(HALF_OPEN_IDLE),
            Self::Draining => Some(DRAIN_IDLE),
            Self::Lingering => Some(LINGER),
        }
    }
}

/// One of the two peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Target,
}

/// Both directions of one connection.
#[derive(Debug)]
pub struct Pump {
    up: Direction,
    down: Direction,
    client_rule: HalfClose,
    target_rule: HalfClose,
    /// The target has sent something.
    answered: bool,
    /// No other target takes the place of this one.
    given_up: bool,
}

impl Pump {
    /// The rules are those of the transports towards the client and towards the target.
    pub const fn new(client_rule: HalfClose, target_rule: HalfClose) -> Self {
        Self {
            up: Direction::new(),
            down: Direction::new(),
            client_rule,
            target_rule,
            answered: false,
            given_up: false,
        }
    }

    /// Client to target.
    pub const fn up(&self) -> &Direction {
        &self.up
    }

    /// Target to client.
    pub const fn down(&self) -> &Direction {
        &self.down
    }

    /// A side can be read.
    pub fn set_readable(&mut self, side: Side) {
        self.reading(side).readable = true;
    }

    /// A side can be written. Returns whether that was known already.
    pub fn set_writable(&mut self, side: Side) -> bool {
        let direction = match side {
            Side::Client => &mut self.down,
            Side::Target => &mut self.up,
        };
        std::mem::replace(&mut direction.writable, true)
    }

    /// A side will send nothing more than what can be read now.
    pub fn set_hangup(&mut self, side: Side) {
        let direction = self.reading(side);
        direction.hangup = true;
        direction.readable = true;
    }

    fn reading(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.up,
            Side::Target => &mut self.down,
        }
    }

    /// Bytes that were read from the client before there was a target to write them to. `bytes` must fit a buffer.
    pub fn preload(&mut self, bytes: &[u8], pool: &mut Pool) {
        debug_assert!(self.up.pending.is_none());
        if !bytes.is_empty() {
            self.up.pending = Some(pending_of(bytes, pool));
        }
    }

    /// Bytes of the target that came with its handshake.
    pub fn preload_down(&mut self, bytes: &[u8], pool: &mut Pool) {
        debug_assert!(self.down.pending.is_none());
        if !bytes.is_empty() {
            self.answered = true;
            self.down.pending = Some(pending_of(bytes, pool));
        }
    }

    /// Whether no byte has gone to the target or come from it: then, and only then, another may take its place.
    pub fn is_untouched(&self) -> bool {
        self.up.moved == 0 && !self.answered
    }

    /// Whether the target was lost in a way that lets another one take its place. While it is, the client hears nothing of it; the
    /// driver finds another target ([`Pump::retarget`]), says that there is none ([`Pump::give_up_target`]), or closes the client.
    pub fn is_replaceable(&self) -> bool {
        self.target_ended() && self.is_untouched() && !self.client_has_left() && !self.given_up
    }

    /// The target was lost before it took a byte: what the client has sent is kept for the next one.
    pub fn retarget(&mut self) {
        debug_assert!(self.is_untouched() && !self.down.told && !self.given_up);
        self.down.state = State::Flowing;
        self.down.readable = false;
        self.down.hangup = false;
        self.up.writable = false;
        self.up.told = false;
        self.up.state = match self.up.state {
            State::Discarding => State::Flowing,
            State::Ended(end) if self.up.pending.is_some() => State::Flushing(end),
            state => state,
        };
    }

    /// No other target takes the place of the one that was lost: the client is to see what it did.
    pub fn give_up_target(&mut self, client: &mut impl Stream, pool: &mut Pool) -> Phase {
        self.given_up = true;
        self.settle_target(client, pool);
        self.phase()
    }

    /// No other target comes: what was kept for it is dropped, and the client is told of an end.
    fn settle_target(&mut self, client: &mut impl Stream, pool: &mut Pool) {
        if matches!(self.up.state, State::Discarding) {
            self.up.drop_pending(pool);
        }
        pass_end(&mut self.down, self.client_rule, client);
    }

    /// Whether the client has ended and nothing of it waits for a target: then nobody needs one.
    pub fn client_has_left(&self) -> bool {
        self.up.ended().is_some() && self.up.pending.is_none()
    }

    /// Whether bytes of the client have been read and wait for a target.
    pub fn keeps_bytes(&self) -> bool {
        self.up.pending.is_some()
    }

    /// The next target is reached over another kind of transport.
    pub fn set_target_rule(&mut self, rule: HalfClose) {
        self.target_rule = rule;
    }

    /// Whether the target has ended or refuses bytes.
    pub fn target_ended(&self) -> bool {
        self.down.ended().is_some() || matches!(self.up.state, State::Discarding)
    }

    /// Whether the target ended by an error rather than by an end of its bytes.
    pub fn target_lost(&self) -> bool {
        self.down.ended() == Some(End::SourceLost) || matches!(self.up.state, State::Discarding)
    }

    /// Moves what can be moved in both directions, passes ends on by the rules, and says where that leaves us.
    pub fn turn(&mut self, client: &mut impl Stream, target: &mut impl Stream, pool: &mut Pool) -> Phase {
        self.up.run(client, target, pool);
        let before = self.down.moved;
        self.down.run(target, client, pool);
        self.answered |= self.down.moved > before || self.down.pending.is_some();
        pass_end(&mut self.up, self.target_rule, target);
        if !self.is_replaceable() {
            self.settle_target(client, pool);
        }
        self.phase()
    }

    /// Whether there is more to do without waiting for anything: the budget of the turn was used up.
    pub fn is_runnable(&self) -> bool {
        self.up.runnable() || self.down.runnable()
    }

    fn phase(&self) -> Phase {
        match (self.up.ended(), self.down.ended()) {
            (None, None) if self.up.is_silent() || self.down.is_silent() => Phase::Lingering,
            (None, None) => Phase::Open,
            (Some(_), Some(_)) => Phase::Done,
            // A client that is lost takes nothing either; a target that was told of it may still read in peace.
            (Some(End::SourceLost), None) => self.lost_client_phase(),
            (Some(End::Finished), None) if self.down.is_silent() => Phase::Done,
            (Some(End::Finished), None) => after_end(self.target_rule, Phase::Draining),
            (None, Some(end)) => self.after_target(end),
        }
    }

    fn after_target(&self, end: End) -> Phase {
        // Over a transport without half-close an end is a full one: the target takes nothing any more.
        if end == End::SourceLost || self.up.is_silent() || self.target_rule == HalfClose::Broken {
            return self.last_words();
        }
        let owed = if self.up.wants_write() { Phase::Lingering } else { Phase::Done };
        after_end(self.client_rule, owed)
    }

    fn lost_client_phase(&self) -> Phase {
        if self.target_rule == HalfClose::Kept { Phase::Lingering } else { Phase::Done }
    }

    /// The target is through. A client that may still be sending is given the time to read our last bytes, where
    /// closing over its unread ones would reset the connection and destroy them.
    fn last_words(&self) -> Phase {
        if self.client_rule == HalfClose::Kept { Phase::Lingering } else { Phase::Done }
    }

    /// What to be woken for.
    pub fn interest(&self) -> Interest {
        Interest {
            client_read: self.up.wants_read(),
            client_write: self.down.wants_write(),
            target_read: self.down.wants_read(),
            target_write: self.up.wants_write(),
        }
    }

    /// What of [`Pump::interest`] is not known to be ready.
    pub fn waiting(&self) -> Interest {
        let interest = self.interest();
        Interest {
            client_read: interest.client_read && !self.up.readable,
            client_write: interest.client_write && !self.down.writable,
            target_read: interest.target_read && !self.down.readable,
            target_write: interest.target_write && !self.up.writable,
        }
    }

    /// Gives buffers back; to be called when the connection is closed.
    pub fn close(&mut self, pool: &mut Pool) {
        self.up.drop_pending(pool);
        self.down.drop_pending(pool);
    }
}

/// Tells the sink that its direction has ended, once, where its transport carries that.
fn pass_end(direction: &mut Direction, rule: HalfClose, sink: &mut impl Stream) {
    if direction.ended().is_some() && rule == HalfClose::Kept && !direction.told {
        direction.told = true;
        // The peer may be gone already; then there is nobody to tell.
        let _ = sink.shutdown_write();
    }
}

fn after_end(rule: HalfClose, broken: Phase) -> Phase {
    if rule == HalfClose::Kept { Phase::HalfOpen } else { broken }
}

fn pending_of(bytes: &[u8], pool: &mut Pool) -> Pending {
    let mut buffer = pool.take();
    let count = bytes.len().min(buffer.len());
    buffer[..count].copy_from_slice(&bytes[..count]);
    Pending { buffer, start: 0, end: count }
}
