//! One test for each row of the table of failures, and for what commands and checks do.

use super::*;

#[test]
fn a_rollout_goes_through_canary_and_batches_to_success() {
    let mut run = Run::of(plan(5, by_name()));
    assert_eq!(run.applies(), ["n1"]);
    assert_eq!(run.rollout.state(), "canary");
    assert_eq!(run.healthy("n1"), ["node_healthy", "wave_settled", "wave_passed", "wave_started"]);
    assert_eq!(run.applies(), ["n2"]);
    for name in ["n2", "n3", "n4"] {
        run.healthy(name);
    }
    let last = run.healthy("n5");
    assert_eq!(last, ["node_healthy", "wave_settled", "wave_passed", "ended"]);
    assert_eq!((run.ended().state, run.ended().exit_code), (Verdict::Succeeded, 0));
    assert!(run.ended().changed);
}

#[test]
fn where_the_first_wave_of_a_first_rollout_stayed_away_the_next_one_is_asked_for_no_proof_of_it() {
    let parameters = Parameters { on_unreachable: OnUnreachable::Skip, ..by_name() };
    let mut run = Run::of(make(3, None, None, None, parameters));
    let waves = |run: &Run| -> Vec<(NodeId, u16)> {
        let effects = run.rollout.effects().into_iter();
        let orders = effects.filter_map(|effect| match effect {
            Effect::Order { node, wave, step: Step::Apply } => Some((node, wave)),
            _ => None,
        });
        // A node that is lost is ordered to go with the others when it is back.
        orders.filter(|(name, _)| *name != node("n1")).collect()
    };
    run.report("n1", NodeReport::Unreachable);
    assert_eq!(waves(&run), [(node("n2"), 1)]);
    run.healthy("n2");
    assert_eq!(waves(&run), [(node("n3"), 3)]);
}

#[test]
fn without_a_canary_sick_nodes_prove_nothing_and_nobody_follows_them_unproved() {
    let plan = make(5, None, None, None, by_name());
    let sick = Observed { release: Some(OLD), healthy: false };
    let well = Observed { release: Some(OLD), healthy: true };
    let is_sick = |name: &NodeId| ["n1", "n4"].contains(&name.as_str());
    let before: BTreeMap<_, _> = plan
        .targets()
        .map(|name| (name.clone(), if is_sick(name) { sick.clone() } else { well.clone() }))
        .collect();
    let mut run = Run::open(plan.clone(), before.clone());
    assert_eq!(run.applies(), ["n1"], "no sick node comes before the one that has to prove it");
    run.healthy("n1");
    assert_eq!(run.applies(), ["n4"], "but then they come");
    let mut run = Run::open(plan, before);
    assert!(run.fails("n1").contains(&"budget_exceeded"), "its failure is in no budget");
    assert!(run.applies().is_empty());
}

#[test]
fn no_person_resumes_past_those_that_go_first_before_one_is_healthy() {
    let pause = Parameters { on_failure: OnFailure::Pause, ..by_name() };
    let mut run = Run::of(make(3, None, None, None, pause));
    assert!(run.fails("n1").contains(&"paused"));
    assert!(run.command(Command::Resume).unwrap().contains(&"paused"), "n2 would refuse");
    assert!(run.applies().is_empty());
}

#[test]
fn a_failed_node_within_the_budget_starts_no_new_node_until_the_others_have_their_verdict() {
    let parameters = Parameters {
        max_failures: Amount::Count(1),
        max_parallel: vec![Amount::Count(3)],
        ..by_name()
    };
    let mut run = Run::of(plan(7, parameters));
    run.healthy("n1");
    assert_eq!(run.fails("n2"), ["node_failed"]);
    assert_eq!(run.healthy("n3"), ["node_healthy"]);
    assert_eq!(run.applies(), ["n4"]);
    assert!(run.healthy("n4").contains(&"wave_started"));
}

#[test]
fn a_node_fails_fast_with_its_exit_code() {
    let mut run = Run::of(plan(3, by_name()));
    run.fails("n1");
    let failure = run.facts.iter().find_map(|fact| match fact {
        RolloutEvent::NodeFailed(body) => Some(body.failure.clone()),
        _ => None,
    });
    assert_eq!(failure.unwrap().exit, Some(Exit::Code(1)));
    assert_eq!(run.now, BEGIN, "no deadline was waited for");
}

