//! The one process that keeps privileges: it enters network namespaces and reaches sockets that others may not, makes
//! the socket there, and hands it to the bridge. It is this program started again as `envdctl bridge-broker`, with
//! one end of a socket pair as its standard input; it ends with the bridge.
//!
//! ```text
//! bridge                                         broker
//!   u32 id, u8 kind, path                   →      kind: N, n a TCP socket (IPv4, IPv6) inside the namespace at path
//!                                                        U    a connection to the unix socket at path
//!                                           ←    u32 id, i32 errno (0: the socket comes along, by SCM_RIGHTS)
//! ```
//!
//! A namespace is opened by its path for every request: names are recycled, and a handle kept from before would lead
//! into the sandbox that had the name then. It is left again at once: whoever stays in one keeps it, its devices and
//! its addresses alive after its name was deleted.
//!
//! | the broker | leaves |
//! |---|---|
//! | answers | the channel fails, or it was killed → gone |
//! | gone | what is asked fails at once; nothing that is known of routes is acted on; the bridge lets its connections end, and ends |
//!
//! A bridge without its broker cannot start another, since its privileges are dropped: its service manager starts both anew.
//!
//! Signals that mean the bridge (a service manager's stop and a terminal's Ctrl-C reach both processes) are not the
//! broker's: the bridge still drains, and needs it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};
use vsock_relay::{endpoint::Endpoint, socket};

use super::connect::{Stream, adopt};

/// The hidden subcommand that runs the broker.
pub(super) const SUBCOMMAND: &str = "bridge-broker";
/// The longest path (bytes) that is taken.
const MAX_PATH: usize = 4096;
const HEADER: usize = 5;
/// Opening a path can hang on a dead file system; then the route is broken, not the bridge.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often, and after which pauses, it is looked at how the broker ended.
const END_LOOKS: u32 = 20;
const END_PAUSE: Duration = Duration::from_millis(5);

/// Why the broker gave no socket; each reads as the reason for leaving a route.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the network namespace {} cannot be entered ({source})", path.display())]
    Namespace { path: PathBuf, source: io::Error },
    #[error(
        "{} is no network namespace: it was deleted, or it is mounted where the bridge does not see it (a mount \
         namespace of its own without propagation)",
        path.display()
    )]
    NoNamespace { path: PathBuf },
    #[error("the socket {} cannot be reached ({source})", path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("network namespaces need root or CAP_SYS_ADMIN, which the bridge was started without")]
    Absent,
    #[error("the helper process that enters network namespaces has ended")]
    Gone,
    #[error("the helper process that enters network namespaces hangs on {}", path.display())]
    Hangs { path: PathBuf },
    #[error("cannot start the helper process that enters network namespaces")]
    Start(#[source] io::Error),
}

type Answer = io::Result<OwnedFd>;

/// The bridge's side.
#[derive(Debug)]
pub(super) struct Broker {
    channel: Stream,
    waiting: Mutex<Waiting>,
    /// Told when it is gone.
    ended: Notify,
    /// It ends when the channel closes.
    process: Mutex<Child>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u32,
    answers: HashMap<u32, oneshot::Sender<Answer>>,
    gone: bool,
}

/// A broker that was started before the runtime: privileges are dropped between the two.
#[derive(Debug)]
pub(super) struct Started {
    channel: OwnedFd,
    process: Child,
}

/// Starts the broker process.
pub(super) fn start() -> Result<Started, BrokerError> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| BrokerError::Start(errno.into()))?;
    let program = std::env::current_exe().map_err(BrokerError::Start)?;
    let process = Command::new(program)
        .arg(SUBCOMMAND)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(BrokerError::Start)?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| BrokerError::Start(errno.into()))?;
    Ok(Started { channel: ours, process })
}

impl Broker {
    /// Attaches a started broker to the runtime.
    pub(super) fn attach(started: Started) -> io::Result<Arc<Self>> {
        let broker = Arc::new(Self {
            channel: adopt(started.channel)?,
            waiting: Mutex::default(),
            ended: Notify::new(),
            process: Mutex::new(started.process),
        });
        let receiver = Arc::clone(&broker);
        tokio::spawn(async move { receiver.receive().await });
        Ok(broker)
    }

    /// A TCP socket that lives in the namespace at `path`.
    pub(super) async fn netns_socket(&self, path: &Path, ipv6: bool) -> Result<OwnedFd, BrokerError> {
        let kind = if ipv6 { b'n' } else { b'N' };
        let answer = self.ask(kind, path).await?;
        let path = || path.to_owned();
        answer.map_err(|source| match source.raw_os_error() {
            Some(nix::libc::EINVAL) => BrokerError::NoNamespace { path: path() },
            _ => BrokerError::Namespace { path: path(), source },
        })
    }

    /// A connection to a unix socket.
    pub(super) async fn unix_connect(&self, path: &Path) -> Result<OwnedFd, BrokerError> {
        let answer = self.ask(b'U', path).await?;
        answer.map_err(|source| BrokerError::Unix { path: path.to_owned(), source })
    }

