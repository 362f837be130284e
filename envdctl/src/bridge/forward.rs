//! Drives the pump of one connection with tokio: one task, both directions, woken only for what the pump waits for.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    ops::{Deref, DerefMut},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};
use vsock_relay::{
    endpoint::HalfClose,
    pool::{Limits, Pool},
    pump::{HALF_OPEN_IDLE, Phase, Pump, Side, Stream as PumpStream},
};

use super::{
    connect::Stream,
    presence::{self, Presence},
};

/// While an answer is awaited for a client whose bytes have ended, it is looked at this often.
const LOOK: Duration = Duration::from_millis(250);
/// A pause in an answer to a client that has ended may last this long.
const SETTLED: Duration = Duration::from_secs(3);

thread_local! {
    /// The bridge is one thread; at most 64 MiB wait in large buffers for slow peers, then small ones are used.
    static POOL: RefCell<Pool> = RefCell::new(Pool::new(Limits { lent: 256, kept: 4 }));
}

/// Runs `work` with the thread's buffers.
pub(super) fn with_pool<T>(work: impl FnOnce(&mut Pool) -> T) -> T {
    POOL.with_borrow_mut(work)
}

/// A pump of this thread. Its buffers go back to the thread's pool however its connection ends: most tasks of a route that broke
/// are aborted, and a buffer that stayed with one of them counts as lent for ever.
pub(super) struct PooledPump(Pump);

impl PooledPump {
    pub(super) const fn new(client_rule: HalfClose, target_rule: HalfClose) -> Self {
        Self(Pump::new(client_rule, target_rule))
    }
}

impl Deref for PooledPump {
    type Target = Pump;

    fn deref(&self) -> &Pump {
        &self.0
    }
}

impl DerefMut for PooledPump {
    fn deref_mut(&mut self) -> &mut Pump {
        &mut self.0
    }
}

impl Drop for PooledPump {
    fn drop(&mut self) {
        // Where the thread's pool has gone already, nobody counts any more.
        let _ = POOL.try_with(|pool| self.0.close(&mut pool.borrow_mut()));
    }
}

/// Told about every turn that moved bytes, so that counters and the watch over silent routes stay true.
pub(super) trait Meter {
    fn moved(&self, up: u64, down: u64);
}

/// The pump's view of a tokio socket. Reads go through `poll_read`, because that knows that a short read has emptied
/// the socket, and saves the read that would only say so.
struct Peer<'a> {
    stream: &'a mut Stream,
    side: Side,
}

impl PumpStream for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut context = Context::from_waker(Waker::noop());
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut *self.stream).poll_read(&mut context, &mut buffer) {
            Poll::Ready(result) => result.map(|()| buffer.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.try_write(bytes)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        use std::os::fd::AsFd;
        Ok(rustix::net::shutdown(self.stream.as_fd(), rustix::net::Shutdown::Write)?)
    }

    fn is_gone(&mut self) -> bool {
        self.side == Side::Client && presence::of(self.stream) == Presence::Gone
    }
}

/// Why a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Its phase has had its time: one side has ended and the other stayed silent.
    Overdue,
    /// The target ended or was lost before a byte went either way: another may be tried.
    Untouched,
}

/// Moves bytes until the connection is done.
pub(super) async fn forward(
    client: &mut Stream,
    target: &mut Stream,
    pump: &mut Pump,
    meter: &impl Meter,
) -> Outcome {
    let mut bound = Bound { phase: Phase::Open, moved: 0, over: Instant::now(), owed: false };
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|context| {
        let mut driver = Driver { client: &mut *client, target: &mut *target, pump: &mut *pump };
        driver.poll(context, meter, &mut bound, timer.as_mut())
    })
    .await
}

/// The end of the current phase.
struct Bound {
    phase: Phase,
    moved: u64,
    over: Instant,
    /// The client's bytes moved last: an answer is still to come.
    owed: bool,
}

struct Driver<'a> {
    client: &'a mut Stream,
    target: &'a mut Stream,
    pump: &'a mut Pump,
}

