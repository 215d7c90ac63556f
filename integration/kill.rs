//! The kill test: parts are killed with SIGKILL under load, one after the other and together, and then three
//! witnesses are compared: the log, the services' own tally, and the services' log files.
//!
//! The short form is part of the suite. `scripts/chaos` runs the long one, of at least 40 kills of each kind, which
//! also has to reach its rates: `SMGR_KILLS` says how many kills, and that it is the long one.
#![expect(clippy::print_stdout, reason = "the long form takes minutes and says how far it is")]

mod evidence;
mod judge;
mod load;
mod rig;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use smgr::domain::intent::Action;
use smgr::domain::time::UnixMicros;
use smgr::ipc::hello::Part;
use smgr::store::{self, Pin};
use smgr::wire::payload::Beat;
use tokio::time::sleep;

use crate::support::block_on;
use evidence::Evidence;
use load::Load;
use rig::Rig;
use summary::Stretch;

/// Which parts die together, and whether one of those that see an exit is left alive.
const WAYS: [(&[Part], bool); 5] = [
    (&[Part::Keeper], true),
    (&[Part::Agent], true),
    (&[Part::Uplink], true),
    (&[Part::Keeper, Part::Agent], false),
    (&[Part::Keeper, Part::Agent, Part::Uplink], false),
];

/// How long a run is, and what it has to reach.
struct Form {
    /// Kills of each kind.
    kills: usize,
    /// How long the parts are left alive between two kills, in milliseconds.
    pause_ms: Range<u64>,
    /// How much later some messages come once more.
    replay_after: Duration,
    /// Whether the rates have to be reached. A machine that runs other tests beside this one need not.
    has_rates: bool,
}

impl Form {
    const SHORT: Self = Self {
        kills: 4,
        pause_ms: 500..2000,
        replay_after: Duration::from_secs(3),
        has_rates: false,
    };

    fn long(kills: usize) -> Self {
        let replay_after = Duration::from_secs(15);
        Self { kills, pause_ms: 300..4500, replay_after, has_rates: true }
    }
}

mod heavy {
    use super::*;

    #[test]
    fn nothing_is_lost_and_nothing_is_doubled_whoever_dies() {
        let kills = std::env::var("SMGR_KILLS").ok();
        let kills = kills.map(|text| text.parse().expect("SMGR_KILLS is a number"));
        block_on(run(kills.map_or(Form::SHORT, Form::long)));
    }
}

async fn run(form: Form) {
    let began = Instant::now();
    let mut rig = Rig::start().await;
    let mut load = Load::connect(&rig, form.replay_after).await;
    // What is signed before the node's log has begun is refused, and rightly so.
    load.beat().await;
    // Load on a node of which nothing dies yet.
    load.during(&rig, sleep(Duration::from_secs(2))).await;

    let mut stretches = Vec::new();
    for (parts, witnessed) in WAYS {
        let from = UnixMicros(rig::now_us());
        let away = load.during(&rig, kill_all(&rig, parts, &form, began)).await;
        let to = UnixMicros(rig::now_us());
        stretches.push(Stretch { parts, witnessed, from, to, away });
    }
    load.settle(&rig, Duration::from_secs(60)).await;

    // Services that end by themselves would go on to change the state that is to be compared.
    for number in 0..rig::MORTALS {
        let service = format!("mortal-{number}").parse().unwrap();
        load.ask(&rig, Action::Stop { service }).await;
    }
    let beat = loop {
        let (first, second) = (load.beat().await, load.beat().await);
        if first.seq == second.seq {
            break second;
        }
    };
    rig.stop();

    let mut evidence = Evidence::default();
    let (at_beat, _) = evidence.read_log(&rig.log(), beat.seq);
    evidence.read_tally(&rig.tally());
    evidence.read_lines(&rig.service_logs());
    let mut verdict = judge::judge(&evidence);
    verdict.faults.append(&mut load.contradictions);
    if at_beat != Some(beat.state_hash) {
        verdict.faults.push("the log does not lead to the live state".to_owned());
    }
    against_the_answers(&load, &evidence, &mut verdict.faults);
    verify(&rig, &beat, &mut verdict.faults);
    let (unseen, slow) = summary::table(&stretches, &load, &evidence, &verdict);
    verdict.faults.extend(unseen);
    verdict.faults.extend(slow.into_iter().filter(|_| form.has_rates));
    let overlooked = judge::overlooked(&evidence);
    println!("{} tamperings of this evidence were shown to the judge", judge::TAMPERINGS.len());
    verdict.faults.extend(overlooked.into_iter().map(|what| format!("overlooked: {what}")));
    println!("took {:.1?}", began.elapsed());
    let faults = &verdict.faults;
    let folder = rig.folder().display();
    assert!(faults.is_empty(), "{} faults: {faults:#?}\nthe node is in {folder}", faults.len());
}

/// Kills the parts again and again, at moments that follow no pattern; returns how long they were away.
async fn kill_all(rig: &Rig, parts: &[Part], form: &Form, began: Instant) -> Vec<Duration> {
    let mut away = Vec::new();
    let names: Vec<&str> = parts.iter().map(|part| part.name()).collect();
    for number in 1..=form.kills {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let span = form.pause_ms.end - form.pause_ms.start;
        let pause = form.pause_ms.start + u64::from(u16::from_le_bytes(random)) % span;
        // The moment of a kill is what varies.
        sleep(Duration::from_millis(pause)).await;
        away.push(rig.kill(parts).await);
        if number % 10 == 0 {
            let names = names.join("+");
            println!("{:>6.0} s  {number} kills of {names}", began.elapsed().as_secs_f64());
        }
    }
    // Load on the node that came back last.
    sleep(Duration::from_secs(2)).await;
    away
}

/// Whatever the node has told somebody has to be so in the log.
fn against_the_answers(load: &Load, evidence: &Evidence, faults: &mut Vec<String>) {
    let accepted: BTreeSet<_> = evidence.accepted.iter().map(|(id, _)| *id).collect();
    let outcomes: BTreeMap<_, _> =
        evidence.outcomes.iter().map(|(id, outcome, _)| (*id, outcome)).collect();
    for (id, sent) in &load.sent {
        if sent.was_accepted && !accepted.contains(id) {
            faults.push(format!("{id} was said to be accepted and is not in the log"));
        }
        if let Some(why) = &sent.refused
            && accepted.contains(id)
        {
            faults.push(format!("{id} was refused ({why}) and is in the log"));
        }
        if let Some(told) = &sent.outcome
            && outcomes.get(id) != Some(&told)
        {
            faults.push(format!("{id} was said to be {told:?}; the log: {:?}", outcomes.get(id)));
        }
    }
}

fn verify(rig: &Rig, beat: &Beat, faults: &mut Vec<String>) {
    let pin = Pin { epoch: beat.epoch, size: beat.seq.0, root: beat.root };
    let name = format!("smgr/{}/{}", rig::fleet(), rig::node());
    let key = rig.keys.node.public().for_notes(&name).unwrap();
    let report = store::verify(&rig.log(), &[key], &[pin], |_, _| Ok(())).unwrap();
    if !report.is_sound() {
        faults.push(format!("the log does not verify: {report:?}"));
    }
}
