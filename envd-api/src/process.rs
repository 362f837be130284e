//! `process.Process`: starts commands and streams what they do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::wire::Base64;

/// Streaming: starts a process and follows it.
pub const START: &str = "/process.Process/Start";
/// Streaming: follows a process that runs.
pub const CONNECT: &str = "/process.Process/Connect";
pub const LIST: &str = "/process.Process/List";
pub const SEND_INPUT: &str = "/process.Process/SendInput";
pub const SEND_SIGNAL: &str = "/process.Process/SendSignal";
pub const CLOSE_STDIN: &str = "/process.Process/CloseStdin";
pub const UPDATE: &str = "/process.Process/Update";

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProcessConfig {
    pub cmd: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

impl ProcessConfig {
    /// A shell command, as the SDKs run one.
    pub fn shell(command: &str) -> Self {
        let args = ["-l", "-c", command].map(str::to_owned).to_vec();
        Self { cmd: "/bin/bash".to_owned(), args, ..Self::default() }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StartRequest {
    pub process: ProcessConfig,
    /// Present: the process gets a terminal of this size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
    /// A name to find the process by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whether standard input stays open. Absent means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<bool>,
}

impl StartRequest {
    /// A shell command without input, as the SDKs' `commands.run` sends it.
    pub fn shell(command: &str) -> Self {
        Self { process: ProcessConfig::shell(command), stdin: Some(false), ..Self::default() }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pty {
    pub size: PtySize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PtySize {
    pub cols: u32,
    pub rows: u32,
}

/// One message of the streams of `Start` and `Connect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartResponse {
    pub event: ProcessEvent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProcessEvent {
    /// The first one.
    Start {
        #[serde(default)]
        pid: u32,
    },
    Data(Output),
    /// The last one.
    End(EndEvent),
    Keepalive {},
}

/// What the process wrote, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Output {
    Stdout(Base64),
    Stderr(Base64),
    Pty(Base64),
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndEvent {
    pub exit_code: i32,
    /// False when a signal ended it.
    pub exited: bool,
    /// For people: `exit status 3`, `signal: killed`.
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which process a call is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Selector {
    Pid(u32),
    Tag(String),
}

/// Request of `Connect` and `CloseStdin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectRequest {
    pub process: Selector,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendInputRequest {
    pub process: Selector,
    pub input: Input,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Input {
    Stdin(Base64),
    Pty(Base64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendSignalRequest {
    pub process: Selector,
    #[serde(default)]
    pub signal: Signal,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    #[default]
    #[serde(rename = "SIGNAL_UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "SIGNAL_SIGTERM")]
    Term,
    #[serde(rename = "SIGNAL_SIGKILL")]
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateRequest {
    pub process: Selector,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListResponse {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessInfo>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInfo {
    pub config: ProcessConfig,
    pub pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_asked_for_as_the_sdk_asks() {
        let json = serde_json::to_string(&StartRequest::shell("echo Hello")).unwrap();
        assert_eq!(json, r#"{"process":{"cmd":"/bin/bash","args":["-l","-c","echo Hello"]},"stdin":false}"#);
    }

    #[test]
    fn events_are_read_with_zero_values_left_out() {
        let read = |json: &str| serde_json::from_str::<StartResponse>(json).unwrap().event;
        assert_eq!(read(r#"{"event":{"start":{"pid":17}}}"#), ProcessEvent::Start { pid: 17 });
        assert_eq!(read(r#"{"event":{"keepalive":{}}}"#), ProcessEvent::Keepalive {});
        let hello = ProcessEvent::Data(Output::Stdout("Hello\n".into()));
        assert_eq!(read(r#"{"event":{"data":{"stdout":"SGVsbG8K"}}}"#), hello);
        let end = EndEvent { exited: true, status: "exit status 0".to_owned(), ..EndEvent::default() };
        assert_eq!(
            read(r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#),
            ProcessEvent::End(end)
        );
    }

    #[test]
    fn selectors_and_signals_have_their_wire_names() {
        let request = SendSignalRequest { process: Selector::Pid(4), signal: Signal::Kill };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(json, r#"{"process":{"pid":4},"signal":"SIGNAL_SIGKILL"}"#);
    }
}
