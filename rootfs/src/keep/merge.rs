//! Sets our drop-in beside the image's own `envd.service`: what stays, what it replaces, what cannot go together.

use std::fmt;

use super::{command, unit::Line};

/// A line of the image's unit and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    pub line: Line,
    pub text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { file, number, key, value, .. } = &self.line;
        write!(f, "{file}:{number}: {key}={value}: {}", self.text)
    }
}

/// The outcome for one unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merge {
    /// What `ExecStart=` of the drop-in must be.
    pub exec_start: String,
    /// In force before, replaced by the drop-in with an effect that an owner may notice.
    pub replaced: Vec<Remark>,
    /// Stays, and takes something from keep mode.
    pub limited: Vec<Remark>,
    /// Keep mode cannot work beside these.
    pub refused: Vec<Remark>,
}

/// Keys that the drop-in sets, with the values that mean the same as ours.
const REPLACED: [(&str, &[&str]); 18] = [
    ("Type", &["simple", "exec", "notify", "idle"]),
    ("NotifyAccess", &["main"]),
    ("RemainAfterExit", &["no", "false"]),
    ("PIDFile", &[]),
    ("Restart", &["always"]),
    ("RestartSec", &[]),
    ("RestartPreventExitStatus", &[]),
    ("TimeoutStartSec", &[]),
    ("TimeoutStopSec", &[]),
    ("TimeoutSec", &[]),
    ("KillMode", &["mixed", "control-group"]),
    ("KillSignal", &["SIGTERM", "TERM", "15"]),
    ("SendSIGKILL", &["yes", "true"]),
    ("WatchdogSec", &[]),
    ("StartLimitIntervalSec", &["0"]),
    ("StartLimitInterval", &["0"]),
    ("StartLimitBurst", &[]),
    ("StartLimitAction", &["none"]),
];

/// Judges the lines of a unit, drop-ins included. `ours` is the file name of our own drop-in.
pub fn merge(lines: &[Line], ours: &str) -> Merge {
    let mut merge = Merge { exec_start: command::WRAPPER.to_owned(), ..Merge::default() };
    for line in in_force(lines) {
        if comes_after(line, ours) && is_ours(&line.key) {
            merge.refused.push(remark(
                line,
                format!("this file comes after our drop-in {ours} by its name, and would undo it: rename it"),
            ));
        } else if line.key == "ExecStart" {
            judge_command(&mut merge, line);
        } else if let Some(why) = refusal(line) {
            merge.refused.push(remark(line, why));
        } else if let Some(why) = limit(line) {
            merge.limited.push(remark(line, why));
        } else if is_ours(&line.key) && !means_the_same(line) {
            merge.replaced.push(remark(line, "replaced by the drop-in"));
        }
    }
    merge
}

/// Whether the drop-in sets this key.
fn is_ours(key: &str) -> bool {
    key == "ExecStart" || REPLACED.iter().any(|(name, _)| *name == key)
}

fn means_the_same(line: &Line) -> bool {
    REPLACED.iter().any(|(key, same)| *key == line.key && same.contains(&line.value.as_str()))
}

/// Drop-ins of all folders are read in the order of their file names.
fn comes_after(line: &Line, ours: &str) -> bool {
    let name = line.file.rsplit('/').next().unwrap_or_default();
    line.file.contains(".d/") && name > ours
}

fn remark(line: &Line, text: impl Into<String>) -> Remark {
    Remark { line: line.clone(), text: text.into() }
}

/// Of lines with one key the last counts; an empty one takes back those before it. `ExecStart=` and friends add up.
fn in_force(lines: &[Line]) -> Vec<&Line> {
    let mut kept: Vec<&Line> = Vec::new();
    for line in lines.iter().filter(|line| matches!(line.section.as_str(), "Service" | "Unit")) {
        if line.value.is_empty() || !adds_up(&line.key) {
            kept.retain(|before| before.key != line.key);
        }
        if !line.value.is_empty() {
            kept.push(line);
        }
    }
    kept
}

fn adds_up(key: &str) -> bool {
    key.starts_with("Exec")
        || matches!(key, "Environment" | "EnvironmentFile" | "RestrictAddressFamilies" | "After" | "Before")
        || matches!(key, "Wants" | "Requires" | "Conflicts" | "Documentation" | "ReadWritePaths")
}

fn judge_command(merge: &mut Merge, line: &Line) {
    match command::wrap(&line.value) {
        Some(wrapped) => merge.exec_start = wrapped,
        None => merge.refused.push(remark(
            line,
            "envd cannot be told in this command; let it end in `exec /usr/bin/envd …`, or move what else it does to ExecStartPre=",
        )),
    }
}

fn is_yes(value: &str) -> bool {
    matches!(value, "yes" | "true" | "on" | "1")
}

