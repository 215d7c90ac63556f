//! Names the places on the bus: [`Subject`] to publish on, [`Filter`] to listen with, [`Inbox`] to be answered at.
//!
//! A subject only transports. Whom a message is for, and who sent it, is decided on its signed content.

use std::fmt;
use std::str::FromStr;

use crate::domain::id::{
    DocumentName, EventKind, FleetId, InvalidToken, NodeId, Principal, ServiceId,
};

/// The two tokens that every subject begins with; the second is the version of the whole scheme.
const ROOT: [&str; 2] = ["smgr", "v1"];

/// Addresses every node in `call`; no node may bear it.
pub const ALL: &str = "all";

/// Stands for the service in the event of a whole node. `_` is in no name, so no service can take it.
const NO_SERVICE: &str = "_";

/// The longest inbox, in bytes: prefix, principal, and two tokens of 22 characters with room to spare.
const INBOX_BYTES_MAX: usize = 192;

/// Returns the filter over all that belongs to a fleet: what its members may say and hear.
pub fn all_of(fleet: &FleetId) -> String {
    format!("{}.{}.{fleet}.>", ROOT[0], ROOT[1])
}

/// Returns the filter over the inboxes of everybody: where a node may answer.
pub const EVERY_INBOX: &str = "_INBOX.>";

/// A place to publish on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// An intent, order or query straight to one node or to all.
    Call { fleet: FleetId, to: Callee },
    /// The retained order for one service of one node.
    Order { fleet: FleetId, node: NodeId, service: ServiceId },
    /// An intent for the controller.
    Request { fleet: FleetId, principal: Principal },
    /// A fact from a log.
    Event { fleet: FleetId, origin: NodeId, scope: Scope, kind: EventKind },
    /// The heartbeat of a log.
    Beat { fleet: FleetId, origin: NodeId },
    /// Where the origin serves ranges of its own log.
    Log { fleet: FleetId, origin: NodeId },
    /// Where any controller serves ranges of its copy of a log.
    Copy { fleet: FleetId, origin: NodeId },
    /// The controller's receipt for a log.
    Receipt { fleet: FleetId, origin: NodeId },
    /// A retained trust document.
    Trust { fleet: FleetId, document: DocumentName },
}

/// Whom a call is carried to: one node, or [`Callee::EVERY_NODE`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Callee(Option<NodeId>);

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The node or controller itself.
    Node,
    /// One service.
    Service(ServiceId),
}

/// One token of a filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pick<T> {
    /// Whatever stands there.
    Any,
    /// Only this.
    Only(T),
}

/// A set of subjects to listen to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// The calls to one callee. A node listens to its own name and to every node's.
    Calls { fleet: FleetId, to: Callee },
    /// The retained orders of a node.
    Orders { fleet: FleetId, node: NodeId },
    /// The intents for the controller.
    Requests { fleet: FleetId },
    /// Facts.
    Events { fleet: FleetId, origin: Pick<NodeId>, scope: Pick<Scope>, kind: Pick<EventKind> },
    /// Heartbeats.
    Beats { fleet: FleetId, origin: Pick<NodeId> },
    /// Requests for ranges of one's own log.
    Log { fleet: FleetId, origin: NodeId },
    /// Requests for ranges of a controller's copies.
    Copies { fleet: FleetId, origin: Pick<NodeId> },
    /// Receipts.
    Receipts { fleet: FleetId, origin: Pick<NodeId> },
    /// Trust documents.
    Trust { fleet: FleetId },
}

/// The part of the bus under which one principal is answered: `_INBOX.<principal>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboxPrefix(pub Principal);

/// A place to answer at: an inbox below the [`InboxPrefix`] of a known principal.
///
/// An answer goes nowhere else, or a caller could have it delivered as a call to somebody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inbox {
    owner: InboxPrefix,
    rest: String,
}

/// Says why a text is no subject, filter or inbox of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubject {
    /// It does not begin with `smgr.v1`, or what follows has no such form.
    #[error("not a subject of this version")]
    Shape,
    /// One of its tokens is not a name.
    #[error("a token of the subject is not a name")]
    Token(#[from] InvalidToken),
    /// It is not `_INBOX.<principal>.<tokens>`.
    #[error("not an inbox of a principal")]
    Inbox,
}

