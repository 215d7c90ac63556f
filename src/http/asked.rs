//! Wishes for the controllers: made of what a token asks, or signed elsewhere; judged as a controller would, kept, and
//! brought to whichever of them leads.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::callers::Caller;
use super::problem::Problem;
use super::reading::{TASK_WITHIN, fleet, json_response, unexpected};
use super::requests::Kept;
use super::rollouts::{FACT_WITHIN, facts_of, is_over, rows, view};
use super::serve::Shared;
use super::wishes::{Asked, another, blocking, id_of, random_id, unreadable};
use crate::cli::commands::place::matching;
use crate::cli::commands::release::format_of;
use crate::cli::commands::rollout::{self, Known, Left, left_of};
use crate::cli::error::CliError;
use crate::cli::screen::words::full_intent;
use crate::cli::specs::mistaken;
use crate::config;
use crate::controller::Access;
use crate::domain::code::Code;
use crate::domain::event::Actor;
use crate::domain::id::{Digest, EventId, IntentId, Kid, NodeId, Principal, ServiceId};
use crate::domain::intent::Action;
use crate::domain::policy::{KeyClass, Kind};
use crate::domain::release::{Artifact, MANIFEST_VERSION, Manifest, ReleaseId, SPEC_BYTES_MAX};
use crate::domain::rollout::OnConflict;
use crate::domain::rollout::view::rollout_name;
use crate::domain::selector::Selector;
use crate::domain::text;
use crate::domain::time::UnixMicros;
use crate::head::authority::{Enrolment, Refusal, Way};
use crate::head::clock;
use crate::head::keyfile::load_trust;
use crate::head::manifest::check_manifest;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::key::digest_of;
use crate::wire::payload::{Ask, Audience, Intent, Mode, PAYLOAD_VERSION, Reply, Trust};

/// How long the controller that leads may take to answer.
const LEADER_WITHIN: Duration = Duration::from_secs(30);

/// How long what it made of a wish may take to arrive here.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// How long a word about a rollout may be taken after it was signed.
const WORD_LIFE_MS: u64 = 120_000;

/// The pause before a wish whose turn had come is signed anew, since another one's had, too.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// What is to be deployed.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Deploy {
    /// Which service.
    pub(super) service: ServiceId,
    /// A release that a rollout before was about: `sha256:…`, as rollouts and status show it. Instead of `spec`.
    release: Option<String>,
    /// The spec: the text of a file of services.d.
    spec: Option<String>,
    /// What the spec runs, where nodes can fetch it.
    artifact: Option<ArtifactAt>,
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
struct ArtifactAt {
    /// `http://…` or `file:/…`.
    url: String,
    /// SHA-256 of its bytes, in hex.
    sha256: String,
    /// How many they are.
    bytes: u64,
}

/// A wish for the controllers was taken: where its way can be followed.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct AskedDocument {
    /// Which document this is.
    #[cfg_attr(test, schemars(extend("const" = Self::SCHEMA)))]
    schema: &'static str,
    /// The rollout: `r-` and the beginning of its id.
    id: String,
    /// The wish.
    intent: String,
    /// Whether it began by this; otherwise it was taken before.
    changed: bool,
    /// Where the rollout can be read.
    status_url: String,
    /// Where its events can be followed.
    events_url: String,
}

impl AskedDocument {
    /// The word by which the document is known.
    pub(super) const SCHEMA: &'static str = "smgr.asked.v1";
}

/// What a token asks of the controllers.
pub(super) enum Wish {
    /// A release.
    Deploy(Deploy),
    /// To go on with a rollout that ended, as it is shown.
    Retry(Value),
    /// A word to a rollout.
    Word(Action),
}

/// A wish as it is signed.
struct Intended {
    mode: Mode,
    action: Action,
    audience: Audience,
    /// Whether it stands in a queue where another rollout is under way.
    queues: bool,
}

impl Wish {
    /// Returns what the caller says of itself.
    fn note(&self) -> &str {
        match self {
            Self::Deploy(deploy) => &deploy.note,
            Self::Retry(_) | Self::Word(_) => "",
        }
    }

    /// Makes it what is signed, by what is known of the fleet at this moment; where it stands in a queue, when its turn has
    /// come.
    async fn intended(&self, shared: &Shared, until: Instant) -> Result<Intended, Problem> {
        let access = &shared.access;
        match self {
            Self::Deploy(deploy) => {
                intent_of(shared, wanted(access, deploy.clone()).await?, until).await
            }
            Self::Retry(view) => match (left_of(view)?, rollout::service_of(view)?) {
                (Left::Release(left), service) => {
                    let of = rollout::id_of(view)?;
                    let wanted = Wanted {
                        service,
                        manifest: manifest_behind(access, of).await?,
                        select: Some(Selector::nodes(&left)),
                        retry: Some(of),
                        on_conflict: None,
                    };
                    intent_of(shared, wanted, until).await
                }
                (Left::Removal(left), service) => {
                    removal(access, service, &Selector::nodes(&left)).await
                }
            },
            Self::Word(action) => {
                let holders = access.ring().iter().map(|(_, holder)| holder);
                let controllers = holders.filter(|holder| holder.class == KeyClass::Controller);
                let names = controllers.filter_map(|holder| holder.name.as_str().parse().ok());
                let audience = Audience::Nodes(names.collect());
                Ok(Intended { mode: Mode::Once, action: action.clone(), audience, queues: false })
            }
        }
    }
}

