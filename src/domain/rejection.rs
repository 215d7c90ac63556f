//! Why a verified wish is not taken. A rejection is an answer, not an error.

use super::code::Code;
use super::id::{ActionName, NodeId, ServiceId};

/// Why a verified wish is not taken. Nothing has changed and nothing will be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The id stands for another wish.
    #[error("this id was used before with another content")]
    Replayed,
    /// It came too late, or so late that a first time may be forgotten.
    #[error("the wish has expired")]
    Expired,
    /// It was signed before this log began.
    #[error("issued before this node's log began anew")]
    StaleEpoch,
    /// A newer desired state is in force.
    #[error("a newer desired state is in force")]
    StaleGeneration,
    /// Too many wishes are under way or remembered.
    #[error("too much is under way")]
    Busy,
    /// The agent is on its way down.
    #[error("this node's agent is ending")]
    Ending,
    /// The service is not known here.
    #[error("no such service: {0}")]
    NoSuchService(ServiceId),
    /// The service declares no such action.
    #[error("{service} declares no action `{action}`{}", known_words(.known))]
    NoSuchAction {
        /// Which service.
        service: ServiceId,
        /// Which action.
        action: ActionName,
        /// Those that it declares.
        known: Vec<ActionName>,
    },
    /// Nobody said yes to an action that wants it.
    #[error("`{action}` of {service} is run when a person has said yes to it")]
    NotConfirmed {
        /// Which service.
        service: ServiceId,
        /// Which action.
        action: ActionName,
    },
    /// The action takes no such parameter, or not this value.
    #[error("parameter `{name}`: {why}")]
    BadParameter {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A parameter without a default was not given.
    #[error("parameter `{0}` is missing")]
    MissingParameter(String),
    /// The signal has no such number.
    #[error("{0} is not a signal: they are numbered 1 to 64")]
    BadSignal(i32),
    /// The service does not say how it reloads.
    #[error("{0} does not say how it reloads")]
    NoReload(ServiceId),
    /// A reload is under way.
    #[error("{0} is reloading already")]
    Reloading(ServiceId),
    /// A new run is to take over from the one that would reload.
    #[error("a new run of {0} is about to take over")]
    HandingOver(ServiceId),
    /// An order of a controller that does not lead any more.
    #[error("it is of term {term}, and term {seen} was seen")]
    StaleTerm {
        /// Its term.
        term: u64,
        /// The highest that was obeyed.
        seen: u64,
    },
    /// Two controllers say that they lead in one term.
    #[error("in term {term} this node obeys `{leads}`")]
    ForkedTerm {
        /// The term.
        term: u64,
        /// Who was obeyed in it first.
        leads: NodeId,
    },
    /// How a rollout goes on is no node's to say.
    #[error("how a rollout goes on is said to a controller")]
    ForControllers,
    /// Two plans of one wish.
    #[error("another plan of this wish is being followed")]
    AnotherPlan,
    /// An apply after the return of the same wish.
    #[error("this wish was taken back on this node")]
    Returned,
    /// A release that no node has proved, for a node that has the service.
    #[error("it carries no node's word that the release is healthy, and {0} is here, or was")]
    Unproved(ServiceId),
    /// Nothing runs that a signal or a reload could reach.
    #[error("{0} is not running")]
    NotRunning(ServiceId),
}

/// Returns what follows behind an action that there is not: those that there are.
pub fn known_words(known: &[ActionName]) -> String {
    let names: Vec<&str> = known.iter().map(ActionName::as_str).collect();
    match names.is_empty() {
        true => ", and no other".to_owned(),
        false => format!("; there is {}", names.join(", ")),
    }
}

impl Rejection {
    /// Returns the code that is printed and looked up.
    pub fn code(&self) -> Code {
        match self {
            Self::Replayed => Code::REPLAYED,
            Self::Expired => Code::EXPIRED,
            Self::StaleEpoch => Code::STALE_EPOCH,
            Self::StaleGeneration => Code::STALE_GENERATION,
            Self::Busy => Code::BUSY,
            Self::Ending | Self::Reloading(_) | Self::HandingOver(_) => Code::CONFLICT,
            Self::NoSuchService(_) => Code::NO_SUCH_SERVICE,
            Self::NoSuchAction { .. } => Code::NO_SUCH_ACTION,
            Self::NotConfirmed { .. } => Code::NOT_CONFIRMED,
            Self::BadParameter { .. } | Self::BadSignal(_) => Code::BAD_PARAMETER,
            Self::MissingParameter(_) => Code::MISSING_PARAMETER,
            Self::NoReload(_) => Code::NO_RELOAD,
            Self::NotRunning(_) => Code::NOT_RUNNING,
            Self::StaleTerm { .. } => Code::STALE_TERM,
            Self::ForkedTerm { .. } => Code::FORKED_TERM,
            Self::ForControllers => Code::ORDER_NEEDED,
            Self::AnotherPlan => Code::ANOTHER_PLAN,
            Self::Returned => Code::RETURNED,
            Self::Unproved(_) => Code::CANARY_UNPROVEN,
        }
    }
}
