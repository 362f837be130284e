//! One figure beside its peer's: the row of `bench.json`; and curves for the plots.

use serde::Serialize;

/// Which way a figure should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// `value` and `peer_value` are medians, `ratio` is value / peer_value. `goal` bounds the ratio; where there is no peer it
/// bounds the value. Without a goal the row is for the record and counts as met.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    pub(crate) peer: Option<String>,
    pub(crate) peer_value: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) better: Better,
    pub(crate) goal: Option<f64>,
    pub(crate) met: bool,
    pub(crate) n: usize,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) samples: Vec<f64>,
    pub(crate) peer_samples: Vec<f64>,
}

/// What a row is about, before anything was measured.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// How a cost grows: one plot.
#[derive(Debug, Clone)]
pub(crate) struct Growth {
    /// Name of the file, without `.svg`.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What grows.
    pub(crate) of: &'static str,
    /// What it costs, with its unit.
    pub(crate) cost: &'static str,
    pub(crate) curves: Vec<Curve>,
}

#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Size and samples.
    pub(crate) points: Vec<(f64, Vec<f64>)>,
}

/// What a part has found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) rows: Vec<Row>,
    pub(crate) growth: Vec<Growth>,
}

impl Subject {
    pub(crate) fn lower(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, better: Better::Lower }
    }

    pub(crate) fn higher(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, better: Better::Higher }
    }

    /// A row beside a peer that was measured in the same run.
    pub(crate) fn against(&self, ours: &[f64], peer: &str, theirs: &[f64], goal: Option<f64>) -> Row {
        let (value, peer_value) = (median(ours), median(theirs));
        let ratio = value / peer_value;
        Row {
            peer: Some(peer.to_owned()),
            peer_value: Some(peer_value),
            ratio: Some(ratio),
            met: goal.is_none_or(|goal| self.holds(ratio, goal)),
            goal,
            peer_samples: theirs.to_vec(),
            ..self.bare(ours)
        }
    }

    /// The first one's samples as a row beside each other one.
    pub(crate) fn beside(&self, names: &[&str], samples: &[Vec<f64>], goals: &[Option<f64>]) -> Vec<Row> {
        let peers = names.iter().zip(samples).skip(1).zip(goals);
        peers.map(|((name, theirs), goal)| self.against(&samples[0], name, theirs, *goal)).collect()
    }

    /// A row that stands alone; `goal` bounds its value.
    pub(crate) fn alone(&self, ours: &[f64], goal: Option<f64>) -> Row {
        let row = self.bare(ours);
        Row { met: goal.is_none_or(|goal| self.holds(row.value, goal)), goal, ..row }
    }

    /// A count of what must not happen: its value is the sum of the samples, since a median would hide single cases.
    pub(crate) fn sum(&self, ours: &[f64], goal: f64) -> Row {
        let value = ours.iter().sum();
        Row { value, goal: Some(goal), met: self.holds(value, goal), ..self.bare(ours) }
    }

    fn holds(&self, figure: f64, goal: f64) -> bool {
        match self.better {
            Better::Lower => figure <= goal,
            Better::Higher => figure >= goal,
        }
    }

    fn bare(&self, ours: &[f64]) -> Row {
        Row {
            name: self.name.clone(),
            unit: self.unit,
            value: median(ours),
            peer: None,
            peer_value: None,
            ratio: None,
            better: self.better,
            goal: None,
            met: true,
            n: ours.len(),
            min: ours.iter().copied().fold(f64::INFINITY, f64::min),
            max: ours.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            samples: ours.to_vec(),
            peer_samples: Vec::new(),
        }
    }
}

/// The middle value (the mean of the two middle ones); NaN of nothing.
pub(crate) fn median(samples: &[f64]) -> f64 {
    percentile(samples, 0.5)
}

/// Linear interpolation between the two nearest ranks.
pub(crate) fn percentile(samples: &[f64], fraction: f64) -> f64 {
    if samples.is_empty() {
        return f64::NAN;
    }
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - place.floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_bounds_the_ratio_in_the_direction_that_is_better() {
        let faster = Subject::higher("throughput", "MB/s");
        assert!(faster.against(&[200.0], "socat", &[100.0], Some(1.5)).met);
        assert!(!faster.against(&[120.0], "socat", &[100.0], Some(1.5)).met);
        let smaller = Subject::lower("memory", "KiB");
        assert!(smaller.against(&[50.0], "systemd", &[1000.0], Some(0.07)).met);
    }

    #[test]
    fn without_a_peer_the_goal_bounds_the_value() {
        assert!(!Subject::lower("boot.console_bytes", "B").alone(&[4096.0], Some(2048.0)).met);
    }

    #[test]
    fn a_single_failure_is_not_hidden_by_a_median() {
        let row = Subject::lower("failed", "").sum(&[0.0, 0.0, 1.0], 0.0);
        assert!(!row.met && (row.value - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_middle_two() {
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_row_has_the_promised_keys() {
        let row = Subject::lower("a", "s").against(&[1.0, 2.0, 3.0], "b", &[4.0], Some(1.0));
        let json = serde_json::to_value(row).unwrap();
        for key in [
            "name",
            "unit",
            "value",
            "peer",
            "peer_value",
            "ratio",
            "better",
            "goal",
            "met",
            "n",
            "min",
            "max",
            "samples",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["better"], "lower");
    }
}
