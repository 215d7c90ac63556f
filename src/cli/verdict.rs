//! Sends a wish and tells what came of it, on each node.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::client::{Client, Missing, Whom};
use super::context::Context;
use super::error::CliError;
use super::json::error::{NodeResult, ResultDocument};
use super::screen::words::full_intent;
use super::wish::Signed;
use crate::domain::code::{Code, ExitCode};
use crate::domain::event::{Exit, Outcome};
use crate::domain::id::{EventId, NodeId};
use crate::wire::payload::{Answer, Reply};

/// The first and the longest pause before a lost agent is called again. The next one is there within 100 ms.
const CALL_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The first and the longest silence on the bus after which the same bytes are sent again: whatever carried the
/// question or the answer may have died with it.
const CALL_INTO_SILENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// How long smgr on this machine may be down before an answer of it is waited for no longer: who takes it down and up
/// again, as for an upgrade, gets the first outcome.
const BACK_WITHIN: Duration = Duration::from_secs(3);

/// What one node made of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Durable; its outcome is not known yet.
    Accepted(EventId),
    /// It came to its end.
    Ended(Outcome, EventId),
    /// Refused; nothing changed.
    Refused(CliError),
    /// Nothing was heard of it.
    Silent,
    /// It was not asked: what came before it on other nodes was not as wished.
    NotStarted,
}

/// What every node of the audience made of a wish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// By node.
    pub nodes: BTreeMap<NodeId, Verdict>,
}

/// Sends a wish and waits for its outcome, or for its acceptance only.
///
/// When an agent ends in between, or the bus is silent, the same bytes are sent again: the wish is executed at most
/// once, and a repeat is answered with the first outcome.
///
/// # Errors
/// When nobody could be reached at first, or an answer does not verify.
pub async fn carry_out(
    context: &Context,
    whom: &Whom,
    client: &mut Client,
    wish: &Signed,
    detach: bool,
) -> Result<Verdicts, CliError> {
    let deadline = client.deadline();
    let mut verdicts = Verdicts::default();
    let mut pause = CALL_AGAIN.0;
    let mut silence = CALL_INTO_SILENCE.0;
    loop {
        let until = match client.is_by_bus() {
            true => deadline.min(Instant::now() + silence),
            false => deadline,
        };
        silence = (silence * 2).min(CALL_INTO_SILENCE.1);
        if !hear(client, wish, detach, (until, deadline), &mut verdicts).await? {
            return Ok(verdicts);
        }
        let mut gone_since = None;
        loop {
            match client.is_gone_for_good(context) {
                true if gone_since.get_or_insert_with(Instant::now).elapsed() > BACK_WITHIN => {
                    verdicts.lost();
                    return Ok(verdicts);
                }
                true => {}
                false => gone_since = None,
            }
            if timeout_at(deadline, sleep(pause)).await.is_err() {
                return Ok(verdicts);
            }
            pause = (pause * 2).min(CALL_AGAIN.1);
            if let Ok(again) = Client::connect(context, whom).await {
                *client = again;
                break;
            }
        }
    }
}

/// Takes in the answers to one sending. Says whether it has to be sent again.
async fn hear(
    client: &mut Client,
    wish: &Signed,
    detach: bool,
    (until, deadline): (Instant, Instant),
    verdicts: &mut Verdicts,
) -> Result<bool, CliError> {
    let is_by_bus = client.is_by_bus();
    let mut pending = match client.send(wish, until).await {
        Ok(pending) => pending,
        Err(_) if !verdicts.nodes.is_empty() => return Ok(true),
        Err(error) => return Err(error),
    };
    while let Some(answer) = pending.next().await? {
        let is_all = detach && matches!(answer.reply, Reply::Accepted { .. });
        let node = answer.node.clone();
        verdicts.take(answer);
        if is_all {
            pending.settle(&node);
        }
    }
    let missing = pending.missing();
    for (node, missing) in missing {
        let heard_of = match missing {
            Missing::Silent | Missing::Lost => Verdict::Silent,
            Missing::NotThere => Verdict::Refused(CliError::new(
                Code::AGENT_UNREACHABLE,
                "nobody listens for this node on the bus; nothing was started",
            )),
        };
        verdicts.nodes.entry(node.clone()).or_insert(heard_of);
    }
    let again = missing.iter().any(|(node, missing)| match missing {
        Missing::Lost => true,
        Missing::Silent => is_by_bus,
        // It was there when it was called first, so it comes back; what it made of the wish is not known.
        Missing::NotThere => !matches!(verdicts.nodes.get(node), Some(Verdict::Refused(_))),
    });
    Ok(again && Instant::now() < deadline)
}

