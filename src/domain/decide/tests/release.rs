//! Releases: taken up, judged, and left again.

use std::sync::Arc;

use super::site::*;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Effect, Reply, Timer};
use crate::domain::event::{Event, Exit, Outcome};
use crate::domain::id::{Digest, Generation};
use crate::domain::input::{Input, OrderMark, StagedRelease};
use crate::domain::intent::Action;
use crate::domain::rejection::Rejection;
use crate::domain::release::trial::Trial;
use crate::domain::release::{ReleaseId, Step};
use crate::domain::spec::Spec;
use crate::domain::time::UnixMicros;

pub(super) const HEALTHY_MS: u64 = 10_000;

pub(super) fn deploy(generation: u64, release: &str) -> Action {
    Action::Deploy {
        service: service("web"),
        generation: Generation(generation),
        release: release.as_bytes().to_vec(),
        back_to: None,
        emergency: None,
        retry: None,
        on_conflict: None,
        rollback: false,
    }
}

fn staged(site: &mut Site, generation: u64, digest: u8) {
    staged_as(site, generation, digest, spec());
}

pub(super) fn staged_as(site: &mut Site, generation: u64, digest: u8, spec: Spec) {
    site.specs.insert(service("web"), Arc::new(spec));
    site.tell(Input::Staged {
        service: service("web"),
        generation: Generation(generation),
        staged: Ok(StagedRelease {
            version: format!("v{digest}"),
            digest: Digest([digest; 32]),
            origin: "release".to_owned(),
            artifact: None,
            tree: None,
            bytes: 0,
        }),
    });
}

/// Lets the running process be replaced by the next one.
pub(super) fn replaced(site: &mut Site, run: u64) {
    if run > 1 {
        site.exit("web", run - 1, Exit::Signal { signal: 15, core_dumped: false }, 100);
    }
    site.start("web", run);
}

pub(super) fn trial(site: &Site) -> &Trial {
    site.node.releases()[&service("web")].trial.as_ref().unwrap()
}

/// Lets the next deadline of the release pass; returns since when what is to be proved has been well.
pub(super) fn in_time(site: &mut Site) -> Option<UnixMicros> {
    let at = trial(site).deadline().unwrap();
    site.tell(Input::Timer { timer: Timer::Release(service("web")), at });
    site.last.effects.iter().find_map(|effect| match effect.act() {
        Act::ProveRelease { since, .. } => Some(*since),
        _ => None,
    })
}

pub(super) fn read(site: &mut Site, generation: u64, since: UnixMicros) {
    let (service, generation) = (service("web"), Generation(generation));
    site.tell(Input::Proved { service, generation, since, running: Ok(Some(Digest([7; 32]))) });
}

fn proved(site: &mut Site, generation: u64) {
    site.later(HEALTHY_MS);
    let since = in_time(site).expect("it was well for long enough");
    read(site, generation, since);
}

#[test]
fn complaint_12_a_release_whose_process_runs_another_program_has_failed_however_healthy_it_is() {
    let mut site = with_a();
    site.wish(deploy(3, "b"));
    staged(&mut site, 3, 12);
    replaced(&mut site, 2);
    site.later(HEALTHY_MS);
    let since = in_time(&mut site).expect("it was well for long enough");
    let why = "it runs bin/web of another release".to_owned();
    let (web, generation) = (service("web"), Generation(3));
    site.tell(Input::Proved { service: web, generation, since, running: Err(why.clone()) });
    let failed = site.last.events.iter().find_map(|(_, event)| match event {
        Event::ReleaseFailed(body) => Some(body.clone()),
        _ => None,
    });
    let failed = failed.expect("it failed");
    assert_eq!((failed.code, failed.why), (Code::WRONG_PROGRAM.to_string(), why));
    assert!(failed.returns);
    assert_eq!(asks_to_stage(&site), Some((Step::Return, Some(ReleaseId::of(b"a")))));
    assert_eq!(
        trial(&site).failure.as_ref().map(|it| it.why.as_str()),
        Some("it runs bin/web of another release")
    );
}

/// A node on which release `a`, of generation 1, is good in run 1.
pub(super) fn with_a() -> Site {
    let mut site = Site::empty();
    site.wish(deploy(1, "a"));
    staged(&mut site, 1, 11);
    replaced(&mut site, 1);
    proved(&mut site, 1);
    site
}

fn current(site: &Site) -> Option<ReleaseId> {
    site.node.releases()[&service("web")].current.as_ref().map(|mark| mark.release)
}

