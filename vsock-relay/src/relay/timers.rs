//! Deadlines. Empty at rest: then the loop waits without a timeout.

use std::{collections::BTreeSet, time::Duration};

use guest::clock::Moment;

use super::connection::Key;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A target is to be tried again.
    Probe { map: usize },
    /// A dial has had no answer.
    Dial(Key),
    /// A connection's phase has had its time.
    Phase(Key),
    /// A listener may accept again, or be opened.
    Listener { map: usize },
    /// The drain is over.
    Drain,
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    set: BTreeSet<(Moment, Timer)>,
}

impl Timers {
    pub(super) fn arm(&mut self, at: Moment, timer: Timer) {
        self.set.insert((at, timer));
    }

    /// It is not due any more: what is over wakes nobody later.
    pub(super) fn disarm(&mut self, at: Moment, timer: Timer) {
        self.set.remove(&(at, timer));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// How long to wait for the next one.
    pub(super) fn wait(&self, now: Moment) -> Option<Duration> {
        self.set.first().map(|(at, _)| at.saturating_sub(now))
    }

    /// Takes one that is due.
    pub(super) fn pop(&mut self, now: Moment) -> Option<Timer> {
        let first = self.set.first().filter(|(at, _)| *at <= now)?;
        let timer = first.1;
        self.set.pop_first();
        Some(timer)
    }
}
