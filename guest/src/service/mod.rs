//! A service as its TOML file describes it. envd and the relay are described in the same way as everything else.
//!
//! `/usr/lib/envd-init/services.d/NAME.toml` comes with envd-init, `/etc/envd-init/services.d/NAME.toml` is the image
//! owner's and replaces one of the same name; an empty file or a link to /dev/null turns a service off. What every machine has
//! is compiled in ([`builtin`]), so that envd starts before any file is read, and always. When an image is baked,
//! [`check`](check::check) makes every mistake an error; when it boots, mistakes are warnings and the rest runs.

pub mod builtin;
pub mod check;
pub mod load;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;

use crate::{
    cgroup,
    lenient::{self, Read},
};

/// What a service's file says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// The file's name without `.toml`.
    #[serde(skip)]
    pub name: String,
    pub description: String,
    /// The program, by its whole path, and its arguments.
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// A name or a number; unset: root.
    #[serde(deserialize_with = "name_or_number")]
    pub user: Option<String>,
    /// A name or a number; unset: the user's own.
    #[serde(deserialize_with = "name_or_number")]
    pub group: Option<String>,
    /// Working directory.
    pub directory: PathBuf,
    pub kind: Kind,
    /// Names of services that must be ready, or have failed, before this one starts.
    pub after: Vec<String>,
    /// Paths that must all exist; if not, the service is passed over without a word.
    pub only_if: Vec<PathBuf>,
    /// Folders that must all hold something; if not, the service is passed over as well.
    pub only_if_filled: Vec<PathBuf>,
    /// Paths none of which may exist; if one does, the service is passed over as well.
    pub only_if_absent: Vec<PathBuf>,
    /// `false`: starts only when asked for.
    pub enabled: bool,
    /// Runs (a oneshot) or starts anew (another one) when the wall clock was set forward, as envd does first after a restore.
    pub on_restore: bool,
    pub restart: Restart,
    pub backoff: Backoff,
    /// Milliseconds until a service that is not ready (a oneshot: has not ended) is killed; 0: no bound.
    pub start_timeout_ms: u64,
    /// Milliseconds from TERM to KILL.
    pub stop_timeout_ms: u64,
    pub readiness: Readiness,
    /// Where its output goes besides the ring.
    pub log: LogTo,
    pub limits: Limits,
    pub nice: i32,
    pub oom_score_adj: i32,
    pub placement: Placement,
    pub cgroup: cgroup::Weights,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            name: String::new(),
            description: String::new(),
            command: Vec::new(),
            environment: BTreeMap::new(),
            user: None,
            group: None,
            directory: PathBuf::from("/"),
            kind: Kind::default(),
            after: Vec::new(),
            only_if: Vec::new(),
            only_if_filled: Vec::new(),
            only_if_absent: Vec::new(),
            enabled: true,
            on_restore: false,
            restart: Restart::default(),
            backoff: Backoff::default(),
            start_timeout_ms: 30_000,
            stop_timeout_ms: 5_000,
            readiness: Readiness::default(),
            log: LogTo::default(),
            limits: Limits::default(),
            nice: 0,
            oom_score_adj: 0,
            placement: Placement::default(),
            cgroup: cgroup::Weights::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Runs until it is stopped.
    #[default]
    LongRunning,
    /// Runs once, and is ready when it has ended.
    Oneshot,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Also after a clean exit.
    Always,
    /// After a status other than 0, a signal, or a start that took too long.
    #[default]
    OnFailure,
    Never,
}

/// How long to wait before a restart: doubling from `min_ms` to `max_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    pub min_ms: u64,
    pub max_ms: u64,
    /// Milliseconds of uptime after which it starts from `min_ms` again.
    pub reset_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { min_ms: 100, max_ms: 2_000, reset_ms: 10_000 }
    }
}

/// How a service tells that it is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// Once its program runs.
    #[default]
    None,
    /// It sends `READY=1` to `$NOTIFY_SOCKET`.
    Notify,
    /// Something listens on this TCP port, for example `127.0.0.1:8080`.
    Tcp(std::net::SocketAddr),
    /// Something listens on this socket.
    Unix(PathBuf),
    /// This file exists.
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum LogTo {
    /// The ring, and the serial console.
    Console,
    #[default]
    Ring,
}

/// Which cgroup a service lives in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub enum Placement {
    /// `system.slice/NAME`: frozen with the rest when the platform freezes the guest.
    #[default]
    #[serde(rename = "system.slice")]
    Slice,
    /// Never frozen. For what the host needs to reach a frozen guest, and nothing else.
    #[serde(rename = "init.scope")]
    InitScope,
    /// envd's own, at the top level.
    #[serde(rename = "envd")]
    Envd,
}

/// Resource limits; what is unset stays as PID 1 has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub address_space: Option<Limit>,
    pub core: Option<Limit>,
    pub cpu_seconds: Option<Limit>,
    pub data: Option<Limit>,
    pub file_size: Option<Limit>,
    pub locked_memory: Option<Limit>,
    pub open_files: Option<Limit>,
    pub processes: Option<Limit>,
    pub stack: Option<Limit>,
}

/// `1024`, `"1024:524288"` (soft and hard) or `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "LimitText")]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum LimitText {
    Number(u64),
    Text(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no limit; write a number, \"soft:hard\" or \"unlimited\"")]
pub struct LimitError(String);

impl TryFrom<LimitText> for Limit {
    type Error = LimitError;

