//! config set --select, config set --for, config set SERVICE@NODE, config unset: what signed wishes set of a service, for a
//! part of the fleet, for a time, or for one node.

use std::collections::{BTreeMap, BTreeSet};

use super::service::{selection, whole_service, wish};
use super::{place, ramp, release};
use crate::cli::args::{ConfigSet, ConfigUnset, Over, Waiting};
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::json::error::ResultDocument;
use crate::cli::out::Out;
use crate::cli::selector::Selector;
use crate::cli::specs;
use crate::cli::time::now;
use crate::config::{self, Effective};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{Generation, ServiceId};
use crate::domain::intent::Action;
use crate::domain::origin::Layer;
use crate::domain::overrides::LIFE_MS_MAX;
use crate::domain::selector::Selector as NodeSelector;
use crate::domain::time::UnixMicros;

/// What one command changes.
struct Change {
    service: ServiceId,
    layer: Layer,
    set: BTreeMap<String, String>,
    unset: BTreeSet<String>,
    /// Until when; absent where something is unset, or has no end.
    until: Option<UnixMicros>,
}

impl Change {
    fn action(self, generation: Option<Generation>) -> Action {
        let Self { service, layer, set, unset, until } = self;
        Action::Configure { service, generation, set, unset, until, node: layer == Layer::Node }
    }
}

/// Sets keys for a part of the fleet, for a time, or of the node that is named.
pub(super) async fn set(
    context: &Context,
    args: &ConfigSet,
    out: Out,
) -> Result<ExitCode, CliError> {
    let service = whole_service(&args.service)?;
    let count = args.settings.len();
    let set: BTreeMap<String, String> = args.settings.iter().cloned().collect();
    if set.len() != count {
        return Err(CliError::new(Code::USAGE, "a key is given twice"));
    }
    check(&service, &set)?;
    let until = match args.life.map(|life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX)) {
        Some(ms) if ms == 0 || ms > LIFE_MS_MAX => {
            let what = "something is set for 1ms to 7d";
            return Err(CliError::new(Code::USAGE, what).hint("such as --for 2h"));
        }
        life => life.map(|ms| now().plus_ms(ms)),
    };
    let layer = match (until, &args.select) {
        (Some(_), _) => Layer::Temporary,
        (None, Some(_)) => Layer::Fleet,
        (None, None) => Layer::Node,
    };
    let keys: Vec<String> = set.keys().cloned().collect();
    let change = Change { service: service.clone(), layer, set, unset: BTreeSet::new(), until };
    if let Some(select) = &args.select {
        return over(context, change, (&args.service, select), args.waiting, out).await;
    }
    let place = place::of(context, Some(&args.service), "config set").await?;
    let whom = Whom::new(context, place);
    let exit = wish(context, &whom, change.action(None), args.waiting, out).await?;
    if exit == ExitCode::Done && layer == Layer::Node && out.is_text() && !args.waiting.detach {
        say_what_is_above(context, &whom, &service, &keys, out).await;
    }
    Ok(exit)
}

/// Sets keys no more that were set for a part of the fleet, for a time, or of one node.
pub(super) async fn unset(
    context: &Context,
    args: &ConfigUnset,
    out: Out,
) -> Result<ExitCode, CliError> {
    let service = whole_service(&args.service)?;
    let unset: BTreeSet<String> = args.keys.iter().cloned().collect();
    // Whatever they were set to, they have to be keys.
    if let Some(key) = unset.iter().find(|key| key.contains('=')) {
        let what = format!("`{key}` is no key: a value is not given");
        return Err(CliError::new(Code::USAGE, what));
    }
    config::keys::check_unset(&unset, |_| false)
        .map_err(|what| CliError::new(Code::USAGE, what).next("smgr help spec"))?;
    let of = |layer, unset| Change { service, layer, set: BTreeMap::new(), unset, until: None };
    if let Some(select) = &args.select {
        let layer = if args.temporary { Layer::Temporary } else { Layer::Fleet };
        let change = of(layer, unset);
        return over(context, change, (&args.service, select), args.waiting, out).await;
    }
    let place = place::of(context, Some(&args.service), "config unset").await?;
    let whom = Whom::new(context, place);
    let there = match layers_there(context, &whom, &args.service.service, &unset).await {
        // It is known what is meant; only whether there is anything to do is not.
        Err(_) if args.temporary => None,
        there => Some(there?),
    };
    let layer = match &there {
        Some(there) if !args.temporary && there.contains(&Layer::Node) => Layer::Node,
        // Whatever is there has an end.
        _ => Layer::Temporary,
    };
    if there.is_some_and(|there| !there.contains(&layer)) {
        nothing_to_do(args, &unset, out);
        return Ok(ExitCode::Done);
    }
    wish(context, &whom, of(layer, unset).action(None), args.waiting, out).await
}