#[test]
fn an_exceeded_budget_returns_all_touched_nodes_failing_ones_first() {
    let parameters = Parameters {
        max_parallel: vec![Amount::Count(1), Amount::Count(3)],
        rollback: Rollback { max_parallel: vec![Amount::Count(1)], ..Rollback::default() },
        ..by_name()
    };
    let mut run = Run::of(plan(6, parameters));
    run.healthy("n1");
    run.healthy("n2");
    run.report("n3", NodeReport::Applied { generation: GENERATION });
    let facts = run.fails("n5");
    assert_eq!(facts, ["node_failed", "budget_exceeded", "rollback_started", "wave_started"]);
    for name in ["n5", "n1", "n2", "n3", "n4"] {
        assert_eq!(run.returns(), [name]);
        run.returned(name);
    }
    assert_eq!((run.ended().state, run.ended().exit_code), (Verdict::RolledBack, 10));
    assert!(!run.ended().changed);
    assert_eq!(run.rollout.node(&node("n6")), Some(NodeState::NotStarted));
}

#[test]
fn the_budget_is_counted_over_the_whole_target_set_not_over_a_wave() {
    let parameters = Parameters {
        max_failures: Amount::Count(1),
        max_parallel: vec![Amount::Count(2)],
        ..by_name()
    };
    let mut run = Run::of(plan(7, parameters));
    run.healthy("n1");
    run.fails("n2");
    run.healthy("n3");
    assert!(run.fails("n4").contains(&"rollback_started"));
}

#[test]
fn the_way_back_leads_to_the_last_release_that_succeeded_and_skips_canary_and_bake() {
    let parameters = Parameters { bake_ms: 3_600_000, ..by_name() };
    let mut run = Run::of(plan(4, parameters));
    run.healthy("n1");
    run.tick(3_600_000);
    run.fails("n2");
    assert_eq!(run.returns(), ["n1", "n2"], "all at once");
    run.returned("n1");
    run.returned("n2");
    assert_eq!(run.ended().state, Verdict::RolledBack);
    let to = run.facts.iter().find_map(|fact| match fact {
        RolloutEvent::RollbackStarted(body) => Some(body.to),
        _ => None,
    });
    assert_eq!(to, Some(OLD));
}

#[test]
fn a_rollback_that_fails_ends_and_asks_for_a_person_without_a_loop() {
    let mut run = Run::of(plan(3, by_name()));
    run.fails("n1");
    let failure = Failure::of("exit_code");
    let facts =
        run.report("n1", NodeReport::Failed { generation: Generation(GENERATION.0 + 1), failure });
    assert_eq!(facts, ["return_failed", "wave_settled", "wave_passed", "ended"]);
    assert_eq!((run.ended().state, run.ended().exit_code), (Verdict::RollbackFailed, 12));
    assert!(run.orders().is_empty());
}

#[test]
fn without_an_earlier_good_release_a_failure_stops_and_the_plan_says_so_beforehand() {
    let plan = make(3, None, None, None, by_name());
    assert_eq!(plan.way_back(), Err("no earlier release succeeded"));
    let mut run = Run::of(plan);
    let facts = run.fails("n1");
    assert_eq!(facts, ["node_failed", "budget_exceeded", "stopping", "ended"]);
    assert_eq!((run.ended().state, run.ended().exit_code), (Verdict::Stopped, 11));
}

#[test]
fn a_release_that_cannot_be_taken_back_stops_instead() {
    let mut run = Run::of(plan(3, Parameters { may_roll_back: false, ..by_name() }));
    assert!(run.fails("n1").contains(&"stopping"));
    assert_eq!(run.ended().state, Verdict::Stopped);
}

#[test]
fn another_controller_goes_on_from_the_events_alone_with_the_same_orders() {
    let parameters = Parameters { max_parallel: vec![Amount::Count(3)], ..by_name() };
    let mut run = Run::of(plan(4, parameters));
    run.healthy("n1");
    run.report("n2", NodeReport::Applied { generation: GENERATION });
    run.healthy("n3");
    let resumed = Rollout::replay(&run.facts).unwrap().unwrap();
    assert_eq!(resumed.effects(), run.rollout.effects());
    assert_eq!(run.applies(), ["n2", "n4"]);
    assert_eq!(resumed.plan().digest(), run.rollout.plan().digest());
}

