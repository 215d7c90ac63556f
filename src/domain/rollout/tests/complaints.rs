//! One test for each complaint that users of other tools have made most often, as far as the core shows it.

use super::*;

#[test]
fn complaint_01_a_rollout_that_failed_never_exits_0() {
    let failed = [
        Verdict::RolledBack,
        Verdict::RollbackFailed,
        Verdict::Stopped,
        Verdict::Aborted,
        Verdict::Superseded,
    ];
    assert!(failed.iter().all(|verdict| verdict.exit_code() != 0));
}

#[test]
fn complaint_02_a_rollback_that_worked_still_exits_non_zero() {
    let mut run = Run::of(plan(1, by_name()));
    run.fails("n1");
    run.returned("n1");
    assert_eq!(run.ended().exit_code, 10);
}

#[test]
fn complaint_03_the_way_back_is_immediate_and_has_no_canary() {
    let mut run = Run::of(plan(4, by_name()));
    for name in ["n1", "n2", "n3"] {
        run.healthy(name);
    }
    run.fails("n4");
    assert_eq!(run.returns(), ["n1", "n2", "n3", "n4"]);
}

#[test]
fn complaint_04_a_failed_rollout_holds_up_no_later_one() {
    let mut first = Run::of(plan(3, by_name()));
    first.fails("n1");
    first.returned("n1");
    assert_eq!(first.ended().state, Verdict::RolledBack);
    let mut second = Run::of(plan(3, by_name()));
    for name in ["n1", "n2", "n3"] {
        second.healthy(name);
    }
    assert_eq!(second.ended().state, Verdict::Succeeded);
}

#[test]
fn complaint_05_the_way_back_has_a_deadline_of_its_own_and_then_ends() {
    let mut run = Run::of(plan(1, by_name()));
    run.tick(599_000);
    run.fails("n1");
    assert_eq!(run.tick(290_000), [""; 0], "the deadline forward does not hurry the way back");
    assert!(run.tick(20_000).contains(&"return_failed"));
    assert_eq!(run.ended().exit_code, 12);
}

#[test]
fn complaint_06_a_failed_rollout_is_retried_without_editing_anything() {
    let mut run = Run::of(plan(3, by_name()));
    run.fails("n1");
    run.returned("n1");
    let (left, retry) = run.rollout.retry().unwrap();
    assert_eq!(left.len(), 3);
    let again = make(3, Some(OLD), None, Some((left, retry)), by_name());
    assert_eq!(again.release, run.rollout.plan().release);
    assert_eq!(again.waves[0].kind, WaveKind::Canary, "the canary failed, so it is tried again");
}

#[test]
fn complaint_07_a_broken_fleet_is_replaced_first_and_waits_for_no_health() {
    let plan = plan(5, by_name());
    let mut before: BTreeMap<_, _> = plan
        .targets()
        .map(|node| (node.clone(), Observed { release: Some(OLD), healthy: true }))
        .collect();
    for name in ["n4", "n5"] {
        before.insert(node(name), Observed { release: Some(OLD), healthy: false });
    }
    let mut run = Run::open(plan, before, false);
    run.healthy("n1");
    assert_eq!(run.applies(), ["n4", "n5"], "both at once, ahead of the healthy ones");
    assert_eq!(run.fails("n4"), ["node_failed"], "it was not healthy before: no budget is spent");
    run.healthy("n5");
    run.healthy("n2");
    run.healthy("n3");
    assert_eq!(run.ended().state, Verdict::Stopped, "but the fleet is mixed, and that is said");
}

#[test]
fn complaint_08_a_rolling_restart_of_several_hours_completes() {
    let mut run =
        Run::of(plan(200, Parameters { max_parallel: vec![Amount::Count(1)], ..by_name() }));
    while run.rollout.verdict().is_none() {
        let [name] = run.applies().try_into().expect("one at a time");
        run.report(&name, NodeReport::Applied { generation: GENERATION });
        run.tick(290_000);
        run.report(&name, healthy());
    }
    assert_eq!(run.ended().state, Verdict::Succeeded);
    assert!(run.now.ms_since(BEGIN) > 15 * 3_600_000);
}

