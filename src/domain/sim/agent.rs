//! One node of the simulated fleet: the core, a log that may lose its tail, and the shell between core and keeper.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::machine::{Machine, Socket};
use super::{Envelope, Switches};
use crate::domain::effect::{Act, Effect, Reply, Timer};
use crate::domain::event::{Actor, Context, EpochReason, Event, LogOpened, Outcome, PartStarted};
use crate::domain::id::{BootId, Digest, Generation, InstanceId, IntentId, RunId, Seq, ServiceId};
use crate::domain::input::{Input, Wish, World};
use crate::domain::intent::ActorKind;
use crate::domain::node::Node;
use crate::domain::promises::Promises;
use crate::domain::spec::{Spec, UpdateMethod};
use crate::domain::time::{Now, UnixMicros};

pub(super) type Row = (UnixMicros, Context, Event);

pub(super) struct Agent {
    pub(super) number: usize,
    pub(super) switches: Switches,
    pub(super) specs: BTreeMap<ServiceId, Arc<Spec>>,
    pub(super) machine: Machine,
    pub(super) up: bool,
    pub(super) node: Node,
    pub(super) log: Vec<Row>,
    /// How much of the log is on disk.
    pub(super) durable: usize,
    reconciled: bool,
    is_new: bool,
    /// Promises, each with how much of the log has to be on disk first.
    promises: Promises<Act>,
    pub(super) socket: Socket,
    pub(super) timers: BTreeMap<Timer, UnixMicros>,
    /// What was ever told to those who asked.
    pub(super) told: BTreeMap<IntentId, Outcome>,
    /// The highest generation that was ever taken, by service.
    highest: BTreeMap<ServiceId, Generation>,
    disguises: u8,
    pub(super) entropy: u64,
}

pub(super) type Check = Result<(), String>;

impl Agent {
    pub(super) fn new(
        number: usize,
        switches: Switches,
        specs: BTreeMap<ServiceId, Arc<Spec>>,
    ) -> Self {
        Self {
            number,
            switches,
            specs,
            machine: Machine::new(),
            up: false,
            node: Node::default(),
            log: Vec::new(),
            durable: 0,
            reconciled: false,
            is_new: true,
            promises: Promises::default(),
            socket: Socket::default(),
            timers: BTreeMap::new(),
            told: BTreeMap::new(),
            highest: BTreeMap::new(),
            disguises: 0,
            entropy: 0,
        }
    }

    /// Starts whatever is not up, and lets agent and keeper meet.
    pub(super) fn start(&mut self, now: UnixMicros) -> Check {
        self.machine.start_keeper();
        if !self.up {
            self.up = true;
            self.is_new = true;
            self.node = replay(&self.log)?;
            if self.log.is_empty() {
                let body = LogOpened {
                    reason: EpochReason::FirstStart,
                    predecessor: None,
                    version: "0".to_owned(),
                };
                self.append(now, Context::default(), Event::LogOpened(body))?;
            }
            let body = PartStarted {
                version: "0".to_owned(),
                pid: 2,
                uid: 0,
                boot: BootId([self.machine.boot; 16]),
                after: None,
                away_ms: 0,
                incarnation: 0,
            };
            self.append(now, Context::default(), Event::AgentStarted(body))?;
        }
        if self.reconciled {
            return Ok(());
        }
        self.socket = Socket::default();
        if self.switches.spawn_check {
            self.promises.meet();
        }
        let kept = self.machine.list(self.is_new);
        for process in self.machine.processes.values_mut() {
            process.held = true;
        }
        self.is_new = false;
        self.reconciled = true;
        self.tell(now, Input::Reconcile(kept))?;
        for id in self.specs.keys().cloned().collect::<Vec<_>>() {
            if !self.node.services().contains_key(&id) {
                self.adopt(now, id, 1)?;
            }
        }
        Ok(())
    }

    pub(super) fn adopt(&mut self, now: UnixMicros, service: ServiceId, digest: u8) -> Check {
        let origin = "services.d".to_owned();
        let digest = Digest([digest; 32]);
        self.tell(
            now,
            Input::SpecAdopted {
                service,
                digest,
                origin,
                intent: None,
                keeps: None,
                keys: Vec::new(),
            },
        )
    }

