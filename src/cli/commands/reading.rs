//! events, history, ping: what a node has to say, verified and printed.

use std::ops::ControlFlow;

use super::archive::Archive;
use super::place;
use crate::cli::args::{Events, History, Output};
use crate::cli::client::{Client, Whom, is_of_fleet};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::feed::{Feed, Turn};
use crate::cli::interrupt::Interrupts;
use crate::cli::json;
use crate::cli::json::event::{Beside, CLOUDEVENTS_DOMAIN, cloud_event, event_json};
use crate::cli::json::history::{history_json, history_jsonl, runs_jsonl};
use crate::cli::json::stream::{Control, control_json};
use crate::cli::launch;
use crate::cli::out::{Out, width};
use crate::cli::screen::event::{Stamp, event_line};
use crate::cli::screen::history::{Choice, History as Table};
use crate::cli::screen::names::Names;
use crate::cli::time;
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{EventId, FleetId, NodeId, ServiceId};
use crate::domain::text::printable;
use crate::domain::time::UnixMicros;
use crate::wire::payload::{Ask, EventRecord, Reply};

/// Whose word a history is where no agent lives.
const FROM_FILES: &str = "smgr is not up here: this is what its files say";

/// From where on events are wanted.
pub(super) enum Since {
    Beginning,
    Cursor(EventId),
    Time(UnixMicros),
}

/// Prints the raw stream of events.
pub(super) async fn events(
    context: &Context,
    args: Events,
    out: Out,
) -> Result<ExitCode, CliError> {
    let since = match args.since.as_deref() {
        Some("now") => Since::Cursor(head(context, args.fleet).await?),
        text => since(text)?,
    };
    if args.fleet || super::fleet::is_of_controller(context, &since) {
        return super::fleet::events(context, &args, since, out).await;
    }
    let node = match &since {
        Since::Cursor(cursor) => Some(cursor.origin.clone()),
        Since::Beginning | Since::Time(_) => None,
    };
    let whom = one(context, node)?;
    let after = match &since {
        Since::Cursor(cursor) => Some(cursor.clone()),
        Since::Beginning | Since::Time(_) => None,
    };
    let mut names = names(context);
    let mut client = match Client::connect(context, &whom).await {
        Ok(client) => client,
        Err(error) if args.follow => return Err(error),
        Err(error) => {
            let archive = Archive::instead(context, &whom, error)?;
            let fleet = archive.fleet.clone();
            let printer = Printer { out, fleet, service: args.service, since };
            archive.each(after.as_ref(), |_, _, record| {
                printer.event(record, &mut names);
                if out.reader_gone() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            out.note(FROM_FILES);
            return Ok(ExitCode::Done);
        }
    };
    let printer = Printer { out, fleet: client.fleet().clone(), service: args.service, since };
    let mut feed = Feed::after(after);
    let mut interrupts = Interrupts::watch()?;
    let mut is_live = false;
    loop {
        let next = feed.next(context, &whom, &mut client, is_live);
        match interrupts.guard(next).await {
            Err(_) => return Ok(ExitCode::Done), // A stream that was watched is done when one has seen enough.
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Turn::Event(record))) => printer.event(&record, &mut names),
            Ok(Ok(Turn::CaughtUp(_))) if !args.follow => return Ok(ExitCode::Done),
            Ok(Ok(Turn::CaughtUp(cursor))) => {
                printer.control(match is_live {
                    true => Control::Beat { cursor },
                    false => Control::CaughtUp { cursor },
                });
                is_live = true;
            }
        }
        if out.reader_gone() {
            return Ok(ExitCode::Done);
        }
    }
}

/// Returns the last place of a stream: the controller's, or that of the one node that is asked.
async fn head(context: &Context, fleet: bool) -> Result<EventId, CliError> {
    let silent = || CliError::new(Code::AGENT_UNREACHABLE, "nobody says where the stream is now");
    let whom = if fleet { Whom::or_everybody(context, None) } else { one(context, None)? };
    let mut client = Client::connect(context, &whom).await?;
    if fleet {
        let fleet = super::fleet::ask(&mut client).await?;
        return fleet.map(|fleet| fleet.cursor).ok_or_else(silent);
    }
    launch::status(&mut client).await.map(|status| status.head).ok_or_else(silent)
}

pub(super) struct Printer {
    pub(super) out: Out,
    pub(super) fleet: FleetId,
    pub(super) service: Option<ServiceId>,
    pub(super) since: Since,
}

impl Printer {
    fn event(&self, record: &EventRecord, names: &mut Names) {
        self.event_at(record, None, names);
    }

    /// Prints an event with its place in a stream where that is not its own name.
    pub(super) fn event_at(
        &self,
        record: &EventRecord,
        cursor: Option<&EventId>,
        names: &mut Names,
    ) {
        let is_old = matches!(self.since, Since::Time(from) if record.at < from);
        let is_other = self.service.is_some() && record.service != self.service;
        if is_old || is_other {
            return;
        }
        let beside = Beside { cursor, ..Beside::default() };
        self.out.line(&match self.out.form {
            Output::Text => event_line(record, names, Stamp::DateTime),
            Output::Json | Output::Jsonl => json::line(&event_json(record, &beside)),
            Output::Cloudevents => {
                json::line(&cloud_event(record, &beside, &self.fleet, CLOUDEVENTS_DOMAIN))
            }
        });
    }

    /// A consumer of CloudEvents expects nothing but those.
    pub(super) fn control(&self, control: Control) {
        if matches!(self.out.form, Output::Json | Output::Jsonl) {
            self.out.line(&json::line(&control_json(&control, time::now())));
        }
    }
}

