//! Hours and weeks as a number: the gate, the core and the envelopes of agents, the core of a controller, and a clock for
//! each machine that says what it likes. Nothing sleeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::super::node::EmulatedNode;
use super::super::voice::Said;
use super::super::{Fleet, Load, Specs};
use crate::config::{release_layer, rollouts_of};
use crate::domain::code::Code;
use crate::domain::event::{Event, Outcome, TrustChanged};
use crate::domain::id::{BootId, Digest, EventId, Generation, IntentId, NodeId};
use crate::domain::intent::Action;
use crate::domain::policy::{Grant, Holder, KeyClass, Kind, Names};
use crate::domain::release::{MANIFEST_VERSION, Manifest, ReleaseId, Step};
use crate::domain::rollout::{
    Effect, Input, Known, Moves, NodeReport, Observed, Opening, Plan, PlanRequest, Rollout,
    RolloutEvent, Verdict, Wished,
};
use crate::domain::selector::Selector;
use crate::domain::time::{Now, UnixMicros};
use crate::head::authority::{Authority, Enrolment, Way};
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::key::{Keyring, Signer};
use crate::wire::payload::{
    Answer, Audience, Body, Enrolled, EventRecord, Intent, Mode, Order, PAYLOAD_VERSION, Reply,
};
use crate::wire::subject::Subject;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// A day in November 2026.
const BEGIN: UnixMicros = UnixMicros(1_795_000_000_000_000);

/// How long after the beginning the key of the job ends: as one does that a pipeline is given for one run.
const KEY_MS: u64 = 10 * MINUTE_MS;

const ROSTER: Digest = Digest([4; 32]);

fn job() -> Signer {
    Signer::from_seed(&[1; 32])
}

fn controller(name: &str) -> Signer {
    Signer::from_seed(&[if name == "c1" { 2 } else { 3 }; 32])
}

fn node_key(number: u8) -> Signer {
    Signer::from_seed(&[100 + number; 32])
}

fn name_of(number: u8) -> NodeId {
    format!("n{number:02}").parse().unwrap()
}

/// A machine: a node, and a clock that may be wrong.
struct Machine {
    node: EmulatedNode,
    /// What its clock says when it is [`BEGIN`] everywhere else.
    clock: UnixMicros,
    is_away: bool,
    /// The releases that it took up, its answers, and how often a process was started.
    applied: Vec<Generation>,
    outcomes: Vec<Outcome>,
    refused: Vec<String>,
    started: usize,
}

/// A fleet of machines, with what a controller knows of it.
struct Site {
    passed_ms: u64,
    machines: BTreeMap<NodeId, Machine>,
    gate: Authority,
    /// The signed words by which nodes said that a release is healthy.
    healthy: BTreeMap<(NodeId, Generation), ByteBuf>,
    leader: &'static str,
    term: u64,
}

/// A rollout as a controller drives it.
#[derive(Clone)]
struct Driven {
    wish: Vec<u8>,
    /// Where it wants the service.
    wished: Wished,
    accepted_at: UnixMicros,
    facts: Vec<RolloutEvent>,
    state: Rollout,
}

/// A wish for a release whose spec says this of its rollout.
fn wish(generation: u8, rollout: &str, iat: UnixMicros) -> (Intent, Manifest) {
    let manifest = Manifest {
        v: MANIFEST_VERSION,
        service: "web".parse().unwrap(),
        version: generation.to_string(),
        file: "web.toml".to_owned(),
        spec: format!("exec = [\"/bin/sleep\", \"9\"]\n[rollout]\n{rollout}"),
        artifact: None,
        again: None,
    };
    let intent = Intent {
        v: PAYLOAD_VERSION,
        id: IntentId([generation; 16]),
        iss: job().kid(),
        iat,
        exp: iat.plus_ms(MINUTE_MS),
        fleet: super::fleet(),
        mode: Mode::Desired,
        action: Action::Deploy {
            service: "web".parse().unwrap(),
            generation: Generation(generation.into()),
            release: codec::encode(&manifest),
            back_to: None,
            emergency: None,
            retry: None,
            on_conflict: None,
            rollback: false,
        },
        audience: Audience::Select { selector: "*".to_owned(), roster: ROSTER },
        note: String::new(),
    };
    (intent, manifest)
}

