//! A history like that of the kill test: services that crash and come back, and wishes that come in between.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use smgr::domain::event::{
    Actor, Context, Detached, EpochReason, Event, Exit, LogOpened, PartStarted, Usage,
};
use smgr::domain::id::{
    BootId, Digest, EpochId, EventId, InstanceId, IntentId, Kid, RunId, Seq, ServiceId,
};
use smgr::domain::input::{Delivery, Ended, Input, Kept, Wish, World};
use smgr::domain::intent::{Action, ActorKind};
use smgr::domain::node::Node;
use smgr::domain::policy::Kind;
use smgr::domain::spec::Spec;
use smgr::domain::template::Template;
use smgr::domain::time::{Now, UnixMicros};
use smgr::store::AppendError;
use smgr::wire::codec;
use smgr::wire::envelope;
use smgr::wire::fold;
use smgr::wire::key::Signer;
use smgr::wire::payload::EventRecord;

use crate::Figure;
use crate::append::Open;

const SERVICES: usize = 20;
/// 50 wishes and 20 exits a second, as in the kill test.
const WISHES_PER_TURN: usize = 5;
const EXITS_PER_TURN: usize = 2;
const TURN_MS: u64 = 100;
const INTENT_LIFE_MS: u64 = 120_000;

/// An event before it is a row.
pub(crate) struct Fact {
    now: Now,
    context: Context,
    event: Event,
}

impl Fact {
    /// Returns the row of this event, made as the agent makes it.
    pub(crate) fn seal(&self, seq: Seq, signer: &Signer) -> Arc<[u8]> {
        let origin = "n1".parse().expect("a name");
        let id = EventId { origin, epoch: EpochId::new(1_795_000_000_000, 7), seq };
        let record = EventRecord::of(id, self.now, BootId([3; 16]), &self.context, &self.event);
        envelope::seal(Kind::Event, &codec::encode(&record), signer).into()
    }
}

/// What happens on a node, decided by the core itself.
pub(crate) struct Story {
    node: Node,
    specs: BTreeMap<ServiceId, Arc<Spec>>,
    now: Now,
    wishes: u64,
    turns: usize,
    facts: VecDeque<Fact>,
}

impl Story {
    /// Begins with a node on which every service runs.
    pub(crate) fn begin() -> Self {
        let now = Now { at: UnixMicros(1_795_000_000_000_000), mono_ns: 1_000_000_000 };
        let mut story = Self {
            node: Node::default(),
            specs: BTreeMap::new(),
            now,
            wishes: 0,
            turns: 0,
            facts: VecDeque::new(),
        };
        let opened =
            LogOpened { reason: EpochReason::FirstStart, predecessor: None, version: "0".into() };
        story.happen(Context::default(), Event::LogOpened(opened));
        let keeper = PartStarted {
            version: "0".to_owned(),
            pid: 1,
            uid: 0,
            boot: BootId([3; 16]),
            after: None,
            away_ms: 0,
            incarnation: 1,
        };
        let (runs, actions) = (Vec::new(), Vec::new());
        story.tell(Input::Reconcile(Kept {
            keeper,
            agent_is_new: true,
            away_ms: 0,
            runs,
            actions,
        }));
        for number in 0..SERVICES {
            let (service, digest) = (name(number), Digest([7; 32]));
            let literal = Template::literal;
            let mut spec = Spec::new(vec![literal("/bin/true")], literal("/"), literal("/log"));
            spec.restart.limit = u32::MAX; // Each of them crashes once a second for hours.
            story.specs.insert(service.clone(), Arc::new(spec));
            let origin = format!("services.d/{service}.toml");
            story.tell(Input::SpecAdopted {
                service,
                digest,
                origin,
                intent: None,
                keeps: None,
                keys: Vec::new(),
            });
            story.started(number);
        }
        story
    }

