//! Rollouts: a signed wish for the controllers, the way to its end, and what people say of it meanwhile.

mod ahead;
mod tails;
mod watch;

use std::collections::BTreeSet;

use serde_json::Value;

use super::place;
use crate::cli::args::{RolloutArgs, Waiting};
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::interrupt::{Interrupted, Interrupts};
use crate::cli::json::error::ResultDocument;
use crate::cli::out::Out;
use crate::cli::screen::rollout::{detached_text, list_text, rollout_text};
use crate::config;
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{Generation, IntentId, NodeId, ServiceId};
use crate::domain::intent::{Action, RolloutCommand};
use crate::domain::policy::Kind;
use crate::domain::release::{Manifest, ReleaseId};
use crate::domain::rollout::view::rollout_name;
use crate::domain::rollout::{OnConflict, Parameters, Placement};
use crate::domain::selector::Selector;
use crate::head::keyfile::load_trust;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::payload::{Ask, Audience, Intent, Reply, Trust};
use crate::wire::status::FleetStatus;
pub(super) use ahead::plan;
use tails::{add_differences, add_tails};
pub(crate) use watch::result;
use watch::{Events, turn_comes, watch};

/// A release for a fleet.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) service: ServiceId,
    pub(super) manifest: Manifest,
    pub(super) select: Option<Selector>,
    pub(super) back_to: Option<ReleaseId>,
    pub(super) emergency: Option<String>,
    /// The rollout that it goes on with.
    pub(super) retry: Option<IntentId>,
    /// What follows when another one is under way, where that is not for the spec to say.
    pub(super) on_conflict: Option<OnConflict>,
    /// Whether it goes back to a release that succeeded.
    pub(super) rollback: bool,
}

/// Asks the controllers for a rollout, and goes with it to its end.
pub(super) async fn deploy(
    context: &Context,
    mut client: Client,
    wanted: Wanted,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let (wish, events) = loop {
        let ready = Ready::make(context, &mut client, wanted.clone()).await?;
        let wish = client.request(ready.action(), ready.audience())?;
        let events = Events::from_here(&mut client, out).await?;
        let mut interrupts = Interrupts::watch()?;
        let sent = match interrupts.guard(send(&mut client, &wish)).await {
            Ok(sent) => sent,
            Err(interrupted) => return Ok(may_go_on(wish.id, interrupted, out)),
        };
        match sent {
            Ok(_) => break (wish, events),
            Err(error) if error.code == Code::ROLLOUT_UNDER_WAY && ready.waits_its_turn() => {
                if waiting.detach {
                    return Err(error.hint("only a command that waits can stand in a queue"));
                }
                if !turn_comes(context, &mut client, &ready, out).await? {
                    return Ok(ExitCode::StillRunning);
                }
            }
            Err(error) => return Err(error),
        }
    };
    let name = rollout_name(wish.id);
    if waiting.detach {
        return Ok(detached(&name, wish.id, out));
    }
    watch(context, client, (name, events), out).await
}

/// Returns what is signed for the controllers: the release, and the nodes as the trust document selects them.
pub(super) async fn intended(
    context: &Context,
    client: &mut Client,
    wanted: Wanted,
) -> Result<(Action, Audience), CliError> {
    let ready = Ready::make(context, client, wanted).await?;
    Ok((ready.action(), ready.audience()))
}

/// A release for a fleet, with all that is known of it before it is signed.
struct Ready {
    service: ServiceId,
    manifest: Manifest,
    parameters: Parameters,
    select: Selector,
    nodes: BTreeSet<NodeId>,
    trust: Trust,
    back_to: Option<ReleaseId>,
    emergency: Option<String>,
    retry: Option<IntentId>,
    on_conflict: Option<OnConflict>,
    rollback: bool,
    placement: Placement,
    next: Generation,
    fleet: FleetStatus,
    /// The rollouts that are remembered, the last one first.
    rows: Vec<Value>,
}

