//! What every plan holds, whatever the roster and the parameters.

use proptest::prelude::*;

use super::*;
use crate::domain::origin::Origin;

fn amounts() -> impl Strategy<Value = Amount> {
    prop_oneof![(1u32..6).prop_map(Amount::Count), (1u8..=100).prop_map(Amount::Percent)]
}

prop_compose! {
    fn parameters()(
        canary in prop_oneof![Just(Amount::Count(0)), amounts()],
        max_parallel in proptest::collection::vec(amounts(), 1..4),
        spread in any::<bool>(),
        order in prop_oneof![Just(Order::Name), Just(Order::StableHash), Just(Order::Shuffle)],
        on_unreachable in prop_oneof![
            Just(OnUnreachable::Wait), Just(OnUnreachable::Skip), Just(OnUnreachable::Fail),
        ],
        max_failures in prop_oneof![Just(Amount::Count(0)), amounts()],
        max_unreachable in prop_oneof![Just(Amount::Count(0)), amounts()],
    ) -> Parameters {
        let spread_by = spread.then(|| "zone".to_owned());
        let budgets = Parameters { max_failures, max_unreachable, ..Parameters::default() };
        Parameters { canary, max_parallel, spread_by, order, on_unreachable, ..budgets }
    }
}

proptest! {
    #[test]
    fn every_target_is_in_exactly_one_wave(nodes in 1usize..60, parameters in parameters()) {
        let plan = plan(nodes, parameters);
        let mut targets: Vec<_> = plan.targets().cloned().collect();
        targets.sort();
        let mut all = names(nodes);
        all.sort();
        prop_assert_eq!(targets, all);
        prop_assert!(plan.waves.iter().all(|wave| !wave.nodes.is_empty()));
    }

    #[test]
    fn no_wave_is_larger_than_max_parallel(nodes in 1usize..60, parameters in parameters()) {
        let plan = plan(nodes, parameters.clone());
        let largest = parameters.max_parallel.iter().map(|size| size.batch_of(nodes)).max().unwrap();
        for wave in plan.waves.iter().filter(|wave| wave.kind == WaveKind::Batch) {
            prop_assert!(wave.nodes.len() <= largest);
        }
    }

    #[test]
    fn no_batch_takes_a_whole_zone_that_has_several_nodes(nodes in 1usize..60, given in parameters()) {
        let plan = plan(nodes, Parameters { spread_by: Some("zone".to_owned()), ..given });
        let roster = roster(nodes);
        let zone = |node: &NodeId| roster[node]["zone"].clone();
        for wave in plan.waves.iter().filter(|wave| wave.kind == WaveKind::Batch) {
            for at in ["z0", "z1", "z2"] {
                let whole = roster.keys().filter(|node| zone(node) == at).count();
                let taken = wave.nodes.iter().filter(|node| zone(node) == at).count();
                prop_assert!(whole <= 1 || taken < whole, "{at}: {taken} of {whole}");
            }
        }
    }

    #[test]
    fn the_same_request_gives_the_same_plan_and_digest(nodes in 1usize..60, given in parameters()) {
        let (one, two) = (plan(nodes, given.clone()), plan(nodes, given));
        prop_assert_eq!(one.digest(), two.digest());
        prop_assert_eq!(one, two);
    }
}

