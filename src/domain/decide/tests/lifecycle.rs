//! Start, exit, restart, stop of instances.

use super::site::{Site, ended, id, service, spec};
use crate::domain::effect::{Act, Operation};
use crate::domain::event::{Exit, RunResult, StopPhase};
use crate::domain::id::RunId;
use crate::domain::input::Input;
use crate::domain::instance::State;
use crate::domain::intent::Action;
use crate::domain::spec::{
    DependencyCondition, DependsOn, Kind, Millis, OnLimit, ReadyBy, RestartPolicy, Spec,
};

const KILLED: Exit = Exit::Signal { signal: 9, core_dumped: false };
const TERMINATED: Exit = Exit::Signal { signal: 15, core_dumped: false };

fn with(change: impl FnOnce(&mut Spec)) -> Spec {
    let mut spec = spec();
    change(&mut spec);
    spec
}

fn notifying() -> Spec {
    with(|spec| spec.ready.by = ReadyBy::Notify)
}

fn needs_db(required: bool) -> Spec {
    with(|spec| {
        let rule = DependsOn { condition: DependencyCondition::Ready, required, restart: false };
        spec.depends_on.insert(service("db"), rule);
    })
}

#[test]
fn an_adopted_service_is_started_once_its_adoption_is_durable() {
    let mut site = Site::with(&[("web", spec())]);
    site.then(&["service.added web", "instance.starting web/0"]);
    assert_eq!(site.spawned("web/0"), Some((1, true)));
    site.start("web", 1).then(&["instance.started web/0"]);
    assert!(site.state("web").is_ready());
}

#[test]
fn a_disabled_service_is_not_started() {
    Site::with(&[("web", with(|spec| spec.enabled = false))]).then(&["service.added web"]);
}

#[test]
fn a_stable_run_that_is_killed_is_started_again_at_once_and_without_waiting_for_the_disk() {
    let mut site = Site::running(spec());
    site.exit("web", 1, KILLED, 12_600).then(&["instance.exited web/0"]);
    assert_eq!(site.spawned("web/0"), Some((2, false)));
    assert!(site.acknowledged());
    site.start("web", 2).then(&["instance.started web/0"]);
    assert_eq!(site.at("web").backoff.restarts, 1);
    assert_eq!(site.at("web").last.as_ref().unwrap().result, RunResult::Signal);
    assert_eq!(site.replayed(), site.node);
}

#[test]
fn a_run_that_dies_young_is_started_again_after_its_delay() {
    let mut site = Site::running(spec());
    site.exit("web", 1, Exit::Code(1), 5).then(&["instance.exited web/0"]);
    assert_eq!(site.spawned("web/0"), None);
    assert!(matches!(site.state("web"), State::Backoff { .. }));
    site.pass("web").then(&["instance.starting web/0"]);
    assert_eq!(site.spawned("web/0"), Some((2, false)));
}

#[test]
fn a_repeated_exit_is_acknowledged_and_changes_nothing() {
    let mut site = Site::running(spec());
    site.exit("web", 1, KILLED, 12_600).start("web", 2);
    site.end("web", 1, ended(KILLED, 12_600)).then_nothing();
    assert!(site.acknowledged());
}

#[test]
fn a_deadline_of_a_state_that_is_over_changes_nothing() {
    let mut site = Site::running(spec());
    site.exit("web", 1, Exit::Code(1), 5);
    let (timer, at) = site.deadline("web").unwrap();
    site.pass("web").start("web", 2);
    site.tell(Input::Timer { timer, at }).then_nothing();
}

#[test]
fn what_a_main_process_leaves_behind_is_killed_before_the_next_start() {
    let mut site = Site::running(spec());
    let mut leaves = ended(Exit::Code(1), 20_000);
    leaves.tree_empty = false;
    site.end("web", 1, leaves).then(&["instance.exited web/0"]);
    assert_eq!((site.kills(), site.spawned("web/0"), site.acknowledged()), (1, None, false));
    site.tell(Input::TreeGone { instance: id("web"), run: RunId(1) })
        .then(&["instance.stopped web/0"]);
    assert_eq!(site.spawned("web/0"), Some((2, false)));
    assert!(site.acknowledged());
}

