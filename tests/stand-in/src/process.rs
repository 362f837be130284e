//! `process.Process`: starts commands and streams what they do. A process outlives the request that started it.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use envd_api::envelope::{self, Decoder};
use envd_api::error::{Code, ConnectError};
use envd_api::process::{
    EndEvent, Input as InputMessage, ListResponse, Output, ProcessEvent, Pty, SelectRequest,
    SendInputRequest, SendSignalRequest, Signal as SignalMessage, StartRequest, StartResponse, UpdateRequest,
};
use envd_api::{CONNECT_JSON, KEEPALIVE_HEADER, TIMEOUT_HEADER};
use futures_util::stream;
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, sleep_until};

use crate::app::App;
use crate::error::Rpc;
use crate::registry::{EVENTS, Entry, Input};
use crate::{launch, users};

/// How long a stream may be silent before it says that it is alive, when the client asks for nothing else.
const KEEPALIVE: Duration = Duration::from_secs(90);
const CHUNK: usize = 32 * 1024;
/// Far enough to be never.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) async fn start(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    match start_process(&app, &headers, &body) {
        Ok((pid, events)) => follow(pid, events, &headers),
        Err(error) => failed_stream(error),
    }
}

pub(crate) async fn connect(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let found = message::<SelectRequest>(&body).and_then(|request| app.registry.find(&request.process));
    match found {
        Ok((pid, entry)) => follow(pid, entry.events.subscribe(), &headers),
        Err(error) => failed_stream(error),
    }
}

pub(crate) async fn list(State(app): State<App>) -> Json<ListResponse> {
    Json(ListResponse { processes: app.registry.list() })
}

pub(crate) async fn send_input(
    State(app): State<App>,
    Json(request): Json<SendInputRequest>,
) -> Result<Json<Value>, Rpc> {
    let (pid, entry) = app.registry.find(&request.process)?;
    let (InputMessage::Stdin(bytes) | InputMessage::Pty(bytes)) = request.input;
    let written = match entry.input.lock().await.as_mut() {
        None => return Err(Rpc::new(Code::FailedPrecondition, format!("process {pid} has no open stdin"))),
        Some(Input::Pipe(pipe)) => pipe.write_all(&bytes.0).await,
        Some(Input::Terminal(terminal)) => write_terminal(terminal, &bytes.0),
    };
    written.map_err(|error| Rpc::io(&format!("stdin of {pid}"), &error))?;
    Ok(Json(json!({})))
}

pub(crate) async fn send_signal(
    State(app): State<App>,
    Json(request): Json<SendSignalRequest>,
) -> Result<Json<Value>, Rpc> {
    let (pid, _) = app.registry.find(&request.process)?;
    let signal = match request.signal {
        SignalMessage::Kill => Signal::SIGKILL,
        SignalMessage::Term => Signal::SIGTERM,
        SignalMessage::Unspecified => return Err(Rpc::new(Code::InvalidArgument, "a signal must be named")),
    };
    kill(Pid::from_raw(pid as i32), signal).map_err(|error| Rpc::io(&pid.to_string(), &error.into()))?;
    Ok(Json(json!({})))
}

pub(crate) async fn close_stdin(
    State(app): State<App>,
    Json(request): Json<SelectRequest>,
) -> Result<Json<Value>, Rpc> {
    let (_, entry) = app.registry.find(&request.process)?;
    entry.input.lock().await.take();
    Ok(Json(json!({})))
}

pub(crate) async fn update(
    State(app): State<App>,
    Json(request): Json<UpdateRequest>,
) -> Result<Json<Value>, Rpc> {
    let (pid, entry) = app.registry.find(&request.process)?;
    if let (Some(Pty { size }), Some(Input::Terminal(terminal))) =
        (request.pty, entry.input.lock().await.as_ref())
    {
        let size = rustix::termios::Winsize {
            ws_row: size.rows as u16,
            ws_col: size.cols as u16,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal, size)
            .map_err(|error| Rpc::io(&format!("terminal of {pid}"), &error.into()))?;
    }
    Ok(Json(json!({})))
}

