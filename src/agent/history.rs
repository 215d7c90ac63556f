//! The agent's own log: opened and folded at start, set aside when it does not hold what was written, and kept within
//! its bounds.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tracing::{error, info, warn};

use super::clock;
use super::folder::StateFolder;
use super::setup::NodeSetup;
use super::task::{Agent, Promise};
use super::wake::{Wake, Waker};
use super::witness;
use crate::domain::event::{Context, EpochReason, Event, LogRetired, Predecessor};
use crate::domain::id::{EpochId, IntentId, Seq, ServiceId};
use crate::domain::input::Decision;
use crate::domain::node::Node;
use crate::domain::recent::Restarts;
use crate::domain::time::UnixMicros;
use crate::store::{self, Expired, Log, LogNotice, LogOptions, Opened, Retention, Vacant, Writer};
use crate::wire::fold::{Broken, Fold};
use crate::wire::note::NoteSigner;

/// How long the writer may take to let go of a log that is set aside.
const LET_GO: Duration = Duration::from_secs(10);

/// How much of the log is kept: the defaults of `[history]`.
pub(super) const RETENTION: Retention =
    Retention { max_bytes: 1 << 30, max_age: Duration::from_secs(90 * 24 * 60 * 60), keep_min: 2 };

/// What was learnt of the epoch while its log was opened and folded.
pub(super) struct Epoch {
    /// Why it begins, when it does.
    pub(super) begins: Option<EpochReason>,
    /// The epoch before, when one begins.
    pub(super) predecessor: Option<Predecessor>,
    /// When the last event was written.
    pub(super) last_at: UnixMicros,
    /// The event of this epoch that says how far each wish is.
    pub(super) told: BTreeMap<IntentId, Seq>,
    /// The last event about each instance, as far as this epoch has one.
    pub(super) last_events: BTreeMap<ServiceId, Vec<Seq>>,
    /// How often services were started again lately.
    pub(super) restarts: Restarts,
}

impl Epoch {
    fn going_on(last_at: UnixMicros) -> Self {
        let (told, last_events) = (BTreeMap::new(), BTreeMap::new());
        let restarts = Restarts::default();
        Self { begins: None, predecessor: None, last_at, told, last_events, restarts }
    }
}

/// Opens the log of a state folder.
///
/// # Errors
/// When the folder cannot be read or another process has the log. Damage is no error.
pub(super) fn open(
    state: &StateFolder,
    setup: &NodeSetup,
    writer: &Writer,
    signer: Box<dyn NoteSigner>,
    waker: Waker,
) -> anyhow::Result<Opened> {
    let options = LogOptions::new(state.log(), setup.fleet.clone(), setup.node.clone());
    let told = move |notice: LogNotice| {
        // The writer waits for the agent here, never the agent for the writer.
        drop(waker.blocking_send(Wake::Store(notice)));
    };
    Ok(Log::open(options, writer, Some(signer), told)?)
}

/// Folds the rows into the state; where they do not follow, a new epoch begins on what was folded.
///
/// # Errors
/// When a later version wrote something that must not be passed over, or the disk refuses.
pub(super) fn fold(opened: Opened, state: &StateFolder) -> anyhow::Result<(Log, Node, Epoch)> {
    let log = match opened {
        Opened::NeedsEpoch(vacant) => return begin_after(vacant),
        Opened::Continues(log) if log.appended().1 == Seq(0) => return begin_empty(log, state),
        Opened::Continues(log) => log,
    };
    let mut node = Node::default();
    let mut fold = Fold::new(&mut node);
    let mut last_events = BTreeMap::new();
    log.replay(|seq, row| {
        let flow = fold.row(seq, row);
        note_last(&mut last_events, fold.context(), seq);
        flow
    })?;
    let (last_at, told, restarts) = (fold.last_at, fold.told, fold.restarts);
    match fold.broken {
        None => Ok((log, node, Epoch { last_events, told, restarts, ..Epoch::going_on(last_at) })),
        Some((seq, Broken::Newer(why))) => {
            anyhow::bail!("event {seq} of the log in {}: {why}", state.log().display())
        }
        Some((seq, Broken::Illegal(why))) => {
            error!(%seq, why, "the log does not follow from there on");
            begin_after(log.quarantine_from(seq, why, LET_GO)?)
        }
    }
}

/// Most rows are about an instance that is known already; its name is then not built anew.
pub(super) fn note_last(last: &mut BTreeMap<ServiceId, Vec<Seq>>, about: &Context, seq: Seq) {
    let (Some(service), Some(index)) = (&about.service, about.index) else { return };
    let index = usize::from(index);
    if !last.contains_key(service) {
        last.insert(service.clone(), Vec::new());
    }
    if let Some(slots) = last.get_mut(service) {
        slots.resize(slots.len().max(index + 1), Seq(0));
        slots[index] = seq;
    }
}

