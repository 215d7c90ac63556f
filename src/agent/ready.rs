//! Judges the signs by which runs say that they are ready: whose they are, and when they may be forgotten.
//!
//! A sign may be faster than the word of the start, and may have lain in its socket since before this agent. It is judged
//! when the start is known, and goes when what it led to is durable.

use tracing::debug;

use super::names;
use super::signs::{Sender, Sign, SignNumber};
use super::task::{Agent, Promise};
use crate::domain::effect::Timer;
use crate::domain::event::{Context, Event};
use crate::domain::id::{InstanceId, RunId};
use crate::domain::input::Input;
use crate::domain::instance::{Instance, State};
use crate::domain::spec::ReadyBy;

impl Agent {
    /// Takes a datagram of a slot.
    pub(super) fn notified(&mut self, instance: &InstanceId, sign: Sign) {
        let Some(ear) = self.hands.ear(instance) else { return };
        let Some(number) = ear.heard(sign) else { return };
        match sign {
            Sign::Ready(sender) => self.judge(instance, number, sender),
            Sign::Other | Sign::Empty => ear.done(number),
        }
    }

    /// Takes what was in a notify socket before this agent listened. Of whom it is, when its process is gone and the
    /// slot has no process, nobody can tell: it may be of the run before.
    pub(super) fn was_notified(&mut self, instance: &InstanceId, sign: Sign, has_run: bool) {
        match sign {
            Sign::Ready(sender) if sender.is_gone() && !has_run => {
                self.notified(instance, Sign::Other);
            }
            sign => self.notified(instance, sign),
        }
    }

    fn judge(&mut self, instance: &InstanceId, number: SignNumber, sender: Sender) {
        let known = self.node.instance(instance);
        let before = known.and_then(|known| known.last.as_ref()?.process).map(|last| last.pid);
        // One that is to be ready comes first: where the sender is gone, it is the one whose word is awaited.
        let mut states: Vec<&State> = known.into_iter().flat_map(Instance::states).collect();
        states.sort_by_key(|state| !matches!(state, State::Starting { .. }));
        let is_asked = states.iter().any(|state| matches!(state, State::Spawning { .. }));
        let serves = |state: &&State| state.is_ready();
        let mut mains =
            states.iter().filter(|state| !(is_asked && sender.is_gone() && serves(state)));
        let run = mains.find_map(|state| {
            state.main().filter(|main| sender.speaks_for(main.pid, before)).map(|main| main.run)
        });
        match run {
            Some(run) => {
                let how = "notify".to_owned();
                self.decide(Input::Ready { instance: instance.clone(), run, how });
            }
            None if is_asked => {
                if let Some(ear) = self.hands.ear(instance) {
                    ear.keep_early(number, sender);
                }
                return;
            }
            None => debug!(%instance, ?sender, "a stranger at the notify socket"),
        }
        // Behind whatever it led to, now or before.
        self.recorder.promise(Promise::Heard(instance.clone(), number));
        self.let_go(self.recorder.durable_seq());
    }

    /// Lets go of a datagram: what it led to is durable.
    pub(super) fn forget_sign(&mut self, instance: &InstanceId, number: SignNumber) {
        if let Some(ear) = self.hands.ear(instance) {
            ear.done(number);
        }
    }

    /// Keeps the word of a run whose start was not told yet.
    pub(super) fn keep_ready(&mut self, instance: InstanceId, run: RunId, how: String) {
        self.early.insert(instance, (run, how));
    }

    /// Notes which slots have words that can be judged after an event.
    pub(super) fn heed_start(&mut self, context: &Context, event: &Event) {
        if matches!(
            event,
            Event::InstanceStarting(_) | Event::InstanceStarted(_) | Event::InstanceStartFailed(_)
        ) {
            self.begun.extend(context.instance_id());
        }
    }

    /// Judges what was said before the start was told.
    pub(super) fn judge_early(&mut self) {
        while let Some(instance) = self.begun.pop() {
            let known = self.node.instance(&instance);
            let states = known.into_iter().flat_map(Instance::states);
            let alive: Vec<RunId> = states.filter_map(State::main).map(|main| main.run).collect();
            let early = self.hands.ear(&instance).map(super::signs::Ear::take_early);
            for (number, sender) in early.into_iter().flatten() {
                match alive.is_empty() {
                    false => self.judge(&instance, number, sender),
                    true => self.forget_sign(&instance, number),
                }
            }
            if let Some((said, how)) = self.early.remove(&instance)
                && alive.contains(&said)
            {
                self.decide(Input::Ready { instance, run: said, how });
            }
        }
    }

    /// Says whether the run that a timer is about cannot be heard: until then it is not late.
    pub(super) fn is_deaf_to(&self, timer: &Timer) -> bool {
        let Timer::Ready(instance, _) = timer else { return false };
        let held = self.hands.held.get(&names::slot(instance));
        let spec = self.services.spec_of(&instance.service).map(|(spec, _)| spec);
        match spec.map(|spec| spec.ready.by.clone()) {
            Some(ReadyBy::Notify) => held.is_none_or(|held| held.ear.is_none()),
            Some(ReadyBy::Log(_) | ReadyBy::Fd(_)) => held.is_none_or(|held| !held.has_pipes()),
            Some(ReadyBy::Started | ReadyBy::Health) | None => false,
        }
    }

    /// Says whether all that a slot's run may say is heard.
    pub(super) fn hears_all(&self, instance: &InstanceId) -> bool {
        let Some(held) = self.hands.held.get(&names::slot(instance)) else { return false };
        let spec = self.services.spec_of(&instance.service).map(|(spec, _)| spec);
        held.has_pipes() && (held.ear.is_some() || spec.is_none_or(|spec| !spec.notifies()))
    }
}
