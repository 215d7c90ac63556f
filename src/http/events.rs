//! The stream of all events of the fleet, in the order in which they reached this controller: server-sent events that go
//! on exactly behind a cursor, or a page at a time with waiting.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::problem::Problem;
use super::reading::{
    NOT_KEPT, Parameters, TASK_WITHIN, cursor_of, event_of, json_response, unexpected,
};
use super::serve::Shared;
use crate::cli::json;
use crate::cli::json::event::{Beside, EventDocument, event_json};
use crate::cli::json::stream::{Control, control_json};
use crate::cli::time;
use crate::domain::code::Code;
use crate::domain::id::{EventId, Seq, ServiceId};
use crate::domain::intent::Verb;
use crate::wire::payload::{Ask, Reply};

/// Events of one page.
const PAGE: u32 = 500;

/// How long a follower hears nothing before it is told that nothing happened.
pub(super) const QUIET: Duration = Duration::from_secs(15);

/// The longest wait for a page, and the one that is used when none is asked for.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a follower may take to take a page. It comes back with its cursor.
pub(super) const STUCK: Duration = Duration::from_secs(30);

/// Pages that wait for a follower.
pub(super) const PAGES: usize = 2;

/// A page of the stream, as it is answered.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct EventsDocument {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    schema: &'static str,
    /// In the order in which they reached this controller.
    events: Vec<EventDocument>,
    /// What to send back as `since` for the next page; null where there was nothing yet.
    cursor: Option<String>,
    /// The last place of the stream.
    head: String,
    /// Up to here events may have been told before: the cursor was another controller's.
    again_until: Option<String>,
}

impl EventsDocument {
    /// The word by which the document is known.
    pub(super) const SCHEMA: &'static str = "smgr.events.v1";
}

/// One page of the stream.
pub(super) struct Page {
    pub(super) events: Vec<(EventId, EventDocument)>,
    /// The last place of the page, with those that were left out.
    pub(super) last: Option<EventId>,
    pub(super) head: EventId,
    /// Up to here events may have been given out before: the cursor was another controller's.
    again: Option<EventId>,
}

/// `GET /v1/events`.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Events)?;
    let mut parameters = Parameters::read(query.as_deref())?;
    let since = parameters.cursor("since")?;
    let wait = parameters.duration("wait")?;
    let service: Option<ServiceId> = parameters.parsed("service", Code::NO_SUCH_SERVICE)?;
    parameters.end()?;
    // What a client says when it comes back counts more than where it once began.
    let seen = headers.get("last-event-id").and_then(|seen| seen.to_str().ok());
    let since = match seen.filter(|seen| !seen.is_empty()) {
        Some(seen) => Some(cursor_of(seen)?),
        None => since,
    };
    let accepts = headers.get(header::ACCEPT).and_then(|kinds| kinds.to_str().ok());
    match accepts.is_some_and(|kinds| kinds.contains("text/event-stream")) {
        true => follow(shared, since, service).await,
        false => {
            let wait = wait.unwrap_or_default().min(WAIT_MAX);
            let page = page(&shared, since.clone(), wait, service.as_ref()).await?;
            let cursor = page.last.as_ref().or(since.as_ref()).map(ToString::to_string);
            let document = EventsDocument {
                schema: EventsDocument::SCHEMA,
                events: page.events.into_iter().map(|(_, event)| event).collect(),
                cursor,
                head: page.head.to_string(),
                again_until: page.again.map(|until| until.to_string()),
            };
            Ok(json_response(StatusCode::OK, &document))
        }
    }
}

pub(super) async fn page(
    shared: &Shared,
    after: Option<EventId>,
    wait: Duration,
    service: Option<&ServiceId>,
) -> Result<Page, Problem> {
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    let ask = Ask::Arrivals { after, events_max: PAGE, wait_ms };
    let (epoch, first, rows, head, again) = match shared.access.ask(ask, TASK_WITHIN + wait).await?
    {
        Reply::Arrivals { epoch, first, rows, head, again } => (epoch, first, rows, head, again),
        reply => return Err(unexpected(reply)),
    };
    let place = |seq| EventId { origin: shared.access.controller().clone(), epoch, seq: Seq(seq) };
    let last = rows.len().checked_sub(1).map(|count| place(first.0 + count as u64));
    let mut events = Vec::with_capacity(rows.len());
    for (row, seq) in rows.iter().zip(first.0..) {
        let (record, cursor) = (event_of(row)?, place(seq));
        if service.is_none() || record.service.as_ref() == service {
            let beside = Beside { cursor: Some(&cursor), ..Beside::default() };
            let event = event_json(&record, &beside);
            events.push((cursor, event));
        }
    }
    let again = (again > 0).then(|| place(u64::from(again)));
    Ok(Page { events, last, head, again })
}

/// Begins a stream that ends when the client goes, or does not take what it is sent.
async fn follow(
    shared: Arc<Shared>,
    since: Option<EventId>,
    service: Option<ServiceId>,
) -> Result<Response, Problem> {
    let place = shared.place()?;
    // A cursor that is none is told before there is a stream.
    let first = page(&shared, since.clone(), Duration::ZERO, service.as_ref()).await?;
    let (sender, receiver) = mpsc::channel(PAGES);
    tokio::spawn(async move {
        feed(&shared, (since, first), service.as_ref(), &sender).await;
        drop(place);
    });
    let body = stream::unfold(receiver, |mut receiver| async {
        let text: String = receiver.recv().await?;
        Some((Ok::<_, Infallible>(text), receiver))
    });
    // Proxies would otherwise hold it back until it is worth a packet.
    let unheld = (HeaderName::from_static("x-accel-buffering"), "no");
    let kind = (header::CONTENT_TYPE, "text/event-stream");
    Ok(([kind, NOT_KEPT, unheld], Body::from_stream(body)).into_response())
}

async fn feed(
    shared: &Shared,
    (mut after, mut next): (Option<EventId>, Page),
    service: Option<&ServiceId>,
    to: &mpsc::Sender<String>,
) {
    let mut text = "retry: 1000\n\n".to_owned();
    let mut is_live = false;
    loop {
        if let Some(until) = next.again {
            text.push_str(&control(&control_json(&Control::Again { until }, time::now())));
        }
        for (cursor, event) in &next.events {
            text.push_str(&format!("id: {cursor}\ndata: {}\n\n", json::line(event)));
        }
        let is_empty = next.last.is_none();
        if let Some(last) = next.last {
            // Behind what was left out, too.
            if next.events.last().is_none_or(|(cursor, _)| *cursor != last) {
                text.push_str(&format!("id: {last}\n\n"));
            }
            after = Some(last);
        }
        let caught_up = after.as_ref().is_none_or(|after| after.seq >= next.head.seq);
        if caught_up && (is_empty || !is_live) {
            let cursor = after.clone();
            let said = match is_live {
                true => Control::Beat { cursor },
                false => Control::CaughtUp { cursor },
            };
            text.push_str(&control(&control_json(&said, time::now())));
            is_live = true;
        }
        let sent = timeout(STUCK, to.send(std::mem::take(&mut text))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        let wait = if is_live { QUIET } else { Duration::ZERO };
        let read = tokio::select! {
            read = page(shared, after.clone(), wait, service) => read,
            () = to.closed() => return,
        };
        match read {
            Ok(page) => next = page,
            // The client comes back with its cursor.
            Err(problem) => {
                tracing::debug!(?problem, "a stream ends");
                return;
            }
        }
    }
}

/// Returns what the stream says of itself, under a name of its own.
fn control(document: &Value) -> String {
    format!("event: stream\ndata: {}\n\n", json::line(document))
}
