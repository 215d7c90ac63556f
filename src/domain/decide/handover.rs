//! A handover: one run begins beside the one that serves, and relieves it when it is ready and well.

use super::Turn;
use super::drive::Step;
use super::health::passes;
use crate::domain::event::{Context, Event, InstanceHandedOver, InstanceStarting, StopReason};
use crate::domain::id::{InstanceId, ServiceId};
use crate::domain::instance::{Instance, State};
use crate::domain::node::Service;
use crate::domain::spec::{Kind, UpdateMethod};

impl Turn<'_> {
    /// Says whether a run of this service begins beside the one before.
    pub(super) fn hands_over(&self, service: &ServiceId) -> bool {
        self.spec(service).is_some_and(|spec| {
            spec.update.method == UpdateMethod::Handover && spec.kind == Kind::Daemon
        })
    }

    /// Returns how an instance that is up is replaced: beside the run that serves, or in its place.
    pub(super) fn replace(
        &self,
        id: &InstanceId,
        service: &Service,
        instance: &Instance,
        reason: StopReason,
    ) -> Option<Step> {
        let stops = Some(Step::Stop { then_start: true, reason });
        if !self.hands_over(&id.service) {
            return stops;
        }
        match &instance.state {
            // What failed is tried again when somebody asks, or gives it another spec.
            _ if reason != StopReason::Wish && instance.gave_up == Some(service.digest) => None,
            State::Running { .. } if instance.beside.is_none() => Some(Step::BeginBeside),
            // There are never three, and what is asked of a run is not asked of its successor.
            State::Running { .. } | State::Reloading { .. } => None,
            _ => stops,
        }
    }

    /// Returns the step of the run beside the one that counts.
    pub(super) fn step_beside(
        &self,
        id: &InstanceId,
        service: &Service,
        instance: &Instance,
        wanted: bool,
    ) -> Option<Step> {
        let beside = instance.beside.as_ref()?;
        if matches!(beside.state, State::Stopping { .. }) {
            return None;
        }
        // Without a run that counts there is nothing to take over from: the slot begins anew.
        if instance.coming().is_none() || instance.state.run().is_none() {
            return Some(Step::StopBeside { reason: StopReason::HandedOver });
        }
        let is_outdated = beside.state.main().is_some_and(|main| main.spec != service.digest);
        let is_well = || self.spec(&id.service).is_none_or(|spec| passes(&beside.checks, spec));
        match (&beside.state, wanted) {
            (_, false) => Some(Step::StopBeside { reason: StopReason::Wish }),
            (_, true) if is_outdated => Some(Step::StopBeside { reason: StopReason::Update }),
            (State::Running { .. }, true) if is_well() => Some(Step::HandOver),
            _ => None,
        }
    }

    /// Begins a run beside the one that serves.
    pub(super) fn begin_beside(&mut self, id: &InstanceId) {
        let Some(service) = self.service(&id.service) else { return };
        let beside = Some(service.digest);
        let Some(instance) = self.instance(id) else { return };
        let (run, from) = (instance.next_run(), instance.state.name());
        let because = match (self.asked_by(id), self.service(&id.service)) {
            (None, Some(service)) => service.changed_by.clone(),
            (asked, _) => asked.unwrap_or_default(),
        };
        let context = Context::run(id, run).with(because);
        self.emit(
            context,
            Event::InstanceStarting(InstanceStarting { from, fresh: false, beside }),
        );
    }

    /// Lets the run beside take the place of the one that counts.
    pub(super) fn hand_over(&mut self, id: &InstanceId, is_ready: bool) {
        let Some(instance) = self.instance(id) else { return };
        let (Some(coming), Some(from)) = (instance.coming(), instance.state.run()) else { return };
        let Some(run) = coming.state.run() else { return };
        let took_ms = self.now().ms_since(coming.since);
        let body = InstanceHandedOver { from, is_ready, took_ms };
        self.emit(self.about(id, run), Event::InstanceHandedOver(body));
    }

    /// Lets the run beside, ready or not, take the place of one that can serve no longer.
    pub(super) fn give_way(&mut self, id: &InstanceId) {
        if self.is_wanted(id) {
            self.hand_over(id, false);
        }
    }
}
