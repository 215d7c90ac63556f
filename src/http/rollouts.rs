//! Rollouts: asked for by a job, followed to their end, and said how to go on. Whichever controller leads decides; an answer here
//! is its word.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::callers::Caller;
use super::events::{PAGES, QUIET, STUCK, page};
use super::problem::{Problem, tell_exit};
use super::reading::{NOT_KEPT, Parameters, TASK_WITHIN, fleet, json_response, unexpected};
use super::requests::Kept;
use super::serve::{Shared, whole_body};
use super::wishes::{Asked, another, blocking, id_of, random_id, unreadable};
use crate::cli::commands::place::matching;
use crate::cli::commands::release::format_of;
use crate::cli::commands::rollout::{self, Known, Left, exit_of, left_of, result};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::screen::words::full_intent;
use crate::cli::specs::mistaken;
use crate::config;
use crate::controller::Access;
use crate::domain::code::Code;
use crate::domain::id::{Digest, IntentId, NodeId, ServiceId};
use crate::domain::intent::{Action, RolloutCommand, Verb};
use crate::domain::policy::{KeyClass, Kind};
use crate::domain::release::{Artifact, MANIFEST_VERSION, Manifest, ReleaseId, SPEC_BYTES_MAX};
use crate::domain::rollout::OnConflict;
use crate::domain::rollout::view::rollout_name;
use crate::domain::selector::Selector;
use crate::domain::text;
use crate::head::authority::{Enrolment, Way};
use crate::head::clock;
use crate::head::keyfile::load_trust;
use crate::head::manifest::check_manifest;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::digest_of;
use crate::wire::payload::{Ask, Audience, Intent, Mode, PAYLOAD_VERSION, Reply, Trust};

/// How long the controller that leads may take to answer.
const LEADER_WITHIN: Duration = Duration::from_secs(30);

/// How long its first facts may take to arrive here.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// How long a word about a rollout may be taken after it was signed.
const WORD_LIFE_MS: u64 = 120_000;

/// The longest wait for the end of a rollout in one request, and of one question for its next fact.
const END_WITHIN: Duration = Duration::from_secs(300);
const FACT_WITHIN: Duration = Duration::from_secs(15);

/// What is to be deployed.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Deploy {
    /// Which service.
    service: ServiceId,
    /// A release that a rollout before was about: `sha256:…`, as rollouts and status show it. Instead of `spec`.
    release: Option<String>,
    /// The spec: the text of a file of services.d.
    spec: Option<String>,
    /// What the spec runs, where nodes can fetch it.
    artifact: Option<At>,
    /// What people call the release.
    #[serde(default)]
    version: String,
    /// On which nodes: `env=prod,role=web`. Absent: what `[placement]` says, or all.
    select: Option<String>,
    /// Start it anew where the same runs already.
    #[serde(default)]
    force: bool,
    /// What follows when another rollout of the service is under way. Absent: what `rollout.on_conflict` of the spec says.
    on_conflict: Option<OnConflict>,
    /// What the caller says of itself, for the history. At most 200 bytes.
    #[serde(default)]
    note: String,
}

/// Where an artifact is, and what it is.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct At {
    /// `http://…` or `file:/…`.
    url: String,
    /// SHA-256 of its bytes, in hex.
    sha256: String,
    /// How many they are.
    bytes: u64,
}

/// `POST /v1/rollouts`.
pub(super) async fn deploy(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let caller = shared.callers.find(&headers)?;
    let asked = Asked::read(query.as_deref(), &headers)?;
    let until = Instant::now() + asked.wait;
    let bytes = whole_body(body, ENVELOPE_BYTES_MAX).await?;
    let deploy: Deploy = serde_json::from_slice(&bytes).map_err(|error| {
        let why = text::brief(error.to_string(), text::WHY_BYTES_MAX);
        Problem::new(Code::USAGE, format!("the body was not understood: {why}"))
    })?;
    let (id, known) = before(&shared, &caller, asked.key.as_deref()).await?;
    let request = digest_of(&bytes);
    let kept = match known {
        Some(known) => known,
        None => {
            let note = deploy.note.clone();
            let wanted = wanted(&shared.access, deploy).await?;
            let intent = intent_of(&shared.access, wanted, until).await?;
            signed(&shared, &caller, (id, request, &note), intent)?
        }
    };
    asked_for(&shared, &caller, (id, request), kept, rollout_name(id)).await
}

