//! A history on this machine's disk: read and verified without any agent.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::cli::args::Via;
use crate::cli::client::Whom;
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::feed::verified;
use crate::cli::wish::from_keys;
use crate::domain::code::Code;
use crate::domain::event::Event;
use crate::domain::id::{Digest, EventId, FleetId, Seq};
use crate::domain::policy::KeyClass;
use crate::head::folder::StateFolder;
use crate::head::keyfile::{load_trust, read_root};
use crate::store::{self, EventPos, LogReader, Pin, Report, Told};
use crate::wire::key::Keyring;
use crate::wire::note::{KeyKind, NoteKey};
use crate::wire::payload::{Body, EventRecord};

/// A history on disk, and the keys that it is held against.
pub(super) struct Archive {
    /// The folder with one folder for each epoch.
    pub(super) log: PathBuf,
    /// The fleet of the trust document.
    pub(super) fleet: FleetId,
    /// The keys of the trust document.
    pub(super) ring: Keyring,
    /// The root key that signed the trust document.
    pub(super) root: Digest,
    /// Whether it is the history of this machine.
    pub(super) is_own: bool,
}

impl Archive {
    /// Opens the history of a state folder, or of this machine.
    pub(super) fn open(context: &Context, folder: Option<PathBuf>) -> Result<Self, CliError> {
        let folder = folder.map_or_else(|| context.folder.clone(), StateFolder::new);
        let real = |folder: &StateFolder| std::fs::canonicalize(folder.root()).ok();
        let is_own = real(&folder) == real(&context.folder);
        let log = folder.log();
        // A node that never came up may have the folder, and nothing that could be verified.
        if !log.is_dir() || !folder.trust().exists() {
            return Err(CliError::new(Code::NOT_A_LOG, Code::NOT_A_LOG.title()).at(short(&log)));
        }
        let (trust, ring) = load_trust(&folder).map_err(|error| from_keys(&error))?;
        let root = root_of(&folder)?;
        Ok(Self { log, fleet: trust.fleet, ring, root, is_own })
    }

    /// Returns what the files hold instead of an agent that could not be reached, if only this machine was asked.
    ///
    /// # Errors
    /// Why the agent could not be reached, where the files do not do.
    pub(super) fn instead(
        context: &Context,
        whom: &Whom,
        unreachable: CliError,
    ) -> Result<Self, CliError> {
        let is_here = unreachable.code == Code::AGENT_UNREACHABLE
            && context.global.bus.is_none()
            && context.global.via != Via::Bus
            && context.own_node().is_ok_and(|own| whom.is_only(&own));
        match is_here && context.folder.log().is_dir() {
            true => Self::open(context, None),
            false => Err(unreachable),
        }
    }

    /// Verifies every file of it, against the heads that were remembered too.
    pub(super) fn report(&self, pins: &[Pin]) -> Result<Report, CliError> {
        let keeps_log = |class| matches!(class, KeyClass::Node | KeyClass::Controller);
        let origins = self.ring.iter().filter(|(_, holder)| keeps_log(holder.class));
        let keys: Vec<NoteKey> = origins
            .filter_map(|(key, holder)| {
                let name = format!("smgr/{}/{}", self.fleet, holder.name);
                NoteKey::from_bytes(&name, KeyKind::Note, &key.to_bytes()).ok()
            })
            .collect();
        let row = |at, row: &[u8]| {
            let record = self.judge(at, row).map_err(|error| error.to_string())?;
            told(at, &record)
        };
        store::verify(&self.log, &keys, pins, row)
            .map_err(|error| CliError::from_error(Code::FILE_UNREADABLE, &error))
    }

    /// Verifies that a row is a signed event, and the one that belongs to this place.
    fn judge(&self, at: EventPos, row: &[u8]) -> Result<EventRecord, CliError> {
        let record = verified(row, &self.ring)?;
        match record.epoch == at.epoch && record.seq == at.seq {
            true => Ok(record),
            false => {
                let what = format!("it is {}, moved here", record.id());
                Err(CliError::new(Code::EVENT_ALTERED, what))
            }
        }
    }

    /// Gives `take` the events behind a cursor, verified one by one.
    ///
    /// # Errors
    /// When an event does not verify, the cursor is not one of this history, or the files cannot be read.
    pub(super) fn each(
        &self,
        after: Option<&EventId>,
        mut take: impl FnMut(EventPos, &[u8], &EventRecord) -> ControlFlow<()>,
    ) -> Result<(), CliError> {
        let from =
            after.map(|id| EventPos { epoch: id.epoch, seq: Seq(id.seq.0.saturating_add(1)) });
        let mut failure = None;
        let read = LogReader::new(&self.log).rows(from, |at, row| match self.judge(at, row) {
            Ok(record) => take(at, row, &record),
            Err(error) => {
                failure = Some(error.at(format!("{}/{}", at.epoch.token(), at.seq)));
                ControlFlow::Break(())
            }
        });
        read.map_err(|error| {
            let code = error.code();
            let error = CliError::from_error(code, &error);
            if code == Code::LOG_DAMAGED { error.next("smgr audit verify") } else { error }
        })?;
        failure.map_or(Ok(()), Err)
    }
}

/// Returns the root key of a state folder.
///
/// # Errors
/// When there is none, or it cannot be read.
pub(super) fn root_of(folder: &StateFolder) -> Result<Digest, CliError> {
    let root = read_root(folder).map_err(|error| from_keys(&error))?;
    let missing = || CliError::new(Code::NOT_A_LOG, "no root key is pinned beside it");
    root.map(|root| Digest(root.to_bytes())).ok_or_else(|| missing().at(short(&folder.root_pin())))
}

/// Returns what an event says of the log that it stands in.
fn told(at: EventPos, record: &EventRecord) -> Result<Told, String> {
    let event = match record.kind.as_str() {
        "log.opened" | "log.retired" => record.event().map_err(|error| error.to_string())?,
        _ if at.seq == Seq(1) => {
            return Err("the first event of an epoch does not say that it begins".to_owned());
        }
        _ => return Ok(Told::Nothing),
    };
    Ok(match event {
        Body::Known(Event::LogOpened(opened)) => Told::Opened(opened.predecessor.map(|before| {
            store::Predecessor { epoch: before.epoch, size: before.size, root: before.root }
        })),
        Body::Known(Event::LogRetired(gone)) => {
            Told::Retired { epoch: gone.epoch, last: gone.last, root: gone.root }
        }
        Body::Known(_) | Body::Unknown => Told::Nothing,
    })
}
