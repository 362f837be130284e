//! What is in an image: for people as text, for programs as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    ext4::{self, Image},
    goversion, hash,
    layout::Layout,
    manifest::Manifest,
    outcome::ImageFacts,
    revert,
};

#[derive(Debug, Serialize)]
pub struct Facts {
    pub image: ImageFacts,
    pub features: Vec<String>,
    pub needs_recovery: bool,
    pub used_inodes: u32,
    pub layout: Layout,
    pub envd: Option<EnvdFacts>,
    /// What of ours is in it.
    pub payload: Option<Manifest>,
    /// What the guest's kernel must have built in (or as modules of its initramfs).
    pub kernel: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct EnvdFacts {
    pub path: String,
    pub sha256: String,
    pub bytes: u64,
    /// What the Go toolchain wrote into it, if it is a Go program.
    #[serde(flatten)]
    pub go: Option<goversion::Build>,
}

/// What our PID 1 and envd ask of a kernel; what is marked optional is passed over where it is absent.
const KERNEL: [&str; 9] = [
    "EXT4_FS",
    "DEVTMPFS",
    "CGROUPS (v2)",
    "VIRTIO_BLK",
    "VIRTIO_NET",
    "VIRTIO_VSOCKETS (for the way over vsock)",
    "SERIAL_8250_CONSOLE (for the console)",
    "FUSE_FS (optional)",
    "PTP_1588_CLOCK_KVM (optional)",
];

pub fn facts(image: &Image) -> Result<Facts, revert::Error> {
    let superblock = &image.superblock;
    let layout = Layout::of(image)?;
    Ok(Facts {
        image: ImageFacts::new(superblock),
        features: superblock.features(),
        needs_recovery: superblock.needs_recovery(),
        used_inodes: superblock.inodes - superblock.free_inodes,
        envd: layout.envd.as_ref().map(|found| envd(image, &found.path)).transpose()?,
        layout,
        payload: revert::manifest(image)?,
        kernel: KERNEL.to_vec(),
    })
}

fn envd(image: &Image, path: &str) -> Result<EnvdFacts, ext4::Error> {
    let inode = image.locate(path.as_bytes())?.inode;
    let bytes = image.contents(&inode)?;
    let go = goversion::read(&bytes);
    Ok(EnvdFacts { path: path.to_owned(), sha256: hash::sha256(&bytes), bytes: inode.size, go })
}

pub fn text(facts: &Facts) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14}{value}");
    };
    let layout = &facts.layout;
    line("system", layout.os.clone().unwrap_or_else(|| "unknown".into()));
    line("machine", layout.machine.map_or("unknown", |machine| machine.name()).to_owned());
    line("init", layout.init.clone());
    line("/usr", if layout.merged_usr { "merged" } else { "not merged" }.to_owned());
    line("envd", facts.envd.as_ref().map_or_else(|| "none".into(), envd_text));
    line("envd-init", facts.payload.as_ref().map_or_else(|| "none".into(), payload_text));
    let image = &facts.image;
    let mib = |bytes: u64| bytes / (1 << 20);
    line("size", format!("{} MiB, {} MiB free", mib(image.bytes), mib(image.free_bytes)));
    line("inodes", format!("{} used, {} free", facts.used_inodes, image.free_inodes));
    line("filesystem", format!("label {:?}, UUID {}", image.label, image.uuid));
    line("features", facts.features.join(" "));
    if facts.needs_recovery {
        line("journal", "has to be replayed: the image was not unmounted".to_owned());
    }
    line("kernel needs", facts.kernel.join(", "));
    text
}

fn envd_text(envd: &EnvdFacts) -> String {
    let go = envd.go.as_ref().map(|go| format!(", {go}")).unwrap_or_default();
    format!("{} ({} KiB, sha256 {}…{go})", envd.path, envd.bytes / 1024, &envd.sha256[..12])
}

fn payload_text(manifest: &Manifest) -> String {
    let count = manifest.installed.len();
    format!(
        "{}, {} init, {count} files and links, {} of the image's own kept",
        manifest.version,
        manifest.mode.name(),
        manifest.saved.len()
    )
}
