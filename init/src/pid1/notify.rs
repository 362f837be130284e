//! The notify socket: how services, envd-wrapper first, tell how they are.

use std::{
    fs, io,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    path::Path,
};

use guest::reactor::{Interest, Reactor};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use super::machine::tokens;

/// Messages taken in one turn.
const BATCH: usize = 32;
/// envd-wrapper sends its state with the last lines of a dead envd.
const MAX_MESSAGE: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct NotifySocket {
    fd: OwnedFd,
}

/// One message and who sent it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) pid: i32,
    pub(super) bytes: Vec<u8>,
}

impl NotifySocket {
    /// Services may run as any user, so anybody may write; whose message it is tells the kernel.
    pub(super) fn open(path: &Path, reactor: &Reactor) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        let fd = OwnedFd::from(socket);
        reactor.add(&fd, tokens::NOTIFY, Interest::Read).map_err(io::Error::other)?;
        Ok(Self { fd })
    }

    /// What is there, in bounded number.
    pub(super) fn receive(&self) -> Vec<Message> {
        let mut buffer = vec![0; MAX_MESSAGE];
        (0..BATCH).map_while(|_| self.receive_one(&mut buffer)).collect()
    }

    fn receive_one(&self, buffer: &mut [u8]) -> Option<Message> {
        let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.fd.as_raw_fd(), &mut slices, Some(&mut space), flags).ok()?;
        let sender = received.cmsgs().ok()?.find_map(|message| match message {
            ControlMessageOwned::ScmCredentials(sender) => Some(sender.pid()),
            _ => None,
        });
        let count = received.bytes;
        Some(Message { pid: sender.unwrap_or(0), bytes: buffer[..count].to_vec() })
    }
}
