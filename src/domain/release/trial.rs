//! What is folded about the releases of one service of a node.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{OrderAccepted, Phase, ReleaseApplied, ReleaseFailed, ReleaseHealthy, ReleaseId};
use super::{ReleaseReturned, Step};
use crate::domain::code::Code;
use crate::domain::event::{Event, Exit, RunResult, StateName, StopReason};
use crate::domain::health::Check;
use crate::domain::id::{ActionName, CheckName, Digest, Generation, InstanceId, IntentId};
use crate::domain::instance::State;
use crate::domain::node::Service;
use crate::domain::time::UnixMicros;

/// The releases of a service on this node. They outlive the service itself: a generation is never used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Releases {
    /// The highest number that was taken, that of a return included.
    pub generation: Generation,
    /// What the service runs from, or is to run from; absent: its spec files alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Mark>,
    /// What was healthy, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub good: Vec<Good>,
    /// What is being taken up or left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Box<Trial>>,
    /// The plan of the last ordered wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<(IntentId, Digest)>,
    /// The wish that means the node no more, so that the service was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<IntentId>,
}

/// A release in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Which.
    pub release: ReleaseId,
    /// How people call it.
    pub version: String,
    /// The number of the wish for it.
    pub generation: Generation,
    /// Whether it was healthy for long enough.
    pub healthy: bool,
}

/// What a service may return to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Good {
    /// The release; absent: the spec files alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// How people call it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// SHA-256 of the effective spec that ran.
    pub spec: Digest,
}

/// A release on its way in or out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The number of the step.
    pub generation: Generation,
    /// The wish.
    pub intent: IntentId,
    /// The release that the wish is about.
    pub release: ReleaseId,
    /// Whether it is taken up or left.
    pub step: Step,
    /// When this step began.
    pub since: UnixMicros,
    /// What to return to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Good>,
    /// Why the node returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// How far it is; absent while its files are fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trying: Option<Trying>,
}

/// Why a release failed, short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// In words.
    pub why: String,
    /// How a process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// A release whose processes are watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trying {
    /// The effective spec that they have to run from.
    pub spec: Digest,
    /// Since when.
    pub since: UnixMicros,
    /// When it has failed to be healthy.
    pub healthy_by: UnixMicros,
    /// How long it has to be, in milliseconds.
    pub min_healthy_ms: u64,
    /// The checks that have to pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckName>,
    /// Whether its checks do not count: the processes have to be ready and stay up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_process: bool,
    /// How many good releases are kept.
    pub keep: u16,
    /// Whether it is what is returned to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_return: bool,
    /// Since when all instances are healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_since: Option<UnixMicros>,
    /// The first thing that went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<Broken>,
    /// The actions that have to succeed before it is good, in their order; the first is the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<ActionName>,
    /// When the first of them is killed, as it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acts_until: Option<UnixMicros>,
}

/// What went wrong with a process of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Whose.
    pub instance: InstanceId,
    /// In words.
    pub why: String,
    /// What the end of its run means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// How long it ran, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_ms: Option<u64>,
    /// Whether it had been ready.
    pub was_ready: bool,
}

impl Trial {
    /// Returns when it has to be looked at again.
    pub fn deadline(&self) -> Option<UnixMicros> {
        let trying = self.trying.as_ref()?;
        let Some(since) = trying.held_since else { return Some(trying.healthy_by) };
        if trying.acts_until.is_some() {
            return (since <= trying.healthy_by).then_some(trying.healthy_by);
        }
        let held = since.plus_ms(trying.min_healthy_ms);
        // It cannot have become well too late, or it had failed by then: the clock was set, or the machine was off.
        Some(if since <= trying.healthy_by { held.min(trying.healthy_by) } else { held })
    }

    /// Returns the action that is to run once it was healthy for long enough.
    pub fn next_action(&self) -> Option<&ActionName> {
        self.trying.as_ref()?.after.first()
    }

    /// Returns the action that runs, and the id under which the keeper knows it.
    pub fn acting(&self) -> Option<(IntentId, &ActionName)> {
        let trying = self.trying.as_ref().filter(|trying| trying.acts_until.is_some())?;
        let action = trying.after.first()?;
        Some((self.action_id(action), action))
    }

    /// Returns the id under which the keeper knows an action of this trial: one that no wish has, and no other trial.
    pub fn action_id(&self, action: &ActionName) -> IntentId {
        let hash = Sha256::new_with_prefix(b"smgr-after-deploy-v1\0")
            .chain_update(self.intent.0)
            .chain_update(self.since.0.to_be_bytes())
            .chain_update(action.as_str())
            .finalize();
        IntentId(std::array::from_fn(|at| hash[at]))
    }

    /// Says how far it is.
    pub fn phase(&self) -> Phase {
        match &self.trying {
            None => Phase::Staging,
            Some(trying) if trying.broken.as_ref().is_some_and(|broken| broken.was_ready) => {
                Phase::Holding
            }
            Some(trying) if trying.held_since.is_some() => Phase::Holding,
            Some(_) => Phase::Starting,
        }
    }
}

