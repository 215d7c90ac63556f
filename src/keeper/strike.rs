//! Signals and the killing of trees.

use std::io;

use rustix::process::Signal;

use super::exits;
use super::hands::{Hands, Reply, kernel, refused};
use super::operations::{Deed, OperationId};
use super::poller::Poller;
use super::run::{MainProcess, Tree};
use crate::ipc::keeper::{Answer, Refusal, RunName, Target};

/// The last signal of Linux.
const SIGNAL_MAX: i32 = 64;

/// What is said to have failed when a signal was not sent.
const SEND: &str = "send a signal";

impl Hands {
    /// Sends a signal, and never again under the same operation, whoever died in the meantime.
    pub(super) fn signal_once(
        &mut self,
        name: &RunName,
        signal: i32,
        to: Target,
        operation: Option<OperationId>,
    ) -> Reply {
        let Some(operation) = operation else { return self.signal(name, signal, to) };
        match self.operations.known(&operation) {
            Some(Deed::Begun) => return refused(Refusal::Lost),
            Some(Deed::Done) => return (Answer::Done, Vec::new()),
            Some(Deed::NoSuchRun) => return refused(Refusal::NoSuchRun),
            Some(Deed::Refused(errno)) => {
                return refused(Refusal::Kernel { what: SEND.to_owned(), errno });
            }
            None => {}
        }
        self.operations.begin(operation);
        let reply = self.signal(name, signal, to);
        let deed = match &reply.0 {
            Answer::Refused(Refusal::NoSuchRun) => Deed::NoSuchRun,
            Answer::Refused(Refusal::Kernel { errno, .. }) => Deed::Refused(*errno),
            Answer::Refused(_) => Deed::Refused(libc::EINVAL),
            _ => Deed::Done,
        };
        self.operations.end(operation, deed);
        reply
    }

    fn signal(&mut self, name: &RunName, signal: i32, to: Target) -> Reply {
        let Some(run) = self.runs.get(name) else { return refused(Refusal::NoSuchRun) };
        let invalid = || refused(Refusal::Invalid(format!("{signal} is no signal")));
        let sent = match (to, &run.main) {
            (Target::Main, MainProcess::Child { pidfd } | MainProcess::Foreign { pidfd }) => {
                if !(1..=SIGNAL_MAX).contains(&signal) {
                    return invalid();
                }
                exits::send(pidfd, signal)
            }
            (Target::Main, _) => return refused(Refusal::NoSuchRun),
            (Target::Tree, _) => match Signal::from_named_raw(signal) {
                Some(signal) => self.forest.signal(name, run.session(), signal),
                None => return invalid(),
            },
        };
        match answer(SEND, sent) {
            // Reaped in the meantime: as much gone as one that was never there.
            (Answer::Refused(Refusal::Kernel { errno: libc::ESRCH, .. }), _) => {
                refused(Refusal::NoSuchRun)
            }
            reply => reply,
        }
    }

    /// Kills a tree.
    pub(super) fn kill_tree(&mut self, poller: &Poller, name: &RunName) -> Reply {
        let Some(run) = self.runs.get_mut(name) else { return refused(Refusal::NoSuchRun) };
        if run.tree == Tree::Lives {
            run.tree = Tree::Dying;
        }
        let killed = self.forest.signal(name, run.session(), Signal::KILL);
        if killed.is_err() {
            self.look_later(name);
        }
        self.look_after_tree(poller, name);
        answer("kill a tree", killed)
    }
}

fn answer(what: &str, result: io::Result<()>) -> Reply {
    match result {
        Ok(()) => (Answer::Done, Vec::new()),
        Err(error) => refused(kernel(what, &error)),
    }
}
