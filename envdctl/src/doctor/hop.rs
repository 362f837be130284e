//! The hops between an SDK on this host and envd in the guest, and what was found at each.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    exit::Exit,
    text::{Paint, sanitise},
};

/// The hops in the order in which a request meets them; first the way by TCP, then the one by vsock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    Listener = 1,
    Proxy,
    Namespace,
    Devices,
    Rules,
    Forwarder,
    GuestAddress,
    Port,
    Health,
    VsockSocket,
    Handshake,
    Relay,
    Guest,
    Envd,
    Console,
}

impl Hop {
    pub const ALL: [Self; 15] = [
        Self::Listener,
        Self::Proxy,
        Self::Namespace,
        Self::Devices,
        Self::Rules,
        Self::Forwarder,
        Self::GuestAddress,
        Self::Port,
        Self::Health,
        Self::VsockSocket,
        Self::Handshake,
        Self::Relay,
        Self::Guest,
        Self::Envd,
        Self::Console,
    ];

    /// Its place in the walk, from 1; the exit code is 20 more.
    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Proxy => "proxy",
            Self::Namespace => "namespace",
            Self::Devices => "devices",
            Self::Rules => "rules",
            Self::Forwarder => "forwarder",
            Self::GuestAddress => "guest-address",
            Self::Port => "port",
            Self::Health => "health",
            Self::VsockSocket => "vsock-socket",
            Self::Handshake => "handshake",
            Self::Relay => "relay",
            Self::Guest => "guest",
            Self::Envd => "envd",
            Self::Console => "console",
        }
    }
}

/// How a hop was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    Broken,
    /// There is nothing to look at: it was not given, not found, or is not part of this way.
    Skipped,
    /// It was looked at and cannot be judged: a right is missing, or a hop before it hides it.
    Unknown,
}

/// What was found at one hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub number: u8,
    pub hop: Hop,
    pub state: State,
    /// One line: what is so.
    pub summary: String,
    /// What it is concluded from.
    pub evidence: Vec<String>,
    /// What to do, as commands (or, where no command does it, in words behind a `#`).
    pub commands: Vec<String>,
}

impl Finding {
    fn new(hop: Hop, state: State, summary: impl Into<String>) -> Self {
        Self {
            number: hop.number(),
            hop,
            state,
            summary: summary.into(),
            evidence: Vec::new(),
            commands: Vec::new(),
        }
    }

    pub fn ok(hop: Hop, summary: impl Into<String>) -> Self {
        Self::new(hop, State::Ok, summary)
    }

    pub fn broken(hop: Hop, summary: impl Into<String>) -> Self {
        Self::new(hop, State::Broken, summary)
    }

    pub fn skipped(hop: Hop, summary: impl Into<String>) -> Self {
        Self::new(hop, State::Skipped, summary)
    }

    pub fn unknown(hop: Hop, summary: impl Into<String>) -> Self {
        Self::new(hop, State::Unknown, summary)
    }

    #[must_use]
    pub fn because(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }

    #[must_use]
    pub fn because_all(mut self, evidence: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(evidence);
        self
    }

    #[must_use]
    pub fn then_do(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    pub fn is_broken(&self) -> bool {
        self.state == State::Broken
    }
}

/// The whole walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this format.
    pub version: u32,
    pub healthy: bool,
    pub first_broken: Option<Hop>,
    pub exit_code: u8,
    /// What was looked at, given or found.
    pub subject: Vec<String>,
    pub hops: Vec<Finding>,
}

impl Report {
    pub fn new(subject: Vec<String>, mut hops: Vec<Finding>) -> Self {
        hops.sort_by_key(|finding| finding.number);
        let first_broken = hops.iter().find(|finding| finding.is_broken()).map(|finding| finding.hop);
        let exit_code = exit_of(first_broken).code();
        Self { version: 1, healthy: first_broken.is_none(), first_broken, exit_code, subject, hops }
    }

    pub fn exit(&self) -> Exit {
        exit_of(self.first_broken)
    }