#[test]
fn deadlines_that_passed_while_nobody_led_get_one_grace_interval() {
    let mut run = Run::of(plan(3, by_name()));
    run.report("n1", NodeReport::Applied { generation: GENERATION });
    run.now = run.now.plus_ms(86_400_000);
    let lead = Input::TakenOver { controller: node("c2"), term: 2, grace_ms: 30_000 };
    assert_eq!(run.input(&lead), Ok(vec!["taken_over"]));
    assert_eq!(run.tick(29_000), [""; 0]);
    let mut in_time = Run { rollout: run.rollout.clone(), facts: run.facts.clone(), ..run };
    assert!(in_time.report("n1", healthy()).contains(&"wave_started"));
    let late = in_time.rollout.clone();
    assert_eq!(late.leader(), (&node("c2"), 2));
}

#[test]
fn a_node_without_a_verdict_after_the_grace_interval_has_failed() {
    let mut run = Run::of(plan(3, by_name()));
    run.report("n1", NodeReport::Applied { generation: GENERATION });
    run.now = run.now.plus_ms(86_400_000);
    let lead = Input::TakenOver { controller: node("c2"), term: 2, grace_ms: 30_000 };
    run.input(&lead).unwrap();
    assert!(run.tick(30_000).contains(&"node_failed"));
}

#[test]
fn a_lower_term_or_another_controller_in_the_same_term_cannot_lead() {
    let mut run = Run::of(plan(3, by_name()));
    for (name, term) in [("c2", 0), ("c2", 1)] {
        let lead = Input::TakenOver { controller: node(name), term, grace_ms: 0 };
        assert!(matches!(run.input(&lead), Err(Rejection::StaleTerm { .. })), "{name} {term}");
    }
}

#[test]
fn a_node_lost_in_mid_swap_has_its_own_deadline_and_budget() {
    let parameters = Parameters { max_unreachable: Amount::Count(1), ..by_name() };
    let mut run = Run::of(plan(4, parameters));
    run.healthy("n1");
    run.report("n2", NodeReport::Applied { generation: GENERATION });
    assert_eq!(run.report("n2", NodeReport::Unreachable), ["node_unreachable"]);
    assert_eq!(run.tick(119_000), [""; 0]);
    let facts = run.tick(1_000);
    assert_eq!(facts, ["node_lost", "wave_settled", "wave_passed", "wave_started"]);
    run.healthy("n3");
    run.report("n4", NodeReport::Unreachable);
    let facts = run.tick(120_000);
    assert_eq!(&facts[..3], ["node_lost", "budget_exceeded", "rollback_started"]);
}

#[test]
fn a_rollback_that_cannot_reach_a_touched_node_is_never_called_complete() {
    let mut run = Run::of(plan(4, by_name()));
    run.healthy("n1");
    run.report("n2", NodeReport::Unreachable);
    run.tick(120_000);
    assert_eq!(run.returns(), ["n1", "n2"], "the order waits for it");
    run.returned("n1");
    assert_eq!((run.ended().state, run.ended().exit_code), (Verdict::Stopped, 11));
}

#[test]
fn a_node_that_is_back_before_its_deadline_goes_on() {
    let mut run = Run::of(plan(3, by_name()));
    run.report("n1", NodeReport::Unreachable);
    run.tick(60_000);
    assert_eq!(run.report("n1", NodeReport::Seen), ["node_seen"]);
    run.tick(100_000);
    assert!(run.healthy("n1").contains(&"wave_started"));
}

#[test]
fn a_lost_node_is_skipped_or_failed_where_that_is_asked_for() {
    let skip = Parameters { on_unreachable: OnUnreachable::Skip, ..by_name() };
    let mut run = Run::of(plan(3, skip));
    run.healthy("n1");
    let facts = run.report("n2", NodeReport::Unreachable);
    assert_eq!(&facts[..2], ["node_unreachable", "node_lost"]);
    run.healthy("n3");
    assert_eq!(run.ended().state, Verdict::Succeeded);

    let fail = Parameters { on_unreachable: OnUnreachable::Fail, ..by_name() };
    let mut run = Run::of(plan(3, fail));
    run.healthy("n1");
    assert!(run.report("n2", NodeReport::Unreachable).contains(&"rollback_started"));
}

