//! Exit codes of `envdctl`: one scheme for every command, documented in `docs/envdctl.md`.

use std::{error::Error, fmt, process::ExitCode};

/// How a run ended. The numbers are an interface: they never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `doctor` and `run-check`: all is well.
    Ok,
    /// Something failed that no other code describes.
    Failed,
    /// The command line or a configuration is wrong.
    Usage,
    /// The endpoint could not be reached: no socket, refused, no answer in time.
    Unreachable,
    /// The guest answered, and refused: unknown service, unsupported request.
    Refused,
    /// The operating system forbids it: root or a capability is missing.
    NotPermitted,
    /// A file or stream that was read does not hold what it should.
    BadInput,
    /// The address or socket is taken by another process.
    Busy,
    /// `run-check`: the sandbox answered one of the four calls wrongly.
    CheckFailed,
    /// `doctor`: the broken hop, by its number (1-based in the order of the walk); the code is 20 plus that.
    BrokenHop(u8),
}

impl Exit {
    /// First code that `doctor` uses for a broken hop, less one.
    pub const HOP_BASE: u8 = 20;

    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Refused => 4,
            Self::NotPermitted => 5,
            Self::BadInput => 6,
            Self::Busy => 7,
            Self::CheckFailed => 8,
            Self::BrokenHop(hop) => Self::HOP_BASE + hop,
        }
    }
}

impl Exit {
    /// What to do next, where the error itself does not say it.
    pub const fn next_step(self) -> Option<&'static str> {
        match self {
            Self::Unreachable => Some("`envdctl doctor` names the broken hop"),
            Self::Refused => Some("`envdctl status` shows the guest's services"),
            _ => None,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error of a command that knows which exit code it means.
pub trait Fatal: Error + Send + Sync + 'static {
    fn exit(&self) -> Exit;
}

/// What a command failed with: printed as one line, then the process ends with its code.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    pub const fn exit(&self) -> Exit {
        self.exit
    }
}

impl<E: Fatal> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { exit: error.exit(), error: Box::new(error) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self.error.as_ref()))
    }
}

/// An error and each of its sources, on one line; what a source says again is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open /x")]
    struct Outer(#[source] std::io::Error);

    impl Fatal for Outer {
        fn exit(&self) -> Exit {
            Exit::BadInput
        }
    }

    #[test]
    fn a_failure_prints_its_whole_chain_on_one_line() {
        let failure = Failure::from(Outer(std::io::Error::other("no such thing")));
        assert_eq!(failure.to_string(), "cannot open /x: no such thing");
        assert_eq!(failure.exit().code(), 6);
    }
}
