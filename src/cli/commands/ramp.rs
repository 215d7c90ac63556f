//! One wish on many nodes, some at a time: what goes wrong on the first does not reach the others.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::place;
use crate::cli::args::{Over, Waiting};
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::interrupt::Interrupts;
use crate::cli::out::{Out, width};
use crate::cli::screen::outcome::{Act, ramp_text};
use crate::cli::screen::words::full_intent;
use crate::cli::verdict::{Verdict, Verdicts, carry_out};
use crate::cli::wish::Signed;
use crate::domain::code::ExitCode;
use crate::domain::id::NodeId;
use crate::domain::intent::Action;
use crate::domain::rollout::{Amount, chunks};
use crate::domain::selector::Selector as NodeSelector;
use crate::wire::payload::Audience;

/// Names that one wish holds at most.
pub(crate) const NAMED_MAX: usize = 256;

/// How long a wish for many nodes may be accepted, and when another one takes its place: a node that has its turn late is
/// asked by a wish that is still good when it comes to it. Each node hears of one of them alone.
pub(crate) const LIFE: Duration = Duration::from_secs(15 * 60);
const SIGNED_AGAIN: Duration = Duration::from_secs(12 * 60);

/// Returns on how many nodes at a time something is done, unless told otherwise.
pub(crate) fn at_a_time(action: &Action) -> &'static [Amount] {
    match action {
        Action::Run { .. } => &[Amount::Percent(25)],
        _ => &[Amount::Count(1), Amount::Percent(25)],
    }
}

/// Does something to a service on each selected node that has it, once per node.
///
/// Nodes that do not answer hold up nobody and are named in the end. After a node on which it failed no other is asked.
pub(super) async fn over(
    context: &Context,
    (select, over): (&NodeSelector, &Over),
    action: Action,
    waiting: Waiting,
    out: Out,
) -> Result<ExitCode, CliError> {
    let service = action.service().expect("a wish for many nodes is about a service");
    let nodes = place::selected(context, service, select).await?;
    let default = at_a_time(&action);
    let sizes = if over.max_parallel.is_empty() { default } else { &over.max_parallel };
    let whom = Whom::new(context, nodes.iter().cloned());
    let mut interrupts = Interrupts::watch()?;
    let mut ramp = Ramp {
        client: Client::connect(context, &whom).await?,
        action: &action,
        signed: None,
        intents: Vec::new(),
        verdicts: Verdicts::default(),
    };
    let began = Instant::now();
    for batch in chunks(nodes.clone(), sizes, nodes.len()) {
        for batch in batch.chunks(NAMED_MAX) {
            if ramp.verdicts.nodes.values().any(|it| stops(it, waiting.detach)) {
                let left = batch.iter().map(|node| (node.clone(), Verdict::NotStarted));
                ramp.verdicts.nodes.extend(left);
                continue;
            }
            let at = Instant::now();
            let did = tokio::select! {
                did = ramp.carry_out(context, &whom, batch, waiting.detach) => did?,
                interrupted = interrupts.next() => {
                    let asked = ramp.verdicts.nodes.len() + batch.len();
                    let (done, all) = (asked.min(nodes.len()), nodes.len());
                    out.note(&format!("detached: {done} of {all} nodes were asked, and what began there goes on"));
                    out.note(&format!("next: smgr history {service}@{}", batch[0]));
                    return Ok(interrupted.exit());
                }
            };
            if out.is_text() {
                tell(&action, &did, (at, waiting.detach), out);
            }
            ramp.verdicts.nodes.extend(did.nodes);
        }
    }
    let exit = ramp.verdicts.exit(waiting.detach);
    match out.is_text() {
        true => out.data(&ramp_text(&action, &ramp.verdicts, began.elapsed())),
        false => out.json(&ramp.json(waiting.detach)),
    }
    Ok(exit)
}

/// Says whether no other node is asked after this. Silence is no word against the wish.
pub(crate) fn stops(verdict: &Verdict, detach: bool) -> bool {
    !verdict.is_silent() && verdict.exit(detach) != ExitCode::Done
}

/// Says what became of one batch.
fn tell(action: &Action, verdicts: &Verdicts, (began, detach): (Instant, bool), out: Out) {
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let act = Act { action, verdicts, pids: &[], took_ms, in_fleet: true, before: None };
    out.data(&act.text(width()));
    for error in verdicts.nodes.iter().filter_map(|(node, it)| it.error(node, detach)) {
        out.error(&error);
    }
}

struct Ramp<'a> {
    client: Client,
    action: &'a Action,
    /// The wish for as many nodes as it may name, and when it was signed.
    signed: Option<(Signed, Instant)>,
    intents: Vec<String>,
    verdicts: Verdicts,
}

impl Ramp<'_> {
    async fn carry_out(
        &mut self,
        context: &Context,
        whom: &Whom,
        batch: &[NodeId],
        detach: bool,
    ) -> Result<Verdicts, CliError> {
        let is_good =
            |(signed, at): &(Signed, Instant)| at.elapsed() < SIGNED_AGAIN && names(signed, batch);
        let all = match self.signed.take().filter(is_good) {
            Some(signed) => signed,
            None => self.sign(whom, batch)?,
        };
        let wish = Signed { audience: Audience::Nodes(batch.to_vec()), ..all.0.clone() };
        self.signed = Some(all);
        carry_out(context, whom, &mut self.client, &wish, detach).await
    }

    /// Signs for all nodes that are left, or as many of them as one wish may name.
    fn sign(&mut self, whom: &Whom, batch: &[NodeId]) -> Result<(Signed, Instant), CliError> {
        let asked = &self.verdicts.nodes;
        let is_left = |node: &&NodeId| !asked.contains_key(*node) && !batch.contains(node);
        let left = whom.nodes().filter(is_left).take(NAMED_MAX - batch.len());
        let nodes: Vec<NodeId> = batch.iter().chain(left).cloned().collect();
        let signed = self.client.wish_for(LIFE, self.action.clone(), &nodes)?;
        self.intents.push(full_intent(signed.id));
        Ok((signed, Instant::now()))
    }

    fn json(&self, detach: bool) -> Value {
        let Some((signed, _)) = &self.signed else { return Value::Null };
        let mut result = self.verdicts.json(signed, detach);
        result["intent"] = json!(self.intents.first());
        result["intents"] = json!(self.intents);
        result["not_started"] = json!(self.verdicts.nodes_that(|it| *it == Verdict::NotStarted));
        result
    }
}

fn names(signed: &Signed, batch: &[NodeId]) -> bool {
    matches!(&signed.audience, Audience::Nodes(nodes) if batch.iter().all(|it| nodes.contains(it)))
}