pub(super) fn outcome(site: &Site) -> Option<Outcome> {
    site.last.effects.iter().find_map(|effect| match effect.act() {
        Act::Answer { reply: Reply::Outcome(outcome), .. } => Some(outcome.clone()),
        _ => None,
    })
}

pub(super) fn asks_to_stage(site: &Site) -> Option<(Step, Option<ReleaseId>)> {
    site.last.effects.iter().find_map(|effect| match effect {
        Effect::Promise(Act::Stage { step, release, .. }) => Some((*step, *release)),
        _ => None,
    })
}

fn refusal(site: &mut Site, number: u8, action: Action) -> Rejection {
    let wish = site.wish_of(number, action);
    site.try_tell(Input::Wish(wish)).err().expect("it is refused")
}

#[test]
fn a_release_is_good_after_its_time_and_the_facts_leave_its_manifest_out() {
    let mut site = Site::empty();
    site.wish(deploy(1, "a"));
    assert_eq!(asks_to_stage(&site), Some((Step::Apply, Some(ReleaseId::of(b"a")))));
    let accepted = site.last.events.iter().find_map(|(_, event)| match event {
        Event::IntentAccepted(body) => Some(body.clone()),
        _ => None,
    });
    assert_eq!(accepted.unwrap().action, deploy(1, ""));
    staged(&mut site, 1, 11);
    replaced(&mut site, 1);
    let other = UnixMicros(site.now.0 - 1);
    read(&mut site, 1, other);
    assert!(outcome(&site).is_none(), "that was before it was well");
    proved(&mut site, 1);
    assert_eq!(outcome(&site), Some(Outcome::Done { changed: true }));
    assert_eq!(current(&site), Some(ReleaseId::of(b"a")));
}

#[test]
fn a_clock_that_is_set_neither_ends_a_trial_nor_holds_it_up() {
    const YEARS_MS: u64 = 56 * 365 * 24 * 3_600_000;
    for (set, is_well) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut site = Site::empty();
        site.later(YEARS_MS);
        site.wish(deploy(1, "a"));
        staged(&mut site, 1, 11);
        if is_well {
            replaced(&mut site, 1);
        }
        // Up, as by the first answer of a time server; or back to the beginning, as without a battery.
        site.now = UnixMicros(if set { site.now.0 * 2 } else { 0 });
        read(&mut site, 1, UnixMicros(1));
        assert!(outcome(&site).is_none() && trial(&site).failure.is_none(), "set {set}");
        if !is_well {
            replaced(&mut site, 1);
            assert!(trial(&site).failure.is_none(), "set {set}");
        }
        let since = in_time(&mut site).expect("it was well in its time");
        read(&mut site, 1, since);
        assert_eq!(outcome(&site), Some(Outcome::Done { changed: true }));
    }
}

#[test]
fn what_was_on_trial_before_the_machine_was_off_for_weeks_has_its_whole_time_again() {
    let mut site = with_a();
    site.wish(deploy(2, "b"));
    staged(&mut site, 2, 12);
    replaced(&mut site, 2);
    site.later(45 * 24 * 3_600_000);
    let mut met = kept(2, true, Vec::new());
    met.keeper.boot = crate::domain::id::BootId([9; 16]);
    site.tell(Input::Reconcile(met));
    assert!(trial(&site).failure.is_none(), "{:?}", site.events());
    let timer = site.last.effects.iter().find_map(|effect| match effect.act() {
        Act::SetTimer { timer: Timer::Release(_), after_ms, .. } => Some(*after_ms),
        _ => None,
    });
    let trying = trial(&site).trying.clone().unwrap();
    assert_eq!(timer, Some(trying.healthy_by.ms_since(trying.since)));
    let (run, _) = site.spawned("web").expect("it is wanted");
    site.start("web", run);
    proved(&mut site, 2);
    assert_eq!(current(&site), Some(ReleaseId::of(b"b")));
    assert_eq!(outcome(&site), Some(Outcome::Done { changed: true }));
}

#[test]
fn one_that_ends_before_it_is_good_is_left_for_the_last_good_one() {
    let mut site = with_a();
    site.wish(deploy(2, "b"));
    staged(&mut site, 2, 12);
    replaced(&mut site, 2);
    site.exit("web", 2, Exit::Code(1), 300);
    assert!(site.events().contains(&"release.failed web".to_owned()), "{:?}", site.events());
    assert_eq!(asks_to_stage(&site), Some((Step::Return, Some(ReleaseId::of(b"a")))));
    assert_eq!(refusal(&mut site, 90, deploy(2, "b")), Rejection::StaleGeneration);
    assert_eq!(refusal(&mut site, 91, deploy(3, "c")), Rejection::StaleGeneration);

    staged(&mut site, 3, 11);
    let run = site.at("web").last_run.0;
    if site.state("web").main().is_none() {
        site.start("web", run);
    }
    assert_eq!(current(&site), Some(ReleaseId::of(b"a")));
    let Some(Outcome::Failed { code, exit, .. }) = outcome(&site) else {
        panic!("{:?} {:?}", site.events(), site.state("web"))
    };
    assert_eq!((code, exit), (Code::RELEASE_RETURNED.to_string(), Some(Exit::Code(1))));
}

