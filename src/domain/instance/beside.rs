//! The second run of an instance in a handover: first the one that is to take over, then the one that it relieved.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::state::State;
use super::{Instance, note_check};
use crate::domain::event::{Because, Context, Event, InstanceHandedOver, StopReason};
use crate::domain::health::Check;
use crate::domain::id::{CheckName, Digest, RunId, ServiceId};
use crate::domain::time::UnixMicros;

/// A run beside the one that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// Where it stands; never a state without a run.
    pub state: State,
    /// Since when there are two.
    pub since: UnixMicros,
    /// The spec that it is to be started from, or was.
    pub spec: Digest,
    /// Until when it has to be ready and well; absent before its start was told, and once it is relieved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMicros>,
    /// Whose act it is there for, and what led to it.
    #[serde(default, skip_serializing_if = "Because::is_nobody")]
    pub because: Because,
    /// What is known of its checks, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<CheckName, Check>,
    /// What its process was started after, as in [`Instance::started_after`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub started_after: BTreeMap<ServiceId, u64>,
}

impl Instance {
    /// Returns where its runs stand, the one that counts first.
    pub fn states(&self) -> impl Iterator<Item = &State> {
        let beside = self.beside.as_ref().map(|beside| &beside.state);
        std::iter::once(&self.state).chain(beside)
    }

    /// Returns where a run stands, of the two that there may be.
    pub fn of_run(&self, run: RunId) -> Option<&State> {
        self.states().find(|state| state.run() == Some(run))
    }

    /// Returns the runs of which a process may live, the one that counts first.
    pub fn runs(&self) -> impl Iterator<Item = RunId> + use<> {
        let beside = self.beside.as_ref().and_then(|beside| beside.state.run());
        self.state.run().into_iter().chain(beside)
    }

    /// Returns the run beside the one that counts while it is to take over.
    pub fn coming(&self) -> Option<&Beside> {
        self.beside.as_deref().filter(|beside| {
            !matches!(beside.state, State::Stopping { .. }) && beside.state.run() > self.state.run()
        })
    }

    /// Returns the spec of the run by whose lines a spec is judged: of the one that is to take over, from before its
    /// first line on, where there is one; `adopted` is what a run starts from that has not been told to have begun.
    pub fn heard_spec(&self, adopted: Digest) -> Option<Digest> {
        match (self.coming(), &self.state) {
            (Some(coming), _) => Some(coming.spec),
            (None, State::Spawning { .. }) => Some(adopted),
            (None, state) => state.main().map(|main| main.spec),
        }
    }

    /// Says whether an event is about the run beside the one that counts.
    pub(in crate::domain) fn is_beside(&self, run: Option<RunId>) -> bool {
        run.is_some() && self.beside.as_ref().is_some_and(|beside| beside.state.run() == run)
    }

    /// Folds a fact about the run beside; `None` when it is illegal.
    pub(super) fn evolve_beside(
        &mut self,
        at: UnixMicros,
        context: &Context,
        event: &Event,
    ) -> Option<()> {
        if let Event::InstanceHandedOver(body) = event {
            return self.hand_over(at, context, body);
        }
        let is_coming = self.coming().is_some();
        let last_run = self.last_run;
        let beside = self.beside.as_mut()?;
        let next = beside.state.after(at, context.run, last_run, event)?;
        let ended_itself =
            matches!(event, Event::InstanceExited(_) | Event::InstanceStartFailed(_));
        let was_late = matches!(event, Event::InstanceStopping(body) if body.reason == StopReason::ReadyTimeout);
        if is_coming && (ended_itself || was_late) {
            self.gave_up = Some(beside.spec);
        }
        match event {
            Event::InstanceStarted(body) => {
                beside.spec = body.spec;
                beside.until = body.ready_by;
                beside.started_after.clone_from(&body.after);
            }
            Event::InstanceStopping(_) => {
                beside.until = None;
                beside.because = context.authority();
            }
            _ => note_check(&mut beside.checks, at, event),
        }
        match next {
            Some(next) if next.run().is_none() => self.beside = None,
            Some(next) => beside.state = next,
            None => {}
        }
        Some(())
    }

    /// Begins a handover, or gives the run that is to take over another number: nobody knows what became of the first.
    pub(super) fn begin_beside(
        &mut self,
        at: UnixMicros,
        context: &Context,
        spec: Digest,
    ) -> Option<()> {
        let run = context.run.filter(|run| *run > self.last_run)?;
        let is_free = match &self.beside {
            None => self.state.is_ready(),
            Some(beside) => matches!(beside.state, State::Spawning { .. }),
        };
        if !is_free {
            return None;
        }
        self.last_run = run;
        self.beside = Some(Box::new(Beside {
            state: State::Spawning { run },
            since: at,
            spec,
            until: None,
            because: context.authority(),
            checks: BTreeMap::new(),
            started_after: BTreeMap::new(),
        }));
        Some(())
    }

    fn hand_over(
        &mut self,
        at: UnixMicros,
        context: &Context,
        body: &InstanceHandedOver,
    ) -> Option<()> {
        if self.coming().is_none() || self.state.run() != Some(body.from) {
            return None;
        }
        let beside = self.beside.as_mut()?;
        std::mem::swap(&mut self.state, &mut beside.state);
        std::mem::swap(&mut self.checks, &mut beside.checks);
        std::mem::swap(&mut self.started_after, &mut beside.started_after);
        std::mem::swap(&mut self.because, &mut beside.because);
        beside.until = None;
        beside.because = context.authority();
        if let Some(main) = beside.state.main() {
            beside.spec = main.spec;
        }
        self.since = at;
        self.adopted_at = None;
        self.gave_up = None;
        if body.is_ready {
            self.because = Because::default();
            self.backoff.reset();
            self.same_exits = 0;
        }
        Some(())
    }
}
