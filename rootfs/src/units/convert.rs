//! A unit's verdict, and the service that a simple one is turned into.
//!
//! Every key of the unit is in one of four lists: it is turned; it is dropped with a word, since what runs is the same without it;
//! it says nothing that matters here; or the unit is lost. A key in none of them loses the unit.

use super::{
    Report, Verdict,
    command::{self, Exec},
    condition::{self, Ask, Judged},
    enabled::Units,
    known,
    section::{Section, is_yes},
    service::Definition,
};
use crate::{
    ext4::Error,
    keep::{
        files::Files,
        unit::{self, Line, Unit},
    },
};

/// Names that are taken by services of ours.
const RESERVED: [&str; 7] = ["envd", "relay", "seed-certs", "chrony-source", "tmp", "tmpfiles", "init"];

/// Dropped without a word: they are for people and tools.
const SILENT: [&str; 23] = [
    "Description",
    "Documentation",
    "SourcePath",
    "After",
    "Before",
    "Wants",
    "WantedBy",
    "RequiredBy",
    "Alias",
    "Also",
    "DefaultInstance",
    "PartOf",
    "SyslogIdentifier",
    "SyslogFacility",
    "SyslogLevel",
    "SyslogLevelPrefix",
    "LogLevelMax",
    "ReloadPropagatedFrom",
    "PropagatesReloadTo",
    "RequiresMountsFor",
    "WantsMountsFor",
    "AllowIsolate",
    "CollectMode",
];

/// Dropped with a word: what runs is the same, but less confined, or ended in another way.
const DROPPED: &[(&str, &str)] = &[
    ("Protect*", "confinement"),
    ("Private*", "confinement"),
    ("Restrict*", "confinement"),
    ("SystemCall*", "confinement"),
    ("NoNewPrivileges", "confinement"),
    ("CapabilityBoundingSet", "confinement"),
    ("MemoryDenyWriteExecute", "confinement"),
    ("LockPersonality", "confinement"),
    ("ReadWritePaths", "confinement"),
    ("ReadOnlyPaths", "confinement"),
    ("InaccessiblePaths", "confinement"),
    ("ReadWriteDirectories", "confinement"),
    ("ReadOnlyDirectories", "confinement"),
    ("InaccessibleDirectories", "confinement"),
    ("ExecPaths", "confinement"),
    ("NoExecPaths", "confinement"),
    ("RemoveIPC", "confinement"),
    ("ProcSubset", "confinement"),
    ("KeyringMode", "confinement"),
    ("Device*", "confinement"),
    ("SecureBits", "confinement"),
    ("IPAddress*", "confinement"),
    ("MountFlags", "confinement"),
    ("ExecReload", "there is no reload"),
    ("ExecStop", "it is ended by TERM"),
    ("ExecStopPost", "it is ended by TERM"),
    ("KillMode", "it is ended by TERM, all of its processes"),
    ("KillSignal", "it is ended by TERM"),
    ("FinalKillSignal", "it is ended by TERM"),
    ("RestartKillSignal", "it is ended by TERM"),
    ("SendSIGKILL", "it is killed in the end"),
    ("SendSIGHUP", "it is ended by TERM"),
    ("WatchdogSec", "it is not watched"),
    ("NotifyAccess", "any of its processes may notify"),
    ("FileDescriptorStoreMax", "no descriptors are kept"),
    ("StartLimit*", "restarts are never given up"),
    ("RestartPreventExitStatus", "restarts follow restart= alone"),
    ("RestartForceExitStatus", "restarts follow restart= alone"),
    ("SuccessExitStatus", "0 alone is success"),
    ("RestartSteps", "pauses double"),
    ("RestartMaxDelaySec", "pauses double"),
    ("OOMPolicy", "the kernel's way"),
    ("TimeoutAbortSec", "one bound for stopping"),
    ("TimeoutStartFailureMode", "it is killed"),
    ("TimeoutStopFailureMode", "it is killed"),
    ("RuntimeDirectoryPreserve", "its folder stays"),
    ("Slice", "system.slice"),
    ("Delegate", "its cgroup is its own"),
    ("TasksMax", "no bound"),
    ("CPUAccounting", "always on"),
    ("MemoryAccounting", "always on"),
    ("IOAccounting", "always on"),
    ("TasksAccounting", "always on"),
    ("IPAccounting", "not counted"),
    ("IOScheduling*", "the default"),
    ("CPUScheduling*", "the default"),
    ("Conflicts", "nothing is stopped for it"),
    ("OnFailure", "nothing is started for it"),
    ("OnSuccess", "nothing is started for it"),
    ("FailureAction", "nothing is done"),
    ("SuccessAction", "nothing is done"),
    ("JobTimeout*", "no bound"),
    ("RefuseManual*", "it can be"),
    ("DefaultDependencies", "it starts when PID 1 is set up"),
    ("IgnoreOnIsolate", "there is no isolate"),
    ("StopWhenUnneeded", "it stays"),
    ("IgnoreSIGPIPE", "SIGPIPE has its default"),
    ("RemainAfterExit", "a oneshot counts as done"),
    ("GuessMainPID", "PIDFile= tells it"),
    ("Personality", "the default"),
    ("CoredumpFilter", "the default"),
    ("TimerSlackNSec", "the default"),
    ("X-*", "not systemd's own"),
];

