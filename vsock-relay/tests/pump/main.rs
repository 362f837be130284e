//! The pump against scripted peers: every interleaving of ready, would block, closed and error that matters, first with
//! peers that keep a half-close, then through an interposer that breaks it in both ways as Firecracker does.
//!
//! What is guarded: no byte of one direction is lost because the other ended; every connection comes to its end; an end
//! is passed on exactly where the transport carries it.

mod fake;
mod firecracker;

use std::io;

use fake::{Fake, Read, Write};
use firecracker::{through_firecracker, turn_once};
use vsock_relay::{
    endpoint::HalfClose::{self, Broken, Kept},
    pool::{Limits, Pool},
    pump::{Phase, Pump, Side, Stream},
};

fn pool() -> Pool {
    Pool::new(Limits { lent: 4, kept: 4 })
}

/// Turns with everything ready until nothing changes any more.
fn settle(pump: &mut Pump, client: &mut impl Stream, target: &mut impl Stream) -> Phase {
    let mut pool = pool();
    let mut phase = Phase::Open;
    for _ in 0..64 {
        phase = turn_once(pump, client, target, &mut pool);
        if phase == Phase::Done {
            break;
        }
    }
    phase
}

fn run(rules: (HalfClose, HalfClose), client: &mut Fake, target: &mut Fake) -> (Phase, Pump) {
    let mut pump = Pump::new(rules.0, rules.1);
    let phase = settle(&mut pump, client, target);
    (phase, pump)
}

const RULES: [(HalfClose, HalfClose); 4] = [(Kept, Kept), (Kept, Broken), (Broken, Kept), (Broken, Broken)];
const SMALL: Read = Read::Bytes(100);
const ALL: Write = Write::Takes(usize::MAX);

#[test]
fn bytes_flow_both_ways_and_both_ends_end_it() {
    for rules in RULES {
        let mut client = Fake::new(&[SMALL, Read::End], &[ALL]);
        let mut target = Fake::new(&[SMALL, SMALL, Read::End], &[ALL]);
        let (phase, _) = run(rules, &mut client, &mut target);
        assert_eq!(phase, Phase::Done, "{rules:?}");
        assert_eq!(client.sent, target.received);
        assert_eq!(target.sent, client.received);
    }
}

#[test]
fn the_clients_end_is_told_only_where_half_close_is_kept_and_the_answer_still_comes() {
    for (rule, told, phase) in [(Kept, 1, Phase::HalfOpen), (Broken, 0, Phase::Draining)] {
        let mut client = Fake::new(&[SMALL, Read::End], &[ALL]);
        let mut target = Fake::new(&[Read::WouldBlock], &[ALL]);
        let mut pump = Pump::new(Kept, rule);
        assert_eq!(settle(&mut pump, &mut client, &mut target), phase);
        assert_eq!(target.told, told);
        // The answer comes late, after the client's end.
        target.reads = [SMALL, SMALL, Read::End].into();
        assert_eq!(settle(&mut pump, &mut client, &mut target), Phase::Done);
        assert_eq!(client.received.len(), 200);
        assert_eq!(client.told, 1);
    }
}

#[test]
fn the_targets_end_closes_a_client_behind_firecracker_after_the_last_byte() {
    let mut client = Fake::new(&[Read::WouldBlock], &[Write::Takes(30), Write::WouldBlock]);
    let mut target = Fake::new(&[SMALL, Read::End], &[ALL]);
    let mut pump = Pump::new(Broken, Kept);
    assert_eq!(settle(&mut pump, &mut client, &mut target), Phase::Open, "70 bytes are still owed");
    client.writes = [ALL].into();
    assert_eq!(settle(&mut pump, &mut client, &mut target), Phase::Done);
    assert_eq!(client.received, target.sent);
    assert_eq!(client.told, 0);
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    // The target answers 413 and closes: our writes to it fail while its last bytes are still to be read.
    for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset, io::ErrorKind::NotConnected] {
        let mut client = Fake::new(&[SMALL, SMALL, SMALL, Read::WouldBlock], &[ALL]);
        let mut target =
            Fake::new(&[Read::WouldBlock, SMALL, Read::End], &[Write::Takes(50), Write::Error(kind)]);
        let (phase, _) = run((Kept, Kept), &mut client, &mut target);
        assert_eq!(client.received, target.sent);
        assert_eq!(client.told, 1);
        assert_eq!(phase, Phase::Lingering, "the client may still be sending");
        assert!(phase.limit().is_some());
    }
}

