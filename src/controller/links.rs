//! The controller's side of the bus: what it hears, what it says, and the ranges that it asks for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::intake::random_id;
use super::orders::{OrderHeard, OrderKey};
use super::verify::{Dropped, Fetched, Trusted};
use super::wake::{Wake, Waker};
use crate::bus::{Answers, Connection, Delivered, SubscribeError, Subscription};
use crate::domain::id::{FleetId, IntentId, NodeId};
use crate::domain::policy::Kind;
use crate::head::clock;
use crate::wire::codec;
use crate::wire::envelope;
use crate::wire::key::Signer;
use crate::wire::payload::{Ask, Audience, PAYLOAD_VERSION, Query, Reply};
use crate::wire::subject::{Callee, Filter, Inbox, Pick, Subject};

/// Events, or heartbeats, that are verified together. They wait for nothing: it is what came while those before were looked at.
const LIVE_MAX: usize = 512;

/// What waits to be said. Beyond it events, heartbeats and receipts are not said, as if nobody heard them.
const SAYING_MAX: usize = 1024;

/// How long a node may take to answer an order: taking it is one write to its disk.
const ORDER_WITHIN: Duration = Duration::from_secs(5);

/// How long a node may take to answer with a range.
const FETCH_WITHIN: Duration = Duration::from_secs(5);

/// How long a question may be answered.
const QUESTION_LIFE_MS: u64 = 30_000;

/// Something to say.
#[derive(Debug)]
pub(super) enum Saying {
    /// To whoever listens.
    Tell(Subject, Arc<[u8]>),
    /// To one who asked.
    Answer(Inbox, Vec<u8>),
}

/// A signed question, and where it goes.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) subject: Subject,
    pub(super) of: NodeId,
    pub(super) cause: IntentId,
    pub(super) sealed: Vec<u8>,
}

impl Question {
    /// Signs a question to a node or another controller.
    pub(super) fn new(signer: &Signer, fleet: &FleetId, of: &NodeId, ask: Ask) -> Self {
        let (cause, sealed) = sealed_query(signer, fleet, Audience::Nodes(vec![of.clone()]), ask);
        let to = Callee::node(of.clone()).unwrap_or(Callee::EVERY_NODE);
        let subject = Subject::Call { fleet: fleet.clone(), to };
        Self { subject, of: of.clone(), cause, sealed }
    }
}

/// Signs a question; returns its id too.
pub(super) fn sealed_query(
    signer: &Signer,
    fleet: &FleetId,
    audience: Audience,
    ask: Ask,
) -> (IntentId, Vec<u8>) {
    let (now, id) = (clock::now(), random_id());
    let query = Query {
        v: PAYLOAD_VERSION,
        id,
        iss: signer.kid(),
        iat: now.at,
        exp: now.at.plus_ms(QUESTION_LIFE_MS),
        fleet: fleet.clone(),
        audience,
        ask,
    };
    (id, envelope::seal(Kind::Query, &codec::encode(&query), signer))
}

/// Listens to events, heartbeats and calls, for as long as the connection lives.
///
/// # Errors
/// When the connection takes no filters.
pub(super) async fn listen(
    connection: &Connection,
    (fleet, controller): (&FleetId, &NodeId),
    trusted: &Arc<Trusted>,
    waker: &Waker,
) -> Result<(), SubscribeError> {
    let fleet = || fleet.clone();
    let events = connection.subscribe(&Filter::every_event(fleet())).await?;
    let verify = {
        let trusted = trusted.clone();
        move |bytes| trusted.event(bytes)
    };
    tokio::spawn(verified(events, verify, Wake::Live, waker.clone()));
    let beats = Filter::Beats { fleet: fleet(), origin: Pick::Any };
    let beats = connection.subscribe(&beats).await?;
    let verify = {
        let trusted = trusted.clone();
        move |bytes: Vec<u8>| trusted.beat(&bytes)
    };
    tokio::spawn(verified(beats, verify, Wake::Beats, waker.clone()));
    let own = Callee::node(controller.clone()).unwrap_or(Callee::EVERY_NODE);
    for filter in [
        Filter::Calls { fleet: fleet(), to: own },
        Filter::Copies { fleet: fleet(), origin: Pick::Any },
        Filter::Requests { fleet: fleet() },
    ] {
        tokio::spawn(calls(connection.subscribe(&filter).await?, waker.clone()));
    }
    Ok(())
}

/// Verifies what comes and tells the task of it, as many as came while those before were looked at.
async fn verified<T: Send + 'static>(
    mut messages: Subscription,
    verify: impl Fn(Vec<u8>) -> T + Clone + Send + 'static,
    wake: impl Fn(Vec<T>) -> Wake,
    waker: Waker,
) {
    while let Some(first) = messages.next().await {
        let mut batch = vec![first];
        while batch.len() < LIVE_MAX
            && let Some(Some(next)) = now_or_never(messages.next())
        {
            batch.push(next);
        }
        let verify = verify.clone();
        let verify_all = move || {
            let bytes = batch.into_iter().map(Delivered::into_payload);
            bytes.map(verify).collect::<Vec<_>>()
        };
        // Not in this thread: thousands of signatures a second would hold up the task.
        let Ok(verified) = spawn_blocking(verify_all).await else { return };
        if waker.send(wake(verified)).await.is_err() {
            return;
        }
    }
}

