//! Where a service is when its node was not named: on this machine, else on the one other node of the fleet that has it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::timeout;

use super::status::{NODES_WITHIN, gather};
use crate::cli::args::Via;
use crate::cli::client::{Client, Whom, is_of_fleet};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::launch;
use crate::cli::out::Out;
use crate::cli::selector::Selector;
use crate::domain::code::Code;
use crate::domain::id::{NodeId, ServiceId};
use crate::domain::selector::{Roster, SelectError, Selector as NodeSelector};
use crate::head::keyfile::load_trust;
use crate::wire::payload::Trust;
use crate::wire::status::NodeStatus;

/// How long a command for this node waits to say which others have the service too.
const SAID_WITHIN: Duration = Duration::from_millis(500);

/// Returns the node that a selector names, or else the one on which the service was found; `None` is this machine.
///
/// # Errors
/// When several other nodes have it: which one is meant is for a person to say.
pub(super) async fn of(
    context: &Context,
    selector: Option<&Selector>,
    verb: &str,
) -> Result<Option<NodeId>, CliError> {
    let Some(selector) = selector else { return Ok(None) };
    let global = &context.global;
    let is_told = selector.node.is_some()
        || !global.nodes.is_empty()
        || global.bus.is_some()
        || global.via != Via::Auto;
    let service = &selector.service;
    if is_told || !is_of_fleet(context) {
        return Ok(selector.node.clone());
    }
    if is_here(context, service).await {
        say_where(context, service, verb).await;
        return Ok(None);
    }
    let out = Out { form: global.output };
    match elsewhere(context, service, out).await.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only.clone())),
        several => {
            let names: Vec<&str> = several.iter().map(NodeId::as_str).collect();
            let own =
                context.own_node().map_or_else(|_| "this machine".into(), |own| own.to_string());
            let what = format!("{service} is not on {own}, but on {}", names.join(", "));
            Err(CliError::new(Code::NO_SUCH_SERVICE, what)
                .hint("say which is meant")
                .next(format!("smgr {verb} {service}@{}", names[0])))
        }
    }
}

/// Says that this machine alone is meant, where other nodes have the service too, and how to mean them.
pub(super) async fn say_where(context: &Context, service: &ServiceId, verb: &str) {
    if !is_of_fleet(context) {
        return;
    }
    let Ok(own) = context.own_node() else { return };
    let out = Out { form: context.global.output };
    let having = timeout(SAID_WITHIN, Box::pin(having(context, service))).await;
    let Some(mut others) = having.ok().flatten() else {
        out.note(&format!("this is {own} alone; no controller says who else has {service}"));
        return;
    };
    others.retain(|node| *node != own);
    let Some(first) = others.first() else { return };
    let names: Vec<&str> = others.iter().map(NodeId::as_str).collect();
    let all = match verb {
        "history" | "rollback" | "config show" => String::new(),
        _ => format!("; all of them: smgr {verb} {service} --select '*'"),
    };
    out.note(&format!(
        "this is {own} alone; {service} is on {} too: smgr {verb} {service}@{first}{all}",
        names.join(" ")
    ));
}

/// Returns the nodes of the fleet that have a service, as a controller knows them; `None` where none is asked in time.
pub(super) async fn having(context: &Context, service: &ServiceId) -> Option<Vec<NodeId>> {
    if !is_of_fleet(context) {
        return None;
    }
    let ask = async {
        let mut client = Client::of_controllers(context).await.ok()??;
        super::fleet::ask(&mut client).await.ok()?
    };
    let fleet = timeout(NODES_WITHIN, Box::pin(ask)).await.ok()??;
    let told = fleet.nodes.into_iter().filter_map(|node| node.status);
    Some(told.filter(|status| has(status, service)).map(|status| status.node.clone()).collect())
}

