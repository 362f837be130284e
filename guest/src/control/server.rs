//! The server's side of the control protocol, for PID 1 and, in keep mode, for the wrapper.
//!
//! It lives in its owner's [reactor](crate::reactor) and does no work of its own but the transport and the log: requests come
//! back as [`Call`]s, the owner gives each its [answer](Server::answer), now or later.
//!
//! | client | left by |
//! |---|---|
//! | reading | a whole request → busy; a bad frame, the end, a request that takes too long → closed |
//! | busy | the owner's answer → writing (nothing more is read meanwhile) |
//! | writing | all written → reading; a reader that takes nothing for too long → closed |
//! | following | as writing, again and again with each change of the log |
//! | asked all it will | it ended its side of a unix socket alone: its answers are written → closed. Over vsock the end of one side is that of both, or cannot be told from it |
//!
//! A slow or hostile client costs nothing but itself: clients, buffers and times are bounded, the oldest idle one makes room
//! for a new one, and there is no timer while nobody is in the middle of something.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, VsockAddr, accept4, bind, getpeername,
            getsockopt, listen, socket, sockopt,
        },
    },
};

use super::{
    LogRecord, Op, Reply, Request, VERSION,
    frame::{self, Decoder, MAX_REQUEST},
};
use crate::{
    clock::Moment,
    reactor::{Interest, Reactor, ReactorError, Ready, Token, Watched, read_ready},
    ring::Reader,
};

/// Clients at a time.
const MAX_CLIENTS: usize = 32;
/// Connections accepted in one turn.
const ACCEPTS: usize = 16;
/// A request that has begun must be whole within this time, and an answer must move.
const PATIENCE: Duration = Duration::from_secs(10);
/// Records in one answer.
const RECORDS: usize = 256;
/// The host's CID: nobody else may speak over vsock.
const HOST: u32 = 2;
const ANY_CID: u32 = u32::MAX;

const UNIX: Token = 0;
const VSOCK: Token = 1;
const LOG: Token = 2;
const FIRST_CLIENT: u32 = 3;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot listen on {}: {source}", path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("cannot listen on vsock port {port}: {}", source.desc())]
    Vsock { port: u32, source: Errno },
    #[error(transparent)]
    Reactor(#[from] ReactorError),
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u32);

/// A request that the owner has to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub client: ClientId,
    pub op: Op,
}

#[derive(Debug)]
struct Client {
    fd: Watched,
    decoder: Decoder,
    /// Bytes of a request that is not whole yet are in the decoder.
    partial: bool,
    busy: bool,
    from_vsock: bool,
    /// It sends nothing more.
    asked_all: bool,
    out: Vec<u8>,
    written: usize,
    log: Option<LogStream>,
    deadline: Option<Moment>,
    last_active: Moment,
    interest: Interest,
}

/// A client that reads the log.
#[derive(Debug)]
struct LogStream {
    reader: Reader,
    pending: VecDeque<LogRecord>,
    lost: u64,
    follow: bool,
    service: Option<String>,
    since_ns: u64,
}

/// To be served by its owner's reactor under tokens from `base` up.
#[derive(Debug)]
pub struct Server {
    base: Token,
    log_folder: PathBuf,
    unix: Option<OwnedFd>,
    vsock: Option<OwnedFd>,
    watch: Option<Watched>,
    clients: BTreeMap<u32, Client>,
    next: u32,
}

impl Server {
    /// Tokens from `base` on are this server's; `log_folder` is where the rings are.
    pub fn new(base: Token, log_folder: impl Into<PathBuf>) -> Self {
        let log_folder = log_folder.into();
        Self {
            base,
            log_folder,
            unix: None,
            vsock: None,
            watch: None,
            clients: BTreeMap::new(),
            next: FIRST_CLIENT,
        }
    }

