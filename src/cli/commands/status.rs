//! `smgr status`: what runs, what not, why.

use super::reading::refused;
use crate::cli::args::Output;
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::json::status::{status_json, status_jsonl};
use crate::cli::out::{Out, width};
use crate::cli::screen::status::status_text;
use crate::cli::selector::Selector;
use crate::cli::time;
use crate::cli::view::View;
use crate::config;
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::NodeId;
use crate::wire::payload::{Ask, Reply};
use crate::wire::status::NodeStatus;

/// Prints the status of nodes.
pub(super) async fn status(
    context: &Context,
    selector: Option<Selector>,
    at: Option<String>,
    out: Out,
) -> Result<ExitCode, CliError> {
    if let Some(at) = at {
        return super::offline::status_at(context, selector.as_ref(), &at, out);
    }
    let node = selector.as_ref().and_then(|selector| selector.node.clone());
    let whom = Whom::or_everybody(context, node);
    let mut client = Client::connect(context, &whom).await?;
    let is_of_all = selector.is_none() && context.global.nodes.is_empty();
    if is_of_all && !client.controllers().is_empty() {
        match super::fleet::ask(&mut client).await? {
            Some(fleet) => return super::fleet::print(&fleet, out),
            None => out.note("controller unreachable: the nodes were asked directly"),
        }
    }
    let mut pending = client.ask(Ask::Status).await?;
    let mut nodes: Vec<NodeStatus> = Vec::new();
    while let Some(answer) = pending.next().await? {
        match answer.reply {
            Reply::Status(part) if part.node == answer.node => {
                match nodes.iter_mut().find(|node| node.node == part.node) {
                    Some(node) => node.add_part(*part),
                    None => nodes.push(*part),
                }
            }
            Reply::Refused { code, why } => return Err(refused(&answer.node, &code, why)),
            _ => {}
        }
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let missing: Vec<NodeId> = pending.missing().keys().cloned().collect();
    // Half a picture would pass for a node on which less runs.
    nodes.retain(|node| !missing.contains(&node.node));
    let view = View { nodes: &nodes, missing: &missing, selector: selector.as_ref() };
    print(&view, out)
}

/// Prints a view, and says how to exit.
pub(super) fn print(view: &View<'_>, out: Out) -> Result<ExitCode, CliError> {
    let exit = view.exit();
    if exit == ExitCode::NotFound
        && let Some(selector) = view.selector
    {
        let error = CliError::new(Code::NO_SUCH_SERVICE, format!("no such service: {selector}"))
            .next("smgr status");
        let known = view.nodes.iter().flat_map(|node| &node.services).map(|it| &it.service);
        return Err(match config::likely_service(known, selector.service.as_str()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        });
    }
    match out.form {
        Output::Text => out.data(&status_text(view, time::now(), width())),
        Output::Json => out.line(&json::pretty(&status_json(view, time::now()))),
        Output::Jsonl => out.data(&status_jsonl(view)),
        Output::Cloudevents => {
            return Err(CliError::new(Code::USAGE, "only events have the form cloudevents"));
        }
    }
    Ok(exit)
}
