//! Which guest a command means: `--guest ENDPOINT`, `--fc-socket PATH`, or the only one there is.

use std::path::{Path, PathBuf};

use clap::Args;
use guest::control;
use vsock_relay::endpoint::{Endpoint, EndpointError};

use crate::{
    exit::{Exit, Fatal},
    host::vmm,
};

/// The options that name a guest; the same for every command that asks one.
#[derive(Debug, Clone, Default, Args)]
pub struct GuestArgs {
    /// Where the guest answers: firecracker:PATH[:49984], vsock:CID[:49984] or unix:PATH.
    /// Default: inside a guest its own socket, on a host the only VM there is
    #[arg(
        short,
        long,
        value_name = "ENDPOINT",
        env = "ENVDCTL_GUEST",
        global = false,
        visible_alias = "endpoint"
    )]
    pub guest: Option<String>,
    /// The VM's vsock socket on this host; the same as --guest firecracker:PATH
    #[arg(long, value_name = "PATH", conflicts_with = "guest")]
    pub fc_socket: Option<PathBuf>,
}

/// Why no guest is meant.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("--guest: {0}")]
    Endpoint(#[from] EndpointError),
    #[error("--fc-socket: cannot read the current directory")]
    Directory(#[source] std::io::Error),
    #[error(
        "no guest found: there is no {} here and no Firecracker with a vsock device on this host; name one with --guest firecracker:PATH",
        control::SOCKET
    )]
    None,
    #[error("{} VMs run on this host, name one: {}", found.len(), list(found))]
    Many { found: Vec<PathBuf> },
}

impl Fatal for GuestError {
    fn exit(&self) -> Exit {
        match self {
            Self::None => Exit::Unreachable,
            _ => Exit::Usage,
        }
    }
}

fn list(sockets: &[PathBuf]) -> String {
    let names: Vec<String> =
        sockets.iter().take(5).map(|path| format!("--fc-socket {}", path.display())).collect();
    names.join(", ") + if sockets.len() > 5 { ", …" } else { "" }
}

impl GuestArgs {
    /// The endpoint of the guest's control protocol.
    pub fn endpoint(&self) -> Result<Endpoint, GuestError> {
        if let Some(text) = &self.guest {
            return Ok(parse_guest(text, control::VSOCK_PORT)?);
        }
        if let Some(path) = &self.fc_socket {
            return hybrid(path);
        }
        if Path::new(control::SOCKET).exists() {
            return Ok(Endpoint::Unix(control::SOCKET.into()));
        }
        only_one(vmm::monitors().into_iter().flat_map(|monitor| monitor.sockets).collect())
    }
}

fn hybrid(path: &Path) -> Result<Endpoint, GuestError> {
    let path = std::path::absolute(path).map_err(GuestError::Directory)?;
    Ok(Endpoint::Firecracker { path, port: control::VSOCK_PORT })
}

fn only_one(mut found: Vec<PathBuf>) -> Result<Endpoint, GuestError> {
    match found.len() {
        0 => Err(GuestError::None),
        1 => hybrid(&found.remove(0)),
        _ => Err(GuestError::Many { found }),
    }
}

/// An endpoint whose vsock port may be left out.
pub fn parse_guest(text: &str, port: u32) -> Result<Endpoint, EndpointError> {
    let with_port = || format!("{text}:{port}").parse::<Endpoint>();
    let hybrid_without_port = text.starts_with("firecracker:") && !ends_in_port(text);
    let cid_alone = text.strip_prefix("vsock:").is_some_and(|rest| !rest.contains(':'));
    let endpoint = if hybrid_without_port || cid_alone { with_port() } else { text.parse() }?;
    endpoint.connectable()
}

fn ends_in_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_the_control_protocol_may_be_left_out() {
        for (given, meant) in [
            ("firecracker:/a/v.sock", "firecracker:/a/v.sock:49984"),
            ("firecracker:/a/v.sock:7", "firecracker:/a/v.sock:7"),
            ("vsock:3", "vsock:3:49984"),
            ("vsock:3:7", "vsock:3:7"),
            ("unix:/run/x", "unix:/run/x"),
        ] {
            assert_eq!(parse_guest(given, 49984).unwrap().to_string(), meant);
        }
        assert!(parse_guest("nonsense", 1).is_err());
    }

    #[test]
    fn several_guests_are_named_rather_than_guessed() {
        let error = only_one(vec!["/a".into(), "/b".into()]).unwrap_err();
        assert!(error.to_string().contains("--fc-socket /b"), "{error}");
    }
}
