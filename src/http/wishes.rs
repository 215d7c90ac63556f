//! Wishes: restart a service, run an action, or bring an envelope that somebody else signed. Each becomes one signed intent,
//! kept before it is sent, brought to the nodes that it names, and answered with what each of them made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::asked::{self, trust_of};
use super::callers::Caller;
use super::problem::{Problem, status_of, tell_exit};
use super::reading::{Parameters, fleet, json_response};
use super::requests::Kept;
use super::serve::{Shared, whole_body};
use crate::cli::commands::place::matching;
use crate::cli::commands::ramp::{LIFE as RAMP_LIFE, NAMED_MAX, at_a_time, rules, stops};
use crate::cli::error::CliError;
use crate::cli::json::error::ResultDocument;
use crate::cli::screen::words::full_intent;
use crate::cli::verdict::{Verdict, Verdicts};
use crate::cli::wish::Signed;
use crate::controller::{Access, Heard};
use crate::domain::code::{Code, ExitCode};
use crate::domain::id::{ActionName, Digest, IntentId, Kid, NodeId, ServiceId};
use crate::domain::intent::{Action, Verb};
use crate::domain::policy::{KeyClass, Kind};
use crate::domain::rollout::{Amount, chunks};
use crate::domain::selector::Selector;
use crate::domain::text;
use crate::head::clock;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::digest_of;
use crate::wire::payload::{Audience, Intent, Mode, PAYLOAD_VERSION};

/// What an envelope is called.
pub(super) const ENVELOPE: &str = "application/vnd.smgr.envelope+msgpack";

/// How long an intent that is signed here may be taken.
const INTENT_LIFE: Duration = Duration::from_secs(120);

/// How long an outcome is waited for unless told otherwise, and at most.
const WAIT: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_secs(300);

/// The first and the longest silence after which a node is sent the same bytes again.
const SILENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 256;

/// What a caller may say of itself, in bytes; an intent has room for more.
const NOTE_BYTES_MAX: usize = 200;

/// How long a node may leave a wish without a word before the next ones have their turn.
const SILENT_MAX: Duration = Duration::from_secs(10);

/// What is asked of a service, on `nodes` or on those that `select` chooses.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    /// On these nodes, at once.
    nodes: Option<Nodes>,
    /// On nodes by their labels, `env=prod,role=web`: those that have the service, some at a time.
    select: Option<String>,
    /// On how many nodes at a time, such as `["1", "25%"]`: the last repeats. After a node on which it failed no other is
    /// asked. With `select` it is `["1", "25%"]`, for an action what the service says (`["25%"]`), unless told otherwise.
    #[serde(default)]
    max_parallel: Vec<Amount>,
    /// Parameters of an action, by name.
    #[serde(default)]
    params: BTreeMap<String, String>,
    /// A person said yes to it, where the action wants that.
    #[serde(default)]
    confirmed: bool,
    /// What the caller says of itself, for the history: the address of a CI run. At most 200 bytes.
    #[serde(default)]
    note: String,
}

/// On which nodes something is to be done at once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "expected a list of names of nodes, or \"all\"")]
pub(super) enum Nodes {
    /// On these.
    Named(BTreeSet<NodeId>),
    /// On every node that has the service.
    All(All),
}

/// Every node that has the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum All {
    /// It has only one way to be written.
    All,
}

