//! A small client of envd's API: one HTTP/1.1 connection a call, over any endpoint.

use std::{io, time::Duration};

use envd_api::{
    envelope::{self, EnvelopeError},
    files::{self, WriteInfo},
    process::{self, EndEvent, Output, ProcessEvent, StartRequest, StartResponse},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use vsock_relay::endpoint::Endpoint;

use crate::{
    dial::{self, DialError},
    text::sanitise_bytes,
};

/// The most that is read of an answer (bytes): the calls here return a few.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("cannot prepare the connection")]
    Prepare(#[source] io::Error),
    #[error("{call}: connected, and then the connection broke")]
    Http { call: String, source: hyper::Error },
    #[error("{call}: no answer within {} s", bound.as_secs())]
    Late { call: String, bound: Duration },
    #[error("{call}: the answer broke off or is too large ({reason})")]
    Body { call: String, reason: String },
    #[error("{call}: answered {status} instead of {expected}: {body}")]
    Status { call: String, status: u16, expected: u16, body: String },
    #[error("{call}")]
    Stream { call: String, source: EnvelopeError },
    #[error("{call}: the stream ended before the process did")]
    NoEnd { call: String },
    #[error("{call}: the answer is not the JSON expected")]
    Json { call: String, source: serde_json::Error },
    #[error("{call}: cannot be put into a request")]
    Request { call: String, source: hyper::http::Error },
}

/// What a command did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub end: EndEvent,
}

/// envd behind an endpoint.
#[derive(Debug, Clone)]
pub struct Api {
    pub endpoint: Endpoint,
    pub user: Option<String>,
    /// The most that a call may take.
    pub bound: Duration,
}

/// An answer, read whole.
struct Answer {
    call: String,
    status: StatusCode,
    body: Vec<u8>,
}

impl Api {
    /// `GET /health`.
    pub async fn health(&self) -> Result<(), ApiError> {
        self.call(Method::GET, envd_api::HEALTH, None, Vec::new())
            .await?
            .expect(StatusCode::NO_CONTENT)
            .map(drop)
    }

    /// Runs a shell command to its end.
    pub async fn run(&self, command: &str) -> Result<Ran, ApiError> {
        let call = format!("POST {}", process::START);
        let body = envelope::encode_json(&StartRequest::shell(command))
            .map_err(|source| ApiError::Stream { call, source })?;
        let answer = self.call(Method::POST, process::START, Some(envd_api::CONNECT_JSON), body).await?;
        let answer = answer.expect(StatusCode::OK)?;
        read_events(answer.call, &answer.body)
    }

    /// Writes a file.
    pub async fn write(&self, path: &str, content: &[u8]) -> Result<Vec<WriteInfo>, ApiError> {
        let target = files::target(path, self.user.as_deref());
        let answer =
            self.call(Method::POST, &target, Some("application/octet-stream"), content.to_vec()).await?;
        let answer = answer.expect(StatusCode::OK)?;
        serde_json::from_slice(&answer.body).map_err(|source| ApiError::Json { call: answer.call, source })
    }

    /// Reads a file.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, ApiError> {
        let target = files::target(path, self.user.as_deref());
        let answer = self.call(Method::GET, &target, None, Vec::new()).await?;
        answer.expect(StatusCode::OK).map(|answer| answer.body)
    }

    async fn call(
        &self,
        method: Method,
        target: &str,
        kind: Option<&str>,
        body: Vec<u8>,
    ) -> Result<Answer, ApiError> {
        let call = format!("{method} {}", target.split('?').next().unwrap_or(target));
        let request = self
            .request(method, target, kind, body)
            .map_err(|source| ApiError::Request { call: call.clone(), source })?;
        tokio::time::timeout(self.bound, self.exchange(request, &call))
            .await
            .unwrap_or(Err(ApiError::Late { call, bound: self.bound }))
    }

    fn request(
        &self,
        method: Method,
        target: &str,
        kind: Option<&str>,
        body: Vec<u8>,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let mut request = Request::builder().method(method).uri(target).header(HOST, "localhost");
        if let Some(user) = &self.user {
            request = request.header(AUTHORIZATION, envd_api::authorization(user));
        }
        if let Some(kind) = kind {
            request = request
                .header(CONTENT_TYPE, kind)
                .header(envd_api::PROTOCOL_VERSION_HEADER, envd_api::PROTOCOL_VERSION)
                .header(envd_api::TIMEOUT_HEADER, self.bound.as_millis().to_string());
        }
        request.body(Full::new(body.into()))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, call: &str) -> Result<Answer, ApiError> {
        let stream = dial::dial(&self.endpoint, self.bound)?;
        stream.set_nonblocking(true).map_err(ApiError::Prepare)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(ApiError::Prepare)?;
        let broke = |source| ApiError::Http { call: call.to_owned(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broke)?;
        let answer = read(response, call).await;
        driver.abort();
        answer
    }
}

async fn read(response: Response<Incoming>, call: &str) -> Result<Answer, ApiError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|error| ApiError::Body { call: call.to_owned(), reason: error.to_string() })?
        .to_bytes()
        .to_vec();
    Ok(Answer { call: call.to_owned(), status, body })
}

impl Answer {
    fn expect(self, expected: StatusCode) -> Result<Self, ApiError> {
        if self.status == expected {
            return Ok(self);
        }
        let body = &self.body[..self.body.len().min(300)];
        Err(ApiError::Status {
            call: self.call,
            status: self.status.as_u16(),
            expected: expected.as_u16(),
            body: sanitise_bytes(body),
        })
    }
}

/// The events of a process, from the whole of its stream; `call` is what an error names.
pub fn read_events(call: String, body: &[u8]) -> Result<Ran, ApiError> {
    let mut decoder = envelope::Decoder::default();
    decoder.push(body);
    let mut ran = Ran::default();
    let mut ended = false;
    let failed = |source| ApiError::Stream { call: call.clone(), source };
    while let Some(frame) = decoder.next_frame().map_err(failed)? {
        if frame.is_end() {
            frame.end_error().map_err(failed)?;
            break;
        }
        match frame.json::<StartResponse>().map_err(failed)?.event {
            ProcessEvent::Data(Output::Stdout(bytes)) => ran.stdout.extend(bytes.0),
            ProcessEvent::Data(Output::Stderr(bytes)) => ran.stderr.extend(bytes.0),
            ProcessEvent::End(end) => {
                ran.end = end;
                ended = true;
            }
            _ => {}
        }
    }
    if ended { Ok(ran) } else { Err(ApiError::NoEnd { call }) }
}
