//! The timeline as a picture: the whole boot as one strip above, and below it, enlarged, the part from PID 1 on.

use std::fmt::Write as _;

use super::timeline::{Group, Row, Timeline};
use crate::text::nanos;

// All lengths in pixels.
const WIDTH: f64 = 1040.0;
const MARGIN: f64 = 40.0;
/// Where the bars begin: the names of the stages stand left of it.
const LEFT: f64 = 190.0;
const RIGHT: f64 = WIDTH - MARGIN - 96.0;
const STRIP_TOP: f64 = 112.0;
const STRIP_HEIGHT: f64 = 26.0;
const ROWS_TOP: f64 = 226.0;
const ROW: f64 = 30.0;
const BAR: f64 = 16.0;
/// The narrowest bar that is still seen.
const SLIVER: f64 = 2.5;

const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const GRID: &str = "#e4e7eb";
const WARNING: &str = "#d97706";

const fn colour(group: Group) -> &'static str {
    match group {
        Group::Kernel => "#9aa5b1",
        Group::Init => "#3b6fd4",
        Group::Services => "#8b5cf6",
        Group::Envd => "#0f9d6b",
    }
}

/// The picture, as a document of its own.
pub fn render(timeline: &Timeline) -> String {
    let rows: Vec<&Row> = timeline.stages.iter().filter(|row| row.group != Group::Kernel).collect();
    let begin = timeline.init_ns.map_or(0, |init| init.median);
    let scale = Scale { begin, end: timeline.end().max(begin + 1) };
    let bottom = ROWS_TOP + ROW * rows.len() as f64;
    let height = bottom + 92.0;
    let mut out = String::new();
    open(&mut out, height);
    heading(&mut out, timeline);
    strip(&mut out, timeline);
    zoom(&mut out, timeline, begin);
    grid(&mut out, scale, bottom);
    marks(&mut out, timeline, scale, bottom);
    for (index, row) in rows.iter().enumerate() {
        stage(&mut out, row, scale, ROWS_TOP + ROW * index as f64);
    }
    legend(&mut out, timeline, height - 26.0);
    out.push_str("</svg>\n");
    out
}

/// From time to pixels.
#[derive(Clone, Copy)]
struct Scale {
    begin: u64,
    end: u64,
}

impl Scale {
    fn x(self, at: u64) -> f64 {
        let offset = at.clamp(self.begin, self.end) - self.begin;
        LEFT + (RIGHT - LEFT) * offset as f64 / (self.end - self.begin) as f64
    }
}

fn open(out: &mut String, height: f64) {
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
}

struct Label<'a> {
    x: f64,
    y: f64,
    size: f64,
    fill: &'a str,
    anchor: &'a str,
    weight: u32,
}

fn label(out: &mut String, at: &Label<'_>, text: &str) {
    let Label { x, y, size, fill, anchor, weight } = at;
    // Dark text keeps a white rim, so that a line that crosses it leaves it legible.
    let halo = if *fill == "#ffffff" {
        ""
    } else {
        " paint-order=\"stroke\" stroke=\"#ffffff\" stroke-width=\"3.5\" stroke-linejoin=\"round\""
    };
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{fill}\" text-anchor=\"{anchor}\" \
         font-weight=\"{weight}\"{halo}>{}</text>",
        escape(text)
    );
}

/// Characters that mean something in XML, and those that XML cannot hold at all.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in crate::text::sanitise(text).chars().take(200) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

fn heading(out: &mut String, timeline: &Timeline) {
    let title = Label { x: MARGIN, y: 52.0, size: 24.0, fill: INK, anchor: "start", weight: 700 };
    label(out, &title, &timeline.title);
    let healthy = timeline.healthy_ns.map_or_else(
        || "envd did not become healthy".to_owned(),
        |healthy| {
            let own = timeline.init_ns.map_or(0, |init| healthy.median.saturating_sub(init.median));
            format!(
                "envd healthy {} after the kernel started, {} after PID 1 did",
                nanos(healthy.median),
                nanos(own)
            )
        },
    );
    let boots = if timeline.boots > 1 {
        format!(" · median of {} boots, whiskers from fastest to slowest", timeline.boots)
    } else {
        String::new()
    };
    let line = Label { x: MARGIN, y: 78.0, size: 14.0, fill: FAINT, anchor: "start", weight: 400 };
    label(out, &line, &(healthy + &boots));
}