    /// Listens on a unix socket that only root can connect to. One that a former run left behind is replaced.
    pub fn listen_unix(&mut self, path: &Path, reactor: &Reactor) -> Result<(), ServerError> {
        let failed = |source: io::Error| ServerError::Unix { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let _ = fs::remove_file(path); // none there is as good
        let open = || -> Result<OwnedFd, Errno> {
            let fd = stream(AddressFamily::Unix)?;
            bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
            Ok(fd)
        };
        let fd = open().map_err(|errno| failed(errno.into()))?;
        // Before listen: until then nobody can connect.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listen(&fd, Backlog::MAXCONN).map_err(|errno| failed(errno.into()))?;
        reactor.add(&fd, self.base + UNIX, Interest::Read)?;
        self.unix = Some(fd);
        Ok(())
    }

    /// Listens for the host. Fails while the kernel has no vsock; to be tried again when that may have changed.
    pub fn listen_vsock(&mut self, port: u32, reactor: &Reactor) -> Result<(), ServerError> {
        let open = || -> Result<OwnedFd, Errno> {
            let fd = stream(AddressFamily::Vsock)?;
            bind(fd.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
            listen(&fd, Backlog::MAXCONN)?;
            Ok(fd)
        };
        let fd = open().map_err(|source| ServerError::Vsock { port, source })?;
        reactor.add(&fd, self.base + VSOCK, Interest::Read)?;
        self.vsock = Some(fd);
        Ok(())
    }

    pub fn listens_on_vsock(&self) -> bool {
        self.vsock.is_some()
    }

    /// When [`Server::tick`] is due; `None` at rest.
    pub fn deadline(&self) -> Option<Moment> {
        self.clients.values().filter_map(|client| client.deadline).min()
    }

    /// Closes clients that took too long.
    pub fn tick(&mut self, now: Moment) {
        self.clients.retain(|_, client| client.deadline.is_none_or(|at| at > now));
        self.rest();
    }

    /// Serves a ready descriptor; gives back what the owner has to answer.
    pub fn ready(&mut self, ready: Ready, reactor: &Reactor, now: Moment) -> Vec<Call> {
        match ready.token.wrapping_sub(self.base) {
            UNIX => self.accept(false, reactor, now),
            VSOCK => self.accept(true, reactor, now),
            LOG => {
                self.log_changed(reactor, now);
                return Vec::new();
            }
            client => return self.serve(client as u32, ready, reactor, now),
        }
        Vec::new()
    }

    /// Whether the client is still there.
    pub fn has(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client.0)
    }

    /// Answers a call; the client may then ask again. One that is gone is passed over.
    pub fn answer(&mut self, client: ClientId, reply: &Reply, reactor: &Reactor, now: Moment) -> Vec<Call> {
        let Some(found) = self.clients.get_mut(&client.0) else { return Vec::new() };
        found.busy = false;
        found.queue(reply);
        self.advance(client.0, reactor, now)
    }

    fn accept(&mut self, from_vsock: bool, reactor: &Reactor, now: Moment) {
        for _ in 0..ACCEPTS {
            let listener = if from_vsock { &self.vsock } else { &self.unix };
            let Some(listener) = listener else { return };
            let fd = match accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC) {
                Ok(raw) => match crate::sys::own(raw) {
                    Ok(fd) => fd,
                    Err(_) => return,
                },
                Err(Errno::EMFILE | Errno::ENFILE) if self.drop_oldest_idle() => continue,
                Err(Errno::ECONNABORTED | Errno::EINTR) => continue,
                Err(_) => return,
            };
            if may_speak(&fd, from_vsock) && (self.clients.len() < MAX_CLIENTS || self.drop_oldest_idle()) {
                self.welcome(fd, from_vsock, reactor, now);
            }
        }
    }

    fn welcome(&mut self, fd: OwnedFd, from_vsock: bool, reactor: &Reactor, now: Moment) {
        let id = self.next;
        self.next = self.next.checked_add(1).unwrap_or(FIRST_CLIENT);
        if let Ok(fd) = reactor.watch(fd, self.base + Token::from(id), Interest::Read) {
            self.clients.insert(id, Client::new(fd, from_vsock, now));
        }
    }

    /// Makes room: the client that has asked nothing for the longest time goes. False when all are in the middle of something.
    fn drop_oldest_idle(&mut self) -> bool {
        let idle = self.clients.iter().filter(|(_, client)| !client.busy && client.log.is_none());
        let Some(oldest) = idle.min_by_key(|(_, client)| client.last_active).map(|(id, _)| *id) else {
            return false;
        };
        self.clients.remove(&oldest);
        true
    }

