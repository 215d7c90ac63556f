//! A new run begins beside the one that serves, and relieves it when it is ready and well.

use super::health::rule;
use super::site::{Site, ended, id, kept, kept_run, service, spec};
use crate::domain::code::Code;
use crate::domain::event::{
    Context, Desired, DesiredChanged, Event, Exit, StopPhase, StopReason, Summarized,
};
use crate::domain::health::Verdict;
use crate::domain::id::{Digest, Generation, RunId};
use crate::domain::input::{Input, KeptRun};
use crate::domain::instance::State;
use crate::domain::intent::Action;
use crate::domain::rejection::Rejection;
use crate::domain::signal::Signal;
use crate::domain::spec::{DependsOn, Millis, OnFailure, ReadyBy, ReloadBy, Spec, UpdateMethod};

const TERMINATED: Exit = Exit::Signal { signal: 15, core_dumped: false };

fn web() -> Spec {
    let mut web = spec();
    web.ready.by = ReadyBy::Notify;
    web.update.method = UpdateMethod::Handover;
    web
}

fn restart() -> Action {
    Action::Restart { service: service("web") }
}

/// Run 1 serves.
fn serving(spec: Spec) -> Site {
    let mut site = Site::running(spec);
    site.ready("web", 1);
    site
}

/// Run 1 serves and run 2 was asked for.
fn asked(spec: Spec) -> Site {
    let mut site = serving(spec);
    site.wish(restart());
    site
}

/// Run 1 serves and run 2 is alive.
fn begun(spec: Spec) -> Site {
    let mut site = asked(spec);
    site.start("web", 2);
    site
}

/// Run 2 has relieved run 1, which is on its way down.
fn relieved(spec: Spec) -> Site {
    let mut site = begun(spec);
    site.ready("web", 2);
    site
}

#[track_caller]
fn serves(site: &Site, run: u64) {
    let slot = site.at("web");
    assert!(slot.is_ready(), "{:?}", slot.state);
    assert_eq!(slot.state.run(), Some(RunId(run)));
}

fn beside(site: &Site) -> Option<&State> {
    site.at("web").beside.as_ref().map(|beside| &beside.state)
}

fn passes(site: &mut Site, run: u64) {
    site.tell(Input::Checked {
        instance: id("web"),
        run: RunId(run),
        check: "app".parse().unwrap(),
        verdict: Verdict { in_a_row: 1, answer: Ok(()) },
    });
}

fn handed_over(site: &Site) -> Option<(RunId, bool)> {
    site.last.events.iter().find_map(|(_, event)| match event {
        Event::InstanceHandedOver(body) => Some((body.from, body.is_ready)),
        _ => None,
    })
}

#[test]
fn a_restart_begins_the_new_run_beside_the_one_that_serves() {
    let mut site = serving(web());
    site.wish(restart()).then(&["intent.accepted web", "instance.starting web/0"]);
    assert_eq!(site.spawned("web"), Some((2, true)));
    assert!(site.signals().is_empty());
    serves(&site, 1);
    site.start("web", 2).then(&["instance.started web/0"]);
    serves(&site, 1);
    assert_eq!(site.outcome(1), None);
}

#[test]
fn a_new_run_that_is_ready_relieves_the_old_one_which_is_asked_to_end_then() {
    let mut site = begun(web());
    site.ready("web", 2).then(&[
        "instance.ready web/0",
        "instance.handed_over web/0",
        "instance.stopping web/0",
        "intent.executed web",
    ]);
    site.then_outcome(1, true);
    assert_eq!(handed_over(&site), Some((RunId(1), true)));
    assert_eq!(site.signals(), [("web/0".to_owned(), 15)]);
    serves(&site, 2);
    site.exit("web", 1, TERMINATED, 5).then(&["instance.exited web/0", "instance.stopped web/0"]);
    assert!(site.acknowledged());
    assert_eq!(beside(&site), None);
    serves(&site, 2);
}

#[test]
fn the_old_run_drains_before_it_is_asked_to_end_and_is_killed_when_it_does_not() {
    let mut slow = web();
    slow.stop.drain = Millis(500);
    let mut site = relieved(slow);
    assert!(matches!(beside(&site), Some(State::Stopping { phase: StopPhase::Drain, .. })));
    assert!(site.signals().is_empty());
    assert_eq!(site.pass("web").signals(), [("web/0".to_owned(), 15)]);
    assert_eq!(site.pass("web").kills(), 1);
    serves(&site, 2);
}

