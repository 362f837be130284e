//! `bench.json`, the Markdown report and the plots.

mod machine;
mod plot;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::row::{Better, Findings, Row};

/// Writes all of it into `folder`; gives the Markdown.
pub(crate) fn write(folder: &Path, findings: &Findings, seconds: u64) -> Result<String> {
    remove_old_plots(folder)?;
    fs::write(folder.join("bench.json"), serde_json::to_vec_pretty(&findings.rows)?)?;
    for growth in &findings.growth {
        plot::growth(&folder.join(format!("{}.svg", growth.name)), growth)
            .with_context(|| format!("plotting {}", growth.name))?;
    }
    plot::goals(&folder.join("goals.svg"), &findings.rows).context("plotting the goals")?;
    let text = markdown(findings, &machine::describe(seconds));
    fs::write(folder.join("report.md"), &text)?;
    Ok(text)
}

/// Those of an earlier run would stand beside figures that are not theirs.
fn remove_old_plots(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "svg") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Tables, a part each, and the plots.
fn markdown(findings: &Findings, machine: &str) -> String {
    let mut text = format!("{machine}\n");
    let mut part = "";
    for row in &findings.rows {
        let own = row.name.split('.').next().unwrap_or_default();
        if own != part {
            part = own;
            let _ = write!(
                text,
                "\n### {part}\n\n| figure | ours (min–max) | peer | peer's | ratio | goal | met | n |\n"
            );
            text.push_str("|---|---|---|---|---|---|---|---|\n");
        }
        let _ = writeln!(text, "{}", line(row));
    }
    let plots: Vec<_> =
        findings.growth.iter().map(|growth| format!("![{}]({}.svg)", growth.title, growth.name)).collect();
    let _ = write!(text, "\n### Plots\n\n![Ratios and goals](goals.svg)\n{}\n", plots.join("\n"));
    text
}

fn line(row: &Row) -> String {
    let met = match (row.goal, row.met) {
        (None, _) => "–",
        (_, true) => "yes",
        (_, false) => "**no**",
    };
    format!(
        "| `{}` | {} {} ({}–{}) | {} | {} | {} | {} | {met} | {} |",
        row.name,
        figure(row.value),
        row.unit,
        figure(row.min),
        figure(row.max),
        row.peer.as_deref().unwrap_or("–"),
        row.peer_value.map_or("–".to_owned(), figure),
        row.ratio.map_or("–".to_owned(), figure),
        row.goal.map_or("–".to_owned(), |goal| format!("{} {goal}", sign(row.better))),
        row.n,
    )
}

fn sign(better: Better) -> &'static str {
    match better {
        Better::Lower => "≤",
        Better::Higher => "≥",
    }
}

/// Three significant digits, without an exponent.
fn figure(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let decimals = (2 - digits).clamp(0, 4) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Subject;

    #[test]
    fn figures_have_three_significant_digits() {
        assert_eq!(
            [figure(0.0), figure(12.345), figure(1234.5), figure(0.012_34), figure(2.0)],
            ["0", "12.3", "1234", "0.0123", "2"]
        );
    }

    #[test]
    fn a_missed_goal_stands_out_and_a_record_has_none() {
        let subject = Subject::lower("boot.x", "ms");
        assert!(
            line(&subject.against(&[2.0], "p", &[1.0], Some(1.3)))
                .ends_with("| p | 1 | 2 | ≤ 1.3 | **no** | 1 |")
        );
        assert!(line(&subject.alone(&[2.0], None)).ends_with("| – | – | – | – | – | 1 |"));
    }
}
