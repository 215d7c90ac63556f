//! Orders out: each one signed here, with the whole wish inside, and sent until its node has taken it.
//!
//! What should be out follows from the rollouts alone, so nothing of this is written down: whoever leads next gets the
//! same, and a repeat is harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;
use tracing::{debug, warn};

use super::links;
use super::rollouts::Driven;
use super::task::Controller;
use crate::domain::code::Code;
use crate::domain::id::{Generation, IntentId, NodeId};
use crate::domain::policy::Kind;
use crate::domain::release::Step;
use crate::domain::rollout::{Failure, Input, NodeReport, NodeState, Verdict};
use crate::domain::time::Now;
use crate::retry;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::payload::{Order, PAYLOAD_VERSION, Reply};
use crate::wire::subject::{Callee, Subject};

/// Orders that wait for an answer at once; each is a message of up to 64 KiB.
const FLYING_MAX: usize = 128;

/// The first and the longest pause before an order is sent again that nobody answered.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How often an order is sent again that was taken and has no verdict: the node may have lost it with its disk.
const REMIND: Duration = Duration::from_secs(60);

/// How often an order gives way to a trust document that its node does not have yet, and for how long.
const TRUST_FIRST: u32 = 20;
const TRUST_PAUSE: Duration = Duration::from_millis(200);

/// How soon a leader whose term was refused tries a higher one.
const RISE_AGAIN: Duration = Duration::from_secs(2);

/// Which order: the same in every term.
pub(super) type OrderKey = (IntentId, NodeId, Step);

#[derive(Debug)]
struct Outgoing {
    wave: u16,
    tries: u32,
    /// When it is sent; absent while it waits for an answer.
    due: Option<Instant>,
    is_taken: bool,
}

/// All orders that should be out.
#[derive(Debug, Default)]
pub(super) struct Orders {
    out: BTreeMap<IntentId, BTreeMap<(NodeId, Step), Outgoing>>,
    queue: BTreeSet<(Instant, OrderKey)>,
    flying: usize,
    risen: Option<Instant>,
}

impl Orders {
    /// Forgets what was sent: in another term each order is another one.
    pub(super) fn begin_anew(&mut self) {
        (self.out, self.queue) = (BTreeMap::new(), BTreeSet::new());
    }

    /// Wants these orders of a rollout and no others.
    fn want(&mut self, intent: IntentId, wanted: &BTreeMap<(NodeId, Step), u16>) {
        let out = self.out.get(&intent).into_iter().flat_map(BTreeMap::keys);
        let over: Vec<_> = out.filter(|at| !wanted.contains_key(at)).cloned().collect();
        for (node, step) in over {
            self.set((intent, node, step), None);
        }
        for ((node, step), wave) in wanted {
            self.set((intent, node.clone(), *step), Some(*wave));
        }
    }

