//! Hears the signs of life that services give by themselves: datagrams on `NOTIFY_SOCKET`, and a line on a pipe.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::wake::{Wake, Waker};
use crate::domain::id::{InstanceId, RunId};
use crate::ipc::channel;

/// The longest datagram that is read, in bytes; systemd's own limit is 4096 for the text.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// Listens to the notify socket of a slot until the task is aborted.
///
/// # Errors
/// When the descriptor cannot be watched.
pub(super) fn hear_notify(
    instance: InstanceId,
    socket: OwnedFd,
    waker: Waker,
) -> io::Result<JoinHandle<()>> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    let socket = channel::watch(socket)?;
    Ok(tokio::spawn(async move {
        while let Ok((pid, text)) = datagram(&socket).await {
            let wake = Wake::Notify { instance: instance.clone(), pid, text };
            if waker.send(wake).await.is_err() {
                return;
            }
        }
    }))
}

/// Waits for one line end on the readiness pipe of a run.
///
/// # Errors
/// When the descriptor cannot be watched.
pub(super) fn hear_ready_fd(
    instance: InstanceId,
    run: RunId,
    pipe: OwnedFd,
    waker: Waker,
) -> io::Result<JoinHandle<()>> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let pipe = channel::watch(pipe)?;
    Ok(tokio::spawn(async move {
        if line_end(&pipe).await {
            drop(waker.send(Wake::ReadyFd { instance, run }).await);
        }
    }))
}

/// Says whether `pid` may speak for a service whose main process is `main`: it, or a process of its session.
pub(super) fn speaks_for(pid: u32, main: u32) -> bool {
    if pid == main {
        return true;
    }
    // The sixth field, behind the name in brackets, is the session: the keeper makes each main process its leader.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3));
    session.and_then(|text| text.parse().ok()) == Some(main)
}

async fn datagram(socket: &AsyncFd<OwnedFd>) -> io::Result<(u32, String)> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| receive(socket.get_ref())) {
            Ok(received) => {
                if let Some(received) = received? {
                    return Ok(received);
                }
            }
            Err(_would_block) => {}
        }
    }
}

/// Reads a datagram; `None` when it came without the sender's credentials, so nobody can be held to it.
fn receive(socket: &OwnedFd) -> io::Result<Option<(u32, String)>> {
    let mut bytes = [0; DATAGRAM_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(socket.as_fd(), &mut parts, &mut ancillary, flags)?.bytes;
    let pid = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.pid.as_raw_nonzero().get()),
        _ => None,
    });
    let text = String::from_utf8_lossy(&bytes[..got]).into_owned();
    Ok(pid.and_then(|pid| u32::try_from(pid).ok()).map(|pid| (pid, text)))
}

/// Waits until a line end comes; false when the writer is gone without one.
async fn line_end(pipe: &AsyncFd<OwnedFd>) -> bool {
    let mut bytes = [0; 256];
    loop {
        let Ok(mut ready) = pipe.readable().await else { return false };
        match ready.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), &mut bytes)?)) {
            Ok(Ok(0) | Err(_)) => return false,
            Ok(Ok(count)) if bytes[..count].contains(&b'\n') => return true,
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}
