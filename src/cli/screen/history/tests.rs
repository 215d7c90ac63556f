use super::super::names::Names;
use super::*;
use std::collections::BTreeMap;

use crate::cli::sample;
use crate::domain::event::{
    AlertFired, Cause, Event, InstanceSignalled, InstanceStopped, InstanceStopping, IntentAccepted,
    IntentExecuted, Next, Outcome, RunResult, StateName, StopReason,
};
use crate::domain::intent::ActorKind;
use crate::wire::payload::EventRecord;

fn history(records: &[EventRecord], selector: &str, all: bool) -> History {
    let selector = (!selector.is_empty()).then(|| selector.parse().unwrap());
    History::fold(records, Choice { selector, all, runs: true }, Names::of_one_machine())
}

/// Started three days ago, stopped and started with another configuration, crashing since then.
fn crash_loop() -> Vec<EventRecord> {
    let mut records = Vec::new();
    let mut seq = 0;
    let mut add = |clock: &str, run: u64, event: &Event| {
        seq += 1;
        records.push(sample::record(seq, clock, ("worker", 0, run), event));
        records.len() - 1
    };
    let crash = |at: &str, number: u32, delay_ms: u64| {
        let next = Next::At(sample::at(at).plus_ms(delay_ms));
        let exited = sample::exited(Exit::Code(101), RunResult::ExitCode, 1_204, next);
        Event::InstanceExited(InstanceExited { delay_ms, restarts: number, ..exited })
    };
    add("09:12:04", 1, &sample::started(2211, 0));
    let action = Action::Restart { service: "worker".parse().unwrap() };
    add(
        "14:04:58",
        1,
        &Event::IntentAccepted(IntentAccepted {
            intent: sample::INTENT,
            digest: Digest([0; 32]),
            action,
            expires_at: sample::at("14:09:58"),
            until: sample::at("14:09:58"),
            slots: vec![],
            release: None,
            instances: vec![],
        }),
    );
    let until = sample::at("14:05:08");
    let stop = |phase| {
        let from = StateName::Running;
        Event::InstanceStopping(InstanceStopping {
            from,
            phase,
            until,
            then_start: true,
            reason: StopReason::Wish,
        })
    };
    let stopping = add("14:04:58", 1, &stop(StopPhase::Term));
    let ended = sample::exited(Exit::Code(0), RunResult::Success, 276_720_000, Next::Stopping);
    add("14:04:58", 1, &Event::InstanceExited(ended));
    let gone = InstanceStopped { next: Next::AtOnce, took_ms: 20, fresh: false };
    add("14:04:58", 1, &Event::InstanceStopped(gone));
    add("14:05:00", 2, &sample::started(40712, 0));
    let times = [
        "14:05:02", "14:05:03", "14:05:05", "14:05:08", "14:05:12", "14:05:18", "14:05:26",
        "14:05:36", "14:05:48", "14:06:04",
    ];
    for (number, clock) in (1..).zip(times) {
        let run = u64::from(number) + 1;
        add(clock, run, &crash(clock, number, 100 << number));
        add(clock, run + 1, &sample::started(41_000 + number, number));
    }
    let alert = AlertFired {
        alert: "worker/restart-limit".to_owned(),
        severity: "warning".to_owned(),
        summary: "10 restarts in 2m".to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        line: None,
    };
    add("14:06:55", 12, &Event::AlertFired(alert));
    add("14:06:56", 12, &crash("14:06:56", 11, 58_900));
    records[stopping].by = sample::by(ActorKind::Human, "alice", "");
    records[stopping].cause = Some(Cause::Intent(sample::INTENT));
    records[0].by = sample::by(ActorKind::Local, "root", "sudo by bob");
    records
}

#[test]
fn the_first_minute_is_shown_as_in_the_contract() {
    let verified = sample::event_id(32);
    let text = history(&sample::first_minute(), "hello", false).text(Some(&verified), None);
    // The start by policy goes when its run ends; here it lives.
    assert_eq!(
        text,
        "\
TIME (UTC)           WHERE  WHAT     RESULT         RAN  NEXT     BY
2026-11-22 09:00:09  hello  started  pid 4711                     ana (run)
2026-11-22 09:00:22  hello  exited   signal KILL  12.6s  at once  policy
2026-11-22 09:00:22  hello  started  pid 4730                     policy
2026-11-22 09:00:35  hello  adopted  pid 4730                     agent killed, back after 0.09s
2 runs, 1 exit, 1 restart    log verified to n1/…/32
"
    );
}

