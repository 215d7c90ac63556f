//! What somebody sets of a service by a signed wish: taken, put into force, and ended at its time.

use std::collections::BTreeSet;

use super::Turn;
use crate::domain::effect::{Act, Effect, Timer};
use crate::domain::event::{Cause, Context, Event};
use crate::domain::id::ServiceId;
use crate::domain::input::Wish;
use crate::domain::intent::Action;
use crate::domain::overrides::{ConfigExpired, KEYS_MAX, LIFE_MS_MAX, Overrides, SET_BYTES_MAX};
use crate::domain::rejection::Rejection;
use crate::domain::seen::SKEW_MS;
use crate::domain::time::UnixMicros;

/// How much later a time ends that is over while a release is on trial: it is judged by the spec that it began with.
const AGAIN_MS: u64 = 5_000;

impl Turn<'_> {
    fn overrides(&self, service: &ServiceId) -> Option<&Overrides> {
        let node = if self.loaded.contains(service) { &self.draft } else { self.node };
        node.overrides().get(service)
    }

    /// Says whether what a wish sets can be kept, as far as this can be told without reading it as a spec.
    pub(super) fn may_configure(&self, action: &Action) -> Result<(), Rejection> {
        let Action::Configure { service, generation, set, unset, until, node } = action else {
            return Ok(());
        };
        let bad = |name: &str, why| Err(Rejection::BadParameter { name: name.to_owned(), why });
        let keys = set.len() + unset.len();
        let bytes: usize = set.iter().map(|(key, value)| key.len() + value.len()).sum();
        let bytes = bytes + unset.iter().map(String::len).sum::<usize>();
        let latest = self.now().plus_ms(LIFE_MS_MAX + SKEW_MS);
        match (generation, until) {
            _ if keys == 0 || keys > KEYS_MAX => bad("set", "1 to 64 keys are set at once"),
            _ if bytes > SET_BYTES_MAX => bad("set", "longer than 16 KiB"),
            _ if set.keys().any(|key| unset.contains(key)) => {
                bad("set", "a key is set and unset at once")
            }
            (Some(_), _) if *node => bad("node", "what is set of the node itself has no number"),
            (_, Some(_)) if *node => bad("until", "what is set of the node itself has no end"),
            (Some(_), Some(_)) => bad("until", "what is set for a part of the fleet has no end"),
            (None, None) if !set.is_empty() && !node => {
                bad("until", "what is set for a time has an end")
            }
            (None, Some(until)) if *until <= self.now() => bad("until", "that time is over"),
            (None, Some(until)) if *until > latest => bad("until", "it is longer than 7 days"),
            // A release on trial is judged by the spec that it began with.
            _ if self.under_way(service).is_some() => Err(Rejection::Busy),
            _ => Ok(()),
        }
    }

    /// Takes what was set, and lets the service go on by it.
    pub(super) fn configure(&mut self, wish: &Wish, context: Context) {
        let change = wish.action.config_change(wish.id);
        let (Some(service), Some(body)) = (wish.action.service(), change) else { return };
        self.emit(context, Event::ConfigChanged(body));
        self.promise(Act::LoadSpecs { intent: wish.id, services: vec![service.clone()] });
    }

    /// Ends what was set for a time that is over.
    pub(super) fn expire(&mut self, service: &ServiceId, at: UnixMicros) {
        let over = |overrides: &Overrides| -> BTreeSet<String> {
            let is_over = |until: Option<UnixMicros>| until.is_some_and(|until| until <= at);
            let all = overrides.temporary.iter().filter(|(_, it)| is_over(it.until));
            all.map(|(key, _)| key.clone()).collect()
        };
        let keys = self.overrides(service).map(over).unwrap_or_default();
        let first = keys.first().and_then(|key| self.overrides(service)?.temporary.get(key));
        let Some(intent) = first.map(|it| it.intent) else { return };
        if self.under_way(service).is_some() {
            let timer = Timer::Override(service.clone());
            self.repair(Act::SetTimer { timer, at, after_ms: AGAIN_MS });
            return;
        }
        let context = Context::service(service).because(Some(Cause::Intent(intent)), None);
        self.emit(context, Event::ConfigExpired(ConfigExpired { until: at, keys }));
        if self.service(service).is_some_and(|known| !known.removed) {
            self.promise(Act::LoadSpecs { intent, services: vec![service.clone()] });
        }
    }

    /// Adds the timers of what was set for a time.
    pub(super) fn time_overrides(&self, effects: &mut Vec<Effect>) {
        let all = self.node.overrides().keys().chain(self.draft.overrides().keys());
        let all: BTreeSet<&ServiceId> = all.collect();
        for service in all {
            let before = self.node.overrides().get(service).and_then(Overrides::next_end);
            let after = self.overrides(service).and_then(Overrides::next_end);
            let is_lost = self.reconciling && self.agent_is_new && after.is_some();
            if before == after && !is_lost {
                continue;
            }
            let timer = Timer::Override(service.clone());
            effects.push(Effect::Repair(match after {
                Some(at) => self.set_timer(timer, at),
                None => Act::CancelTimer { timer },
            }));
        }
    }
}
