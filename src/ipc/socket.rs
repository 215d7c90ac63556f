//! The synchronous end of a `SOCK_SEQPACKET` socket: no call here waits, `WouldBlock` is an answer.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;

use super::frame::{self, DESCRIPTORS_MAX, FrameError, PACKET_BYTES_MAX, Packet, Received};

/// Connections that wait to be accepted; the parts of one node are three.
const BACKLOG: i32 = 16;

/// Says why nothing was sent or received.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The other side is gone.
    #[error("the other side has closed the connection")]
    Closed,
    /// The packet was cut, because it or its descriptors are more than a packet may hold.
    #[error("a packet is larger than {PACKET_BYTES_MAX} bytes or {DESCRIPTORS_MAX} descriptors")]
    Oversize,
    /// The packet holds no message that belongs here.
    #[error("a packet holds no message")]
    Frame(#[from] FrameError),
    /// The kernel refused.
    #[error("the socket failed")]
    Io(#[source] io::Error),
}

impl SocketError {
    fn from_errno(errno: rustix::io::Errno) -> Self {
        match errno {
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Self::Closed,
            other => Self::Io(other.into()),
        }
    }

    /// Says whether the call would have had to wait.
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Who is on the other side, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process when it connected.
    pub pid: u32,
    /// Its user when it connected.
    pub uid: u32,
    /// Its group when it connected.
    pub gid: u32,
}

/// Makes a socket that listens at `path`, replacing what stands there.
///
/// The path may be longer than a socket address: the folder is reached through a descriptor.
///
/// # Errors
/// When the folder does not exist or the kernel refuses.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let (folder, address) = address(path)?;
    let socket = seqpacket()?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    drop(folder);
    Ok(socket)
}

/// Connects to the socket at `path`. Both ends are non-blocking and close on exec.
///
/// # Errors
/// When nobody listens there, or more wait there than may.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (folder, address) = address(path)?;
    let socket = seqpacket()?;
    rustix::net::connect(&socket, &address)?;
    drop(folder);
    Ok(socket)
}

/// Accepts a connection, if one waits.
///
/// # Errors
/// `WouldBlock` when none waits.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Makes two ends that are connected with each other.
///
/// # Errors
/// When the kernel has no descriptor left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Returns who connected.
///
/// # Errors
/// When the descriptor is no connected socket.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Peer {
        pid: peer.pid.as_raw_nonzero().get().unsigned_abs(),
        uid: peer.uid.as_raw(),
        gid: peer.gid.as_raw(),
    })
}

/// Sends a packet whole or not at all.
///
/// # Errors
/// [`SocketError::would_block`] when the other side does not read.
pub fn send(socket: impl AsFd, packet: &Packet) -> Result<(), SocketError> {
    let descriptors = packet.descriptors();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(SocketError::Oversize);
    }
    let bytes = [IoSlice::new(packet.bytes())];
    rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        .map_err(SocketError::from_errno)?;
    Ok(())
}

/// The room for one packet, kept from one to the next.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { bytes: vec![0; PACKET_BYTES_MAX].into_boxed_slice() }
    }
}

impl Inbox {
    /// Receives one message, if one waits.
    ///
    /// # Errors
    /// [`SocketError::would_block`] when none waits; after any other error but
    /// [`SocketError::Frame`] the connection is of no use any more.
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        socket: impl AsFd,
    ) -> Result<Received<T>, SocketError> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut slices = [IoSliceMut::new(&mut self.bytes)];
        let got = rustix::net::recvmsg(socket, &mut slices, &mut control, flags)
            .map_err(SocketError::from_errno)?;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(SocketError::Oversize);
        }
        if got.bytes == 0 {
            return Err(SocketError::Closed);
        }
        Ok(frame::open(&self.bytes[..got.bytes], descriptors)?)
    }
}

/// Waits until `socket` can be read, at most `timeout`; says whether it can.
///
/// For the command line and for tests; the parts wait for all their events in one place.
///
/// # Errors
/// When the kernel refuses.
pub fn wait_readable(socket: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&timeout))? > 0)
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Returns a short address for `path`, valid while the folder's descriptor lives.
fn address(path: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((folder, SocketAddrUnix::new(short)?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (left, right) = pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&left, &Packet::with_descriptors(&"take", vec![writer]).unwrap()).unwrap();
        let mut got = Inbox::default().receive::<String>(&right).unwrap();
        assert_eq!(got.message, "take");
        let writer = got.descriptors.pop().unwrap();
        assert_eq!(rustix::io::write(&writer, b"x").unwrap(), 1);
        drop(writer);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn an_end_that_closes_is_told_from_one_that_is_silent() {
        let (left, right) = pair().unwrap();
        let mut inbox = Inbox::default();
        assert!(inbox.receive::<String>(&right).unwrap_err().would_block());
        drop(left);
        assert!(matches!(inbox.receive::<String>(&right), Err(SocketError::Closed)));
        let packet = Packet::new(&"lost").unwrap();
        assert!(matches!(send(&right, &packet), Err(SocketError::Closed)));
    }

    #[test]
    fn a_socket_is_reached_by_a_path_longer_than_an_address() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = listen(&deep.join("s.sock")).unwrap();
        let client = connect(&deep.join("s.sock")).unwrap();
        let served = accept(&listener).unwrap();
        assert_eq!(peer(&served).unwrap().pid, std::process::id());
        send(&client, &Packet::new(&1).unwrap()).unwrap();
        assert_eq!(Inbox::default().receive::<i32>(&served).unwrap().message, 1);
    }

    #[test]
    fn garbage_is_one_error_and_the_connection_goes_on() {
        let (left, right) = pair().unwrap();
        let mut inbox = Inbox::default();
        rustix::net::send(&left, b"\xff\xff", SendFlags::empty()).unwrap();
        assert!(matches!(inbox.receive::<String>(&right), Err(SocketError::Frame(_))));
        send(&left, &Packet::new(&"good").unwrap()).unwrap();
        assert_eq!(inbox.receive::<String>(&right).unwrap().message, "good");
    }
}
