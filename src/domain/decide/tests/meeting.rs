//! Agent and keeper meet again after one of them, or both, or the machine were away.

use super::site::{Site, ended, id, intent, kept, kept_run, service, spec};
use crate::domain::effect::{Act, Timer};
use crate::domain::event::{Exit, RunResult};
use crate::domain::id::{BootId, RunId};
use crate::domain::input::Input;
use crate::domain::instance::State;
use crate::domain::intent::Action;
use crate::domain::spec::ReadyBy;

#[test]
fn a_run_that_outlived_the_agent_is_adopted_and_not_doubled() {
    let mut site = Site::running(spec());
    site.tell(Input::Reconcile(kept(1, true, vec![kept_run("web", 1, None)])));
    site.then(&["instance.adopted web/0"]);
    assert_eq!((site.spawned("web"), site.kills(), site.signals().len()), (None, 0, 0));
}

#[test]
fn a_run_that_outlived_the_keeper_is_adopted_by_the_next_one() {
    let mut site = Site::running(spec());
    site.tell(Input::Reconcile(kept(2, false, vec![kept_run("web", 1, None)])));
    site.then(&["instance.adopted web/0", "keeper.started"]);
}

#[test]
fn an_end_that_nobody_saw_is_unknown_and_followed_by_the_policy() {
    let mut site = Site::running(spec());
    site.later(20_000).tell(Input::Reconcile(kept(2, true, Vec::new())));
    site.then(&["instance.exited web/0", "keeper.started"]);
    assert_eq!(site.at("web").last.as_ref().unwrap().result, RunResult::Unknown);
    assert_eq!(site.spawned("web"), Some((2, false)));
}

#[test]
fn an_end_that_the_keeper_kept_is_written_down_with_its_code() {
    let mut site = Site::running(spec());
    let end = ended(Exit::Code(3), 20_000);
    site.tell(Input::Reconcile(kept(1, true, vec![kept_run("web", 1, Some(end))])));
    site.then(&["instance.exited web/0"]);
    assert_eq!(site.at("web").last.as_ref().unwrap().process.unwrap().exit, Exit::Code(3));
    assert!(site.acknowledged());
}

#[test]
fn a_start_whose_record_was_lost_comes_back_by_the_keeper() {
    let mut site = Site::running(spec());
    let first = kept_run("web", 1, Some(ended(Exit::Code(3), 20_000)));
    site.tell(Input::Reconcile(kept(1, true, vec![first, kept_run("web", 2, None)])));
    site.then(&["instance.exited web/0", "instance.started web/0"]);
    assert_eq!(site.spawned("web"), None);
    assert_eq!(site.at("web").last_run, RunId(2));
}

#[test]
fn a_spawn_that_never_arrived_is_asked_for_again_under_its_name() {
    let mut site = Site::with(&[("web", spec())]);
    site.tell(Input::Reconcile(kept(1, true, Vec::new()))).then_nothing();
    assert_eq!(site.spawned("web"), Some((1, true)));
}

#[test]
fn a_spawn_of_which_nobody_can_tell_gets_another_number() {
    let mut site = Site::with(&[("web", spec())]);
    site.tell(Input::Reconcile(kept(2, true, Vec::new())));
    assert_eq!(site.spawned("web").map(|(run, _)| run), Some(2));
}

#[test]
fn a_process_that_comes_when_nobody_waits_for_it_any_more_is_killed() {
    let mut site = Site::with(&[("web", spec())]);
    site.wish(Action::Stop { service: service("web") });
    site.tell(Input::Reconcile(kept(2, false, Vec::new()))).then_outcome(1, true);
    site.start("web", 1).then_nothing();
    assert_eq!(site.acts(false), [&Act::KillTree { instance: id("web"), run: RunId(1) }]);

    let mut site = Site::running(spec());
    site.start("web", 1).then_nothing();
    assert_eq!(site.kills(), 0, "it was told twice");
}

#[test]
fn an_older_run_beside_a_newer_one_is_killed() {
    let mut site = Site::running(spec());
    site.exit("web", 1, Exit::Code(1), 20_000).start("web", 2);
    let runs = vec![kept_run("web", 1, None), kept_run("web", 2, None)];
    site.tell(Input::Reconcile(kept(1, true, runs)));
    let killed: Vec<_> = site
        .acts(false)
        .into_iter()
        .filter(|act| **act == Act::KillTree { instance: id("web"), run: RunId(1) })
        .collect();
    assert_eq!(killed.len(), 1);
    assert_eq!(site.state("web").run(), Some(RunId(2)));
}

