//! envd's API as tests use it: by either route, blocking, with the whole answer in hand.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use envd_api::envelope::Decoder;
use envd_api::init::InitRequest;
use envd_api::process::{Output, ProcessConfig, ProcessEvent, START, StartRequest, StartResponse};
use envd_api::{
    CONNECT_JSON, JSON, OCTET_STREAM, PORT, PROTOCOL_VERSION, PROTOCOL_VERSION_HEADER, authorization,
    envelope,
};

use crate::http::{self, Request, Response, Stream};
use crate::net::GUEST;
use crate::vm::Vm;
use crate::wait;

/// The route to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// From the namespace over the tap.
    Tcp,
    /// Through the VMM's unix socket and the relay.
    Vsock,
}

impl Via {
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Vsock];
}

/// What a command did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandOutput {
    pub pid: u32,
    pub stdout: String,
    pub stderr: String,
    pub exit_code: i32,
    /// For people, as envd words it.
    pub status: String,
}

impl Vm {
    /// A stream to envd's port.
    pub fn stream(&self, via: Via) -> Result<Stream> {
        Ok(match via {
            Via::Tcp => Stream::Tcp(self.netns().connect(&format!("{GUEST}:{PORT}"), wait::BOUND)?),
            Via::Vsock => Stream::Unix(self.vsock(PORT.into())?),
        })
    }

    /// A stream to any vsock port of the guest.
    pub fn vsock(&self, port: u32) -> Result<std::os::unix::net::UnixStream> {
        http::hybrid_vsock(&self.vsock_socket(), port, wait::BOUND)
    }

    /// One request to envd.
    pub fn request(&self, via: Via, request: &Request<'_>) -> Result<Response> {
        http::send(self.stream(via)?, request, wait::BOUND)
    }

    pub fn get(&self, via: Via, target: &str) -> Result<Response> {
        self.request(via, &Request { method: "GET", target, ..Request::default() })
    }

    /// A POST of JSON.
    pub fn post(&self, via: Via, target: &str, body: &str) -> Result<Response> {
        let headers = vec![("content-type", JSON.to_owned())];
        self.request(via, &Request { method: "POST", target, headers, body: body.into() })
    }

    /// Writes a file, root's, with the folders above it.
    pub fn upload(&self, path: &str, content: Vec<u8>) -> Result<()> {
        let headers = vec![("content-type", OCTET_STREAM.to_owned())];
        let target = &format!("/files?path={path}&username=root");
        let answer = self.request(Via::Tcp, &Request { method: "POST", target, headers, body: content })?;
        ensure!(answer.status == 200, "writing {path} was answered {}: {}", answer.status, answer.text());
        Ok(())
    }

    /// Tries until `GET /health` answers 204.
    pub fn wait_healthy(&self, via: Via) -> Result<()> {
        self.wait_healthy_within(via, wait::BOUND)
    }

    pub fn wait_healthy_within(&self, via: Via, bound: Duration) -> Result<()> {
        let mut last = String::from("nothing tried");
        let healthy = wait::until("a healthy envd", bound, || {
            if let Some(status) = self.ended() {
                bail!("the VM ended ({status}) before envd was healthy");
            }
            last = match self.health(via) {
                Ok(204) => return Ok(Some(())),
                Ok(status) => format!("status {status}"),
                Err(error) => format!("{error:#}"),
            };
            Ok(None)
        });
        healthy.with_context(|| format!("over {via:?}, last answer: {last}"))
    }

    /// One `GET /health` with a bound of two seconds: what it answered.
    pub fn health(&self, via: Via) -> Result<u16> {
        let bound = Duration::from_secs(2);
        let stream = match via {
            Via::Tcp => Stream::Tcp(self.netns().connect(&format!("{GUEST}:{PORT}"), bound)?),
            Via::Vsock => Stream::Unix(http::hybrid_vsock(&self.vsock_socket(), PORT.into(), bound)?),
        };
        let request = Request { method: "GET", target: envd_api::HEALTH, ..Request::default() };
        Ok(http::send(stream, &request, bound)?.status)
    }

