//! The log of a service on several nodes, as one: in the order of time, as far as the clocks of the nodes agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{FOLLOWED_LINES, LOOK_AGAIN, Tails, behind, last_lines, line_json};
use crate::cli::args::Global;
use crate::cli::client::{Client, Whom};
use crate::cli::commands::reading::silent;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::follow::cri;
use crate::cli::interrupt::Interrupts;
use crate::cli::out::Out;
use crate::cli::selector::Selector;
use crate::cli::time::{instant, now};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::NodeId;
use crate::domain::text::printable;
use crate::domain::time::UnixMicros;

/// Nodes that are read at once: each of them takes a connection.
const NODES_MAX: usize = 64;

/// Answers of nodes that nobody has printed yet: beyond it nodes are asked no further until somebody reads.
const SAID_MAX: usize = 16;

/// How long a line waits for older ones of other nodes: a node that writes all the time is asked every half second.
const HELD: Duration = Duration::from_millis(800);

/// Lines that wait at most; beyond it the oldest is printed at once.
const HELD_MAX: usize = 20_000;

/// What a node had to say.
enum Said {
    /// Lines of one instance; `missed` when there were more since the last ones.
    Lines { slot: (NodeId, u16), lines: Vec<String>, missed: bool },
    /// These were all that were there in the beginning.
    Read(NodeId),
    /// It said no, or nothing.
    Failed(NodeId, CliError),
}

/// Prints the last lines of a service over all these nodes, and what is written from there on when told to follow.
pub(super) async fn logs(
    context: &Context,
    selector: Selector,
    nodes: Vec<NodeId>,
    (lines, follow): (u32, bool),
    out: Out,
) -> Result<ExitCode, CliError> {
    may_be_read_at_once(&nodes)?;
    let selector = Selector { node: None, ..selector };
    let global = Global { nodes: Vec::new(), ..context.global.clone() };
    let context = Context { global, ..context.clone() };
    let (to, mut said) = mpsc::channel(SAID_MAX);
    let mut readers = JoinSet::new();
    for node in &nodes {
        let reader = Reader {
            context: context.clone(),
            selector: selector.clone(),
            node: node.clone(),
            to: to.clone(),
        };
        readers.spawn(reader.read((lines, follow)));
    }
    drop(to);
    let mut interrupts = Interrupts::watch()?;
    let work = async {
        let shelf_max = usize::try_from(lines).unwrap_or(usize::MAX);
        let (shelf, failed) = first(&mut said, nodes.iter().cloned().collect(), shelf_max).await;
        let has_lines = !shelf.lines.is_empty();
        shelf.lines.into_values().for_each(|line| line.print(&selector, out));
        if !follow {
            return ended(failed, nodes.len(), (has_lines, &selector), out);
        }
        for (node, error) in &failed {
            out.note(&format!("{node}: {error}; its lines come when it answers"));
        }
        live(&mut said, &selector, out).await;
        Ok(ExitCode::Done)
    };
    match interrupts.guard(work).await {
        Ok(ended) => ended,
        Err(_) => Ok(ExitCode::Done), // One has seen enough.
    }
}

fn may_be_read_at_once(nodes: &[NodeId]) -> Result<(), CliError> {
    if nodes.len() <= NODES_MAX {
        return Ok(());
    }
    let what = format!("{} nodes are selected, and {NODES_MAX} are read at once", nodes.len());
    Err(CliError::new(Code::USAGE, what).hint("select fewer of them"))
}

/// Takes what there is in the beginning: the last lines over all nodes, and who gave none.
async fn first(
    said: &mut mpsc::Receiver<Said>,
    mut awaited: BTreeSet<NodeId>,
    lines_max: usize,
) -> (Shelf, Vec<(NodeId, CliError)>) {
    let (mut shelf, mut failed) = (Shelf::default(), Vec::new());
    while !awaited.is_empty() {
        match said.recv().await {
            Some(Said::Lines { slot, lines, .. }) => {
                shelf.put(&slot, lines);
                while shelf.lines.len() > lines_max {
                    shelf.lines.pop_first();
                }
            }
            Some(Said::Read(node)) => drop(awaited.remove(&node)),
            Some(Said::Failed(node, error)) => {
                awaited.remove(&node);
                failed.push((node, error));
            }
            None => break,
        }
    }
    (shelf, failed)
}