/// The whole boot: kernel, PID 1 until envd runs, envd until it is healthy.
fn strip(out: &mut String, timeline: &Timeline) {
    let end = timeline.stages.iter().map(|row| row.end_ns.median).max().unwrap_or(0).max(1);
    let init = timeline.init_ns.map_or(0, |init| init.median);
    let exec = exec_of(timeline).unwrap_or(init).clamp(init, end);
    let x = |at: u64| MARGIN + (WIDTH - 2.0 * MARGIN) * at as f64 / end as f64;
    let parts = [(0, init, Group::Kernel), (init, exec, Group::Init), (exec, end, Group::Envd)];
    // Parts too narrow for their name are named above the strip, from the right.
    let mut right = WIDTH - MARGIN;
    for (from, to, group) in parts.into_iter().filter(|(from, to, _)| to > from).rev() {
        let width = (x(to) - x(from)).max(SLIVER);
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{STRIP_TOP}\" width=\"{width:.1}\" height=\"{STRIP_HEIGHT}\" fill=\"{}\"/>",
            x(from),
            colour(group)
        );
        let said = format!("{} {}", group.name(), nanos(to - from));
        if width > 7.5 * said.len() as f64 {
            let inside = Label {
                x: x(from) + width / 2.0,
                y: STRIP_TOP + 17.5,
                size: 12.5,
                fill: "#ffffff",
                anchor: "middle",
                weight: 600,
            };
            label(out, &inside, &said);
        } else {
            let above = Label {
                x: right,
                y: STRIP_TOP - 8.0,
                size: 12.5,
                fill: colour(group),
                anchor: "end",
                weight: 600,
            };
            label(out, &above, &said);
            right -= 7.6 * said.chars().count() as f64 + 14.0;
        }
    }
}

/// When envd's program ran: its exec, as far as a stage tells.
fn exec_of(timeline: &Timeline) -> Option<u64> {
    let find = |name: &str| timeline.stages.iter().find(|row| row.name == name);
    find("envd_exec")
        .map(|row| row.end_ns.median)
        .or_else(|| find("envd_listening").map(|row| row.begin_ns.median))
        .or_else(|| find("envd_healthy").map(|row| row.begin_ns.median))
}

/// The faint funnel from PID 1's part of the strip to the enlarged rows.
fn zoom(out: &mut String, timeline: &Timeline, begin: u64) {
    let end = timeline.end().max(1);
    let from = MARGIN + (WIDTH - 2.0 * MARGIN) * begin as f64 / end as f64;
    let (top, low) = (STRIP_TOP + STRIP_HEIGHT + 2.0, ROWS_TOP - 34.0);
    let right = WIDTH - MARGIN;
    let _ = writeln!(
        out,
        "<path d=\"M{from:.1} {top:.1} L{right:.1} {top:.1} L{RIGHT:.1} {low:.1} L{LEFT:.1} {low:.1} Z\" \
         fill=\"#f0f4fa\"/>"
    );
}

/// Vertical lines at round times, counted from PID 1's start.
fn grid(out: &mut String, scale: Scale, bottom: f64) {
    let step = nice_step(scale.end - scale.begin);
    for at in (0..=scale.end - scale.begin).step_by(step as usize) {
        let x = scale.x(scale.begin + at);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{GRID}\"/>",
            ROWS_TOP - 8.0
        );
        let tick = Label { x, y: ROWS_TOP - 15.0, size: 11.5, fill: FAINT, anchor: "middle", weight: 400 };
        let said = if at == 0 { "PID 1".to_owned() } else { format!("+{}", short(at)) };
        label(out, &tick, &said);
    }
}

/// 1, 2 or 5 times a power of ten, so that five to ten lines fit.
fn nice_step(span: u64) -> u64 {
    let rough = (span / 6).max(1);
    let power = 10_u64.pow(rough.ilog10());
    [1, 2, 5, 10].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(power * 10)
}

