//! Judges a fleet by nothing but its logs, as DESIGN has it that must always hold. Pure, so that it can be shown to find what it
//! is there to find.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use smgr::domain::event::{Cause, Event};
use smgr::domain::id::{Generation, IntentId};
use smgr::domain::intent::Action;
use smgr::domain::node::Node;
use smgr::domain::release::Step;
use smgr::domain::time::UnixMicros;
use smgr::store::LogReader;
use smgr::wire::codec;
use smgr::wire::envelope;
use smgr::wire::fold::Fold;
use smgr::wire::payload::{Body, EventRecord};

/// A run of a slot of a service.
type Run = (String, u16, u64);

/// What a node's log says that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// A wish was taken, by somebody whose key was known.
    Accepted { intent: IntentId, is_signed: bool },
    /// What became of it.
    Executed { intent: IntentId },
    /// An order was taken: its wish, plan, term and wave.
    Ordered { generation: Generation, intent: IntentId, plan: String, term: u64, wave: u16 },
    /// A service was switched to a release, because of something.
    Applied { generation: Generation, step: Step, at: UnixMicros, is_caused: bool },
    /// A release is healthy.
    Healthy { generation: Generation, at: UnixMicros },
    /// A main process began.
    Started(Run),
    /// It ended.
    Exited(Run),
    /// A run relieved another.
    HandedOver,
}

/// What all logs say.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// Of each node, in order.
    pub(super) nodes: BTreeMap<String, Vec<Fact>>,
    /// Each time that a controller began to lead, and in which term.
    pub(super) led: Vec<(String, u64)>,
    /// What does not follow from what stands before it.
    pub(super) broken: Vec<String>,
}

impl Evidence {
    /// Adds the log of a node.
    pub(super) fn read_node(&mut self, name: &str, folder: &Path) {
        let mut node = Node::default();
        let mut facts = Vec::new();
        let mut broken = None;
        let read = LogReader::new(folder.join("log")).rows(None, |at, row| {
            facts.extend(fact_of(row));
            let mut fold = Fold::new(&mut node);
            let flow = fold.row(at.seq, row);
            broken = broken.take().or(fold.broken.take());
            flow
        });
        read.unwrap();
        self.broken.extend(broken.map(|why| format!("{name}: {why:?}")));
        self.nodes.insert(name.to_owned(), facts);
    }

