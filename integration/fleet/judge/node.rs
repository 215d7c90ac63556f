//! What must hold in the log of one node.

use std::collections::{BTreeMap, BTreeSet};

use smgr::domain::event::Desired;
use smgr::domain::id::{Digest, Generation, IntentId};
use smgr::domain::release::{ReleaseId, Step};

use super::{Again, Entry, Fact, Run, Wish};

/// The outcome of a wish may be this late, in microseconds: nobody writes while the agent is dead.
const LATE: u64 = 60_000_000;

pub(super) fn judge(entries: &[Entry]) -> impl Iterator<Item = String> {
    let faults = [wishes(entries), authority(entries), runs(entries), releases(entries)];
    faults.into_iter().flatten()
}

/// A wish is taken once, has a deadline, one outcome by then, and runs what it asks for at most once.
fn wishes(entries: &[Entry]) -> Vec<String> {
    let (mut open, mut ended, mut ran) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let mut faults = Vec::new();
    for entry in entries {
        match &entry.fact {
            Fact::Accepted { intent, until, .. }
                if ended.contains(intent) || open.insert(*intent, *until).is_some() =>
            {
                faults.push(format!("wish {intent} was taken twice"));
            }
            Fact::Executed { intent } => match open.remove(intent) {
                _ if !ended.insert(*intent) => {
                    faults.push(format!("wish {intent} has two outcomes"));
                }
                None => faults.push(format!("wish {intent} has an outcome and was never taken")),
                Some(until) if entry.at.0 > until.0 + LATE => {
                    faults.push(format!("wish {intent} came to its outcome after its deadline"));
                }
                Some(_) => {}
            },
            Fact::Ran { intent, action } => {
                if !ran.insert((*intent, action)) {
                    faults.push(format!("wish {intent} ran twice"));
                }
                if !open.contains_key(intent) {
                    faults.push(format!("wish {intent} ran and was not taken"));
                }
            }
            _ => {}
        }
    }
    faults.extend(open.keys().map(|intent| format!("wish {intent} has no outcome")));
    faults
}

/// What is known of a service on the way through a log.
#[derive(Default)]
struct Known {
    spec: Option<Digest>,
    desired: Desired,
    /// The slots that something said may begin: an end that another run follows, or the agent's own start.
    due: BTreeSet<u16>,
    /// Whether what is wanted changed, so that every slot may.
    is_news: bool,
}

/// Every process leads to a wish that was taken: by way of its spec, of what is wanted of the service, and of what asked
/// for this start, or of a rule by which an end is followed by a start.
fn authority(entries: &[Entry]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut services: BTreeMap<&str, Known> = BTreeMap::new();
    let mut faults = Vec::new();
    for entry in entries {
        if let Fact::Accepted { intent, .. } | Fact::Ordered { intent, .. } = &entry.fact {
            taken.insert(*intent);
        }
        if let Some(intent) = entry.intent.filter(|intent| !taken.contains(intent)) {
            faults.push(format!("{:?} follows wish {intent}, which was never taken", entry.fact));
        }
        if matches!(entry.fact, Fact::AgentBegan) {
            services.values_mut().for_each(|it| it.is_news = true);
        }
        let Some(name) = &entry.service else { continue };
        let known = services.entry(name).or_default();
        match &entry.fact {
            Fact::Added { spec, desired, is_file } => {
                // Files are taken up without a wish where there was nothing, and never instead of something.
                let is_found = *is_file && known.spec.is_none();
                if entry.intent.is_none() && !is_found {
                    faults.push(format!("{name} was given a spec that nobody wished"));
                }
                if known.spec.is_none() {
                    known.desired = *desired;
                }
                (known.spec, known.is_news) = (Some(*spec), true);
            }
            Fact::Removed => *known = Known::default(),
            Fact::Desired(desired) => {
                if entry.intent.is_none() {
                    faults.push(format!("{name} is wanted {desired:?} and nobody wished it"));
                }
                (known.desired, known.is_news) = (*desired, true);
            }
            Fact::Starting { run, .. } => {
                if known.desired == Desired::Stopped {
                    faults.push(format!("{run:?} began and nobody wants {name} up"));
                }
                if entry.intent.is_none() && !known.is_news && !known.due.remove(&run.slot) {
                    faults.push(format!("{run:?} began without a wish or a rule"));
                }
            }
            Fact::Started { run, spec } if known.spec != Some(*spec) => {
                faults.push(format!("{run:?} began from a spec that is not in force"));
            }
            Fact::Exited { run, again }
            | Fact::Stopped { run, again }
            | Fact::NotStarted { run, again } => {
                known.is_news = false;
                if *again == Again::Later {
                    known.due.insert(run.slot);
                }
            }
            _ => {}
        }
    }
    faults
}

