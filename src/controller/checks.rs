//! Checks after a wave: measured by whoever leads, judged by the core.

mod program;
mod prometheus;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;

use self::prometheus::Query;

use super::rollouts::Driven;
use super::task::Controller;
use super::wake::Wake;
use crate::domain::code::Code;
use crate::domain::id::{AlertName, CheckName, IntentId, NodeId};
use crate::domain::rollout::view::rollout_name;
use crate::domain::rollout::{CheckProbe, Effect, Input, Measure, NodeState, Rollout};
use crate::domain::template::Template;
use crate::domain::time::Now;
use crate::web::{self, Address, InvalidAddress};
use crate::wire::status::AlertStatus;

/// How long a server may take to answer a check.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// One measurement: of which rollout, which check, after which wave, and its number.
pub(super) type Measurement = (IntentId, CheckName, u16, u32);

/// The measurements that are under way.
pub(super) type Measuring = BTreeSet<Measurement>;

/// What was measured, and how that is told.
type Found = (Measure, String);

/// How something is measured that takes a while.
enum Probe {
    Http(Address),
    Program { path: PathBuf, arguments: Vec<String>, told: program::Told },
    Prometheus(Query),
}

impl Probe {
    async fn measure(self) -> Found {
        match self {
            Self::Http(address) => get(&address).await,
            Self::Program { path, arguments, told } => {
                program::measure(&path, &arguments, told).await
            }
            Self::Prometheus(query) => query.measure().await,
        }
    }
}

impl Controller {
    /// Says why a check cannot be measured here.
    pub(super) fn is_measured(&self, probe: &CheckProbe) -> Result<(), (Code, String)> {
        match probe {
            CheckProbe::LogAlert { .. } => Ok(()),
            _ => self.probe(probe, program::Told::default()).map(drop),
        }
    }

    /// Returns how a check is measured that no fold answers.
    fn probe(&self, probe: &CheckProbe, told: program::Told) -> Result<Probe, (Code, String)> {
        let bad = |why: String| (Code::BAD_TEMPLATE, why);
        let expanded = |text: &str| {
            let lookup = |name: &str| match name {
                "service" => Some(told.service.clone()),
                "nodes" => Some(told.nodes.join("|")),
                _ => None,
            };
            Template::new(text).expand(lookup).map_err(|error| bad(error.to_string()))
        };
        let address = |error: InvalidAddress| (Code::BAD_PATH, error.to_string());
        match probe {
            CheckProbe::Http { url } => Ok(Probe::Http(expanded(url)?.parse().map_err(address)?)),
            CheckProbe::Exec { argv } => {
                let named = argv.first().map_or("", String::as_str);
                let path = program::find(self.setup.checks.as_deref(), named)
                    .map_err(|why| (Code::BAD_PATH, why))?;
                let arguments = argv[1..].iter().map(|text| expanded(text));
                let arguments = arguments.collect::<Result<_, _>>()?;
                Ok(Probe::Program { path, arguments, told })
            }
            CheckProbe::Prometheus { url, query, min, max } => {
                let (url, query) = (expanded(url)?, expanded(query)?);
                let query = Query::new(&url, &query, (min.as_deref(), max.as_deref()));
                Ok(Probe::Prometheus(query.map_err(address)?))
            }
            CheckProbe::LogAlert { .. } => Err(bad("an alert is folded, not asked for".to_owned())),
        }
    }

    /// Measures what is due.
    pub(super) fn look_at_checks(&mut self, now: Now) {
        if self.leads().is_none() {
            return;
        }
        let has_checks = |driven: &Driven| {
            let open = driven.on_disk().filter(|state| state.verdict().is_none());
            open.is_some_and(|state| !state.plan().parameters.checks.is_empty())
        };
        let all = self.rollouts.all.iter().filter(|(_, driven)| has_checks(driven));
        for intent in all.map(|(intent, _)| *intent).collect::<Vec<_>>() {
            let state = self.rollouts.all.get(&intent).and_then(Driven::on_disk);
            for effect in state.map(Rollout::due_checks).unwrap_or_default() {
                if let Effect::RunCheck { check, wave, number, at } = effect
                    && at <= now.at
                {
                    self.measure(now, (intent, check, wave, number));
                }
            }
        }
    }

    fn measure(&mut self, now: Now, of: Measurement) {
        let state = self.rollouts.all.get(&of.0).and_then(Driven::on_disk);
        let probe = state.and_then(|it| it.plan().parameters.checks.get(&of.1));
        let (Some(state), Some(probe)) = (state, probe.map(|check| check.probe.clone())) else {
            return;
        };
        if let CheckProbe::LogAlert { alert } = &probe {
            let found = self.alert(now, state, alert);
            return self.measured(now, &of, found);
        }
        match self.probe(&probe, told(state, &of)) {
            Ok(probe) => {
                if self.measuring.insert(of.clone()) {
                    let waker = self.waker.clone();
                    tokio::spawn(async move {
                        let found = probe.measure().await;
                        drop(waker.send(Wake::Measured(of, found)).await);
                    });
                }
            }
            // It could be measured when the rollout began, or by another controller.
            Err((_, why)) => self.measured(now, &of, (Measure::Error, why)),
        }
    }

    /// Says whether an alert of the service fires on a node that runs the release. The silence of one that is not
    /// heard says nothing.
    fn alert(&self, now: Now, state: &Rollout, alert: &AlertName) -> Found {
        let plan = state.plan();
        let name = format!("{}/{alert}", plan.service);
        let fires = running(state).filter(|node| {
            let known = self.projection.node(node);
            known.is_some_and(|it| {
                AlertStatus::folded(it.services()).iter().any(|it| it.alert == name)
            })
        });
        let fires: Vec<&str> = fires.map(|node| node.as_str()).collect();
        let unheard = running(state).find(|node| !self.projection.is_heard(node, now));
        match (fires.is_empty(), unheard) {
            (false, _) => (Measure::Bad, format!("firing on {}", fires.join(" "))),
            (true, Some(node)) => (Measure::Inconclusive, format!("{node} is not heard")),
            (true, None) => (Measure::Good, "quiet".to_owned()),
        }
    }

    /// Takes in a measurement.
    pub(super) fn measured(&mut self, now: Now, of: &Measurement, found: Found) {
        self.measuring.remove(of);
        let (intent, check, wave, number) = of.clone();
        let (measure, value) = found;
        let input = Input::Check { check, wave, number, measure, value };
        self.drive_on(now, intent, &input);
    }
}

/// Returns the nodes that run the release and are healthy.
fn running(state: &Rollout) -> impl Iterator<Item = &NodeId> {
    state.plan().targets().filter(|node| state.node(node) == Some(NodeState::Healthy))
}

fn told(state: &Rollout, of: &Measurement) -> program::Told {
    program::Told {
        service: state.plan().service.to_string(),
        rollout: rollout_name(of.0),
        release: state.plan().release.to_string(),
        wave: of.2,
        nodes: running(state).map(ToString::to_string).collect(),
    }
}

async fn get(address: &Address) -> Found {
    match timeout(ANSWER_WITHIN, web::get(address)).await {
        Ok(Ok(answer)) => {
            let measure = if answer.status().is_success() { Measure::Good } else { Measure::Bad };
            (measure, answer.status().as_u16().to_string())
        }
        Ok(Err(error)) => (Measure::Error, error.to_string()),
        Err(_) => (Measure::Error, format!("no answer within {}s", ANSWER_WITHIN.as_secs())),
    }
}
