//! The negative control: a small fleet whose logs are sound, each fault put into it, and each one found.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;
use smgr::domain::event::Desired;
use smgr::domain::id::{Digest, EpochId, Generation, IntentId, Kid, Seq};
use smgr::domain::release::{ReleaseId, Step};
use smgr::domain::rollout::Verdict;
use smgr::domain::time::UnixMicros;
use smgr::wire::key::digest_of;

use super::read::{Arrival, Copies};
use super::{Again, Entry, Evidence, Fact, Run, Turn, Turned, Wave, Wish, judge};

const KEY: Kid = Kid([1; 16]);
const FILES: IntentId = IntentId([1; 16]);
const FIRST: IntentId = IntentId([3; 16]);
const SECOND: IntentId = IntentId([5; 16]);
const BAD: IntentId = IntentId([7; 16]);

fn release(number: u8) -> ReleaseId {
    ReleaseId(Digest([number; 32]))
}

fn spec(number: u8) -> Digest {
    Digest([number; 32])
}

fn run(number: u64) -> Run {
    Run { service: "web".to_owned(), slot: 0, number }
}

fn entry(at: u64, intent: Option<IntentId>, fact: Fact) -> Entry {
    Entry { at: UnixMicros(at), service: Some("web".to_owned()), intent, fact }
}

fn accepted(intent: IntentId, wish: Wish) -> Fact {
    let is_own = wish == Wish::Files;
    let digest = Digest(intent.0.repeat(2).try_into().expect("16 and 16 bytes"));
    let key = (!is_own).then_some(KEY);
    Fact::Accepted { intent, wish, key, is_own, digest, until: UnixMicros(1_000) }
}

fn wished(intent: IntentId) -> Fact {
    let generation = Generation(intent.0[0].into());
    accepted(intent, Wish::Release { generation, back_to: None })
}

fn ordered(intent: IntentId, wave: u16) -> Fact {
    Fact::Ordered {
        generation: Generation(intent.0[0].into()),
        step: Step::Apply,
        intent,
        plan: spec(intent.0[0]),
        term: 2,
        controller: "c1".to_owned(),
        wave,
    }
}

fn applied(number: u8, step: Step, left: u8, now: u8) -> Fact {
    let generation = Generation(number.into());
    let (left, now, spec) = (release(left), Some(release(now)), spec(now));
    Fact::Applied { generation, step, left, now, spec }
}

fn ran(intent: IntentId) -> Fact {
    Fact::Ran { intent, action: "warm".to_owned() }
}

fn healthy(number: u8) -> Fact {
    Fact::Healthy { generation: Generation(number.into()), release: release(number) }
}

fn added(number: u8) -> Fact {
    Fact::Added { spec: spec(number), desired: Desired::Running, is_file: false }
}

/// A node that takes two releases up, the second with a handover.
fn node(wave: u16, at: u64) -> Vec<Entry> {
    let by = |intent, at, facts: Vec<Fact>| {
        facts.into_iter().map(move |fact| entry(at, Some(intent), fact)).collect::<Vec<_>>()
    };
    let starts = |number, is_beside| Fact::Starting { run: run(number), is_beside };
    let began = |number, of| Fact::Started { run: run(number), spec: spec(of) };
    let mut log = vec![entry(1, None, Fact::AgentBegan)];
    log.push(entry(1, None, accepted(FILES, Wish::Files)));
    log.push(entry(1, Some(FILES), Fact::Executed { intent: FILES }));
    let first = vec![ordered(FIRST, wave), wished(FIRST), applied(3, Step::Apply, 3, 3), added(3)];
    log.extend(by(FIRST, at, first));
    log.extend(by(FIRST, at, vec![starts(1, false), began(1, 3), healthy(3)]));
    log.push(entry(at, None, Fact::Exited { run: run(1), again: Again::Later }));
    log.push(entry(at, None, starts(2, false)));
    log.push(entry(at, None, began(2, 3)));
    log.extend(by(FIRST, at, vec![Fact::Executed { intent: FIRST }]));
    let second = vec![ordered(SECOND, wave), wished(SECOND), applied(5, Step::Apply, 5, 5)];
    log.extend(by(SECOND, at + 100, second));
    log.extend(by(SECOND, at + 100, vec![added(5), starts(3, true), began(3, 5)]));
    let relieved = Fact::HandedOver { run: run(3), from: 2 };
    log.extend(by(
        SECOND,
        at + 100,
        vec![relieved, Fact::Exited { run: run(2), again: Again::No }],
    ));
    log.extend(by(SECOND, at + 100, vec![healthy(5), Fact::Executed { intent: SECOND }]));
    log
}

