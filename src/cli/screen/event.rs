//! One event in words: a clause, a summary, a line.

use super::controller;
use super::names::Names;
use super::release;
use super::units::{clock_ms, count, date_time_ms, size, span};
use super::words::{
    action_words, exit_words, full_intent, name_of, next_words, outcome_words, short_intent,
    signal_name,
};
use crate::domain::event::{
    Cause, EpochReason, Event, Exit, InstanceExited, InstanceHandedOver, Next, Outcome,
    PartStarted, RunResult, StateName, StopPhase,
};
use crate::domain::id::{EventId, IntentId};
use crate::domain::rollout::view::rollout_name;
use crate::domain::text::printable;
use crate::wire::payload::{Body, EventRecord};

/// How a line begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// `09:00:22.004Z`, for what happens before one's eyes.
    Time,
    /// `2026-11-22 09:00:22.004Z`, for what may be old.
    DateTime,
}

/// Returns the line of one event, without its end.
pub fn event_line(record: &EventRecord, names: &Names, stamp: Stamp) -> String {
    let event = known(record);
    line(record, stamp, &place(record, event.as_ref(), names), &clause(record, event.as_ref()))
}

/// Returns the event, when this version knows its type and can read its body.
pub(super) fn known(record: &EventRecord) -> Option<Event> {
    match record.event() {
        Ok(Body::Known(event)) => Some(event),
        Ok(Body::Unknown) | Err(_) => None,
    }
}

/// Returns what an event is about: an instance, a service, a part of smgr or the node.
pub(super) fn place(record: &EventRecord, event: Option<&Event>, names: &Names) -> String {
    match event {
        Some(Event::AgentStarted(_) | Event::AgentStopped(_)) => {
            names.part("agent", &record.origin)
        }
        Some(Event::KeeperStarted(_)) => names.part("keeper", &record.origin),
        _ => names.place(record),
    }
}

pub(super) fn line(record: &EventRecord, stamp: Stamp, place: &str, words: &str) -> String {
    let time = match stamp {
        Stamp::Time => clock_ms(record.at),
        Stamp::DateTime => date_time_ms(record.at),
    };
    let late = if record.recorded_at.is_some() { "  (recorded late)" } else { "" };
    printable(&format!("{time}  {place}  {words}{late}")).into_owned()
}

/// Returns one line, ready to print: `web/0@n3 exited with code 1 after 0.31s, before it was ready`.
pub(crate) fn summary(record: &EventRecord, event: Option<&Event>) -> String {
    let place = match (&record.service, record.index) {
        (Some(service), Some(index)) => format!("{service}/{index}@{}", record.origin),
        (Some(service), None) => format!("{service}@{}", record.origin),
        (None, _) => place(record, event, &Names::of_one_machine()),
    };
    let words = match event {
        Some(Event::InstanceExited(exited)) => exited_summary(exited),
        _ => clause(record, event),
    };
    printable(&format!("{place} {words}")).into_owned()
}

fn exited_summary(it: &InstanceExited) -> String {
    let how = match it.exit {
        Exit::Code(code) => format!("exited with code {code}"),
        Exit::Signal { .. } => format!("ended by {}", exit_words(it.exit)),
        Exit::Unknown => "ended and nobody saw how,".to_owned(),
    };
    let when = if it.from == StateName::Starting { ", before it was ready" } else { "" };
    let oom = if it.oom_killed { ", out of memory" } else { "" };
    format!("{how} after {}{when}{oom}", span(it.ran_ms))
}

