//! The agent's one task: it owns the state, takes one wake after the other, and lets promises go when they are durable.
//!
//! The order within a decision is the guarantee. Events are folded into the state; repairs are done at once; then the
//! events are signed and handed to the log; promises wait for the watermark. So a restart costs no disk, and nobody is
//! told what the log does not hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, error, info};

use super::alarm::Alarm;
use super::alerts::Alerts;
use super::answers::{Answers, ReplyTo};
use super::asked::Again;
use super::authority::{Authority, Way};
use super::clock;
use super::errands::Errands;
use super::farewell::Farewell;
use super::hands::{Hands, Standing};
use super::history;
use super::launcher::Launchers;
use super::logs::LogThread;
use super::memory;
use super::outage::Unavailable;
use super::probes::Probes;
use super::queries::Queries;
use super::recorder::{self, Recorder};
use super::release::Staging;
use super::services::Services;
use super::setup::NodeSetup;
use super::signs::SignNumber;
use super::telling::Untold;
use super::timers::Timers;
use super::voice::Voice;
use super::wake::{Wake, Waker};
use super::witness::Witnesses;
use crate::domain::code::Code;
use crate::domain::effect::{Act, Effect, Operation, Timer};
use crate::domain::event::{Context, Event};
use crate::domain::id::{
    AlertName, BootId, CheckName, Digest, EventId, InstanceId, IntentId, RunId, Seq, ServiceId,
};
use crate::domain::input::{Decision, Input, World};
use crate::domain::node::Node;
use crate::domain::promises::Promised;
use crate::domain::recent::Restarts;
use crate::domain::time::{Now, UnixMicros};
use crate::ipc::hello::Incarnation;
use crate::ipc::keeper::{Answer, FactNumber, Isolation};
use crate::ipc::uplink::FromUplink;
use crate::store::Expired;
use crate::wire::fold;
use crate::wire::key::Signer;

/// Wakes of one turn. Between turns deadlines are met and sockets are read: a full queue of wishes must not hold up the
/// restart of a service.
const TURN_MAX: usize = 64;

/// When a run whose time to become ready is over, and that nobody can hear, is looked at again.
const DEAF_PAUSE: Duration = Duration::from_secs(1);

/// Something that waits until what was recorded before it is durable.
#[derive(Debug)]
pub(super) enum Promise {
    /// An effect of a decision.
    Act(Act),
    /// The keeper may forget.
    Acknowledge(Incarnation, FactNumber),
    /// A sign of life may go out of its socket.
    Heard(InstanceId, SignNumber),
    /// Whoever still waits for the wish is told soon that it was taken.
    Accepted(IntentId, EventId),
    /// Whoever waits for the wish is told what came of it, in this envelope.
    Outcome(IntentId, Arc<[u8]>),
    /// Old rows may go: their retirement is on disk.
    Retire(Expired),
    /// The process may end.
    End,
}

impl Promised for Promise {
    fn act(&self) -> Option<&Act> {
        match self {
            Self::Act(act) => Some(act),
            _ => None,
        }
    }
}

/// A deadline of the agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// One that the core asked for.
    Core(Timer),
    /// The next heartbeat.
    Beat,
    /// Others are to hear of what is durable.
    Tell,
    /// The controllers have had long enough to say how far they have this log.
    Witnesses,
    /// An alert is to be looked at although no line came.
    Alert(InstanceId, AlertName),
    /// A run is to be probed.
    Probe(InstanceId, RunId, CheckName),
    /// Somebody has waited long enough for the next event.
    Ranges,
    /// The bus has had long enough to read the last words.
    Farewell,
    /// The keeper has had long enough to answer.
    Keeper,
    /// Something that the keeper refused is asked for again.
    Again(Again),
    /// A start or an apply is over.
    Settled,
}