#[test]
fn a_fatal_code_is_not_tried_again() {
    let mut site = Site::running(with(|spec| spec.restart.fatal_codes = vec![78]));
    site.exit("web", 1, Exit::Code(78), 5);
    assert_eq!(*site.state("web"), State::Failed);
}

#[test]
fn policies_differ_on_success_and_failure() {
    let ends = |policy, code| {
        let mut site = Site::running(with(|spec| spec.restart.policy = policy));
        site.exit("web", 1, Exit::Code(code), 5);
        site.state("web").label()
    };
    assert_eq!(ends(RestartPolicy::Always, 0), "backoff");
    assert_eq!(ends(RestartPolicy::OnFailure, 0), "completed");
    assert_eq!(ends(RestartPolicy::OnFailure, 1), "backoff");
    assert_eq!(ends(RestartPolicy::Never, 0), "completed");
    assert_eq!(ends(RestartPolicy::Never, 1), "failed");
}

#[test]
fn an_unknown_end_is_never_a_success() {
    let mut site = Site::running(with(|spec| spec.restart.policy = RestartPolicy::Never));
    site.exit("web", 1, Exit::Unknown, 50_000);
    assert_eq!(*site.state("web"), State::Failed);
    assert_eq!(site.at("web").last.as_ref().unwrap().result, RunResult::Unknown);
}

#[test]
fn a_oneshot_that_succeeds_is_completed() {
    let mut site = Site::running(with(|spec| spec.kind = Kind::Oneshot));
    site.exit("web", 1, Exit::Code(0), 5);
    assert_eq!(*site.state("web"), State::Completed);
}

#[test]
fn at_its_restart_limit_a_service_is_told_about_and_tried_on_until_a_run_is_stable() {
    let mut site = Site::running(with(|spec| spec.restart.limit = 1));
    site.exit("web", 1, Exit::Code(1), 5).pass("web").start("web", 2);
    site.exit("web", 2, Exit::Code(1), 5).then(&["instance.exited web/0", "alert.fired web/0"]);
    let at = site.now;
    site.pass("web").start("web", 3);
    assert_eq!(site.now.ms_since(at), 60_000);
    site.exit("web", 3, Exit::Code(1), 5).then(&["instance.exited web/0"]);
    site.pass("web").start("web", 4);
    site.pass("web").then(&["alert.resolved web/0"]);
    assert!(!site.at("web").backoff.alerting && site.state("web").is_ready());
}

#[test]
fn at_its_restart_limit_a_service_fails_when_it_says_so() {
    let mut site = Site::running(with(|spec| {
        spec.restart.limit = 0;
        spec.restart.on_limit = OnLimit::Fail;
    }));
    site.exit("web", 1, Exit::Code(1), 5);
    assert_eq!(*site.state("web"), State::Failed);
    assert_eq!(site.at("web").last.as_ref().unwrap().result, RunResult::StartLimitHit);
}

#[test]
fn a_failed_spawn_is_tried_again_after_a_delay() {
    let mut site = Site::with(&[("web", spec())]);
    site.tell(Input::StartFailed {
        instance: id("web"),
        run: RunId(1),
        step: "exec".to_owned(),
        errno: 2,
        why: "no such file".to_owned(),
    })
    .then(&["instance.start_failed web/0"]);
    let why = site.at("web").last.as_ref().unwrap().not_started.clone();
    assert_eq!(why.as_deref(), Some("exec: no such file"));
    site.pass("web").then(&["instance.starting web/0"]);
    assert_eq!(site.spawned("web/0"), Some((2, false)));
}

#[test]
fn a_run_that_is_not_ready_in_time_is_stopped_and_counts_as_a_failure() {
    let mut site = Site::with(&[("web", notifying())]);
    site.start("web", 1);
    assert_eq!(site.state("web").label(), "starting");
    site.pass("web").then(&["instance.stopping web/0"]);
    assert_eq!(site.signals(), [("web/0".to_owned(), 15)]);
    site.exit("web", 1, TERMINATED, 30_100)
        .then(&["instance.exited web/0", "instance.stopped web/0"]);
    assert_eq!(site.at("web").last.as_ref().unwrap().result, RunResult::Timeout);
    assert_eq!(site.at("web").backoff.restarts, 1);
}