pub(super) fn judge(
    files: &impl Files,
    enabled: &Units,
    name: &str,
    definitions: &mut Vec<Definition>,
) -> Result<Option<Verdict>, Error> {
    let kind = name.rsplit('.').next().unwrap_or_default();
    if matches!(kind, "target" | "slice" | "scope" | "device") {
        return Ok(None);
    }
    if let Some(service) = known::shipped_for(files, name)? {
        return Ok(Some(Verdict::Shipped { service: service.to_owned() }));
    }
    if let Some(how) =
        known::covered(name).map_or_else(|| known::covered_here(files, name), |how| Ok(Some(how)))?
    {
        return Ok(Some(Verdict::Covered { how: how.to_owned() }));
    }
    if let Some(why) = known::lost(name) {
        return Ok(Some(Verdict::Lost { why: why.to_owned() }));
    }
    if known::is_systemds_own(files, name)? {
        return Ok(Some(Verdict::Covered { how: known::NOTHING.to_owned() }));
    }
    let why = match kind {
        "service" => return service(files, enabled, name, definitions).map(Some),
        "timer" => "timers are not run; cron is",
        "socket" => "nothing listens on a service's behalf; let it listen itself",
        "path" => "paths are not watched",
        "mount" | "automount" | "swap" => "it is not mounted; mount it in a oneshot of services.d",
        _ => "units of this kind are not run",
    };
    Ok(Some(Verdict::Lost { why: why.to_owned() }))
}

fn service(
    files: &impl Files,
    enabled: &Units,
    name: &str,
    definitions: &mut Vec<Definition>,
) -> Result<Verdict, Error> {
    let Unit::Lines(lines) = unit::load(files, name, "")? else {
        return Ok(Verdict::Lost { why: "its file is missing".into() });
    };
    let mut conversion = Conversion {
        files,
        name,
        section: Section::of(lines),
        made: Definition::default(),
        dropped: Vec::new(),
    };
    match conversion.run(enabled)? {
        Ok(()) => {
            let service = conversion.made.name.clone();
            definitions.push(conversion.made);
            Ok(Verdict::Convertible { service, dropped: conversion.dropped })
        }
        Err(Stop::Lost(why)) => Ok(match conversion.unmet()? {
            Some(how) => Verdict::Covered { how },
            None => Verdict::Lost { why },
        }),
        Err(Stop::Covered(how)) => Ok(Verdict::Covered { how }),
    }
}

/// Why a unit is not turned.
enum Stop {
    Lost(String),
    Covered(String),
}

type Step = Result<(), Stop>;

fn is_condition(line: &Line) -> bool {
    line.key.starts_with("Condition") || line.key.starts_with("Assert")
}

fn lost(line: &Line, why: impl std::fmt::Display) -> Stop {
    Stop::Lost(format!("{}={}: {why}", line.key, line.value))
}

struct Conversion<'a, F> {
    files: &'a F,
    name: &'a str,
    section: Section,
    made: Definition,
    dropped: Vec<String>,
}