#[test]
fn an_upload_reaches_the_target_though_the_client_takes_no_answer() {
    let mut client = Fake::new(&[SMALL, SMALL, Read::End], &[Write::Error(io::ErrorKind::BrokenPipe)]);
    let mut target = Fake::new(&[SMALL, Read::WouldBlock], &[ALL]);
    run((Kept, Kept), &mut client, &mut target);
    assert_eq!(client.sent, target.received);
}

#[test]
fn a_lost_client_ends_it_after_what_it_had_sent() {
    for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::NotConnected] {
        let mut client = Fake::new(&[SMALL, Read::Error(kind)], &[Write::Error(kind)]);
        let mut target = Fake::new(&[Read::WouldBlock], &[Write::Takes(10), Write::WouldBlock, ALL]);
        let (phase, _) = run((Broken, Broken), &mut client, &mut target);
        assert_eq!(phase, Phase::Done);
        assert_eq!(target.received, client.sent);
    }
}

#[test]
fn a_lost_target_ends_it_after_what_it_had_sent() {
    for rules in RULES {
        let reset = io::ErrorKind::ConnectionReset;
        let mut client = Fake::new(&[SMALL, Read::WouldBlock], &[Write::Takes(10), Write::WouldBlock, ALL]);
        let mut target = Fake::new(&[SMALL, Read::Error(reset)], &[ALL]);
        let (phase, _) = run(rules, &mut client, &mut target);
        assert!(matches!(phase, Phase::Done | Phase::Lingering), "{rules:?}: {phase:?}");
        assert_eq!(client.received, target.sent);
    }
}

#[test]
fn every_interleaving_of_short_scripts_delivers_in_order_and_ends() {
    let reads = [Read::Bytes(1), Read::Bytes(700), Read::WouldBlock];
    let writes = [ALL, Write::Takes(1), Write::Takes(333), Write::WouldBlock];
    let mut tried = 0;
    for rules in RULES {
        for script in 0..(3usize.pow(3) * 4usize.pow(3)) {
            let (read_script, write_script) = (script % 27, script / 27);
            let up: Vec<Read> = digits(read_script, 3, 3).map(|d| reads[d]).chain([Read::End]).collect();
            let down: Vec<Read> =
                digits(26 - read_script, 3, 3).map(|d| reads[d]).chain([Read::End]).collect();
            let takes: Vec<Write> = digits(write_script, 4, 3).map(|d| writes[d]).chain([ALL]).collect();
            let mut client = Fake::new(&up, &takes);
            let mut target = Fake::new(&down, &takes);
            let (phase, pump) = run(rules, &mut client, &mut target);
            assert_eq!(phase, Phase::Done, "{rules:?} {up:?} {down:?} {takes:?}");
            assert_eq!(client.received, target.sent, "{rules:?} {up:?} {down:?} {takes:?}");
            // Behind a transport without half-close the target's end is a full one: what the client sent later is moot.
            if rules == (Kept, Kept) {
                assert_eq!(target.received, client.sent, "{up:?} {takes:?}");
            }
            assert_eq!(pump.down().moved(), client.received.len() as u64);
            tried += 1;
        }
    }
    assert_eq!(tried, 4 * 27 * 64);
}

fn digits(number: usize, base: usize, count: u32) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| number / base.pow(place) % base)
}

#[test]
fn a_direction_at_rest_holds_no_buffer_and_a_slow_sink_holds_one() {
    let mut pool = Pool::new(Limits { lent: 1, kept: 1 });
    let mut pump = Pump::new(Kept, Kept);
    let mut client = Fake::new(&[SMALL, Read::WouldBlock], &[ALL]);
    let mut target = Fake::new(&[Read::WouldBlock], &[Write::WouldBlock]);
    for side in [Side::Client, Side::Target] {
        pump.set_readable(side);
        pump.set_writable(side);
    }
    pump.turn(&mut client, &mut target, &mut pool);
    assert!(pump.interest().target_write && !pump.interest().client_read, "no reading ahead of a slow sink");
    assert_eq!(
        pool.take().len(),
        vsock_relay::pool::SMALL,
        "the one large buffer is with the slow direction"
    );
    target.writes = [ALL].into();
    pump.set_writable(Side::Target);
    pump.turn(&mut client, &mut target, &mut pool);
    assert!(pump.interest().client_read);
    assert_eq!(pool.take().len(), vsock_relay::pool::LARGE);
}