/// `POST /v1/rollouts/{rollout}/{command}`.
pub(super) async fn command(
    State(shared): State<Arc<Shared>>,
    Path((rollout, command)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let caller = shared.callers.find(&headers)?;
    let asked = Asked::read(query.as_deref(), &headers)?;
    let command = match command.as_str() {
        "retry" => return retry(&shared, &caller, asked, &rollout).await,
        "pause" => RolloutCommand::Pause,
        "resume" => RolloutCommand::Resume,
        "promote" => RolloutCommand::Promote,
        "approve" => RolloutCommand::Approve,
        "abort" => RolloutCommand::Abort { rollback: true },
        other => {
            let what = format!("`{other}` is no word to a rollout");
            return Err(Problem::new(Code::NO_SUCH_PATH, what)
                .hint("pause, resume, promote, approve, abort, retry"));
        }
    };
    let view = view(&shared.access, &rollout, (0, Duration::ZERO)).await?;
    let (service, of) = (rollout::service_of(&view)?, rollout::id_of(&view)?);
    let (id, known) = before(&shared, &caller, asked.key.as_deref()).await?;
    let request = digest_of(format!("{of} {command:?}").as_bytes());
    let kept = match known {
        Some(known) => known,
        None => {
            let holders = shared.access.ring().iter().map(|(_, holder)| holder);
            let controllers = holders.filter(|holder| holder.class == KeyClass::Controller);
            let controllers = controllers.filter_map(|it| it.name.as_str().parse().ok()).collect();
            let action = Action::Rollout { service, rollout: of, command };
            let intent = (Mode::Once, action, Audience::Nodes(controllers));
            signed(&shared, &caller, (id, request, ""), intent)?
        }
    };
    asked_for(&shared, &caller, (id, request), kept, rollout_name(of)).await
}

/// Goes on with a rollout that ended, by a rollout of its own: on the nodes that are not healthy on the release.
async fn retry(
    shared: &Shared,
    caller: &Caller<'_>,
    asked: Asked,
    rollout: &str,
) -> Result<Response, Problem> {
    let until = Instant::now() + asked.wait;
    let view = view(&shared.access, rollout, (0, Duration::ZERO)).await?;
    let of = rollout::id_of(&view)?;
    let (id, known) = before(shared, caller, asked.key.as_deref()).await?;
    let request = digest_of(format!("{of} retry").as_bytes());
    let kept = match known {
        Some(known) => known,
        None => {
            let intent = match (left_of(&view)?, rollout::service_of(&view)?) {
                (Left::Release(left), service) => {
                    let wanted = Wanted {
                        service,
                        manifest: manifest_behind(&shared.access, of).await?,
                        select: Some(Selector::nodes(&left)),
                        retry: Some(of),
                        on_conflict: None,
                    };
                    intent_of(&shared.access, wanted, until).await?
                }
                (Left::Removal(left), service) => {
                    removal(&shared.access, service, &Selector::nodes(&left)).await?
                }
            };
            signed(shared, caller, (id, request, ""), intent)?
        }
    };
    asked_for(shared, caller, (id, request), kept, rollout_name(id)).await
}

/// `GET /v1/rollouts`.
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Status)?;
    Parameters::read(query.as_deref())?.end()?;
    let document = document(&shared.access, Ask::Rollouts, TASK_WITHIN).await?;
    Ok(json_response(StatusCode::OK, &document))
}

