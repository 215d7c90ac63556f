//! replay and `status --at`: the state, folded from the log on this machine's disk.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::json;

use super::archive::Archive;
use super::status::print;

use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::out::Out;
use crate::cli::selector::Selector;
use crate::cli::view::View;
use crate::cli::{launch, time};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::EventId;
use crate::domain::node::Node;
use crate::domain::time::UnixMicros;
use crate::store::LogReader;
use crate::wire::fold::{Fold, state_hash};
use crate::wire::status::{InstanceStatus, NodeStatus, shown};

/// How often a busy node is asked for a state that is whole on its disk.
const STATUS_TRIES: u32 = 50;

/// Up to where a log is folded.
#[derive(Clone, Debug)]
enum Until {
    End,
    Event(EventId),
    Time(UnixMicros),
}

/// A state that was folded from a log.
struct Folded {
    node: Node,
    events: u64,
    last: Option<(EventId, UnixMicros)>,
    passed_over: u64,
}

/// Folds a log; every row's signature is verified on the way.
fn fold(archive: &Archive, until: &Until) -> Result<Folded, CliError> {
    let mut node = Node::default();
    let mut fold = Fold::new(&mut node);
    let (mut events, mut last, mut reached) = (0, None, false);
    archive.each(None, |at, row, record| {
        if matches!(until, Until::Time(until) if record.at > *until) {
            return ControlFlow::Break(());
        }
        let id = record.id();
        let folded = fold.row(at.seq, row);
        events += 1;
        reached |= matches!(until, Until::Event(until) if *until == id);
        last = Some((id, record.at));
        if reached { ControlFlow::Break(()) } else { folded }
    })?;
    if let Some((seq, why)) = fold.broken.take() {
        return Err(CliError::new(
            Code::ILLEGAL_EVENT,
            format!("event {seq} does not follow: {why:?}"),
        ));
    }
    if matches!(until, Until::Event(_)) && !reached {
        return Err(CliError::new(Code::CURSOR_UNKNOWN, Code::CURSOR_UNKNOWN.title()));
    }
    let passed_over = fold.passed_over;
    Ok(Folded { node, events, last, passed_over })
}

/// Rebuilds the state from the log and compares it with the live one, where there is one.
pub(super) async fn replay(
    context: &Context,
    folder: Option<PathBuf>,
    out: Out,
) -> Result<ExitCode, CliError> {
    if !context.global.nodes.is_empty() {
        let own = context.own_node()?;
        if context.global.nodes.iter().any(|node| *node != own) {
            return Err(CliError::not_yet("`smgr replay` for another node")
                .hint("smgr audit verify --node NODE verifies its history over the bus"));
        }
    }
    let is_here = folder.is_none();
    let archive = Archive::open(context, folder)?;
    let live = match is_here {
        true => live(context).await,
        false => None,
    };
    // Up to what the live state knew, as events go on happening meanwhile.
    let until = live.as_ref().map_or(Until::End, |live| Until::Event(live.head.clone()));
    let began = std::time::Instant::now();
    let folded = fold(&archive, &until)?;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let hash = state_hash(&folded.node);
    let differences = live.as_ref().map(|live| {
        let mut found = differences(&folded.node, live);
        if let Some(live) = live.state_hash.filter(|live| *live != hash) {
            found.push(format!("state hash: {hash} by replay, {live} live"));
        }
        found
    });
    let head = folded.last.as_ref().map(|(id, _)| id.to_string());
    let differs = differences.as_ref().is_some_and(|differences| !differences.is_empty());
    let exit = if differs { ExitCode::History } else { ExitCode::Done };
    if !out.is_text() {
        out.json(&json!({
            "schema": "smgr.replay.v1", "events": folded.events, "head": head,
            "state_hash": hash.to_string(), "passed_over": folded.passed_over, "took_ms": took_ms,
            "live": differences.as_ref().map(|differences| json!({
                "equal": differences.is_empty(), "differences": differences,
            })),
            "exit_code": exit.number(),
        }));
        return Ok(exit);
    }
    out.line(&format!(
        "{} events replayed to {} in {took_ms} ms   state {hash}",
        folded.events,
        head.as_deref().unwrap_or("the beginning")
    ));
    match differences {
        None => out.line("no live state to compare with"),
        Some(differences) if differences.is_empty() => out.line("equals the live state"),
        Some(differences) => {
            let mut error = CliError::new(Code::REPLAY_DIFFERS, Code::REPLAY_DIFFERS.title());
            error.because = differences;
            out.error(&error);
        }
    }
    Ok(exit)
}

