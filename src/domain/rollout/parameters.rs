//! What a service says about its rollouts: `[rollout]`, `[rollout.check.NAME]`, `[rollback]`, `[release]`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::id::{AlertName, CheckName};
use crate::domain::origin::Origin;

/// A number of nodes, or a share of them. Written `3` or `25%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amount {
    /// So many.
    Count(u32),
    /// So many of a hundred, 0 to 100.
    Percent(u8),
}

/// Says that a text is neither a number nor whole percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a number of nodes, or whole percent from \"0%\" to \"100%\"")]
pub struct InvalidAmount;

impl Amount {
    /// Everything.
    pub const ALL: Self = Self::Percent(100);

    /// Returns the number for so many nodes; a share rounds down.
    pub fn of(self, nodes: usize) -> usize {
        match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Self::Percent(percent) => nodes * usize::from(percent) / 100,
        }
    }

    /// Returns the size of a batch: a share rounds down, and is at least one node.
    pub fn batch_of(self, nodes: usize) -> usize {
        self.of(nodes).max(1)
    }

    /// Says whether it is nothing, of however many nodes.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Count(0) | Self::Percent(0))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for Amount {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.strip_suffix('%') {
            Some(percent) if digits(percent) => {
                let percent = percent.parse().ok().filter(|percent| *percent <= 100);
                percent.map(Self::Percent).ok_or(InvalidAmount)
            }
            None if digits(text) => text.parse().map(Self::Count).map_err(|_| InvalidAmount),
            _ => Err(InvalidAmount),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Amount {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]+%?$" })
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $( $(#[$of:meta])* $variant:ident $word:literal, )* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $( $(#[$of])* $variant, )*
        }

        impl $name {
            /// Every value, as it is written.
            pub const WORDS: &[(&str, Self)] = &[$( ($word, Self::$variant), )*];

            /// Returns the word.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(
    /// Which nodes go first.
    Order {
        /// By a hash of service and node: the same at every rollout, and no one's choice.
        #[default]
        StableHash "stable_hash",
        /// By name.
        Name "name",
        /// By a hash of wish and node: another order at every rollout, recorded by its seed.
        Shuffle "shuffle",
    }
);
words!(
    /// What counts as healthy.
    HealthCheck {
        /// The health checks of the service.
        #[default]
        Checks "checks",
        /// That the process is ready and stays up.
        Process "process",
        /// A person says so after each wave.
        Manual "manual",
    }
);
words!(
    /// What follows a budget that is exceeded.
    OnFailure {
        /// Everything touched goes back.
        #[default]
        Rollback "rollback",
        /// No new node until a person decides.
        Pause "pause",
        /// No new node, and the rollout ends.
        Stop "stop",
    }
);
words!(
    /// What follows a node that is away.
    OnUnreachable {
        /// It has until its deadline; then it counts in `max_unreachable`.
        #[default]
        Wait "wait",
        /// The rollout goes on without it.
        Skip "skip",
        /// It has failed.
        Fail "fail",
    }
);
words!(
    /// What follows a deploy while another rollout of the service is under way.
    OnConflict {
        /// It is refused, naming the other one.
        #[default]
        Reject "reject",
        /// It waits for the end of the other one.
        Queue "queue",
        /// It ends the other one.
        Supersede "supersede",
    }
);
words!(
    /// What follows a check that could not be judged.
    OnInconclusive {
        /// No new node until a person decides.
        #[default]
        Pause "pause",
        /// It has failed.
        Fail "fail",
        /// It counts as passed.
        Ignore "ignore",
    }
);
words!(
    /// A part of the way forward that the way back may leave out.
    Skip {
        /// One node first.
        #[default]
        Canary "canary",
        /// The wait after each wave.
        Bake "bake",
        /// The checks after each wave.
        Checks "checks",
    }
);
words!(
    /// What happens on a node that no longer fits `[placement]`.
    OnLeave {
        /// The service is taken from it.
        #[default]
        Stop "stop",
        /// The service stays.
        Keep "keep",
    }
);

/// How a release is judged after each wave, beside the health of the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Check {
    /// What is measured.
    pub probe: CheckProbe,
    /// Between two measurements, in milliseconds.
    pub interval_ms: u64,
    /// How many measurements are judged.
    pub count: u32,
    /// How many of them may be bad.
    pub failure_limit: u32,
    /// How many in a row may not be had. Not the same as bad.
    pub consecutive_error_limit: u32,
    /// What follows when it cannot be judged.
    pub on_inconclusive: OnInconclusive,
    /// Measured and told, never judged.
    pub dry_run: bool,
}

