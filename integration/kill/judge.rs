//! Judges the evidence. Pure, so that it can be shown to find what it is there to find.

use std::collections::{BTreeMap, BTreeSet};

use smgr::domain::event::{Exit, Outcome};
use smgr::domain::id::IntentId;
use smgr::domain::intent::Action;

use super::evidence::{Evidence, Process};

/// What a run came to.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// What must not be.
    pub(super) faults: Vec<String>,
    pub(super) accepted: usize,
    pub(super) done: usize,
    pub(super) failed: usize,
    /// Outcomes that nobody can tell.
    pub(super) unknown_outcomes: usize,
    pub(super) exits: usize,
    /// Ends that nobody saw.
    pub(super) unknown_exits: usize,
    pub(super) lines: usize,
    /// Lines that stand twice, as the last batch before a kill may.
    pub(super) repeated_lines: usize,
}

/// Compares the witnesses.
pub(super) fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    outcomes(evidence, &mut verdict);
    executions(evidence, &mut verdict);
    processes(evidence, &mut verdict);
    lines(evidence, &mut verdict);
    verdict
}

fn outcomes(evidence: &Evidence, verdict: &mut Verdict) {
    let mut accepted = BTreeMap::new();
    for (id, _) in &evidence.accepted {
        *accepted.entry(*id).or_insert(0) += 1;
    }
    let mut ended: BTreeMap<IntentId, usize> = BTreeMap::new();
    for (id, outcome, _) in &evidence.outcomes {
        *ended.entry(*id).or_default() += 1;
        match outcome {
            Outcome::Done { .. } => verdict.done += 1,
            Outcome::Failed { .. } => verdict.failed += 1,
            Outcome::Unknown { .. } => verdict.unknown_outcomes += 1,
        }
    }
    verdict.accepted = accepted.len();
    for (id, times) in &accepted {
        if *times != 1 {
            verdict.faults.push(format!("intent {id} was accepted {times} times"));
        }
        let outcomes = ended.get(id).copied().unwrap_or(0);
        if outcomes != 1 {
            verdict.faults.push(format!("intent {id} has {outcomes} outcomes"));
        }
    }
    for id in ended.keys().filter(|id| !accepted.contains_key(*id)) {
        verdict.faults.push(format!("intent {id} has an outcome and was never accepted"));
    }
}

fn executions(evidence: &Evidence, verdict: &mut Verdict) {
    let outcomes: BTreeMap<IntentId, &Outcome> =
        evidence.outcomes.iter().map(|(id, outcome, _)| (*id, outcome)).collect();
    let mut acts: BTreeMap<&str, usize> = BTreeMap::new();
    for number in &evidence.acts {
        *acts.entry(number).or_default() += 1;
    }
    // How many signals each service has to have taken: those that are done, and at most those that nobody can tell.
    let mut signals: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (id, action) in &evidence.accepted {
        let outcome = outcomes.get(id);
        let (least, most) = match outcome {
            Some(Outcome::Done { .. }) => (1, 1),
            Some(Outcome::Unknown { .. }) => (0, 1),
            Some(Outcome::Failed { .. }) | None => (0, 0),
        };
        match action {
            Action::Run { params, .. } => {
                let times = acts.remove(params["id"].as_str()).unwrap_or(0);
                if !(least..=most).contains(&(times as u64)) {
                    let number = &params["id"];
                    verdict.faults.push(format!(
                        "intent {id} (action {number}) ran {times} times, its outcome is {outcome:?}"
                    ));
                }
            }
            Action::Signal { service, .. } => {
                let bounds = signals.entry(service.to_string()).or_default();
                *bounds = (bounds.0 + least, bounds.1 + most);
            }
            Action::Start { .. }
            | Action::Stop { .. }
            | Action::Restart { .. }
            | Action::Reload { .. }
            | Action::Apply { .. }
            | Action::Deploy { .. }
            | Action::Rollout { .. }
            | Action::Remove { .. }
            | Action::Shutdown { .. } => {}
        }
    }
    for (number, times) in acts {
        verdict.faults.push(format!("action {number} ran {times} times for no accepted intent"));
    }
    for service in evidence.signals.keys() {
        signals.entry(service.clone()).or_default();
    }
    for (service, (least, most)) in signals {
        let taken = evidence.signals.get(&service).copied().unwrap_or(0);
        if !(least..=most).contains(&taken) {
            verdict
                .faults
                .push(format!("{service} took {taken} signals, the log says {least} to {most}"));
        }
    }
}