fn sealed(intent: &Intent) -> Vec<u8> {
    envelope::seal(Kind::Intent, &codec::encode(intent), &job())
}

impl Site {
    fn of(count: u8) -> Self {
        let mut ring = Keyring::default();
        let mut trust = |key: &Signer, name: &str, class, grants, until| {
            let name = name.parse().unwrap();
            ring.insert(key.public(), Holder { name, class, grants, until });
        };
        let every = Grant { verbs: Names::All, services: Names::All, nodes: Names::All };
        trust(&job(), "ci", KeyClass::Ci, vec![every], Some(BEGIN.plus_ms(KEY_MS)));
        for name in ["c1", "c2"] {
            trust(&controller(name), name, KeyClass::Controller, Vec::new(), None);
        }
        let mut roster = Vec::new();
        for number in 1..=count {
            let (node, kid) = (name_of(number), node_key(number).kid());
            trust(&node_key(number), node.as_str(), KeyClass::Node, Vec::new(), None);
            roster.push(Enrolled { node, kid, labels: BTreeMap::new() });
        }
        let roster = Arc::new(Enrolment::from(roster));
        let common = Arc::new(Fleet {
            fleet: super::fleet(),
            boot: BootId([1; 16]),
            ring: Arc::new(ring.clone()),
            revoked: Vec::new(),
            roster: roster.clone(),
            trust: TrustChanged { version: 1, digest: Digest([1; 32]) },
            specs: Specs::default(),
            load: Load::default(),
        });
        let machine = |number| {
            let node = EmulatedNode::new(common.clone(), name_of(number), node_key(number));
            let (applied, outcomes, refused) = (Vec::new(), Vec::new(), Vec::new());
            let (clock, is_away, started) = (BEGIN, false, 0);
            Machine { node, clock, is_away, applied, outcomes, refused, started }
        };
        let machines = (1..=count).map(|number| (name_of(number), machine(number))).collect();
        let mut gate = Authority::new(super::fleet(), "c1".parse().unwrap(), ring, Vec::new());
        gate.enrol(roster);
        let healthy = BTreeMap::new();
        let mut site = Self { passed_ms: 0, machines, gate, healthy, leader: "c1", term: 1 };
        for machine in site.machines.values_mut() {
            machine.node.begin(machine.now(0));
        }
        site.hear();
        site
    }

    fn at(&self) -> UnixMicros {
        BEGIN.plus_ms(self.passed_ms)
    }

    fn machine(&mut self, number: u8) -> &mut Machine {
        self.machines.get_mut(&name_of(number)).unwrap()
    }