    pub(super) fn is_working(&self) -> bool {
        self.up && self.reconciled
    }

    /// The agent dies; some of what it had not synced may be on disk all the same.
    pub(super) fn kill_agent(&mut self, luck: u64) -> Check {
        if !self.up {
            return Ok(());
        }
        self.compare()?;
        // What it sent before it died the keeper may still read.
        if luck.is_multiple_of(2) {
            self.serve_all(luck);
        }
        self.lose_memory(luck);
        self.machine.forget_unseen(false);
        Ok(())
    }

    fn lose_memory(&mut self, luck: u64) {
        let unsynced = self.log.len() - self.durable;
        let kept = usize::try_from(luck >> 8).unwrap_or(usize::MAX) % (unsynced + 1);
        self.log.truncate(self.durable + kept);
        self.durable = self.log.len();
        self.up = false;
        self.reconciled = false;
        self.node = Node::default();
        self.highest.clear();
        for (_, context, event) in &self.log {
            if let Some((service, generation)) = numbered(context, event) {
                self.highest.insert(service, generation);
            }
        }
        self.promises = Promises::default();
        self.socket = Socket::default();
        self.timers.clear();
    }

    pub(super) fn kill_keeper(&mut self) {
        self.machine.lose_keeper(self.up);
        self.reconciled = false;
        self.socket = Socket::default();
    }

    pub(super) fn cut_power(&mut self) -> Check {
        if self.up {
            self.compare()?;
        }
        self.machine.cut_power();
        self.lose_memory(0);
        for (intent, told) in &self.told {
            let holds = self.log.iter().any(|(_, _, event)| {
                matches!(event, Event::IntentExecuted(body) if body.intent == *intent && body.outcome == *told)
            });
            if !holds {
                return Err(format!(
                    "n{}: {intent} was answered and the log does not hold it",
                    self.number
                ));
            }
        }
        Ok(())
    }

