//! Taking logs in: live as long as nothing is missing, by ranges where something is. Nothing counts that is not signed
//! by the key of its log, and nothing is taken that does not follow what is here.

use serde_bytes::ByteBuf;
use std::ops::ControlFlow;
use tracing::{debug, error, warn};

use super::links;
use super::own::read;
use super::task::Controller;
use super::verify::{Arrived, Dropped, Fetched};
use crate::domain::code::Code;
use crate::domain::controller::LogForked;
use crate::domain::event::Event;
use crate::domain::id::{EpochId, EventId, IntentId, NodeId, Seq};
use crate::domain::policy::{KeyClass, Kind};
use crate::domain::time::Now;
use crate::head::clock;
use crate::store::{EventPos, RangeLimits};
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::payload::{Ask, Audience, Beat, Body, PAYLOAD_VERSION, Query};
use crate::wire::subject::{Callee, Subject};

/// Ranges that are under way at once: each is one answer of some 50 KiB.
const FETCHES_MAX: usize = 16;

/// Events that are asked for at once; the answer is bounded by its bytes long before.
const EVENTS_MAX: u32 = 1000;

/// How long a question for a range may be answered, in milliseconds.
const QUERY_LIFE_MS: u64 = 30_000;

/// Ticks after which a log that could not be fetched is asked for again, doubled by each failure.
const RETRY_TICKS: u64 = 1;
const RETRY_TICKS_MAX: u64 = 30;

/// Rows of the own log that are taken over at once.
const OWN_ROWS: usize = 1000;

/// One log that is taken in.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) class: KeyClass,
    /// When its owner was heard last.
    pub(super) heard: Option<Now>,
    /// Whether a range is under way or waits for its turn.
    busy: bool,
    /// The last event that was told of and is not here.
    wanted: Option<EventId>,
    failures: u32,
    /// The tick at which it is asked again after a failure.
    retry_at: Option<u64>,
    /// What was recorded as a fork, so that it is recorded once.
    forked: Option<(EpochId, Seq)>,
}

impl Line {
    pub(super) fn new(class: KeyClass) -> Self {
        Self {
            class,
            heard: None,
            busy: false,
            wanted: None,
            failures: 0,
            retry_at: None,
            forked: None,
        }
    }

    /// Says whether nothing of it is fetched, nor will be again after a failure.
    fn is_at_rest(&self) -> bool {
        !self.busy && self.retry_at.is_none()
    }
}

impl Controller {
    /// Takes in what came live.
    pub(super) fn live(&mut self, now: Now, events: Vec<Result<Arrived, Dropped>>) {
        let mut run: Option<(EventId, Vec<ByteBuf>)> = None;
        for event in events {
            let Arrived { id, bytes } = match event {
                Ok(arrived) => arrived,
                Err(why) => {
                    self.count_dropped(why);
                    continue;
                }
            };
            if id.origin == self.setup.controller || !self.lines.contains_key(&id.origin) {
                continue; // The own log is at hand.
            }
            if let Some((first, rows)) = &mut run
                && (&first.origin, first.epoch) == (&id.origin, id.epoch)
                && first.seq.0 + rows.len() as u64 == id.seq.0
            {
                rows.push(bytes);
                continue;
            }
            self.take_run(now, run.take());
            if self.follows(&id) {
                run = Some((id, vec![bytes]));
            } else {
                self.heard(now, &id.origin);
                self.is_elsewhere(id);
            }
        }
        self.take_run(now, run);
    }

    fn take_run(&mut self, now: Now, run: Option<(EventId, Vec<ByteBuf>)>) {
        let Some((first, rows)) = run else { return };
        self.heard(now, &first.origin);
        self.intake.live += rows.len() as u64;
        self.append(&first.origin, (first.epoch, first.seq), rows);
    }

    /// Says whether an event is the next one of its log. That a new epoch follows is seen when it is fetched.
    fn follows(&self, id: &EventId) -> bool {
        match self.arrivals.mark(&id.origin) {
            Some(mark) => mark.epoch == id.epoch && mark.seq().0 + 1 == id.seq.0,
            None => false,
        }
    }

