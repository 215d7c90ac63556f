//! The one table of what can be asked: the router and the OpenAPI document are made from it.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};

use super::asked::AskedDocument;
use super::events::EventsDocument;
use super::problem::Problem;
use super::serve::Shared;
use super::{events, metrics, reading, rollouts, wishes};
use crate::cli::json::error::ResultDocument;
use crate::cli::json::history::HistoryDocument;
use crate::cli::json::status::StatusDocument;
use crate::domain::code::Code;
use crate::domain::rollout::view::{RolloutView, RolloutsView};

/// The document that a test keeps equal to the table and the types.
const OPENAPI: &str = include_str!("../../schemas/openapi.json");

/// Something that can be asked.
#[cfg_attr(not(test), expect(dead_code, reason = "most of it is for the document"))]
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// What it is, in a line.
    pub(super) what: &'static str,
    /// Whether a bearer token is needed.
    pub(super) by_token: bool,
    /// The parameters behind `?`, each with what it is.
    pub(super) query: &'static [(&'static str, &'static str)],
    /// Headers that it takes.
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// What is sent.
    pub(super) body: Sent,
    /// The kinds of what is answered, each with its `schema` member where it is a document.
    pub(super) answers: &'static [(&'static str, &'static str)],
    handler: fn() -> MethodRouter<Arc<Shared>>,
}

/// What a request has to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Nothing.
    Nothing,
    /// See [`wishes::Wish`].
    Wish,
    /// A signed intent.
    Envelope,
    /// See [`asked::Deploy`].
    Deploy,
}

const WAIT: (&str, &str) =
    ("wait", "How long the outcome is waited for: `30s`, `1m`; at most 5m. Default 60s.");
const TURN: (&str, &str) = (
    "wait",
    "With `on_conflict` = `queue`: how long its turn is waited for, at most 5m. Default 60s.",
);
const SINCE: (&str, &str) =
    ("since", "The cursor of the last event that the client has; what follows it is answered.");
const KEY: (&str, &str) = (
    "Idempotency-Key",
    "Names the request: sent again with the same key it is the same wish, and is answered with its first result.",
);
const JSON: &str = "application/json";

