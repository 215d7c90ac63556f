//! What anybody may publish on the bus is looked at before it counts, whoever it is: a controller as well.

use std::fs;
use std::time::Duration;

use serde_bytes::ByteBuf;
use smgr::bus::{BusOptions, Connection, Credentials};
use smgr::controller::setup::ControllerSetup;
use smgr::domain::id::{Digest, EpochId, EventId, FleetId, Generation, IntentId, NodeId};
use smgr::domain::intent::Action;
use smgr::domain::policy::{KeyClass, Kind};
use smgr::domain::release::{Manifest, Step};
use smgr::head::clock;
use smgr::head::folder::StateFolder;
use smgr::head::keyfile::{KeyName, load_key, load_trust};
use smgr::wire::codec;
use smgr::wire::envelope;
use smgr::wire::key::Signer;
use smgr::wire::payload::{
    Answer, Audience, EventRecord, Intent, Mode, Order, PAYLOAD_VERSION, Receipt, Reply,
};
use smgr::wire::subject::{Callee, InboxPrefix, Scope, Subject};

use super::Fleet;
use super::leaders::leader;
use super::rollouts::Shop;
use crate::releases::good;
use crate::support::block_on;
use crate::support::wait::{eventually, wait_until};

/// Returns how whoever runs the fleet reaches its bus.
pub(super) fn a_persons_access(node: &StateFolder) -> BusOptions {
    let (_, ring) = load_trust(node).unwrap();
    let people = ring.iter().map(|(_, holder)| holder);
    let person = people.into_iter().find(|holder| holder.class == KeyClass::Human).unwrap();
    let setup = smgr::agent::setup::NodeSetup::read(node).unwrap().bus.unwrap();
    let mut options = BusOptions::new(setup.urls, InboxPrefix(person.name.clone()), "stranger");
    options.tls.ca = setup.ca;
    options.credentials = Credentials::read(setup.operator_nkey.unwrap()).unwrap();
    options
}

/// Returns how somebody who has the keys of a controller reaches the bus.
fn a_controllers_access(controller: &StateFolder) -> BusOptions {
    let setup = ControllerSetup::read(controller).unwrap();
    let name = setup.controller.as_str().parse().unwrap();
    let mut options = BusOptions::new(setup.urls, InboxPrefix(name), "hostile");
    options.tls.ca = setup.ca;
    options.credentials = Credentials::read(setup.nkey.unwrap()).unwrap();
    options
}

pub(super) fn n2() -> Subject {
    let to = Callee::node("n2".parse().unwrap()).unwrap();
    Subject::Call { fleet: "local".parse().unwrap(), to }
}

/// Returns a wish for n2, signed by whoever runs the fleet, that may run once within ten minutes.
pub(super) fn once_on_n2(n1: &StateFolder, action: Action) -> Vec<u8> {
    let key = load_key(&KeyName::Operator.path(n1)).unwrap();
    let now = clock::now().at;
    let intent = Intent {
        v: PAYLOAD_VERSION,
        id: IntentId([7; 16]),
        iss: key.kid(),
        iat: now,
        exp: now.plus_ms(600_000),
        fleet: "local".parse().unwrap(),
        mode: Mode::Once,
        action,
        audience: Audience::Nodes(vec!["n2".parse().unwrap()]),
        note: String::new(),
    };
    envelope::seal(Kind::Intent, &codec::encode(&intent), &key)
}

/// Returns the wish that a controller kept last.
fn last_wish(controller: &StateFolder) -> Vec<u8> {
    let wishes = fs::read_dir(controller.root().join("wishes")).unwrap();
    let wishes = wishes.map(|entry| entry.unwrap().path());
    let newest = wishes.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    fs::read(newest.unwrap()).unwrap()
}

/// Returns the first answer to a message.
fn answer_to(options: &BusOptions, subject: &Subject, bytes: Vec<u8>) -> Reply {
    block_on(async {
        let bus = Connection::dial(options).await.unwrap();
        let within = Duration::from_secs(10);
        let mut answers = bus.request(subject, bytes, within).await.unwrap();
        let answer = answers.next().await.unwrap().expect("it is answered");
        envelope::read_kept::<Answer>(&answer, Kind::Answer).unwrap().reply
    })
}