fn planned(intent: IntentId, back_to: Option<u8>) -> Turn {
    let wave = |is_canary, node: &str| Wave { is_canary, nodes: vec![node.to_owned()] };
    Turn::Planned {
        service: "web".to_owned(),
        generation: Generation(intent.0[0].into()),
        release: release(intent.0[0]),
        back_to: back_to.map(release),
        allowed: 0,
        plan: spec(intent.0[0]),
        waves: vec![wave(true, "n1"), wave(false, "n2")],
        term: 2,
    }
}

/// Two nodes that follow two releases and leave a third one; a controller that was stuck while another led.
fn good() -> Evidence {
    let (mut n1, mut n2) = (node(1, 20), node(2, 30));
    let starts = |number, is_beside| Fact::Starting { run: run(number), is_beside };
    let bad = [
        ordered(BAD, 1),
        wished(BAD),
        applied(7, Step::Apply, 7, 7),
        added(7),
        starts(4, true),
        Fact::Started { run: run(4), spec: spec(7) },
        Fact::Exited { run: run(4), again: Again::No },
        applied(8, Step::Return, 7, 5),
        added(5),
        starts(5, true),
        Fact::Started { run: run(5), spec: spec(5) },
        Fact::HandedOver { run: run(5), from: 3 },
        Fact::Exited { run: run(3), again: Again::No },
        Fact::Returned { generation: Generation(8), to: Some(release(5)) },
        Fact::Executed { intent: BAD },
    ];
    n1.extend(bad.map(|fact| entry(220, Some(BAD), fact)));
    for (log, last) in [(&mut n1, 5), (&mut n2, 3)] {
        log.push(entry(300, None, Fact::Exited { run: run(last), again: Again::No }));
        log.push(entry(300, None, Fact::AllDown));
    }
    let turn = |at, rollout, turn| Turned { at: UnixMicros(at), rollout, turn };
    let wave = |wave| Turn::WaveStarted { wave, step: Step::Apply };
    let mut c1 = vec![turn(1, None, Turn::Led { term: 2 })];
    for (intent, at) in [(FIRST, 10), (SECOND, 110)] {
        let well = [
            (0, planned(intent, None)),
            (0, wave(1)),
            (15, Turn::Healthy("n1".to_owned())),
            (15, Turn::WavePassed { wave: 1 }),
            (16, wave(2)),
            (30, Turn::Healthy("n2".to_owned())),
            (30, Turn::WavePassed { wave: 2 }),
            (31, Turn::Ended(Verdict::Succeeded)),
        ];
        c1.extend(well.map(|(after, it)| turn(at + after, Some(intent), it)));
    }
    let ill = [
        planned(BAD, Some(5)),
        wave(1),
        Turn::Failed { node: "n1".to_owned(), is_counted: true },
        Turn::Exceeded,
    ];
    c1.extend(ill.map(|it| turn(210, Some(BAD), it)));
    // Not in force: another one leads by then.
    c1.push(turn(240, Some(BAD), Turn::Waits));
    c1.push(turn(250, None, Turn::SteppedDown { term: 2 }));
    let went_on = [
        Turn::TakenOver { term: 3, after: 4 },
        Turn::Back { to: release(5) },
        Turn::WaveStarted { wave: 1, step: Step::Return },
        Turn::Ended(Verdict::RolledBack),
    ];
    let mut c2 = vec![turn(230, None, Turn::Led { term: 3 })];
    c2.extend(went_on.map(|it| turn(231, Some(BAD), it)));
    let digest = |it: IntentId| Digest(it.0.repeat(2).try_into().expect("16 and 16 bytes"));
    Evidence {
        nodes: [("n1".to_owned(), n1), ("n2".to_owned(), n2)].into(),
        controllers: [("c1".to_owned(), c1), ("c2".to_owned(), c2)].into(),
        signed: [FIRST, SECOND, BAD].map(|it| (it, Some(digest(it)))).into(),
        keys: [KEY].into(),
        ..Evidence::default()
    }
}

