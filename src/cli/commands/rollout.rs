//! Rollouts: a signed wish for the controllers, the way to its end, and what people say of it meanwhile.

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::cli::args::{RolloutArgs, Waiting};
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::follow::cri;
use crate::cli::interrupt::Interrupts;
use crate::cli::out::Out;
use crate::cli::screen::rollout::{Progress, detached_text, list_text, rollout_text};
use crate::cli::time::{instant, now};
use crate::config;
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{Generation, IntentId, NodeId, ServiceId};
use crate::domain::intent::{Action, RolloutCommand};
use crate::domain::release::{Manifest, ReleaseId};
use crate::domain::rollout::view::rollout_name;
use crate::domain::selector::{Roster, SelectError, Selector};
use crate::domain::time::UnixMicros;
use crate::head::keyfile::load_trust;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::payload::{Ask, Audience, Intent, Reply};
use crate::wire::status::FleetStatus;

/// How long a controller is asked to wait for the next fact, in milliseconds.
const WAIT_MS: u32 = 3_000;

/// The pause before controllers are asked again of which none answered.
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_millis(300);

/// How many last lines of an instance that failed are shown, how many are read to find them, and how long before the
/// start that is known they may be, in milliseconds.
const TAIL_LINES: usize = 10;
const READ_LINES: u32 = 500;
const BEFORE_MS: u64 = 1_000;

/// A release for a fleet.
pub(super) struct Wanted {
    pub(super) service: ServiceId,
    pub(super) manifest: Manifest,
    pub(super) select: Option<Selector>,
    pub(super) back_to: Option<ReleaseId>,
    pub(super) emergency: Option<String>,
}

/// Asks the controllers for a rollout, and goes with it to its end.
pub(super) async fn deploy(
    context: &Context,
    mut client: Client,
    wanted: Wanted,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let (action, audience) = intended(context, &mut client, wanted).await?;
    let wish = client.request(action, audience)?;
    let name = rollout_name(wish.id);
    let mut interrupts = Interrupts::watch()?;
    match interrupts.guard(send(&mut client, &wish)).await {
        Ok(sent) => {
            sent?;
        }
        Err(interrupted) => {
            out.note(&format!(
                "{name} may have been taken, and then it goes on: smgr rollout watch {name}"
            ));
            return Ok(interrupted.exit());
        }
    }
    if waiting.detach {
        return Ok(detached(&name, wish.id, out));
    }
    watch(context, client, name, out).await
}

/// Returns what is signed for the controllers: the release, and the nodes as the trust document selects them.
pub(super) async fn intended(
    context: &Context,
    client: &mut Client,
    wanted: Wanted,
) -> Result<(Action, Audience), CliError> {
    let Wanted { service, manifest, select, back_to, emergency } = wanted;
    let bytes = codec::encode(&manifest);
    let release = ReleaseId::of(&bytes);
    let rollouts = config::rollouts_of(config::release_layer(release, manifest))
        .map_err(|mistakes| crate::cli::specs::mistaken(&mistakes, "nothing was deployed"))?;
    let select = select.or(rollouts.placement.select).unwrap_or_else(Selector::every);
    let (trust, _) =
        load_trust(&context.folder).map_err(|error| crate::cli::wish::from_keys(&error))?;
    let roster: Roster =
        trust.nodes.iter().map(|it| (it.node.clone(), it.labels.clone())).collect();
    let nodes = select.select(&roster).map_err(|error| match error {
        SelectError::NothingMatches { .. } => CliError::from_error(Code::EMPTY_SELECTION, &error)
            .hint("see the nodes and their labels: smgr status -o json"),
        SelectError::NoSuchNode(_) => CliError::from_error(Code::NO_SUCH_NODE, &error),
    })?;
    let known = known(client, &service, &nodes.into_iter().collect::<Vec<_>>()).await?;
    let back_to = back_to.or_else(|| known.good.iter().copied().find(|good| *good != release));
    let action =
        Action::Deploy { service, generation: known.next, release: bytes, back_to, emergency };
    let audience = Audience::Select { selector: select.to_string(), roster: trust.roster_digest() };
    Ok((action, audience))
}