#[test]
fn what_no_target_took_goes_to_the_next_one_and_what_one_took_never_does() {
    let mut pump = Pump::new(Kept, Kept);
    let mut client = Fake::new(&[SMALL, Read::WouldBlock], &[ALL]);
    let mut refusing = Fake::new(&[Read::WouldBlock], &[Write::Error(io::ErrorKind::ConnectionReset)]);
    settle(&mut pump, &mut client, &mut refusing);
    assert!(pump.target_ended() && pump.is_untouched() && !pump.client_has_left());
    pump.retarget();
    let mut next =
        Fake::new(&[SMALL, Read::End], &[Write::Takes(40), Write::Error(io::ErrorKind::ConnectionReset)]);
    settle(&mut pump, &mut client, &mut next);
    assert_eq!(next.received[..], client.sent[..40]);
    assert!(!pump.is_untouched(), "40 bytes have been seen by a target");
}

/// A target that takes connections only to end them (a guest's kernel in front of a relay that is not up) made the client see an
/// end before the next target was tried: that one executed the request, and nobody was left to read its answer.
#[test]
fn a_client_hears_nothing_of_a_target_that_is_replaced_and_gets_the_answer_of_the_next() {
    for rules in RULES {
        for end in [Read::End, Read::Error(io::ErrorKind::ConnectionReset)] {
            let mut pump = Pump::new(rules.0, rules.1);
            let mut client = Fake::new(&[Read::WouldBlock], &[ALL]);
            let mut ending = Fake::new(&[end], &[ALL]);
            settle(&mut pump, &mut client, &mut ending);
            assert!(pump.target_ended() && pump.is_untouched() && !pump.client_has_left());
            assert_eq!(client.told, 0, "{rules:?} {end:?}");
            pump.retarget();
            client.reads = [SMALL, Read::WouldBlock].into();
            let mut next = Fake::new(&[Read::WouldBlock, SMALL, Read::End], &[ALL]);
            settle(&mut pump, &mut client, &mut next);
            assert_eq!(next.received, client.sent, "{rules:?} {end:?}");
            assert_eq!(client.received, next.sent, "{rules:?} {end:?}");
            assert_eq!(client.told, usize::from(rules.0 == Kept), "{rules:?} {end:?}");
        }
    }
}

/// It was left with its bytes unread: closing then destroyed what the target had said.
#[test]
fn a_target_that_spoke_first_and_then_refuses_the_first_bytes_leaves_the_client_read() {
    let mut client = Fake::new(&[Read::WouldBlock, SMALL, SMALL, SMALL, Read::WouldBlock], &[ALL]);
    let mut target = Fake::new(&[SMALL, Read::WouldBlock], &[Write::Error(io::ErrorKind::BrokenPipe)]);
    let (phase, _) = run((Kept, Kept), &mut client, &mut target);
    assert_eq!(phase, Phase::Lingering);
    assert_eq!(client.received, target.sent);
    assert_eq!(client.sent.len(), 300, "what it still sends is taken from it");
}

#[test]
fn a_turn_is_bounded_and_says_that_there_is_more() {
    /// Never runs dry.
    struct Endless;
    impl Stream for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut pump = Pump::new(Kept, Kept);
    pump.set_readable(Side::Client);
    pump.set_writable(Side::Target);
    assert_eq!(pump.turn(&mut Endless, &mut Endless, &mut pool()), Phase::Open);
    assert!(pump.is_runnable());
}

/// What lies between a client and envd: one pump whose transports keep half-close, or bridge, VMM and relay. What follows
/// holds over both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Kind,
    Firecracker,
}

impl Way {
    const BOTH: [Self; 2] = [Self::Kind, Self::Firecracker];

    /// Carries until nothing happens any more; nothing may be left without an end.
    fn carry(self, client: &mut Fake, envd: &mut Fake) {
        match self {
            Self::Kind => {
                let (phase, _) = run((Kept, Kept), client, envd);
                assert!(phase == Phase::Done || phase.limit().is_some(), "{phase:?} is without a bound");
            }
            Self::Firecracker => {
                let rest = through_firecracker(client, envd);
                assert!(rest.is_bounded(), "{rest:?} is without a bound");
            }
        }
    }
}

/// envd that says nothing for a while.
fn late(reads: &[Read]) -> Vec<Read> {
    [&[Read::WouldBlock; 20][..], reads].concat()
}

