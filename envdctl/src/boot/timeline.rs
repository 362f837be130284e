//! The timeline of one boot, and of several laid over each other.

use guest::control::{EnvdStatus, Stage};
use serde::Serialize;

/// Who was at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    Kernel,
    Init,
    Services,
    Envd,
}

impl Group {
    pub const ALL: [Self; 4] = [Self::Kernel, Self::Init, Self::Services, Self::Envd];

    fn of(stage: &str) -> Self {
        match stage {
            "kernel" => Self::Kernel,
            "services" | "relay" => Self::Services,
            _ if stage.starts_with("service") => Self::Services,
            _ if stage.starts_with("envd") => Self::Envd,
            _ => Self::Init,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Init => "init",
            Self::Services => "services",
            Self::Envd => "envd",
        }
    }
}

/// Middle and extent of a figure over all boots (nanoseconds).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    pub median: u64,
    pub min: u64,
    pub max: u64,
}

impl Spread {
    fn of(mut figures: Vec<u64>) -> Self {
        figures.sort_unstable();
        let Some((min, max)) = figures.first().zip(figures.last()) else { return Self::default() };
        let half = figures.len() / 2;
        let median = if figures.len() % 2 == 1 {
            figures[half]
        } else {
            u64::midpoint(figures[half - 1], figures[half])
        };
        Self { median, min: *min, max: *max }
    }

    /// Whether the boots differ at all.
    pub const fn varies(self) -> bool {
        self.min != self.max
    }
}

/// One stage over all boots. Times count from the start of the kernel's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    pub name: String,
    pub group: Group,
    pub begin_ns: Spread,
    pub end_ns: Spread,
    pub took_ns: Spread,
    /// What was degraded, in the last boot in which something was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// One or several boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// Version of this format.
    pub version: u32,
    /// What was booted, or where the logs came from.
    pub title: String,
    pub boots: usize,
    /// When PID 1 started, and when envd was healthy; none where a boot did not come that far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_ns: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_ns: Option<Spread>,
    pub stages: Vec<Row>,
}

impl Timeline {
    /// Lays boots over each other; a boot is its stages.
    pub fn new(title: String, boots: &[Vec<Stage>]) -> Self {
        let boots: Vec<Vec<Stage>> = boots.iter().map(|stages| with_kernel(stages)).collect();
        let mut names: Vec<&str> = Vec::new();
        for stage in boots.iter().flatten() {
            if !names.contains(&stage.name.as_str()) {
                names.push(&stage.name);
            }
        }
        let mut stages: Vec<Row> = names.iter().map(|name| row(name, &boots)).collect();
        stages.sort_by_key(|row| (row.begin_ns.median, row.end_ns.median));
        let end_of = |name: &str| stages.iter().find(|row| row.name == name).map(|row| row.end_ns);
        Self {
            version: 1,
            title,
            boots: boots.len(),
            init_ns: end_of("kernel"),
            healthy_ns: end_of("envd_healthy"),
            stages,
        }
    }

    /// The end of the last stage.
    pub fn end(&self) -> u64 {
        self.stages.iter().map(|row| row.end_ns.max).max().unwrap_or(0)
    }
}

/// The kernel's own share: PID 1 reports it as the stage `init`, from zero to its own start; where it does not, it is
/// what lies before the first stage.
fn with_kernel(stages: &[Stage]) -> Vec<Stage> {
    let mut all = stages.to_vec();
    if let Some(before) = all.iter_mut().find(|stage| stage.name == "init" && stage.begin_ns == 0) {
        "kernel".clone_into(&mut before.name);
    }
    let first = all.iter().map(|stage| stage.begin_ns).min().filter(|begin| *begin > 0);
    if let Some(end_ns) = first {
        all.insert(0, Stage { name: "kernel".into(), begin_ns: 0, end_ns, warning: None });
    }
    all
}

fn row(name: &str, boots: &[Vec<Stage>]) -> Row {
    let found: Vec<&Stage> =
        boots.iter().filter_map(|boot| boot.iter().find(|stage| stage.name == name)).collect();
    let spread = |figure: fn(&Stage) -> u64| Spread::of(found.iter().map(|stage| figure(stage)).collect());
    Row {
        name: name.to_owned(),
        group: Group::of(name),
        begin_ns: spread(|stage| stage.begin_ns),
        end_ns: spread(|stage| stage.end_ns),
        took_ns: spread(|stage| stage.end_ns.saturating_sub(stage.begin_ns)),
        warning: found.iter().rev().find_map(|stage| stage.warning.clone()),
    }
}

/// The stages of a running guest. What envd did at boot is known from its status as long as it was never restarted.
pub fn complete(stages: &[Stage], envd: Option<&EnvdStatus>) -> Vec<Stage> {
    let mut all = stages.to_vec();
    let Some(envd) = envd.filter(|envd| envd.restarts == 0) else { return all };
    for (name, begin, end) in [
        ("envd_listening", envd.exec_ns, envd.listening_ns),
        ("envd_healthy", envd.listening_ns.or(envd.exec_ns), envd.healthy_ns),
    ] {
        if let (Some(begin_ns), Some(end_ns), false) =
            (begin, end, stages.iter().any(|stage| stage.name == name))
        {
            all.push(Stage { name: name.into(), begin_ns, end_ns, warning: None });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{stage, well};

    #[test]
    fn the_kernels_share_is_what_lies_before_pid_1() {
        let timeline = Timeline::new("x".into(), &[vec![stage("mounts", 400, 500)]]);
        assert_eq!(timeline.stages[0].name, "kernel");
        assert_eq!(timeline.init_ns.unwrap().median, 400);
    }

    #[test]
    fn pid_1_says_itself_when_it_started() {
        let boot = vec![stage("init", 0, 300), stage("mounts", 400, 500)];
        let timeline = Timeline::new("x".into(), &[boot]);
        assert_eq!((timeline.stages[0].name.as_str(), timeline.init_ns.unwrap().median), ("kernel", 300));
        assert_eq!(timeline.stages.len(), 2);
    }

    #[test]
    fn several_boots_give_a_median_and_a_spread() {
        let boots: Vec<_> = [10, 30, 20].map(|end| vec![stage("envd_healthy", 5, end)]).into();
        let timeline = Timeline::new("x".into(), &boots);
        assert_eq!(timeline.healthy_ns, Some(Spread { median: 20, min: 10, max: 30 }));
        assert_eq!(timeline.boots, 3);
    }

    #[test]
    fn a_stage_that_only_some_boots_have_counts_only_there() {
        let boots = [vec![stage("network", 1, 3)], vec![stage("network", 1, 5), stage("fsck", 2, 9)]];
        let timeline = Timeline::new("x".into(), &boots);
        let fsck = timeline.stages.iter().find(|row| row.name == "fsck").unwrap();
        assert_eq!(fsck.took_ns, Spread { median: 7, min: 7, max: 7 });
    }

    #[test]
    fn envds_part_is_not_taken_from_a_later_life() {
        let mut status = well();
        status.stages.retain(|stage| !stage.name.starts_with("envd"));
        assert_eq!(complete(&status.stages, status.envd.as_ref()).len(), 3);
        status.envd.as_mut().unwrap().restarts = 1;
        assert_eq!(complete(&status.stages, status.envd.as_ref()).len(), 1);
    }
}