#[test]
fn a_return_that_fails_is_told_and_the_node_goes_on_trying_what_ran_before() {
    let mut site = with_a();
    site.wish(deploy(2, "b"));
    staged(&mut site, 2, 12);
    replaced(&mut site, 2);
    site.exit("web", 2, Exit::Code(1), 300);
    staged(&mut site, 3, 11);
    let (instance, run) = (id("web"), site.at("web").last_run);
    let (step, why) = ("exec".to_owned(), "no such file".to_owned());
    site.tell(Input::StartFailed { instance, run, step, errno: 2, why });
    let failed = site.last.events.iter().find_map(|(_, event)| match event {
        Event::ReleaseFailed(body) => Some((body.step, body.returns, body.code.clone())),
        _ => None,
    });
    assert_eq!(failed, Some((Step::Return, false, Code::RETURN_FAILED.to_string())));
    let Some(Outcome::Failed { code, .. }) = outcome(&site) else { panic!("{:?}", site.events()) };
    assert_eq!(code, Code::RETURN_FAILED.to_string());
    // No trial any more, and no wish: the ordinary machinery brings it up once it can.
    assert!(site.node.releases()[&service("web")].trial.is_none());
    site.pass("web").then(&["instance.starting web/0"]);
    let (run, _) = site.spawned("web/0").expect("it is tried again");
    site.start("web", run);
    assert!(site.state("web").main().is_some());
    assert_eq!(current(&site), Some(ReleaseId::of(b"a")));
}

#[test]
fn a_return_whose_files_are_gone_is_told_as_one_that_failed() {
    let mut site = with_a();
    site.wish(deploy(2, "b"));
    staged(&mut site, 2, 12);
    replaced(&mut site, 2);
    site.exit("web", 2, Exit::Code(1), 300);
    let gone = (Code::RELEASE_GONE, "the manifest is not here".to_owned());
    let (service, generation) = (service("web"), Generation(3));
    site.tell(Input::Staged { service, generation, staged: Err(gone) });
    let Some(Outcome::Failed { code, why, .. }) = outcome(&site) else {
        panic!("{:?}", site.events())
    };
    assert_eq!(code, Code::RETURN_FAILED.to_string());
    assert!(why.contains("is not here"), "{why}");
}

#[test]
fn the_first_release_has_nothing_to_return_to() {
    let mut site = Site::empty();
    site.wish(deploy(1, "a"));
    staged(&mut site, 1, 11);
    replaced(&mut site, 1);
    site.exit("web", 1, Exit::Code(1), 300);
    let Some(Outcome::Failed { code, .. }) = outcome(&site) else { panic!("{:?}", site.events()) };
    assert_eq!(code, Code::NO_WAY_BACK.to_string());
}

#[test]
fn a_newer_release_takes_the_place_of_one_on_its_way_and_an_older_one_is_refused() {
    let mut site = with_a();
    site.wish(deploy(5, "b"));
    site.wish(deploy(6, "c"));
    let Some(Outcome::Failed { code, .. }) = outcome(&site) else { panic!("{:?}", site.events()) };
    assert_eq!(code, Code::SUPERSEDED.to_string());
    // What was fetched for the older one changes nothing any more.
    staged(&mut site, 5, 12);
    assert!(site.last.events.is_empty());
    assert_eq!(refusal(&mut site, 90, deploy(4, "d")), Rejection::StaleGeneration);
}

#[test]
fn what_runs_already_is_found_good_at_once() {
    let mut site = with_a();
    let before = site.state("web").clone();
    site.wish(deploy(2, "a"));
    staged(&mut site, 2, 11);
    proved(&mut site, 2);
    assert_eq!(outcome(&site), Some(Outcome::Done { changed: false }));
    assert_eq!(*site.state("web"), before);
}

#[test]
fn a_new_agent_asks_again_for_what_is_on_its_way() {
    let mut site = with_a();
    site.wish(deploy(2, "b"));
    let run = kept_run("web", 1, None);
    site.tell(Input::Reconcile(kept(1, true, vec![run])));
    assert_eq!(asks_to_stage(&site), Some((Step::Apply, Some(ReleaseId::of(b"b")))));
}