/// Returns what happened, without where: `started, pid 4711`.
pub(crate) fn clause(record: &EventRecord, event: Option<&Event>) -> String {
    let Some(event) = event else {
        return format!("{}, which this version cannot read", record.kind);
    };
    match event {
        Event::LogOpened(it) => match it.reason {
            EpochReason::FirstStart => "history begins".to_owned(),
            EpochReason::WitnessAhead => {
                "history begins anew: a witness knew more of it than this machine".to_owned()
            }
            EpochReason::Integrity => "history begins anew: the old file did not verify".to_owned(),
        },
        Event::Baseline(it) => format!("state written down, part {} of {}", it.part + 1, it.parts),
        Event::LogRetired(it) => {
            format!("history {} to {} dropped by retention", it.first, it.last)
        }
        Event::LogUnavailable(it) => format!("history cannot be written ({}): {}", it.kind, it.why),
        Event::LogRecovered(it) => format!(
            "history can be written again after {}; {}, {} only summarised{}",
            span(it.unavailable_ms),
            count(it.late, "late event"),
            it.summarized,
            match it.dropped {
                0 => String::new(),
                dropped => format!(", {dropped} lost"),
            }
        ),
        Event::AgentStarted(it) | Event::KeeperStarted(it) | Event::ControllerStarted(it) => {
            part_words(it)
        }
        Event::AgentStopping(it) if it.leave_running => "stopping; services go on".to_owned(),
        Event::AgentStopping(_) => "stopping".to_owned(),
        Event::InstanceStarting(_) => "starting".to_owned(),
        Event::InstanceSignalled(it) => match &it.failed {
            Some(why) => format!("signal {} was not sent: {why}", signal_name(it.signal)),
            None => format!("signal {} sent", signal_name(it.signal)),
        },
        Event::AgentStopped(it) => {
            let left = if it.services_left_running { "; services go on" } else { "" };
            format!("stopped{left}")
        }
        Event::TrustChanged(it) => format!("trust changed to version {}", it.version),
        Event::ServiceAdded(it) => {
            let many = if it.instances > 1 {
                format!(", {} instances", it.instances)
            } else {
                String::new()
            };
            format!("spec {} from {}{many}", &it.digest.to_string()[..8], it.origin)
        }
        Event::ServiceRemoved(_) => "removed".to_owned(),
        Event::DesiredChanged(it) => {
            format!("is to be {}, generation {}", name_of(&it.desired), it.generation)
        }
        Event::InstanceWaiting(it) => {
            let on: Vec<&str> = it.on.iter().map(|service| service.as_str()).collect();
            let missing: Vec<&str> = it.missing.iter().map(|service| service.as_str()).collect();
            let missing = match missing.is_empty() {
                true => String::new(),
                false => format!("; nobody wants {} up", missing.join(", ")),
            };
            format!("waits for {}{missing}", on.join(", "))
        }
        Event::InstanceStarted(it) => format!("started, pid {}", it.pid),
        Event::InstanceStartFailed(it) => {
            let next = it
                .next_attempt_at
                .map(|at| format!("; try {} in {}", it.restarts, span(at.ms_since(record.at))));
            let next = next.unwrap_or_else(|| "; gave up".to_owned());
            format!("could not be started: {}: {}{next}", it.step, it.why)
        }
        Event::InstanceReady(it) => format!("ready after {}", span(it.ready_ms)),
        Event::InstanceHealthy(it) if it.in_a_row == 0 => {
            format!("check {} is not in its spec any more", it.check)
        }
        Event::InstanceHealthy(it) => format!("check {} passes", it.check),
        Event::InstanceUnhealthy(it) => {
            format!("check {} fails ({} in a row): {}", it.check, it.in_a_row, it.message)
        }
        Event::InstanceExited(it) => {
            let next = match it.next {
                Next::AtOnce => "; starts again at once".to_owned(),
                Next::At(_) | Next::Stopping | Next::Failed => {
                    format!("; {}", next_words(it.next, it.delay_ms, it.restarts))
                }
                Next::Completed => "; completed".to_owned(),
                Next::Inactive => String::new(),
            };
            format!("{}{next}", ended_words(it))
        }
        Event::InstanceStopping(it) => match it.phase {
            StopPhase::PreStop => "stopping: its command before the stop runs".to_owned(),
            StopPhase::Drain => "stopping: traffic moves away".to_owned(),
            StopPhase::Term => "stopping".to_owned(),
            StopPhase::Kill => "did not stop in time: killing the whole tree".to_owned(),
        },
        Event::InstanceStopped(it) => format!("stopped in {}", span(it.took_ms)),
        Event::InstanceHandedOver(it) => handed_over_words(it),
        Event::InstanceReloading(_) => "reloading".to_owned(),
        Event::InstanceReloaded(it) => match &it.failed {
            None => format!("reloaded in {}", span(it.took_ms)),
            Some(why) => format!("was not reloaded: {why}"),
        },
        Event::InstanceAdopted(it) => {
            format!("adopted, pid {}; {} was away for {}", it.pid, it.away, span(it.away_ms))
        }
        Event::IntentAccepted(it) => {
            format!("{} accepted, {}", action_words(&it.action), short_intent(it.intent))
        }
        Event::IntentRefused(it) => {
            let times = if it.count > 1 { format!(" ({} times)", it.count) } else { String::new() };
            format!("wish refused [{}]: {}{times}", it.code, it.why)
        }
        Event::IntentExecuted(it) => {
            format!("{} {}", short_intent(it.intent), outcome_words(&it.outcome))
        }
        Event::ActionStarted(it) => format!("action {} started", it.action),
        Event::ActionEnded(it) => {
            let late = if it.timed_out { " (killed at its deadline)" } else { "" };
            let exit = exit_words(it.exit);
            format!("action {} ended: {exit} after {}{late}", it.action, span(it.ran_ms))
        }
        Event::AlertFired(it) => format!("alert {} ({}): {}", it.alert, it.severity, it.summary),
        Event::AlertResolved(it) => format!("alert {} resolved", it.alert),
        Event::LinesDropped(it) => {
            format!("{} dropped, {}: {}", count(it.lines, "log line"), size(it.bytes), it.why)
        }
        Event::Summarized(it) => format!(
            "{} and {} while history could not be written",
            count(it.starts, "start"),
            count(it.exits, "exit")
        ),
        Event::OrderAccepted(_)
        | Event::ReleaseStaged(_)
        | Event::ReleaseApplied(_)
        | Event::ReleaseHealthy(_)
        | Event::ReleaseFailed(_)
        | Event::ReleaseReturned(_)
        | Event::ConfigChanged(_)
        | Event::ConfigExpired(_)
        | Event::ReleaseRemoved(_)
        | Event::ReleaseRefused(_) => release::clause(event),
        Event::ControllerLed(_)
        | Event::ControllerSteppedDown(_)
        | Event::NodeUnreachable(_)
        | Event::PlacementOrdered(_)
        | Event::PlacementHeld(_)
        | Event::NodeSeen(_)
        | Event::LogForked(_) => controller::clause(event),
        Event::Rollout(it) => format!("{} {}", rollout_name(it.rollout), it.event.text()),
    }
}