impl Verdicts {
    fn take(&mut self, answer: Answer) {
        if let Some(verdict) = Verdict::of(answer.reply) {
            self.nodes.insert(answer.node, verdict);
        }
    }

    /// Nobody is left who could tell more.
    fn lost(&mut self) {
        for verdict in self.nodes.values_mut() {
            if let Verdict::Accepted(event) = verdict {
                let why = "smgr went down here before it told the outcome".to_owned();
                *verdict = Verdict::Ended(Outcome::Unknown { why }, event.clone());
            }
        }
    }

    /// Returns how the command exits: the worst that any node has to say.
    pub fn exit(&self, detach: bool) -> ExitCode {
        let worst = self.worst(detach).map_or(ExitCode::Unknown, |it| it.exit(detach));
        // "Nothing was started" is about all of them.
        let has_begun = |it: &Verdict| it.is_begun() && it.exit(detach) != ExitCode::Unreachable;
        match worst == ExitCode::Unreachable && self.nodes.values().any(has_begun) {
            true => ExitCode::Unknown,
            false => worst,
        }
    }

    fn worst(&self, detach: bool) -> Option<&Verdict> {
        let asked = self.nodes.values().filter(|it| **it != Verdict::NotStarted);
        asked.max_by_key(|verdict| rank(verdict.exit(detach)))
    }

    /// Returns the nodes that did not answer.
    pub fn silent(&self) -> Vec<&NodeId> {
        self.nodes_that(Verdict::is_silent)
    }

    /// Returns the nodes of which something holds.
    pub fn nodes_that(&self, holds: impl Fn(&Verdict) -> bool) -> Vec<&NodeId> {
        self.nodes.iter().filter(|(_, verdict)| holds(verdict)).map(|(node, _)| node).collect()
    }

    /// Returns the last line of `-o json`, the result.
    pub fn result(&self, wish: &Signed, detach: bool) -> ResultDocument {
        let worst = self.worst(detach);
        let cursor = self.nodes.values().filter_map(Verdict::event).next_back();
        let nodes = self.nodes.iter().map(|(node, it)| (node.clone(), it.result(detach)));
        ResultDocument {
            intent: Some(full_intent(wish.id)),
            changed: Some(self.nodes.values().any(Verdict::changed)),
            cursor: cursor.map(ToString::to_string),
            why: worst.and_then(Verdict::why),
            answered: self.nodes_that(|it| !it.is_silent() && *it != Verdict::NotStarted).len(),
            missing: self.silent().into_iter().cloned().collect(),
            nodes: Some(nodes.collect()),
            ..ResultDocument::new(worst.map_or("unknown", Verdict::state), self.exit(detach))
        }
    }

    /// Returns the nodes that were not asked, as a result names them.
    pub fn not_started(&self) -> Vec<NodeId> {
        self.nodes_that(|it| *it == Verdict::NotStarted).into_iter().cloned().collect()
    }
}

/// Orders exit codes from good to bad: what nobody knows is worse than what failed, and that than what was refused.
fn rank(exit: ExitCode) -> u8 {
    match exit {
        ExitCode::Done => 0,
        ExitCode::StillRunning => 1,
        ExitCode::ActionFailed | ExitCode::NotReady => 3,
        ExitCode::Unknown => 4,
        _ => 2,
    }
}

