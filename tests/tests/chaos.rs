//! A short selection of the campaign, through the same code: `make chaos` runs all of it at its full counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tests::chaos::{Options, campaign};

#[test]
fn a_short_campaign_loses_nothing() {
    let report = campaign(&Options { seed: 1, brief: true, ..Options::default() }).unwrap();
    let failed: Vec<_> = report.rows().iter().filter(|row| row.failed > 0).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
