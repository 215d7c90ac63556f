//! The log lines of a service: their end, and what is written from there on.

mod several;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::place;
use super::reading::{refused, silent};
use crate::cli::args::Via;
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::follow::{Follower, From};
use crate::cli::interrupt::Interrupts;
use crate::cli::launch;
use crate::cli::out::Out;
use crate::cli::selector::Selector;
use crate::cli::session::until_down;
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::NodeId;
use crate::domain::selector::Selector as NodeSelector;
use crate::domain::text::printable;
use crate::wire::payload::{Ask, LogWait, Reply, SeenEnd, line_digest};

/// After lines of another machine it is left alone for so long: a service that writes all the time fills no bus.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long a node waits for lines before it says that there are none. Whoever is silent for longer may be gone.
const WAIT_MS: u32 = 3_000;

/// So many lines are read again each time; more than this between two looks is not shown.
const FOLLOWED_LINES: u32 = 1000;

/// Prints the end of a service's log, and what is written from there on when told to follow.
pub(super) async fn logs(
    context: &Context,
    (selector, select): (Selector, Option<NodeSelector>),
    (lines, follow): (u32, bool),
    out: Out,
) -> Result<ExitCode, CliError> {
    let named = context.global.nodes.iter().chain(&selector.node).collect::<BTreeSet<_>>();
    let nodes = match &select {
        Some(_) if !named.is_empty() => return Err(place::named_and_selected()),
        Some(select) => place::selected(context, &selector.service, select).await?,
        None if named.is_empty() && is_plain(context) => {
            place::having(context, &selector.service).await.unwrap_or_default()
        }
        None => named.into_iter().cloned().collect(),
    };
    if nodes.len() > 1 || select.is_some() {
        return several::logs(context, selector, nodes, (lines, follow), out).await;
    }
    let whom = Whom::new(context, place::of(context, Some(&selector), "logs").await?);
    let mut client = Client::connect(context, &whom).await?;
    let asked = if follow { lines.max(FOLLOWED_LINES) } else { lines };
    // The files are followed from before the first reading on, so that no line is lost between the two.
    let followed = if follow { files_of(&mut client, &selector).await } else { None };
    let (seen, exit) = match last_lines(&mut client, &selector, asked, None).await {
        Ok(read) => read,
        Err(error) => {
            return Err(launch::with_likely(context, &whom, &selector.service, error).await);
        }
    };
    let shown = lines as usize;
    for (slot, lines) in &seen {
        let shown = &lines[lines.len().saturating_sub(shown)..];
        print_lines(&selector, slot, shown, seen.len(), out);
        let bytes: usize = lines.iter().map(String::len).sum();
        if shown.len() < asked as usize && (bytes > READ_CUT_BYTES || shown.len() >= READ_CUT_LINES)
        {
            out.note(&format!(
                "only the last {} lines of {}/{}; the rest is in its files: `log_path` of smgr status -o json",
                shown.len(), selector.service, slot.1
            ));
        }
    }
    if !follow {
        if out.is_text() && seen.values().all(Vec::is_empty) {
            out.note(&format!("{selector} has written nothing yet"));
        }
        return Ok(exit);
    }
    let mut interrupts = Interrupts::watch()?;
    let work = async {
        match followed {
            Some((follower, slots)) => {
                follow_files(context, &selector, follower, &slots, seen, out).await
            }
            None => follow_node(context, &whom, client, &selector, (seen, asked), out).await,
        }
    };
    match interrupts.guard(work).await {
        Ok(ended) => ended,
        Err(_) => Ok(ExitCode::Done), // As with a stream: one has seen enough.
    }
}

/// Says whether nothing names a way: then a service of a fleet is meant on all nodes that have it.
fn is_plain(context: &Context) -> bool {
    context.global.bus.is_none() && context.global.via == Via::Auto
}

/// What a node reads of one log at most: somewhat less than 1 MiB, and 10,000 lines.
const READ_CUT_BYTES: usize = 800 << 10;
const READ_CUT_LINES: usize = 10_000;

/// Follows the files of a service of this machine; `None` where they may not be read, or are another machine's.
async fn files_of(
    client: &mut Client,
    selector: &Selector,
) -> Option<(Follower, Vec<(NodeId, u16)>)> {
    if client.is_by_bus() {
        return None;
    }
    let status = launch::status(client).await?;
    let mut follower = Follower::new().ok()?;
    let mut slots = Vec::new();
    for it in &status.instances {
        let is_wanted = selector.matches(&it.service, it.index, &status.node);
        if let Some(path) = it.log_path.as_ref().filter(|_| is_wanted) {
            follower.add(path.into(), From::End).ok()?;
            slots.push((status.node.clone(), it.index));
        }
    }
    (!slots.is_empty()).then_some((follower, slots))
}

