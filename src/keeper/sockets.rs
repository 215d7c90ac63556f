//! Listening sockets, which outlive the runs that are served by them: whoever connects while a service is started again
//! waits in the queue of the socket. They are passed as `LISTEN_FDS` says.
//!
//! The launcher has a duplicate of each, so that they outlive the keeper as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, lchown};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::vault::Deposit;
use crate::ipc::keeper::{Account, RunName, SlotName};
use crate::ipc::listen::{Address, Listening};

/// Where the duplicates for a process begin: above every number that they are to have in it.
const DUPLICATES_FROM: i32 = 1024;

/// What is known of a socket beside its descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) listening: Listening,
    /// The slots whose runs have it.
    pub(super) slots: BTreeSet<SlotName>,
}

/// The sockets of all services, by key.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    held: BTreeMap<String, (Known, OwnedFd)>,
}

impl Sockets {
    /// Goes on with the sockets of an earlier keeper.
    pub(super) fn of(held: BTreeMap<String, (Known, OwnedFd)>) -> Self {
        Self { held }
    }

    /// Makes what a slot wants and does not have, closes what it had and does not want, and returns duplicates in the
    /// order of `wanted`.
    pub(super) fn open(
        &mut self,
        slot: &SlotName,
        run: &RunName,
        wanted: &[Listening],
        account: Option<&Account>,
        deposit: &Deposit,
    ) -> io::Result<Vec<OwnedFd>> {
        let is_wanted = |key: &str| wanted.iter().any(|listening| listening.key == key);
        for listening in wanted {
            self.rename(listening, is_wanted, deposit);
        }
        self.leave(slot, is_wanted, deposit);
        let of_run = slot_of(run);
        let opened = wanted.iter().map(|listening| {
            let is_its_own = listening.key.split('/').next() == Some(run.as_str());
            let holder = if is_its_own { &of_run } else { slot };
            self.open_one(holder, listening, account, deposit)
        });
        opened.collect()
    }

    /// Closes what no slot but this one has.
    pub(super) fn close(&mut self, slot: &SlotName, deposit: &Deposit) {
        self.leave(slot, |_| false, deposit);
    }

    /// Closes what a run has that is gone, and no other had.
    pub(super) fn close_of_run(&mut self, run: &RunName, deposit: &Deposit) {
        self.leave(&slot_of(run), |_| false, deposit);
    }

    /// Lets a socket that the service has by another name, which it does not want any more, go by the wanted one: closed
    /// and made anew, its address would be taken for as long as the launcher has not heard of it.
    fn rename(&mut self, wanted: &Listening, is_wanted: impl Fn(&str) -> bool, deposit: &Deposit) {
        if self.held.contains_key(&wanted.key) {
            return;
        }
        let holder = |key: &str| key.split('/').next().map(str::to_owned);
        let other = self.held.iter().find(|(key, (known, _))| {
            !is_wanted(key)
                && holder(key) == holder(&wanted.key)
                && known.listening.address == wanted.address
        });
        if let Some(key) = other.map(|(key, _)| key.clone())
            && let Some(held) = self.held.remove(&key)
        {
            deposit.forget_socket(&key);
            self.held.insert(wanted.key.clone(), held);
        }
    }

    fn leave(&mut self, slot: &SlotName, but: impl Fn(&str) -> bool, deposit: &Deposit) {
        let left = self.held.iter_mut().filter(|(key, _)| !but(key.as_str()));
        let unused: Vec<String> = left
            .filter_map(|(key, (known, _))| {
                (known.slots.remove(slot) && known.slots.is_empty()).then(|| key.clone())
            })
            .collect();
        for key in unused {
            deposit.forget_socket(&key);
            if let Some((known, socket)) = self.held.remove(&key) {
                drop(socket);
                known.listening.address.leave();
            }
        }
    }