impl Ready {
    async fn make(
        context: &Context,
        client: &mut Client,
        wanted: Wanted,
    ) -> Result<Self, CliError> {
        let Wanted { service, manifest, select, back_to, emergency, retry, on_conflict, rollback } =
            wanted;
        let release = ReleaseId::of(&codec::encode(&manifest));
        let rollouts = config::rollouts_of(config::release_layer(release, manifest.clone()))
            .map_err(|mistakes| crate::cli::specs::mistaken(&mistakes, "nothing was deployed"))?;
        let placement = rollouts.placement;
        let select = select.or(placement.select.clone()).unwrap_or_else(Selector::every);
        let (trust, _) =
            load_trust(&context.folder).map_err(|error| crate::cli::wish::from_keys(&error))?;
        let nodes = place::matching(&trust, &select)?;
        let fleet = super::fleet::ask(client).await?.ok_or_else(no_answer)?;
        if let Some(leader) = &fleet.leader {
            client.prefer(leader.clone());
        }
        let rows = rows(client).await?;
        let targets: Vec<NodeId> = nodes.iter().cloned().collect();
        let known = Known::of(&service, &targets, (&rows, &fleet));
        let back_to = back_to.or_else(|| known.good.iter().copied().find(|good| *good != release));
        let (parameters, next) = (rollouts.parameters.on_the_way(rollback), known.next);
        Ok(Self {
            service,
            manifest,
            parameters,
            select,
            nodes,
            trust,
            back_to,
            emergency,
            retry,
            on_conflict,
            rollback,
            placement,
            next,
            fleet,
            rows,
        })
    }

    fn waits_its_turn(&self) -> bool {
        self.on_conflict.unwrap_or(self.parameters.on_conflict) == OnConflict::Queue
    }

    fn audience(&self) -> Audience {
        let (selector, roster) = (self.select.to_string(), self.trust.roster_digest());
        Audience::Select { selector, roster }
    }

    fn action(&self) -> Action {
        Action::Deploy {
            service: self.service.clone(),
            generation: self.next,
            release: codec::encode(&self.manifest),
            back_to: self.back_to,
            emergency: self.emergency.clone(),
            retry: self.retry,
            on_conflict: self.on_conflict,
            rollback: self.rollback,
        }
    }
}

fn detached(name: &str, id: IntentId, out: Out) -> ExitCode {
    match out.is_text() {
        true => out.data(&detached_text(name)),
        false => out.json(&ResultDocument {
            rollout: Some(name.to_owned()),
            intent: Some(id.to_string()),
            changed: Some(true),
            ..ResultDocument::new("planned", ExitCode::Done)
        }),
    }
    ExitCode::Done
}

/// Lets a fleet run from the release that succeeded before the present one.
pub(super) async fn rollback(
    context: &Context,
    mut client: Client,
    (service, select): (ServiceId, Option<Selector>),
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let rows = rows(&mut client).await?;
    let mut good = rows.iter().filter(|row| {
        let is_it = row["service"] == service.as_str() && row["state"] == "succeeded";
        is_it && row["kind"] != "configure"
    });
    let none = || {
        CliError::new(
            Code::NO_EARLIER_RELEASE,
            format!(
                "no rollout of {service} is remembered whose release succeeded before this one"
            ),
        )
        .next("smgr rollout list")
    };
    let present = good.next().ok_or_else(none)?;
    let manifest = earlier(&mut client, present, good).await?.ok_or_else(none)?;
    let select = match select {
        Some(select) => select,
        None => {
            let name = present["rollout"].as_str().unwrap_or_default();
            let view = view(&mut client, name, (0, 0)).await?;
            placed(context, &manifest, nodes_of(&view, |_| true))?
        }
    };
    let back_to = release_of(present);
    let select = Some(select);
    let wanted = Wanted {
        service,
        manifest,
        select,
        back_to,
        emergency: None,
        retry: None,
        on_conflict: None,
        rollback: true,
    };
    deploy(context, client, wanted, waiting, out).await
}

/// Returns the first of the releases whose content is another than that of the present one: a release that was only started
/// anew is no way back.
async fn earlier<'r>(
    client: &mut Client,
    present: &Value,
    good: impl Iterator<Item = &'r Value>,
) -> Result<Option<Manifest>, CliError> {
    let mut others = good.filter(|row| row["release"] != present["release"]).peekable();
    if others.peek().is_none() {
        return Ok(None);
    }
    // One whose wish is not remembered any more is another one as far as anybody knows.
    let own = manifest_of(client, present).await.ok();
    for row in others {
        let manifest = manifest_of(client, row).await?;
        if !own.as_ref().is_some_and(|own| own.is_like(&manifest)) {
            return Ok(Some(manifest));
        }
    }
    Ok(None)
}

/// Returns the selection that means these nodes: the one of `[placement]` where it is the same, so that nodes which join
/// later are meant as well.
fn placed(
    context: &Context,
    manifest: &Manifest,
    nodes: Vec<NodeId>,
) -> Result<Selector, CliError> {
    let release = ReleaseId::of(&codec::encode(manifest));
    let rollouts = config::rollouts_of(config::release_layer(release, manifest.clone()));
    let select = rollouts.ok().and_then(|rollouts| rollouts.placement.select);
    let (trust, _) =
        load_trust(&context.folder).map_err(|error| crate::cli::wish::from_keys(&error))?;
    let is_same = |select: &Selector| {
        place::matching(&trust, select)
            .is_ok_and(|meant| meant.iter().eq(nodes.iter().collect::<BTreeSet<_>>()))
    };
    Ok(select.filter(is_same).unwrap_or_else(|| Selector::nodes(&nodes)))
}