/// Returns the selected nodes of the fleet that have a service, and those of which no controller can say.
///
/// # Errors
/// When there is none, or nobody can be asked.
pub(super) async fn selected(
    context: &Context,
    service: &ServiceId,
    select: &NodeSelector,
) -> Result<Vec<NodeId>, CliError> {
    let (trust, _) =
        load_trust(&context.folder).map_err(|error| crate::cli::wish::from_keys(&error))?;
    let nodes = matching(&trust, select)?;
    let mut client = Client::of_controllers(context).await?.ok_or_else(no_fleet)?;
    let fleet = super::fleet::ask(&mut client).await?;
    let known = fleet.as_ref().map_or(&[][..], |fleet| &fleet.nodes);
    let lacks = |node: &NodeId| {
        let status = known.iter().find(|it| it.node == *node).and_then(|it| it.status.as_deref());
        status.is_some_and(|status| !has(status, service))
    };
    let nodes: Vec<NodeId> = nodes.into_iter().filter(|node| !lacks(node)).collect();
    match nodes.is_empty() {
        true => Err(CliError::new(
            Code::NO_SUCH_SERVICE,
            format!("no node of `{select}` has a service called {service}"),
        )
        .next("smgr status")),
        false => Ok(nodes),
    }
}

/// Returns the nodes of the roster that a selection means.
///
/// # Errors
/// When it means none, or names one that there is not.
pub(crate) fn matching(trust: &Trust, select: &NodeSelector) -> Result<BTreeSet<NodeId>, CliError> {
    let roster: Roster =
        trust.nodes.iter().map(|it| (it.node.clone(), it.labels.clone())).collect();
    select.select(&roster).map_err(|error| match error {
        SelectError::NothingMatches { .. } => CliError::from_error(Code::EMPTY_SELECTION, &error)
            .hint("see the nodes and their labels: smgr status -o json")
            .hint("how they get them: smgr help placement"),
        SelectError::NoSuchNode(_) => CliError::from_error(Code::NO_SUCH_NODE, &error),
    })
}

/// Refuses a selection where a node is named as well.
pub(super) fn named_and_selected() -> CliError {
    let why = "a node is named, and --select selects nodes: say one of them";
    CliError::new(Code::USAGE, why)
}

/// Refuses a selection where there is nothing to select from.
pub(super) fn no_fleet() -> CliError {
    let why = "this machine belongs to no fleet with a controller, so nothing can be selected";
    CliError::new(Code::NO_LEADER, why).hint("for this node alone leave out --select")
}

async fn is_here(context: &Context, service: &ServiceId) -> bool {
    let read = async {
        let mut client = Client::connect(context, &Whom::default()).await.ok()?;
        launch::status(&mut client).await
    };
    // A silent agent is told by whoever goes on to command it.
    let status = timeout(NODES_WITHIN, Box::pin(read)).await.ok().flatten();
    status.is_some_and(|status| has(&status, service))
}

/// Returns the nodes of the fleet that have a service, as far as a controller, or else they, can be asked.
async fn elsewhere(context: &Context, service: &ServiceId, out: Out) -> Vec<NodeId> {
    let whom = Whom::or_everybody(context, None);
    let Ok(mut client) = Client::connect(context, &whom).await else { return Vec::new() };
    let of = |told: Vec<NodeStatus>| -> Vec<NodeId> {
        told.into_iter().filter(|it| has(it, service)).map(|it| it.node).collect()
    };
    let fleet = super::fleet::ask(&mut client).await.ok().flatten();
    let known = fleet.into_iter().flat_map(|fleet| fleet.nodes).filter_map(|node| node.status);
    let found = of(known.map(|status| *status).collect());
    if !found.is_empty() {
        return found;
    }
    // What began a moment ago may not have reached a controller.
    gather(context, &mut client, out).await.map_or_else(|_| Vec::new(), |told| of(told.nodes))
}

fn has(node: &NodeStatus, service: &ServiceId) -> bool {
    node.services.iter().any(|known| known.service == *service)
}