    fn serve(&mut self, id: u32, ready: Ready, reactor: &Reactor, now: Moment) -> Vec<Call> {
        let Some(client) = self.clients.get_mut(&id) else { return Vec::new() };
        client.last_active = now;
        let gone = ready.readable && client.read(ready.hangup).is_err();
        if gone {
            self.clients.remove(&id);
            self.rest();
            return Vec::new();
        }
        self.advance(id, reactor, now)
    }

    /// Writes what waits, then takes the next request; closes a client that is of no use any more.
    fn advance(&mut self, id: u32, reactor: &Reactor, now: Moment) -> Vec<Call> {
        let Some(client) = self.clients.get_mut(&id) else { return Vec::new() };
        let mut calls = Vec::new();
        let outcome = loop {
            if let Err(error) = client.write(now) {
                break Err(error);
            }
            if client.is_writing() || client.busy || client.is_following() {
                break Ok(());
            }
            match client.next_request(&self.log_folder, now) {
                Ok(Step::Nothing) => break Ok(()),
                Ok(Step::Answered) => {}
                Ok(Step::Call(op)) => calls.push(Call { client: ClientId(id), op }),
                Err(error) => break Err(error),
            }
        };
        let outcome = outcome.and_then(|()| if client.is_done() { Err(Closed) } else { Ok(()) });
        let outcome = outcome.and_then(|()| client.rewatch(self.base + Token::from(id), reactor, now));
        if outcome.is_err() {
            self.clients.remove(&id);
            calls.clear();
        }
        self.watch_log(reactor);
        self.rest();
        calls
    }

    /// Watches the log's folder while somebody follows it, and only then.
    fn watch_log(&mut self, reactor: &Reactor) {
        let wanted = self.clients.values().any(Client::is_following);
        if !wanted || self.watch.is_some() {
            return;
        }
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let open = || -> io::Result<OwnedFd> {
            let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            watch.add_watch(&self.log_folder, flags)?;
            watch.as_fd().try_clone_to_owned()
        };
        self.watch = open().ok().and_then(|fd| reactor.watch(fd, self.base + LOG, Interest::Read).ok());
    }

    fn log_changed(&mut self, reactor: &Reactor, now: Moment) {
        if let Some(watch) = &self.watch {
            let mut events = [0; 4096];
            while matches!(read_ready(watch, &mut events), Ok(Some(1..))) {}
        }
        let following: Vec<u32> =
            self.clients.iter().filter(|(_, client)| client.is_following()).map(|(id, _)| *id).collect();
        for id in following {
            self.advance(id, reactor, now);
        }
    }

    /// Nobody follows the log any more: then nothing of it wakes us.
    fn rest(&mut self) {
        if !self.clients.values().any(Client::is_following) {
            self.watch = None;
        }
    }
}