    /// The report for a person. Where all is well it is a line; `verbose` shows every hop all the same.
    pub fn render(&self, paint: Paint, verbose: bool) -> String {
        let mut out = String::new();
        let first = self.hops.iter().find(|finding| finding.is_broken());
        if let Some(finding) = first {
            out.push_str(&headline(finding, paint));
        } else {
            out.push_str(&self.all_well(paint));
        }
        if first.is_some() || verbose {
            out.push('\n');
            for subject in &self.subject {
                out.push_str(&paint.dim(&format!("     {}\n", sanitise(subject))));
            }
            for finding in &self.hops {
                out.push_str(&line(finding, paint, verbose || finding.is_broken() && Some(finding) != first));
            }
        }
        out
    }

    /// Hops that could not be judged are said: silence must not pass for health.
    fn all_well(&self, paint: Paint) -> String {
        let names = |state: State| -> Vec<&str> {
            self.hops.iter().filter(|f| f.state == state).map(|f| f.hop.name()).collect()
        };
        let mut said = format!("{} {}", paint.green("all hops ok:"), names(State::Ok).join(", "));
        for (state, word) in [(State::Skipped, "skipped"), (State::Unknown, "unknown")] {
            let found = names(state);
            if !found.is_empty() {
                said.push_str(&paint.dim(&format!(" ({word}: {})", found.join(", "))));
            }
        }
        said + "\n"
    }
}

fn exit_of(first_broken: Option<Hop>) -> Exit {
    first_broken.map_or(Exit::Ok, |hop| Exit::BrokenHop(hop.number()))
}

/// The first broken hop, on top, with what to do.
fn headline(finding: &Finding, paint: Paint) -> String {
    let mut out = format!(
        "{} {}\n",
        paint.red(&format!(
            "hop {} of {}, {}, is broken:",
            finding.number,
            Hop::ALL.len(),
            finding.hop.name()
        )),
        paint.bold(&sanitise(&finding.summary))
    );
    for evidence in &finding.evidence {
        let _ = writeln!(out, "  {}", sanitise(evidence));
    }
    if !finding.commands.is_empty() {
        let _ = writeln!(out, "\n  {}", paint.cyan("what to do:"));
        for command in &finding.commands {
            let _ = writeln!(out, "    {}", sanitise(command));
        }
    }
    out
}

fn line(finding: &Finding, paint: Paint, with_evidence: bool) -> String {
    let state = match finding.state {
        State::Ok => paint.green("ok     "),
        State::Broken => paint.red("BROKEN "),
        State::Skipped => paint.dim("skipped"),
        State::Unknown => paint.yellow("unknown"),
    };
    let mut out = format!(
        "{:>3}  {:<14} {state}  {}\n",
        finding.number,
        finding.hop.name(),
        sanitise(&finding.summary)
    );
    if with_evidence {
        for evidence in &finding.evidence {
            out.push_str(&paint.dim(&format!("{:29}{}\n", "", sanitise(evidence))));
        }
        for command in &finding.commands {
            let _ = writeln!(out, "{:29}{} {}", "", paint.cyan("do:"), sanitise(command));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_broken_hops_the_earlier_is_on_top_whatever_the_order_of_finding() {
        let hops = vec![
            Finding::broken(Hop::Relay, "relay is dead"),
            Finding::ok(Hop::Proxy, "no proxy"),
            Finding::broken(Hop::Listener, "nobody listens").then_do("envdctl bridge …"),
        ];
        let report = Report::new(vec![], hops);
        assert_eq!((report.first_broken, report.exit_code), (Some(Hop::Listener), 21));
        let text = report.render(Paint::plain(), false);
        assert!(text.starts_with("hop 1 of 15, listener, is broken: nobody listens\n"), "{text}");
        assert!(text.contains(" 12  relay          BROKEN   relay is dead"), "{text}");
    }

    #[test]
    fn where_all_is_well_one_line_says_so_and_what_was_not_looked_at() {
        let hops = vec![Finding::ok(Hop::Listener, "x"), Finding::skipped(Hop::Console, "none given")];
        let report = Report::new(vec![], hops);
        assert_eq!(report.render(Paint::plain(), false), "all hops ok: listener (skipped: console)\n");
        assert_eq!(report.exit().code(), 0);
    }

    #[test]
    fn numbers_follow_the_walk() {
        for (index, hop) in Hop::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(hop.number()), index + 1);
        }
    }
}