#[test]
fn silence_is_never_success() {
    let parameters = Parameters {
        canary: Amount::Count(0),
        on_unreachable: OnUnreachable::Skip,
        max_parallel: vec![Amount::ALL],
        ..by_name()
    };
    let mut run = Run::of(plan(2, parameters));
    run.report("n1", NodeReport::Unreachable);
    run.report("n2", NodeReport::Unreachable);
    assert_eq!(run.ended().state, Verdict::Stopped);
}

#[test]
fn a_node_that_joins_late_gets_the_release_only_after_success() {
    let mut run = Run::of(plan(1, by_name()));
    assert_eq!(run.report("n9", NodeReport::Seen), ["late_joined"]);
    assert_eq!(run.report("n9", NodeReport::Seen), [""; 0]);
    assert_eq!(run.rollout.converge_to(), Some(OLD));
    run.healthy("n1");
    assert_eq!(run.rollout.converge_to(), Some(NEW));
}

#[test]
fn a_pause_starts_no_new_node_lets_swaps_finish_and_stops_the_timer() {
    let mut run = Run::of(plan(3, by_name()));
    assert_eq!(run.command(Command::Pause), Ok(vec!["paused"]));
    assert_eq!(run.rollout.state(), "paused");
    assert_eq!(run.healthy("n1"), ["node_healthy", "wave_settled", "wave_passed"]);
    assert_eq!(run.tick(86_400_000), [""; 0]);
    assert_eq!(run.command(Command::Pause), Err(Rejection::AlreadyPaused));
    assert_eq!(run.command(Command::Resume), Ok(vec!["resumed", "wave_started"]));
    assert_eq!(run.command(Command::Resume), Err(Rejection::NotPaused));
}

#[test]
fn who_waits_is_told_of_a_pause_that_nobody_asked_for_and_waits_on_through_one_that_somebody_did() {
    let pause = Parameters { on_failure: OnFailure::Pause, ..by_name() };
    let mut run = Run::of(plan(3, pause));
    run.command(Command::Pause).unwrap();
    assert_eq!((run.rollout.waits_for(), run.rollout.exit_code()), (None, None));
    // What goes wrong meanwhile is for whoever sees it first.
    assert!(run.fails("n1").contains(&"paused"));
    assert_eq!((run.rollout.waits_for(), run.rollout.exit_code()), (Some("abort"), Some(14)));

    let mut run = Run::of(plan(3, Parameters { auto_promote: false, ..by_name() }));
    run.healthy("n1");
    assert_eq!(run.rollout.waits_for(), Some("promote"));
    run.command(Command::Pause).unwrap();
    assert_eq!((run.rollout.state(), run.rollout.waits_for()), ("paused", None));
    let run = Run::of(plan(3, Parameters { require_approval: true, ..by_name() }));
    assert_eq!(run.rollout.waits_for(), Some("approve"));
}

#[test]
fn an_abort_works_in_every_state() {
    let manual = Parameters { auto_promote: false, ..by_name() };
    let asks = Parameters { require_approval: true, ..by_name() };
    type Way = fn(&mut Run);
    let reach: [(&str, Parameters, Way); 7] = [
        ("awaiting_approval", asks, |_| {}),
        ("canary", by_name(), |_| {}),
        ("awaiting_promotion", manual, |run| {
            run.healthy("n1");
        }),
        ("rolling", by_name(), |run| {
            run.healthy("n1");
        }),
        ("paused", by_name(), |run| {
            run.command(Command::Pause).unwrap();
        }),
        ("rolling_back", by_name(), |run| {
            run.fails("n1");
        }),
        ("stopping", by_name(), |run| {
            run.report("n1", NodeReport::Applied { generation: GENERATION });
            run.command(Command::Abort { rollback: false }).unwrap();
        }),
    ];
    for (state, parameters, lead_to) in reach {
        for rollback in [true, false] {
            let mut run = Run::of(plan(3, parameters.clone()));
            lead_to(&mut run);
            assert_eq!(run.rollout.state(), state);
            run.command(Command::Abort { rollback }).unwrap();
            for name in ["n1", "n2", "n3"] {
                if run.returns().contains(&name.to_owned()) {
                    run.returned(name);
                }
            }
            run.tick(400_000);
            let verdict = run.rollout.verdict();
            let turned = state == "rolling_back" && rollback;
            let wanted = if turned { Verdict::RolledBack } else { Verdict::Aborted };
            assert_eq!(verdict, Some(wanted), "{state} {rollback}");
        }
    }
}

