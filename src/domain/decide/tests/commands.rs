//! What follows from wishes.

use std::collections::BTreeMap;

use super::site::{Site, intent, service, spec};
use crate::domain::code::Code;
use crate::domain::effect::{Act, Reply, Timer};
use crate::domain::event::{Desired, Exit, Outcome};
use crate::domain::id::{Digest, Generation};
use crate::domain::input::{ActionEnd, Delivery, Input};
use crate::domain::instance::State;
use crate::domain::intent::{Action, ActorKind};
use crate::domain::rejection::Rejection;
use crate::domain::seen::OPEN_MAX;
use crate::domain::signal::Signal;
use crate::domain::spec::{self, ReadyBy, ReloadBy, Spec};
use crate::domain::time::UnixMicros;

use super::site::id;

const TERMINATED: Exit = Exit::Signal { signal: 15, core_dumped: false };

fn start() -> Action {
    Action::Start { service: service("web") }
}
fn stop() -> Action {
    Action::Stop { service: service("web") }
}
fn restart() -> Action {
    Action::Restart { service: service("web") }
}
fn reload() -> Action {
    Action::Reload { service: service("web") }
}
fn signal(signal: i32) -> Action {
    Action::Signal { service: service("web"), signal }
}
fn clear(params: &[(&str, &str)]) -> Action {
    let params =
        params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Action::Run {
        service: service("web"),
        action: "clear".parse().unwrap(),
        params,
        confirmed: false,
    }
}

fn clearing(idempotent: bool) -> Spec {
    let mut spec = spec();
    let mut action = spec::Action::new(Vec::new());
    action.idempotent = idempotent;
    let zone = spec::Param::Integer { min: Some(1), max: Some(9), default: None };
    action.params = BTreeMap::from([("zone".to_owned(), zone)]);
    spec.action.insert("clear".parse().unwrap(), action);
    spec
}

fn refused(site: &mut Site, action: Action) -> Rejection {
    let wish = site.wish_of(200, action);
    site.try_tell(Input::Wish(wish)).err().expect("it is refused")
}

#[test]
fn a_stop_is_accepted_before_anything_and_done_when_the_tree_is_empty() {
    let mut site = Site::running(spec());
    site.wish(stop()).then(&[
        "intent.accepted web",
        "service.desired_changed web",
        "instance.stopping web/0",
    ]);
    assert!(site.acts(true).iter().any(|act| matches!(act, Act::Signal { signal: 15, .. })));
    assert_eq!(site.answers(), [Reply::InProgress]);
    site.exit("web", 1, TERMINATED, 5).then(&[
        "instance.exited web/0",
        "instance.stopped web/0",
        "intent.executed web",
    ]);
    assert_eq!(site.answers(), [Reply::Outcome(Outcome::Done { changed: true })]);
    site.wish(stop()).then(&["intent.accepted web", "intent.executed web"]).then_outcome(2, false);
}

#[test]
fn a_stop_in_backoff_is_immediate() {
    let mut site = Site::running(spec());
    site.exit("web", 1, Exit::Code(1), 5);
    site.wish(stop()).then_outcome(1, true);
    assert_eq!(*site.state("web"), State::Inactive);
    assert!(
        site.last.effects.iter().any(|effect| {
            *effect.act() == Act::CancelTimer { timer: Timer::Backoff(id("web")) }
        })
    );
}

#[test]
fn a_stop_in_waiting_is_immediate() {
    let mut waits = spec();
    waits.depends_on.insert(service("db"), spec::DependsOn::default());
    let mut site = Site::with(&[("web", waits)]);
    site.wish(stop()).then_outcome(1, true);
    assert_eq!(*site.state("web"), State::Inactive);
}

#[test]
fn a_stop_that_comes_while_a_process_is_being_made_ends_that_process() {
    let mut site = Site::with(&[("web", spec())]);
    site.wish(stop()).then(&[
        "intent.accepted web",
        "service.desired_changed web",
        "instance.stopping web/0",
    ]);
    assert!(site.signals().is_empty());
    site.start("web", 1).then(&["instance.started web/0"]);
    assert_eq!(site.signals(), [("web/0".to_owned(), 15)]);
    site.exit("web", 1, TERMINATED, 5).then_outcome(1, true);
}

#[test]
fn a_start_that_comes_while_it_stops_follows_the_stop_and_the_stop_is_superseded() {
    let mut site = Site::running(spec());
    site.wish(stop());
    site.wish(start()).then_failed(1, Code::SUPERSEDED);
    site.exit("web", 1, TERMINATED, 5);
    assert_eq!(site.spawned("web").map(|(run, _)| run), Some(2));
    site.start("web", 2).then_outcome(2, true);
}

