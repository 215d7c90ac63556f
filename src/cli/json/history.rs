//! `smgr.history.v1`: the rows of `smgr history`, never folded.

use serde_json::{Value, json};

use super::{actor, line, text_or_null, time};
use crate::cli::screen::history::History;
use crate::cli::screen::words::full_intent;

/// Returns the document. Fold the history with `all` and `runs` chosen: JSON leaves nothing out.
pub fn history_json(history: &History) -> Value {
    json!({
        "schema": "smgr.history.v1",
        "entries": entries(history),
        "runs": runs(history),
    })
}

/// Returns the entries, one object a line.
pub fn history_jsonl(history: &History) -> String {
    entries(history).iter().map(|entry| line(entry) + "\n").collect()
}

/// Returns the runs, one object a line.
pub fn runs_jsonl(history: &History) -> String {
    runs(history).iter().map(|run| line(run) + "\n").collect()
}

fn entries(history: &History) -> Vec<Value> {
    let entry = |row: &crate::cli::screen::history::Row| {
        json!({
            "id": row.id.to_string(),
            "at": time(Some(row.at)),
            "node": row.about.node.as_str(),
            "service": row.about.service.as_ref().map(|service| service.as_str()),
            "instance": row.about.index,
            "run": row.run.map(|run| run.0),
            "what": row.what,
            "result": text_or_null(&row.result),
            "ran_ms": row.ran_ms,
            "next": text_or_null(&row.next),
            "intent": row.intent.map(full_intent),
            "by": row.actor.as_ref().map(actor),
            "by_words": text_or_null(&row.by),
        })
    };
    history.rows().iter().map(entry).collect()
}

fn runs(history: &History) -> Vec<Value> {
    let run = |run: &crate::cli::screen::history::Run| {
        json!({
            "node": run.about.node.as_str(),
            "service": run.about.service.as_ref().map(|service| service.as_str()),
            "instance": run.about.index,
            "run": run.run.0,
            "pid": run.pid,
            "started_at": time(run.started_at),
            "ended_at": time(run.ended_at),
            "ran_ms": run.ran_ms,
            "result": text_or_null(&run.result),
            "memory_peak_bytes": run.memory_peak_bytes,
        })
    };
    history.runs().iter().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;
    use crate::cli::screen::history::Choice;
    use crate::cli::screen::names::Names;

    #[test]
    fn json_tells_every_event_and_every_run() {
        let choice = Choice { selector: Some("hello".parse().unwrap()), all: true, runs: true };
        let history = History::fold(sample::first_minute(), choice, Names::of_one_machine());
        let document = history_json(&history);
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