impl Evidence {
    /// Adds a fact before the end of a node's log.
    fn on(&mut self, node: &str, fact: Fact) {
        self.by(node, None, fact);
    }

    fn by(&mut self, node: &str, intent: Option<IntentId>, fact: Fact) {
        let log = self.nodes.get_mut(node).unwrap();
        log.insert(log.len() - 2, entry(290, intent, fact));
    }

    fn without(&mut self, node: &str, fact: &Fact) {
        let log = self.nodes.get_mut(node).unwrap();
        let before = log.len();
        log.retain(|entry| entry.fact != *fact);
        assert!(log.len() < before, "{fact:?} is not there");
    }

    fn change(&mut self, node: &str, fact: &Fact, to: Fact) {
        let mut log = self.nodes.get_mut(node).unwrap().iter_mut();
        log.find(|entry| entry.fact == *fact).unwrap().fact = to;
    }

    fn unasked(&mut self, node: &str, fact: &Fact) {
        let mut log = self.nodes.get_mut(node).unwrap().iter_mut();
        log.find(|entry| entry.fact == *fact).unwrap().intent = None;
    }

    fn unsaid(&mut self, rollout: IntentId, turn: &Turn) {
        let log = self.controllers.get_mut("c1").unwrap();
        let before = log.len();
        log.retain(|it| it.rollout != Some(rollout) || it.turn != *turn);
        assert!(log.len() < before, "{turn:?} is not there");
    }

    fn signs(&mut self, digest: Option<Digest>) {
        self.signed.insert(FIRST, digest);
    }

    fn says(&mut self, controller: &str, rollout: IntentId, turn: Turn) {
        let at = UnixMicros(245);
        let turned = Turned { at, rollout: Some(rollout), turn };
        self.controllers.get_mut(controller).unwrap().push(turned);
    }
}

/// Puts a fault in.
type Spoil = fn(&mut Evidence);

fn starting(number: u64, is_beside: bool) -> Fact {
    Fact::Starting { run: run(number), is_beside }
}