/// Asks the controllers for something by the key of a token.
///
/// What the one that leads refuses became nothing: it is forgotten, and the same request is signed and judged anew, under the
/// same id. So whatever an answer that was lost would have said, controllers begin one rollout of it at most.
pub(super) async fn asked_for(
    shared: &Shared,
    caller: &Caller<'_>,
    Asked { key, wait }: Asked,
    (request, wish): (Digest, Wish),
) -> Result<Response, Problem> {
    let until = Instant::now() + wait;
    let id = key.as_ref().map_or_else(random_id, |key| Ok(id_of(caller, key)))?;
    loop {
        let requests = shared.requests.clone();
        let known = blocking(move || requests.get(id)).await?.map_err(unreadable)?;
        let is_known = known.is_some();
        let (kept, queues) = match known {
            Some(known) => (known, false),
            None => {
                let intended = wish.intended(shared, until).await?;
                let queues = intended.queues;
                (signed(shared, caller, (id, request, wish.note()), intended)?, queues)
            }
        };
        let by = (caller.kid(), &caller.holder.name);
        match led(shared, by, (id, request), kept).await? {
            Ok(response) => return Ok(response),
            // It was signed for what was so then.
            Err(_) if is_known => {}
            // Somebody else whose turn had come was faster, and may not have been heard of here.
            Err(problem) if queues && problem.code() == Code::ROLLOUT_UNDER_WAY => {
                if Instant::now() >= until {
                    return Err(problem);
                }
                sleep(ASK_AGAIN).await;
            }
            Err(problem) => return Err(problem),
        }
    }
}

/// Signs a wish for the controllers by the key of the caller's token, when the gate of a controller would take it.
fn signed(
    shared: &Shared,
    caller: &Caller<'_>,
    (id, request, note): (IntentId, Digest, &str),
    Intended { mode, action, audience, .. }: Intended,
) -> Result<Kept, Problem> {
    let iat = clock::now().at;
    let note = text::brief(note.to_owned(), 200);
    // A word about a rollout is granted or not by who leads it, which knows its nodes.
    let is_word = matches!(action, Action::Rollout { .. });
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
    if !is_word {
        judge(shared, &bytes, iat)?;
    }
    Ok(Kept::new(request, &bytes))
}

/// Says whether the gate of a controller would take a wish.
fn judge(shared: &Shared, bytes: &[u8], now: UnixMicros) -> Result<(), Problem> {
    let trust = trust_of(&shared.access)?;
    let roster = trust.roster_digest();
    let mut gate = shared.gate();
    gate.enrol(Enrolment::from(trust.nodes));
    let requested = gate.request(bytes, Way::Bus, (now, roster))?;
    requested.verified.objection.map_or(Ok(()), |objection| Err(objection.into()))
}

/// Brings a wish that was signed elsewhere to the controller that leads. `signer` did sign it, and nobody has judged more of
/// it than `objection` says.
pub(super) async fn brought(
    shared: &Shared,
    (signer, objection): (&Actor, Option<Refusal>),
    bytes: &[u8],
) -> Result<Response, Problem> {
    let intent: Intent = envelope::read_kept(bytes, Kind::Intent).map_err(unreadable)?;
    if rollout_of(&intent).is_none() {
        return Err(Problem::new(Code::ORDER_NEEDED, "a wish that runs once names its nodes")
            .hint("smgr sign with --node, or the same over HTTP with `select`"));
    }
    let (requests, id) = (shared.requests.clone(), intent.id);
    // One that was taken before is answered however old it is.
    if blocking(move || requests.get(id)).await?.map_err(unreadable)?.is_none() {
        match (&intent.action, objection) {
            (_, Some(objection)) => return Err(objection.into()),
            (Action::Rollout { .. }, None) => {}
            _ => judge(shared, bytes, clock::now().at)?,
        }
    }
    let request = digest_of(bytes);
    let kept = Kept::new(request, bytes);
    led(shared, (intent.iss, &signer.name), (id, request), kept).await?
}

/// Returns the rollout that a wish for the controllers is about; nothing of one that is for nodes.
pub(super) fn rollout_of(intent: &Intent) -> Option<IntentId> {
    match (&intent.action, intent.mode, &intent.audience) {
        (Action::Rollout { rollout, .. }, ..) => Some(*rollout),
        (_, Mode::Desired, Audience::Nodes(nodes)) if nodes.len() == 1 => None,
        (_, Mode::Desired, _) => Some(intent.id),
        (_, Mode::Once, _) => None,
    }
}

