//! `envdctl run-check`: proves a sandbox with the four calls of an SDK, without one – create, echo, python, file.
//!
//! The commands carry random tokens, so that no canned answer passes.

pub mod api;

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use vsock_relay::endpoint::{Endpoint, EndpointError};

use crate::{
    exit::{self, Exit, Failure, Fatal},
    guest_args::parse_guest,
    text::{self, ColorChoice, Paint, duration, sanitise},
};
use api::{Api, ApiError, Ran};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  envdctl run-check                                        through the bridge, as an SDK would
  envdctl run-check --via netns:ns-72/tcp:169.254.0.21:49983
  envdctl run-check --fc-socket /path/v.sock               past the network, over vsock
  envdctl run-check --user user --json

Exit code: 0 when all four pass, 3 when envd is not reached, 8 when a call is answered wrongly.")]
pub struct RunCheckArgs {
    /// Where envd is reached: any endpoint that a route of the bridge can be
    #[arg(value_name = "ENDPOINT", default_value = "tcp:127.0.0.1:49983")]
    endpoint: String,
    /// The same as ENDPOINT
    #[arg(long, value_name = "ENDPOINT", visible_alias = "route", conflicts_with = "endpoint")]
    via: Option<String>,
    /// The VM's vsock socket on this host; the same as firecracker:PATH:49983
    #[arg(long, value_name = "PATH", conflicts_with_all = ["endpoint", "via"])]
    fc_socket: Option<PathBuf>,
    /// Run the calls as this user of the sandbox; default: envd's own default
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Seconds that a call may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Colour the results
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

/// Why the check cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("run-check: {0}")]
    Endpoint(#[from] EndpointError),
    #[error("run-check: cannot start its event loop")]
    Runtime(#[source] std::io::Error),
}

impl Fatal for CheckError {
    fn exit(&self) -> Exit {
        match self {
            Self::Endpoint(_) => Exit::Usage,
            Self::Runtime(_) => Exit::Failed,
        }
    }
}

/// Why a call counts as failed.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("{what}: expected {expected:?}, got {got:?}")]
    Wrong { what: &'static str, expected: String, got: String },
}

/// One call and how it went.
#[derive(Debug, Serialize)]
struct Call {
    name: &'static str,
    ok: bool,
    seconds: f64,
    detail: String,
    #[serde(skip)]
    unreachable: bool,
}

/// Makes the four calls.
pub fn run(args: &RunCheckArgs) -> Result<Exit, Failure> {
    let api = Api {
        endpoint: endpoint(args).map_err(CheckError::from)?,
        user: args.user.clone(),
        bound: Duration::from_secs(args.timeout.max(1)),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CheckError::Runtime)?;
    let calls = runtime.block_on(check(&api));
    text::print(&if args.json {
        as_json(&api.endpoint, &calls)
    } else {
        render(&api.endpoint, &calls, Paint::new(args.color))
    });
    Ok(exit_of(&calls))
}

fn endpoint(args: &RunCheckArgs) -> Result<Endpoint, EndpointError> {
    if let Some(path) = &args.fc_socket {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        return Ok(Endpoint::Firecracker { path, port: u32::from(envd_api::PORT) });
    }
    parse_guest(args.via.as_ref().unwrap_or(&args.endpoint), u32::from(envd_api::PORT))
}

async fn check(api: &Api) -> Vec<Call> {
    let token = format!("{:016x}", RandomState::new().build_hasher().finish());
    let mut calls = vec![timed("create", create(api)).await];
    // Where envd is not reached at all, three more failures would only repeat it.
    if !calls[0].unreachable {
        calls.push(timed("echo", echo(api, &token)).await);
        calls.push(timed("python", python(api, &token)).await);
        calls.push(timed("file", file(api, &token)).await);
    }
    calls
}

async fn timed(name: &'static str, call: impl Future<Output = Result<String, CallError>>) -> Call {
    let begun = Instant::now();
    let result = call.await;
    let seconds = begun.elapsed().as_secs_f64();
    let unreachable = matches!(&result, Err(CallError::Api(ApiError::Dial(_))));
    match result {
        Ok(detail) => Call { name, ok: true, seconds, detail, unreachable },
        Err(error) => Call { name, ok: false, seconds, detail: exit::chain(&error), unreachable },
    }
}

/// In debug mode an SDK's create makes no call; whether the sandbox runs it asks by `/health`.
async fn create(api: &Api) -> Result<String, CallError> {
    api.health().await?;
    Ok("GET /health answers 204".into())
}

/// Both outputs and the status of a command come back.
async fn echo(api: &Api, token: &str) -> Result<String, CallError> {
    let ran = api.run(&format!("echo Hello {token}; echo {token} >&2; exit 3")).await?;
    expect("stdout", &format!("Hello {token}\n"), &ran.stdout)?;
    expect("stderr", &format!("{token}\n"), &ran.stderr)?;
    expect("exit status", "3", ran.end.exit_code.to_string().as_bytes())?;
    Ok("echo Hello gives Hello, stderr and status 3 come back".into())
}

async fn python(api: &Api, token: &str) -> Result<String, CallError> {
    let number = u64::from_str_radix(&token[..8], 16).unwrap_or(1);
    let Ran { stdout, stderr, .. } = api.run(&format!("python3 -c 'print({number}+1)'")).await?;
    let got = if stdout.is_empty() { stderr } else { stdout };
    expect("python3", &format!("{}\n", number + 1), &got)?;
    Ok(format!("python3 adds {number} and 1"))
}

/// A file is written, read back, and removed again.
async fn file(api: &Api, token: &str) -> Result<String, CallError> {
    let path = format!("/tmp/envdctl-run-check-{token}");
    let content = format!("{token} ü\n").repeat(50);
    api.write(&path, content.as_bytes()).await?;
    let back = api.read(&path).await?;
    let removed = api.run(&format!("rm {path}")).await;
    expect("file", &content, &back)?;
    removed?;
    Ok(format!("{} bytes written and read back", content.len()))
}

fn expect(what: &'static str, expected: &str, got: &[u8]) -> Result<(), CallError> {
    if got == expected.as_bytes() {
        return Ok(());
    }
    let short = |text: &str| text.chars().take(80).collect();
    Err(CallError::Wrong { what, expected: short(expected), got: short(&String::from_utf8_lossy(got)) })
}

fn exit_of(calls: &[Call]) -> Exit {
    match calls.iter().find(|call| !call.ok) {
        None => Exit::Ok,
        Some(call) if call.unreachable => Exit::Unreachable,
        Some(_) => Exit::CheckFailed,
    }
}

fn render(endpoint: &Endpoint, calls: &[Call], paint: Paint) -> String {
    let mut out = String::new();
    for call in calls {
        let state = if call.ok { paint.green("ok    ") } else { paint.red("FAILED") };
        let took = duration(Duration::from_secs_f64(call.seconds));
        out.push_str(&(format!("{:<7} {state}  {took:>9}  {}", call.name, sanitise(&call.detail)) + "\n"));
    }
    let passed = calls.iter().filter(|call| call.ok).count();
    let failed = calls.len() - passed;
    out.push_str(&(format!("{passed} passed, {failed} failed over {endpoint}") + "\n"));
    if failed > 0 {
        out.push_str("to find the broken hop: envdctl doctor\n");
    }
    out
}

fn as_json(endpoint: &Endpoint, calls: &[Call]) -> String {
    let passed = calls.iter().filter(|call| call.ok).count();
    text::json(&serde_json::json!({
        "version": 1,
        "endpoint": endpoint.to_string(),
        "passed": passed,
        "failed": calls.len() - passed,
        "calls": calls,
    }))
}
