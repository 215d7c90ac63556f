//! Answers readings: status, ranges of the log, lines of services' logs, outcomes. Nothing of it is logged.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::sync::{Notify, Semaphore};
use tracing::debug;

use super::answers::ReplyTo;
use super::clock;
use super::folder::StateFolder;
use super::local::Caller;
use super::logs::LogHandle;
use super::renewal::OnTheWay;
use super::task::Agent;
use super::wake::Wake;
use crate::config::TOLD_BYTES_MAX;
use crate::domain::code::Code;
use crate::domain::id::{EventId, InstanceId, IntentId, Seq, ServiceId};
use crate::domain::seen::Progress;
use crate::ipc::hello::Hello;
use crate::ipc::local::RequestId;
use crate::ipc::place::Place;
use crate::store::{EpochOnDisk, EventPos, Log, RangeEnd, RangeLimits, ReadError};
use crate::wire::codec;
use crate::wire::payload::{Ask, LogWait, Query, Reply};

/// The most events in one answer to a range, and the most bytes, so that an answer fits a message of the bus.
const RANGE_EVENTS_MAX: u32 = 1000;
const RANGE_BYTES_MAX: usize = 48 * 1024;

/// The longest text beside the log that is given out: 20 lines that were cut where they are too long.
const BESIDE_BYTES_MAX: usize = 48 * 1024;

/// Askers that wait for the next event: beyond it they are answered at once and ask again.
const WAITING_MAX: usize = 256;

/// Askers that wait for the next line of a log: each has a task of its own.
const LOG_WAITS_MAX: usize = 64;

/// The longest wait for the next event or line, in milliseconds.
const WAIT_MS_MAX: u32 = 30_000;

/// The most lines of a log in one reading.
const LINES_MAX: u32 = 10_000;

/// A part of an answer that was read beside the task.
#[derive(Debug)]
pub(super) struct Page {
    to: ReplyTo,
    cause: IntentId,
    part: u32,
    last: bool,
    reply: Reply,
}

/// An asker who waits for the next event.
#[derive(Debug)]
struct Waiting {
    to: ReplyTo,
    cause: IntentId,
    after: Option<EventId>,
    events_max: u32,
    until_ns: u64,
}

/// What the agent keeps for readings.
#[derive(Debug)]
pub(super) struct Queries {
    waiting: Vec<Waiting>,
    /// Places of those who wait for lines.
    log_waits: Arc<Semaphore>,
    /// The state folder.
    pub(super) state: StateFolder,
    /// Where the parts meet, for their process ids.
    pub(super) place: Place,
    /// The keeper, as it introduced itself.
    pub(super) keeper: Option<Hello>,
    /// Messages refused since the start.
    pub(super) refused: u64,
    /// The trust documents that are on their way.
    pub(super) trust: OnTheWay,
}

impl Queries {
    pub(super) fn new(state: StateFolder, place: Place) -> Self {
        let log_waits = Arc::new(Semaphore::new(LOG_WAITS_MAX));
        let trust = OnTheWay::default();
        Self { waiting: Vec::new(), log_waits, state, place, keeper: None, refused: 0, trust }
    }
}

impl Agent {
    /// Takes an unsigned reading from somebody whom the socket's permissions let in.
    pub(super) fn local_read(&mut self, bytes: &[u8], caller: Caller, id: RequestId) {
        match codec::decode::<Query>(bytes) {
            Ok(Query { ask: Ask::Trust(_), .. }) => {
                let why = "this is no reading: a controller signs it".to_owned();
                caller.refuse(id, Code::UNKNOWN_TYPE.to_string(), why);
            }
            Ok(query) => self.query(query, ReplyTo::Local(caller, id)),
            Err(why) => caller.refuse(id, Code::BAD_PAYLOAD.to_string(), why.to_string()),
        }
    }

