//! What came of a wish, in lines, and how the command exits.

use super::table::cut;
use super::units::span;
use super::words::{action_words, exit_words, signal_name};
use crate::domain::code::{Code, ExitCode};
use crate::domain::event::Outcome;
use crate::domain::id::NodeId;
use crate::domain::intent::Action;
use crate::domain::text::printable;

/// A wish that was sent, and what is known of it when the wait is over.
#[derive(Clone, Debug)]
pub struct Act<'a> {
    /// What was wished.
    pub action: &'a Action,
    /// Who answered.
    pub answers: &'a [NodeAnswer],
    /// Nodes of the audience that did not answer in time: what they did is not known.
    pub missing: &'a [NodeId],
    /// From the signature to the last answer, in milliseconds.
    pub took_ms: u64,
    /// Whether nodes are named even where all went well.
    pub names_nodes: bool,
}

/// What one node answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAnswer {
    /// Who.
    pub node: NodeId,
    /// What.
    pub came: Came,
    /// The main processes afterwards, in the order of their slots.
    pub pids: Vec<u32>,
}

/// What came of a wish on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// It was durable and came to its outcome.
    Outcome(Outcome),
    /// It was durable and the outcome did not come in time. It goes on.
    Accepted,
    /// It was refused and nothing changed.
    Refused {
        /// `E0323`.
        code: String,
        /// In words.
        why: String,
    },
}

impl Act<'_> {
    /// Returns how the command exits.
    ///
    /// What is known to have failed comes before what is not known, and that before what still runs.
    pub fn exit(&self) -> ExitCode {
        let of = |came: &Came| match came {
            Came::Outcome(Outcome::Done { .. }) => None,
            Came::Outcome(Outcome::Failed { code, .. }) => Some((0, code_exit(code))),
            Came::Outcome(Outcome::Unknown { .. }) => Some((1, ExitCode::Unknown)),
            Came::Accepted => Some((2, ExitCode::StillRunning)),
            Came::Refused { code, .. } => Some((3, code_exit(code))),
        };
        let silent = (!self.missing.is_empty()).then_some((1, ExitCode::Unknown));
        let worst = self.answers.iter().filter_map(|answer| of(&answer.came)).chain(silent).min();
        match worst {
            Some((_, exit)) => exit,
            None if self.answers.is_empty() => ExitCode::NotFound,
            None => ExitCode::Done,
        }
    }

    /// Returns the lines: what was done, then what was not, node by node, then who is missing.
    pub fn text(&self, width: Option<u16>) -> String {
        let mut lines = self.done_lines();
        for answer in self.answers {
            lines.extend(self.other_line(answer));
        }
        if !self.missing.is_empty() {
            let nodes = names(self.missing.iter());
            lines.push(format!("no answer from {nodes}: what was done there is not known"));
        }
        let width = width.map_or(usize::MAX, usize::from);
        lines.iter().map(|line| cut(&printable(line), width) + "\n").collect()
    }

    fn done_lines(&self) -> Vec<String> {
        let done = |wanted: bool| {
            let is_so = move |answer: &&NodeAnswer| match &answer.came {
                Came::Outcome(Outcome::Done { changed }) => *changed == wanted,
                Came::Outcome(Outcome::Failed { .. } | Outcome::Unknown { .. })
                | Came::Accepted
                | Came::Refused { .. } => false,
            };
            self.answers.iter().filter(is_so).collect::<Vec<_>>()
        };
        let (changed, same) = (done(true), done(false));
        let mut lines = Vec::new();
        if let [only] = changed.as_slice()
            && let Action::Start { service } = self.action
            && !only.pids.is_empty()
        {
            let pids: Vec<String> = only.pids.iter().map(ToString::to_string).collect();
            let word = if pids.len() == 1 { "pid" } else { "pids" };
            let place = self.on(&changed);
            let took = span(self.took_ms);
            lines.push(format!("{service} is running{place}, {word} {}, {took}", pids.join(" ")));
        } else if !changed.is_empty() {
            let (did, place) = (did(self.action), self.on(&changed));
            lines.push(format!("{did}{place} in {}", span(self.took_ms)));
        }
        if !same.is_empty() {
            lines.push(format!("{}{}: nothing to do", was_so(self.action), self.on(&same)));
        }
        lines
    }

    fn other_line(&self, answer: &NodeAnswer) -> Option<String> {
        let wish = match self.action.service() {
            Some(service) => format!("{} {service}", action_words(self.action)),
            None => action_words(self.action),
        };
        let node = &answer.node;
        Some(match &answer.came {
            Came::Outcome(Outcome::Done { .. }) => return None,
            Came::Outcome(Outcome::Failed { code, why, exit }) => {
                let exit = exit.map(|exit| format!(" ({})", exit_words(exit))).unwrap_or_default();
                format!("{wish} on {node} failed: {why}{exit}  [{code}]")
            }
            Came::Outcome(Outcome::Unknown { why }) => {
                format!("{wish} on {node}: outcome unknown: {why}")
            }
            Came::Accepted => format!("{wish} on {node} still runs; nothing was cancelled"),
            Came::Refused { code, why } => format!("{wish} on {node} was refused: {why}  [{code}]"),
        })
    }

    fn on(&self, answers: &[&NodeAnswer]) -> String {
        if self.names_nodes || self.answers.len() + self.missing.len() > 1 {
            format!(" on {}", names(answers.iter().map(|answer| &answer.node)))
        } else {
            String::new()
        }
    }
}