/// What a check measures. The core only carries it to whoever measures, who expands its texts: `${service}`, and
/// `${nodes}` for those that run the release, as a regular expression matches them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckProbe {
    /// A GET that must answer 2xx.
    Http {
        /// Where.
        url: String,
    },
    /// A program: exit code 0 is good, 75 inconclusive, any other bad.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// A query of one number.
    Prometheus {
        /// The server.
        url: String,
        /// The query.
        query: String,
        /// The lowest good value, as it is written.
        min: Option<String>,
        /// The highest good value, as it is written.
        max: Option<String>,
    },
    /// An alert of the service: firing is bad.
    LogAlert {
        /// Which one.
        alert: AlertName,
    },
}

/// The fast way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rollback {
    /// How many nodes at a time; the last entry repeats.
    pub max_parallel: Vec<Amount>,
    /// What it leaves out.
    pub skip: BTreeSet<Skip>,
}

impl Default for Rollback {
    fn default() -> Self {
        Self { max_parallel: vec![Amount::ALL], skip: [Skip::Canary, Skip::Bake].into() }
    }
}

/// All that a service says about its rollouts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Parameters {
    /// How many nodes go first.
    pub canary: Amount,
    /// Whether the rollout goes on after the canary by itself.
    pub auto_promote: bool,
    /// How many nodes at a time; the last entry repeats.
    pub max_parallel: Vec<Amount>,
    /// A label: no wave takes all nodes that share its value, where that can be avoided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_by: Option<String>,
    /// Which nodes first.
    pub order: Order,
    /// What counts as healthy.
    pub health_check: HealthCheck,
    /// How long a node must stay healthy, in milliseconds.
    pub min_healthy_ms: u64,
    /// How long a node may take from the start of the swap, in milliseconds.
    pub healthy_deadline_ms: u64,
    /// How long no node may become healthy, in milliseconds; stands still while paused.
    pub progress_deadline_ms: u64,
    /// The wait after each wave, in milliseconds.
    pub bake_ms: u64,
    /// How many of all targets may fail.
    pub max_failures: Amount,
    /// What follows when more do.
    pub on_failure: OnFailure,
    /// What follows a node that is away.
    pub on_unreachable: OnUnreachable,
    /// How long a node may be away before it counts, in milliseconds.
    pub unreachable_deadline_ms: u64,
    /// How many of all targets may be away.
    pub max_unreachable: Amount,
    /// Whether a second person has to agree.
    pub require_approval: bool,
    /// What follows a deploy while another rollout is under way.
    pub on_conflict: OnConflict,
    /// The checks after each wave.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<CheckName, Check>,
    /// The way back.
    pub rollback: Rollback,
    /// `[release] rollback`: whether there may be a way back at all.
    pub may_roll_back: bool,
    /// Where the values come from, by key as it is written: `max_failures`. For people, and for whether waves are written
    /// at all; a plan has only what follows from that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origins: BTreeMap<String, Origin>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            canary: Amount::Count(1),
            auto_promote: true,
            max_parallel: vec![Amount::Count(1), Amount::Percent(25)],
            spread_by: None,
            order: Order::default(),
            health_check: HealthCheck::default(),
            min_healthy_ms: 10_000,
            healthy_deadline_ms: 300_000,
            progress_deadline_ms: 600_000,
            bake_ms: 0,
            max_failures: Amount::Count(0),
            on_failure: OnFailure::default(),
            on_unreachable: OnUnreachable::default(),
            unreachable_deadline_ms: 120_000,
            max_unreachable: Amount::Count(0),
            require_approval: false,
            on_conflict: OnConflict::default(),
            checks: BTreeMap::new(),
            rollback: Rollback::default(),
            may_roll_back: true,
            origins: BTreeMap::new(),
        }
    }
}