#[test]
fn a_new_run_that_is_not_ready_in_time_is_ended_and_the_old_one_serves_on() {
    let mut site = begun(web());
    assert!(site.pass("web").signals() == [("web/0".to_owned(), 15)], "of run 2");
    site.then_failed(1, Code::NOT_RELIEVED);
    serves(&site, 1);
    site.exit("web", 2, TERMINATED, 5);
    assert_eq!(beside(&site), None);
    serves(&site, 1);
    assert_eq!(site.at("web").backoff.restarts, 0);
}

#[test]
fn a_new_run_that_ends_or_cannot_be_started_leaves_the_old_one_serving() {
    let mut site = begun(web());
    site.exit("web", 2, Exit::Code(1), 5).then_failed(1, Code::NOT_RELIEVED);
    serves(&site, 1);
    let mut site = asked(web());
    site.tell(Input::StartFailed {
        instance: id("web"),
        run: RunId(2),
        step: "exec".to_owned(),
        errno: 2,
        why: "no such file".to_owned(),
    });
    site.then_failed(1, Code::NOT_RELIEVED);
    assert_eq!(beside(&site), None);
    serves(&site, 1);
}

#[test]
fn a_new_run_takes_over_when_its_checks_pass_and_not_before() {
    let mut checked = web();
    checked.health.insert("app".parse().unwrap(), rule(OnFailure::Unready));
    let mut site = begun(checked.clone());
    passes(&mut site, 1);
    site.ready("web", 2);
    assert_eq!(handed_over(&site), None, "what run 1 answers says nothing of run 2");
    serves(&site, 1);
    passes(&mut site, 2);
    assert_eq!(handed_over(&site), Some((RunId(1), true)));
    serves(&site, 2);

    let mut site = begun(checked);
    site.ready("web", 2).pass("web").then_failed(1, Code::NOT_RELIEVED);
    serves(&site, 1);
}

#[test]
fn a_changed_spec_is_handed_over_to_and_is_not_tried_again_by_itself_after_it_failed() {
    let mut site = serving(web());
    site.adopt("web", web(), 2);
    assert_eq!(site.spawned("web"), Some((2, true)));
    site.start("web", 2).exit("web", 2, Exit::Code(1), 5);
    serves(&site, 1);
    assert_eq!(site.at("web").gave_up, Some(Digest([2; 32])));
    site.later(600_000).tell(Input::Shutdown { leave_running: true });
    let mut site = serving(web());
    site.adopt("web", web(), 2).start("web", 2).exit("web", 2, Exit::Code(1), 5);
    site.wish(restart());
    assert_eq!(site.spawned("web"), Some((3, true)), "somebody asked");
    let mut site = serving(web());
    site.adopt("web", web(), 2).start("web", 2).exit("web", 2, Exit::Code(1), 5);
    site.adopt("web", web(), 3);
    assert_eq!(site.spawned("web"), Some((3, true)), "it is another spec");
    site.start("web", 3).ready("web", 3);
    serves(&site, 3);
    assert_eq!(site.at("web").gave_up, None);
}

#[test]
fn what_is_heard_in_a_handover_is_said_of_the_spec_that_comes_until_it_fails() {
    let heard = |site: &Site| {
        let adopted = site.node.services()[&service("web")].digest;
        site.at("web").heard_spec(adopted)
    };
    let (before, after) = (Some(Digest([1; 32])), Some(Digest([2; 32])));
    let mut site = serving(web());
    assert_eq!(heard(&site), before);
    site.adopt("web", web(), 2);
    assert_eq!(heard(&site), after, "from before its first line on");
    site.start("web", 2);
    assert_eq!(heard(&site), after);
    site.exit("web", 2, Exit::Code(1), 5);
    assert_eq!(heard(&site), before, "it is gone");

    let mut site = serving(web());
    site.adopt("web", web(), 2).start("web", 2);
    site.pass("web");
    assert_eq!(heard(&site), before, "it was too late");

    let mut site = serving(web());
    site.adopt("web", web(), 2).start("web", 2).ready("web", 2);
    assert_eq!((heard(&site), site.at("web").coming()), (after, None), "it has taken over");
}

#[test]
fn a_spec_that_changes_during_a_handover_is_the_one_that_takes_over() {
    let mut site = serving(web());
    site.adopt("web", web(), 2).start("web", 2);
    site.adopt("web", web(), 3);
    assert!(matches!(
        beside(&site),
        Some(State::Stopping { reason: StopReason::Update, run: RunId(2), .. })
    ));
    site.exit("web", 2, TERMINATED, 5);
    assert_eq!(site.spawned("web").map(|(run, _)| run), Some(3));
    serves(&site, 1);
}

