//! A fact of every type, for those who write and read them.

use super::tests::{Run, by_name, check, make, node, plan};
use super::*;
use crate::domain::id::{Digest, Generation, IntentId};

/// Returns facts of every type of [`RolloutEvent::KINDS`], as real rollouts made them.
pub(crate) fn facts() -> Vec<RolloutEvent> {
    let (name, rules) = check("rate");
    let parameters = Parameters {
        auto_promote: false,
        require_approval: true,
        checks: [(name.clone(), rules)].into(),
        max_unreachable: Amount::Count(1),
        max_parallel: vec![Amount::Count(2)],
        ..by_name()
    };
    let mut run = Run::of(plan(6, parameters));
    run.command(Command::Approve).unwrap();
    let lead = Input::TakenOver { controller: node("c2"), term: 2, grace_ms: 1 };
    run.input(&lead).unwrap();
    run.report("n9", NodeReport::Seen);
    run.healthy("n1");
    for number in 1..=3 {
        let (check, value) = (name.clone(), "0.2".to_owned());
        run.now = run.now.plus_ms(5_000);
        let measured = Input::Check { check, wave: 1, number, measure: Measure::Good, value };
        run.input(&measured).unwrap();
    }
    run.command(Command::Promote).unwrap();
    run.command(Command::Pause).unwrap();
    run.command(Command::Resume).unwrap();
    run.report("n3", NodeReport::Unreachable);
    run.report("n3", NodeReport::Seen);
    run.report("n3", NodeReport::Unreachable);
    run.tick(120_000);
    run.fails("n2");
    run.returned("n1");
    let failure = Failure::of("exit_code");
    run.report("n2", NodeReport::Failed { generation: Generation(43), failure });
    assert!(run.rollout.verdict().is_some(), "{:?}", run.rollout.phase());
    let mut stopped = Run::of(make(2, None, None, None, by_name()));
    stopped.fails("n1");
    // The core makes none: whoever writes a fact down cuts it.
    let piece = RolloutEvent::Part(RolloutPart {
        cause: Why::Time,
        whole: "rollout.wave_started".to_owned(),
        digest: Digest([7; 32]),
        part: 1,
        parts: 3,
        bytes: vec![0xa1, 0x61],
    });
    run.facts.into_iter().chain(stopped.facts).chain([piece]).collect()
}

/// Returns the facts as a log holds them.
pub(crate) fn of_a_log() -> Vec<RolloutFact> {
    let rollout = IntentId([9; 16]);
    facts().into_iter().map(|event| RolloutFact { rollout, event }).collect()
}

#[test]
fn every_type_has_a_sample() {
    let facts = facts();
    for (kind, _) in RolloutEvent::KINDS {
        assert!(facts.iter().any(|fact| fact.kind() == *kind), "{kind}");
        assert!(facts.iter().all(|fact| !fact.text().is_empty()));
    }
}