#[test]
fn a_start_in_backoff_does_not_wait_and_counts_from_zero() {
    let mut site = Site::running(spec());
    site.exit("web", 1, Exit::Code(1), 5);
    site.wish(start()).then(&["intent.accepted web", "instance.starting web/0"]);
    assert_eq!(site.spawned("web"), Some((2, true)));
    assert_eq!(site.at("web").backoff.restarts, 0);
    site.start("web", 2).then_outcome(1, true);
}

#[test]
fn a_start_fails_when_the_process_ends_before_it_is_ready_and_the_service_is_tried_on() {
    let mut late = spec();
    late.ready.by = ReadyBy::Notify;
    let mut site = Site::with(&[("web", late)]);
    site.start("web", 1).wish(start());
    site.exit("web", 1, Exit::Code(1), 5).then_failed(1, Code::NOT_READY);
    assert!(matches!(site.state("web"), State::Backoff { .. }));
}

#[test]
fn a_start_that_needs_what_nobody_brings_up_fails_at_once() {
    let mut waits = spec();
    waits.enabled = false;
    waits.depends_on.insert(service("db"), spec::DependsOn::default());
    let mut site = Site::with(&[("web", waits)]);
    site.wish(start()).then_failed(1, Code::NOT_READY);
    assert_eq!(site.state("web").label(), "waiting");
}

#[test]
fn a_restart_takes_one_instance_after_the_other() {
    let mut two = spec();
    two.instances = 2;
    let mut site = Site::with(&[("web", two)]);
    site.start("web/0", 1).start("web/1", 1);
    site.wish(restart()).then(&["intent.accepted web", "instance.stopping web/0"]);
    site.exit("web/0", 1, TERMINATED, 5).start("web/0", 2);
    site.then(&["instance.started web/0", "instance.stopping web/1"]);
    site.exit("web/1", 1, TERMINATED, 5).start("web/1", 2).then_outcome(1, true);
}

#[test]
fn a_restart_leaves_the_rest_alone_when_one_does_not_come_back() {
    let mut two = spec();
    two.instances = 2;
    two.ready.by = ReadyBy::Notify;
    let mut site = Site::with(&[("web", two)]);
    site.start("web/0", 1).ready("web/0", 1).start("web/1", 1).ready("web/1", 1);
    site.wish(restart()).exit("web/0", 1, TERMINATED, 5).start("web/0", 2);
    site.exit("web/0", 2, Exit::Code(1), 5).then_failed(1, Code::NOT_READY);
    assert!(site.state("web/1").is_ready());
}

#[test]
fn a_repeated_wish_is_answered_with_its_first_outcome_and_another_content_is_refused() {
    let mut site = Site::running(spec());
    let wish = site.wish_of(9, stop());
    site.tell(Input::Wish(wish.clone()));
    site.tell(Input::Wish(wish.clone())).then_nothing();
    assert_eq!(site.answers(), [Reply::InProgress]);
    site.exit("web", 1, TERMINATED, 5);
    site.tell(Input::Wish(wish.clone())).then_nothing();
    assert_eq!(site.answers(), [Reply::Outcome(Outcome::Done { changed: true })]);
    let mut other = wish;
    other.digest = Digest([77; 32]);
    assert_eq!(site.try_tell(Input::Wish(other)).err(), Some(Rejection::Replayed));
}

#[test]
fn a_forgotten_id_is_expired_and_never_executed_again() {
    let mut site = Site::running(spec());
    let wish = site.wish_of(9, stop());
    site.tell(Input::Wish(wish.clone())).exit("web", 1, TERMINATED, 5);
    let taken_at = site.now;
    site.later(200_000).wish(start());
    assert!(site.node.seen().get(&intent(9)).is_none());
    site.now = taken_at; // Even when the clock goes back.
    assert_eq!(site.try_tell(Input::Wish(wish)).err(), Some(Rejection::Expired));
}

#[test]
fn a_wish_from_before_the_epoch_or_below_the_generation_is_refused() {
    let mut site = Site::running(spec());
    let mut old = site.wish_of(9, stop());
    old.issued_at = UnixMicros(site.node.head().epoch_began.0 - 1);
    assert_eq!(site.try_tell(Input::Wish(old)).err(), Some(Rejection::StaleEpoch));
    let mut newer = site.wish_of(10, start());
    newer.generation = Some(Generation(5));
    site.tell(Input::Wish(newer));
    let mut older = site.wish_of(11, stop());
    older.generation = Some(Generation(4));
    assert_eq!(site.try_tell(Input::Wish(older)).err(), Some(Rejection::StaleGeneration));
}