/// `GET /v1/rollouts/{rollout}`.
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(rollout): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Status)?;
    let mut parameters = Parameters::read(query.as_deref())?;
    let wait = parameters.duration("wait")?.unwrap_or_default().min(END_WITHIN);
    parameters.end()?;
    let until = Instant::now() + wait;
    let mut seen = 0;
    loop {
        let left = until.saturating_duration_since(Instant::now()).min(FACT_WITHIN);
        let view = view(&shared.access, &rollout, (seen, left)).await?;
        if stands(&view) || Instant::now() >= until {
            let mut response = json_response(StatusCode::OK, &view);
            tell_exit(&mut response, exit_of(&view).number());
            return Ok(response);
        }
        seen = facts_of(&view);
    }
}

/// `GET /v1/rollouts/{rollout}/events`: one event a line, and the result behind its end, or where a person is awaited.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    Path(rollout): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    shared.callers.find(&headers)?.may_read(Verb::Events)?;
    let mut parameters = Parameters::read(query.as_deref())?;
    let mut after = parameters.cursor("since")?;
    let follow = parameters.switch("follow")?;
    parameters.end()?;
    let place = shared.followers.clone().try_acquire_owned().map_err(|_| {
        let what = "too many follow the stream already";
        Problem::new(Code::BUSY, what).status(StatusCode::SERVICE_UNAVAILABLE)
    })?;
    let first = view(&shared.access, &rollout, (0, Duration::ZERO)).await?;
    let name = first["rollout"].as_str().unwrap_or_default().to_owned();
    let (sender, receiver) = mpsc::channel::<String>(PAGES);
    tokio::spawn(async move {
        let _place = place;
        let (mut ended, mut wait): (Option<Value>, _) = (None, Duration::ZERO);
        loop {
            let read = tokio::select! {
                read = page(&shared, after.clone(), wait, None) => read,
                () = sender.closed() => return,
            };
            let Ok(read) = read else { return };
            let of_it = read.events.iter().filter(|(_, event)| event["rollout"] == name.as_str());
            let mut lines: String = of_it.map(|(_, event)| json::line(event) + "\n").collect();
            after = read.last.or(after);
            let caught_up = after.as_ref().is_none_or(|after| after.seq >= read.head.seq);
            let result = ended.take().filter(|_| caught_up).map(|view| json::line(&result(&view)));
            let is_last = result.is_some() || caught_up && !follow && wait > Duration::ZERO;
            lines.extend(result.map(|line| line + "\n"));
            if !lines.is_empty() {
                let sent = timeout(STUCK, sender.send(lines)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
            if is_last {
                return;
            }
            if caught_up {
                // What had ended by now stands in events that are here: one page more has the last of them.
                let Ok(view) = view(&shared.access, &name, (0, Duration::ZERO)).await else {
                    return;
                };
                ended = stands(&view).then_some(view);
                wait = match (&ended, follow) {
                    (None, true) => QUIET,
                    _ => Duration::from_millis(1),
                };
            }
        }
    });
    let body = stream::unfold(receiver, |mut receiver| async {
        let text = receiver.recv().await?;
        Some((Ok::<_, Infallible>(text), receiver))
    });
    let kind = (header::CONTENT_TYPE, "application/jsonl");
    Ok(([kind, NOT_KEPT], Body::from_stream(body)).into_response())
}

/// Returns the id of a request, and what is kept of it when it came before.
async fn before(
    shared: &Shared,
    caller: &Caller<'_>,
    key: Option<&str>,
) -> Result<(IntentId, Option<Kept>), Problem> {
    let Some(key) = key else { return Ok((random_id()?, None)) };
    let (id, requests) = (id_of(caller, key), shared.requests.clone());
    Ok((id, blocking(move || requests.get(id)).await?.map_err(unreadable)?))
}

/// Signs a wish for the controllers by the key of the caller's token, when the gate of a controller would take it.
fn signed(
    shared: &Shared,
    caller: &Caller<'_>,
    (id, request, note): (IntentId, Digest, &str),
    (mode, action, audience): (Mode, Action, Audience),
) -> Result<Kept, Problem> {
    let iat = clock::now().at;
    let note = text::brief(note.to_owned(), 200);
    let intent = Intent {
        v: PAYLOAD_VERSION,
        id,
        iss: caller.kid(),
        iat,
        exp: iat.plus_ms(WORD_LIFE_MS),
        fleet: shared.access.fleet().clone(),
        mode,
        action,
        audience,
        note: format!("http token {} {note}", caller.token).trim_end().to_owned(),
    };
    let bytes = envelope::seal(Kind::Intent, &codec::encode(&intent), caller.signer);
    let trust = trust_of(&shared.access)?;
    let mut gate = shared.gate();
    let roster = trust.roster_digest();
    gate.enrol(Enrolment::from(trust.nodes));
    // A word about a rollout is granted or not by who leads it, which knows its nodes.
    if let Action::Rollout { .. } = intent.action {
        return Ok(Kept::new(request, &bytes));
    }
    let requested = gate.request(&bytes, Way::Bus, (iat, roster))?;
    match requested.verified.objection {
        Some(objection) => Err(objection.into()),
        None => Ok(Kept::new(request, &bytes)),
    }
}

/// Keeps a wish for the controllers, brings it to the one that leads, and tells where its way can be followed.
async fn asked_for(
    shared: &Shared,
    caller: &Caller<'_>,
    (id, request): (IntentId, Digest),
    kept: Kept,
    rollout: String,
) -> Result<Response, Problem> {
    if !kept.is_of(request) {
        return Err(another());
    }
    let requests = shared.requests.clone();
    let by = caller.kid();
    let (kept, _) = blocking(move || requests.keep(id, by, kept)).await??;
    if !kept.is_of(request) {
        return Err(another());
    }
    let bytes = kept.envelope().map_err(unreadable)?;
    let until = Instant::now() + LEADER_WITHIN;
    let changed = match shared.access.request(&caller.holder.name, (id, &bytes), until).await {
        Some(Reply::Accepted { .. }) => true,
        Some(Reply::Outcome { .. }) => false,
        Some(reply) => return Err(unexpected(reply)),
        None => {
            return Err(Problem::new(Code::NO_LEADER, "no controller that leads answered in time")
                .hint("sent again with the same Idempotency-Key it is the same wish"));
        }
    };
    if changed {
        is_heard_of(&shared.access, &rollout).await?;
    }
    let place = format!("/v1/rollouts/{rollout}");
    let document = json!({
        "schema": "smgr.asked.v1", "id": rollout, "intent": full_intent(id), "changed": changed,
        "status_url": place, "events_url": format!("{place}/events?follow=1"),
    });
    let location = [(header::LOCATION, place.clone())];
    Ok((location, json_response(StatusCode::ACCEPTED, &document)).into_response())
}

/// Waits until this controller has heard of a rollout: the one that leads may be another, and whoever asked asks here next.
async fn is_heard_of(access: &Access, rollout: &str) -> Result<(), Problem> {
    let until = Instant::now() + HEARD_WITHIN;
    let mut after = None;
    while Instant::now() < until && view(access, rollout, (0, Duration::ZERO)).await.is_err() {
        let ask = Ask::Arrivals { after, events_max: 1, wait_ms: 1000 };
        after = match access.ask(ask, TASK_WITHIN).await? {
            Reply::Arrivals { head, .. } => Some(head),
            reply => return Err(unexpected(reply)),
        };
    }
    Ok(())
}

/// A release for a fleet, and how it is to get there.
struct Wanted {
    service: ServiceId,
    manifest: Manifest,
    select: Option<Selector>,
    /// The rollout that it goes on with.
    retry: Option<IntentId>,
    on_conflict: Option<OnConflict>,
}

/// Reads what is asked.
async fn wanted(access: &Access, deploy: Deploy) -> Result<Wanted, Problem> {
    let Deploy { force, on_conflict, .. } = deploy;
    let service = deploy.service.clone();
    let select = deploy.select.as_deref().map(str::parse::<Selector>).transpose();
    let select = select.map_err(|error| CliError::from_error(Code::BAD_SELECTOR, &error))?;
    let mut manifest = manifest_of(access, deploy).await?;
    if force {
        manifest.again = Some(clock::now().at);
    }
    Ok(Wanted { service, manifest, select, retry: None, on_conflict })
}

/// Makes a wish of what is wanted; where that stands in a queue, when its turn has come.
async fn intent_of(
    access: &Access,
    wanted: Wanted,
    until: Instant,
) -> Result<(Mode, Action, Audience), Problem> {
    let Wanted { service, manifest, select, retry, on_conflict } = wanted;
    let release = codec::encode(&manifest);
    check_manifest(&service, &release).map_err(|why| Problem::new(Code::BAD_MANIFEST, why))?;
    let id = ReleaseId::of(&release);
    let rollouts = config::rollouts_of(config::release_layer(id, manifest))
        .map_err(|mistakes| mistaken(&mistakes, "nothing was deployed"))?;
    if on_conflict.unwrap_or(rollouts.parameters.on_conflict) == OnConflict::Queue {
        turn_comes(access, &service, until).await?;
    }
    let select = select.or(rollouts.placement.select).unwrap_or_else(Selector::every);
    let (known, audience) = known(access, &service, &select).await?;
    let action = Action::Deploy {
        service,
        generation: known.next,
        release,
        back_to: known.good.into_iter().find(|good| *good != id),
        emergency: None,
        retry,
        on_conflict,
        rollback: false,
    };
    Ok((Mode::Desired, action, audience))
}

async fn removal(
    access: &Access,
    service: ServiceId,
    select: &Selector,
) -> Result<(Mode, Action, Audience), Problem> {
    let (known, audience) = known(access, &service, select).await?;
    Ok((Mode::Desired, Action::Remove { service, generation: known.next }, audience))
}

/// Returns what is known of a service on the nodes that are meant, and how these are named.
async fn known(
    access: &Access,
    service: &ServiceId,
    select: &Selector,
) -> Result<(Known, Audience), Problem> {
    let trust = trust_of(access)?;
    let nodes: Vec<NodeId> = matching(&trust, select)?.into_iter().collect();
    let known = Known::of(service, &nodes, (&rows(access).await?, &fleet(access).await?));
    let audience = Audience::Select { selector: select.to_string(), roster: trust.roster_digest() };
    Ok((known, audience))
}

/// Waits until no rollout of the service is under way. Nothing is signed before, so nothing is lost with who waits.
async fn turn_comes(access: &Access, service: &ServiceId, until: Instant) -> Result<(), Problem> {
    let is_open = |row: &Value| row["service"] == service.as_str() && row["ended_at"].is_null();
    while let Some(row) = rows(access).await?.into_iter().find(is_open) {
        let name = row["rollout"].as_str().unwrap_or_default();
        let mut seen = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now()).min(FACT_WITHIN);
            if left.is_zero() {
                let what = format!("{name} of {service} is under way still, and nothing was begun");
                return Err(Problem::new(Code::ROLLOUT_UNDER_WAY, what)
                    .hint("sent again it waits again; `wait` says how long, at most 5m"));
            }
            let view = view(access, name, (seen, left)).await?;
            if is_over(&view) {
                break;
            }
            seen = facts_of(&view);
        }
    }
    Ok(())
}