impl Verdict {
    /// Reads what a node answered; `None` when it is no answer to a wish.
    pub fn of(reply: Reply) -> Option<Self> {
        Some(match reply {
            Reply::Accepted { event } => Self::Accepted(event),
            Reply::Outcome { outcome, event } => Self::Ended(outcome, event),
            Reply::Refused { code, why } => {
                let code = code.parse().unwrap_or(Code::INTERNAL);
                let refused = CliError::new(code, why);
                // For other codes `smgr explain` has to do.
                Self::Refused(match code {
                    Code::NO_RELOAD => {
                        refused.hint("declare `[reload]` in its spec, or use `smgr restart`")
                    }
                    _ => refused,
                })
            }
            Reply::Pong { .. }
            | Reply::Fleet(_)
            | Reply::Piece { .. }
            | Reply::Arrivals { .. }
            | Reply::Status(_)
            | Reply::Lines { .. }
            | Reply::Range { .. } => return None,
        })
    }

    /// Returns how a command about this node alone exits.
    pub fn exit(&self, detach: bool) -> ExitCode {
        match self {
            Self::Accepted(_) if detach => ExitCode::Done,
            Self::Accepted(_) => ExitCode::StillRunning,
            Self::Ended(Outcome::Done { .. }, _) => ExitCode::Done,
            Self::Ended(Outcome::Failed { code, .. }, _) => {
                code.parse().map_or(ExitCode::ActionFailed, Code::exit)
            }
            Self::Ended(Outcome::Unknown { .. }, _) | Self::Silent => ExitCode::Unknown,
            Self::Refused(error) => error.exit(),
            Self::NotStarted => ExitCode::Done,
        }
    }

    /// Says whether nothing was heard of the node, and so nothing against the wish either.
    pub fn is_silent(&self) -> bool {
        let is_away = |error: &CliError| error.code == Code::AGENT_UNREACHABLE;
        *self == Self::Silent || matches!(self, Self::Refused(error) if is_away(error))
    }

    fn is_begun(&self) -> bool {
        matches!(self, Self::Accepted(_) | Self::Ended(..))
    }

    fn state(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Ended(Outcome::Done { .. }, _) => "done",
            Self::Ended(Outcome::Failed { .. }, _) => match self.exit(false) {
                ExitCode::RolledBack => "rolled_back",
                ExitCode::RollbackFailed => "rollback_failed",
                _ => "failed",
            },
            Self::Ended(Outcome::Unknown { .. }, _) | Self::Silent => "unknown",
            Self::Refused(_) => "refused",
            Self::NotStarted => "not_started",
        }
    }

    fn changed(&self) -> bool {
        match self {
            Self::Ended(Outcome::Done { changed }, _) => *changed,
            // It runs what it ran before.
            Self::Ended(Outcome::Failed { .. }, _) => self.exit(false) != ExitCode::RolledBack,
            Self::Ended(Outcome::Unknown { .. }, _) | Self::Accepted(_) => true,
            Self::Refused(_) | Self::Silent | Self::NotStarted => false,
        }
    }

    fn event(&self) -> Option<&EventId> {
        match self {
            Self::Accepted(event) | Self::Ended(_, event) => Some(event),
            Self::Refused(_) | Self::Silent | Self::NotStarted => None,
        }
    }

    /// Returns why it is not as asked.
    pub fn why(&self) -> Option<String> {
        match self {
            Self::Accepted(_) | Self::Ended(Outcome::Done { .. }, _) | Self::NotStarted => None,
            Self::Ended(Outcome::Failed { why, exit, .. }, _) => Some(match exit {
                Some(exit) => format!("{why} ({})", exit_text(*exit)),
                None => why.clone(),
            }),
            Self::Ended(Outcome::Unknown { why }, _) => Some(why.clone()),
            Self::Refused(error) => Some(error.what.clone()),
            Self::Silent => Some("did not answer".to_owned()),
        }
    }

    fn code(&self) -> Option<String> {
        match self {
            Self::Ended(Outcome::Failed { code, .. }, _) => Some(code.clone()),
            Self::Refused(error) => Some(error.code.to_string()),
            Self::Ended(Outcome::Unknown { .. }, _) | Self::Silent => {
                Some(Code::OUTCOME_UNKNOWN.to_string())
            }
            Self::Accepted(_) | Self::Ended(Outcome::Done { .. }, _) | Self::NotStarted => None,
        }
    }

    /// Returns it as an error of the command, unless it is as asked.
    pub fn error(&self, node: &NodeId, detach: bool) -> Option<CliError> {
        match self {
            Self::Accepted(_) if detach => None,
            Self::Accepted(_) => Some(
                CliError::new(Code::STILL_RUNNING, Code::STILL_RUNNING.title())
                    .at(node.as_str())
                    .next("smgr history"),
            ),
            Self::Ended(Outcome::Done { .. }, _) | Self::NotStarted => None,
            Self::Refused(error) => Some(error.clone().at(node.as_str())),
            Self::Ended(..) | Self::Silent => {
                let code = self.code().and_then(|code| code.parse().ok());
                let code = code.unwrap_or(Code::ACTION_FAILED);
                let why = self.why().unwrap_or_else(|| code.title().to_owned());
                Some(CliError::new(code, why).at(node.as_str()))
            }
        }
    }

    fn result(&self, detach: bool) -> NodeResult {
        NodeResult {
            state: self.state(),
            exit_code: self.exit(detach).number(),
            changed: self.changed(),
            code: self.code(),
            why: self.why(),
            event: self.event().map(ToString::to_string),
        }
    }
}