    /// Answers a query that may be answered.
    pub(super) fn query(&mut self, query: Query, to: ReplyTo) {
        let cause = query.id;
        let reply = match query.ask {
            Ask::Ping => Reply::Pong { version: env!("CARGO_PKG_VERSION").to_owned() },
            Ask::Status => {
                let parts = self.status().into_parts().into_iter();
                let parts = parts.map(|part| Reply::Status(Box::new(part)));
                return self.answers.reply_parts(&to, cause, parts, &mut self.voice);
            }
            Ask::Outcome { intent } => self.outcome(intent),
            Ask::Fleet
            | Ask::Rollouts
            | Ask::Rollout { .. }
            | Ask::Wish { .. }
            | Ask::Arrivals { .. }
            | Ask::Copy { .. } => {
                refused(Code::UNKNOWN_TYPE, "a controller answers this, and no node".to_owned())
            }
            Ask::Config { service } => return self.configuration(to, cause, service),
            Ask::Trust(piece) => match self.trust_piece_came(query.iss, &piece) {
                Ok(()) => Reply::Pong { version: env!("CARGO_PKG_VERSION").to_owned() },
                Err(refusal) => refused(refusal.code, refusal.why),
            },
            Ask::Beside { hash } => match self.launchers.text_beside(&hash) {
                Some(bytes) if bytes.len() <= BESIDE_BYTES_MAX => {
                    Reply::Piece { bytes: ByteBuf::from(bytes) }
                }
                Some(_) => refused(Code::TOO_LARGE, "it is too long for an answer".to_owned()),
                None => refused(Code::EXPIRED, format!("the text {hash} is not here any more")),
            },
            Ask::Logs { service, index, lines, wait } => {
                return self.lines(to, cause, &service, index, lines, wait);
            }
            Ask::Range { after, events_max, wait_ms } => {
                return self.range(to, cause, after, events_max, wait_ms);
            }
        };
        self.answers.reply(&to, cause, reply, &mut self.voice);
    }

    fn outcome(&self, intent: IntentId) -> Reply {
        let said_by = || self.said_by(&intent);
        match self.node.seen().get(&intent).map(|record| &record.progress) {
            Some(Progress::Executed { outcome, .. }) => {
                Reply::Outcome { outcome: outcome.clone(), event: said_by() }
            }
            Some(Progress::Open(_)) => Reply::Accepted { event: said_by() },
            None => refused(
                Code::EXPIRED,
                format!("intent {intent} is not known here, or not any more"),
            ),
        }
    }

    fn lines(
        &mut self,
        to: ReplyTo,
        cause: IntentId,
        service: &ServiceId,
        index: Option<u16>,
        lines: u32,
        wait: Option<LogWait>,
    ) {
        let Some(known) = self.node.services().get(service) else {
            let reply =
                refused(Code::NO_SUCH_SERVICE, format!("no service is called `{service}` here"));
            return self.answers.reply(&to, cause, reply, &mut self.voice);
        };
        let slots: Vec<u16> = known
            .slots()
            .map(|(slot, _)| slot)
            .filter(|slot| index.is_none_or(|index| index == *slot))
            .collect();
        if slots.is_empty() {
            let reply =
                refused(Code::NO_SUCH_INSTANCE, format!("`{service}` has no such instance"));
            return self.answers.reply(&to, cause, reply, &mut self.voice);
        }
        let slots = slots.into_iter().map(|index| {
            let slot = InstanceId { service: service.clone(), index };
            // One that has not run since the agent began has files of before, or none.
            let path = self.launchers.log_path(&self.services, &slot);
            let dir = path.and_then(|path| Some(path.parent()?.to_owned()));
            (slot, dir)
        });
        let slots: Vec<LogPlace> = slots.collect();
        // Without a place to wait they are answered at once, and ask again.
        let wait = wait.and_then(|wait| {
            let place = self.queries.log_waits.clone().try_acquire_owned().ok()?;
            Some((wait, place))
        });
        let (waker, logs, service) =
            (self.waker.clone(), self.logs.handle().clone(), service.clone());
        let lines = lines.min(LINES_MAX) as usize;
        tokio::spawn(async move {
            let read = match wait {
                Some((wait, _place)) => read_news(&logs, &slots, lines, &wait).await,
                None => read_all(&logs, &slots, lines).await,
            };
            let mut part = 0;
            let read = match read {
                Ok(read) => read,
                Err((code, why)) => {
                    let reply = refused(code, format!("the log cannot be read: {why}"));
                    let page = Page { to, cause, part, last: true, reply };
                    drop(waker.send(Wake::Ranged(page)).await); // Only an agent that ends takes none.
                    return;
                }
            };
            let mut slots = read.into_iter().peekable();
            while let Some((index, lines)) = slots.next() {
                let mut pages = pages(lines).into_iter().peekable();
                while let Some(lines) = pages.next() {
                    let reply = Reply::Lines { service: service.clone(), index, lines };
                    let last = slots.peek().is_none() && pages.peek().is_none();
                    let page = Page { to: to.clone(), cause, part, last, reply };
                    if waker.send(Wake::Ranged(page)).await.is_err() {
                        return;
                    }
                    part += 1;
                }
            }
        });
    }