    /// Takes a wish at the gate of the controllers and plans it.
    fn open(&mut self, (intent, manifest): (Intent, Manifest)) -> Driven {
        let (wish, accepted_at) = (sealed(&intent), self.at());
        let requested = self.gate.request(&wish, Way::Bus, (accepted_at, ROSTER)).unwrap();
        assert!(requested.verified.objection.is_none(), "{:?}", requested.verified.objection);
        let release = intent.action.release().unwrap();
        let rollouts = rollouts_of(release_layer(release, manifest)).unwrap();
        let parameters = rollouts.parameters;
        let away = self.machines.iter().filter(|(_, machine)| machine.is_away);
        let away: BTreeSet<NodeId> = away.map(|(name, _)| name.clone()).collect();
        let plan = Plan::new(&PlanRequest {
            intent: intent.id,
            service: "web".parse().unwrap(),
            generation: intent.action.generation().unwrap(),
            release,
            back_to: None,
            emergency: None,
            retry: None,
            targets: &requested.targets,
            roster: &self.gate.roster(),
            roster_digest: ROSTER,
            away: &away,
            is_new: false,
            parameters: &parameters,
        })
        .unwrap();
        let before = plan.targets().map(|node| (node.clone(), Observed::default())).collect();
        let opening = Opening {
            plan,
            by: None,
            reason: String::new(),
            origins: BTreeMap::new(),
            before,
            controller: self.leader.parse().unwrap(),
            term: self.term,
        };
        let facts = Rollout::open(opening, accepted_at);
        let state = Rollout::replay(&facts).unwrap().unwrap();
        let wished = Wished {
            intent: intent.id,
            generation: intent.action.generation().unwrap(),
            release: Some(release),
            select: Selector::every(),
            placement: rollouts.placement,
        };
        let mut driven = Driven { wish, wished, accepted_at, facts, state };
        for node in away {
            let report = NodeReport::Unreachable;
            self.drive(&mut driven, &Input::Node { node, event: None, report });
        }
        driven
    }

    fn drive(&self, driven: &mut Driven, input: &Input) {
        let events = driven.state.decide(self.at(), input).unwrap();
        events.iter().for_each(|event| driven.state.evolve(event).unwrap());
        driven.facts.extend(events);
    }

    /// Has a node hear an order, sealed as by whoever leads.
    fn bring(&mut self, driven: &Driven, to: &NodeId, (step, wave): (Step, u16)) {
        let plan = driven.state.plan();
        let others = plan.targets().filter(|other| *other != to);
        let word = |other: &NodeId| self.healthy.get(&(other.clone(), plan.generation)).cloned();
        let key = controller(self.leader);
        let order = Order {
            v: PAYLOAD_VERSION,
            iss: key.kid(),
            iat: self.at(),
            fleet: super::fleet(),
            node: to.clone(),
            intent: ByteBuf::from(driven.wish.clone()),
            step,
            plan: plan.digest(),
            term: self.term,
            controller: self.leader.parse().unwrap(),
            verified_at: driven.accepted_at,
            wave,
            canary: if wave > 1 { others.filter_map(word).take(4).collect() } else { Vec::new() },
        };
        let order = envelope::seal(Kind::Order, &codec::encode(&order), &key);
        let inbox = format!("_INBOX.{}.1", self.leader).parse().ok();
        let passed_ms = self.passed_ms;
        let machine = self.machines.get_mut(to).unwrap();
        machine.node.hear(machine.now(passed_ms), &order, inbox);
    }

    /// Does what a controller does for wishes that succeeded: looks who lacks what they want, and orders it there. Returns
    /// whom it ordered what.
    fn place(&mut self, stand: &[&Driven]) -> Vec<(Generation, NodeId, Step)> {
        let chain = Wished::chain(stand.iter().map(|driven| driven.wished.clone()).collect());
        let mut ordered = Vec::new();
        for (of, wish) in chain.iter().enumerate() {
            let driven = stand.iter().find(|driven| driven.wished == *wish).unwrap();
            let web = "web".parse().unwrap();
            let nodes = self.gate.enrolled().map(|(node, labels)| {
                let machine = &self.machines[node];
                let folded = machine.node.state();
                let known = Known {
                    labels,
                    releases: folded.releases().get(&web),
                    is_there: folded.services().contains_key(&web),
                    is_away: machine.is_away,
                    is_read: true,
                    target: driven.state.node(node),
                };
                (node, known)
            });
            let places = Wished::places(&chain, of, nodes);
            let moves = Moves::of(&places, &driven.state.plan().parameters);
            for (node, step) in moves.orders() {
                self.bring(driven, node, (step, 2));
                ordered.push((wish.generation, node.clone(), step));
            }
        }
        ordered
    }

