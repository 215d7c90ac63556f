//! Reads logs into evidence: what is judged of each event, and what two logs say of one another.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_bytes::ByteBuf;

use smgr::domain::event::{Cause, Event, Next, StateName};
use smgr::domain::id::{EpochId, NodeId, Seq};
use smgr::domain::intent::{Action, ActorKind};
use smgr::domain::node::Node;
use smgr::domain::policy::Kind;
use smgr::domain::rollout::{RolloutEvent, WaveKind};
use smgr::head::folder::StateFolder;
use smgr::head::keyfile;
use smgr::store::LogReader;
use smgr::wire::codec;
use smgr::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use smgr::wire::fold::Fold;
use smgr::wire::key::{Keyring, digest_of};
use smgr::wire::payload::{Body, EventRecord, Intent};

use super::{Again, Entry, Evidence, Fact, Rows, Run, Turn, Turned, Wave, Wish};

/// A row of what a controller took in, as it lies on its disk.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Arrival {
    Run {
        origin: NodeId,
        epoch: EpochId,
        first: Seq,
        #[serde(rename = "place")]
        _place: u64,
        rows: Vec<ByteBuf>,
    },
    Front(ByteBuf),
    Marks(IgnoredAny),
}

impl Evidence {
    /// Adds the log of a node.
    pub(in crate::fleet) fn read_node(&mut self, name: &str, folder: &Path) {
        let mut node = Node::default();
        let (mut entries, mut rows, mut broken) = (Vec::new(), BTreeMap::new(), None);
        let read = LogReader::new(folder.join("log")).rows(None, |at, row| {
            rows.insert((at.epoch, at.seq), digest_of(row));
            entries.extend(entry_of(row));
            let mut fold = Fold::new(&mut node);
            let flow = fold.row(at.seq, row);
            broken = broken.take().or(fold.broken.take());
            flow
        });
        read.unwrap();
        self.broken.extend(broken.map(|why| format!("{name}: {why:?}")));
        self.nodes.insert(name.to_owned(), entries);
        self.rows.insert(name.to_owned(), rows);
        // What local root signed with its own key on that node is known there alone.
        let state = StateFolder::new(folder);
        let (_, ring) = keyfile::load_trust(&state).unwrap();
        self.keys.extend(ring.iter().map(|(key, _)| key.kid()));
        if let Ok(local) = keyfile::load_key(&keyfile::KeyName::Local.path(&state)) {
            self.keys.insert(local.kid());
        }
    }

    /// Adds the log of a controller, and the wishes that it led, each with whether a key of the trust signed it.
    pub(in crate::fleet) fn read_controller(&mut self, name: &str, folder: &Path) {
        let (mut turns, mut rows) = (Vec::new(), BTreeMap::new());
        let read = LogReader::new(folder.join("log")).rows(None, |at, row| {
            rows.insert((at.epoch, at.seq), digest_of(row));
            turns.extend(turned(row));
            ControlFlow::Continue(())
        });
        read.unwrap();
        self.controllers.insert(name.to_owned(), turns);
        self.rows.insert(name.to_owned(), rows);
        let (_, ring) = keyfile::load_trust(&StateFolder::new(folder)).unwrap();
        for entry in fs::read_dir(folder.join("wishes")).into_iter().flatten().flatten() {
            self.read_wish(&fs::read(entry.path()).unwrap(), &ring);
        }
    }

    fn read_wish(&mut self, bytes: &[u8], ring: &Keyring) {
        let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).unwrap();
        let intent: Intent = codec::decode(sealed.unverified_payload()).unwrap();
        let opened = sealed.open(ring).ok().filter(|it| it.kind == Kind::Intent);
        self.signed.insert(intent.id, opened.map(|it| it.digest));
    }

    /// Compares what a controller took in with the logs themselves: whatever anybody heard was kept, as it was said,
    /// and nothing in between is missing. Read the logs first.
    pub(in crate::fleet) fn read_copies(&mut self, controller: &str, folder: &Path) {
        let mut copies = Copies::default();
        let read = LogReader::new(folder.join("arrivals")).rows(None, |_, row| {
            copies.take(&self.rows, codec::decode(row).unwrap());
            ControlFlow::Continue(())
        });
        read.unwrap();
        self.broken.extend(copies.broken.into_iter().map(|it| format!("{controller} {it}")));
    }
}