/// What a set of parameters cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidParameters {
    /// A batch of nothing never ends.
    #[error("`{key}` needs at least one node in each entry")]
    EmptyBatch {
        /// The key as it is written.
        key: &'static str,
    },
    /// A time that has to be shorter than another one is not.
    #[error("`{shorter}` has to be shorter than `{longer}`")]
    Times {
        /// The key of the time that is too long.
        shorter: &'static str,
        /// The key of the other one.
        longer: &'static str,
    },
    /// A check that measures nothing judges nothing.
    #[error("check `{0}` needs at least one measurement")]
    NoMeasurement(CheckName),
}

impl Parameters {
    /// Returns them for what is no release, as taking the service away: as many nodes at a time, and no further one after
    /// one that failed. Nothing is judged but that it is so, and a node that is away obeys when it is back.
    #[must_use]
    pub fn without_release(self) -> Self {
        Self {
            checks: BTreeMap::new(),
            bake_ms: 0,
            health_check: HealthCheck::Process,
            on_failure: OnFailure::Stop,
            on_unreachable: OnUnreachable::Skip,
            max_unreachable: Amount::ALL,
            ..self
        }
    }

    /// Returns them for a wish that goes back to what succeeded before, where it is one: as `[rollback]` says, and nobody
    /// has to agree a second time.
    #[must_use]
    pub fn on_the_way(self, back: bool) -> Self {
        if !back {
            return self;
        }
        let leaves_out = |what: Skip| self.rollback.skip.contains(&what);
        let (canary, bake_ms, checks) = (
            if leaves_out(Skip::Canary) { Amount::Count(0) } else { self.canary },
            if leaves_out(Skip::Bake) { 0 } else { self.bake_ms },
            if leaves_out(Skip::Checks) { BTreeMap::new() } else { self.checks.clone() },
        );
        Self {
            canary,
            bake_ms,
            checks,
            max_parallel: self.rollback.max_parallel.clone(),
            require_approval: false,
            ..self
        }
    }

    /// Says what is wrong with the values together.
    ///
    /// # Errors
    ///
    /// The first rule that they break.
    pub fn check(&self) -> Result<(), InvalidParameters> {
        let batches = [
            ("rollout.max_parallel", &self.max_parallel),
            ("rollback.max_parallel", &self.rollback.max_parallel),
        ];
        for (key, list) in batches {
            if list.is_empty() || list.iter().any(|amount| amount.is_zero()) {
                return Err(InvalidParameters::EmptyBatch { key });
            }
        }
        let times = [
            ("rollout.min_healthy_time", self.min_healthy_ms),
            ("rollout.healthy_deadline", self.healthy_deadline_ms),
            ("rollout.progress_deadline", self.progress_deadline_ms),
        ];
        for pair in times.windows(2) {
            if pair[0].1 >= pair[1].1 {
                return Err(InvalidParameters::Times { shorter: pair[0].0, longer: pair[1].0 });
            }
        }
        match self.checks.iter().find(|(_, check)| check.count == 0) {
            Some((name, _)) => Err(InvalidParameters::NoMeasurement(name.clone())),
            None => Ok(()),
        }
    }
}