fn stream(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// Root inside the guest, the host over vsock, and nobody else.
fn may_speak(fd: &OwnedFd, from_vsock: bool) -> bool {
    if from_vsock {
        return getpeername::<VsockAddr>(fd.as_raw_fd()).is_ok_and(|peer| peer.cid() == HOST);
    }
    getsockopt(fd, sockopt::PeerCredentials).is_ok_and(|peer| peer.uid() == 0)
}

/// What a client's next request led to.
enum Step {
    Nothing,
    /// It was answered here, or its answer is under way.
    Answered,
    Call(Op),
}

/// The connection is of no use any more.
struct Closed;

impl Client {
    fn new(fd: Watched, from_vsock: bool, now: Moment) -> Self {
        Self {
            fd,
            decoder: Decoder::new(MAX_REQUEST),
            partial: false,
            busy: false,
            from_vsock,
            asked_all: false,
            out: Vec::new(),
            written: 0,
            log: None,
            deadline: None,
            last_active: now,
            interest: Interest::Read,
        }
    }

    fn is_writing(&self) -> bool {
        self.written < self.out.len()
    }

    fn is_following(&self) -> bool {
        self.log.is_some()
    }

    /// It asks nothing more, and all that it has asked is answered.
    fn is_done(&self) -> bool {
        self.asked_all && !self.busy && !self.is_writing() && !self.is_following()
    }

    /// One bounded read. While an answer is under way only the end is of interest, and more than a request is refused.
    fn read(&mut self, hangup: bool) -> Result<(), Closed> {
        let mut buffer = [0; 4096];
        match read_ready(&self.fd, &mut buffer) {
            Ok(Some(0)) if !hangup && !self.from_vsock => {
                self.asked_all = true;
                Ok(())
            }
            Ok(Some(0)) | Err(_) => Err(Closed),
            Ok(Some(count)) => {
                self.decoder.push(&buffer[..count]);
                if self.decoder.buffered() > MAX_REQUEST + 4096 { Err(Closed) } else { Ok(()) }
            }
            Ok(None) => Ok(()),
        }
    }

    fn next_request(&mut self, log_folder: &Path, now: Moment) -> Result<Step, Closed> {
        let value = match self.decoder.message::<serde_json::Value>() {
            Ok(Some(value)) => value,
            Ok(None) => {
                self.partial = self.decoder.buffered() > 0;
                return Ok(Step::Nothing);
            }
            Err(_) => return Err(Closed),
        };
        self.partial = false;
        let newer =
            value.get("version").and_then(serde_json::Value::as_u64).is_some_and(|v| v > u64::from(VERSION));
        let request = serde_json::from_value::<Request>(value);
        match request {
            Ok(request) if !newer => Ok(self.take(request.op, log_folder, now)),
            _ => {
                self.queue(&error(
                    "unsupported",
                    format!("this is protocol version {VERSION} and knows no such request"),
                ));
                Ok(Step::Answered)
            }
        }
    }

    fn take(&mut self, op: Op, log_folder: &Path, now: Moment) -> Step {
        match op {
            Op::Logs { follow, service, since_ms } => {
                let since = since_ms.map_or(Moment::ZERO, |ms| now.saturating_sub(Duration::from_millis(ms)));
                self.log = Some(LogStream {
                    reader: Reader::new(log_folder),
                    pending: VecDeque::new(),
                    lost: 0,
                    follow,
                    service,
                    since_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
                });
                Step::Answered
            }
            op => {
                self.busy = true;
                Step::Call(op)
            }
        }
    }

    fn queue(&mut self, reply: &Reply) {
        let encoded = frame::encode(reply).or_else(|why| frame::encode(&error("failed", why.to_string())));
        self.out.extend(encoded.unwrap_or_default());
    }

    /// Writes until all is out or the peer takes no more; the log is read as fast as it is written.
    fn write(&mut self, now: Moment) -> Result<(), Closed> {
        loop {
            if !self.is_writing() {
                self.out = Vec::new(); // an idle client holds no memory
                self.written = 0;
                if !self.next_records() {
                    return Ok(());
                }
            }
            match send(&self.fd, &self.out[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.deadline = Some(now + PATIENCE);
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Closed),
            }
        }
    }

    /// Queues the next part of the log; false when there is none now.
    fn next_records(&mut self) -> bool {
        let Some(log) = &mut self.log else { return false };
        if log.pending.is_empty() {
            log.poll();
        }
        if log.pending.is_empty() {
            if !log.follow {
                self.log = None;
                self.queue(&Reply::Done);
                return true;
            }
            return false;
        }
        let count = log.pending.len().min(RECORDS);
        let reply = Reply::Records {
            records: log.pending.drain(..count).collect(),
            lost: std::mem::take(&mut log.lost),
        };
        self.queue(&reply);
        true
    }

    /// Sets what is watched for, and the time by which something must have happened.
    fn rewatch(&mut self, token: Token, reactor: &Reactor, now: Moment) -> Result<(), Closed> {
        let interest = match (self.is_writing(), self.asked_all) {
            (true, false) => Interest::Both,
            (false, false) => Interest::Read,
            (true, true) => Interest::Write,
            (false, true) => Interest::Hangup,
        };
        if interest != self.interest {
            reactor.modify(&self.fd, token, interest).map_err(|_| Closed)?;
            self.interest = interest;
        }
        self.deadline = match (self.is_writing(), self.partial) {
            (false, false) => None,
            _ => Some(self.deadline.unwrap_or(now + PATIENCE)),
        };
        Ok(())
    }
}

impl LogStream {
    fn poll(&mut self) {
        let batch = self.reader.poll();
        self.lost += batch.lost;
        let wanted = |record: &LogRecord| {
            record.at_ns >= self.since_ns
                && self.service.as_ref().is_none_or(|name| *name == record.component)
        };
        self.pending.extend(batch.records.into_iter().filter(wanted));
    }
}

/// An error in the protocol's form.
pub fn error(code: &str, message: impl Into<String>) -> Reply {
    Reply::Error { code: code.to_owned(), message: message.into() }
}

/// A peer that is gone is an error here, not a signal.
fn send(fd: &Watched, bytes: &[u8]) -> Result<usize, Errno> {
    nix::sys::socket::send(fd.as_fd().as_raw_fd(), bytes, nix::sys::socket::MsgFlags::MSG_NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, io::Write, os::unix::net::UnixStream};

    use super::*;
    use crate::{clock::now, reactor::Event, record::Level, ring::Ring};

    struct World {
        reactor: Reactor,
        server: Server,
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let reactor = Reactor::new(&[]).unwrap();
            let mut server = Server::new(1 << 40, dir.path().join("log"));
            server.listen_unix(&dir.path().join("s"), &reactor).unwrap();
            Self { reactor, server, dir }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        }

        /// Serves whatever is ready; every call is answered with `Done`.
        fn turn(&mut self, at: Moment) -> Vec<Op> {
            let mut ops = Vec::new();
            for event in self.reactor.wait(Some(Moment::ZERO)).unwrap() {
                let Event::Io(ready) = event else { continue };
                let mut calls = self.server.ready(ready, &self.reactor, at);
                while let Some(call) = calls.pop() {
                    ops.push(call.op);
                    calls.extend(self.server.answer(call.client, &Reply::Done, &self.reactor, at));
                }
            }
            self.server.tick(at);
            ops
        }

        fn turns(&mut self) -> Vec<Op> {
            (0..8).flat_map(|_| self.turn(now())).collect()
        }
    }

    fn replies(stream: &mut UnixStream) -> Vec<Reply> {
        let mut decoder = Decoder::new(frame::MAX_REPLY);
        let mut chunk = vec![0; 65536];
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            decoder.push(&chunk[..count]);
        }
        std::iter::from_fn(|| decoder.message().unwrap()).collect()
    }

    fn ask(stream: &mut UnixStream, op: Op) {
        stream.write_all(&frame::encode(&Request::new(op)).unwrap()).unwrap();
    }

    #[test]
    fn requests_are_answered_one_after_the_other_on_one_connection() {
        let mut world = World::new();
        let mut stream = world.connect();
        ask(&mut stream, Op::Status);
        ask(&mut stream, Op::Stop { service: "web".to_owned(), no_block: false });
        assert_eq!(world.turns(), [Op::Status, Op::Stop { service: "web".to_owned(), no_block: false }]);
        assert_eq!(replies(&mut stream), [Reply::Done, Reply::Done]);
        assert_eq!(world.server.deadline(), None, "no timer at rest");
    }

    /// `nc -N` and the like: the answer that took its time was written to nobody.
    #[test]
    fn a_client_that_ends_its_side_after_the_request_gets_its_answer_and_one_that_is_gone_does_not() {
        let mut world = World::new();
        let clients = || -> [UnixStream; 2] { [world.connect(), world.connect()] };
        let [mut waits, mut goes] = clients();
        let mut calls = Vec::new();
        for stream in [&mut waits, &mut goes] {
            ask(stream, Op::Stop { service: "web".to_owned(), no_block: false });
        }
        let serve = |world: &mut World| -> Vec<Call> {
            let events = world.reactor.wait(Some(Moment::ZERO)).unwrap();
            let serve = |event| match event {
                Event::Io(ready) => world.server.ready(ready, &world.reactor, now()),
                Event::Signal(_) => Vec::new(),
            };
            events.into_iter().flat_map(serve).collect()
        };
        (0..4).for_each(|_| calls.extend(serve(&mut world)));
        waits.shutdown(std::net::Shutdown::Write).unwrap();
        drop(goes);
        (0..4).for_each(|_| calls.extend(serve(&mut world)));
        let there: Vec<_> = calls.iter().map(|call| world.server.has(call.client)).collect();
        assert_eq!(there, [true, false]);
        assert_eq!(world.reactor.wait(Some(Moment::ZERO)).unwrap(), [], "its end is told once");
        world.server.answer(calls[0].client, &Reply::Done, &world.reactor, now());
        assert_eq!(replies(&mut waits), [Reply::Done]);
        assert!(world.server.clients.is_empty());
    }

    #[test]
    fn what_is_unknown_is_said_to_be_unsupported_and_the_connection_goes_on() {
        let mut world = World::new();
        let mut stream = world.connect();
        for text in [r#"{"version":1,"op":"dance"}"#, r#"{"version":99,"op":"status"}"#, "[]"] {
            stream.write_all(&(text.len() as u32).to_be_bytes()).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
        }
        ask(&mut stream, Op::Status);
        assert_eq!(world.turns(), [Op::Status]);
        let replies = replies(&mut stream);
        assert_eq!(replies.len(), 4);
        assert!(matches!(&replies[0], Reply::Error { code, .. } if code == "unsupported"), "{replies:?}");
    }

    #[test]
    fn garbage_closes_only_its_own_connection() {
        let mut world = World::new();
        let (mut bad, mut good) = (world.connect(), world.connect());
        bad.write_all(&[0xff; 64]).unwrap();
        ask(&mut good, Op::Status);
        assert_eq!(world.turns(), [Op::Status]);
        assert!(matches!(bad.read(&mut [0; 8]), Ok(0) | Err(_)));
        assert_eq!(replies(&mut good), [Reply::Done]);
        assert_eq!(world.server.clients.len(), 1);
    }

    #[test]
    fn a_request_that_never_gets_whole_is_closed_after_a_while() {
        let mut world = World::new();
        let mut stream = world.connect();
        stream.write_all(&[0, 0, 0]).unwrap();
        world.turns();
        assert!(world.server.deadline().is_some());
        world.turn(now() + PATIENCE * 2);
        assert!(world.server.clients.is_empty() && world.server.deadline().is_none());
    }

    #[test]
    fn idle_connections_make_room_for_new_ones() {
        let mut world = World::new();
        let crowd: Vec<_> = (0..MAX_CLIENTS + 20).map(|_| world.connect()).collect();
        world.turns();
        assert_eq!(world.server.clients.len(), MAX_CLIENTS);
        let mut stream = world.connect();
        ask(&mut stream, Op::Status);
        assert_eq!(world.turns(), [Op::Status]);
        drop(crowd);
    }

    #[test]
    fn a_client_that_reads_nothing_is_closed_and_holds_bounded_memory() {
        let mut world = World::new();
        let mut ring = Ring::new(world.dir.path().join("log"), "init");
        ring.open().unwrap();
        for number in 0..2000_u32 {
            ring.push(Moment::from_nanos(u64::from(number)), Level::Info, "init", &"x".repeat(200));
        }
        let mut stream = world.connect();
        for _ in 0..50 {
            ask(&mut stream, Op::Logs { follow: false, service: None, since_ms: None });
        }
        world.turns();
        let held: usize = world.server.clients.values().map(|client| client.out.len()).sum();
        assert!(held < 256 * 1024, "{held}");
        world.turn(now() + PATIENCE * 2);
        assert!(world.server.clients.is_empty());
    }

    #[test]
    fn the_log_is_read_and_followed_and_nothing_is_watched_afterwards() {
        let mut world = World::new();
        let mut ring = Ring::new(world.dir.path().join("log"), "init");
        ring.open().unwrap();
        ring.push(Moment::from_nanos(1), Level::Info, "init", "first");
        ring.push(Moment::from_nanos(2), Level::Info, "web", "other");
        let mut stream = world.connect();
        ask(&mut stream, Op::Logs { follow: true, service: Some("init".to_owned()), since_ms: None });
        world.turns();
        ring.push(Moment::from_nanos(3), Level::Info, "init", "second");
        world.turns();
        let texts: Vec<_> = replies(&mut stream)
            .into_iter()
            .flat_map(|reply| match reply {
                Reply::Records { records, .. } => records,
                other => panic!("{other:?}"),
            })
            .map(|record| record.text)
            .collect();
        assert_eq!(texts, ["first", "second"]);
        assert!(world.server.watch.is_some());
        drop(stream);
        world.turns();
        assert!(world.server.watch.is_none() && world.server.clients.is_empty());
    }

    #[test]
    fn without_following_the_log_ends_with_done() {
        let mut world = World::new();
        let mut stream = world.connect();
        ask(&mut stream, Op::Logs { follow: false, service: None, since_ms: None });
        world.turns();
        assert_eq!(replies(&mut stream), [Reply::Done]);
    }
}