/// A round time without needless digits.
fn short(ns: u64) -> String {
    let trim = |value: f64| format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned();
    match ns {
        0..1_000_000 => format!("{} µs", trim(ns as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} ms", trim(ns as f64 / 1e6)),
        _ => format!("{} s", trim(ns as f64 / 1e9)),
    }
}

fn stage(out: &mut String, row: &Row, scale: Scale, top: f64) {
    let name = Label { x: LEFT - 14.0, y: top + 19.5, size: 13.5, fill: INK, anchor: "end", weight: 500 };
    label(out, &name, &row.name);
    let (from, to) = (scale.x(row.begin_ns.median), scale.x(row.end_ns.median));
    let width = (to - from).max(SLIVER);
    let y = top + (ROW - BAR) / 2.0;
    let fill = if row.warning.is_some() { WARNING } else { colour(row.group) };
    let _ = writeln!(
        out,
        "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"{:.1}\" fill=\"{fill}\">\
         <title>{}: {} at {}{}</title></rect>",
        (width / 2.0).min(3.0),
        escape(&row.name),
        nanos(row.took_ns.median),
        nanos(row.begin_ns.median),
        row.warning.as_deref().map(|warning| format!(" – {}", escape(warning))).unwrap_or_default(),
    );
    let reach = whisker(out, row, scale, top + ROW / 2.0).max(from + width);
    let took = Label { x: reach + 8.0, y: top + 19.5, size: 12.0, fill: FAINT, anchor: "start", weight: 400 };
    label(out, &took, &nanos(row.took_ns.median));
}

/// From the earliest end to the latest; gives back how far it reaches.
fn whisker(out: &mut String, row: &Row, scale: Scale, y: f64) -> f64 {
    if !row.end_ns.varies() {
        return 0.0;
    }
    let (low, high) = (scale.x(row.end_ns.min), scale.x(row.end_ns.max));
    let _ = writeln!(
        out,
        "<path d=\"M{low:.1} {y:.1} H{high:.1} M{low:.1} {:.1} V{:.1} M{high:.1} {:.1} V{:.1}\" \
         stroke=\"{INK}\" stroke-width=\"1.4\" fill=\"none\"/>",
        y - 4.0,
        y + 4.0,
        y - 4.0,
        y + 4.0
    );
    high
}

/// What an operator waits for, as dashed lines through all rows with a name below.
fn marks(out: &mut String, timeline: &Timeline, scale: Scale, bottom: f64) {
    let end_of =
        |name: &str| timeline.stages.iter().find(|row| row.name == name).map(|row| row.end_ns.median);
    let marks = [
        ("exec", exec_of(timeline)),
        ("listening", end_of("envd_listening")),
        ("healthy", end_of("envd_healthy")),
    ];
    let mut last = f64::MIN;
    let mut level = 0.0;
    for (name, at) in marks {
        let Some(at) = at else { continue };
        let x = scale.x(at);
        level = if x - last < 70.0 { level + 15.0 } else { 0.0 };
        last = x;
        let (low, green) = (bottom + 6.0 + level, colour(Group::Envd));
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{low:.1}\" stroke=\"{green}\" \
             stroke-width=\"1.2\" stroke-dasharray=\"4 3\"/>",
            ROWS_TOP - 8.0
        );
        let under = Label { x, y: low + 12.0, size: 11.5, fill: green, anchor: "middle", weight: 600 };
        label(out, &under, name);
    }
}

fn legend(out: &mut String, timeline: &Timeline, y: f64) {
    let mut x = MARGIN;
    let mut entry = |out: &mut String, fill: &str, said: &str| {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" rx=\"2.5\" fill=\"{fill}\"/>",
            y - 10.5
        );
        let text = Label { x: x + 18.0, y, size: 12.0, fill: FAINT, anchor: "start", weight: 400 };
        label(out, &text, said);
        x += 34.0 + 7.5 * said.chars().count() as f64;
    };
    for group in Group::ALL {
        if timeline.stages.iter().any(|row| row.group == group) {
            entry(out, colour(group), group.name());
        }
    }
    if timeline.stages.iter().any(|row| row.warning.is_some()) {
        entry(out, WARNING, "degraded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::stage as raw;

    #[test]
    fn hostile_names_stay_text() {
        let picture = render(&Timeline::new("<script>&\u{0}".into(), &[vec![raw("a\"><g>", 1, 2)]]));
        assert!(!picture.contains("<script>") && !picture.contains("<g>") && !picture.contains('\0'));
    }

    #[test]
    fn odd_times_do_not_leave_the_picture() {
        for boot in [vec![], vec![raw("a", 0, 0)], vec![raw("a", 9, 3)], vec![raw("a", 5, u64::MAX)]] {
            let picture = render(&Timeline::new("x".into(), &[boot]));
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(nice_step(319_000_000), 100_000_000);
        assert_eq!(short(100_000_000), "100 ms");
        assert_eq!(short(2_500_000_000), "2.5 s");
    }
}
