//! Wishes that were taken: each id once, how far it is, what came of it, and when it may be forgotten.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::code::Code;
use super::event::{Actor, Desired, Event, Exit, IntentAccepted, Outcome, StopReason};
use super::id::{Digest, InstanceId, IntentId, RunId, ServiceId};
use super::instance::{Instance, State};
use super::intent::Action;
use super::text;
use super::time::UnixMicros;

/// How far two clocks may be apart: an id is kept this long beyond its expiry, in milliseconds.
pub const SKEW_MS: u64 = 30_000;

/// How many wishes may be under way at once. Each costs a few hundred bytes and a look at every fact about its
/// service; a node that has a thousand open ones gains nothing from one more.
pub const OPEN_MAX: usize = 1024;

/// How many ids are remembered at once: 50 a second for more than 20 minutes, some 20 MB.
pub const SEEN_MAX: usize = 65_536;

/// What of both is kept for local root: whoever may send a thousand wishes a second must not be able to keep the owner
/// of the machine from stopping a service for as long as those are remembered.
pub const OWN_ROOM: usize = 64;

/// A wish that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the order of acceptance.
    pub number: u64,
    /// SHA-256 of the signed bytes.
    pub digest: Digest,
    /// What is wanted.
    pub action: Action,
    /// On whose authority.
    pub by: Option<Actor>,
    /// From when on it is not taken any more.
    pub expires_at: UnixMicros,
    /// How far it is.
    pub progress: Progress,
}

/// How far a wish is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// It is being carried out.
    Open(Open),
    /// It came to its one outcome.
    Executed {
        /// Which.
        outcome: Outcome,
        /// When.
        at: UnixMicros,
    },
}

/// What is known of a wish that is being carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// When it has failed for want of an outcome.
    pub until: UnixMicros,
    /// The instances that have not come as far as wanted, each with its last run before the wish.
    pub awaiting: BTreeMap<InstanceId, RunId>,
    /// The first failure of one of them.
    pub failed: Option<Outcome>,
    /// Whether anything had to change.
    pub changed: bool,
    /// When its action is killed, once that runs.
    pub action_until: Option<UnixMicros>,
}

/// All wishes that are remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Apart from the tree, which is searched and shifted by every event about a wish.
    records: BTreeMap<IntentId, Box<Record>>,
    /// By order of acceptance.
    open: BTreeMap<u64, IntentId>,
    /// Those with an outcome, by the time from which on they may be forgotten.
    closed: BTreeSet<(UnixMicros, IntentId)>,
}

impl Record {
    /// Returns what is under way.
    pub fn open(&self) -> Option<&Open> {
        match &self.progress {
            Progress::Open(open) => Some(open),
            Progress::Executed { .. } => None,
        }
    }

    /// Says whether the wish brings instances up.
    pub fn brings_up(&self) -> bool {
        matches!(self.action, Action::Start { .. } | Action::Restart { .. })
    }

    /// Returns from when on it may be forgotten: whoever asks again soon after a late outcome still hears it.
    fn forget_at(&self) -> UnixMicros {
        let executed_at = match &self.progress {
            Progress::Executed { at, .. } => *at,
            Progress::Open(_) => UnixMicros::default(),
        };
        self.expires_at.max(executed_at).plus_ms(SKEW_MS)
    }
}

impl Seen {
    /// Returns what is known of an id.
    pub fn get(&self, id: &IntentId) -> Option<&Record> {
        self.records.get(id).map(Box::as_ref)
    }

    /// Returns the wishes under way, the oldest first.
    pub fn open(&self) -> impl Iterator<Item = (&IntentId, &Record, &Open)> {
        self.open.values().filter_map(|id| {
            let record = self.get(id)?;
            Some((id, record, record.open()?))
        })
    }

    /// Returns all wishes that are remembered.
    pub fn iter(&self) -> impl Iterator<Item = (&IntentId, &Record)> {
        self.records.iter().map(|(id, record)| (id, record.as_ref()))
    }

    /// Returns how many are remembered.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Says whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns how many are under way.
    pub fn open_len(&self) -> usize {
        self.open.len()
    }

    /// Takes a record in as it is, from a baseline.
    pub(super) fn restore(&mut self, id: IntentId, record: Record) {
        match &record.progress {
            Progress::Open(_) => {
                self.open.insert(record.number, id);
            }
            Progress::Executed { .. } => {
                self.closed.insert((record.forget_at(), id));
            }
        }
        self.records.insert(id, Box::new(record));
    }

