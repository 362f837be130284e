//! The manifest beside an image: everything that went into it, with digests, so that a bake can be repeated and told apart.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{ext4::Superblock, inject::Outcome, layout::Layout, manifest::Manifest};

/// `rootfs.ext4.manifest.json`
#[derive(Debug, Serialize)]
pub struct Beside<'a> {
    pub format: u32,
    pub image: ImageFacts,
    pub base: Input,
    /// Version of the tools that wrote the filesystem: others may write other bytes.
    pub e2fsprogs: String,
    /// The time that went into the image.
    pub epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<&'a Layout>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<&'a Manifest>,
    pub warnings: &'a [String],
}

#[derive(Debug, Serialize)]
pub struct ImageFacts {
    pub bytes: u64,
    pub uuid: String,
    pub label: String,
    pub free_bytes: u64,
    pub free_inodes: u32,
}

/// What the image was made from.
#[derive(Debug, Clone, Serialize)]
pub struct Input {
    /// `ext4`, `tar` or `folder`.
    pub kind: &'static str,
    #[serde(flatten)]
    pub digest: Digest,
}

/// What tells one input from another.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Digest {
    /// Of a tar's bytes, or of all that a folder gives to the image.
    Sha256(String),
    /// Of an image: the SHA-256 of the list of SHA-256s of each MiB ([`crate::copy::copy`]).
    Sha256ByMib(String),
}

impl ImageFacts {
    pub fn new(superblock: &Superblock) -> Self {
        Self {
            bytes: superblock.size(),
            uuid: superblock.uuid_text(),
            label: superblock.label.clone(),
            free_bytes: superblock.available_blocks() * u64::from(superblock.block_size),
            free_inodes: superblock.free_inodes,
        }
    }
}

impl<'a> Beside<'a> {
    pub fn new(image: ImageFacts, base: Input, e2fsprogs: String, epoch: u64) -> Self {
        Self { format: 1, image, base, e2fsprogs, epoch, layout: None, payload: None, warnings: &[] }
    }

    #[must_use]
    pub fn with(mut self, outcome: &'a Outcome) -> Self {
        self.layout = Some(&outcome.layout);
        self.payload = Some(&outcome.manifest);
        self.warnings = &outcome.warnings;
        self
    }
}

/// Where the manifest of an image lies.
pub fn path(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".manifest.json");
    name.into()
}
