//! The controller's one task: it owns the state and takes one wake after the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use super::arrivals::{Arrivals, Mark};
use super::bringing::Bringing;
use super::checks::Measuring;
use super::intake::Line;
use super::lease::{Standing, own_term};
use super::links::Saying;
use super::orders::Orders;
use super::own::{OwnState, Which};
use super::placement::Placements;
use super::projection::Projection;
use super::queries::{Asker, Waiting};
use super::rollouts::Rollouts;
use super::setup::ControllerSetup;
use super::shown::Watcher;
use super::tails::Tails;
use super::verify::Trusted;
use super::wake::{Wake, Waker};
use super::wishes::Wishes;
use crate::bus::Connection;
use crate::domain::controller::{ControllerLed, ControllerSteppedDown, NodeSeen, NodeUnreachable};
use crate::domain::effect::Act;
use crate::domain::event::{Actor, Context, Event};
use crate::domain::id::{Digest, EventId, IntentId, NodeId, Seq};
use crate::domain::intent::ActorKind;
use crate::domain::policy::{KeyClass, Kind};
use crate::domain::promises::Promised;
use crate::domain::rollout::NodeReport;
use crate::domain::time::Now;
use crate::head::authority::Authority;
use crate::head::clock;
use crate::head::recorder::Recorder;
use crate::store::LogNotice;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::key::Signer;
use crate::wire::payload::{Beat, PAYLOAD_VERSION, Receipt, Reply};
use crate::wire::status::Intake;
use crate::wire::subject::{Callee, Inbox, Scope, Subject, event_kind};

/// How often what falls due without a wake is looked at: silent nodes, receipts, late facts.
const TICK: Duration = Duration::from_secs(1);

/// A pause between two ticks in which so much else was done that what nodes said meanwhile may wait still.
const STARVED: Duration = Duration::from_secs(3);

/// How many ticks lie between two heartbeats.
const BEAT_TICKS: u64 = 5;

/// Something that waits until what was recorded before it is durable.
#[derive(Debug)]
pub(super) enum Promise {
    /// From here on this controller decides, in this term.
    Lead(u64),
    /// So many facts of this rollout are on the disk.
    Rollout(IntentId, usize),
    /// Whoever asked for something is told what became of it.
    Answer(Inbox, IntentId, Box<Reply>),
}

impl Promised for Promise {
    fn act(&self) -> Option<&Act> {
        None
    }
}

/// How this controller stands to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It decides, in this term, which is durable.
    Leader(u64),
    /// It holds the lease, and its term is on the way to the disk.
    Rising(u64),
    /// Somebody else decides, or nobody.
    Standby(Option<NodeId>),
}

/// Everything that one controller owns.
pub(super) struct Controller {
    pub(super) setup: ControllerSetup,
    pub(super) trusted: Arc<Trusted>,
    pub(super) authority: Authority,
    pub(super) signer: Arc<Signer>,
    pub(super) connection: Connection,
    pub(super) saying: mpsc::Sender<Saying>,
    pub(super) waker: Waker,
    pub(super) recorder: Recorder<Promise>,
    pub(super) own: OwnState,
    pub(super) arrivals: Arrivals,
    pub(super) projection: Projection,
    pub(super) lines: BTreeMap<NodeId, Line>,
    /// Logs whose turn to be fetched has not come.
    pub(super) queue: VecDeque<NodeId>,
    pub(super) fetching: usize,
    pub(super) intake: Intake,
    pub(super) role: Role,
    /// The step that took the lease when it was held last.
    pub(super) taken: u64,
    /// The highest term that any log told of.
    pub(super) term_seen: u64,
    pub(super) waiting: Vec<Waiting>,
    pub(super) receipts: BTreeMap<NodeId, EventId>,
    pub(super) ticks: u64,
    /// When the last tick was, on the monotonic clock.
    pub(super) ticked_ns: Option<u64>,
    /// The digest of the roster in force.
    pub(super) roster: Digest,
    /// The trust document for nodes that have an older one.
    pub(super) bringing: Bringing,
    pub(super) wishes: Wishes,
    pub(super) rollouts: Rollouts,
    pub(super) orders: Orders,
    pub(super) placements: Placements,
    pub(super) measuring: Measuring,
    pub(super) watchers: Vec<Watcher>,
    pub(super) tails: Tails,
}