fn detached(name: &str, id: IntentId, out: Out) -> ExitCode {
    match out.is_text() {
        true => out.data(&detached_text(name)),
        false => out.json(&json!({
            "schema": "smgr.result.v1", "type": "result", "rollout": name, "intent": id.to_string(),
            "state": "planned", "exit_code": 0, "changed": true, "cursor": null, "why": null,
            "answered": 0, "missing": [],
        })),
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
    let mut good =
        rows.iter().filter(|row| row["service"] == service.as_str() && row["state"] == "succeeded");
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
    let earlier = good.find(|row| row["release"] != present["release"]).ok_or_else(none)?;
    let manifest = manifest_of(&mut client, earlier).await?;
    let select = match select {
        Some(select) => select,
        None => {
            let name = present["rollout"].as_str().unwrap_or_default();
            let view = view(&mut client, name, (0, 0)).await?;
            let nodes = nodes_of(&view, |_| true);
            Selector::nodes(&nodes)
        }
    };
    let back_to = release_of(present);
    let wanted = Wanted { service, manifest, select: Some(select), back_to, emergency: None };
    deploy(context, client, wanted, waiting, out).await
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
                false => out.json(&document),
            }
            return Ok(ExitCode::Done);
        }
        RolloutArgs::Show { name, exit_code } => {
            let mut view = view(&mut client, &name, (0, 0)).await?;
            add_tails(context, &mut view).await;
            match out.is_text() {
                true => out.data(&rollout_text(&view)),
                false => out.json_pretty(&view),
            }
            return Ok(if exit_code { exit_of(&view) } else { ExitCode::Done });
        }
        RolloutArgs::Watch { name } => return watch(context, client, name, out).await,
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
    let (name, state) = (&now["rollout"], &now["state"]);
    match out.is_text() {
        true => {
            let (name, state) = (name.as_str().unwrap_or_default(), state.as_str());
            let state = state.unwrap_or_default().replace('_', " ");
            out.line(&format!("{name}  {state}"));
        }
        false => out.json(&json!({
            "schema": "smgr.result.v1", "type": "result", "rollout": name, "state": state,
            "intent": wish.id.to_string(), "exit_code": 0, "changed": changed,
            "cursor": now["as_of"]["cursor"], "why": null, "answered": 1, "missing": [],
        })),
    }
    Ok(ExitCode::Done)
}

/// Adds the last lines of instances that failed, as far as their nodes still have them.
async fn add_tails(context: &Context, view: &mut Value) {
    let Some(service) = view["service"].as_str().and_then(|name| name.parse().ok()) else { return };
    for node in view["nodes"].as_array_mut().into_iter().flatten() {
        let (Some(name), Some(ended)) = (node["node"].as_str(), node["ended_at"].as_str()) else {
            continue;
        };
        let instance = node["failure"]["instance"].as_str().and_then(|it| it.split_once('@'));
        let index = instance.and_then(|(slot, _)| slot.split_once('/')?.1.parse().ok());
        let (Ok(name), Some(until), Some(index)) = (name.parse(), instant(ended, now()), index)
        else {
            continue;
        };
        let ran_ms = node["failure"]["ran_ms"].as_u64().unwrap_or_default();
        let from = UnixMicros(until.0.saturating_sub((ran_ms + BEFORE_MS) * 1000));
        let Some(lines) = lines_of(context, name, &service, index).await else { continue };
        let is_its = |at: &str| instant(at, now()).is_some_and(|at| (from..=until).contains(&at));
        let texts = lines.iter().filter_map(|line| cri(line)).filter(|(at, _)| is_its(at));
        let texts: Vec<&str> = texts.map(|(_, text)| text).collect();
        let last = &texts[texts.len().saturating_sub(TAIL_LINES)..];
        node["failure"]["log_tail"] = json!(last);
    }
}