    /// An event that is not the next one came before or follows one that is missing.
    fn is_elsewhere(&mut self, id: EventId) {
        let is_known = self
            .arrivals
            .mark(&id.origin)
            .is_some_and(|mark| mark.epoch == id.epoch && id.seq <= mark.seq());
        if is_known {
            self.intake.repeats += 1;
        } else {
            self.is_missing(id);
        }
    }

    /// Something up to `told` is missing.
    fn is_missing(&mut self, told: EventId) {
        let Some(line) = self.lines.get_mut(&told.origin) else { return };
        let origin = told.origin.clone();
        line.wanted = Some(told);
        if line.is_at_rest() {
            self.intake.gaps += 1;
            self.ask_for(&origin);
        }
    }

    /// Takes in the head of a log.
    pub(super) fn beat(&mut self, now: Now, beat: Result<Beat, Dropped>) {
        let beat = match beat {
            Ok(beat) => beat,
            Err(why) => return self.count_dropped(why),
        };
        if beat.origin == self.setup.controller || !self.lines.contains_key(&beat.origin) {
            return;
        }
        self.heard(now, &beat.origin);
        let last = self.arrivals.last(&beat.origin);
        self.projection.beat(now, &beat, last.as_ref());
        let told = EventId { origin: beat.origin.clone(), epoch: beat.epoch, seq: beat.seq };
        let mark = self.arrivals.mark(&beat.origin);
        let here = mark.map(|mark| (mark.epoch, mark.seq()));
        let is_another = here == Some((beat.epoch, beat.seq))
            && mark.is_some_and(|mark| mark.frontier.root() != beat.root);
        if beat.asks || is_another || here > Some((beat.epoch, beat.seq)) {
            self.remind(now, &beat.origin);
        }
        match here {
            Some(here) if here == (beat.epoch, beat.seq) => {
                if is_another {
                    let why = "its root over the same events is another".to_owned();
                    self.is_forked(now, &beat.origin, why);
                }
            }
            // Ahead, or behind: what was set back says so when it is asked.
            _ => self.is_missing(told),
        }
    }

    /// Takes in a range.
    pub(super) fn fetched(
        &mut self,
        now: Now,
        origin: &NodeId,
        outcome: Option<Result<Fetched, Dropped>>,
    ) {
        self.fetching = self.fetching.saturating_sub(1);
        let Some(line) = self.lines.get_mut(origin) else { return };
        line.busy = false;
        match outcome {
            Some(Ok(Fetched::Page { epoch, first, events, head })) => {
                line.failures = 0;
                self.heard(now, origin);
                self.page(now, origin, (epoch, first), events, &head);
            }
            Some(Ok(Fetched::Refused { code, why })) => {
                let is_behind = code == Code::BAD_CURSOR.to_string();
                warn!(%origin, code, why, "a range was refused");
                self.heard(now, origin);
                if is_behind {
                    self.is_forked(now, origin, why);
                }
                self.try_later(origin);
            }
            Some(Err(why)) => {
                self.count_dropped(why);
                self.try_later(origin);
            }
            None => self.try_later(origin),
        }
        self.start_fetches();
    }

