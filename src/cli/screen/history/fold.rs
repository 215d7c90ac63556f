//! How events become rows: what is hidden, what is joined, what is a repeat.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use super::super::event::{handed_over_words, known, part_words};
use super::super::names::Names;
use super::super::units::{count, size, span};
use super::super::words::{
    action_words, actor_words, exit_words, name_of, next_words, outcome_words, result_words,
    short_intent, signal_name,
};
use super::super::{controller, release};
use super::{About, Choice, Counts, History, Progress, Repeats, Row, Run, Slot, Stopping};
use crate::domain::event::{
    Cause, EpochReason, Event, Exit, InstanceExited, InstanceStarted, InstanceStopped, Next,
    Outcome, PartStarted, StopPhase, StopReason,
};
use crate::domain::id::RunId;
use crate::domain::intent::{Action, ActorKind};
use crate::domain::rollout::view::rollout_name;
use crate::wire::payload::EventRecord;

/// Of so many intents the action is remembered; an older one is named by its id alone.
const INTENTS_MAX: usize = 1024;

/// So many like rows are shown before the rest is counted.
const LIKE_SHOWN: u32 = 2;

/// The part of a row that its type decides.
#[derive(Default)]
struct Told {
    what: String,
    result: String,
    ran_ms: Option<u64>,
    next: String,
    by: Option<String>,
    /// Bookkeeping between the acts, shown with [`Choice::all`] only.
    is_detail: bool,
}

fn told(what: impl Into<String>, result: impl Into<String>) -> Told {
    Told { what: what.into(), result: result.into(), ..Told::default() }
}

fn detail(what: impl Into<String>, result: impl Into<String>) -> Told {
    Told { is_detail: true, ..told(what, result) }
}

impl History {
    /// Returns a history without events. `names` says whether names need their node.
    pub fn new(choice: Choice, names: Names) -> Self {
        Self { choice, names, ..Self::default() }
    }

    /// Folds events in their order. Give it all of them, whatever is chosen: a row needs what other events say.
    pub fn fold<R: Borrow<EventRecord>>(
        records: impl IntoIterator<Item = R>,
        choice: Choice,
        names: Names,
    ) -> Self {
        let mut history = Self::new(choice, names);
        for record in records {
            history.push(record.borrow());
        }
        history
    }

    /// Takes in the next event.
    pub fn push(&mut self, record: &EventRecord) {
        let event = known(record);
        self.names.learn(record, event.as_ref());
        self.remember(event.as_ref());
        let about = self.about(record, event.as_ref());
        if !self.is_chosen(&about) {
            return;
        }
        let by = self.by(record);
        match (slot(&about), event) {
            (Some(slot), Some(Event::InstanceStarted(it))) => self.started(slot, record, by, &it),
            (Some(slot), Some(Event::InstanceExited(it))) => self.exited(slot, record, by, it),
            (Some(slot), Some(Event::InstanceStopped(it))) => self.stopped(slot, record, &it),
            (slot, Some(event)) => {
                if let (Some(slot), Event::InstanceStopping(it)) = (slot, &event)
                    && it.reason != StopReason::Leftover
                {
                    let stop = &mut self.slots.entry(slot).or_default().stop;
                    let before = stop.take().map(|stop| (stop.by, stop.ended));
                    let (first_by, ended) = before.unwrap_or_default();
                    let by = if first_by.is_empty() { by.clone() } else { first_by };
                    let then_start = it.then_start;
                    *stop = Some(Stopping { phase: it.phase, by, then_start, ended });
                }
                if let Some(told) = self.plain(record, &about, &event) {
                    if matches!(&event, Event::InstanceAdopted(it) if it.away == "keeper") {
                        self.orphans.push(self.rows.len());
                    }
                    self.show(record, about.clone(), by.clone(), told);
                }
                if let (Event::ServiceAdded(it), Some(service)) = (&event, about.service) {
                    let key = (about.node, service);
                    self.specs.insert(key.clone(), it.digest);
                    self.adopters.insert(key, (by, BTreeSet::new()));
                }
            }
            (_, None) => {
                let told = told(record.kind.clone(), "this version cannot read it");
                self.show(record, about, by, told);
            }
        }
    }

