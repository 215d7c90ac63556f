//! What a run came to, in numbers: a line for each way of killing, and the whole beneath.
#![expect(clippy::print_stdout, reason = "the figures are what the long form is run for")]

use std::collections::BTreeMap;
use std::time::Duration;

use smgr::domain::event::{Exit, Outcome};
use smgr::domain::time::UnixMicros;
use smgr::ipc::hello::Part;

use super::evidence::Evidence;
use super::judge::Verdict;
use super::load::Load;

/// What the long form has to reach in the mean over all stretches.
pub(super) const INTENTS_PER_SECOND: f64 = 50.0;
pub(super) const EXITS_PER_SECOND: f64 = 20.0;

/// The stretch of time in which parts were killed in one way.
pub(super) struct Stretch {
    pub(super) parts: &'static [Part],
    /// Whether one of those that see an exit was left alive.
    pub(super) witnessed: bool,
    pub(super) from: UnixMicros,
    pub(super) to: UnixMicros,
    /// How long the parts were away at each kill.
    pub(super) away: Vec<Duration>,
}

#[derive(Default)]
struct Counts {
    sent: usize,
    refused: usize,
    done: usize,
    failed: usize,
    unknown: usize,
    exits: usize,
    unknown_exits: usize,
}

impl Stretch {
    /// Returns the parts, as they are called in the table.
    pub(super) fn name(&self) -> String {
        self.parts.iter().map(|part| part.name()).collect::<Vec<_>>().join("+")
    }

    fn seconds(&self) -> f64 {
        self.to.ms_since(self.from) as f64 / 1000.0
    }

    fn counts(&self, load: &Load, evidence: &Evidence) -> Counts {
        let within = |at: UnixMicros| self.from <= at && at < self.to;
        let mut counts = Counts::default();
        for sent in load.sent.values().filter(|sent| within(sent.iat)) {
            counts.sent += 1;
            counts.refused += usize::from(sent.refused.is_some());
        }
        for (_, outcome, _) in evidence.outcomes.iter().filter(|(_, _, at)| within(*at)) {
            *match outcome {
                Outcome::Done { .. } => &mut counts.done,
                Outcome::Failed { .. } => &mut counts.failed,
                Outcome::Unknown { .. } => &mut counts.unknown,
            } += 1;
        }
        for (_, exit, _) in evidence.exited.iter().filter(|(_, _, at)| within(*at)) {
            counts.exits += 1;
            counts.unknown_exits += usize::from(*exit == Exit::Unknown);
        }
        counts
    }
}

/// Prints the table; returns what was unknown although somebody was left to see it, and which rate was not reached.
pub(super) fn table(
    stretches: &[Stretch],
    load: &Load,
    evidence: &Evidence,
    verdict: &Verdict,
) -> (Vec<String>, Vec<String>) {
    let (mut unseen, mut slow) = (Vec::new(), Vec::new());
    println!(
        "{:<20} {:>5} {:>7} {:>8} {:>8} {:>6} {:>7} {:>6} {:>6} {:>7} {:>6} {:>7} {:>8} {:>8}",
        "killed",
        "kills",
        "seconds",
        "away p50",
        "away max",
        "sent",
        "refused",
        "done",
        "failed",
        "unknown",
        "exits",
        "unknown",
        "intent/s",
        "exits/s",
    );
    let (mut seconds, mut sent, mut exits, mut untold) = (0.0, 0, 0, 0);
    for stretch in stretches {
        let counts = stretch.counts(load, evidence);
        let mut away = stretch.away.clone();
        away.sort_unstable();
        let ms = |at: usize| away.get(at).map_or(0, Duration::as_millis);
        println!(
            "{:<20} {:>5} {:>7.1} {:>5} ms {:>5} ms {:>6} {:>7} {:>6} {:>6} {:>7} {:>6} {:>7} {:>8.1} {:>8.1}",
            stretch.name(),
            away.len(),
            stretch.seconds(),
            ms(away.len() / 2),
            ms(away.len().saturating_sub(1)),
            counts.sent,
            counts.refused,
            counts.done,
            counts.failed,
            counts.unknown,
            counts.exits,
            counts.unknown_exits,
            counts.sent as f64 / stretch.seconds(),
            counts.exits as f64 / stretch.seconds(),
        );
        (seconds, sent, exits) =
            (seconds + stretch.seconds(), sent + counts.sent, exits + counts.exits);
        if !stretch.witnessed {
            untold += counts.unknown + counts.unknown_exits;
        }
    }
    let (intents_rate, exits_rate) = (sent as f64 / seconds, exits as f64 / seconds);
    println!("in the mean {intents_rate:.1} intents/s and {exits_rate:.1} exits/s");
    println!(
        "{} intents sent twice, {} of them again later; {} accepted: {} done, {} failed, {} unknown",
        load.sent.len(),
        load.replayed,
        verdict.accepted,
        verdict.done,
        verdict.failed,
        verdict.unknown_outcomes,
    );
    println!(
        "{} actions counted by the services, {} signals; {} starts, {} exits ({} unknown); {} log lines ({} twice)",
        evidence.acts.len(),
        evidence.signals.values().sum::<u64>(),
        evidence.starts.len(),
        verdict.exits,
        verdict.unknown_exits,
        verdict.lines,
        verdict.repeated_lines,
    );
    reasons(load, evidence);
    if intents_rate < INTENTS_PER_SECOND {
        slow.push(format!("{intents_rate:.1} intents/s are less than {INTENTS_PER_SECOND}"));
    }
    if exits_rate < EXITS_PER_SECOND {
        slow.push(format!("{exits_rate:.1} exits/s are less than {EXITS_PER_SECOND}"));
    }
    // Wherever it stands: only while keeper and agent died together may anything be unknown.
    let all = verdict.unknown_outcomes + verdict.unknown_exits;
    if all > untold {
        unseen.push(format!("{} are unknown although somebody was left to see", all - untold));
    }
    (unseen, slow)
}

/// A refusal or a failure is no fault here, but it has to have a reason that one understands.
fn reasons(load: &Load, evidence: &Evidence) {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let refused = load.sent.values().filter_map(|sent| sent.refused.clone());
    let ended = evidence.outcomes.iter().filter_map(|(_, outcome, _)| match outcome {
        Outcome::Failed { code, why, exit } => Some(format!("failed {code}: {why} {exit:?}")),
        Outcome::Unknown { why } => Some(format!("unknown: {why}")),
        Outcome::Done { .. } => None,
    });
    refused
        .map(|why| format!("refused {why}"))
        .chain(ended)
        .for_each(|reason| *reasons.entry(reason).or_default() += 1);
    for (reason, times) in reasons {
        println!("{times:>7} x {reason}");
    }
}