    /// Tells the effective values of a service and where each was set, as its files and its release are.
    fn configuration(&mut self, to: ReplyTo, cause: IntentId, service: ServiceId) {
        if !self.node.services().contains_key(&service) {
            let reply =
                refused(Code::NO_SUCH_SERVICE, format!("no service is called `{service}` here"));
            return self.answers.reply(&to, cause, reply, &mut self.voice);
        }
        let (read, waker) = (self.services.reading_of(&self.node, service), self.waker.clone());
        tokio::task::spawn_blocking(move || {
            let told = match read() {
                None => Err((Code::BAD_TOML, "its files cannot be read: smgr check says why")),
                Some(told) => {
                    let bytes = serde_json::to_vec(&told).expect("invariant: texts are JSON");
                    let fits = bytes.len() <= TOLD_BYTES_MAX;
                    fits.then_some(bytes).ok_or((Code::TOO_LARGE, "it is too long to be told"))
                }
            };
            let bytes = match told {
                Ok(bytes) => bytes,
                Err((code, why)) => {
                    let reply = refused(code, why.to_owned());
                    let page = Page { to, cause, part: 0, last: true, reply };
                    drop(waker.blocking_send(Wake::Ranged(page))); // Only an agent that ends takes none.
                    return;
                }
            };
            let pieces = bytes.chunks(RANGE_BYTES_MAX);
            let count = pieces.len();
            for (part, piece) in pieces.enumerate() {
                let reply = Reply::Piece { bytes: ByteBuf::from(piece.to_vec()) };
                let (to, last) = (to.clone(), part + 1 == count);
                let part = u32::try_from(part).unwrap_or(u32::MAX);
                let page = Page { to, cause, part, last, reply };
                if waker.blocking_send(Wake::Ranged(page)).is_err() {
                    return;
                }
            }
        });
    }

    fn range(
        &mut self,
        to: ReplyTo,
        cause: IntentId,
        after: Option<EventId>,
        events_max: u32,
        wait_ms: u32,
    ) {
        let head = self.recorder.head();
        let here = after
            .as_ref()
            .filter(|cursor| cursor.origin == self.setup.node && cursor.epoch == head.epoch);
        // Whoever holds it has seen what this log no longer has: to wait with them would be to pass over what comes.
        if let Some(cursor) = here.filter(|cursor| cursor.seq > head.seq) {
            let head = self.recorder.event_id(head.seq);
            let why = format!("{cursor} lies beyond the last event of this log, {head}");
            let reply = refused(Code::BAD_CURSOR, why);
            return self.answers.reply(&to, cause, reply, &mut self.voice);
        }
        let at_head = here.is_some_and(|cursor| cursor.seq == head.seq);
        let wait_ms = wait_ms.min(WAIT_MS_MAX);
        if at_head && wait_ms > 0 && self.queries.waiting.len() < WAITING_MAX {
            let until_ns = clock::now().mono_ns + u64::from(wait_ms) * 1_000_000;
            let waiting = Waiting { to, cause, after, events_max, until_ns };
            self.queries.waiting.push(waiting);
            self.arm_ranges();
            return;
        }
        self.read_page(to, cause, after, events_max);
    }