/// Everything that one node's agent owns.
pub(super) struct Agent {
    pub(super) setup: NodeSetup,
    pub(super) boot: BootId,
    pub(super) node: Node,
    pub(super) services: Services,
    pub(super) launchers: Launchers,
    pub(super) hands: Hands,
    pub(super) errands: Errands,
    pub(super) farewell: Farewell,
    pub(super) logs: LogThread,
    pub(super) alerts: Alerts,
    pub(super) probes: Probes,
    pub(super) staging: Staging,
    pub(super) recorder: Recorder<Promise>,
    pub(super) answers: Answers,
    pub(super) authority: Authority,
    pub(super) voice: Voice,
    pub(super) queries: Queries,
    pub(super) signer: Arc<Signer>,
    pub(super) timers: Timers<Deadline>,
    /// The deadlines of the core as it recorded them.
    pub(super) recorded: BTreeMap<Timer, UnixMicros>,
    /// Those of them that passed while there was no keeper. They are decided on after the meeting.
    pub(super) overdue: BTreeSet<Timer>,
    pub(super) waker: Waker,
    pub(super) untold: Untold,
    pub(super) witnesses: Witnesses,
    /// Which refusals were recorded lately, and how many since.
    pub(super) refusals: BTreeMap<Code, (UnixMicros, u64)>,
    /// Why the log takes nothing, when it does not.
    pub(super) outage: Option<Unavailable>,
    /// The segment has its size, and the log would not take a baseline.
    pub(super) rolls_late: bool,
    state_hash: Option<(Seq, Digest)>,
    /// The last event about each instance, as far as this epoch has one.
    pub(super) last_events: BTreeMap<ServiceId, Vec<Seq>>,
    /// How often services were started again lately.
    pub(super) restarts: Restarts,
    /// When agent or keeper was last known to live, for the time that nobody supervised.
    pub(super) away_since: UnixMicros,
    pub(super) is_new: bool,
    pub(super) ending: bool,
    /// Inputs that an effect led to at once. They are decided after the decision whose effect it was.
    pub(super) inbox: VecDeque<Input>,
    /// Runs that said they are ready before their start was told: one for each slot.
    pub(super) early: BTreeMap<InstanceId, (RunId, String)>,
    /// Slots whose start was told in this turn.
    pub(super) begun: Vec<InstanceId>,
}

/// The parts that [`super::boot`] puts together.
pub(super) struct Parts {
    pub(super) setup: NodeSetup,
    pub(super) boot: BootId,
    pub(super) node: Node,
    pub(super) services: Services,
    pub(super) launchers: Launchers,
    pub(super) logs: LogThread,
    pub(super) recorder: Recorder<Promise>,
    pub(super) authority: Authority,
    pub(super) voice: Voice,
    pub(super) queries: Queries,
    pub(super) signer: Arc<Signer>,
    pub(super) waker: Waker,
    pub(super) away_since: UnixMicros,
    pub(super) last_events: BTreeMap<ServiceId, Vec<Seq>>,
    pub(super) restarts: Restarts,
}

