//! The timeline as text with bars.

use std::fmt::Write as _;

use super::timeline::{Group, Row, Spread, Timeline};
use crate::text::{Paint, Table, nanos, sanitise};

/// Columns of the bars.
const WIDTH: usize = 48;

/// The timeline for a terminal. Bars begin where PID 1 does: beside the kernel's share they would all be specks.
pub fn render(timeline: &Timeline, paint: Paint) -> String {
    let mut out = headline(timeline, paint);
    let begin = timeline.init_ns.map_or(0, |init| init.median);
    let span = timeline.end().saturating_sub(begin).max(1);
    let several = timeline.boots > 1;
    let mut table = Table::new(if several {
        &["STAGE", "AT", "TOOK", "SPREAD", ""]
    } else {
        &["STAGE", "AT", "TOOK", ""]
    });
    for row in &timeline.stages {
        let mut cells = vec![sanitise(&row.name).into_owned(), at(row, begin), nanos(row.took_ns.median)];
        cells.extend(several.then(|| spread(row.took_ns)));
        cells.push(bar(row, begin, span, paint));
        table.row(cells);
    }
    out.push_str(&table.render(0));
    for row in &timeline.stages {
        if let Some(warning) = &row.warning {
            let _ =
                writeln!(out, "{} {}: {}", paint.yellow("degraded:"), sanitise(&row.name), sanitise(warning));
        }
    }
    out
}

fn headline(timeline: &Timeline, paint: Paint) -> String {
    let boots =
        if timeline.boots > 1 { format!(" (median of {} boots)", timeline.boots) } else { String::new() };
    let healthy = timeline.healthy_ns.map_or_else(
        || paint.red("envd did not become healthy"),
        |healthy| format!("envd healthy {} after the kernel started", nanos(healthy.median)),
    );
    let own = match (timeline.init_ns, timeline.healthy_ns) {
        (Some(init), Some(healthy)) => {
            format!(", {} after PID 1 started", nanos(healthy.median.saturating_sub(init.median)))
        }
        _ => String::new(),
    };
    format!("{}: {healthy}{own}{boots}\n\n", paint.bold(&sanitise(&timeline.title)))
}

/// Counted from PID 1's start, as the bars are.
fn at(row: &Row, begin: u64) -> String {
    match row.begin_ns.median.checked_sub(begin) {
        Some(after) if row.group != Group::Kernel => format!("+{}", nanos(after)),
        _ => nanos(row.begin_ns.median),
    }
}

fn spread(spread: Spread) -> String {
    if spread.varies() { format!("{} – {}", nanos(spread.min), nanos(spread.max)) } else { "-".into() }
}

/// A bar from begin to end; for several boots it is drawn from the medians, and a thin line reaches to the latest end.
fn bar(row: &Row, begin: u64, span: u64, paint: Paint) -> String {
    if row.group == Group::Kernel {
        return paint.dim("(before PID 1)");
    }
    let eighths = |at: u64| {
        let offset = u128::from(at.saturating_sub(begin).min(span));
        (offset * (WIDTH as u128 * 8) / u128::from(span)) as usize
    };
    let (from, to, late) =
        (eighths(row.begin_ns.median), eighths(row.end_ns.median), eighths(row.end_ns.max));
    let first = (from / 8).min(WIDTH - 1);
    let full = (to / 8).saturating_sub(first);
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][to % 8];
    let mut drawn = "█".repeat(full) + rest;
    if drawn.is_empty() {
        drawn.push('▏');
    }
    let reach = (late.div_ceil(8)).saturating_sub(first + drawn.chars().count());
    let line = if row.end_ns.varies() { "─".repeat(reach) } else { String::new() };
    let coloured = match (&row.warning, row.group) {
        (Some(_), _) => paint.yellow(&drawn),
        (None, Group::Envd) => paint.green(&drawn),
        _ => paint.cyan(&drawn),
    };
    format!("{}{coloured}{}", " ".repeat(first), paint.dim(&line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{stage, well};

    #[test]
    fn the_bars_of_a_boot() {
        let status = well();
        let timeline = Timeline::new("e2b.local".into(), &[status.stages]);
        let expected = "\
e2b.local: envd healthy 731.0 ms after the kernel started, 319.0 ms after PID 1 started

STAGE         AT        TOOK
kernel        0 µs      412.0 ms  (before PID 1)
mounts        +0 µs     3.5 ms    ▌
envd_exec     +3.5 ms   15.5 ms   ██▊
envd_healthy  +19.0 ms  300.0 ms    ██████████████████████████████████████████████
";
        let text = render(&timeline, Paint::plain());
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn stages_of_no_length_and_odd_times_still_have_a_mark() {
        let timeline = Timeline::new(
            "x".into(),
            &[vec![stage("a", 5, 5), stage("b", 9, 3), stage("c", u64::MAX, u64::MAX)]],
        );
        assert!(render(&timeline, Paint::plain()).matches('▏').count() >= 2);
    }
}
