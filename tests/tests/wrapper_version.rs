//! envd's version in the status: asked of the program once it serves, and nobody notices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use tests::{Cell, paths, wait};

fn cell(switches: &str) -> Cell {
    let builder = Cell::builder().unwrap().stand_in("bin/envd", switches).unwrap();
    builder.supervise("bin/envd", "").unwrap()
}

/// Waits for the process that is asked.
fn asked(cell: &Cell) -> u32 {
    let look = || Ok(cell.sh("pidof envd-version").ok().and_then(|pid| pid.parse().ok()));
    wait::until("envd to be asked for its version", wait::BOUND, look).unwrap()
}

#[test]
fn the_program_is_asked_for_its_version_and_nobody_takes_it_for_envd() {
    let cell = cell("slow-version = 1\n");
    let pid = asked(&cell);
    assert_ne!(cell.envd().unwrap(), pid, "an updater that signals envd finds envd alone");
    // Others look for a process by the name of its file, or by its command.
    assert_eq!(cell.sh(&format!("readlink /proc/{pid}/exe")).unwrap(), "/run/envd-init/envd-version");
    assert_eq!(cell.sh(&format!("cat /proc/{pid}/comm")).unwrap(), "envd-version");
    assert_eq!(cell.sh(&format!("ps -o ni= -p {pid}")).unwrap().trim(), "19");
    assert_eq!(cell.version().unwrap(), "0.0.0-stand-in");
    let envdctl = paths::host_bin("envdctl").unwrap().display().to_string();
    let table = cell.sh(&format!("{envdctl} status")).unwrap();
    assert!(table.contains("/bin/envd 0.0.0-stand-in"), "{table}");
    assert_eq!(cell.deaths().len(), 0, "it is no envd whose end is told: {}", cell.console());
}

#[test]
fn one_that_does_not_tell_its_version_is_ended_and_envd_is_left_alone() {
    let cell = cell("slow-version = 600\n");
    let asked = asked(&cell);
    let gone = || Ok((!cell.try_sh(&format!("kill -0 {asked}"))?.status.success()).then_some(()));
    wait::until("it to be ended", wait::BOUND, gone).unwrap();
    assert_eq!(cell.status().unwrap()["envd"]["version"], Value::Null);
    assert_eq!((cell.health().unwrap(), cell.deaths().len()), (204, 0));
}