fn code_exit(code: &str) -> ExitCode {
    code.parse::<Code>().map_or(ExitCode::Internal, Code::exit)
}

fn names<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
    nodes.map(NodeId::as_str).collect::<Vec<_>>().join(" ")
}

fn did(action: &Action) -> String {
    match action {
        Action::Start { service } => format!("started {service}"),
        Action::Stop { service } => format!("stopped {service}"),
        Action::Restart { service } => format!("restarted {service}"),
        Action::Reload { service } => format!("reloaded {service}"),
        Action::Signal { service, signal } => format!("sent {} to {service}", signal_name(*signal)),
        Action::Run { service, action, .. } => format!("ran {action} of {service}"),
        Action::Apply { .. } => "applied".to_owned(),
        Action::Shutdown { leave_running: true } => "agent ended, services go on".to_owned(),
        Action::Shutdown { leave_running: false } => "everything stopped".to_owned(),
    }
}

fn was_so(action: &Action) -> String {
    match action {
        Action::Start { service } => format!("{service} was running already"),
        Action::Stop { service } => format!("{service} was stopped already"),
        Action::Apply { .. } => "all was as the files say".to_owned(),
        Action::Restart { .. }
        | Action::Reload { .. }
        | Action::Signal { .. }
        | Action::Run { .. }
        | Action::Shutdown { .. } => did(action),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::Exit;

    fn answer(node: &str, came: Came) -> NodeAnswer {
        NodeAnswer { node: node.parse().unwrap(), came, pids: vec![4711] }
    }

    fn done(node: &str) -> NodeAnswer {
        answer(node, Came::Outcome(Outcome::Done { changed: true }))
    }

    fn ended(action: &Action, answers: &[NodeAnswer], missing: &[&str]) -> (String, u8) {
        let missing: Vec<NodeId> = missing.iter().map(|node| node.parse().unwrap()).collect();
        let act = Act { action, answers, missing: &missing, took_ms: 800, names_nodes: false };
        (act.text(None), act.exit().number())
    }

    fn restart() -> Action {
        Action::Restart { service: "web".parse().unwrap() }
    }

    fn start() -> Action {
        Action::Start { service: "hello".parse().unwrap() }
    }

    #[test]
    fn what_was_done_is_said_in_a_line() {
        let action = start();
        let answers = [done("n1")];
        let act = Act {
            action: &action,
            answers: &answers,
            missing: &[],
            took_ms: 43,
            names_nodes: false,
        };
        assert_eq!(act.text(None), "hello is running, pid 4711, 0.04s\n");
        let act = Act { names_nodes: true, took_ms: 800, action: &restart(), ..act };
        assert_eq!(act.text(None), "restarted web on n1 in 0.8s\n");
        let same = [answer("n1", Came::Outcome(Outcome::Done { changed: false }))];
        assert_eq!(
            ended(&start(), &same, &[]),
            ("hello was running already: nothing to do\n".to_owned(), 0)
        );
    }

    #[test]
    fn nodes_that_did_not_answer_are_named_and_are_no_success() {
        let (text, exit) = ended(&restart(), &[done("n1"), done("n2")], &["n6"]);
        assert_eq!(
            text,
            "restarted web on n1 n2 in 0.8s\nno answer from n6: what was done there is not known\n"
        );
        assert_eq!(exit, 16);
        assert_eq!(ended(&restart(), &[], &["n6"]).1, 16);
    }

    #[test]
    fn what_is_known_to_have_failed_decides_before_what_is_not_known() {
        let failed = Outcome::Failed {
            code: "E0612".to_owned(),
            why: "it failed".to_owned(),
            exit: Some(Exit::Code(3)),
        };
        let unknown = Outcome::Unknown { why: "the agent died half-way".to_owned() };
        let answers =
            [answer("n1", Came::Outcome(unknown)), answer("n2", Came::Outcome(failed)), done("n3")];
        let (text, exit) = ended(&restart(), &answers, &[]);
        assert_eq!(
            text,
            "restarted web on n3 in 0.8s\n\
             restart web on n1: outcome unknown: the agent died half-way\n\
             restart web on n2 failed: it failed (exit 3)  [E0612]\n"
        );
        assert_eq!(exit, 15);
        assert_eq!(ended(&restart(), &answers[..1], &[]).1, 16);
    }

    #[test]
    fn a_refusal_and_a_wait_that_is_over_have_codes_of_their_own() {
        let refused = Came::Refused { code: "E0323".to_owned(), why: "not granted\x1b".to_owned() };
        let (text, exit) = ended(&restart(), &[answer("n1", refused)], &[]);
        assert_eq!(text, "restart web on n1 was refused: not granted\u{fffd}  [E0323]\n");
        assert_eq!(exit, 7);
        assert_eq!(ended(&restart(), &[answer("n1", Came::Accepted)], &[]).1, 124);
    }
}