/// Has something done to a service on nodes of a fleet, and goes with it to the end.
pub(super) async fn over_fleet(
    context: &Context,
    mut client: Client,
    (service, select): (ServiceId, Selector),
    action: impl FnOnce(ServiceId, Generation) -> Action,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let (trust, _) =
        load_trust(&context.folder).map_err(|error| crate::cli::wish::from_keys(&error))?;
    let nodes: Vec<NodeId> = place::matching(&trust, &select)?.into_iter().collect();
    let fleet = super::fleet::ask(&mut client).await?.ok_or_else(no_answer)?;
    if let Some(leader) = &fleet.leader {
        client.prefer(leader.clone());
    }
    let rows = rows(&mut client).await?;
    let generation = Known::of(&service, &nodes, (&rows, &fleet)).next;
    let audience = Audience::Select { selector: select.to_string(), roster: trust.roster_digest() };
    let wish = client.request(action(service, generation), audience)?;
    let events = Events::from_here(&mut client, out).await?;
    let mut interrupts = Interrupts::watch()?;
    match interrupts.guard(send(&mut client, &wish)).await {
        Ok(sent) => sent?,
        Err(interrupted) => return Ok(may_go_on(wish.id, interrupted, out)),
    };
    let name = rollout_name(wish.id);
    if waiting.detach {
        return Ok(detached(&name, wish.id, out));
    }
    watch(context, client, (name, events), out).await
}

/// Says that a wish was sent whose answer nobody waited for.
fn may_go_on(wish: IntentId, interrupted: Interrupted, out: Out) -> ExitCode {
    let name = rollout_name(wish);
    out.note(&format!(
        "{name} may have been taken, and then it goes on: smgr rollout watch {name}"
    ));
    interrupted.exit()
}

/// Shows rollouts, or says how one goes on.
pub(super) async fn rollout(
    context: &Context,
    command: RolloutArgs,
    out: Out,
) -> Result<ExitCode, CliError> {
    let mut client = Client::of_controllers(context).await?.ok_or_else(|| {
        CliError::new(Code::NO_LEADER, "this machine belongs to no fleet with a controller")
    })?;
    let (name, command) = match command {
        RolloutArgs::List => {
            let document = document(&mut client, &Ask::Rollouts).await?;
            match out.is_text() {
                true => out.data(&list_text(&document)),
                false => out.document(&document, "rollouts"),
            }
            return Ok(ExitCode::Done);
        }
        RolloutArgs::Show { name, exit_code } => {
            let mut view = view(&mut client, &name, (0, 0)).await?;
            add_tails(context, &mut view).await;
            add_differences(context, &mut view).await;
            match out.is_text() {
                true => out.data(&rollout_text(&view)),
                false => out.document(&view, ""),
            }
            return Ok(if exit_code { exit_of(&view) } else { ExitCode::Done });
        }
        RolloutArgs::Watch { name } => {
            // Another one may not have heard yet that what it waited for was said.
            if let Some(leader) = super::fleet::ask(&mut client).await?.and_then(|it| it.leader) {
                client.prefer(leader);
            }
            return watch(context, client, (name, Events::wanted(out)), out).await;
        }
        RolloutArgs::Retry { name, waiting } => {
            return retry(context, client, &name, waiting, out).await;
        }
        RolloutArgs::Pause { name } => (name, RolloutCommand::Pause),
        RolloutArgs::Resume { name } => (name, RolloutCommand::Resume),
        RolloutArgs::Promote { name } => (name, RolloutCommand::Promote),
        RolloutArgs::Approve { name } => (name, RolloutCommand::Approve),
        RolloutArgs::Abort { name, leave } => (name, RolloutCommand::Abort { rollback: !leave }),
    };
    let before = view(&mut client, &name, (0, 0)).await?;
    let (service, rollout) = (service_of(&before)?, id_of(&before)?);
    let action = Action::Rollout { service, rollout, command };
    let wish = client.request(action, Audience::Nodes(client.controllers()))?;
    let changed = send(&mut client, &wish).await?;
    let now = view(&mut client, &name, (0, 0)).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (name, state) = (text(&now["rollout"]), text(&now["state"]));
    match out.is_text() {
        true => out.line(&format!("{name}  {}", state.replace('_', " "))),
        false => out.json(&ResultDocument {
            rollout: Some(name),
            intent: Some(wish.id.to_string()),
            changed: Some(changed),
            cursor: now["as_of"]["cursor"].as_str().map(str::to_owned),
            answered: 1,
            ..ResultDocument::new(state, ExitCode::Done)
        }),
    }
    Ok(ExitCode::Done)
}

