//! One wish on many nodes, some at a time: what goes wrong on the first does not reach the others.

mod rules;

use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::rules::rules;
use super::place;
use crate::cli::args::{Over, Waiting};
use crate::cli::client::{Client, Whom};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::interrupt::Interrupts;
use crate::cli::json::error::ResultDocument;
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
    let mut nodes = place::selected(context, service, select).await?;
    let mut default = at_a_time(&action).to_vec();
    // On one node it is all the same.
    if let (Action::Run { action, .. }, 2..) = (&action, nodes.len()) {
        let asked = nodes.iter().map(async |node: &NodeId| {
            (node.clone(), Client::configuration(context, node, service).await.ok())
        });
        if let Some((node, rules)) = rules(action, asked.collect()).await? {
            default = rules.max_parallel;
            if rules.is_for_one {
                nodes = vec![node];
            }
        }
    }
    let sizes = if over.max_parallel.is_empty() { &default } else { &over.max_parallel };
    let whom = Whom::new(context, nodes.iter().cloned());
    let mut interrupts = Interrupts::watch()?;
    let mut ramp = Ramp {
        client: Client::connect(context, &whom).await?,
        action: &action,
        wishes: Wishes::default(),
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
        false => out.json(&ramp.result(waiting.detach)),
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
    wishes: Wishes,
    verdicts: Verdicts,
}

/// The wishes of a ramp, one after the other: each for as many nodes as it may name, and as long as it is good.
#[derive(Default)]
struct Wishes {
    /// The present one, and when it was signed.
    signed: Option<(Signed, Instant)>,
    intents: Vec<String>,
}

impl Wishes {
    /// Returns the wish by which a batch is asked. Where another one is needed, it is signed for the batch and as many as
    /// it may name of those that are left.
    fn for_batch<'n>(
        &mut self,
        now: Instant,
        batch: &'n [NodeId],
        left: impl Iterator<Item = &'n NodeId>,
        sign: impl FnOnce(&[NodeId]) -> Result<Signed, CliError>,
    ) -> Result<Signed, CliError> {
        let is_good = |(signed, at): &(Signed, Instant)| {
            now.duration_since(*at) < SIGNED_AGAIN && names(signed, batch)
        };
        let all = match self.signed.take().filter(is_good) {
            Some(signed) => signed,
            None => {
                let left = left.take(NAMED_MAX - batch.len());
                let nodes: Vec<NodeId> = batch.iter().chain(left).cloned().collect();
                let signed = sign(&nodes)?;
                self.intents.push(full_intent(signed.id));
                (signed, now)
            }
        };
        let wish = Signed { audience: Audience::Nodes(batch.to_vec()), ..all.0.clone() };
        self.signed = Some(all);
        Ok(wish)
    }
}

impl Ramp<'_> {
    async fn carry_out(
        &mut self,
        context: &Context,
        whom: &Whom,
        batch: &[NodeId],
        detach: bool,
    ) -> Result<Verdicts, CliError> {
        let asked = &self.verdicts.nodes;
        let is_left = |node: &&NodeId| !asked.contains_key(*node) && !batch.contains(node);
        let (client, action) = (&mut self.client, self.action);
        let sign = |nodes: &[NodeId]| client.wish_for(LIFE, action.clone(), nodes);
        let left = whom.nodes().filter(is_left);
        let wish = self.wishes.for_batch(Instant::now(), batch, left, sign)?;
        carry_out(context, whom, &mut self.client, &wish, detach).await
    }

    fn result(&self, detach: bool) -> Option<ResultDocument> {
        let (signed, _) = self.wishes.signed.as_ref()?;
        Some(ResultDocument {
            intent: self.wishes.intents.first().cloned(),
            intents: Some(self.wishes.intents.clone()),
            not_started: Some(self.verdicts.not_started()),
            ..self.verdicts.result(signed, detach)
        })
    }
}

fn names(signed: &Signed, batch: &[NodeId]) -> bool {
    matches!(&signed.audience, Audience::Nodes(nodes) if batch.iter().all(|it| nodes.contains(it)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{IntentId, Kid};
    use crate::domain::policy::{Grant, Holder, KeyClass, Kind, Names};
    use crate::domain::time::UnixMicros;
    use crate::head::authority::{Authority, Way};
    use crate::wire::codec;
    use crate::wire::envelope::seal;
    use crate::wire::key::{Keyring, Signer};
    use crate::wire::payload::{Intent, Mode, PAYLOAD_VERSION};

    #[test]
    fn a_rolling_restart_of_many_hours_asks_each_node_once_by_a_wish_that_is_good_when_it_comes() {
        const BEGIN: UnixMicros = UnixMicros(1_795_000_000_000_000);
        let key = Signer::from_seed(&[1; 32]);
        let mut ring = Keyring::default();
        let grants = vec![Grant { verbs: Names::All, services: Names::All, nodes: Names::All }];
        let (name, class) = ("ana".parse().unwrap(), KeyClass::Human);
        ring.insert(key.public(), Holder { name, class, grants, until: None });
        let nodes: Vec<NodeId> = (0..300).map(|n| format!("n{n:03}").parse().unwrap()).collect();
        let gate = |node: &NodeId| {
            Authority::new("acme".parse().unwrap(), node.clone(), ring.clone(), Vec::<Kid>::new())
        };
        let (began, mut wishes, mut number) = (Instant::now(), Wishes::default(), 0_u128);
        // Two minutes for each.
        for (at, node) in nodes.iter().enumerate() {
            let passed = Duration::from_secs(120) * u32::try_from(at).unwrap();
            let at_node =
                |passed: Duration| BEGIN.plus_ms(u64::try_from(passed.as_millis()).unwrap());
            let sign = |nodes: &[NodeId]| {
                number += 1;
                let (id, audience) =
                    (IntentId(number.to_be_bytes()), Audience::Nodes(nodes.to_vec()));
                let intent = Intent {
                    v: PAYLOAD_VERSION,
                    id,
                    iss: key.kid(),
                    iat: at_node(passed),
                    exp: at_node(passed + LIFE),
                    fleet: "acme".parse().unwrap(),
                    mode: Mode::Once,
                    action: Action::Restart { service: "web".parse().unwrap() },
                    audience: audience.clone(),
                    note: String::new(),
                };
                Ok(Signed {
                    id,
                    audience,
                    bytes: seal(Kind::Intent, &codec::encode(&intent), &key),
                })
            };
            let batch = std::slice::from_ref(node);
            let wish =
                wishes.for_batch(began + passed, batch, nodes[at + 1..].iter(), sign).unwrap();
            assert_eq!(wish.audience, Audience::Nodes(batch.to_vec()));
            // It may come a minute late.
            let heard = at_node(passed + Duration::from_secs(60));
            let judged = gate(node).intent(&wish.bytes, Way::Bus, heard).unwrap();
            assert_eq!(judged.objection, None, "{node} after {passed:?}");
        }
        let hours = 300 * 120 / 3600;
        assert!(hours == 10 && wishes.intents.len() == 50, "{}", wishes.intents.len());
    }
}
