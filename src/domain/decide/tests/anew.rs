//! What begins anew after an act of somebody, a stable run or a newer spec, and what a clock that jumps may not do.

use super::site::{Site, ended, id, kept, kept_run, service, spec};
use crate::domain::effect::{Act, Timer};
use crate::domain::event::{Exit, StopPhase};
use crate::domain::id::RunId;
use crate::domain::input::Input;
use crate::domain::instance::State;
use crate::domain::intent::Action;
use crate::domain::spec::{ReadyBy, RestartPolicy, Spec};

const TERMINATED: Exit = Exit::Signal { signal: 15, core_dumped: false };

/// Two instances, of which each says that it is ready and gives up at code 78.
fn two() -> Spec {
    let mut two = spec();
    two.instances = 2;
    two.ready.by = ReadyBy::Notify;
    two.restart.fatal_codes = vec![78];
    two
}

fn both_ready(spec: Spec) -> Site {
    let mut site = Site::with(&[("web", spec)]);
    site.start("web/0", 1).ready("web/0", 1).start("web/1", 1).ready("web/1", 1);
    site
}

fn other(mut spec: Spec) -> Spec {
    spec.description = "other".to_owned();
    spec
}

#[test]
fn an_update_begins_with_the_instance_that_was_given_up_and_goes_on_with_those_that_serve() {
    let mut site = both_ready(two());
    site.exit("web/1", 1, Exit::Code(78), 5);
    assert_eq!(*site.state("web/1"), State::Failed);
    site.adopt("web", other(two()), 2).then(&["service.added web", "instance.starting web/1"]);
    assert!(site.state("web/0").is_ready());
    site.start("web/1", 2).then(&["instance.started web/1"]);
    site.ready("web/1", 2).then(&["instance.ready web/1", "instance.stopping web/0"]);
}

#[test]
fn an_instance_that_is_completed_holds_up_no_update() {
    let mut spec = two();
    spec.restart.policy = RestartPolicy::OnFailure;
    let mut site = both_ready(spec.clone());
    site.exit("web/1", 1, Exit::Code(0), 5);
    assert_eq!(*site.state("web/1"), State::Completed);
    site.adopt("web", other(spec), 2).then(&["service.added web", "instance.stopping web/0"]);
}

#[test]
fn a_spec_that_fails_is_not_given_to_those_that_serve() {
    let mut site = both_ready(two());
    site.exit("web/1", 1, Exit::Code(78), 5);
    site.adopt("web", other(two()), 2).start("web/1", 2);
    site.exit("web/1", 2, Exit::Code(78), 5).then(&["instance.exited web/1"]);
    assert_eq!(*site.state("web/1"), State::Failed);
    assert!(site.state("web/0").is_ready());
}

#[test]
fn a_run_of_an_older_spec_that_fails_for_good_is_followed_by_one_of_the_newer() {
    let mut site = both_ready(two());
    // `web/0` goes first, and `web/1` dies before its turn.
    site.adopt("web", other(two()), 2).then(&["service.added web", "instance.stopping web/0"]);
    site.exit("web/1", 1, Exit::Code(78), 5);
    assert_eq!(site.spawned("web/1").map(|(run, _)| run), Some(2));
    site.start("web/1", 2).exit("web/1", 2, Exit::Code(78), 5);
    assert_eq!(*site.state("web/1"), State::Failed);
}

#[test]
fn a_restart_by_somebody_counts_from_zero() {
    let mut site = Site::running(spec());
    site.exit("web", 1, Exit::Code(1), 5).pass("web").start("web", 2);
    assert_eq!(site.at("web").backoff.restarts, 1);
    site.wish(Action::Restart { service: service("web") });
    site.exit("web", 2, TERMINATED, 5).start("web", 3);
    let backoff = &site.at("web").backoff;
    assert_eq!((backoff.restarts, backoff.base_ms, backoff.window_restarts), (0, 0, 0));
    assert_eq!(site.replayed(), site.node);
}

#[test]
fn a_stop_and_a_start_by_somebody_count_from_zero() {
    let mut site = Site::running(spec());
    site.exit("web", 1, Exit::Code(1), 5).pass("web").start("web", 2);
    site.wish(Action::Stop { service: service("web") }).exit("web", 2, TERMINATED, 5);
    site.wish(Action::Start { service: service("web") }).start("web", 3);
    let backoff = &site.at("web").backoff;
    assert_eq!((backoff.restarts, backoff.base_ms, backoff.window_restarts), (0, 0, 0));
}

#[test]
fn an_update_counts_from_zero_and_a_run_that_was_not_ready_in_time_does_not() {
    let mut late = spec();
    late.ready.by = ReadyBy::Notify;
    let mut site = Site::with(&[("web", late.clone())]);
    site.start("web", 1).pass("web").exit("web", 1, TERMINATED, 5).pass("web").start("web", 2);
    assert_eq!(site.at("web").backoff.restarts, 1);
    site.adopt("web", other(late), 2).exit("web", 2, TERMINATED, 5).start("web", 3);
    assert_eq!(site.at("web").backoff.restarts, 0);
}

/// The times that the last decision sets, in milliseconds from it.
fn timers(site: &Site) -> Vec<(Timer, u64)> {
    let timer = |act: &Act| match act {
        Act::SetTimer { timer, after_ms, .. } => Some((timer.clone(), *after_ms)),
        _ => None,
    };
    site.acts(false).into_iter().filter_map(timer).collect()
}

#[test]
fn a_clock_that_went_back_makes_no_wait_longer_than_its_rule() {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    let mut site = Site::running(spec());
    site.later(2 * DAY_MS).exit("web", 1, Exit::Code(1), 5);
    site.now = crate::domain::time::UnixMicros(site.now.0 - DAY_MS * 1000);
    site.tell(Input::Reconcile(kept(1, true, Vec::new())));
    let longest = spec().restart.max_delay.0;
    assert!(timers(&site).iter().all(|(_, after_ms)| *after_ms <= longest), "{:?}", timers(&site));

    let mut site = Site::running(spec());
    site.later(2 * DAY_MS).wish(Action::Stop { service: service("web") });
    site.now = crate::domain::time::UnixMicros(site.now.0 - DAY_MS * 1000);
    site.tell(Input::Reconcile(kept(1, true, vec![kept_run("web", 1, None)])));
    let stop = Timer::Stop(id("web"), RunId(1));
    let after_ms = timers(&site).into_iter().find(|(timer, _)| *timer == stop).unwrap().1;
    assert_eq!(after_ms, spec().stop.timeout.0);
    assert!(timers(&site).iter().all(|(_, after_ms)| *after_ms <= DAY_MS / 24));
}

#[test]
fn an_agent_that_lives_keeps_its_deadlines_when_the_keeper_changes() {
    let mut site = Site::running(spec());
    site.exit("web", 1, Exit::Code(1), 5);
    site.tell(Input::Reconcile(kept(2, false, Vec::new())));
    assert_eq!(timers(&site), []);
}

#[test]
fn a_kill_is_tried_again_soon_even_when_the_clock_has_jumped() {
    let mut site = Site::running(spec());
    let mut leaves = ended(Exit::Code(1), 20_000);
    leaves.tree_empty = false;
    site.end("web", 1, leaves).later(24 * 60 * 60 * 1000).pass("web");
    assert!(matches!(site.state("web"), State::Stopping { phase: StopPhase::Kill, .. }));
    let [(Timer::Stop(..), after_ms)] = timers(&site)[..] else { panic!("{:?}", timers(&site)) };
    assert!(after_ms <= 10 * 60_000, "{after_ms}");
}