    fn started(&mut self, slot: Slot, record: &EventRecord, by: String, it: &InstanceStarted) {
        let progress = self.slots.entry(slot.clone()).or_default();
        let stop = progress.stop.take();
        let is_policy = match &record.by {
            Some(actor) => actor.kind == ActorKind::Policy,
            None => it.restarts > 0 && stop.is_none(),
        };
        if !is_policy {
            progress.since = (progress.total.runs > 0).then_some(record.at);
            progress.latest = Counts::default();
        }
        progress.add(Counts { runs: 1, exits: 0, restarts: u64::from(is_policy) });
        let adopter = self.adopter(&slot).unwrap_or_default().to_owned();
        if let Some((_, reached)) = self.adopters.get_mut(&(slot.0.clone(), slot.1.clone())) {
            reached.insert(slot.2);
        }
        let progress = self.slots.entry(slot).or_default();
        let about = about_of(record);
        if self.choice.runs {
            progress.live = Some(self.runs.len());
            self.runs.push(Run {
                pid: Some(it.pid),
                started_at: Some(record.at),
                result: "running".to_owned(),
                ..run_of(record, about.clone())
            });
        }
        let by = match stop {
            Some(stop) if by.is_empty() => stop.by,
            _ if by.is_empty() && is_policy => "policy".to_owned(),
            _ if by.is_empty() => adopter,
            _ => by,
        };
        let row = row(record, about, by, told("started", format!("pid {}", it.pid)));
        if is_policy {
            self.progress(&row.about).policy_start = Some(self.rows.len());
            self.rows.push(row);
        } else {
            self.add(row);
        }
    }

    fn exited(&mut self, slot: Slot, record: &EventRecord, by: String, it: InstanceExited) {
        let about = about_of(record);
        let progress = self.slots.entry(slot).or_default();
        progress.add(Counts { runs: 0, exits: 1, restarts: 0 });
        if self.choice.runs {
            let is_it = |at: &usize| Some(self.runs[*at].run) == record.run;
            let live = progress.live.take_if(|at| is_it(at)).or_else(|| {
                // In a handover it is not the one that began last.
                let is_ours = |run: &Run| run.about == about && run.ended_at.is_none();
                self.runs.iter().rposition(|run| is_ours(run) && Some(run.run) == record.run)
            });
            let at = live.unwrap_or_else(|| {
                self.runs.push(run_of(record, about.clone()));
                self.runs.len() - 1
            });
            self.runs[at] = Run {
                ended_at: Some(record.at),
                ran_ms: Some(it.ran_ms),
                result: result_words(it.result, it.exit),
                pid: Some(it.pid),
                memory_peak_bytes: Some(it.usage.memory_peak_bytes).filter(|peak| *peak > 0),
                ..self.runs[at].clone()
            };
        }
        if let Some(stop) = progress.stop.as_mut().filter(|_| !self.choice.all) {
            // The end of a run that was asked to stop is told when its whole tree is gone.
            stop.ended = Some(it);
            return;
        }
        progress.has_leftovers = it.then.is_some();
        let oom = if it.oom_killed { ", out of memory" } else { "" };
        let told = Told {
            ran_ms: Some(it.ran_ms),
            next: next_words(it.then.unwrap_or(it.next), it.delay_ms, it.restarts),
            ..told("exited", format!("{}{oom}", result_words(it.result, it.exit)))
        };
        let by = match it.then.unwrap_or(it.next) {
            Next::AtOnce | Next::At(_) | Next::Failed if by.is_empty() => "policy".to_owned(),
            Next::AtOnce
            | Next::At(_)
            | Next::Failed
            | Next::Stopping
            | Next::Completed
            | Next::Inactive => by,
        };
        self.hide_policy_start(&about);
        self.add(row(record, about, by, told));
    }