    /// Reads a page beside the task, so that a slow disk holds up nobody but the asker.
    fn read_page(&self, to: ReplyTo, cause: IntentId, after: Option<EventId>, events_max: u32) {
        let log = self.recorder.log().clone();
        let origin = self.setup.node.clone();
        let waker = self.waker.clone();
        tokio::task::spawn_blocking(move || {
            let events_max = events_max.clamp(1, RANGE_EVENTS_MAX) as usize;
            let head = log.head();
            let head = EventId { origin: origin.clone(), epoch: head.epoch, seq: head.seq };
            let limits = RangeLimits { rows: events_max, bytes: RANGE_BYTES_MAX };
            let reply = match page_after(&log, after.as_ref(), limits) {
                Ok((first, rows)) => {
                    Reply::Range { epoch: first.epoch, first: first.seq, rows, head }
                }
                Err(why) => refused(why.code(), why.to_string()),
            };
            let page = Page { to, cause, part: 0, last: true, reply };
            if waker.blocking_send(Wake::Ranged(page)).is_err() {
                debug!("a page was read for an agent that has ended");
            }
        });
    }

    /// Sends a page that was read.
    pub(super) fn ranged(&mut self, page: Page) {
        let Page { to, cause, part, last, reply } = page;
        self.answers.reply_part(&to, cause, (part, last), reply, &mut self.voice);
    }

    /// Answers those who waited for the next event.
    pub(super) fn wake_ranges(&mut self) {
        for waiting in std::mem::take(&mut self.queries.waiting) {
            self.read_page(waiting.to, waiting.cause, waiting.after, waiting.events_max);
        }
    }

    /// Answers those who have waited long enough with an empty page.
    pub(super) fn tire_ranges(&mut self) {
        let now_ns = clock::now().mono_ns;
        let (tired, patient) = std::mem::take(&mut self.queries.waiting)
            .into_iter()
            .partition(|waiting: &Waiting| waiting.until_ns <= now_ns);
        self.queries.waiting = patient;
        for waiting in tired {
            self.read_page(waiting.to, waiting.cause, waiting.after, waiting.events_max);
        }
        self.arm_ranges();
    }

    fn arm_ranges(&mut self) {
        if let Some(until_ns) = self.queries.waiting.iter().map(|waiting| waiting.until_ns).min() {
            self.timers.set(super::task::Deadline::Ranges, until_ns);
        }
    }
}

/// Reads the rows behind a cursor, or the first that are kept. A page never spans two epochs.
fn page_after(
    log: &Log,
    after: Option<&EventId>,
    limits: RangeLimits,
) -> Result<(EventPos, Vec<ByteBuf>), ReadError> {
    let mut from = match after {
        Some(cursor) => EventPos { epoch: cursor.epoch, seq: Seq(cursor.seq.0.saturating_add(1)) },
        None => first_kept(log)?,
    };
    loop {
        let mut rows = Vec::new();
        let end = log.range(from, limits, |_, row| {
            rows.push(ByteBuf::from(row.to_vec()));
            ControlFlow::Continue(())
        });
        let lost = match end {
            Ok(RangeEnd::EpochOver { .. }) if rows.is_empty() => None,
            // Its files were set aside, or this disk was set back to before it: what follows on it is here.
            Err(lost @ ReadError::UnknownEpoch(_)) => Some(lost),
            Ok(_) => return Ok((from, rows)),
            Err(why) => return Err(why),
        };
        let epochs = log.reader().epochs()?;
        let mut kept = epochs.iter().filter(|known| !known.segments.is_empty());
        match (kept.find(|known| known.epoch > from.epoch), lost) {
            (Some(next), _) => from = first_of(next),
            (None, Some(why)) => return Err(why),
            (None, None) => return Ok((from, rows)),
        }
    }
}

