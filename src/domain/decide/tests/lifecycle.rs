//! Start, exit, restart, stop of instances.

use super::site::{Site, ended, id, service, spec};
use crate::domain::event::{Exit, RunResult};
use crate::domain::input::Input;
use crate::domain::instance::State;

const KILLED: Exit = Exit::Signal { signal: 9, core_dumped: false };

#[test]
fn an_adopted_service_is_started_once_its_adoption_is_durable() {
    let mut site = Site::with(&[("web", spec())]);
    site.then(&["service.added web", "instance.starting web/0"]);
    assert_eq!(site.spawned("web/0"), Some((1, true)));
    site.start("web", 1).then(&["instance.started web/0"]);
    assert!(site.state("web").is_ready());
}

#[test]
fn a_stable_run_that_is_killed_is_started_again_at_once_and_without_waiting_for_the_disk() {
    let mut site = Site::running(spec());
    site.exit("web", 1, KILLED, 12_600).then(&["instance.exited web/0"]);
    assert_eq!(site.spawned("web/0"), Some((2, false)));
    assert!(site.acknowledged());
    site.start("web", 2).then(&["instance.started web/0"]);
    assert_eq!(site.at("web").backoff.restarts, 1);
    assert_eq!(site.at("web").last.as_ref().unwrap().result, RunResult::Signal);
    assert_eq!(site.replayed(), site.node);
}
