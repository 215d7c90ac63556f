//! Health checks: what is told of them, and what follows.

use super::site::{Site, id, service, spec};
use crate::domain::code::Code;
use crate::domain::event::{Event, Exit, RunResult, StopReason};
use crate::domain::health::Verdict;
use crate::domain::id::RunId;
use crate::domain::input::Input;
use crate::domain::instance::State;
use crate::domain::intent::Action;
use crate::domain::spec::{DependsOn, Health, Millis, OnFailure, Probe, ReadyBy, Spec};
use crate::domain::template::Template;

const TERMINATED: Exit = Exit::Signal { signal: 15, core_dumped: false };

pub(super) fn rule(on_failure: OnFailure) -> Health {
    Health {
        probe: Probe::Tcp { address: Template::new("127.0.0.1:8080") },
        interval: Millis(10_000),
        min_interval: Millis(500),
        timeout: Millis(1000),
        failures: 3,
        successes: 1,
        on_failure,
    }
}

fn checked(checks: &[(&str, OnFailure)]) -> Spec {
    let mut spec = spec();
    for (name, on_failure) in checks {
        spec.health.insert(name.parse().unwrap(), rule(*on_failure));
    }
    spec
}

fn web() -> Spec {
    checked(&[("app", OnFailure::Unready)])
}

fn with_health_as_sign(checks: &[(&str, OnFailure)]) -> Spec {
    let mut spec = checked(checks);
    spec.ready.by = ReadyBy::Health;
    spec
}

impl Site {
    fn check(&mut self, run: u64, check: &str, in_a_row: u32, good: bool) -> &mut Self {
        let answer = if good { Ok(()) } else { Err("status 503".to_owned()) };
        self.tell(Input::Checked {
            instance: id("web"),
            run: RunId(run),
            check: check.parse().unwrap(),
            verdict: Verdict { in_a_row, answer },
        })
    }

    fn passes(&mut self, run: u64, check: &str) -> &mut Self {
        self.check(run, check, 1, true)
    }

    fn fails(&mut self, run: u64, check: &str) -> &mut Self {
        self.check(run, check, 3, false)
    }
}

#[test]
fn a_check_is_told_when_it_begins_to_pass_and_when_it_begins_to_fail_and_not_again() {
    let mut site = Site::running(web());
    site.passes(1, "app").then(&["instance.healthy web/0"]);
    site.passes(1, "app").then_nothing();
    site.fails(1, "app").then(&["instance.unhealthy web/0"]);
    let Event::InstanceUnhealthy(body) = &site.last.events[0].1 else { panic!("it is the check") };
    assert_eq!((body.in_a_row, body.message.as_str()), (3, "status 503"));
    site.fails(1, "app").then_nothing();
    site.passes(1, "app").then(&["instance.healthy web/0"]);
    assert_eq!(site.replayed(), site.node);
    assert_eq!(site.restored(), site.node);
}

#[test]
fn a_run_whose_check_fails_goes_on_and_is_not_ready_until_it_passes() {
    let mut site = Site::running(web());
    assert!(site.at("web").is_ready(), "nobody has heard anything bad of it");
    site.fails(1, "app");
    assert!(!site.at("web").is_ready());
    assert!(matches!(site.state("web"), State::Running { .. }));
    site.passes(1, "app");
    assert!(site.at("web").is_ready());
}

#[test]
fn a_check_that_only_reports_leaves_a_run_ready() {
    let mut site = Site::running(checked(&[("app", OnFailure::Report)]));
    site.fails(1, "app").then(&["instance.unhealthy web/0"]);
    assert!(site.at("web").is_ready());
}

#[test]
fn what_needs_a_service_waits_until_its_checks_do_not_fail() {
    let mut site = Site::running(web());
    site.fails(1, "app");
    let mut shop = spec();
    shop.depends_on.insert(service("web"), DependsOn::default());
    site.adopt("shop", shop, 2).then(&["service.added shop", "instance.waiting shop/0"]);
    site.passes(1, "app").then(&["instance.healthy web/0", "instance.starting shop/0"]);
}