/// Keeps a wish for the controllers, brings it to the one that leads, and tells where its way can be followed, or why it is
/// refused. What was refused is forgotten.
async fn led(
    shared: &Shared,
    (by, principal): (Kid, &Principal),
    (id, request): (IntentId, Digest),
    new: Kept,
) -> Result<Result<Response, Problem>, Problem> {
    let requests = shared.requests.clone();
    let (mut kept, _) = blocking(move || requests.keep(id, by, new)).await??;
    if !kept.is_of(request) {
        return Err(another());
    }
    if let Some(result) = &kept.result {
        return Ok(Ok(taken(result)));
    }
    let bytes = kept.envelope().map_err(unreadable)?;
    let intent: Intent = envelope::read_kept(&bytes, Kind::Intent).map_err(unreadable)?;
    let until = Instant::now() + LEADER_WITHIN;
    let (changed, event) = match shared.access.request(principal, (id, &bytes), until).await {
        Some(Reply::Accepted { event }) => (true, event),
        Some(Reply::Outcome { event, .. }) => (false, event),
        Some(reply) => {
            let requests = shared.requests.clone();
            blocking(move || requests.forget(id, &kept)).await?.map_err(unreadable)?;
            return Ok(Err(unexpected(reply)));
        }
        None => {
            return Err(Problem::new(Code::NO_LEADER, "no controller that leads answered in time")
                .hint("sent again with the same Idempotency-Key it is the same wish"));
        }
    };
    arrives(&shared.access, &event).await?;
    let rollout = rollout_name(rollout_of(&intent).unwrap_or(id));
    let place = format!("/v1/rollouts/{rollout}");
    let document = json!(AskedDocument {
        schema: AskedDocument::SCHEMA,
        events_url: format!("{place}/events?follow=1"),
        id: rollout,
        intent: full_intent(id),
        changed,
        status_url: place,
    });
    kept.result = Some(document.clone());
    let requests = shared.requests.clone();
    // Without it a repeat is answered by who leads.
    if let Err(error) = blocking(move || requests.finish(id, &kept)).await? {
        warn!(%error, "the result of a request was not kept");
    }
    Ok(Ok(taken(&document)))
}

/// Says that a wish for the controllers was taken, and where its way can be followed.
pub(super) fn taken(document: &Value) -> Response {
    let place = document["status_url"].as_str().unwrap_or_default().to_owned();
    let response = json_response(StatusCode::ACCEPTED, document);
    ([(header::LOCATION, place)], response).into_response()
}

/// Waits until an event of whoever leads is here: that may be another controller, and whoever asked asks here next.
async fn arrives(access: &Access, event: &EventId) -> Result<(), Problem> {
    let until = Instant::now() + HEARD_WITHIN;
    let mut after = None;
    // What this one leads itself it knows when it answers.
    while event.origin != *access.controller() && Instant::now() < until {
        let ask = Ask::Copy { origin: event.origin.clone(), after: None, events_max: 1 };
        if let Reply::Range { head, .. } = access.ask(ask, TASK_WITHIN).await?
            && head.origin == event.origin
            && (head.epoch, head.seq) >= (event.epoch, event.seq)
        {
            break;
        }
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
async fn intent_of(shared: &Shared, wanted: Wanted, until: Instant) -> Result<Intended, Problem> {
    let access = &shared.access;
    let Wanted { service, manifest, select, retry, on_conflict } = wanted;
    let release = codec::encode(&manifest);
    check_manifest(&service, &release).map_err(|why| Problem::new(Code::BAD_MANIFEST, why))?;
    let id = ReleaseId::of(&release);
    let rollouts = config::rollouts_of(config::release_layer(id, manifest))
        .map_err(|mistakes| mistaken(&mistakes, "nothing was deployed"))?;
    let queues = on_conflict.unwrap_or(rollouts.parameters.on_conflict) == OnConflict::Queue;
    if queues {
        turn_comes(shared, &service, until).await?;
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
    Ok(Intended { mode: Mode::Desired, action, audience, queues })
}

async fn removal(
    access: &Access,
    service: ServiceId,
    select: &Selector,
) -> Result<Intended, Problem> {
    let (known, audience) = known(access, &service, select).await?;
    let action = Action::Remove { service, generation: known.next };
    Ok(Intended { mode: Mode::Desired, action, audience, queues: false })
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
async fn turn_comes(shared: &Shared, service: &ServiceId, until: Instant) -> Result<(), Problem> {
    let access = &shared.access;
    let is_open = |row: &Value| row["service"] == service.as_str() && row["ended_at"].is_null();
    while let Some(row) = rows(access).await?.into_iter().find(is_open) {
        let _place = shared.place()?;
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
            let artifact = artifact.map(|ArtifactAt { url, sha256, bytes }| {
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
