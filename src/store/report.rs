//! What verification finds: faults by their place, and what each epoch holds.

use std::fmt;
use std::path::PathBuf;

use crate::domain::id::{Digest, EpochId, Seq};
use crate::store::{EventPos, Predecessor};

/// After so many faults the rest is only counted.
const FAULTS_MAX: usize = 10_000;

/// A head that the reader has seen before, or that a witness has signed: the log must still hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The epoch.
    pub epoch: EpochId,
    /// How many rows it had.
    pub size: u64,
    /// The root over them.
    pub root: Digest,
}

/// What a row says about the log that it stands in. The store cannot read it; whoever judges the rows can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    #[default]
    Nothing,
    /// The epoch begins, and this went before it.
    Opened(Option<Predecessor>),
    /// Retention drops rows, and everything before them is dropped.
    Retired {
        /// The epoch of the rows.
        epoch: EpochId,
        /// The last of them.
        last: Seq,
        /// The root up to it.
        root: Digest,
    },
}

impl From<()> for Told {
    fn from((): ()) -> Self {
        Self::Nothing
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row is not what it was.
    Event {
        /// Which.
        at: EventPos,
        /// How it shows.
        why: String,
    },
    /// The bytes of a file do not form a segment at this place.
    Structure {
        /// The file.
        path: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// Rows are gone.
    Missing {
        /// The epoch.
        epoch: EpochId,
        /// The first of them.
        first: Seq,
        /// The last of them; [`Seq::MAX`] when nobody can say.
        last: Seq,
    },
    /// The newest commit of a file is not whole, and the one before it was read.
    ///
    /// It was under way when its writer died, so that nobody was told of it; or it was damaged since.
    Unfinished {
        /// The file.
        path: PathBuf,
        /// The last row of the commit before.
        last: EventPos,
    },
    /// Rows that were signed were set aside as damaged, and the next epoch does not build on them.
    SetAside {
        /// The epoch.
        epoch: EpochId,
        /// The last row that the next epoch builds on.
        base: u64,
        /// The last row that was signed.
        signed: u64,
    },
    /// The rows up to here lead to another root than the one that was written or signed.
    Root {
        /// The row after which the root differs.
        at: EventPos,
        /// Whose root it is.
        whose: &'static str,
    },
    /// A checkpoint is not signed by any of the keys, or not for this log.
    Checkpoint {
        /// The size it speaks of.
        at: EventPos,
        /// What is wrong.
        why: String,
    },
    /// The log is shorter than a head that was seen before.
    TailCut {
        /// The epoch.
        epoch: EpochId,
        /// How many rows there are.
        have: u64,
        /// How many there were.
        pinned: u64,
    },
    /// An epoch is gone, or not linked to the one before it.
    EpochChain {
        /// The epoch that should be there or be linked.
        epoch: EpochId,
        /// What is wrong.
        why: &'static str,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { at, why } => write!(f, "event {at}: {why}"),
            Self::Structure { path, offset, why } => {
                write!(f, "structure at offset {offset} of {}: {why}", path.display())
            }
            Self::Missing { epoch, first, last: Seq::MAX } => {
                write!(f, "missing segment: events from {first} on of epoch {}", epoch.token())
            }
            Self::Missing { epoch, first, last } => {
                write!(f, "missing segment: events {first} to {last} of epoch {}", epoch.token())
            }
            Self::Unfinished { path, last } => write!(
                f,
                "event {last}: the commit after it in {} is not whole: cut off before anybody was told of it, or damaged",
                path.display()
            ),
            Self::SetAside { epoch, base, signed } => write!(
                f,
                "epoch {}: {signed} events were signed, and the next epoch builds on {base} of them",
                epoch.token()
            ),
            Self::Root { at, whose } => {
                write!(f, "event {at}: the events up to it do not lead to the root {whose}")
            }
            Self::Checkpoint { at, why } => write!(f, "checkpoint at {at}: {why}"),
            Self::TailCut { epoch, have, pinned } => write!(
                f,
                "tail cut: epoch {} has {have} events, the pin saw {pinned}",
                epoch.token()
            ),
            Self::EpochChain { epoch, why } => write!(f, "epoch {}: {why}", epoch.token()),
        }
    }
}

impl fmt::Display for EventPos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch.token(), self.seq)
    }
}

/// What verification found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All that is wrong, in the order of the log; at most 10,000.
    pub faults: Vec<Fault>,
    /// How many faults there are beyond those.
    pub more_faults: u64,
    /// Files that their owner writes and whose newest commit is not whole: the one before it was verified instead.
    pub unfinished: Vec<PathBuf>,
    /// The epochs, the oldest first.
    pub epochs: Vec<VerifiedEpoch>,
    /// A pin was given: without one, a cut tail cannot be seen.
    pub is_pinned: bool,
}

/// What one epoch holds.
#[derive(Clone, Debug)]
pub struct VerifiedEpoch {
    /// The epoch.
    pub epoch: EpochId,
    /// Its last row.
    pub last: Seq,
    /// The root over its rows.
    pub root: Digest,
    /// How many rows were read.
    pub rows: u64,
    /// How many rows are known by their hash alone, dropped by retention.
    pub dropped: u64,
    /// How many rows were set aside as damaged or as following damage, and can still be read.
    pub aside: u64,
    /// How many checkpoints were checked.
    pub checkpoints: u64,
    /// The last row that a good signature covers; 0 without any.
    pub signed_to: Seq,
}

impl Report {
    /// Says whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    pub(crate) fn add(&mut self, fault: Fault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }
}