async fn live(context: &Context) -> Option<NodeStatus> {
    let mut client = Client::connect(context, &Whom::default()).await.ok()?;
    let mut status = launch::status(&mut client).await;
    // Between two events there is a state that the disk holds whole; a busy node has one soon.
    for _ in 0..STATUS_TRIES {
        if status.as_ref().is_none_or(|status| status.state_hash.is_some()) {
            break;
        }
        status = launch::status(&mut client).await;
    }
    status
}

fn differences(node: &Node, live: &NodeStatus) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |what: String, replayed: String, live: String| {
        if replayed != live {
            found.push(format!("{what}: {replayed} by replay, {live} live"));
        }
    };
    let names = |it: Vec<String>| it.join(" ");
    differ(
        "services".to_owned(),
        names(node.services().keys().map(ToString::to_string).collect()),
        names(live.services.iter().map(|it| it.service.to_string()).collect()),
    );
    for service in &live.services {
        let Some(known) = node.services().get(&service.service) else { continue };
        let told = |desired, generation, digest| format!("{desired:?} {generation} {digest}");
        differ(
            service.service.to_string(),
            told(known.desired, known.generation, known.digest),
            told(service.desired, service.generation, service.spec),
        );
    }
    for instance in &live.instances {
        let slot = shown(node.services())
            .find(|(id, ..)| id.service == instance.service && id.index == instance.index);
        let told =
            |state, run, pid: Option<u32>, restarts| format!("{state:?} {run} {pid:?} {restarts}");
        let replayed = slot.map_or_else(String::new, |(id, known, slot)| {
            let it = InstanceStatus::folded(id, known, slot);
            told(it.state, it.run, it.pid, it.restarts)
        });
        differ(
            format!("{}/{}", instance.service, instance.index),
            replayed,
            told(instance.state, instance.run, instance.pid, instance.restarts),
        );
    }
    found
}

/// Prints the status as it was then.
pub(super) fn status_at(
    context: &Context,
    selector: Option<&Selector>,
    at: &str,
    out: Out,
) -> Result<ExitCode, CliError> {
    let until = match at.contains('/') {
        true => Until::Event(super::reading::cursor(at)?),
        false => Until::Time(time::instant(at, time::now()).ok_or_else(|| {
            CliError::new(Code::BAD_TIME, format!("`{at}` is neither a time nor a cursor"))
                .hint("times are RFC 3339, or an age such as 10m")
        })?),
    };
    if let Until::Time(asked) = until
        && asked > time::now()
    {
        return Err(CliError::new(Code::BAD_TIME, format!("`{at}` has not come yet"))
            .hint("times are RFC 3339, or an age such as 10m"));
    }
    let own = context.own_node()?;
    if !context.global.nodes.iter().all(|node| *node == own) {
        return Err(CliError::not_yet("`smgr status --at` for another node"));
    }
    let archive = Archive::open(context, None)?;
    let folded = fold(&archive, &until)?;
    let Some((head, last_at)) = folded.last.clone() else {
        return Err(CliError::new(Code::CURSOR_GONE, "there is no history that old here"));
    };
    let as_of = match until {
        Until::Time(time) => time,
        Until::Event(_) | Until::End => last_at,
    };
    let log_bytes = LogReader::new(&archive.log).allocated_bytes();
    let fleet = archive.fleet.clone();
    let status = NodeStatus {
        log_bytes,
        log_bytes_max: 1 << 30,
        ..NodeStatus::folded(fleet, own, &folded.node, head, as_of)
    };
    let nodes = [status];
    print(&View { nodes: &nodes, selector, ..View::default() }, out)
}