/// The one message of a stream's request.
fn message<T: DeserializeOwned>(body: &[u8]) -> Result<T, Rpc> {
    let invalid = |error: envelope::EnvelopeError| Rpc::new(Code::InvalidArgument, error.to_string());
    let mut decoder = Decoder::default();
    decoder.push(body);
    let frame = decoder.next_frame().map_err(invalid)?;
    frame
        .ok_or_else(|| Rpc::new(Code::InvalidArgument, "the request holds no message"))?
        .json()
        .map_err(invalid)
}

fn start_process(
    app: &App,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(u32, broadcast::Receiver<ProcessEvent>), Rpc> {
    let request: StartRequest = message(body)?;
    let user = app.user_of(headers);
    let (child, input, outputs) = spawn(app, &request, &user)?;
    let pid = child.id().unwrap_or_default();
    let (events, receiver) = broadcast::channel(EVENTS);
    let input = Arc::new(tokio::sync::Mutex::new(input));
    let entry = Entry { config: request.process, tag: request.tag, input, events: events.clone() };
    app.registry.insert(pid, entry);
    let registry = app.registry.clone();
    let kill_at = deadline(headers);
    tokio::spawn(async move {
        let end = run(child, outputs, &events, kill_at).await;
        registry.remove(pid);
        let _ = events.send(ProcessEvent::End(end));
    });
    Ok((pid, receiver))
}

/// What a process writes, and how each piece is to be told.
type Source = (Box<dyn AsyncRead + Send + Unpin>, fn(Vec<u8>) -> Output);

fn spawn(app: &App, request: &StartRequest, user: &str) -> Result<(Child, Option<Input>, Vec<Source>), Rpc> {
    let account = users::find(user).map_err(|error| Rpc::new(Code::Unauthenticated, format!("{error:#}")))?;
    let config = &request.process;
    let internal = |error: anyhow::Error| Rpc::new(Code::Internal, format!("{error:#}"));
    let mut command =
        launch::command(user, request.pty.is_some(), &config.cmd, &config.args).map_err(internal)?;
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", &account.dir).env("USER", user).env("LOGNAME", user);
    let settings = app.settings();
    command.envs(settings.env_vars.iter().flatten()).envs(&config.envs);
    let workdir = config.cwd.as_deref().or(settings.default_workdir.as_deref()).filter(|dir| !dir.is_empty());
    let directory = workdir.map_or(account.dir, |dir| users::resolve(dir, user));
    if !directory.is_dir() {
        return Err(Rpc::new(Code::InvalidArgument, format!("cwd '{}' does not exist", directory.display())));
    }
    command.current_dir(directory);
    let started = match request.pty {
        Some(pty) => spawn_in_terminal(command, pty),
        None => spawn_on_pipes(command, request.stdin.unwrap_or(true)),
    };
    started.map_err(|error| Rpc::io(&config.cmd, &error))
}

fn spawn_on_pipes(mut command: Command, stdin: bool) -> std::io::Result<(Child, Option<Input>, Vec<Source>)> {
    command
        .stdin(if stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut sources: Vec<Source> = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        sources.push((Box::new(stdout), |bytes| Output::Stdout(bytes.into())));
    }
    if let Some(stderr) = child.stderr.take() {
        sources.push((Box::new(stderr), |bytes| Output::Stderr(bytes.into())));
    }
    let input = child.stdin.take().map(Input::Pipe);
    Ok((child, input, sources))
}

fn spawn_in_terminal(mut command: Command, pty: Pty) -> std::io::Result<(Child, Option<Input>, Vec<Source>)> {
    let size =
        Winsize { ws_row: pty.size.rows as u16, ws_col: pty.size.cols as u16, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&size, None)?;
    command.env("TERM", "xterm-256color");
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    let child = command.spawn()?;
    drop(command); // it holds the terminal's other end open
    let reader = tokio::fs::File::from_std(master.try_clone()?.into());
    let source: Source = (Box::new(reader), |bytes| Output::Pty(bytes.into()));
    Ok((child, Some(Input::Terminal(master)), vec![source]))
}

fn write_terminal(terminal: &OwnedFd, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::File::from(terminal.try_clone()?).write_all(bytes)
}

/// Forwards what the process writes until it has ended and said all.
async fn run(
    mut child: Child,
    sources: Vec<Source>,
    events: &broadcast::Sender<ProcessEvent>,
    kill_at: Instant,
) -> EndEvent {
    let (pieces, mut queue) = mpsc::channel(64);
    for (source, kind) in sources {
        tokio::spawn(read_all(source, kind, pieces.clone()));
    }
    drop(pieces);
    let mut status = None;
    loop {
        tokio::select! {
            piece = queue.recv() => match piece {
                Some(output) => { let _ = events.send(ProcessEvent::Data(output)); }
                None => break,
            },
            ended = child.wait(), if status.is_none() => status = ended.ok(),
            () = sleep_until(kill_at), if status.is_none() => { let _ = child.start_kill(); }
        }
    }
    let status = match status {
        Some(status) => status,
        None => child.wait().await.unwrap_or_default(),
    };
    end_event(status)
}

async fn read_all(
    mut source: Box<dyn AsyncRead + Send + Unpin>,
    kind: fn(Vec<u8>) -> Output,
    pieces: mpsc::Sender<Output>,
) {
    let mut buffer = vec![0; CHUNK];
    // A terminal whose other end closed is an error, which is its end.
    while let Ok(read @ 1..) = source.read(&mut buffer).await {
        if pieces.send(kind(buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

fn end_event(status: ExitStatus) -> EndEvent {
    let text = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => format!("signal: {}", signal_name(number)),
        (None, None) => "ended".to_owned(),
    };
    EndEvent {
        exit_code: status.code().unwrap_or(-1),
        exited: status.code().is_some(),
        error: (!status.success()).then(|| text.clone()),
        status: text,
    }
}

/// As Go words signals.
fn signal_name(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(Signal::SIGKILL) => "killed".to_owned(),
        Ok(Signal::SIGTERM) => "terminated".to_owned(),
        Ok(Signal::SIGSEGV) => "segmentation fault".to_owned(),
        Ok(Signal::SIGABRT) => "aborted".to_owned(),
        _ => number.to_string(),
    }
}

fn header_number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// When the client's deadline ends the process.
fn deadline(headers: &HeaderMap) -> Instant {
    let bound = header_number(headers, TIMEOUT_HEADER).filter(|ms| *ms > 0).map(Duration::from_millis);
    Instant::now() + bound.unwrap_or(FOR_EVER)
}

/// Streams a process's events: its pid first, its end last, and signs of life in between.
fn follow(pid: u32, events: broadcast::Receiver<ProcessEvent>, headers: &HeaderMap) -> Response {
    let keepalive = header_number(headers, KEEPALIVE_HEADER).filter(|s| *s > 0).map(Duration::from_secs);
    let follower = Follower {
        events,
        first: Some(ProcessEvent::Start { pid }),
        keepalive: keepalive.unwrap_or(KEEPALIVE),
        deadline: deadline(headers),
        ended: false,
    };
    let frames = stream::unfold(follower, |mut follower| async {
        let frame = follower.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), follower))
    });
    ([(header::CONTENT_TYPE, CONNECT_JSON)], Body::from_stream(frames)).into_response()
}