#[test]
fn a_repeated_word_of_readiness_is_not_news() {
    let mut site = Site::with(&[("web", notifying())]);
    site.start("web", 1);
    site.ready("web", 1).then(&["instance.ready web/0"]);
    site.ready("web", 1).then_nothing();
}

#[test]
fn a_word_of_readiness_that_is_faster_than_the_start_is_kept_until_then() {
    let mut site = Site::with(&[("web", notifying())]);
    site.ready("web", 1).then_nothing();
    let keep = Act::KeepReady { instance: id("web"), run: RunId(1), how: "notify".to_owned() };
    assert_eq!(site.acts(false), [&keep]);
    site.ready("web", 7).then_nothing();
    assert!(site.acts(false).is_empty(), "of a run that nobody asked for");
}

#[test]
fn a_dependent_waits_and_leaves_waiting_when_what_it_needs_recovers() {
    let mut site = Site::with(&[("db", notifying()), ("web", needs_db(true))]);
    assert_eq!(*site.state("web"), State::Waiting { on: vec![service("db")] });
    site.start("db", 1).then(&["instance.started db/0"]);
    site.ready("db", 1).then(&["instance.ready db/0", "instance.starting web/0"]);
    site.start("web", 1);
    site.exit("db", 1, KILLED, 5);
    site.exit("web", 1, KILLED, 20_000).then(&["instance.exited web/0"]);
    site.pass("web").then(&["instance.waiting web/0"]);
    site.pass("db").start("db", 2);
    site.ready("db", 2).then(&["instance.ready db/0", "instance.starting web/0"]);
}

#[test]
fn what_is_only_an_order_is_not_waited_for_when_it_does_not_come() {
    let mut site = Site::with(&[("web", needs_db(false))]);
    assert_eq!(site.spawned("web"), Some((1, true)));
    site = Site::with(&[("db", notifying()), ("web", needs_db(false))]);
    assert_eq!(site.state("web").label(), "waiting");
}

#[test]
fn a_stop_goes_from_the_command_before_to_the_kill() {
    let mut site = Site::running(with(|spec| {
        spec.stop.pre = Some(Vec::new());
        spec.stop.drain = Millis(2_000);
    }));
    let phase = |site: &Site| match site.state("web") {
        State::Stopping { phase, .. } => *phase,
        other => panic!("{other:?}"),
    };
    site.wish(crate::domain::intent::Action::Stop { service: service("web") });
    assert_eq!((phase(&site), site.signals().len()), (StopPhase::PreStop, 0));
    site.pass("web");
    assert_eq!((phase(&site), site.signals().len()), (StopPhase::Drain, 0));
    site.pass("web");
    assert_eq!((phase(&site), site.signals().len()), (StopPhase::Term, 1));
    site.pass("web");
    assert_eq!((phase(&site), site.kills()), (StopPhase::Kill, 1));
    site.pass("web");
    assert_eq!((phase(&site), site.kills()), (StopPhase::Kill, 1));
    site.exit("web", 1, KILLED, 40_000);
    assert_eq!(*site.state("web"), State::Inactive);
}

#[test]
fn a_newer_spec_is_taken_by_one_instance_after_the_other() {
    let mut two = notifying();
    two.instances = 2;
    let mut site = Site::with(&[("web", two.clone())]);
    site.start("web/0", 1).ready("web/0", 1).start("web/1", 1).ready("web/1", 1);
    two.description = "other".to_owned();
    site.adopt("web", two, 2).then(&["service.added web", "instance.stopping web/0"]);
    site.exit("web/0", 1, TERMINATED, 5).start("web/0", 2).then(&["instance.started web/0"]);
    site.ready("web/0", 2).then(&["instance.ready web/0", "instance.stopping web/1"]);
    site.exit("web/1", 1, TERMINATED, 5).start("web/1", 2);
    site.ready("web/1", 2).then(&["instance.ready web/1"]);
}

