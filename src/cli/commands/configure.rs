//! config set --select, config set --for, config unset: what signed wishes set of a service, for a part of the fleet or for
//! a time.

use std::collections::{BTreeMap, BTreeSet};

use super::service::{selection, whole_service, wish};
use super::{place, ramp, release};
use crate::cli::args::{ConfigSet, ConfigUnset, Over, Waiting};
use crate::cli::client::Whom;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::json::error::ResultDocument;
use crate::cli::out::Out;
use crate::cli::selector::Selector;
use crate::cli::specs;
use crate::cli::time::now;
use crate::config;
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::ServiceId;
use crate::domain::intent::Action;
use crate::domain::origin::Layer;
use crate::domain::overrides::LIFE_MS_MAX;
use crate::domain::selector::Selector as NodeSelector;
use crate::domain::time::UnixMicros;

/// What one command changes.
struct Change {
    service: ServiceId,
    set: BTreeMap<String, String>,
    unset: BTreeSet<String>,
    /// Until when; absent where something is unset, or has no end.
    until: Option<UnixMicros>,
    is_temporary: bool,
}

/// Sets keys for a part of the fleet, or for a time.
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
    let is_temporary = until.is_some();
    let change = Change { service, set, unset: BTreeSet::new(), until, is_temporary };
    carry_out(context, change, (&args.service, args.select.as_ref()), args.waiting, out).await
}

/// Sets keys no more that were set for a part of the fleet, or for a time.
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
    if let Some(key) = unset.iter().find(|key| !config::keys::is_known(key)) {
        let what = format!("`{key}` is no key of a service");
        return Err(CliError::new(Code::USAGE, what).next("smgr help spec"));
    }
    let is_temporary = args.temporary || args.select.is_none();
    if args.select.is_none() && !is_any_set(context, &args.service, &unset).await? {
        let keys = unset.into_iter().collect::<Vec<_>>().join(", ");
        match out.is_text() {
            true => out.line(&format!("{service}: {keys} is not set for a time: nothing to do")),
            false => out.json(&ResultDocument {
                changed: Some(false),
                answered: 1,
                ..ResultDocument::new("done", ExitCode::Done)
            }),
        }
        return Ok(ExitCode::Done);
    }
    let change = Change { service, set: BTreeMap::new(), unset, until: None, is_temporary };
    carry_out(context, change, (&args.service, args.select.as_ref()), args.waiting, out).await
}

/// Says whether any of the keys is set for a time on the one node that is meant, or nobody can tell.
async fn is_any_set(
    context: &Context,
    selector: &Selector,
    keys: &BTreeSet<String>,
) -> Result<bool, CliError> {
    let named: BTreeSet<_> = context.global.nodes.iter().chain(&selector.node).cloned().collect();
    let node = match named.len() {
        0 => context.own_node()?,
        1 => named.into_iter().next().expect("invariant: there is one"),
        _ => return Ok(true),
    };
    let set = super::status::set_on(context, node, &selector.service).await;
    Ok(set.is_none_or(|set| {
        let is_set =
            |key: &String| set.get(key).is_some_and(|it| it["origin"]["layer"] == "temporary");
        keys.iter().any(is_set)
    }))
}

async fn carry_out(
    context: &Context,
    change: Change,
    (selector, select): (&Selector, Option<&NodeSelector>),
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let Change { service, set, unset, until, is_temporary } = change;
    if let Some(select) = select.filter(|_| !is_temporary) {
        let make = |service, generation| Action::Configure {
            service,
            generation: Some(generation),
            set,
            unset,
            until: None,
        };
        let whence = (selector.clone(), select.clone());
        return release::over_fleet(context, whence, make, waiting, out).await;
    }
    let action = Action::Configure { service, generation: None, set, unset, until };
    let over = Over { select: select.cloned(), max_parallel: Vec::new() };
    if let Some(select) = selection(context, selector, &over)? {
        return ramp::over(context, (select, &over), action, waiting, out).await;
    }
    let whom = Whom::new(context, place::of(context, Some(selector), "config set").await?);
    wish(context, &whom, action, waiting, out).await
}

/// Says what is wrong with keys and values by themselves, before anything is signed.
fn check(service: &ServiceId, set: &BTreeMap<String, String>) -> Result<(), CliError> {
    let set: Vec<_> = set.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let input = config::set_layer(Layer::Fleet, "KEY=VALUE", service, &set)
        .map_err(|why| CliError::new(Code::BAD_TOML, why))?;
    config::check_set(input).map_err(|mistakes| specs::mistaken(&mistakes, "nothing was changed"))
}