impl Controller {
    /// Works until it is told to end.
    pub(super) async fn run(mut self, mut wakes: mpsc::Receiver<Wake>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.feed_own();
        loop {
            let waits = [self.rollouts_wait(clock::now()), self.watchers_wait()];
            let wait = waits.into_iter().flatten().min().unwrap_or(TICK);
            tokio::select! {
                wake = wakes.recv() => match wake {
                    None | Some(Wake::Terminate) => break,
                    Some(wake) => self.take(wake),
                },
                _ = tick.tick() => self.tick(),
                () = sleep(wait) => {
                    self.tick_rollouts(clock::now());
                    self.wake_watchers();
                }
            }
        }
        self.step_down("it was told to end");
    }

    fn take(&mut self, wake: Wake) {
        let now = clock::now();
        match wake {
            Wake::Live(events) => self.live(now, events),
            Wake::Beats(beats) => beats.into_iter().for_each(|beat| self.beat(now, beat)),
            Wake::Fetched { origin, outcome } => self.fetched(now, &origin, outcome),
            Wake::Call { reply, bytes } => self.called(now, reply, &bytes),
            Wake::Asked(ask, reply) => {
                let name = self.setup.controller.as_str().parse();
                let name = name.expect("names of nodes and principals are alike");
                let own =
                    Actor { kind: ActorKind::Controller, name, key: None, note: String::new() };
                self.query(ask, &own, Asker::Here(reply));
            }
            Wake::Store(which, notice) => self.stored(which, notice),
            Wake::Ordered(key, heard) => self.ordered(now, &key, heard),
            Wake::Measured(of, found) => self.measured(now, &of, found),
            Wake::Wish(rollout, bytes) => self.wish_came(now, rollout, &bytes),
            Wake::Tail(hash, record) => self.tail_came(&hash, record.as_deref()),
            Wake::Lease(standing) => self.lease(now, standing),
            Wake::Connected => self.catch_up_all(),
            Wake::Terminate => {}
        }
    }

    fn tick(&mut self) {
        let now = clock::now();
        self.ticks += 1;
        let before = self.ticked_ns.replace(now.mono_ns).unwrap_or(now.mono_ns);
        if now.mono_ns - before > STARVED.as_nanos() as u64 {
            self.projection.listen_anew(now);
        }
        if matches!(self.role, Role::Leader(_)) {
            for (node, last_seen) in self.projection.falls_silent(now) {
                warn!(%node, "nothing is heard of it any more");
                let told = self.recorder.event_id(self.recorder.next());
                let body = NodeUnreachable { node: node.clone(), last_seen };
                self.record(now, Event::NodeUnreachable(body));
                self.node_is(now, &node, told, &NodeReport::Unreachable);
            }
        }
        self.look_at_configured(now);
        self.lead_late(now);
        self.tick_rollouts(now);
        self.converge(now);
        self.forget_rollouts();
        self.look_at_checks(now);
        self.wake_watchers();
        self.recorder.catch_up(now);
        self.send_receipts(now);
        self.tire(Instant::now());
        self.retry_fetches();
        self.ask_for_tails();
        if self.ticks.is_multiple_of(BEAT_TICKS) {
            self.own_beat(now);
            self.bring_trust(now);
        }
    }

    /// Writes a fact into the controller's own log.
    pub(super) fn record(&mut self, now: Now, event: Event) {
        self.own.evolve(&event);
        self.recorder.record(now, vec![(Context::default(), event)]);
    }

