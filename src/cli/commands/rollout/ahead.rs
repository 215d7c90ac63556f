//! What a deploy would do over the fleet: the waves by name, what changes for whom, and whether there is a way back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Ready, Wanted, manifest_of, release_of};
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::out::{Out, width};
use crate::cli::plan::{changes, changes_json};
use crate::cli::screen::ahead::{Against, ahead_text};
use crate::cli::time::now;
use crate::cli::view::{Readiness, readiness};
use crate::config::{self, Options};
use crate::domain::code::{Code, ExitCode};
use crate::domain::event::{Desired, StateName};
use crate::domain::id::{EpochId, EventId, IntentId, NodeId, Seq, ServiceId};
use crate::domain::release::{Manifest, ReleaseId};
use crate::domain::rollout::view::{Record, RolloutView};
use crate::domain::rollout::{Observed, Opening, Plan, PlanRequest, Rollout};
use crate::domain::selector::Roster;
use crate::wire::codec;
use crate::wire::status::InstanceStatus;

/// Shows what a deploy would do, and does nothing.
pub(in crate::cli::commands) async fn plan(
    context: &Context,
    mut client: Client,
    wanted: Wanted,
    out: Out,
) -> Result<ExitCode, CliError> {
    let ready = Ready::make(context, &mut client, wanted).await?;
    let mut view = view_of(&ready)?;
    name_releases(&mut view, &ready);
    let from = changed_from(&mut client, &ready).await?;
    let leave = leave(&ready);
    let is_same = view["state"] == "succeeded" && leave.is_empty();
    let exit = if is_same { ExitCode::Done } else { ExitCode::Changes };
    if out.is_text() {
        out.data(&ahead_text(&view, &from, &overridden(&ready), width()));
        if !leave.is_empty() {
            let names: Vec<&str> = leave.iter().map(NodeId::as_str).collect();
            let (service, names) = (&ready.service, names.join(" "));
            out.data(&format!("\nPLACEMENT\n  `{}` does not mean {names}: once the rollout has succeeded they lose {service}, in batches\n", ready.select));
        }
        return Ok(exit);
    }
    let from = from.iter().map(|it| {
        json!({
            "nodes": it.nodes, "version": it.version, "keys": it.keys.as_deref().map(changes_json),
        })
    });
    let document = json!({
        "schema": "smgr.deploy_plan.v1", "service": view["service"], "from": view["from"],
        "to": view["to"], "plan": view["plan"], "nodes": view["nodes"],
        "unreachable": away(&ready), "changed": view["state"] != "succeeded",
        "configuration": from.collect::<Vec<_>>(), "overridden_keys": overridden(&ready), "leave": leave,
    });
    out.document(&document, "");
    Ok(exit)
}

/// Returns the nodes that have the service and are not meant, where the spec takes it from them.
fn leave(ready: &Ready) -> BTreeSet<NodeId> {
    if !ready.placement.lets_go(&ready.select, false) {
        return BTreeSet::new();
    }
    let has_it = |node: &&crate::wire::status::FleetNode| {
        let releases = node.status.iter().flat_map(|status| &status.releases);
        let mut own = releases.filter(|it| it.service == ready.service);
        own.any(|it| it.release.is_some())
    };
    let others = ready.fleet.nodes.iter().filter(|it| !ready.nodes.contains(&it.node));
    others.filter(has_it).map(|it| it.node.clone()).collect()
}

/// Makes the plan as a controller would, and the picture of a rollout that has just been planned.
fn view_of(ready: &Ready) -> Result<Value, CliError> {
    let roster: Roster =
        ready.trust.nodes.iter().map(|it| (it.node.clone(), it.labels.clone())).collect();
    let plan = Plan::new(&PlanRequest {
        intent: IntentId([0; 16]),
        service: ready.service.clone(),
        generation: ready.next,
        release: release(&ready.manifest),
        back_to: ready.back_to,
        emergency: ready.emergency.clone(),
        retry: None,
        targets: &ready.nodes,
        roster: &roster,
        roster_digest: ready.trust.roster_digest(),
        away: &away(ready),
        is_new: ready.nodes.iter().all(|node| is_new_to(ready, node)),
        parameters: &ready.parameters,
    })
    .map_err(|error| CliError::from_error(Code::NO_PLAN, &error))?;
    let controller = ready.fleet.controller.clone();
    let opening = Opening {
        plan,
        by: None,
        reason: String::new(),
        origins: ready.parameters.origins.clone(),
        before: observed(ready),
        controller: controller.clone(),
        term: 1,
    };
    let at = now();
    let id = |seq| EventId { origin: controller.clone(), epoch: EpochId::new(0, 0), seq: Seq(seq) };
    let events = (1..).zip(Rollout::open(opening, at));
    let records: Vec<Record> =
        events.map(|(seq, event)| Record { id: id(seq), at, event }).collect();
    let view = RolloutView::of(&records).ok().flatten();
    let view = view.and_then(|view| serde_json::to_value(view).ok());
    view.ok_or_else(|| CliError::new(Code::INTERNAL, "a plan that was made does not read"))
}

fn release(manifest: &Manifest) -> ReleaseId {
    ReleaseId::of(&codec::encode(manifest))
}