/// Says that a node cannot be called `all`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`all` addresses every node and cannot be the name of one")]
pub struct ReservedName;

impl Subject {
    /// Returns the fleet in which the subject lies.
    pub fn fleet(&self) -> &FleetId {
        match self {
            Self::Call { fleet, .. }
            | Self::Order { fleet, .. }
            | Self::Request { fleet, .. }
            | Self::Event { fleet, .. }
            | Self::Beat { fleet, .. }
            | Self::Log { fleet, .. }
            | Self::Copy { fleet, .. }
            | Self::Receipt { fleet, .. }
            | Self::Trust { fleet, .. } => fleet,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.", ROOT[0], ROOT[1], self.fleet())?;
        match self {
            Self::Call { to, .. } => write!(f, "call.{to}"),
            Self::Order { node, service, .. } => write!(f, "order.{node}.{service}"),
            Self::Request { principal, .. } => write!(f, "request.{principal}"),
            Self::Event { origin, scope, kind, .. } => write!(f, "event.{origin}.{scope}.{kind}"),
            Self::Beat { origin, .. } => write!(f, "beat.{origin}"),
            Self::Log { origin, .. } => write!(f, "log.{origin}"),
            Self::Copy { origin, .. } => write!(f, "copy.{origin}"),
            Self::Receipt { origin, .. } => write!(f, "receipt.{origin}"),
            Self::Trust { document, .. } => write!(f, "trust.{document}"),
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let (fleet, rest) = below_root(text)?;
        Ok(match rest.as_slice() {
            ["call", to] => Self::Call { fleet, to: to.parse()? },
            ["order", node, service] => {
                Self::Order { fleet, node: node.parse()?, service: service.parse()? }
            }
            ["request", principal] => Self::Request { fleet, principal: principal.parse()? },
            ["event", origin, scope, kind] => Self::Event {
                fleet,
                origin: origin.parse()?,
                scope: scope.parse()?,
                kind: kind.parse()?,
            },
            ["beat", origin] => Self::Beat { fleet, origin: origin.parse()? },
            ["log", origin] => Self::Log { fleet, origin: origin.parse()? },
            ["copy", origin] => Self::Copy { fleet, origin: origin.parse()? },
            ["receipt", origin] => Self::Receipt { fleet, origin: origin.parse()? },
            ["trust", document] => Self::Trust { fleet, document: document.parse()? },
            _ => return Err(InvalidSubject::Shape),
        })
    }
}

impl Filter {
    /// Returns the filter for every fact of a fleet.
    pub fn every_event(fleet: FleetId) -> Self {
        Self::Events { fleet, origin: Pick::Any, scope: Pick::Any, kind: Pick::Any }
    }

    /// Returns the fleet in which the filter listens.
    pub fn fleet(&self) -> &FleetId {
        match self {
            Self::Calls { fleet, .. }
            | Self::Orders { fleet, .. }
            | Self::Requests { fleet }
            | Self::Events { fleet, .. }
            | Self::Beats { fleet, .. }
            | Self::Log { fleet, .. }
            | Self::Copies { fleet, .. }
            | Self::Receipts { fleet, .. }
            | Self::Trust { fleet } => fleet,
        }
    }

    /// Says whether a message on `subject` reaches a listener with this filter.
    pub fn matches(&self, subject: &Subject) -> bool {
        if self.fleet() != subject.fleet() {
            return false;
        }
        match (self, subject) {
            (Self::Calls { to: want, .. }, Subject::Call { to, .. }) => want == to,
            (Self::Orders { node: want, .. }, Subject::Order { node, .. }) => want == node,
            (Self::Requests { .. }, Subject::Request { .. })
            | (Self::Trust { .. }, Subject::Trust { .. }) => true,
            (
                Self::Events { origin: want_origin, scope: want_scope, kind: want_kind, .. },
                Subject::Event { origin, scope, kind, .. },
            ) => want_origin.admits(origin) && want_scope.admits(scope) && want_kind.admits(kind),
            (Self::Log { origin: want, .. }, Subject::Log { origin, .. }) => want == origin,
            (Self::Beats { origin: want, .. }, Subject::Beat { origin, .. })
            | (Self::Copies { origin: want, .. }, Subject::Copy { origin, .. })
            | (Self::Receipts { origin: want, .. }, Subject::Receipt { origin, .. }) => {
                want.admits(origin)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.", ROOT[0], ROOT[1], self.fleet())?;
        match self {
            Self::Calls { to, .. } => write!(f, "call.{to}"),
            Self::Orders { node, .. } => write!(f, "order.{node}.*"),
            Self::Requests { .. } => write!(f, "request.*"),
            Self::Events { origin, scope, kind, .. } => write!(f, "event.{origin}.{scope}.{kind}"),
            Self::Beats { origin, .. } => write!(f, "beat.{origin}"),
            Self::Log { origin, .. } => write!(f, "log.{origin}"),
            Self::Copies { origin, .. } => write!(f, "copy.{origin}"),
            Self::Receipts { origin, .. } => write!(f, "receipt.{origin}"),
            Self::Trust { .. } => write!(f, "trust.*"),
        }
    }
}

impl FromStr for Filter {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let (fleet, rest) = below_root(text)?;
        Ok(match rest.as_slice() {
            ["call", to] => Self::Calls { fleet, to: to.parse()? },
            ["order", node, "*"] => Self::Orders { fleet, node: node.parse()? },
            ["request", "*"] => Self::Requests { fleet },
            ["event", origin, scope, kind] => Self::Events {
                fleet,
                origin: origin.parse()?,
                scope: scope.parse()?,
                kind: kind.parse()?,
            },
            ["beat", origin] => Self::Beats { fleet, origin: origin.parse()? },
            ["log", origin] => Self::Log { fleet, origin: origin.parse()? },
            ["copy", origin] => Self::Copies { fleet, origin: origin.parse()? },
            ["receipt", origin] => Self::Receipts { fleet, origin: origin.parse()? },
            ["trust", "*"] => Self::Trust { fleet },
            _ => return Err(InvalidSubject::Shape),
        })
    }
}

impl Callee {
    /// Every node of the fleet. Only a transport: each node looks for itself in the signed audience.
    pub const EVERY_NODE: Self = Self(None);

    /// Returns the callee that is one node.
    ///
    /// # Errors
    /// Fails for the reserved name [`ALL`].
    pub fn node(node: NodeId) -> Result<Self, ReservedName> {
        if node.as_str() == ALL { Err(ReservedName) } else { Ok(Self(Some(node))) }
    }

    /// Returns the one node that is called, or `None` when every node is.
    pub fn as_node(&self) -> Option<&NodeId> {
        self.0.as_ref()
    }
}

impl fmt::Display for Callee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref().map_or(ALL, NodeId::as_str))
    }
}