    fn lease(&mut self, now: Now, standing: Standing) {
        match (standing, &self.role) {
            (Standing::Held { taken }, Role::Leader(_) | Role::Rising(_))
                if taken == self.taken => {}
            (Standing::Held { taken }, _) => self.rise(now, taken),
            (Standing::Away { by, why }, Role::Leader(_) | Role::Rising(_)) => {
                self.step_down(&why);
                self.role = Role::Standby(by);
            }
            (Standing::Away { by, .. }, Role::Standby(_)) => self.role = Role::Standby(by),
        }
    }

    /// Begins a term that is higher than any that is known, and no other controller's.
    pub(super) fn rise(&mut self, now: Now, taken: u64) {
        let known = [self.own.term, self.term_seen, self.projection.term_max()];
        let least = known.into_iter().max().unwrap_or(0).saturating_add(1).max(taken);
        let all = self.lines.iter().filter(|(_, line)| line.class == KeyClass::Controller);
        let all: Vec<_> = all.map(|(name, _)| name).collect();
        let place = all.iter().position(|name| **name == self.setup.controller).unwrap_or(0);
        let term = own_term(least, place, all.len());
        self.taken = taken;
        self.record(now, Event::ControllerLed(ControllerLed { term }));
        // A term that could be forgotten might be used twice.
        self.role = Role::Rising(term);
        self.recorder.promise(Promise::Lead(term));
    }

    /// Takes in that another controller led. One that was out of reach may have led in the same term, and one that was
    /// stuck hears of its successor before it hears that it lost the lease.
    pub(super) fn other_led(&mut self, led: &ControllerLed) {
        self.term_seen = self.term_seen.max(led.term);
        if let Role::Leader(term) | Role::Rising(term) = self.role
            && led.term >= term
        {
            self.step_down("another controller led in a term that is not lower");
        }
    }

    fn step_down(&mut self, why: &str) {
        if let Role::Leader(term) | Role::Rising(term) = self.role {
            info!(term, why, "leads no more");
            let body = ControllerSteppedDown { term, why: why.to_owned() };
            self.record(clock::now(), Event::ControllerSteppedDown(body));
            self.role = Role::Standby(None);
        }
    }

    fn stored(&mut self, which: Which, notice: LogNotice) {
        match (which, notice) {
            (Which::Own, LogNotice::Durable { seq, .. }) => self.own_durable(seq),
            (Which::Arrivals, LogNotice::Durable { seq, .. }) => {
                let news = self.arrivals.durable(seq);
                if !news.is_empty() {
                    self.receipts.extend(news);
                    self.wake_waiting();
                }
            }
            (Which::Arrivals, LogNotice::SegmentFull) => {
                if let Err(why) = self.arrivals.roll() {
                    warn!(%why, "the arrival log did not begin its next segment");
                }
            }
            (_, LogNotice::Damaged { why, .. }) => {
                error!(?which, why, "a log does not hold what was written");
                drop(self.waker.try_send(Wake::Terminate));
            }
            (_, LogNotice::Unavailable { why, .. }) => {
                error!(?which, why, "a log cannot be written");
            }
            (_, LogNotice::Recovered) => info!(?which, "the log can be written again"),
            // The own log is small: a term or two a day. It goes on in its segment.
            (Which::Own, LogNotice::SegmentFull)
            | (
                _,
                LogNotice::Checkpoint { .. }
                | LogNotice::Sealed { .. }
                | LogNotice::RootChecked { .. },
            ) => {}
        }
    }

    /// Publishes what is durable of the own log, and keeps what was promised behind it.
    fn own_durable(&mut self, seq: Seq) {
        let kept = self.recorder.durable(seq);
        for live in kept.rows {
            let scope = Scope::from(live.service.clone());
            let (fleet, origin) = (self.setup.fleet.clone(), self.setup.controller.clone());
            let kind = event_kind(live.kind).expect("types of events are subjects");
            self.say(Saying::Tell(Subject::Event { fleet, origin, scope, kind }, live.row));
        }
        let now = clock::now();
        // Of many facts of a rollout that were written together the last one says how far the disk is.
        let mut kept_facts = BTreeMap::new();
        for promise in kept.promises {
            match promise {
                Promise::Lead(term) if self.role == Role::Rising(term) => {
                    info!(term, "leads");
                    self.role = Role::Leader(term);
                    self.lead_on(now, term);
                }
                Promise::Lead(_) => {}
                Promise::Rollout(intent, facts) => {
                    kept_facts.insert(intent, facts);
                }
                Promise::Answer(to, cause, reply) => self.reply(&to, cause, *reply),
            }
        }
        for (intent, facts) in kept_facts {
            self.rollout_kept(now, intent, facts);
        }
        self.feed_own();
    }

