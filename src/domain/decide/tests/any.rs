//! Any inputs in any order: replay and baseline give the live state, and what must hold holds.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::health::rule;
use super::site::{Site, ended, id, intent, kept, kept_run, service, spec};
use crate::domain::effect::{Act, Hook};
use crate::domain::event::{Event, Exit};
use crate::domain::health::Verdict;
use crate::domain::id::RunId;
use crate::domain::input::{ActionEnd, Delivery, Input};
use crate::domain::intent::Action;
use crate::domain::node::Service;
use crate::domain::signal::Signal;
use crate::domain::spec::{self, Millis, OnFailure, ReadyBy, ReloadBy, Spec, UpdateMethod};
use crate::domain::time::UnixMicros;

/// An input, by numbers that are made to fit the node as it stands.
type Draw = (u8, u8, u8, u16);

fn web() -> Spec {
    let mut web = spec();
    web.instances = 2;
    web.ready.by = ReadyBy::Notify;
    web.stop.drain = Millis(100);
    web.reload.by = ReloadBy::Notify(Signal::HUP);
    web.health.insert("app".parse().unwrap(), rule(OnFailure::Unready));
    web.health.insert("life".parse().unwrap(), rule(OnFailure::Restart));
    web.restart.limit = 2;
    web.depends_on.insert(service("db"), spec::DependsOn::default());
    web.action.insert("clear".parse().unwrap(), spec::Action::new(Vec::new()));
    web
}

fn action(number: u8) -> Action {
    let service = service(if number.is_multiple_of(2) { "web" } else { "db" });
    match number / 2 % 9 {
        0 | 1 => Action::Start { service },
        2 => Action::Stop { service },
        3 => Action::Restart { service },
        4 => Action::Reload { service },
        5 => Action::Signal { service, signal: 10 },
        6 => Action::Run {
            service,
            action: "clear".parse().unwrap(),
            params: BTreeMap::new(),
            confirmed: false,
        },
        7 => Action::Apply { services: Vec::new() },
        _ => Action::Shutdown { leave_running: number.is_multiple_of(4) },
    }
}

fn exit(number: u8) -> Exit {
    match number % 4 {
        0 => Exit::Code(0),
        1 => Exit::Code(1),
        2 => Exit::Signal { signal: 15, core_dumped: false },
        _ => Exit::Unknown,
    }
}

fn input(site: &mut Site, (kind, a, b, later): Draw) -> Input {
    site.later(u64::from(later) % 20_000);
    let name = ["web/0", "web/1", "db/0", "web/7"][usize::from(a % 4)];
    let last = site.node.instance(&id(name)).map_or(0, |slot| slot.last_run.0);
    // Mostly the present run, sometimes one before or after it.
    let run = RunId((last + u64::from(b % 8 == 0)).saturating_sub(u64::from(b % 8 == 1)));
    let (instance, asked) = (id(name), intent(b % 12));
    match kind % 22 {
        0..3 => {
            let mut wish = site.wish_of(b % 12, action(a));
            // An id stands for one wish, so it has one expiry.
            wish.expires_at =
                UnixMicros(1_000_000_000).plus_ms(300_000 + 10_000 * u64::from(b % 12));
            Input::Wish(wish)
        }
        3..6 => Input::Started {
            instance,
            run,
            pid: 5,
            pidfd_inode: 5,
            spec: crate::domain::id::Digest([b % 3; 32]),
        },
        6 => Input::StartFailed {
            instance,
            run,
            step: "exec".to_owned(),
            errno: 2,
            why: "no".to_owned(),
        },
        7 | 8 => Input::Ready { instance, run, how: "notify".to_owned() },
        9 | 10 => {
            let mut ended = ended(exit(b), u64::from(later));
            ended.tree_empty = !b.is_multiple_of(3);
            Input::Exited { instance, run, pid: 5, ended }
        }
        11 => Input::TreeGone { instance, run },
        12 | 13 => match site
            .node
            .instance(&instance)
            .and_then(|slot| slot.deadlines(&instance).into_iter().nth(usize::from(b % 5 == 0)))
        {
            Some((timer, at)) => Input::Timer { timer, at },
            None => {
                Input::Timer { timer: crate::domain::effect::Timer::Intent(asked), at: site.now }
            }
        },
        14 => {
            let delivery =
                [Delivery::Delivered, Delivery::Gone, Delivery::Lost][usize::from(b % 3)];
            Input::SignalDelivered { intent: asked, instance, delivery }
        }
        15 => Input::HookEnded { instance, run, hook: Hook::Reload, exit: exit(b) },
        16 => Input::ActionStarted { intent: asked },
        17 => Input::ActionEnded {
            intent: asked,
            end: ActionEnd::Exited { exit: exit(b), ran_ms: 1 },
        },
        20 | 21 => Input::Checked {
            instance,
            run,
            check: ["app", "life", "gone"][usize::from(a / 4 % 3)].parse().unwrap(),
            verdict: Verdict {
                in_a_row: 1,
                answer: if b.is_multiple_of(2) { Ok(()) } else { Err("refused".to_owned()) },
            },
        },
        18 if b % 4 == 0 => Input::SpecRemoved { service: id(name).service, intent: None },
        18 => Input::SpecAdopted {
            service: id(name).service,
            digest: crate::domain::id::Digest([b % 3; 32]),
            origin: "x".to_owned(),
            intent: Some(asked),
            keeps: Some(crate::domain::id::Digest([a % 3; 32])),
            keys: Vec::new(),
        },
        _ => {
            let end = (b.is_multiple_of(2)).then(|| ended(exit(b), 10));
            let runs =
                if b % 3 == 0 { Vec::new() } else { vec![kept_run(name, run.0.max(1), end)] };
            Input::Reconcile(kept(u64::from(a % 3), b.is_multiple_of(2), runs))
        }
    }
}