    fn page(
        &mut self,
        now: Now,
        origin: &NodeId,
        (epoch, first): (EpochId, Seq),
        mut events: Vec<ByteBuf>,
        head: &EventId,
    ) {
        let here = self.arrivals.mark(origin).map(|mark| (mark.epoch, mark.seq()));
        let next = match here {
            Some((known, seq)) if known == epoch => Seq(seq.0 + 1),
            _ => Seq(1),
        };
        if first > next && !events.is_empty() {
            error!(%origin, %first, %next, "the log no longer has what is missing here");
            return self.try_later(origin);
        }
        if let Some((known, seq)) = here.filter(|(known, _)| *known != epoch)
            && let Some(opened) = events.first()
            && !self.extends(origin, (known, seq), opened)
        {
            let why = "its next epoch does not begin where the one before ended here".to_owned();
            self.is_forked(now, origin, why);
        }
        // What came live meanwhile is here already.
        let known = usize::try_from(next.0 - first.0.min(next.0)).unwrap_or(usize::MAX);
        events.drain(..known.min(events.len()));
        let is_empty = events.is_empty();
        if !is_empty {
            self.intake.fetched += events.len() as u64;
            if !self.append(origin, (epoch, next), events) {
                return self.try_later(origin);
            }
        }
        let wanted = self.lines.get(origin).and_then(|line| line.wanted.clone());
        let is_here = |wanted: &EventId, mark: &super::arrivals::Mark| {
            mark.epoch == wanted.epoch && mark.seq() >= wanted.seq
        };
        let mark = self.arrivals.mark(origin);
        let lacks = |told: &EventId| mark.is_none_or(|mark| !is_here(told, mark));
        let more = head.seq.0 > 0 && lacks(head);
        let untold = wanted.as_ref().is_some_and(lacks);
        if let Some(line) = self.lines.get_mut(origin).filter(|_| !untold) {
            line.wanted = None;
        }
        if (more || untold) && !is_empty {
            self.ask_for(origin);
        }
    }

    /// Says whether the first event of an epoch names the end of the one before as it is here.
    fn extends(&self, origin: &NodeId, before: (EpochId, Seq), opened: &[u8]) -> bool {
        let Some((_, Body::Known(Event::LogOpened(opened)))) = read(opened) else { return false };
        let root = self.arrivals.mark(origin).map(|mark| mark.frontier.root());
        opened.predecessor.is_some_and(|named| {
            (named.epoch, Seq(named.size)) == before && Some(named.root) == root
        })
    }

    /// Appends events that follow; says whether the log took them.
    fn append(
        &mut self,
        origin: &NodeId,
        (epoch, first): (EpochId, Seq),
        rows: Vec<ByteBuf>,
    ) -> bool {
        let copies = rows.clone();
        if let Err(why) = self.arrivals.append(origin, epoch, first, rows) {
            debug!(%origin, %why, "held back");
            return false;
        }
        let is_controller =
            self.lines.get(origin).is_some_and(|line| line.class == KeyClass::Controller);
        let now = clock::now();
        for (seq, row) in (first.0..).zip(&copies) {
            if is_controller {
                match read(row) {
                    Some((_, Body::Known(Event::ControllerLed(led))))
                        if *origin != self.setup.controller =>
                    {
                        self.other_led(&led);
                    }
                    Some((record, body)) => {
                        self.rollouts.fact(&self.setup.controller, &record, body);
                    }
                    None => {}
                }
            } else {
                let id = EventId { origin: origin.clone(), epoch, seq: Seq(seq) };
                self.projection.event(&id, row);
                self.node_said(now, &id, row);
            }
        }
        true
    }

    fn is_forked(&mut self, now: Now, origin: &NodeId, why: String) {
        let Some(last) = self.arrivals.last(origin) else { return };
        let Some(line) = self.lines.get_mut(origin) else { return };
        let at = Some((last.epoch, last.seq));
        if std::mem::replace(&mut line.forked, at) == at {
            return;
        }
        self.intake.forked += 1;
        error!(%origin, why, "a log does not extend what is here of it");
        let (origin, epoch, seq) = (origin.clone(), last.epoch, last.seq);
        self.record(now, Event::LogForked(LogForked { origin, epoch, seq, why }));
    }

    /// Says whether more of a log is being fetched, or is about to be.
    pub(super) fn is_on_its_way(&self, origin: &NodeId) -> bool {
        self.lines.get(origin).is_some_and(|line| line.busy)
    }

    /// Says whether all of a log is here, as far as anybody told: what is not in it is not so.
    pub(super) fn is_read(&self, origin: &NodeId) -> bool {
        self.lines.get(origin).is_none_or(Line::is_at_rest)
    }

    pub(super) fn count_dropped(&mut self, why: Dropped) {
        match why {
            Dropped::Unsigned => self.intake.unsigned += 1,
            Dropped::Foreign => self.intake.foreign += 1,
        }
    }

    /// Asks every log what it has: nothing was heard while the bus was away.
    pub(super) fn catch_up_all(&mut self) {
        let own = self.setup.controller.clone();
        let origins: Vec<_> = self.lines.keys().filter(|origin| **origin != own).cloned().collect();
        for origin in origins {
            self.ask_for(&origin);
        }
    }