    fn stopped(&mut self, slot: Slot, record: &EventRecord, it: &InstanceStopped) {
        let about = about_of(record);
        let adopter = self.adopter(&slot).unwrap_or_default().to_owned();
        let progress = self.slots.entry(slot).or_default();
        if std::mem::take(&mut progress.has_leftovers) && !self.choice.all {
            progress.stop = None;
            return;
        }
        let stop = progress.stop.take();
        let ended = stop.as_ref().and_then(|stop| stop.ended.clone());
        let is_killed = stop.as_ref().is_some_and(|stop| stop.phase == StopPhase::Kill);
        let result = match &ended {
            Some(ended) => result_words(ended.result, ended.exit),
            None => format!("in {}", span(it.took_ms)),
        };
        let will_start = stop.as_ref().is_some_and(|stop| stop.then_start)
            || matches!(it.next, Next::AtOnce | Next::At(_));
        let own = self.by(record);
        let by = if own.is_empty() {
            let by = stop.as_ref().map(|stop| stop.by.clone()).unwrap_or_default();
            if by.is_empty() { adopter } else { by }
        } else {
            own
        };
        let told = Told {
            ran_ms: ended.map(|ended| ended.ran_ms),
            next: if will_start { "start".to_owned() } else { String::new() },
            ..told("stopped", if is_killed { format!("{result}, KILL") } else { result })
        };
        // The start that follows has the same author and may not name it again.
        self.progress(&about).stop = stop.filter(|_| will_start).map(|stop| Stopping {
            ended: None,
            by: by.clone(),
            ..stop
        });
        self.hide_policy_start(&about);
        self.add(row(record, about, by, told));
    }