#[test]
fn a_run_whose_check_of_life_fails_is_stopped_and_started_again_as_the_policy_says() {
    let mut site = Site::running(checked(&[("life", OnFailure::Restart)]));
    site.passes(1, "life").later(12_000);
    site.fails(1, "life").then(&["instance.unhealthy web/0", "instance.stopping web/0"]);
    assert_eq!(site.signals(), [("web/0".to_owned(), 15)]);
    let State::Stopping { reason, then, .. } = site.state("web") else { panic!("it stops") };
    assert!(*reason == StopReason::Unhealthy && then.starts());
    assert!(site.acts(true).is_empty(), "a repair does not wait for the disk");
    // Later answers of a run on its way down say nothing.
    site.passes(1, "life").then_nothing();
    site.exit("web", 1, TERMINATED, 100);
    assert_eq!(site.at("web").last.as_ref().unwrap().result, RunResult::Watchdog);
    assert!(site.at("web").checks.is_empty());
    assert_eq!(site.at("web").backoff.restarts, 1);
    // A run that dies of it young has to wait.
    if site.spawned("web").is_none() {
        site.pass("web");
    }
    site.start("web", 2);
    site.fails(2, "life").then(&["instance.unhealthy web/0", "instance.stopping web/0"]);
    site.exit("web", 2, Exit::Code(0), 100);
    assert!(matches!(site.state("web"), State::Backoff { .. }));
    assert_eq!(site.at("web").backoff.restarts, 2);
    assert_eq!(site.replayed(), site.node);
}

#[test]
fn a_check_of_life_brings_a_service_to_its_restart_limit_like_any_failure() {
    use crate::domain::spec::RestartPolicy;
    let mut spec = checked(&[("life", OnFailure::Restart)]);
    spec.restart.policy = RestartPolicy::Never;
    let mut site = Site::running(spec);
    site.fails(1, "life");
    site.exit("web", 1, Exit::Code(0), 100);
    assert_eq!(*site.state("web"), State::Failed);
}

#[test]
fn a_run_is_ready_by_health_once_each_check_passes_that_does_not_only_report() {
    let checks =
        [("app", OnFailure::Unready), ("life", OnFailure::Restart), ("extra", OnFailure::Report)];
    let mut site = Site::with(&[("web", with_health_as_sign(&checks))]);
    site.start("web", 1).then(&["instance.started web/0"]);
    assert!(matches!(site.state("web"), State::Starting { .. }));
    site.passes(1, "app").then(&["instance.healthy web/0"]);
    assert!(!site.at("web").is_ready());
    site.passes(1, "life").then(&["instance.healthy web/0", "instance.ready web/0"]);
    let Event::InstanceReady(body) = &site.last.events[1].1 else { panic!("it is ready") };
    assert_eq!(body.how, "health");
    assert!(site.at("web").is_ready());
}

#[test]
fn a_run_that_does_not_become_healthy_in_time_is_stopped_and_the_wish_has_failed() {
    let spec = with_health_as_sign(&[("app", OnFailure::Unready)]);
    let mut site = Site::with(&[("web", spec)]);
    site.start("web", 1);
    site.wish(Action::Start { service: service("web") });
    site.pass("web").then_failed(1, Code::NOT_READY);
    let State::Stopping { reason, .. } = site.state("web") else { panic!("it stops") };
    assert_eq!(*reason, StopReason::ReadyTimeout);
}

#[test]
fn an_answer_of_another_run_or_of_a_check_that_is_gone_says_nothing() {
    let mut site = Site::running(web());
    site.fails(2, "app").then_nothing();
    site.fails(1, "other").then_nothing();
    site.exit("web", 1, Exit::Code(1), 60_000);
    site.fails(1, "app").then_nothing();
    site.start("web", 2);
    assert!(site.at("web").is_ready());
}

#[test]
fn what_is_known_of_a_check_is_forgotten_with_its_rule() {
    let mut site = Site::running(web());
    site.fails(1, "app");
    let digest = site.node.services()[&service("web")].digest;
    let mut in_place = |spec: Spec, number: u8| {
        site.specs.insert(service("web"), std::sync::Arc::new(spec));
        site.tell(Input::SpecAdopted {
            service: service("web"),
            digest: crate::domain::id::Digest([number; 32]),
            origin: "web.toml".to_owned(),
            keeps: Some(digest),
            keys: Vec::new(),
            intent: None,
        });
        site.events()
    };
    assert_eq!(in_place(spec(), 7), ["service.added web", "instance.healthy web/0"]);
    assert!(site.at("web").is_ready() && site.at("web").checks.is_empty());
    assert_eq!(site.replayed(), site.node);
}