/// Goes on with a rollout that ended, on the nodes that are not healthy on its release.
async fn retry(
    context: &Context,
    mut client: Client,
    name: &str,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let view = view(&mut client, name, (0, 0)).await?;
    let left = match left_of(&view)? {
        Left::Release(left) => left,
        Left::Removal(left) => {
            let whence = (service_of(&view)?, Selector::nodes(&left));
            let remove = |service, generation| Action::Remove { service, generation };
            return over_fleet(context, client, whence, remove, waiting, out).await;
        }
    };
    let manifest = manifest_of(&mut client, &view).await?;
    let wanted = Wanted {
        service: service_of(&view)?,
        manifest,
        select: Some(Selector::nodes(&left)),
        back_to: None,
        emergency: None,
        retry: Some(id_of(&view)?),
        on_conflict: None,
        rollback: false,
    };
    deploy(context, client, wanted, waiting, out).await
}

/// What a rollout that ended has left to do, and on which nodes.
pub(crate) enum Left {
    /// They are not healthy on its release.
    Release(Vec<NodeId>),
    /// They have the service still.
    Removal(Vec<NodeId>),
}

/// Returns what a rollout has left to do that is gone on with.
pub(crate) fn left_of(view: &Value) -> Result<Left, CliError> {
    let not_so = |why: String| Err(CliError::new(Code::ROLLOUT_NOT_SO, why));
    if view["ended_at"].is_null() {
        let name = view["rollout"].as_str().unwrap_or("it");
        return not_so(format!("{name} is still under way"));
    }
    let left = nodes_of(view, |state| state != "healthy" && state != "late_join");
    match view["kind"].as_str() {
        _ if left.is_empty() => not_so("every node is on the release already".to_owned()),
        Some("remove") => Ok(Left::Removal(left)),
        Some("configure") => {
            not_so("what was set is known to the nodes alone: set it again".to_owned())
        }
        _ => Ok(Left::Release(left)),
    }
}

/// Sends a wish and returns whether it changed something.
async fn send(client: &mut Client, wish: &crate::cli::wish::Signed) -> Result<bool, CliError> {
    match client.send_request(wish).await? {
        Some(Reply::Accepted { .. }) => Ok(true),
        Some(Reply::Outcome { .. }) => Ok(false),
        Some(Reply::Refused { code, why }) => {
            let error = CliError::new(code.parse().unwrap_or(Code::INTERNAL), why);
            Err(match error.code {
                Code::ROLLOUT_UNDER_WAY => error.next("smgr rollout list"),
                _ => error,
            })
        }
        Some(_) => Err(CliError::new(Code::INTERNAL, "a controller answered something else")),
        None => Err(CliError::new(Code::NO_LEADER, "no controller that leads answered in time")
            .hint("given again, it is another wish: see first what became of it")
            .next("smgr rollout list")),
    }
}

/// What the fleet knows of a service's releases.
pub(crate) struct Known {
    pub(crate) next: Generation,
    /// What succeeded, the last first; else what all nodes run.
    pub(crate) good: Vec<ReleaseId>,
}

impl Known {
    /// Folds what the controllers remember of rollouts, and what the nodes say.
    pub(crate) fn of(
        service: &ServiceId,
        nodes: &[NodeId],
        (rows, fleet): (&[Value], &FleetStatus),
    ) -> Self {
        let of: Vec<&Value> =
            rows.iter().filter(|row| row["service"] == service.as_str()).collect();
        let led = of.iter().filter_map(|row| row["generation"].as_u64()).max();
        let led = led.map_or(0, |generation| generation.saturating_add(1));
        let statuses =
            fleet.nodes.iter().filter_map(|node| Some((&node.node, node.status.as_ref()?)));
        let all =
            statuses.flat_map(|(node, status)| status.releases.iter().map(move |it| (node, it)));
        let there: Vec<_> = all.filter(|(_, it)| it.service == *service).collect();
        let taken = there.iter().map(|(_, it)| it.generation.0).max().unwrap_or(0);
        let succeeded = of.iter().filter(|row| row["state"] == "succeeded");
        let mut good: Vec<ReleaseId> = succeeded.filter_map(|row| release_of(row)).collect();
        if good.is_empty() {
            let here = there.iter().filter(|(node, it)| nodes.contains(node) && it.state == "good");
            let mut run: Vec<ReleaseId> =
                here.filter_map(|(_, it)| it.release.map(ReleaseId)).collect();
            run.sort();
            run.dedup();
            if let [one] = run.as_slice() {
                good.push(*one);
            }
        }
        Self { next: Generation(led.max(taken) + 1), good }
    }
}

