//! The controller's own log: opened and folded at the start. What it decided is there, and nowhere else.

use std::ops::ControlFlow;

use tracing::{error, warn};

use super::wake::{Wake, Waker};
use crate::domain::event::{EpochReason, Event, Predecessor};
use crate::domain::id::{EpochId, FleetId, NodeId, Seq};
use crate::head::clock;
use crate::head::folder::StateFolder;
use crate::store::{self, Log, LogNotice, LogOptions, Opened, Vacant, Writer};
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::note::NoteSigner;
use crate::wire::payload::{Body, EventRecord};

/// What is folded from the controller's own log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OwnState {
    /// The highest term that it ever led in.
    pub(super) term: u64,
}

impl OwnState {
    /// Folds one event.
    pub(super) fn evolve(&mut self, event: &Event) {
        if let Event::ControllerLed(led) = event {
            self.term = self.term.max(led.term);
        }
    }
}

/// Which of the two logs of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Its own.
    Own,
    /// That of all arrivals.
    Arrivals,
}

/// A log that was opened, and why its epoch begins, when it does.
pub(super) struct OpenedLog {
    pub(super) log: Log,
    pub(super) begins: Option<(EpochReason, Option<Predecessor>)>,
}

/// Opens one of the two logs.
///
/// # Errors
/// When the folder cannot be read or another process has the log. Damage is no error: the files are set aside.
pub(super) fn open(
    which: Which,
    folder: &StateFolder,
    (fleet, controller): (&FleetId, &NodeId),
    writer: &Writer,
    signer: Option<Box<dyn NoteSigner>>,
    waker: Waker,
) -> anyhow::Result<OpenedLog> {
    let dir = match which {
        Which::Own => folder.log(),
        Which::Arrivals => folder.root().join("arrivals"),
    };
    let mut options = LogOptions::new(dir, fleet.clone(), controller.clone());
    if which == Which::Arrivals {
        // What is lost of it is fetched again.
        options.reserve_bytes = 0;
    }
    let told = move |notice: LogNotice| {
        // The writer waits for the controller here, never the controller for the writer.
        drop(waker.blocking_send(Wake::Store(which, notice)));
    };
    match Log::open(options, writer, signer, told)? {
        Opened::Continues(log) if log.appended().1 == Seq(0) => {
            let predecessor = log.predecessor().map(predecessor_of);
            let reason = match predecessor {
                None => EpochReason::FirstStart,
                Some(_) => EpochReason::Integrity,
            };
            Ok(OpenedLog { log, begins: Some((reason, predecessor)) })
        }
        Opened::Continues(log) => Ok(OpenedLog { log, begins: None }),
        Opened::NeedsEpoch(vacant) => begin(vacant),
    }
}

fn begin(vacant: Vacant) -> anyhow::Result<OpenedLog> {
    let reason = match vacant.reason() {
        store::EpochReason::FirstStart => EpochReason::FirstStart,
        store::EpochReason::Damaged { why } => {
            error!(why, "a log was damaged: its files are set aside and a new epoch begins");
            EpochReason::Integrity
        }
    };
    let predecessor = vacant.predecessor().map(predecessor_of);
    let epoch = EpochId::new(clock::now().at.millis(), clock::entropy() as u16);
    Ok(OpenedLog { log: vacant.begin(epoch)?, begins: Some((reason, predecessor)) })
}

fn predecessor_of(known: store::Predecessor) -> Predecessor {
    Predecessor { epoch: known.epoch, size: known.size, root: known.root }
}

/// Folds the controller's own log, all epochs of it that are kept: a term is never used twice.
///
/// # Errors
/// When the files cannot be read, or a later version wrote something that must not be passed over.
pub(super) fn fold(
    log: &Log,
    mut rollout: impl FnMut(&EventRecord, Body),
) -> anyhow::Result<OwnState> {
    let mut state = OwnState::default();
    let mut newer = None;
    log.reader().rows(None, |pos, row| {
        match read(row) {
            Some((record, body @ Body::Known(Event::Rollout(_)))) => rollout(&record, body),
            Some((_, Body::Known(event))) => state.evolve(&event),
            Some((record, Body::Unknown)) if record.critical => {
                newer = Some((pos.seq, record.kind));
                return ControlFlow::Break(());
            }
            Some((_, Body::Unknown)) => {}
            None => warn!(seq = %pos.seq, "a row of the own log does not read"),
        }
        ControlFlow::Continue(())
    })?;
    if let Some((seq, kind)) = newer {
        anyhow::bail!("event {seq} of the own log, `{kind}`, needs a newer smgr");
    }
    Ok(state)
}

/// Reads an event that was verified before.
pub(super) fn read(envelope: &[u8]) -> Option<(EventRecord, Body)> {
    let sealed = envelope::read(envelope, envelope.len()).ok()?;
    let record: EventRecord = codec::decode(sealed.unverified_payload()).ok()?;
    let body = record.event().ok()?;
    Some((record, body))
}
