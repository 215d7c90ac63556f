//! A node with its specs and a clock, to be told inputs and asked what followed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::effect::{Act, Effect, Reply, Timer};
use crate::domain::event::{
    Actor, Context, EpochReason, Event, Exit, LogOpened, Outcome, PartStarted, Usage,
};
use crate::domain::id::{BootId, Digest, InstanceId, IntentId, RunId, ServiceId};
use crate::domain::input::{Decision, Ended, Input, Kept, KeptRun, Wish, World};
use crate::domain::instance::{Instance, State};
use crate::domain::intent::{Action, ActorKind};
use crate::domain::node::Node;
use crate::domain::rejection::Rejection;
use crate::domain::spec::{Percent, Spec};
use crate::domain::template::Template;
use crate::domain::time::{Now, UnixMicros};

/// A node in a test.
pub(crate) struct Site {
    pub(crate) node: Node,
    pub(crate) specs: BTreeMap<ServiceId, Arc<Spec>>,
    pub(crate) now: UnixMicros,
    pub(crate) log: Vec<(UnixMicros, Context, Event)>,
    pub(crate) last: Decision,
    pub(crate) reconciled: bool,
    pub(crate) bus: Option<ServiceId>,
    wishes: u8,
}

pub(crate) fn id(name: &str) -> InstanceId {
    let (service, index) = name.split_once('/').unwrap_or((name, "0"));
    InstanceId { service: service.parse().unwrap(), index: index.parse().unwrap() }
}

pub(crate) fn service(name: &str) -> ServiceId {
    name.parse().unwrap()
}

pub(crate) fn spec() -> Spec {
    let path = |text: &str| Template::literal(text);
    let mut spec = Spec::new(vec![path("/bin/true")], path("/"), path("/log"));
    spec.restart.jitter = Percent(0);
    spec
}

pub(crate) fn keeper(incarnation: u64) -> PartStarted {
    PartStarted {
        version: "0".to_owned(),
        pid: 1,
        uid: 0,
        boot: BootId([1; 16]),
        after: None,
        away_ms: 0,
        incarnation,
    }
}

pub(crate) fn kept(incarnation: u64, agent_is_new: bool, runs: Vec<KeptRun>) -> Kept {
    Kept { keeper: keeper(incarnation), agent_is_new, away_ms: 90, runs, actions: Vec::new() }
}

pub(crate) fn kept_run(name: &str, run: u64, ended: Option<Ended>) -> KeptRun {
    KeptRun {
        instance: id(name),
        run: RunId(run),
        pid: 100 + u32::try_from(run).unwrap(),
        pidfd_inode: 7,
        spec: Digest([1; 32]),
        ended,
    }
}

pub(crate) fn ended(exit: Exit, ran_ms: u64) -> Ended {
    Ended { exit, usage: Usage::default(), oom_killed: false, ran_ms, tree_empty: true, tail: None }
}

pub(crate) fn intent(number: u8) -> IntentId {
    IntentId([number; 16])
}

pub(crate) fn actor() -> Actor {
    Actor { kind: ActorKind::Human, name: "ana".parse().unwrap(), key: None, note: String::new() }
}

impl Site {
    /// A node that has met its keeper and supervises nothing.
    pub(crate) fn empty() -> Self {
        let mut site = Self {
            node: Node::default(),
            specs: BTreeMap::new(),
            now: UnixMicros(1_000_000_000),
            log: Vec::new(),
            last: Decision::default(),
            reconciled: false,
            bus: None,
            wishes: 0,
        };
        let opened = LogOpened {
            reason: EpochReason::FirstStart,
            predecessor: None,
            version: "0".to_owned(),
        };
        site.append(Context::default(), Event::LogOpened(opened));
        site.tell(Input::Reconcile(kept(1, true, Vec::new())));
        site
    }

    /// A node that was given these services.
    pub(crate) fn with(services: &[(&str, Spec)]) -> Self {
        let mut site = Self::empty();
        for (name, spec) in services {
            site.adopt(name, spec.clone(), 1);
        }
        site
    }

