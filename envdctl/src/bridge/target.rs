//! A stream towards the guest, and how it is taken leave of.
//!
//! A unix socket that is closed while bytes in it are unread tells its peer by a reset. There are VMMs (vhost-device-vsock 0.3)
//! that then never tell the guest, where the relay's connection and envd's stay open for ever; and that end altogether when
//! the socket is closed before they have written OK. So a VMM is told the end first (for it that is a full close), and what
//! still comes is read and thrown away until it closes.

use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::AsFd,
    time::Duration,
};

use rustix::net::Shutdown;
use tokio::{runtime::Handle, task::yield_now, time::timeout};

use super::connect::Stream;

/// A VM that is paused may need this long to let go.
const PATIENCE: Duration = Duration::from_secs(600);
/// What is read at once of what nobody wants (bytes).
const CHUNK: usize = 16 * 1024;
/// What is read of it before the others have their turn (bytes).
const BUDGET: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Target {
    /// `None` only while it is dropped.
    stream: Option<Stream>,
    /// There is a VMM at the other end.
    vmm: bool,
}

impl Target {
    pub(super) fn new(stream: Stream, vmm: bool) -> Self {
        Self { stream: Some(stream), vmm }
    }
}

impl Deref for Target {
    type Target = Stream;

    #[expect(clippy::expect_used, reason = "only a drop takes the stream away")]
    fn deref(&self) -> &Stream {
        self.stream.as_ref().expect("there until dropped")
    }
}

impl DerefMut for Target {
    #[expect(clippy::expect_used, reason = "only a drop takes the stream away")]
    fn deref_mut(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("there until dropped")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take().filter(|_| self.vmm) else { return };
        // It may be gone already; then reading says so.
        let _ = rustix::net::shutdown(stream.as_fd(), Shutdown::Write);
        if has_closed(&stream) {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(PATIENCE, until_closed(stream)));
        }
    }
}

async fn until_closed(stream: Stream) {
    while stream.readable().await.is_ok() && !has_closed(&stream) {
        // There may be more than one turn's worth.
        yield_now().await;
    }
}

/// Reads what is there, within the budget; whether the end was among it.
fn has_closed(stream: &Stream) -> bool {
    drain(|waste| stream.try_read(waste))
}

fn drain(mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> bool {
    let mut waste = vec![0; CHUNK];
    for _ in 0..BUDGET / CHUNK {
        match read(&mut waste) {
            Ok(1..) => {}
            Ok(0) => return true,
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everybody waits while one that is taken leave of is read: a guest that sent without end stopped the whole bridge.
    #[test]
    fn what_a_guest_sends_without_end_is_taken_in_bounded_pieces() {
        let mut taken = 0;
        let closed = drain(|waste| {
            taken += waste.len();
            assert!(taken < 100 << 20, "it goes on and on");
            Ok(waste.len())
        });
        assert!(!closed && taken <= 2 * BUDGET);
    }

    #[test]
    fn an_end_is_seen_behind_what_is_still_to_be_read() {
        let mut script = vec![Ok(0), Ok(7), Ok(CHUNK)];
        assert!(drain(|_| script.pop().unwrap()));
        let mut script = vec![Err(io::ErrorKind::WouldBlock.into()), Ok(7)];
        assert!(!drain(|_| script.pop().unwrap()));
        assert!(drain(|_| Err(io::ErrorKind::ConnectionReset.into())));
    }
}