fn exit_text(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit {code}"),
        Exit::Signal { signal, .. } => format!("signal {signal}"),
        Exit::Unknown => "exit unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> EventId {
        format!("n1/{}/7", crate::domain::id::EpochId::new(1, 1).token()).parse().unwrap()
    }

    fn ended(outcome: Outcome) -> Verdict {
        Verdict::Ended(outcome, event())
    }

    fn exit_of(verdicts: &[Verdict]) -> u8 {
        let names = (1..).map(|number| format!("n{number}").parse().unwrap());
        Verdicts { nodes: names.zip(verdicts.iter().cloned()).collect() }.exit(false).number()
    }

    #[test]
    fn each_outcome_has_its_exit_code() {
        let failed = |code: Code| {
            ended(Outcome::Failed { code: code.to_string(), why: String::new(), exit: None })
        };
        let refused = |code| Verdict::Refused(CliError::new(code, "no"));
        for (verdict, exit) in [
            (ended(Outcome::Done { changed: false }), 0),
            (failed(Code::ACTION_FAILED), 15),
            (failed(Code::NOT_READY), 3),
            (ended(Outcome::Unknown { why: String::new() }), 16),
            (refused(Code::NO_SUCH_SERVICE), 4),
            (refused(Code::NOT_GRANTED), 7),
            (refused(Code::EXPIRED), 6),
            (refused(Code::LOG_UNAVAILABLE), 9),
            (Verdict::Accepted(event()), 124),
            (Verdict::Silent, 16),
        ] {
            assert_eq!(exit_of(&[verdict]), exit);
        }
    }

    #[test]
    fn what_went_back_is_rolled_back_and_changed_nothing() {
        let code = Code::RELEASE_RETURNED.to_string();
        let verdict = ended(Outcome::Failed { code, why: String::new(), exit: None });
        assert_eq!((verdict.state(), verdict.changed()), ("rolled_back", false));
        assert_eq!(exit_of(&[verdict]), 10);
    }

    #[test]
    fn unknown_outweighs_everything_and_done_nothing() {
        let done = ended(Outcome::Done { changed: true });
        let failed =
            ended(Outcome::Failed { code: "E0612".into(), why: String::new(), exit: None });
        assert_eq!(exit_of(&[done.clone(), failed.clone()]), 15);
        assert_eq!(exit_of(&[Verdict::Silent, failed, done]), 16);
    }

    #[test]
    fn nothing_was_started_is_said_of_all_nodes_or_of_none() {
        let away = || Verdict::Refused(CliError::new(Code::AGENT_UNREACHABLE, "not there"));
        let done = ended(Outcome::Done { changed: true });
        assert_eq!(exit_of(&[away(), away()]), 5);
        assert_eq!(exit_of(&[away(), done.clone()]), 16);
        assert_eq!(exit_of(&[done, Verdict::NotStarted]), 0);
    }

    #[test]
    fn a_detached_command_is_done_when_the_wish_is_durable() {
        assert_eq!(Verdict::Accepted(event()).exit(true), ExitCode::Done);
        assert_eq!(Verdict::Silent.exit(true), ExitCode::Unknown);
    }
}
