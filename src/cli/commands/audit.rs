//! `smgr audit`: proves from the files alone that a history is whole, and remembers heads so that a cut tail shows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::archive::{Archive, root_of};
use crate::cli::client::{Client, Whom};
use crate::cli::context::{Context, short};
use crate::cli::error::CliError;
use crate::cli::feed::{Feed, Turn};
use crate::cli::out::Out;
use crate::cli::screen::units::count;
use crate::cli::witness::{Epoch, Witness};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{Digest, EpochId, EventId, NodeId};
use crate::domain::policy::KeyClass;
use crate::head::folder::write_whole;
use crate::store::{Fault, Pin, Report};
use crate::wire::key::Keyring;

/// Faults that a screen shows; JSON has them all.
const SHOWN_MAX: usize = 20;

/// Verifies a log from its files.
pub(super) fn verify(
    context: &Context,
    folder: Option<PathBuf>,
    pin: Option<&Path>,
    root: Option<Digest>,
    out: Out,
) -> Result<ExitCode, CliError> {
    let archive = Archive::open(context, folder)?;
    if root.is_some_and(|root| root != archive.root) {
        return Err(other_root(format!("the root key of this log is {}", archive.root)));
    }
    let pins = match pin {
        Some(file) => read_pin(file, archive.root)?,
        None => read_pins(&context.folder.pins(), &archive.ring, archive.root, archive.is_own)?,
    };
    let report = archive.report(&pins)?;
    let exit = if report.is_sound() { ExitCode::Done } else { ExitCode::History };
    if !out.is_text() {
        out.json(&document(&report, exit));
        return Ok(exit);
    }
    for epoch in &report.epochs {
        let dropped = match epoch.dropped {
            0 => String::new(),
            dropped => format!(", {dropped} dropped by retention"),
        };
        let aside = match epoch.aside {
            0 => String::new(),
            aside => format!(", {aside} set aside"),
        };
        out.line(&format!(
            "epoch {}   {}{dropped}{aside}   {}, signed to {}   root {}",
            epoch.epoch.token(),
            count(epoch.rows, "event"),
            count(epoch.checkpoints, "checkpoint"),
            epoch.signed_to,
            epoch.root
        ));
    }
    if !report.unfinished.is_empty() {
        out.note("the newest commit was being written; without its agent it would be a fault");
    }
    if report.is_sound() {
        out.line(&format!("every event is what was signed{}", pinned_words(report.is_pinned)));
        return Ok(exit);
    }
    let shown = causes(&report.faults);
    let shown = &shown[..shown.len().min(SHOWN_MAX)];
    shown.iter().for_each(|fault| out.error(&CliError::new(code_of(fault), fault.to_string())));
    let more = (report.faults.len() - shown.len()) as u64 + report.more_faults;
    if more > 0 {
        let more = count(more, "fault");
        out.note(&format!("{more} more, most of them because of that: smgr audit verify -o json"));
    }
    Ok(exit)
}

/// Returns the faults that others follow from: a damaged page also hides rows, and with them changes every later root.
fn causes(faults: &[Fault]) -> Vec<&Fault> {
    let mut damaged = BTreeSet::new();
    let mut causes = Vec::new();
    for fault in faults {
        let is_cause = match fault {
            Fault::Structure { path, .. } => {
                !faults.iter().any(|other| is_event_of(other, path)) && damaged.insert(path)
            }
            Fault::Event { .. }
            | Fault::EpochChain { .. }
            | Fault::TailCut { .. }
            | Fault::SetAside { .. }
            | Fault::Unfinished { .. } => true,
            Fault::Missing { .. } | Fault::Root { .. } | Fault::Checkpoint { .. } => false,
        };
        causes.extend(is_cause.then_some(fault));
    }
    if causes.is_empty() { faults.iter().collect() } else { causes }
}

/// Verifies what live nodes answer: every event, its signature and its place, and the tree over all of them.
pub(super) async fn verify_nodes(context: &Context, out: Out) -> Result<ExitCode, CliError> {
    let mut exit = ExitCode::Done;
    for node in &context.global.nodes {
        // One at a time: a stream has one origin.
        let mut one = context.clone();
        one.global.nodes = vec![node.clone()];
        let ended = verify_node(&one, node, out).await?;
        exit = if exit == ExitCode::Done { ended } else { exit };
    }
    Ok(exit)
}