/// The copies of a controller, log by log.
#[derive(Default)]
pub(super) struct Copies {
    ends: BTreeMap<(NodeId, EpochId), Seq>,
    front: Option<ByteBuf>,
    pub(super) broken: Vec<String>,
}

impl Copies {
    pub(super) fn take(&mut self, logs: &BTreeMap<String, Rows>, arrival: Arrival) {
        let (origin, epoch, first, mut rows) = match arrival {
            Arrival::Run { origin, epoch, first, rows, .. } => (origin, epoch, first, rows),
            Arrival::Front(bytes) => return self.front = Some(bytes),
            Arrival::Marks(_) => return,
        };
        if let (Some(mut whole), Some(rest)) = (self.front.take(), rows.first_mut()) {
            whole.extend_from_slice(rest);
            *rest = whole;
        }
        // Those of machines that are not judged here.
        let Some(log) = logs.get(origin.as_str()) else { return };
        let end = self.ends.entry((origin.clone(), epoch)).or_insert(Seq(0));
        if first.0 != end.0 + 1 {
            let (from, to) = (end.0 + 1, first.0);
            self.broken.push(format!("has of {origin} event {to} where {from} follows"));
        }
        for (seq, row) in (first.0..).zip(&rows) {
            if log.get(&(epoch, Seq(seq))) != Some(&digest_of(row)) {
                self.broken.push(format!("heard event {seq} of {origin}, and its log has another"));
            }
            *end = Seq(seq);
        }
    }
}

fn event_of(row: &[u8]) -> Option<(EventRecord, Event)> {
    let sealed = envelope::read(row, row.len()).unwrap();
    let record: EventRecord = codec::decode(sealed.unverified_payload()).unwrap();
    match record.event().unwrap() {
        Body::Known(event) => Some((record, event)),
        Body::Unknown => None,
    }
}

fn again(next: Next) -> Again {
    match next {
        Next::AtOnce => Again::AtOnce,
        Next::At(_) => Again::Later,
        Next::Stopping | Next::Completed | Next::Failed | Next::Inactive => Again::No,
    }
}

fn entry_of(row: &[u8]) -> Option<Entry> {
    let (record, event) = event_of(row)?;
    let run = || Run {
        service: record.service.as_ref().unwrap().to_string(),
        slot: record.index.unwrap_or_default(),
        number: record.run.map_or(0, |run| run.0),
    };
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are judged by the fold")]
    let fact = match event {
        Event::AgentStarted(_) => Fact::AgentBegan,
        Event::AgentStopped(it) if !it.services_left_running => Fact::AllDown,
        Event::IntentAccepted(it) => {
            let wish = match it.action {
                Action::Deploy { generation, back_to, .. } => Wish::Release { generation, back_to },
                Action::Apply { .. } => Wish::Files,
                _ => Wish::Other,
            };
            let is_own = record.by.as_ref().is_some_and(|by| by.kind == ActorKind::System);
            let key = record.by.as_ref().and_then(|by| by.key);
            let (intent, digest, until) = (it.intent, it.digest, it.until);
            Fact::Accepted { intent, wish, key, is_own, digest, until }
        }
        Event::IntentExecuted(it) => Fact::Executed { intent: it.intent },
        Event::ActionStarted(it) => Fact::Ran { intent: it.intent, action: it.action.to_string() },
        Event::OrderAccepted(it) => Fact::Ordered {
            generation: it.generation,
            step: it.step,
            intent: it.intent,
            plan: it.plan,
            term: it.term,
            controller: it.controller.to_string(),
            wave: it.wave,
        },
        Event::ReleaseApplied(it) => Fact::Applied {
            generation: it.generation,
            step: it.step,
            left: it.release,
            now: it.now,
            spec: it.spec,
        },
        Event::ReleaseHealthy(it) => {
            Fact::Healthy { generation: it.generation, release: it.release }
        }
        Event::ReleaseReturned(it) => Fact::Returned { generation: it.generation, to: it.to },
        Event::ServiceAdded(it) => Fact::Added {
            spec: it.digest,
            desired: it.desired,
            is_file: it.origin.contains("/services.d/"),
        },
        Event::ServiceRemoved(_) => Fact::Removed,
        Event::DesiredChanged(it) => Fact::Desired(it.desired),
        Event::InstanceStarting(it) => {
            Fact::Starting { run: run(), is_beside: it.beside.is_some() }
        }
        Event::InstanceStarted(it) => Fact::Started { run: run(), spec: it.spec },
        Event::InstanceStartFailed(it) => {
            let is_tried = it.to == StateName::Backoff;
            Fact::NotStarted { run: run(), again: if is_tried { Again::Later } else { Again::No } }
        }
        Event::InstanceHandedOver(it) => Fact::HandedOver { run: run(), from: it.from.0 },
        Event::InstanceExited(it) => Fact::Exited { run: run(), again: again(it.next) },
        Event::InstanceStopped(it) => Fact::Stopped { run: run(), again: again(it.next) },
        _ => return None,
    };
    let intent = match record.cause {
        Some(Cause::Intent(intent)) => Some(intent),
        _ => None,
    };
    let service = record.service.as_ref().map(ToString::to_string);
    Some(Entry { at: record.at, service, intent, fact })
}