fn check(site: &Site) {
    assert_eq!(site.replayed(), site.node, "replay");
    assert_eq!(site.restored(), site.node, "baseline");
    let mut taken: BTreeMap<_, (u32, u32)> = BTreeMap::new();
    let mut lives: BTreeMap<_, Vec<RunId>> = BTreeMap::new();
    let mut beside: BTreeMap<_, RunId> = BTreeMap::new();
    for (_, context, event) in &site.log {
        match event {
            Event::IntentAccepted(body) => taken.entry(body.intent).or_default().0 += 1,
            Event::IntentExecuted(body) => taken.entry(body.intent).or_default().1 += 1,
            Event::InstanceStarted(_) => {
                let (slot, run) = (context.instance_id().unwrap(), context.run.unwrap());
                let is_beside = beside.get(&slot) == Some(&run);
                let before = lives.entry(slot).or_default();
                assert!(before.len() <= usize::from(is_beside), "a start without an end before it");
                before.push(run);
            }
            Event::InstanceStarting(body) => {
                let (slot, run) = (context.instance_id().unwrap(), context.run.unwrap());
                if body.beside.is_some() {
                    beside.insert(slot, run);
                }
            }
            Event::InstanceExited(_) => {
                let before = lives.entry(context.instance_id().unwrap()).or_default();
                let ended = before.iter().position(|run| Some(*run) == context.run);
                before.remove(ended.expect("an end without its start"));
            }
            _ => {}
        }
    }
    for (intent, (accepted, executed)) in taken {
        let is_open = site.node.seen().get(&intent).is_some_and(|record| record.open().is_some());
        assert_eq!((accepted, executed), (1, u32::from(!is_open)), "{intent}");
    }
}

/// Each spawn names a run that the node is waiting for.
fn check_effects(site: &Site) {
    for effect in &site.last.effects {
        if let Act::Spawn { instance, run, .. } = effect.act() {
            assert!(site.node.awaits_start(instance, *run));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_comes_in_the_log_gives_the_live_state_and_no_rule_is_broken(
        draws in proptest::collection::vec(any::<Draw>(), 1..60)
    ) {
        let mut site = Site::with(&[("db", spec()), ("web", web())]);
        for draw in draws {
            let input = input(&mut site, draw);
            if site.try_tell(input).is_ok() {
                check_effects(&site);
            }
        }
        check(&site);
    }

    #[test]
    fn whatever_comes_in_during_handovers_breaks_no_rule(
        draws in proptest::collection::vec(any::<Draw>(), 1..80)
    ) {
        let mut web = web();
        web.update.method = UpdateMethod::Handover;
        web.depends_on.clear();
        let mut site = Site::with(&[("db", spec()), ("web", web)]);
        for draw in draws {
            let input = input(&mut site, draw);
            if site.try_tell(input).is_ok() {
                check_effects(&site);
            }
            for (_, slot) in site.node.services().values().flat_map(Service::slots) {
                if slot.coming().is_some() {
                    assert!(slot.state.is_ready(), "one serves while another is to take over");
                }
            }
        }
        check(&site);
    }
}
