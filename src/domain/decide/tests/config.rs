//! What somebody sets of a service: taken once, in force until its end, and ended by the node itself.

use std::collections::{BTreeMap, BTreeSet};

use super::release::deploy;
use super::site::*;
use crate::domain::effect::{Act, Timer};
use crate::domain::id::Generation;
use crate::domain::input::Input;
use crate::domain::intent::Action;
use crate::domain::rejection::Rejection;
use crate::domain::time::UnixMicros;

const HOUR_MS: u64 = 60 * 60 * 1000;

fn set(generation: Option<u64>, key: &str, until: Option<UnixMicros>) -> Action {
    Action::Configure {
        service: service("web"),
        generation: generation.map(Generation),
        set: BTreeMap::from([(key.to_owned(), "secret".to_owned())]),
        unset: BTreeSet::new(),
        until,
        node: false,
    }
}

fn unset(generation: Option<u64>, key: &str) -> Action {
    Action::Configure {
        service: service("web"),
        generation: generation.map(Generation),
        set: BTreeMap::new(),
        unset: BTreeSet::from([key.to_owned()]),
        until: None,
        node: false,
    }
}

/// The same of the node itself.
fn here(mut action: Action) -> Action {
    if let Action::Configure { node, .. } = &mut action {
        *node = true;
    }
    action
}

fn keys(site: &Site) -> Vec<(u8, String)> {
    let known = site.node.overrides().get(&service("web"));
    let all = known.into_iter().flat_map(|known| known.in_force());
    all.map(|(layer, key, _)| (layer.number(), key.clone())).collect()
}

fn loads(site: &Site) -> bool {
    site.last.effects.iter().any(|effect| matches!(effect.act(), Act::LoadSpecs { .. }))
}

fn timer(site: &Site) -> Option<u64> {
    site.last.effects.iter().find_map(|effect| match effect.act() {
        Act::SetTimer { timer: Timer::Override(_), after_ms, .. } => Some(*after_ms),
        _ => None,
    })
}

/// A node with `web`, and `env.A` set for an hour.
fn for_an_hour() -> (Site, UnixMicros) {
    let mut site = Site::running(spec());
    let until = site.now.plus_ms(HOUR_MS);
    site.wish(set(None, "env.A", Some(until)));
    (site, until)
}

#[test]
fn what_is_set_is_loaded_and_the_facts_leave_the_values_out() {
    let mut site = Site::running(spec());
    site.wish(set(Some(1), "env.A", None));
    assert!(loads(&site));
    assert_eq!(keys(&site), [(6, "env.A".to_owned())]);
    assert!(!format!("{:?}", site.last.events).contains("secret"), "{:?}", site.last.events);
    site.wish(unset(Some(3), "env.A"));
    assert!(loads(&site) && keys(&site).is_empty());
    // A wish that comes late changes nothing that a newer one said.
    site.wish(set(Some(2), "env.A", None));
    assert!(keys(&site).is_empty());
}

#[test]
fn what_is_set_for_a_time_ends_at_that_time_and_the_service_goes_on_without_it() {
    let (mut site, until) = for_an_hour();
    assert_eq!((keys(&site), timer(&site)), (vec![(8, "env.A".to_owned())], Some(HOUR_MS)));
    site.now = until;
    site.tell(Input::Timer { timer: Timer::Override(service("web")), at: until });
    assert_eq!(site.events(), ["config.expired web"]);
    assert!(loads(&site) && keys(&site).is_empty());
}

#[test]
fn an_end_that_passed_while_the_node_was_down_is_kept_when_it_is_back() {
    let (mut site, _) = for_an_hour();
    site.later(HOUR_MS - 1);
    let run = kept_run("web", 1, None);
    site.tell(Input::Reconcile(kept(1, true, vec![run.clone()])));
    assert_eq!(timer(&site), Some(1), "the timers of an agent live as long as it");
    site.later(10 * HOUR_MS);
    site.tell(Input::Reconcile(kept(1, true, vec![run])));
    assert_eq!(timer(&site), Some(0));
}

#[test]
fn what_was_set_for_longer_since_does_not_end_with_the_first() {
    let (mut site, until) = for_an_hour();
    site.wish(set(None, "env.A", Some(until.plus_ms(1))));
    site.now = until;
    site.tell(Input::Timer { timer: Timer::Override(service("web")), at: until });
    assert!(site.last.events.is_empty() && keys(&site).len() == 1);
    site.wish(unset(None, "env.A"));
    assert!(keys(&site).is_empty());
}

#[test]
fn what_is_set_of_the_node_itself_has_no_end_and_outlives_the_agent_until_it_is_taken_back() {
    let (mut site, _) = for_an_hour();
    site.wish(here(set(None, "env.A", None)));
    assert!(loads(&site) && timer(&site).is_none());
    assert!(!format!("{:?}", site.last.events).contains("secret"), "{:?}", site.last.events);
    let both = vec![(7, "env.A".to_owned()), (8, "env.A".to_owned())];
    assert_eq!(keys(&site), both);
    assert_eq!((site.replayed(), site.restored()), (site.node.clone(), site.node.clone()));
    // An agent that died before it read the files reads them when it is back.
    site.tell(Input::Reconcile(kept(1, true, vec![kept_run("web", 1, None)])));
    assert!(loads(&site));
    assert_eq!(keys(&site), both);
    site.wish(unset(None, "env.A"));
    assert_eq!(keys(&site), [(7, "env.A".to_owned())], "what is set for a time is another layer");
    site.wish(here(unset(None, "env.A")));
    assert!(loads(&site) && keys(&site).is_empty());
}

#[test]
fn while_a_release_is_on_trial_nothing_is_set() {
    let mut site = Site::running(spec());
    site.wish(deploy(1, "a"));
    for (number, wish) in (60..).zip([set(Some(1), "env.A", None), here(set(None, "env.A", None))])
    {
        let wish = site.wish_of(number, wish);
        let refused = site.try_tell(Input::Wish(wish)).err();
        assert_eq!(refused, Some(Rejection::Busy));
    }
}

#[test]
fn what_cannot_be_set_is_refused() {
    let mut site = Site::running(spec());
    let now = site.now;
    let past = UnixMicros(now.0 - 1);
    let year = now.plus_ms(365 * 24 * HOUR_MS);
    let none = Action::Configure {
        service: service("web"),
        generation: None,
        set: BTreeMap::new(),
        unset: BTreeSet::new(),
        until: None,
        node: false,
    };
    let long = set(None, &"a".repeat(20_000), Some(now.plus_ms(1)));
    let wishes = [
        (set(None, "env.A", None), "until"),
        (set(None, "env.A", Some(past)), "until"),
        (set(None, "env.A", Some(year)), "until"),
        (set(Some(1), "env.A", Some(now.plus_ms(1))), "until"),
        (here(set(None, "env.A", Some(now.plus_ms(1)))), "until"),
        (here(set(Some(1), "env.A", None)), "node"),
        (none, "set"),
        (long, "set"),
    ];
    for (number, (wish, expected)) in (60..).zip(wishes) {
        let wish = site.wish_of(number, wish);
        let refused = site.try_tell(Input::Wish(wish)).err().expect("it is refused");
        let Rejection::BadParameter { name, .. } = refused else { panic!("{refused}") };
        assert_eq!(name, expected);
    }
}