    /// Remembers a wish; false when its id is known already.
    pub(super) fn accept(
        &mut self,
        number: u64,
        body: &IntentAccepted,
        by: Option<&Actor>,
        awaiting: BTreeMap<InstanceId, RunId>,
    ) -> bool {
        let Entry::Vacant(place) = self.records.entry(body.intent) else { return false };
        let open = Open {
            until: body.until,
            changed: !awaiting.is_empty(),
            awaiting,
            failed: None,
            action_until: None,
        };
        let record = Record {
            number,
            digest: body.digest,
            action: body.action.clone(),
            by: by.cloned(),
            expires_at: body.expires_at,
            progress: Progress::Open(open),
        };
        place.insert(Box::new(record));
        self.open.insert(number, body.intent);
        true
    }

    /// Forgets what came of a wish, so that it can be taken again.
    pub(super) fn drop_executed(&mut self, id: &IntentId) {
        if let Some(record) = self.records.get(id).filter(|record| record.open().is_none()) {
            self.closed.remove(&(record.forget_at(), *id));
            self.records.remove(id);
        }
    }

    /// Closes a wish; false when it is not under way.
    pub(super) fn execute(&mut self, at: UnixMicros, id: &IntentId, outcome: &Outcome) -> bool {
        let Some(record) = self.records.get_mut(id) else { return false };
        if record.open().is_none() {
            return false;
        }
        record.progress = Progress::Executed { outcome: outcome.clone(), at };
        self.open.remove(&record.number);
        self.closed.insert((record.forget_at(), *id));
        true
    }

    /// Returns what is under way for an id, to be changed.
    pub(super) fn open_mut(&mut self, id: &IntentId) -> Option<&mut Open> {
        match &mut self.records.get_mut(id)?.progress {
            Progress::Open(open) => Some(open),
            Progress::Executed { .. } => None,
        }
    }

    /// Folds a fact about an instance into every wish that awaits it.
    pub(super) fn note(
        &mut self,
        service: &ServiceId,
        index: u16,
        fact: &Fact<'_>,
        desired: Desired,
    ) {
        for id in self.open.values() {
            let Some(record) = self.records.get_mut(id) else { continue };
            let Progress::Open(open) = &mut record.progress else { continue };
            let Some(key) = open
                .awaiting
                .keys()
                .find(|key| key.index == index && key.service == *service)
                .cloned()
            else {
                continue;
            };
            let from = open.awaiting.get(&key).copied().unwrap_or_default();
            match step(&record.action, id, from, fact, desired) {
                Step::Awaited => {}
                Step::Reached => {
                    open.awaiting.remove(&key);
                }
                Step::Failed(outcome) => {
                    open.awaiting.remove(&key);
                    // The rest of a rolling restart is left serving when one instance does not come back.
                    if matches!(record.action, Action::Restart { .. }) {
                        open.awaiting.clear();
                    }
                    open.failed.get_or_insert(outcome);
                }
            }
        }
    }

    /// Forgets what has expired at `at`, and returns the latest expiry that was forgotten.
    pub(super) fn forget(&mut self, at: UnixMicros) -> Option<UnixMicros> {
        let mut latest = None;
        while let Some(first) = self.closed.first() {
            if first.0 >= at {
                break;
            }
            let (_, id) = self.closed.pop_first().expect("the set has a first element: just seen");
            latest = latest.max(self.records.remove(&id).map(|record| record.expires_at));
        }
        latest
    }
}

/// What is folded of an instance, for the wishes that await it.
pub(super) struct Fact<'a> {
    pub(super) run: Option<RunId>,
    pub(super) event: &'a Event,
    /// Whether it is about the run beside the one that counts.
    pub(super) is_beside: bool,
    pub(super) after: &'a Instance,
}

enum Step {
    Awaited,
    Reached,
    Failed(Outcome),
}

/// Returns an outcome that did not succeed.
pub(super) fn failed(code: Code, why: impl Into<String>, exit: Option<Exit>) -> Outcome {
    let why = text::brief(why.into(), text::WHY_BYTES_MAX);
    Outcome::Failed { code: code.to_string(), why, exit }
}