    /// Takes in what all machines said; returns what it means for a rollout.
    fn hear(&mut self) -> Vec<Input> {
        let mut reports = Vec::new();
        for (name, machine) in &mut self.machines {
            while let Some(said) = machine.node.voice().next() {
                match said {
                    Said::Told(Subject::Event { .. }, row) => {
                        let (id, event) = read(&row);
                        if let Event::ReleaseHealthy(body) = &event {
                            let word = ByteBuf::from(row.to_vec());
                            self.healthy.insert((name.clone(), body.generation), word);
                        }
                        let (node, event, report) = (name.clone(), Some(id), machine.told(&event));
                        reports.extend(report.map(|report| Input::Node { node, event, report }));
                    }
                    Said::Told(..) => {}
                    Said::Answer(_, bytes) => machine.answered(&bytes),
                }
            }
        }
        reports
    }

    /// Lets time go on to the next deadline of anybody, or to `until_ms`.
    fn pass(&mut self, until_ms: u64) {
        let passed_ms = self.passed_ms;
        let due_ms = self.machines.values().filter_map(|machine| {
            let due = machine.node.due_in(machine.now(passed_ms))?;
            Some(passed_ms + u64::try_from(due.as_millis()).unwrap() + 1)
        });
        self.passed_ms = due_ms.min().map_or(until_ms, |due_ms| due_ms.min(until_ms));
        for machine in self.machines.values_mut() {
            machine.node.ring(machine.now(self.passed_ms));
        }
    }

    fn an_hour_passes(&mut self) {
        let until_ms = self.passed_ms + HOUR_MS;
        while self.passed_ms < until_ms {
            self.pass(until_ms);
            self.hear();
        }
    }

    /// Drives a rollout to its end, sending every order that is out once more in each turn; `disturb` is called in each.
    fn complete(
        &mut self,
        driven: &mut Driven,
        mut disturb: impl FnMut(&mut Self, &mut Driven),
    ) -> Verdict {
        for _ in 0..100_000 {
            if let Some(verdict) = driven.state.verdict() {
                if verdict != Verdict::Succeeded {
                    let told = driven.facts.iter().map(RolloutEvent::text).collect::<Vec<_>>();
                    panic!("{verdict:?}: {told:#?}");
                }
                return verdict;
            }
            for effect in driven.state.effects() {
                let Effect::Order { node, step, wave } = effect else { continue };
                if !self.machines[&node].is_away {
                    self.bring(driven, &node, (step, wave));
                }
            }
            let wake = driven.state.wake_at().unwrap_or(self.at().plus_ms(MINUTE_MS));
            // Whoever leads looks every second even when no deadline is over.
            self.pass(self.passed_ms + wake.ms_since(self.at()).max(1000));
            for report in self.hear() {
                self.drive(driven, &report);
            }
            let refused = |it: &Machine| it.refused.clone();
            let refused: Vec<String> = self.machines.values().flat_map(refused).collect();
            assert!(refused.is_empty(), "{refused:?}");
            self.drive(driven, &Input::Tick);
            disturb(self, driven);
        }
        panic!("it does not end: {:?}", driven.state.phase());
    }

    /// Another controller goes on from the log.
    fn take_over(&mut self, driven: &mut Driven) {
        self.leader = if self.leader == "c1" { "c2" } else { "c1" };
        self.term += 1;
        driven.state = Rollout::replay(&driven.facts).unwrap().unwrap();
        let controller = self.leader.parse().unwrap();
        self.drive(driven, &Input::TakenOver { controller, term: self.term, grace_ms: 30_000 });
    }
}

fn read(row: &[u8]) -> (EventId, Event) {
    let sealed = envelope::read(row, ENVELOPE_BYTES_MAX).unwrap();
    let record: EventRecord = codec::decode(sealed.unverified_payload()).unwrap();
    let Ok(Body::Known(event)) = record.event() else { panic!("{record:?}") };
    (record.id(), event)
}

