//! Turns facts into signed rows, hands them to the log, and keeps promises until they are durable.
//!
//! A promise waits for the last row of the decision that made it; a repair does not come here at all. While the
//! log takes nothing, facts wait in a bounded ring, are marked late, and beyond it fold into one summary a service.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tracing::error;

use crate::domain::event::{Context, Event, Summarized};
use crate::domain::id::{BootId, EpochId, EventId, IntentId, NodeId, Seq, ServiceId};
use crate::domain::policy::Kind;
use crate::domain::promises::{Promised, Promises};
use crate::domain::time::{Now, UnixMicros};
use crate::store::{AppendError, Head, Log, ROW_BYTES_MAX};
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::fold;
use crate::wire::key::Signer;
use crate::wire::payload::EventRecord;

/// Facts that wait while the log takes none: an hour of a crashing node, in a few MiB.
const LATE_MAX: usize = 16 * 1024;

/// How many wishes more than twice those that are remembered are looked up in vain.
const TOLD_SLACK: usize = 256;

/// What stands beside the body of an event at most, in bytes: names, ids, an actor's note, the signature.
const BESIDE_BYTES_MAX: usize = 2048;

/// Says whether an event fits a row, whatever stands beside its body.
pub fn fits(event: &Event) -> bool {
    codec::encode_body(event).len() + BESIDE_BYTES_MAX <= ROW_BYTES_MAX
}

/// A row on its way to the disk and then to whoever listens.
#[derive(Debug, Clone)]
pub struct Live {
    /// Its number.
    pub seq: Seq,
    /// Its type.
    pub kind: &'static str,
    /// The service that it is about.
    pub service: Option<ServiceId>,
    /// The envelope.
    pub row: Arc<[u8]>,
}

/// What became of the rows up to a watermark.
#[derive(Debug)]
pub struct Kept<P> {
    /// Promises to keep, in the order in which they were made.
    pub promises: Vec<P>,
    /// Rows to publish, in order.
    pub rows: Vec<Live>,
}

struct Late {
    now: Now,
    context: Context,
    event: Event,
}

/// The pen of one agent. `P` is a promise.
pub struct Recorder<P> {
    log: Log,
    signer: Arc<Signer>,
    origin: NodeId,
    boot: BootId,
    epoch: EpochId,
    next: Seq,
    promises: Promises<P>,
    /// The event that says how far each remembered wish is.
    told: BTreeMap<IntentId, Seq>,
    rows: VecDeque<Live>,
    late: VecDeque<Late>,
    summaries: BTreeMap<ServiceId, Summarized>,
    counts: Counts,
}

/// What became of the facts that the log did not take when they happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Written late.
    pub late: u64,
    /// Folded into the summary of their service.
    pub summarized: u64,
    /// Of no service, and lost.
    pub dropped: u64,
}

