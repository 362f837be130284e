//! The manifest inside an image: all that is needed to go back.

use serde::{Deserialize, Serialize};

use crate::{elf::Machine, ext4::Time};

/// Where everything of ours lives in an image.
pub const HOME: &str = "/usr/lib/envd-init";
/// The manifest's path in an image.
pub const PATH: &str = "/usr/lib/envd-init/manifest.json";
/// The image's own files that were replaced, under their old paths.
pub const SAVED: &str = "/usr/lib/envd-init/saved";
/// Version of this file's form. A reader refuses one that is newer.
pub const FORMAT: u32 = 1;

/// What runs as PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Our PID 1.
    Native,
    /// The image's own init; ours starts as its service.
    Keep,
}

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Keep => "keep",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// Version of envd-init that was put in.
    pub version: String,
    pub mode: Mode,
    pub arch: Machine,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd: Option<Envd>,
    pub installed: Vec<Installed>,
    pub saved: Vec<Saved>,
    /// Directories that were made, parents first.
    pub directories: Vec<String>,
    /// Directories of the image whose entries were changed, with their times before.
    pub touched: Vec<Touched>,
}

/// Which envd the image runs, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envd {
    pub path: String,
    pub sha256: String,
    pub origin: EnvdOrigin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnvdOrigin {
    /// It was in the image.
    Image,
    /// It was given when baking.
    Given,
    /// The image had none, and a stand-in for tests was put in.
    StandIn,
}

/// A file or link of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    pub path: String,
    #[serde(flatten)]
    pub what: InstalledKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum InstalledKind {
    File { sha256: String, size: u64, mode: u16 },
    Link { target: String },
}

/// A name of the image's own that was moved away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub path: String,
    pub at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    pub path: String,
    pub atime: Time,
    pub ctime: Time,
    pub mtime: Time,
}
