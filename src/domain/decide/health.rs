//! What follows from the checks of a run: that it becomes ready, that it is not ready, that it is started anew.

use std::collections::BTreeMap;

use super::Turn;
use crate::domain::event::{Context, Event, StopReason};
use crate::domain::health::{
    Check, InstanceHealthy, InstanceUnhealthy, MESSAGE_BYTES_MAX, Verdict,
};
use crate::domain::id::{CheckName, InstanceId, RunId, ServiceId};
use crate::domain::instance::{Instance, State};
use crate::domain::spec::{OnFailure, ReadyBy, Spec};
use crate::domain::text;

impl Turn<'_> {
    pub(super) fn checked(
        &mut self,
        id: &InstanceId,
        run: RunId,
        check: &CheckName,
        verdict: Verdict,
    ) {
        let Some(rule) = self.spec(&id.service).and_then(|spec| spec.health.get(check)) else {
            return; // Taken out of the spec in the meantime.
        };
        let Some(instance) = self.instance(id).filter(|instance| is_probed(instance, run)) else {
            return; // Of a run that is over, or on its way down.
        };
        let on_failure = rule.on_failure;
        let known = checks_of(instance, run).get(check).map(|check| check.failing.is_none());
        let is_news = known != Some(verdict.answer.is_ok());
        match verdict.answer {
            Ok(()) if is_news => {
                let body = InstanceHealthy { check: check.clone(), in_a_row: verdict.in_a_row };
                self.emit(Context::run(id, run), Event::InstanceHealthy(body));
            }
            Err(message) if is_news => {
                let body = InstanceUnhealthy {
                    check: check.clone(),
                    in_a_row: verdict.in_a_row,
                    on_failure,
                    message: text::brief(message, MESSAGE_BYTES_MAX),
                };
                self.emit(Context::run(id, run), Event::InstanceUnhealthy(body));
            }
            Ok(()) | Err(_) => {}
        }
        self.follow_checks(id, run);
    }

    /// Draws the conclusions from what is known of the checks of a run.
    fn follow_checks(&mut self, id: &InstanceId, run: RunId) {
        let (Some(instance), Some(spec)) = (self.instance(id), self.spec(&id.service)) else {
            return;
        };
        let checks = checks_of(instance, run);
        let is_fatal = checks.iter().any(|(name, check)| {
            let rule = spec.health.get(name);
            check.failing.is_some()
                && rule.is_some_and(|rule| rule.on_failure == OnFailure::Restart)
        });
        match instance.of_run(run) {
            Some(State::Starting { .. })
                if spec.ready.by == ReadyBy::Health && passes(checks, spec) =>
            {
                self.ready(id, run, "health".to_owned());
            }
            // A run that is not ready yet is given time, and so is one that is to take over.
            Some(State::Starting { .. }) => {}
            _ if instance.is_beside(Some(run)) => {}
            // The checks are those of the spec that is to relieve it, which may ask at places that it does not have.
            _ if self.hands_over(&id.service) && self.is_outdated(id) => {}
            _ if is_fatal && self.is_wanted(id) && instance.coming().is_some() => {
                // What follows is a matter of the run beside.
                self.give_way(id);
            }
            _ if is_fatal => self.begin_stop(id, self.is_wanted(id), StopReason::Unhealthy),
            _ => {}
        }
    }

    /// Lets the checks of a changed spec hold: what is known of one that is gone, or that has another consequence, is
    /// forgotten, and one that makes a run ready may not be waited for any more.
    pub(super) fn forget_orphaned_checks(&mut self, service: &ServiceId) {
        let (Some(known), Some(spec)) = (self.service(service), self.spec(service)) else { return };
        let mut orphans = Vec::new();
        let mut runs = Vec::new();
        for (index, slot) in known.slots() {
            let id = InstanceId { service: service.clone(), index };
            for run in slot.runs().filter(|run| is_probed(slot, *run)) {
                for (name, check) in checks_of(slot, run) {
                    let rule = spec.health.get(name);
                    let holds = rule.is_some_and(|rule| {
                        let failing = check.failing.as_ref();
                        failing.is_none_or(|failing| failing.on_failure == rule.on_failure)
                    });
                    if !holds {
                        orphans.push((id.clone(), run, name.clone()));
                    }
                }
                runs.push((id.clone(), run));
            }
        }
        for (id, run, check) in orphans {
            let body = InstanceHealthy { check, in_a_row: 0 };
            self.emit(Context::run(&id, run), Event::InstanceHealthy(body));
        }
        for (id, run) in runs {
            self.follow_checks(&id, run);
        }
    }
}

/// Says whether a run is one whose checks count.
fn is_probed(instance: &Instance, run: RunId) -> bool {
    matches!(
        instance.of_run(run),
        Some(State::Starting { .. } | State::Running { .. } | State::Reloading { .. })
    )
}

/// Returns what is known of the checks of one of the runs of an instance.
fn checks_of(instance: &Instance, run: RunId) -> &BTreeMap<CheckName, Check> {
    match &instance.beside {
        Some(beside) if beside.state.run() == Some(run) => &beside.checks,
        _ => &instance.checks,
    }
}

/// Says whether each check passes that does not only report.
pub(super) fn passes(checks: &BTreeMap<CheckName, Check>, spec: &Spec) -> bool {
    let rules = spec.health.iter().filter(|(_, rule)| rule.on_failure != OnFailure::Report);
    let mut checks = rules.map(|(name, _)| checks.get(name));
    checks.all(|check| check.is_some_and(|check| check.failing.is_none()))
}