/// Prints lines as the kernel tells of them, until smgr is down here.
async fn follow_files(
    context: &Context,
    selector: &Selector,
    mut follower: Follower,
    slots: &[(NodeId, u16)],
    seen: Tails,
    out: Out,
) -> Result<ExitCode, CliError> {
    // What was written between the two readings is in both.
    let mut fresh = Tails::new();
    for (number, line) in follower.written() {
        fresh.entry(slots[number].clone()).or_default().push(line);
    }
    for (slot, lines) in &fresh {
        let before = seen.get(slot).map_or(&[][..], Vec::as_slice);
        print_lines(selector, slot, behind(before, lines), slots.len(), out);
    }
    let down = until_down(context, None);
    tokio::pin!(down);
    while !out.reader_gone() {
        tokio::select! {
            lines = follower.next() => for (number, line) in lines {
                print_lines(selector, &slots[number], &[line], slots.len(), out);
            },
            _ = &mut down => {
                out.note("smgr was ended");
                return Ok(ExitCode::Done);
            }
        }
    }
    Ok(ExitCode::Done)
}

/// Asks a node for the end of a log again and again; it answers when there is something new.
async fn follow_node(
    context: &Context,
    whom: &Whom,
    mut client: Client,
    selector: &Selector,
    (mut seen, asked): (Tails, u32),
    out: Out,
) -> Result<ExitCode, CliError> {
    while !out.reader_gone() {
        let read = match last_lines(&mut client, selector, asked, Some(&seen)).await {
            Ok((read, _)) => read,
            Err(error) if error.code == Code::AGENT_UNREACHABLE => {
                // An agent that was lost comes back within a moment; smgr that went down does not.
                tokio::time::sleep(LOOK_AGAIN).await;
                client = Client::connect(context, whom).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut had_news = false;
        for (slot, lines) in read {
            let before = seen.entry(slot.clone()).or_default();
            let fresh = behind(before, &lines).to_vec();
            *before = lines;
            had_news |= !fresh.is_empty();
            print_lines(selector, &slot, &fresh, seen.len(), out);
        }
        if had_news {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(ExitCode::Done)
}

/// The last lines of each slot.
type Tails = BTreeMap<(NodeId, u16), Vec<String>>;

async fn last_lines(
    client: &mut Client,
    selector: &Selector,
    lines: u32,
    beyond: Option<&Tails>,
) -> Result<(Tails, ExitCode), CliError> {
    let wait = beyond.map(|seen| LogWait { seen: ends(seen), ms: WAIT_MS });
    let ask = Ask::Logs { service: selector.service.clone(), index: selector.index, lines, wait };
    let mut pending = client.ask(ask).await?;
    let mut slots = Tails::new();
    while let Some(answer) = pending.next().await? {
        let node = answer.node;
        match answer.reply {
            Reply::Lines { index, lines, .. } => {
                slots.entry((node, index)).or_default().extend(lines);
            }
            Reply::Refused { code, why } => return Err(refused(&node, &code, why)),
            _ => {}
        }
    }
    Ok((slots, silent(pending.missing().keys())?))
}

/// Names the last line of each slot. Those of several nodes are all named: each finds its own, and at worst answers
/// early.
fn ends(seen: &Tails) -> Vec<SeenEnd> {
    let lasts = seen.iter().filter_map(|((_, index), lines)| Some((*index, lines.last()?)));
    lasts.map(|(index, line)| SeenEnd { index, line: line_digest(line) }).collect()
}

/// Returns what a later look at the end of a log has behind what an earlier look saw.
fn behind<'l>(seen: &[String], lines: &'l [String]) -> &'l [String] {
    let common = (0..seen.len()).find(|from| lines.starts_with(&seen[*from..]));
    &lines[common.map_or(0, |from| seen.len() - from)..]
}

fn print_lines(
    selector: &Selector,
    (node, index): &(NodeId, u16),
    lines: &[String],
    slots: usize,
    out: Out,
) {
    for line in lines {
        let line = printable(line);
        match (out.is_text(), slots > 1) {
            (true, false) => out.line(&line),
            (true, true) => out.line(&format!("{}/{index} | {line}", selector.service)),
            (false, _) => out.json(&line_json(selector, &(node.clone(), *index), &line)),
        }
    }
}

fn line_json(selector: &Selector, (node, index): &(NodeId, u16), line: &str) -> Value {
    json!({
        "schema": "smgr.line.v1", "node": node.as_str(),
        "service": selector.service.as_str(), "instance": index, "line": line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_look_shows_only_what_came_since() {
        let lines = |text: &str| text.split_terminator(' ').map(str::to_owned).collect::<Vec<_>>();
        for (seen, later, fresh) in [
            ("", "a b", "a b"),
            ("a b", "a b", ""),
            ("a b", "a b c", "c"),
            ("a b c", "c d e", "d e"),
            ("a b c", "x y z", "x y z"),
            ("a a", "a a a", "a"),
        ] {
            assert_eq!(behind(&lines(seen), &lines(later)), lines(fresh), "{seen} then {later}");
        }
    }
}