    /// Keeps promises that wait for nothing any more: all before them was durable when they were made.
    pub(super) fn keep_what_is_due(&mut self) {
        let seq = self.recorder.durable_seq();
        if Seq(self.recorder.next().0 - 1) <= seq {
            self.own_durable(seq);
        }
    }

    /// Says something; when too much waits already it is not said.
    pub(super) fn say(&self, saying: Saying) {
        if let Err(mpsc::error::TrySendError::Full(Saying::Answer(to, _))) =
            self.saying.try_send(saying)
        {
            warn!(%to, "an answer was dropped: too many wait to be sent");
        }
    }

    /// Takes in that a node or controller was heard.
    pub(super) fn heard(&mut self, now: Now, origin: &NodeId) {
        if let Some(line) = self.lines.get_mut(origin) {
            line.heard = Some(now);
        }
        if let Some(away_ms) = self.projection.heard(origin, now)
            && matches!(self.role, Role::Leader(_))
        {
            let told = self.recorder.event_id(self.recorder.next());
            self.record(now, Event::NodeSeen(NodeSeen { node: origin.clone(), away_ms }));
            self.node_is(now, origin, told, &NodeReport::Seen);
        }
    }

    /// Tells each log how far it is here, durably.
    fn send_receipts(&mut self, now: Now) {
        for (origin, durable) in std::mem::take(&mut self.receipts) {
            if self.arrivals.last(&origin).as_ref() != Some(&durable) {
                // The root is that of what is behind it: at the next tick.
                self.receipts.insert(origin, durable);
                continue;
            }
            let receipt = self.receipt(now, &origin);
            let fleet = self.setup.fleet.clone();
            self.say(Saying::Tell(Subject::Receipt { fleet, origin }, receipt));
        }
    }

    /// Tells a node how far its log is here. Where that is further than there its disk was set back, and it begins anew.
    pub(super) fn remind(&self, now: Now, origin: &NodeId) {
        let receipt = self.receipt(now, origin);
        let Ok(to) = Callee::node(origin.clone()) else { return };
        let subject = Subject::Call { fleet: self.setup.fleet.clone(), to };
        self.say(Saying::Tell(subject, receipt));
    }

    /// Signs how far a log is here.
    fn receipt(&self, now: Now, origin: &NodeId) -> Arc<[u8]> {
        let nothing = Mark::default();
        let mark = self.arrivals.mark(origin).unwrap_or(&nothing);
        let receipt = Receipt {
            v: PAYLOAD_VERSION,
            controller: self.setup.controller.clone(),
            origin: origin.clone(),
            epoch: mark.epoch,
            size: mark.seq().0,
            root: mark.frontier.root(),
            at: now.at,
        };
        envelope::seal(Kind::Receipt, &codec::encode(&receipt), &self.signer).into()
    }

    fn own_beat(&mut self, now: Now) {
        let head = self.recorder.head();
        let beat = Beat {
            v: PAYLOAD_VERSION,
            origin: self.setup.controller.clone(),
            epoch: head.epoch,
            seq: head.seq,
            root: head.root,
            state_hash: crate::wire::key::digest_of(&self.own.term.to_be_bytes()),
            fold: 0,
            at: now.at,
            asks: false,
        };
        let sealed = envelope::seal(Kind::Beat, &codec::encode(&beat), &self.signer);
        let (fleet, origin) = (self.setup.fleet.clone(), self.setup.controller.clone());
        self.say(Saying::Tell(Subject::Beat { fleet, origin }, sealed.into()));
    }
}