#[test]
fn orders_of_one_wish_follow_one_plan_and_the_highest_term() {
    let mark = |step, plan: u8, term, controller: &str| OrderMark {
        step,
        plan: Digest([plan; 32]),
        term,
        controller: controller.parse().unwrap(),
        verified_at: Default::default(),
        wave: 1,
        is_unproved: false,
    };
    let mut site = with_a();
    let order = |site: &mut Site, mark: OrderMark| {
        let wish = site.wish_of(50, deploy(10, "b"));
        let wish = crate::domain::input::Wish { order: Some(mark), ..wish };
        site.try_tell(Input::Wish(wish)).map(|_| ()).err()
    };
    assert_eq!(order(&mut site, mark(Step::Apply, 1, 3, "c1")), None);
    for (what, mark, expected) in [
        ("a lower term", mark(Step::Apply, 1, 2, "c1"), Rejection::StaleTerm { term: 2, seen: 3 }),
        (
            "the same term of another",
            mark(Step::Apply, 1, 3, "c2"),
            Rejection::ForkedTerm { term: 3, leads: "c1".parse().unwrap() },
        ),
        ("another plan", mark(Step::Apply, 2, 3, "c1"), Rejection::AnotherPlan),
    ] {
        assert_eq!(order(&mut site, mark), Some(expected), "{what}");
    }
    // The next leader goes on with the same plan.
    assert_eq!(order(&mut site, mark(Step::Apply, 1, 4, "c2")), None);
    assert_eq!(site.node.head().term, Some((4, "c2".parse().unwrap())));
    assert_eq!(order(&mut site, mark(Step::Return, 1, 4, "c2")), None);
    assert_eq!(order(&mut site, mark(Step::Return, 1, 4, "c2")), None, "a repeat");
    assert_eq!(order(&mut site, mark(Step::Apply, 1, 4, "c2")), Some(Rejection::Returned));
    assert_eq!(current(&site), Some(ReleaseId::of(b"a")));
}

#[test]
fn a_release_that_no_node_proved_is_taken_only_where_nothing_of_the_service_ever_was() {
    let order = |site: &mut Site, number: u8, generation: u64| {
        let wish = site.wish_of(number, deploy(generation, "b"));
        let mark = OrderMark {
            step: Step::Apply,
            plan: Digest([1; 32]),
            term: 1,
            controller: "c1".parse().unwrap(),
            verified_at: Default::default(),
            wave: 1,
            is_unproved: true,
        };
        let wish = crate::domain::input::Wish { order: Some(mark), ..wish };
        site.try_tell(Input::Wish(wish)).map(|_| ()).err()
    };
    let refused = Some(Rejection::Unproved(service("web")));
    let mut site = with_a();
    assert_eq!(order(&mut site, 50, 10), refused, "it runs another release");
    let mut site = Site::with(&[("web", spec())]);
    assert_eq!(order(&mut site, 50, 10), refused, "it runs from files of the node");
    let mut site = Site::empty();
    assert_eq!(order(&mut site, 50, 10), None);
    assert_eq!(asks_to_stage(&site), Some((Step::Apply, Some(ReleaseId::of(b"b")))));
    assert_eq!(order(&mut site, 50, 10), None, "a repeat is answered, whatever runs meanwhile");
    assert_eq!(order(&mut site, 51, 11), refused, "from here on it has the service");
}

#[test]
fn an_ordered_return_brings_back_what_was_good_before() {
    let mut site = with_a();
    site.wish(deploy(10, "b"));
    staged(&mut site, 10, 12);
    replaced(&mut site, 2);
    proved(&mut site, 10);
    assert_eq!(current(&site), Some(ReleaseId::of(b"b")));
    let wish = site.wish_of(2, deploy(10, "b"));
    let mark = OrderMark {
        step: Step::Return,
        plan: Digest([1; 32]),
        term: 1,
        controller: "c1".parse().unwrap(),
        verified_at: site.now,
        wave: 1,
        is_unproved: false,
    };
    site.tell(Input::Wish(crate::domain::input::Wish { order: Some(mark), ..wish }));
    assert_eq!(asks_to_stage(&site), Some((Step::Return, Some(ReleaseId::of(b"a")))));
    staged(&mut site, 11, 11);
    replaced(&mut site, 3);
    assert!(site.events().contains(&"release.returned web".to_owned()), "{:?}", site.events());
    assert_eq!(current(&site), Some(ReleaseId::of(b"a")));
}

