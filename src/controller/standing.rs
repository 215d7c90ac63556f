//! Which rollouts are remembered: the last ones, and those whose wishes stand, to which nodes converge that were away or join
//! later.

use std::collections::{BTreeMap, BTreeSet};

use super::rollouts::{Driven, Rollouts};
use super::wishes::Wishes;
use crate::domain::id::{IntentId, ServiceId};
use crate::domain::rollout::{Rollout, Verdict, Wished};

/// Rollouts that have ended and are remembered whole, for `smgr rollout show`.
const ENDED_MAX: usize = 64;

/// Wishes for one service that stand beside each other, each for other nodes: what is older is forgotten as it ages.
const STANDING_MAX: usize = 64;

/// What is known of the wishes for one service while those are looked for that stand.
#[derive(Debug, Default)]
struct Standing {
    all: BTreeSet<IntentId>,
    meant: BTreeSet<String>,
    /// One says where the service is at all: what is older does not count.
    is_whole: bool,
}

impl Rollouts {
    /// Forgets the oldest that have ended, but for those whose wishes stand.
    pub(super) fn forget(&mut self, wishes: &Wishes) {
        let ended = self.all.iter().filter(|(_, it)| it.is_over());
        let at = |it: &Driven| it.story.records().last().map(|record| record.at);
        let mut ended: Vec<_> = ended.map(|(intent, it)| (at(it), *intent)).collect();
        let excess = ended.len().saturating_sub(ENDED_MAX);
        if excess == 0 {
            return;
        }
        let stand = self.standing(wishes);
        ended.sort();
        for (_, intent) in ended.into_iter().filter(|(_, it)| !stand.contains(it)).take(excess) {
            self.all.remove(&intent);
        }
    }

    /// Returns those to which nodes converge that were away or join later: the last of each service, and of those before it
    /// that succeeded the last for each selection, back to one that says where the service is at all.
    fn standing(&mut self, wishes: &Wishes) -> BTreeSet<IntentId> {
        let mut newest: Vec<_> = self
            .all
            .iter_mut()
            .filter_map(|(intent, driven)| {
                let plan = driven.story.state()?.plan();
                let of = (plan.service.clone(), plan.configures);
                let generation = plan.generation;
                Some((std::cmp::Reverse(generation), of, *intent, driven))
            })
            .collect();
        newest.sort_by_key(|(generation, _, intent, _)| (*generation, *intent));
        let mut stand: BTreeMap<(ServiceId, bool), Standing> = BTreeMap::new();
        for (_, of, intent, driven) in newest {
            let known = stand.entry(of.clone()).or_default();
            let is_last = known.all.is_empty();
            let verdict = driven.on_disk().and_then(Rollout::verdict);
            let has_succeeded = verdict == Some(Verdict::Succeeded);
            let counts = has_succeeded && !known.is_whole && known.all.len() < STANDING_MAX;
            let is_new = counts && known.meant.insert(driven.means(intent, of.1, wishes));
            known.is_whole |= has_succeeded && driven.wished.as_ref().is_some_and(Wished::is_whole);
            if is_last || is_new {
                known.all.insert(intent);
            }
        }
        stand.into_values().flat_map(|known| known.all).collect()
    }
}

impl Driven {
    /// Returns which nodes, and which keys there, the wish behind it is about, as text; a text of its own where it is not here.
    fn means(&mut self, intent: IntentId, configures: bool, wishes: &Wishes) -> String {
        let text = match configures {
            true => {
                let configured = self.configured(intent, wishes);
                configured.map(|(select, keys)| format!("{select} {keys:?}"))
            }
            false => self.wished(intent, wishes).map(|wished| wished.select.to_string()),
        };
        text.unwrap_or_else(|| intent.to_string())
    }
}