impl<F: Files> Conversion<'_, F> {
    fn run(&mut self, enabled: &Units) -> Result<Step, Error> {
        let stem = self.name.strip_suffix(".service").unwrap_or(self.name);
        let name = if RESERVED.contains(&stem) { self.name } else { stem };
        if !guest::service::load::valid_name(name) {
            return Ok(Err(Stop::Lost("its name cannot be a service's".into())));
        }
        (self.made.name, self.made.unit) = (name.to_owned(), self.name.to_owned());
        self.made.description = self.description(stem);
        if let Err(stop) = self.conditions()? {
            return Ok(Err(stop));
        }
        let lines = self.section.lines.clone();
        for line in lines.iter().filter(|line| !is_condition(line)) {
            if let Err(stop) = self.line(line) {
                return Ok(Err(stop));
            }
        }
        if let Err(stop) = self.sockets(enabled) {
            return Ok(Err(stop));
        }
        if let Err(stop) = self.commands()? {
            return Ok(Err(stop));
        }
        if let Err(stop) = self.kind() {
            return Ok(Err(stop));
        }
        self.restart();
        if let Err(stop) = self.outputs() {
            return Ok(Err(stop));
        }
        for (key, into) in [("After", 0), ("Before", 1), ("Requires", 2), ("BindsTo", 2), ("Requisite", 2)] {
            let names: Vec<String> = self.section.names(key).map(str::to_owned).collect();
            match into {
                0 => self.made.after.extend(names),
                1 => self.made.before.extend(names),
                _ => self.made.requires.extend(names),
            }
        }
        Ok(Ok(()))
    }

    fn description(&self, stem: &str) -> String {
        let text = self.section.get("Description").unwrap_or(stem);
        command::expand(self.name, text).unwrap_or_else(|_| text.to_owned())
    }

    /// A line that is turned by itself, dropped, or the end of it.
    fn line(&mut self, line: &Line) -> Step {
        let value = match command::expand(self.name, &line.value) {
            Ok(value) => value,
            Err(_) if line.key.starts_with("Exec") || SILENT.contains(&line.key.as_str()) => {
                line.value.clone()
            }
            Err(error) => return Err(lost(line, error)),
        };
        let key = line.key.as_str();
        if line.section == "Install" || SILENT.contains(&key) {
            return Ok(());
        }
        if let Some(name) = key.strip_prefix("Limit") {
            return self.limit(name, line, &value);
        }
        self.key(line, &value)
    }

    fn key(&mut self, line: &Line, value: &str) -> Step {
        let key = line.key.as_str();
        let launch = |made: &mut Definition, flag: &str, value: &str| {
            made.launch.extend([flag.to_owned(), value.to_owned()]);
        };
        match key {
            // Turned where all of them are known, or beside the key that they belong to.
            "Sockets"
            | "ExecStart"
            | "ExecStartPre"
            | "Type"
            | "PIDFile"
            | "StandardOutput"
            | "StandardError"
            | "Restart"
            | "RestartSec"
            | "Requires"
            | "BindsTo"
            | "Requisite"
            | "RuntimeDirectoryMode"
            | "StateDirectoryMode"
            | "CacheDirectoryMode"
            | "LogsDirectoryMode"
            | "ConfigurationDirectoryMode" => (),
            "User" => self.made.user = Some(value.to_owned()),
            "Group" => self.made.group = Some(value.to_owned()),
            "SupplementaryGroups" => launch(
                &mut self.made,
                "--supplementary",
                &value.split_whitespace().collect::<Vec<_>>().join(","),
            ),
            "WorkingDirectory" => return self.directory(line, value),
            "Environment" => return self.environment(line, value),
            "EnvironmentFile" => launch(&mut self.made, "--environment-file", value),
            "UMask" => launch(&mut self.made, "--umask", value),
            "Nice" => return self.number("nice", line, value, -20..=19),
            "OOMScoreAdjust" => return self.number("oom_score_adj", line, value, -1000..=1000),
            "CPUWeight" => return self.weight("cpu_weight", line, value),
            "IOWeight" => return self.weight("io_weight", line, value),
            "TimeoutStartSec" => self.time("start_timeout_ms", value),
            "TimeoutStopSec" => self.time("stop_timeout_ms", value),
            "TimeoutSec" => {
                self.time("start_timeout_ms", value);
                self.time("stop_timeout_ms", value);
            }
            "RuntimeDirectory" => self.folders("--runtime", "RuntimeDirectoryMode", value),
            "StateDirectory" => self.folders("--state", "StateDirectoryMode", value),
            "CacheDirectory" => self.folders("--cache", "CacheDirectoryMode", value),
            "LogsDirectory" => self.folders("--logs", "LogsDirectoryMode", value),
            "ConfigurationDirectory" => self.folders("--configuration", "ConfigurationDirectoryMode", value),
            "ExecStartPost" if value.starts_with('-') => {
                self.dropped.push(format!("{key}={value}: nothing is run after the start"));
            }
            "PrivateNetwork" | "DynamicUser" if !is_yes(value) => (),
            "PrivateNetwork" => {
                return Err(lost(line, "its world of its own has no counterpart"));
            }
            "StandardInput" if value == "null" => (),
            _ => return self.other(line, value),
        }
        Ok(())
    }

    fn other(&mut self, line: &Line, value: &str) -> Step {
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(begin) => line.key.starts_with(begin),
            None => line.key == pattern,
        };
        match DROPPED.iter().find(|(pattern, _)| matches(pattern)) {
            Some((_, why)) => {
                self.dropped.push(format!("{}={value}: {why}", line.key));
                Ok(())
            }
            None => Err(lost(line, "it has no counterpart")),
        }
    }

    /// All of each kind have to hold; of those with a `|`, one.
    fn conditions(&mut self) -> Result<Step, Error> {
        for kind in ["Condition", "Assert"] {
            let mut alternatives = Vec::new();
            let lines = self.section.lines.clone();
            for line in lines.iter().filter(|line| is_condition(line) && line.key.starts_with(kind)) {
                let value = match command::expand(self.name, &line.value) {
                    Ok(value) => value,
                    Err(error) => return Ok(Err(lost(line, error))),
                };
                let (value, is_alternative) = value
                    .strip_prefix('|')
                    .map_or((value.as_str(), false), |value| (value.trim_start(), true));
                let judged = condition::judge(self.files, &line.key, value)?;
                if is_alternative {
                    alternatives.push((line.clone(), judged));
                } else if let Err(stop) = self.condition(line, judged) {
                    return Ok(Err(stop));
                }
            }
            if let Err(stop) = self.alternatives(alternatives)? {
                return Ok(Err(stop));
            }
        }
        Ok(Ok(()))
    }

    /// What could change goes into `only_if` and its kin.
    fn condition(&mut self, line: &Line, judged: Judged) -> Step {
        let said = |how: &str| format!("{}={}: {how}", line.key, line.value);
        let (ask, is_all) = match judged {
            Judged::Holds => return Ok(()),
            Judged::HoldsNow => {
                self.dropped.push(said("holds now, and is not asked again"));
                return Ok(());
            }
            Judged::Asked(ask) => (ask, true),
            Judged::AskedRoughly(ask) => (ask, false),
            Judged::Never(why) => return Err(Stop::Covered(said(why))),
            Judged::Unknown(why) => return Err(lost(line, why)),
        };
        let how = match ask {
            Ask::Exists(path) => {
                self.made.only_if.push(path);
                "at a start it is asked only whether that is there"
            }
            Ask::Filled(path) => {
                self.made.only_if_filled.push(path);
                ""
            }
            Ask::Absent(path) => {
                self.made.only_if_absent.push(path);
                "at a start it is asked only whether that is not there"
            }
        };
        if !is_all {
            self.dropped.push(said(how));
        }
        Ok(())
    }

    /// One that holds is enough. Which of several could hold at a start is not asked then.
    fn alternatives(&mut self, mut alternatives: Vec<(Line, Judged)>) -> Result<Step, Error> {
        let first = alternatives.first().cloned();
        if alternatives.iter().any(|(_, judged)| *judged == Judged::Holds) {
            return Ok(Ok(()));
        }
        alternatives.retain(|(_, judged)| !matches!(judged, Judged::Never(_)));
        if alternatives.len() < 2 {
            return Ok(match alternatives.pop().or(first) {
                Some((line, judged)) => self.condition(&line, judged),
                None => Ok(()),
            });
        }
        for (line, judged) in &alternatives {
            if self.holds_now(judged)? {
                let how = "holds now; neither it nor another of the alternatives is asked again";
                self.dropped.push(format!("{}={}: {how}", line.key, line.value));
                return Ok(Ok(()));
            }
        }
        Ok(Err(lost(&alternatives[0].0, "alternatives have no counterpart")))
    }

    fn holds_now(&self, judged: &Judged) -> Result<bool, Error> {
        Ok(match judged {
            Judged::Holds | Judged::HoldsNow => true,
            Judged::Never(_) | Judged::Unknown(_) => false,
            Judged::Asked(ask) | Judged::AskedRoughly(ask) => match ask {
                Ask::Exists(path) => self.files.exists(path)?,
                Ask::Filled(path) => !self.files.names(path)?.is_empty(),
                Ask::Absent(path) => !condition::is_volatile(path) && !self.files.exists(path)?,
            },
        })
    }

    /// A condition that does not hold in this image. Nothing is lost in a unit that would not start under systemd either.
    fn unmet(&self) -> Result<Option<String>, Error> {
        for line in &self.section.lines {
            let asks = line.key.starts_with("Condition") && line.key.ends_with("PathExists");
            let path = line.value.as_str();
            let volatile = condition::is_volatile(path);
            if asks && path.starts_with('/') && !volatile && !self.files.exists(path)? {
                return Ok(Some(format!("{}={path}: it would not start either", line.key)));
            }
        }
        Ok(None)
    }

    /// A service that is handed its sockets cannot open them itself.
    fn sockets(&self, enabled: &Units) -> Step {
        let own = self.name.replace(".service", ".socket");
        let named = self
            .section
            .names("Sockets")
            .chain(self.section.names("Requires"))
            .find(|name| name.ends_with(".socket"));
        let named =
            named.map(str::to_owned).filter(|name| !name.starts_with("systemd-") && name != "dbus.socket");
        let socket = named.or_else(|| Some(own).filter(|name| enabled.contains(name)));
        match socket {
            Some(socket) => Err(Stop::Lost(format!("it is handed its sockets by {socket}"))),
            None => Ok(()),
        }
    }

    fn commands(&mut self) -> Result<Step, Error> {
        let mut commands = Vec::new();
        for key in ["ExecStartPre", "ExecStart"] {
            let lines: Vec<Line> = self.section.all(key).cloned().collect();
            for line in lines {
                match command::parse(self.files, self.name, &line.value)? {
                    Ok(exec) => commands.push(exec),
                    Err(why) => return Ok(Err(lost(&line, why))),
                }
            }
        }
        let starts = self.section.all("ExecStart").count();
        let several = starts > 1 && self.section.get("Type") != Some("oneshot");
        if starts == 0 || several {
            return Ok(Err(Stop::Lost(format!("it has {starts} commands to start"))));
        }
        self.made.main = commands.pop().unwrap_or_default();
        if self.made.main.as_root {
            return Ok(Err(Stop::Lost("ExecStart=+…: the prefix has no counterpart".into())));
        }
        let before: Vec<String> = commands.iter().map(Exec::as_before).collect();
        for command in before {
            self.made.launch.extend(["--before".to_owned(), command]);
        }
        Ok(Ok(()))
    }

    fn kind(&mut self) -> Step {
        let kind = self.section.get("Type").unwrap_or(if self.section.get("BusName").is_some() {
            "dbus"
        } else {
            "simple"
        });
        match kind {
            "simple" | "exec" | "idle" => Ok(()),
            "notify" | "notify-reload" => {
                self.made.keys.insert("readiness", "\"notify\"".into());
                Ok(())
            }
            "oneshot" => {
                self.made.keys.insert("kind", "\"oneshot\"".into());
                Ok(())
            }
            "forking" => match self.section.get("PIDFile") {
                Some(file) => {
                    let file = command::expand(self.name, file)
                        .map_err(|error| Stop::Lost(format!("PIDFile={file}: {error}")))?;
                    let file =
                        file.strip_prefix("/var/run/").map_or(file.clone(), |rest| format!("/run/{rest}"));
                    let file = if file.starts_with('/') { file } else { format!("/run/{file}") };
                    self.made.launch.extend(["--pid-file".to_owned(), file]);
                    self.made.keys.insert("readiness", "\"notify\"".into());
                    Ok(())
                }
                None => Err(Stop::Lost(
                    "Type=forking without PIDFile=: which process is the service would be guessed".into(),
                )),
            },
            other => Err(Stop::Lost(format!("Type={other} has no counterpart"))),
        }
    }

    fn restart(&mut self) {
        let oneshot = self.section.get("Type") == Some("oneshot");
        let word = match self.section.get("Restart") {
            Some("always") => "always",
            Some("no") => "never",
            Some("on-success") => {
                self.dropped.push("Restart=on-success: always".into());
                "always"
            }
            Some("on-abnormal" | "on-abort" | "on-watchdog") => {
                self.dropped.push("Restart: on any failure".into());
                "on-failure"
            }
            Some(_) => "on-failure",
            None if oneshot => "never",
            // Nobody logs in to a sandbox to start it again.
            None => {
                self.dropped.push("no Restart=: restarted when it fails, since nobody else would".into());
                "on-failure"
            }
        };
        self.made.keys.insert("restart", format!("\"{word}\""));
        let Some(asked) = self.section.get("RestartSec").map(str::to_owned) else { return };
        if let Some(pause) = milliseconds(&asked) {
            let longest = pause.max(2_000);
            self.made.keys.insert("backoff", format!("{{ min_ms = {}, max_ms = {longest} }}", pause.max(10)));
        } else {
            self.dropped
                .push(format!("RestartSec={asked}: it is no time that is known; pauses of 0.1 to 2 s"));
        }
    }

    /// What is printed goes to the log ring, unless a file is named for it.
    fn outputs(&mut self) -> Step {
        let mut file_of_output = None;
        for (key, flag) in [("StandardOutput", "--stdout"), ("StandardError", "--stderr")] {
            let line = self.section.all(key).last().cloned();
            let value = line.as_ref().map_or("inherit", |line| line.value.as_str());
            let file = match (value, &line) {
                ("inherit", _) => file_of_output.clone(),
                ("null" | "journal" | "syslog" | "kmsg", _) => None,
                (_, Some(line)) => self.output_file(line)?,
                (_, None) => None,
            };
            if let Some(file) = &file {
                self.made.launch.extend([flag.to_owned(), file.clone()]);
            }
            file_of_output = file;
        }
        Ok(())
    }

    fn output_file(&mut self, line: &Line) -> Result<Option<String>, Stop> {
        let value = command::expand(self.name, &line.value).map_err(|error| lost(line, error))?;
        let is_file = ["file:/", "append:/", "truncate:/"].iter().any(|begin| value.starts_with(begin));
        if !is_file {
            self.dropped.push(format!("{}={value}: to the log ring (envdctl logs)", line.key));
        }
        Ok(is_file.then_some(value))
    }

    fn directory(&mut self, line: &Line, value: &str) -> Step {
        let path = value.strip_prefix('-').unwrap_or(value);
        if !path.starts_with('/') {
            return Err(lost(line, "only whole paths are turned"));
        }
        self.made.keys.insert("directory", super::service::string(path));
        Ok(())
    }

    fn environment(&mut self, line: &Line, value: &str) -> Step {
        let words = guest::words::split(value).map_err(|error| lost(line, error))?;
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| lost(line, "it is no assignment"))?;
            self.made.environment.insert(name.to_owned(), value.to_owned());
        }
        Ok(())
    }

    fn number(
        &mut self,
        key: &'static str,
        line: &Line,
        value: &str,
        range: std::ops::RangeInclusive<i32>,
    ) -> Step {
        let number: i32 = value
            .parse()
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| lost(line, "it is out of range"))?;
        self.made.keys.insert(key, number.to_string());
        Ok(())
    }

    fn weight(&mut self, key: &'static str, line: &Line, value: &str) -> Step {
        let number: u32 = value
            .parse()
            .ok()
            .filter(|number| (1..=10_000).contains(number))
            .ok_or_else(|| lost(line, "it is no weight"))?;
        self.made.weights.insert(key, number.to_string());
        Ok(())
    }

    /// No bound is longer than a shutdown can wait for.
    fn time(&mut self, key: &'static str, value: &str) {
        let bounded = milliseconds(value).filter(|time| *time > 0);
        let is_time = milliseconds(value).is_some() || value == "infinity";
        match (key, bounded) {
            ("start_timeout_ms", _) if !is_time => {
                self.dropped.push(format!("TimeoutStartSec={value}: it is no time that is known; 30 s"));
            }
            ("start_timeout_ms", time) => {
                self.made.keys.insert(key, time.unwrap_or(0).to_string());
            }
            (_, Some(time)) if time <= 60_000 => {
                self.made.keys.insert(key, time.to_string());
            }
            _ => self.dropped.push(format!("TimeoutStopSec={value}: 5 s")),
        }
    }

    fn limit(&mut self, name: &str, line: &Line, value: &str) -> Step {
        let key = match name {
            "AS" => "address_space",
            "CORE" => "core",
            "CPU" => "cpu_seconds",
            "DATA" => "data",
            "FSIZE" => "file_size",
            "MEMLOCK" => "locked_memory",
            "NOFILE" => "open_files",
            "NPROC" => "processes",
            "STACK" => "stack",
            _ => return Err(lost(line, "it has no counterpart")),
        };
        let parts: Option<Vec<String>> = value.split(':').map(size).collect();
        let text =
            parts.filter(|parts| parts.len() <= 2).ok_or_else(|| lost(line, "it is no limit"))?.join(":");
        if text.parse::<guest::service::Limit>().is_err() {
            return Err(lost(line, "it is no limit"));
        }
        self.made.limits.insert(key, super::service::string(&text));
        Ok(())
    }

    fn folders(&mut self, flag: &str, mode_key: &str, value: &str) {
        let mode = self.section.get(mode_key).unwrap_or("0755").to_owned();
        for name in value.split_whitespace() {
            self.made.launch.extend([flag.to_owned(), format!("{name}:{mode}")]);
        }
    }
}

