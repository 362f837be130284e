//! The live upgrade: the server executes a new program in its own place. Pid and children stay; unlike the real one it does not
//! take over the children's streams.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::cgroup;
use crate::error::Plain;

/// The only place that a program which was sent is written to.
const NEXT: &str = "/usr/bin/envd.next";
/// What the new program is told.
pub(crate) const FLAG: &str = "--resume-handover";
/// Until then the workload stays frozen, when no `/init` comes.
const THAW: Duration = Duration::from_secs(60);

/// `POST /upgrade`: the new program in the body, or none to execute itself once more.
pub(crate) async fn upgrade(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Plain {
    if !app.initialized.load(Ordering::Relaxed) {
        return Plain::new(StatusCode::CONFLICT, "envd not initialized");
    }
    if headers.get("x-envd-upgrade-bin").is_some_and(|path| path != NEXT) {
        return Plain::new(StatusCode::BAD_REQUEST, "unsupported upgrade target");
    }
    cgroup::freeze(false);
    let failed = execute(&body);
    cgroup::thaw();
    Plain::new(StatusCode::INTERNAL_SERVER_ERROR, failed.to_string())
}

/// Returns only when it failed.
fn execute(body: &[u8]) -> std::io::Error {
    let program = match if body.is_empty() { std::env::current_exe() } else { stage(body) } {
        Ok(program) => program,
        Err(error) => return error,
    };
    Command::new(&program).arg0(&program).args(std::env::args_os().skip(1)).arg(FLAG).exec()
}

fn stage(body: &[u8]) -> std::io::Result<PathBuf> {
    // Another inode: this program may be running from there.
    let _ = fs::remove_file(NEXT);
    fs::write(NEXT, body)?;
    fs::set_permissions(NEXT, fs::Permissions::from_mode(0o755))?;
    Ok(Path::new(NEXT).to_owned())
}

/// After an upgrade, what the workload still waits for.
pub(crate) async fn thaw_at_last(app: App) {
    tokio::time::sleep(THAW).await;
    if !app.initialized.load(Ordering::Relaxed) {
        cgroup::thaw();
    }
}

/// After an upgrade only these are let through until `/init` has come.
pub(crate) async fn gate(State(app): State<App>, request: Request, next: Next) -> Response {
    let open = [envd_api::HEALTH, envd_api::INIT].contains(&request.uri().path());
    if app.resumed && !open && !app.initialized.load(Ordering::Relaxed) {
        return Plain::new(StatusCode::UNAUTHORIZED, "envd not initialized").into_response();
    }
    next.run(request).await
}
