//! `smgr.history.v1`: the rows of `smgr history`, never folded.

use serde::Serialize;

use super::{line, text_or_null, time};
use crate::cli::screen::history::{History, Row, Run};
use crate::cli::screen::words::full_intent;
use crate::domain::document::{At, By};
use crate::domain::id::{NodeId, ServiceId};

/// What happened, and every start of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryDocument {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    pub schema: &'static str,
    /// What happened, oldest first.
    pub entries: Vec<EntryRow>,
    /// The starts, oldest first.
    pub runs: Vec<RunRow>,
    /// How far it goes, where a controller tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<HistoryAsOf>,
}

impl HistoryDocument {
    /// The word by which the document is known.
    pub const SCHEMA: &'static str = "smgr.history.v1";
}

/// How far a history goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryAsOf {
    /// Whose copy it is read from.
    pub source: NodeId,
    /// The last event that was read.
    pub cursor: Option<String>,
    /// Whether that is the last one of the copy.
    pub complete: bool,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EntryRow {
    /// The event that tells of it.
    pub id: String,
    /// When.
    pub at: At,
    /// Where.
    pub node: NodeId,
    /// Which service.
    pub service: Option<ServiceId>,
    /// Which slot of it.
    pub instance: Option<u16>,
    /// Which start of the slot.
    pub run: Option<u64>,
    /// In a word or two: `started`.
    pub what: String,
    /// What came of it.
    pub result: Option<String>,
    /// How long a run lasted.
    pub ran_ms: Option<u64>,
    /// What follows.
    pub next: Option<String>,
    /// The wish that led to it.
    pub intent: Option<String>,
    /// On whose authority, where the event itself says so.
    pub by: Option<By>,
    /// The same in words.
    pub by_words: Option<String>,
}

/// One start of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RunRow {
    /// Where.
    pub node: NodeId,
    /// Which service.
    pub service: Option<ServiceId>,
    /// Which slot of it.
    pub instance: Option<u16>,
    /// Which start of the slot.
    pub run: u64,
    /// Its main process.
    pub pid: Option<u32>,
    /// When it began.
    pub started_at: Option<At>,
    /// When it ended; null while it runs.
    pub ended_at: Option<At>,
    /// How long it lasted.
    pub ran_ms: Option<u64>,
    /// How it ended.
    pub result: Option<String>,
    /// The most memory that it had.
    pub memory_peak_bytes: Option<u64>,
}

/// Returns the document. Fold the history with `all` and `runs` chosen: JSON leaves nothing out.
pub fn history_json(history: &History) -> HistoryDocument {
    HistoryDocument {
        schema: HistoryDocument::SCHEMA,
        entries: history.rows().iter().map(entry).collect(),
        runs: history.runs().iter().map(run).collect(),
        as_of: None,
    }
}

/// Returns the entries, one object a line.
pub fn history_jsonl(history: &History) -> String {
    history.rows().iter().map(|row| line(&entry(row)) + "\n").collect()
}

/// Returns the runs, one object a line.
pub fn runs_jsonl(history: &History) -> String {
    history.runs().iter().map(|it| line(&run(it)) + "\n").collect()
}

fn entry(row: &Row) -> EntryRow {
    EntryRow {
        id: row.id.to_string(),
        at: At(row.at),
        node: row.about.node.clone(),
        service: row.about.service.clone(),
        instance: row.about.index,
        run: row.run.map(|run| run.0),
        what: row.what.clone(),
        result: text_or_null(&row.result),
        ran_ms: row.ran_ms,
        next: text_or_null(&row.next),
        intent: row.intent.map(full_intent),
        by: row.actor.as_ref().map(By::from),
        by_words: text_or_null(&row.by),
    }
}

fn run(run: &Run) -> RunRow {
    RunRow {
        node: run.about.node.clone(),
        service: run.about.service.clone(),
        instance: run.about.index,
        run: run.run.0,
        pid: run.pid,
        started_at: time(run.started_at),
        ended_at: time(run.ended_at),
        ran_ms: run.ran_ms,
        result: text_or_null(&run.result),
        memory_peak_bytes: run.memory_peak_bytes,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::sample;
    use crate::cli::screen::history::Choice;
    use crate::cli::screen::names::Names;

    #[test]
    fn json_tells_every_event_and_every_run() {
        let choice = Choice { selector: Some("hello".parse().unwrap()), all: true, runs: true };
        let history = History::fold(sample::first_minute(), choice, Names::of_one_machine());
        let document = json!(history_json(&history));
        let what: Vec<&str> = document["entries"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|entry| entry["what"].as_str())
            .collect();
        assert_eq!(what, ["added", "started", "exited", "started", "adopted"]);
        assert_eq!(document["entries"][2]["ran_ms"], 12_592);
        assert_eq!(document["runs"].as_array().unwrap().len(), 2);
        assert_eq!(document["runs"][1]["ended_at"], Value::Null);
        assert_eq!(history_jsonl(&history).lines().count(), 5);
        assert_eq!(runs_jsonl(&history).lines().count(), 2);
    }
}