    fn try_from(text: LimitText) -> Result<Self, LimitError> {
        match text {
            LimitText::Number(value) => Ok(Self { soft: value, hard: value }),
            LimitText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let one = |text: &str| match text {
            "unlimited" => Ok(u64::MAX),
            number => number.parse().map_err(|_| LimitError(text.to_owned())),
        };
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        let limit = Self { soft: one(soft)?, hard: one(hard)? };
        if limit.soft <= limit.hard { Ok(limit) } else { Err(LimitError(text.to_owned())) }
    }
}

impl Limits {
    /// Each limit that is set, by the kernel's number of it (`RLIMIT_…`, the same on x86_64 and aarch64).
    pub fn set(&self) -> impl Iterator<Item = (u32, Limit)> {
        [
            (0, self.cpu_seconds),
            (1, self.file_size),
            (2, self.data),
            (3, self.stack),
            (4, self.core),
            (6, self.processes),
            (7, self.open_files),
            (8, self.locked_memory),
            (9, self.address_space),
        ]
        .into_iter()
        .filter_map(|(number, limit)| Some((number, limit?)))
    }
}

/// Stands for an account whose key cannot be read: "there is no user that can be read".
const UNREADABLE: &str = "that can be read";

/// An account: `'web'`, `'1000'` or `1000`.
fn name_or_number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "neither a name nor a number")]
    enum Account {
        Number(u32),
        Name(String),
    }
    Ok(Some(match Account::deserialize(from)? {
        Account::Number(number) => number.to_string(),
        Account::Name(name) => name,
    }))
}

impl Service {
    /// Reads a file's text. Never fails; `problems` names each key that was passed over.
    pub fn parse(name: &str, text: &str) -> Read<Self> {
        let mut read: Read<Self> = lenient::read(text);
        name.clone_into(&mut read.value.name);
        // One of whom it is not known whose it is must not run as root.
        for (key, account) in [("user", &mut read.value.user), ("group", &mut read.value.group)] {
            let of_it =
                |problem: &String| problem.strip_prefix(key).is_some_and(|rest| rest.starts_with([':', '.']));
            if read.problems.iter().any(of_it) {
                *account = Some(UNREADABLE.to_owned());
            }
        }
        read
    }

    pub fn program(&self) -> Option<&Path> {
        self.command.first().map(Path::new)
    }

    /// The cgroup it lives in, below the root.
    pub fn group_path(&self) -> String {
        match self.placement {
            Placement::Slice => format!("{}/{}", cgroup::SLICE, self.name),
            Placement::InitScope => cgroup::INIT_SCOPE.to_owned(),
            Placement::Envd => cgroup::ENVD.to_owned(),
        }
    }

    /// Whether the cgroup is this service's alone, so that all that is in it is its own to end.
    pub fn owns_group(&self) -> bool {
        self.placement == Placement::Slice
    }

    pub fn is_oneshot(&self) -> bool {
        self.kind == Kind::Oneshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_every_key() {
        let read = Service::parse("web", include_str!("../../../docs/examples/web.toml"));
        assert_eq!(read.problems, [""; 0]);
        let web = read.value;
        assert_eq!(web.readiness, Readiness::Tcp("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(web.limits.open_files, Some(Limit { soft: 1024, hard: 4096 }));
        assert_eq!(web.limits.core, Some(Limit { soft: 0, hard: 0 }));
        assert_eq!(web.group_path(), "system.slice/web");
    }

    #[test]
    fn every_key_is_documented_with_its_default_and_no_other_one_is() {
        let page = include_str!("../../../docs/services.md");
        let mut told = crate::documented::keys(page);
        for (key, default) in crate::documented::defaults(&Service::default()) {
            // Those two are tables of many keys, none of which has a default; the page lists them below.
            if let Some((table @ ("limits" | "cgroup"), inner)) = key.split_once('.') {
                assert!(
                    page.contains(&format!("`{inner}`")),
                    "docs/services.md says nothing of {table}.{inner}"
                );
                continue;
            }
            let cell = told.remove(&key).unwrap_or_else(|| panic!("docs/services.md says nothing of {key}"));
            assert!(crate::documented::is_default(&cell, &default), "{key}: {cell:?} is not {default}");
        }
        assert_eq!(told.into_keys().collect::<Vec<_>>(), ["cgroup", "limits"]);
    }

    /// It ran as root, with a word of warning.
    #[test]
    fn a_user_may_be_a_number_and_one_that_cannot_be_read_is_nobody() {
        let user = |line: &str| Service::parse("x", &format!("command = ['/x']\n{line}\n")).value.user;
        assert_eq!(user("user = 1000"), Some("1000".into()));
        assert_eq!(user("user = 'web'"), Some("web".into()));
        assert_eq!(user(""), None);
        for wrong in ["user = true", "user = ['web']", "user = -1", "user = 1.5", "user = { name = 'web' }"] {
            assert_eq!(user(wrong), Some(UNREADABLE.into()), "{wrong}");
        }
        let read = Service::parse("x", "command = ['/x']\ngroup = [1]\n");
        assert_eq!((read.value.group.as_deref(), read.problems.len()), (Some(UNREADABLE), 1));
    }

    #[test]
    fn limits_in_each_spelling() {
        assert_eq!("unlimited".parse(), Ok(Limit { soft: u64::MAX, hard: u64::MAX }));
        assert_eq!("1:unlimited".parse(), Ok(Limit { soft: 1, hard: u64::MAX }));
        for wrong in ["", "many", "2:1", "1:2:3", "-1"] {
            assert!(wrong.parse::<Limit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn garbage_gives_a_service_without_a_command_and_says_so() {
        let read = Service::parse("x", "\u{0}garbage");
        assert!(read.value.command.is_empty() && read.problems.len() == 1);
        let read = Service::parse("x", "command = ['/bin/true']\nrestart = 'sometimes'\nafter = 'envd'\n");
        assert_eq!(read.value.command, ["/bin/true"]);
        assert_eq!(read.problems.len(), 2);
    }
}