#[test]
fn complaint_09_a_good_canary_goes_on_although_what_runs_is_bad() {
    let plan = plan(3, by_name());
    let sick = Observed { release: Some(OLD), healthy: false };
    let before = plan.targets().map(|node| (node.clone(), sick.clone())).collect();
    let mut run = Run::open(plan, before, false);
    run.healthy("n1");
    run.healthy("n2");
    run.healthy("n3");
    assert_eq!(run.ended().state, Verdict::Succeeded);
}

#[test]
fn complaint_10_a_retry_of_an_aborted_canary_is_not_stuck() {
    let mut run = Run::of(plan(2, by_name()));
    run.command(Command::Abort { rollback: true }).unwrap();
    run.returned("n1");
    assert_eq!(run.ended().state, Verdict::Aborted);
    let (left, retry) = run.rollout.retry().unwrap();
    let mut again = Run::of(make(2, Some(OLD), None, Some((left, retry)), by_name()));
    again.healthy("n1");
    again.healthy("n2");
    assert_eq!(again.ended().state, Verdict::Succeeded);
}

#[test]
fn complaint_11_an_unreachable_node_counts_and_a_whole_failed_wave_ends_nothing_within_the_budget()
{
    let mut run = Run::of(plan(3, by_name()));
    run.healthy("n1");
    run.report("n2", NodeReport::Unreachable);
    assert!(run.tick(120_000).contains(&"budget_exceeded"));

    let tolerant = Parameters { max_failures: Amount::ALL, ..by_name() };
    let mut run = Run::of(plan(3, tolerant));
    run.healthy("n1");
    assert!(run.fails("n2").contains(&"wave_started"), "all of wave 2 failed, and it goes on");
}

#[test]
fn complaint_12_success_is_what_runs_and_silence_has_a_deadline() {
    // That a process runs another program is found by its node: see the core of nodes, and what their agents look at.
    let other_program = Failure { phase: "holding".to_owned(), ..Failure::of("wrong_program") };
    let mut run = Run::of(plan(2, by_name()));
    run.report("n1", NodeReport::Applied { generation: GENERATION });
    let report = NodeReport::Failed { generation: GENERATION, failure: other_program };
    assert!(run.report("n1", report).contains(&"rollback_started"));
    let mut run = Run::of(plan(2, by_name()));
    let old_image = NodeReport::Healthy {
        generation: GENERATION,
        release: OLD,
        running: Some(EXE),
        ready_ms: 1,
        held_ms: 10_000,
    };
    assert!(run.report("n1", old_image).contains(&"node_failed"), "well, but on the old one");
    let mut run = Run::of(plan(2, by_name()));
    assert!(run.tick(600_000).contains(&"budget_exceeded"), "nothing was ever heard");
}

#[test]
fn complaint_13_a_watcher_that_goes_away_leaves_nothing_locked() {
    // There is no input for a watcher: nothing that a client does or stops doing, but for a signed command, is one.
    let mut run = Run::of(plan(2, by_name()));
    run.healthy("n1");
    run.healthy("n2");
    assert_eq!(run.ended().state, Verdict::Succeeded);
}

#[test]
fn complaint_14_a_process_that_exited_is_not_waited_for() {
    let mut run = Run::of(plan(2, by_name()));
    assert!(run.fails("n1").contains(&"rollback_started"));
    assert_eq!(run.now, BEGIN);
}

#[test]
fn complaint_15_a_node_that_is_not_ready_in_time_has_failed() {
    let mut run = Run::of(plan(2, by_name()));
    run.report("n1", NodeReport::Applied { generation: GENERATION });
    assert!(run.tick(300_000 + VERDICT_SLACK_MS).contains(&"node_failed"));
}