    /// Returns the row of an event that needs no other.
    fn plain(&self, record: &EventRecord, about: &About, event: &Event) -> Option<Told> {
        Some(match event {
            Event::InstanceStarted(_) | Event::InstanceExited(_) | Event::InstanceStopped(_) => {
                told(record.kind.clone(), "without an instance")
            }
            Event::InstanceStarting(_) => detail("starting", ""),
            Event::InstanceSignalled(it) => {
                let result =
                    it.failed.as_ref().map_or("sent".to_owned(), |why| format!("not sent: {why}"));
                told(format!("signal {}", signal_name(it.signal)), result)
            }
            Event::AgentStopping(it) => {
                detail("agent stopping", if it.leave_running { "services go on" } else { "" })
            }
            Event::LogOpened(it) => match it.reason {
                EpochReason::FirstStart => told("log opened", "first start"),
                EpochReason::WitnessAhead => told("log began anew", "a witness knew more of it"),
                EpochReason::Integrity => told("log began anew", "the old file did not verify"),
            },
            Event::Baseline(it) => {
                detail("state written", format!("part {} of {}", it.part + 1, it.parts))
            }
            Event::LogRetired(it) => {
                told("history dropped", format!("{} to {}", it.first, it.last))
            }
            Event::LogUnavailable(it) => {
                told("log unavailable", format!("{}: {}", it.kind, it.why))
            }
            Event::LogRecovered(it) => told(
                "log recovered",
                format!("after {}, {}", span(it.unavailable_ms), count(it.late, "late event")),
            ),
            Event::AgentStarted(it) => part("agent", it),
            Event::KeeperStarted(it) => part("keeper", it),
            Event::ControllerStarted(it) => part("controller", it),
            Event::ControllerLed(_)
            | Event::ControllerSteppedDown(_)
            | Event::NodeUnreachable(_)
            | Event::PlacementOrdered(_)
            | Event::PlacementHeld(_)
            | Event::NodeSeen(_)
            | Event::LogForked(_) => told(record.kind.clone(), controller::clause(event)),
            Event::AgentStopped(it) => {
                let left = if it.services_left_running { "services go on" } else { "" };
                told("agent stopped", left)
            }
            Event::TrustChanged(it) => told("trust changed", format!("version {}", it.version)),
            Event::ServiceAdded(it) => {
                let spec = format!("{} {}", &it.digest.to_string()[..8], it.origin);
                let service = about.service.clone()?;
                if !it.keys.is_empty() {
                    let number = count(it.keys.len() as u64, "key");
                    let next = if it.keeps.is_some() {
                        String::new()
                    } else {
                        format!("restart {service}")
                    };
                    let result = format!("{number}: {}", it.keys.join(", "));
                    return Some(Told { next, ..told("config applied", result) });
                }
                match self.specs.get(&(about.node.clone(), service)) {
                    Some(before) if *before != it.digest => told("spec changed", spec),
                    _ => detail("added", spec),
                }
            }
            Event::ServiceRemoved(_) => told("removed", ""),
            Event::DesiredChanged(it) => {
                detail("wanted", format!("{}, generation {}", name_of(&it.desired), it.generation))
            }
            Event::InstanceWaiting(it) => {
                let on: Vec<&str> = it.on.iter().map(|service| service.as_str()).collect();
                told("waiting", format!("for {}", on.join(", ")))
            }
            Event::InstanceStartFailed(it) => Told {
                next: match it.next_attempt_at {
                    Some(at) => format!("try {} in {}", it.restarts, span(at.ms_since(record.at))),
                    None => "gave up".to_owned(),
                },
                ..told("start failed", format!("{}: {}", it.step, it.why))
            },
            Event::InstanceReady(it) => {
                detail("ready", format!("{} after {}", it.how, span(it.ready_ms)))
            }
            Event::OrderAccepted(_)
            | Event::ReleaseStaged(_)
            | Event::ReleaseApplied(_)
            | Event::ReleaseHealthy(_)
            | Event::ReleaseFailed(_)
            | Event::ReleaseReturned(_)
            | Event::ConfigChanged(_)
            | Event::ConfigExpired(_)
            | Event::ReleaseRemoved(_)
            | Event::ReleaseRefused(_) => {
                let words = release::told(event)?;
                Told { is_detail: words.is_detail, ..told(words.what, words.result) }
            }
            Event::InstanceHealthy(it) => detail("healthy", format!("check {}", it.check)),
            Event::InstanceUnhealthy(it) => {
                told("unhealthy", format!("check {}: {}", it.check, it.message))
            }
            Event::InstanceStopping(it) => detail("stopping", name_of(&it.phase)),
            Event::InstanceHandedOver(it) => told("handed over", handed_over_words(it)),
            Event::InstanceReloading(_) => detail("reloading", ""),
            Event::InstanceReloaded(it) => match &it.failed {
                None => told("reloaded", format!("in {}", span(it.took_ms))),
                Some(why) => told("reload failed", why.clone()),
            },
            Event::InstanceAdopted(it) => {
                let how = match it.away.as_str() {
                    "keeper" => "away for".to_owned(),
                    away => self.back_words(away),
                };
                let by = Some(format!("{} {how} {}", it.away, span(it.away_ms)));
                Told { by, ..told("adopted", format!("pid {}", it.pid)) }
            }
            Event::IntentAccepted(it) => detail(
                "accepted",
                format!("{} {}", action_words(&it.action), short_intent(it.intent)),
            ),
            Event::IntentRefused(it) => {
                let times =
                    if it.count > 1 { format!(" ({} times)", it.count) } else { String::new() };
                told("refused", format!("[{}] {}{times}", it.code, it.why))
            }
            Event::IntentExecuted(it) => match (&it.outcome, self.intents.get(&it.intent)) {
                (Outcome::Done { .. }, _) => detail(
                    "outcome",
                    format!("{} {}", short_intent(it.intent), outcome_words(&it.outcome)),
                ),
                (Outcome::Failed { .. } | Outcome::Unknown { .. }, action) => {
                    let action = action.map_or_else(|| "wish".to_owned(), action_words);
                    told(action, outcome_words(&it.outcome))
                }
            },
            Event::ActionStarted(it) => detail(format!("action {}", it.action), "started"),
            Event::ActionEnded(it) => {
                let late = if it.timed_out { ", killed at its deadline" } else { "" };
                let result = format!("{}{late}", exit_words(it.exit));
                Told { ran_ms: Some(it.ran_ms), ..told(format!("action {}", it.action), result) }
            }
            Event::Rollout(it) => {
                let name = format!("rollout {}", rollout_name(it.rollout));
                match it.event.is_detail() {
                    true => detail(name, it.event.text()),
                    false => told(name, it.event.text()),
                }
            }
            Event::AlertFired(it) => told("alert fired", short_alert(&it.alert)),
            Event::AlertResolved(it) => told("alert resolved", short_alert(&it.alert)),
            Event::LinesDropped(it) => told(
                "lines dropped",
                format!("{}, {}: {}", count(it.lines, "line"), size(it.bytes), it.why),
            ),
            Event::Summarized(it) => told(
                "summarised",
                format!("{}, {}", count(it.starts, "start"), count(it.exits, "exit")),
            ),
        })
    }

