//! Our services as systemd's units.

use guest::control::{ServiceStatus, Status};

use super::{NO_SUCH_UNIT, NOT_RUNNING, arguments::Arguments};
use crate::service_name;

/// Units that Debian calls otherwise.
const ALIASES: [(&str, &str); 2] = [("chrony", "chronyd"), ("ssh", "sshd")];

/// systemd's word for how a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Active,
    Activating,
    Deactivating,
    Inactive,
    Failed,
}

impl State {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Activating => "activating",
            Self::Deactivating => "deactivating",
            Self::Inactive => "inactive",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug)]
pub(super) struct Unit<'a> {
    pub(super) service: &'a ServiceStatus,
    pub(super) state: State,
    sub: &'static str,
}

/// What PID 1 is asked for: the unit as it was written, unless Debian calls it otherwise.
pub(super) fn our_name(unit: &str) -> String {
    let name = unit.strip_suffix(".service").unwrap_or(unit);
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(unit, |(_, own)| own).to_owned()
}

/// `envd` → `envd.service`.
pub(super) fn full_name(unit: &str) -> String {
    let suffixes = [
        ".service", ".socket", ".target", ".timer", ".mount", ".path", ".slice", ".scope", ".device", ".swap",
    ];
    if suffixes.iter().any(|suffix| unit.ends_with(suffix)) {
        unit.to_owned()
    } else {
        format!("{unit}.service")
    }
}

impl<'a> Unit<'a> {
    fn new(service: &'a ServiceStatus) -> Self {
        let (state, sub) = match service.state.as_str() {
            "running" | "healthy" | "unhealthy" => (State::Active, "running"),
            "starting" | "listening" => (State::Activating, "start"),
            "waiting" => (State::Activating, "start-pre"),
            "backoff" => (State::Activating, "auto-restart"),
            "stopping" => (State::Deactivating, "stop-sigterm"),
            "failed" => (State::Failed, "failed"),
            _ => (State::Inactive, "dead"),
        };
        Self { service, state, sub }
    }

    pub(super) fn all(status: &'a Status) -> impl Iterator<Item = Self> {
        status.services.iter().map(Self::new)
    }

    pub(super) fn find(status: &'a Status, unit: &str) -> Option<Self> {
        let by_name = |name: &String| status.services.iter().find(|service| service.name == *name);
        service_name::candidates(&our_name(unit)).iter().find_map(by_name).map(Self::new)
    }

    pub(super) fn is_backing_off(&self) -> bool {
        self.service.state == "backoff"
    }

    /// Whether it starts with the machine, in systemd's word.
    pub(super) const fn file_state(&self) -> &'static str {
        if self.service.enabled { "enabled" } else { "disabled" }
    }

    /// What it is for; one of which nothing is said is described by its name.
    fn description(&self) -> String {
        let said = &self.service.description;
        if said.is_empty() { full_name(&self.service.name) } else { said.clone() }
    }

    /// Its line in a list.
    pub(super) fn columns(&self) -> [String; 5] {
        [
            full_name(&self.service.name),
            "loaded".to_owned(),
            self.state.as_str().to_owned(),
            self.sub.to_owned(),
            self.description(),
        ]
    }

    fn property(&self, name: &str) -> Option<String> {
        Some(match name {
            "Id" | "Names" => full_name(&self.service.name),
            "Description" => self.description(),
            "LoadState" => "loaded".to_owned(),
            "ActiveState" => self.state.as_str().to_owned(),
            "SubState" => self.sub.to_owned(),
            "UnitFileState" => self.file_state().to_owned(),
            "MainPID" | "ExecMainPID" => self.service.pid.unwrap_or(0).to_string(),
            "NRestarts" => self.service.restarts.to_string(),
            "ExecMainStatus" => {
                self.service.last_exit.as_ref().and_then(|exit| exit.status).unwrap_or(0).to_string()
            }
            "MemoryCurrent" => {
                self.service.memory_bytes.map_or_else(|| "[not set]".to_owned(), |bytes| bytes.to_string())
            }
            _ => return None,
        })
    }
}

/// `systemctl status UNIT…`
pub(super) fn print_status(status: &Status, units: &[String]) -> u8 {
    let mut code = 0;
    for (at, name) in units.iter().enumerate() {
        let Some(unit) = Unit::find(status, name) else {
            eprintln!("Unit {} could not be found.", full_name(name));
            code = NO_SUCH_UNIT;
            continue;
        };
        if at > 0 {
            println!();
        }
        print_one(status, &unit);
        if unit.state != State::Active && code == 0 {
            code = NOT_RUNNING;
        }
    }
    code
}

