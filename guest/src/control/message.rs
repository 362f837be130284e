//! The messages of the control protocol. Times are nanoseconds of guest-monotonic time unless a name says otherwise.
//!
//! Everything is read by way of [`Value`]: serde's own way of reading a tagged enum compiles each of its types once more, and
//! the guest's program is to stay small.

use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::Value;

use super::VERSION;
use crate::json;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct Request {
    pub version: u32,
    #[serde(flatten)]
    pub op: Op,
}

impl Request {
    pub fn new(op: Op) -> Self {
        Self { version: VERSION, op }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Answered by [`Reply::Status`].
    Status,
    /// Answered by [`Reply::Records`], again and again; ends with [`Reply::Done`] unless `follow`.
    Logs {
        follow: bool,
        /// Only this component or service.
        #[serde(skip_serializing_if = "Option::is_none")]
        service: Option<String>,
        /// Only records younger than this many milliseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        since_ms: Option<u64>,
    },
    /// Answered by [`Reply::Done`] when the service is ready (a oneshot: has ended well; envd: was executed), by
    /// [`Reply::Error`] when that run has ended before.
    Start {
        service: String,
        /// Answered as soon as the order is taken, and whatever it leads to.
        #[serde(skip_serializing_if = "is_false")]
        no_block: bool,
    },
    /// Answered by [`Reply::Done`] when its last process is dead.
    Stop {
        service: String,
        #[serde(skip_serializing_if = "is_false")]
        no_block: bool,
    },
    /// As `Start`, when the old process is dead.
    Restart {
        service: String,
        #[serde(skip_serializing_if = "is_false")]
        no_block: bool,
    },
    /// Answered by [`Reply::Done`] at once; the machine goes down next.
    Shutdown { kind: ShutdownKind },
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// The fields of every request, of which each has its own.
#[derive(Deserialize)]
struct RequestFields {
    version: u32,
    op: String,
    #[serde(default)]
    follow: bool,
    service: Option<String>,
    since_ms: Option<u64>,
    kind: Option<ShutdownKind>,
    #[serde(default)]
    no_block: bool,
}

impl TryFrom<Value> for Request {
    type Error = serde_json::Error;

    fn try_from(value: Value) -> Result<Self, serde_json::Error> {
        let RequestFields { version, op, follow, service, since_ms, kind, no_block } =
            serde_json::from_value(value)?;
        let named =
            |service: Option<String>| service.ok_or_else(|| serde_json::Error::missing_field("service"));
        let op = match op.as_str() {
            "status" => Op::Status,
            "logs" => Op::Logs { follow, service, since_ms },
            "start" => Op::Start { service: named(service)?, no_block },
            "stop" => Op::Stop { service: named(service)?, no_block },
            "restart" => Op::Restart { service: named(service)?, no_block },
            "shutdown" => {
                Op::Shutdown { kind: kind.ok_or_else(|| serde_json::Error::missing_field("kind"))? }
            }
            other => return Err(serde_json::Error::custom(format!("unknown op {other:?}"))),
        };
        Ok(Self { version, op })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownKind {
    Reboot,
    Poweroff,
    Halt,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
#[serde(try_from = "Value")]
pub enum Reply {
    Status(Box<Status>),
    Records {
        records: Vec<LogRecord>,
        /// Records that were overwritten or dropped before these (since the last batch).
        lost: u64,
    },
    Done,
    Error {
        /// `unsupported`, `unknown_service`, `not_permitted`, `failed`, `shutting_down`, `busy`.
        code: String,
        message: String,
    },
}

/// The fields of every answer but the status.
#[derive(Deserialize)]
struct ReplyFields {
    reply: String,
    records: Option<Vec<LogRecord>>,
    #[serde(default)]
    lost: u64,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl TryFrom<Value> for Reply {
    type Error = serde_json::Error;

    fn try_from(value: Value) -> Result<Self, serde_json::Error> {
        if value.get("reply").and_then(Value::as_str) == Some("status") {
            return Ok(Self::Status(serde_json::from_value(value)?));
        }
        let fields: ReplyFields = serde_json::from_value(value)?;
        Ok(match fields.reply.as_str() {
            "records" => Self::Records { records: fields.records.unwrap_or_default(), lost: fields.lost },
            "done" => Self::Done,
            "error" => Self::Error { code: fields.code, message: fields.message },
            other => return Err(serde_json::Error::custom(format!("unknown reply {other:?}"))),
        })
    }
}

const fn enabled() -> bool {
    true
}

/// One line of the log ring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Counts up by one for each record of its writer; a jump is a gap.
    pub seq: u64,
    pub at_ns: u64,
    pub component: String,
    /// `error`, `warn`, `info`, `debug`.
    pub level: String,
    pub text: String,
}

/// What runs as the image's init.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Our PID 1.
    Native,
    /// The image's own init; the wrapper answers.
    Keep,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub mode: Mode,
    /// Version of the program that answers.
    pub version: String,
    pub kernel: String,
    pub hostname: String,
    pub now_ns: u64,
    /// Stages of the boot in the order in which they ended.
    pub stages: Vec<Stage>,
    pub network: Network,
    pub services: Vec<ServiceStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd: Option<EnvdStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<RelayStatus>,
    /// Bytes that the serial console did not take and that were dropped.
    pub console_dropped_bytes: u64,
    /// Each degraded step, in words, newest last; bounded.
    pub warnings: Vec<String>,
    /// The last deaths of services, newest last; at most a hundred, without their last lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deaths: Vec<ExitReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// `wrapper`, `mounts`, `cgroups`, `envd_spawn`, `envd_exec`, `console`, `network`, `services`, `envd_listening`,
    /// `envd_healthy`, …
    pub name: String,
    pub begin_ns: u64,
    pub end_ns: u64,
    /// What was degraded, when something was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// As asked for by `ip=`, the configuration or the defaults, for example `169.254.0.21/30`.
    pub wanted: Option<String>,
    pub interface: String,
    /// Every IPv4 address found on the interface, with its prefix.
    pub found: Vec<String>,
    pub gateway: Option<String>,
    pub mac: Option<String>,
    pub mtu: Option<u32>,
    pub link_up: bool,
    /// Who configured it: `kernel`, `init`, `none`.
    pub configured_by: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// `starting`, `running`, `listening`, `healthy`, `unhealthy`, `exited`, `backoff`, `stopping`, `stopped`, `failed`.
    pub state: String,
    /// It starts with the machine.
    #[serde(default = "enabled")]
    pub enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub restarts: u64,
    /// Since when it is in this state.
    pub since_ns: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitReport>,
}

/// One death; also what the console line `envd-init: exit {json}` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitReport {
    pub service: String,
    pub pid: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// Name of the signal, for example `SIGKILL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    pub core: bool,
    /// Whether the kernel's OOM killer did it, as the cgroup's counters tell.
    pub oom: bool,
    pub uptime_ms: u64,
    pub restarts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Why we ended it ourselves, when we did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub last_lines: Vec<String>,
    pub at_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvdStatus {
    /// Path of the program that runs.
    pub program: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `starting`, `listening`, `healthy`, `unhealthy`, `exited`, `backoff`, `stopping`.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub restarts: u64,
    /// When the process that runs now was started, first listened and was first healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listening_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    pub connections: u64,
    pub total: u64,
    pub refused: u64,
}

impl RelayStatus {
    /// Where a guest's relay writes its counters down as they change.
    pub const PATH: &'static str = "/run/envd-init/relay.json";

    /// What the relay of this guest wrote last; `None` where it has written nothing.
    pub fn last_written() -> Option<Self> {
        let text = std::fs::read_to_string(Self::PATH).ok()?;
        json::from_slice(text.trim_end_matches(['\0', ' ', '\n']).as_bytes()).ok()
    }
}