    /// Returns how a part was away: `killed, back after`.
    fn back_words(&self, part: &str) -> String {
        match self.parts.get(part) {
            Some(Exit::Signal { signal: 9, .. }) => "killed, back after".to_owned(),
            Some(exit) => format!("ended ({}), back after", exit_words(*exit)),
            None => "away for".to_owned(),
        }
    }

    /// Returns on whose authority the spec is that a slot now takes up, until it has.
    fn adopter(&self, slot: &Slot) -> Option<&str> {
        let (by, reached) = self.adopters.get(&(slot.0.clone(), slot.1.clone()))?;
        (!reached.contains(&slot.2)).then_some(by.as_str())
    }

    fn show(&mut self, record: &EventRecord, about: About, by: String, told: Told) {
        if told.is_detail && !self.choice.all {
            return;
        }
        self.add(row(record, about, by, told));
    }

    /// Adds a row, or counts it where it says again what the last rows of its instance say.
    fn add(&mut self, row: Row) {
        let Some(slot) = slot(&row.about).filter(|_| !self.choice.all) else {
            self.rows.push(row);
            return;
        };
        let next_index = self.rows.len();
        let progress = self.slots.entry(slot).or_default();
        let like = progress.like.filter(|(at, _)| {
            let before = &self.rows[*at];
            before.what == row.what && before.result == row.result && row.what != "started"
        });
        match like {
            Some((at, shown)) if shown >= LIKE_SHOWN => {
                let before = &mut self.rows[at];
                match &mut before.repeats {
                    Some(repeats) => {
                        repeats.number += 1;
                        repeats.last_at = row.at;
                    }
                    None => {
                        let last_at = row.at;
                        before.repeats = Some(Repeats { number: 1, first: Box::new(row), last_at });
                    }
                }
            }
            like => {
                progress.like = Some((next_index, like.map_or(1, |(_, shown)| shown + 1)));
                self.rows.push(row);
            }
        }
    }

    /// Takes back the row of a start by policy once the end of that run is told: its length says enough.
    fn hide_policy_start(&mut self, about: &About) {
        let all = self.choice.all;
        if let Some(at) = self.progress(about).policy_start.take().filter(|_| !all) {
            if at + 1 == self.rows.len() {
                self.rows.pop();
            } else {
                self.rows[at].is_hidden = true;
            }
        }
    }

    fn progress(&mut self, about: &About) -> &mut Progress {
        let slot = slot(about).expect("only events of instances come here: checked in push");
        self.slots.entry(slot).or_default()
    }

    fn remember(&mut self, event: Option<&Event>) {
        match event {
            Some(Event::IntentAccepted(it)) => {
                if self.intents.insert(it.intent, it.action.clone()).is_none() {
                    self.known.push_back(it.intent);
                }
                if self.known.len() > INTENTS_MAX
                    && let Some(oldest) = self.known.pop_front()
                {
                    self.intents.remove(&oldest);
                }
            }
            Some(Event::AgentStarted(it)) => {
                self.parts.extend(it.after.map(|after| ("agent", after)));
            }
            Some(Event::KeeperStarted(it)) => {
                self.parts.extend(it.after.map(|after| ("keeper", after)));
                // It is recorded behind what it led to.
                let back = self.back_words("keeper");
                for at in std::mem::take(&mut self.orphans) {
                    if let (Some(row), Some(_)) = (self.rows.get_mut(at), it.after) {
                        row.by = row.by.replacen("away for", &back, 1);
                    }
                }
            }
            _ => {}
        }
    }