#[test]
fn an_abort_goes_back_unless_told_to_leave() {
    let mut run = Run::of(plan(3, by_name()));
    run.healthy("n1");
    run.command(Command::Abort { rollback: true }).unwrap();
    assert_eq!(run.returns(), ["n1", "n2"]);
    run.returned("n1");
    run.returned("n2");
    assert_eq!((run.ended().state, run.ended().exit_code), (Verdict::Aborted, 13));
    assert!(!run.ended().changed);

    let mut run = Run::of(plan(3, by_name()));
    run.healthy("n1");
    run.command(Command::Abort { rollback: false }).unwrap();
    run.healthy("n2");
    assert_eq!(run.ended().state, Verdict::Aborted);
    assert!(run.ended().changed);
}

#[test]
fn a_retry_goes_on_with_the_nodes_that_are_left_and_redoes_no_wave_that_passed() {
    let stop = Parameters { on_failure: OnFailure::Stop, ..by_name() };
    let mut run = Run::of(plan(5, stop.clone()));
    assert_eq!(run.rollout.retry(), Err(Rejection::NotEnded));
    run.healthy("n1");
    run.healthy("n2");
    run.fails("n3");
    assert_eq!(run.ended().state, Verdict::Stopped);
    let (left, retry) = run.rollout.retry().unwrap();
    assert_eq!(left, [node("n3"), node("n4"), node("n5")].into());
    let again = make(5, Some(OLD), None, Some((left, retry)), stop);
    assert_eq!(again.waves[0].kind, WaveKind::Batch, "the canary passed");
    assert_eq!(again.canary(), [node("n1")], "its signed results go with the orders");
}

#[test]
fn a_newer_deploy_that_supersedes_makes_the_old_rollout_terminal_first() {
    let mut run = Run::of(plan(3, by_name()));
    let with = IntentId([4; 16]);
    assert_eq!(run.command(Command::Supersede { with }), Ok(vec!["ended"]));
    assert_eq!((run.ended().state, run.ended().exit_code), (Verdict::Superseded, 13));
    assert!(run.orders().is_empty());
}

#[test]
fn deploying_what_runs_already_succeeds_at_once_and_changes_nothing() {
    let plan = plan(3, by_name());
    let on = Observed { release: Some(NEW), healthy: true };
    let before: BTreeMap<_, _> = plan.targets().map(|node| (node.clone(), on.clone())).collect();
    let run = Run::open(plan, before);
    assert_eq!(run.kinds(), ["rollout.planned", "rollout.ended"]);
    assert_eq!((run.ended().exit_code, run.ended().changed), (0, false));
}

#[test]
fn an_emergency_skips_canary_waves_and_bake_but_no_budget() {
    let parameters = Parameters { bake_ms: 3_600_000, ..by_name() };
    let emergency = || make(4, Some(OLD), Some("checkout is down"), None, parameters.clone());
    let mut run = Run::of(emergency());
    assert_eq!(run.applies(), ["n1", "n2", "n3", "n4"]);
    for name in ["n1", "n2", "n3", "n4"] {
        run.healthy(name);
    }
    assert_eq!(run.ended().state, Verdict::Succeeded);
    let mut run = Run::of(emergency());
    assert!(run.fails("n3").contains(&"rollback_started"));
}

#[test]
fn approval_takes_a_second_person() {
    let mut run = Run::of(plan(2, Parameters { require_approval: true, ..by_name() }));
    assert_eq!((run.rollout.state(), run.rollout.exit_code()), ("awaiting_approval", Some(14)));
    let (intent, by) = (IntentId([3; 16]), Some(person("alice")));
    let same = Input::Command { intent, by, command: Command::Approve };
    assert_eq!(run.input(&same), Err(Rejection::SamePerson("alice".to_owned())));
    assert_eq!(run.command(Command::Approve), Ok(vec!["approved", "started", "wave_started"]));
    assert_eq!(run.command(Command::Approve), Err(Rejection::NoApprovalAwaited));
}

