//! Actions after a deploy: part of the trial of a release, on the node that has it.

use super::release::{HEALTHY_MS, asks_to_stage, deploy, in_time, outcome, read, replaced, trial};
use super::release::{staged_as, with_a};
use super::site::*;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Timer};
use crate::domain::event::{Context, Event, Exit, Outcome};
use crate::domain::id::IntentId;
use crate::domain::input::{ActionEnd, Input, Kept, KeptAction};
use crate::domain::node::Node;
use crate::domain::release::{ReleaseFailed, Step};
use crate::domain::spec::{Action, DependsOn, Spec};

fn acts(names: &[&str], idempotent: bool) -> Spec {
    let mut spec = spec();
    for name in names {
        let action = Action { after_deploy: true, idempotent, ..Action::new(Vec::new()) };
        spec.action.insert(name.parse().unwrap(), action);
    }
    spec
}

/// A node on which `a` is good and `b`, of generation 2, was healthy for long enough in run 2.
fn healthy(names: &[&str], idempotent: bool) -> Site {
    let mut site = with_a();
    site.wish(deploy(2, "b"));
    staged_as(&mut site, 2, 12, acts(names, idempotent));
    replaced(&mut site, 2);
    site.later(HEALTHY_MS);
    goes_on(&mut site);
    site
}

/// Lets the release be looked at.
fn goes_on(site: &mut Site) {
    let since = in_time(site).expect("it was well for long enough");
    read(site, 2, since);
}

/// Returns the action that the keeper is asked for, and under which id.
fn asked(site: &Site) -> Option<(String, IntentId)> {
    site.acts(true).iter().find_map(|act| match act {
        Act::StartAction { intent, action, .. } => Some((action.to_string(), *intent)),
        _ => None,
    })
}

fn ends(site: &mut Site, intent: IntentId, exit: Exit) {
    site.tell(Input::ActionStarted { intent });
    assert!(site.last.events.is_empty(), "it was written down before it was asked for");
    site.tell(Input::ActionEnded { intent, end: ActionEnd::Exited { exit, ran_ms: 20 } });
}

fn failed(site: &Site) -> ReleaseFailed {
    let failed = site.last.events.iter().find_map(|(_, event)| match event {
        Event::ReleaseFailed(body) => Some(body.clone()),
        _ => None,
    });
    failed.unwrap_or_else(|| panic!("{:?}", site.events()))
}

/// A run that nothing ran before is healthy for long enough.
fn replaced_by(site: &mut Site, run: u64) {
    site.start("web", run);
    site.later(HEALTHY_MS);
    goes_on(site);
}

/// An agent meets the keeper of before, or another one.
fn meets(site: &mut Site, incarnation: u64, actions: Vec<KeptAction>) {
    let run = kept_run("web", 2, None);
    site.tell(Input::Reconcile(Kept { actions, ..kept(incarnation, true, vec![run]) }));
}

#[test]
fn a_release_is_good_when_all_that_follows_the_deploy_has_succeeded_one_after_the_other() {
    let mut site = healthy(&["clear", "warm"], false);
    let (first, id) = asked(&site).expect("it is asked for");
    assert_eq!((first.as_str(), site.events()), ("clear", vec!["action.started web".to_owned()]));
    assert_eq!(outcome(&site), None);
    ends(&mut site, id, Exit::Code(0));
    assert_eq!(site.events(), ["action.ended web"]);
    goes_on(&mut site);
    let (second, other) = asked(&site).expect("it is asked for");
    assert!(second == "warm" && other != id, "{second}");
    ends(&mut site, other, Exit::Code(0));
    assert_eq!(outcome(&site), None);
    goes_on(&mut site);
    assert!(site.events().contains(&"release.healthy web".to_owned()), "{:?}", site.events());
    assert_eq!(outcome(&site), Some(Outcome::Done { changed: true }));
}

