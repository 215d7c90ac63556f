//! What was done, in lines. What was not done is an error, and is told as one.

use std::time::Duration;

use super::release::of_manifest;
use super::table::cut;
use super::units::span;
use super::words::{rollout_word, signal_name};
use crate::cli::verdict::{Verdict, Verdicts};
use crate::domain::event::Outcome;
use crate::domain::id::NodeId;
use crate::domain::intent::Action;
use crate::domain::text::printable;

/// A wish that was sent, and what is known of it when the wait is over.
#[derive(Clone, Copy, Debug)]
pub struct Act<'a> {
    /// What was wished.
    pub action: &'a Action,
    /// What the nodes made of it.
    pub verdicts: &'a Verdicts,
    /// The main processes afterwards, in the order of their slots, where they are known.
    pub pids: &'a [u32],
    /// From the signature to the last answer, in milliseconds.
    pub took_ms: u64,
    /// Whether there are other nodes too, so that it is said where.
    pub in_fleet: bool,
    /// What the service ran from before a release, where it is known.
    pub before: Option<&'a str>,
}

impl Act<'_> {
    /// Returns the lines: what was changed, what was so already, and what goes on.
    pub fn text(&self, width: Option<u16>) -> String {
        let of = |wanted: bool| {
            self.nodes(move |verdict| match verdict {
                Verdict::Ended(Outcome::Done { changed }, _) => *changed == wanted,
                Verdict::Ended(Outcome::Failed { .. } | Outcome::Unknown { .. }, _)
                | Verdict::Accepted(_)
                | Verdict::Refused(_)
                | Verdict::Silent
                | Verdict::NotStarted => false,
            })
        };
        let (changed, same) = (of(true), of(false));
        let mut lines = Vec::new();
        match self.action {
            Action::Start { service } if !changed.is_empty() && !self.pids.is_empty() => {
                let pids: Vec<String> = self.pids.iter().map(ToString::to_string).collect();
                let word = if pids.len() == 1 { "pid" } else { "pids" };
                let (place, took) = (self.on(&changed), span(self.took_ms));
                lines.push(format!(
                    "{service} is running{place}, {word} {}, {took}",
                    pids.join(" ")
                ));
            }
            action if !changed.is_empty() => {
                let before = self.before.map(|it| format!("; before: {it}")).unwrap_or_default();
                lines.push(format!(
                    "{}{} in {}{before}",
                    did(action),
                    self.on(&changed),
                    span(self.took_ms)
                ));
            }
            _ => {}
        }
        if !same.is_empty() {
            lines.push(format!("{}{}: nothing to do", was_so(self.action), self.on(&same)));
        }
        for (node, verdict) in &self.verdicts.nodes {
            if let Verdict::Accepted(event) = verdict {
                lines.push(format!(
                    "{}{} accepted as {event}",
                    wish(self.action),
                    self.on(&[node])
                ));
            }
        }
        let width = width.map_or(usize::MAX, usize::from);
        lines.iter().map(|line| cut(&printable(line), width) + "\n").collect()
    }

    fn nodes(&self, is_so: impl Fn(&Verdict) -> bool) -> Vec<&NodeId> {
        let nodes = self.verdicts.nodes.iter();
        nodes.filter(|(_, verdict)| is_so(verdict)).map(|(node, _)| node).collect()
    }

    fn on(&self, nodes: &[&NodeId]) -> String {
        match self.verdicts.nodes.len() {
            0 | 1 if !self.in_fleet => String::new(),
            _ => {
                let names: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
                format!(" on {}", names.join(" "))
            }
        }
    }
}

