//! Alerts on what services write.

use std::collections::BTreeMap;

use super::site::{Site, id, service, spec};
use crate::domain::event::{Detached, Event};
use crate::domain::id::{AlertName, Digest};
use crate::domain::input::{Alarm, Input};
use crate::domain::intent::Action;
use crate::domain::spec::{Alert, AlertOn, AlertStream, Millis, Severity, Spec};

fn name() -> AlertName {
    "db-errors".parse().unwrap()
}

fn watched() -> Spec {
    let mut spec = spec();
    let alert = Alert {
        on: AlertOn::Log { threshold: 5, window: Millis::from_secs(60) },
        r#match: "ERROR".to_owned(),
        exclude: None,
        stream: AlertStream::Any,
        r#for: Millis(0),
        keep_firing_for: Millis::from_secs(300),
        severity: Severity::Critical,
        labels: BTreeMap::from([("team".to_owned(), "shop".to_owned())]),
        annotations: BTreeMap::new(),
    };
    spec.alert.insert(name(), alert);
    spec
}

fn raised(slot: &str) -> Input {
    let alarm = Alarm {
        summary: "5 lines".to_owned(),
        annotations: BTreeMap::new(),
        line: Some(Detached { hash: Digest([7; 32]), bytes: 9 }),
    };
    Input::AlertRaised { instance: id(slot), alert: name(), alarm }
}

fn over(slot: &str) -> Input {
    Input::AlertOver { instance: id(slot), alert: name() }
}

#[test]
fn an_alert_is_told_once_when_it_fires_and_once_when_it_is_over() {
    let mut site = Site::running(watched());
    site.tell(raised("web")).then(&["alert.fired web/0"]);
    let Event::AlertFired(body) = &site.last.events[0].1 else { panic!("it is the alert") };
    assert_eq!((body.alert.as_str(), body.severity.as_str()), ("web/db-errors", "critical"));
    assert_eq!(body.labels["team"], "shop");
    assert_eq!(site.at("web").firing["db-errors"].summary, "5 lines");
    site.tell(raised("web")).then_nothing();
    assert_eq!((site.replayed(), site.restored()), (site.node.clone(), site.node.clone()));
    site.tell(over("web")).then(&["alert.resolved web/0"]);
    site.tell(over("web")).then_nothing();
    assert!(site.at("web").firing.is_empty());
    assert_eq!(site.replayed(), site.node);
}

#[test]
fn an_alert_starts_and_stops_nothing_and_outlives_the_run_that_caused_it() {
    let mut site = Site::running(watched());
    site.tell(raised("web"));
    assert!(site.last.effects.is_empty());
    site.wish(Action::Stop { service: service("web") });
    assert_eq!(site.at("web").firing.len(), 1);
    site.tell(over("web")).then(&["alert.resolved web/0"]);
    assert!(site.state("web").run().is_some(), "the stop goes on");
}

#[test]
fn what_is_no_longer_in_the_spec_fires_no_longer() {
    let mut site = Site::running(watched());
    site.tell(raised("web"));
    site.adopt("web", spec(), 1).then(&["alert.resolved web/0"]);
    site.tell(raised("web")).then_nothing();
}

#[test]
fn alerts_of_a_slot_or_service_that_goes_are_over() {
    let two = Spec { instances: 2, ..watched() };
    let mut site = Site::with(&[("web", two)]);
    site.start("web/0", 1).start("web/1", 1);
    site.tell(raised("web/0")).tell(raised("web/1")).then(&["alert.fired web/1"]);
    site.adopt("web", watched(), 1);
    assert!(site.events().contains(&"alert.resolved web/1".to_owned()), "{:?}", site.events());
    site.tell(Input::SpecRemoved { service: service("web"), intent: None });
    assert_eq!(site.events()[..2], ["alert.resolved web/0", "service.removed web"]);
    assert_eq!(site.replayed(), site.node);
}