/// Returns `exited: signal KILL after 12.6s`.
pub(super) fn ended_words(it: &InstanceExited) -> String {
    let oom = if it.oom_killed { " (out of memory)" } else { "" };
    format!("exited: {}{oom} after {}", exit_words(it.exit), span(it.ran_ms))
}

/// Returns `was killed (signal KILL), back after 0.09s`.
pub(super) fn part_words(it: &PartStarted) -> String {
    match it.after {
        None => format!("started, version {}, pid {}", it.version, it.pid),
        Some(Exit::Signal { signal, .. }) => {
            format!("was killed (signal {}), back after {}", signal_name(signal), span(it.away_ms))
        }
        Some(exit) => format!("ended ({}), back after {}", exit_words(exit), span(it.away_ms)),
    }
}

/// Returns the state after the end of a run.
pub(crate) fn after(next: Next) -> StateName {
    match next {
        Next::AtOnce | Next::At(_) => StateName::Backoff,
        Next::Stopping => StateName::Stopping,
        Next::Completed => StateName::Completed,
        Next::Failed => StateName::Failed,
        Next::Inactive => StateName::Inactive,
    }
}

/// Says how one run took the place of another.
pub(crate) fn handed_over_words(it: &InstanceHandedOver) -> String {
    if it.is_ready {
        format!("took over from run {} after {}", it.from, span(it.took_ms))
    } else {
        format!("takes the place of run {}, which serves no longer", it.from)
    }
}