/// Prints lines as they come, each after those that are older.
async fn live(said: &mut mpsc::Receiver<Said>, selector: &Selector, out: Out) {
    let mut shelf = Shelf::default();
    while !out.reader_gone() {
        let due = shelf.due();
        tokio::select! {
            heard = said.recv() => match heard {
                Some(Said::Lines { slot, lines, missed }) => {
                    if missed {
                        let (node, index) = &slot;
                        out.note(&format!(
                            "{}/{index}@{node} wrote more than can be shown: lines are missing here",
                            selector.service
                        ));
                    }
                    shelf.put(&slot, lines);
                }
                Some(Said::Failed(node, error)) => out.note(&format!("{node}: {error}")),
                Some(Said::Read(_)) => {}
                None => return,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        while let Some(line) = shelf.take(Instant::now()) {
            line.print(selector, out);
        }
    }
}

/// Says how the command ends when nothing is followed: nodes that gave no lines are named.
fn ended(
    failed: Vec<(NodeId, CliError)>,
    nodes: usize,
    (has_lines, selector): (bool, &Selector),
    out: Out,
) -> Result<ExitCode, CliError> {
    let is_all = failed.len() == nodes;
    let mut unheard = Vec::new();
    for (node, error) in failed {
        match error.code {
            _ if is_all => return Err(error.at(node.as_str())),
            Code::AGENT_UNREACHABLE | Code::OUTCOME_UNKNOWN => unheard.push(node),
            _ => out.note(&format!("{node}: {error}")),
        }
    }
    if !has_lines && out.is_text() {
        out.note(&format!("{selector} has written nothing yet on these nodes"));
    }
    silent(unheard.iter())
}

/// Reads the log of one node.
struct Reader {
    context: Context,
    selector: Selector,
    node: NodeId,
    to: mpsc::Sender<Said>,
}

impl Reader {
    /// Reads the end of the log, and what is written from there on when told to follow.
    async fn read(self, (lines, follow): (u32, bool)) {
        let asked = if follow { lines.max(FOLLOWED_LINES) } else { lines };
        let mut seen = None;
        let mut is_away = false;
        // Ends when nobody listens any more.
        while !self.to.is_closed() {
            match self.look(&mut seen, (asked, lines), follow, &mut is_away).await {
                Ok(()) => return,
                Err(error) => {
                    if !is_away && self.say_failed(error).await.is_err() || !follow {
                        return;
                    }
                    is_away = true;
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn say_failed(&self, error: CliError) -> Result<(), Gone> {
        self.say(Said::Failed(self.node.clone(), error)).await
    }

    async fn say(&self, said: Said) -> Result<(), Gone> {
        self.to.send(said).await.map_err(|_| Gone)
    }

    /// Reads until the node is lost, or nobody listens; `Ok` when there is nothing more to do.
    async fn look(
        &self,
        seen: &mut Option<Tails>,
        (asked, shown): (u32, u32),
        follow: bool,
        is_away: &mut bool,
    ) -> Result<(), CliError> {
        let whom = Whom::new(&self.context, [self.node.clone()]);
        let mut client = Client::connect(&self.context, &whom).await?;
        loop {
            let (read, _) = last_lines(&mut client, &self.selector, asked, seen.as_ref()).await?;
            *is_away = false;
            let is_first = seen.is_none();
            let before = seen.get_or_insert_default();
            let mut had_news = false;
            for (slot, lines) in read {
                let known = before.entry(slot.clone()).or_default();
                let (fresh, missed) = match is_first {
                    true => (&lines[lines.len().saturating_sub(shown as usize)..], false),
                    false => news(known, &lines),
                };
                had_news |= !fresh.is_empty();
                let said = Said::Lines { slot, lines: fresh.to_vec(), missed };
                *known = lines;
                if self.say(said).await.is_err() {
                    return Ok(());
                }
            }
            if is_first && self.say(Said::Read(self.node.clone())).await.is_err() || !follow {
                return Ok(());
            }
            if had_news && !is_first {
                sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// Returns the lines that were not known, and whether there were more between them and what is known.
fn news<'l>(known: &[String], lines: &'l [String]) -> (&'l [String], bool) {
    let fresh = behind(known, lines);
    (fresh, !known.is_empty() && !fresh.is_empty() && fresh.len() == lines.len())
}

/// Says that nobody listens any more.
struct Gone;

/// Lines of several nodes in the order of time.
#[derive(Default)]
struct Shelf {
    lines: BTreeMap<Place, Line>,
    count: u64,
    last: Option<Place>,
}

/// Where a line stands: by its time, and lines of one time as they came.
type Place = (UnixMicros, u64);

struct Line {
    slot: (NodeId, u16),
    text: String,
    came: Instant,
}

impl Shelf {
    /// Takes lines of one instance in. One without a time stands behind the one before it.
    fn put(&mut self, slot: &(NodeId, u16), lines: Vec<String>) {
        let (mut at, came, now) = (UnixMicros::default(), Instant::now(), now());
        for text in lines {
            at = cri(&text).and_then(|(time, _)| instant(time, now)).unwrap_or(at);
            self.count += 1;
            self.lines.insert((at, self.count), Line { slot: slot.clone(), text, came });
        }
    }

    /// Returns when the oldest line is to be printed.
    fn due(&self) -> Option<Instant> {
        let (place, line) = self.lines.first_key_value()?;
        // Those that are later than what is printed already gain nothing by waiting.
        let is_late = self.last.is_some_and(|last| *place < last);
        let at_once = is_late || self.lines.len() > HELD_MAX;
        Some(if at_once { line.came } else { line.came + HELD })
    }

    /// Returns the oldest line when it has waited for as long as it has to.
    fn take(&mut self, now: Instant) -> Option<Line> {
        self.due().filter(|due| *due <= now)?;
        let (place, line) = self.lines.pop_first()?;
        self.last = self.last.max(Some(place));
        Some(line)
    }
}

impl Line {
    fn print(&self, selector: &Selector, out: Out) {
        let Self { slot: (node, index), text, .. } = self;
        let (service, text) = (&selector.service, printable(text));
        match (out.is_text(), index) {
            (true, 0) => out.line(&format!("{service}@{node} | {text}")),
            (true, index) => out.line(&format!("{service}/{index}@{node} | {text}")),
            (false, _) => out.json(&line_json(selector, &self.slot, &text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(node: &str) -> (NodeId, u16) {
        (node.parse().unwrap(), 0)
    }

    fn line(second: u32, text: &str) -> String {
        format!("2026-11-22T14:02:{second:02}.000000000Z stdout F {text}")
    }

    fn texts(shelf: &mut Shelf, at: Instant) -> Vec<String> {
        let lines = std::iter::from_fn(|| shelf.take(at));
        lines.map(|line| cri(&line.text).map_or("-", |(_, text)| text).to_owned()).collect()
    }

    #[test]
    fn more_nodes_than_are_read_at_once_are_one_error_and_nobody_is_asked() {
        let nodes = |count: usize| -> Vec<NodeId> {
            (1..=count).map(|number| format!("n{number}").parse().unwrap()).collect()
        };
        may_be_read_at_once(&nodes(NODES_MAX)).unwrap();
        let error = may_be_read_at_once(&nodes(NODES_MAX + 1)).unwrap_err();
        assert_eq!((error.code, error.what.contains("65 nodes")), (Code::USAGE, true), "{error}");
    }

    #[test]
    fn what_was_written_between_two_looks_is_told_as_missing_only_where_they_do_not_meet() {
        let lines = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let known = lines(&["a", "b", "c"]);
        for (seen, fresh, missed) in [
            (&["b", "c", "d"][..], &["d"][..], false),
            (&["a", "b", "c"], &[], false),
            (&["d", "e", "f"], &["d", "e", "f"], true),
            // It is empty when its files were removed: nothing is missing that anybody could be shown.
            (&[], &[], false),
        ] {
            let seen = lines(seen);
            assert_eq!(news(&known, &seen), (&lines(fresh)[..], missed), "{seen:?}");
        }
        assert!(!news(&[], &known).1, "nothing was known of it");
    }

    #[tokio::test]
    async fn of_all_nodes_together_as_many_last_lines_are_kept_as_are_wanted() {
        let (to, mut said) = mpsc::channel(SAID_MAX);
        let [n1, n2, n3] = ["n1", "n2", "n3"].map(slot);
        let put =
            |slot: &(NodeId, u16), lines| Said::Lines { slot: slot.clone(), lines, missed: false };
        let awaited = [&n1, &n2, &n3].map(|(node, _)| node.clone());
        for word in [
            put(&n1, vec![line(1, "a"), line(4, "d")]),
            Said::Read(n1.0),
            put(&n2, vec![line(2, "b"), line(3, "c")]),
            Said::Read(n2.0),
            Said::Failed(n3.0.clone(), CliError::new(Code::AGENT_UNREACHABLE, "away")),
        ] {
            to.send(word).await.unwrap();
        }
        let (mut shelf, failed) = first(&mut said, awaited.into(), 2).await;
        assert_eq!(failed.into_iter().map(|(node, _)| node).collect::<Vec<_>>(), [n3.0]);
        assert_eq!(texts(&mut shelf, Instant::now() + HELD), ["c", "d"]);
    }

    #[tokio::test]
    async fn beyond_so_many_lines_that_wait_the_oldest_is_printed_at_once() {
        let mut shelf = Shelf::default();
        let more = 3;
        let text = |n: usize| format!("2026-11-22T14:02:00.{n:09}Z stdout F {n}");
        shelf.put(&slot("n1"), (0..HELD_MAX + more).map(text).collect());
        let now = Instant::now();
        assert_eq!(texts(&mut shelf, now), ["0", "1", "2"]);
        assert_eq!((shelf.lines.len(), shelf.due().is_some()), (HELD_MAX, true));
        assert_eq!(texts(&mut shelf, now + HELD).len(), HELD_MAX);
    }

    #[tokio::test]
    async fn lines_of_several_nodes_come_in_the_order_of_their_times() {
        let mut shelf = Shelf::default();
        shelf.put(&slot("n2"), vec![line(2, "b"), "no time".to_owned(), line(4, "d")]);
        shelf.put(&slot("n1"), vec![line(1, "a"), line(3, "c")]);
        let now = Instant::now();
        assert!(texts(&mut shelf, now).is_empty(), "an older one may be on its way");
        assert_eq!(texts(&mut shelf, now + HELD), ["a", "b", "-", "c", "d"]);
        // What comes too late is held up no longer, and holds up nothing.
        shelf.put(&slot("n3"), vec![line(1, "late")]);
        shelf.put(&slot("n1"), vec![line(5, "e")]);
        let now = Instant::now();
        assert_eq!(texts(&mut shelf, now), ["late"]);
        assert_eq!(texts(&mut shelf, now + HELD), ["e"]);
    }
}
