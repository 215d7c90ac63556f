//! `smgr status`: what runs, what not, why.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::reading::refused;
use crate::cli::args::Output;
use crate::cli::client::{Client, Whom, is_of_fleet};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::json::status::{status_json, status_jsonl};
use crate::cli::out::{Out, width};
use crate::cli::screen::status::status_text;
use crate::cli::selector::Selector;
use crate::cli::time;
use crate::cli::view::{Picture, View};
use crate::config;
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{NodeId, ServiceId};
use crate::domain::origin::Layer;
use crate::head::keyfile::load_trust;
use crate::wire::payload::{Ask, Reply};
use crate::wire::status::NodeStatus;

/// Whoever waits for longer is told for whom.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// How long nodes may take before a controller is asked about those that are silent.
pub(super) const NODES_WITHIN: Duration = Duration::from_secs(2);

/// Longer than any wait: the answers have a deadline of their own.
const NEVER: Duration = Duration::from_secs(86_400);

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
    let in_fleet = is_of_fleet(context);
    let within = if in_fleet { NODES_WITHIN } else { NEVER };
    let mut client = match timeout(within, Client::connect(context, &whom)).await {
        // What others know of this machine goes by the bus.
        Ok(Err(error)) if error.code == Code::AGENT_UNREACHABLE && in_fleet => {
            around(context).await.ok_or(error)?
        }
        Ok(connected) => connected?,
        Err(_) => around(context).await.ok_or_else(|| {
            CliError::new(Code::AGENT_UNREACHABLE, "the agent of this machine does not answer")
        })?,
    };
    let is_of_all = selector.is_none() && context.global.nodes.is_empty();
    if is_of_all && !client.controllers().is_empty() {
        let asked = super::fleet::ask(&mut client);
        match or_say(out, "waiting for a controller", asked).await? {
            Some(fleet) => {
                // Who tells of nodes and not of rollouts tells enough.
                let rollouts = super::rollout::rows(&mut client).await.unwrap_or_default();
                return super::fleet::print(&fleet, &rollouts, out);
            }
            None => out.note("controller unreachable: the nodes were asked directly"),
        }
    }
    let mut picture = gather(context, &mut client, out).await?;
    let global = &context.global.nodes;
    picture.retain(|node| global.is_empty() || global.contains(node));
    let named = !global.is_empty();
    if let Some(selector) = selector.as_ref().filter(|_| out.is_text()) {
        look_closer(context, &mut client, selector, &mut picture).await;
    }
    print(&View { selector: selector.as_ref(), named, in_fleet, ..picture.view() }, out)
}

/// Connects to the whole fleet though nodes were named; `None` where this machine is all there is.
async fn around(context: &Context) -> Option<Client> {
    let mut context = context.clone();
    context.global.nodes.clear();
    let client = Client::connect(&context, &Whom::or_everybody(&context, None)).await.ok()?;
    client.is_by_bus().then_some(client)
}

/// Adds to the page of one instance who wants what it runs, and what is set otherwise there. It is whole without that.
async fn look_closer(
    context: &Context,
    client: &mut Client,
    selector: &Selector,
    picture: &mut Picture,
) {
    let view = View { selector: Some(selector), ..picture.view() };
    let [(node, only)] = view.instances()[..] else { return };
    let (name, service) = (node.node.clone(), only.service.clone());
    let known = node.services.iter().find(|it| it.service == service);
    let is_changed = known.is_some_and(|known| !known.overridden_keys.is_empty());
    let is_silent = picture.missing.contains(&name);
    if !client.controllers().is_empty() {
        let rows = timeout(NODES_WITHIN, super::rollout::rows(client)).await;
        picture.rollouts = rows.ok().and_then(Result::ok).unwrap_or_default();
    }
    if is_changed && !is_silent {
        let set = timeout(NODES_WITHIN, Box::pin(set_on(context, name, &service))).await;
        picture.set = set.ok().flatten().unwrap_or_default();
    }
}

/// Asks a node what somebody set of a service there: by key `{value, origin}`, the value null where it is not told.
pub(super) async fn set_on(
    context: &Context,
    node: NodeId,
    service: &ServiceId,
) -> Option<serde_json::Map<String, serde_json::Value>> {
    let told = Client::configuration(context, &node, service).await.ok()?;
    let is_set =
        |layer| matches!(layer, Layer::Group | Layer::Fleet | Layer::Node | Layer::Temporary);
    let set = told.keys.into_iter().filter(|(_, it)| is_set(it.origin.layer));
    let shown = set.map(|(key, it)| {
        let value = (!it.value.is_empty()).then_some(it.value);
        (key, serde_json::json!({"value": value, "origin": it.origin}))
    });
    Some(shown.collect())
}

/// Asks nodes how they are; tells who did not answer beside them.
///
/// Where there are controllers, what they heard lately of a silent node is taken for its answer.
pub(super) async fn gather(
    context: &Context,
    client: &mut Client,
    out: Out,
) -> Result<Picture, CliError> {
    let has_controllers = !client.controllers().is_empty();
    let mut pending = client.ask(Ask::Status).await?;
    let mut nodes: Vec<NodeStatus> = Vec::new();
    let began = Instant::now();
    let mut say_at = Some(began + SILENT_MAX);
    loop {
        let until = match say_at {
            Some(say_at) => say_at,
            None if has_controllers && context.global.timeout.is_none() => began + NODES_WITHIN,
            None => began + NEVER,
        };
        let Ok(answer) = timeout_at(until, pending.next()).await else {
            if say_at.take().is_none() {
                break;
            }
            out.note(&format!("waiting for {}", names(pending.missing().keys())));
            continue;
        };
        let Some(answer) = answer? else { break };
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
    let mut missing: Vec<NodeId> = pending.missing().keys().cloned().collect();
    drop(pending);
    // Half a picture would pass for a node on which less runs.
    nodes.retain(|node| !missing.contains(&node.node));
    let mut known = Vec::new();
    if !missing.is_empty() && has_controllers {
        known = super::fleet::ask(client).await.ok().flatten().map_or(known, |it| it.nodes);
        for it in known.iter_mut().filter(|it| it.reachable) {
            let Some(at) = missing.iter().position(|node| *node == it.node) else { continue };
            let Some(status) = it.status.take() else { continue };
            let node = missing.remove(at);
            out.note(&format!("{node} did not answer: this is what a controller heard of it"));
            nodes.push(*status);
        }
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let mut picture = Picture { nodes, missing, ..Picture::default() };
    known.iter().for_each(|known| picture.learn(known));
    // The document is at hand, whoever is not.
    let trust = load_trust(&context.folder).ok();
    let enrolled = trust.into_iter().flat_map(|(trust, _)| trust.nodes);
    picture.labels = enrolled.map(|it| (it.node, it.labels)).collect();
    Ok(picture)
}

/// Does the work, and says what is waited for when that takes long.
async fn or_say<T>(out: Out, what: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match timeout(SILENT_MAX, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            out.note(what);
            work.await
        }
    }
}

fn names<'n>(nodes: impl Iterator<Item = &'n NodeId>) -> String {
    nodes.map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

/// Prints a view, and says how to exit.
pub(super) fn print(view: &View<'_>, out: Out) -> Result<ExitCode, CliError> {
    let exit = view.exit();
    if exit == ExitCode::NotFound
        && let Some(selector) = view.selector
    {
        let error = CliError::new(Code::NO_SUCH_SERVICE, format!("no such service: {selector}"))
            .next("smgr status");
        let known = view.heard().flat_map(|node| &node.services).map(|it| &it.service);
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
