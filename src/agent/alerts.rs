//! Counts what the log thread finds, and tells the core when an alert is to fire and when it is over.

use std::collections::BTreeMap;

use super::clock;
use super::task::{Agent, Deadline};
use crate::domain::alert::{Told, Watch};
use crate::domain::id::{AlertName, Digest, InstanceId, ServiceId};
use crate::domain::input::{Alarm, Input};
use crate::domain::spec::{Alert, AlertOn};

/// The longest summary in characters: it is part of the folded state.
const SUMMARY_CHARS_MAX: usize = 160;

/// What is watched for. It is not folded: an agent that begins anew counts anew.
#[derive(Debug, Default)]
pub(super) struct Alerts {
    watched: BTreeMap<InstanceId, BTreeMap<AlertName, Watched>>,
}

#[derive(Debug)]
struct Watched {
    watch: Watch,
    /// The last line that matched, redacted.
    line: String,
    /// The spec of the run whose lines are counted, where there was one.
    spec: Option<Digest>,
}

impl Agent {
    /// Watches for what the specs say of all services, or of one that changed.
    pub(super) fn watch_alerts(&mut self, only: Option<&ServiceId>) {
        let now = now_ms();
        // With every end of a run: of the others nothing is looked at.
        let services = match only {
            Some(only) => self.node.services().range(only..=only),
            None => self.node.services().range::<ServiceId, _>(..),
        };
        let mut due = Vec::new();
        for (service, known) in services {
            let spec = self.services.spec_of(service);
            for (index, slot) in known.slots() {
                let runs = slot.heard_spec(known.digest);
                let instance = InstanceId { service: service.clone(), index };
                let is_wanted = known.wants(index);
                let rules = spec.iter().filter(|_| !known.removed && index < known.wanted);
                let rules = rules.flat_map(|(spec, _)| &spec.alert);
                let mut before = self.alerts.watched.remove(&instance).unwrap_or_default();
                let mut after = BTreeMap::new();
                for (name, rule) in rules {
                    let known = before.remove(name);
                    let spec = known.as_ref().and_then(|watched| watched.spec);
                    // What lines of another spec say, those of a release that was left, is nothing against this one.
                    let is_anew = spec.is_some() && runs.is_some() && spec != runs;
                    let is_firing = slot.firing.contains_key(name.as_str());
                    if is_anew && is_firing {
                        due.push((instance.clone(), name.clone(), Some(Told::IsOver)));
                    }
                    let kept = known.filter(|known| !is_anew && known.watch.watches(rule));
                    let mut watched = kept.unwrap_or_else(|| {
                        let watch = Watch::new(rule, is_firing && !is_anew, now);
                        Watched { watch, line: String::new(), spec }
                    });
                    watched.spec = runs.or(spec);
                    let told = watched.watch.wanted(is_wanted, now);
                    due.push((instance.clone(), name.clone(), told));
                    after.insert(name.clone(), watched);
                }
                for name in before.into_keys() {
                    self.timers.cancel(&Deadline::Alert(instance.clone(), name));
                }
                if !after.is_empty() {
                    self.alerts.watched.insert(instance, after);
                }
            }
        }
        for (instance, name, told) in due {
            self.alert_told(instance, name, told);
        }
    }

    /// Takes lines in which the log thread found what is watched for.
    pub(super) fn alert_matched(
        &mut self,
        instance: InstanceId,
        name: AlertName,
        lines: u64,
        line: String,
    ) {
        let rules = self.alerts.watched.get_mut(&instance);
        let Some(watched) = rules.and_then(|rules| rules.get_mut(&name)) else { return };
        watched.line = line;
        let told = watched.watch.matched(lines, now_ms());
        self.alert_told(instance, name, told);
    }

    /// Looks at an alert whose time has come.
    pub(super) fn alert_due(&mut self, instance: InstanceId, name: AlertName) {
        let rules = self.alerts.watched.get_mut(&instance);
        let Some(watched) = rules.and_then(|rules| rules.get_mut(&name)) else { return };
        let told = watched.watch.look(now_ms());
        self.alert_told(instance, name, told);
    }

    /// Sets the next deadline of an alert, and tells the core what there is to tell.
    fn alert_told(&mut self, instance: InstanceId, alert: AlertName, told: Option<Told>) {
        let rules = self.alerts.watched.get(&instance);
        let Some(watched) = rules.and_then(|rules| rules.get(&alert)) else { return };
        let deadline = Deadline::Alert(instance.clone(), alert.clone());
        match watched.watch.due() {
            Some(at_ms) => self.timers.set(deadline, at_ms.saturating_mul(1_000_000)),
            None => self.timers.cancel(&deadline),
        }
        match told {
            Some(Told::Fires { lines }) => {
                let line = watched.line.clone();
                if let Some(alarm) = self.alarm(&instance, &alert, lines, line) {
                    self.inbox.push_back(Input::AlertRaised { instance, alert, alarm });
                }
            }
            Some(Told::IsOver) => self.inbox.push_back(Input::AlertOver { instance, alert }),
            None => {}
        }
    }

    fn alarm(
        &mut self,
        instance: &InstanceId,
        alert: &AlertName,
        lines: u64,
        line: String,
    ) -> Option<Alarm> {
        let (spec, _) = self.services.spec_of(&instance.service)?;
        let rule = spec.alert.get(alert)?;
        let slot = self.node.instance(instance);
        let run = slot.and_then(|slot| slot.coming().map_or(&slot.state, |it| &it.state).run());
        let annotations = self.launchers.annotations(rule, instance, run);
        let summary = annotations.get("summary").cloned().unwrap_or_else(|| words(rule, lines));
        Some(Alarm {
            summary: summary.chars().take(SUMMARY_CHARS_MAX).collect(),
            annotations,
            line: self.launchers.keep_line(line),
        })
    }
}

fn words(rule: &Alert, lines: u64) -> String {
    match rule.on {
        AlertOn::Log { window, .. } => {
            let lines = if lines == 1 { "1 line".to_owned() } else { format!("{lines} lines") };
            format!("{lines} like `{}` within {}s", rule.r#match, window.0.div_ceil(1000))
        }
        AlertOn::Absence => {
            format!("no line like `{}` for {}s", rule.r#match, rule.r#for.0.div_ceil(1000))
        }
    }
}

fn now_ms() -> u64 {
    clock::now().mono_ns / 1_000_000
}