proptest! {
    #[test]
    fn each_node_that_a_plan_puts_into_its_first_wave_may_go_first(
        nodes in 1usize..60, parameters in parameters(), has_earlier in any::<bool>(),
        away in proptest::collection::btree_set(1usize..60, 0..50),
    ) {
        let back_to = has_earlier.then_some(OLD);
        let away = away.into_iter().map(|number| node(&format!("n{number}"))).collect();
        let plan = plan_while(nodes, 9, (back_to, &away), parameters.clone());
        let first = first(nodes, back_to, &parameters);
        prop_assert_eq!(first.len(), plan.unproved_max());
        for node in &plan.waves[0].nodes {
            prop_assert!(first.contains(node), "{node} is not of {first:?}");
        }
    }

    #[test]
    fn without_a_canary_whole_waves_may_go_first_and_as_many_as_the_budgets_can_make_necessary(
        nodes in 1usize..60, parameters in parameters(),
    ) {
        let (first, plan) = (first(nodes, None, &parameters), make(nodes, None, None, None, parameters.clone()));
        let budget = parameters.max_failures.of(nodes) + match parameters.on_unreachable {
            OnUnreachable::Wait => parameters.max_unreachable.of(nodes),
            OnUnreachable::Skip => nodes,
            OnUnreachable::Fail => 0,
        };
        let mut before = 0;
        for wave in &plan.waves {
            let may = wave.nodes.iter().filter(|node| first.contains(node)).count();
            prop_assert!(may == 0 || may == wave.nodes.len());
            prop_assert!(may > 0 || before > budget, "{before} nodes can fail within {budget}");
            before += wave.nodes.len();
        }
    }
}

#[test]
fn of_ten_thousand_nodes_no_more_may_go_first_than_the_canary_has() {
    let of = |given: Parameters| first(10_000, Some(OLD), &given).len();
    let skip = Parameters { on_unreachable: OnUnreachable::Skip, ..Parameters::default() };
    assert_eq!(of(Parameters::default()), 1);
    assert_eq!(of(Parameters { canary: Amount::Count(3), ..Parameters::default() }), 3);
    assert_eq!(of(Parameters { max_failures: Amount::ALL, ..Parameters::default() }), 1);
    assert_eq!(of(Parameters { max_unreachable: Amount::ALL, ..Parameters::default() }), 1);
    assert_eq!(of(skip.clone()), 17, "those that are away are passed over");
    assert_eq!(of(Parameters { max_unreachable: Amount::Count(40), ..skip }), 41);
    let first = |given: Parameters| first(10_000, None, &given).len();
    assert_eq!(first(Parameters::default()), 1, "the first batch");
    let one = Parameters { max_failures: Amount::Count(1), ..Parameters::default() };
    assert_eq!(first(one), 2_501, "one may fail, and then a quarter is next");
}

#[test]
fn the_first_rollout_of_a_service_has_no_canary() {
    let plan = make(4, None, None, None, by_name());
    assert_eq!(plan.waves[0].kind, WaveKind::Batch);
    assert!(plan.canary().is_empty());
}

#[test]
fn the_first_release_goes_everywhere_at_once_unless_its_spec_writes_waves() {
    let plan = |back_to, parameters: Parameters| {
        let plan = plan_of(4, (back_to, true), None, parameters);
        assert_eq!(plan.size(), 4);
        let first = plan.waves[0].clone();
        (first.kind, first.nodes.len(), plan.unproved_max())
    };
    let written = |key: &str| {
        let origins = [(key.to_owned(), Origin::built_in())].into();
        Parameters { origins, ..by_name() }
    };
    assert_eq!(plan(None, by_name()), (WaveKind::First, 4, 4));
    assert_eq!(plan(None, written("order")), (WaveKind::First, 4, 4));
    assert_eq!(plan(None, written("canary")), (WaveKind::Batch, 1, 1));
    assert_eq!(plan(None, written("max_parallel")), (WaveKind::Batch, 1, 1));
    assert_eq!(plan(Some(OLD), by_name()), (WaveKind::Canary, 1, 1), "it succeeded elsewhere");
}

#[test]
fn sizes_are_shares_of_all_targets_and_the_last_one_repeats() {
    let plan = plan(8, by_name());
    let sizes: Vec<_> = plan.waves.iter().map(|wave| wave.nodes.len()).collect();
    assert_eq!(sizes, [1, 1, 2, 2, 2]);
}