fn processes(evidence: &Evidence, verdict: &mut Verdict) {
    for process in &evidence.doubles {
        verdict.faults.push(format!("{process:?} found another of its name alive"));
    }
    let mut starts = BTreeSet::new();
    for process in evidence.starts.iter().filter(|process| !starts.insert(*process)) {
        verdict.faults.push(format!("{process:?} was started twice"));
    }
    let started: BTreeSet<&Process> = evidence.started.iter().collect();
    for process in evidence.starts.iter().filter(|process| !started.contains(process)) {
        verdict.faults.push(format!("the log does not know the start of {process:?}"));
    }
    let mut exited: BTreeMap<&Process, Vec<Exit>> = BTreeMap::new();
    for (process, exit, _) in &evidence.exited {
        exited.entry(process).or_default().push(*exit);
        verdict.exits += 1;
        verdict.unknown_exits += usize::from(*exit == Exit::Unknown);
    }
    for (process, exits) in &exited {
        if exits.len() != 1 {
            verdict.faults.push(format!("{process:?} ended {} times", exits.len()));
        }
    }
    let ended: BTreeSet<&Process> = evidence.ends.iter().map(|(process, ..)| process).collect();
    for process in starts.iter().filter(|process| !ended.contains(**process)) {
        // Nobody kills a worker here, so what it wrote last could not be judged.
        verdict.faults.push(format!("{process:?} did not come to its own end"));
    }
    for (process, code, _) in &evidence.ends {
        match exited.get(process).and_then(|exits| exits.first()) {
            Some(Exit::Unknown) => {}
            Some(exit) if *exit == Exit::Code(*code) => {}
            Some(exit) => {
                verdict.faults.push(format!("{process:?} ended with {code}, the log has {exit:?}"));
            }
            None => verdict.faults.push(format!("the log does not know the end of {process:?}")),
        }
    }
}

fn lines(evidence: &Evidence, verdict: &mut Verdict) {
    if evidence.dropped_lines > 0 {
        verdict.faults.push(format!("{} lines were dropped", evidence.dropped_lines));
    }
    for (process, _, written) in &evidence.ends {
        let found = evidence.lines.get(process).map(Vec::as_slice).unwrap_or_default();
        let distinct: BTreeSet<u32> = found.iter().copied().collect();
        verdict.lines += distinct.len();
        verdict.repeated_lines += found.len() - distinct.len();
        let missing: Vec<u32> =
            (1..=*written).filter(|number| !distinct.contains(number)).collect();
        if !missing.is_empty() {
            verdict.faults.push(format!("{process:?}: lines {missing:?} of {written} are missing"));
        }
    }
}

