//! What one run measures, and where it finds things.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The parts that `ONLY=` names.
pub(crate) const PARTS: [&str; 7] = ["boot", "memory", "idle", "relay", "bridge", "supervise", "images"];

/// One run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Root of the repository.
    pub(crate) root: PathBuf,
    /// Empty: all parts.
    only: Vec<String>,
}

impl Plan {
    /// `ONLY=relay,boot` picks parts.
    pub(crate) fn from_environment(root: PathBuf) -> Result<Self> {
        let only: Vec<String> = std::env::var("ONLY")
            .unwrap_or_default()
            .split([',', ' '])
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        if let Some(unknown) = only.iter().find(|part| !PARTS.contains(&part.as_str())) {
            bail!("ONLY={unknown}: no such part; it is one of {}", PARTS.join(", "));
        }
        Ok(Self { root, only })
    }

    pub(crate) fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == part)
    }

    /// A guest program as `make` builds it.
    pub(crate) fn guest_program(&self, name: &str) -> PathBuf {
        self.root.join("target/x86_64-unknown-linux-musl/release").join(name)
    }

    /// A host program as `make` builds it.
    pub(crate) fn host_program(&self, name: &str) -> PathBuf {
        self.root.join("target/host").join(name)
    }

    /// Progress, on standard error.
    #[expect(clippy::unused_self, reason = "progress belongs to the run")]
    pub(crate) fn say(&self, what: &str) {
        eprintln!("bench: {what}");
    }
}
