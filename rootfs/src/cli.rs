//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{elf::Machine, manifest::Mode};

#[derive(Debug, Parser)]
#[command(
    name = "rootfs",
    version,
    about = "Builds, injects, verifies, inspects and reverts rootfs.ext4 images: no root, no mounting, bit for bit",
    after_help = "Exit codes are listed in docs/images.md."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an image from a directory or a tar, without our payload
    Build(Build),
    /// Put the payload into an ext4 image
    Inject(Inject),
    /// Build or inject, whatever BASE is: what `make rootfs` calls
    Bake(Bake),
    /// Take the payload out of an image again
    Revert(Revert),
    /// Check that an image is fit to boot
    Verify(Verify),
    /// Say what is in an image
    Inspect(Inspect),
    /// Say what changed from one image to another; ends with 21 when they differ
    Diff(Diff),
    /// Make the tar to ADD in a template's Dockerfile
    Payload(Payload),
}

#[derive(Debug, Args)]
pub struct GeometryArgs {
    /// Size of the image in MiB; computed with head-room when not given. An ext4 image is enlarged to it
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(8..=1 << 24))]
    pub size: Option<u64>,
    /// Label of the filesystem
    #[arg(long, default_value = "rootfs")]
    pub label: String,
    /// UUID of the filesystem, and seed of its hashes; made from the contents when not given
    #[arg(long, value_parser = uuid)]
    pub uuid: Option<[u8; 16]>,
}

#[derive(Debug, Args)]
pub struct Build {
    /// A directory, a tar (also .gz, .xz, .zst), or - for a tar on stdin
    pub source: PathBuf,
    /// The image to write
    #[arg(long, short)]
    pub out: PathBuf,
    #[command(flatten)]
    pub geometry: GeometryArgs,
}

#[derive(Debug, Args)]
pub struct PayloadArgs {
    /// Folder of the guest's programs: init, envd-wrapper, vsock-relay
    #[arg(long, value_name = "DIR")]
    pub guest: PathBuf,
    /// The envd to bake in; without it the image's own is kept
    #[arg(long)]
    pub envd: Option<PathBuf>,
    /// An envd that goes into an image that has none
    #[arg(long, value_name = "PATH")]
    pub stand_in: Option<PathBuf>,
    /// native: our PID 1; keep: the image's own init stays
    #[arg(long, default_value = "native")]
    pub init: Mode,
    /// Require this machine: amd64 or arm64
    #[arg(long, value_parser = machine)]
    pub arch: Option<Machine>,
    /// Becomes /etc/envd-init/config.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A folder whose *.toml become the image owner's services
    #[arg(long, value_name = "DIR")]
    pub services: Option<PathBuf>,
    /// Go on although enabled units of the image will no longer start
    #[arg(long)]
    pub accept_lost_units: bool,
}

#[derive(Debug, Args)]
pub struct Inject {
    /// The ext4 image to start from; it stays as it is
    pub base: PathBuf,
    /// The image to write
    #[arg(long, short)]
    pub out: PathBuf,
    /// Enlarge the image to this many MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(8..=1 << 24))]
    pub size: Option<u64>,
    #[command(flatten)]
    pub payload: PayloadArgs,
}

#[derive(Debug, Args)]
pub struct Bake {
    /// A directory, a tar, an ext4 image, or - for a tar on stdin; a Debian base when not given
    #[arg(long)]
    pub base: Option<PathBuf>,
    /// The image to write
    #[arg(long, short, default_value = "rootfs.ext4")]
    pub out: PathBuf,
    #[command(flatten)]
    pub payload: PayloadArgs,
    #[command(flatten)]
    pub geometry: GeometryArgs,
}

#[derive(Debug, Args)]
pub struct Revert {
    /// The injected image; it stays as it is
    pub image: PathBuf,
    /// The image to write
    #[arg(long, short)]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct Verify {
    pub image: PathBuf,
    /// MiB that must be free
    #[arg(long, value_name = "MIB")]
    pub min_free: Option<u64>,
    /// Inodes that must be free
    #[arg(long, value_name = "COUNT")]
    pub min_inodes: Option<u32>,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Inspect {
    pub image: PathBuf,
    /// Say what becomes of each enabled unit under our PID 1
    #[arg(long)]
    pub units: bool,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Diff {
    pub a: PathBuf,
    pub b: PathBuf,
    /// Times of change count too
    #[arg(long)]
    pub times: bool,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Payload {
    /// Folder of the guest's programs: init, envd-wrapper, vsock-relay
    #[arg(long, value_name = "DIR")]
    pub guest: PathBuf,
    /// The tar to write
    #[arg(long, short)]
    pub out: PathBuf,
    /// The machine: amd64 or arm64; that of the programs when not given
    #[arg(long, value_parser = machine)]
    pub arch: Option<Machine>,
}

/// What `make` hands to `bake` by environment, so that values with spaces arrive whole.
const BAKE_ENVIRONMENT: [(&str, &str); 9] = [
    ("--base", "BASE"),
    ("--out", "OUT"),
    ("--envd", "ENVD"),
    ("--size", "SIZE"),
    ("--init", "INIT"),
    ("--arch", "ARCH"),
    ("--stand-in", "STAND_IN"),
    ("--config", "CONFIG"),
    ("--services", "SERVICES"),
];

/// The arguments, with those of `bake` that only the environment has.
pub fn arguments() -> Vec<OsString> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_none_or(|command| command != "bake") {
        return args;
    }
    for (flag, name) in BAKE_ENVIRONMENT {
        let given = args.iter().any(|arg| {
            let arg = arg.to_string_lossy();
            arg == flag || arg.starts_with(&format!("{flag}=")) || (flag == "--out" && arg == "-o")
        });
        if let Some(value) = std::env::var_os(name).filter(|value| !given && !value.is_empty()) {
            args.extend([flag.into(), value]);
        }
    }
    if std::env::var_os("ACCEPT_LOST_UNITS").is_some_and(|value| value == "1") {
        args.push("--accept-lost-units".into());
    }
    args
}

fn machine(word: &str) -> Result<Machine, String> {
    Machine::from_word(word).ok_or_else(|| "amd64 and arm64 are known".into())
}

fn uuid(text: &str) -> Result<[u8; 16], String> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let bad = || "a UUID has 32 hexadecimal digits".to_owned();
    if digits.len() != 32 {
        return Err(bad());
    }
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
    }
    Ok(uuid)
}
