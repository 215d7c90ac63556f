//! Readings: the fleet, a node, a history, and whether anybody is at home. The documents are those of the command line.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::problem::Problem;
use super::rollouts::rows;
use super::serve::Shared;
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::json::fleet::fleet_json;
use crate::cli::json::history::{HistoryAsOf, HistoryDocument, history_json};
use crate::cli::screen::history::{Choice, History};
use crate::cli::screen::names::Names;
use crate::cli::selector::Selector;
use crate::cli::time;
use crate::cli::view::{Picture, View};
use crate::controller::Access;
use crate::domain::code::Code;
use crate::domain::id::{EventId, NodeId, Seq};
use crate::domain::intent::Verb;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::payload::{Ask, EventRecord, Reply};
use crate::wire::status::FleetStatus;

/// How long the controller's task may take to answer.
pub(super) const TASK_WITHIN: Duration = Duration::from_secs(5);

/// Events of one history. More are asked for from the cursor on.
const EVENTS_MAX: usize = 50_000;

/// Events that are read at once.
const PAGE: u32 = 1000;

/// `GET /healthz`: this thread answers.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the controller answers and has a bus.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Result<&'static str, Problem> {
    shared.access.ask(Ask::Ping, TASK_WITHIN).await?;
    match shared.access.has_bus() {
        true => Ok("ready\n"),
        false => Err(Problem::new(Code::BUS_UNREACHABLE, "the bus is away")),
    }
}

/// `GET /v1/status`.
pub(super) async fn status(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Status)?;
    let mut parameters = Parameters::read(query.as_deref())?;
    let selector: Option<Selector> = parameters.parsed("selector", Code::BAD_SELECTOR)?;
    parameters.end()?;
    let rollouts = rows(&shared.access).await?;
    Ok(shown(&fleet(&shared.access).await?, &rollouts, selector.as_ref(), false))
}

/// `GET /v1/nodes/{node}`.
pub(super) async fn node(
    State(shared): State<Arc<Shared>>,
    Path(node): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Status)?;
    Parameters::read(query.as_deref())?.end()?;
    let mut fleet = fleet(&shared.access).await?;
    fleet.nodes.retain(|known| known.node.as_str() == node);
    match fleet.nodes.is_empty() {
        true => Err(Problem::new(Code::NO_SUCH_NODE, "there is no such node in this fleet")),
        false => Ok(shown(&fleet, &rows(&shared.access).await?, None, true)),
    }
}

/// Shows a fleet, or the one node of it that was named.
fn shown(
    fleet: &FleetStatus,
    rollouts: &[Value],
    selector: Option<&Selector>,
    named: bool,
) -> Response {
    let picture = Picture::of(fleet);
    let view = View { selector, named, in_fleet: true, ..picture.view() };
    json_response(StatusCode::OK, &fleet_json(fleet, rollouts, &view, time::now()))
}

/// `GET /v1/history?node=NODE`: from the controller's copy of that node's log.
pub(super) async fn history(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Events)?;
    let mut parameters = Parameters::read(query.as_deref())?;
    let node = parameters.take("node");
    let selector: Option<Selector> = parameters.parsed("service", Code::BAD_SELECTOR)?;
    let since = parameters.cursor("since")?;
    parameters.end()?;
    let Some(node) = node else {
        return Err(CliError::not_yet("the history of several nodes at once")
            .hint("name one: ?node=n1")
            .into());
    };
    let origin: NodeId =
        node.parse().map_err(|error| CliError::from_error(Code::NO_SUCH_NODE, &error))?;
    let choice = Choice { selector, all: true, runs: true };
    let mut history = History::new(choice, Names::of_one_machine());
    let (mut last, mut count) = (since, 0);
    let is_complete = loop {
        let ask = Ask::Copy { origin: origin.clone(), after: last.clone(), events_max: PAGE };
        let (epoch, first, rows, head) = match shared.access.ask(ask, TASK_WITHIN).await? {
            Reply::Range { epoch, first, rows, head } => (epoch, first, rows, head),
            reply => return Err(unexpected(reply)),
        };
        if rows.is_empty() {
            break true;
        }
        count += rows.len();
        for (row, seq) in rows.iter().zip(first.0..) {
            history.push(&event_of(row)?);
            last = Some(EventId { origin: origin.clone(), epoch, seq: Seq(seq) });
        }
        if last.as_ref() == Some(&head) || count >= EVENTS_MAX {
            break last.as_ref() == Some(&head);
        }
    };
    let as_of = HistoryAsOf {
        source: shared.access.controller().clone(),
        cursor: last.as_ref().map(ToString::to_string),
        complete: is_complete,
    };
    let document = HistoryDocument { as_of: Some(as_of), ..history_json(&history) };
    Ok(json_response(StatusCode::OK, &document))
}

