//! Going with a rollout to its end: lines for people, events for programs, and the exit code in the end.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Ready, add_tails, document, exit_of, read};
use crate::cli::args::Output;
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::interrupt::Interrupts;
use crate::cli::json;
use crate::cli::json::error::ResultDocument;
use crate::cli::json::event::{Beside, EventDocument, event_json};
use crate::cli::out::Out;
use crate::cli::screen::rollout::{Progress, next_commands, under_way};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::EventId;
use crate::wire::payload::Ask;

/// How long a controller is asked to wait for the next fact, in milliseconds.
const WAIT_MS: u32 = 3_000;

/// How long whoever watches hears nothing.
const QUIET: Duration = Duration::from_secs(30);

/// How long a node is asked for the last lines of what failed there.
const TAILS_WITHIN: Duration = Duration::from_secs(2);

/// The pause before controllers are asked again of which none answered.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// How long the last event of a rollout is waited for that is over, and at a time, in milliseconds.
const LAST_EVENT_WITHIN: Duration = Duration::from_secs(5);
const LAST_EVENT_WAIT_MS: u32 = 1_000;

/// Goes with a rollout to its end, or until it waits for a person. A pause that somebody asked for is waited through.
pub(super) async fn watch(
    context: &Context,
    mut client: Client,
    (name, mut events): (String, Option<Events>),
    out: Out,
) -> Result<ExitCode, CliError> {
    let mut interrupts = Interrupts::watch()?;
    let deadline = context.global.timeout.map(|timeout| Instant::now() + timeout);
    let mut progress = Progress::default();
    let mut said = Instant::now();
    let mut facts = 0;
    loop {
        let ask = Ask::Rollout { name: name.clone(), seen: facts, wait_ms: WAIT_MS };
        let next = interrupts.guard(next(&mut client, &ask, deadline)).await;
        let mut view = match next {
            Err(interrupted) => {
                out.note(&format!("{name} goes on without you: smgr rollout watch {name}"));
                return Ok(interrupted.exit());
            }
            Ok(Err(Lost::Over)) => {
                out.note(&format!("{name} is still under way: smgr rollout watch {name}"));
                return Ok(ExitCode::StillRunning);
            }
            Ok(Err(Lost::Error(error))) => return Err(error),
            Ok(Ok(view)) => view,
        };
        facts = facts_of(&view);
        let is_last = !view["ended_at"].is_null() || !view["waits_for"].is_null();
        if out.is_text() && is_last {
            // No later picture has them, and the controller may still be asking for them.
            drop(timeout(TAILS_WITHIN, add_tails(context, &mut view)).await);
        }
        let news = progress.news(&view);
        if out.is_text() && !news.is_empty() {
            out.data(&news);
            said = Instant::now();
        } else if out.is_text() && said.elapsed() >= QUIET {
            out.note(&under_way(&view));
            said = Instant::now();
        }
        if let Some(events) = &mut events {
            events.print(&mut client, &view, out).await?;
        }
        let exit = exit_of(&view);
        let waits = exit == ExitCode::Waits;
        if view["ended_at"].is_null() && !waits {
            continue;
        }
        if !out.is_text() {
            out.json(&result(&view));
        } else if waits {
            out.note(&format!("it waits for a person: smgr rollout show {name}"));
            out.note(&format!("to go on: {}", next_commands(&view)));
            out.note(&format!("to watch it again: smgr rollout watch {name}"));
        } else if exit != ExitCode::Done {
            out.note(&format!("why: smgr rollout show {name}"));
        }
        return Ok(exit);
    }
}

/// Waits until no rollout of the service is under way, as far as this one was told of them; not beyond the time that the
/// command has.
pub(super) async fn turn_comes(
    context: &Context,
    client: &mut Client,
    ready: &Ready,
    out: Out,
) -> Result<bool, CliError> {
    let deadline = context.global.timeout.map(|timeout| Instant::now() + timeout);
    let is_open =
        |row: &&Value| row["service"] == ready.service.as_str() && row["ended_at"].is_null();
    let Some(row) = ready.rows.iter().find(is_open) else {
        // It began behind the list.
        sleep(ASK_AGAIN).await;
        return Ok(true);
    };
    let name = row["rollout"].as_str().unwrap_or_default().to_owned();
    out.note(&format!("waits for the end of {name}; nothing was begun"));
    let (mut seen, mut waits) = (0, false);
    loop {
        let ask = Ask::Rollout { name: name.clone(), seen, wait_ms: WAIT_MS };
        let view = match next(client, &ask, deadline).await {
            Ok(view) => view,
            Err(Lost::Over) => return Ok(false),
            Err(Lost::Error(error)) => return Err(error),
        };
        if !view["ended_at"].is_null() {
            return Ok(true);
        }
        let before = std::mem::replace(&mut waits, !view["waits_for"].is_null());
        if waits && !before {
            out.note(&format!("{name} waits for a person: {}", next_commands(&view)));
        }
        seen = facts_of(&view);
    }
}