    /// Returns what a record is about; a wish about a service belongs to it even where its event is the node's.
    fn about(&self, record: &EventRecord, event: Option<&Event>) -> About {
        let mut about = about_of(record);
        let action = match event {
            Some(Event::IntentAccepted(it)) => Some(&it.action),
            Some(Event::IntentExecuted(it)) => self.intents.get(&it.intent),
            _ => None,
        };
        if about.service.is_none() {
            about.service = action.and_then(Action::service).cloned();
        }
        about
    }

    fn is_chosen(&self, about: &About) -> bool {
        let Some(selector) = &self.choice.selector else {
            return true;
        };
        about.service.as_ref() == Some(&selector.service)
            && selector.may_be_on(&about.node)
            && about.index.is_none_or(|index| selector.index.is_none_or(|wanted| wanted == index))
    }

    /// Returns on whose authority: `alice, restart i-90c21a00`, `local root (sudo by bob)`, `policy`.
    fn by(&self, record: &EventRecord) -> String {
        let who = record.by.as_ref().map(actor_words);
        if record.by.as_ref().is_some_and(|actor| actor.kind == ActorKind::Policy) {
            return who.unwrap_or_default();
        }
        // Who said which command it was has said enough: `ana (run)`.
        if record.by.as_ref().is_some_and(|actor| matches!(actor.note.as_str(), "run" | "up")) {
            return who.unwrap_or_default();
        }
        let wish = match record.cause {
            Some(Cause::Intent(intent)) => Some(match self.intents.get(&intent) {
                Some(action) => format!("{} {}", action_words(action), short_intent(intent)),
                None => short_intent(intent),
            }),
            Some(Cause::Event(_) | Cause::Seq(_)) | None => None,
        };
        who.into_iter().chain(wish).collect::<Vec<_>>().join(", ")
    }
}

impl Progress {
    fn add(&mut self, more: Counts) {
        self.total = self.total.plus(more);
        self.latest = self.latest.plus(more);
    }
}

fn part(name: &str, it: &PartStarted) -> Told {
    let why = it.after.map(|_| part_words(it));
    Told { by: why, ..told(format!("{name} started"), format!("pid {}, {}", it.pid, it.version)) }
}

/// `worker/restart-limit` stands beside the name of the worker already.
fn short_alert(alert: &str) -> String {
    alert.split_once('/').map_or(alert, |(_, name)| name).to_owned()
}

fn row(record: &EventRecord, about: About, by: String, told: Told) -> Row {
    let late = if record.recorded_at.is_some() { " (recorded late)" } else { "" };
    Row {
        id: record.id(),
        at: record.at,
        about,
        run: record.run,
        what: told.what,
        result: format!("{}{late}", told.result),
        ran_ms: told.ran_ms,
        next: told.next,
        by: told.by.unwrap_or(by),
        actor: record.by.clone(),
        intent: match record.cause {
            Some(Cause::Intent(intent)) => Some(intent),
            Some(Cause::Event(_) | Cause::Seq(_)) | None => None,
        },
        is_hidden: false,
        repeats: None,
    }
}

fn run_of(record: &EventRecord, about: About) -> Run {
    Run {
        about,
        run: record.run.unwrap_or(RunId(0)),
        pid: None,
        started_at: None,
        ended_at: None,
        ran_ms: None,
        result: String::new(),
        memory_peak_bytes: None,
    }
}

fn about_of(record: &EventRecord) -> About {
    About { node: record.origin.clone(), service: record.service.clone(), index: record.index }
}

fn slot(about: &About) -> Option<Slot> {
    Some((about.node.clone(), about.service.clone()?, about.index?))
}