/// Plans the wish of a number over all of so many nodes, of which some are away.
fn plan_while(
    nodes: usize,
    intent: u8,
    (back_to, away): (Option<ReleaseId>, &BTreeSet<NodeId>),
    parameters: Parameters,
) -> Plan {
    let roster = roster(nodes);
    let plan = Plan::new(&PlanRequest {
        intent: IntentId([intent; 16]),
        service: "web".parse().unwrap(),
        generation: GENERATION,
        release: NEW,
        back_to,
        emergency: None,
        retry: None,
        targets: &roster.keys().cloned().collect(),
        roster: &roster,
        roster_digest: Digest([5; 32]),
        away,
        is_new: false,
        parameters: &parameters,
    });
    plan.unwrap()
}

#[test]
fn a_stable_hash_is_the_same_at_every_rollout_and_a_shuffle_is_not() {
    let order = |order, intent| {
        let plan = plan_while(
            30,
            intent,
            (Some(OLD), &BTreeSet::new()),
            Parameters { order, ..by_name() },
        );
        (plan.targets().cloned().collect::<Vec<_>>(), plan.seed)
    };
    assert_eq!(order(Order::StableHash, 1), order(Order::StableHash, 2));
    assert_ne!(order(Order::Shuffle, 1), order(Order::Shuffle, 2));
    assert_eq!(order(Order::Shuffle, 1).1, format!("shuffle {}", IntentId([1; 16])));
}

#[test]
fn where_absence_is_no_obstacle_the_canary_is_a_node_that_is_there() {
    let canary = |on_unreachable, away: &[&str]| {
        let away = away.iter().map(|name| node(name)).collect();
        let plan = plan_while(4, 9, (Some(OLD), &away), Parameters { on_unreachable, ..by_name() });
        assert_eq!(plan.size(), 4);
        plan.canary()[0].to_string()
    };
    assert_eq!(canary(OnUnreachable::Skip, &["n1", "n2"]), "n3");
    assert_eq!(canary(OnUnreachable::Skip, &["n1", "n2", "n3", "n4"]), "n1");
    assert_eq!(canary(OnUnreachable::Wait, &["n1", "n2"]), "n1");
}

#[test]
fn every_value_that_a_plan_depends_on_changes_its_digest() {
    let base = plan(6, by_name());
    let (name, rules) = check("rate");
    let others = [
        plan(5, by_name()),
        make(6, None, None, None, by_name()),
        make(6, Some(OLD), Some("down"), None, by_name()),
        plan(6, Parameters { max_failures: Amount::Count(1), ..by_name() }),
        plan(6, Parameters { max_unreachable: Amount::Percent(1), ..by_name() }),
        plan(6, Parameters { bake_ms: 1, ..by_name() }),
        plan(6, Parameters { auto_promote: false, ..by_name() }),
        plan(6, Parameters { on_failure: OnFailure::Stop, ..by_name() }),
        plan(6, Parameters { checks: [(name, rules)].into(), ..by_name() }),
        Plan { release: OLD, ..base.clone() },
        Plan { generation: Generation(43), ..base.clone() },
        Plan { roster: Digest([6; 32]), ..base.clone() },
    ];
    let digests: BTreeSet<_> = others.iter().chain([&base]).map(Plan::digest).collect();
    assert_eq!(digests.len(), others.len() + 1);
}

#[test]
fn nothing_selected_or_not_enrolled_is_no_plan() {
    let (roster, parameters) = (roster(2), by_name());
    let request = |targets: BTreeSet<NodeId>| {
        Plan::new(&PlanRequest {
            intent: IntentId([9; 16]),
            service: "web".parse().unwrap(),
            generation: GENERATION,
            release: NEW,
            back_to: None,
            emergency: None,
            retry: None,
            targets: &targets,
            roster: &roster,
            roster_digest: Digest([5; 32]),
            away: &BTreeSet::new(),
            is_new: false,
            parameters: &parameters,
        })
    };
    assert_eq!(request(BTreeSet::new()), Err(PlanError::Empty));
    assert_eq!(request([node("n9")].into()), Err(PlanError::NotEnrolled(node("n9"))));
}
