//! A client of the control protocol: what PID 1 (or, in keep mode, the wrapper) answers on vsock port 49984.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use guest::control::{
    Op, Reply, Request, Status,
    frame::{self, Decoder, FrameError, MAX_REPLY},
};
use vsock_relay::endpoint::Endpoint;

use crate::{
    dial::{self, DialError, Stream},
    exit::{Exit, Fatal},
    text::sanitise,
};

/// How long a guest may take to answer a question that costs it nothing.
pub const ANSWER_BOUND: Duration = Duration::from_secs(5);

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection to {endpoint} broke")]
    Io { endpoint: Endpoint, source: io::Error },
    #[error("{endpoint} closed without an answer (only root, and only the host, may ask)")]
    Closed { endpoint: Endpoint },
    #[error("{endpoint} did not answer within {} s", bound.as_secs())]
    Late { endpoint: Endpoint, bound: Duration },
    #[error("{endpoint} does not speak the control protocol")]
    Frame { endpoint: Endpoint, source: FrameError },
    #[error("{endpoint} answered something else than was asked")]
    Unexpected { endpoint: Endpoint },
    #[error("the guest refuses ({code}): {message}")]
    Refused { code: String, message: String },
}

impl Fatal for ClientError {
    fn exit(&self) -> Exit {
        match self {
            Self::Dial(error) => error.exit(),
            Self::Refused { code, .. } if code == "not_permitted" => Exit::NotPermitted,
            Self::Refused { .. } => Exit::Refused,
            Self::Frame { .. } | Self::Unexpected { .. } => Exit::BadInput,
            Self::Io { .. } | Self::Closed { .. } | Self::Late { .. } => Exit::Unreachable,
        }
    }
}

/// One connection; carries any number of questions, one after the other.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    stream: Stream,
    decoder: Decoder,
}

impl Client {
    pub fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Self, ClientError> {
        let stream = dial::dial(endpoint, timeout)?;
        Ok(Self { endpoint: endpoint.clone(), stream, decoder: Decoder::new(MAX_REPLY) })
    }

    /// The state of the guest.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(Op::Status, ANSWER_BOUND)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(self.unexpected()),
        }
    }

    /// Asks for something to be done, and waits until it is.
    pub fn act(&mut self, op: Op, bound: Duration) -> Result<(), ClientError> {
        match self.ask(op, bound)? {
            Reply::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    fn ask(&mut self, op: Op, bound: Duration) -> Result<Reply, ClientError> {
        self.send(op)?;
        self.next(Some(bound))
    }

    /// Sends a question whose answers are then read by [`Self::next`].
    pub fn send(&mut self, op: Op) -> Result<(), ClientError> {
        let bytes = frame::encode(&Request::new(op)).map_err(|source| self.frame(source))?;
        self.stream.write_all(&bytes).map_err(|source| self.broke(source))
    }

    /// The next answer; an error that the guest reports is an `Err`. Without a bound it waits as long as it takes.
    pub fn next(&mut self, bound: Option<Duration>) -> Result<Reply, ClientError> {
        let begun = Instant::now();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(reply) = self.decoder.message().map_err(|source| self.frame(source))? {
                return accepted(reply);
            }
            let left = bound.map(|bound| bound.saturating_sub(begun.elapsed()));
            if left == Some(Duration::ZERO) {
                return Err(ClientError::Late {
                    endpoint: self.endpoint.clone(),
                    bound: bound.unwrap_or_default(),
                });
            }
            self.stream.set_read_timeout(left).map_err(|source| self.broke(source))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ClientError::Closed { endpoint: self.endpoint.clone() }),
                Ok(read) => self.decoder.push(&buffer[..read]),
                Err(error) if dial::is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.broke(source)),
            }
        }
    }

    fn unexpected(&self) -> ClientError {
        ClientError::Unexpected { endpoint: self.endpoint.clone() }
    }

    fn frame(&self, source: FrameError) -> ClientError {
        ClientError::Frame { endpoint: self.endpoint.clone(), source }
    }

    fn broke(&self, source: io::Error) -> ClientError {
        let endpoint = self.endpoint.clone();
        if dial::is_timeout(&source) {
            ClientError::Late { endpoint, bound: ANSWER_BOUND }
        } else {
            ClientError::Io { endpoint, source }
        }
    }
}

/// An answer; an error that the guest reports becomes one of ours.
fn accepted(reply: Reply) -> Result<Reply, ClientError> {
    match reply {
        Reply::Error { code, message } => Err(ClientError::Refused {
            code: sanitise(&code).into_owned(),
            message: sanitise(&message).into_owned(),
        }),
        reply => Ok(reply),
    }
}