fn first_kept(log: &Log) -> Result<EventPos, ReadError> {
    let epochs = log.reader().epochs()?;
    let oldest = epochs.iter().find(|epoch| !epoch.segments.is_empty());
    let newest = EventPos { epoch: log.head().epoch, seq: Seq(1) };
    Ok(oldest.map_or(newest, first_of))
}

fn first_of(epoch: &EpochOnDisk) -> EventPos {
    let first = epoch.segments.first().map_or(1, |segment| segment.first);
    EventPos { epoch: epoch.epoch, seq: Seq(first) }
}

/// A slot, and the folder of its log.
type LogPlace = (InstanceId, Option<PathBuf>);

/// The ends of logs, by slot; or why none can be read.
type Ends = Result<Vec<(u16, Vec<String>)>, (Code, String)>;

/// Reads the ends of logs, at once.
async fn read_all(logs: &LogHandle, slots: &[LogPlace], lines: usize) -> Ends {
    let ask =
        |(slot, dir): &LogPlace| (slot.index, logs.read_lines(slot.clone(), lines, dir.clone()));
    let asked: Vec<_> = slots.iter().map(ask).collect();
    let mut read = Vec::new();
    let mut failed: Option<(usize, Code, String)> = None;
    for (index, answer) in asked {
        let lines = match answer {
            Ok(answer) => match answer.await {
                Ok(lines) => lines.map_err(|why| (Code::IO, why.to_string())),
                Err(_) => Err((Code::BUSY, "too many read at once".to_owned())),
            },
            Err(why) => Err((Code::BUSY, why.to_string())),
        };
        match lines {
            Ok(lines) => read.push((index, lines)),
            Err((code, why)) => {
                read.push((index, vec![format!("(the log cannot be read: {why})")]));
                failed = Some((failed.map_or(1, |(count, ..)| count + 1), code, why));
            }
        }
    }
    match failed {
        Some((count, code, why)) if count == slots.len() => Err((code, why)),
        _ => Ok(read),
    }
}

/// Reads the ends of logs when they hold what the asker has not seen, or when the time is up.
async fn read_news(logs: &LogHandle, slots: &[LogPlace], lines: usize, wait: &LogWait) -> Ends {
    let written = Arc::new(Notify::new());
    // Before the reading, so that nothing is written unnoticed between the two.
    slots.iter().for_each(|(slot, _)| logs.tell_when_written(slot, &written));
    let read = read_all(logs, slots, lines).await?;
    if read.iter().any(|(index, lines)| wait.is_news(*index, lines)) {
        return Ok(read);
    }
    let within = Duration::from_millis(u64::from(wait.ms.min(WAIT_MS_MAX)));
    match tokio::time::timeout(within, written.notified()).await {
        Ok(()) => read_all(logs, slots, lines).await,
        Err(_) => Ok(read),
    }
}

/// Divides lines into answers, in their order; at least one.
fn pages(lines: Vec<String>) -> Vec<Vec<String>> {
    let (mut pages, mut bytes) = (vec![Vec::new()], 0);
    for line in lines {
        bytes += line.len() + 5;
        match pages.last_mut() {
            Some(page) if bytes <= RANGE_BYTES_MAX || page.is_empty() => page.push(line),
            _ => {
                bytes = line.len() + 5;
                pages.push(vec![line]);
            }
        }
    }
    pages
}

fn refused(code: Code, why: String) -> Reply {
    Reply::Refused { code: code.to_string(), why }
}
