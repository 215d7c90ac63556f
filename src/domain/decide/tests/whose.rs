//! On whose authority something happens, and what led to it.

use super::site::{Site, actor, id, intent, service, spec};
use crate::domain::event::{Cause, Context, Exit};
use crate::domain::id::Digest;
use crate::domain::input::Input;
use crate::domain::intent::Action;
use crate::domain::spec::{ReadyBy, Spec};

const TERMINATED: Exit = Exit::Signal { signal: 15, core_dumped: false };

/// Adopts a spec on behalf of a wish.
fn apply(site: &mut Site, number: u8, spec: Spec, digest: u8) {
    site.wish(Action::Apply { services: Vec::new() });
    site.specs.insert(service("web"), std::sync::Arc::new(spec));
    site.tell(Input::SpecAdopted {
        service: service("web"),
        digest: Digest([digest; 32]),
        origin: "web.toml".to_owned(),
        intent: Some(intent(number)),
        keeps: None,
        keys: Vec::new(),
    });
}

/// Who and what stands in the last event of a kind.
fn because(site: &Site, kind: &str) -> (Option<Cause>, bool) {
    let context: &Context = site
        .log
        .iter()
        .rev()
        .find(|(_, _, event)| event.kind() == kind)
        .map(|(_, context, _)| context)
        .unwrap();
    (context.cause.clone(), context.by == Some(actor()))
}

#[test]
fn what_an_update_stops_and_starts_names_who_applied_it() {
    let mut two = spec();
    two.instances = 2;
    two.ready.by = ReadyBy::Notify;
    let mut site = Site::with(&[("web", two.clone())]);
    site.start("web/0", 1).ready("web/0", 1).start("web/1", 1).ready("web/1", 1);
    two.description = "other".to_owned();
    apply(&mut site, 1, two, 2);
    let alice = (Some(Cause::Intent(intent(1))), true);
    site.tell(Input::Applied { intent: intent(1), failed: None }).then_outcome(1, true);
    assert_eq!(because(&site, "instance.stopping"), alice);
    site.exit("web/0", 1, TERMINATED, 5);
    assert_eq!(because(&site, "instance.exited"), alice);
    assert_eq!(because(&site, "instance.stopped"), alice);
    site.start("web/0", 2);
    assert_eq!(because(&site, "instance.started"), alice);
    // The second one follows when the wish is long over.
    site.ready("web/0", 2).then(&["instance.ready web/0", "instance.stopping web/1"]);
    assert_eq!(because(&site, "instance.stopping"), alice);
    assert_eq!(site.replayed(), site.node);
    assert_eq!(site.restored(), site.node);
}

#[test]
fn what_was_added_or_removed_by_somebody_is_started_and_stopped_by_them() {
    let mut site = Site::empty();
    apply(&mut site, 1, spec(), 1);
    let first = (Some(Cause::Intent(intent(1))), true);
    assert_eq!(because(&site, "instance.starting"), first);
    site.start("web", 1);
    assert_eq!(because(&site, "instance.started"), first);
    site.wish(Action::Apply { services: Vec::new() });
    site.tell(Input::SpecRemoved { service: service("web"), intent: Some(intent(2)) });
    assert_eq!(because(&site, "instance.stopping"), (Some(Cause::Intent(intent(2))), true));
}

#[test]
fn the_stops_of_a_shutdown_name_who_asked_for_it() {
    let mut web = spec();
    web.depends_on.insert(service("db"), crate::domain::spec::DependsOn::default());
    let mut site = Site::with(&[("db", spec()), ("web", web)]);
    site.start("db", 1).start("web", 1);
    site.wish(Action::Shutdown { leave_running: false });
    let asked = (Some(Cause::Intent(intent(1))), true);
    assert_eq!(because(&site, "instance.stopping"), asked);
    site.exit("web", 1, TERMINATED, 5).then(&[
        "instance.exited web/0",
        "instance.stopped web/0",
        "instance.stopping db/0",
    ]);
    assert_eq!(because(&site, "instance.stopping"), asked);
    assert_eq!(site.replayed(), site.node);
}

#[test]
fn what_the_policy_does_names_nobody() {
    let mut site = Site::empty();
    apply(&mut site, 1, spec(), 1);
    site.start("web", 1).exit("web", 1, Exit::Code(1), 20_000).start("web", 2);
    assert_eq!(because(&site, "instance.exited"), (None, false));
    assert_eq!(because(&site, "instance.started"), (None, false));
    site.exit("web", 2, Exit::Code(1), 5).pass("web");
    assert_eq!(because(&site, "instance.starting"), (None, false));
    assert_eq!(site.state("web").run(), site.node.instance(&id("web")).unwrap().state.run());
}
