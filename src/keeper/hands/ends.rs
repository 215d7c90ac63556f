//! The two ends of a run: its main process exits, its tree is gone.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tracing::warn;

use super::Hands;
use crate::ipc::keeper::{Exit, RunName, What};
use crate::keeper::exits::{self, Foreign};
use crate::keeper::poller::{Poller, Token};
use crate::keeper::run::{MainProcess, Tree};
use crate::keeper::trees::Inhabitants;

/// The processes of one tree without cgroup whose ends are waited for before the next search.
const MEMBERS_MAX: usize = 64;

/// When a tree is looked at again that could not be: mostly a descriptor was missing, which others give back.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

impl Hands {
    /// Looks at the main process that is watched under `number`.
    pub(in crate::keeper) fn main_stirred(&mut self, poller: &Poller, number: u64) {
        if let Some(name) = self.numbers.get(&number).cloned() {
            self.look_at_main(poller, &name);
        }
    }

    /// Looks at a tree of which a process has ended.
    pub(in crate::keeper) fn member_ended(&mut self, poller: &Poller, number: u64) {
        if let Some((name, pidfd)) = self.members.remove(&number) {
            poller.forget(&pidfd);
            if !self.members.values().any(|(run, _)| *run == name) {
                self.look_after_tree(poller, &name);
            }
        }
    }

    /// Looks at the trees whose cgroup has changed.
    pub(in crate::keeper) fn cgroups_changed(&mut self, poller: &Poller) {
        for name in self.forest.changed() {
            self.look_after_tree(poller, &name);
        }
    }

    pub(in crate::keeper) fn look_at_main(&mut self, poller: &Poller, name: &RunName) {
        let Some(run) = self.runs.get_mut(name) else { return };
        let (exit, usage) = match &run.main {
            MainProcess::Child { pidfd } => match exits::peek(pidfd) {
                Ok(None) => return,
                Ok(Some((exit, usage))) => (exit, Some(usage)),
                Err(error) => {
                    warn!(run = %name, %error, "failed to read the exit of a child");
                    (Exit::Unknown, None)
                }
            },
            MainProcess::Foreign { pidfd } => match exits::foreign(pidfd, run.pid) {
                Foreign::Runs | Foreign::Unreaped => return,
                Foreign::Ended(exit) => (exit, None),
            },
            MainProcess::Lost | MainProcess::Ended { .. } | MainProcess::Reaped => return,
        };
        let is_child = matches!(run.main, MainProcess::Child { .. });
        let pidfd = match std::mem::replace(&mut run.main, MainProcess::Reaped) {
            MainProcess::Child { pidfd } | MainProcess::Foreign { pidfd } => {
                poller.forget(&pidfd);
                Some(pidfd)
            }
            MainProcess::Lost | MainProcess::Ended { .. } | MainProcess::Reaped => None,
        };
        run.main = MainProcess::Ended { pidfd, is_child };
        let tree_empty = run.tree == Tree::Gone
            || matches!(self.forest.inhabitants(name, run.session()), Ok(Inhabitants::None));
        let ran_ms = run.ran_ms();
        let what = What::Exited { pid: run.pid, exit, usage, tree_empty, ran_ms };
        self.facts.push(name, &run.memo, what);
        if tree_empty && run.tree != Tree::Gone {
            run.tree = Tree::Gone;
            self.facts.push(name, &run.memo, What::TreeGone);
        } else {
            self.look_after_tree(poller, name);
        }
    }

    /// Tells that a tree is gone, or sees to it that its end will be noticed.
    pub(in crate::keeper) fn look_after_tree(&mut self, poller: &Poller, name: &RunName) {
        // Whoever was found may be gone before it is watched; then the search begins again.
        loop {
            let Some(run) = self.runs.get_mut(name) else { return };
            let has_main = matches!(
                run.main,
                MainProcess::Child { .. } | MainProcess::Foreign { .. } | MainProcess::Lost
            );
            if has_main || run.tree == Tree::Gone {
                return;
            }
            let found = match self.forest.inhabitants(name, run.session()) {
                Ok(Inhabitants::None) => {
                    run.tree = Tree::Gone;
                    self.facts.push(name, &run.memo, What::TreeGone);
                    return;
                }
                Ok(Inhabitants::Watched) => return,
                Ok(Inhabitants::Found(found)) => found,
                Err(error) => {
                    warn!(run = %name, %error, "failed to look at a tree");
                    return self.look_later(name);
                }
            };
            if run.tree == Tree::Dying
                && let Err(error) = self.forest.signal(name, run.session(), Signal::KILL)
            {
                warn!(run = %name, %error, "failed to kill a tree");
                self.look_later(name);
            }
            if self.members.values().any(|(run, _)| run == name) {
                return;
            }
            let mut watched = 0;
            for pid in found.into_iter().take(MEMBERS_MAX) {
                let number = self.last_number + 1;
                let opened = exits::open(pid).and_then(|pidfd| {
                    poller.watch(&pidfd, Token::Member(number))?;
                    Ok(pidfd)
                });
                match opened {
                    Ok(pidfd) => {
                        self.last_number = number;
                        self.members.insert(number, (name.clone(), pidfd));
                        watched += 1;
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(error) => {
                        warn!(run = %name, %error, "failed to watch a process");
                        return self.look_later(name);
                    }
                }
            }
            if watched > 0 {
                return;
            }
        }
    }

    /// Has a tree looked at again of which it could not be told whether it lives.
    pub(in crate::keeper) fn look_later(&mut self, name: &RunName) {
        self.unseen.insert(name.clone());
        self.look_at.get_or_insert_with(|| Instant::now() + LOOK_PAUSE);
    }

    /// Returns when trees are looked at again.
    pub(in crate::keeper) fn looks_again_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Looks again at trees whose time has come, and kills again what was to die.
    pub(in crate::keeper) fn look_again(&mut self, poller: &Poller) {
        if self.look_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.look_at = None;
        for name in std::mem::take(&mut self.unseen) {
            match self.runs.get(&name).map(|run| run.tree) {
                Some(Tree::Dying) => drop(self.kill_tree(poller, &name)),
                Some(Tree::Lives) => self.look_after_tree(poller, &name),
                Some(Tree::Gone) | None => {}
            }
        }
    }
}
