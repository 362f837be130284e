//! `envdctl`, the operator's tool on the host: one module for each command. See `docs/envdctl.md`.

pub mod boot;
pub mod bridge;
pub mod cli;
pub mod client;
pub mod console;
pub mod dial;
pub mod doctor;
pub mod exit;
pub mod guest_args;
pub mod host;
pub mod logs;
pub mod manual;
pub mod netns;
pub mod run_check;
pub mod service;
pub mod status;
pub mod text;