/// The runs of one slot.
#[derive(Default)]
struct Slot {
    /// Counts as serving.
    serving: Option<u64>,
    /// Is there beside it, until it relieves it or ends.
    beside: Option<u64>,
    /// Was relieved and ends.
    relieved: BTreeSet<u64>,
}

/// A run is started once and ends once. Another one begins when it has ended, or beside it, and relieves it then.
fn runs(entries: &[Entry]) -> Vec<String> {
    let (mut begun, mut started, mut alive) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut slots: BTreeMap<(&str, u16), Slot> = BTreeMap::new();
    let mut faults = Vec::new();
    for entry in entries {
        match &entry.fact {
            Fact::Starting { run, is_beside } => {
                let slot = slots.entry((&run.service, run.slot)).or_default();
                if !begun.insert(run.clone()) {
                    faults.push(format!("{run:?} was begun twice"));
                }
                match (is_beside, slot.serving, slot.beside) {
                    (_, _, Some(other)) => {
                        faults.push(format!(
                            "{run:?} began beside {other}, which was beside another"
                        ));
                    }
                    (false, Some(other), None) => {
                        faults.push(format!("{run:?} began while {other} ran, without a handover"));
                    }
                    (true, None, None) => faults.push(format!("{run:?} began beside nothing")),
                    (true, Some(_), None) => slot.beside = Some(run.number),
                    (false, None, None) => slot.serving = Some(run.number),
                }
            }
            Fact::Started { run, .. } => {
                if !begun.contains(run) {
                    faults.push(format!("{run:?} was started and nothing began it"));
                }
                if !started.insert(run.clone()) {
                    faults.push(format!("{run:?} was started twice"));
                }
                alive.insert(run);
            }
            Fact::HandedOver { run, from } => {
                let slot = slots.entry((&run.service, run.slot)).or_default();
                if slot.beside != Some(run.number) || slot.serving != Some(*from) {
                    faults.push(format!("{run:?} relieved {from}, which was not so"));
                }
                slot.relieved.extend(slot.serving.take());
                (slot.serving, slot.beside) = (Some(run.number), None);
            }
            Fact::Exited { run, again } => {
                if !alive.remove(run) {
                    faults.push(format!("{run:?} ended and did not run"));
                }
                gone(&mut slots, run);
                follow(&mut begun, &mut slots, run, *again);
            }
            Fact::NotStarted { run, .. } => gone(&mut slots, run),
            Fact::Stopped { run, again } => follow(&mut begun, &mut slots, run, *again),
            Fact::AllDown => {
                faults.extend(alive.iter().map(|run| format!("{run:?} runs on after the end")));
            }
            _ => {}
        }
    }
    faults.extend(slots.iter().filter(|(_, slot)| slot.serving.is_none()).filter_map(
        |(id, slot)| {
            slot.beside.map(|run| format!("run {run} of {id:?} is beside nothing at the end"))
        },
    ));
    faults
}

fn gone<'a>(slots: &mut BTreeMap<(&'a str, u16), Slot>, run: &'a Run) {
    let slot = slots.entry((&run.service, run.slot)).or_default();
    slot.serving = slot.serving.filter(|it| *it != run.number);
    slot.beside = slot.beside.filter(|it| *it != run.number);
    slot.relieved.remove(&run.number);
}