/// A way to spoil evidence, and its name.
pub(super) type Tampering = (&'static str, fn(&mut Evidence));

/// What must not be, done to the evidence of a run: the judge has to find each.
pub(super) const TAMPERINGS: &[Tampering] = &[
    ("an acceptance is gone", |evidence| drop(take_middle(&mut evidence.accepted))),
    ("an acceptance stands twice", |evidence| double_middle(&mut evidence.accepted)),
    ("an outcome is gone", |evidence| drop(take_middle(&mut evidence.outcomes))),
    ("an outcome stands twice", |evidence| double_middle(&mut evidence.outcomes)),
    ("an execution is gone", |evidence| drop(take_middle(&mut evidence.acts))),
    ("an action ran twice", |evidence| double_middle(&mut evidence.acts)),
    ("a signal was taken twice", |evidence| {
        *evidence.signals.values_mut().next().expect("a run sends signals") += 1;
    }),
    ("the log misses a start", |evidence| {
        let process = middle(&evidence.starts).clone();
        evidence.started.retain(|started| *started != process);
    }),
    ("a run is started twice", |evidence| double_middle(&mut evidence.starts)),
    ("a process found another of its name alive", |evidence| {
        let process = middle(&evidence.starts).clone();
        evidence.doubles.push(process);
    }),
    ("the log misses an exit", |evidence| {
        let process = middle(&evidence.ends).0.clone();
        evidence.exited.retain(|(exited, ..)| *exited != process);
    }),
    ("a process is killed", |evidence| drop(take_middle(&mut evidence.ends))),
    ("an exit stands twice", |evidence| double_middle(&mut evidence.exited)),
    ("a code is another", |evidence| {
        // Of one that somebody saw: where nobody did there is none to compare.
        let seen: BTreeSet<Process> = evidence
            .exited
            .iter()
            .filter(|(_, exit, _)| *exit != Exit::Unknown)
            .map(|(process, ..)| process.clone())
            .collect();
        let end = evidence.ends.iter_mut().find(|(process, ..)| seen.contains(process));
        end.expect("some exit is seen").1 ^= 1;
    }),
    ("a log line is gone", |evidence| {
        let process = middle(&evidence.ends).0.clone();
        let lines = evidence.lines.get_mut(&process).expect("each process writes lines");
        let number = *middle(lines);
        lines.retain(|line| *line != number);
    }),
    ("a line was dropped", |evidence| evidence.dropped_lines += 1),
];

/// The negative control on the evidence of a run itself: names the tamperings that the judge does not find.
pub(super) fn overlooked(evidence: &Evidence) -> Vec<&'static str> {
    let before = judge(evidence).faults;
    let is_overlooked = |(_, tamper): &&Tampering| {
        let mut spoiled = evidence.clone();
        tamper(&mut spoiled);
        judge(&spoiled).faults == before
    };
    TAMPERINGS.iter().filter(is_overlooked).map(|(name, _)| *name).collect()
}

fn middle<T>(all: &[T]) -> &T {
    &all[all.len() / 2]
}

fn take_middle<T>(all: &mut Vec<T>) -> T {
    all.remove(all.len() / 2)
}

fn double_middle<T: Clone>(all: &mut Vec<T>) {
    all.push(middle(all).clone());
}

mod tests {
    use smgr::domain::time::UnixMicros;

    use super::*;

    fn good() -> Evidence {
        let (one, two) = (IntentId([1; 16]), IntentId([2; 16]));
        let web = || ("web".to_owned(), 7);
        let run = Action::Run {
            service: "web".parse().unwrap(),
            action: "count".parse().unwrap(),
            params: [("id".to_owned(), "a".to_owned())].into(),
            confirmed: false,
        };
        let signal = Action::Signal { service: "web".parse().unwrap(), signal: 40 };
        let done = || Outcome::Done { changed: true };
        Evidence {
            accepted: vec![(one, run), (two, signal)],
            outcomes: vec![(one, done(), UnixMicros(1)), (two, done(), UnixMicros(2))],
            started: vec![web()],
            exited: vec![(web(), Exit::Code(3), UnixMicros(3))],
            acts: vec!["a".to_owned()],
            signals: [("web".to_owned(), 1)].into(),
            starts: vec![web()],
            ends: vec![(web(), 3, 2)],
            lines: [(web(), vec![1, 1, 2])].into(),
            ..Evidence::default()
        }
    }

    #[test]
    fn a_run_in_which_all_is_well_has_no_fault() {
        let verdict = judge(&good());
        assert_eq!(verdict.faults, Vec::<String>::new());
        assert_eq!(verdict.repeated_lines, 1);
    }

    #[test]
    fn whatever_is_lost_or_doubled_is_found() {
        assert_eq!(overlooked(&good()), Vec::<&str>::new());
    }

    #[test]
    fn an_end_that_nobody_saw_is_counted() {
        let mut evidence = good();
        evidence.exited[0].1 = Exit::Unknown;
        assert_eq!(judge(&evidence).unknown_exits, 1);
    }
}
