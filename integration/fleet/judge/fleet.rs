//! What must hold between logs: those of nodes and those of the controllers that led them.

use std::collections::{BTreeMap, BTreeSet};

use smgr::domain::id::{Digest, Generation, IntentId};
use smgr::domain::release::{ReleaseId, Step};
use smgr::domain::rollout::Verdict;
use smgr::domain::time::UnixMicros;

use super::rollout::{self, Told};
use super::{Entry, Evidence, Fact, Reign, Turn, Wish};

pub(super) fn judge(evidence: &Evidence) -> Vec<String> {
    let mut faults = signatures(evidence);
    faults.extend(terms(evidence));
    faults.extend(canaries(&evidence.nodes));
    let mut told = Vec::new();
    for intent in rollouts(evidence) {
        let facts = rollout::in_force(evidence, intent);
        told.extend(rollout::judge(intent, &facts, &mut faults));
    }
    for (node, entries) in &evidence.nodes {
        faults.extend(orders(evidence, node, entries).map(|fault| format!("{node}: {fault}")));
    }
    faults.extend(convergence(evidence, &told));
    faults
}

pub(super) fn rollouts(evidence: &Evidence) -> BTreeSet<IntentId> {
    let all = evidence.controllers.values().flatten();
    all.filter_map(|turned| turned.rollout).collect()
}

/// Every wish that was taken has a trusted key, or is the agent's own for its spec files; of one that came by an order the
/// signature is looked at again.
fn signatures(evidence: &Evidence) -> Vec<String> {
    let mut faults = Vec::new();
    for (node, entries) in &evidence.nodes {
        for entry in entries {
            let Fact::Accepted { intent, wish, key, is_own, digest, .. } = &entry.fact else {
                continue;
            };
            let is_known = key.is_some_and(|key| evidence.keys.contains(&key));
            if !(is_known || *is_own && *wish == Wish::Files) {
                faults.push(format!("{node}: wish {intent} is nobody's"));
            }
            let is_ordered = entries.iter().any(
                |it| matches!(&it.fact, Fact::Ordered { intent: ordered, .. } if ordered == intent),
            );
            match evidence.signed.get(intent) {
                None if is_ordered => {
                    faults.push(format!("{node}: no controller has wish {intent}"));
                }
                Some(signed) if *signed != Some(*digest) => {
                    faults.push(format!("{node}: the signature of wish {intent} does not hold"));
                }
                Some(_) | None => {}
            }
        }
    }
    faults
}

/// Each term is led by one controller.
fn terms(evidence: &Evidence) -> Vec<String> {
    let mut terms = BTreeMap::new();
    let mut faults = Vec::new();
    for (controller, term, _) in led(evidence) {
        if let Some(other) = terms.insert(term, controller) {
            faults.push(format!("{other} and {controller} led in term {term}"));
        }
    }
    faults
}

fn led(evidence: &Evidence) -> impl Iterator<Item = (&str, u64, UnixMicros)> {
    evidence.controllers.iter().flat_map(|(name, turns)| {
        turns.iter().filter_map(|turned| match turned.turn {
            Turn::Led { term } => Some((name.as_str(), term, turned.at)),
            _ => None,
        })
    })
}

/// Returns each time in which a controller held itself for the leader; that of one that was killed ends with the last
/// that it wrote.
pub(super) fn reigns(evidence: &Evidence) -> Vec<Reign> {
    let mut reigns = Vec::new();
    for (name, turns) in &evidence.controllers {
        let mut open: Option<Reign> = None;
        for turned in turns {
            match (&turned.turn, &mut open) {
                (Turn::Led { term }, _) => {
                    reigns.extend(open.take());
                    let (controller, term) = (name.clone(), *term);
                    open = Some(Reign { controller, term, from: turned.at, until: turned.at });
                }
                (Turn::Began, _) => reigns.extend(open.take()),
                (Turn::SteppedDown { .. }, Some(reign)) => {
                    reign.until = turned.at;
                    reigns.extend(open.take());
                }
                (_, Some(reign)) => reign.until = turned.at,
                (_, None) => {}
            }
        }
        reigns.extend(open);
    }
    reigns
}

/// No node of a later wave takes a release up before one of the first wave was healthy with it.
fn canaries(nodes: &BTreeMap<String, Vec<Entry>>) -> Vec<String> {
    let mut first_healthy: BTreeMap<(&str, Generation), UnixMicros> = BTreeMap::new();
    let mut waves: BTreeMap<(&str, &str, Generation), u16> = BTreeMap::new();
    let of = |entry: &'_ Entry| entry.service.clone().unwrap_or_default();
    let services: BTreeSet<String> = nodes.values().flatten().map(of).collect();
    let name = |entry: &Entry| services.get(&of(entry)).map_or("", String::as_str);
    for (node, entries) in nodes {
        for entry in entries {
            if let Fact::Ordered { generation, wave, step: Step::Apply, .. } = entry.fact {
                waves.entry((node, name(entry), generation)).or_insert(wave);
            }
        }
        for entry in entries {
            if let Fact::Healthy { generation, .. } = entry.fact
                && waves.get(&(node.as_str(), name(entry), generation)) == Some(&1)
            {
                let first = first_healthy.entry((name(entry), generation)).or_insert(entry.at);
                *first = (*first).min(entry.at);
            }
        }
    }
    let mut faults = Vec::new();
    for (node, entries) in nodes {
        for entry in entries {
            let Fact::Applied { generation, step: Step::Apply, .. } = entry.fact else { continue };
            let wave = waves.get(&(node.as_str(), name(entry), generation));
            let first = first_healthy.get(&(name(entry), generation));
            if wave.is_some_and(|wave| *wave > 1) && first.is_none_or(|first| *first > entry.at) {
                faults.push(format!("{node} took {generation:?} up before any canary was healthy"));
            }
        }
    }
    faults
}