impl Machine {
    fn now(&self, passed_ms: u64) -> Now {
        Now { at: self.clock.plus_ms(passed_ms), mono_ns: passed_ms * 1_000_000 }
    }

    /// Notes what the node wrote down; returns what a controller makes of it.
    fn told(&mut self, event: &Event) -> Option<NodeReport> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is of no interest here")]
        match event {
            Event::ReleaseApplied(body) => {
                self.applied.push(body.generation);
                Some(NodeReport::Applied { generation: body.generation })
            }
            Event::ReleaseHealthy(body) => Some(NodeReport::Healthy {
                generation: body.generation,
                release: body.release,
                running: body.running,
                ready_ms: body.ready_ms,
                held_ms: body.held_ms,
            }),
            Event::InstanceStarted(_) => {
                self.started += 1;
                None
            }
            Event::ReleaseFailed(body) => panic!("{body:?}"),
            _ => None,
        }
    }

    fn answered(&mut self, bytes: &[u8]) {
        let sealed = envelope::read(bytes, ENVELOPE_BYTES_MAX).unwrap();
        let answer: Answer = codec::decode(sealed.unverified_payload()).unwrap();
        match answer.reply {
            Reply::Refused { code, .. } => self.refused.push(code),
            Reply::Outcome { outcome, .. } => self.outcomes.push(outcome),
            _ => {}
        }
    }

    /// Returns the release that runs and is healthy.
    fn runs(&self) -> Option<ReleaseId> {
        let known = self.node.state().releases().get(&"web".parse().unwrap())?;
        known.current.as_ref().filter(|mark| mark.healthy).map(|mark| mark.release)
    }
}

/// What changes at once.
const QUICK: &str = "min_healthy_time = \"10s\"\nbake_time = \"0s\"\non_unreachable = \"skip\"\n\
     max_unreachable = 1\n";

#[test]
fn a_rolling_restart_of_many_hours_completes_though_its_key_ends_in_the_first_and_leaders_die() {
    let mut site = Site::of(40);
    let slow = "max_parallel = 1\nmin_healthy_time = \"4m\"\nbake_time = \"8m\"\n\
        healthy_deadline = \"10m\"\nprogress_deadline = \"30m\"\n";
    let first = wish(1, slow, BEGIN);
    let release = first.0.action.release();
    let mut driven = site.open(first);
    let mut next_death_ms = 50 * MINUTE_MS;
    let verdict = site.complete(&mut driven, |site, driven| {
        if site.passed_ms >= next_death_ms {
            next_death_ms += 50 * MINUTE_MS;
            site.take_over(driven);
        }
    });
    assert_eq!(verdict, Verdict::Succeeded);
    let hours = site.passed_ms / HOUR_MS;
    assert!((7..12).contains(&hours) && site.term > 7, "{hours} hours, term {}", site.term);
    for (name, machine) in &site.machines {
        assert_eq!(machine.applied, [Generation(1)], "{name}: {:?}", machine.refused);
        assert_eq!((machine.started, machine.runs()), (1, release), "{name}");
    }
}

#[test]
fn a_machine_in_1970_takes_an_order_once_whatever_its_clock_is_set_to_then() {
    let mut site = Site::of(2);
    // No battery and no time server: 20 s after the power came its clock says so.
    site.machine(2).clock = UnixMicros(20_000_000);
    let mut driven = site.open(wish(1, QUICK, BEGIN));
    assert_eq!(site.complete(&mut driven, |_, _| ()), Verdict::Succeeded);
    for (clock, term) in [(0, 1), (20_000_000, 2), (BEGIN.0, 3), (BEGIN.0 * 2, 3), (0, 4)] {
        site.machine(2).clock = UnixMicros(clock);
        site.term = term;
        for wave in [1, 2, 2] {
            site.bring(&driven, &name_of(2), (Step::Apply, wave));
        }
        site.an_hour_passes();
    }
    let machine = site.machine(2);
    assert_eq!((machine.applied.as_slice(), machine.started), (&[Generation(1)][..], 1));
    assert!(machine.refused.is_empty(), "{:?}", machine.refused);
    let is_done = |it: &Outcome| matches!(it, Outcome::Done { .. });
    assert!(machine.outcomes.len() > 5 && machine.outcomes.iter().all(is_done));
}

