//! Lines that could come with every connection are said at most every ten seconds: the console is shared.

use std::time::Duration;

use guest::clock::Moment;

const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Quiet {
    last: Option<Moment>,
}

impl Quiet {
    /// Whether it may be said now; if so, it counts as said.
    pub(super) fn is_over(&mut self, now: Moment) -> bool {
        let over = self.last.is_none_or(|last| now.saturating_sub(last) > PAUSE);
        if over {
            self.last = Some(now);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_soon_is_not_said_again() {
        let mut quiet = Quiet::default();
        assert!(quiet.is_over(Duration::from_secs(1)));
        assert!(!quiet.is_over(Duration::from_secs(11)));
        assert!(quiet.is_over(Duration::from_secs(12)));
    }
}