struct Follower {
    events: broadcast::Receiver<ProcessEvent>,
    first: Option<ProcessEvent>,
    keepalive: Duration,
    deadline: Instant,
    ended: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        let event = match self.first.take() {
            Some(first) => first,
            None => match self.wait().await {
                Ok(event) => event,
                Err(error) => return Some(self.end(Some(error))),
            },
        };
        let is_end = matches!(event, ProcessEvent::End(_));
        let mut frame = envelope::encode_json(&StartResponse { event }).ok()?;
        if is_end {
            frame.extend(self.end(None));
        }
        Some(frame)
    }

    fn end(&mut self, error: Option<ConnectError>) -> Vec<u8> {
        self.ended = true;
        envelope::end_of_stream(error)
    }

    async fn wait(&mut self) -> Result<ProcessEvent, ConnectError> {
        tokio::select! {
            event = self.events.recv() => event.map_err(|error| ConnectError::new(Code::DataLoss, error.to_string())),
            () = sleep_until(self.deadline) => {
                Err(ConnectError::new(Code::DeadlineExceeded, "the deadline of the call is over"))
            }
            () = tokio::time::sleep(self.keepalive) => Ok(ProcessEvent::Keepalive {}),
        }
    }
}

/// A stream fails in its last envelope; its status is 200 all the same.
fn failed_stream(error: Rpc) -> Response {
    ([(header::CONTENT_TYPE, CONNECT_JSON)], envelope::end_of_stream(Some(error.0))).into_response()
}