/// Begins an epoch on what a log that was set aside still holds.
fn begin_after(vacant: Vacant) -> anyhow::Result<(Log, Node, Epoch)> {
    let mut node = Node::default();
    let (reason, last_at) = match vacant.reason() {
        store::EpochReason::FirstStart => (EpochReason::FirstStart, clock::now().at),
        store::EpochReason::Damaged { why } => {
            error!(why, "the log was damaged: its files are set aside and a new epoch begins");
            let mut fold = Fold::new(&mut node);
            vacant.replay(|at, row| fold.row(at.seq, row))?;
            (EpochReason::Integrity, fold.last_at)
        }
    };
    let predecessor = vacant.predecessor().map(predecessor_of);
    let log = vacant.begin(fresh_epoch())?;
    Ok((log, node, Epoch { begins: Some(reason), predecessor, ..Epoch::going_on(last_at) }))
}

/// Goes on with an epoch whose first event was never written, on the state at the end of the epoch before.
fn begin_empty(log: Log, state: &StateFolder) -> anyhow::Result<(Log, Node, Epoch)> {
    let mut node = Node::default();
    let Some(before) = log.predecessor() else {
        let last_at = clock::now().at;
        let reason = Some(EpochReason::FirstStart);
        return Ok((log, node, Epoch { begins: reason, ..Epoch::going_on(last_at) }));
    };
    let mut fold = Fold::new(&mut node);
    log.replay_predecessor(|at, row| fold.row(at.seq, row))?;
    let epoch = Epoch {
        begins: Some(witness::reason(state, before)),
        predecessor: Some(predecessor_of(before)),
        ..Epoch::going_on(fold.last_at)
    };
    Ok((log, node, epoch))
}

fn fresh_epoch() -> EpochId {
    EpochId::new(clock::now().at.millis(), clock::entropy() as u16)
}

/// The same, above an epoch that began by a clock which was fast.
fn fresh_epoch_after(other: EpochId) -> EpochId {
    let now = clock::now().at.millis();
    EpochId::new(now.max(other.unix_ms().saturating_add(1)), clock::entropy() as u16)
}

fn predecessor_of(known: store::Predecessor) -> Predecessor {
    Predecessor { epoch: known.epoch, size: known.size, root: known.root }
}

impl Agent {
    /// Sets a log aside that does not hold what was written, and ends: the next life begins on what it still holds.
    ///
    /// Services go on, and the keeper starts that life at once.
    pub(super) fn damaged(&mut self, at: Option<Seq>, why: String) {
        let own = self.recorder.head().epoch;
        self.begin_anew(at, why, own);
    }

    /// The same, in an epoch above one that somebody else knows.
    pub(super) fn begin_anew(&mut self, at: Option<Seq>, why: String, above: EpochId) {
        let head = self.recorder.head();
        let from = at.unwrap_or(Seq(head.seq.0 + 1));
        error!(%from, why, "the log does not hold what was written; it is set aside");
        let log = self.recorder.log().clone();
        let begun = log
            .quarantine_from(from, why, LET_GO)
            .and_then(|vacant| vacant.begin(fresh_epoch_after(above)));
        if let Err(why) = begun {
            error!(%why, "the damaged log could not be set aside");
        }
        self.ending = true;
    }

    /// Looks for segments that are older, or more, than are kept. Beside the task: it reads folders.
    pub(super) fn look_for_expired(&self) {
        let (dir, waker) = (self.queries.state.log(), self.waker.clone());
        tokio::task::spawn_blocking(move || {
            match store::expired(&dir, &RETENTION, SystemTime::now()) {
                Ok(expired) if expired.is_empty() => {}
                Ok(expired) => drop(waker.blocking_send(Wake::Expired(expired))),
                Err(why) => warn!(%why, "what the log may drop is not known"),
            }
        });
    }

    /// Records what is dropped; the rows go when that is durable.
    pub(super) fn retire(&mut self, expired: Vec<Expired>) {
        for segment in expired {
            let Expired { epoch, first, last, root, .. } = segment;
            let body = LogRetired { epoch, first, last, root };
            let events = vec![(Context::default(), Event::LogRetired(body))];
            self.commit(clock::now(), Decision { events, effects: Vec::new() });
            self.recorder.promise(Promise::Retire(segment));
        }
    }
}

/// Deletes the rows of a segment whose retirement is recorded. Tiles and checkpoints stay.
pub(super) fn drop_rows(segment: Expired) {
    tokio::task::spawn_blocking(move || match segment.drop_rows() {
        Ok(()) => info!(first = %segment.first, last = %segment.last, "old events were dropped"),
        Err(why) => warn!(%why, "old events could not be dropped"),
    });
}
