//! The command line of the relay.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use crate::{
    endpoint::{CID_ANY, EndpointError, Map, parse_cid},
    relay::Options,
};
use lexopt::{Arg, Parser, ValueExt};

use super::logging::Log;

pub(crate) const HELP: &str = "\
vsock-relay leads connections that arrive on vsock to envd.

Usage: vsock-relay --map LISTEN=TARGET [--map ...] [options]

  --map LISTEN=TARGET    for example vsock:any:49983=tcp:127.0.0.1:49983; LISTEN is vsock:, unix: or tcp:,
                         TARGET is tcp:, unix: or vsock:
  --peer-cid CID         the only CID served on vsock: a number, host (the default) or any
  --hold SECONDS         how long a new connection waits while the target takes none (default 10)
  --drain SECONDS        how long open connections may go on after SIGTERM (default 3)
  --max-connections N    connections at once; further ones wait (default 4096, less where descriptors are short)
  --status FILE          where the counters go (default none; in the guest /run/envd-init/relay.json)
  --cgroup NAME          move into this cgroup first (in the guest init.scope: the freezer spares it)
  --log WHERE            console (serial console and log ring), stderr, or auto (the default): the console where
                         /run/envd-init is there
  --help, --version

Exit codes: 0 ended by a signal, 1 failed, 2 wrong command line, 7 cannot listen on any address.
";

/// What the command line asks for.
pub(crate) enum Command {
    Print(String),
    Run(Run),
}

pub(crate) struct Run {
    pub(crate) options: Options,
    /// The cgroup to move into.
    pub(crate) cgroup: Option<String>,
    pub(crate) log: Log,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error(transparent)]
    Option(#[from] lexopt::Error),
    #[error("--map: {0}")]
    Map(#[from] EndpointError),
    #[error("--map {map}: a guest cannot use {end}; netns: and firecracker: belong to the host")]
    HostOnly { map: Box<Map>, end: String },
    #[error("--log {0:?} is neither auto nor console nor stderr")]
    Log(String),
    #[error("--cgroup {0:?} is not the plain name of a top-level cgroup")]
    Cgroup(String),
    #[error("--peer-cid {0:?} is neither a number nor host nor any")]
    PeerCid(String),
    #[error("--{option} {value:?} is not a number of seconds from 0 to 86400")]
    Seconds { option: &'static str, value: String },
    #[error("--max-connections must be at least 1")]
    MaxConnections,
    #[error("no --map LISTEN=TARGET is given")]
    NoMap,
}

pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, ArgsError> {
    let mut parser = Parser::from_iter(args);
    let mut options = Options::new(Vec::new());
    let mut cgroup = None;
    let mut log = Log::Auto;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("map") => options.maps.push(map(&parser.value()?.string()?)?),
            Arg::Long("peer-cid") => options.peer_cid = peer_cid(&parser.value()?.string()?)?,
            Arg::Long("hold") => options.hold = seconds("hold", &parser.value()?.string()?)?,
            Arg::Long("drain") => options.drain = seconds("drain", &parser.value()?.string()?)?,
            Arg::Long("max-connections") => options.max_connections = parser.value()?.parse()?,
            Arg::Long("status") => options.status = Some(PathBuf::from(parser.value()?)),
            Arg::Long("log") => log = log_of(&parser.value()?.string()?)?,
            Arg::Long("cgroup") => cgroup = Some(cgroup_name(parser.value()?.string()?)?),
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(HELP.to_owned())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Command::Print(format!("vsock-relay {}\n", env!("CARGO_PKG_VERSION"))));
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if options.maps.is_empty() {
        return Err(ArgsError::NoMap);
    }
    if options.max_connections == 0 {
        return Err(ArgsError::MaxConnections);
    }
    Ok(Command::Run(Run { options, cgroup, log }))
}

fn map(text: &str) -> Result<Map, ArgsError> {
    use crate::endpoint::Endpoint::{Firecracker, NetnsTcp};
    let map: Map = text.parse()?;
    let host_only =
        [&map.listen, &map.target].into_iter().find(|end| matches!(end, NetnsTcp(..) | Firecracker { .. }));
    match host_only.map(ToString::to_string) {
        Some(end) => Err(ArgsError::HostOnly { map: Box::new(map), end }),
        None => Ok(map),
    }
}

fn log_of(text: &str) -> Result<Log, ArgsError> {
    match text {
        "auto" => Ok(Log::Auto),
        "console" => Ok(Log::Console),
        "stderr" => Ok(Log::Stderr),
        other => Err(ArgsError::Log(other.to_owned())),
    }
}

/// A top-level cgroup: one plain name.
fn cgroup_name(name: String) -> Result<String, ArgsError> {
    let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    if plain { Ok(name) } else { Err(ArgsError::Cgroup(name)) }
}

fn peer_cid(text: &str) -> Result<Option<u32>, ArgsError> {
    let cid = parse_cid(text).ok_or_else(|| ArgsError::PeerCid(text.to_owned()))?;
    Ok((cid != CID_ANY).then_some(cid))
}

fn seconds(option: &'static str, value: &str) -> Result<Duration, ArgsError> {
    let seconds = value.parse::<f64>().ok().filter(|seconds| (0.0..=86400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| ArgsError::Seconds { option, value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Result<Run, ArgsError> {
        let args = std::iter::once("vsock-relay").chain(args.iter().copied()).map(OsString::from);
        match parse(args)? {
            Command::Run(run) => Ok(run),
            Command::Print(_) => panic!("asked for help"),
        }
    }

    #[test]
    fn the_line_of_the_guest_is_understood() {
        let run =
            run(&["--map", "vsock:any:49983=tcp:127.0.0.1:49983", "--cgroup", "init.scope", "--hold", "2.5"]);
        let run = run.unwrap();
        assert_eq!(run.options.peer_cid, Some(2));
        assert_eq!(run.options.hold, Duration::from_millis(2500));
        assert_eq!(run.cgroup.as_deref(), Some("init.scope"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let map = ["--map", "unix:/a=unix:/b"];
        for wrong in [
            &["--hold", "never"][..],
            &["--hold", "-1"],
            &["--hold", "NaN"],
            &["--peer-cid", "me"],
            &["--max-connections", "0"],
            &["--map", "unix:/a=netns:x/tcp:1.2.3.4:5"],
            &["--nonsense"],
            &["stray"],
        ] {
            assert!(run(&[&map[..], wrong].concat()).is_err(), "{wrong:?} was taken");
        }
        assert!(matches!(run(&[]), Err(ArgsError::NoMap)));
    }
}
