//! What envd prints, on the serial line and in the ring: whole where it matters, harmless always, and never at envd's cost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tests::{Cell, wait};

fn cell(switches: &str) -> Cell {
    Cell::builder().unwrap().stand_in("bin/envd", switches).unwrap().supervise("bin/envd", "").unwrap()
}

#[test]
fn a_panic_is_whole_in_the_ring_and_heads_the_report() {
    let cell = cell("panic-after = 0.2\nonly-starts = 1\n");
    let report = cell.death(1).unwrap();
    let last: Vec<&str> =
        report["last_lines"].as_array().unwrap().iter().filter_map(|l| l.as_str()).collect();
    assert!(last[0].starts_with("panic: runtime error: invalid memory address"), "{last:?}");
    assert!(last.iter().any(|line| line.contains("main.main()")), "{last:?}");
    let ring = cell.ring().unwrap();
    for line in
        ["panic: runtime error", "goroutine 1 [running]:", "main.(*server).serve", "/src/main.go:92 +0x44"]
    {
        assert!(ring.lines().any(|record| record.contains("info envd ") && record.contains(line)), "{line}");
    }
}

#[test]
fn a_panic_in_the_middle_of_a_flood_is_whole_on_the_line_and_in_the_ring() {
    let cell = cell("flood = 200000\npanic-after = 1\nonly-starts = 1\n");
    cell.death(1).unwrap();
    for text in [cell.console(), cell.ring().unwrap()] {
        for line in ["panic: runtime error", "goroutine 1 [running]:", "main.main()"] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}

/// Its last words before it closes its output were dropped with the pipe; so were those of one whose death came to be known after.
#[test]
fn what_envd_prints_before_it_closes_its_output_is_said() {
    let script = "#!/bin/sh\nseq 1 5000 >&2\nprintf unfinished\nexec >/dev/null 2>&1\nexec sleep 1000\n";
    let builder = Cell::builder().unwrap().file("bin/envd", script).executable("bin/envd");
    let cell = builder.supervise("bin/envd", "").unwrap();
    // Not on the serial line, which a flood has used up; and each stream has an end of its own.
    for last in [" envd unfinished", " lines dropped: too many a second", " envd 5000"] {
        let said = || Ok(cell.ring()?.lines().any(|record| record.ends_with(last)).then_some(()));
        wait::until("envd's last words in the ring", wait::BOUND, said).unwrap();
    }
    assert_eq!(cell.deaths().len(), 0, "{}", cell.console());
}

#[test]
fn a_flood_is_counted_and_costs_neither_envd_nor_the_line() {
    let cell = cell("flood = 100000\n");
    cell.wait("envd is healthy").unwrap();
    cell.wait(r"envd: \d+ lines dropped: too many a second").unwrap();
    assert_eq!(cell.health().unwrap(), 204);
    cell.sh("sleep 3").unwrap();
    // It prints ten times a second; one that had to wait for us would be far behind.
    let newest = |text: &str| -> u64 {
        let numbers =
            text.lines().filter_map(|line| line.split("flood line ").nth(1)?.split(':').next()?.parse().ok());
        numbers.max().unwrap_or(0)
    };
    assert!(newest(&cell.ring().unwrap()) > 100_000, "{}", newest(&cell.ring().unwrap()));
    assert!(cell.console().len() < 64 * 1024, "{} bytes on the line", cell.console().len());
    let used = cell.sh("cut -d' ' -f14,15 /proc/$(pidof envd-wrapper)/stat").unwrap();
    let ticks: u64 = used.split(' ').map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    assert!(ticks < 100, "{ticks} ticks of CPU for four seconds of flood");
    cell.sh("[ $(cat /run/envd-init/log/wrapper.log* | wc -c) -lt 70000 ]").unwrap();
}

#[test]
fn binary_output_is_shown_and_not_obeyed() {
    let cell = cell("binary-junk = yes\n");
    cell.wait("envd is healthy").unwrap();
    let bytes = cell.console_bytes();
    assert!(
        bytes.iter().all(|byte| *byte == b'\n' || *byte >= b' '),
        "{:?}",
        String::from_utf8_lossy(&bytes)
    );
    assert!(std::str::from_utf8(&bytes).is_ok());
    assert_eq!(cell.count(r"^\[ *\d+\.\d{6}\] init: "), 0, "a fake record stays envd's: {}", cell.console());
    cell.wait(r"envd: \[    0\.000001\] init: reboot: fake record").unwrap();
    assert_eq!(cell.count(r"\] envd-init: boot \{.fake"), 0);
    let ring = cell.ring().unwrap();
    assert!(ring.contains(" warn envd a warning with a level"), "{ring}");
}

#[test]
fn a_long_line_is_split_with_marks() {
    let cell = cell("long-line = 100000\n");
    cell.wait("envd is healthy").unwrap();
    cell.wait("envd: x+…$").unwrap();
    cell.wait("envd: …x+").unwrap();
    assert!(cell.console().lines().all(|line| line.len() < 2048));
}

#[test]
fn a_serial_line_that_nobody_reads_costs_nothing_but_its_own_output() {
    let builder = Cell::builder().unwrap().blocked_console();
    let builder = builder.stand_in("bin/envd", "long-line = 100000\nflood = 20000\n").unwrap();
    let mut cell = builder.supervise("bin/envd", "").unwrap();
    let mut pid = wait::until("envd", wait::BOUND, || Ok(cell.envd().ok())).unwrap();
    let dropped = || cell.status().unwrap()["console_dropped_bytes"].as_u64().unwrap();
    let mut kills = 0;
    while kills < 3 || dropped() == 0 {
        wait::until("health", wait::BOUND, || Ok((cell.health()? == 204).then_some(()))).unwrap();
        cell.sh(&format!("kill -KILL {pid}")).unwrap();
        pid = cell.other_envd(pid).unwrap();
        kills += 1;
    }
    cell.read_console().unwrap();
    cell.wait("lines dropped: the console did not take them").unwrap();
    cell.stop().unwrap();
    cell.wait("envd was stopped on request").unwrap();
}

#[test]
fn standard_output_that_envd_closes_is_its_own_affair() {
    let builder = Cell::builder().unwrap().stand_in("bin/real", "").unwrap();
    let real = builder.folder().join("bin/real").display().to_string();
    let script = format!("#!/bin/sh\necho once >&2\nexec {real} >&- 2>&-\n");
    let cell = builder.file("bin/envd", &script).executable("bin/envd").supervise("bin/envd", "").unwrap();
    cell.wait("envd: once").unwrap();
    cell.wait("envd is healthy").unwrap();
    assert_eq!(cell.health().unwrap(), 204);
    assert_eq!(cell.deaths().len(), 0);
}