    async fn ask(&self, kind: u8, path: &Path) -> Result<Answer, BrokerError> {
        let (id, answer) = self.register()?;
        let request = [&id.to_be_bytes()[..], &[kind], path.as_os_str().as_bytes()].concat();
        let sent = self.channel.async_io(tokio::io::Interest::WRITABLE, || {
            Ok(rustix::net::send(&self.channel, &request, SendFlags::NOSIGNAL)?)
        });
        let exchange = async {
            sent.await.map_err(|_| BrokerError::Gone)?;
            answer.await.map_err(|_| BrokerError::Gone)
        };
        let result = timeout(PATIENCE, exchange).await;
        result.unwrap_or_else(|_| {
            self.lock().answers.remove(&id);
            Err(BrokerError::Hangs { path: path.to_owned() })
        })
    }

    fn register(&self) -> Result<(u32, oneshot::Receiver<Answer>), BrokerError> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.gone {
            return Err(BrokerError::Gone);
        }
        let id = waiting.next;
        waiting.next = id.wrapping_add(1);
        waiting.answers.insert(id, sender);
        Ok((id, receiver))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when the broker is gone; how that came.
    pub(super) async fn ended(&self) -> String {
        while !self.is_gone() {
            self.ended.notified().await;
        }
        // A process closes its channel a moment before it can be waited for.
        for _ in 0..END_LOOKS {
            let status = self.process.lock().unwrap_or_else(PoisonError::into_inner).try_wait();
            if let Ok(Some(status)) = status {
                return status.to_string();
            }
            sleep(END_PAUSE).await;
        }
        "its channel failed".to_owned()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.lock().gone
    }

    async fn receive(&self) {
        while let Ok(Some((id, answer))) = self
            .channel
            .async_io(tokio::io::Interest::READABLE, || receive_answer(self.channel.as_fd()))
            .await
        {
            // The one who asked may have lost patience; then the socket is closed here.
            let sender = self.lock().answers.remove(&id);
            drop(sender.map(|sender| sender.send(answer)));
        }
        let mut waiting = self.lock();
        waiting.gone = true;
        waiting.answers.clear();
        self.ended.notify_one();
    }
}

/// One answer; `None` when the broker is gone.
fn receive_answer(channel: BorrowedFd<'_>) -> io::Result<Option<(u32, Answer)>> {
    let mut bytes = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(channel, &mut parts, &mut control, flags)?;
    if received.bytes < 8 {
        return Ok(None);
    }
    let socket = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let errno = word(4) as i32;
    // A socket that the kernel could not deliver: too many files are open here.
    let errno = if errno == 0 { nix::libc::EMFILE } else { errno };
    let answer = socket.ok_or_else(|| io::Error::from_raw_os_error(errno));
    Ok(Some((word(0), answer)))
}

/// The broker's own loop: answers one request after the other until the bridge is gone.
pub(super) fn serve(channel: BorrowedFd<'_>) -> io::Result<()> {
    let not_ours = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    SigSet::from_iter(not_ours).thread_block()?;
    let home = File::open("/proc/self/ns/net")?;
    let mut request = [0; HEADER + MAX_PATH];
    loop {
        let (count, _) = match rustix::net::recv(channel, &mut request, RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        if count <= HEADER {
            return Ok(());
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(&request[HEADER..count]));
        let answer = make(request[4], path, &home);
        send_answer(channel, &request[..4], &answer)?;
    }
}

fn make(kind: u8, path: &Path, home: &File) -> Answer {
    match kind {
        b'N' => netns_socket(path, home, AddressFamily::INET),
        b'n' => netns_socket(path, home, AddressFamily::INET6),
        b'U' => match socket::dial(&Endpoint::Unix(path.to_owned()))? {
            socket::Dialed::Connected(socket) | socket::Dialed::Pending(socket) => Ok(socket),
        },
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn netns_socket(path: &Path, home: &File, family: AddressFamily) -> Answer {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None);
    setns(home, CloneFlags::CLONE_NEWNET)?;
    Ok(socket?)
}

fn send_answer(channel: BorrowedFd<'_>, id: &[u8], answer: &Answer) -> io::Result<()> {
    let errno = answer.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(nix::libc::EIO));
    let bytes = [id, &errno.to_be_bytes()].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets = answer.as_ref().map(|socket| [socket.as_fd()]);
    if let Ok(sockets) = &sockets {
        control.push(SendAncillaryMessage::ScmRights(sockets));
    }
    rustix::net::sendmsg(channel, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When no more files may be open the kernel delivers the answer without its socket.
    #[test]
    fn an_answer_that_lost_its_socket_names_the_want_of_files() {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::send(&theirs, &[0, 0, 0, 7, 0, 0, 0, 0], SendFlags::empty()).unwrap();
        let (id, answer) = receive_answer(ours.as_fd()).unwrap().unwrap();
        assert_eq!((id, answer.unwrap_err().raw_os_error()), (7, Some(nix::libc::EMFILE)));
    }
}