async fn verify_node(context: &Context, node: &NodeId, out: Out) -> Result<ExitCode, CliError> {
    let whom = Whom::new(context, None);
    let mut client = Client::connect(context, &whom).await?;
    let root = root_of(&context.folder)?;
    let pins = read_pins(&context.folder.pins(), client.ring(), root, false)?;
    let mut feed = Feed::after(None);
    feed.witness = Some(Witness::new(pins));
    while let Turn::Event(_) = feed.next(context, &whom, &mut client, false).await? {}
    let (epochs, faults, is_pinned) = feed.witness.take().unwrap_or_default().end();
    let exit = if faults.is_empty() { ExitCode::Done } else { ExitCode::History };
    let root = |epoch: &Epoch| epoch.tree.as_ref().map(|tree| tree.root().to_string());
    if !out.is_text() {
        let told: Vec<Value> = epochs
            .iter()
            .map(|it| {
                json!({"epoch": it.epoch.token(), "rows": it.events, "root": root(it),
                       "dropped": it.tree.is_none()})
            })
            .collect();
        out.json(&json!({
            "schema": "smgr.audit.v1", "exit_code": exit.number(), "node": node.as_str(),
            "sound": faults.is_empty(), "pinned": is_pinned, "faults": faults.iter().map(told_fault)
                .collect::<Vec<_>>(), "more_faults": 0, "epochs": told,
        }));
        return Ok(exit);
    }
    for it in &epochs {
        let root = root(it).unwrap_or_else(|| "unknown: its first events are dropped".to_owned());
        let events = count(it.events, "event");
        out.line(&format!("{node}   epoch {}   {events}   root {root}", it.epoch.token()));
    }
    faults.iter().for_each(|it| out.error(&CliError::new(code_of(it), it.to_string())));
    if faults.is_empty() {
        out.line(&format!("every event is what was signed{}", pinned_words(is_pinned)));
    }
    Ok(exit)
}

fn pinned_words(is_pinned: bool) -> &'static str {
    match is_pinned {
        true => "; nothing that was pinned is missing",
        false => "; without a pin a cut tail cannot be seen: smgr audit pin",
    }
}

fn told_fault(fault: &Fault) -> Value {
    json!({"code": code_of(fault).to_string(), "what": fault.to_string()})
}

/// Remembers the heads of this machine's log, if it verifies.
pub(super) fn pin(context: &Context, out: Out) -> Result<ExitCode, CliError> {
    let archive = Archive::open(context, None)?;
    let path = context.folder.pins();
    let pins = read_pins(&path, &archive.ring, archive.root, true)?;
    let report = archive.report(&pins)?;
    if let Some(fault) = report.faults.first() {
        return Err(CliError::new(code_of(fault), fault.to_string())
            .hint("nothing was pinned: a head that does not verify proves nothing")
            .next("smgr audit verify"));
    }
    let heads: Vec<Value> = report
        .epochs
        .iter()
        .map(|epoch| {
            json!({"epoch": epoch.epoch.token(), "size": epoch.last.0, "root": epoch.root.to_string()})
        })
        .collect();
    let document = json!({
        "schema": "smgr.pins.v1", "fleet": archive.fleet.as_str(),
        "root": archive.root.to_string(), "heads": heads,
    });
    std::fs::create_dir_all(&path)
        .and_then(|()| {
            write_whole(&file_of(&path, &archive.ring), format!("{document:#}\n").as_bytes(), 0o600)
        })
        .map_err(|error| {
            CliError::caused(Code::IO, "failed to write the pins", &error).at(short(&path))
        })?;
    match out.is_text() {
        true => out.line(&format!(
            "pinned {}; keep a copy of {} elsewhere",
            count(report.epochs.len() as u64, "head"),
            short(&file_of(&path, &archive.ring))
        )),
        false => out.json(&document),
    }
    Ok(ExitCode::Done)
}

/// Returns the last event of this machine's log, and whether everything up to it verifies.
pub(super) fn closed(context: &Context) -> Option<(EventId, bool)> {
    let archive = Archive::open(context, None).ok()?;
    let report = archive.report(&[]).ok()?;
    let last = report.epochs.last()?;
    let origin = context.own_node().ok()?;
    Some((EventId { origin, epoch: last.epoch, seq: last.last }, report.is_sound()))
}

/// One file for each root of trust: logs of other machines have pins of their own.
fn file_of(folder: &Path, ring: &Keyring) -> PathBuf {
    let mut nodes: Vec<String> = ring
        .iter()
        .filter(|(_, holder)| holder.class == KeyClass::Node)
        .map(|(key, _)| key.kid().to_string())
        .collect();
    nodes.sort();
    folder.join(format!("{}.json", nodes.first().map_or("none", String::as_str)))
}

/// Reads the heads that were remembered under a root of trust.
///
/// Every pin beside this machine's own log speaks of that log: one of another root says that the keys were exchanged.
fn read_pins(
    folder: &Path,
    ring: &Keyring,
    root: Digest,
    is_own: bool,
) -> Result<Vec<Pin>, CliError> {
    let mut paths = vec![file_of(folder, ring)];
    if is_own && let Ok(entries) = std::fs::read_dir(folder) {
        paths = entries.flatten().map(|entry| entry.path()).collect();
    }
    paths.retain(|path| path.extension().is_some_and(|it| it == "json") && path.exists());
    let mut pins = Vec::new();
    for path in paths {
        pins.extend(read_pin(&path, root)?);
    }
    Ok(pins)
}

