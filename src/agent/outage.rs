//! What the log says of itself, and how the agent goes on when it takes nothing: repairs go on, wishes do not.

use tracing::{info, warn};

use super::clock;
use super::task::Agent;
use crate::domain::event::{Context, Event, LogRecovered, LogUnavailable};
use crate::domain::input::Decision;
use crate::domain::time::Now;
use crate::store::{LogNotice, Outage};
use crate::wire::fold;

/// A log that takes nothing.
#[derive(Debug)]
pub(super) struct Unavailable {
    /// Since when.
    pub(super) since: Now,
    /// In what way.
    pub(super) kind: Outage,
    /// Why, in words.
    pub(super) why: String,
}

impl Agent {
    pub(super) fn store_said(&mut self, notice: LogNotice) {
        match notice {
            LogNotice::Durable { seq, .. } => {
                self.let_go(seq);
                self.catch_up();
            }
            LogNotice::SegmentFull => self.roll(),
            LogNotice::Unavailable { kind, why } => {
                warn!(?kind, why, "the log takes nothing: no wish is accepted, repairs go on");
                let since = self.outage.take().map_or_else(clock::now, |outage| outage.since);
                self.outage = Some(Unavailable { since, kind, why });
            }
            LogNotice::Recovered => self.recovered(),
            LogNotice::Damaged { at, why } => self.damaged(at, why),
            LogNotice::Sealed { first, last } => {
                info!(%first, %last, "a segment of the log is sealed");
                self.look_for_expired();
            }
            LogNotice::Checkpoint { .. } | LogNotice::RootChecked { .. } => {}
        }
    }

    fn recovered(&mut self) {
        let Some(Unavailable { since, kind, why }) = self.outage.take() else { return };
        let now = clock::now();
        self.recorder.catch_up(now);
        let counts = self.recorder.take_counts();
        let unavailable = LogUnavailable { kind: format!("{kind:?}").to_lowercase(), why };
        let recovered = LogRecovered {
            unavailable_ms: now.at.ms_since(since.at),
            late: counts.0,
            summarized: counts.1,
        };
        info!(unavailable_ms = recovered.unavailable_ms, "the log takes events again");
        let events = vec![
            (Context::default(), Event::LogUnavailable(unavailable)),
            (Context::default(), Event::LogRecovered(recovered)),
        ];
        self.commit(now, Decision { events, effects: Vec::new() });
    }

    fn catch_up(&mut self) {
        if self.recorder.catch_up(clock::now()) && std::mem::take(&mut self.rolls_late) {
            self.roll();
        }
    }

    fn roll(&mut self) {
        let baseline = fold::baseline(&self.node);
        if let Err(why) = self.recorder.roll(clock::now(), baseline) {
            warn!(%why, "the segment of the log goes on beyond its size");
            self.rolls_late = true;
        }
    }

    /// Says why the log takes nothing, when it does not.
    pub(super) fn outage(&self) -> Option<&str> {
        self.outage.as_ref().map(|outage| outage.why.as_str())
    }
}
