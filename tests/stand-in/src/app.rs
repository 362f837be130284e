//! The server: its state, its routes, and the calls that are about the sandbox as a whole.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use envd_api::init::InitRequest;
use envd_api::{filesystem as fs_api, process as process_api};
use serde_json::json;
use tokio::net::TcpListener;

use crate::error::Plain;
use crate::registry::Registry;
use crate::switches::Switches;
use crate::{cgroup, faults, files, filesystem, process, upgrade};

/// Larger than any file that a test sends.
const BODY_LIMIT: usize = 512 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) registry: Registry,
    settings: Arc<Mutex<InitRequest>>,
    switches: Arc<Switches>,
    started: Instant,
    /// `/init` has come.
    pub(crate) initialized: Arc<AtomicBool>,
    /// It goes on in the place of one that was upgraded.
    pub(crate) resumed: bool,
}

impl App {
    /// What `/init` said last.
    pub(crate) fn settings(&self) -> MutexGuard<'_, InitRequest> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who runs what names no user.
    pub(crate) fn default_user(&self) -> String {
        self.settings().default_user.clone().unwrap_or_else(|| "root".to_owned())
    }

    /// The user of a request: named in its header, or the default one.
    pub(crate) fn user_of(&self, headers: &HeaderMap) -> String {
        let named = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        named
            .and_then(envd_api::authorized_user)
            .filter(|user| !user.is_empty())
            .unwrap_or_else(|| self.default_user())
    }
}

pub(crate) async fn serve(port: u16, switches: Switches, resumed: bool) -> Result<()> {
    let switches = switches.for_this_start();
    cgroup::prepare();
    if resumed {
        cgroup::take_over();
    }
    faults::before_listening(&switches).await?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .with_context(|| format!("binding port {port}"))?;
    let app = App {
        registry: Registry::default(),
        settings: Arc::default(),
        switches: Arc::new(switches),
        started: Instant::now(),
        initialized: Arc::default(),
        resumed,
    };
    if resumed {
        tokio::spawn(upgrade::thaw_at_last(app.clone()));
    }
    axum::serve(listener, routes(app)).await.context("serving")
}

fn routes(app: App) -> Router {
    Router::new()
        .route(envd_api::HEALTH, get(health))
        .route(envd_api::INIT, post(init))
        .route("/metrics", get(metrics))
        .route("/envs", get(envs))
        .route("/freeze", post(freeze))
        .route("/unfreeze", post(unfreeze))
        .route("/upgrade", post(upgrade::upgrade))
        .route(envd_api::FILES, get(files::read).post(files::write))
        .route(process_api::START, post(process::start))
        .route(process_api::CONNECT, post(process::connect))
        .route(process_api::LIST, post(process::list))
        .route(process_api::SEND_INPUT, post(process::send_input))
        .route(process_api::SEND_SIGNAL, post(process::send_signal))
        .route(process_api::CLOSE_STDIN, post(process::close_stdin))
        .route(process_api::UPDATE, post(process::update))
        .route(fs_api::LIST_DIR, post(filesystem::list_dir))
        .route(fs_api::STAT, post(filesystem::stat))
        .route(fs_api::MAKE_DIR, post(filesystem::make_dir))
        .route(fs_api::MOVE, post(filesystem::move_entry))
        .route(fs_api::REMOVE, post(filesystem::remove))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn_with_state(app.clone(), upgrade::gate))
        .layer(from_fn_with_state(app.clone(), crash_on_request))
        .with_state(app)
}

async fn crash_on_request(State(app): State<App>, request: Request, next: Next) -> Response {
    if !app.switches.crash_on.is_empty() && request.uri().path() == app.switches.crash_on {
        std::process::abort();
    }
    next.run(request).await
}

async fn health(State(app): State<App>) -> Response {
    let switches = &app.switches;
    let late =
        switches.hang_health_after > 0.0 && app.started.elapsed().as_secs_f64() > switches.hang_health_after;
    if switches.hang_health || late {
        pending::<()>().await;
    }
    tokio::time::sleep(Duration::from_secs_f64(switches.slow_health)).await;
    let status = StatusCode::from_u16(switches.health_status).unwrap_or(StatusCode::NO_CONTENT);
    (status, [(header::CACHE_CONTROL, "no-store")]).into_response()
}

/// An empty body is taken, as the real one does.
async fn init(State(app): State<App>, body: Bytes) -> Result<Response, Plain> {
    let request: InitRequest = if body.is_empty() {
        InitRequest::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| Plain::new(StatusCode::BAD_REQUEST, error.to_string()))?
    };
    cgroup::thaw();
    let mut settings = app.settings();
    if let Some(env) = request.env_vars {
        settings.env_vars.get_or_insert_default().extend(env);
    }
    settings.default_user = request.default_user.or_else(|| settings.default_user.take());
    settings.default_workdir = request.default_workdir.or_else(|| settings.default_workdir.take());
    app.initialized.store(true, Ordering::Relaxed);
    Ok((StatusCode::NO_CONTENT, [("x-envd-version", "0.0.0-stand-in")]).into_response())
}

async fn metrics() -> Json<serde_json::Value> {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = memory.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let (total, available) = (field("MemTotal:"), field("MemAvailable:"));
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Json(json!({ "cpu_count": processors, "mem_total": total, "mem_used": total.saturating_sub(available) }))
}

async fn envs(State(app): State<App>) -> Json<BTreeMap<String, String>> {
    Json(app.settings().env_vars.clone().unwrap_or_default())
}

async fn freeze(Query(query): Query<BTreeMap<String, String>>) -> StatusCode {
    cgroup::freeze(query.get("mode").map(String::as_str) == Some("hierarchy"));
    StatusCode::NO_CONTENT
}

async fn unfreeze() -> StatusCode {
    cgroup::thaw();
    StatusCode::NO_CONTENT
}