/// Everything that can be asked.
pub(super) const ROUTES: &[Route] = &[
    Route {
        method: "get",
        path: "/healthz",
        what: "Whether the HTTP face answers.",
        by_token: false,
        query: &[],
        headers: &[],
        body: Sent::Nothing,
        answers: &[("text/plain", "")],
        handler: || get(reading::health),
    },
    Route {
        method: "get",
        path: "/readyz",
        what: "Whether the controller answers and has a bus.",
        by_token: false,
        query: &[],
        headers: &[],
        body: Sent::Nothing,
        answers: &[("text/plain", "")],
        handler: || get(reading::ready),
    },
    Route {
        method: "get",
        path: "/metrics",
        what: "Metrics of controller, nodes and services in the text format of Prometheus.",
        by_token: false,
        query: &[],
        headers: &[],
        body: Sent::Nothing,
        answers: &[("text/plain", "")],
        handler: || get(metrics::metrics),
    },
    Route {
        method: "get",
        path: "/openapi.json",
        what: "This document.",
        by_token: false,
        query: &[],
        headers: &[],
        body: Sent::Nothing,
        answers: &[(JSON, "")],
        handler: || get(|| async { ([(header::CONTENT_TYPE, JSON)], OPENAPI) }),
    },
    Route {
        method: "get",
        path: "/v1/status",
        what: "What runs, what not, why: the document of `smgr status -o json`.",
        by_token: true,
        query: &[("selector", "SERVICE, SERVICE/INSTANCE or SERVICE@NODE.")],
        headers: &[],
        body: Sent::Nothing,
        answers: &[(JSON, StatusDocument::SCHEMA)],
        handler: || get(reading::status),
    },
    Route {
        method: "get",
        path: "/v1/nodes/{node}",
        what: "The same for one node.",
        by_token: true,
        query: &[],
        headers: &[],
        body: Sent::Nothing,
        answers: &[(JSON, StatusDocument::SCHEMA)],
        handler: || get(reading::node),
    },
    Route {
        method: "get",
        path: "/v1/history",
        what: "What happened on a node, from the controller's copy of its log: the document of `smgr history -o json`.",
        by_token: true,
        query: &[
            ("node", "Which node."),
            ("service", "SERVICE or SERVICE/INSTANCE."),
            ("since", "A cursor of that node's log, behind which to begin."),
        ],
        headers: &[],
        body: Sent::Nothing,
        answers: &[(JSON, HistoryDocument::SCHEMA)],
        handler: || get(reading::history),
    },
    Route {
        method: "get",
        path: "/v1/events",
        what: "All events of the fleet, in the order in which they reached this controller: a page, or with `Accept: \
               text/event-stream` a stream that goes on. Nothing is missed behind a cursor; what may have been told \
               before is marked by the last cursor of it (`again_until`, `stream.again`).",
        by_token: true,
        query: &[
            SINCE,
            ("wait", "For a page: how long the first event is waited for, at most 30s."),
            ("service", "Only what is about this service."),
        ],
        headers: &[("Last-Event-ID", "As `since`, and before it: what an EventSource sends.")],
        body: Sent::Nothing,
        answers: &[(JSON, EventsDocument::SCHEMA), ("text/event-stream", "")],
        handler: || get(events::events),
    },
    Route {
        method: "post",
        path: "/v1/services/{service}/{verb}",
        what: "Start, stop, restart or reload a service on nodes.",
        by_token: true,
        query: &[WAIT],
        headers: &[KEY],
        body: Sent::Wish,
        answers: &[(JSON, ResultDocument::SCHEMA)],
        handler: || post(wishes::service),
    },
    Route {
        method: "post",
        path: "/v1/actions/{service}/{action}",
        what: "Run an action that a service declares on nodes.",
        by_token: true,
        query: &[WAIT],
        headers: &[KEY],
        body: Sent::Wish,
        answers: &[(JSON, ResultDocument::SCHEMA)],
        handler: || post(wishes::action),
    },
    Route {
        method: "post",
        path: "/v1/intents",
        what: "Bring an intent that was signed elsewhere to the nodes that it names, or to the controller that leads.",
        by_token: false,
        query: &[WAIT],
        headers: &[],
        body: Sent::Envelope,
        answers: &[(JSON, ResultDocument::SCHEMA), (JSON, AskedDocument::SCHEMA)],
        handler: || post(wishes::envelope),
    },
    Route {
        method: "get",
        path: "/v1/intents/{intent}",
        what: "What came of a wish that this controller brought within the last 24 hours.",
        by_token: true,
        query: &[WAIT],
        headers: &[],
        body: Sent::Nothing,
        answers: &[(JSON, ResultDocument::SCHEMA), (JSON, AskedDocument::SCHEMA)],
        handler: || get(wishes::outcome),
    },
    Route {
        method: "post",
        path: "/v1/rollouts",
        what: "Deploy over the fleet: a release that is known, or a spec with what it runs.",
        by_token: true,
        query: &[TURN],
        headers: &[KEY],
        body: Sent::Deploy,
        answers: &[(JSON, AskedDocument::SCHEMA)],
        handler: || post(rollouts::deploy),
    },
    Route {
        method: "get",
        path: "/v1/rollouts",
        what: "The rollouts that are remembered, newest first.",
        by_token: true,
        query: &[],
        headers: &[],
        body: Sent::Nothing,
        answers: &[(JSON, RolloutsView::SCHEMA)],
        handler: || get(rollouts::list),
    },
    Route {
        method: "get",
        path: "/v1/rollouts/{rollout}",
        what: "One rollout, and why it went as it went: the document of `smgr rollout show -o json`.",
        by_token: true,
        query: &[(
            "wait",
            "How long its end is waited for, or that it waits for a person; at most 5m. Default: not at all.",
        )],
        headers: &[],
        body: Sent::Nothing,
        answers: &[(JSON, RolloutView::SCHEMA)],
        handler: || get(rollouts::show),
    },
    Route {
        method: "get",
        path: "/v1/rollouts/{rollout}/events",
        what: "What happened in a rollout, one event a line; behind its end, or where it waits for a person, the result is the last one.",
        by_token: true,
        query: &[SINCE, ("follow", "`1`: go on until it has ended or waits for a person.")],
        headers: &[],
        body: Sent::Nothing,
        answers: &[("application/jsonl", "")],
        handler: || get(rollouts::events),
    },
    Route {
        method: "post",
        path: "/v1/rollouts/{rollout}/{command}",
        what: "pause, resume, promote, approve, abort, or retry a rollout: the last is a rollout of its own.",
        by_token: true,
        query: &[TURN],
        headers: &[KEY],
        body: Sent::Nothing,
        answers: &[(JSON, AskedDocument::SCHEMA)],
        handler: || post(rollouts::command),
    },
];

/// Returns what answers all requests.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let all = ROUTES
        .iter()
        .fold(Router::new(), |router, route| router.route(route.path, (route.handler)()));
    all.fallback(unknown).method_not_allowed_fallback(not_allowed).with_state(shared)
}

async fn unknown(request: Request) -> impl IntoResponse {
    let what = format!("there is nothing at {}", request.uri().path());
    Problem::new(Code::NO_SUCH_PATH, what).hint("GET /openapi.json")
}

async fn not_allowed(request: Request) -> impl IntoResponse {
    let what = format!("{} is not what this path takes", request.method());
    let problem = Problem::new(Code::NO_SUCH_PATH, what).hint("GET /openapi.json");
    problem.status(StatusCode::METHOD_NOT_ALLOWED)
}
