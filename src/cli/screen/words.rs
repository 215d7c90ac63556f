//! Words that several screens and the JSON share.

use serde::Serialize;
use serde_json::Value;

use super::units::{age, span};
use crate::domain::event::{Actor, Exit, Next, Outcome, RunResult};
use crate::domain::id::IntentId;
use crate::domain::intent::{Action, ActorKind, RolloutCommand};
use crate::domain::signal::Signal;
use crate::domain::time::UnixMicros;

/// Returns the name that a unit variant has on the wire, so that the two cannot differ.
pub(crate) fn name_of(variant: &impl Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(Value::String(name)) => name,
        other => unreachable!("only unit variants are named this way, not {other:?}"),
    }
}

/// Returns the name of a signal, or its number where it has none.
pub(crate) fn signal_name(number: i32) -> String {
    Signal::from_number(number).map_or_else(|| number.to_string(), |signal| signal.to_string())
}

/// Returns `exit 101`, `signal KILL`, `exit not seen`.
pub(crate) fn exit_words(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit {code}"),
        Exit::Signal { signal, core_dumped: false } => format!("signal {}", signal_name(signal)),
        Exit::Signal { signal, core_dumped: true } => {
            format!("signal {}, core dumped", signal_name(signal))
        }
        Exit::Unknown => "exit not seen".to_owned(),
    }
}

/// Returns the words for a run's end with its kind: `exit_code 101`, `signal KILL`, `oom_kill`.
pub(crate) fn result_words(result: RunResult, exit: Exit) -> String {
    let kind = name_of(&result);
    let told = match exit {
        Exit::Code(code) => format!("exit_code {code}"),
        Exit::Signal { signal, .. } => format!("signal {}", signal_name(signal)),
        Exit::Unknown => "unknown".to_owned(),
    };
    match result {
        RunResult::Success | RunResult::ExitCode | RunResult::Signal => told,
        RunResult::CoreDump => told.replacen("signal", "core_dump", 1),
        RunResult::OomKill => kind,
        RunResult::Unknown if exit == Exit::Unknown => kind,
        RunResult::Timeout
        | RunResult::Watchdog
        | RunResult::Resources
        | RunResult::StartLimitHit
        | RunResult::Dependency
        | RunResult::Unknown => format!("{kind}, {told}"),
    }
}

/// Returns what follows the end of a run: `at once`, `try 11 in 58.9s`.
pub(crate) fn next_words(next: Next, delay_ms: u64, restarts: u32) -> String {
    match next {
        Next::AtOnce => "at once".to_owned(),
        Next::At(_) => format!("try {restarts} in {}", span(delay_ms)),
        Next::Stopping => "stop the rest".to_owned(),
        Next::Failed => "gave up".to_owned(),
        Next::Completed | Next::Inactive => String::new(),
    }
}

/// Returns `in 15s`, or `now` when the time is over.
pub(crate) fn in_time(at: UnixMicros, now: UnixMicros) -> String {
    match at.ms_since(now) {
        0 => "now".to_owned(),
        ms => format!("in {}", age(ms)),
    }
}

/// Returns the short name of an intent, `i-3fa91c20`.
pub(crate) fn short_intent(intent: IntentId) -> String {
    format!("i-{}", &intent.to_string()[..8])
}

/// Returns the full name of an intent.
pub(crate) fn full_intent(intent: IntentId) -> String {
    format!("i-{intent}")
}

/// Returns who: `alice`, `local root (sudo by bob)`, `policy`.
pub(crate) fn actor_words(actor: &Actor) -> String {
    let who = match actor.kind {
        ActorKind::Policy => return "policy".to_owned(),
        ActorKind::System => "smgr".to_owned(),
        ActorKind::Local if actor.name.as_str() == "root" => "local root".to_owned(),
        ActorKind::Ci => format!("ci:{}", actor.name),
        ActorKind::Human | ActorKind::Controller | ActorKind::Rollout | ActorKind::Local => {
            actor.name.to_string()
        }
    };
    if actor.note.is_empty() { who } else { format!("{who} ({})", actor.note) }
}

/// Returns the word for a wish: `restart`, `signal HUP`, `run cache-clear`.
pub(crate) fn action_words(action: &Action) -> String {
    match action {
        Action::Start { .. }
        | Action::Stop { .. }
        | Action::Restart { .. }
        | Action::Reload { .. }
        | Action::Apply { .. }
        | Action::Deploy { .. }
        | Action::Remove { .. }
        | Action::Configure { .. }
        | Action::Shutdown { .. } => name_of(&action.verb()),
        Action::Signal { signal, .. } => format!("signal {}", signal_name(*signal)),
        Action::Run { action, .. } => format!("run {action}"),
        Action::Rollout { command, .. } => format!("rollout {}", rollout_word(*command)),
    }
}

/// Returns `pause`, `abort`, `abort --leave`.
pub(crate) fn rollout_word(command: RolloutCommand) -> &'static str {
    match command {
        RolloutCommand::Pause => "pause",
        RolloutCommand::Resume => "resume",
        RolloutCommand::Promote => "promote",
        RolloutCommand::Approve => "approve",
        RolloutCommand::Abort { rollback: true } => "abort",
        RolloutCommand::Abort { rollback: false } => "abort --leave",
    }
}

/// Returns `done`, `failed: …`, `unknown: …`.
pub(crate) fn outcome_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { changed: true } => "done".to_owned(),
        Outcome::Done { changed: false } => "done, nothing to change".to_owned(),
        Outcome::Failed { code, why, exit } => {
            let exit = exit.map(|exit| format!(" ({})", exit_words(exit))).unwrap_or_default();
            format!("failed [{code}]: {why}{exit}")
        }
        Outcome::Unknown { why } => format!("outcome unknown: {why}"),
    }
}