    fn open_one(
        &mut self,
        slot: &SlotName,
        wanted: &Listening,
        account: Option<&Account>,
        deposit: &Deposit,
    ) -> io::Result<OwnedFd> {
        let is_same = |known: &Known| known.listening.address == wanted.address;
        let fits = |known: &Known| is_same(known) && wanted.address.is_there();
        let mut is_news = false;
        if !self.held.get(&wanted.key).is_some_and(|(known, _)| fits(known)) {
            // Closed first: the new one may be at a part of the old address.
            let before = self.held.remove(&wanted.key).map(|(known, socket)| {
                drop(socket);
                if !is_same(&known) {
                    known.listening.address.leave();
                }
                known.slots
            });
            let socket = wanted.bind(account)?;
            let known = Known { listening: wanted.clone(), slots: before.unwrap_or_default() };
            self.held.insert(wanted.key.clone(), (known, socket));
            is_news = true;
        }
        let (known, socket) = self.held.get_mut(&wanted.key).expect("it was put in above");
        is_news |= known.slots.insert(slot.clone()) || known.listening != *wanted;
        if known.listening.backlog != wanted.backlog {
            wanted.listen(socket)?;
        }
        known.listening = wanted.clone();
        if is_news {
            deposit.keep_socket(known, socket.as_fd());
        }
        Ok(rustix::io::fcntl_dupfd_cloexec(socket, DUPLICATES_FROM)?)
    }
}

impl Listening {
    fn bind(&self, account: Option<&Account>) -> io::Result<OwnedFd> {
        let (family, kind) = match &self.address {
            Address::Tcp(at) => (family(at), SocketType::STREAM),
            Address::Udp(at) => (family(at), SocketType::DGRAM),
            Address::Unix(_) => (AddressFamily::UNIX, SocketType::STREAM),
        };
        // It blocks, as daemons that are given one expect.
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        match &self.address {
            Address::Tcp(at) | Address::Udp(at) => {
                if matches!(self.address, Address::Tcp(_)) {
                    // Connections of the life before may still be closing.
                    sockopt::set_socket_reuseaddr(&socket, true)?;
                }
                if at.is_ipv6() {
                    sockopt::set_ipv6_v6only(&socket, false)?;
                }
                rustix::net::bind(&socket, at)?;
            }
            Address::Unix(path) => {
                clear_dead(Path::new(path))?;
                // The file gets the mode that the socket has when it is bound, but for what is masked.
                rustix::fs::fchmod(&socket, Mode::from_raw_mode(self.mode))?;
                let mask = rustix::process::umask(Mode::empty());
                let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_str())?);
                rustix::process::umask(mask);
                bound?;
                if let Some(account) = account {
                    lchown(path, Some(account.uid), Some(account.gid))?;
                }
            }
        }
        self.listen(&socket)?;
        Ok(socket)
    }

    fn listen(&self, socket: &OwnedFd) -> io::Result<()> {
        match self.address {
            Address::Tcp(_) | Address::Unix(_) => {
                let backlog = i32::try_from(self.backlog).unwrap_or(i32::MAX);
                Ok(rustix::net::listen(socket, backlog)?)
            }
            Address::Udp(_) => Ok(()),
        }
    }
}

impl Address {
    /// Says whether who seeks the address may still find it: a path can be taken away.
    fn is_there(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Udp(_) => true,
            Self::Unix(path) => is_socket(Path::new(path)),
        }
    }

    /// Removes what a closed socket leaves behind.
    fn leave(&self) {
        if let Self::Unix(path) = self
            && is_socket(Path::new(path))
            && let Err(error) = fs::remove_file(path)
        {
            warn!(path, %error, "a socket that nobody listens at stays");
        }
    }
}

/// A socket that a run shares with no other is held under the run's own name.
fn slot_of(run: &RunName) -> SlotName {
    run.as_str().parse().expect("a run's name has the form of a slot's name")
}

fn family(at: &std::net::SocketAddr) -> AddressFamily {
    if at.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Removes a socket at which nobody listens any more; anything else stays, and is in the way.
fn clear_dead(path: &Path) -> io::Result<()> {
    let is_dead = || {
        UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if is_socket(path) && is_dead() { fs::remove_file(path) } else { Ok(()) }
}
