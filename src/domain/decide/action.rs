//! What the keeper reports of declared actions, and what follows.

use super::Turn;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Timer};
use crate::domain::event::{ActionEnded, ActionStarted, Cause, Context, Event, Exit, Outcome};
use crate::domain::id::{ActionName, IntentId, ServiceId};
use crate::domain::input::ActionEnd;
use crate::domain::intent::Action;
use crate::domain::seen::failed;
use crate::domain::spec;
use crate::domain::time::UnixMicros;

/// An action that was asked for and has not ended.
pub(super) struct AskedAction<'a> {
    /// The wish behind it.
    intent: IntentId,
    /// Whose release waits for it, where it follows a deploy.
    follows: Option<ServiceId>,
    action: ActionName,
    context: Context,
    pub(super) declared: Option<&'a spec::Action>,
}

impl<'a> Turn<'a> {
    /// Returns what was asked for under this id.
    pub(super) fn asked_action(&self, id: IntentId) -> Option<AskedAction<'a>> {
        let declared = |service, action| self.spec(service).and_then(|it| it.action.get(action));
        if let Some((service, _)) = self.follow_ups().find(|(_, known)| *known == id) {
            let trial = self.trial(&service)?;
            let (intent, action) = (trial.intent, trial.next_action()?.clone());
            let context = self.about_release(&service);
            let declared = declared(&service, &action);
            return Some(AskedAction { intent, follows: Some(service), action, context, declared });
        }
        let record = self.record(&id)?;
        record.open()?;
        let Action::Run { service, action, .. } = &record.action else { return None };
        let context = Context::service(service).because(Some(Cause::Intent(id)), record.by.clone());
        let (action, declared) = (action.clone(), declared(service, action));
        Some(AskedAction { intent: id, follows: None, action, context, declared })
    }

    pub(super) fn action_started(&mut self, id: IntentId) {
        let Some(AskedAction { intent, follows: None, action, context, declared }) =
            self.asked_action(id)
        else {
            return; // After a deploy that was written down before it was asked for.
        };
        if self.open(&id).is_none_or(|open| open.action_until.is_some()) {
            return;
        }
        self.begun(id, context, ActionStarted { intent, action, until: self.until(declared) });
    }

    /// Returns when an action is killed that begins now.
    pub(super) fn until(&self, declared: Option<&spec::Action>) -> UnixMicros {
        let timeout_ms =
            declared.map_or(spec::Action::new(Vec::new()).timeout.0, |spec| spec.timeout.0);
        self.now().plus_ms(timeout_ms)
    }

    /// Writes down that an action begins, and sets its deadline.
    pub(super) fn begun(&mut self, id: IntentId, context: Context, body: ActionStarted) {
        let until = body.until;
        self.emit(context, Event::ActionStarted(body));
        let act = self.set_timer(Timer::Action(id), until);
        self.repair(act);
    }

    pub(super) fn action_ended(&mut self, id: IntentId, end: ActionEnd) {
        let Some(AskedAction { intent, follows, action, context, declared }) =
            self.asked_action(id)
        else {
            self.promise(Act::AcknowledgeAction { intent: id });
            return;
        };
        let idempotent = declared.is_some_and(|spec| spec.idempotent);
        let timeout_ms = declared.map_or(u64::MAX, |spec| spec.timeout.0);
        let (exit, ran_ms) = match &end {
            ActionEnd::Exited { exit, ran_ms } => (*exit, *ran_ms),
            ActionEnd::NotStarted { .. } | ActionEnd::Lost => (Exit::Unknown, 0),
        };
        let timed_out = ran_ms >= timeout_ms;
        let goes_down = self.head().stopping == Some(false);
        // What a deploy begins is written down before it is asked for, so its end is as well, whatever that was.
        if follows.is_some() || matches!(end, ActionEnd::Exited { .. }) {
            let action = action.clone();
            let body = ActionEnded { intent, action, exit, timed_out, ran_ms };
            self.emit(context, Event::ActionEnded(body));
        }
        if end != ActionEnd::Lost {
            self.promise(Act::AcknowledgeAction { intent: id });
        }
        let end = match end {
            // Its service was taken from under it, and it was killed then: no word against the release.
            _ if follows.is_some() && goes_down && exit != Exit::Code(0) => ActionEnd::Lost,
            end => end,
        };
        let outcome = match end {
            ActionEnd::Exited { exit, .. } => match exit {
                Exit::Code(0) => Outcome::Done { changed: true },
                Exit::Unknown => Outcome::Unknown { why: "nobody saw the end".to_owned() },
                _ if timed_out => {
                    failed(Code::ACTION_FAILED, "it was killed at its deadline", Some(exit))
                }
                Exit::Code(_) | Exit::Signal { .. } => {
                    failed(Code::ACTION_FAILED, "it ran and failed", Some(exit))
                }
            },
            ActionEnd::NotStarted { why } => failed(Code::SPAWN_FAILED, why, None),
            ActionEnd::Lost if idempotent => {
                // After a deploy it begins anew when the release is healthy again.
                if follows.is_none() {
                    self.start_action(id);
                }
                return;
            }
            ActionEnd::Lost => {
                Outcome::Unknown { why: "it may have run: agent or keeper died with it".to_owned() }
            }
        };
        match follows {
            None => self.execute(id, outcome),
            Some(service) => {
                self.repair(Act::CancelTimer { timer: Timer::Action(id) });
                self.follow_up_ended(&service, &action, &outcome, ran_ms);
            }
        }
    }

    /// Asks for the action of a wish; asking again is harmless as long as the keeper lives.
    pub(super) fn start_action(&mut self, intent: IntentId) {
        let Some(record) = self.record(&intent) else { return };
        let Action::Run { service, action, params, .. } = record.action.clone() else { return };
        self.promise(Act::StartAction { intent, service, action, params });
    }
}