    /// Returns the next events, at least one turn of them.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Fact> {
        while self.facts.len() < count {
            self.turn();
        }
        self.facts.drain(..count).collect()
    }

    fn turn(&mut self) {
        self.turns += 1;
        for nth in 0..WISHES_PER_TURN {
            self.wish((self.turns * WISHES_PER_TURN + nth) % SERVICES);
        }
        for nth in 0..EXITS_PER_TURN {
            self.crash((self.turns * EXITS_PER_TURN + nth) % SERVICES);
        }
        self.now.at = self.now.at.plus_ms(TURN_MS);
        self.now.mono_ns += TURN_MS * 1_000_000;
    }

    fn wish(&mut self, number: usize) {
        self.wishes += 1;
        let mut id = [0xa5; 16];
        id[..8].copy_from_slice(&self.wishes.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let (intent, service) = (IntentId(id), name(number));
        let instance = InstanceId { service: service.clone(), index: 0 };
        self.tell(Input::Wish(Wish {
            id: intent,
            digest: Digest([self.wishes as u8; 32]),
            action: Action::Signal { service, signal: 10 },
            issued_at: self.now.at,
            expires_at: self.now.at.plus_ms(INTENT_LIFE_MS),
            generation: None,
            by: Actor {
                kind: ActorKind::Ci,
                name: "shop-deploy".parse().expect("a name"),
                key: Some(Kid([4; 16])),
                note: String::new(),
            },
            is_own: false,
            order: None,
        }));
        self.tell(Input::SignalDelivered { intent, instance, delivery: Delivery::Delivered });
    }

    fn crash(&mut self, number: usize) {
        let instance = InstanceId { service: name(number), index: 0 };
        let run = self.node.instance(&instance).expect("it was adopted").last_run;
        let ended = Ended {
            exit: Exit::Signal { signal: 9, core_dumped: false },
            usage: Usage { cpu_user_ms: 120, cpu_system_ms: 40, memory_peak_bytes: 19 << 20 },
            oom_killed: false,
            // Longer than a run has to be to count as stable, so that the next start is immediate.
            ran_ms: 61_000,
            tree_empty: true,
            tail: Some(Detached { hash: Digest([8; 32]), bytes: 1600 }),
        };
        self.tell(Input::Exited { instance, run, pid: pid(run), ended });
        self.started(number);
    }

    fn started(&mut self, number: usize) {
        let instance = InstanceId { service: name(number), index: 0 };
        let run = self.node.instance(&instance).expect("it was adopted").last_run;
        let spec = self.node.services()[&instance.service].digest;
        self.tell(Input::Started { instance, run, pid: pid(run), pidfd_inode: run.0 << 8, spec });
    }

    fn tell(&mut self, input: Input) {
        let world = World {
            now: self.now,
            specs: &self.specs,
            entropy: self.wishes,
            reconciled: true,
            bus: None,
        };
        let decision = self.node.decide(&world, input).expect("the story makes sense");
        for (context, event) in decision.events {
            self.happen(context, event);
        }
    }

    fn happen(&mut self, context: Context, event: Event) {
        self.node.evolve(self.now.at, &context, &event).expect("the core decided so");
        self.facts.push_back(Fact { now: self.now, context, event });
    }
}

fn name(number: usize) -> ServiceId {
    format!("service-{number:02}").parse().expect("a name")
}

fn pid(run: RunId) -> u32 {
    1_000 + u32::try_from(run.0 % 1_000_000).expect("below a million")
}

/// Writes a log of so many events, in as many segments as they take.
pub(crate) fn write(folder: &Path, count: usize) -> anyhow::Result<()> {
    let open = Open::begin(folder)?;
    let mut story = Story::begin();
    let signer = Signer::from_seed(&[9; 32]);
    let mut bytes = 0;
    let mut node = Node::default();
    for _ in 0..count {
        let fact = story.take(1).pop().expect("one was asked for");
        let seq = Seq(open.log.appended().1.0 + 1);
        let row = fact.seal(seq, &signer);
        bytes += row.len();
        node.evolve(fact.now.at, &fact.context, &fact.event)?;
        append(&open, seq, &row)?;
        if open.is_full() {
            let first = Seq(seq.0 + 1);
            let baseline = (first.0..).zip(fold::baseline(&node)).map(|(seq, event)| {
                let fact = Fact { now: fact.now, context: Context::default(), event };
                fact.seal(Seq(seq), &signer)
            });
            open.roll(first, baseline.collect())?;
        }
    }
    ensure!(bytes >= 250 * count, "events have {} bytes in the mean, less than 250", bytes / count);
    Ok(())
}

fn append(open: &Open, seq: Seq, row: &Arc<[u8]>) -> anyhow::Result<()> {
    loop {
        match open.log.append(seq, row.clone()) {
            Ok(_) => return Ok(()),
            Err(AppendError::Busy { .. }) => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes events until the segment has its size, says so, and waits to be killed.
pub(crate) fn write_until_killed(folder: &Path) -> anyhow::Result<Vec<Figure>> {
    let open = Open::begin(folder)?;
    let mut story = Story::begin();
    let signer = Signer::from_seed(&[9; 32]);
    let mut seq = 0;
    while !open.is_full() {
        for fact in story.take(500) {
            seq += 1;
            append(&open, Seq(seq), &fact.seal(Seq(seq), &signer))?;
        }
    }
    println!("{{\"full\": {seq}}}");
    std::io::stdout().flush()?;
    loop {
        // Rows go on coming in, so that the kill cuts a commit.
        for fact in story.take(500) {
            seq += 1;
            append(&open, Seq(seq), &fact.seal(Seq(seq), &signer))?;
        }
    }
}