impl Trying {
    /// Says whether every wanted instance runs from the spec and is well.
    fn is_held_by(&self, service: &Service) -> bool {
        let mut wanted = service.slots().filter(|(index, _)| service.wants(*index)).peekable();
        // Somebody stopped it: a return has nothing left to do, and a release is not proved.
        (wanted.peek().is_some() || self.is_return)
            && wanted.all(|(_, slot)| match &slot.state {
                State::Running { main } | State::Reloading { main, .. } => {
                    main.spec == self.spec
                        && self.checks.iter().all(|name| {
                            slot.checks.get(name).is_some_and(|check| check.failing.is_none())
                        })
                        && (self.by_process || !slot.checks.values().any(Check::is_unready))
                }
                // A oneshot that ended as it should.
                State::Completed => slot.since >= self.since,
                _ => false,
            })
    }

    /// Notes what a fact about an instance says of the release; `ran` is the spec of the process before it.
    pub(in crate::domain) fn note(
        &mut self,
        at: UnixMicros,
        instance: &InstanceId,
        ran: Option<Digest>,
        was_ready: bool,
        event: &Event,
        service: &Service,
    ) {
        let ours = ran == Some(self.spec);
        let broken = |why: &str, result, exit, ran_ms| {
            let (instance, why) = (instance.clone(), why.to_owned());
            Broken { instance, why, result, exit, ran_ms, was_ready }
        };
        let at_rest = service.instances.get(usize::from(instance.index)).map(|slot| &slot.state);
        let found = match event {
            Event::InstanceExited(_) if at_rest == Some(&State::Completed) => None,
            // Nobody saw it end, as when the power went: no word against the release, which has to hold anew.
            Event::InstanceExited(body) if body.exit == Exit::Unknown => None,
            Event::InstanceExited(body) if ours && body.from != StateName::Stopping => {
                let why = match was_ready {
                    true => "it ended before it was healthy for long enough",
                    false => "it ended before it was ready",
                };
                Some(broken(why, Some(body.result), Some(body.exit), Some(body.ran_ms)))
            }
            Event::InstanceStopping(body) if ours && body.reason == StopReason::ReadyTimeout => {
                Some(broken("it was not ready in time", Some(RunResult::Timeout), None, None))
            }
            Event::InstanceStopping(body) if ours && body.reason == StopReason::Unhealthy => Some(
                broken("a check failed that restarts it", Some(RunResult::Watchdog), None, None),
            ),
            Event::InstanceStartFailed(body) => {
                let why = format!("it could not be started: {}: {}", body.step, body.why);
                Some(broken(&why, Some(RunResult::Resources), None, None))
            }
            _ => None,
        };
        if self.broken.is_none() {
            self.broken = found;
        }
        self.look(at, service);
    }

    /// Looks at all instances anew.
    pub(in crate::domain) fn look(&mut self, at: UnixMicros, service: &Service) {
        self.held_since = match (self.is_held_by(service), self.held_since) {
            (false, _) => None,
            (true, None) => Some(at),
            (true, since) => since,
        };
    }
}

impl Releases {
    /// Returns what is good, the last first, but for `release`.
    pub fn good_but(&self, release: ReleaseId) -> Option<&Good> {
        self.good.iter().rev().find(|good| good.release != Some(release))
    }

    /// Returns what a release is left for: what the wish names, if it was good here, else what was good last.
    fn way_back(
        &self,
        release: ReleaseId,
        back_to: Option<ReleaseId>,
        files: Option<Digest>,
    ) -> Option<Good> {
        let named = back_to.and_then(|named| self.good.iter().find(|it| it.release == Some(named)));
        let named = named.filter(|good| good.release != Some(release));
        let under_way = self.trial.as_ref().and_then(|trial| trial.back.as_ref());
        let last = named.or_else(|| self.good_but(release)).or(under_way).cloned();
        last.or_else(|| {
            // What runs from its files alone has never been on trial.
            let spec = files.filter(|_| self.current.is_none())?;
            Some(Good { release: None, version: String::new(), spec })
        })
    }

    /// A wish for a release was taken.
    pub(in crate::domain) fn accept(
        &mut self,
        at: UnixMicros,
        intent: IntentId,
        generation: Generation,
        release: ReleaseId,
        back_to: Option<ReleaseId>,
        files: Option<Digest>,
    ) {
        let back = self.way_back(release, back_to, files);
        (self.generation, self.left) = (generation, None);
        self.trial = Some(Box::new(Trial {
            generation,
            intent,
            release,
            step: Step::Apply,
            since: at,
            back,
            failure: None,
            trying: None,
        }));
    }