/// Returns what is there already.
fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
    use std::task::{Context, Poll, Waker as NoWaker};
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(NoWaker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

async fn calls(mut calls: Subscription, waker: Waker) {
    while let Some(call) = calls.next().await {
        let reply = call.reply().and_then(|reply| reply.parse().ok());
        if waker.send(Wake::Call { reply, bytes: call.into_payload() }).await.is_err() {
            return;
        }
    }
}

/// Says what it is told to, in order, for as long as somebody tells it.
pub(super) fn say(connection: Connection) -> mpsc::Sender<Saying> {
    let (sender, mut sayings) = mpsc::channel(SAYING_MAX);
    tokio::spawn(async move {
        while let Some(saying) = sayings.recv().await {
            let said = match saying {
                Saying::Tell(subject, bytes) => connection.publish(&subject, bytes.to_vec()).await,
                Saying::Answer(inbox, bytes) => connection.answer(&inbox, bytes).await,
            };
            if let Err(error) = said {
                debug!(%error, "not said");
            }
        }
        // The last words are written before the connection goes.
        drop(connection.flush().await);
    });
    sender
}

/// Asks a node for a range of its log and tells the task what came.
pub(super) async fn fetch(
    connection: Connection,
    subject: Subject,
    (origin, cause, query): (NodeId, IntentId, Vec<u8>),
    trusted: Arc<Trusted>,
    waker: Waker,
) {
    let outcome = match connection.request(&subject, query, FETCH_WITHIN).await {
        Ok(mut answers) => first_of(&mut answers, &origin, cause, &trusted).await,
        Err(error) => {
            debug!(%origin, %error, "a range was not asked for");
            None
        }
    };
    drop(waker.send(Wake::Fetched { origin, outcome }).await);
}

/// Returns the first answer that verifies: anybody on a bus can write into an inbox.
async fn first_of(
    answers: &mut Answers,
    origin: &NodeId,
    cause: IntentId,
    trusted: &Arc<Trusted>,
) -> Option<Result<Fetched, Dropped>> {
    let mut dropped = None;
    while let Ok(Some(bytes)) = answers.next().await {
        let (origin, trusted) = (origin.clone(), trusted.clone());
        match spawn_blocking(move || trusted.range(&bytes, &origin, cause)).await.ok()? {
            Ok(fetched) => return Some(Ok(fetched)),
            Err(why) => {
                warn!(?why, "an answer with a range was dropped");
                dropped = Some(Err(why));
            }
        }
    }
    dropped
}

/// Sends an order to its node and tells the task what came of it.
pub(super) async fn order(
    connection: Connection,
    subject: Subject,
    (key, sealed): (OrderKey, Vec<u8>),
    trusted: Arc<Trusted>,
    waker: Waker,
) {
    let mut heard = OrderHeard::Nothing;
    match connection.request(&subject, sealed, ORDER_WITHIN).await {
        Ok(mut answers) => {
            // Anybody on a bus can write into an inbox: the first that verifies counts.
            while let Ok(Some(bytes)) = answers.next().await {
                match trusted.answer(&bytes, &key.1, key.0) {
                    Ok(answer) => {
                        heard = OrderHeard::Answer(answer.reply);
                        break;
                    }
                    Err(why) => warn!(?why, "an answer to an order was dropped"),
                }
            }
        }
        Err(error) => debug!(%error, "an order was not sent"),
    }
    drop(waker.send(Wake::Ordered(key, heard)).await);
}

/// Asks a node or another controller for something that comes in pieces; nothing when it did not come whole, in time and
/// with no more than so many bytes.
pub(super) async fn whole(
    connection: Connection,
    Question { subject, of, cause, sealed }: Question,
    trusted: Arc<Trusted>,
    bytes_max: usize,
) -> Option<Vec<u8>> {
    let mut answers = connection.request(&subject, sealed, FETCH_WITHIN).await.ok()?;
    let mut whole = Vec::new();
    let mut next = 0;
    while let Ok(Some(bytes)) = answers.next().await {
        let Ok(answer) = trusted.answer(&bytes, &of, cause) else { continue };
        match answer.reply {
            Reply::Piece { bytes }
                if answer.part == next && whole.len() + bytes.len() <= bytes_max =>
            {
                next += 1;
                whole.extend_from_slice(&bytes);
                if answer.last {
                    return Some(whole);
                }
            }
            _ => return None,
        }
    }
    None
}
