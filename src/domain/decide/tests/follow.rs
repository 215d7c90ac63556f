//! Services that follow the restarts of others.

use super::site::{Site, service, spec};
use crate::domain::event::Exit;
use crate::domain::intent::Action;
use crate::domain::spec::{DependencyCondition, DependsOn, ReadyBy, Spec};

const KILLED: Exit = Exit::Signal { signal: 9, core_dumped: false };
const TERMINATED: Exit = Exit::Signal { signal: 15, core_dumped: false };

fn db() -> Spec {
    Spec {
        ready: crate::domain::spec::Ready { by: ReadyBy::Notify, ..Default::default() },
        ..spec()
    }
}

fn follower(restart: bool) -> Spec {
    let mut spec = spec();
    let rule = DependsOn { condition: DependencyCondition::Ready, required: true, restart };
    spec.depends_on.insert(service("db"), rule);
    spec
}

/// A node on which `web` runs because `db` is ready.
fn site(restart: bool) -> Site {
    let mut site = Site::with(&[("db", db()), ("web", follower(restart))]);
    site.start("db", 1).ready("db", 1).then(&["instance.ready db/0", "instance.starting web/0"]);
    site.start("web", 1);
    site
}

#[test]
fn a_service_that_follows_is_restarted_when_the_other_one_is_ready_again() {
    let mut site = site(true);
    site.exit("db", 1, KILLED, 60_000).then(&["instance.exited db/0"]);
    site.start("db", 2).then(&["instance.started db/0"]);
    site.ready("db", 2).then(&["instance.ready db/0", "instance.stopping web/0"]);
    assert_eq!(site.signals(), [("web/0".to_owned(), 15)]);
    site.exit("web", 1, TERMINATED, 100).then(&["instance.exited web/0", "instance.stopped web/0"]);
    assert_eq!(site.spawned("web"), Some((2, false)));
    site.start("web", 2).then(&["instance.started web/0"]);
    // It was bounced by somebody else's restart: that counts for nothing of its own.
    assert_eq!(site.at("web").backoff.restarts, 0);
    site.later(60_000).wish(Action::Signal { service: service("db"), signal: 1 });
    assert!(!site.events().iter().any(|event| event.ends_with("web/0")), "it is followed once");
    assert_eq!(site.replayed(), site.node);
}

#[test]
fn a_service_that_only_waits_for_another_is_left_alone() {
    let mut site = site(false);
    site.exit("db", 1, KILLED, 60_000);
    site.start("db", 2);
    site.ready("db", 2).then(&["instance.ready db/0"]);
}

#[test]
fn a_restart_that_was_asked_for_is_followed_once_it_is_done() {
    let mut site = site(true);
    site.wish(Action::Restart { service: service("db") });
    site.exit("db", 1, TERMINATED, 60_000);
    site.start("db", 2);
    site.ready("db", 2);
    assert_eq!(site.events()[..2], ["instance.ready db/0", "instance.stopping web/0"]);
    site.then_outcome(1, true);
}

#[test]
fn instances_that_follow_go_one_after_the_other() {
    let mut web = follower(true);
    web.instances = 2;
    let mut site = Site::with(&[("db", db()), ("web", web)]);
    site.start("db", 1).ready("db", 1);
    site.start("web/0", 1).start("web/1", 1);
    site.exit("db", 1, KILLED, 60_000);
    site.start("db", 2);
    site.ready("db", 2).then(&["instance.ready db/0", "instance.stopping web/0"]);
    site.exit("web/0", 1, TERMINATED, 100);
    site.start("web/0", 2).then(&["instance.started web/0", "instance.stopping web/1"]);
}
