//! `smgr.event.v1`, and the same inside a CloudEvent.

use serde::Serialize;
use serde_json::{Value, json};

use super::{body, time};
use crate::cli::screen::event::{cause_id, intent_of, rollout_of, severity, summary};
use crate::cli::screen::words::full_intent;
use crate::domain::document::{At, By};
use crate::domain::id::{EventId, FleetId, NodeId, ServiceId};
use crate::wire::payload::{Body, EventRecord};

/// The domain that CloudEvents types begin with, reversed.
pub const CLOUDEVENTS_DOMAIN: &str = "dev";

/// What stands beside an event and is not in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// Its place in this stream where that is not its own name, as on a controller's.
    pub cursor: Option<&'a EventId>,
    /// Its last log lines, where they are kept still.
    pub tail: Option<&'a [String]>,
    /// Where the log goes on, `web/0:2214881`.
    pub log_cursor: Option<&'a str>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventDocument {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    pub schema: &'static str,
    /// Its name for ever: `ORIGIN/EPOCH/SEQ`.
    pub id: String,
    /// Its place in this stream.
    pub cursor: String,
    /// Whose log it stands in.
    pub origin: NodeId,
    /// In which stretch of it.
    pub epoch: String,
    /// As which entry.
    pub seq: u64,
    /// When, by the wall clock.
    pub at: At,
    /// When, by the boot-time clock, in microseconds.
    pub mono_us: u64,
    /// The beginning of the boot's id.
    pub boot: String,
    /// `noun.past_tense`.
    pub r#type: String,
    /// `info`, `warning`, `error`.
    pub severity: &'static str,
    /// On which node it happened, or which controller did it.
    pub node: NodeId,
    /// Which service it is about.
    pub service: Option<ServiceId>,
    /// Which slot of it.
    pub instance: Option<u16>,
    /// Which start of the slot.
    pub run: Option<u64>,
    /// Of which rollout.
    pub rollout: Option<String>,
    /// By which wish.
    pub intent: Option<String>,
    /// On whose authority.
    pub by: Option<By>,
    /// The event or wish that led to it.
    pub cause: Option<String>,
    /// One line for people.
    pub summary: String,
    /// By type; null where this version cannot read it.
    #[cfg_attr(test, schemars(with = "Option<serde_json::Map<String, Value>>"))]
    pub data: Option<Value>,
    /// Whether it was written later than it happened, since the log was unavailable; absent where it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<bool>,
    /// When it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<At>,
}

impl EventDocument {
    /// The word by which the document is known.
    pub const SCHEMA: &'static str = "smgr.event.v1";
}

/// Returns the object of one event. A type or body that this version cannot read is shown with `data` null.
pub fn event_json(record: &EventRecord, beside: &Beside<'_>) -> EventDocument {
    let event = match record.event() {
        Ok(Body::Known(event)) => Some(event),
        Ok(Body::Unknown) | Err(_) => None,
    };
    let id = record.id().to_string();
    EventDocument {
        schema: EventDocument::SCHEMA,
        cursor: beside.cursor.map_or_else(|| id.clone(), ToString::to_string),
        id,
        origin: record.origin.clone(),
        epoch: record.epoch.token(),
        seq: record.seq.0,
        at: At(record.at),
        mono_us: record.mono_ns / 1000,
        boot: format!("b-{}", &record.boot.to_string()[..4]),
        r#type: record.kind.clone(),
        severity: severity(event.as_ref()),
        node: record.origin.clone(),
        service: record.service.clone(),
        instance: record.index,
        run: record.run.map(|run| run.0),
        rollout: rollout_of(event.as_ref()),
        intent: intent_of(record, event.as_ref()).map(full_intent),
        by: record.by.as_ref().map(By::from),
        cause: cause_id(record),
        summary: summary(record, event.as_ref()),
        data: event.as_ref().map(|event| body::data(event, beside)),
        late: record.recorded_at.map(|_| true),
        recorded_at: time(record.recorded_at),
    }
}