/// Returns what each node runs, as the controllers know it.
fn observed(ready: &Ready) -> BTreeMap<NodeId, Observed> {
    let of = |known: &crate::wire::status::FleetNode| {
        let status = known.status.as_ref()?;
        let runs = status.releases.iter().find(|it| it.service == ready.service);
        // As a controller sees it, or the waves would be others.
        let is_wanted =
            |it: &&InstanceStatus| it.service == ready.service && it.desired != Desired::Stopped;
        let mut wanted = status.instances.iter().filter(is_wanted).peekable();
        let is_up = wanted.peek().is_some() && wanted.all(is_up);
        let healthy = runs.is_none_or(|it| it.state == "good") && is_up;
        let release = runs.and_then(|it| it.release).map(ReleaseId);
        Some((known.node.clone(), Observed { release, healthy }))
    };
    ready.fleet.nodes.iter().filter(|it| ready.nodes.contains(&it.node)).filter_map(of).collect()
}

fn is_up(instance: &InstanceStatus) -> bool {
    let rests = [StateName::Inactive, StateName::Completed, StateName::Failed];
    readiness(instance) == Readiness::Yes || rests.contains(&instance.state)
}

/// Says whether a node is there and nothing is known of the service on it; as a controller sees it, or the waves would be
/// others.
fn is_new_to(ready: &Ready, node: &NodeId) -> bool {
    let known = ready.fleet.nodes.iter().find(|it| it.node == *node);
    // Of whom nothing was heard yet, nobody can say already that it is away.
    let known = known.filter(|it| it.reachable || it.last_seen.is_none());
    known.is_some_and(|known| {
        known.status.as_ref().is_none_or(|status| {
            !status.services.iter().any(|it| it.service == ready.service)
                && !status.releases.iter().any(|it| it.service == ready.service)
        })
    })
}

fn away(ready: &Ready) -> BTreeSet<NodeId> {
    let silent = ready.fleet.nodes.iter().filter(|it| !it.reachable);
    silent.map(|it| it.node.clone()).filter(|node| ready.nodes.contains(node)).collect()
}

/// Says of each release how people call it.
fn name_releases(view: &mut Value, ready: &Ready) {
    let own = format!("sha256:{}", release(&ready.manifest));
    let versions: BTreeMap<String, &str> = ready
        .fleet
        .nodes
        .iter()
        .filter_map(|node| node.status.as_ref())
        .flat_map(|status| &status.releases)
        .filter_map(|it| Some((format!("sha256:{}", it.release?), it.version.as_str())))
        .chain([(own, ready.manifest.version.as_str())])
        .filter(|(_, version)| !version.is_empty())
        .collect();
    let version = |digest: &Value| json!(digest.as_str().and_then(|digest| versions.get(digest)));
    for name in ["from", "to"] {
        if !view[name].is_null() {
            view[name]["version"] = version(&view[name]["digest"]);
        }
    }
    view["plan"]["rollback"]["version"] = version(&view["plan"]["rollback"]["to"]);
}

/// Compares the new spec with that of each release which nodes run from.
async fn changed_from(client: &mut Client, ready: &Ready) -> Result<Vec<Against>, CliError> {
    let mut runs: BTreeMap<ReleaseId, Vec<NodeId>> = BTreeMap::new();
    for (node, before) in observed(ready) {
        if let Some(release) = before.release {
            runs.entry(release).or_default().push(node);
        }
    }
    let new = effective(&ready.service, &ready.manifest)?;
    let mut all = Vec::new();
    for (of, nodes) in runs.into_iter().filter(|(of, _)| *of != release(&ready.manifest)) {
        let mut rows = ready.rows.iter();
        let row = rows
            .find(|row| row["service"] == ready.service.as_str() && release_of(row) == Some(of));
        let manifest = match row {
            Some(row) => manifest_of(client, row).await.ok(),
            None => None,
        };
        let version = manifest.as_ref().map(|it| it.version.clone()).unwrap_or_default();
        let old = manifest.and_then(|manifest| effective(&ready.service, &manifest).ok());
        let keys = old.map(|old| changes(&old.set(), &new.effective));
        let version = if version.is_empty() { of.short() } else { version };
        all.push(Against { nodes, version, keys });
    }
    Ok(all)
}

fn effective(service: &ServiceId, manifest: &Manifest) -> Result<config::LoadedService, CliError> {
    let layer = config::release_layer(release(manifest), manifest.clone());
    let mut loaded = config::assemble(vec![layer], &Options::default())
        .map_err(|mistakes| crate::cli::specs::mistaken(&mistakes, "nothing was planned"))?;
    let found = loaded.services.remove(service);
    found.ok_or_else(|| CliError::new(Code::BAD_MANIFEST, "the spec is about no service"))
}

/// Returns the keys that layers above the release set on some nodes: there the release changes nothing.
fn overridden(ready: &Ready) -> BTreeMap<String, BTreeSet<NodeId>> {
    let mut keys: BTreeMap<String, BTreeSet<NodeId>> = BTreeMap::new();
    for node in ready.fleet.nodes.iter().filter(|it| ready.nodes.contains(&it.node)) {
        let services = node.status.iter().flat_map(|status| &status.services);
        for service in services.filter(|it| it.service == ready.service) {
            for key in &service.overridden_keys {
                keys.entry(key.clone()).or_default().insert(node.node.clone());
            }
        }
    }
    keys
}
