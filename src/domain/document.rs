//! What JSON documents have in common: times, digests, who did something, how a process ended, how fresh it all is.

use serde::{Serialize, Serializer};

use super::event::{Actor, Exit};
use super::id::NodeId;
use super::intent::ActorKind;
use super::release::ReleaseId;
use super::signal::Signal;
use super::time::UnixMicros;

/// The last second that readers' calendars hold, in any zone: a node can claim any time, and a later one is shown as this.
const LATEST: UnixMicros = UnixMicros(253_402_207_200_999_999);

/// A point in time, written as JSON has it: `2026-11-22T14:02:10.114Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(with = "String", extend("format" = "date-time")))]
pub struct At(pub UnixMicros);

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

/// Returns a time as RFC 3339 has it, UTC, to the millisecond.
pub fn rfc3339(at: UnixMicros) -> String {
    let at = at.min(LATEST);
    let (seconds, ms) = (at.millis() / 1000, at.millis() % 1000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the leap day is the last of its year.
    let day = days + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, leap) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let year = year + era * 400 + leap;
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// A digest, written as JSON has it: `sha256:` and hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(with = "String", extend("pattern" = "^sha256:[0-9a-f]{64}$")))]
pub struct Sha256(pub ReleaseId);

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("sha256:{}", self.0))
    }
}

/// Who did something, or asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct By {
    /// Person, job, local root, policy of the service, or smgr itself.
    pub kind: ActorKind,
    /// As the trust document has it.
    pub name: String,
    /// `k-` and the id of the key that signed.
    pub key: Option<String>,
    /// What the signer said of itself.
    pub note: Option<String>,
    /// The CI run that the note names.
    pub run_url: Option<String>,
    /// The commit that it names.
    pub commit: Option<String>,
}

impl From<&Actor> for By {
    fn from(actor: &Actor) -> Self {
        Self {
            kind: actor.kind,
            name: actor.name.to_string(),
            key: actor.key.map(|key| format!("k-{key}")),
            note: Some(actor.note.clone()).filter(|note| !note.is_empty()),
            run_url: actor.run_url().map(str::to_owned),
            commit: actor.commit().map(str::to_owned),
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExitView {
    /// Whether anybody saw it.
    pub known: bool,
    /// The exit code.
    pub code: Option<i32>,
    /// The signal: `KILL`.
    pub signal: Option<String>,
    /// Whether a core was written.
    pub core_dumped: bool,
    /// Whether it was killed for want of memory.
    pub oom_killed: bool,
}

impl ExitView {
    /// Returns it as events tell it.
    pub fn of(exit: Exit, oom_killed: bool) -> Self {
        let none = Self { known: true, code: None, signal: None, core_dumped: false, oom_killed };
        match exit {
            Exit::Code(code) => Self { code: Some(code), ..none },
            Exit::Signal { signal, core_dumped } => {
                let name = Signal::from_number(signal)
                    .map_or_else(|| signal.to_string(), |signal| signal.to_string());
                Self { signal: Some(name), core_dumped, ..none }
            }
            Exit::Unknown => Self { known: false, ..none },
        }
    }
}

/// How fresh a document is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AsOf {
    /// When; null where nobody answered.
    pub at: Option<At>,
    /// Whose word it is; null where several nodes were asked themselves.
    pub source: Option<NodeId>,
    /// The place in its stream.
    pub cursor: Option<String>,
    /// How far it may lie behind.
    pub behind_ms: Option<u64>,
    /// Whether all nodes were heard.
    pub complete: bool,
    /// Those that were not.
    pub missing_nodes: Vec<NodeId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ci_run_is_named_as_in_the_contract() {
        let by = |note: &str| {
            let (name, note) = ("shop-deploy".parse().unwrap(), note.to_owned());
            By::from(&Actor { kind: ActorKind::Ci, name, key: None, note })
        };
        let run = "https://git.example.com/shop/actions/runs/8412";
        let told = by(&format!("run {run} commit 77ab0c1"));
        assert_eq!((told.run_url.as_deref(), told.commit.as_deref()), (Some(run), Some("77ab0c1")));
        assert_eq!(by(&format!("http token ci run {run}")).run_url.as_deref(), Some(run));
        for note in ["", "run", "run 8412", "commit", "commit no-hex", "restart"] {
            let told = by(note);
            assert_eq!((&told.run_url, &told.commit), (&None, &None), "{note}");
            assert_eq!(told.note.as_deref(), Some(note).filter(|note| !note.is_empty()));
        }
    }

    #[test]
    fn a_time_is_written_as_a_calendar_has_it() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000Z"),
            (1_795_356_130_114_999, "2026-11-22T14:02:10.114Z"),
            (4_102_444_799_999_000, "2099-12-31T23:59:59.999Z"),
            (u64::MAX, "9999-12-30T22:00:00.999Z"),
        ] {
            assert_eq!(rfc3339(UnixMicros(micros)), text);
        }
    }
}
