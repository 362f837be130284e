//! The relay in a VM, on the real vsock device, through the VMM's own socket and through one that behaves as Firecracker's.
//! One boot serves all parts of a test; the campaign runs the same scenarios at scale.

use std::time::{Duration, Instant};

use anyhow::Result;
use tests::relay::{self, Bed};

const SEED: u64 = 0x7e1a;

/// Names a part that fails (a panic, so that the VM's logs are kept), and says how long it took.
fn part<T>(name: &str, run: impl FnOnce() -> Result<T>) -> T {
    let begun = Instant::now();
    let result = run();
    println!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
    result.unwrap_or_else(|error| panic!("{name}: {error:#}"))
}

#[test]
fn the_relay_carries_bursts_echoes_idlers_and_slow_peers() {
    let bed = Bed::boot().unwrap();
    for (name, door) in bed.doors() {
        part(&format!("{name}: connections in bursts"), || relay::bursts(&door, 500));
        part(&format!("{name}: echoes"), || relay::echoes(&door, 32, 1 << 18, SEED));
        part(&format!("{name}: slow reader"), || relay::slow_reader(&door, 2 << 20));
        part(&format!("{name}: slow writer"), || relay::slow_writer(&door, 1 << 20));
        part(&format!("{name}: early refusal"), || relay::early_refusal(&door));
        part(&format!("{name}: unserved port"), || relay::unserved_port(&door));
    }
    part("from the guest to the host", || relay::outwards(&bed));
    let bytes = part("idle connections", || relay::idle_memory(&bed, &bed.kind(), 200));
    println!("{bytes} bytes of private memory an idle connection");
    assert!(bytes < 4096, "{bytes} bytes an idle connection: a buffer is held");
    bed.await_no_connections().unwrap();
    assert_eq!(bed.split_lines(), 0);
}

#[test]
fn the_relay_outlives_kills_stops_resets_and_a_late_device() {
    let bed = Bed::boot().unwrap();
    let door = bed.firecracker();
    part("clients gone during the hold", || relay::clients_gone_during_the_hold(&bed, &door, 20));
    part("envd killed", || relay::envd_killed(&bed, &door, 2));
    part("envd killed under streams", || relay::envd_killed_under_streams(&bed, &door, 20));
    part("relay killed", || relay::relay_killed(&bed, &door, 2));
    part("VM stopped", || relay::stopped(&bed, 20, Duration::from_secs(3)));
    part("transport reset", || relay::transport_reset(&bed, &bed.kind()));
    part("late device", || relay::late_device(&bed, &bed.kind()));
}