impl FromStr for Callee {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        if text == ALL { Ok(Self::EVERY_NODE) } else { text.parse().map(|node| Self(Some(node))) }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str(NO_SERVICE),
            Self::Service(service) => service.fmt(f),
        }
    }
}

impl FromStr for Scope {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        if text == NO_SERVICE { Ok(Self::Node) } else { text.parse().map(Self::Service) }
    }
}

impl From<Option<ServiceId>> for Scope {
    fn from(service: Option<ServiceId>) -> Self {
        service.map_or(Self::Node, Self::Service)
    }
}

impl<T: PartialEq> Pick<T> {
    fn admits(&self, value: &T) -> bool {
        match self {
            Self::Any => true,
            Self::Only(only) => only == value,
        }
    }
}

impl<T: fmt::Display> fmt::Display for Pick<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Only(only) => only.fmt(f),
        }
    }
}

impl<T: FromStr> FromStr for Pick<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "*" { Ok(Self::Any) } else { text.parse().map(Self::Only) }
    }
}

/// Returns the token under which events of `event_type` travel: dots and underscores become `-`.
///
/// # Errors
/// Fails when the type holds other characters than `a-z`, `0-9`, `.`, `_` and `-`.
pub fn event_kind(event_type: &str) -> Result<EventKind, InvalidToken> {
    event_type.replace(['.', '_'], "-").parse()
}

impl InboxPrefix {
    /// Says whether `inbox` belongs to the principal of this prefix.
    pub fn owns(&self, inbox: &Inbox) -> bool {
        *self == inbox.owner
    }
}