/// Returns the event as a CloudEvent 1.0 in its JSON format.
///
/// Its type is `<domain>.smgr.<type>.v1`; see [`CLOUDEVENTS_DOMAIN`].
pub fn cloud_event(
    record: &EventRecord,
    beside: &Beside<'_>,
    fleet: &FleetId,
    domain: &str,
) -> Value {
    let mut wrapped = json!({
        "specversion": "1.0",
        "id": record.id().to_string(),
        "source": format!("/smgr/{fleet}/{}", record.origin),
        "type": format!("{domain}.smgr.{}.v1", record.kind),
        "time": At(record.at),
        "datacontenttype": "application/json",
    });
    if let Value::Object(members) = &mut wrapped {
        // CloudEvents knows no null: an attribute that does not apply is left out.
        let subject = record.service.as_ref().map(|service| match record.index {
            Some(index) => format!("{service}/{index}"),
            None => service.to_string(),
        });
        members.extend(subject.map(|subject| ("subject".to_owned(), subject.into())));
        members.insert("data".to_owned(), json!(event_json(record, beside)));
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;
    use crate::domain::event::{Event, Exit, Next, RunResult};
    use crate::domain::time::UnixMicros;

    fn event_json(record: &EventRecord, beside: &Beside<'_>) -> Value {
        json!(super::event_json(record, beside))
    }

    #[test]
    fn an_exit_is_told_as_the_contract_shows_it() {
        let record = sample::hello_exited();
        let object = event_json(&record, &Beside::default());
        let token = sample::epoch().token();
        assert_eq!(object["id"], format!("n1/{token}/29"));
        assert_eq!(object["cursor"], object["id"]);
        assert_eq!(object["epoch"], token);
        assert_eq!(object["at"], "2026-11-22T09:00:22.004Z");
        assert_eq!(object["boot"], "b-77d1");
        assert_eq!(object["severity"], "error");
        assert_eq!(object["by"]["kind"], "policy");
        assert_eq!(object["cause"], format!("n1/{token}/28"));
        assert_eq!(object["summary"], "hello/0@n1 ended by signal KILL after 12.6s");
        assert_eq!(
            object["data"],
            json!({
                "from": "running", "to": "backoff", "result": "signal",
                "exit": {"known": true, "code": null, "signal": "KILL", "core_dumped": false, "oom_killed": false},
                "pid": 4711, "ran_ms": 12592, "restarts": 1, "next": "at_once", "then": null, "next_attempt_at": null,
                "delay_ms": 0,
                "usage": {"cpu_user_ms": 41, "cpu_system_ms": 12, "memory_peak_bytes": 14_680_064},
                "log": null,
            })
        );
    }

    #[test]
    fn an_exit_before_readiness_says_so() {
        let exited = sample::exited(Exit::Code(1), RunResult::ExitCode, 311, Next::Failed);
        let mut exited = exited;
        exited.from = crate::domain::event::StateName::Starting;
        let record =
            sample::record(7, "14:02:36.921", ("web", 0, 14), &Event::InstanceExited(exited));
        let object = event_json(&record, &Beside::default());
        assert_eq!(
            object["summary"],
            "web/0@n1 exited with code 1 after 0.31s, before it was ready"
        );
        assert_eq!(object["data"]["to"], "failed");
    }

    #[test]
    fn the_last_log_lines_are_shown_where_they_are_kept_and_said_to_be_gone_where_not() {
        let record = sample::exited_with_tail();
        let log = |beside: &Beside<'_>| event_json(&record, beside)["data"]["log"].clone();
        assert_eq!(log(&Beside::default())["tail_dropped"], true);
        let lines = ["FATAL missing DATABASE_URL".to_owned()];
        let kept = log(&Beside { tail: Some(&lines), ..Beside::default() });
        assert_eq!(kept["tail"], json!(lines));
        assert_eq!(kept["tail_dropped"], false);
    }

    #[test]
    fn an_event_of_an_unknown_type_is_shown_without_its_data() {
        let mut record = sample::hello_exited();
        record.kind = "instance.teleported".to_owned();
        let object = event_json(&record, &Beside::default());
        assert_eq!(object["type"], "instance.teleported");
        assert_eq!(object["data"], Value::Null);
        assert_eq!(
            object["summary"],
            "hello/0@n1 instance.teleported, which this version cannot read"
        );
    }

    #[test]
    fn a_body_that_cannot_be_read_is_shown_without_its_data() {
        let mut record = sample::hello_exited();
        record.body.truncate(3);
        assert_eq!(event_json(&record, &Beside::default())["data"], Value::Null);
    }

    #[test]
    fn an_event_that_was_written_late_says_so_and_no_other_does() {
        let mut record = sample::hello_exited();
        assert!(event_json(&record, &Beside::default()).get("late").is_none());
        record.recorded_at = Some(UnixMicros(record.at.0 + 1_000_000));
        let object = event_json(&record, &Beside::default());
        assert_eq!(
            (&object["late"], &object["recorded_at"]),
            (&json!(true), &json!("2026-11-22T09:00:23.004Z"))
        );
    }

    #[test]
    fn every_transition_has_the_six_members() {
        for record in sample::one_of_each() {
            let object = event_json(&record, &Beside::default());
            assert!(object["data"].is_object(), "{}", record.kind);
            assert!(!object["summary"].as_str().unwrap().is_empty(), "{}", record.kind);
            if record.kind.starts_with("instance.") {
                for member in ["from", "to", "result", "exit", "usage", "log"] {
                    assert!(object["data"].get(member).is_some(), "{}: {member}", record.kind);
                }
            }
        }
    }

    #[test]
    fn a_cloud_event_wraps_the_whole_object() {
        let record = sample::hello_exited();
        let fleet = "acme".parse().unwrap();
        let wrapped = cloud_event(&record, &Beside::default(), &fleet, CLOUDEVENTS_DOMAIN);
        assert_eq!(wrapped["specversion"], "1.0");
        assert_eq!(wrapped["source"], "/smgr/acme/n1");
        assert_eq!(wrapped["type"], "dev.smgr.instance.exited.v1");
        assert_eq!(wrapped["subject"], "hello/0");
        assert_eq!(wrapped["data"], event_json(&record, &Beside::default()));
        let node_wide = sample::node_record(1, "09:00:00.000", &sample::agent_started());
        let wrapped = cloud_event(&node_wide, &Beside::default(), &fleet, "org.example");
        assert!(wrapped.get("subject").is_none());
        assert_eq!(wrapped["type"], "org.example.smgr.agent.started.v1");
    }
}