#[test]
fn every_run_that_the_log_missed_is_written_down_though_the_ends_of_the_older_ones_are_not_told_yet()
 {
    let mut site = Site::running(spec());
    let runs = (1..=3).map(|run| kept_run("web", run, None)).collect();
    site.tell(Input::Reconcile(kept(1, true, runs)));
    let run = ["instance.exited web/0", "instance.starting web/0", "instance.started web/0"];
    site.then(&[run, run].concat());
    assert_eq!(site.kills(), 2, "what is left of the older ones goes");
    assert_eq!(site.state("web").run(), Some(RunId(3)));
    assert_eq!(site.spawned("web"), None);
    site.exit("web", 2, Exit::Code(3), 100).then_nothing();
}

#[test]
fn a_signal_is_asked_for_again_of_whichever_keeper_there_is_and_for_the_same_run() {
    let usr1 = Action::Signal { service: service("web"), signal: 10 };
    let mut site = Site::running(spec());
    site.wish(usr1.clone());
    site.tell(Input::Reconcile(kept(1, true, vec![kept_run("web", 1, None)])));
    assert_eq!(site.signals(), [("web/0".to_owned(), 10)]);

    let mut site = Site::running(spec());
    site.wish(usr1);
    site.tell(Input::Reconcile(kept(2, true, vec![kept_run("web", 1, None)])));
    assert_eq!(site.signals(), [("web/0".to_owned(), 10)]);
    assert_eq!(site.outcome(1), None);
}

#[test]
fn a_stop_that_was_under_way_goes_on() {
    let mut site = Site::running(spec());
    site.wish(Action::Stop { service: service("web") });
    site.tell(Input::Reconcile(kept(2, true, vec![kept_run("web", 1, None)])));
    assert_eq!(site.signals(), [("web/0".to_owned(), 15)]);
    assert!(site.acts(false).iter().any(|act| matches!(act, Act::SetTimer { .. })));
    assert!(site.node.seen().get(&intent(1)).unwrap().open().is_some());
}

#[test]
fn the_time_to_become_ready_begins_anew_when_somebody_listens_again() {
    let mut slow = spec();
    slow.ready.by = ReadyBy::Notify;
    let timeout = slow.ready.timeout.0;
    let mut site = Site::with(&[("web", slow)]);
    site.start("web", 1);
    site.later(timeout + 2_000);
    site.tell(Input::Reconcile(kept(1, true, vec![kept_run("web", 1, None)])));
    let timers: Vec<_> = site
        .acts(false)
        .into_iter()
        .filter_map(|act| match act {
            Act::SetTimer { timer: timer @ Timer::Ready(..), at, after_ms } => {
                Some((timer.clone(), *at, *after_ms))
            }
            _ => None,
        })
        .collect();
    let [(timer, at, after_ms)] = timers.as_slice() else { panic!("{timers:?}") };
    assert_eq!(*after_ms, timeout);
    let input = Input::Timer { timer: timer.clone(), at: *at };
    site.later(timeout).tell(input).then(&["instance.stopping web/0"]);
}

#[test]
fn after_a_boot_everything_wanted_is_started_whatever_it_came_to() {
    let mut failing = spec();
    failing.restart.fatal_codes = vec![78];
    let mut site = Site::with(&[("web", failing), ("db", spec())]);
    site.start("db", 1).start("web", 1);
    site.exit("web", 1, Exit::Code(78), 5);
    assert_eq!(*site.state("web"), State::Failed);
    let mut meeting = kept(2, true, Vec::new());
    meeting.keeper.boot = BootId([9; 16]);
    site.later(20_000).tell(Input::Reconcile(meeting));
    assert_eq!((site.spawned("web"), site.spawned("db")), (Some((2, false)), Some((2, false))));
}

#[test]
fn nothing_is_started_before_agent_and_keeper_have_met() {
    let mut site = Site::empty();
    site.reconciled = false;
    site.adopt("web", spec(), 1).then(&["service.added web"]);
    site.tell(Input::Reconcile(kept(1, false, Vec::new()))).then(&["instance.starting web/0"]);
}