fn print_one(status: &Status, unit: &Unit<'_>) {
    let service = unit.service;
    let mark = match unit.state {
        State::Active | State::Activating | State::Deactivating => '●',
        State::Failed => '×',
        State::Inactive => '○',
    };
    let seconds = status.now_ns.saturating_sub(service.since_ns) / 1_000_000_000;
    let about = Some(&service.description).filter(|text| !text.is_empty());
    println!(
        "{mark} {}{}",
        full_name(&service.name),
        about.map(|text| format!(" - {text}")).unwrap_or_default()
    );
    println!("     Loaded: loaded (envd-init service; {})", unit.file_state());
    println!("     Active: {} ({}) since {seconds} s ago", unit.state.as_str(), unit.sub);
    if let Some(pid) = service.pid {
        println!("   Main PID: {pid}");
    }
    if let Some(bytes) = service.memory_bytes {
        println!("     Memory: {}.{}M", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
    }
    if service.restarts > 0 {
        println!("   Restarts: {}", service.restarts);
    }
    if let Some(exit) = &service.last_exit {
        let how = match (&exit.signal, exit.status) {
            (Some(signal), _) => format!("signal {signal}"),
            (None, status) => format!("status {}", status.unwrap_or_default()),
        };
        println!("  Last exit: {how}{}", if exit.oom { ", out of memory" } else { "" });
    }
}

/// Those that we can tell, in systemd's order, in which they are printed however they are asked for.
const PROPERTIES: [&str; 12] = [
    "MainPID",
    "NRestarts",
    "ExecMainPID",
    "ExecMainStatus",
    "MemoryCurrent",
    "Id",
    "Names",
    "Description",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
];

/// `systemctl show UNIT… [-p NAME]`
pub(super) fn show(status: &Status, arguments: &Arguments) -> u8 {
    let asked = |property: &&str| {
        arguments.properties.is_empty() || arguments.properties.iter().any(|asked| asked == property)
    };
    for (at, name) in arguments.units.iter().enumerate() {
        let unit = Unit::find(status, name);
        if at > 0 {
            println!();
        }
        for property in PROPERTIES.iter().filter(|property| asked(property)) {
            let value = unit.as_ref().map_or_else(|| unknown(name, property), |unit| unit.property(property));
            match value {
                Some(value) if arguments.value_only => println!("{value}"),
                Some(value) => println!("{property}={value}"),
                None => {}
            }
        }
    }
    0
}

/// What systemd says of a unit that it knows nothing of.
fn unknown(unit: &str, property: &str) -> Option<String> {
    Some(match property {
        "Id" | "Names" | "Description" => full_name(unit),
        "LoadState" => "not-found".to_owned(),
        "ActiveState" => "inactive".to_owned(),
        "SubState" => "dead".to_owned(),
        "UnitFileState" => String::new(),
        "MainPID" | "ExecMainPID" | "NRestarts" | "ExecMainStatus" => "0".to_owned(),
        "MemoryCurrent" => "[not set]".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_their_kind() {
        assert_eq!(our_name("envd.service"), "envd.service", "PID 1 finds it by that name too");
        assert_eq!(our_name("chrony"), "chronyd");
        assert_eq!(our_name("ssh.service"), "sshd", "the name of Debian's unit");
        assert_eq!(
            (full_name("envd").as_str(), full_name("x.socket").as_str()),
            ("envd.service", "x.socket")
        );
    }

    #[test]
    fn each_state_of_ours_has_systemds_word() {
        for (own, wanted) in [
            ("running", "active"),
            ("healthy", "active"),
            ("unhealthy", "active"),
            ("starting", "activating"),
            ("backoff", "activating"),
            ("stopping", "deactivating"),
            ("stopped", "inactive"),
            ("exited", "inactive"),
            ("failed", "failed"),
        ] {
            let service = ServiceStatus {
                name: "x".into(),
                description: String::new(),
                state: own.into(),
                enabled: true,
                pid: None,
                restarts: 0,
                since_ns: 0,
                memory_bytes: None,
                last_exit: None,
            };
            assert_eq!(Unit::new(&service).state.as_str(), wanted, "{own}");
        }
    }
}