#[test]
fn what_follows_a_deploy_and_fails_takes_the_release_back_and_does_not_follow_the_way_back() {
    let mut site = healthy(&["warm"], false);
    let (_, id) = asked(&site).unwrap();
    ends(&mut site, id, Exit::Code(3));
    let body = failed(&site);
    assert_eq!(body.code, Code::ACTION_FAILED.to_string());
    assert_eq!(body.why, "action warm: it ran and failed");
    assert_eq!((body.exit, body.ran_ms), (Some(Exit::Code(3)), Some(20)));
    assert_eq!(body.instance, Some(super::site::id("web")), "its lines are in the log of that one");
    assert_eq!(asks_to_stage(&site).map(|(step, _)| step), Some(Step::Return));
    staged_as(&mut site, 3, 11, acts(&["warm"], false));
    replaced(&mut site, 3);
    assert!(site.events().contains(&"release.returned web".to_owned()), "{:?}", site.events());
    assert!(
        !site
            .log
            .iter()
            .skip_while(|(.., it)| !matches!(it, Event::ReleaseFailed(_)))
            .any(|(.., it)| matches!(it, Event::ActionStarted(_)))
    );
    let Some(Outcome::Failed { code, exit, .. }) = outcome(&site) else { panic!() };
    assert_eq!((code, exit), (Code::RELEASE_RETURNED.to_string(), Some(Exit::Code(3))));
}

#[test]
fn a_release_that_breaks_while_an_action_runs_has_failed_and_the_end_of_that_is_no_news() {
    let mut site = healthy(&["warm"], false);
    let (_, id) = asked(&site).unwrap();
    assert!(site.node.awaits_action(&id));
    site.exit("web", 2, Exit::Code(9), 300);
    assert_eq!(failed(&site).exit, Some(Exit::Code(9)));
    assert!(!site.node.awaits_action(&id), "so it is killed");
    let end = ActionEnd::Exited { exit: Exit::Code(0), ran_ms: 5 };
    site.tell(Input::ActionEnded { intent: id, end });
    assert!(site.last.events.is_empty(), "{:?}", site.events());
    assert!(site.acts(true).iter().any(|act| matches!(act, Act::AcknowledgeAction { .. })));
}

#[test]
fn an_action_is_killed_at_its_deadline_and_has_no_longer_than_the_release() {
    let mut site = healthy(&["warm"], false);
    let (_, id) = asked(&site).unwrap();
    let at = trial(&site).trying.as_ref().unwrap().acts_until.unwrap();
    site.tell(Input::Timer { timer: Timer::Action(id), at });
    let kills = |act: &&Act| matches!(act, Act::KillAction { intent } if *intent == id);
    assert!(site.acts(false).iter().any(kills), "{:?}", site.last.effects);
    assert_eq!(in_time(&mut site), None);
    assert_eq!(failed(&site).why, "action warm: it was not over in the time that the release had");
}

#[test]
fn the_deadline_of_one_release_is_none_of_another() {
    let mut site = healthy(&["warm"], false);
    let late = trial(&site).trying.as_ref().unwrap().healthy_by.plus_ms(1);
    let timer = Timer::Release(service("db"));
    site.tell(Input::Timer { timer, at: late }).then_nothing();
    assert!(trial(&site).acting().is_some());

    let mut site = with_a();
    site.wish(deploy(2, "b"));
    staged_as(&mut site, 2, 12, spec());
    let timer = Timer::Release(service("db"));
    site.tell(Input::Timer { timer, at: trial(&site).deadline().unwrap() }).then_nothing();
    replaced(&mut site, 2);
    let timer = Timer::Release(service("db"));
    site.tell(Input::Timer { timer, at: late });
    let proves = |act: &&Act| matches!(act, Act::ProveRelease { .. });
    assert!(!site.acts(false).iter().any(proves), "{:?}", site.last.effects);
}

#[test]
fn an_action_of_a_release_that_was_healthy_too_late_by_a_clock_that_was_set_has_no_deadline() {
    let mut site = with_a();
    site.wish(deploy(2, "b"));
    staged_as(&mut site, 2, 12, acts(&["warm"], false));
    let healthy_by = trial(&site).trying.as_ref().unwrap().healthy_by;
    site.now = healthy_by.plus_ms(1);
    replaced(&mut site, 2);
    goes_on(&mut site);
    assert!(trial(&site).acting().is_some() && trial(&site).deadline().is_none());
    site.tell(Input::Timer { timer: Timer::Release(service("web")), at: healthy_by });
    site.then_nothing();
}

