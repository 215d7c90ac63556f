//! How fast a controller takes in the logs of a fleet, by ranges and live; and a bare fetch of the same logs.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use smgr::cli::args::{Global, Output, Via};
use smgr::cli::client::{Client, Whom};
use smgr::cli::context::Context;
use smgr::domain::id::{EventId, NodeId, Seq};
use smgr::domain::policy::Kind;
use smgr::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use smgr::wire::payload::{Ask, Reply};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Figure;

/// How long a controller may take for anything here.
const WITHIN: Duration = Duration::from_secs(120);
/// How often it is asked how far it is.
const LOOK: Duration = Duration::from_millis(50);
/// Askers of the bare fetch, and events that each asks for at once: as a controller.
const ASKERS: usize = 16;
const EVENTS_MAX: u32 = 1000;

pub(crate) fn context(state: &Path) -> anyhow::Result<Context> {
    let (state, nodes, bus) = (Some(state.to_owned()), Vec::new(), None);
    let (via, timeout, output) = (Via::Bus, Some(Duration::from_secs(20)), Output::Text);
    Ok(Context::new(Global { state, nodes, bus, via, timeout, output })?)
}

/// Returns how many events the controller has.
async fn here(client: &mut Client, controller: &NodeId) -> anyhow::Result<Option<u64>> {
    let ask = Ask::Arrivals { after: None, events_max: 1, wait_ms: 0 };
    let mut pending = client.ask_controller(controller, ask).await?;
    match pending.next().await?.map(|answer| answer.reply) {
        Some(Reply::Arrivals { head, .. }) => Ok(Some(head.seq.0)),
        Some(other) => bail!("asked how far it is, {controller} says {other:?}"),
        None => Ok(None),
    }
}

/// Waits until a controller that begins has all backlogs; returns events a second, from the first answer on.
async fn fetched(client: &mut Client, nodes: u64, each: u64) -> anyhow::Result<f64> {
    let controller = client.controllers().pop().context("the fleet has no controller")?;
    let (total, deadline) = (nodes * each, Instant::now() + WITHIN);
    let mut first: Option<(Instant, u64)> = None;
    while Instant::now() < deadline {
        if let Some(count) = here(client, &controller).await? {
            let (since, before) = *first.get_or_insert((Instant::now(), count));
            if count >= total {
                ensure!(count > before, "it had all before it was asked: more events are needed");
                return Ok((count - before) as f64 / since.elapsed().as_secs_f64());
            }
        }
        sleep(LOOK).await;
    }
    bail!("the controller does not have all {total} events after {} s", WITHIN.as_secs())
}

/// Asks each node for its log, verifies the answers, and writes the rows to a file, which is synced once.
async fn bare(state: &Path, nodes: Vec<NodeId>) -> anyhow::Result<f64> {
    let mut file = File::create(state.join("floor"))?;
    let began = Instant::now();
    let mut asked = JoinSet::new();
    let mut shares: Vec<VecDeque<NodeId>> = vec![VecDeque::new(); ASKERS];
    for (node, share) in nodes.into_iter().zip((0..ASKERS).cycle()) {
        shares[share].push_back(node);
    }
    let (rows, mut came) = tokio::sync::mpsc::channel(ASKERS);
    for share in shares {
        let (context, rows) = (context(state)?, rows.clone());
        asked.spawn_local(async move {
            let mut client = Client::connect(&context, &Whom::default()).await?;
            for node in share {
                let mut after: Option<EventId> = None;
                loop {
                    let ask =
                        Ask::Range { after: after.take(), events_max: EVENTS_MAX, wait_ms: 0 };
                    let mut pending = client.ask_controller(&node, ask).await?;
                    let answer = pending.next().await?.context("a node is silent")?;
                    let Reply::Range { epoch, first, rows: page, head } = answer.reply else {
                        bail!("{node} has no log");
                    };
                    let last = first.0 + page.len() as u64 - 1;
                    let is_last = page.is_empty() || last >= head.seq.0;
                    after = Some(EventId { origin: node.clone(), epoch, seq: Seq(last) });
                    rows.send(page).await.ok();
                    if is_last {
                        break;
                    }
                }
            }
            Ok(())
        });
    }
    drop(rows);
    let mut count = 0;
    while let Some(page) = came.recv().await {
        count += page.len();
        page.iter().try_for_each(|row| file.write_all(row))?;
    }
    while let Some(ended) = asked.join_next().await {
        ended??;
    }
    file.sync_data()?;
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

/// Measures how fast a controller that begins at this moment takes in `each` events of each node, and a bare fetch.
pub(crate) fn ingest(state: &Path, nodes: u64, each: u64) -> anyhow::Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut client = Client::connect(&context(state)?, &Whom::default()).await?;
        let smgr = fetched(&mut client, nodes, each).await?;
        let names =
            (1..=nodes).map(|number| format!("n{number}").parse()).collect::<Result<_, _>>()?;
        let measured = bare(state, names).await?;
        Ok(vec![Figure { name: "ingest", unit: "/s", smgr, other: "floor", measured }])
    })
}

/// Counts the bytes of the orders that go out until each of `nodes` has had one: prints a line when it listens.
pub(crate) fn order_size(url: &str, nodes: usize) -> anyhow::Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = async_nats::ConnectOptions::new().subscription_capacity(4 * nodes + 1024);
        let client = options.connect(url).await?;
        let mut calls = client.subscribe("smgr.v1.emulated.call.*").await?;
        client.flush().await?;
        println!("listening");
        std::io::stdout().flush()?;
        let (mut bytes, mut orders) = (0, 0);
        let mut ordered = BTreeSet::new();
        while ordered.len() < nodes {
            let call = timeout(WITHIN, calls.next()).await?.context("the bus is gone")?;
            let kind = envelope::read(&call.payload, ENVELOPE_BYTES_MAX).map(|it| it.kind());
            if kind.is_ok_and(|kind| kind == Kind::Order) {
                (bytes, orders) = (bytes + call.payload.len(), orders + 1);
                ordered.insert(call.subject);
            }
        }
        eprintln!("  {orders} orders, {bytes} bytes to {nodes} nodes");
        let smgr = bytes as f64 / nodes as f64;
        let measured = bytes as f64 / f64::from(orders);
        Ok(vec![Figure { name: "order-size", unit: "B", smgr, other: "an-order", measured }])
    })
}