/// A node follows the orders of those who led, in the one plan of the wish, and not before its wave had begun.
fn orders<'a>(
    evidence: &'a Evidence,
    node: &'a str,
    entries: &'a [Entry],
) -> impl Iterator<Item = String> + 'a {
    entries.iter().filter_map(move |entry| {
        let Fact::Ordered { intent, plan, step, term, wave, controller, .. } = &entry.fact else {
            return None;
        };
        let all = || evidence.controllers.values().flatten();
        let its = || all().filter(|turned| turned.rollout == Some(*intent));
        let reigned = |(name, of, at): (&str, u64, UnixMicros)| {
            name == controller && of == *term && at <= entry.at
        };
        if !led(evidence).any(reigned) {
            return Some(format!("an order of {controller} in term {term}, which it did not lead"));
        }
        let planned: Option<(&Digest, &[super::Wave])> = its().find_map(|it| match &it.turn {
            Turn::Planned { plan, waves, .. } => Some((plan, waves.as_slice())),
            _ => None,
        });
        let Some((planned, waves)) = planned else {
            return Some(format!("an order of wish {intent}, which has no plan"));
        };
        if planned != plan {
            return Some(format!("wish {intent} was carried out by two plans"));
        }
        if *step != Step::Apply {
            return None;
        }
        let Some(own) = waves.iter().position(|it| it.nodes.iter().any(|it| it == node)) else {
            return Some(format!("an order of wish {intent}, whose plan does not mean it"));
        };
        // Orders count the waves from the first that has anybody, the plan from the first. A leader that was not in force
        // any more may have begun the wave, and been the first to.
        let (own, step) = (u16::try_from(own + 1).ok()?, Step::Apply);
        let begun = |it: &super::Turned| {
            it.turn == Turn::WaveStarted { wave: own, step } && it.at <= entry.at
        };
        (!its().any(begun))
            .then(|| format!("an order of wave {wave} of wish {intent}, which had not begun"))
    })
}

/// Where the last rollout of a service succeeded, every node that it meant runs its release and is healthy with it; where
/// it went back, they run what it went back to.
fn convergence(evidence: &Evidence, told: &[Told<'_>]) -> Vec<String> {
    let mut last: BTreeMap<&str, &Told<'_>> = BTreeMap::new();
    for it in told.iter().filter(|it| !matches!(it.verdict, Some(Verdict::Superseded))) {
        let known = last.entry(it.service).or_insert(it);
        if it.generation > known.generation {
            *known = it;
        }
    }
    let mut faults = Vec::new();
    for it in last.values() {
        let wanted = match it.verdict {
            Some(Verdict::Succeeded) => Some(it.release),
            Some(Verdict::RolledBack) => it.to,
            // A person ended it half-way, or is needed: nothing is the same everywhere.
            _ => continue,
        };
        for node in it.waves.iter().flat_map(|wave| &wave.nodes) {
            if it.verdict == Some(Verdict::Succeeded) && it.without.contains(node.as_str()) {
                continue;
            }
            let Some(entries) = evidence.nodes.get(node) else { continue };
            let runs = last_of(entries, it.service);
            if it.release == ReleaseId::NOTHING && runs.is_none() {
                continue;
            }
            if runs.is_none_or(|(now, is_sound)| now != wanted || !is_sound) {
                let intent = it.intent;
                faults.push(format!(
                    "{node} ends with {runs:?} of {}, not as rollout {intent} did",
                    it.service
                ));
            }
        }
    }
    faults
}

/// Returns what a node runs at the end of its log, and whether that was proved: healthy, or where a return led.
fn last_of(entries: &[Entry], service: &str) -> Option<(Option<ReleaseId>, bool)> {
    let (mut last, mut in_force, mut started) = (None, None, None);
    for entry in entries.iter().filter(|entry| entry.service.as_deref() == Some(service)) {
        match &entry.fact {
            Fact::Applied { now, spec, .. } => {
                (last, in_force) = (Some((*now, false)), Some(*spec));
            }
            Fact::Healthy { release, .. } => {
                last = last.map(|(now, _)| (now, now == Some(*release)));
            }
            Fact::Returned { to, .. } => last = last.map(|(now, _)| (now, now == *to)),
            Fact::Started { spec, .. } => started = Some(*spec),
            Fact::Removed => (last, in_force, started) = (None, None, None),
            _ => {}
        }
    }
    last.map(|(now, is_sound)| (now, is_sound && started == in_force))
}