/// Returns the fleet as the controller knows it.
pub(super) async fn fleet(access: &Access) -> Result<FleetStatus, Problem> {
    match access.ask(Ask::Fleet, TASK_WITHIN).await? {
        Reply::Fleet(fleet) => Ok(*fleet),
        reply => Err(unexpected(reply)),
    }
}

/// Returns the problem that stands in an answer of the controller's task.
pub(super) fn unexpected(reply: Reply) -> Problem {
    match reply {
        Reply::Refused { code, why } => Problem::new(code.parse().unwrap_or(Code::INTERNAL), why),
        _ => Problem::new(Code::INTERNAL, "the controller answered something else"),
    }
}

/// Reads an event that the controller verified when it took it in.
pub(super) fn event_of(envelope: &[u8]) -> Result<EventRecord, Problem> {
    let broken = |why: String| Problem::new(Code::INTERNAL, format!("a copied event: {why}"));
    let sealed =
        envelope::read(envelope, envelope.len()).map_err(|error| broken(error.to_string()))?;
    codec::decode(sealed.unverified_payload()).map_err(|error| broken(error.to_string()))
}

/// Returns a document.
pub(super) fn json_response(status: StatusCode, document: &impl Serialize) -> Response {
    let kind = (header::CONTENT_TYPE, "application/json");
    (status, [kind, NOT_KEPT], json::line(document) + "\n").into_response()
}

/// What is read here is old in a moment.
pub(super) const NOT_KEPT: (header::HeaderName, &str) = (header::CACHE_CONTROL, "no-cache");

/// The parameters of a request, each of which may stand once and has to be known.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads what stands behind the `?`.
    pub(super) fn read(query: Option<&str>) -> Result<Self, Problem> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(Problem::new(Code::USAGE, format!("`{name}` stands twice")));
            }
            parameters.push((name, value));
        }
        Ok(Self(parameters))
    }

    /// Takes one out.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Takes one out and reads it; what does not read is an error of this code.
    pub(super) fn parsed<T>(&mut self, name: &str, code: Code) -> Result<Option<T>, Problem>
    where
        T: FromStr<Err: std::error::Error + 'static>,
    {
        let read = self.take(name).map(|text| text.parse()).transpose();
        Ok(read.map_err(|error| CliError::from_error(code, &error))?)
    }

    /// Takes a switch out: `1` or `0`, which is as if it were absent.
    pub(super) fn switch(&mut self, name: &str) -> Result<bool, Problem> {
        match self.take(name).as_deref() {
            Some("1") => Ok(true),
            Some("0") | None => Ok(false),
            Some(_) => Err(Problem::new(Code::USAGE, format!("`{name}` is 1 or 0"))),
        }
    }

    /// Takes a length of time out.
    pub(super) fn duration(&mut self, name: &str) -> Result<Option<Duration>, Problem> {
        let read = |text: String| {
            time::duration(&text).ok_or_else(|| {
                Problem::new(Code::BAD_TIME, format!("`{name}` is written 500ms, 30s or 1m"))
            })
        };
        self.take(name).map(read).transpose()
    }

    /// Takes a cursor out.
    pub(super) fn cursor(&mut self, name: &str) -> Result<Option<EventId>, Problem> {
        self.take(name).map(|text| cursor_of(&text)).transpose()
    }

    /// Says that nothing else is known.
    pub(super) fn end(self) -> Result<(), Problem> {
        match self.0.first() {
            Some((name, _)) => {
                Err(Problem::new(Code::USAGE, format!("`{name}` is no parameter of this")))
            }
            None => Ok(()),
        }
    }
}

/// Reads a cursor.
pub(super) fn cursor_of(text: &str) -> Result<EventId, Problem> {
    text.parse().map_err(|_| Problem::new(Code::BAD_CURSOR, "a cursor is ORIGIN/EPOCH/SEQ"))
}

/// Undoes percent encoding.
fn decoded(text: &str) -> Result<String, Problem> {
    let broken = || Problem::new(Code::USAGE, "the query is not encoded as one is");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let pair = digit().zip(digit()).ok_or_else(broken)?;
                u8::try_from(pair.0 * 16 + pair.1).map_err(|_| broken())?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_is_unknown_broken_or_stands_twice_is_refused() {
        let read = |query: &str| {
            let mut parameters = Parameters::read(Some(query))?;
            let wait = parameters.duration("wait")?;
            parameters.end().map(|()| wait)
        };
        assert_eq!(read("wait=1m30s").unwrap(), Some(Duration::from_secs(90)));
        assert_eq!(read("").unwrap(), None);
        for query in ["wait=30", "wait=1s&wait=2s", "wiat=1s", "wait=%zz", "wait=%c3", "wait=%3"] {
            assert!(read(query).is_err(), "{query}");
        }
        assert_eq!(decoded("c1%2Fx%2f9+a").unwrap(), "c1/x/9 a");
    }
}