/// Returns the manifest: of a release that was asked for before, or made of a spec.
async fn manifest_of(access: &Access, deploy: Deploy) -> Result<Manifest, Problem> {
    let Deploy { service, release, spec, artifact, version, .. } = deploy;
    match (release, spec) {
        (Some(release), None) => known_manifest(access, &service, &release).await,
        (None, Some(spec)) if spec.len() <= SPEC_BYTES_MAX => {
            let artifact = artifact.map(|At { url, sha256, bytes }| {
                let digest = sha256.strip_prefix("sha256:").unwrap_or(&sha256).parse();
                let sha256 = digest.map_err(|_| {
                    Problem::new(Code::USAGE, "`artifact.sha256` is written in 64 hex digits")
                })?;
                let format = format_of(&url);
                Ok::<_, Problem>(Artifact { sha256, bytes, format, from: vec![url] })
            });
            let (v, file) = (MANIFEST_VERSION, format!("{service}.toml"));
            let artifact = artifact.transpose()?;
            Ok(Manifest { v, service, version, file, spec, artifact, again: None })
        }
        (None, Some(spec)) => {
            let what = format!("the spec has {} bytes, more than {SPEC_BYTES_MAX}", spec.len());
            Err(Problem::new(Code::FILE_TOO_LARGE, what))
        }
        (Some(_), Some(_)) | (None, None) => {
            Err(Problem::new(Code::USAGE, "either `release` or `spec` says what is deployed"))
        }
    }
}

