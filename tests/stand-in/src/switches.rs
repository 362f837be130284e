//! The faults that can be asked for.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Baked into an image.
const BAKED: &str = "/etc/envd-stand-in.conf";
/// Set while the guest runs; counts from the next start on.
const RUNNING: &str = "/run/envd-stand-in.conf";
const ENVIRONMENT: &str = "ENVD_STAND_IN_";
/// Counts the starts, for `only-starts`.
const STARTS: &str = "/run/envd-stand-in.starts";

/// Durations are in seconds, fractions allowed; 0 or absent turns a switch off.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Switches {
    pub(crate) never_bind: bool,
    pub(crate) bind_after: f64,
    pub(crate) hang_health: bool,
    pub(crate) hang_health_after: f64,
    pub(crate) hang_all_after: f64,
    pub(crate) slow_health: f64,
    pub(crate) slow_version: f64,
    pub(crate) health_status: u16,
    pub(crate) exit_after: f64,
    pub(crate) exit_code: i32,
    pub(crate) crash_on: String,
    pub(crate) panic_after: f64,
    pub(crate) flood: u64,
    pub(crate) long_line: u64,
    pub(crate) ignore_term: bool,
    pub(crate) binary_junk: bool,
    pub(crate) say: String,
    pub(crate) fork_and_exit: bool,
    pub(crate) only_starts: u64,
}

const HELP: &[(&str, &str)] = &[
    ("never-bind yes", "never listens, stays alive"),
    ("bind-after S", "listens S seconds late"),
    ("hang-health yes", "takes GET /health and never answers it"),
    ("hang-health-after S", "the same, from S seconds after the start on"),
    ("hang-all-after S", "the whole program stands still from then on, as if stuck in a loop"),
    ("slow-health S", "answers GET /health S seconds late"),
    ("slow-version S", "prints its version S seconds late"),
    ("health-status N", "answers GET /health with this status instead of 204"),
    ("exit-after S", "ends by itself after S seconds"),
    ("exit-code N", "with this status [0]"),
    ("crash-on PATH", "dies of SIGABRT when PATH is requested"),
    ("panic-after S", "prints what a Go panic looks like after S seconds and ends with status 2"),
    ("flood N", "prints N lines a second on stderr for ever"),
    ("long-line N", "prints one line of N bytes at the start"),
    ("ignore-term yes", "ignores SIGTERM"),
    (
        "binary-junk yes",
        "prints control bytes, escape sequences, invalid UTF-8 and fake records at the start",
    ),
    ("say TEXT", "prints TEXT on stderr at the start"),
    ("fork-and-exit yes", "starts itself in the background and ends with status 0"),
    ("only-starts N", "the faults hold for the first N starts since the boot only"),
];

impl Switches {
    /// What files and the environment ask for.
    pub(crate) fn from_surroundings() -> Result<Self> {
        let mut switches = Self::default();
        for path in [BAKED, RUNNING] {
            switches.read_file(Path::new(path))?;
        }
        for (name, value) in std::env::vars() {
            if let Some(name) = name.strip_prefix(ENVIRONMENT) {
                switches.set(&name.to_lowercase().replace('_', "-"), &value)?;
            }
        }
        Ok(switches)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line
                .split_once('=')
                .with_context(|| format!("{}: {line:?} is no `name = value`", path.display()))?;
            self.set(name.trim(), value.trim().trim_matches('"'))
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "never-bind" => self.never_bind = flag(value),
            "bind-after" => self.bind_after = seconds(name, value)?,
            "hang-health" => self.hang_health = flag(value),
            "hang-health-after" => self.hang_health_after = seconds(name, value)?,
            "hang-all-after" => self.hang_all_after = seconds(name, value)?,
            "slow-health" => self.slow_health = seconds(name, value)?,
            "slow-version" => self.slow_version = seconds(name, value)?,
            "health-status" => self.health_status = number(name, value)?,
            "exit-after" => self.exit_after = seconds(name, value)?,
            "exit-code" => self.exit_code = number(name, value)?,
            "crash-on" => value.clone_into(&mut self.crash_on),
            "panic-after" => self.panic_after = seconds(name, value)?,
            "flood" => self.flood = number(name, value)?,
            "long-line" => self.long_line = number(name, value)?,
            "ignore-term" => self.ignore_term = flag(value),
            "binary-junk" => self.binary_junk = flag(value),
            "say" => value.clone_into(&mut self.say),
            "fork-and-exit" => self.fork_and_exit = flag(value),
            "only-starts" => self.only_starts = number(name, value)?,
            _ => bail!("there is no switch {name}; see --help"),
        }
        Ok(())
    }

    /// Counts this start; beyond `only-starts` there are no faults.
    pub(crate) fn for_this_start(self) -> Self {
        if self.only_starts == 0 {
            return self;
        }
        let before: u64 =
            fs::read_to_string(STARTS).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let _ = fs::write(STARTS, (before + 1).to_string());
        if before < self.only_starts { self } else { Self::default() }
    }

    pub(crate) fn help() -> String {
        let lines: Vec<_> = HELP.iter().map(|(switch, text)| format!("  --{switch:<22} {text}\n")).collect();
        lines.concat()
    }
}

fn flag(value: &str) -> bool {
    !matches!(value, "" | "0" | "no" | "false")
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().ok().with_context(|| format!("{name}: {value:?} is no number that fits"))
}

fn seconds(name: &str, value: &str) -> Result<f64> {
    let seconds: f64 = number(name, value)?;
    ensure!(seconds.is_finite() && seconds >= 0.0, "{name}: {value:?} is no duration in seconds");
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_switch_of_the_help_can_be_set() {
        for (switch, _) in HELP {
            let name = switch.split(' ').next().unwrap();
            assert!(Switches::default().set(name, "1").is_ok(), "{name}");
        }
        assert!(Switches::default().set("no-such", "1").is_err());
        assert!(Switches::default().set("bind-after", "-1").is_err());
    }
}
