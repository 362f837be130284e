//! Builds, injects, verifies, inspects and reverts rootfs.ext4 images: without root, without mounting, bit for bit.
//!
//! e2fsprogs writes ([`tools`], [`script`]); a reader of our own ([`ext4`]) resolves every path before and reads everything back
//! after; `e2fsck` has the last word; and only then a temporary file becomes the output ([`workdir`]).

pub mod build;
pub mod cli;
pub mod commands;
pub mod copy;
pub mod diff;
pub mod diversions;
pub mod elf;
pub mod enlarge;
pub mod exit;
pub mod ext4;
pub mod format;
pub mod goversion;
pub mod hash;
pub mod inject;
pub mod inspect;
pub mod interrupt;
pub mod keep;
pub mod layout;
pub mod manifest;
pub mod outcome;
pub mod payload;
pub mod payload_tar;
pub mod plan;
pub mod progress;
pub mod revert;
pub mod script;
pub mod settings;
pub mod source;
pub mod tools;
pub mod tree;
pub mod units;
pub mod verify;
pub mod workdir;
