//! Folds what is told about releases.

use super::{IllegalEvent, Node};
use crate::domain::event::{Context, Event, IntentAccepted};
use crate::domain::id::Digest;
use crate::domain::intent::Action;
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
