//! What nodes last said of releases: for whoever leads now, and for whoever takes over and may have missed what an earlier
//! leader knew.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use crate::domain::code::Code;
use crate::domain::event::{Event, RunResult};
use crate::domain::id::{EventId, Generation, IntentId, NodeId, ServiceId};
use crate::domain::release::{Phase, ReleaseFailed, ReleaseId, Step};
use crate::domain::rollout::{Failure, NodeReport, Plan};
use crate::domain::time::UnixMicros;
use crate::wire::fold;
use crate::wire::payload::Body;

/// The signed words that an order carries, in bytes: it has to fit a message with the whole wish.
const PROOFS_BYTES_MAX: usize = 4 * 1024;

/// How many nodes are looked at for them beyond the first that has one.
const LOOKED_AT_MAX: usize = 64;

/// What one node said of the releases of one service, since its last wish.
#[derive(Debug, Default)]
struct Told {
    generation: Generation,
    reports: Vec<(EventId, NodeReport)>,
    /// When it said the last of them that its release failed.
    failed_at: Option<(EventId, UnixMicros)>,
    /// The envelope by which it said that it is healthy, and on what.
    healthy: Option<(Generation, ReleaseId, ByteBuf)>,
}

/// What an event says that matters to rollouts.
#[derive(Debug)]
pub(super) struct Heard {
    /// Of which service.
    pub(super) service: ServiceId,
    /// What.
    pub(super) said: Said,
}

/// One word of a node.
#[derive(Debug)]
pub(super) enum Said {
    /// It took an order.
    Took {
        /// The wish inside.
        intent: IntentId,
        /// Which step.
        step: Step,
        /// Of which term.
        term: u64,
    },
    /// How far it is.
    Reports(NodeReport),
}

/// The last words of all nodes.
#[derive(Debug, Default)]
pub(super) struct Reports {
    by: BTreeMap<(ServiceId, NodeId), Told>,
}

impl Reports {
    /// Takes in an event of a node; says what it means for rollouts, when it is about releases.
    pub(super) fn take(&mut self, id: &EventId, envelope: &ByteBuf) -> Option<Heard> {
        // Nearly all events are about something else.
        let kind = fold::kind_of(envelope);
        let concerns = |kind: &[u8]| kind.starts_with(b"release.") || kind == b"order.accepted";
        if kind.is_some_and(|kind| !concerns(kind)) {
            return None;
        }
        let (record, body) = super::own::read(envelope)?;
        let Body::Known(event) = body else { return None };
        let service = record.service.clone()?;
        let said = said(&event)?;
        if let Said::Reports(report) = &said {
            let told = self.by.entry((service.clone(), id.origin.clone())).or_default();
            let of = generation(report)?;
            if told.reports.is_empty() || of.0 > told.generation.0.saturating_add(1) {
                *told = Told { generation: of, ..Told::default() };
            }
            if of >= told.generation {
                told.reports.push((id.clone(), report.clone()));
                if let NodeReport::Failed { .. } = report {
                    told.failed_at = Some((id.clone(), record.at));
                }
                if let NodeReport::Healthy { generation, release, .. } = report {
                    told.healthy = Some((*generation, *release, envelope.clone()));
                }
            }
        }
        Some(Heard { service, said })
    }

    /// Returns all that a node said about the wish of a plan, in its order.
    pub(super) fn about(&self, plan: &Plan, node: &NodeId) -> Vec<(EventId, NodeReport)> {
        let told = self.by.get(&(plan.service.clone(), node.clone()));
        told.map(|told| told.reports.clone()).unwrap_or_default()
    }

    /// Returns when a node said that a release failed, by its own clock, where that was its last word of this kind.
    pub(super) fn failed_at(&self, service: &ServiceId, event: &EventId) -> Option<UnixMicros> {
        let (id, at) = self.by.get(&(service.clone(), event.origin.clone()))?.failed_at.as_ref()?;
        (id == event).then_some(*at)
    }