#[test]
fn a_clock_that_is_set_right_in_the_middle_of_an_order_neither_fails_nor_hurries_it() {
    for clock in [UnixMicros(20_000_000), UnixMicros(BEGIN.0 * 2)] {
        let mut site = Site::of(2);
        site.machine(2).clock = clock;
        let held = "min_healthy_time = \"2m\"\nbake_time = \"0s\"\n";
        let mut driven = site.open(wish(1, held, BEGIN));
        let mut set_ms = None;
        let verdict = site.complete(&mut driven, |site, _| {
            let machine = site.machine(2);
            if set_ms.is_none() && machine.applied.len() == 1 {
                machine.clock = BEGIN;
                set_ms = Some(site.passed_ms);
            }
        });
        assert_eq!(verdict, Verdict::Succeeded);
        let held_ms = site.passed_ms - set_ms.expect("it was set on the way");
        assert!(held_ms > 100_000, "it had to hold for two minutes and held for {held_ms} ms");
    }
}

#[test]
fn a_machine_that_was_away_for_45_days_runs_what_is_desired_now_though_the_key_ended_long_ago() {
    let mut site = Site::of(3);
    let mut first = site.open(wish(1, QUICK, BEGIN));
    assert_eq!(site.complete(&mut first, |_, _| ()), Verdict::Succeeded);
    site.machine(3).is_away = true;
    let mut missed = site.open(wish(3, QUICK, site.at()));
    assert_eq!(site.complete(&mut missed, |_, _| ()), Verdict::Succeeded);
    let last = wish(5, QUICK, site.at());
    let desired = last.0.action.release();
    let mut driven = site.open(last);
    assert_eq!(site.complete(&mut driven, |_, _| ()), Verdict::Succeeded);
    assert!(site.passed_ms < KEY_MS, "the job was done while its key was good");

    assert_eq!(
        site.place(&[&first, &missed, &driven]),
        [],
        "nothing is ordered of a node that is away"
    );
    site.passed_ms += 45 * DAY_MS;
    site.machine(3).is_away = false;
    let ordered = site.place(&[&first, &missed, &driven]);
    assert_eq!(ordered, [(Generation(5), name_of(3), Step::Apply)]);
    site.an_hour_passes();
    assert_eq!(site.place(&[&first, &missed, &driven]), [], "it has what is desired");
    let machine = site.machine(3);
    assert_eq!((machine.runs(), machine.refused.as_slice()), (desired, &[][..]));
    assert_eq!(machine.applied, [Generation(1), Generation(5)], "not what it missed");

    // What it missed comes no more, and neither does what the key signs today, or dates back.
    site.bring(&missed, &name_of(3), (Step::Apply, 2));
    let now = (site.at(), ROSTER);
    for iat in [site.at(), BEGIN.plus_ms(KEY_MS - 1)] {
        let wish = sealed(&wish(7, QUICK, iat).0);
        let objection = site.gate.request(&wish, Way::Bus, now).unwrap().verified.objection;
        assert_eq!(objection.map(|refusal| refusal.code), Some(Code::KEY_OUT_OF_TIME));
        let late = Driven { wish, accepted_at: site.at(), ..driven.clone() };
        site.bring(&late, &name_of(3), (Step::Apply, 2));
    }
    site.an_hour_passes();
    let machine = site.machine(3);
    let codes = [Code::STALE_GENERATION, Code::KEY_OUT_OF_TIME, Code::KEY_OUT_OF_TIME];
    assert_eq!(
        (machine.refused.clone(), machine.runs()),
        (codes.map(|it| it.to_string()).to_vec(), desired)
    );
}