async fn known_manifest(
    access: &Access,
    service: &ServiceId,
    release: &str,
) -> Result<Manifest, Problem> {
    let is_it = |row: &Value| row["service"] == service.as_str() && row["release"] == release;
    let row = rows(access).await?.into_iter().find(is_it).ok_or_else(|| {
        Problem::new(Code::RELEASE_GONE, format!("no rollout of {service} was about {release}"))
            .hint("deploy it with its `spec`, or see: GET /v1/rollouts")
    })?;
    manifest_behind(access, rollout::id_of(&row)?).await
}

/// Returns the manifest in the signed wish behind a rollout.
async fn manifest_behind(access: &Access, rollout: IntentId) -> Result<Manifest, Problem> {
    let bytes = match access.ask(Ask::Wish { rollout }, TASK_WITHIN).await? {
        Reply::Piece { bytes } => bytes,
        reply => return Err(unexpected(reply)),
    };
    let intent: Intent = envelope::read_kept(&bytes, Kind::Intent).map_err(unreadable)?;
    match intent.action {
        Action::Deploy { release, .. } => codec::decode(&release).map_err(unreadable),
        _ => Err(Problem::new(Code::WISH_GONE, "the wish behind the rollout is no deploy")),
    }
}

pub(super) fn trust_of(access: &Access) -> Result<Trust, Problem> {
    let loaded = load_trust(access.folder());
    let (trust, _) = loaded.map_err(|error| CliError::from_error(Code::IO, &error))?;
    Ok(trust)
}