impl fmt::Display for InboxPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "_INBOX.{}", self.0)
    }
}

impl Inbox {
    /// Returns whose inbox it is.
    pub fn principal(&self) -> &Principal {
        &self.owner.0
    }
}

impl fmt::Display for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.owner, self.rest)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Inbox {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let is_token = |token: &str| {
            !token.is_empty()
                && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let (principal, rest) = Some(text)
            .filter(|text| text.len() <= INBOX_BYTES_MAX)
            .and_then(|text| text.strip_prefix("_INBOX."))
            .and_then(|text| text.split_once('.'))
            .filter(|(_, rest)| rest.split('.').all(is_token))
            .ok_or(InvalidSubject::Inbox)?;
        Ok(Self { owner: InboxPrefix(principal.parse()?), rest: rest.to_owned() })
    }
}

/// Splits a subject of ours into its fleet and the tokens after it.
fn below_root(text: &str) -> Result<(FleetId, Vec<&str>), InvalidSubject> {
    let mut tokens = text.split('.');
    let is_ours = ROOT.iter().all(|want| tokens.next() == Some(want));
    let fleet = tokens.next().filter(|_| is_ours).ok_or(InvalidSubject::Shape)?.parse()?;
    // The longest subject has four tokens here; a fifth proves that it is none.
    Ok((fleet, tokens.take(5).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token<T: FromStr<Err: fmt::Debug> + fmt::Debug>() -> impl Strategy<Value = T> {
        // Few and short names, so that filters and subjects meet.
        prop_oneof!["[ab]", "[a-z0-9-]{1,63}", Just("all".to_owned())]
            .prop_map(|text| text.parse().unwrap())
    }

    fn callee() -> impl Strategy<Value = Callee> {
        token::<NodeId>().prop_map(|node| Callee::node(node).unwrap_or(Callee::EVERY_NODE))
    }

    fn scope() -> impl Strategy<Value = Scope> {
        prop_oneof![Just(Scope::Node), token().prop_map(Scope::Service)]
    }

    fn pick<T: Clone + fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Pick<T>> {
        prop::option::of(of).prop_map(|only| only.map_or(Pick::Any, Pick::Only))
    }

    fn subject() -> impl Strategy<Value = Subject> {
        let f = token::<FleetId>;
        let n = token::<NodeId>;
        prop_oneof![
            (f(), callee()).prop_map(|(fleet, to)| Subject::Call { fleet, to }),
            (f(), n(), token()).prop_map(|(fleet, node, service)| Subject::Order {
                fleet,
                node,
                service
            }),
            (f(), token()).prop_map(|(fleet, principal)| Subject::Request { fleet, principal }),
            (f(), n(), scope(), token()).prop_map(|(fleet, origin, scope, kind)| {
                Subject::Event { fleet, origin, scope, kind }
            }),
            (f(), n()).prop_map(|(fleet, origin)| Subject::Beat { fleet, origin }),
            (f(), n()).prop_map(|(fleet, origin)| Subject::Log { fleet, origin }),
            (f(), n()).prop_map(|(fleet, origin)| Subject::Copy { fleet, origin }),
            (f(), n()).prop_map(|(fleet, origin)| Subject::Receipt { fleet, origin }),
            (f(), token()).prop_map(|(fleet, document)| Subject::Trust { fleet, document }),
        ]
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let f = token::<FleetId>;
        let n = token::<NodeId>;
        prop_oneof![
            (f(), callee()).prop_map(|(fleet, to)| Filter::Calls { fleet, to }),
            (f(), n()).prop_map(|(fleet, node)| Filter::Orders { fleet, node }),
            f().prop_map(|fleet| Filter::Requests { fleet }),
            (f(), pick(n()), pick(scope()), pick(token())).prop_map(
                |(fleet, origin, scope, kind)| Filter::Events { fleet, origin, scope, kind }
            ),
            (f(), pick(n())).prop_map(|(fleet, origin)| Filter::Beats { fleet, origin }),
            (f(), n()).prop_map(|(fleet, origin)| Filter::Log { fleet, origin }),
            (f(), pick(n())).prop_map(|(fleet, origin)| Filter::Copies { fleet, origin }),
            (f(), pick(n())).prop_map(|(fleet, origin)| Filter::Receipts { fleet, origin }),
            f().prop_map(|fleet| Filter::Trust { fleet }),
        ]
    }

    /// What the server does with `*`.
    fn server_matches(filter: &str, subject: &str) -> bool {
        let filter: Vec<_> = filter.split('.').collect();
        let subject: Vec<_> = subject.split('.').collect();
        filter.len() == subject.len()
            && filter.iter().zip(subject).all(|(want, token)| *want == "*" || *want == token)
    }

    proptest! {
        #[test]
        fn a_subject_reads_what_it_writes(subject in subject()) {
            prop_assert_eq!(subject.to_string().parse(), Ok(subject));
        }

        #[test]
        fn a_filter_reads_what_it_writes(filter in filter()) {
            prop_assert_eq!(filter.to_string().parse(), Ok(filter));
        }

        #[test]
        fn a_filter_admits_what_the_server_delivers(filter in filter(), subject in subject()) {
            let delivered = server_matches(&filter.to_string(), &subject.to_string());
            prop_assert_eq!(filter.matches(&subject), delivered);
        }

        #[test]
        fn any_text_is_read_or_refused_and_never_read_as_something_else(text in "[a-z.*>_1]{0,40}") {
            if let Ok(subject) = text.parse::<Subject>() {
                prop_assert_eq!(subject.to_string(), text);
            }
        }
    }

    #[test]
    fn the_subjects_are_those_of_the_design() {
        for text in [
            "smgr.v1.acme.call.n1",
            "smgr.v1.acme.call.all",
            "smgr.v1.acme.order.n1.web",
            "smgr.v1.acme.request.alice",
            "smgr.v1.acme.event.n1.web.instance-started",
            "smgr.v1.acme.event.n1._.log-opened",
            "smgr.v1.acme.beat.n1",
            "smgr.v1.acme.log.n1",
            "smgr.v1.acme.copy.n1",
            "smgr.v1.acme.receipt.n1",
            "smgr.v1.acme.trust.bundle",
        ] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_subject_of_another_shape_is_refused() {
        for text in [
            "",
            "smgr",
            "smgr.v1",
            "smgr.v1.acme",
            "smgr.v2.acme.call.n1",
            "smgr.v1.acme.call",
            "smgr.v1.acme.call.n1.x",
            "smgr.v1.acme.call.*",
            "smgr.v1.acme.call.>",
            "smgr.v1.acme.call.",
            "smgr.v1.acme.call.N1",
            "smgr.v1.*.call.n1",
            "smgr.v1.acme.order.n1._",
            "smgr.v1.acme.event.n1.web.a.b.c.d.e.f",
        ] {
            assert!(text.parse::<Subject>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn no_node_may_be_called_all() {
        assert_eq!(Callee::node("all".parse().unwrap()), Err(ReservedName));
        assert_eq!("all".parse(), Ok(Callee::EVERY_NODE));
    }

    #[test]
    fn a_dot_in_an_event_type_does_not_become_a_level_of_the_subject() {
        assert_eq!(event_kind("instance.oom_killed").unwrap().as_str(), "instance-oom-killed");
    }

    #[test]
    fn an_answer_goes_to_the_inbox_of_a_principal_and_nowhere_else() {
        let inbox: Inbox = "_INBOX.alice.qAbZ09.x1".parse().unwrap();
        assert_eq!(inbox.to_string(), "_INBOX.alice.qAbZ09.x1");
        assert!(InboxPrefix("alice".parse().unwrap()).owns(&inbox));
        assert!(!InboxPrefix("ali".parse().unwrap()).owns(&inbox));
        let long = format!("_INBOX.alice.{}", "x".repeat(200));
        for text in [
            "smgr.v1.acme.call.n2",
            "_INBOX.alice",
            "_INBOX.alice.",
            "_INBOX.alice.*",
            "_INBOX.alice.>",
            "_INBOX.*.x",
            "_INBOX.alice.x\r\nPUB",
            "$JS.API.STREAM.DELETE.X",
            long.as_str(),
        ] {
            assert!(text.parse::<Inbox>().is_err(), "{text:?}");
        }
    }
}