    /// Returns signed words that the release of a plan is healthy, none of `node` itself: those of its canary, and of others
    /// where that has none, so that an order is as long in the last wave as in the second.
    ///
    /// Only those that `counts`: a node refuses an order with the word of one that was removed, or has another key since.
    pub(super) fn proofs(
        &self,
        plan: &Plan,
        node: &NodeId,
        counts: impl Fn(&NodeId, &[u8]) -> bool,
    ) -> Vec<ByteBuf> {
        let proofs = self.words(plan, node, plan.proofs().iter(), &counts);
        if !proofs.is_empty() {
            return proofs;
        }
        let proofs = self.words(plan, node, plan.targets(), &counts);
        if !proofs.is_empty() {
            return proofs;
        }
        // All of them have gone on to something newer; one that was placed since may not have.
        let all = self.by.keys().filter(|(service, _)| *service == plan.service);
        self.words(plan, node, all.map(|(_, node)| node), &counts)
    }

    fn words<'a>(
        &self,
        plan: &Plan,
        node: &NodeId,
        of: impl Iterator<Item = &'a NodeId>,
        counts: &impl Fn(&NodeId, &[u8]) -> bool,
    ) -> Vec<ByteBuf> {
        let mut room = PROOFS_BYTES_MAX;
        let mut words: Vec<ByteBuf> = Vec::new();
        for (place, other) in of.filter(|other| *other != node).enumerate() {
            // One word is enough for a node, and who was not ordered yet has none.
            if words.len() == crate::domain::rollout::PROOFS_MAX
                || place >= LOOKED_AT_MAX && !words.is_empty()
            {
                break;
            }
            let Some(told) = self.by.get(&(plan.service.clone(), other.clone())) else { continue };
            let is_of = |(generation, release, _): &&(Generation, ReleaseId, ByteBuf)| {
                let is_earlier = plan.retry.is_some() && *generation < plan.generation;
                (is_earlier || *generation == plan.generation) && *release == plan.release
            };
            let word = told.healthy.as_ref().filter(is_of).map(|(.., word)| word);
            let Some(word) = word.filter(|word| counts(other, word)) else { continue };
            if word.len() > room {
                break;
            }
            room -= word.len();
            words.push(word.clone());
        }
        words
    }
}

fn generation(report: &NodeReport) -> Option<Generation> {
    match report {
        NodeReport::Staged { generation }
        | NodeReport::Applied { generation }
        | NodeReport::Healthy { generation, .. }
        | NodeReport::Failed { generation, .. }
        | NodeReport::Returned { generation, .. } => Some(*generation),
        NodeReport::Unreachable | NodeReport::Seen => None,
    }
}

fn said(event: &Event) -> Option<Said> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other facts are not about releases")]
    Some(match event {
        Event::OrderAccepted(body) => {
            Said::Took { intent: body.intent, step: body.step, term: body.term }
        }
        Event::ReleaseStaged(body) => {
            Said::Reports(NodeReport::Staged { generation: body.generation })
        }
        Event::ReleaseApplied(body) => {
            Said::Reports(NodeReport::Applied { generation: body.generation })
        }
        Event::ReleaseHealthy(body) => Said::Reports(NodeReport::Healthy {
            generation: body.generation,
            release: body.release,
            running: body.running,
            ready_ms: body.ready_ms,
            held_ms: body.held_ms,
        }),
        // It is as it was wished: nothing runs.
        Event::ReleaseRemoved(body) => Said::Reports(NodeReport::Healthy {
            generation: body.generation,
            release: ReleaseId::NOTHING,
            running: None,
            ready_ms: 0,
            held_ms: 0,
        }),
        Event::ReleaseFailed(body) => Said::Reports(NodeReport::Failed {
            generation: body.generation,
            failure: failure(body),
        }),
        Event::ReleaseReturned(body) => Said::Reports(NodeReport::Returned {
            generation: body.generation,
            to: body.to,
            took_ms: body.took_ms,
            kept_serving: body.kept_serving,
        }),
        _ => return None,
    })
}