/// The events of a rollout and of its service, for `-o jsonl`.
pub(super) struct Events {
    /// Behind which event; absent before the first picture, whose time is the beginning then.
    after: Option<EventId>,
}

impl Events {
    /// Returns them where lines are wanted.
    pub(super) fn wanted(out: Out) -> Option<Self> {
        (out.form == Output::Jsonl).then_some(Self { after: None })
    }

    /// Begins with what happens from here on.
    pub(super) async fn from_here(client: &mut Client, out: Out) -> Result<Option<Self>, CliError> {
        if Self::wanted(out).is_none() {
            return Ok(None);
        }
        let after = cursor_of(&document(client, &Ask::Rollouts).await?);
        Ok(Some(Self { after }))
    }

    /// Prints what has happened since; where the rollout is over, until its last event was seen.
    async fn print(&mut self, client: &mut Client, view: &Value, out: Out) -> Result<(), CliError> {
        let is_over = !view["ended_at"].is_null();
        if self.after.is_none() {
            self.after = cursor_of(view);
            return Ok(());
        }
        let until = Instant::now() + LAST_EVENT_WITHIN;
        loop {
            let wait_ms = if is_over { LAST_EVENT_WAIT_MS } else { 0 };
            let page =
                crate::cli::commands::fleet::read(client, self.after.clone(), wait_ms).await?;
            let Some(page) = page else { return Ok(()) };
            let mut is_last = !is_over;
            for (cursor, record) in page.events {
                let event =
                    event_json(&record, &Beside { cursor: Some(&cursor), ..Beside::default() });
                if is_about(&event, view) {
                    is_last |= event.r#type == "rollout.ended";
                    out.line(&json::line(&event));
                }
                self.after = Some(cursor);
            }
            let caught_up = self.after.as_ref().is_none_or(|after| after.seq >= page.head.seq);
            if caught_up && is_last || Instant::now() > until {
                return Ok(());
            }
        }
    }
}

fn cursor_of(document: &Value) -> Option<EventId> {
    document["as_of"]["cursor"].as_str()?.parse().ok()
}

fn is_about(event: &EventDocument, view: &Value) -> bool {
    let is_of_node = ["instance.", "release."].iter().any(|begin| event.r#type.starts_with(begin));
    let is_of_service = event.service.as_ref().is_some_and(|it| view["service"] == it.as_str());
    event.rollout.as_deref() == view["rollout"].as_str() || is_of_node && is_of_service
}

fn facts_of(view: &Value) -> u32 {
    view["facts"].as_u64().and_then(|it| u32::try_from(it).ok()).unwrap_or_default()
}

/// Why there is no next picture.
enum Lost {
    Over,
    Error(CliError),
}

async fn next(client: &mut Client, ask: &Ask, deadline: Option<Instant>) -> Result<Value, Lost> {
    let asked = async {
        loop {
            match client.ask_for_whole(ask).await {
                Ok(Some(bytes)) => return read(&bytes).map_err(Lost::Error),
                // A controller that has just begun may not have heard of it yet; the others have.
                Ok(None) => {}
                Err(error) if error.code == Code::NO_SUCH_ROLLOUT => {
                    if matches!(ask, Ask::Rollout { seen: 0, .. }) {
                        return Err(Lost::Error(error));
                    }
                }
                Err(error) => return Err(Lost::Error(error)),
            }
            sleep(ASK_AGAIN).await;
        }
    };
    match deadline {
        None => asked.await,
        Some(deadline) => timeout_at(deadline, asked).await.unwrap_or(Err(Lost::Over)),
    }
}

/// Returns the last line of `-o jsonl`, of a rollout that is over or waits for a person.
pub(crate) fn result(view: &Value) -> ResultDocument {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = |name: &str| view[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let has_returned = view["state"] == "rolled_back";
    let version = Some(&view["from"]["version"]).filter(|_| has_returned);
    ResultDocument {
        rollout: text(&view["rollout"]),
        intent: text(&view["id"]),
        changed: view["changed"].as_bool(),
        cursor: text(&view["as_of"]["cursor"]),
        why: list("why").first().and_then(|link| text(&link["text"])),
        answered: list("nodes").len(),
        missing: list("unreachable").iter().filter_map(|it| it.as_str()?.parse().ok()).collect(),
        rolled_back_to: Some(version.and_then(text)),
        ..ResultDocument::new(text(&view["state"]).unwrap_or_default(), exit_of(view))
    }
}
