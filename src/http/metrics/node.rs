//! `GET /metrics` of one node, by a process of its own beside the agent: it asks the agent as `smgr status` does, so an
//! agent opens no listening socket and no scrape costs it more than one answer a second.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::page::{Kind, Page, is, response};
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::launch;
use crate::domain::code::Code;
use crate::http::serve::accept;
use crate::wire::status::{BusState, NodeStatus};

/// How long a page is given out before the agent is asked again.
const FRESH: Duration = Duration::from_secs(1);

/// What all scrapes share.
struct Node {
    context: Context,
    /// The last page, and when it was written. Whoever asks meanwhile waits for it.
    last: Mutex<Option<(Instant, String)>>,
}

/// Serves the metrics of this machine's node until the process ends.
///
/// # Errors
/// When the address cannot be listened at.
pub async fn serve_node(context: Context, address: SocketAddr) -> Result<(), CliError> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        CliError::caused(Code::IO, format!("failed to listen at {address}"), &error)
            .hint("smgr up --metrics IP:PORT")
    })?;
    let node = Node { context, last: Mutex::new(None) };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(Arc::new(node));
    crate::head::say_ready();
    accept(listener, router).await;
    Ok(())
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    let mut last = node.last.lock().await;
    if let Some((_, text)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
        return response(text.clone());
    }
    match Box::pin(page_of(&node.context)).await {
        Ok(text) => {
            *last = Some((Instant::now(), text.clone()));
            response(text)
        }
        Err(error) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the agent does not answer: {error}\n"))
                .into_response()
        }
    }
}

/// Asks the node of this machine, and returns its page.
///
/// # Errors
/// When it does not answer.
pub async fn page_of(context: &Context) -> Result<String, CliError> {
    let mut client = Client::connect(context, &Whom::default()).await?;
    let unheard = || CliError::new(Code::AGENT_UNREACHABLE, "the agent did not say what runs");
    Ok(text(&launch::status(&mut client).await.ok_or_else(unheard)?))
}

fn text(status: &NodeStatus) -> String {
    let mut page = Page::new(&status.fleet);
    let node = status.node.as_str();
    let name = "smgr_build_info";
    page.metric(Kind::Gauge, name, "The version of the agent.");
    page.sample(name, &[("node", node), ("version", &status.version)], 1.0);
    let has_bus = matches!(status.bus, BusState::Connected { .. });
    for (name, help, value) in [
        ("smgr_node_bus_up", "Whether the bus can be spoken to.", is(has_bus)),
        ("smgr_log_events", "The number of the last event of the log.", status.head.seq.0 as f64),
        ("smgr_log_bytes", "What the log takes on disk.", status.log_bytes as f64),
        ("smgr_log_bytes_max", "What the log may take on disk.", status.log_bytes_max as f64),
        (
            "smgr_log_available",
            "Whether the log takes events.",
            is(status.log_unavailable.is_none()),
        ),
    ] {
        page.metric(Kind::Gauge, name, help);
        page.sample(name, &[("node", node)], value);
    }
    page.services(&[status]);
    let name = "smgr_instance_memory_bytes";
    page.metric(Kind::Gauge, name, "Memory of an instance with all its processes.");
    for it in &status.instances {
        if let Some(bytes) = it.memory_bytes {
            let index = it.index.to_string();
            let labels = [("node", node), ("service", it.service.as_str()), ("instance", &index)];
            page.sample(name, &labels, bytes as f64);
        }
    }
    page.text
}

#[cfg(test)]
mod tests {
    use super::super::page::tests::is_read;
    use super::*;
    use crate::cli::sample;

    #[test]
    fn every_line_is_one_that_prometheus_reads() {
        let status = sample::node();
        let text = text(&status);
        is_read(&text, status.fleet.as_str());
        for name in ["smgr_build_info", "smgr_log_available", "smgr_instances_ready"] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}: {text}");
        }
    }
}
