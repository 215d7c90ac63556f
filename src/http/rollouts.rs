//! Rollouts: asked for by a job, followed to their end, and said how to go on. Whichever controller leads decides; an answer here
//! is its word.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::asked::{Deploy, Wish, asked_for};
use super::events::{PAGES, QUIET, STUCK, page};
use super::problem::{Problem, tell_exit};
use super::reading::{NOT_KEPT, Parameters, TASK_WITHIN, json_response, unexpected};
use super::serve::{Shared, whole_body};
use super::wishes::{Asked, unreadable};
use crate::cli::commands::rollout::{self, exit_of, result};
use crate::cli::json;
use crate::controller::Access;
use crate::domain::code::Code;
use crate::domain::id::ServiceId;
use crate::domain::intent::{Action, RolloutCommand, Verb};
use crate::domain::text;
use crate::wire::envelope::ENVELOPE_BYTES_MAX;
use crate::wire::key::digest_of;
use crate::wire::payload::{Ask, Reply};

/// The longest wait for the end of a rollout in one request, and of one question for its next fact.
const END_WITHIN: Duration = Duration::from_secs(300);
pub(super) const FACT_WITHIN: Duration = Duration::from_secs(15);

/// `POST /v1/rollouts`.
pub(super) async fn deploy(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let caller = shared.callers.find(&headers)?;
    let asked = Asked::read(query.as_deref(), &headers)?;
    let bytes = whole_body(body, ENVELOPE_BYTES_MAX).await?;
    let deploy: Deploy = serde_json::from_slice(&bytes).map_err(|error| {
        let why = text::brief(error.to_string(), text::WHY_BYTES_MAX);
        Problem::new(Code::USAGE, format!("the body was not understood: {why}"))
    })?;
    caller.may_somewhere(Verb::Deploy, Some(&deploy.service))?;
    asked_for(&shared, &caller, asked, (digest_of(&bytes), Wish::Deploy(deploy))).await
}

/// `POST /v1/rollouts/{rollout}/{command}`.
pub(super) async fn command(
    State(shared): State<Arc<Shared>>,
    Path((rollout, command)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let caller = shared.callers.find(&headers)?;
    let asked = Asked::read(query.as_deref(), &headers)?;
    let command = match command.as_str() {
        "retry" => None,
        "pause" => Some(RolloutCommand::Pause),
        "resume" => Some(RolloutCommand::Resume),
        "promote" => Some(RolloutCommand::Promote),
        "approve" => Some(RolloutCommand::Approve),
        "abort" => Some(RolloutCommand::Abort { rollback: true }),
        other => {
            let what = format!("`{other}` is no word to a rollout");
            return Err(Problem::new(Code::NO_SUCH_PATH, what)
                .hint("pause, resume, promote, approve, abort, retry"));
        }
    };
    let may = |service: Option<&ServiceId>| {
        let may_deploy = caller.may_somewhere(Verb::Deploy, service);
        may_deploy.or_else(|refused| match command {
            // Of a removal it goes on with the removal.
            None => caller.may_somewhere(Verb::Remove, service).map_err(|_| refused),
            Some(_) => Err(refused),
        })
    };
    may(None)?;
    let view = view(&shared.access, &rollout, (0, Duration::ZERO)).await?;
    let (service, of) = (rollout::service_of(&view)?, rollout::id_of(&view)?);
    may(Some(&service))?;
    let (said, wish) = match command {
        Some(command) => {
            let said = format!("{of} {command:?}");
            (said, Wish::Word(Action::Rollout { service, rollout: of, command }))
        }
        // It is a rollout of its own: on the nodes that are not healthy on the release.
        None => (format!("{of} retry"), Wish::Retry(view)),
    };
    asked_for(&shared, &caller, asked, (digest_of(said.as_bytes()), wish)).await
}

/// `GET /v1/rollouts`.
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Status)?;
    Parameters::read(query.as_deref())?.end()?;
    let document = document(&shared.access, Ask::Rollouts, TASK_WITHIN).await?;
    Ok(json_response(StatusCode::OK, &document))
}

