//! The nodes that root enrolled, and what each order asks of them.
//!
//! Nodes of one process share it, and with it what was found out for one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::config;
use crate::domain::code::Code;
use crate::domain::id::{Digest, NodeId};
use crate::domain::intent::Action;
use crate::domain::release::ReleaseId;
use crate::domain::rollout::{PlanRequest, may_go_first, newcomers_go_first};
use crate::domain::selector::{Roster, Selector};
use crate::head::manifest::check_manifest;
use crate::wire::payload::{Audience, Enrolled, Intent, roster_digest};

/// The nodes of a trust document, found by name.
#[derive(Debug, Default)]
pub struct Enrolment {
    /// By name.
    nodes: Vec<Enrolled>,
    digest: OnceLock<Digest>,
    /// Who goes first by the wish with this digest: the one that was asked about last.
    first: Mutex<Option<(Digest, Arc<First>)>>,
}

/// Who may take the release of a wish without another node's word.
#[derive(Debug)]
pub(super) struct First {
    /// They.
    pub(super) nodes: BTreeSet<NodeId>,
    /// Whether each that has nothing of the service may as well.
    pub(super) newcomers: bool,
    /// Of how many that the wish means.
    pub(super) of: usize,
}

impl From<Vec<Enrolled>> for Enrolment {
    fn from(mut nodes: Vec<Enrolled>) -> Self {
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        Self { nodes, ..Self::default() }
    }
}

impl Enrolment {
    /// Returns a node as it was enrolled.
    pub(super) fn get(&self, node: &NodeId) -> Option<&Enrolled> {
        let at = self.nodes.partition_point(|enrolled| enrolled.node < *node);
        self.nodes.get(at).filter(|enrolled| enrolled.node == *node)
    }

    /// Returns all of them, with their labels.
    pub(super) fn labelled(&self) -> impl Iterator<Item = (&NodeId, &BTreeMap<String, String>)> {
        self.nodes.iter().map(|enrolled| (&enrolled.node, &enrolled.labels))
    }

    /// Returns the digest by which a wish names it.
    pub(super) fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| roster_digest(&self.nodes))
    }

    /// Says who goes first by a wish for a release; `digest` is that of what was signed.
    ///
    /// # Errors
    /// The wish cannot be planned.
    pub(super) fn first(
        &self,
        digest: Digest,
        wish: &Intent,
    ) -> Result<Arc<First>, (Code, String)> {
        let known = || self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, first)) = known().as_ref().filter(|(of, _)| *of == digest) {
            return Ok(first.clone());
        }
        let first = Arc::new(self.find_first(wish)?);
        *known() = Some((digest, first.clone()));
        Ok(first)
    }

    fn find_first(&self, wish: &Intent) -> Result<First, (Code, String)> {
        let Action::Deploy { service, generation, release, back_to, rollback, .. } = &wish.action
        else {
            return Err((Code::INTERNAL, "it brings no release".to_owned()));
        };
        let manifest = check_manifest(service, release).map_err(|why| (Code::BAD_MANIFEST, why))?;
        let release = ReleaseId::of(release);
        let rollouts = config::rollouts_of(config::release_layer(release, manifest));
        let parameters = match rollouts {
            Ok(rollouts) => rollouts.parameters.on_the_way(*rollback),
            Err(mistakes) => {
                let first = mistakes.into_iter().next();
                let why = first.map_or_else(String::new, |mistake| mistake.what);
                return Err((Code::BAD_MANIFEST, why));
            }
        };
        let roster: Roster =
            self.labelled().map(|(node, labels)| (node.clone(), labels.clone())).collect();
        let targets: BTreeSet<NodeId> = match &wish.audience {
            Audience::All => BTreeSet::new(),
            Audience::Nodes(nodes) => {
                nodes.iter().filter(|node| roster.contains_key(*node)).cloned().collect()
            }
            Audience::Select { selector, .. } => {
                let selector: Selector =
                    selector.parse().map_err(|error| (Code::BAD_SELECTOR, format!("{error}")))?;
                let means = self.labelled().filter(|(node, labels)| selector.matches(node, labels));
                means.map(|(node, _)| node.clone()).collect()
            }
        };
        let nodes = may_go_first(&PlanRequest {
            intent: wish.id,
            service: service.clone(),
            generation: *generation,
            release,
            back_to: *back_to,
            emergency: None,
            retry: None,
            targets: &targets,
            roster: &roster,
            roster_digest: Digest([0; 32]),
            away: &BTreeSet::new(),
            is_new: false,
            parameters: &parameters,
        });
        let newcomers = newcomers_go_first(*back_to, &parameters);
        Ok(First { nodes: nodes.into_iter().collect(), newcomers, of: targets.len() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::domain::id::{Generation, IntentId, Kid};
    use crate::domain::release::{MANIFEST_VERSION, Manifest};
    use crate::domain::time::UnixMicros;
    use crate::wire::codec;
    use crate::wire::payload::{Mode, PAYLOAD_VERSION};

    fn wish(number: u8) -> Intent {
        let release = codec::encode(&Manifest {
            v: MANIFEST_VERSION,
            service: "web".parse().unwrap(),
            version: number.to_string(),
            file: "web.toml".to_owned(),
            spec: "exec = [\"/bin/sleep\", \"9\"]\n".to_owned(),
            artifact: None,
            again: None,
        });
        Intent {
            v: PAYLOAD_VERSION,
            id: IntentId([number; 16]),
            iss: Kid([1; 16]),
            iat: UnixMicros(0),
            exp: UnixMicros(0),
            fleet: "acme".parse().unwrap(),
            mode: Mode::Desired,
            action: Action::Deploy {
                service: "web".parse().unwrap(),
                generation: Generation(number.into()),
                release,
                back_to: None,
                emergency: None,
                retry: None,
                on_conflict: None,
                rollback: false,
            },
            audience: Audience::Select { selector: "*".to_owned(), roster: Digest([0; 32]) },
            note: String::new(),
        }
    }

    #[test]
    fn ten_thousand_nodes_of_one_process_find_out_once_who_goes_first() {
        let enrolled = |number| Enrolled {
            node: format!("n{number}").parse().unwrap(),
            kid: Kid([1; 16]),
            labels: BTreeMap::new(),
        };
        let roster = Enrolment::from((0..10_000).map(enrolled).collect::<Vec<_>>());
        assert!((0..10_000).all(|number| roster.get(&enrolled(number).node).is_some()));
        let (one, two) = (wish(1), wish(2));
        let of = |number, wish| roster.first(Digest([number; 32]), wish).unwrap();
        let first = of(1, &one);
        assert_eq!((first.nodes.len(), first.of), (1, 10_000));
        let begin = Instant::now();
        assert!((0..10_000).all(|_| Arc::ptr_eq(&of(1, &one), &first)));
        assert!(begin.elapsed() < Duration::from_secs(1), "each order was planned anew");
        assert!(!Arc::ptr_eq(&of(2, &two), &first), "of another wish others may be the first");
    }
}