#[test]
fn when_the_old_run_crashes_the_new_one_takes_its_place_unready_as_it_is() {
    let mut site = begun(web());
    site.exit("web", 1, Exit::Code(1), 5);
    assert_eq!(handed_over(&site), Some((RunId(1), false)));
    assert!(matches!(site.state("web"), State::Starting { main, .. } if main.run == RunId(2)));
    assert_eq!((site.spawned("web"), site.outcome(1)), (None, None));
    site.ready("web", 2).then_outcome(1, true);
    serves(&site, 2);
}

#[test]
fn when_both_crash_the_policy_of_restarts_goes_on() {
    let mut site = begun(web());
    site.exit("web", 1, Exit::Code(1), 5).exit("web", 2, Exit::Code(1), 5);
    site.then_failed(1, Code::NOT_READY);
    assert!(matches!(site.state("web"), State::Backoff { .. }), "it ran too short a time");
    let mut site = begun(web());
    site.exit("web", 2, Exit::Code(1), 5).exit("web", 1, Exit::Code(1), 5);
    site.then_failed(1, Code::NOT_RELIEVED);
    assert!(matches!(site.state("web"), State::Backoff { .. }), "it ran too short a time");
}

#[test]
fn a_stop_during_a_handover_ends_both_and_is_done_when_both_are_gone() {
    let mut site = begun(web());
    site.wish(Action::Stop { service: service("web") }).then_failed(1, Code::SUPERSEDED);
    assert_eq!(site.signals().len(), 2);
    site.exit("web", 1, TERMINATED, 5);
    assert_eq!(site.outcome(2), None);
    site.exit("web", 2, TERMINATED, 5).then_outcome(2, true);
    assert!(site.at("web").at_rest());
    let mut site = relieved(web());
    site.wish(Action::Stop { service: service("web") }).exit("web", 2, TERMINATED, 5);
    assert_eq!(site.outcome(2), None, "the old one is there still");
    site.exit("web", 1, TERMINATED, 5).then_outcome(2, true);
}

#[test]
fn a_second_restart_during_a_handover_is_a_handover_of_its_own_behind_the_first() {
    let mut site = begun(web());
    site.wish(restart());
    assert_eq!(site.spawned("web"), None);
    site.ready("web", 2).then_outcome(1, true);
    assert_eq!((site.spawned("web"), site.outcome(2)), (None, None), "there are never three");
    site.exit("web", 1, TERMINATED, 5);
    assert_eq!(site.spawned("web").map(|(run, _)| run), Some(3));
    site.start("web", 3).ready("web", 3).then_outcome(2, true);
    serves(&site, 3);
}

#[test]
fn a_run_that_is_about_to_be_relieved_is_not_reloaded() {
    let mut reloads = web();
    reloads.reload.by = ReloadBy::Signal(Signal::HUP);
    let mut site = begun(reloads);
    let wish = site.wish_of(9, Action::Reload { service: service("web") });
    let refused = site.try_tell(Input::Wish(wish)).map(drop);
    assert_eq!(refused, Err(Rejection::HandingOver(service("web"))));
}

#[test]
fn a_signal_during_a_handover_reaches_the_run_that_serves() {
    let mut site = begun(web());
    site.wish(Action::Signal { service: service("web"), signal: 10 });
    let to = site.last.effects.iter().find_map(|effect| match effect.act() {
        crate::domain::effect::Act::Signal { run, .. } => Some(*run),
        _ => None,
    });
    assert_eq!(to, Some(RunId(1)));
}

#[test]
fn instances_are_relieved_one_after_the_other() {
    let mut two = web();
    two.instances = 2;
    let mut site = Site::with(&[("web", two)]);
    site.start("web/0", 1).ready("web/0", 1).start("web/1", 1).ready("web/1", 1);
    site.wish(restart());
    assert_eq!((site.spawned("web/0").is_some(), site.spawned("web/1")), (true, None));
    site.start("web/0", 2).ready("web/0", 2);
    assert!(site.spawned("web/1").is_some());
}

#[test]
fn the_end_of_the_agent_ends_both_runs() {
    let mut site = begun(web());
    site.tell(Input::Shutdown { leave_running: false });
    assert_eq!(site.signals().len(), 2);
    site.exit("web", 1, TERMINATED, 5);
    assert!(!site.stops_agent());
    assert!(site.exit("web", 2, TERMINATED, 5).stops_agent());
}

