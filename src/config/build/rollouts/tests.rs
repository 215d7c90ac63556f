use crate::config::{Input, Options, Part, assemble};
use crate::domain::origin::Layer;
use crate::domain::rollout::{
    Amount, CheckProbe, HealthCheck, OnFailure, OnLeave, Parameters, Rollouts, Skip,
};

fn read(text: &str) -> Rollouts {
    let input = Input {
        part: Part::Body(Layer::Host),
        shown: "web.toml".to_owned(),
        stem: "web".to_owned(),
        folder: None,
        text: format!("exec = [\"/usr/bin/web\"]\n{text}"),
    };
    let mut loaded = assemble(vec![input], &Options::default()).unwrap();
    loaded.services.pop_first().unwrap().1.rollouts
}

#[test]
fn a_file_that_says_nothing_of_the_fleet_has_the_documented_defaults() {
    let rollouts = read("");
    let process = HealthCheck::Process;
    assert_eq!(
        rollouts.parameters,
        Parameters { health_check: process, ..Parameters::default() },
        "health is that of the process where there is no check"
    );
    assert_eq!((rollouts.placement.select, rollouts.placement.on_leave), (None, OnLeave::Stop));
}

#[test]
fn all_that_a_file_says_of_the_fleet_is_read_with_its_line() {
    let rollouts = read(
        r#"
[placement]
select = "env=prod,role=web|api"
on_leave = "keep"

[rollout]
canary = "5%"
max_parallel = [1, 5, "20%"]
spread_by = "zone"
max_failures = 2
on_failure = "pause"
health_check = "manual"

[rollout.check.rate]
kind = "prometheus"
url = "http://prom.internal:9090"
query = "up"
max = 0.5
count = 7

[rollback]
max_parallel = "50%"
skip = ["bake"]
"#,
    );
    let parameters = rollouts.parameters;
    assert_eq!(parameters.canary, Amount::Percent(5));
    let [one, five] = [1, 5].map(Amount::Count);
    assert_eq!(parameters.max_parallel, [one, five, Amount::Percent(20)]);
    assert_eq!(parameters.spread_by.as_deref(), Some("zone"));
    assert_eq!(parameters.on_failure, OnFailure::Pause);
    assert_eq!(parameters.health_check, HealthCheck::Manual);
    let check = parameters.checks.values().next().unwrap();
    assert_eq!((check.count, check.interval_ms), (7, 5_000));
    let CheckProbe::Prometheus { max, .. } = &check.probe else { panic!("{check:?}") };
    assert_eq!(max.as_deref(), Some("0.5"));
    assert_eq!(parameters.rollback.max_parallel, [Amount::Percent(50)]);
    assert_eq!(parameters.rollback.skip, [Skip::Bake].into());
    assert_eq!(parameters.origins["max_failures"].line, Some(11));
    assert!(!parameters.origins.contains_key("bake_time"), "nobody set it");
    let select = rollouts.placement.select.unwrap();
    assert_eq!(select.to_string(), "env=prod,role=api|web");
    assert_eq!(rollouts.placement.on_leave, OnLeave::Keep);
}

#[test]
fn what_is_read_can_be_planned() {
    assert_eq!(read("").parameters.check(), Ok(()));
}