/// Returns how a run ended, in the word that events have for it.
pub(super) fn word_of(result: RunResult) -> String {
    let word = serde_json::to_value(result).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn failure(body: &ReleaseFailed) -> Failure {
    let result = match (&body.result, body.phase) {
        (Some(result), _) => word_of(*result),
        (None, _) if body.code == Code::WRONG_PROGRAM.to_string() => "wrong_program".to_owned(),
        (None, _) if body.code == Code::ACTION_FAILED.to_string() => "action_failed".to_owned(),
        (None, Phase::Staging) => "not_staged".to_owned(),
        (None, Phase::Starting | Phase::Holding) => "deadline".to_owned(),
    };
    let phase = match body.phase {
        Phase::Staging => "staging",
        Phase::Starting => "starting",
        Phase::Holding => "holding",
    };
    Failure {
        instance: body.instance.clone(),
        result,
        why: body.why.clone(),
        exit: body.exit,
        ran_ms: body.ran_ms,
        phase: phase.to_owned(),
        tail: body.tail.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::Context;
    use crate::domain::id::{BootId, Digest, EpochId, Seq};
    use crate::domain::policy::Kind;
    use crate::domain::release::ReleaseHealthy;
    use crate::domain::rollout::{Order, Parameters, PlanRequest};
    use crate::domain::selector::Roster;
    use crate::domain::time::Now;
    use crate::wire::codec::encode;
    use crate::wire::envelope::seal;
    use crate::wire::key::Signer;
    use crate::wire::payload::EventRecord;

    const RELEASE: ReleaseId = ReleaseId(Digest([4; 32]));

    fn node(number: u8) -> NodeId {
        format!("n{number}").parse().unwrap()
    }

    /// A plan by name: n1 is the canary.
    fn plan() -> Plan {
        let roster: Roster = (1..=3).map(|number| (node(number), BTreeMap::new())).collect();
        Plan::new(&PlanRequest {
            intent: IntentId([7; 16]),
            service: "web".parse().unwrap(),
            generation: Generation(3),
            release: RELEASE,
            back_to: Some(ReleaseId(Digest([3; 32]))),
            emergency: None,
            retry: None,
            targets: &roster.keys().cloned().collect(),
            roster: &roster,
            roster_digest: Digest([0; 32]),
            away: &Default::default(),
            is_new: false,
            parameters: &Parameters { order: Order::Name, ..Parameters::default() },
        })
        .unwrap()
    }

    fn healthy(number: u8) -> (EventId, ByteBuf) {
        let id = EventId { origin: node(number), epoch: EpochId::new(1, 1), seq: Seq(1) };
        let event = Event::ReleaseHealthy(ReleaseHealthy {
            generation: Generation(3),
            release: RELEASE,
            running: None,
            ready_ms: 1,
            held_ms: 1,
        });
        let now = Now { at: UnixMicros(1), mono_ns: 1 };
        let context = Context::service(&"web".parse().unwrap());
        let record = EventRecord::of(id.clone(), now, BootId([1; 16]), &context, &event);
        let signer = Signer::from_seed(&[number; 32]);
        (id, ByteBuf::from(seal(Kind::Event, &encode(&record), &signer)))
    }

    #[test]
    fn the_word_of_a_canary_that_was_removed_or_has_another_key_gives_way_to_that_of_another_node()
    {
        let mut reports = Reports::default();
        let words = [1, 2].map(|number| {
            let (id, word) = healthy(number);
            assert!(reports.take(&id, &word).is_some());
            word
        });
        let proofs = |counts: &[u8]| {
            let counts = |of: &NodeId, _: &[u8]| counts.iter().any(|number| node(*number) == *of);
            reports.proofs(&plan(), &node(3), counts)
        };
        assert_eq!(proofs(&[1, 2]), [words[0].clone()]);
        assert_eq!(proofs(&[2]), [words[1].clone()]);
        assert!(proofs(&[]).is_empty());
    }
}