fn turned(row: &[u8]) -> Option<Turned> {
    let (record, event) = event_of(row)?;
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others say nothing of leading")]
    let (rollout, turn) = match event {
        Event::ControllerStarted(_) => (None, Turn::Began),
        Event::ControllerLed(it) => (None, Turn::Led { term: it.term }),
        Event::ControllerSteppedDown(it) => (None, Turn::SteppedDown { term: it.term }),
        Event::Rollout(fact) => (Some(fact.rollout), turn_of(fact.event)),
        _ => return None,
    };
    Some(Turned { at: record.at, rollout, turn })
}

fn turn_of(event: RolloutEvent) -> Turn {
    match event {
        RolloutEvent::Planned(it) => Turn::Planned {
            service: it.plan.service.to_string(),
            generation: it.plan.generation,
            release: it.plan.release,
            back_to: it.plan.back_to,
            allowed: it.plan.parameters.max_failures.of(it.plan.targets().count()),
            plan: it.digest,
            waves: it
                .waves
                .iter()
                .map(|wave| Wave {
                    is_canary: wave.kind == WaveKind::Canary,
                    nodes: wave.nodes.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            term: it.term,
        },
        RolloutEvent::TakenOver(it) => Turn::TakenOver { term: it.term, after: it.after },
        RolloutEvent::WaveStarted(it) => Turn::WaveStarted { wave: it.wave, step: it.step },
        RolloutEvent::WavePassed(it) => Turn::WavePassed { wave: it.wave },
        RolloutEvent::NodeHealthy(it) => Turn::Healthy(it.node.to_string()),
        RolloutEvent::NodeFailed(it) => {
            Turn::Failed { node: it.node.to_string(), is_counted: it.counted }
        }
        RolloutEvent::NodeLost(it) => Turn::Lost(it.node.to_string()),
        RolloutEvent::NodeUnreachable(it) => Turn::Unreachable(it.node.to_string()),
        RolloutEvent::BudgetExceeded(_) => Turn::Exceeded,
        RolloutEvent::Resumed(_) => Turn::Resumed,
        RolloutEvent::Paused(_) | RolloutEvent::PromotionAwaited(_) => Turn::Waits,
        RolloutEvent::RollbackStarted(it) => Turn::Back { to: it.to },
        RolloutEvent::Ended(it) => Turn::Ended(it.state),
        RolloutEvent::Approved(_)
        | RolloutEvent::Promoted(_)
        | RolloutEvent::Started(_)
        | RolloutEvent::NodeStarted(_)
        | RolloutEvent::NodeSeen(_)
        | RolloutEvent::NodeReturned(_)
        | RolloutEvent::ReturnFailed(_)
        | RolloutEvent::LateJoined(_)
        | RolloutEvent::WaveSettled(_)
        | RolloutEvent::CheckMeasured(_)
        | RolloutEvent::CheckEnded(_)
        | RolloutEvent::Stopping(_)
        | RolloutEvent::Part(_) => Turn::Other,
    }
}