    /// Replay and baseline give the live state.
    pub(super) fn compare(&self) -> Check {
        if replay(&self.log)? != self.node {
            return Err(format!("n{}: replay is not the live state", self.number));
        }
        let mut restored = Node::default();
        self.node.parts().into_iter().for_each(|part| restored.restore(part));
        if restored != self.node {
            return Err(format!("n{}: the baseline is not the live state", self.number));
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Check {
        if !self.up {
            return Ok(());
        }
        self.durable = self.log.len();
        let due = self.promises.due(Seq(self.durable as u64));
        due.into_iter().try_for_each(|act| self.perform(act))
    }

    pub(super) fn deliver(&mut self, now: UnixMicros, envelope: &Envelope) -> Check {
        if !self.up || (self.switches.audience_check && envelope.audience != self.number) {
            return Ok(());
        }
        let mut id = envelope.id;
        if !self.switches.dedup {
            self.disguises = self.disguises.wrapping_add(1);
            id.0[15] = self.disguises;
        }
        let wish = Wish {
            id,
            digest: Digest([envelope.id.0[0]; 32]),
            action: envelope.action.clone(),
            issued_at: envelope.issued_at,
            expires_at: envelope.expires_at,
            generation: envelope.generation.filter(|_| self.switches.generation_check),
            by: Actor {
                kind: ActorKind::Human,
                name: "ana".parse().expect("a constant name"),
                key: None,
                note: envelope
                    .generation
                    .map(|generation| generation.to_string())
                    .unwrap_or_default(),
            },
            is_own: false,
            order: None,
        };
        let before = self.log.len();
        self.tell(now, Input::Wish(wish))?;
        let taken = self.log[before..]
            .iter()
            .any(|(_, _, event)| matches!(event, Event::IntentAccepted(_)));
        if taken && envelope.audience != self.number {
            return Err(format!("n{}: took a wish for n{}", self.number, envelope.audience));
        }
        Ok(())
    }

    /// Decides, folds, appends, and lets go of what may go.
    pub(super) fn tell(&mut self, now: UnixMicros, input: Input) -> Check {
        if !self.up {
            return Ok(());
        }
        self.entropy = self.entropy.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let world = World {
            now: Now { at: now, mono_ns: 0 },
            specs: &self.specs,
            entropy: self.entropy,
            reconciled: self.reconciled,
            bus: None,
        };
        let Ok(decision) = self.node.decide(&world, input) else { return Ok(()) };
        for (context, event) in decision.events {
            self.append(now, context, event)?;
        }
        for effect in decision.effects {
            match effect {
                Effect::Promise(act) if self.switches.promise_before_sync => {
                    self.promises.make(Seq(self.log.len() as u64), act);
                }
                Effect::Promise(act) | Effect::Repair(act) => self.perform(act)?,
            }
        }
        Ok(())
    }

    fn append(&mut self, now: UnixMicros, context: Context, event: Event) -> Check {
        self.node
            .evolve(now, &context, &event)
            .map_err(|illegal| format!("n{}: {illegal}: {context:?} {event:?}", self.number))?;
        if let Some((service, generation)) = numbered(&context, &event) {
            let highest = self.highest.insert(service, generation).unwrap_or_default();
            if generation <= highest {
                return Err(format!("n{}: generation {generation} after {highest}", self.number));
            }
        }
        self.log.push((now, context, event));
        Ok(())
    }

    fn perform(&mut self, act: Act) -> Check {
        match act {
            Act::SetTimer { timer, at, .. } => {
                self.timers.insert(timer, at);
            }
            Act::CancelTimer { timer } => {
                self.timers.remove(&timer);
            }
            Act::Answer { intent, reply: Reply::Outcome(outcome) } => {
                let first = self.told.entry(intent).or_insert_with(|| outcome.clone());
                if *first != outcome {
                    return Err(format!(
                        "n{}: {intent} was answered twice, and not alike",
                        self.number
                    ));
                }
            }
            Act::Answer { .. } | Act::LoadSpecs { .. } | Act::StopAgent { .. } => {}
            Act::Spawn { instance, run, .. }
                if self.switches.spawn_check
                    && !(self.reconciled && self.node.awaits_start(&instance, run)) => {}
            Act::StartAction { intent, .. } if !self.node.awaits_action(&intent) => {}
            Act::Signal { instance, run, .. } | Act::KillTree { instance, run }
                if !self.switches.ends_relieved
                    && self.node.instance(&instance).is_some_and(|slot| {
                        slot.is_beside(Some(run)) && slot.coming().is_none()
                    }) => {}
            act => {
                if let Act::Acknowledge { instance, run } = &act {
                    self.check_acknowledged(instance, *run)?;
                }
                self.socket.requests.push_back(act);
            }
        }
        Ok(())
    }

    /// The keeper may forget an end only when the log has it for good.
    fn check_acknowledged(&self, id: &InstanceId, run: RunId) -> Check {
        if !self.switches.promise_before_sync {
            return Ok(()); // What is broken by that is looked for after the power cut.
        }
        let durable = self.log[..self.durable].iter().any(|(_, context, event)| {
            context.run == Some(run)
                && context.index == Some(id.index)
                && context.service.as_ref() == Some(&id.service)
                && matches!(
                    event,
                    Event::InstanceExited(_)
                        | Event::InstanceStartFailed(_)
                        | Event::InstanceStopped(_)
                )
        });
        let later = self.node.instance(id).is_none_or(|instance| instance.last_run > run);
        if durable || later {
            Ok(())
        } else {
            Err(format!("n{}: {id} run {run} was acknowledged too early", self.number))
        }
    }

    /// The keeper takes one request.
    pub(super) fn serve_one(&mut self, luck: u64) {
        if !self.machine.keeper_up || !self.reconciled {
            return;
        }
        if let Some(act) = self.socket.requests.pop_front() {
            let fact = self.machine.serve(&act, luck);
            self.socket.facts.extend(fact);
        }
    }

    fn serve_all(&mut self, luck: u64) {
        while self.machine.keeper_up && self.reconciled && !self.socket.requests.is_empty() {
            self.serve_one(luck);
        }
    }

    /// The agent takes one fact.
    pub(super) fn hear_one(&mut self, now: UnixMicros) -> Check {
        if !self.is_working() {
            return Ok(());
        }
        let Some(fact) = self.socket.facts.pop_front() else { return Ok(()) };
        if let Input::Started { instance, run, .. } = &fact
            && let Some(process) = self.machine.processes.get_mut(&(instance.clone(), *run))
        {
            process.held = true;
        }
        self.tell(now, fact)
    }

    /// A live process, by luck.
    pub(super) fn pick(&self, luck: usize) -> Option<(InstanceId, RunId)> {
        let alive: Vec<_> =
            self.machine.processes.iter().filter(|(_, process)| process.ended.is_none()).collect();
        alive.get(luck.checked_rem(alive.len())?).map(|(key, _)| (*key).clone())
    }

    /// Something ended: the keeper says so, or nobody does.
    pub(super) fn told_by_machine(&mut self, fact: Option<Input>) {
        if self.machine.keeper_up && self.is_working() {
            self.socket.facts.extend(fact);
        } else {
            self.machine.forget_unseen(self.up);
        }
    }

    pub(super) fn fire(&mut self, now: UnixMicros) -> Check {
        if !self.is_working() {
            return Ok(());
        }
        let due: Vec<_> = self
            .timers
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(timer, at)| (timer.clone(), *at))
            .collect();
        for (timer, at) in due {
            self.timers.remove(&timer);
            self.tell(now, Input::Timer { timer, at })?;
        }
        Ok(())
    }

    /// What must hold on a node after every step.
    pub(super) fn check(&self) -> Check {
        let mut alive: BTreeMap<&InstanceId, u32> = BTreeMap::new();
        for ((id, _), process) in &self.machine.processes {
            if process.ended.is_none() {
                *alive.entry(id).or_default() += 1;
            }
        }
        for (id, count) in alive {
            // One more while it is handed over, from the meeting with the keeper on as the node knows.
            let hands_over = self
                .specs
                .get(&id.service)
                .is_some_and(|spec| spec.update.method == UpdateMethod::Handover);
            if count > 1 + u32::from(hands_over) {
                return Err(format!("n{}: {count} main processes of {id}", self.number));
            }
        }
        for (id, service) in self.node.services() {
            for (index, slot) in service.slots() {
                if slot.coming().is_some() && !slot.state.is_ready() {
                    return Err(format!("n{}: nobody serves of {id}/{index}", self.number));
                }
            }
        }
        let mut felt: BTreeMap<(u8, Option<InstanceId>), u32> = BTreeMap::new();
        for ((intent, instance), count) in &self.machine.felt {
            // The first byte is the signer's; the rest may be a disguise.
            *felt.entry((intent.0[0], instance.clone())).or_default() += count;
        }
        match felt.iter().find(|(_, count)| **count > 1) {
            Some(((intent, _), count)) => {
                Err(format!("n{}: wish {intent} was felt {count} times", self.number))
            }
            None => Ok(()),
        }
    }

    /// How often each wish came to an outcome and was taken, as the log says.
    pub(super) fn outcomes(&self) -> BTreeMap<IntentId, (u32, u32)> {
        let mut outcomes: BTreeMap<IntentId, (u32, u32)> = BTreeMap::new();
        for (_, _, event) in &self.log {
            match event {
                Event::IntentAccepted(body) => outcomes.entry(body.intent).or_default().0 += 1,
                Event::IntentExecuted(body) => outcomes.entry(body.intent).or_default().1 += 1,
                _ => {}
            }
        }
        outcomes
    }

    pub(super) fn is_idle(&self) -> bool {
        self.socket.requests.is_empty() && self.socket.facts.is_empty() && self.promises.is_empty()
    }
}

/// Returns the number that a signer gave to a desired state.
fn numbered(context: &Context, event: &Event) -> Option<(ServiceId, Generation)> {
    if !matches!(event, Event::DesiredChanged(_)) {
        return None;
    }
    let generation = context.by.as_ref()?.note.parse().ok()?;
    Some((context.service.clone()?, Generation(generation)))
}

fn replay(log: &[Row]) -> Result<Node, String> {
    let mut node = Node::default();
    for (at, context, event) in log {
        node.evolve(*at, context, event).map_err(|illegal| format!("replay: {illegal}"))?;
    }
    Ok(node)
}