    /// Adds the log of a controller.
    pub(super) fn read_controller(&mut self, name: &str, folder: &Path) {
        let read = LogReader::new(folder.join("log")).rows(None, |_, row| {
            if let Some((_, Event::ControllerLed(led))) = event_of(row) {
                self.led.push((name.to_owned(), led.term));
            }
            ControlFlow::Continue(())
        });
        read.unwrap();
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

fn fact_of(row: &[u8]) -> Option<Fact> {
    let (record, event) = event_of(row)?;
    let run = || {
        let service = record.service.as_ref().unwrap().to_string();
        (service, record.index.unwrap_or_default(), record.run.unwrap().0)
    };
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are judged by the fold")]
    match event {
        Event::IntentAccepted(it) => {
            let is_start = matches!(it.action, Action::Apply { .. });
            let is_signed = record.by.is_some() || is_start;
            Some(Fact::Accepted { intent: it.intent, is_signed })
        }
        Event::IntentExecuted(it) => Some(Fact::Executed { intent: it.intent }),
        Event::OrderAccepted(it) => Some(Fact::Ordered {
            generation: it.generation,
            intent: it.intent,
            plan: it.plan.to_string(),
            term: it.term,
            wave: it.wave,
        }),
        Event::ReleaseApplied(it) => Some(Fact::Applied {
            generation: it.generation,
            step: it.step,
            at: record.at,
            is_caused: matches!(record.cause, Some(Cause::Intent(_))),
        }),
        Event::ReleaseHealthy(it) => {
            Some(Fact::Healthy { generation: it.generation, at: record.at })
        }
        Event::InstanceStarted(_) => Some(Fact::Started(run())),
        Event::InstanceExited(_) => Some(Fact::Exited(run())),
        Event::InstanceHandedOver(_) => Some(Fact::HandedOver),
        _ => None,
    }
}

/// Returns everything that must not be.
pub(super) fn judge(evidence: &Evidence) -> Vec<String> {
    let mut faults = evidence.broken.clone();
    for (node, facts) in &evidence.nodes {
        faults.extend(
            wishes(facts).chain(runs(facts)).chain(orders(facts)).map(|it| format!("{node}: {it}")),
        );
    }
    faults.extend(canaries(&evidence.nodes));
    faults.extend(plans(&evidence.nodes));
    let mut terms = BTreeMap::new();
    for (controller, term) in &evidence.led {
        if let Some(other) = terms.insert(term, controller) {
            faults.push(format!("{other} and {controller} led in term {term}"));
        }
    }
    faults
}

/// A wish is taken once, from somebody, and has one outcome.
fn wishes(facts: &[Fact]) -> impl Iterator<Item = String> {
    let (mut accepted, mut executed) = (BTreeSet::new(), BTreeSet::new());
    let mut faults = Vec::new();
    for fact in facts {
        match fact {
            Fact::Accepted { intent, is_signed } => {
                if !accepted.insert(*intent) {
                    faults.push(format!("wish {intent} was taken twice"));
                }
                if !is_signed {
                    faults.push(format!("wish {intent} is nobody's"));
                }
            }
            Fact::Executed { intent } => {
                if !executed.insert(*intent) {
                    faults.push(format!("wish {intent} has two outcomes"));
                }
                if !accepted.contains(intent) {
                    faults.push(format!("wish {intent} has an outcome and was never taken"));
                }
            }
            Fact::Ordered { .. }
            | Fact::Applied { .. }
            | Fact::Healthy { .. }
            | Fact::Started(_)
            | Fact::Exited(_)
            | Fact::HandedOver => {}
        }
    }
    faults.into_iter()
}

/// A run is started once and ends once, and no third one of a slot is there beside the two of a handover.
fn runs(facts: &[Fact]) -> impl Iterator<Item = String> {
    let (mut started, mut alive) = (BTreeSet::new(), BTreeSet::new());
    let mut faults = Vec::new();
    for fact in facts {
        match fact {
            Fact::Started(run) => {
                if !started.insert(run.clone()) {
                    faults.push(format!("run {run:?} was started twice"));
                }
                alive.insert(run.clone());
                let same = |other: &&Run| (&other.0, other.1) == (&run.0, run.1);
                if alive.iter().filter(same).count() > 2 {
                    faults.push(format!("run {run:?} began beside two others"));
                }
            }
            Fact::Exited(run) => {
                if !alive.remove(run) {
                    faults.push(format!("run {run:?} ended and did not run"));
                }
            }
            Fact::Accepted { .. }
            | Fact::Executed { .. }
            | Fact::Ordered { .. }
            | Fact::Applied { .. }
            | Fact::Healthy { .. }
            | Fact::HandedOver => {}
        }
    }
    faults.into_iter()
}

/// What is desired only gets newer, each switch has a wish, and no order is followed of a term below one that was.
fn orders(facts: &[Fact]) -> impl Iterator<Item = String> {
    let (mut taken_up, mut ordered) = (BTreeSet::new(), Vec::new());
    let (mut newest, mut highest) = (Generation::default(), 0);
    let mut faults = Vec::new();
    for fact in facts {
        match fact {
            Fact::Ordered { generation, term, .. } => {
                if *term < highest {
                    faults
                        .push(format!("an order of term {term} was taken after one of {highest}"));
                }
                highest = highest.max(*term);
                ordered.push(*generation);
            }
            Fact::Applied { generation, step: Step::Apply, is_caused, .. } => {
                if !taken_up.insert(*generation) {
                    faults.push(format!("generation {generation:?} was taken up twice"));
                }
                if *generation < newest {
                    faults.push(format!("generation {generation:?} was taken up after {newest:?}"));
                }
                if !is_caused {
                    faults.push(format!(
                        "generation {generation:?} was taken up and nobody wished it"
                    ));
                }
                newest = newest.max(*generation);
            }
            Fact::Applied { .. }
            | Fact::Accepted { .. }
            | Fact::Executed { .. }
            | Fact::Healthy { .. }
            | Fact::Started(_)
            | Fact::Exited(_)
            | Fact::HandedOver => {}
        }
    }
    faults.into_iter()
}

/// No node of a later wave takes a release up before one of the first wave was healthy with it.
fn canaries(nodes: &BTreeMap<String, Vec<Fact>>) -> Vec<String> {
    let mut first_healthy: BTreeMap<Generation, UnixMicros> = BTreeMap::new();
    let mut waves: BTreeMap<(&str, Generation), u16> = BTreeMap::new();
    for (node, facts) in nodes {
        for fact in facts {
            if let Fact::Ordered { generation, wave, .. } = fact {
                waves.entry((node, *generation)).or_insert(*wave);
            }
        }
        for fact in facts {
            if let Fact::Healthy { generation, at } = fact
                && waves.get(&(node.as_str(), *generation)) == Some(&1)
            {
                let first = first_healthy.entry(*generation).or_insert(*at);
                *first = (*first).min(*at);
            }
        }
    }
    let mut faults = Vec::new();
    for (node, facts) in nodes {
        for fact in facts {
            let Fact::Applied { generation, step: Step::Apply, at, .. } = fact else { continue };
            let is_late = waves.get(&(node.as_str(), *generation)).is_some_and(|wave| *wave > 1);
            if is_late && first_healthy.get(generation).is_none_or(|first| first > at) {
                faults.push(format!(
                    "{node} took generation {generation:?} up before any canary was healthy"
                ));
            }
        }
    }
    faults
}

/// A wish is carried out by one plan, whoever leads.
fn plans(nodes: &BTreeMap<String, Vec<Fact>>) -> Vec<String> {
    let mut plans: BTreeMap<IntentId, &str> = BTreeMap::new();
    let mut faults = Vec::new();
    for fact in nodes.values().flatten() {
        if let Fact::Ordered { intent, plan, .. } = fact
            && plans.insert(*intent, plan).is_some_and(|other| other != plan)
        {
            faults.push(format!("wish {intent} was carried out by two plans"));
        }
    }
    faults
}

mod negative_control {
    use super::*;

    const WISH: IntentId = IntentId([7; 16]);

    fn run(number: u64) -> Run {
        ("web".to_owned(), 0, number)
    }

    fn applied(generation: u64, at: u64) -> Fact {
        let generation = Generation(generation);
        Fact::Applied { generation, step: Step::Apply, at: UnixMicros(at), is_caused: true }
    }

    fn ordered(generation: u64, term: u64, wave: u16) -> Fact {
        let generation = Generation(generation);
        Fact::Ordered { generation, intent: WISH, plan: "p".to_owned(), term, wave }
    }

    fn healthy(generation: u64, at: u64) -> Fact {
        Fact::Healthy { generation: Generation(generation), at: UnixMicros(at) }
    }

    /// Two nodes that did everything right.
    fn good() -> Evidence {
        let accepted = || Fact::Accepted { intent: WISH, is_signed: true };
        let executed = || Fact::Executed { intent: WISH };
        let canary = vec![
            accepted(),
            ordered(5, 2, 1),
            applied(5, 10),
            Fact::Started(run(1)),
            Fact::Started(run(2)),
            Fact::HandedOver,
            Fact::Exited(run(1)),
            healthy(5, 20),
            executed(),
        ];
        let later = vec![accepted(), ordered(5, 2, 2), applied(5, 30), healthy(5, 40), executed()];
        let nodes = BTreeMap::from([("n1".to_owned(), canary), ("n2".to_owned(), later)]);
        Evidence { nodes, led: vec![("c1".to_owned(), 1), ("c2".to_owned(), 2)], broken: vec![] }
    }

    #[test]
    fn each_fault_that_is_put_in_is_found() {
        assert_eq!(judge(&good()), Vec::<String>::new());
        type Spoil = fn(&mut Evidence);
        let spoilt: [(&str, Spoil); 12] = [
            ("taken twice", |it| it.on("n1", Fact::Accepted { intent: WISH, is_signed: true })),
            ("is nobody's", |it| {
                it.on("n1", Fact::Accepted { intent: IntentId([8; 16]), is_signed: false });
            }),
            ("two outcomes", |it| it.on("n2", Fact::Executed { intent: WISH })),
            ("was never taken", |it| it.on("n2", Fact::Executed { intent: IntentId([9; 16]) })),
            ("started twice", |it| it.on("n1", Fact::Started(run(2)))),
            ("beside two others", |it| {
                it.on("n1", Fact::Started(run(3)));
                it.on("n1", Fact::Started(run(4)));
            }),
            ("did not run", |it| it.on("n1", Fact::Exited(run(1)))),
            ("taken up twice", |it| it.on("n2", applied(5, 50))),
            ("was taken up after", |it| it.on("n2", applied(4, 50))),
            ("after one of 2", |it| it.on("n2", ordered(6, 1, 2))),
            ("before any canary", |it| {
                it.nodes.get_mut("n1").unwrap().retain(|it| *it != healthy(5, 20));
            }),
            ("led in term 2", |it| it.led.push(("c1".to_owned(), 2))),
        ];
        for (what, spoil) in spoilt {
            let mut evidence = good();
            spoil(&mut evidence);
            let faults = judge(&evidence);
            assert!(faults.iter().any(|fault| fault.contains(what)), "{what}: {faults:?}");
        }
        let mut evidence = good();
        let Some(Fact::Ordered { plan, .. }) =
            evidence.nodes.get_mut("n2").and_then(|it| it.get_mut(1))
        else {
            panic!("the second fact of n2 is its order");
        };
        "q".clone_into(plan);
        assert!(judge(&evidence)[0].contains("two plans"));
    }

    impl Evidence {
        fn on(&mut self, node: &str, fact: Fact) {
            self.nodes.get_mut(node).unwrap().push(fact);
        }
    }
}
