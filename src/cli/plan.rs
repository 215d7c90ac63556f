//! What an apply would do on this node: whose effective configuration changes in which keys, and what restarts.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::client::{Client, Whom};
use super::context::Context;
use super::error::CliError;
use super::{launch, screen, specs};
use crate::agent::origins::{Origins, Set};
use crate::agent::setup::NodeSetup;
use crate::agent::texts::{Reading, Texts};
use crate::config::{Effective, LoadedService, json_value};
use crate::domain::code::Code;
use crate::domain::id::ServiceId;
use crate::domain::origin::{Layer, Origin};
use crate::domain::spec::{Change, Spec, UpdateMethod};
use crate::wire::status::NodeStatus;

/// What would happen, by service; those that stay as they are have no place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order of their names.
    pub services: Vec<Planned>,
}

/// What would happen to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Which.
    pub service: ServiceId,
    /// What is done with its runs.
    pub step: Step,
    /// Which of its effective values change; of a new service, which values somebody set.
    pub keys: Vec<KeyChange>,
}

/// What would be done with the runs of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is new, and started.
    Start,
    /// It is new, and not wanted up.
    Keep,
    /// It is started anew, as a process cannot be given what changed.
    Restart,
    /// Another run begins beside it, and takes over when it is ready.
    HandOver,
    /// A process cannot be given what changed, but there is none.
    Later,
    /// Its runs go on.
    InPlace,
    /// Something changed; the spec in force cannot be read, so what is not known.
    Unknown,
    /// Its files are gone.
    Stop,
}

/// How an effective value changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// Which.
    pub key: String,
    /// The value in force, as TOML; `None` is no value.
    pub from: Option<String>,
    /// The value that the files give it.
    pub to: Option<String>,
    /// Where that was set; `None` for no value.
    pub origin: Option<Origin>,
}

impl Plan {
    /// Compares the files with what is in force; of all services, or of those that are named.
    ///
    /// # Errors
    /// When the files have mistakes, smgr is not up here, or nobody knows a service that is named.
    pub async fn make(
        context: &Context,
        setup: &NodeSetup,
        only: &[ServiceId],
    ) -> Result<Self, CliError> {
        let loaded =
            specs::load(context, &setup.specs, &setup.service_logs, "nothing was changed")?;
        let mut client = Client::connect(context, &Whom::default()).await?;
        let status =
            launch::status(&mut client).await.ok_or_else(|| super::context::not_up(context))?;
        let wanted = |service: &ServiceId| only.is_empty() || only.contains(service);
        let all: BTreeSet<&ServiceId> =
            loaded.services.keys().chain(status.services.iter().map(|it| &it.service)).collect();
        if let Some(stranger) = only.iter().find(|service| !all.contains(service)) {
            let what = format!("no spec file describes `{stranger}`");
            return Err(CliError::new(Code::NO_SUCH_SERVICE, what).next("smgr status"));
        }
        let specs = context.folder.specs();
        let texts = Texts::new(specs.clone());
        let in_force = (&texts.reading(), &Origins::read(&specs));
        let of = |service: &&ServiceId| {
            planned(in_force, &status, service, loaded.services.get(*service))
        };
        let all = all.into_iter().filter(|service| wanted(service));
        Ok(Self { services: all.filter_map(|service| of(&service)).collect() })
    }

    /// Renders it for people.
    pub fn text(&self, width: Option<u16>) -> String {
        screen::effective::plan(self, width)
    }

    /// Renders it for programs.
    pub fn json(&self) -> Value {
        let services = self.services.iter().map(|it| {
            let (what, step) = match it.step {
                Step::Start => ("new", "start"),
                Step::Keep => ("new", "none"),
                Step::Restart => ("changed", "restart"),
                Step::HandOver => ("changed", "handover"),
                Step::Later => ("changed", "none"),
                Step::InPlace => ("changed", "in_place"),
                Step::Unknown => ("changed", "unknown"),
                Step::Stop => ("gone", "stop"),
            };
            let keys = changes_json(&it.keys);
            json!({"service": it.service.as_str(), "what": what, "step": step, "keys": keys})
        });
        json!({"schema": "smgr.plan.v1", "services": services.collect::<Vec<_>>()})
    }
}

/// Renders how values change, for programs.
pub fn changes_json(keys: &[KeyChange]) -> Value {
    let keys = keys.iter().map(|change| {
        let value = |toml: &Option<String>| toml.as_deref().map(json_value);
        json!({
            "key": change.key, "from": value(&change.from), "to": value(&change.to),
            "origin": change.origin.as_ref().map(origin_json),
        })
    });
    keys.collect()
}

