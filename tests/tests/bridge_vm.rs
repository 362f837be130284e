//! The bridge in front of a real guest: its preferred route breaks in every way, the guest's programs are killed under it, and
//! the VM stands still.

use std::time::Instant;

use anyhow::Result;
use tests::bridge::Fault;
use tests::bridge::guest::{self, GuestBed};
use tests::relay;

/// Names a part that fails (a panic, so that the VM's logs are kept), and says how long it took.
fn part<T>(name: &str, run: impl FnOnce() -> Result<T>) -> T {
    let begun = Instant::now();
    let result = run();
    println!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
    result.unwrap_or_else(|error| panic!("{name}: {error:#}"))
}

#[test]
fn the_bridge_changes_over_whichever_way_its_route_breaks_and_back() {
    let bed = GuestBed::boot().unwrap();
    for fault in Fault::ALL {
        let waited = part(fault.name(), || guest::changes_over(&bed, fault));
        println!("{}: the first client waited {} ms", fault.name(), waited.as_millis());
    }
    let log = bed.bridge.log();
    assert_eq!(log.lines().filter(|line| line.contains(" -> ")).count(), 2 * Fault::ALL.len(), "{log}");
    part("envd killed under streams", || relay::envd_killed_under_streams(&bed.guest, &bed.door(), 20));
    part("bursts", || relay::bursts(&bed.door(), 200));
    assert_eq!(bed.guest.split_lines(), 0, "every CONNECT came in one piece");
}