async fn lines_of(
    context: &Context,
    node: NodeId,
    service: &ServiceId,
    index: u16,
) -> Option<Vec<String>> {
    let mut client = Client::connect(context, &Whom::new(context, [node])).await.ok()?;
    let ask =
        Ask::Logs { service: service.clone(), index: Some(index), lines: READ_LINES, wait: None };
    let mut pending = client.ask(ask).await.ok()?;
    let mut all = Vec::new();
    while let Some(answer) = pending.next().await.ok()? {
        if let Reply::Lines { lines, .. } = answer.reply {
            all.extend(lines);
        }
    }
    Some(all)
}

/// Deploys the release of a rollout again on the nodes that are not healthy on it.
async fn retry(
    context: &Context,
    mut client: Client,
    name: &str,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let view = view(&mut client, name, (0, 0)).await?;
    if view["ended_at"].is_null() {
        let why = format!("{} is still under way", view["rollout"].as_str().unwrap_or(name));
        return Err(CliError::new(Code::ROLLOUT_NOT_SO, why));
    }
    let left = nodes_of(&view, |state| state != "healthy" && state != "late_join");
    if left.is_empty() {
        let why = "every node is on the release already";
        return Err(CliError::new(Code::ROLLOUT_NOT_SO, why));
    }
    let manifest = manifest_of(&mut client, &view).await?;
    let wanted = Wanted {
        service: service_of(&view)?,
        manifest,
        select: Some(Selector::nodes(&left)),
        back_to: None,
        emergency: None,
    };
    deploy(context, client, wanted, waiting, out).await
}

/// Goes with a rollout to its end.
async fn watch(
    context: &Context,
    mut client: Client,
    name: String,
    out: Out,
) -> Result<ExitCode, CliError> {
    let mut interrupts = Interrupts::watch()?;
    let deadline = context.global.timeout.map(|timeout| Instant::now() + timeout);
    let mut progress = Progress::default();
    let mut facts = 0;
    loop {
        let ask = Ask::Rollout { name: name.clone(), seen: facts, wait_ms: WAIT_MS };
        let next = interrupts.guard(next(&mut client, &ask, deadline)).await;
        let view = match next {
            Err(interrupted) => {
                out.note(&format!("{name} goes on without you: smgr rollout watch {name}"));
                return Ok(interrupted.exit());
            }
            Ok(Err(Lost::Over)) => {
                out.note(&format!("{name} is still under way: smgr rollout watch {name}"));
                return Ok(ExitCode::StillRunning);
            }
            Ok(Err(Lost::Error(error))) => return Err(error),
            Ok(Ok(view)) => view,
        };
        facts = view["facts"].as_u64().and_then(|it| u32::try_from(it).ok()).unwrap_or_default();
        let news = progress.news(&view);
        if out.is_text() && !news.is_empty() {
            out.data(&news);
        }
        let exit = exit_of(&view);
        let waits = exit == ExitCode::Waits;
        if view["ended_at"].is_null() && !waits {
            continue;
        }
        if !out.is_text() {
            out.json(&result(&view));
        } else if waits {
            out.note(&format!("it waits for a person: smgr rollout show {name}"));
        } else if exit != ExitCode::Done {
            out.note(&format!("why: smgr rollout show {name}"));
        }
        return Ok(exit);
    }
}

/// Why there is no next picture.
enum Lost {
    Over,
    Error(CliError),
}