    /// A node on which `web/0` runs.
    pub(crate) fn running(spec: Spec) -> Self {
        let mut site = Self::with(&[("web", spec)]);
        site.start("web", 1);
        site
    }

    pub(crate) fn adopt(&mut self, name: &str, spec: Spec, digest: u8) -> &mut Self {
        self.specs.insert(service(name), Arc::new(spec));
        self.tell(Input::SpecAdopted {
            service: service(name),
            digest: Digest([digest; 32]),
            origin: format!("{name}.toml"),
            keeps: None,
            keys: Vec::new(),
            intent: None,
        })
    }

    /// Folds a fact.
    pub(crate) fn append(&mut self, context: Context, event: Event) {
        self.node.evolve(self.now, &context, &event).unwrap();
        self.log.push((self.now, context, event));
    }

    pub(crate) fn try_tell(&mut self, input: Input) -> Result<&mut Self, Rejection> {
        let world = World {
            now: Now { at: self.now, mono_ns: 0 },
            specs: &self.specs,
            entropy: 0x5555_5555_5555_5555,
            reconciled: self.reconciled,
            bus: self.bus.as_ref(),
        };
        let meets = matches!(input, Input::Reconcile(_));
        self.last = self.node.decide(&world, input)?;
        self.reconciled |= meets;
        for (context, event) in self.last.events.clone() {
            self.append(context, event);
        }
        Ok(self)
    }

    pub(crate) fn tell(&mut self, input: Input) -> &mut Self {
        self.try_tell(input).unwrap()
    }

    pub(crate) fn wish_of(&mut self, number: u8, action: Action) -> Wish {
        Wish {
            id: intent(number),
            digest: Digest([number; 32]),
            action,
            issued_at: self.now,
            expires_at: self.now.plus_ms(60_000),
            generation: None,
            by: actor(),
            is_own: false,
            order: None,
        }
    }

    /// Sends a wish with the next id.
    pub(crate) fn wish(&mut self, action: Action) -> &mut Self {
        self.wishes += 1;
        let wish = self.wish_of(self.wishes, action);
        self.tell(Input::Wish(wish))
    }

    pub(crate) fn start(&mut self, name: &str, run: u64) -> &mut Self {
        let spec = self.node.services()[&id(name).service].digest;
        self.tell(Input::Started {
            instance: id(name),
            run: RunId(run),
            pid: 100 + u32::try_from(run).unwrap(),
            pidfd_inode: 7,
            spec,
        })
    }

    pub(crate) fn ready(&mut self, name: &str, run: u64) -> &mut Self {
        self.tell(Input::Ready { instance: id(name), run: RunId(run), how: "notify".to_owned() })
    }

    pub(crate) fn exit(&mut self, name: &str, run: u64, exit: Exit, ran_ms: u64) -> &mut Self {
        self.later(ran_ms);
        self.end(name, run, ended(exit, ran_ms))
    }

    pub(crate) fn end(&mut self, name: &str, run: u64, ended: Ended) -> &mut Self {
        let pid = 100 + u32::try_from(run).unwrap();
        self.tell(Input::Exited { instance: id(name), run: RunId(run), pid, ended })
    }

    pub(crate) fn later(&mut self, ms: u64) -> &mut Self {
        self.now = self.now.plus_ms(ms);
        self
    }

    /// Lets the first deadline of an instance pass.
    pub(crate) fn pass(&mut self, name: &str) -> &mut Self {
        let (timer, at) = self.deadline(name).expect("it has a deadline");
        self.now = self.now.max(at);
        self.tell(Input::Timer { timer, at })
    }

    pub(crate) fn deadline(&self, name: &str) -> Option<(Timer, UnixMicros)> {
        self.at(name).deadlines(&id(name)).into_iter().min_by_key(|(_, at)| *at)
    }

    pub(crate) fn pass_intent(&mut self, number: u8) -> &mut Self {
        let at = self.node.seen().get(&intent(number)).unwrap().open().unwrap().until;
        self.now = at;
        self.tell(Input::Timer { timer: Timer::Intent(intent(number)), at })
    }

