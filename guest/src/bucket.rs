//! A token bucket: bounds how many records a source may print a second.

use crate::clock::Moment;

/// Tokens refill evenly up to a burst.
#[derive(Debug, Clone)]
pub struct Bucket {
    burst: u32,
    per_second: u32,
    tokens: f64,
    filled: Moment,
}

impl Bucket {
    /// A full bucket of `burst` tokens that gains `per_second` tokens a second.
    pub const fn new(burst: u32, per_second: u32) -> Self {
        Self { burst, per_second, tokens: burst as f64, filled: Moment::ZERO }
    }

    /// Takes one token; false when there is none.
    pub fn take(&mut self, now: Moment) -> bool {
        self.refill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// When a token will be there.
    pub fn next_token(&self, now: Moment) -> Moment {
        let missing = (1.0 - self.tokens).max(0.0);
        now + Moment::from_secs_f64(missing / f64::from(self.per_second.max(1)))
    }

    fn refill(&mut self, now: Moment) {
        let gained = now.saturating_sub(self.filled).as_secs_f64() * f64::from(self.per_second);
        self.tokens = (self.tokens + gained).min(f64::from(self.burst));
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(3, 10);
        let start = Duration::from_secs(5);
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        let later = bucket.next_token(start);
        assert!(later > start && bucket.take(later + Duration::from_millis(1)));
    }
}
