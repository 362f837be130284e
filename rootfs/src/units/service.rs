//! A service that a unit was turned into, and its file's text.

use std::{collections::BTreeMap, fmt::Write as _};

use super::command::Exec;

pub(super) const LAUNCH: [&str; 2] = ["/usr/lib/envd-init/init", "launch"];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Definition {
    /// Of the service.
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) description: String,
    pub(super) main: Exec,
    /// Options of `init launch` besides those that follow from `main`.
    pub(super) launch: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
    pub(super) environment: BTreeMap<String, String>,
    /// Other keys, with their values as TOML.
    pub(super) keys: BTreeMap<&'static str, String>,
    pub(super) limits: BTreeMap<&'static str, String>,
    pub(super) weights: BTreeMap<&'static str, String>,
    pub(super) only_if: Vec<String>,
    pub(super) only_if_filled: Vec<String>,
    pub(super) only_if_absent: Vec<String>,
    /// Units named by After=, Requires= and the like.
    pub(super) after: Vec<String>,
    pub(super) before: Vec<String>,
    pub(super) requires: Vec<String>,
    /// Services that it cannot do without, filled in once all are known.
    pub(super) needs: Vec<String>,
    /// Services that it starts after, filled in once all are known.
    pub(super) order: Vec<String>,
}

impl Definition {
    /// Plain services are started by PID 1 as they are, others through `init launch`.
    fn command(&self) -> Vec<String> {
        let main = &self.main;
        let plain = self.launch.is_empty() && !main.may_fail && main.name.is_none() && !main.uses_variables();
        if plain {
            return main.words.clone();
        }
        let mut command: Vec<String> = LAUNCH.map(str::to_owned).to_vec();
        for (flag, value) in [("--user", &self.user), ("--group", &self.group), ("--name", &main.name)] {
            if let Some(value) = value {
                command.extend([flag.to_owned(), value.clone()]);
            }
        }
        command.extend(self.launch.iter().cloned());
        if main.may_fail {
            command.push("--may-fail".to_owned());
        }
        command.push("--".to_owned());
        command.extend(main.words.iter().cloned());
        command
    }

    /// The file.
    pub(super) fn toml(&self) -> String {
        let mut text = format!("# Made from {} of this image when it was baked.\n", self.unit);
        let command = self.command();
        let launched = command.starts_with(&LAUNCH.map(str::to_owned));
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "{key} = {value}");
        };
        line("description", &string(&self.description));
        line("command", &list(&command));
        if !launched {
            for (key, value) in [("user", &self.user), ("group", &self.group)] {
                if let Some(value) = value {
                    line(key, &string(value));
                }
            }
        }
        line("after", &list(&self.order));
        for (key, paths) in [
            ("only_if", &self.only_if),
            ("only_if_filled", &self.only_if_filled),
            ("only_if_absent", &self.only_if_absent),
        ] {
            if !paths.is_empty() {
                line(key, &list(paths));
            }
        }
        for (key, value) in &self.keys {
            line(key, value);
        }
        for (table, values) in [("limits", &self.limits), ("cgroup", &self.weights)] {
            if !values.is_empty() {
                let _ = writeln!(text, "\n[{table}]");
                for (key, value) in values {
                    let _ = writeln!(text, "{key} = {value}");
                }
            }
        }
        if !self.environment.is_empty() {
            text.push_str("\n[environment]\n");
            for (name, value) in &self.environment {
                let _ = writeln!(text, "{} = {}", string(name), string(value));
            }
        }
        text
    }
}

/// JSON's strings are TOML's, but for DEL.
pub(super) fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

pub(super) fn list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| string(word)).collect();
    format!("[{}]", quoted.join(", "))
}