#[test]
fn an_event_by_a_stranger_or_in_anothers_name_is_dropped_and_counted() {
    let fleet = Fleet::of(2);
    fleet.all_arrives(&["n1", "n2"]);
    let before = fleet.arrivals();
    // An event that is fetched may come live as well: some repeats are nobody's fault.
    let repeats = |fleet: &Fleet| fleet.status()["intake"]["repeats"].as_u64().unwrap();
    let repeats_before = repeats(&fleet);
    let n1 = StateFolder::new(fleet.folder("n1"));
    let n2 = StateFolder::new(fleet.folder("n2"));
    let row = smgr::store::LogReader::new(n1.log());
    let mut genuine = Vec::new();
    row.rows(None, |_, row| {
        genuine = row.to_vec();
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    let sealed = envelope::read(&genuine, genuine.len()).unwrap();
    let mut record: EventRecord = codec::decode(sealed.unverified_payload()).unwrap();
    record.seq.0 += 1;
    let forged = codec::encode(&record);
    let stranger = envelope::seal(Kind::Event, &forged, &Signer::from_seed(&[7; 32]));
    let neighbour = load_key(&KeyName::Node.path(&n2)).unwrap();
    let foreign = envelope::seal(Kind::Event, &forged, &neighbour);

    let options = a_persons_access(&n1);
    block_on(async {
        let bus = Connection::dial(&options).await.unwrap();
        let (fleet, origin): (FleetId, NodeId) = ("local".parse().unwrap(), "n1".parse().unwrap());
        let kind = "instance-started".parse().unwrap();
        let subject = Subject::Event { fleet, origin, scope: Scope::Node, kind };
        for message in [stranger, foreign, genuine, b"\x95\x01 no envelope".to_vec()] {
            bus.publish(&subject, message).await.unwrap();
        }
        // Whatever was said is heard before the connection goes.
        drop(bus.flush().await);
    });
    wait_until("it is counted", || {
        let intake = fleet.status()["intake"].clone();
        intake["unsigned"] == 2 && intake["foreign"] == 1 && repeats(&fleet) > repeats_before
    });
    let after = fleet.arrivals();
    for node in ["n1", "n2"] {
        let (before, after) = (&before[node], &after[node]);
        assert_eq!(before[..], after[..before.len()]);
    }
    fleet.all_arrives(&["n1", "n2"]);
}

#[test]
fn no_controller_skips_the_canary_by_calling_each_wave_the_first() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let waits = ["--set", "rollout.require_approval=true", "--detach"];
    shop.deploy_with(0, "2.0", &good("2"), &waits);
    let view = shop.last();
    let canary = view["plan"]["waves"][0]["nodes"][0].as_str().unwrap().to_owned();

    // The controller's own key, and the wish that somebody may well have signed.
    let c1 = StateFolder::new(shop.fleet.folder("c1"));
    let key = load_key(&KeyName::Controller.path(&c1)).unwrap();
    let wish = last_wish(&c1);
    let (_, term) = leader(&shop.fleet).unwrap();
    let sealed = |node: &str, wave: u16| {
        let order = Order {
            v: PAYLOAD_VERSION,
            iss: key.kid(),
            iat: clock::now().at,
            fleet: "local".parse().unwrap(),
            node: node.parse().unwrap(),
            intent: ByteBuf::from(wish.clone()),
            step: Step::Apply,
            plan: Digest([9; 32]),
            term,
            controller: "c1".parse().unwrap(),
            verified_at: clock::now().at,
            wave,
            canary: Vec::new(),
        };
        envelope::seal(Kind::Order, &codec::encode(&order), &key)
    };
    let options = a_controllers_access(&c1);
    let others = ["n1", "n2", "n3"].into_iter().filter(|node| *node != canary);
    block_on(async {
        let bus = Connection::dial(&options).await.unwrap();
        for (node, wave) in others.clone().flat_map(|node| [(node, 1), (node, 2)]) {
            let to = Callee::node(node.parse().unwrap()).unwrap();
            let subject = Subject::Call { fleet: "local".parse().unwrap(), to };
            let within = Duration::from_secs(10);
            let mut answers = bus.request(&subject, sealed(node, wave), within).await.unwrap();
            let answer = answers.next().await.unwrap().expect("it is refused, not ignored");
            let answer = envelope::read(&answer, answer.len()).unwrap();
            let answer: Answer = codec::decode(answer.unverified_payload()).unwrap();
            let Reply::Refused { code, why } = answer.reply else { panic!("{node}: {answer:?}") };
            assert_eq!(code, "E0333", "{why}");
            assert!(wave > 1 || why.ends_with(&format!("to 1 of 3 nodes: {canary}")), "{why}");
        }
    });
    for node in others {
        assert_eq!(shop.runs(node), "1.0");
        let events = shop.events(node);
        assert!(events.iter().any(|it| it["type"] == "release.refused"), "{node} says who tried");
    }
}

#[test]
fn a_controller_that_lies_about_a_log_has_it_begun_anew_once_in_ten_minutes_and_no_more() {
    const EPOCH_MS_MIN: u64 = 10_000;
    let fleet = Fleet::new();
    fleet.service("n2", "web", "exec = [\"sleep\", \"1000\"]\n");
    fleet.up(2);
    fleet.all_arrives(&["n1", "n2"]);
    let c1 = StateFolder::new(fleet.folder("c1"));
    let key = load_key(&KeyName::Controller.path(&c1)).unwrap();
    let options = a_controllers_access(&c1);
    let last = || -> EventId {
        let ids = eventually("n2 answers", || fleet.ids_if_any(&["events", "--node", "n2"]));
        ids.last().unwrap().parse().unwrap()
    };
    // What is asked of the node behind it is answered when it has been looked at.
    let lie = |epoch: EpochId, size: u64| {
        let receipt = Receipt {
            v: PAYLOAD_VERSION,
            controller: "c1".parse().unwrap(),
            origin: "n2".parse().unwrap(),
            epoch,
            size,
            root: Digest([7; 32]),
            at: clock::now().at,
        };
        let bytes = envelope::seal(Kind::Receipt, &codec::encode(&receipt), &key);
        block_on(async {
            let bus = Connection::dial(&options).await.unwrap();
            bus.publish(&n2(), bytes).await.unwrap();
            drop(bus.flush().await);
        });
        last().epoch
    };
    let age_ms = |epoch: EpochId| clock::now().at.millis().saturating_sub(epoch.unix_ms());
    let grows_old = |epoch: EpochId| {
        wait_until("the epoch is no young one", || age_ms(epoch) > EPOCH_MS_MIN);
    };
    let first = last().epoch;
    grows_old(first);
    let tomorrow = clock::now().at.millis() + 25 * 3_600_000;
    assert_eq!(lie(EpochId::new(tomorrow, 1), 9), first, "further ahead than any clock");
    // As much of the log as there is, and other events.
    let second = eventually("it begins anew", || {
        Some(lie(first, last().seq.0)).filter(|epoch| *epoch != first)
    });
    let receipt = StateFolder::new(fleet.folder("n2")).witnessed();
    let kept = fs::read(&receipt).unwrap();
    fs::remove_file(&receipt).unwrap();
    // On a machine that is too busy to ask in time there is nothing to be seen of it.
    if age_ms(second) < EPOCH_MS_MIN / 2 {
        let now = lie(second, 1_000_000);
        assert!(now == second || age_ms(second) > EPOCH_MS_MIN, "it is too young to be ended");
    }
    fs::write(&receipt, kept).unwrap();
    grows_old(second);
    assert_eq!(lie(second, 1_000_000), second, "and once is enough for ten minutes");
    fleet.machine.exits(0, &["restart", "web@n2"]);
}

#[test]
fn no_signer_skips_the_canary_by_calling_a_release_one_that_succeeded_before() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let n1 = StateFolder::new(shop.fleet.folder("n1"));
    let wish = last_wish(&StateFolder::new(shop.fleet.folder("c1")));
    let wish: Intent = envelope::read_kept(&wish, Kind::Intent).unwrap();
    let Action::Deploy { release: first, .. } = &wish.action else { panic!("{wish:?}") };
    let manifest: Manifest = codec::decode(first).unwrap();
    let never = codec::encode(&Manifest { version: "2.0".to_owned(), ..manifest });
    let key = load_key(&KeyName::Operator.path(&n1)).unwrap();
    let back_to = |bytes: &[u8], number: u8| {
        let mut intent =
            Intent { id: IntentId([number; 16]), iat: clock::now().at, ..wish.clone() };
        if let Action::Deploy { release, rollback, generation, .. } = &mut intent.action {
            (*release, *rollback) = (bytes.to_vec(), true);
            *generation = Generation(generation.0 + 10 * u64::from(number));
        }
        envelope::seal(Kind::Intent, &codec::encode(&intent), &key)
    };
    let options = a_persons_access(&n1);
    let principal = options.inbox.0.clone();
    let asked = [back_to(&never, 1), back_to(first, 2)].map(|wish| {
        let fleet = "local".parse().unwrap();
        let subject = Subject::Request { fleet, principal: principal.clone() };
        answer_to(&options, &subject, wish)
    });
    let [Reply::Refused { code, why }, Reply::Accepted { .. }] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(code, "E0708", "{why}");
    assert!(why.contains("never succeeded here"), "{why}");
    assert_eq!(shop.list().len(), 2, "nothing was begun of the first");
}

