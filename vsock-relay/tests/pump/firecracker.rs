//! Bridge and relay with a VMM between them, as it is in the field: two pumps, and a pipe that behaves as Firecracker.

use std::{cell::RefCell, collections::VecDeque, io, rc::Rc};

use vsock_relay::{
    endpoint::HalfClose::{Broken, Kept},
    pool::Pool,
    pump::{Phase, Pump, Side, Stream},
};

use crate::{fake::Fake, pool};

/// What a turn of either pump moves through the VMM at most (bytes): a little, so that many interleavings come about.
const PIECE: usize = 1000;
/// What waits in the VMM at most (bytes).
const WINDOW: usize = 1500;
/// Both pumps are at rest after so many turns in which nothing happened.
const QUIET: usize = 64;

/// One direction of a pipe in memory.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    ended: bool,
    reset: bool,
}

/// A half-close of the host ends both halves in the guest and drops what the guest still sends; one of the guest never reaches
/// the host.
#[derive(Debug, Default)]
struct Vmm {
    to_guest: Pipe,
    to_host: Pipe,
}

struct HostEnd(Rc<RefCell<Vmm>>);
struct GuestEnd(Rc<RefCell<Vmm>>);

fn read_pipe(pipe: &mut Pipe, buffer: &mut [u8]) -> io::Result<usize> {
    if pipe.bytes.is_empty() {
        return if pipe.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
    }
    let count = buffer.len().min(pipe.bytes.len()).min(PIECE);
    pipe.bytes.drain(..count).zip(buffer).for_each(|(byte, place)| *place = byte);
    Ok(count)
}

fn write_pipe(pipe: &mut Pipe, bytes: &[u8]) -> io::Result<usize> {
    if pipe.reset {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let room = WINDOW.saturating_sub(pipe.bytes.len()).min(bytes.len());
    if room == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    pipe.bytes.extend(&bytes[..room]);
    Ok(room)
}

impl Stream for HostEnd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_pipe(&mut self.0.borrow_mut().to_host, buffer)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_pipe(&mut self.0.borrow_mut().to_guest, bytes)
    }
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.close();
        Ok(())
    }
}

impl HostEnd {
    /// Half a close of the host is a whole one.
    fn close(&self) {
        let mut vmm = self.0.borrow_mut();
        vmm.to_guest.ended = true;
        vmm.to_host.reset = true;
    }
}

impl Stream for GuestEnd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_pipe(&mut self.0.borrow_mut().to_guest, buffer)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_pipe(&mut self.0.borrow_mut().to_host, bytes)
    }
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn is_gone(&mut self) -> bool {
        self.0.borrow().to_host.reset
    }
}

impl GuestEnd {
    /// A full close: the host reads what is there, and then the end.
    fn close(&self) {
        let mut vmm = self.0.borrow_mut();
        vmm.to_host.ended = true;
        vmm.to_guest.reset = true;
    }
}

/// Where both pumps are when nothing changes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) bridge: Phase,
    pub(crate) relay: Phase,
}

impl Rest {
    /// Neither stays without a bound.
    pub(crate) fn is_bounded(self) -> bool {
        [self.bridge, self.relay].iter().all(|phase| *phase == Phase::Done || phase.limit().is_some())
    }
}

/// Drives both pumps in turn. A phase that is bounded in time is over when nothing else happens.
pub(crate) fn through_firecracker(client: &mut Fake, envd: &mut Fake) -> Rest {
    let vmm = Rc::new(RefCell::new(Vmm::default()));
    let (mut host, mut guest) = (HostEnd(Rc::clone(&vmm)), GuestEnd(vmm));
    let mut bridge = End { pump: Pump::new(Kept, Broken), phase: Phase::Open };
    let mut relay = End { pump: Pump::new(Broken, Kept), phase: Phase::Open };
    let (mut quiet, mut before) = (0, None);
    while quiet < QUIET {
        if bridge.turn(client, &mut host) {
            host.close();
        }
        if relay.turn(&mut guest, envd) {
            guest.close();
        }
        let now = Some((
            bridge.phase,
            relay.phase,
            client.sent.len() + envd.received.len(),
            envd.sent.len() + client.received.len(),
        ));
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
    Rest { bridge: bridge.phase, relay: relay.phase }
}

struct End {
    pump: Pump,
    phase: Phase,
}

impl End {
    /// Whether it has just come to its end.
    fn turn(&mut self, client: &mut impl Stream, target: &mut impl Stream) -> bool {
        if self.phase == Phase::Done {
            return false;
        }
        self.phase = turn_once(&mut self.pump, client, target, &mut pool());
        self.phase == Phase::Done
    }
}

/// A turn with everything ready.
pub(crate) fn turn_once(
    pump: &mut Pump,
    client: &mut impl Stream,
    target: &mut impl Stream,
    pool: &mut Pool,
) -> Phase {
    for side in [Side::Client, Side::Target] {
        pump.set_readable(side);
        pump.set_writable(side);
    }
    pump.turn(client, target, pool)
}
