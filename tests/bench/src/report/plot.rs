//! SVG plots, by `plotters`.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::combinators::IntoLogRange;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::row::{Better, Growth, Row, median};

const SIZE: (u32, u32) = (800, 480);
const TITLE: (&str, u32) = ("sans-serif", 22);
const LABEL: (&str, u32) = ("sans-serif", 14);
/// Room above the curves for their names, as a factor.
const LEGEND: f64 = 2.0;
const COLOURS: [RGBColor; 4] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x7f, 0x7f, 0x7f),
];

/// Medians as a line, smallest and largest as a bar at each point; both axes logarithmic where nothing is 0.
pub(super) fn growth(path: &Path, growth: &Growth) -> Result<()> {
    let sizes = growth.curves.iter().flat_map(|curve| curve.points.iter().map(|(size, _)| *size));
    let costs = growth
        .curves
        .iter()
        .flat_map(|curve| curve.points.iter().flat_map(|(_, samples)| samples.iter().copied()));
    let (sizes, costs) = (span(sizes), span(costs));
    let drawn = draw_growth(path, growth, sizes, costs);
    drawn.map_err(|why| anyhow!("{why}"))
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_growth(path: &Path, growth: &Growth, sizes: Range<f64>, costs: Range<f64>) -> Drawn {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&root);
    builder.caption(growth.title, TITLE).margin(12).x_label_area_size(44).y_label_area_size(80);
    if sizes.start > 0.0 && costs.start > 0.0 {
        let (sizes, costs) = (widened(&sizes, 1.3), widened(&costs, LEGEND));
        curves(builder.build_cartesian_2d(sizes.log_scale(), costs.log_scale())?, growth)?;
    } else {
        curves(
            builder.build_cartesian_2d(0.0..sizes.end * 1.05, 0.0..costs.end.max(0.01) * LEGEND)?,
            growth,
        )?;
    }
    Ok(root.present()?)
}

fn curves<'a, X, Y>(mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>, growth: &Growth) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(growth.of)
        .y_desc(growth.cost)
        .x_label_formatter(&|size| format!("{size}"))
        .label_style(LABEL)
        .axis_desc_style(LABEL)
        .draw()?;
    for (curve, colour) in growth.curves.iter().zip(COLOURS.iter().cycle()) {
        let medians = curve.points.iter().map(|(size, samples)| (*size, median(samples)));
        chart
            .draw_series(LineSeries::new(medians, colour.stroke_width(2)))?
            .label(curve.name.as_str())
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(curve.points.iter().map(|(size, samples)| {
            let range = span(samples.iter().copied());
            ErrorBar::new_vertical(*size, range.start, median(samples), range.end, colour.filled(), 8)
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .label_font(LABEL)
        .draw()?;
    Ok(())
}

/// How far each row with a goal is from it: 1 is the goal, to the left of it is better.
pub(super) fn goals(path: &Path, rows: &[Row]) -> Result<()> {
    let bars: Vec<_> = rows.iter().filter_map(|row| Some((label(row), distance(row)?, row.met))).collect();
    if bars.is_empty() {
        return Ok(());
    }
    draw_goals(path, &bars).map_err(|why| anyhow!("{why}"))
}

fn label(row: &Row) -> String {
    row.peer.as_ref().map_or_else(|| row.name.clone(), |peer| format!("{} / {peer}", row.name))
}

/// Of the figure to its goal, turned so that less is better. A goal of 0 has no scale: met is far to the left, missed far to the right.
fn distance(row: &Row) -> Option<f64> {
    let goal = row.goal?;
    let figure = row.ratio.unwrap_or(row.value);
    let distance = match row.better {
        _ if goal == 0.0 => {
            if row.met {
                0.01
            } else {
                10.0
            }
        }
        Better::Lower => figure / goal,
        Better::Higher => goal / figure,
    };
    distance.is_finite().then(|| distance.clamp(0.01, 10.0))
}

fn draw_goals(path: &Path, bars: &[(String, f64, bool)]) -> Drawn {
    let height = 90 + 22 * bars.len() as u32;
    let root = SVGBackend::new(path, (1000, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let count = bars.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption("Distance from the goal: 1 is the goal, less is better", TITLE)
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(470)
        .build_cartesian_2d((0.01..10.0).log_scale(), 0.0..count)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().y_labels(0).label_style(LABEL).draw()?;
    chart.draw_series(bars.iter().enumerate().map(|(index, (_, distance, met))| {
        let top = count - index as f64;
        let colour = if *met { COLOURS[2] } else { COLOURS[1] };
        Rectangle::new([(0.01, top - 0.85), (*distance, top - 0.15)], colour.mix(0.7).filled())
    }))?;
    chart.draw_series(LineSeries::new([(1.0, 0.0), (1.0, count)], BLACK.stroke_width(1)))?;
    let origin = chart.plotting_area().get_pixel_range();
    for (index, (text, ..)) in bars.iter().enumerate() {
        let y = origin.1.start
            + ((index as f64 + 0.5) / count * f64::from(origin.1.end - origin.1.start)) as i32
            - 8;
        let style = LABEL.into_text_style(&root).pos(Pos::new(HPos::Right, VPos::Top));
        root.draw_text(text, &style, (origin.0.start - 8, y))?;
    }
    Ok(root.present()?)
}

fn span(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values {
        low = low.min(value);
        high = high.max(value);
    }
    low..high
}

/// A little room at both ends of a logarithmic axis.
fn widened(range: &Range<f64>, above: f64) -> Range<f64> {
    range.start / 1.3..range.end * above
}