#[test]
fn the_return_of_a_removal_is_taken_once_and_no_apply_after_it() {
    let mut site = with_a();
    let order = |site: &mut Site, step| {
        let action = Action::Remove { service: service("web"), generation: Generation(10) };
        let wish = site.wish_of(50, action);
        let mark = OrderMark {
            step,
            plan: Digest([1; 32]),
            term: 1,
            controller: "c1".parse().unwrap(),
            verified_at: Default::default(),
            wave: 1,
            is_unproved: false,
        };
        let wish = crate::domain::input::Wish { order: Some(mark), ..wish };
        site.try_tell(Input::Wish(wish)).map(|_| ()).err()
    };
    assert_eq!(order(&mut site, Step::Return), None);
    assert_eq!(site.events(), ["order.accepted web"]);
    assert_eq!(order(&mut site, Step::Return), None);
    assert!(site.events().is_empty(), "a repeat: {:?}", site.events());
    assert_eq!(order(&mut site, Step::Apply), Some(Rejection::Returned));
}

#[test]
fn what_is_folded_of_releases_outlives_a_baseline() {
    let mut site = with_a();
    site.wish(deploy(2, "b"));
    let mut restored = crate::domain::node::Node::default();
    site.node.parts().into_iter().for_each(|part| restored.restore(part));
    assert_eq!(restored, site.node);
}

#[test]
fn a_service_is_taken_from_a_node_that_is_not_meant_and_brought_back_when_it_is_again() {
    let mark = |step| OrderMark {
        step,
        plan: Digest([1; 32]),
        term: 3,
        controller: "c1".parse().unwrap(),
        verified_at: Default::default(),
        wave: 2,
        is_unproved: false,
    };
    let mut site = with_a();
    let order = |site: &mut Site, step, generation: u64, release: &str| {
        let number = u8::try_from(40 + generation).unwrap();
        let wish = site.wish_of(number, deploy(generation, release));
        let wish = crate::domain::input::Wish { order: Some(mark(step)), ..wish };
        site.try_tell(Input::Wish(wish)).map(|_| ()).err()
    };
    assert_eq!(order(&mut site, Step::Apply, 4, "b"), None);
    staged(&mut site, 4, 12);
    replaced(&mut site, 2);
    proved(&mut site, 4);
    assert_eq!(current(&site), Some(ReleaseId::of(b"b")));

    assert_eq!(order(&mut site, Step::Leave, 1, "a"), Some(Rejection::StaleGeneration));
    assert_eq!(order(&mut site, Step::Leave, 4, "b"), None);
    assert!(site.events().contains(&"service.removed web".to_owned()), "{:?}", site.events());
    site.exit("web", 2, Exit::Signal { signal: 15, core_dumped: false }, 100);
    assert!(!site.node.services().contains_key(&service("web")) && current(&site).is_none());
    assert_eq!(order(&mut site, Step::Leave, 4, "b"), None);
    assert!(site.last.events.is_empty(), "a repeat is no news: {:?}", site.events());
    // Whoever repeats the wish itself brings nothing back.
    let repeat = site.wish_of(44, deploy(4, "b"));
    site.try_tell(Input::Wish(repeat)).unwrap();
    assert!(site.last.events.is_empty(), "{:?}", site.events());

    assert_eq!(order(&mut site, Step::Apply, 4, "b"), None);
    assert_eq!(asks_to_stage(&site), Some((Step::Apply, Some(ReleaseId::of(b"b")))));
    assert_eq!(order(&mut site, Step::Apply, 4, "b"), None);
    assert!(site.last.events.is_empty(), "once: {:?}", site.events());
}

#[test]
fn a_release_on_its_way_ends_where_the_node_is_not_meant_any_more() {
    let mut site = with_a();
    let wish = |site: &mut Site, step| {
        let wish = site.wish_of(50, deploy(4, "b"));
        let mark = OrderMark {
            step,
            plan: Digest([1; 32]),
            term: 3,
            controller: "c1".parse().unwrap(),
            verified_at: Default::default(),
            wave: 2,
            is_unproved: false,
        };
        Input::Wish(crate::domain::input::Wish { order: Some(mark), ..wish })
    };
    let apply = wish(&mut site, Step::Apply);
    site.tell(apply);
    let leave = wish(&mut site, Step::Leave);
    site.tell(leave);
    let Some(Outcome::Failed { code, .. }) = outcome(&site) else { panic!("{:?}", site.events()) };
    assert_eq!(code, Code::SUPERSEDED.to_string());
    staged(&mut site, 4, 12);
    assert!(site.last.events.is_empty(), "what was fetched changes nothing: {:?}", site.events());
}
