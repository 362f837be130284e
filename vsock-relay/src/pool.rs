//! Buffers for the pump: borrowed for one read, kept only while bytes in them wait for a slow sink.
//!
//! A connection at rest owns no buffer. Reads are large, because every wake-up and every system call costs more than
//! the memory; but when many sinks are slow at once the pool hands out small buffers, so that what is kept is bounded.

/// A read of this size (bytes) empties the receive window of a vsock connection (256 KiB by default) in one call.
pub const LARGE: usize = 256 * 1024;
/// What a read gets when large buffers are short (bytes).
pub const SMALL: usize = 16 * 1024;

/// A stack of buffers.
#[derive(Debug)]
pub struct Pool {
    large: Vec<Box<[u8]>>,
    small: Vec<Box<[u8]>>,
    /// How many large buffers are out.
    lent: usize,
    limits: Limits,
}

/// How many buffers a pool may lend and keep.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Large buffers lent at once; beyond that small ones are lent.
    pub lent: usize,
    /// Buffers of each size that stay with the pool when they come back.
    pub kept: usize,
}

impl Pool {
    pub fn new(limits: Limits) -> Self {
        Self { large: Vec::new(), small: Vec::new(), lent: 0, limits }
    }

    /// A buffer to read into; give it back with [`Pool::give`].
    pub fn take(&mut self) -> Box<[u8]> {
        if self.lent >= self.limits.lent {
            return self.small.pop().unwrap_or_else(|| allocate(SMALL));
        }
        self.lent += 1;
        self.large.pop().unwrap_or_else(|| allocate(LARGE))
    }

    pub fn give(&mut self, buffer: Box<[u8]>) {
        let kept = if buffer.len() == LARGE {
            self.lent = self.lent.saturating_sub(1);
            &mut self.large
        } else {
            &mut self.small
        };
        if kept.len() < self.limits.kept {
            kept.push(buffer);
        }
    }

    /// Returns to the system what lies unused: called when the last connection has gone.
    pub fn release(&mut self) {
        self.large = Vec::new();
        self.small = Vec::new();
    }
}

/// Zeroed by the kernel, page by page as it is touched: a buffer that only ever saw small reads costs one page.
fn allocate(size: usize) -> Box<[u8]> {
    vec![0; size].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_slow_sinks_cost_small_buffers() {
        let mut pool = Pool::new(Limits { lent: 2, kept: 1 });
        let first = pool.take();
        let second = pool.take();
        let third = pool.take();
        assert_eq!([first.len(), second.len(), third.len()], [LARGE, LARGE, SMALL]);
        pool.give(third);
        pool.give(first);
        assert_eq!(pool.take().len(), LARGE);
        pool.give(second);
        assert_eq!(pool.large.len() + pool.small.len(), 2);
        pool.release();
        assert_eq!(pool.large.len() + pool.small.len(), 0);
    }
}