#[test]
fn each_fault_of_a_node_that_is_put_in_is_found() {
    assert_eq!(judge(&good()), Vec::<String>::new());
    let spoilt: &[(&str, Spoil)] = &[
        ("was taken twice", |it| it.on("n1", wished(FIRST))),
        ("has two outcomes", |it| it.on("n2", Fact::Executed { intent: FIRST })),
        ("outcome and was never", |it| it.on("n2", Fact::Executed { intent: BAD })),
        ("has no outcome", |it| it.without("n2", &Fact::Executed { intent: SECOND })),
        ("after its deadline", |it| {
            let late = it.nodes.get_mut("n2").unwrap().iter_mut();
            let outcome = Fact::Executed { intent: SECOND };
            late.filter(|it| it.fact == outcome).for_each(|it| it.at = UnixMicros(90_000_000));
        }),
        ("ran twice", |it| (0..2).for_each(|_| it.on("n1", ran(FIRST)))),
        ("ran and was not taken", |it| it.on("n2", ran(BAD))),
        ("which was never taken", |it| it.by("n2", Some(BAD), Fact::Desired(Desired::Running))),
        ("a spec that nobody wished", |it| it.unasked("n2", &added(5))),
        ("a spec that nobody wished", |it| {
            it.on("n2", Fact::Added { spec: spec(9), desired: Desired::Running, is_file: true });
        }),
        ("and nobody wished it", |it| it.on("n2", Fact::Desired(Desired::Stopped))),
        ("nobody wants web up", |it| {
            it.by("n2", Some(SECOND), Fact::Desired(Desired::Stopped));
            it.by("n2", Some(SECOND), starting(4, true));
        }),
        ("without a wish or a rule", |it| {
            let end = Fact::Exited { run: run(1), again: Again::Later };
            it.change("n2", &end, Fact::Exited { run: run(1), again: Again::No });
        }),
        ("a spec that is not in force", |it| {
            let began = Fact::Started { run: run(3), spec: spec(5) };
            it.change("n2", &began, Fact::Started { run: run(3), spec: spec(9) });
        }),
        ("was begun twice", |it| it.by("n2", Some(SECOND), starting(3, true))),
        ("while 3 ran, without a handover", |it| it.by("n2", Some(SECOND), starting(4, false))),
        ("beside 4, which was beside", |it| {
            it.by("n2", Some(SECOND), starting(4, true));
            it.by("n2", Some(SECOND), starting(5, true));
        }),
        ("began beside nothing", |it| {
            it.change("n2", &starting(1, false), starting(1, true));
        }),
        ("nothing began it", |it| it.without("n2", &starting(2, false))),
        ("was started twice", |it| it.on("n2", Fact::Started { run: run(3), spec: spec(5) })),
        ("ended and did not run", |it| it.on("n1", Fact::Exited { run: run(1), again: Again::No })),
        ("which was not so", |it| it.on("n1", Fact::HandedOver { run: run(3), from: 5 })),
        // A second run that is alive and never relieved the first.
        ("which was beside another", |it| {
            it.without("n1", &Fact::HandedOver { run: run(3), from: 2 });
        }),
        ("runs on after the end", |it| {
            it.without("n2", &Fact::Exited { run: run(3), again: Again::No });
        }),
        ("nobody wished it", |it| it.unasked("n2", &applied(5, Step::Apply, 5, 5))),
        ("was taken up after", |it| it.by("n2", Some(FIRST), applied(3, Step::Apply, 3, 3))),
        // The release that was left is taken up again by its old order.
        ("was taken up after", |it| it.by("n1", Some(BAD), applied(7, Step::Apply, 7, 7))),
        ("another release than", |it| {
            let right = applied(5, Step::Apply, 5, 5);
            it.change("n2", &right, applied(5, Step::Apply, 5, 3));
        }),
        ("returned to", |it| {
            let right = applied(8, Step::Return, 7, 5);
            it.change("n1", &right, applied(8, Step::Return, 7, 3));
        }),
        ("ended elsewhere", |it| {
            let to = |to| Fact::Returned { generation: Generation(8), to: Some(release(to)) };
            it.change("n1", &to(5), to(3));
        }),
        ("not what was taken up", |it| it.on("n1", healthy(7))),
        ("after one of 2", |it| {
            let Fact::Ordered { generation, step, intent, plan, controller, wave, .. } =
                ordered(SECOND, 2)
            else {
                return;
            };
            let term = 1;
            it.on("n2", Fact::Ordered { generation, step, intent, plan, term, controller, wave });
        }),
    ];
    all_are_found(spoilt);
}