#[test]
fn a_crash_loop_is_folded_as_in_the_contract() {
    let text = history(&crash_loop(), "worker", false).text(None, None);
    assert_eq!(
        text,
        "\
TIME (UTC)           WHERE   WHAT         RESULT              RAN  NEXT             BY
2026-11-22 09:12:04  worker  started      pid 2211                                  local root (sudo by bob)
2026-11-22 14:04:58  worker  stopped      exit_code 0    3d04h52m  start            alice, restart i-90909090
2026-11-22 14:05:00  worker  started      pid 40712                                 alice, restart i-90909090
2026-11-22 14:05:02  worker  exited       exit_code 101      1.2s  try 1 in 0.2s    policy
2026-11-22 14:05:03  worker  exited       exit_code 101      1.2s  try 2 in 0.4s    policy
  … 8 more like this, 14:05:05 to 14:06:04 (--all shows them)
2026-11-22 14:06:55  worker  alert fired  restart-limit
2026-11-22 14:06:56  worker  exited       exit_code 101      1.2s  try 11 in 58.9s  policy
11 runs, 11 exits, 10 restarts since 14:05:00Z    log not verified: smgr audit verify
"
    );
}

#[test]
fn all_shows_every_event_that_is_chosen() {
    let records = crash_loop();
    let text = history(&records, "worker", true).text(None, None);
    assert_eq!(text.lines().count(), records.len() + 2);
    assert!(!text.contains("more like this"));
    assert_eq!(history(&records, "other", true).text(None, None).lines().count(), 2);
}

#[test]
fn a_crash_loop_of_any_length_takes_no_memory() {
    let crash = sample::hello_exited();
    let start = sample::hello_started(30, 4730, 1);
    let mut history = History::new(Choice::default(), Names::of_one_machine());
    for _ in 0..1000 {
        history.push(&start);
        history.push(&crash);
    }
    assert_eq!((history.rows().len(), history.runs().len()), (2, 0));
    assert!(history.text(None, None).contains("  … 998 more like this, 09:00:22 to 09:00:22"));
}

#[test]
fn the_loops_of_two_services_do_not_break_each_other() {
    let mut history = history(&[], "", false);
    for round in 0..5 {
        for name in ["a", "b"] {
            let exit = sample::exited(Exit::Code(1), RunResult::ExitCode, 20, Next::AtOnce);
            let exit = Event::InstanceExited(exit);
            history.push(&sample::record(round, "09:00:00", (name, 0, round), &exit));
        }
    }
    let text = history.text(None, None);
    assert_eq!(text.matches("… 3 more like this").count(), 2, "{text}");
}

#[test]
fn a_wish_without_another_trace_is_shown_and_one_that_failed_as_well() {
    let accepted = |action| {
        Event::IntentAccepted(IntentAccepted {
            intent: sample::INTENT,
            digest: Digest([0; 32]),
            action,
            expires_at: sample::at("14:00:00"),
            until: sample::at("14:00:00"),
            slots: vec![],
            release: None,
            instances: vec![],
        })
    };
    let executed =
        |outcome| Event::IntentExecuted(IntentExecuted { intent: sample::INTENT, outcome });
    let rows = |action, outcome| {
        let records = [
            sample::node_record(1, "13:00:00", &accepted(action)),
            sample::node_record(2, "13:00:01", &executed(outcome)),
        ];
        let history = history(&records, "web", false);
        history.rows().iter().map(|row| format!("{}: {}", row.what, row.result)).collect::<Vec<_>>()
    };
    let service = || "web".parse().unwrap();
    let signalled = Event::InstanceSignalled(InstanceSignalled {
        intent: sample::INTENT,
        signal: 1,
        failed: None,
    });
    let signalled = [sample::record(1, "13:00:00", ("web", 0, 1), &signalled)];
    let text = history(&signalled, "web", false).text(None, None);
    assert!(text.contains("web    signal HUP  sent"), "{text}");
    let stop = Action::Stop { service: service() };
    assert!(rows(stop.clone(), Outcome::Done { changed: true }).is_empty());
    let unknown = Outcome::Unknown { why: "the agent died".to_owned() };
    assert_eq!(rows(stop, unknown), ["stop: outcome unknown: the agent died"]);
}

#[test]
fn runs_are_listed_with_how_they_ended() {
    let text = history(&sample::first_minute(), "hello", false).runs_text(None, None);
    assert_eq!(
        text,
        "\
RUN  WHERE  STARTED (UTC)        ENDED (UTC)            RAN  PEAK MEM  RESULT
  1  hello  2026-11-22 09:00:09  2026-11-22 09:00:22  12.6s    14 MiB  signal KILL
  2  hello  2026-11-22 09:00:22  -                        -         -  running
2 runs, 1 exit, 1 restart    log not verified: smgr audit verify
"
    );
}

#[test]
fn every_type_of_event_can_stand_in_a_history() {
    let records = sample::one_of_each();
    let history = history(&records, "", true);
    assert_eq!(history.rows().len(), records.len());
}
