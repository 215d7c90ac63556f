//! On which nodes a service should be, and what has to happen for that.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::parameters::{OnLeave, Parameters};
use super::plan::chunks;
use crate::domain::id::NodeId;
use crate::domain::selector::{Roster, SelectError, Selector};

/// `[placement]`: which nodes get a service, and what happens on one that stops to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Which nodes; absent: those that a deploy selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Selector>,
    /// What happens on a node that stops to match.
    pub on_leave: OnLeave,
}

/// All that a spec says about the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollouts {
    /// `[rollout]`, `[rollback]` and `release.rollback`.
    pub parameters: Parameters,
    /// `[placement]`.
    pub placement: Placement,
}

/// What has to happen so that a service is where it should be, in batches that may go at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Nodes that get it.
    pub gain: Vec<Vec<NodeId>>,
    /// Nodes from which it is taken, after all that get it have it.
    pub lose: Vec<Vec<NodeId>>,
}

impl Placement {
    /// Says which nodes have to get a service and which to lose it, by `max_parallel` of all that are meant.
    ///
    /// # Errors
    ///
    /// The selection is empty: labels that were mistaken must not take a service from everywhere.
    pub fn moves(
        &self,
        roster: &Roster,
        holders: &BTreeSet<NodeId>,
        parameters: &Parameters,
    ) -> Result<Moves, SelectError> {
        let Some(select) = &self.select else { return Ok(Moves::default()) };
        let wanted = select.select(roster)?;
        let batches = |nodes: Vec<NodeId>| chunks(nodes, &parameters.max_parallel, wanted.len());
        let lose = match self.on_leave {
            OnLeave::Stop => holders.difference(&wanted).cloned().collect(),
            OnLeave::Keep => Vec::new(),
        };
        let gain = wanted.difference(holders).cloned().collect();
        Ok(Moves { gain: batches(gain), lose: batches(lose) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::rollout::Amount;
    use crate::domain::rollout::tests::{node, roster};

    fn moves(select: &str, on_leave: OnLeave, holders: &[&str]) -> Result<Moves, SelectError> {
        let placement = Placement { select: Some(select.parse().unwrap()), on_leave };
        let holders = holders.iter().map(|name| node(name)).collect();
        let max_parallel = vec![Amount::Count(1), Amount::Count(2)];
        let parameters = Parameters { max_parallel, ..Parameters::default() };
        placement.moves(&roster(9), &holders, &parameters)
    }

    #[test]
    fn a_node_that_starts_to_match_gets_the_service_and_one_that_stops_loses_it() {
        let moves = moves("zone=z0", OnLeave::Stop, &["n1", "n2", "n3", "n9"]).unwrap();
        assert_eq!(moves.gain, [vec![node("n4")], vec![node("n7")]]);
        assert_eq!(moves.lose, [vec![node("n2")], vec![node("n3"), node("n9")]]);
    }

    #[test]
    fn a_node_keeps_what_is_told_to_stay() {
        assert!(moves("zone=z0", OnLeave::Keep, &["n2"]).unwrap().lose.is_empty());
    }

    #[test]
    fn a_selection_that_matches_nothing_takes_the_service_from_nowhere() {
        assert!(moves("zone=z9", OnLeave::Stop, &["n1", "n2"]).is_err());
    }

    #[test]
    fn without_a_selection_nothing_moves() {
        let holders = [node("n1")].into();
        let moves = Placement::default().moves(&roster(3), &holders, &Parameters::default());
        assert_eq!(moves, Ok(Moves::default()));
    }
}