/// `infinity`, or a number with K, M, G, T.
fn size(text: &str) -> Option<String> {
    if text == "infinity" {
        return Some("unlimited".into());
    }
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let factor: u64 = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    Some(digits.parse::<u64>().ok()?.checked_mul(factor)?.to_string())
}

/// More than a year is for ever.
const LONGEST_MS: f64 = 365.0 * 86_400_000.0;

/// systemd.time(7): numbers with units, added up; seconds without; `infinity` is none.
fn milliseconds(text: &str) -> Option<u64> {
    let mut total = 0.0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start();
        let end = rest.find(|char: char| !char.is_ascii_alphabetic()).unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "" | "s" | "sec" | "second" | "seconds" => 1_000.0,
                "ms" | "msec" => 1.0,
                "us" | "usec" => 0.001,
                "m" | "min" | "minute" | "minutes" => 60_000.0,
                "h" | "hr" | "hour" | "hours" => 3_600_000.0,
                "d" | "day" | "days" => 86_400_000.0,
                "w" | "week" | "weeks" => 7.0 * 86_400_000.0,
                _ => return None,
            };
        rest = rest[end..].trim_start();
    }
    (total <= LONGEST_MS && !text.trim().is_empty()).then_some(total as u64)
}

/// Says who waits for whom, now that all are known, and takes back those that need something that is lost.
pub(super) fn order(definitions: &mut Vec<Definition>, reports: &mut [Report]) {
    while let Some(index) = definitions.iter().position(|made| missing(made, reports).is_some()) {
        let made = definitions.remove(index);
        let why = missing(&made, reports).unwrap_or_default();
        for report in reports.iter_mut().filter(|report| report.unit == made.unit) {
            report.verdict = Verdict::Lost { why: why.clone() };
        }
    }
    let names: Vec<(String, Vec<String>)> =
        definitions.iter().map(|made| (made.name.clone(), made.before.clone())).collect();
    for made in definitions.iter_mut() {
        let service_of = |unit: &String| service_of(unit, reports);
        made.needs = made.requires.iter().filter_map(service_of).collect();
        let mut order: Vec<String> = vec!["tmpfiles".into()];
        order.extend(made.after.iter().filter_map(service_of));
        order.extend(
            names.iter().filter(|(_, before)| before.contains(&made.unit)).map(|(name, _)| name.clone()),
        );
        order.sort();
        order.dedup();
        order.retain(|name| *name != made.name);
        made.needs.extend(order.iter().filter(|name| *name == "dbus").cloned());
        made.order = order;
    }
}

fn service_of(unit: &String, reports: &[Report]) -> Option<String> {
    let report = reports.iter().find(|report| report.unit == *unit)?;
    match &report.verdict {
        Verdict::Shipped { service } | Verdict::Convertible { service, .. } => Some(service.clone()),
        _ => None,
    }
}

/// A required service that will not be there.
fn missing(made: &Definition, reports: &[Report]) -> Option<String> {
    made.requires.iter().find_map(|unit| {
        let report = reports.iter().find(|report| report.unit == *unit)?;
        matches!(report.verdict, Verdict::Lost { .. }).then(|| format!("it requires {unit}, which is lost"))
    })
}
