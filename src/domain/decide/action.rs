//! What the keeper reports of declared actions, and what follows.

use super::Turn;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Timer};
use crate::domain::event::{ActionEnded, ActionStarted, Cause, Context, Event, Exit, Outcome};
use crate::domain::id::{ActionName, IntentId};
use crate::domain::input::ActionEnd;
use crate::domain::intent::Action;
use crate::domain::seen::failed;
use crate::domain::spec;

impl Turn<'_> {
    fn action_spec(
        &self,
        intent: IntentId,
    ) -> Option<(Context, ActionName, Option<&spec::Action>)> {
        let record = self.record(&intent)?;
        record.open()?;
        let Action::Run { service, action, .. } = &record.action else { return None };
        let context =
            Context::service(service).because(Some(Cause::Intent(intent)), record.by.clone());
        let declared = self.spec(service).and_then(|spec| spec.action.get(action));
        Some((context, action.clone(), declared))
    }

    pub(super) fn action_started(&mut self, intent: IntentId) {
        let Some((context, action, declared)) = self.action_spec(intent) else { return };
        if self.open(&intent).is_none_or(|open| open.action_until.is_some()) {
            return;
        }
        let timeout_ms =
            declared.map_or(spec::Action::new(Vec::new()).timeout.0, |spec| spec.timeout.0);
        let until = self.now().plus_ms(timeout_ms);
        self.emit(context, Event::ActionStarted(ActionStarted { intent, action, until }));
        let act = self.set_timer(Timer::Action(intent), until);
        self.repair(act);
    }

    pub(super) fn action_ended(&mut self, intent: IntentId, end: ActionEnd) {
        let Some((context, action, declared)) = self.action_spec(intent) else {
            self.promise(Act::AcknowledgeAction { intent });
            return;
        };
        let idempotent = declared.is_some_and(|spec| spec.idempotent);
        let timeout_ms = declared.map_or(u64::MAX, |spec| spec.timeout.0);
        let outcome = match end {
            ActionEnd::Exited { exit, ran_ms } => {
                let timed_out = ran_ms >= timeout_ms;
                let body = ActionEnded { intent, action, exit, timed_out, ran_ms };
                self.emit(context, Event::ActionEnded(body));
                self.promise(Act::AcknowledgeAction { intent });
                match exit {
                    Exit::Code(0) => Outcome::Done { changed: true },
                    Exit::Unknown => Outcome::Unknown { why: "nobody saw the end".to_owned() },
                    _ if timed_out => {
                        failed(Code::ACTION_FAILED, "it was killed at its deadline", Some(exit))
                    }
                    Exit::Code(_) | Exit::Signal { .. } => {
                        failed(Code::ACTION_FAILED, "it ran and failed", Some(exit))
                    }
                }
            }
            ActionEnd::NotStarted { why } => {
                self.promise(Act::AcknowledgeAction { intent });
                failed(Code::SPAWN_FAILED, why, None)
            }
            ActionEnd::Lost if idempotent => {
                self.start_action(intent);
                return;
            }
            ActionEnd::Lost => {
                Outcome::Unknown { why: "it may have run: agent or keeper died with it".to_owned() }
            }
        };
        self.execute(intent, outcome);
    }

    /// Asks for the action of a wish; asking again is harmless as long as the keeper lives.
    pub(super) fn start_action(&mut self, intent: IntentId) {
        let Some(record) = self.record(&intent) else { return };
        let Action::Run { service, action, params, .. } = record.action.clone() else { return };
        self.promise(Act::StartAction { intent, service, action, params });
    }
}
