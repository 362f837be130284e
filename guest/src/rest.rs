//! What a program lets go of while it is at rest.
//!
//! A start runs through most of a program once, and each of its pages then stays mapped for the life of a sandbox, as if it were
//! in use. At rest a program unmaps itself: the kernel then knows what only the start has needed, and frees that first.

use std::time::Duration;

use crate::{clock::Moment, sys};

/// Who is woken more often than this does not pay for it each time: a wake-up maps again what it needs, by some ten faults.
pub const PAUSE: Duration = Duration::from_secs(1);

/// When a program last let go.
#[derive(Debug, Default)]
pub struct Rest {
    last: Option<Moment>,
}

impl Rest {
    /// To be called before a sleep that may be long. An answer is when to call again, if nothing has happened by then: it is too
    /// early to let go once more.
    pub fn begin(&mut self, now: Moment) -> Option<Moment> {
        let due = self.last.map(|last| last + PAUSE).filter(|due| *due > now);
        if due.is_none() {
            self.last = Some(now);
            sys::release_program();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_woken_often_lets_go_once_a_second() {
        let at = Duration::from_millis;
        let mut rest = Rest::default();
        assert_eq!(rest.begin(at(5000)), None);
        assert_eq!(rest.begin(at(5999)), Some(at(6000)));
        assert_eq!(rest.begin(at(6000)), None);
    }
}