fn other_root(what: String) -> CliError {
    CliError::new(Code::CUT_AGAINST_PIN, what)
        .hint("a log under other keys proves nothing about this one")
}

fn read_pin(path: &Path, root: Digest) -> Result<Vec<Pin>, CliError> {
    let damaged = || {
        CliError::new(
            Code::CUT_AGAINST_PIN,
            "the pins cannot be read, so a cut tail would not show",
        )
        .at(short(path))
    };
    let text = std::fs::read(path).map_err(|_| damaged())?;
    let document: Value = serde_json::from_slice(&text).map_err(|_| damaged())?;
    let pinned: Digest =
        document["root"].as_str().and_then(|root| root.parse().ok()).ok_or_else(damaged)?;
    if pinned != root {
        let what = format!("the heads were pinned under the root key {pinned}, this is {root}");
        return Err(other_root(what).at(short(path)));
    }
    let heads = document["heads"].as_array().ok_or_else(damaged)?;
    let one = |head: &Value| {
        Some(Pin {
            epoch: EpochId::from_token(head["epoch"].as_str()?)?,
            size: head["size"].as_u64()?,
            root: head["root"].as_str()?.parse().ok()?,
        })
    };
    heads.iter().map(|head| one(head).ok_or_else(damaged)).collect()
}

fn code_of(fault: &Fault) -> Code {
    match fault {
        Fault::Event { .. } => Code::EVENT_ALTERED,
        Fault::Structure { .. } | Fault::Unfinished { .. } | Fault::SetAside { .. } => {
            Code::LOG_DAMAGED
        }
        Fault::Missing { .. } => Code::SEGMENT_MISSING,
        Fault::Root { .. } => Code::FORKED,
        Fault::Checkpoint { .. } => Code::BAD_CHECKPOINT,
        Fault::TailCut { .. } => Code::CUT_AGAINST_PIN,
        Fault::EpochChain { .. } => Code::SEGMENT_SWAPPED,
    }
}

fn document(report: &Report, exit: ExitCode) -> Value {
    let faults: Vec<Value> = report.faults.iter().map(told_fault).collect();
    let epochs: Vec<Value> = report
        .epochs
        .iter()
        .map(|epoch| {
            json!({
                "epoch": epoch.epoch.token(), "last": epoch.last.0, "root": epoch.root.to_string(),
                "rows": epoch.rows, "dropped": epoch.dropped, "aside": epoch.aside, "checkpoints": epoch.checkpoints,
                "signed_to": epoch.signed_to.0,
            })
        })
        .collect();
    json!({
        "schema": "smgr.audit.v1", "exit_code": exit.number(), "sound": report.is_sound(),
        "pinned": report.is_pinned, "faults": faults, "more_faults": report.more_faults,
        "epochs": epochs,
        "unfinished": report.unfinished.iter().map(|path| short(path)).collect::<Vec<_>>(),
    })
}

/// Says whether a fault is about an event that stands in this segment's file, or behind it: it names the place better.
fn is_event_of(fault: &Fault, segment: &Path) -> bool {
    let Fault::Event { at, .. } = fault else { return false };
    let name = |path: Option<&std::ffi::OsStr>| path?.to_str().map(str::to_owned);
    let first = name(segment.file_stem()).and_then(|stem| stem.parse::<u64>().ok());
    let epoch = name(segment.parent().and_then(Path::file_name));
    epoch == Some(at.epoch.token()) && first.is_some_and(|first| first <= at.seq.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Seq;
    use crate::store::EventPos;

    #[test]
    fn one_damaged_page_is_one_error_whatever_else_follows_from_it() {
        let epoch = EpochId::new(1, 1);
        let at = EventPos { epoch, seq: Seq(9) };
        let page = |offset| Fault::Structure {
            path: "log/1/1.redb".into(),
            offset,
            why: "checksum".to_owned(),
        };
        let missing = Fault::Missing { epoch, first: Seq(3), last: Seq(5) };
        let root = Fault::Root { at, whose: "the file's" };
        let faults = [page(4096), missing.clone(), page(8192), root.clone()];
        assert_eq!(causes(&faults), [&faults[0]]);
        let event = Fault::Event { at, why: "it does not verify".to_owned() };
        let path = format!("log/{}/00000000000000000001.redb", epoch.token()).into();
        let under = Fault::Structure { path, offset: 4096, why: "checksum".to_owned() };
        let faults = [event, under, root.clone()];
        assert_eq!(causes(&faults), [&faults[0]]);
        let alone = [missing, root];
        assert_eq!(causes(&alone), [&alone[0], &alone[1]]);
    }
}