#[test]
fn a_node_that_goes_down_says_nothing_against_the_release_whose_action_it_ends() {
    let killed = Exit::Signal { signal: 9, core_dumped: false };
    let goes_down = |idempotent| {
        let mut site = healthy(&["warm"], idempotent);
        let (_, id) = asked(&site).unwrap();
        site.tell(Input::Shutdown { leave_running: false });
        site.exit("web", 2, Exit::Signal { signal: 15, core_dumped: false }, 50);
        let kills = |act: &&Act| matches!(act, Act::KillAction { intent } if *intent == id);
        assert!(site.acts(false).iter().any(kills), "{:?}", site.last.effects);
        assert!(!site.stops_agent(), "it is to be told how the action ended");
        (site, id)
    };

    let (mut site, id) = goes_down(true);
    ends(&mut site, id, killed);
    assert_eq!(site.events(), ["action.ended web"]);
    assert!(site.stops_agent() && trial(&site).failure.is_none());
    site.append(Context::default(), Event::AgentStarted(keeper(2)));
    site.tell(Input::Reconcile(kept(2, true, Vec::new())));
    replaced_by(&mut site, 3);
    assert_eq!(asked(&site), Some(("warm".to_owned(), id)), "it begins anew");

    let (mut site, id) = goes_down(true);
    ends(&mut site, id, Exit::Code(0));
    assert!(trial(&site).next_action().is_none(), "what has succeeded is not done again");

    let (mut site, id) = goes_down(false);
    ends(&mut site, id, killed);
    assert_eq!(failed(&site).why, "action warm: it may have run: agent or keeper died with it");
}

#[test]
fn no_action_begins_while_the_node_goes_down() {
    let mut site = healthy(&["warm"], true);
    let (_, id) = asked(&site).unwrap();
    let mut shop = spec();
    shop.depends_on.insert(service("web"), DependsOn::default());
    site.adopt("shop", shop, 9);
    site.start("shop", 1);
    site.tell(Input::Shutdown { leave_running: false })
        .then(&["agent.stopping", "instance.stopping shop/0"]);
    ends(&mut site, id, Exit::Code(1));
    goes_on(&mut site);
    assert_eq!((asked(&site), site.events()), (None, Vec::new()));
}

#[test]
fn an_agent_that_comes_back_takes_in_what_became_of_the_action_and_asks_for_it_once() {
    let mut site = healthy(&["warm"], false);
    let (_, id) = asked(&site).unwrap();
    // The keeper had not heard of it; then it runs; then it is over.
    meets(&mut site, 1, Vec::new());
    assert_eq!(asked(&site), Some(("warm".to_owned(), id)));
    meets(&mut site, 1, vec![KeptAction { intent: id, ended: None }]);
    assert_eq!((asked(&site), site.events()), (None, vec!["instance.adopted web/0".to_owned()]));
    let mut restored = Node::default();
    site.node.parts().into_iter().for_each(|part| restored.restore(part));
    assert_eq!(restored, site.node);
    meets(&mut site, 1, vec![KeptAction { intent: id, ended: Some((Exit::Code(0), 7)) }]);
    assert!(site.events().contains(&"action.ended web".to_owned()), "{:?}", site.events());
    goes_on(&mut site);
    assert_eq!(outcome(&site), Some(Outcome::Done { changed: true }));
}

#[test]
fn what_another_keeper_may_have_begun_is_begun_again_only_where_that_is_harmless() {
    let mut site = healthy(&["warm"], false);
    meets(&mut site, 2, Vec::new());
    assert!(asked(&site).is_none(), "{:?}", site.last.effects);
    assert_eq!(failed(&site).why, "action warm: it may have run: agent or keeper died with it");

    let mut site = healthy(&["warm"], true);
    let (_, id) = asked(&site).unwrap();
    meets(&mut site, 2, Vec::new());
    assert!(asked(&site).is_none() && trial(&site).failure.is_none(), "{:?}", site.events());
    goes_on(&mut site);
    assert_eq!(asked(&site), Some(("warm".to_owned(), id)));
}