impl Agent {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            answers: Answers::new(parts.setup.node.clone(), parts.signer.clone()),
            setup: parts.setup,
            boot: parts.boot,
            node: parts.node,
            services: parts.services,
            launchers: parts.launchers,
            hands: Hands::new(),
            errands: Errands::default(),
            farewell: Farewell::default(),
            logs: parts.logs,
            alerts: Alerts::default(),
            probes: Probes::default(),
            staging: Staging::default(),
            recorder: parts.recorder,
            authority: parts.authority,
            voice: parts.voice,
            queries: parts.queries,
            signer: parts.signer,
            timers: Timers::default(),
            recorded: BTreeMap::new(),
            overdue: BTreeSet::new(),
            waker: parts.waker,
            untold: Untold::default(),
            witnesses: Witnesses::default(),
            refusals: BTreeMap::new(),
            outage: None,
            rolls_late: false,
            state_hash: None,
            away_since: parts.away_since,
            last_events: parts.last_events,
            restarts: parts.restarts,
            is_new: true,
            ending: false,
            inbox: VecDeque::new(),
            early: BTreeMap::new(),
            begun: Vec::new(),
        }
    }

    /// Works until it is told to end.
    ///
    /// # Errors
    /// When the kernel's timer fails.
    pub(super) async fn run(
        mut self,
        mut wakes: mpsc::Receiver<Wake>,
        mut alarm: Alarm,
    ) -> io::Result<()> {
        while !self.ending {
            self.await_keeper();
            alarm.set(self.timers.next())?;
            tokio::select! {
                wake = wakes.recv() => {
                    let Some(wake) = wake else { return Ok(()) };
                    turn_of(wake, &mut wakes).for_each(|wake| self.turn(wake));
                }
                rang = alarm.rings() => rang?,
            }
            self.deadlines();
        }
        self.tell();
        self.logs.stop();
        Ok(())
    }

    pub(super) fn turn(&mut self, wake: Wake) {
        self.take(wake);
        self.follow_up();
    }

    pub(super) fn follow_up(&mut self) {
        loop {
            while let Some(input) = self.inbox.pop_front() {
                self.decide(input);
            }
            while let Some((asked, refusal)) = self.hands.unsent.pop_front() {
                self.answered(asked, Answer::Refused(refusal), Vec::new());
            }
            self.judge_early();
            if self.inbox.is_empty() && self.hands.unsent.is_empty() {
                return;
            }
        }
    }

    fn take(&mut self, wake: Wake) {
        match wake {
            Wake::KeeperUp { hello, trees, isolation, outlet } => {
                self.launchers.keeper_is_root(keeper_uid(&isolation) == 0);
                self.hands.connected(&hello, trees, isolation, outlet);
                self.queries.keeper = Some(hello);
            }
            Wake::Keeper { frame, descriptors } => self.keeper_said(frame, descriptors),
            Wake::KeeperDown => {
                self.away_since = clock::now().at;
                self.keeper_down();
            }
            Wake::UplinkUp { outlet } => self.voice.connected(outlet),
            Wake::Uplink { frame } => {
                match &frame {
                    FromUplink::Refused { ticket, why } => self.staging.heard(*ticket, Some(why)),
                    FromUplink::Published { ticket } => self.staging.heard(*ticket, None),
                    _ => {}
                }
                let was_connected = self.voice.is_connected();
                if let Some(heard) = self.voice.hear(frame) {
                    self.heard(
                        &heard.bytes,
                        Way::Bus,
                        heard.reply.map_or(ReplyTo::Nobody, ReplyTo::Bus),
                    );
                }
                match (was_connected, self.voice.is_connected()) {
                    (false, true) => self.bus_is_up(),
                    (true, false) => self.farewell_is_over(),
                    (true, true) if self.voice.was_farewell_heard() => self.farewell_is_over(),
                    (true, true) | (false, false) => {}
                }
            }
            Wake::UplinkDown => {
                self.voice.disconnected();
                self.farewell_is_over();
            }
            Wake::LocalEnvelope { caller, id, bytes } => {
                self.heard(&bytes, Way::Local, ReplyTo::Local(caller, id));
            }
            Wake::LocalRead { caller, id, bytes } => self.local_read(&bytes, caller, id),
            Wake::Store(notice) => self.store_said(notice),
            Wake::Logs(notice) => self.logs_said(notice),
            Wake::Notify { instance, sign } => self.notified(&instance, sign),
            Wake::ReadyFd { instance, run } => {
                self.decide(Input::Ready { instance, run, how: "fd".to_owned() });
            }
            Wake::Probed { instance, run, check, answer } => {
                self.probed(instance, run, check, answer);
            }
            Wake::Ranged(page) => self.ranged(page),
            Wake::Download(download) => self.download(download),
            Wake::Staged(files) => self.files_came(files),
            Wake::Proved { service, generation, since, running } => {
                self.proved(service, generation, since, running);
            }
            Wake::Expired(expired) => self.retire(expired),
            Wake::Terminate => {
                info!("asked to end; services go on");
                self.recorder.promise(Promise::End);
                self.let_go(self.recorder.durable_seq());
            }
        }
    }

    fn deadlines(&mut self) {
        while let Some(deadline) = self.timers.pop(clock::now().mono_ns) {
            match deadline {
                Deadline::Beat => self.beat(),
                Deadline::Tell => self.tell(),
                Deadline::Ranges => self.tire_ranges(),
                Deadline::Witnesses => {
                    self.witnesses_were_heard();
                    self.follow_up();
                }
                Deadline::Alert(instance, name) => {
                    self.alert_due(instance, name);
                    self.follow_up();
                }
                Deadline::Farewell => self.farewell_is_over(),
                Deadline::Probe(instance, run, check) => self.probe(instance, run, check),
                Deadline::Keeper => self.keeper_is_late(),
                Deadline::Again(again) => self.ask_again(&again),
                Deadline::Settled => {
                    let bytes = memory::give_back();
                    debug!(bytes, "code is mapped again as it runs");
                }
                Deadline::Core(timer) if !self.hands.met() && needs_keeper(&timer) => {
                    self.overdue.insert(timer);
                }
                Deadline::Core(timer @ Timer::Ready(..)) if self.is_deaf_to(&timer) => {
                    let due = clock::now().mono_ns + DEAF_PAUSE.as_nanos() as u64;
                    self.timers.set(Deadline::Core(timer), due);
                }
                Deadline::Core(timer) => {
                    if let Some(at) = self.recorded.remove(&timer) {
                        self.decide(Input::Timer { timer, at });
                        self.follow_up();
                    }
                }
            }
        }
    }

    /// Decides on an input that cannot be refused.
    pub(super) fn decide(&mut self, input: Input) {
        let now = clock::now();
        let world = World {
            now,
            specs: self.services.specs(),
            entropy: clock::entropy(),
            reconciled: self.hands.met(),
            bus: self.setup.own_bus(),
        };
        match self.node.decide(&world, input) {
            Ok(decision) => self.commit(now, decision),
            Err(rejection) => error!(%rejection, "an input that is no wish was refused"),
        }
    }

    /// Adopts a decision: folds, repairs, records, promises.
    pub(super) fn commit(&mut self, now: Now, decision: Decision) {
        let Decision { mut events, effects } = decision;
        if let Some((_, event)) = events.iter().find(|(_, event)| !recorder::fits(event)) {
            // What no reader takes must not be folded either. What was folded stays; nothing of the rest is done.
            error!(kind = event.kind(), "an event fits no row; nothing was done");
            return;
        }
        let mut gone = BTreeSet::new();
        for (context, event) in &events {
            let known = context.service.as_ref();
            let known = known.filter(|service| self.node.services().contains_key(*service));
            if let Err(illegal) = self.node.evolve(now.at, context, event) {
                // The core contradicts itself. What was folded stays; nothing of the rest is done.
                error!(%illegal, kind = event.kind(), "an event does not follow; nothing was done");
                return;
            }
            gone.extend(known.filter(|known| !self.node.services().contains_key(*known)).cloned());
        }
        for (context, event) in &events {
            self.heed_change(context, event);
            self.heed_start(context, event);
            self.heed_probes(context, event);
            self.restarts.note(now.at, context, event);
        }
        let mut promises = Vec::new();
        for effect in effects {
            match effect {
                Effect::Repair(act) => self.act(act),
                // Only a stop or a restart by local root is taken now, and a full disk must not hold it up. Whoever
                // asked is told of it when it is durable, as ever.
                Effect::Promise(act) if self.outage.is_some() && stops_or_starts(&act) => {
                    self.act(act);
                }
                Effect::Promise(act) => promises.push(act),
            }
        }
        if !events.is_empty() {
            // As at the next start: a clock that is set back does not make a key hold again that has ended.
            self.authority.raise_floor(now.at);
        }
        self.kill_useless_errands();
        self.attach_tails(&mut events);
        if self.outage.is_none() {
            for (seq, (context, _)) in (self.recorder.next().0..).zip(&events) {
                history::note_last(&mut self.last_events, context, Seq(seq));
            }
        }
        self.recorder.record(now, events);
        let seen = self.node.seen();
        self.recorder.forget_but(seen.len(), |intent| seen.get(intent).is_some());
        for act in promises {
            match act {
                // Signed while the disk writes what it tells.
                Act::Answer { intent, reply } => self.promise_answer(intent, reply),
                act => self.recorder.promise(Promise::Act(act)),
            }
        }
        for service in gone {
            self.service_is_gone(&service);
        }
        // A promise behind nothing new may be due already.
        self.let_go(self.recorder.durable_seq());
    }

    /// Lets go of what was kept for a service of which the state knows nothing any more.
    fn service_is_gone(&mut self, service: &ServiceId) {
        if !self.node.services().contains_key(service) {
            self.services.forget(service);
            self.services.prune(&self.node);
            self.close_slots();
        }
    }

    /// Lets what is kept beside the state follow a service that changed.
    fn heed_change(&mut self, context: &Context, event: &Event) {
        let Some(service) = &context.service else { return };
        if matches!(event, Event::ServiceAdded(_)) {
            self.configure_logs(service);
        }
        if matches!(event, Event::ConfigChanged(_) | Event::ConfigExpired(_)) {
            self.services.write_down_set(&self.node);
        }
        if let (Event::InstanceStopped(_), Some(index)) = (event, context.index) {
            self.close_sockets_of(&InstanceId { service: service.clone(), index });
        }
        if matches!(
            event,
            Event::ServiceAdded(_)
                | Event::ServiceRemoved(_)
                | Event::DesiredChanged(_)
                | Event::InstanceStarting(_)
                | Event::InstanceHandedOver(_)
                // One that was to take over may be gone.
                | Event::InstanceStopping(_)
                | Event::InstanceStartFailed(_)
                | Event::InstanceExited(_)
        ) {
            self.watch_alerts(Some(service));
        }
    }

    /// Takes the log's watermark: keeps promises and publishes what is durable.
    pub(super) fn let_go(&mut self, durable: Seq) {
        let kept = self.recorder.durable(durable);
        for promise in kept.promises {
            match promise {
                Promise::Act(act) => self.act(act),
                Promise::Acknowledge(keeper, fact) => self.hands.acknowledge(keeper, fact),
                Promise::Accepted(intent, event) => self.untold.accepted.push((intent, event)),
                Promise::Outcome(intent, sealed) => {
                    self.answers.finish(intent, &sealed, &mut self.voice);
                }
                Promise::Heard(instance, number) => self.forget_sign(&instance, number),
                Promise::Retire(segment) => {
                    history::drop_rows(segment);
                    self.services.prune(&self.node);
                }
                Promise::End => self.ending = true,
            }
        }
        if !kept.rows.is_empty() {
            self.wake_ranges();
        }
        if self.voice.is_connected() {
            // Else whoever listens later sees the gap and fetches the range.
            self.untold.events.extend(kept.rows);
        }
        self.tell_soon();
    }

    /// Returns the hash of the state behind the event `head`; `None` while the state is ahead of it, because facts are on
    /// their way to the disk.
    pub(super) fn state_hash_at(&mut self, head: Seq) -> Option<Digest> {
        (self.recorder.next().0 == head.0 + 1).then(|| self.state_hash())
    }

    /// Returns the hash of the folded state, computed anew only when something was folded.
    fn state_hash(&mut self) -> Digest {
        let next = self.recorder.next();
        match self.state_hash {
            Some((at, hash)) if at == next => hash,
            _ => {
                let hash = fold::state_hash(&self.node);
                self.state_hash = Some((next, hash));
                hash
            }
        }
    }

    /// Turns a meeting that is complete into the core's own knowledge.
    pub(super) fn met(&mut self, kept: crate::domain::input::Kept) {
        self.hands.standing = Standing::Met;
        self.recorder.meet();
        self.decide(Input::Reconcile(kept));
        for timer in std::mem::take(&mut self.overdue) {
            self.timers.set(Deadline::Core(timer), 0);
        }
        self.watch_alerts(None);
        self.watch_all_checks();
    }
}