    pub(super) fn retry_fetches(&mut self) {
        let ticks = self.ticks;
        let is_due = |line: &Line| line.retry_at.is_some_and(|at| at <= ticks);
        let due: Vec<_> = self
            .lines
            .iter_mut()
            .filter(|(_, line)| is_due(line))
            .map(|(origin, line)| {
                line.retry_at = None;
                origin.clone()
            })
            .collect();
        due.iter().for_each(|origin| self.ask_for(origin));
    }

    fn try_later(&mut self, origin: &NodeId) {
        let ticks = self.ticks;
        let Some(line) = self.lines.get_mut(origin) else { return };
        let pause = RETRY_TICKS.checked_shl(line.failures).unwrap_or(RETRY_TICKS_MAX);
        line.failures = line.failures.saturating_add(1);
        line.retry_at = Some(ticks + pause.clamp(1, RETRY_TICKS_MAX));
    }

    fn ask_for(&mut self, origin: &NodeId) {
        let Some(line) = self.lines.get_mut(origin) else { return };
        if !std::mem::replace(&mut line.busy, true) {
            line.retry_at = None;
            self.queue.push_back(origin.clone());
            self.start_fetches();
        }
    }

    fn start_fetches(&mut self) {
        while self.fetching < FETCHES_MAX
            && let Some(origin) = self.queue.pop_front()
        {
            self.fetching += 1;
            let now = clock::now();
            let id = random_id();
            let after = self.arrivals.last(&origin);
            let query = Query {
                v: PAYLOAD_VERSION,
                id,
                iss: self.signer.kid(),
                iat: now.at,
                exp: now.at.plus_ms(QUERY_LIFE_MS),
                fleet: self.setup.fleet.clone(),
                audience: Audience::Nodes(vec![origin.clone()]),
                ask: Ask::Range { after, events_max: EVENTS_MAX, wait_ms: 0 },
            };
            let sealed = envelope::seal(Kind::Query, &codec::encode(&query), &self.signer);
            let to = Callee::node(origin.clone()).unwrap_or(Callee::EVERY_NODE);
            tokio::spawn(links::fetch(
                self.connection.clone(),
                Subject::Call { fleet: self.setup.fleet.clone(), to },
                (origin, id, sealed),
                self.trusted.clone(),
                self.waker.clone(),
            ));
        }
    }

    /// Takes the own log over as far as it is durable: it is one of those that arrive.
    pub(super) fn feed_own(&mut self) {
        let own = self.setup.controller.clone();
        loop {
            let head = self.recorder.head();
            let mark = self.arrivals.mark(&own);
            let from = match mark {
                Some(mark) if mark.epoch == head.epoch => Seq(mark.seq().0 + 1),
                _ => Seq(1),
            };
            if from > head.seq {
                return;
            }
            let mut rows = Vec::new();
            let limits = RangeLimits { rows: OWN_ROWS, bytes: usize::MAX };
            let from_pos = EventPos { epoch: head.epoch, seq: from };
            let read = self.recorder.log().range(from_pos, limits, |_, row| {
                rows.push(ByteBuf::from(row.to_vec()));
                ControlFlow::Continue(())
            });
            if let Err(why) = read {
                return error!(%why, "the own log cannot be read");
            }
            if rows.is_empty() || !self.append(&own, (head.epoch, from), rows) {
                return;
            }
        }
    }
}

/// Returns an id for a question of this controller's own.
pub(super) fn random_id() -> IntentId {
    let halves = [clock::entropy().to_be_bytes(), clock::entropy().to_be_bytes()];
    IntentId(halves.concat().try_into().expect("twice 8 bytes are 16"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_when_nothing_of_it_is_fetched_nor_will_be_after_a_failure() {
        let line = || Line::new(KeyClass::Node);
        assert!(line().is_at_rest());
        assert!(!Line { busy: true, ..line() }.is_at_rest());
        assert!(!Line { retry_at: Some(7), ..line() }.is_at_rest());
    }
}
