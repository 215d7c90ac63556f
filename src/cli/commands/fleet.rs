//! What a controller says of its fleet: `smgr status` without a name, and `smgr events --fleet`.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::reading::{Printer, Since};
use crate::cli::args::{Events, Output};
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::feed::verified;
use crate::cli::interrupt::Interrupts;
use crate::cli::json;
use crate::cli::json::fleet::fleet_json;
use crate::cli::json::status::status_jsonl;
use crate::cli::json::stream::Control;
use crate::cli::out::{Out, width};
use crate::cli::screen::fleet::fleet_text;
use crate::cli::screen::names::Names;
use crate::cli::time;
use crate::cli::view::{Picture, View};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{EventId, Seq};
use crate::domain::policy::KeyClass;
use crate::head::keyfile::load_trust;
use crate::wire::payload::{Ask, EventRecord, Reply};
use crate::wire::status::FleetStatus;

/// Events that are asked for at once.
const PAGE: u32 = 500;

/// How long a controller is asked to wait for the next event, in milliseconds.
const WAIT_MS: u32 = 3_000;

/// The pause before controllers are asked again of which none answered.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Asks the controllers, one after the other, until one answers whole.
pub(super) async fn ask(client: &mut Client) -> Result<Option<FleetStatus>, CliError> {
    for controller in client.controllers() {
        let mut pending = client.ask_controller(&controller, Ask::Fleet).await?;
        let mut whole: Option<FleetStatus> = None;
        while let Some(answer) = pending.next().await? {
            match (answer.reply, &mut whole) {
                (Reply::Fleet(part), Some(whole)) => whole.add_part(*part),
                (Reply::Fleet(part), None) => whole = Some(*part),
                (Reply::Refused { code, why }, _) => {
                    return Err(super::reading::refused(&controller, &code, why));
                }
                _ => {}
            }
        }
        if pending.missing().is_empty() && whole.is_some() {
            return Ok(whole);
        }
    }
    Ok(None)
}

/// Prints the fleet. A question was answered, whatever the answer is.
pub(super) fn print(
    fleet: &FleetStatus,
    rollouts: &[Value],
    out: Out,
) -> Result<ExitCode, CliError> {
    let now = time::now();
    let picture = Picture::of(fleet);
    let view = View { in_fleet: true, ..picture.view() };
    match out.form {
        Output::Text => out.data(&fleet_text(fleet, rollouts, now, width())),
        Output::Json => out.line(&json::pretty(&fleet_json(fleet, rollouts, &view, now))),
        Output::Jsonl => out.data(&status_jsonl(&view)),
        Output::Cloudevents => {
            return Err(CliError::new(Code::USAGE, "only events have the form cloudevents"));
        }
    }
    Ok(ExitCode::Done)
}

/// Says whether a cursor is one of a controller's stream.
pub(super) fn is_of_controller(context: &Context, since: &Since) -> bool {
    let Since::Cursor(cursor) = since else { return false };
    load_trust(&context.folder).is_ok_and(|(_, ring)| {
        ring.iter().any(|(_, holder)| {
            holder.class == KeyClass::Controller && holder.name.as_str() == cursor.origin.as_str()
        })
    })
}

/// A run of the stream.
pub(super) struct Page {
    pub(super) events: Vec<(EventId, EventRecord)>,
    pub(super) head: EventId,
    /// Up to here events may have been given out before.
    again: Option<EventId>,
}

/// Prints the stream of all events of the fleet.
pub(super) async fn events(
    context: &Context,
    args: &Events,
    since: Since,
    out: Out,
) -> Result<ExitCode, CliError> {
    let mut after = match &since {
        Since::Cursor(cursor) => Some(cursor.clone()),
        Since::Beginning | Since::Time(_) => None,
    };
    let whom = Whom::or_everybody(context, None);
    let mut client = Client::connect(context, &whom).await?;
    let fleet = client.fleet().clone();
    let printer = Printer { out, fleet, service: args.service.clone(), since };
    let mut interrupts = Interrupts::watch()?;
    let (mut names, mut is_live) = (Names::of_fleet(), false);
    loop {
        let wait_ms = if is_live { WAIT_MS } else { 0 };
        let page = match interrupts.guard(read(&mut client, after.clone(), wait_ms)).await {
            Err(_) => return Ok(ExitCode::Done), // One has seen enough.
            Ok(page) => page?,
        };
        let Some(page) = page else {
            if !args.follow {
                return Err(CliError::new(Code::AGENT_UNREACHABLE, "no controller answers")
                    .hint("one node tells of itself: smgr events --node NODE"));
            }
            if interrupts.guard(sleep(ASK_AGAIN)).await.is_err() {
                return Ok(ExitCode::Done);
            }
            continue;
        };
        if let Some(until) = page.again {
            out.note(&format!(
                "another controller answers: events up to {until} may have been told before"
            ));
            if args.follow {
                printer.control(Control::Again { until });
            }
        }
        let is_empty = page.events.is_empty();
        for (cursor, record) in page.events {
            printer.event_at(&record, Some(&cursor), &mut names);
            after = Some(cursor);
        }
        if out.reader_gone() {
            return Ok(ExitCode::Done);
        }
        let caught_up = after.as_ref().is_none_or(|after| after.seq >= page.head.seq);
        if caught_up && !args.follow {
            return Ok(ExitCode::Done);
        }
        if caught_up && (is_empty || !is_live) {
            let cursor = after.clone();
            printer.control(match is_live {
                true => Control::Beat { cursor },
                false => Control::CaughtUp { cursor },
            });
            is_live = true;
        }
    }
}

/// Reads a page of the controller that the cursor is of, or of the first that answers.
pub(super) async fn read(
    client: &mut Client,
    after: Option<EventId>,
    wait_ms: u32,
) -> Result<Option<Page>, CliError> {
    let ring = client.ring().clone();
    let mut controllers = client.controllers();
    if let Some(after) = &after {
        controllers.sort_by_key(|controller| *controller != after.origin);
    }
    for controller in controllers {
        let ask = Ask::Arrivals { after: after.clone(), events_max: PAGE, wait_ms };
        let mut pending = client.ask_controller(&controller, ask).await?;
        while let Some(answer) = pending.next().await? {
            match answer.reply {
                Reply::Arrivals { epoch, first, rows, head, again } => {
                    let place = |seq| EventId { origin: controller.clone(), epoch, seq: Seq(seq) };
                    let events = rows
                        .iter()
                        .zip(first.0..)
                        .map(|(row, seq)| Ok((place(seq), verified(row, &ring)?)))
                        .collect::<Result<_, CliError>>()?;
                    let again = (again > 0).then(|| place(u64::from(again)));
                    return Ok(Some(Page { events, head, again }));
                }
                Reply::Refused { code, why } => {
                    return Err(super::reading::refused(&controller, &code, why));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}