/// Takes what one turn is about: what began it, and what came in the meantime, so that one commit serves it all.
fn turn_of<W>(first: W, queue: &mut mpsc::Receiver<W>) -> impl Iterator<Item = W> {
    std::iter::once(first).chain(std::iter::from_fn(|| queue.try_recv().ok())).take(TURN_MAX)
}

/// Returns as whom the keeper runs: as root when the parts have accounts of their own, else as this process does.
pub(super) fn keeper_uid(isolation: &Isolation) -> u32 {
    match isolation {
        Isolation::Accounts => 0,
        Isolation::None { .. } => rustix::process::geteuid().as_raw(),
    }
}

/// Says whether what a deadline leads to is asked of the keeper.
fn needs_keeper(timer: &Timer) -> bool {
    !matches!(timer, Timer::Intent(_))
}

/// Says whether an act is part of a stop or a restart: done twice, it ends in the same state.
fn stops_or_starts(act: &Act) -> bool {
    match act {
        Act::Signal { operation, .. } => !matches!(operation, Operation::Wish(..)),
        Act::Spawn { .. } | Act::KillTree { .. } | Act::StopAgent { .. } => true,
        Act::RunHook { .. }
        | Act::Acknowledge { .. }
        | Act::AcknowledgeAction { .. }
        | Act::SetTimer { .. }
        | Act::CancelTimer { .. }
        | Act::KeepReady { .. }
        | Act::StartAction { .. }
        | Act::KillAction { .. }
        | Act::LoadSpecs { .. }
        | Act::Stage { .. }
        | Act::ProveRelease { .. }
        | Act::PruneReleases { .. }
        | Act::Answer { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_left_after_a_bounded_turn_so_that_deadlines_are_met() {
        let (sender, mut queue) = mpsc::channel(4 * TURN_MAX);
        (1..=3 * TURN_MAX).for_each(|wake| sender.try_send(wake).unwrap());
        assert_eq!(turn_of(0, &mut queue).count(), TURN_MAX);
        assert_eq!(queue.try_recv(), Ok(TURN_MAX), "the next turn goes on where this one ended");
    }

    #[test]
    fn what_came_in_the_meantime_is_taken_in_the_same_turn() {
        let (sender, mut queue) = mpsc::channel(8);
        let mut turn = turn_of(0, &mut queue);
        assert_eq!(turn.next(), Some(0));
        sender.try_send(1).unwrap();
        assert_eq!(turn.collect::<Vec<_>>(), [1]);
    }
}