/// Returns `info`, `warning` or `error`.
pub(crate) fn severity(event: Option<&Event>) -> &'static str {
    let Some(event) = event else {
        return "info";
    };
    match event {
        Event::InstanceExited(it) => match it.result {
            RunResult::Success => "info",
            RunResult::Unknown => "warning",
            RunResult::ExitCode
            | RunResult::Signal
            | RunResult::CoreDump
            | RunResult::OomKill
            | RunResult::Timeout
            | RunResult::Watchdog
            | RunResult::Resources
            | RunResult::StartLimitHit
            | RunResult::Dependency => "error",
        },
        Event::InstanceStartFailed(_) | Event::LogUnavailable(_) => "error",
        Event::IntentExecuted(it) => match it.outcome {
            Outcome::Done { .. } => "info",
            Outcome::Failed { .. } | Outcome::Unknown { .. } => "error",
        },
        Event::ActionEnded(it) if it.exit != Exit::Code(0) || it.timed_out => "error",
        Event::AlertFired(it) => match it.severity.as_str() {
            "critical" => "error",
            "info" => "info",
            _ => "warning",
        },
        Event::LogOpened(it) if it.reason != EpochReason::FirstStart => "warning",
        Event::AgentStarted(it) | Event::KeeperStarted(it) | Event::ControllerStarted(it)
            if it.after.is_some() =>
        {
            "warning"
        }
        Event::InstanceStopping(it) if it.phase == StopPhase::Kill => "warning",
        Event::InstanceUnhealthy(_) => "warning",
        Event::InstanceReloaded(it) if it.failed.is_some() => "warning",
        Event::InstanceSignalled(it) if it.failed.is_some() => "warning",
        Event::IntentRefused(_) | Event::LinesDropped(_) | Event::Summarized(_) => "warning",
        Event::OrderAccepted(_)
        | Event::ReleaseStaged(_)
        | Event::ReleaseApplied(_)
        | Event::ReleaseHealthy(_)
        | Event::ReleaseFailed(_)
        | Event::ReleaseReturned(_)
        | Event::ConfigChanged(_)
        | Event::ConfigExpired(_)
        | Event::ReleaseRemoved(_)
        | Event::ReleaseRefused(_) => release::severity(event),
        Event::ControllerLed(_)
        | Event::ControllerSteppedDown(_)
        | Event::NodeUnreachable(_)
        | Event::PlacementOrdered(_)
        | Event::PlacementHeld(_)
        | Event::NodeSeen(_)
        | Event::LogForked(_) => controller::severity(event),
        Event::Rollout(it) => it.event.severity(),
        Event::LogOpened(_)
        | Event::Baseline(_)
        | Event::LogRetired(_)
        | Event::LogRecovered(_)
        | Event::AgentStarted(_)
        | Event::AgentStopping(_)
        | Event::AgentStopped(_)
        | Event::KeeperStarted(_)
        | Event::ControllerStarted(_)
        | Event::TrustChanged(_)
        | Event::ServiceAdded(_)
        | Event::ServiceRemoved(_)
        | Event::DesiredChanged(_)
        | Event::InstanceWaiting(_)
        | Event::InstanceStarting(_)
        | Event::InstanceSignalled(_)
        | Event::InstanceStarted(_)
        | Event::InstanceReady(_)
        | Event::InstanceHealthy(_)
        | Event::InstanceStopping(_)
        | Event::InstanceStopped(_)
        | Event::InstanceHandedOver(_)
        | Event::InstanceReloading(_)
        | Event::InstanceReloaded(_)
        | Event::InstanceAdopted(_)
        | Event::IntentAccepted(_)
        | Event::ActionStarted(_)
        | Event::ActionEnded(_)
        | Event::AlertResolved(_) => "info",
    }
}