fn refusal(line: &Line) -> Option<String> {
    let value = line.value.as_str();
    let why = match line.key.as_str() {
        "Type" if matches!(value, "forking" | "oneshot" | "dbus") => "the wrapper is no service of this type",
        "User" if !matches!(value, "root" | "0") => "the wrapper must be root, as envd is on the platform",
        "DynamicUser" if is_yes(value) => "the wrapper must be root, as envd is on the platform",
        "RootDirectory" | "RootImage" => "the wrapper in /usr/lib/envd-init is not there",
        "BusName" => "the wrapper takes no D-Bus name",
        "ProtectSystem" if value == "strict" => "the wrapper must write /run/envd-init",
        "RestrictAddressFamilies" => return families(value),
        _ => return None,
    };
    Some(why.to_owned())
}

/// The wrapper needs its control sockets and a look at its own port.
fn families(value: &str) -> Option<String> {
    let (denies, list) = value.strip_prefix('~').map_or((false, value), |list| (true, list));
    let named = |family: &&str| list.split_whitespace().any(|word| word == *family);
    let missing: Vec<&str> =
        ["AF_UNIX", "AF_VSOCK", "AF_INET"].into_iter().filter(|family| named(family) == denies).collect();
    (!missing.is_empty()).then(|| format!("the wrapper needs {} too", missing.join(", ")))
}

fn limit(line: &Line) -> Option<&'static str> {
    match (line.key.as_str(), line.value.as_str()) {
        ("PrivateDevices", value) if is_yes(value) => {
            Some("stays; nothing of the wrapper reaches the serial console")
        }
        ("DevicePolicy", "closed" | "strict") => {
            Some("stays; nothing of the wrapper reaches the serial console")
        }
        ("ExecStop", _) => {
            Some("stays, and runs before the wrapper is asked to stop; it should not end envd itself")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> Merge {
        let lines: Vec<Line> = text
            .lines()
            .enumerate()
            .filter_map(|(index, line)| {
                let (key, value) = line.split_once('=')?;
                Some(Line {
                    file: "u".into(),
                    number: index + 1,
                    section: "Service".into(),
                    key: key.into(),
                    value: value.into(),
                })
            })
            .collect();
        merge(&lines, "zz-envd-init.conf")
    }

    #[test]
    fn the_platforms_own_unit_is_merged_without_a_remark() {
        let unit = unit(
            "Type=simple\nUser=root\nEnvironment=GOTRACEBACK=all\nExecStart=/usr/bin/envd\nRestart=always\nNice=-20\n\
             OOMPolicy=continue\nLimitCORE=infinity\nDelegate=yes\nCPUWeight=1000\n",
        );
        assert_eq!(unit, Merge { exec_start: command::WRAPPER.into(), ..Merge::default() });
    }

    #[test]
    fn what_the_drop_in_replaces_is_said_line_by_line() {
        let unit = unit("ExecStart=/usr/bin/envd -v\nRestart=no\nKillMode=process\nWatchdogSec=5\n");
        let said: Vec<String> = unit.replaced.iter().map(ToString::to_string).collect();
        assert_eq!(said[0], "u:2: Restart=no: replaced by the drop-in");
        assert_eq!(said.len(), 3);
        assert!(unit.exec_start.ends_with("envd-wrapper -- -v") && unit.refused.is_empty());
    }

    #[test]
    fn what_cannot_go_together_is_refused_by_line() {
        let unit = unit(
            "Type=forking\nUser=user\nRootDirectory=/srv\nExecStart=/opt/start.sh\nRestrictAddressFamilies=AF_INET AF_UNIX\n",
        );
        assert_eq!(unit.refused.iter().map(|remark| remark.line.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(unit.refused[4].to_string().ends_with("the wrapper needs AF_VSOCK too"));
    }

    /// An owner's file that sorts behind ours would win, and the wrapper would not run at all.
    #[test]
    fn a_drop_in_that_comes_after_ours_is_named() {
        let line = |file: &str, key: &str| Line {
            file: file.into(),
            number: 2,
            section: "Service".into(),
            key: key.into(),
            value: "x".into(),
        };
        let last = "/etc/systemd/system/envd.service.d/zzz.conf";
        let merged = merge(&[line(last, "TimeoutStopSec"), line(last, "Nice")], "zz-envd-init.conf");
        assert_eq!(merged.refused.len(), 1);
        assert!(
            merged.refused[0].to_string().contains("zzz.conf:2: TimeoutStopSec=x: this file comes after")
        );
        let before = "/etc/systemd/system/envd.service.d/override.conf";
        assert!(merge(&[line(before, "TimeoutStopSec")], "zz-envd-init.conf").refused.is_empty());
    }

    #[test]
    fn only_lines_in_force_are_judged() {
        let unit =
            unit("Type=forking\nExecStart=/opt/start.sh\nType=simple\nExecStart=\nExecStart=/usr/bin/envd\n");
        assert!(unit.refused.is_empty(), "{:?}", unit.refused);
    }
}
