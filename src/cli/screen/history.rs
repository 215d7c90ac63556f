//! `smgr history`: one line for each thing that happened, repeats folded, newest last.

mod fold;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::names::Names;
use super::table::{Align, Table};
use super::units::{clock, count, date_time, size, span};
use crate::cli::selector::Selector;
use crate::domain::event::{Actor, Exit, InstanceExited, StopPhase};
use crate::domain::id::{Digest, EventId, IntentId, NodeId, RunId, ServiceId};
use crate::domain::intent::Action;
use crate::domain::time::UnixMicros;

/// What is to be seen.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Only what is about these instances; `None` for everything.
    pub selector: Option<Selector>,
    /// Repeats one by one, and the bookkeeping between the acts.
    pub all: bool,
    /// Whether the runs are kept, for [`History::runs_text`] and JSON.
    pub runs: bool,
}

/// Events on their way to rows. Memory grows with what is shown, not with what is folded.
#[derive(Debug, Default)]
pub struct History {
    choice: Choice,
    names: Names,
    rows: Vec<Row>,
    runs: Vec<Run>,
    slots: BTreeMap<Slot, Progress>,
    specs: BTreeMap<(NodeId, ServiceId), Digest>,
    /// On whose authority the present spec of a service is, and which slots it has reached.
    adopters: BTreeMap<(NodeId, ServiceId), (String, BTreeSet<u16>)>,
    parts: BTreeMap<&'static str, Exit>,
    /// The rows that wait to be told how the keeper ended that was away.
    orphans: Vec<usize>,
    intents: BTreeMap<IntentId, Action>,
    /// The intents in the order in which they came, to forget the oldest.
    known: VecDeque<IntentId>,
}

type Slot = (NodeId, ServiceId, u16);

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) node: NodeId,
    pub(crate) service: Option<ServiceId>,
    pub(crate) index: Option<u16>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: EventId,
    pub(crate) at: UnixMicros,
    pub(crate) about: About,
    pub(crate) run: Option<RunId>,
    pub(crate) what: String,
    pub(crate) result: String,
    pub(crate) ran_ms: Option<u64>,
    pub(crate) next: String,
    pub(crate) by: String,
    /// The same for programs, where the event itself says so.
    pub(crate) actor: Option<Actor>,
    /// The wish that led to it.
    pub(crate) intent: Option<IntentId>,
    /// The start of a run of which the end is told as well.
    is_hidden: bool,
    repeats: Option<Repeats>,
}

/// Rows that say what the row before them says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Repeats {
    number: u64,
    first: Box<Row>,
    last_at: UnixMicros,
}

/// One start of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) about: About,
    pub(crate) run: RunId,
    pub(crate) pid: Option<u32>,
    pub(crate) started_at: Option<UnixMicros>,
    pub(crate) ended_at: Option<UnixMicros>,
    pub(crate) ran_ms: Option<u64>,
    pub(crate) result: String,
    pub(crate) memory_peak_bytes: Option<u64>,
}

/// What is remembered of an instance between its events.
#[derive(Debug, Default)]
struct Progress {
    /// The row that began the present run, if policy did.
    policy_start: Option<usize>,
    /// The last row of a loop of like rows, and how many of them are shown.
    like: Option<(usize, u32)>,
    stop: Option<Stopping>,
    /// The main process ended and left others: the end of these is no row of its own.
    has_leftovers: bool,
    live: Option<usize>,
    total: Counts,
    /// Since somebody, and not policy, started it last.
    latest: Counts,
    since: Option<UnixMicros>,
}

#[derive(Debug)]
struct Stopping {
    phase: StopPhase,
    by: String,
    then_start: bool,
    ended: Option<InstanceExited>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    runs: u64,
    exits: u64,
    restarts: u64,
}

impl History {
    /// Returns the screen. `verified` is how far the log was verified, by whoever did it.
    pub fn text(&self, verified: Option<&EventId>, width: Option<u16>) -> String {
        let mut table = Table::new(&[
            ("TIME (UTC)", Align::Left),
            ("WHERE", Align::Left),
            ("WHAT", Align::Left),
            ("RESULT", Align::Left),
            ("RAN", Align::Right),
            ("NEXT", Align::Left),
            ("BY", Align::Left),
        ]);
        for row in self.rows.iter().filter(|row| !row.is_hidden) {
            table.row(self.cells(row));
            match &row.repeats {
                None => {}
                Some(repeats) if repeats.number == 1 => table.row(self.cells(&repeats.first)),
                Some(Repeats { number, first, last_at }) => {
                    let (from, to) = (clock(first.at), clock(*last_at));
                    let (from, to) = (from.trim_end_matches('Z'), to.trim_end_matches('Z'));
                    table.note(&format!(
                        "  … {number} more like this, {from} to {to} (--all shows them)"
                    ));
                }
            }
        }
        format!("{}{}\n", table.render(width), self.last_line(verified))
    }

    /// Returns the screen of `--runs`: one line a run. Needs [`Choice::runs`].
    pub fn runs_text(&self, verified: Option<&EventId>, width: Option<u16>) -> String {
        let mut table = Table::new(&[
            ("RUN", Align::Right),
            ("WHERE", Align::Left),
            ("STARTED (UTC)", Align::Left),
            ("ENDED (UTC)", Align::Left),
            ("RAN", Align::Right),
            ("PEAK MEM", Align::Right),
            ("RESULT", Align::Left),
        ]);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for run in &self.runs {
            table.row([
                run.run.to_string(),
                self.place(&run.about),
                or_dash(run.started_at.map(date_time)),
                or_dash(run.ended_at.map(date_time)),
                or_dash(run.ran_ms.map(span)),
                or_dash(run.memory_peak_bytes.map(size)),
                run.result.clone(),
            ]);
        }
        format!("{}{}\n", table.render(width), self.last_line(verified))
    }

    /// Returns the rows, for JSON. Only a history of [`Choice::all`] holds them one by one.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the runs, by their start.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    fn cells(&self, row: &Row) -> [String; 7] {
        [
            date_time(row.at),
            self.place(&row.about),
            row.what.clone(),
            row.result.clone(),
            row.ran_ms.map(span).unwrap_or_default(),
            row.next.clone(),
            row.by.clone(),
        ]
    }

    fn place(&self, about: &About) -> String {
        match (&about.service, about.index) {
            (Some(service), Some(index)) => self.names.instance(service, index, &about.node),
            (Some(service), None) => self.names.service(service, &about.node),
            (None, _) => about.node.to_string(),
        }
    }

    fn last_line(&self, verified: Option<&EventId>) -> String {
        let mut slots = self.slots.values().filter(|slot| slot.total.runs + slot.total.exits > 0);
        let (counts, since) = match (slots.next(), slots.next()) {
            (Some(only), None) => (only.latest, only.since),
            _ => (self.slots.values().fold(Counts::default(), |sum, it| sum.plus(it.total)), None),
        };
        let since = since.map(|at| format!(" since {}", clock(at))).unwrap_or_default();
        let verified = match verified {
            Some(id) => format!("log verified to {}/…/{}", id.origin, id.seq),
            None => "log not verified: smgr audit verify".to_owned(),
        };
        format!(
            "{}, {}, {}{since}    {verified}",
            count(counts.runs, "run"),
            count(counts.exits, "exit"),
            count(counts.restarts, "restart")
        )
    }
}

impl Counts {
    fn plus(self, more: Self) -> Self {
        Self {
            runs: self.runs + more.runs,
            exits: self.exits + more.exits,
            restarts: self.restarts + more.restarts,
        }
    }
}