/// Returns the rollout that an event belongs to, as programs are told it, when it says so itself.
pub(crate) fn rollout_of(event: Option<&Event>) -> Option<String> {
    match event {
        Some(Event::Rollout(it)) => Some(rollout_name(it.rollout)),
        _ => None,
    }
}

/// Returns the intent that an event belongs to, when it says so itself.
pub(crate) fn intent_of(record: &EventRecord, event: Option<&Event>) -> Option<IntentId> {
    let told = match event {
        Some(Event::IntentAccepted(it)) => Some(it.intent),
        Some(Event::IntentRefused(it)) => it.intent,
        Some(Event::IntentExecuted(it)) => Some(it.intent),
        Some(Event::InstanceSignalled(it)) => Some(it.intent),
        Some(Event::ActionStarted(it)) => Some(it.intent),
        Some(Event::ActionEnded(it)) => Some(it.intent),
        Some(Event::OrderAccepted(it)) => Some(it.intent),
        Some(Event::ReleaseRefused(it)) => it.intent,
        Some(Event::Rollout(it)) => Some(it.rollout),
        _ => None,
    };
    told.or(match record.cause {
        Some(Cause::Intent(intent)) => Some(intent),
        Some(Cause::Event(_) | Cause::Seq(_)) | None => None,
    })
}

/// Returns the full name of what led to an event.
pub(crate) fn cause_id(record: &EventRecord) -> Option<String> {
    Some(match record.cause.as_ref()? {
        Cause::Event(id) => id.to_string(),
        Cause::Seq(seq) => EventId { seq: *seq, ..record.id() }.to_string(),
        Cause::Intent(intent) => full_intent(*intent),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    #[test]
    fn a_line_says_when_where_and_what() {
        let line =
            |record: &EventRecord, stamp| event_line(record, &Names::of_one_machine(), stamp);
        assert_eq!(
            line(&sample::hello_started(28, 4711, 0), Stamp::Time),
            "09:00:09.412Z  hello  started, pid 4711"
        );
        assert_eq!(
            line(&sample::hello_exited(), Stamp::DateTime),
            "2026-11-22 09:00:22.004Z  hello  exited: signal KILL after 12.6s; starts again at once"
        );
        assert_eq!(
            event_line(&sample::hello_exited(), &Names::of_fleet(), Stamp::Time),
            "09:00:22.004Z  hello@n1  exited: signal KILL after 12.6s; starts again at once"
        );
    }

    #[test]
    fn an_event_of_a_newer_version_still_has_a_line() {
        let mut record = sample::hello_exited();
        record.kind = "instance.teleported\x1b[2J".to_owned();
        let line = event_line(&record, &Names::of_one_machine(), Stamp::Time);
        assert_eq!(
            line,
            "09:00:22.004Z  hello  instance.teleported\u{fffd}[2J, which this version cannot read"
        );
    }

    #[test]
    fn every_type_has_words_of_its_own() {
        let lines: Vec<String> = sample::one_of_each()
            .iter()
            .map(|record| clause(record, known(record).as_ref()))
            .collect();
        assert_eq!(lines.len(), Event::KINDS.len());
        assert!(lines.iter().all(|line| !line.is_empty() && !line.contains("cannot read")));
    }

    #[test]
    fn names_learn_which_services_have_several_instances() {
        let mut names = Names::of_one_machine();
        let first = sample::record(1, "09:00:00.000", ("web", 0, 1), &sample::adopted(4730));
        assert_eq!(names.place(&first), "web");
        let second = sample::record(2, "09:00:00.000", ("web", 1, 1), &sample::adopted(4731));
        names.learn(&second, None);
        assert_eq!((names.place(&first), names.place(&second)), ("web/0".into(), "web/1".into()));
    }
}