#[test]
fn without_auto_promote_a_person_lets_it_go_on_behind_the_canary() {
    let mut run = Run::of(plan(2, Parameters { auto_promote: false, ..by_name() }));
    assert_eq!(run.command(Command::Promote), Err(Rejection::NoPromotionAwaited));
    assert!(run.healthy("n1").ends_with(&["promotion_awaited"]));
    assert_eq!((run.rollout.state(), run.rollout.exit_code()), ("awaiting_promotion", Some(14)));
    assert_eq!(run.tick(86_400_000), [""; 0], "no deadline runs while a person is awaited");
    assert_eq!(run.command(Command::Promote), Ok(vec!["promoted", "wave_started"]));
}

#[test]
fn a_node_that_is_back_while_a_person_is_awaited_starts_no_deadline() {
    let health_check = HealthCheck::Manual;
    let max_unreachable = Amount::Count(1);
    let mut run = Run::of(plan(3, Parameters { health_check, max_unreachable, ..by_name() }));
    run.healthy("n1");
    assert_eq!(run.command(Command::Promote), Ok(vec!["promoted", "wave_started"]));
    run.report("n2", NodeReport::Unreachable);
    run.tick(120_000);
    assert_eq!(run.rollout.state(), "awaiting_promotion");
    run.report("n2", NodeReport::Seen);
    run.healthy("n2");
    assert_eq!(run.tick(86_400_000), [""; 0]);
}

#[test]
fn a_wave_bakes_before_the_next_one() {
    let mut run = Run::of(plan(2, Parameters { bake_ms: 60_000, ..by_name() }));
    assert_eq!(run.healthy("n1"), ["node_healthy", "wave_settled"]);
    assert_eq!(run.tick(59_999), [""; 0]);
    assert_eq!(run.tick(1), ["wave_passed", "wave_started"]);
}

#[test]
fn a_node_that_fails_while_its_wave_bakes_has_failed() {
    let mut run = Run::of(plan(2, Parameters { bake_ms: 60_000, ..by_name() }));
    run.healthy("n1");
    assert!(run.report("n1", failed()).contains(&"rollback_started"));
}

#[test]
fn a_failed_canary_is_never_passed_by_pausing_and_resuming() {
    let pause = Parameters { on_failure: OnFailure::Pause, ..by_name() };
    let mut run = Run::of(plan(3, pause));
    run.fails("n1");
    assert_eq!(run.rollout.state(), "paused");
    assert_eq!((run.rollout.waits_for(), run.rollout.exit_code()), (Some("abort"), Some(14)));
    assert_eq!(run.command(Command::Resume), Err(Rejection::CanaryFailed));
    assert_eq!(run.tick(86_400_000), [""; 0]);
    assert!(run.applies().is_empty());
}

#[test]
fn a_node_that_went_back_by_itself_is_not_sent_back_again() {
    let pause = Parameters { on_failure: OnFailure::Pause, ..by_name() };
    let mut run = Run::of(plan(3, pause));
    run.healthy("n1");
    run.fails("n2");
    run.returned("n2");
    run.command(Command::Abort { rollback: true }).unwrap();
    assert_eq!(run.returns(), ["n1"]);
    run.returned("n1");
    assert_eq!((run.ended().state, run.ended().exit_code), (Verdict::Aborted, 13));
}

#[test]
fn a_person_may_resume_past_a_failed_node_and_the_next_failure_pauses_again() {
    let pause = Parameters { on_failure: OnFailure::Pause, ..by_name() };
    let mut run = Run::of(plan(4, pause));
    run.healthy("n1");
    assert!(run.fails("n2").contains(&"paused"));
    assert_eq!((run.rollout.waits_for(), run.rollout.exit_code()), (Some("resume"), Some(14)));
    assert!(run.command(Command::Resume).unwrap().contains(&"wave_started"));
    assert_eq!((run.rollout.waits_for(), run.rollout.exit_code()), (None, None));
    assert!(run.fails("n3").contains(&"paused"));
    run.command(Command::Resume).unwrap();
    run.healthy("n4");
    assert_eq!(run.ended().state, Verdict::Stopped, "a mixed fleet is not called success");
}

fn measure(run: &mut Run, measure: Measure) -> Vec<&'static str> {
    let due = run.rollout.effects().into_iter().find_map(|effect| match effect {
        Effect::RunCheck { check, wave, number, at } => Some((check, wave, number, at)),
        _ => None,
    });
    let (check, wave, number, at) = due.expect("a check is due");
    run.now = run.now.max(at);
    run.input(&Input::Check { check, wave, number, measure, value: String::new() }).unwrap()
}