/// Begins the run that an end says is on its way.
fn follow<'a>(
    begun: &mut BTreeSet<Run>,
    slots: &mut BTreeMap<(&'a str, u16), Slot>,
    run: &'a Run,
    again: Again,
) {
    if again == Again::AtOnce {
        let next = Run { number: run.number + 1, ..run.clone() };
        slots.entry((&run.service, run.slot)).or_default().serving = Some(next.number);
        begun.insert(next);
    }
}

/// What is known of the releases of a service.
#[derive(Default)]
struct Releases {
    /// The highest number that was taken up, a return's included.
    newest: Generation,
    /// By which term and plan orders came.
    term: u64,
    /// What was healthy here and not left since.
    good: Vec<ReleaseId>,
    /// What each wish wants to be left for.
    back: BTreeMap<Generation, Option<ReleaseId>>,
    /// What each return leads to.
    returns: BTreeMap<Generation, Option<ReleaseId>>,
}

/// What is desired only gets newer, a return leads to what was good and is not undone by an old order, and each switch
/// has a wish.
fn releases(entries: &[Entry]) -> Vec<String> {
    let mut wished: BTreeMap<IntentId, (Generation, Option<ReleaseId>)> = BTreeMap::new();
    let mut services: BTreeMap<&str, Releases> = BTreeMap::new();
    let mut faults = Vec::new();
    for entry in entries {
        if let Fact::Accepted { intent, wish: Wish::Release { generation, back_to }, .. } =
            &entry.fact
        {
            wished.insert(*intent, (*generation, *back_to));
        }
        let Some(name) = &entry.service else { continue };
        let known = services.entry(name).or_default();
        match &entry.fact {
            Fact::Ordered { term, .. } => {
                if *term < known.term {
                    let before = known.term;
                    faults.push(format!("an order of term {term} was taken after one of {before}"));
                }
                known.term = known.term.max(*term);
            }
            Fact::Applied { generation, step, left, now, .. } => {
                let wish = entry.intent.and_then(|intent| wished.get(&intent));
                let its = match step {
                    Step::Apply => *generation,
                    Step::Return | Step::Leave => Generation(generation.0.saturating_sub(1)),
                };
                if wish.is_none_or(|(generation, _)| *generation != its) {
                    faults.push(format!("{generation:?} was taken up and nobody wished it"));
                }
                known.back.insert(its, wish.and_then(|(_, back)| *back));
                if *generation <= known.newest {
                    let newest = known.newest;
                    faults.push(format!("{generation:?} was taken up after {newest:?}"));
                }
                known.newest = known.newest.max(*generation);
                match step {
                    Step::Apply if *now != Some(*left) => {
                        faults.push(format!("{generation:?} is another release than was wished"));
                    }
                    Step::Apply => {}
                    Step::Return | Step::Leave => {
                        if *now != known.way_back(*left, its) {
                            faults.push(format!("{generation:?} returned to {now:?}"));
                        }
                        known.good.retain(|good| good != left);
                        known.returns.insert(*generation, *now);
                    }
                }
            }
            Fact::Healthy { generation, release } => {
                if *generation != known.newest {
                    faults.push(format!("{generation:?} is healthy and not what was taken up"));
                }
                known.good.retain(|good| good != release);
                known.good.push(*release);
            }
            Fact::Returned { generation, to } if known.returns.get(generation) != Some(to) => {
                faults.push(format!("{generation:?} ended elsewhere than it led"));
            }
            _ => {}
        }
    }
    faults
}

impl Releases {
    /// What a release is to be left for: what its wish names, where that was good here, else what was good last.
    fn way_back(&self, left: ReleaseId, generation: Generation) -> Option<ReleaseId> {
        let named = self.back.get(&generation).copied().flatten();
        let named = named.filter(|it| *it != left && self.good.contains(it));
        named.or_else(|| self.good.iter().rev().find(|it| **it != left).copied())
    }
}
