//! How many nodes a second answer a signed question to the whole fleet, each answer verified; and a bare fan-out beside it.
//!
//! The floor does what no such fan-out can do without, with as many connections to the same server: each of its nodes
//! verifies the question and signs an answer, both as long as those of smgr, and the asker verifies every answer.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use futures_util::StreamExt as _;
use smgr::cli::client::{Client, Whom};
use smgr::wire::payload::{Ask, Reply};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Figure;

/// Fan-outs of each kind, in turn.
const RUNS: usize = 5;
const WITHIN: Duration = Duration::from_secs(30);
/// Connections that are opened at the same time.
const CONNECTING_MAX: usize = 128;
const SUBJECT: &str = "floor.call";
const SIGNATURE_BYTES: usize = 64;
/// How long a question of smgr and an answer to it are, with their signatures.
const QUESTION_BYTES: usize = 260;
const ANSWER_BYTES: usize = 230;

fn node_key(number: usize) -> SigningKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
    SigningKey::from_bytes(&seed)
}

fn asker_key() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

fn options(subscriptions: usize) -> async_nats::ConnectOptions {
    async_nats::ConnectOptions::new().subscription_capacity(subscriptions)
}

/// Runs the nodes of the floor until it is killed: a line on stdout says that all listen.
pub(crate) fn bare_nodes(url: &str, nodes: usize) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    let (ready, is_ready) = std::sync::mpsc::channel();
    for thread in 0..threads {
        let (url, ready) = (url.to_owned(), ready.clone());
        std::thread::spawn(move || {
            let numbers = (thread..nodes).step_by(threads);
            bare_share(&url, numbers, &ready)
        });
    }
    for _ in 0..nodes {
        is_ready.recv_timeout(WITHIN).context("a node of the floor does not listen")?;
    }
    println!("listening");
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}

fn bare_share(
    url: &str,
    numbers: impl Iterator<Item = usize>,
    ready: &std::sync::mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
        let mut nodes = JoinSet::new();
        for number in numbers {
            let (url, ready, connecting) = (url.to_owned(), ready.clone(), connecting.clone());
            nodes.spawn(async move {
                let turn = connecting.acquire().await?;
                let client = options(64).connect(url).await?;
                let mut calls = client.subscribe(SUBJECT).await?;
                client.flush().await?;
                drop(turn);
                ready.send(()).ok();
                let (key, asker) = (node_key(number), asker_key().verifying_key());
                while let Some(call) = calls.next().await {
                    let (signature, question) = call
                        .payload
                        .split_first_chunk::<SIGNATURE_BYTES>()
                        .context("a question too short")?;
                    asker.verify_strict(question, &(*signature).into())?;
                    let mut answer = vec![0; ANSWER_BYTES];
                    answer[SIGNATURE_BYTES..][..8].copy_from_slice(&(number as u64).to_le_bytes());
                    let signed = key.sign(&answer[SIGNATURE_BYTES..]).to_bytes();
                    answer[..SIGNATURE_BYTES].copy_from_slice(&signed);
                    if let Some(reply) = call.reply {
                        client.publish(reply, answer.into()).await?;
                    }
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = nodes.join_next().await {
            ended??;
        }
        Ok(())
    })
}

/// Asks every node of the floor once; returns how long it took until each was heard.
async fn ask_bare(
    client: &async_nats::Client,
    keys: &BTreeMap<u64, VerifyingKey>,
) -> anyhow::Result<Duration> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.flush().await?;
    let began = Instant::now();
    let question = vec![1; QUESTION_BYTES - SIGNATURE_BYTES];
    let mut signed = asker_key().sign(&question).to_bytes().to_vec();
    signed.extend(question);
    client.publish_with_reply(SUBJECT, inbox, signed.into()).await?;
    let mut missing: std::collections::BTreeSet<u64> = keys.keys().copied().collect();
    while !missing.is_empty() {
        let answer = timeout(WITHIN, answers.next()).await?.context("the floor lost its bus")?;
        let (signature, answer) =
            answer.payload.split_first_chunk::<SIGNATURE_BYTES>().context("an answer too short")?;
        let number = u64::from_le_bytes(answer[..8].try_into()?);
        let key = keys.get(&number).context("an unknown node of the floor")?;
        key.verify_strict(answer, &(*signature).into())?;
        missing.remove(&number);
    }
    Ok(began.elapsed())
}

/// What `smgr ping` does, from the question to the last verified answer.
async fn ask_fleet(client: &mut Client, nodes: usize) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut pending = client.ask(Ask::Ping).await?;
    let mut named = 0;
    while let Some(answer) = pending.next().await? {
        ensure!(matches!(answer.reply, Reply::Pong { .. }), "{} refused", answer.node);
        named += 1;
    }
    let missing = pending.missing().len();
    ensure!(missing == 0 && named == nodes, "{missing} of {nodes} nodes did not answer");
    Ok(began.elapsed())
}

fn rate(nodes: usize, took: Duration) -> f64 {
    nodes as f64 / took.as_secs_f64()
}

/// Measures fan-outs over an emulated fleet and over the bare nodes at the same server, in turn.
pub(crate) fn ping(state: &Path, url: &str, nodes: usize) -> anyhow::Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let context = crate::fleet::context(state)?;
        let whom = Whom::or_everybody(&context, None);
        let mut fleet = Client::connect(&context, &whom).await?;
        let bare = options(2 * nodes).connect(url).await?;
        let keys = (0..nodes).map(|it| (it as u64, node_key(it).verifying_key())).collect();
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            ours.push(rate(nodes, ask_fleet(&mut fleet, nodes).await?));
            floors.push(rate(nodes, ask_bare(&bare, &keys).await?));
        }
        eprintln!("  answers/s, smgr {ours:.0?}, bare {floors:.0?}");
        ours.sort_by(f64::total_cmp);
        floors.sort_by(f64::total_cmp);
        Ok(vec![Figure {
            name: "ping",
            unit: "/s",
            smgr: ours[RUNS / 2],
            other: "bare",
            measured: floors[RUNS / 2],
        }])
    })
}