/// `POST /v1/services/{service}/{verb}`.
pub(super) async fn service(
    State(shared): State<Arc<Shared>>,
    Path((service, verb)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let caller = shared.callers.find(&headers)?;
    let service = service_of(&service)?;
    let action = |service: ServiceId, wish: &Wish| match verb.as_str() {
        _ if !wish.params.is_empty() || wish.confirmed => {
            Err(Problem::new(Code::USAGE, "only actions have parameters and are confirmed"))
        }
        "start" => Ok(Action::Start { service }),
        "stop" => Ok(Action::Stop { service }),
        "restart" => Ok(Action::Restart { service }),
        "reload" => Ok(Action::Reload { service }),
        _ => Err(Problem::new(Code::NO_SUCH_PATH, format!("`{verb}` is no verb of a service"))
            .hint("start, stop, restart, reload")),
    };
    let asked = Asked::read(query.as_deref(), &headers)?;
    let wish = wish_of(body).await?;
    let action = action(service, &wish)?;
    wished(&shared, &caller, asked, (action, wish)).await
}

/// `POST /v1/actions/{service}/{action}`.
pub(super) async fn action(
    State(shared): State<Arc<Shared>>,
    Path((service, action)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let caller = shared.callers.find(&headers)?;
    let service = service_of(&service)?;
    let action: ActionName =
        action.parse().map_err(|error| CliError::from_error(Code::NO_SUCH_ACTION, &error))?;
    let asked = Asked::read(query.as_deref(), &headers)?;
    let mut wish = wish_of(body).await?;
    let params = std::mem::take(&mut wish.params);
    let confirmed = wish.confirmed;
    wished(&shared, &caller, asked, (Action::Run { service, action, params, confirmed }, wish))
        .await
}

/// `POST /v1/intents`: an envelope that somebody signed elsewhere. The signature is what lets it in.
pub(super) async fn envelope(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind != Some(ENVELOPE) {
        return Err(Problem::new(Code::USAGE, format!("the body is to be `{ENVELOPE}`"))
            .hint("what is asked in JSON goes to /v1/services and /v1/actions")
            .status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    let asked = Asked::read(query.as_deref(), &headers)?;
    if asked.key.is_some() {
        return Err(Problem::new(
            Code::USAGE,
            "an envelope has an id, which is its idempotency key",
        ));
    }
    let bytes = whole_body(body, ENVELOPE_BYTES_MAX).await?;
    let judged = shared.gate().brought(&bytes, clock::now().at);
    let is_for_controllers = match &judged {
        Ok(verified) => matches!(verified.payload.action, Action::Rollout { .. }),
        Err(refusal) => refusal.code == Code::ORDER_NEEDED,
    };
    if is_for_controllers {
        let (signer, objection) = match judged {
            Ok(verified) => (Some(verified.actor), verified.objection),
            Err(refusal) => (refusal.signed.map(|signed| signed.actor), None),
        };
        let signer = signer.expect("invariant: what is for controllers was signed");
        return asked::brought(&shared, (&signer, objection), &bytes).await;
    }
    let judged = judged?;
    let kept = Kept::new(digest_of(&bytes), &bytes);
    bring(&shared, (judged.payload.id, judged.payload.iss, kept), asked.wait).await
}

/// `GET /v1/intents/{intent}`: what came of a wish that was brought by this controller.
pub(super) async fn outcome(
    State(shared): State<Arc<Shared>>,
    Path(intent): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let caller = shared.callers.find(&headers)?;
    caller.may_read(Verb::Events)?;
    let asked = Asked::read(query.as_deref(), &headers)?;
    let unknown = || {
        let what = "no such wish was brought by this controller within the last 24 hours";
        Problem::new(Code::NO_SUCH_PATH, what)
    };
    let id: IntentId =
        intent.strip_prefix("i-").unwrap_or(&intent).parse().map_err(|_| unknown())?;
    let requests = shared.requests.clone();
    let kept = blocking(move || requests.get(id)).await?.map_err(unreadable)?;
    let kept = kept.ok_or_else(unknown)?;
    let intent = intent_of(&kept.envelope().map_err(unreadable)?)?;
    match (&kept.result, asked::rollout_of(&intent)) {
        (Some(result), None) => return Ok(told(id, StatusCode::OK, result)),
        (Some(result), Some(_)) => return Ok(asked::taken(result)),
        (None, Some(_)) => {
            let what = "no controller that leads has answered it yet";
            return Err(Problem::new(Code::NO_LEADER, what)
                .hint("sent again with the same Idempotency-Key it is the same wish"));
        }
        (None, None) => {}
    }
    // To ask the nodes for more of it is to send it again, and to give the next ones their turn.
    let by = intent.iss;
    if by != caller.kid() {
        for node in &named_in(&intent)? {
            caller.may(intent.action.verb(), intent.action.service(), node)?;
        }
    }
    bring(&shared, (id, by, kept), asked.wait).await
}

/// What stands beside a wish.
pub(super) struct Asked {
    pub(super) key: Option<String>,
    pub(super) wait: Duration,
}

impl Asked {
    pub(super) fn read(query: Option<&str>, headers: &HeaderMap) -> Result<Self, Problem> {
        let mut parameters = Parameters::read(query)?;
        let wait = parameters.duration("wait")?.unwrap_or(WAIT).min(WAIT_MAX);
        parameters.end()?;
        let key = headers.get("idempotency-key").map(|key| {
            let key = key.to_str().unwrap_or_default();
            match key.is_empty() || key.len() > KEY_BYTES_MAX {
                false => Ok(key.to_owned()),
                true => {
                    let what = format!("an idempotency key is text of 1 to {KEY_BYTES_MAX} bytes");
                    Err(Problem::new(Code::USAGE, what))
                }
            }
        });
        Ok(Self { key: key.transpose()?, wait })
    }
}

pub(super) fn service_of(text: &str) -> Result<ServiceId, Problem> {
    Ok(text.parse().map_err(|error| CliError::from_error(Code::NO_SUCH_SERVICE, &error))?)
}

async fn wish_of(body: Body) -> Result<Wish, Problem> {
    let bytes = whole_body(body, ENVELOPE_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let why = text::brief(error.to_string(), text::WHY_BYTES_MAX);
        Problem::new(Code::USAGE, format!("the body was not understood: {why}"))
            .hint("{\"nodes\": [\"n1\"]}, {\"nodes\": \"all\"} or {\"select\": \"env=prod\"}")
    })
}

/// Signs a wish by the key of the caller's token, and brings it.
async fn wished(
    shared: &Arc<Shared>,
    caller: &Caller<'_>,
    Asked { key, wait }: Asked,
    (action, wish): (Action, Wish),
) -> Result<Response, Problem> {
    if wish.note.len() > NOTE_BYTES_MAX {
        let what = format!("the note has {} bytes, more than {NOTE_BYTES_MAX}", wish.note.len());
        return Err(Problem::new(Code::USAGE, what));
    }
    if wish.max_parallel.iter().any(|amount| amount.is_zero()) {
        let what = "`max_parallel` 0 would never end: at least 1 or 1%";
        return Err(Problem::new(Code::USAGE, what));
    }
    if let Some(service) = action.service() {
        caller.may_somewhere(action.verb(), Some(service))?;
    }
    let request = (&action, format!("{:?}", wish.nodes), &wish.select, &wish.max_parallel);
    let request = digest_of(&codec::encode(&request));
    let id = match &key {
        Some(key) => id_of(caller, key),
        None => random_id()?,
    };
    let requests = shared.requests.clone();
    let known = match key {
        Some(_) => blocking(move || requests.get(id)).await?.map_err(unreadable)?,
        None => None,
    };
    let kept = match known {
        Some(known) => known,
        None => {
            let (nodes, max_parallel) = meant(&shared.access, &action, &wish).await?;
            let life = if max_parallel.is_empty() { INTENT_LIFE } else { RAMP_LIFE };
            let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
            let iat = clock::now().at;
            let note = format!("http token {} {}", caller.token, wish.note);
            let intent = Intent {
                v: PAYLOAD_VERSION,
                id,
                iss: caller.kid(),
                iat,
                exp: iat.plus_ms(life_ms),
                fleet: shared.access.fleet().clone(),
                mode: Mode::Once,
                action,
                audience: Audience::Nodes(nodes),
                note: note.trim_end().to_owned(),
            };
            let bytes = envelope::seal(Kind::Intent, &codec::encode(&intent), caller.signer);
            let judged = shared.gate().brought(&bytes, iat)?;
            if let Some(objection) = judged.objection {
                return Err(objection.into());
            }
            Kept::new(request, &bytes).in_turns(max_parallel)
        }
    };
    if !kept.is_of(request) {
        return Err(another());
    }
    bring(shared, (id, caller.kid(), kept), wait).await
}

pub(super) fn random_id() -> Result<IntentId, Problem> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| Problem::new(Code::IO, error.to_string()))?;
    Ok(IntentId(id))
}

pub(super) fn another() -> Problem {
    Problem::new(Code::REPLAYED, "this idempotency key was used before for another request")
}

/// Returns the id that a key stands for: of one caller, one wish.
pub(super) fn id_of(caller: &Caller<'_>, key: &str) -> IntentId {
    let text = format!("smgr-http-v1\0{}\0{key}", caller.holder.name);
    let Digest(digest) = digest_of(text.as_bytes());
    IntentId(digest[..16].try_into().expect("a digest has 32 bytes"))
}

/// Returns the nodes that are meant, and on how many of them at a time.
async fn meant(
    access: &Access,
    action: &Action,
    wish: &Wish,
) -> Result<(Vec<NodeId>, Vec<Amount>), Problem> {
    match (&wish.nodes, &wish.select) {
        (Some(nodes), None) => {
            let mut named = named(access, action, nodes).await?;
            if *nodes == Nodes::All(All::All) {
                (named, _) = as_declared(access, action, named).await?;
            }
            Ok((named, wish.max_parallel.clone()))
        }
        (None, Some(select)) => {
            let select: Selector =
                select.parse().map_err(|error| CliError::from_error(Code::BAD_SELECTOR, &error))?;
            let chosen = matching(&trust_of(access)?, &select)?;
            let holders = holders(access, action).await?;
            let nodes: Vec<_> = chosen.into_iter().filter(|node| holders.contains(node)).collect();
            if nodes.is_empty() {
                let what = format!("no node of `{select}` has the service");
                return Err(Problem::new(Code::EMPTY_SELECTION, what));
            }
            if nodes.len() > NAMED_MAX {
                let what =
                    format!("{} nodes are more than one wish may name, {NAMED_MAX}", nodes.len());
                let hint = "select fewer, or let the command line do it: smgr action run --select";
                return Err(Problem::new(Code::TOO_LARGE, what).hint(hint));
            }
            let (nodes, default) = as_declared(access, action, nodes).await?;
            let told = Some(wish.max_parallel.clone()).filter(|sizes| !sizes.is_empty());
            Ok((nodes, told.unwrap_or(default)))
        }
        (Some(_), Some(_)) | (None, None) => {
            Err(Problem::new(Code::USAGE, "either `nodes` or `select` says where"))
        }
    }
}

/// Returns on which of these nodes something is done, and on how many at a time: of an action the service says so.
async fn as_declared(
    access: &Access,
    action: &Action,
    nodes: Vec<NodeId>,
) -> Result<(Vec<NodeId>, Vec<Amount>), Problem> {
    let default = at_a_time(action).to_vec();
    // On one node it is all the same.
    let (Action::Run { service, action, .. }, 2..) = (action, nodes.len()) else {
        return Ok((nodes, default));
    };
    let asked = nodes.iter().cloned().map(|node| async move {
        let told = access.configuration(&node, service).await;
        (node, told)
    });
    Ok(match rules(action, asked.collect()).await? {
        Some((node, rules)) if rules.is_for_one => (vec![node], rules.max_parallel),
        Some((_, rules)) => (nodes, rules.max_parallel),
        None => (nodes, default),
    })
}

/// Returns the nodes that have the service, as far as this controller knows.
async fn holders(access: &Access, action: &Action) -> Result<Vec<NodeId>, Problem> {
    let has = |status: &crate::wire::status::NodeStatus| {
        status.services.iter().any(|it| Some(&it.service) == action.service())
    };
    let all = fleet(access).await?.nodes.into_iter();
    Ok(all.filter(|it| it.status.as_deref().is_some_and(has)).map(|it| it.node).collect())
}

async fn named(access: &Access, action: &Action, nodes: &Nodes) -> Result<Vec<NodeId>, Problem> {
    let named: Vec<NodeId> = match nodes {
        Nodes::Named(nodes) => nodes.iter().cloned().collect(),
        Nodes::All(All::All) => holders(access, action).await?,
    };
    let is_node = |name: &NodeId| {
        let mut holders = access.ring().iter().map(|(_, holder)| holder);
        holders.any(|it| it.class == KeyClass::Node && it.name.as_str() == name.as_str())
    };
    match named.iter().find(|name| !is_node(name)) {
        Some(name) => Err(Problem::new(Code::NO_SUCH_NODE, format!("no such node: {name}"))),
        None if named.is_empty() => {
            Err(Problem::new(Code::EMPTY_SELECTION, "no node of this fleet has the service"))
        }
        None => Ok(named),
    }
}

/// Keeps a wish that `by` signed, sends it, waits, and tells what each node made of it.
///
/// With `max_parallel` nodes have their turns. Whoever stops waiting stops that: what was asked goes on, and who asks again
/// goes on with it.
async fn bring(
    shared: &Arc<Shared>,
    (id, by, new): (IntentId, Kid, Kept),
    wait: Duration,
) -> Result<Response, Problem> {
    let requests = shared.requests.clone();
    let request = new.clone();
    let (mut kept, is_new) = blocking(move || requests.keep(id, by, request)).await??;
    if !kept.is_same_request(&new) {
        return Err(another());
    }
    if let Some(result) = &kept.result {
        return Ok(told(id, StatusCode::OK, result));
    }
    let bytes = kept.envelope().map_err(unreadable)?;
    let nodes = named_in(&intent_of(&bytes)?)?;
    let until = Instant::now() + wait;
    let turns = match kept.max_parallel.is_empty() {
        true => vec![nodes.clone()],
        false => chunks(nodes.clone(), &kept.max_parallel, nodes.len()),
    };
    let has_turns = turns.len() > 1;
    let mut verdicts = Verdicts::default();
    let mut later = Vec::new();
    for turn in turns {
        if verdicts.nodes.values().any(|verdict| stops(verdict, false)) {
            verdicts.nodes.extend(turn.into_iter().map(|node| (node, Verdict::NotStarted)));
            continue;
        }
        if has_turns && Instant::now() >= until {
            later.extend(turn);
            continue;
        }
        let heard_by = if has_turns { until.min(Instant::now() + SILENT_MAX) } else { until };
        let mut calls = JoinSet::new();
        for node in turn {
            let (access, bytes) = (shared.access.clone(), bytes.clone());
            calls.spawn(async move {
                let times = (heard_by, until);
                let verdict = call(&access, &node, (id, bytes), (is_new, times)).await;
                (node, verdict)
            });
        }
        while let Some(Ok((node, verdict))) = calls.join_next().await {
            verdicts.nodes.insert(node, verdict);
        }
    }
    if let Some(refused) = refused_by_all(&verdicts) {
        return Err(refused);
    }
    let audience = Audience::Nodes(nodes);
    let result = verdicts.result(&Signed { id, audience, bytes }, false);
    let result = json!(ResultDocument {
        not_started: has_turns.then(|| verdicts.not_started()),
        later: has_turns.then(|| later.clone()),
        ..result
    });
    let is_over = |verdict: &Verdict| matches!(verdict, Verdict::Ended(..) | Verdict::NotStarted);
    if later.is_empty() && verdicts.nodes.values().all(is_over) {
        kept.result = Some(result.clone());
        let requests = shared.requests.clone();
        // Without it a repeat is answered by the nodes.
        if let Err(error) = blocking(move || requests.finish(id, &kept)).await? {
            tracing::warn!(%error, "the result of a request was not kept");
        }
    }
    let goes_on = |verdict: &Verdict| matches!(verdict, Verdict::Accepted(_) | Verdict::Silent);
    let status = match !later.is_empty() || verdicts.nodes.values().any(goes_on) {
        true => StatusCode::ACCEPTED,
        false => StatusCode::OK,
    };
    Ok(told(id, status, &result))
}

fn told(id: IntentId, status: StatusCode, result: &Value) -> Response {
    let place = format!("/v1/intents/{}", full_intent(id));
    let mut response = ([(header::LOCATION, place)], json_response(status, result)).into_response();
    let exit = result["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok());
    tell_exit(&mut response, exit.unwrap_or(ExitCode::Internal.number()));
    response
}

/// Returns the problem that all nodes have with a wish, when it is one for all of them.
fn refused_by_all(verdicts: &Verdicts) -> Option<Problem> {
    let mut refusals = verdicts.nodes.iter().map(|(node, verdict)| match verdict {
        Verdict::Refused(error) => Some((node, error)),
        Verdict::Accepted(_) | Verdict::Ended(..) | Verdict::Silent | Verdict::NotStarted => None,
    });
    let (node, first) = refusals.next()??;
    let is_alike =
        |other: Option<(&NodeId, &CliError)>| other.is_some_and(|(_, it)| it.code == first.code);
    refusals.all(is_alike).then(|| {
        let error = Problem::from(first.clone().at(node.as_str()));
        error.status(status_of(first.code))
    })
}

/// Sends a wish to one node until it is answered; the same bytes are the same wish. Only of one that was never sent before
/// can be said that nothing was started.
async fn call(
    access: &Access,
    node: &NodeId,
    (id, bytes): (IntentId, Vec<u8>),
    (mut is_unsent, (heard_by, until)): (bool, (Instant, Instant)),
) -> Verdict {
    let mut verdict = Verdict::Silent;
    let mut silence = SILENCE.0;
    while Instant::now() < if verdict.is_silent() { heard_by } else { until } {
        let again = until.min(Instant::now() + silence);
        silence = (silence * 2).min(SILENCE.1);
        let within = again.saturating_duration_since(Instant::now());
        if let Some(mut calling) = access.call(node, (id, bytes.clone()), within).await {
            loop {
                match timeout_at(again, calling.next()).await {
                    Ok(Heard::Answer(answer)) => {
                        if let Some(heard) = Verdict::of(answer.reply) {
                            let is_last = !matches!(heard, Verdict::Accepted(_));
                            verdict = heard;
                            if is_last {
                                return verdict;
                            }
                        }
                    }
                    Ok(Heard::NotThere) if is_unsent => {
                        return Verdict::Refused(CliError::new(
                            Code::AGENT_UNREACHABLE,
                            "nobody listens for this node on the bus; nothing was started",
                        ));
                    }
                    Ok(Heard::NotThere | Heard::Over) | Err(_) => break,
                }
            }
        }
        sleep_until(again).await;
        is_unsent = false;
    }
    verdict
}

fn intent_of(envelope: &[u8]) -> Result<Intent, Problem> {
    envelope::read_kept(envelope, Kind::Intent).map_err(unreadable)
}

fn named_in(intent: &Intent) -> Result<Vec<NodeId>, Problem> {
    match &intent.audience {
        Audience::Nodes(nodes) => Ok(nodes.clone()),
        Audience::All | Audience::Select { .. } => {
            Err(Problem::new(Code::ORDER_NEEDED, "an intent names its nodes"))
        }
    }
}

pub(super) fn unreadable(error: impl std::error::Error) -> Problem {
    Problem::new(Code::IO, format!("a request that was kept cannot be read: {error}"))
}

/// Does what waits for the disk beside the others.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let done = spawn_blocking(work).await;
    done.map_err(|error| Problem::new(Code::INTERNAL, error.to_string()))
}
