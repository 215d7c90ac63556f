//! config show, plan: the effective configuration of services, here and on other nodes, and how this machine's would change.

use serde_json::{Value, json};

use super::place;
use crate::cli::args::ConfigShow;
use crate::cli::client::{Client, Whom};
use crate::cli::context::{Context, not_up};
use crate::cli::error::CliError;
use crate::cli::out::{Out, width};
use crate::cli::plan::{Plan, origin_json};
use crate::cli::selector::Selector;
use crate::cli::{launch, screen, specs};
use crate::config::{Effective, Loaded, LoadedService, json_value};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{NodeId, ServiceId};

/// Shows every effective value of a service, as the files of its node say.
pub(super) async fn show(
    context: &Context,
    args: &ConfigShow,
    out: Out,
) -> Result<ExitCode, CliError> {
    if args.at.is_some() {
        return Err(CliError::not_yet("`smgr config show --at`"));
    }
    let service = &args.service.service;
    whole_service(&args.service)?;
    let elsewhere = node_of(context, &args.service).await?;
    let (effective, spec) = match &elsewhere {
        Some(node) => {
            let told = Client::configuration(context, node, service).await?;
            (told.keys, told.spec)
        }
        None => {
            let found = here(context, service)?;
            (found.effective, found.digest.to_string())
        }
    };
    let wanted = |key: &str| {
        let inside = |block: &String| {
            key.strip_prefix(block.as_str())
                .is_some_and(|rest| matches!(rest.as_bytes(), [] | [b'.', ..]))
        };
        args.keys.is_empty() || args.keys.iter().any(inside)
    };
    let values: Vec<(&String, &Effective)> =
        effective.iter().filter(|(key, _)| wanted(key)).collect();
    if values.is_empty() {
        let what = format!("`{service}` has no value for {}", args.keys.join(", "));
        return Err(CliError::new(Code::USAGE, what).next("smgr help spec"));
    }
    let there = elsewhere.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let in_force = is_in_force(context, elsewhere, service, &spec).await;
    if !out.is_text() {
        out.document(&document(service, &values, in_force), "keys");
        return Ok(ExitCode::Done);
    }
    out.data(&screen::effective::effective(&values, args.origin, args.hidden, width()));
    if in_force == Some(false) {
        out.note(&format!(
            "note: not all of it is in force{there}: smgr plan {service}, smgr apply {service}"
        ));
    }
    Ok(ExitCode::Done)
}

/// Returns the other node on which a service is meant; this machine is `None`.
async fn node_of(context: &Context, selector: &Selector) -> Result<Option<NodeId>, CliError> {
    let mut named = selector.node.iter().chain(&context.global.nodes);
    let node = match (named.next(), named.next()) {
        (Some(node), None) => Some(node.clone()),
        (Some(_), Some(_)) => {
            return Err(CliError::new(Code::USAGE, "a configuration is of one node: name one"));
        }
        (None, _) => match here(context, &selector.service) {
            // What is not here may be elsewhere.
            Err(error) if error.code == Code::NO_SUCH_SERVICE => {
                place::of(context, Some(selector), "config show").await?
            }
            Ok(_) | Err(_) => None,
        },
    };
    Ok(match (node, context.own_node()) {
        (Some(node), Ok(own)) if node == own => None,
        (node, _) => node,
    })
}

/// Returns a service as the files of this machine describe it.
fn here(context: &Context, service: &ServiceId) -> Result<LoadedService, CliError> {
    let sources = specs::sources_here(context)?;
    let mut loaded = specs::load(context, &sources, &context.service_logs(), "nothing was shown")?;
    described(&loaded, service)?;
    Ok(loaded.services.remove(service).expect("invariant: it was found"))
}

/// Refuses one instance of a service.
pub(super) fn whole_service(selector: &Selector) -> Result<(), CliError> {
    let service = &selector.service;
    match selector.index {
        None => Ok(()),
        Some(_) => {
            let what = format!("all instances of {service} have one configuration");
            Err(CliError::new(Code::USAGE, what).next(format!("smgr config show {service}")))
        }
    }
}

pub(super) fn document(
    service: &ServiceId,
    values: &[(&String, &Effective)],
    in_force: Option<bool>,
) -> Value {
    let hides = |it: &Effective| -> Vec<Value> {
        let hidden = it.hides.iter().map(
            |(value, origin)| json!({"value": json_value(value), "origin": origin_json(origin)}),
        );
        hidden.collect()
    };
    let keys = values.iter().map(|(key, it)| {
        json!({
            "key": key, "value": it.json(), "origin": origin_json(&it.origin), "hides": hides(it),
        })
    });
    json!({
        "schema": "smgr.config.v1", "service": service.as_str(), "in_force": in_force,
        "keys": keys.collect::<Vec<_>>(),
    })
}

/// Says whether what the files say is what the node runs by, or this machine; `None` where no node answers.
pub(super) async fn is_in_force(
    context: &Context,
    node: Option<NodeId>,
    service: &ServiceId,
    spec: &str,
) -> Option<bool> {
    let whom = node.map_or_else(Whom::default, |node| Whom::new(context, [node]));
    let mut client = Client::connect(context, &whom).await.ok()?;
    let status = launch::status(&mut client).await?;
    let known = status.services.iter().find(|it| it.service == *service);
    Some(known.is_some_and(|known| known.spec.to_string() == spec))
}

/// Shows what an apply would do.
pub(super) async fn plan(
    context: &Context,
    services: &[ServiceId],
    out: Out,
) -> Result<ExitCode, CliError> {
    only_here(context)?;
    let setup = context.setup()?.ok_or_else(|| not_up(context))?;
    let plan = Plan::make(context, &setup, services).await?;
    match out.is_text() {
        true if plan.services.is_empty() => out.line("nothing changes: all is as the files say"),
        true => out.data(&plan.text(width())),
        false => out.document(&plan.json(), "services"),
    }
    Ok(if plan.services.is_empty() { ExitCode::Done } else { ExitCode::Changes })
}

/// Returns a service that files describe.
pub(super) fn described<'a>(
    loaded: &'a Loaded,
    service: &ServiceId,
) -> Result<&'a LoadedService, CliError> {
    loaded.services.get(service).ok_or_else(|| {
        let what = format!("no spec file describes `{service}`");
        CliError::new(Code::NO_SUCH_SERVICE, what).next("smgr check")
    })
}

/// Refuses another node than this machine's, whose files are elsewhere.
pub(super) fn only_here(context: &Context) -> Result<(), CliError> {
    let nodes = &context.global.nodes;
    if nodes.is_empty() {
        return Ok(());
    }
    let own = context.own_node()?;
    match nodes.iter().find(|node| **node != own) {
        None => Ok(()),
        Some(other) => Err(CliError::not_yet("the configuration of another node")
            .at(other.to_string())
            .hint(format!("type it on {other}"))),
    }
}