/// `GET /v1/rollouts/{rollout}`.
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(rollout): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Status)?;
    let mut parameters = Parameters::read(query.as_deref())?;
    let wait = parameters.duration("wait")?.unwrap_or_default().min(END_WITHIN);
    parameters.end()?;
    let until = Instant::now() + wait;
    let mut seen = 0;
    loop {
        let left = until.saturating_duration_since(Instant::now()).min(FACT_WITHIN);
        let view = view(&shared.access, &rollout, (seen, left)).await?;
        if stands(&view) || Instant::now() >= until {
            let mut response = json_response(StatusCode::OK, &view);
            tell_exit(&mut response, exit_of(&view).number());
            return Ok(response);
        }
        seen = facts_of(&view);
    }
}

/// `GET /v1/rollouts/{rollout}/events`: one event a line, and the result behind its end, or where a person is awaited.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    Path(rollout): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Events)?;
    let mut parameters = Parameters::read(query.as_deref())?;
    let mut after = parameters.cursor("since")?;
    let follow = parameters.switch("follow")?;
    parameters.end()?;
    let place = shared.place()?;
    let first = view(&shared.access, &rollout, (0, Duration::ZERO)).await?;
    let name = first["rollout"].as_str().unwrap_or_default().to_owned();
    let (sender, receiver) = mpsc::channel::<String>(PAGES);
    tokio::spawn(async move {
        let _place = place;
        let (mut ended, mut wait): (Option<Value>, _) = (None, Duration::ZERO);
        loop {
            let read = tokio::select! {
                read = page(&shared, after.clone(), wait, None) => read,
                () = sender.closed() => return,
            };
            let Ok(read) = read else { return };
            let events = read.events.iter().map(|(_, event)| event);
            let of_it = events.filter(|event| event.rollout.as_ref() == Some(&name));
            let mut lines: String = of_it.map(|event| json::line(event) + "\n").collect();
            after = read.last.or(after);
            let caught_up = after.as_ref().is_none_or(|after| after.seq >= read.head.seq);
            let result = ended.take().filter(|_| caught_up).map(|view| json::line(&result(&view)));
            let is_last = result.is_some() || caught_up && !follow && wait > Duration::ZERO;
            lines.extend(result.map(|line| line + "\n"));
            if !lines.is_empty() {
                let sent = timeout(STUCK, sender.send(lines)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
            if is_last {
                return;
            }
            if caught_up {
                // What had ended by now stands in events that are here: one page more has the last of them.
                let Ok(view) = view(&shared.access, &name, (0, Duration::ZERO)).await else {
                    return;
                };
                ended = stands(&view).then_some(view);
                wait = match (&ended, follow) {
                    (None, true) => QUIET,
                    _ => Duration::from_millis(1),
                };
            }
        }
    });
    let body = stream::unfold(receiver, |mut receiver| async {
        let text = receiver.recv().await?;
        Some((Ok::<_, Infallible>(text), receiver))
    });
    let kind = (header::CONTENT_TYPE, "application/jsonl");
    Ok(([kind, NOT_KEPT], Body::from_stream(body)).into_response())
}

pub(super) fn is_over(view: &Value) -> bool {
    !view["ended_at"].is_null()
}

/// Says whether it is over, or goes on only when a person says so.
fn stands(view: &Value) -> bool {
    is_over(view) || !view["waits_for"].is_null()
}

pub(super) fn facts_of(view: &Value) -> u32 {
    view["facts"].as_u64().and_then(|facts| u32::try_from(facts).ok()).unwrap_or_default()
}

pub(super) async fn view(
    access: &Access,
    name: &str,
    (seen, wait): (u32, Duration),
) -> Result<Value, Problem> {
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    let ask = Ask::Rollout { name: name.to_owned(), seen, wait_ms };
    document(access, ask, TASK_WITHIN + wait).await
}

/// Returns the rollouts that are remembered, the last one first.
pub(super) async fn rows(access: &Access) -> Result<Vec<Value>, Problem> {
    match document(access, Ask::Rollouts, TASK_WITHIN).await?["rollouts"].take() {
        Value::Array(rows) => Ok(rows),
        _ => Ok(Vec::new()),
    }
}

async fn document(access: &Access, ask: Ask, within: Duration) -> Result<Value, Problem> {
    match access.ask(ask, within).await? {
        Reply::Piece { bytes } => Ok(serde_json::from_slice(&bytes).map_err(unreadable)?),
        reply => Err(unexpected(reply)),
    }
}
