//! The assignments of a unit that are in force.

use crate::keep::unit::Line;

/// Keys of which each assignment adds to those before; an empty one takes them all back.
const LISTS: [&str; 38] = [
    "After",
    "Alias",
    "AmbientCapabilities",
    "Also",
    "Before",
    "BindsTo",
    "CacheDirectory",
    "CapabilityBoundingSet",
    "ConfigurationDirectory",
    "Conflicts",
    "Documentation",
    "Environment",
    "EnvironmentFile",
    "ExecCondition",
    "ExecReload",
    "ExecStart",
    "ExecStartPost",
    "ExecStartPre",
    "ExecStop",
    "ExecStopPost",
    "InaccessiblePaths",
    "LogsDirectory",
    "PartOf",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RequiredBy",
    "Requires",
    "Requisite",
    "RestrictAddressFamilies",
    "RuntimeDirectory",
    "Sockets",
    "StateDirectory",
    "SupplementaryGroups",
    "SystemCallFilter",
    "Upholds",
    "WantedBy",
    "Wants",
    "ExecPaths",
];

/// A unit's lines, in force, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Section {
    pub(super) lines: Vec<Line>,
}

impl Section {
    pub(super) fn of(lines: Vec<Line>) -> Self {
        let mut kept: Vec<Line> = Vec::new();
        for line in lines {
            let adds_up = LISTS.contains(&line.key.as_str())
                || line.key.starts_with("Condition")
                || line.key.starts_with("Assert");
            // An empty condition takes back all of its kind, whatever they are about.
            let kind = ["Condition", "Assert"].into_iter().find(|kind| line.key.starts_with(kind));
            if let Some(kind) = kind.filter(|_| line.value.is_empty()) {
                kept.retain(|before| !before.key.starts_with(kind));
            } else if line.value.is_empty() || !adds_up {
                kept.retain(|before| before.section != line.section || before.key != line.key);
            }
            if !line.value.is_empty() {
                kept.push(line);
            }
        }
        Self { lines: kept }
    }

    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |line| line.key == key)
    }

    pub(super) fn get<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.all(key).last().map(|line| line.value.as_str())
    }

    /// The words of a list of names.
    pub(super) fn names<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.all(key).flat_map(|line| line.value.split_whitespace())
    }
}

pub(super) fn is_yes(value: &str) -> bool {
    matches!(value, "yes" | "true" | "on" | "1" | "y" | "t")
}