#[test]
fn a_wrong_clock_locks_nobody_out_of_their_own_machine() {
    let mut site = Site::running(spec());
    let mut wish = site.wish_of(9, stop());
    // By a clock of years ago: before the log began, and long expired.
    (wish.issued_at, wish.expires_at) = (UnixMicros(1), UnixMicros(2));
    assert!(site.try_tell(Input::Wish(wish.clone())).is_err());
    wish.is_own = true;
    site.tell(Input::Wish(wish.clone()));
    site.tell(Input::Wish(wish)).then_nothing();
    site.exit("web", 1, TERMINATED, 5).then_outcome(9, true);
}

#[test]
fn what_cannot_be_done_is_refused_with_its_reason() {
    let mut site = Site::with(&[("web", clearing(false))]);
    assert_eq!(
        refused(&mut site, Action::Stop { service: service("x") }).code(),
        Code::NO_SUCH_SERVICE
    );
    assert_eq!(refused(&mut site, reload()).code(), Code::NO_RELOAD);
    assert_eq!(refused(&mut site, signal(1)).code(), Code::NOT_RUNNING);
    assert_eq!(refused(&mut site, signal(65)).code(), Code::BAD_PARAMETER);
    assert_eq!(refused(&mut site, clear(&[])).code(), Code::MISSING_PARAMETER);
    assert_eq!(refused(&mut site, clear(&[("zone", "10")])).code(), Code::BAD_PARAMETER);
    assert_eq!(refused(&mut site, clear(&[("zone", "1"), ("x", "1")])).code(), Code::BAD_PARAMETER);
}

#[test]
fn a_signal_is_done_when_it_is_delivered() {
    let mut site = Site::running(spec());
    site.wish(signal(10)).then(&["intent.accepted web"]);
    assert_eq!(site.signals(), [("web/0".to_owned(), 10)]);
    let told =
        |delivery| Input::SignalDelivered { intent: intent(1), instance: id("web"), delivery };
    site.tell(told(Delivery::Delivered)).then(&["instance.signalled web/0", "intent.executed web"]);
    site.then_outcome(1, true).tell(told(Delivery::Delivered)).then_nothing();
}

#[test]
fn a_reload_is_done_by_its_signal_or_by_the_word_of_the_service() {
    let mut by_signal = spec();
    by_signal.reload.by = ReloadBy::Signal(Signal::HUP);
    let mut site = Site::running(by_signal.clone());
    site.wish(reload()).then(&["intent.accepted web", "instance.reloading web/0"]);
    let told = Input::SignalDelivered {
        intent: intent(1),
        instance: id("web"),
        delivery: Delivery::Delivered,
    };
    site.tell(told.clone()).then_outcome(1, true);

    by_signal.reload.by = ReloadBy::Notify(Signal::HUP);
    let mut site = Site::running(by_signal.clone());
    site.wish(reload()).tell(told).then_nothing();
    site.ready("web", 1)
        .then(&["instance.reloaded web/0", "intent.executed web"])
        .then_outcome(1, true);

    let mut site = Site::running(by_signal);
    site.wish(reload()).pass("web").then_failed(1, Code::ACTION_FAILED);
    assert!(site.state("web").is_ready());
}

#[test]
fn an_action_runs_ends_and_is_answered_once() {
    let mut site = Site::running(clearing(false));
    site.wish(clear(&[("zone", "1")])).then(&["intent.accepted web"]);
    assert!(site.acts(true).iter().any(|act| matches!(act, Act::StartAction { .. })));
    site.tell(Input::ActionStarted { intent: intent(1) }).then(&["action.started web"]);
    let end = Input::ActionEnded {
        intent: intent(1),
        end: ActionEnd::Exited { exit: Exit::Code(3), ran_ms: 9 },
    };
    site.tell(end.clone()).then(&["action.ended web", "intent.executed web"]);
    site.then_failed(1, Code::ACTION_FAILED).tell(end).then_nothing();
}

#[test]
fn an_action_that_was_lost_is_repeated_only_when_it_may_be() {
    let lost = Input::ActionEnded { intent: intent(1), end: ActionEnd::Lost };
    let mut site = Site::running(clearing(true));
    site.wish(clear(&[("zone", "1")])).tell(lost.clone()).then_nothing();
    assert!(site.acts(true).iter().any(|act| matches!(act, Act::StartAction { .. })));
    let mut site = Site::running(clearing(false));
    site.wish(clear(&[("zone", "1")])).tell(lost);
    assert!(matches!(site.outcome(1), Some(Outcome::Unknown { .. })));
}

