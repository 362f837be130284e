//! `envdctl`, the operator's tool on the host: one module for each command. See `docs/envdctl.md`.

pub mod cli;
pub mod exit;
