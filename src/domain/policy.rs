//! Who may ask what: typed grants, allow-only, exact names, deny by default, no patterns.

use serde::{Deserialize, Serialize};

use super::id::{NodeId, Principal, ServiceId};
use super::intent::{ActorKind, Verb};
use super::time::UnixMicros;

/// What kind of key it is; the class decides which kinds of envelope it may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeyClass {
    /// Signs trust documents and nothing else.
    Root,
    /// A person's key: intents and queries.
    Human,
    /// A job's key: intents and queries.
    Ci,
    /// A node's key: events, checkpoints, answers and beats of that node.
    Node,
    /// The root-only key of one node: every wish, on that node alone.
    Local,
    /// A controller's key: orders, receipts, its own events.
    Controller,
}

/// The kinds of envelope, each with a key class that may sign it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A wish of a person or a job.
    Intent,
    /// One node's step of an intent, by a controller.
    Order,
    /// A reading that is asked for.
    Query,
    /// The reading.
    Answer,
    /// A fact.
    Event,
    /// The head of a log, between nodes and controllers.
    Beat,
    /// That a log was taken in, durably.
    Receipt,
    /// Which keys may do what.
    Trust,
}

impl KeyClass {
    /// Says whether a key of this class may sign an envelope of this kind.
    pub fn may_sign(self, kind: Kind) -> bool {
        match self {
            Self::Root => matches!(kind, Kind::Trust),
            Self::Human | Self::Ci | Self::Local => matches!(kind, Kind::Intent | Kind::Query),
            Self::Node => matches!(kind, Kind::Event | Kind::Answer | Kind::Beat),
            Self::Controller => {
                matches!(
                    kind,
                    Kind::Order
                        | Kind::Query
                        | Kind::Answer
                        | Kind::Event
                        | Kind::Beat
                        | Kind::Receipt
                )
            }
        }
    }

    /// Returns how history names a holder of such a key.
    pub fn actor(self) -> ActorKind {
        match self {
            Self::Human | Self::Root => ActorKind::Human,
            Self::Ci => ActorKind::Ci,
            Self::Local => ActorKind::Local,
            Self::Node => ActorKind::System,
            Self::Controller => ActorKind::Controller,
        }
    }
}

/// Everything of its kind, or exactly the names listed. There are no prefixes and no patterns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Names<T> {
    /// All of them.
    All,
    /// These and no others; an empty list grants nothing.
    Only(Vec<T>),
}

impl<T: PartialEq> Names<T> {
    fn contains(&self, name: &T) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Only(names) if names.is_empty())
    }
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Which verbs.
    pub verbs: Names<Verb>,
    /// On which services. A wish that names no service needs `all`.
    pub services: Names<ServiceId>,
    /// On which nodes.
    pub nodes: Names<NodeId>,
}

/// One thing that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Which verb.
    pub verb: Verb,
    /// On which service; `None` is about the whole node.
    pub service: Option<&'a ServiceId>,
    /// On which node.
    pub node: &'a NodeId,
}

/// Returns the place of the first grant that allows the request; `None` is a refusal.
pub fn allowed_by(grants: &[Grant], request: Request<'_>) -> Option<usize> {
    grants.iter().position(|grant| {
        grant.verbs.contains(&request.verb)
            && grant.nodes.contains(request.node)
            && match request.service {
                Some(service) => grant.services.contains(service),
                None => matches!(grant.services, Names::All),
            }
    })
}

/// Says whether a verb is allowed on some node, for this service or, where none is named, for any.
pub fn allowed_somewhere(grants: &[Grant], verb: Verb, service: Option<&ServiceId>) -> bool {
    grants.iter().any(|grant| {
        let of_it = match service {
            Some(service) => grant.services.contains(service),
            None => !grant.services.is_empty(),
        };
        grant.verbs.contains(&verb) && of_it && !grant.nodes.is_empty()
    })
}

/// A key as the trust document holds it, without the key itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Whose key it is.
    pub name: Principal,
    /// Of which class.
    pub class: KeyClass,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// Until when it may sign; for ever where nothing stands here.
    pub until: Option<UnixMicros>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(verbs: &[Verb], services: &[&str], nodes: &[&str]) -> Grant {
        Grant {
            verbs: Names::Only(verbs.to_vec()),
            services: Names::Only(services.iter().map(|name| name.parse().unwrap()).collect()),
            nodes: Names::Only(nodes.iter().map(|name| name.parse().unwrap()).collect()),
        }
    }

    fn allowed(grants: &[Grant], verb: Verb, service: Option<&str>, node: &str) -> bool {
        let service = service.map(|name| name.parse().unwrap());
        let node = node.parse().unwrap();
        allowed_by(grants, Request { verb, service: service.as_ref(), node: &node }).is_some()
    }

    #[test]
    fn a_grant_allows_exactly_what_it_names() {
        let grants = [grant(&[Verb::Restart], &["shop"], &["n1"])];
        assert!(allowed(&grants, Verb::Restart, Some("shop"), "n1"));
        for (verb, service, node) in [
            (Verb::Restart, Some("shop-api"), "n1"), // CVE-2025-4922: a name is no prefix.
            (Verb::Restart, Some("shop"), "n2"),
            (Verb::Stop, Some("shop"), "n1"),
            (Verb::Restart, None, "n1"),
        ] {
            assert!(!allowed(&grants, verb, service, node), "{verb:?} {service:?} {node}");
        }
    }

    #[test]
    fn nothing_is_allowed_by_nothing() {
        assert!(!allowed(&[], Verb::Status, Some("shop"), "n1"));
        assert!(!allowed(&[grant(&[], &[], &[])], Verb::Status, Some("shop"), "n1"));
    }

    #[test]
    fn who_may_do_something_nowhere_is_told_apart_from_who_may_on_some_node() {
        let grants = [grant(&[Verb::Deploy], &["shop"], &["n1"]), grant(&[Verb::Stop], &[], &[])];
        let shop = "shop".parse().unwrap();
        let other = "shop-api".parse().unwrap();
        assert!(allowed_somewhere(&grants, Verb::Deploy, Some(&shop)));
        assert!(allowed_somewhere(&grants, Verb::Deploy, None));
        assert!(!allowed_somewhere(&grants, Verb::Deploy, Some(&other)));
        assert!(!allowed_somewhere(&grants, Verb::Stop, None));
    }

    #[test]
    fn a_wish_about_the_whole_node_needs_a_grant_on_all_services() {
        let all = Grant { services: Names::All, ..grant(&[Verb::Apply], &[], &["n1"]) };
        assert!(allowed(&[all], Verb::Apply, None, "n1"));
    }

    #[test]
    fn each_class_signs_only_its_own_kinds() {
        use KeyClass::*;
        let kinds = [
            Kind::Intent,
            Kind::Order,
            Kind::Query,
            Kind::Answer,
            Kind::Event,
            Kind::Beat,
            Kind::Trust,
        ];
        let matrix = [
            (Root, "......t"),
            (Human, "i.q...."),
            (Ci, "i.q...."),
            (Local, "i.q...."),
            (Node, "...aeb."),
            (Controller, ".oqaeb."),
        ];
        for (class, row) in matrix {
            for (kind, cell) in kinds.iter().zip(row.chars()) {
                assert_eq!(class.may_sign(*kind), cell != '.', "{class:?} {kind:?}");
            }
        }
    }
}