    /// Wants an order, of this wave, or does not want it.
    fn set(&mut self, key: OrderKey, wanted: Option<u16>) {
        match (wanted, self.get(&key)) {
            (Some(wave), None) => {
                let order = Outgoing { wave, tries: 0, due: None, is_taken: false };
                self.out.entry(key.0).or_default().insert((key.1.clone(), key.2), order);
                self.later(&key, Duration::ZERO);
            }
            (None, Some(order)) => {
                if let Some(due) = order.due {
                    self.queue.remove(&(due, key.clone()));
                }
                let (intent, node, step) = key;
                if let Some(out) = self.out.get_mut(&intent) {
                    out.remove(&(node, step));
                    if out.is_empty() {
                        self.out.remove(&intent);
                    }
                }
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn get(&self, key: &OrderKey) -> Option<&Outgoing> {
        self.out.get(&key.0)?.get(&(key.1.clone(), key.2))
    }

    fn get_mut(&mut self, key: &OrderKey) -> Option<&mut Outgoing> {
        self.out.get_mut(&key.0)?.get_mut(&(key.1.clone(), key.2))
    }

    /// Sends an order after a while, unless something else happens to it.
    fn later(&mut self, key: &OrderKey, pause: Duration) {
        let due = Instant::now() + pause;
        let Some(order) = self.get_mut(key) else { return };
        if let Some(before) = order.due.replace(due) {
            self.queue.remove(&(before, key.clone()));
        }
        self.queue.insert((due, key.clone()));
    }

    /// A node has taken an order: its verdict comes with its log.
    pub(super) fn taken(&mut self, key: &OrderKey) {
        let Some(order) = self.get_mut(key) else { return };
        order.is_taken = true;
        if order.due.is_some() {
            self.later(key, retry::drawn(REMIND..=REMIND * 2));
        }
    }

    /// A node is there again: what waits for it is sent now.
    pub(super) fn seen(&mut self, node: &NodeId) {
        for (intent, step) in self.steps_of(node) {
            let key = (intent, node.clone(), step);
            if self.get(&key).is_some_and(|order| order.due.is_some()) {
                self.later(&key, Duration::ZERO);
            }
        }
    }

    /// Forgets what a rollout ordered.
    pub(super) fn forget(&mut self, intent: IntentId) {
        self.want(intent, &BTreeMap::new());
    }

    /// Returns which orders a node may have.
    fn steps_of(&self, node: &NodeId) -> Vec<(IntentId, Step)> {
        let steps = [Step::Apply, Step::Return, Step::Leave];
        let of = |intent: &IntentId| steps.map(|step| (*intent, step));
        let all = self.out.keys().flat_map(of);
        all.filter(|(intent, step)| self.get(&(*intent, node.clone(), *step)).is_some()).collect()
    }

    /// What a rollout orders is sent now: what it lacked is there.
    pub(super) fn hurry(&mut self, intent: IntentId) {
        let all = self.queue.iter().map(|(_, key)| key);
        let waiting: Vec<OrderKey> = all.filter(|key| key.0 == intent).cloned().collect();
        waiting.iter().for_each(|key| self.later(key, Duration::ZERO));
    }

    /// Returns the next order that is due.
    fn next(&mut self, now: Instant) -> Option<(OrderKey, u16)> {
        if self.flying >= FLYING_MAX {
            return None;
        }
        let (due, _) = self.queue.first()?;
        if *due > now {
            return None;
        }
        let (_, key) = self.queue.pop_first()?;
        let order = self.get_mut(&key)?;
        order.due = None;
        order.tries = order.tries.saturating_add(1);
        Some((key, order.wave))
    }
}

/// What came of an order.
#[derive(Debug)]
pub(super) enum OrderHeard {
    /// The node's signed answer.
    Answer(Reply),
    /// None that verifies, or nobody listens.
    Nothing,
}

impl Controller {
    /// Brings the orders of a rollout in line with what the disk knows of it.
    pub(super) fn look_at_orders(&mut self, intent: IntentId) {
        if self.leads().is_none() {
            return;
        }
        let Some(state) = self.rollouts.all.get(&intent).and_then(Driven::on_disk) else { return };
        let wanted = match state.verdict() {
            None => {
                let ordered = |node| Some((node, state.order_of(node)?));
                let orders = state.plan().targets().filter_map(ordered);
                orders.map(|(node, (step, wave))| ((node.clone(), step), wave)).collect()
            }
            Some(verdict) => {
                let configures = state.plan().configures;
                let mut wanted = self.convergence(intent);
                if verdict == Verdict::Succeeded {
                    wanted.extend(match configures {
                        true => self.unheeded(intent),
                        false => self.placed(intent),
                    });
                }
                self.placements.looked_at(intent, !wanted.is_empty());
                wanted
            }
        };
        self.orders.want(intent, &wanted);
    }

    /// The same for some nodes of a rollout that has not ended.
    pub(super) fn look_at_orders_of(&mut self, intent: IntentId, nodes: BTreeSet<NodeId>) {
        if self.leads().is_none() {
            return;
        }
        let Some(state) = self.rollouts.all.get(&intent).and_then(Driven::on_disk) else { return };
        for node in nodes {
            let order = state.order_of(&node);
            for step in [Step::Apply, Step::Return] {
                let wanted = order.filter(|(way, _)| *way == step).map(|(_, wave)| wave);
                self.orders.set((intent, node.clone(), step), wanted);
            }
        }
    }

    /// Returns the orders of nodes that were away when the last rollout of a service turned round: they go back as well.
    fn convergence(&self, intent: IntentId) -> BTreeMap<(NodeId, Step), u16> {
        let mut wanted = BTreeMap::new();
        let Some(state) = self.rollouts.all.get(&intent).and_then(Driven::on_disk) else {
            return wanted;
        };
        if !state.has_lost() {
            return wanted;
        }
        let plan = state.plan();
        let all = self.rollouts.of_service(&plan.service);
        let last = all.into_iter().find(|(_, state)| !state.plan().configures);
        if last.is_none_or(|(last, _)| last != intent) {
            return wanted;
        }
        let has_turned = self.rollouts.all.get(&intent).is_some_and(Driven::has_turned);
        for node in plan.targets() {
            if !matches!(state.node(node), Some(NodeState::Lost { .. })) {
                continue;
            }
            let known = self.projection.generation(node, &plan.service);
            let step = match state.verdict() {
                Some(Verdict::Succeeded | Verdict::Superseded) | None => continue,
                Some(_) if has_turned && known == plan.generation => Step::Return,
                Some(_) => continue,
            };
            // Never the first to try something.
            wanted.insert((node.clone(), step), 2);
        }
        wanted
    }

    /// Looks at what ended rollouts still have to order.
    pub(super) fn converge(&mut self, now: Now) {
        self.placements.forgive(self.ticks);
        let is_due = |intent: IntentId| self.placements.is_due(intent, self.ticks);
        let all = self.rollouts.all.iter();
        let due = all.filter(|(intent, driven)| driven.is_over() && is_due(**intent));
        for intent in due.map(|(intent, _)| *intent).collect::<Vec<_>>() {
            self.look_at_orders(intent);
        }
        self.send_orders(now);
    }

    /// Sends what is due, as far as there is room.
    pub(super) fn send_orders(&mut self, now: Now) {
        if self.leads().is_none() {
            return;
        }
        while let Some((key, wave)) = self.orders.next(Instant::now()) {
            let pause = if self.projection.is_lost(&key.1) { Some(AGAIN.1) } else { None };
            if let Some(pause) = pause {
                self.orders.later(&key, retry::drawn(pause / 2..=pause));
                continue;
            }
            // Whoever signed what it proves may be known to the newest trust alone.
            let tries = self.orders.get(&key).map_or(0, |order| order.tries);
            if tries <= TRUST_FIRST && self.bring_trust_to(&key.1) {
                self.orders.later(&key, TRUST_PAUSE);
                continue;
            }
            match self.seal_order(now, &key, wave) {
                Ok(sealed) => {
                    self.orders.flying += 1;
                    let to = Callee::node(key.1.clone()).unwrap_or(Callee::EVERY_NODE);
                    tokio::spawn(links::order(
                        self.connection.clone(),
                        Subject::Call { fleet: self.setup.fleet.clone(), to },
                        (key, sealed),
                        self.trusted.clone(),
                        self.waker.clone(),
                    ));
                }
                Err(why) => {
                    warn!(rollout = %key.0, node = %key.1, why, "an order cannot be made");
                    self.orders.later(&key, retry::drawn(AGAIN.1 / 2..=AGAIN.1));
                }
            }
        }
    }

    fn seal_order(&mut self, now: Now, key: &OrderKey, wave: u16) -> Result<Vec<u8>, String> {
        let (intent, node, step) = key;
        let term = self.leads().ok_or("another controller leads")?;
        let Some(wish) = self.wish_of(*intent) else {
            self.ask_for_wish(*intent);
            return Err("the signed wish is not here; the other controllers are asked".into());
        };
        let driven = self.rollouts.all.get_mut(intent).ok_or("the rollout is forgotten")?;
        let digest = driven.digest;
        let state = driven.on_disk().ok_or("its facts are not whole")?;
        let plan = state.plan();
        let digest = digest.unwrap_or_else(|| plan.digest());
        let verified_at = driven.told().first().map(|record| record.at).unwrap_or_default();
        // Where the canary of an earlier rollout stands for one of its own, no node goes first.
        let is_retried = plan.retry.as_ref().is_some_and(|retry| !retry.canary.is_empty());
        let needs_proof =
            (wave > 1 || is_retried) && *step == Step::Apply && plan.emergency.is_none();
        let canary = match needs_proof {
            true => {
                let counts = |of: &NodeId, word: &[u8]| self.authority.is_word_of(of, word);
                self.rollouts.reports.proofs(plan, node, counts)
            }
            false => Vec::new(),
        };
        // Where no other node has a word, as when the only one that is meant matches again, it may be one that goes first.
        let wave = if needs_proof && canary.is_empty() { 1 } else { wave };
        let order = Order {
            v: PAYLOAD_VERSION,
            iss: self.signer.kid(),
            iat: now.at,
            fleet: self.setup.fleet.clone(),
            node: node.clone(),
            intent: ByteBuf::from(wish.to_vec()),
            step: *step,
            plan: digest,
            term,
            controller: self.setup.controller.clone(),
            verified_at,
            wave,
            canary,
        };
        driven.digest = Some(digest);
        let sealed = envelope::seal(Kind::Order, &codec::encode(&order), &self.signer);
        match sealed.len() <= ENVELOPE_BYTES_MAX {
            true => Ok(sealed),
            false => Err(format!("it has {} bytes", sealed.len())),
        }
    }

    /// Takes in what came of an order.
    pub(super) fn ordered(&mut self, now: Now, key: &OrderKey, heard: OrderHeard) {
        self.orders.flying = self.orders.flying.saturating_sub(1);
        let Some(order) = self.orders.get(key).filter(|order| order.due.is_none()) else {
            return self.send_orders(now);
        };
        let pause = retry::doubled(AGAIN.0, AGAIN.1, order.tries.saturating_sub(1));
        let is_taken = order.is_taken;
        self.orders.later(key, retry::drawn(pause / 2..=pause));
        match heard {
            OrderHeard::Answer(Reply::Accepted { .. } | Reply::Outcome { .. }) => {
                self.orders.taken(key);
            }
            OrderHeard::Answer(Reply::Refused { code, why }) => {
                self.order_refused(now, key, &code, why);
            }
            OrderHeard::Answer(_) | OrderHeard::Nothing if is_taken => self.orders.taken(key),
            OrderHeard::Answer(_) | OrderHeard::Nothing => {
                debug!(rollout = %key.0, node = %key.1, "an order was not answered");
            }
        }
        self.send_orders(now);
    }

    fn order_refused(&mut self, now: Now, key: &OrderKey, code: &str, why: String) {
        warn!(rollout = %key.0, node = %key.1, code, why, "an order was refused");
        match code.parse().unwrap_or(Code::INTERNAL) {
            // Somebody led in a higher term, or in the same one, and this controller did not hear of it.
            Code::STALE_TERM | Code::FORKED_TERM => self.rise_above(now),
            // The node's log says more than the refusal, and arrives.
            Code::RETURNED => {}
            Code::BUSY
            | Code::CONFLICT
            | Code::RATE_LIMITED
            | Code::LOG_UNAVAILABLE
            | Code::IO
            | Code::KEEPER_GONE => {}
            _ => {
                let (intent, node, step) = key;
                let generation = self.rollouts.all.get(intent).and_then(|driven| {
                    let apply = driven.story.state()?.plan().generation;
                    Some(match step {
                        Step::Apply | Step::Leave => apply,
                        Step::Return => Generation(apply.0.saturating_add(1)),
                    })
                });
                let Some(generation) = generation else { return };
                let failure = Failure { why: format!("[{code}] {why}"), ..Failure::of("refused") };
                if self.rollouts.all.get(intent).is_some_and(|it| it.is_over()) {
                    let of = (*intent, node.clone());
                    self.placements.refuse(of, failure.why.clone(), self.ticks);
                }
                let report = NodeReport::Failed { generation, failure };
                let input = Input::Node { node: node.clone(), event: None, report };
                if let Err(why) = self.drive(now, *intent, &input) {
                    warn!(%why, "a refusal was not taken in");
                }
            }
        }
    }

    /// Leads in a higher term than any that a node obeys.
    fn rise_above(&mut self, now: Now) {
        let at = Instant::now();
        if self.orders.risen.is_none_or(|risen| at.duration_since(risen) >= RISE_AGAIN) {
            self.orders.risen = Some(at);
            self.rise(now, self.taken);
        }
    }
}