#[test]
fn over_each_way_bytes_flow_both_ways_and_the_end_arrives() {
    for way in Way::BOTH {
        let mut client = Fake::new(&[Read::Bytes(5000), SMALL, Read::End], &[ALL]);
        let mut envd = Fake::new(&late(&[Read::Bytes(60_000), SMALL, Read::End]), &[ALL]);
        way.carry(&mut client, &mut envd);
        assert_eq!(envd.received, client.sent, "{way:?}");
        assert_eq!(client.received, envd.sent, "{way:?}");
        assert_eq!(client.told, 1, "{way:?}: the client sees the end, which Firecracker hides");
    }
}

#[test]
fn over_each_way_a_slow_client_gets_all_that_envd_sent_before_it_closed() {
    for way in Way::BOTH {
        let mut client = Fake::new(&[SMALL, Read::WouldBlock], &[Write::Takes(30), Write::WouldBlock, ALL]);
        let mut envd = Fake::new(&[Read::WouldBlock, Read::Bytes(9000), Read::End], &[ALL]);
        way.carry(&mut client, &mut envd);
        assert_eq!(client.received, envd.sent, "{way:?}");
    }
}

#[test]
fn over_each_way_an_early_answer_reaches_a_client_that_still_sends() {
    for way in Way::BOTH {
        for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset, io::ErrorKind::NotConnected] {
            let sending = [Read::Bytes(4000); 40];
            let mut client = Fake::new(&[&sending[..], &[Read::WouldBlock]].concat(), &[ALL]);
            let mut envd = Fake::new(
                &[Read::WouldBlock, Read::Bytes(300), Read::End],
                &[Write::Takes(500), Write::Error(kind)],
            );
            way.carry(&mut client, &mut envd);
            assert_eq!(client.received, envd.sent, "{way:?} {kind:?}");
            assert_eq!(client.told, 1, "{way:?} {kind:?}");
        }
    }
}

#[test]
fn over_each_way_an_upload_reaches_envd_though_the_client_takes_no_answer() {
    for way in Way::BOTH {
        let mut client =
            Fake::new(&[SMALL, Read::Bytes(3000), Read::End], &[Write::Error(io::ErrorKind::BrokenPipe)]);
        let mut envd = Fake::new(&late(&[SMALL, Read::WouldBlock]), &[ALL]);
        way.carry(&mut client, &mut envd);
        assert_eq!(envd.received, client.sent, "{way:?}");
    }
}

#[test]
fn over_each_way_what_a_lost_client_had_sent_arrives() {
    for way in Way::BOTH {
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::NotConnected] {
            let mut client = Fake::new(&[Read::Bytes(3000), Read::Error(kind)], &[Write::Error(kind)]);
            let mut envd = Fake::new(&[Read::WouldBlock], &[Write::Takes(10), Write::WouldBlock, ALL]);
            way.carry(&mut client, &mut envd);
            assert_eq!(envd.received, client.sent, "{way:?} {kind:?}");
        }
    }
}

#[test]
fn over_each_way_what_a_lost_envd_had_sent_arrives() {
    for way in Way::BOTH {
        let reset = io::ErrorKind::ConnectionReset;
        let mut client = Fake::new(&[SMALL, Read::WouldBlock], &[Write::Takes(10), Write::WouldBlock, ALL]);
        let mut envd = Fake::new(&late(&[Read::Bytes(3000), Read::Error(reset)]), &[ALL]);
        way.carry(&mut client, &mut envd);
        assert_eq!(client.received, envd.sent, "{way:?}");
    }
}

#[test]
fn through_firecracker_every_interleaving_delivers_the_answer_whole() {
    let reads = [Read::Bytes(1), Read::Bytes(2900), Read::WouldBlock];
    let writes = [ALL, Write::Takes(1), Write::Takes(333), Write::WouldBlock];
    for script in 0..(27 * 64) {
        let up: Vec<Read> = digits(script % 27, 3, 3).map(|d| reads[d]).chain([Read::End]).collect();
        let down: Vec<Read> = digits(26 - script % 27, 3, 3).map(|d| reads[d]).chain([Read::End]).collect();
        let takes: Vec<Write> = digits(script / 27, 4, 3).map(|d| writes[d]).chain([ALL]).collect();
        let mut client = Fake::new(&up, &takes);
        let mut envd = Fake::new(&down, &takes);
        assert!(through_firecracker(&mut client, &mut envd).is_bounded(), "{up:?} {down:?} {takes:?}");
        assert_eq!(client.received, envd.sent, "{up:?} {down:?} {takes:?}");
    }
}