/// Returns the last line about a wish for many nodes: on how many it was done, and on which not.
pub fn ramp_text(action: &Action, verdicts: &Verdicts, took: Duration) -> String {
    let all = verdicts.nodes.len();
    let done = |it: &Verdict| matches!(it, Verdict::Ended(Outcome::Done { .. }, _));
    let taken = |it: &Verdict| matches!(it, Verdict::Accepted(_));
    let not_so =
        |it: &Verdict| !done(it) && !taken(it) && !it.is_silent() && *it != Verdict::NotStarted;
    let took = span(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    let mut parts =
        vec![format!("done on {} of {all} nodes in {took}", verdicts.nodes_that(done).len())];
    let mut add = |nodes: Vec<&NodeId>, what: &str| {
        if !nodes.is_empty() {
            let names: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
            parts.push(format!("{what} {}", names.join(" ")));
        }
    };
    add(verdicts.nodes_that(taken), "accepted by");
    add(verdicts.nodes_that(not_so), "not as asked on");
    add(verdicts.silent(), "no answer from");
    add(verdicts.nodes_that(|it| *it == Verdict::NotStarted), "not started on");
    format!("{}: {}\n", wish(action), parts.join("; "))
}

/// Returns `restart web`.
fn wish(action: &Action) -> String {
    let words = super::words::action_words(action);
    action.service().map_or_else(|| words.clone(), |service| format!("{words} {service}"))
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
        Action::Rollout { service, command, .. } => {
            format!("rollout of {service}: {}", rollout_word(*command))
        }
        Action::Deploy { service, release, .. } => {
            format!("{service} runs {}", of_manifest(release))
        }
        Action::Remove { service, .. } => format!("removed {service}"),
        Action::Configure { service, .. } => format!("configured {service}"),
        Action::Shutdown { leave_running: true } => "agent ended, services go on".to_owned(),
        Action::Shutdown { leave_running: false } => "everything stopped".to_owned(),
    }
}

fn was_so(action: &Action) -> String {
    match action {
        Action::Start { service } => format!("{service} was running already"),
        Action::Stop { service } => format!("{service} was stopped already"),
        Action::Apply { .. } => "all was as the files say".to_owned(),
        Action::Deploy { service, release, .. } => {
            format!("{service} runs {} already", of_manifest(release))
        }
        Action::Remove { service, .. } => format!("{service} was removed already"),
        Action::Restart { .. }
        | Action::Reload { .. }
        | Action::Signal { .. }
        | Action::Run { .. }
        | Action::Rollout { .. }
        | Action::Configure { .. }
        | Action::Shutdown { .. } => did(action),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;
    use crate::domain::id::Generation;

    fn text(action: &Action, nodes: &[(&str, Verdict)], pids: &[u32], took_ms: u64) -> String {
        let nodes = nodes.iter().map(|(node, verdict)| (node.parse().unwrap(), verdict.clone()));
        let verdicts = Verdicts { nodes: nodes.collect() };
        let before = matches!(action, Action::Deploy { .. }).then_some("1.0 (4f1c9a7b)");
        Act { action, verdicts: &verdicts, pids, took_ms, in_fleet: false, before }.text(Some(80))
    }

    fn done(changed: bool) -> Verdict {
        Verdict::Ended(Outcome::Done { changed }, sample::event_id(7))
    }

    #[test]
    fn what_was_done_is_said_in_a_line() {
        let start = Action::Start { service: "hello".parse().unwrap() };
        let restart = Action::Restart { service: "web".parse().unwrap() };
        let apply = Action::Apply { services: Vec::new() };
        for (action, nodes, pids, said) in [
            (&start, &[("n1", done(true))][..], &[4711][..], "hello is running, pid 4711, 0.04s\n"),
            (&start, &[("n1", done(true))], &[], "started hello in 0.04s\n"),
            (&start, &[("n1", done(false))], &[4711], "hello was running already: nothing to do\n"),
            (&restart, &[("n1", done(true))], &[], "restarted web in 0.04s\n"),
            (
                &restart,
                &[("n1", done(true)), ("n2", done(true)), ("n6", Verdict::Silent)],
                &[],
                "restarted web on n1 n2 in 0.04s\n",
            ),
            (&apply, &[("n1", done(false))], &[], "all was as the files say: nothing to do\n"),
            (&restart, &[("n1", Verdict::Silent)], &[], ""),
        ] {
            assert_eq!(text(action, nodes, pids, 43), said);
        }
        let service = "web".parse().unwrap();
        let (generation, release) = (Generation(2), b"not a manifest".to_vec());
        let deploy = Action::Deploy {
            service,
            generation,
            release,
            back_to: None,
            emergency: None,
            retry: None,
            on_conflict: None,
            rollback: false,
        };
        assert_eq!(
            text(&deploy, &[("n1", done(true))], &[], 3_500),
            "web runs a4444be7 in 3.5s; before: 1.0 (4f1c9a7b)\n"
        );
        let accepted = text(&restart, &[("n1", Verdict::Accepted(sample::event_id(7)))], &[], 1);
        assert_eq!(accepted, format!("restart web accepted as {}\n", sample::event_id(7)));
    }
}