fn no_answer() -> CliError {
    CliError::new(Code::NO_LEADER, "no controller answers")
}

async fn document(client: &mut Client, ask: &Ask) -> Result<Value, CliError> {
    let bytes = client.ask_for_whole(ask).await?.ok_or_else(no_answer)?;
    read(&bytes)
}

fn read(bytes: &[u8]) -> Result<Value, CliError> {
    serde_json::from_slice(bytes).map_err(|error| {
        CliError::caused(Code::INTERNAL, "a controller's answer does not read", &error)
    })
}

async fn view(
    client: &mut Client,
    name: &str,
    (seen, wait_ms): (u32, u32),
) -> Result<Value, CliError> {
    document(client, &Ask::Rollout { name: name.to_owned(), seen, wait_ms }).await
}

/// Returns the rollouts that are remembered, newest first.
pub(super) async fn rows(client: &mut Client) -> Result<Vec<Value>, CliError> {
    let mut document = document(client, &Ask::Rollouts).await?;
    match document["rollouts"].take() {
        Value::Array(rows) => Ok(rows),
        _ => Ok(Vec::new()),
    }
}

/// Returns the manifest in the signed wish behind a rollout.
async fn manifest_of(client: &mut Client, row: &Value) -> Result<Manifest, CliError> {
    let rollout = id_of(row)?;
    let bytes = client.ask_for_whole(&Ask::Wish { rollout }).await?.ok_or_else(no_answer)?;
    let strange = |why: String| CliError::new(Code::WISH_GONE, why);
    // Somebody signed it once; what is signed now is what is read here, and its digest has to be the known one.
    let intent: Intent =
        envelope::read_kept(&bytes, Kind::Intent).map_err(|it| strange(it.to_string()))?;
    let Action::Deploy { release, .. } = &intent.action else {
        return Err(strange("it deploys nothing".to_owned()));
    };
    if Some(ReleaseId::of(release)) != release_of(row) {
        return Err(strange("it is of another release".to_owned()));
    }
    codec::decode(release).map_err(|it| strange(it.to_string()))
}

pub(crate) fn id_of(row: &Value) -> Result<IntentId, CliError> {
    let id = row["id"].as_str().and_then(|id| id.parse().ok());
    id.ok_or_else(|| CliError::new(Code::INTERNAL, "a controller named no rollout"))
}

pub(crate) fn service_of(row: &Value) -> Result<ServiceId, CliError> {
    let service = row["service"].as_str().and_then(|service| service.parse().ok());
    service.ok_or_else(|| CliError::new(Code::INTERNAL, "a controller named no service"))
}

/// Returns the release of a line of the list, or of the whole object.
fn release_of(row: &Value) -> Option<ReleaseId> {
    (row["kind"] == "deploy").then_some(())?;
    let text = row["release"].as_str().or_else(|| row["to"]["digest"].as_str())?;
    Some(ReleaseId(text.strip_prefix("sha256:")?.parse().ok()?))
}

fn nodes_of(view: &Value, wanted: impl Fn(&str) -> bool) -> Vec<NodeId> {
    let nodes = view["nodes"].as_array().into_iter().flatten();
    let nodes = nodes.filter(|node| node["state"].as_str().is_some_and(&wanted));
    nodes.filter_map(|node| node["node"].as_str()?.parse().ok()).collect()
}

/// Says whether something was done that is no release, and nodes did not answer.
fn is_unheard(view: &Value) -> bool {
    let unreachable = view["unreachable"].as_array();
    view["kind"] != "deploy" && unreachable.is_some_and(|nodes| !nodes.is_empty())
}

/// Returns how a command ends that waits for a rollout.
pub(crate) fn exit_of(view: &Value) -> ExitCode {
    let number = view["exit_code"].as_u64();
    match number {
        // It is gone from where somebody answered; of the others nobody can say.
        Some(0) if is_unheard(view) => ExitCode::Unknown,
        Some(number) => {
            let is_it = |exit: &&ExitCode| u64::from(exit.number()) == number;
            ExitCode::ALL.iter().find(is_it).copied().unwrap_or(ExitCode::Internal)
        }
        None if !view["waits_for"].is_null() => ExitCode::Waits,
        None => ExitCode::StillRunning,
    }
}
