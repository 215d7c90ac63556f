//! What must hold in the facts of one rollout, which are those of its leaders, one behind the other.

use std::collections::BTreeSet;

use smgr::domain::id::{Generation, IntentId};
use smgr::domain::release::{ReleaseId, Step};
use smgr::domain::rollout::Verdict;

use super::{Evidence, Turn, Turned, Wave};

/// A rollout as it was planned, and how it ended.
pub(super) struct Told<'a> {
    pub(super) intent: IntentId,
    pub(super) service: &'a str,
    pub(super) generation: Generation,
    pub(super) release: ReleaseId,
    pub(super) waves: &'a [Wave],
    pub(super) verdict: Option<Verdict>,
    /// What the way back led to, where there was one.
    pub(super) to: Option<ReleaseId>,
    /// The nodes that it went on without, or that failed.
    pub(super) without: BTreeSet<&'a str>,
}

/// Returns the facts in force: each leader names how many it had when it took over, and what an earlier one wrote beyond
/// them, while nobody could tell it that it led no more, is not in force.
pub(super) fn in_force(evidence: &Evidence, intent: IntentId) -> Vec<&Turned> {
    let mut parts: Vec<(u64, usize, Vec<&Turned>)> = Vec::new();
    for turns in evidence.controllers.values() {
        let mut own = Vec::new();
        for turned in turns.iter().filter(|it| it.rollout == Some(intent)) {
            match turned.turn {
                Turn::Planned { term, .. } => own.push((term, 0, vec![turned])),
                Turn::TakenOver { term, after } => {
                    own.push((term, usize::try_from(after).unwrap(), vec![turned]));
                }
                _ => own.last_mut().into_iter().for_each(|(.., part)| part.push(turned)),
            }
        }
        parts.extend(own);
    }
    parts.sort_by_key(|(term, after, _)| (*term, *after));
    let mut facts: Vec<&Turned> = Vec::new();
    for (_, after, part) in parts {
        facts.truncate(after);
        facts.extend(part);
    }
    facts
}

/// Waves go one behind the other, none begins before the one before has passed, a budget that is exceeded ends the way
/// forward until a person says otherwise, and the rollout ends or says what it waits for.
pub(super) fn judge<'a>(
    intent: IntentId,
    facts: &[&'a Turned],
    faults: &mut Vec<String>,
) -> Option<Told<'a>> {
    let Some(Turned { turn: planned @ Turn::Planned { .. }, .. }) = facts.first() else {
        faults.push(format!("rollout {intent} has no plan"));
        return None;
    };
    let Turn::Planned { service, generation, release, allowed, waves, .. } = planned else {
        return None;
    };
    let mut walk = Walk { waves, allowed: *allowed, ..Walk::default() };
    for fact in &facts[1..] {
        walk.take(&fact.turn);
    }
    let last = facts.last().map(|it| &it.turn);
    if walk.verdict.is_none() && !walk.waits {
        walk.faults.push(format!("it is open and says not what it waits for: {last:?}"));
    }
    if walk.verdict == Some(Verdict::Succeeded) && walk.passed < waves.len() && walk.begun > 0 {
        walk.faults.push(format!("it succeeded with {} of {} waves", walk.passed, waves.len()));
    }
    faults.extend(walk.faults.iter().map(|fault| format!("rollout {intent}: {fault}")));
    let (generation, release) = (*generation, *release);
    let (verdict, to) = (walk.verdict, walk.to);
    let without = &walk.failed | &walk.lost;
    Some(Told { intent, service, generation, release, waves, verdict, to, without })
}

#[derive(Default)]
struct Walk<'a> {
    waves: &'a [Wave],
    allowed: usize,
    /// Waves of the way forward.
    begun: usize,
    passed: usize,
    healthy: BTreeSet<&'a str>,
    failed: BTreeSet<&'a str>,
    counted: BTreeSet<&'a str>,
    lost: BTreeSet<&'a str>,
    /// How many of the counted a person let pass.
    forgiven: usize,
    /// Whether too many failed, and nobody said that it is to go on.
    is_exceeded: bool,
    is_back: bool,
    waits: bool,
    to: Option<ReleaseId>,
    verdict: Option<Verdict>,
    faults: Vec<String>,
}

impl<'a> Walk<'a> {
    fn take(&mut self, turn: &'a Turn) {
        if self.verdict.is_some() {
            self.faults.push(format!("{turn:?} stands behind its end"));
        }
        // What is told while it waits leaves it waiting; what it does does not.
        match turn {
            Turn::Waits => self.waits = true,
            Turn::WaveStarted { .. } | Turn::Resumed | Turn::Back { .. } | Turn::Ended(_) => {
                self.waits = false;
            }
            _ => {}
        }
        match turn {
            Turn::WaveStarted { wave, step: Step::Apply } => self.begin(usize::from(*wave)),
            Turn::WavePassed { wave } if !self.is_back => self.pass(usize::from(*wave)),
            Turn::Healthy(node) => {
                self.healthy.insert(node);
            }
            Turn::Failed { node, is_counted } => {
                self.failed.insert(node);
                if *is_counted {
                    self.counted.insert(node);
                }
                let is_canary = |wave: &Wave| wave.is_canary && wave.nodes.contains(node);
                let too_many = self.counted.len().saturating_sub(self.forgiven) > self.allowed;
                self.is_exceeded |= too_many || self.waves.iter().any(is_canary);
            }
            Turn::Lost(node) => {
                self.lost.insert(node);
            }
            Turn::Exceeded => self.is_exceeded = true,
            Turn::Resumed => (self.is_exceeded, self.forgiven) = (false, self.counted.len()),
            Turn::Back { to } => (self.is_back, self.to) = (true, Some(*to)),
            Turn::Ended(verdict) => self.verdict = Some(*verdict),
            _ => {}
        }
    }

    fn begin(&mut self, wave: usize) {
        if wave != self.begun + 1 {
            self.faults.push(format!("wave {wave} began behind wave {}", self.begun));
        }
        if self.passed + 1 != wave {
            self.faults.push(format!("wave {wave} began before the one before had passed"));
        }
        if self.is_exceeded {
            self.faults.push(format!("wave {wave} began though too many had failed"));
        }
        if self.is_back {
            self.faults.push(format!("wave {wave} began on the way back"));
        }
        self.begun = wave;
    }

    fn pass(&mut self, wave: usize) {
        if wave != self.begun || wave != self.passed + 1 {
            self.faults.push(format!("wave {wave} passed and was not under way"));
        }
        let nodes = self.waves.get(wave.wrapping_sub(1)).map_or(&[][..], |wave| &wave.nodes);
        let is_open = |node: &&String| {
            let node = node.as_str();
            ![&self.healthy, &self.failed, &self.lost].iter().any(|all| all.contains(node))
        };
        if let Some(node) = nodes.iter().find(is_open) {
            self.faults.push(format!("wave {wave} passed and {node} has no verdict"));
        }
        self.passed = wave;
    }
}
