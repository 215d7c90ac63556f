//! Folds what is told about releases.

use super::{IllegalEvent, Node};
use crate::domain::event::{Context, Event, IntentAccepted};
use crate::domain::id::{ActionName, Digest, IntentId};
use crate::domain::intent::Action;
use crate::domain::release::trial::{Releases, Trying};
use crate::domain::time::UnixMicros;

impl Node {
    /// Begins what a wish for a release asks for.
    pub(super) fn accept_release(&mut self, at: UnixMicros, body: &IntentAccepted) {
        let (Some(service), Some(generation)) =
            (body.action.service(), body.action.release_generation())
        else {
            return;
        };
        let files = self.services.get(service).filter(|known| !known.removed);
        let files = files.map(|known| known.digest);
        let known = self.releases.entry(service.clone()).or_default();
        match (&body.action, body.release) {
            (Action::Deploy { back_to, .. }, Some(release)) => {
                known.accept(at, body.intent, generation, release, *back_to, files);
            }
            // What is taken away runs from nothing, and has nothing to return to.
            _ => {
                (known.generation, known.current, known.trial) = (generation, None, None);
                known.left = None;
            }
        }
    }

    /// Returns what a wish has on trial whose next step is this action.
    pub(super) fn follow_up_mut(
        &mut self,
        context: &Context,
        intent: IntentId,
        action: &ActionName,
    ) -> Option<&mut Trying> {
        let trial = self.releases.get_mut(context.service.as_ref()?)?.trial.as_mut()?;
        let is_next = trial.intent == intent && trial.next_action() == Some(action);
        trial.trying.as_mut().filter(|_| is_next)
    }

    /// Says whether a service has a use for an action under this id: a wish asked for it, or a release waits for it.
    pub fn awaits_action(&self, id: &IntentId) -> bool {
        let is_it = |known: &Releases| {
            known.trial.as_ref().and_then(|trial| trial.acting()).is_some_and(|(of, _)| of == *id)
        };
        let record = self.seen.get(id);
        record.is_some_and(|record| record.open().is_some()) || self.releases.values().any(is_it)
    }

    /// Folds an event about releases.
    pub(super) fn evolve_releases(
        &mut self,
        at: UnixMicros,
        context: &Context,
        event: &Event,
    ) -> Result<(), IllegalEvent> {
        let nameless = IllegalEvent { state: "no service named", event: event.kind() };
        let service = context.service.as_ref().ok_or(nameless)?;
        let known = self.releases.entry(service.clone()).or_default();
        let follows = match event {
            Event::OrderAccepted(body) => {
                let term = self.head.term.as_ref().map(|(term, _)| *term);
                if term.is_none_or(|term| term < body.term) {
                    self.head.term = Some((body.term, body.controller.clone()));
                }
                known.order(at, body);
                true
            }
            Event::ReleaseApplied(body) => known.applied(at, body),
            Event::ReleaseHealthy(body) => known.healthy(body),
            Event::ReleaseFailed(body) => known.failed(at, body),
            Event::ReleaseReturned(body) => known.returned(body),
            _ => true,
        };
        if !follows {
            return Err(IllegalEvent { state: "no such release on its way", event: event.kind() });
        }
        self.look_at_release(at, context, None);
        Ok(())
    }

    /// Looks anew at how far a release is after its service changed; `spec` is its new spec.
    pub(super) fn look_at_release(
        &mut self,
        at: UnixMicros,
        context: &Context,
        spec: Option<Digest>,
    ) {
        let Some(name) = &context.service else { return };
        let Some(known) = self.releases.get_mut(name) else { return };
        if let Some(spec) = spec {
            known.respecified(spec);
        }
        let trying = known.trial.as_mut().and_then(|trial| trial.trying.as_mut());
        if let (Some(trying), Some(service)) = (trying, self.services.get(name)) {
            trying.look(at, service);
        }
    }
}