fn is_over(view: &Value) -> bool {
    !view["ended_at"].is_null()
}

/// Says whether it is over, or goes on only when a person says so.
fn stands(view: &Value) -> bool {
    is_over(view) || !view["waits_for"].is_null()
}

fn facts_of(view: &Value) -> u32 {
    view["facts"].as_u64().and_then(|facts| u32::try_from(facts).ok()).unwrap_or_default()
}

async fn view(
    access: &Access,
    name: &str,
    (seen, wait): (u32, Duration),
) -> Result<Value, Problem> {
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    let ask = Ask::Rollout { name: name.to_owned(), seen, wait_ms };
    document(access, ask, TASK_WITHIN + wait).await
}

/// Returns the rollouts that are remembered, the last one first.
pub(super) async fn rows(access: &Access) -> Result<Vec<Value>, Problem> {
    match document(access, Ask::Rollouts, TASK_WITHIN).await?["rollouts"].take() {
        Value::Array(rows) => Ok(rows),
        _ => Ok(Vec::new()),
    }
}

async fn document(access: &Access, ask: Ask, within: Duration) -> Result<Value, Problem> {
    match access.ask(ask, within).await? {
        Reply::Piece { bytes } => Ok(serde_json::from_slice(&bytes).map_err(unreadable)?),
        reply => Err(unexpected(reply)),
    }
}