#[test]
fn a_wish_without_an_outcome_in_its_time_is_answered() {
    let mut late = spec();
    late.ready.by = ReadyBy::Notify;
    let mut site = Site::with(&[("web", late)]);
    site.wish(start()).pass_intent(1).then_failed(1, Code::NOT_READY);
}

#[test]
fn a_shutdown_stops_dependents_first_and_leaves_what_is_wanted_as_it_is() {
    let mut web = spec();
    web.depends_on.insert(service("db"), spec::DependsOn::default());
    let mut site = Site::with(&[("db", spec()), ("web", web)]);
    site.start("db", 1).start("web", 1);
    site.wish(Action::Shutdown { leave_running: false });
    site.then(&["intent.accepted", "agent.stopping", "instance.stopping web/0"]);
    assert!(matches!(refused(&mut site, start()), Rejection::Ending));
    site.exit("web", 1, TERMINATED, 5);
    assert_eq!(site.signals(), [("db/0".to_owned(), 15)]);
    site.exit("db", 1, TERMINATED, 5).then_outcome(1, true);
    assert!(site.stops_agent());
    assert_eq!(site.node.services()[&service("web")].desired, Desired::Running);
}

#[test]
fn a_node_that_goes_down_answers_its_actions_before_its_own_bus_goes() {
    let mut site = Site::with(&[("nats", spec()), ("web", clearing(false))]);
    site.bus = Some(service("nats"));
    site.start("nats", 1).start("web", 1);
    site.wish(clear(&[("zone", "1")])).tell(Input::ActionStarted { intent: intent(1) });
    site.wish(Action::Shutdown { leave_running: false });
    assert_eq!(site.signals(), [("web/0".to_owned(), 15)]);
    site.exit("web", 1, TERMINATED, 5);
    assert!(site.signals().is_empty() && !site.stops_agent());
    assert!(site.acts(false).contains(&&Act::KillAction { intent: intent(1) }));
    let end = ActionEnd::Exited { exit: Exit::Signal { signal: 9, core_dumped: false }, ran_ms: 5 };
    site.tell(Input::ActionEnded { intent: intent(1), end }).then_failed(1, Code::ACTION_FAILED);
    let promised = site.acts(true);
    let place = |wanted: fn(&Act) -> bool| promised.iter().position(|act| wanted(act)).unwrap();
    let answer = place(|act| matches!(act, Act::Answer { .. }));
    let stop = place(|act| matches!(act, Act::Signal { .. }));
    assert!(answer < stop, "{promised:?}");
    site.exit("nats", 1, TERMINATED, 5).then_outcome(2, true);
    assert!(site.stops_agent());
}

#[test]
fn a_shutdown_that_leaves_services_running_touches_none() {
    let mut site = Site::running(spec());
    site.tell(Input::Shutdown { leave_running: true }).then(&["agent.stopping"]);
    assert!(site.stops_agent() && site.signals().is_empty());
}

#[test]
fn an_apply_ends_when_the_files_were_read() {
    let mut site = Site::running(spec());
    site.wish(Action::Apply { services: Vec::new() });
    assert!(site.acts(true).iter().any(|act| matches!(act, Act::LoadSpecs { .. })));
    site.tell(Input::Applied { intent: intent(1), failed: None }).then_outcome(1, false);
}

#[test]
fn one_who_wishes_without_end_leaves_room_for_local_root() {
    let mut site = Site::with(&[("web", clearing(false))]);
    site.start("web", 1);
    let mut number = 0_u16;
    let mut next = |site: &mut Site, action: Action, kind: ActorKind| {
        number += 1;
        let mut wish = site.wish_of(1, action);
        wish.id.0[..2].copy_from_slice(&number.to_be_bytes());
        wish.by.kind = kind;
        wish
    };
    let busy = (0..=OPEN_MAX).find_map(|_| {
        let wish = next(&mut site, clear(&[("zone", "1")]), ActorKind::Human);
        site.try_tell(Input::Wish(wish)).err()
    });
    assert_eq!(busy, Some(Rejection::Busy));
    let wish = next(&mut site, stop(), ActorKind::Local);
    site.try_tell(Input::Wish(wish)).expect("local root is heard");
    assert!(matches!(site.state("web"), State::Stopping { .. }));
    // Its room has an end as well.
    let busy = (0..=OPEN_MAX).find_map(|_| {
        let wish = next(&mut site, clear(&[("zone", "1")]), ActorKind::Local);
        site.try_tell(Input::Wish(wish)).err()
    });
    assert_eq!(busy, Some(Rejection::Busy));
}