#[test]
fn what_is_no_key_of_a_service_is_unset_nowhere() {
    let fleet = Fleet::new();
    fleet.service("n2", "web", "exec = [\"sleep\", \"1000\"]\n");
    fleet.up(2);
    let n1 = StateFolder::new(fleet.folder("n1"));
    let unset = Action::Configure {
        service: "web".parse().unwrap(),
        generation: None,
        set: Default::default(),
        unset: ["stop.timeuot".to_owned()].into(),
        until: None,
        node: false,
    };
    let reply = answer_to(&a_persons_access(&n1), &n2(), once_on_n2(&n1, unset));
    let Reply::Refused { why, .. } = &reply else { panic!("{reply:?}") };
    assert!(why.contains("`stop.timeuot` is no key"), "{why}");

    // For a part of the fleet it is refused before anything is planned: nodes take from an order what others judged.
    wait_until("the controller knows who has it", || {
        let status = fleet.status();
        status["instances"].as_array().into_iter().flatten().any(|it| it["service"] == "web")
    });
    fleet.machine.exits(0, &["config", "set", "web", "stop.timeout=4s", "--select", "name=n2"]);
    let wish = last_wish(&StateFolder::new(fleet.folder("c1")));
    let mut wish: Intent = envelope::read_kept(&wish, Kind::Intent).unwrap();
    (wish.id, wish.iat) = (IntentId([8; 16]), clock::now().at);
    let Action::Configure { generation: Some(generation), set, unset, .. } = &mut wish.action
    else {
        panic!("{wish:?}")
    };
    generation.0 += 10;
    set.clear();
    unset.insert("stop.timeuot".to_owned());
    let key = load_key(&KeyName::Operator.path(&n1)).unwrap();
    let options = a_persons_access(&n1);
    let (fleet_id, principal) = ("local".parse().unwrap(), options.inbox.0.clone());
    let subject = Subject::Request { fleet: fleet_id, principal };
    let wish = envelope::seal(Kind::Intent, &codec::encode(&wish), &key);
    let reply = answer_to(&options, &subject, wish);
    let Reply::Refused { why, .. } = &reply else { panic!("{reply:?}") };
    assert!(why.contains("`stop.timeuot` is no key"), "{why}");
    let rollouts = fleet.machine.json(&["rollout", "list"]);
    assert_eq!(rollouts["rollouts"].as_array().map(Vec::len), Some(1), "{rollouts}");
}
