//! Names the places on the bus: [`Subject`] to publish on, [`Filter`] to listen with, [`Inbox`] to be answered at.
//!
//! A subject only transports. Whom a message is for, and who sent it, is decided on its signed content.

mod inbox;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::domain::id::{
    DocumentName, EventKind, FleetId, InvalidToken, NodeId, Principal, ServiceId,
};

pub use inbox::{Inbox, InboxPrefix};

/// The two tokens that every subject begins with; the second is the version of the whole scheme.
const ROOT: [&str; 2] = ["smgr", "v1"];

/// Addresses every node in `call`; no node may bear it.
pub const ALL: &str = "all";

/// Stands for the service in the event of a whole node. `_` is in no name, so no service can take it.
const NO_SERVICE: &str = "_";

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

/// Splits a subject of ours into its fleet and the tokens after it.
fn below_root(text: &str) -> Result<(FleetId, Vec<&str>), InvalidSubject> {
    let mut tokens = text.split('.');
    let is_ours = ROOT.iter().all(|want| tokens.next() == Some(want));
    let fleet = tokens.next().filter(|_| is_ours).ok_or(InvalidSubject::Shape)?.parse()?;
    // The longest subject has four tokens here; a fifth proves that it is none.
    Ok((fleet, tokens.take(5).collect()))
}
