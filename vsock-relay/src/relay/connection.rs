//! One client, its target, and the table of all.
//!
//! | stage | target | leaves |
//! |---|---|---|
//! | `Dialing` | a connect is under way | connected → `Open`; refused → `Held`; hold time over → closed |
//! | `Held` | none; its turn comes by [`super::target`] | dialled → `Dialing`; client leaves, or hold time over → closed |
//! | `Open` | connected | the pump is done → closed; lost before a byte went either way → `Held` |

use std::os::fd::OwnedFd;

use guest::clock::Moment;

use super::timers::Timer;
use crate::{
    pool::Pool,
    pump::{Phase, Pump},
    socket::Peer,
};

/// Names a connection beyond the life of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) slot: usize,
    pub(super) id: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Dialing,
    Held,
    Open,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    /// Index of its map.
    pub(super) map: usize,
    pub(super) stage: Stage,
    pub(super) client: OwnedFd,
    pub(super) target: Option<OwnedFd>,
    pub(super) client_is_vsock: bool,
    pub(super) target_is_vsock: bool,
    /// Whether epoll reports that a side became writable; asked for only where that is needed.
    pub(super) client_armed: bool,
    pub(super) target_armed: bool,
    pub(super) pump: Pump,
    pub(super) phase: Phase,
    /// Its one timer, while it has one: of a dial, or of the phase.
    pub(super) timer: Option<(Moment, Timer)>,
    /// How many bytes had moved when the bound of the phase was last set.
    pub(super) moved: u64,
    /// When it was held first.
    pub(super) held_since: Option<Moment>,
    /// Since when it has waited, while a connect has no answer yet: what it was held before that counts.
    pub(super) dialing_since: Option<Moment>,
    /// How often the target ended before a byte had gone either way.
    pub(super) early_ends: u8,
}

impl Connection {
    /// Lets the pump do what it can. Only for a connection that has a target.
    pub(super) fn turn(&mut self, pool: &mut Pool) -> Phase {
        let Some(target) = &self.target else { return self.phase };
        let mut client = Peer::new(&self.client, self.client_is_vsock);
        let mut target = Peer::new(target, self.target_is_vsock);
        self.pump.turn(&mut client, &mut target, pool)
    }

    /// No other target is tried: the client is to see what became of this one.
    pub(super) fn give_up_target(&mut self, pool: &mut Pool) -> Phase {
        let mut client = Peer::new(&self.client, self.client_is_vsock);
        self.pump.give_up_target(&mut client, pool)
    }

    /// Bytes that reached either side so far.
    pub(super) fn total_moved(&self) -> u64 {
        self.pump.up().moved() + self.pump.down().moved()
    }

    /// Whether the client of a held connection, whose bytes have ended, has left without asking anything, or can
    /// receive no answer.
    pub(super) fn client_left(&self) -> bool {
        use crate::pump::Stream as _;
        let mut client = Peer::new(&self.client, self.client_is_vsock);
        let asked = self.pump.keeps_bytes() || client.has_bytes();
        !asked || client.is_gone()
    }
}

/// All connections. A slot that was freed is used again only after [`Table::settle`], so that an event of the same
/// batch never meets a stranger.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    freed: Vec<usize>,
    next_id: u64,
    count: usize,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The key that the next [`Table::insert`] will use.
    pub(super) fn next_key(&self) -> Key {
        Key { slot: self.free.last().copied().unwrap_or(self.slots.len()), id: self.next_id }
    }

    pub(super) fn insert(&mut self, connection: Connection) -> Key {
        let key = self.next_key();
        debug_assert_eq!(connection.id, key.id);
        self.next_id += 1;
        self.count += 1;
        if self.free.pop().is_some() {
            self.slots[key.slot] = Some(connection);
        } else {
            self.slots.push(Some(connection));
        }
        key
    }

    pub(super) fn at(&mut self, slot: usize) -> Option<&mut Connection> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Connection> {
        self.at(key.slot).filter(|connection| connection.id == key.id)
    }

    pub(super) fn peek(&self, key: Key) -> Option<&Connection> {
        self.slots.get(key.slot)?.as_ref().filter(|connection| connection.id == key.id)
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Connection> {
        let connection = self.slots.get_mut(slot)?.take()?;
        self.freed.push(slot);
        self.count -= 1;
        Some(connection)
    }

    /// The batch of events is over: freed slots may be used again.
    pub(super) fn settle(&mut self) {
        if self.freed.is_empty() {
            return;
        }
        self.free.append(&mut self.freed);
        if self.count == 0 {
            *self = Self { next_id: self.next_id, ..Self::default() };
        }
    }

    /// Every connection's key.
    pub(super) fn keys(&self) -> Vec<Key> {
        let live = self.slots.iter().enumerate();
        live.filter_map(|(slot, connection)| Some(Key { slot, id: connection.as_ref()?.id })).collect()
    }
}