/// Says what a fact about an instance means for a wish that awaits it.
fn step(action: &Action, id: &IntentId, from: RunId, fact: &Fact<'_>, desired: Desired) -> Step {
    let Fact { run, event, is_beside, after: instance } = *fact;
    let after = &instance.state;
    let newer = run.is_some_and(|run| run > from);
    match action {
        // The one that serves goes on, whatever becomes of the one that is to take over.
        Action::Start { .. } | Action::Restart { .. }
            if is_beside && !matches!(event, Event::InstanceHandedOver(_)) =>
        {
            match event {
                Event::InstanceExited(body) if newer => {
                    not_relieved("it ended before it was ready", Some(body.exit))
                }
                Event::InstanceStartFailed(body) if newer => not_relieved(&body.why, None),
                Event::InstanceStopping(body)
                    if newer && body.reason == StopReason::ReadyTimeout =>
                {
                    not_relieved("it was not ready and well in time", None)
                }
                Event::InstanceStopping(_) if newer => Step::Failed(superseded()),
                _ => Step::Awaited,
            }
        }
        // A reload and a signal are for the one that counts.
        Action::Reload { .. } if is_beside => Step::Awaited,
        Action::Start { .. } | Action::Restart { .. } => match event {
            Event::InstanceExited(_) if newer && *after == State::Completed => Step::Reached,
            Event::InstanceStopped(_) if newer && *after == State::Completed => Step::Reached,
            Event::InstanceExited(body) if newer => Step::Failed(failed(
                Code::NOT_READY,
                "it ended before it was ready",
                Some(body.exit),
            )),
            Event::InstanceStartFailed(body) if newer => {
                Step::Failed(failed(Code::SPAWN_FAILED, body.why.clone(), None))
            }
            Event::InstanceStopping(body) if newer && body.reason == StopReason::ReadyTimeout => {
                Step::Failed(failed(Code::NOT_READY, "it was not ready in time", None))
            }
            Event::InstanceStopping(body) if !body.then_start => Step::Failed(superseded()),
            Event::InstanceStopped(_) if *after == State::Inactive => Step::Failed(superseded()),
            Event::InstanceWaiting(body) if !body.missing.is_empty() => {
                let names: Vec<_> = body.missing.iter().map(ServiceId::as_str).collect();
                let why = format!("it needs {}, which nobody brings up", names.join(", "));
                Step::Failed(failed(Code::NOT_READY, why, None))
            }
            Event::InstanceStarting(_) => Step::Awaited,
            _ if newer && after.is_ready() && desired != Desired::Completed => Step::Reached,
            _ => Step::Awaited,
        },
        Action::Stop { .. } | Action::Remove { .. } => match event {
            Event::InstanceStarting(_) => Step::Failed(superseded()),
            Event::InstanceStopping(body) if body.then_start => Step::Failed(superseded()),
            _ if instance.at_rest() => Step::Reached,
            _ => Step::Awaited,
        },
        Action::Reload { .. } => match event {
            Event::InstanceReloaded(body) => match &body.failed {
                Some(why) if why == LOST => Step::Failed(Outcome::Unknown { why: why.clone() }),
                Some(why) => Step::Failed(failed(Code::ACTION_FAILED, why.clone(), None)),
                None => Step::Reached,
            },
            Event::InstanceExited(body) => Step::Failed(failed(
                Code::NOT_RUNNING,
                "it ended while it was reloading",
                Some(body.exit),
            )),
            Event::InstanceStopping(_) => Step::Failed(superseded()),
            _ => Step::Awaited,
        },
        Action::Signal { .. } => match event {
            Event::InstanceSignalled(body) if body.intent == *id => match &body.failed {
                Some(why) if why == LOST => Step::Failed(Outcome::Unknown { why: why.clone() }),
                Some(why) => Step::Failed(failed(Code::NOT_RUNNING, why.clone(), None)),
                None => Step::Reached,
            },
            _ => Step::Awaited,
        },
        Action::Run { .. }
        | Action::Apply { .. }
        | Action::Configure { .. }
        | Action::Shutdown { .. }
        | Action::Rollout { .. }
        | Action::Deploy { .. } => Step::Awaited,
    }
}

/// The run that was to take over did not.
fn not_relieved(why: &str, exit: Option<Exit>) -> Step {
    Step::Failed(failed(Code::NOT_RELIEVED, why, exit))
}

/// What an event says of a request that died with the keeper.
pub(super) const LOST: &str = "the keeper died with the request";

fn superseded() -> Outcome {
    failed(Code::SUPERSEDED, "something newer took its place", None)
}