fn nothing_to_do(args: &ConfigUnset, keys: &BTreeSet<String>, out: Out) {
    if !out.is_text() {
        return out.json(&ResultDocument {
            changed: Some(false),
            answered: 1,
            ..ResultDocument::new("done", ExitCode::Done)
        });
    }
    let (service, keys) = (&args.service, keys.iter().cloned().collect::<Vec<_>>().join(", "));
    let so = match args.temporary {
        true => "is not set for a time",
        false => "is set by no wish for one node or for a time",
    };
    out.line(&format!("{service}: {keys} {so}: nothing to do"));
}

/// Returns the layers in which wishes set any of the keys on the one node that is meant.
///
/// # Errors
/// When several are meant, which may differ, and when the node does not tell.
async fn layers_there(
    context: &Context,
    whom: &Whom,
    service: &ServiceId,
    keys: &BTreeSet<String>,
) -> Result<BTreeSet<Layer>, CliError> {
    let node = match (whom.only(), whom.nodes().next()) {
        (Some(only), _) => only.clone(),
        (None, None) => context.own_node()?,
        (None, Some(_)) => {
            let what = "what wishes set of several nodes may lie in other layers on each";
            return Err(CliError::new(Code::USAGE, what)
                .hint("name one node, or say --temporary for what was set with --for"));
        }
    };
    let told = Client::configuration(context, &node, service).await?;
    let set = keys.iter().filter_map(|key| told.keys.get(key)).flat_map(Effective::origins);
    Ok(set.filter(|origin| origin.event.is_some()).map(|origin| origin.layer).collect())
}

/// Says of which keys something else counts than what was just set of a node: the file there, or what is set for a time.
async fn say_what_is_above(
    context: &Context,
    whom: &Whom,
    service: &ServiceId,
    keys: &[String],
    out: Out,
) {
    for node in whom.nodes() {
        let Ok(told) = Client::configuration(context, node, service).await else { continue };
        let known = keys.iter().filter_map(|key| Some((key, &told.keys.get(key)?.origin)));
        for (key, origin) in known {
            if origin.layer == Layer::Temporary || origin.event.is_none() {
                let number = origin.layer.number();
                out.note(&format!("note: on {node} {key} stays as {origin} ({number}) says"));
            }
        }
    }
}

/// Changes keys on selected nodes.
async fn over(
    context: &Context,
    change: Change,
    (selector, select): (&Selector, &NodeSelector),
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    if change.layer == Layer::Fleet {
        let make = |_, generation| change.action(Some(generation));
        let whence = (selector.clone(), select.clone());
        return release::over_fleet(context, whence, make, waiting, out).await;
    }
    let over = Over { select: Some(select.clone()), max_parallel: Vec::new() };
    // Unless a node is named as well.
    selection(context, selector, &over)?;
    ramp::over(context, (select, &over), change.action(None), waiting, out).await
}

/// Says what is wrong with keys and values by themselves, before anything is signed.
fn check(service: &ServiceId, set: &BTreeMap<String, String>) -> Result<(), CliError> {
    let set: Vec<_> = set.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let input = config::set_layer(Layer::Fleet, "KEY=VALUE", service, &set)
        .map_err(|why| CliError::new(Code::BAD_TOML, why))?;
    config::check_set(input).map_err(|mistakes| specs::mistaken(&mistakes, "nothing was changed"))
}