#[test]
fn a_changed_spec_is_tried_at_once_where_the_old_one_waits_for_its_next_try_or_was_given_up() {
    for failed in [false, true] {
        let policy = if failed { RestartPolicy::Never } else { RestartPolicy::Always };
        let mut site = Site::running(with(|spec| spec.restart.policy = policy));
        site.exit("web", 1, Exit::Code(1), 5);
        assert_eq!(matches!(site.state("web"), State::Failed), failed);
        let other = with(|spec| spec.description = "other".to_owned());
        site.adopt("web", other, 2).then(&["service.added web", "instance.starting web/0"]);
        assert_eq!(site.spawned("web/0").map(|(run, _)| run), Some(2));
        assert_eq!(site.at("web").backoff.restarts, 0);
    }
}

#[test]
fn like_ends_are_counted_until_a_run_ends_otherwise_or_somebody_starts_it() {
    let mut site = Site::running(spec());
    for (run, exit, same) in
        [(1, Exit::Code(3), 1), (2, Exit::Code(3), 2), (3, Exit::Code(3), 3), (4, KILLED, 1)]
    {
        site.exit("web", run, exit, 5);
        assert_eq!(site.at("web").same_exits, same, "run {run}");
        site.pass("web").start("web", run + 1);
    }
}

#[test]
fn a_removed_service_is_gone_when_it_is_down_and_its_run_numbers_are_never_used_again() {
    let mut site = Site::running(spec());
    site.tell(Input::SpecRemoved { service: service("web"), intent: None })
        .then(&["service.removed web", "instance.stopping web/0"]);
    site.exit("web", 1, TERMINATED, 5);
    assert!(site.node.services().is_empty());
    site.adopt("web", spec(), 1);
    assert_eq!(site.spawned("web"), Some((2, true)));
    assert_eq!(site.replayed(), site.node);
}

#[test]
fn a_spec_that_changes_nothing_of_the_process_starts_nothing_anew() {
    let mut site = Site::running(spec());
    let digest = |n: u8| crate::domain::id::Digest([n; 32]);
    let adopted = |n: u8, keeps| Input::SpecAdopted {
        service: service("web"),
        digest: digest(n),
        origin: "web.toml".to_owned(),
        intent: None,
        keeps,
        keys: Vec::new(),
    };
    site.tell(adopted(2, Some(digest(1)))).then(&["service.added web"]);
    assert_eq!(site.at("web").state.main().unwrap().spec, digest(2));
    assert_eq!(site.replayed(), site.node);
    // The spec before that one is not the one it kept.
    site.tell(adopted(3, Some(digest(1)))).then(&["service.added web", "instance.stopping web/0"]);
}

/// The end of a main process that left others behind.
fn leaves_rest(site: &mut Site) {
    let mut left = ended(Exit::Signal { signal: 15, core_dumped: false }, 5);
    left.tree_empty = false;
    site.later(5).end("web", 1, left);
}

#[test]
fn what_a_main_process_leaves_behind_in_a_stop_is_asked_to_end_and_then_killed() {
    let mut site = Site::running(spec());
    site.wish(Action::Stop { service: service("web") });
    let deadline = site.deadline("web");
    leaves_rest(&mut site);
    let rest = Operation::StopRest(id("web"), RunId(1));
    assert!(
        site.acts(true).iter().any(
            |act| matches!(act, Act::Signal { signal: 15, operation, .. } if *operation == rest)
        )
    );
    assert_eq!(site.deadline("web"), deadline);
    assert_eq!(site.pass("web").kills(), 1);
    site.tell(Input::TreeGone { instance: id("web"), run: RunId(1) }).then_outcome(1, true);
}

#[test]
fn without_a_main_process_nobody_waits_for_its_traffic_to_move_away() {
    let mut site = Site::running(with(|spec| spec.stop.drain = Millis::from_secs(60)));
    site.wish(Action::Stop { service: service("web") });
    leaves_rest(&mut site);
    site.then(&["instance.exited web/0", "instance.stopping web/0"]);
    assert_eq!(site.signals(), [("web/0".to_owned(), 15)]);
    assert_eq!(site.replayed(), site.node);
}