impl Parameters {
    /// Gives every value to `put`, in a fixed order; where they come from is no value.
    pub(super) fn hash_into(&self, put: &mut impl FnMut(&[u8])) {
        // Taken apart by name, so that a field cannot be forgotten.
        let Self {
            canary,
            auto_promote,
            max_parallel,
            spread_by,
            order,
            health_check,
            min_healthy_ms,
            healthy_deadline_ms,
            progress_deadline_ms,
            bake_ms,
            max_failures,
            on_failure,
            on_unreachable,
            unreachable_deadline_ms,
            max_unreachable,
            require_approval,
            on_conflict,
            checks,
            rollback: Rollback { max_parallel: back_parallel, skip },
            may_roll_back,
            origins: _,
        } = self;
        let list = |list: &[Amount]| list.iter().map(Amount::to_string).collect::<Vec<_>>();
        put(canary.to_string().as_bytes());
        put(&[u8::from(*auto_promote), u8::from(*require_approval), u8::from(*may_roll_back)]);
        put(list(max_parallel).join(",").as_bytes());
        put(spread_by.as_deref().unwrap_or_default().as_bytes());
        let words = [
            order.as_str(),
            health_check.as_str(),
            on_failure.as_str(),
            on_unreachable.as_str(),
            on_conflict.as_str(),
        ];
        words.iter().for_each(|word| put(word.as_bytes()));
        let times = [
            min_healthy_ms,
            healthy_deadline_ms,
            progress_deadline_ms,
            bake_ms,
            unreachable_deadline_ms,
        ];
        times.iter().for_each(|ms| put(&ms.to_be_bytes()));
        put(max_failures.to_string().as_bytes());
        put(max_unreachable.to_string().as_bytes());
        put(list(back_parallel).join(",").as_bytes());
        put(skip.iter().map(|skip| skip.as_str()).collect::<Vec<_>>().join(",").as_bytes());
        for (name, check) in checks {
            put(name.as_bytes());
            check.hash_into(put);
        }
    }
}

impl Check {
    fn hash_into(&self, put: &mut impl FnMut(&[u8])) {
        let Self {
            probe,
            interval_ms,
            count,
            failure_limit,
            consecutive_error_limit,
            on_inconclusive,
            dry_run,
        } = self;
        match probe {
            CheckProbe::Http { url } => {
                put(b"http");
                put(url.as_bytes());
            }
            CheckProbe::Exec { argv } => {
                put(b"exec");
                put(&argv.len().to_be_bytes());
                argv.iter().for_each(|arg| put(arg.as_bytes()));
            }
            CheckProbe::Prometheus { url, query, min, max } => {
                put(b"prometheus");
                put(url.as_bytes());
                put(query.as_bytes());
                for bound in [min, max] {
                    put(&[u8::from(bound.is_some())]);
                    put(bound.as_deref().unwrap_or_default().as_bytes());
                }
            }
            CheckProbe::LogAlert { alert } => {
                put(b"log_alert");
                put(alert.as_bytes());
            }
        }
        put(&interval_ms.to_be_bytes());
        for number in [count, failure_limit, consecutive_error_limit] {
            put(&number.to_be_bytes());
        }
        put(on_inconclusive.as_str().as_bytes());
        put(&[u8::from(*dry_run)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_a_number_or_whole_percent() {
        for text in ["0", "3", "25%", "100%"] {
            assert_eq!(text.parse::<Amount>().unwrap().to_string(), text);
        }
        for text in ["", "%", "-1", "+1", "101%", "2.5%", "1 %", "99999999999"] {
            assert_eq!(text.parse::<Amount>(), Err(InvalidAmount), "{text}");
        }
    }

    #[test]
    fn a_share_rounds_down_and_a_batch_is_at_least_one_node() {
        assert_eq!(Amount::Percent(25).of(7), 1);
        assert_eq!(Amount::Percent(25).of(3), 0);
        assert_eq!(Amount::Percent(25).batch_of(3), 1);
        assert_eq!(Amount::Count(9).of(3), 9);
    }

    #[test]
    fn the_defaults_are_valid_and_a_batch_of_nothing_is_not() {
        let valid = Parameters::default();
        assert_eq!(valid.check(), Ok(()));
        let nothing = Parameters { max_parallel: vec![Amount::Count(0)], ..valid.clone() };
        assert!(nothing.check().is_err());
        let late = Parameters { min_healthy_ms: valid.healthy_deadline_ms, ..valid };
        assert!(matches!(late.check(), Err(InvalidParameters::Times { .. })));
    }
}