#[test]
fn whoever_follows_the_restarts_of_a_service_follows_a_run_that_took_over_and_no_other() {
    let mut follower = spec();
    let rule = DependsOn { restart: true, ..DependsOn::default() };
    follower.depends_on.insert(service("web"), rule);
    let mut site = Site::with(&[("web", web()), ("app", follower)]);
    site.start("web", 1).ready("web", 1).start("app", 1);
    site.wish(restart()).start("web", 2).exit("web", 2, Exit::Code(1), 5);
    site.then_failed(1, Code::NOT_RELIEVED);
    assert!(matches!(site.state("app"), State::Running { .. }));
    site.wish(restart()).start("web", 3).ready("web", 3);
    assert!(matches!(site.state("app"), State::Stopping { .. }), "it is another one now");
}

fn met(mut site: Site, agent_is_new: bool, runs: Vec<KeptRun>) -> Site {
    site.tell(Input::Reconcile(kept(2, agent_is_new, runs)));
    site
}

#[test]
fn after_a_death_of_agent_and_keeper_both_runs_are_found_and_the_handover_goes_on() {
    let runs = vec![kept_run("web", 1, None), kept_run("web", 2, None)];
    let mut site = met(begun(web()), true, runs);
    assert_eq!((site.kills(), site.spawned("web")), (0, None));
    serves(&site, 1);
    site.ready("web", 2).then_outcome(1, true);
    serves(&site, 2);
}

#[test]
fn a_run_beside_that_is_gone_after_a_death_leaves_the_old_one_serving() {
    let site = met(begun(web()), true, vec![kept_run("web", 1, None)]);
    serves(&site, 1);
    assert_eq!(beside(&site), None);
    let gone = kept_run("web", 2, Some(ended(Exit::Unknown, 5)));
    let mut site = met(begun(web()), true, vec![kept_run("web", 1, None), gone]);
    serves(&site, 1);
    site.then_failed(1, Code::NOT_RELIEVED);
}

#[test]
fn a_run_beside_of_which_nobody_knows_whether_it_was_made_is_asked_for_under_another_number() {
    let mut site = met(asked(web()), true, vec![kept_run("web", 1, None)]);
    assert_eq!(site.spawned("web").map(|(run, _)| run), Some(3));
    site.start("web", 3).ready("web", 3).then_outcome(1, true);
    serves(&site, 3);
}

#[test]
fn a_run_beside_that_the_log_did_not_hear_of_is_taken_over_with_the_one_that_serves() {
    let runs = vec![kept_run("web", 1, None), kept_run("web", 2, None)];
    let mut site = met(serving(web()), true, runs);
    serves(&site, 1);
    assert_eq!(site.kills(), 0);
    site.ready("web", 2);
    serves(&site, 2);
}

#[test]
fn a_run_that_the_log_did_not_hear_of_keeps_its_number_though_nobody_wants_it() {
    let mut site = serving(web());
    let down = DesiredChanged { desired: Desired::Stopped, generation: Generation(9) };
    site.append(Context::service(&service("web")), Event::DesiredChanged(down));
    let runs = vec![kept_run("web", 1, None), kept_run("web", 2, None)];
    let site = met(site, true, runs);
    assert_eq!(site.at("web").last_run, RunId(2));
    assert!(matches!(beside(&site), Some(State::Stopping { .. })), "{:?}", beside(&site));
    assert!(matches!(site.state("web"), State::Stopping { .. }));
}

#[test]
fn of_three_the_one_in_the_middle_had_ended() {
    let runs = (1..=3).map(|run| kept_run("web", run, None)).collect();
    let site = met(begun(web()), true, runs);
    serves(&site, 1);
    assert_eq!((site.kills(), site.at("web").last_run), (1, RunId(3)));
    assert_eq!(beside(&site).and_then(State::run), Some(RunId(3)));
}

#[test]
fn a_successor_that_the_log_did_not_hear_of_tells_that_the_one_before_was_ready() {
    let runs = vec![kept_run("web", 1, None), kept_run("web", 2, None)];
    let mut site = met(Site::running(web()), true, runs);
    serves(&site, 1);
    site.ready("web", 2);
    serves(&site, 2);
}

#[test]
fn a_run_beside_nothing_is_stopped_and_the_slot_begins_anew() {
    let mut site = begun(web());
    let (first_at, last_at) = (site.now, site.now);
    let live = None;
    let body = Summarized { first_at, last_at, starts: 1, exits: 1, live };
    site.append(Context::instance(&id("web")), Event::Summarized(body));
    site.ready("web", 2);
    assert!(matches!(beside(&site), Some(State::Stopping { .. })), "{:?}", beside(&site));
}

#[test]
fn what_is_folded_in_a_handover_is_the_live_state() {
    for site in [asked(web()), begun(web()), relieved(web())] {
        assert_eq!(site.replayed(), site.node);
        assert_eq!(site.restored(), site.node);
    }
}