async fn next(client: &mut Client, ask: &Ask, deadline: Option<Instant>) -> Result<Value, Lost> {
    let asked = async {
        loop {
            match client.ask_for_whole(ask).await {
                Ok(Some(bytes)) => return read(&bytes).map_err(Lost::Error),
                // A controller that has just begun may not have heard of it yet; the others have.
                Ok(None) => {}
                Err(error) if error.code == Code::NO_SUCH_ROLLOUT => {
                    if matches!(ask, Ask::Rollout { seen: 0, .. }) {
                        return Err(Lost::Error(error));
                    }
                }
                Err(error) => return Err(Lost::Error(error)),
            }
            sleep(ASK_AGAIN).await;
        }
    };
    match deadline {
        None => asked.await,
        Some(deadline) => timeout_at(deadline, asked).await.unwrap_or(Err(Lost::Over)),
    }
}

/// Returns the last line of `-o jsonl`.
pub(crate) fn result(view: &Value) -> Value {
    let why = view["why"].as_array().and_then(|why| why.first()).map(|link| link["text"].clone());
    json!({
        "schema": "smgr.result.v1", "type": "result", "rollout": view["rollout"],
        "intent": view["id"], "state": view["state"], "exit_code": view["exit_code"],
        "changed": view["changed"], "cursor": view["as_of"]["cursor"], "why": why,
        "answered": view["nodes"].as_array().map_or(0, Vec::len), "missing": view["unreachable"],
    })
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

async fn known(
    client: &mut Client,
    service: &ServiceId,
    nodes: &[NodeId],
) -> Result<Known, CliError> {
    let fleet = super::fleet::ask(client).await?.ok_or_else(no_answer)?;
    if let Some(leader) = &fleet.leader {
        client.prefer(leader.clone());
    }
    let rows = rows(client).await?;
    Ok(Known::of(service, nodes, (&rows, &fleet)))
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
async fn rows(client: &mut Client) -> Result<Vec<Value>, CliError> {
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
    let sealed =
        envelope::read(&bytes, ENVELOPE_BYTES_MAX).map_err(|it| strange(it.to_string()))?;
    // Somebody signed it once; what is signed now is what is read here, and its digest has to be the known one.
    let intent: Intent =
        codec::decode(sealed.unverified_payload()).map_err(|it| strange(it.to_string()))?;
    let Action::Deploy { release, .. } = &intent.action else {
        return Err(strange("it deploys nothing".to_owned()));
    };
    if Some(ReleaseId::of(release)) != release_of(row) {
        return Err(strange("it is of another release".to_owned()));
    }
    codec::decode(release).map_err(|it| strange(it.to_string()))
}

fn id_of(row: &Value) -> Result<IntentId, CliError> {
    let id = row["id"].as_str().and_then(|id| id.parse().ok());
    id.ok_or_else(|| CliError::new(Code::INTERNAL, "a controller named no rollout"))
}

fn service_of(row: &Value) -> Result<ServiceId, CliError> {
    let service = row["service"].as_str().and_then(|service| service.parse().ok());
    service.ok_or_else(|| CliError::new(Code::INTERNAL, "a controller named no service"))
}

/// Returns the release of a line of the list, or of the whole object.
fn release_of(row: &Value) -> Option<ReleaseId> {
    let text = row["release"].as_str().or_else(|| row["to"]["digest"].as_str())?;
    Some(ReleaseId(text.strip_prefix("sha256:")?.parse().ok()?))
}

fn nodes_of(view: &Value, wanted: impl Fn(&str) -> bool) -> Vec<NodeId> {
    let nodes = view["nodes"].as_array().into_iter().flatten();
    let nodes = nodes.filter(|node| node["state"].as_str().is_some_and(&wanted));
    nodes.filter_map(|node| node["node"].as_str()?.parse().ok()).collect()
}

fn exit_of(view: &Value) -> ExitCode {
    let number = view["exit_code"].as_u64();
    let state = view["state"].as_str().unwrap_or_default();
    match number {
        Some(number) => {
            let is_it = |exit: &&ExitCode| u64::from(exit.number()) == number;
            ExitCode::ALL.iter().find(is_it).copied().unwrap_or(ExitCode::Internal)
        }
        None if state.starts_with("awaiting_") => ExitCode::Waits,
        None => ExitCode::StillRunning,
    }
}