/// Prints what happened, one line for each thing.
pub(super) async fn history(
    context: &Context,
    args: History,
    out: Out,
) -> Result<ExitCode, CliError> {
    let (context, selector) = &context.scoped(args.scope);
    let node = place::of(context, selector.as_ref(), "history").await?;
    let whom = one(context, node)?;
    let choice = Choice {
        selector: selector.clone(),
        // JSON leaves nothing out.
        all: args.all || !out.is_text(),
        runs: args.runs || !out.is_text(),
    };
    let named = choice.selector.as_ref().map(|selector| selector.service.clone());
    let mut is_known = named.is_none();
    let mut table = Table::new(choice, names(context));
    let mut last = None;
    let mut push = |record: &EventRecord| {
        last = Some(record.id());
        is_known |= named.is_some() && record.service == named;
        table.push(record);
    };
    match Client::connect(context, &whom).await {
        Ok(mut client) => {
            let mut feed = Feed::after(None);
            while let Turn::Event(record) = feed.next(context, &whom, &mut client, false).await? {
                push(&record);
            }
        }
        Err(error) => {
            let archive = Archive::instead(context, &whom, error)?;
            archive.each(None, |_, _, record| {
                push(record);
                ControlFlow::Continue(())
            })?;
            out.note(FROM_FILES);
        }
    }
    if let Some(service) = named.filter(|_| !is_known) {
        let what = format!("no such service: {service}; there never was one in this history");
        return Err(CliError::new(Code::NO_SUCH_SERVICE, what).next("smgr status"));
    }
    match (out.form, args.runs) {
        (Output::Text, false) => out.data(&table.text(last.as_ref(), width())),
        (Output::Text, true) => out.data(&table.runs_text(last.as_ref(), width())),
        (Output::Json, _) => out.line(&json::pretty(&history_json(&table))),
        (Output::Jsonl, false) => out.data(&history_jsonl(&table)),
        (Output::Jsonl, true) => out.data(&runs_jsonl(&table)),
        (Output::Cloudevents, _) => {
            return Err(CliError::new(Code::USAGE, "only events have the form cloudevents"));
        }
    }
    Ok(ExitCode::Done)
}

/// Asks nodes whether they are there.
pub(super) async fn ping(context: &Context, out: Out) -> Result<ExitCode, CliError> {
    let mut client = Client::connect(context, &Whom::or_everybody(context, None)).await?;
    let began = std::time::Instant::now();
    let mut pending = client.ask(Ask::Ping).await?;
    while let Some(answer) = pending.next().await? {
        let ms = began.elapsed().as_secs_f64() * 1000.0;
        match answer.reply {
            Reply::Pong { version } if out.is_text() => {
                out.line(&format!("{}   smgr {version}   {ms:.1} ms", answer.node));
            }
            Reply::Pong { version } => out.json(&serde_json::json!({
                "schema": "smgr.pong.v1", "node": answer.node.as_str(), "version": version,
                "ms": (ms * 1000.0).round() / 1000.0,
            })),
            Reply::Refused { code, why } => return Err(refused(&answer.node, &code, why)),
            _ => {}
        }
    }
    silent(pending.missing().keys())
}

/// Ends with the nodes that did not answer, if there are any.
pub(super) fn silent<'a>(missing: impl Iterator<Item = &'a NodeId>) -> Result<ExitCode, CliError> {
    let names: Vec<&str> = missing.map(NodeId::as_str).collect();
    match names.is_empty() {
        true => Ok(ExitCode::Done),
        false => Err(CliError::new(
            Code::OUTCOME_UNKNOWN,
            format!("no answer from {}", names.join(", ")),
        )),
    }
}

/// Says what a node refused, and which.
pub(super) fn refused(node: &NodeId, code: &str, why: String) -> CliError {
    let error = CliError::new(code.parse().unwrap_or(Code::INTERNAL), why).at(node.as_str());
    match error.code {
        Code::NO_SUCH_SERVICE => error.next("smgr status"),
        _ => error,
    }
}

/// A stream has one origin; that of a fleet is a controller's.
fn one(context: &Context, node: Option<NodeId>) -> Result<Whom, CliError> {
    let named = context.global.nodes.len() + usize::from(node.is_some());
    match named {
        0 | 1 => Ok(Whom::new(context, node)),
        _ => Err(CliError::not_yet("the history of several nodes at once")),
    }
}

fn since(text: Option<&str>) -> Result<Since, CliError> {
    let Some(text) = text else { return Ok(Since::Beginning) };
    if text.contains('/') {
        return cursor(text).map(Since::Cursor);
    }
    time::instant(text, time::now()).map(Since::Time).ok_or_else(|| {
        CliError::new(Code::BAD_TIME, format!("`{text}` is neither a cursor nor a time"))
            .hint("times are RFC 3339, an age such as 10m, or `now`")
    })
}

/// Where there are several nodes, names need theirs.
fn names(context: &Context) -> Names {
    match is_of_fleet(context) {
        true => Names::of_fleet(),
        false => Names::of_one_machine(),
    }
}

/// Reads a place in a stream.
pub(super) fn cursor(text: &str) -> Result<EventId, CliError> {
    text.parse().map_err(|_| {
        CliError::new(Code::BAD_CURSOR, format!("`{}` is not a cursor", printable(text)))
            .hint("a cursor is ORIGIN/EPOCH/SEQ, copied from the `cursor` of an event")
            .next("smgr events -o json")
    })
}