impl<P: Promised> Recorder<P> {
    /// Goes on behind the last row of `log`.
    pub fn new(
        log: Log,
        signer: Arc<Signer>,
        origin: NodeId,
        boot: BootId,
        told: BTreeMap<IntentId, Seq>,
    ) -> Self {
        let (epoch, last) = log.appended();
        Self {
            log,
            signer,
            origin,
            boot,
            epoch,
            next: Seq(last.0 + 1),
            promises: Promises::default(),
            told,
            rows: VecDeque::new(),
            late: VecDeque::new(),
            summaries: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// Returns the log, for reading.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Returns the durable head.
    pub fn head(&self) -> Head {
        self.log.head()
    }

    /// Returns the last number that is durable.
    pub fn durable_seq(&self) -> Seq {
        self.log.durable_seq()
    }

    /// Returns the name of one of this log's events.
    pub fn event_id(&self, seq: Seq) -> EventId {
        EventId { origin: self.origin.clone(), epoch: self.epoch, seq }
    }

    /// Returns the number that the next fact gets.
    pub fn next(&self) -> Seq {
        Seq(self.next.0 + self.late.len() as u64)
    }

    /// Records facts that were already adopted, in order.
    pub fn record(&mut self, now: Now, facts: Vec<(Context, Event)>) {
        let facts = facts.into_iter().map(|(context, event)| Late { now, context, event });
        let facts: Vec<Late> = facts.collect();
        // Together, or the writer would begin a commit with the first and need a second one for the rest.
        if !self.late.is_empty() || !self.write(&facts, None) {
            facts.into_iter().for_each(|late| self.hold(late));
        }
    }

    /// Keeps a promise back until every fact recorded so far is durable.
    pub fn promise(&mut self, promise: P) {
        let last = Seq(self.next().0 - 1);
        self.promises.make(last, promise);
    }

    /// Drops what is not to be kept any more, since agent and keeper meet anew.
    pub fn meet(&mut self) {
        self.promises.meet();
    }

    /// Returns the event that says how far a wish is; absent while it waits for a log that takes nothing.
    pub fn told(&self, intent: &IntentId) -> Option<EventId> {
        self.told.get(intent).map(|seq| self.event_id(*seq))
    }

    /// Forgets where wishes stand that nobody remembers. Looked at seldom, so that it costs nothing.
    pub fn forget_but(&mut self, remembered: usize, is_remembered: impl Fn(&IntentId) -> bool) {
        if self.told.len() > 2 * remembered + TOLD_SLACK {
            self.told.retain(|intent, _| is_remembered(intent));
        }
    }

    /// Begins the next segment with a baseline.
    ///
    /// # Errors
    /// When the log takes no rows at this moment; the segment then goes on and is asked about again.
    pub fn roll(&mut self, now: Now, baseline: Vec<Event>) -> Result<(), AppendError> {
        if !self.late.is_empty() {
            // They are in the baseline already, and would be folded a second time behind it.
            return Err(AppendError::Busy { rows: self.late.len(), outage: self.log.outage() });
        }
        let first = self.next;
        let rows: Vec<Arc<[u8]>> = (first.0..)
            .zip(&baseline)
            .map(|(seq, event)| self.seal(Seq(seq), now, &Context::default(), event, None))
            .collect();
        let count = rows.len() as u64;
        self.log.roll(first, rows.clone())?;
        self.next = Seq(first.0 + count);
        for (place, (row, event)) in rows.into_iter().zip(&baseline).enumerate() {
            let seq = Seq(first.0 + place as u64);
            self.rows.push_back(Live { seq, kind: event.kind(), service: None, row });
        }
        Ok(())
    }

    /// Takes the watermark: everything up to `seq` is on disk.
    pub fn durable(&mut self, seq: Seq) -> Kept<P> {
        let live = self.rows.iter().take_while(|row| row.seq <= seq).count();
        Kept { promises: self.promises.due(seq), rows: self.rows.drain(..live).collect() }
    }

    /// Writes what waited, as far as the log takes it; says whether nothing waits any more.
    pub fn catch_up(&mut self, now: Now) -> bool {
        while let Some(late) = self.late.pop_front() {
            if !self.write(std::slice::from_ref(&late), Some(now.at)) {
                self.late.push_front(late);
                return false;
            }
            self.counts.late += 1;
        }
        while let Some((service, summary)) = self.summaries.pop_first() {
            let context = Context::service(&service);
            let late = Late { now, context, event: Event::Summarized(summary.clone()) };
            if !self.write(std::slice::from_ref(&late), Some(now.at)) {
                self.summaries.insert(service, summary);
                return false;
            }
        }
        true
    }

    /// Returns what became of facts that waited, since it was last asked.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    fn write(&mut self, facts: &[Late], recorded_at: Option<UnixMicros>) -> bool {
        if facts.is_empty() {
            return true;
        }
        // What is signed and waits inside the log could not say any more that it is late.
        if self.log.is_stuck() {
            return false;
        }
        let first = self.next;
        self.log.announce();
        let rows: Vec<Arc<[u8]>> = (first.0..)
            .zip(facts)
            .map(|(seq, fact)| {
                self.seal(Seq(seq), fact.now, &fact.context, &fact.event, recorded_at)
            })
            .collect();
        match self.log.append_all(first, rows.clone()) {
            Ok(_) => {}
            // It would be as large at every later time, and all facts behind it would wait for it.
            Err(AppendError::TooLarge { bytes }) => {
                error!(bytes, %first, "facts that fit no row were not recorded");
                return true;
            }
            Err(_) => return false,
        }
        self.next = Seq(first.0 + rows.len() as u64);
        for ((seq, fact), row) in (first.0..).zip(facts).zip(rows) {
            let told = &mut self.told;
            fold::wishes_told_by(&fact.event, |intent| {
                told.insert(intent, Seq(seq));
            });
            let (kind, service) = (fact.event.kind(), fact.context.service.clone());
            self.rows.push_back(Live { seq: Seq(seq), kind, service, row });
        }
        true
    }

    fn hold(&mut self, late: Late) {
        // What was written of the wish before says less than this.
        let told = &mut self.told;
        fold::wishes_told_by(&late.event, |intent| {
            told.remove(&intent);
        });
        if self.late.len() < LATE_MAX {
            self.late.push_back(late);
            return;
        }
        let Some(service) = late.context.service else {
            self.counts.dropped += 1;
            return;
        };
        self.counts.summarized += 1;
        let at = late.now.at;
        let summary = self.summaries.entry(service).or_insert_with(|| Summarized {
            starts: 0,
            exits: 0,
            first_at: at,
            last_at: at,
            live: None,
        });
        summary.last_at = at;
        #[expect(clippy::wildcard_enum_match_arm, reason = "only starts and exits are counted")]
        match late.event {
            Event::InstanceStarted(started) => {
                summary.starts += 1;
                summary.live = late.context.run.map(|run| (run, started.pid));
            }
            Event::InstanceExited(_) => {
                summary.exits += 1;
                summary.live = None;
            }
            _ => {}
        }
    }

    fn seal(
        &self,
        seq: Seq,
        now: Now,
        context: &Context,
        event: &Event,
        recorded_at: Option<UnixMicros>,
    ) -> Arc<[u8]> {
        let record = EventRecord {
            recorded_at,
            ..EventRecord::of(self.event_id(seq), now, self.boot, context, event)
        };
        envelope::seal(Kind::Event, &codec::encode(&record), &self.signer).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::IntentRefused;

    #[test]
    fn what_no_reader_takes_fits_no_row() {
        let refused = |bytes: usize| {
            let why = "x".repeat(bytes);
            Event::IntentRefused(IntentRefused {
                intent: None,
                code: "E0311".to_owned(),
                why,
                count: 1,
            })
        };
        assert!(fits(&refused(ROW_BYTES_MAX - BESIDE_BYTES_MAX - 100)));
        assert!(!fits(&refused(ROW_BYTES_MAX - BESIDE_BYTES_MAX + 100)));
    }
}
