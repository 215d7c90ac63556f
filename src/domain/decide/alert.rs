//! Alerts on what services write: told once when they fire and once when they are over.

use std::collections::BTreeMap;

use super::Turn;
use crate::domain::event::{AlertFired, AlertResolved, Context, Event};
use crate::domain::id::{AlertName, InstanceId, ServiceId};
use crate::domain::input::Alarm;
use crate::domain::text;

/// How much of the labels, and of the annotations, an event tells, in bytes: a spec may hold more than an event.
const TEXTS_BYTES_MAX: usize = 16 * 1024;

/// Keeps texts as far as they fit an event.
fn bounded(texts: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut left = TEXTS_BYTES_MAX;
    let mut take = |name: &str, text: &str| {
        let rest = left.checked_sub(name.len() + text.len());
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let texts = texts.into_iter().map(|(name, text)| (name, text::brief(text, 4096)));
    texts.take_while(|(name, text)| take(name, text)).collect()
}

impl Turn<'_> {
    pub(super) fn alert_raised(&mut self, id: &InstanceId, alert: &AlertName, alarm: Alarm) {
        let Some(rule) = self.spec(&id.service).and_then(|spec| spec.alert.get(alert)) else {
            return; // Taken out of the spec in the meantime.
        };
        if self.instance(id).is_none_or(|instance| instance.firing.contains_key(alert.as_str())) {
            return;
        }
        let body = AlertFired {
            alert: format!("{}/{alert}", id.service),
            severity: rule.severity.word().to_owned(),
            summary: text::brief(alarm.summary, text::WHY_BYTES_MAX),
            labels: bounded(rule.labels.clone()),
            annotations: bounded(alarm.annotations),
            line: alarm.line,
        };
        self.emit(self.of_alert(id), Event::AlertFired(body));
    }

    pub(super) fn alert_over(&mut self, id: &InstanceId, alert: &str) {
        if self.instance(id).is_some_and(|instance| instance.firing.contains_key(alert)) {
            let alert = format!("{}/{alert}", id.service);
            self.emit(self.of_alert(id), Event::AlertResolved(AlertResolved { alert }));
        }
    }

    /// Ends what fires by a rule that is gone, or of a slot that is.
    pub(super) fn end_orphaned_alerts(&mut self, service: &ServiceId) {
        let wanted = self.service(service).map_or(0, |known| known.wanted);
        let rules = self.spec(service).map(|spec| &spec.alert);
        self.end_alerts(service, |index, name| {
            index >= wanted
                || rules.is_none_or(|rules| rules.keys().all(|rule| rule.as_str() != name))
        });
    }

    /// Ends what fires of a service that is removed.
    pub(super) fn end_all_alerts(&mut self, service: &ServiceId) {
        self.end_alerts(service, |_, _| true);
    }

    fn end_alerts(&mut self, service: &ServiceId, is_over: impl Fn(u16, &str) -> bool) {
        let Some(known) = self.service(service) else { return };
        let mut over = Vec::new();
        for (index, slot) in known.slots() {
            let names = slot.firing.keys().filter(|name| is_over(index, name));
            over.extend(
                names.map(|name| (InstanceId { service: service.clone(), index }, name.clone())),
            );
        }
        for (id, alert) in over {
            self.alert_over(&id, &alert);
        }
    }

    fn of_alert(&self, id: &InstanceId) -> Context {
        match self.state(id).and_then(|state| state.run()) {
            Some(run) => Context::run(id, run),
            None => Context::instance(id),
        }
    }
}
