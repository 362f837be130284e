//! What init, envd-wrapper and vsock-relay share.
//!
//! Everything here is synchronous, holds no threads of its own and reads no clock behind its caller's back:
//! state machines take events and a `now` and return actions.

pub mod accounts;
pub mod bucket;
pub mod cgroup;
pub mod clock;
pub mod cmdline;
pub mod confdir;
pub mod config;
pub mod console;
pub mod control;
#[cfg(test)]
mod documented;
pub mod elf;
pub mod files;
pub mod glob;
pub mod json;
pub mod launch;
pub mod lenient;
pub mod lines;
pub mod log;
pub mod mirror;
pub mod notify;
pub mod reactor;
pub mod record;
pub mod rest;
pub mod ring;
pub mod service;
pub mod spawn;
pub mod specifier;
pub mod supervise;
pub mod sys;
pub mod sysusers;
pub mod tmpfiles;
pub mod toml;
pub mod trust;
pub mod words;
