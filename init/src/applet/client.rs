//! The tools' side of the control protocol: one request, one answer.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use guest::control::{
    self, Op, Reply, Request,
    frame::{self, Decoder, FrameError, MAX_REPLY},
};

/// An answer that waits for nothing comes at once, even on a machine that does a lot else.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("only root may ask init")]
    NotPermitted,
    #[error("cannot reach init at {socket}: {source}; is this machine's process 1 envd-init?", socket = control::SOCKET)]
    Connect { source: io::Error },
    #[error("init does not answer: {0}")]
    Exchange(#[source] io::Error),
    #[error("init's answer cannot be read: {0}")]
    Answer(#[from] FrameError),
}

pub(super) fn ask(op: Op) -> Result<Reply, ClientError> {
    let mut stream = UnixStream::connect(control::SOCKET).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted,
        _ => ClientError::Connect { source: error },
    })?;
    send(&mut stream, op).map_err(ClientError::Exchange)?;
    let mut decoder = Decoder::new(MAX_REPLY);
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(reply) = decoder.message()? {
            return Ok(reply);
        }
        match stream.read(&mut chunk).map_err(ClientError::Exchange)? {
            0 => return Err(ClientError::Exchange(io::ErrorKind::UnexpectedEof.into())),
            count => decoder.push(&chunk[..count]),
        }
    }
}

fn send(stream: &mut UnixStream, op: Op) -> io::Result<()> {
    // PID 1 knows for how long an order is to be waited for, which is for ever where a service has no bound for its start.
    let is_order = matches!(op, Op::Start { .. } | Op::Stop { .. } | Op::Restart { .. });
    stream.set_read_timeout((!is_order).then_some(PATIENCE))?;
    stream.write_all(&frame::encode(&Request::new(op)).map_err(io::Error::other)?)
}
