//! What a person should look at: a way back that failed, and a release that passed canary and waves. Alerts in the
//! controller's own log, where whoever follows the events of the fleet finds them.

use std::collections::BTreeMap;

use super::task::Controller;
use crate::domain::event::{AlertFired, AlertResolved, Cause, Context, Event};
use crate::domain::id::IntentId;
use crate::domain::rollout::view::rollout_name;
use crate::domain::rollout::{Rollout, RolloutEvent, Verdict};

const ROLLBACK_FAILED: &str = "rollback-failed";
const EMERGENCY: &str = "emergency";

impl Controller {
    /// Returns the alerts that follow from new facts of a rollout.
    pub(super) fn alerts(
        &self,
        intent: IntentId,
        facts: &[(Context, Event)],
    ) -> Vec<(Context, Event)> {
        let story = self.rollouts.all.get(&intent).map(|driven| &driven.story);
        let Some((story, state)) = story.and_then(|story| Some((story, story.state()?))) else {
            return Vec::new();
        };
        let service = &state.plan().service;
        let by = story.planned().and_then(|(_, planned)| planned.by.clone());
        let name = |alert: &str| format!("{service}/{alert}");
        let context = Context::service(service).because(Some(Cause::Intent(intent)), by);
        let rollout = rollout_name(intent);
        let fired = |alert: &str, severity: &str, summary: String| {
            let labels = BTreeMap::from([("rollout".to_owned(), rollout.clone())]);
            let (severity, annotations) = (severity.to_owned(), BTreeMap::new());
            let alert = name(alert);
            let body = AlertFired { alert, severity, summary, labels, annotations, line: None };
            (context.clone(), Event::AlertFired(body))
        };
        let resolved = |alert: &str| {
            (context.clone(), Event::AlertResolved(AlertResolved { alert: name(alert) }))
        };
        let mut alerts = Vec::new();
        let emergency = state.plan().emergency.as_ref();
        // The first fact may be longer than an event; then it stands in several.
        if facts.len() >= story.records().len()
            && let Some(reason) = emergency
        {
            let summary = format!("{rollout} passes canary and waves: {reason}");
            alerts.push(fired(EMERGENCY, "warning", summary));
        }
        if ends(facts) {
            alerts.extend(emergency.map(|_| resolved(EMERGENCY)));
            let verdict = state.verdict();
            if verdict == Some(Verdict::RollbackFailed) {
                let summary =
                    format!("the way back of {rollout} failed: a person is needed on its nodes");
                alerts.push(fired(ROLLBACK_FAILED, "critical", summary));
            }
            // What sets a value brings no release.
            let brings = verdict == Some(Verdict::Succeeded) && !state.plan().configures;
            if brings && self.was_left_broken(intent, state) {
                alerts.push(resolved(ROLLBACK_FAILED));
            }
        }
        alerts
    }

    /// Says whether a way back failed and nothing has succeeded since, before this rollout did.
    fn was_left_broken(&self, intent: IntentId, state: &Rollout) -> bool {
        let all = self.rollouts.of_service(&state.plan().service);
        let earlier = all.iter().skip_while(|(other, _)| *other != intent).skip(1);
        let earlier = earlier.filter(|(_, other)| !other.plan().configures);
        let mut verdicts = earlier.filter_map(|(_, other)| other.verdict());
        let since = verdicts
            .find(|verdict| matches!(verdict, Verdict::Succeeded | Verdict::RollbackFailed));
        since == Some(Verdict::RollbackFailed)
    }
}

fn ends(facts: &[(Context, Event)]) -> bool {
    let is_end = |event: &Event| {
        let Event::Rollout(fact) = event else { return false };
        matches!(fact.event, RolloutEvent::Ended(_))
    };
    facts.iter().any(|(_, event)| is_end(event))
}
