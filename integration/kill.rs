//! The kill test: parts are killed with SIGKILL under load, one after the other and together, and then three
//! witnesses are compared: the log, the services' own tally, and the services' log files.
//!
//! The short form is part of the suite. `scripts/chaos` runs the long one, of at least 40 kills of each kind:
//! `SMGR_KILLS` says how many.
#![expect(clippy::print_stdout, reason = "the figures are what the long form is run for")]

mod evidence;
mod judge;
mod load;
mod rig;

use std::time::{Duration, Instant};

use smgr::domain::event::{Exit, Outcome};
use smgr::domain::intent::Action;
use smgr::domain::time::UnixMicros;
use smgr::ipc::hello::Part;
use smgr::store::{self, Pin};
use tokio::time::sleep;

use crate::support::block_on;
use evidence::Evidence;
use load::Load;
use rig::Rig;

/// Which parts die together, and whether one of those that see an exit is left alive.
const WAYS: [(&[Part], bool); 5] = [
    (&[Part::Keeper], true),
    (&[Part::Agent], true),
    (&[Part::Uplink], true),
    (&[Part::Keeper, Part::Agent], false),
    (&[Part::Keeper, Part::Agent, Part::Uplink], false),
];

/// Kills of each kind in the short form.
const KILLS_SHORT: usize = 4;

/// The stretch of time in which parts were killed in one way.
struct Stretch {
    parts: &'static [Part],
    witnessed: bool,
    from: UnixMicros,
    to: UnixMicros,
    kills: usize,
}

mod heavy {
    use super::*;

    #[test]
    fn nothing_is_lost_and_nothing_is_doubled_whoever_dies() {
        let kills = std::env::var("SMGR_KILLS").ok().and_then(|text| text.parse().ok());
        block_on(run(kills.unwrap_or(KILLS_SHORT)));
    }
}

async fn run(kills: usize) {
    let began = Instant::now();
    let mut rig = Rig::start().await;
    let replay_after = if kills > KILLS_SHORT { 15 } else { 3 };
    let mut load = Load::connect(&rig, Duration::from_secs(replay_after)).await;
    load.during(&rig, sleep(Duration::from_secs(2))).await;

    let mut stretches = Vec::new();
    for (parts, witnessed) in WAYS {
        let from = UnixMicros(rig::now_us());
        load.during(&rig, kill_all(&rig, parts, kills)).await;
        let to = UnixMicros(rig::now_us());
        stretches.push(Stretch { parts, witnessed, from, to, kills });
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
    for stretch in &stretches {
        report(stretch, &evidence, &mut verdict.faults);
    }
    println!(
        "{} intents sent twice, {} again later, {} refused; {verdict:#?}\ntook {:.1?}",
        load.sent.len(),
        load.replayed,
        load.sent.values().filter(|sent| sent.refused.is_some()).count(),
        began.elapsed(),
    );
    // A refusal or a failure is no fault here, but it has to have a reason that one understands.
    let mut reasons: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    let refused = load.sent.values().filter_map(|sent| sent.refused.clone());
    let failed = evidence.outcomes.iter().filter_map(|(_, outcome, _)| match outcome {
        Outcome::Failed { code, why, .. } => Some(format!("failed {code}: {why}")),
        Outcome::Unknown { why } => Some(format!("unknown: {why}")),
        Outcome::Done { .. } => None,
    });
    refused.chain(failed).for_each(|reason| *reasons.entry(reason).or_default() += 1);
    println!("{reasons:#?}");
    if !verdict.faults.is_empty() {
        let folder = rig.keep();
        panic!("{} faults; the node is kept in {}", verdict.faults.len(), folder.display());
    }
}

/// Kills the parts again and again, at moments that follow no pattern.
async fn kill_all(rig: &Rig, parts: &'static [Part], kills: usize) {
    for _ in 0..kills {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let pause = 500 + u64::from(u16::from_le_bytes(random)) % 1500;
        sleep(Duration::from_millis(pause)).await;
        rig.kill(parts).await;
    }
    sleep(Duration::from_secs(2)).await;
}

/// Whatever the node has told somebody has to be so in the log.
fn against_the_answers(load: &Load, evidence: &Evidence, faults: &mut Vec<String>) {
    let accepted: std::collections::BTreeSet<_> =
        evidence.accepted.iter().map(|(id, _)| *id).collect();
    let outcomes: std::collections::BTreeMap<_, _> =
        evidence.outcomes.iter().map(|(id, outcome, _)| (*id, outcome)).collect();
    for (id, sent) in &load.sent {
        if sent.was_accepted && !accepted.contains(id) {
            faults.push(format!("{id} was said to be accepted and is not in the log"));
        }
        if let Some(told) = &sent.outcome
            && outcomes.get(id) != Some(&told)
        {
            faults.push(format!("{id} was said to be {told:?}; the log: {:?}", outcomes.get(id)));
        }
    }
}

fn verify(rig: &Rig, beat: &smgr::wire::payload::Beat, faults: &mut Vec<String>) {
    let pin = Pin { epoch: beat.epoch, size: beat.seq.0, root: beat.root };
    let name = format!("smgr/{}/{}", rig::fleet(), rig::node());
    let key = rig.keys.node.public().for_notes(&name).unwrap();
    let report = store::verify(&rig.log(), &[key], &[pin], |_, _| Ok(())).unwrap();
    if !report.is_sound() {
        faults.push(format!("the log does not verify: {report:?}"));
    }
}

/// Says what nobody can tell about a stretch; there is nothing of it where somebody was left to see.
fn report(stretch: &Stretch, evidence: &Evidence, faults: &mut Vec<String>) {
    let within = |at: &UnixMicros| stretch.from <= *at && *at <= stretch.to;
    let exits: Vec<_> = evidence.exited.iter().filter(|(_, _, at)| within(at)).collect();
    let unseen = exits.iter().filter(|(_, exit, _)| *exit == Exit::Unknown).count();
    let outcomes: Vec<_> = evidence.outcomes.iter().filter(|(_, _, at)| within(at)).collect();
    let untold: Vec<_> = outcomes
        .iter()
        .filter(|(_, outcome, _)| matches!(outcome, Outcome::Unknown { .. }))
        .collect();
    let names: Vec<&str> = stretch.parts.iter().map(|part| part.name()).collect();
    println!(
        "{} kills of {}: {} outcomes, {} unknown; {} exits, {unseen} unknown; {:.1} s",
        stretch.kills,
        names.join(" and "),
        outcomes.len(),
        untold.len(),
        exits.len(),
        stretch.to.ms_since(stretch.from) as f64 / 1000.0,
    );
    if stretch.witnessed && unseen + untold.len() > 0 {
        let of = names.join(" and ");
        faults.push(format!("kills of {of} alone: {unseen} exits and {untold:?} are unknown"));
    }
}
