//! The last lines of instances that failed: fetched from their nodes as soon as they say so, and kept beside the log. The
//! node may be gone when somebody asks why.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tracing::{debug, warn};

use super::links;
use super::task::Controller;
use super::wake::Wake;
use crate::domain::event::Detached;
use crate::domain::id::{Digest, NodeId};
use crate::domain::rollout::view::RolloutView;
use crate::head::detached::{DetachedStore, Retention};
use crate::head::folder::StateFolder;
use crate::wire::payload::Ask;

/// How long they are kept, and how many bytes of them.
const RETENTION: Retention =
    Retention { age: Duration::from_secs(90 * 24 * 60 * 60), bytes: 64 << 20 };

/// The longest one that is fetched, in bytes.
const FETCHED_BYTES_MAX: usize = 48 * 1024;

/// Those that are being fetched. Where more nodes fail at once, the first ones tell enough.
const WANTED_MAX: usize = 64;

/// How often a node is asked.
const TRIES_MAX: u8 = 10;

/// How much of each is shown, and of how many nodes.
const SHOWN_LINES: usize = 20;
const SHOWN_BYTES: usize = 4 * 1024;
const SHOWN_NODES: usize = 64;

/// The lines that are here, and those that are wanted.
#[derive(Debug)]
pub(super) struct Tails {
    store: DetachedStore,
    wanted: BTreeMap<Digest, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    node: NodeId,
    tries: u8,
    is_asked: bool,
}

impl Tails {
    /// Opens the folder beside the log.
    pub(super) fn of(folder: &StateFolder) -> io::Result<Self> {
        let store = DetachedStore::open(&folder.root().join("detached"), RETENTION)?;
        Ok(Self { store, wanted: BTreeMap::new() })
    }

    fn lines(&self, hash: &Digest) -> Vec<String> {
        let text = self.store.get(hash).unwrap_or_else(|why| {
            warn!(%why, "last lines cannot be shown");
            None
        });
        last_lines(&text.unwrap_or_default())
    }
}

impl Controller {
    /// Begins to ask a node for the lines that its event names, unless they are here.
    pub(super) fn want_tail(&mut self, node: &NodeId, tail: &Detached) {
        let fits = self.tails.wanted.len() < WANTED_MAX && tail.bytes <= FETCHED_BYTES_MAX as u64;
        if fits && !matches!(self.tails.store.get(&tail.hash), Ok(Some(_))) {
            let wanted = Wanted { node: node.clone(), tries: 0, is_asked: false };
            self.tails.wanted.entry(tail.hash).or_insert(wanted);
            self.ask_for_tails();
        }
    }

    /// Asks for the lines that did not come yet.
    pub(super) fn ask_for_tails(&mut self) {
        self.tails.wanted.retain(|_, wanted| wanted.is_asked || wanted.tries < TRIES_MAX);
        let due: Vec<(Digest, NodeId)> = self
            .tails
            .wanted
            .iter_mut()
            .filter(|(_, wanted)| !wanted.is_asked)
            .map(|(hash, wanted)| {
                (wanted.is_asked, wanted.tries) = (true, wanted.tries + 1);
                (*hash, wanted.node.clone())
            })
            .collect();
        for (hash, node) in due {
            let question = self.question(&node, Ask::Beside { hash });
            let (connection, trusted) = (self.connection.clone(), self.trusted.clone());
            let waker = self.waker.clone();
            tokio::spawn(async move {
                let record = links::whole(connection, question, trusted, FETCHED_BYTES_MAX).await;
                drop(waker.send(Wake::Tail(hash, record)).await);
            });
        }
    }

    /// Takes in lines that a node gave: they have to be those that its event names.
    pub(super) fn tail_came(&mut self, hash: &Digest, record: Option<&[u8]>) {
        match record.map(|record| self.tails.store.keep(hash, record)) {
            Some(Ok(())) => drop(self.tails.wanted.remove(hash)),
            Some(Err(why)) => {
                warn!(%why, "a node gave other lines than its event names");
                self.tails.wanted.remove(hash);
            }
            None => {
                debug!(%hash, "the last lines of an instance did not come");
                if let Some(wanted) = self.tails.wanted.get_mut(hash) {
                    wanted.is_asked = false;
                }
            }
        }
    }

    /// Adds the last lines of instances that failed to a picture, as far as they are here.
    pub(super) fn add_tails(&self, view: &mut RolloutView) {
        let failures = view.nodes.iter_mut().filter_map(|node| node.failure.as_mut());
        let named = failures.filter_map(|failure| Some((failure.tail.clone()?, failure)));
        for (tail, failure) in named.take(SHOWN_NODES) {
            failure.log_tail = self.tails.lines(&tail.hash);
        }
    }
}

/// Returns the end of a text.
fn last_lines(text: &str) -> Vec<String> {
    let mut room = SHOWN_BYTES;
    let fits = |line: &&str| {
        let fits = line.len() <= room;
        room = room.saturating_sub(line.len());
        fits
    };
    let lines = text.lines().rev().take(SHOWN_LINES).take_while(fits);
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_the_end_is_shown() {
        let many: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        let shown = last_lines(&many);
        assert_eq!((shown.len(), &*shown[0], &*shown[19]), (20, "line 11", "line 30"));
        let long = [&"x".repeat(3000), "short", &"y".repeat(3000)].join("\n");
        assert_eq!(last_lines(&long).len(), 2);
        assert_eq!(last_lines(""), Vec::<String>::new());
    }
}