fn checked(rules: Check) -> Run {
    let checks = [("rate".parse().unwrap(), rules)].into();
    let mut run = Run::of(plan(2, Parameters { checks, ..by_name() }));
    run.healthy("n1");
    run
}

#[test]
fn a_check_takes_its_count_of_good_measurements() {
    let mut run = checked(check("rate").1);
    assert_eq!(measure(&mut run, Measure::Good), ["check_measured"]);
    assert_eq!(measure(&mut run, Measure::Good), ["check_measured"]);
    let last = measure(&mut run, Measure::Good);
    assert_eq!(last, ["check_measured", "check_ended", "wave_passed", "wave_started"]);
}

#[test]
fn a_check_that_fails_rolls_back() {
    let mut run = checked(check("rate").1);
    let facts = measure(&mut run, Measure::Bad);
    assert_eq!(&facts[1..4], ["check_ended", "budget_exceeded", "rollback_started"]);
}

#[test]
fn an_error_is_not_a_failure_and_many_in_a_row_are_inconclusive() {
    let mut run = checked(check("rate").1);
    assert_eq!(measure(&mut run, Measure::Error), ["check_measured"]);
    assert_eq!(measure(&mut run, Measure::Good), ["check_measured"]);
    assert_eq!(measure(&mut run, Measure::Error), ["check_measured"]);
    let facts = measure(&mut run, Measure::Error);
    assert_eq!(&facts[..3], ["check_measured", "check_ended", "paused"]);
    assert_eq!(run.rollout.waits_for(), Some("resume"));
    assert_eq!(run.command(Command::Resume), Ok(vec!["resumed", "wave_started"]));
}

#[test]
fn an_inconclusive_check_fails_or_is_ignored_where_that_is_asked_for() {
    let fail = Check { on_inconclusive: OnInconclusive::Fail, ..check("rate").1 };
    assert!(measure(&mut checked(fail), Measure::Inconclusive).contains(&"rollback_started"));
    let ignore = Check { on_inconclusive: OnInconclusive::Ignore, ..check("rate").1 };
    assert!(measure(&mut checked(ignore), Measure::Inconclusive).contains(&"wave_started"));
    let dry = Check { dry_run: true, ..check("rate").1 };
    assert!(measure(&mut checked(dry), Measure::Bad).contains(&"wave_started"));
}

#[test]
fn a_measurement_that_comes_twice_counts_once() {
    let mut run = checked(check("rate").1);
    measure(&mut run, Measure::Good);
    let again = Input::Check {
        check: "rate".parse().unwrap(),
        wave: 1,
        number: 1,
        measure: Measure::Bad,
        value: String::new(),
    };
    assert_eq!(run.input(&again), Ok(vec![]));
}

#[test]
fn no_progress_for_too_long_is_a_failure() {
    let mut run = Run::of(plan(2, by_name()));
    assert_eq!(run.tick(599_999), [""; 0]);
    let facts = run.tick(1);
    assert_eq!(&facts[..2], ["budget_exceeded", "rollback_started"]);
}

#[test]
fn nothing_changes_an_ended_rollout() {
    let mut run = Run::of(plan(1, by_name()));
    run.healthy("n1");
    assert_eq!(run.fails("n1"), [""; 0]);
    assert_eq!(run.tick(86_400_000), [""; 0]);
    assert_eq!(run.command(Command::Pause), Err(Rejection::Ended("succeeded")));
    let mut rollout = run.rollout.clone();
    assert!(rollout.evolve(&run.facts[1]).is_err());
    assert_eq!(rollout, run.rollout);
}

#[test]
fn a_node_that_was_heard_of_before_its_turn_goes_back_too() {
    let mut run = Run::of(plan(4, by_name()));
    run.fails("n1");
    assert_eq!(run.returns(), ["n1"]);
    run.report("n3", NodeReport::Applied { generation: GENERATION });
    run.returned("n1");
    assert_eq!(run.returns(), ["n3"], "an earlier leader had got further than this log says");
    run.returned("n3");
    assert_eq!(run.ended().state, Verdict::RolledBack);
}