impl Driver<'_> {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        meter: &impl Meter,
        bound: &mut Bound,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<Outcome> {
        self.register(context);
        loop {
            let (up, down) = self.moved();
            let phase = self.turn();
            let (up_now, down_now) = self.moved();
            if (up, down) != (up_now, down_now) {
                meter.moved(up_now - up, down_now - down);
                bound.owed = down_now == down;
            }
            if self.pump.is_replaceable() {
                return Poll::Ready(Outcome::Untouched);
            }
            if phase == Phase::Done {
                return Poll::Ready(Outcome::Done);
            }
            bound.enter(phase, up_now + down_now, self.client, timer.as_mut());
            if self.pump.is_runnable() {
                // The budget is used up: let the others have their turn.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.register(context) {
                return bound.poll(context, up_now + down_now, self.client, timer);
            }
        }
    }

    fn moved(&self) -> (u64, u64) {
        (self.pump.up().moved(), self.pump.down().moved())
    }

    fn turn(&mut self) -> Phase {
        let mut client = Peer { stream: self.client, side: Side::Client };
        let mut target = Peer { stream: self.target, side: Side::Target };
        with_pool(|pool| self.pump.turn(&mut client, &mut target, pool))
    }

    /// Asks for the wake-ups that the pump waits for; whether something is ready already.
    fn register(&mut self, context: &mut Context<'_>) -> bool {
        let waiting = self.pump.waiting();
        let mut ready = false;
        if waiting.client_read && self.client.poll_read_ready(context).is_ready() {
            self.pump.set_readable(Side::Client);
            ready = true;
        }
        if waiting.target_read && self.target.poll_read_ready(context).is_ready() {
            self.pump.set_readable(Side::Target);
            ready = true;
        }
        if waiting.client_write && self.client.poll_write_ready(context).is_ready() {
            self.pump.set_writable(Side::Client);
            ready = true;
        }
        if waiting.target_write && self.target.poll_write_ready(context).is_ready() {
            self.pump.set_writable(Side::Target);
            ready = true;
        }
        ready
    }
}

impl Bound {
    fn enter(&mut self, phase: Phase, moved: u64, client: &Stream, timer: Pin<&mut Sleep>) {
        if self.phase != phase {
            self.phase = phase;
            self.restart(moved, client, timer);
        }
    }

    /// Only a bounded phase arms a timer.
    fn restart(&mut self, moved: u64, client: &Stream, timer: Pin<&mut Sleep>) {
        let Some(limit) = self.limit(client) else { return };
        self.moved = moved;
        self.over = Instant::now() + limit;
        timer.reset(self.next());
    }

    /// A client that has ended, and is known to be there, is waited with for its answer as long as one behind a transport that
    /// keeps half-close. After the answer envd, who cannot be told of the end, would keep the connection for more.
    fn limit(&self, client: &Stream) -> Option<Duration> {
        match self.phase {
            Phase::Draining if !self.owed => Some(SETTLED),
            Phase::Draining if presence::of(client) == Presence::There => Some(HALF_OPEN_IDLE),
            phase => phase.limit(),
        }
    }

    fn next(&self) -> Instant {
        if self.phase == Phase::Draining { self.over.min(Instant::now() + LOOK) } else { self.over }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        moved: u64,
        client: &Stream,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<Outcome> {
        if self.phase.limit().is_none() {
            return Poll::Pending;
        }
        while timer.as_mut().poll(context).is_ready() {
            if self.phase == Phase::Draining && presence::of(client) == Presence::Gone {
                return Poll::Ready(Outcome::Done);
            }
            if moved != self.moved {
                self.restart(moved, client, timer.as_mut());
            } else if Instant::now() < self.over {
                timer.as_mut().reset(self.next());
            } else {
                return Poll::Ready(Outcome::Overdue);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use vsock_relay::pool::LARGE;

    use super::*;

    /// Counts nothing.
    struct Deaf;

    impl Meter for Deaf {
        fn moved(&self, _up: u64, _down: u64) {}
    }

    /// A connection whose target takes nothing, left with a byte on the way, as an abort leaves it.
    async fn cut_short() {
        let (mut client, peer) = Stream::pair().unwrap();
        let (mut target, _sink) = Stream::pair().unwrap();
        target.writable().await.unwrap();
        while target.try_write(&[0; 1 << 16]).is_ok() {}
        peer.writable().await.unwrap();
        peer.try_write(b"x").unwrap();
        client.readable().await.unwrap();
        let mut pump = PooledPump::new(HalfClose::Kept, HalfClose::Kept);
        let mut forwarding = Box::pin(forward(&mut client, &mut target, &mut pump, &Deaf));
        poll_fn(|context| Poll::Ready(forwarding.as_mut().poll(context).is_pending())).await;
        drop(forwarding);
        assert!(pump.keeps_bytes());
    }

    /// After as many as the pool lends, the whole bridge read in small pieces until it was restarted.
    #[tokio::test]
    async fn connections_that_were_cut_short_give_their_buffers_back() {
        for _ in 0..300 {
            cut_short().await;
        }
        assert_eq!(with_pool(|pool| pool.take()).len(), LARGE);
    }
}