    /// An order was taken. That of an `apply` comes before its wish.
    pub(in crate::domain) fn order(&mut self, at: UnixMicros, body: &OrderAccepted) {
        self.plan = Some((body.intent, body.plan));
        if body.step == Step::Leave {
            self.generation = self.generation.max(body.generation);
            (self.current, self.trial, self.left) = (None, None, Some(body.intent));
        }
        let next = Generation(body.generation.0 + 1);
        if body.step != Step::Return || next <= self.generation {
            return;
        }
        self.generation = next;
        // Of a removal only the number counts: what was taken away has no release to be left.
        let Some(release) = body.release else { return };
        // What another wish tries goes on, unless this one's release is what it would have replaced.
        let on_trial = self.trial.take_if(|trial| trial.intent == body.intent);
        let runs = self.current.as_ref().is_some_and(|mark| mark.release == release);
        let back = match &on_trial {
            Some(trial) => trial.back.clone(),
            None => self.good_but(release).cloned(),
        };
        // Before the switch nothing has to be undone.
        if !runs {
            return;
        }
        self.trial = Some(Box::new(Trial {
            generation: next,
            intent: body.intent,
            release,
            step: Step::Return,
            since: at,
            back,
            failure: Some(Failure {
                why: "the controller ordered the return".to_owned(),
                exit: None,
            }),
            trying: None,
        }));
    }

    pub(in crate::domain) fn applied(&mut self, at: UnixMicros, body: &ReleaseApplied) -> bool {
        let Some(trial) = self.trial.as_mut() else { return false };
        if trial.generation != body.generation || trial.trying.is_some() {
            return false;
        }
        trial.trying = Some(Trying {
            spec: body.spec,
            since: at,
            healthy_by: body.healthy_by,
            min_healthy_ms: body.min_healthy_ms,
            checks: body.checks.clone(),
            by_process: body.by_process,
            keep: body.keep,
            is_return: body.step == Step::Return,
            held_since: None,
            broken: None,
            after: body.after.clone(),
            acts_until: None,
        });
        self.current = body.now.map(|release| Mark {
            release,
            version: body.version.clone(),
            generation: body.generation,
            healthy: body.step == Step::Return,
        });
        if body.step == Step::Return {
            self.good.retain(|good| good.release != Some(body.release));
        }
        true
    }

    pub(in crate::domain) fn healthy(&mut self, body: &ReleaseHealthy) -> bool {
        let Some(trial) = self.trial.take_if(|trial| trial.generation == body.generation) else {
            return false;
        };
        let Some(trying) = trial.trying else { return false };
        let Some(mark) = self.current.as_mut() else { return false };
        mark.healthy = true;
        let version = mark.version.clone();
        // The files alone are a way back as long as nothing else is.
        if self.good.is_empty()
            && let Some(files) = trial.back.filter(|back| back.release.is_none())
        {
            self.good.push(files);
        }
        self.good.retain(|good| good.release != Some(body.release));
        self.good.push(Good { release: Some(body.release), version, spec: trying.spec });
        let keep = usize::from(trying.keep).max(2);
        let excess = self.good.len().saturating_sub(keep);
        self.good.drain(..excess);
        true
    }

    pub(in crate::domain) fn failed(&mut self, at: UnixMicros, body: &ReleaseFailed) -> bool {
        let Some(mut trial) = self.trial.take_if(|trial| trial.generation == body.generation)
        else {
            return false;
        };
        if !body.returns {
            return true;
        }
        trial.generation = Generation(body.generation.0 + 1);
        trial.step = Step::Return;
        trial.since = at;
        trial.trying = None;
        trial.failure = Some(Failure { why: body.why.clone(), exit: body.exit });
        self.generation = self.generation.max(trial.generation);
        self.trial = Some(trial);
        true
    }

    pub(in crate::domain) fn returned(&mut self, body: &ReleaseReturned) -> bool {
        self.trial.take_if(|trial| trial.generation == body.generation).is_some()
    }

    /// The wish came to its outcome while nothing of the service had changed.
    pub(in crate::domain) fn executed(&mut self, intent: IntentId) {
        drop(self.trial.take_if(|trial| {
            trial.intent == intent && trial.trying.is_none() && trial.step == Step::Apply
        }));
    }

    /// The spec in force changed by another way than a release: what is good now is this.
    pub(in crate::domain) fn respecified(&mut self, spec: Digest) {
        let Some(mark) = self.current.as_ref().filter(|_| self.trial.is_none()) else { return };
        if let Some(good) = self.good.iter_mut().find(|good| good.release == Some(mark.release)) {
            good.spec = spec;
        }
    }

    /// Returns the error code of a failure.
    pub fn code_of(step: Step, returns: bool) -> Code {
        match (step, returns) {
            (Step::Apply, true) => Code::RELEASE_RETURNED,
            (Step::Apply, false) => Code::NO_WAY_BACK,
            (Step::Return | Step::Leave, _) => Code::RETURN_FAILED,
        }
    }
}
