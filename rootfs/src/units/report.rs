//! The survey for people and for machines.

use std::fmt::Write as _;

use super::{Report, Survey, Verdict};

/// One block a verdict, the lost ones first.
pub fn text(survey: &Survey) -> String {
    let mut text = format!("init: {}\n", survey.init);
    for word in ["lost", "convertible", "shipped", "covered"] {
        let of_word: Vec<&Report> =
            survey.reports.iter().filter(|report| report.verdict.word() == word).collect();
        let _ = writeln!(text, "{word}: {}", of_word.len());
        for report in of_word {
            one(&mut text, report);
        }
    }
    for warning in &survey.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn one(text: &mut String, report: &Report) {
    let what = match &report.verdict {
        Verdict::Shipped { service } => format!("service {service}"),
        Verdict::Convertible { service, .. } => format!("becomes service {service}"),
        Verdict::Covered { how } => how.clone(),
        Verdict::Lost { why } => why.clone(),
    };
    let _ = writeln!(text, "  {:<42} {what} ({})", report.unit, report.by);
    if let Verdict::Convertible { dropped, .. } = &report.verdict {
        for line in dropped {
            let _ = writeln!(text, "      dropped: {line}");
        }
    }
}

/// `{"init", "units": [{"unit", "by", "verdict", "service", "reason", "dropped"}], "warnings"}`
pub fn json(survey: &Survey) -> serde_json::Value {
    let units: Vec<serde_json::Value> = survey.reports.iter().map(unit).collect();
    serde_json::json!({ "init": survey.init, "units": units, "warnings": survey.warnings })
}

fn unit(report: &Report) -> serde_json::Value {
    let mut value =
        serde_json::json!({ "unit": report.unit, "by": report.by, "verdict": report.verdict.word() });
    match &report.verdict {
        Verdict::Shipped { service } => value["service"] = service.as_str().into(),
        Verdict::Convertible { service, dropped } => {
            value["service"] = service.as_str().into();
            value["dropped"] = dropped.clone().into();
        }
        Verdict::Covered { how } => value["reason"] = how.as_str().into(),
        Verdict::Lost { why } => value["reason"] = why.as_str().into(),
    }
    value
}