    pub(crate) fn at(&self, name: &str) -> &Instance {
        self.node.instance(&id(name)).unwrap()
    }

    pub(crate) fn state(&self, name: &str) -> &State {
        &self.at(name).state
    }

    /// The events of the last decision, in short.
    pub(crate) fn events(&self) -> Vec<String> {
        let short = |(context, event): &(Context, Event)| match (&context.service, context.index) {
            (Some(service), Some(index)) => format!("{} {service}/{index}", event.kind()),
            (Some(service), None) => format!("{} {service}", event.kind()),
            _ => event.kind().to_owned(),
        };
        self.last.events.iter().map(short).collect()
    }

    #[track_caller]
    pub(crate) fn then(&mut self, events: &[&str]) -> &mut Self {
        assert_eq!(self.events(), events);
        self
    }

    #[track_caller]
    pub(crate) fn then_nothing(&mut self) -> &mut Self {
        self.then(&[])
    }

    pub(crate) fn acts(&self, promised: bool) -> Vec<&Act> {
        let wanted = |effect: &&Effect| matches!(effect, Effect::Promise(_)) == promised;
        self.last.effects.iter().filter(wanted).map(Effect::act).collect()
    }

    /// The run that the last decision spawns for an instance, with whether it is a promise.
    pub(crate) fn spawned(&self, name: &str) -> Option<(u64, bool)> {
        self.last.effects.iter().find_map(|effect| match effect.act() {
            Act::Spawn { instance, run, .. } if *instance == id(name) => {
                Some((run.0, matches!(effect, Effect::Promise(_))))
            }
            _ => None,
        })
    }

    pub(crate) fn signals(&self) -> Vec<(String, i32)> {
        let signal = |effect: &Effect| match effect.act() {
            Act::Signal { instance, signal, .. } => Some((instance.to_string(), *signal)),
            _ => None,
        };
        self.last.effects.iter().filter_map(signal).collect()
    }

    pub(crate) fn kills(&self) -> usize {
        self.last
            .effects
            .iter()
            .filter(|effect| matches!(effect.act(), Act::KillTree { .. }))
            .count()
    }

    pub(crate) fn acknowledged(&self) -> bool {
        self.acts(true).iter().any(|act| matches!(act, Act::Acknowledge { .. }))
    }

    pub(crate) fn stops_agent(&self) -> bool {
        self.acts(true).iter().any(|act| matches!(act, Act::StopAgent { .. }))
    }

    /// The answers of the last decision.
    pub(crate) fn answers(&self) -> Vec<Reply> {
        let answer = |act: &&Act| match act {
            Act::Answer { reply, .. } => Some(reply.clone()),
            _ => None,
        };
        self.acts(true).iter().filter_map(answer).collect()
    }

    pub(crate) fn outcome(&self, number: u8) -> Option<Outcome> {
        match &self.node.seen().get(&intent(number))?.progress {
            crate::domain::seen::Progress::Executed { outcome, .. } => Some(outcome.clone()),
            crate::domain::seen::Progress::Open(_) => None,
        }
    }

    #[track_caller]
    pub(crate) fn then_outcome(&mut self, number: u8, changed: bool) -> &mut Self {
        assert_eq!(self.outcome(number), Some(Outcome::Done { changed }));
        self
    }

    #[track_caller]
    pub(crate) fn then_failed(&mut self, number: u8, code: crate::domain::code::Code) -> &mut Self {
        match self.outcome(number) {
            Some(Outcome::Failed { code: found, .. }) => assert_eq!(found, code.to_string()),
            other => panic!("expected a failure, got {other:?}"),
        }
        self
    }

    /// Folds the log anew.
    pub(crate) fn replayed(&self) -> Node {
        let mut node = Node::default();
        for (at, context, event) in &self.log {
            node.evolve(*at, context, event).unwrap();
        }
        node
    }

    pub(crate) fn restored(&self) -> Node {
        let mut node = Node::default();
        self.node.parts().into_iter().for_each(|part| node.restore(part));
        node
    }
}
