//! One run, and what is known of its processes.

use std::os::fd::OwnedFd;

use serde_bytes::ByteBuf;

use super::{clock, exits, proc};
use crate::ipc::keeper::{RunName, RunState, SlotName};

/// A run, from its birth until both its ends are acknowledged.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) slot: SlotName,
    pub(super) memo: ByteBuf,
    pub(super) pid: u32,
    pub(super) inode: u64,
    /// When it began, in nanoseconds since boot.
    pub(super) began_ns: Option<u64>,
    pub(super) adopted: bool,
    pub(super) main: MainProcess,
    pub(super) tree: Tree,
    pub(super) ready: Option<OwnedFd>,
    pub(super) exit_acknowledged: bool,
    pub(super) gone_acknowledged: bool,
}

/// What is known of a main process.
#[derive(Debug)]
pub(super) enum MainProcess {
    /// It runs and is our child.
    Child { pidfd: OwnedFd },
    /// It runs, or its parent has not reaped it; an earlier keeper started it.
    Foreign { pidfd: OwnedFd },
    /// It is gone and nobody told how; the agent may still have its pidfd.
    Lost,
    /// It has ended and the fact is out. A child's zombie is kept.
    Ended { pidfd: Option<OwnedFd>, is_child: bool },
    /// Nothing is left of it.
    Reaped,
}

/// What is known of a run's processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    Lives,
    /// It was told to die; what is found of it is killed again.
    Dying,
    Gone,
}

impl Run {
    pub(super) fn adopted(slot: SlotName, memo: ByteBuf, pid: u32, pidfd: Option<OwnedFd>) -> Self {
        Self {
            slot,
            memo,
            pid,
            inode: pidfd.as_ref().map(exits::inode).unwrap_or_default(),
            began_ns: pidfd.as_ref().and_then(|_| proc::began_ns(pid)),
            adopted: true,
            main: pidfd.map_or(MainProcess::Lost, |pidfd| MainProcess::Foreign { pidfd }),
            tree: Tree::Lives,
            ready: None,
            exit_acknowledged: false,
            gone_acknowledged: false,
        }
    }

    /// Returns how long its main process has run, in milliseconds.
    pub(super) fn ran_ms(&self) -> Option<u64> {
        Some(clock::since_boot_ns().saturating_sub(self.began_ns?) / 1_000_000)
    }

    pub(super) fn pidfd(&self) -> Option<&OwnedFd> {
        match &self.main {
            MainProcess::Child { pidfd } | MainProcess::Foreign { pidfd } => Some(pidfd),
            MainProcess::Ended { pidfd, .. } => pidfd.as_ref(),
            MainProcess::Lost | MainProcess::Reaped => None,
        }
    }

    /// The number of the session, as long as no other session can have it.
    ///
    /// Never that of an adopted run that has ended: its number may belong to another by then.
    pub(super) fn session(&self) -> Option<u32> {
        match &self.main {
            MainProcess::Child { .. }
            | MainProcess::Foreign { .. }
            | MainProcess::Ended { is_child: true, .. } => Some(self.pid),
            MainProcess::Ended { .. } | MainProcess::Lost | MainProcess::Reaped => None,
        }
    }

    pub(super) fn reap(&mut self) {
        if let MainProcess::Ended { pidfd, is_child } = &self.main {
            if let Some(pidfd) = pidfd.as_ref().filter(|_| *is_child) {
                exits::reap(pidfd);
            }
            self.main = MainProcess::Reaped;
        }
    }

    pub(super) fn state(&self, name: &RunName) -> RunState {
        RunState {
            run: name.clone(),
            slot: self.slot.clone(),
            memo: self.memo.clone(),
            pid: self.pid,
            inode: self.inode,
            adopted: self.adopted,
            main_lives: matches!(
                self.main,
                MainProcess::Child { .. } | MainProcess::Foreign { .. }
            ),
            tree_lives: self.tree != Tree::Gone,
        }
    }
}