#[test]
fn each_fault_between_logs_that_is_put_in_is_found() {
    let spoilt: &[(&str, Spoil)] = &[
        ("is nobody's", |it| it.keys.clear()),
        ("is nobody's", |it| it.on("n1", accepted(IntentId([9; 16]), Wish::Files).of_nobody())),
        ("no controller has wish", |it| it.signed.retain(|intent, _| *intent != FIRST)),
        ("does not hold", |it| it.signs(None)),
        ("does not hold", |it| it.signs(Some(spec(9)))),
        ("led in term 2", |it| {
            it.controllers.get_mut("c2").unwrap()[0].turn = Turn::Led { term: 2 };
        }),
        ("which it did not lead", |it| drop(it.controllers.get_mut("c1").unwrap().remove(0))),
        ("before any canary", |it| it.without("n1", &healthy(5))),
        ("two plans", |it| {
            let Fact::Ordered { generation, step, intent, term, controller, wave, .. } =
                ordered(SECOND, 2)
            else {
                return;
            };
            let plan = spec(99);
            it.on("n2", Fact::Ordered { generation, step, intent, plan, term, controller, wave });
        }),
        ("has no plan", |it| it.unsaid(SECOND, &planned(SECOND, None))),
        ("whose plan does not mean it", |it| {
            it.nodes.insert("n3".to_owned(), vec![entry(290, None, ordered(SECOND, 1))]);
        }),
        ("which had not begun", |it| {
            it.unsaid(SECOND, &Turn::WaveStarted { wave: 2, step: Step::Apply });
        }),
        ("began behind wave 0", |it| {
            it.unsaid(SECOND, &Turn::WaveStarted { wave: 1, step: Step::Apply });
        }),
        ("before the one before had passed", |it| {
            it.unsaid(SECOND, &Turn::WavePassed { wave: 1 });
        }),
        ("n1 has no verdict", |it| it.unsaid(SECOND, &Turn::Healthy("n1".to_owned()))),
        ("with 1 of 2 waves", |it| it.unsaid(SECOND, &Turn::WavePassed { wave: 2 })),
        ("though too many had failed", |it| {
            let log = it.controllers.get_mut("c1").unwrap();
            let failed = Turn::Failed { node: "n1".to_owned(), is_counted: true };
            let canary = |it: &&mut Turned| {
                it.rollout == Some(SECOND) && matches!(it.turn, Turn::Healthy(_))
            };
            log.iter_mut().find(canary).unwrap().turn = failed;
        }),
        ("says not what it waits for", |it| {
            it.unsaid(SECOND, &Turn::Ended(Verdict::Succeeded));
        }),
        ("stands behind its end", |it| it.says("c2", BAD, Turn::Healthy("n1".to_owned()))),
        ("began on the way back", |it| {
            let log = it.controllers.get_mut("c2").unwrap();
            let again = Turn::WaveStarted { wave: 2, step: Step::Apply };
            log.iter_mut().rfind(|it| matches!(it.turn, Turn::WaveStarted { .. })).unwrap().turn =
                again;
        }),
        ("n2 ends with", |it| {
            it.by("n2", Some(FIRST), applied(3, Step::Apply, 3, 3));
        }),
        ("n1 ends with", |it| {
            it.without("n1", &Fact::Returned { generation: Generation(8), to: Some(release(5)) });
        }),
        ("broken", |it| it.broken.push("broken".to_owned())),
    ];
    all_are_found(spoilt);
}

fn all_are_found(spoilt: &[(&str, Spoil)]) {
    for (what, spoil) in spoilt {
        let mut evidence = good();
        spoil(&mut evidence);
        let faults = judge(&evidence);
        assert!(faults.iter().any(|fault| fault.contains(what)), "{what}: {faults:?}");
    }
}

#[test]
fn two_that_led_at_once_are_seen_and_one_behind_the_other_are_not() {
    let mut evidence = good();
    assert_eq!(evidence.reigns_at_once().len(), 1);
    evidence.controllers.get_mut("c2").unwrap().iter_mut().for_each(|it| it.at.0 += 50);
    assert_eq!(evidence.reigns_at_once(), []);
}

#[test]
fn a_copy_with_a_gap_or_with_what_its_log_has_not_is_found() {
    let (epoch, rows) = (EpochId(1), ["a", "b", "c"].map(ByteBuf::from));
    let log = (1..).map(|seq| (epoch, Seq(seq))).zip(rows.iter().map(|row| digest_of(row)));
    let logs = BTreeMap::from([("n1".to_owned(), log.collect())]);
    let broken = |runs: &[(u64, &[ByteBuf])]| {
        let mut copies = Copies::default();
        for (first, rows) in runs {
            let (origin, first, rows) = ("n1".parse().unwrap(), Seq(*first), rows.to_vec());
            copies.take(&logs, Arrival::Run { origin, epoch, first, _place: 1, rows });
        }
        copies.broken.concat()
    };
    assert_eq!(broken(&[(1, &rows[..2]), (3, &rows[2..])]), "");
    assert!(broken(&[(1, &rows[..1]), (3, &rows[2..])]).contains("event 3 where 2 follows"));
    assert!(broken(&[(1, &rows[1..])]).contains("its log has another"));
    let more = [rows.as_slice(), &rows[..1]].concat();
    assert!(broken(&[(1, &more)]).contains("heard event 4"));
}

impl Fact {
    fn of_nobody(self) -> Self {
        match self {
            Self::Accepted { intent, wish, digest, until, .. } => {
                Self::Accepted { intent, wish, key: None, is_own: false, digest, until }
            }
            other => other,
        }
    }
}