    /// `POST /init` as the platform sends it: the clock and the default user `user`.
    pub fn init_envd(&self, via: Via) -> Result<()> {
        let timestamp = now_rfc3339()?;
        let body = serde_json::to_string(&InitRequest::for_user("user", timestamp))?;
        let answer = self.post(via, envd_api::INIT, &body)?;
        ensure!(
            answer.status == 204,
            "POST /init answered {} instead of 204: {}",
            answer.status,
            answer.text()
        );
        Ok(())
    }

    /// A shell command, as envd's default user (root until `/init` said otherwise).
    pub fn exec(&self, via: Via, command: &str) -> Result<CommandOutput> {
        self.exec_as(via, command, None)
    }

    /// A shell command as `user`.
    pub fn exec_as(&self, via: Via, command: &str, user: Option<&str>) -> Result<CommandOutput> {
        self.start(via, command, &StartRequest::shell(command), user)
    }

    fn start(
        &self,
        via: Via,
        command: &str,
        start: &StartRequest,
        user: Option<&str>,
    ) -> Result<CommandOutput> {
        let answer = self
            .request(via, &start_request(start, user)?)
            .with_context(|| format!("running `{command}` in the guest"))?;
        ensure!(answer.status == 200, "Start answered {}: {}", answer.status, answer.text());
        collect(&answer.body).with_context(|| format!("running `{command}` in the guest"))
    }

    /// A command of root's that must succeed: its standard output without the last newline. By a plain shell, which starts
    /// several times faster than the login shell of [`Vm::exec`] where the machine is emulated.
    pub fn sh(&self, via: Via, command: &str) -> Result<String> {
        let args = ["-c", command].map(str::to_owned).to_vec();
        let process = ProcessConfig { cmd: "/bin/sh".to_owned(), args, ..ProcessConfig::default() };
        let start = StartRequest { process, stdin: Some(false), ..StartRequest::default() };
        let out = self.start(via, command, &start, Some("root"))?;
        ensure!(out.exit_code == 0, "`{command}` ended with {}: {}{}", out.exit_code, out.stdout, out.stderr);
        Ok(out.stdout.trim_end_matches('\n').to_owned())
    }
}

/// The request that starts a process.
pub fn start_request<'a>(start: &StartRequest, user: Option<&str>) -> Result<Request<'a>> {
    let mut headers = vec![
        ("content-type", CONNECT_JSON.to_owned()),
        (PROTOCOL_VERSION_HEADER, PROTOCOL_VERSION.to_owned()),
    ];
    headers.extend(user.map(|user| ("authorization", authorization(user))));
    Ok(Request { method: "POST", target: START, headers, body: envelope::encode_json(start)? })
}

/// The whole of a process's stream.
pub fn collect(body: &[u8]) -> Result<CommandOutput> {
    let mut decoder = Decoder::default();
    decoder.push(body);
    let (mut out, mut stdout, mut stderr) = (CommandOutput::default(), Vec::new(), Vec::new());
    while let Some(frame) = decoder.next_frame()? {
        if frame.is_end() {
            frame.end_error()?;
            out.stdout = String::from_utf8_lossy(&stdout).into_owned();
            out.stderr = String::from_utf8_lossy(&stderr).into_owned();
            return Ok(out);
        }
        match frame.json::<StartResponse>()?.event {
            ProcessEvent::Start { pid } => out.pid = pid,
            ProcessEvent::Data(Output::Stdout(bytes) | Output::Pty(bytes)) => stdout.extend(bytes.0),
            ProcessEvent::Data(Output::Stderr(bytes)) => stderr.extend(bytes.0),
            ProcessEvent::End(end) => (out.exit_code, out.status) = (end.exit_code, end.status),
            ProcessEvent::Keepalive {} => {}
        }
    }
    bail!("the stream was cut off after {} bytes", body.len())
}

/// Now, in RFC 3339.
fn now_rfc3339() -> Result<String> {
    Ok(crate::net::run("date", &["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"])?.trim().to_owned())
}