/// Renders where a value was set, for programs.
pub fn origin_json(origin: &Origin) -> Value {
    json!({
        "layer": origin.layer, "number": origin.layer.number(), "file": origin.file,
        "line": origin.line, "release": origin.release, "event": origin.event,
    })
}

fn planned(
    (texts, origins): (&Reading, &Origins),
    status: &NodeStatus,
    service: &ServiceId,
    new: Option<&LoadedService>,
) -> Option<Planned> {
    let of = |step, keys| Some(Planned { service: service.clone(), step, keys });
    let old = status.services.iter().find(|it| it.service == *service);
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) if old.spec == new.digest => return None,
        (Some(old), Some(new)) => (old, new),
        (None, Some(new)) => {
            let keys = changes(&Set::new(), &new.effective);
            return of(if new.spec.enabled { Step::Start } else { Step::Keep }, keys);
        }
        (_, None) => return of(Step::Stop, Vec::new()),
    };
    // This user may not be one who may read it.
    let in_force: Option<Spec> =
        texts.get(old.spec).and_then(|text| serde_json::from_str(&text).ok());
    let Some(in_force) = in_force else { return of(Step::Unknown, Vec::new()) };
    let set = origins.of(service, old.spec);
    let keys = set.map(|set| changes(set, &new.effective)).unwrap_or_default();
    let mut instances = status.instances.iter().filter(|it| it.service == *service);
    let runs = instances.any(|it| it.pid.is_some() || it.next_attempt_at.is_some());
    let step = match in_force.change_to(&new.spec) {
        Change::Restart if runs => match new.spec.update.method {
            UpdateMethod::Restart => Step::Restart,
            UpdateMethod::Handover => Step::HandOver,
        },
        Change::Restart => Step::Later,
        Change::Same | Change::InPlace => Step::InPlace,
    };
    of(step, keys)
}

/// Compares the values that somebody set with those that the files give now. What nobody sets is built in on both sides.
pub fn changes(old: &Set, new: &BTreeMap<String, Effective>) -> Vec<KeyChange> {
    let built_in = |it: &Effective| {
        let mut hidden = it.hides.iter().filter(|(_, origin)| origin.layer == Layer::BuiltIn);
        hidden.next().map(|(value, _)| value.clone())
    };
    let set = new.iter().filter(|(_, it)| it.origin.layer != Layer::BuiltIn);
    let keys: BTreeSet<&String> = old.keys().chain(set.map(|(key, _)| key)).collect();
    let change = |key: &String| {
        let (before, after) = (old.get(key), new.get(key));
        let from = match before {
            Some(before) => Some(before.value.clone()),
            None => after.and_then(built_in),
        };
        KeyChange {
            key: key.clone(),
            from,
            to: after.map(|after| after.value.clone()),
            origin: after.map(|after| after.origin.clone()),
        }
    };
    keys.into_iter().map(change).filter(|it| it.from != it.to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(value: &str, layer: Layer, built_in: Option<&str>) -> Effective {
        let origin = match layer {
            Layer::BuiltIn => Origin::built_in(),
            layer => Origin::line(layer, "web.toml".to_owned(), 1),
        };
        let hides = built_in.map(|value| (value.to_owned(), Origin::built_in()));
        Effective { value: value.to_owned(), origin, hides: hides.into_iter().collect() }
    }

    #[test]
    fn a_plan_names_the_keys_whose_effective_value_changes() {
        let old = Set::from([
            ("exec".to_owned(), value("[\"a\"]", Layer::Host, None)),
            ("instances".to_owned(), value("3", Layer::Node, Some("1"))),
            ("env.A".to_owned(), value("\"1\"", Layer::Host, None)),
        ]);
        let new = BTreeMap::from([
            ("exec".to_owned(), value("[\"a\"]", Layer::Node, None)),
            ("instances".to_owned(), value("1", Layer::BuiltIn, None)),
            ("umask".to_owned(), value("\"0077\"", Layer::Node, Some("\"0022\""))),
        ]);
        let changed: Vec<_> =
            changes(&old, &new).into_iter().map(|it| (it.key, it.from, it.to)).collect();
        let some = |text: &str| Some(text.to_owned());
        let expected = [
            ("env.A".to_owned(), some("\"1\""), None),
            ("instances".to_owned(), some("3"), some("1")),
            ("umask".to_owned(), some("\"0022\""), some("\"0077\"")),
        ];
        assert_eq!(changed, expected);
    }
}
