//! Orders at the gate: each thing that is wrong with one has its own code.

use serde_bytes::ByteBuf;

use super::super::tests::{NOW, alice, gate, key_of};
use super::*;
use crate::domain::event::Context;
use crate::domain::id::{BootId, Digest, EpochId, EventId, Kid, Seq};
use crate::domain::policy::{Grant, Holder, KeyClass, Names};
use crate::domain::release::{MANIFEST_VERSION, Manifest, Phase, ReleaseFailed, ReleaseHealthy};
use crate::domain::time::Now;
use crate::wire::codec::encode;
use crate::wire::envelope::seal;
use crate::wire::key::Signer;
use crate::wire::payload::{Enrolled, Trust};

fn controller() -> Signer {
    key_of(KeyClass::Controller)
}

fn node_key() -> Signer {
    Signer::from_seed(&[21; 32])
}

/// A gate that knows alice, who may deploy, the controller `somebody`, and the node n2 beside its own.
fn fleet() -> Authority {
    with_nodes(&[])
}

/// The same gate, which knows more nodes.
fn with_nodes(more: &[&str]) -> Authority {
    let mut gate = gate();
    let grant = Grant { verbs: Names::All, services: Names::All, nodes: Names::All };
    let deployer = Signer::from_seed(&[22; 32]);
    for (signer, name, class, grants) in
        [(&deployer, "ci", KeyClass::Ci, vec![grant]), (&node_key(), "n2", KeyClass::Node, vec![])]
    {
        let holder = Holder { name: name.parse().unwrap(), class, grants, until: None };
        std::sync::Arc::make_mut(&mut gate.ring).insert(signer.public(), holder);
    }
    let nodes: Vec<_> = ["n2", "n1"].iter().chain(more).map(|name| enrolled(name)).collect();
    gate.enrol(Enrolment::from(nodes));
    gate
}

fn enrolled(name: &str) -> Enrolled {
    Enrolled {
        node: name.parse().unwrap(),
        kid: if name == "n2" { node_key().kid() } else { Kid([1; 16]) },
        labels: [("env".to_owned(), "prod".to_owned())].into(),
    }
}

/// A release whose nodes go one after the other by their names.
fn manifest() -> Vec<u8> {
    manifest_with("")
}

/// The same with more in `[rollout]`.
fn manifest_with(rollout: &str) -> Vec<u8> {
    encode(&Manifest {
        v: MANIFEST_VERSION,
        service: "web".parse().unwrap(),
        version: "1".to_owned(),
        file: "web.toml".to_owned(),
        spec: format!("exec = [\"/bin/sleep\", \"9\"]\n[rollout]\norder = \"name\"\n{rollout}\n"),
        artifact: None,
        again: None,
    })
}

fn deploy() -> Intent {
    Intent {
        v: PAYLOAD_VERSION,
        id: IntentId([7; 16]),
        iss: Signer::from_seed(&[22; 32]).kid(),
        iat: NOW,
        exp: NOW.plus_ms(60_000),
        fleet: "acme".parse().unwrap(),
        mode: Mode::Desired,
        action: Action::Deploy {
            service: "web".parse().unwrap(),
            generation: Generation(42),
            release: manifest(),
            back_to: None,
            emergency: None,
            retry: None,
            on_conflict: None,
            rollback: false,
        },
        audience: Audience::Select { selector: "env=prod".to_owned(), roster: Digest([0; 32]) },
        note: String::new(),
    }
}

fn numbered(number: u64) -> Intent {
    let mut intent = deploy();
    if let Action::Deploy { generation, .. } = &mut intent.action {
        *generation = Generation(number);
    }
    intent
}

/// The order of a wish for a release.
fn wished(back_to: Option<ReleaseId>, emergency: Option<&str>, manifest: &[u8]) -> Order {
    let mut intent = deploy();
    if let Action::Deploy { back_to: before, emergency: why, release, .. } = &mut intent.action {
        (*before, *why) = (back_to, emergency.map(str::to_owned));
        *release = manifest.to_owned();
    }
    Order { intent: inside(&intent), ..order() }
}

fn inside(intent: &Intent) -> ByteBuf {
    ByteBuf::from(seal(Kind::Intent, &encode(intent), &Signer::from_seed(&[22; 32])))
}

fn order() -> Order {
    Order {
        v: PAYLOAD_VERSION,
        iss: controller().kid(),
        iat: NOW,
        fleet: "acme".parse().unwrap(),
        node: "n1".parse().unwrap(),
        intent: inside(&deploy()),
        step: Step::Apply,
        plan: Digest([9; 32]),
        term: 3,
        controller: "somebody".parse().unwrap(),
        verified_at: NOW,
        wave: 1,
        canary: Vec::new(),
    }
}

fn healthy(generation: u64, release: &[u8]) -> Event {
    Event::ReleaseHealthy(ReleaseHealthy {
        generation: Generation(generation),
        release: ReleaseId::of(release),
        running: None,
        ready_ms: 1,
        held_ms: 1,
    })
}

/// The word of a node, signed by a key.
fn word(origin: &str, event: &Event, signer: &Signer) -> ByteBuf {
    let epoch = EpochId::new(1, 1);
    let id = EventId { origin: origin.parse().unwrap(), epoch, seq: Seq(7) };
    let now = Now { at: NOW, mono_ns: 1 };
    let context = Context::service(&"web".parse().unwrap());
    let record = EventRecord::of(id, now, BootId([1; 16]), &context, event);
    ByteBuf::from(seal(Kind::Event, &encode(&record), signer))
}

fn code(order: &Order) -> Option<Code> {
    let bytes = seal(Kind::Order, &encode(order), &controller());
    fleet().order(&bytes, Way::Bus, NOW).err().map(|refused| refused.refusal.code)
}

#[test]
fn an_order_inside_its_intent_is_taken() {
    let bytes = seal(Kind::Order, &encode(&order()), &controller());
    let taken = fleet().order(&bytes, Way::Bus, NOW).unwrap();
    assert_eq!(taken.intent.payload, deploy());
    assert_eq!(taken.intent.actor.name.as_str(), "ci", "it is done on the signer's authority");
    assert_eq!((taken.mark.term, taken.mark.step), (3, Step::Apply));
}

#[test]
fn each_order_that_goes_beyond_is_refused_by_its_own_code() {
    let with = |intent: Intent| Order { intent: inside(&intent), ..order() };
    let other_kind = ByteBuf::from(seal(Kind::Query, b"x", &alice()));
    let by_nobody = ByteBuf::from(seal(Kind::Intent, &encode(&deploy()), &node_key()));
    let foreign = Intent { iss: alice().kid(), ..deploy() };
    let not_granted = ByteBuf::from(seal(Kind::Intent, &encode(&foreign), &alice()));
    let cases = [
        ("another version", Order { v: 9, ..order() }, Code::BAD_PAYLOAD),
        ("a last generation", with(numbered(u64::MAX - 1)), Code::BAD_PAYLOAD),
        ("no generation after it", with(numbered(u64::MAX)), Code::BAD_PAYLOAD),
        ("wave 0", Order { wave: 0, ..order() }, Code::BAD_PAYLOAD),
        ("another key's name", Order { iss: alice().kid(), ..order() }, Code::WRONG_ISSUER),
        (
            "another controller's name",
            Order { controller: "c9".parse().unwrap(), ..order() },
            Code::WRONG_ISSUER,
        ),
        (
            "another fleet",
            Order { fleet: "globex".parse().unwrap(), ..order() },
            Code::WRONG_AUDIENCE,
        ),
        ("another node", Order { node: "n2".parse().unwrap(), ..order() }, Code::WRONG_AUDIENCE),
        ("no intent inside", Order { intent: other_kind, ..order() }, Code::OUTSIDE_INTENT),
        ("an intent of a node", Order { intent: by_nobody, ..order() }, Code::CLASS_MAY_NOT_SIGN),
        ("no grant", Order { intent: not_granted, ..order() }, Code::NOT_GRANTED),
        (
            "an intent in another's name",
            with(Intent { iss: alice().kid(), ..deploy() }),
            Code::WRONG_ISSUER,
        ),
        (
            "an intent of another fleet",
            with(Intent { fleet: "globex".parse().unwrap(), ..deploy() }),
            Code::WRONG_AUDIENCE,
        ),
        (
            "an intent for other nodes",
            with(Intent { audience: Audience::Nodes(vec!["n2".parse().unwrap()]), ..deploy() }),
            Code::OUTSIDE_INTENT,
        ),
        (
            "a selection that does not fit",
            with(Intent {
                audience: Audience::Select {
                    selector: "env=test".to_owned(),
                    roster: Digest([0; 32]),
                },
                ..deploy()
            }),
            Code::OUTSIDE_INTENT,
        ),
        (
            "no selection",
            with(Intent {
                audience: Audience::Select { selector: String::new(), roster: Digest([0; 32]) },
                ..deploy()
            }),
            Code::BAD_SELECTOR,
        ),
        (
            "a wish that runs once",
            with(Intent {
                mode: Mode::Once,
                action: Action::Restart { service: "web".parse().unwrap() },
                ..deploy()
            }),
            Code::NOT_YET,
        ),
        (
            "verified before it was signed",
            with(Intent { iat: NOW.plus_ms(10 * SKEW_MS), ..deploy() }),
            Code::OUTSIDE_INTENT,
        ),
    ];
    for (what, order, expected) in cases {
        assert_eq!(code(&order), Some(expected), "{what}");
    }
    assert_eq!(code(&order()), None);
    let bytes = seal(Kind::Order, &encode(&order()), &alice());
    let by_a_person = fleet().order(&bytes, Way::Bus, NOW).unwrap_err();
    assert_eq!(by_a_person.refusal.code, Code::CLASS_MAY_NOT_SIGN);
    assert!(by_a_person.about.is_none(), "it costs no row");
}

#[test]
fn an_order_is_taken_until_the_controllers_key_ends_whatever_it_says_of_when_it_signed() {
    let ends = NOW.plus_ms(3_600_000);
    let mut gate = fleet();
    let ring = std::sync::Arc::make_mut(&mut gate.ring);
    let (key, holder) = ring.get(controller().kid()).unwrap();
    let (key, holder) = (*key, Holder { until: Some(ends), ..holder.clone() });
    ring.insert(key, holder);
    let bytes = seal(Kind::Order, &encode(&order()), &controller());
    let mut code = |now| gate.order(&bytes, Way::Bus, now).err().map(|it| it.refusal.code);
    assert_eq!(code(NOW), None);
    assert_eq!(code(ends.plus_ms(SKEW_MS)), None);
    assert_eq!(code(ends.plus_ms(SKEW_MS + 1)), Some(Code::KEY_OUT_OF_TIME));
    gate.raise_floor(ends.plus_ms(SKEW_MS + 1));
    let refused = gate.order(&bytes, Way::Bus, NOW).unwrap_err();
    assert_eq!(refused.refusal.code, Code::KEY_OUT_OF_TIME, "the clock was set back");
}

#[test]
fn a_node_that_was_away_for_weeks_takes_a_wish_whose_key_ended_meanwhile() {
    let mut gate = fleet();
    let ring = std::sync::Arc::make_mut(&mut gate.ring);
    let (key, holder) = ring.get(deploy().iss).unwrap();
    let (key, holder) = (*key, Holder { until: Some(NOW.plus_ms(3_600_000)), ..holder.clone() });
    ring.insert(key, holder);
    let later = NOW.plus_ms(45 * 24 * 3_600_000);
    let mut code = |order: &Order| {
        let bytes = seal(Kind::Order, &encode(order), &controller());
        gate.order(&bytes, Way::Bus, later).err().map(|it| it.refusal.code)
    };
    assert_eq!(code(&Order { iat: later, ..order() }), None);
    let unverified = Order { iat: later, verified_at: later, ..order() };
    assert_eq!(code(&unverified), Some(Code::KEY_OUT_OF_TIME));
}

#[test]
fn no_controller_goes_beyond_the_canary_without_its_word() {
    let failed = Event::ReleaseFailed(ReleaseFailed {
        generation: Generation(42),
        release: ReleaseId::of(&manifest()),
        step: Step::Apply,
        phase: Phase::Starting,
        code: "E0701".to_owned(),
        why: "it ended".to_owned(),
        instance: None,
        result: None,
        exit: None,
        ran_ms: None,
        tail: None,
        returns: true,
    });
    let good = healthy(42, &manifest());
    let key = node_key();
    for (what, canary, is_taken) in [
        ("no word", vec![], false),
        ("a good word", vec![word("n2", &good, &key)], true),
        ("a good and a bad one", vec![word("n2", &good, &key), word("n2", &failed, &key)], false),
        ("a bad and a good one", vec![word("n2", &failed, &key), word("n2", &good, &key)], false),
        ("a bad one alone", vec![word("n2", &failed, &key)], false),
        ("of another release", vec![word("n2", &healthy(42, b"other"), &key)], false),
        ("of another generation", vec![word("n2", &healthy(41, &manifest()), &key)], false),
        ("in another node's name", vec![word("n3", &good, &key)], false),
        ("by the controller", vec![word("n2", &good, &controller())], false),
        ("by another node's key", vec![word("n2", &good, &key_of(KeyClass::Node))], false),
        ("garbage", vec![ByteBuf::from(vec![1, 2, 3])], false),
    ] {
        let order = Order { wave: 2, canary, ..order() };
        let expected = (!is_taken).then_some(Code::CANARY_UNPROVEN);
        assert_eq!(code(&order), expected, "{what}");
    }
    let hurried = Intent {
        action: Action::Deploy {
            service: "web".parse().unwrap(),
            generation: Generation(42),
            release: manifest(),
            back_to: None,
            emergency: Some("the site is down".to_owned()),
            retry: None,
            on_conflict: None,
            rollback: false,
        },
        ..deploy()
    };
    assert_eq!(code(&Order { wave: 2, intent: inside(&hurried), ..order() }), None);
    assert_eq!(code(&Order { wave: 2, step: Step::Return, ..order() }), None);
    let many = vec![word("n2", &good, &key); CANARY_MAX + 1];
    assert_eq!(code(&Order { wave: 2, canary: many, ..order() }), Some(Code::BAD_PAYLOAD));
}

#[test]
fn a_word_that_no_node_would_take_any_more_is_known_as_such() {
    let mut gate = fleet();
    let n2 = "n2".parse().unwrap();
    let good = healthy(42, &manifest());
    let (own, other) = (word("n2", &good, &node_key()), word("n2", &good, &controller()));
    assert!(gate.is_word_of(&n2, &own) && !gate.is_word_of(&n2, &other));
    assert!(!gate.is_word_of(&"n3".parse().unwrap(), &own), "it is not enrolled");
    gate.enrol(Enrolment::from(vec![Enrolled { kid: Kid([1; 16]), ..enrolled("n2") }]));
    assert!(!gate.is_word_of(&n2, &own), "it has another key since");
    let mut gate = fleet();
    gate.revoked.push(node_key().kid());
    assert!(!gate.is_word_of(&n2, &own));
}

#[test]
fn a_node_goes_first_where_its_turn_is_first_and_nowhere_because_a_controller_says_so() {
    let first_release = wished(None, None, &manifest_with("canary = 1"));
    let second_release = wished(Some(ReleaseId(Digest([3; 32]))), None, &manifest());
    for order in [&first_release, &second_release] {
        assert_eq!(code(order), None, "n1 is the first by name");
        let bytes = seal(Kind::Order, &encode(order), &controller());
        let mut gate = with_nodes(&["n0"]);
        let refused = gate.order(&bytes, Way::Bus, NOW).unwrap_err();
        assert_eq!(refused.refusal.code, Code::CANARY_UNPROVEN);
        let why = "without one it may go to 1 of 3 nodes: n0";
        assert!(refused.refusal.why.contains(why), "{}", refused.refusal.why);
        assert_eq!(refused.about, Some((Step::Apply, 3)), "the history says who tried");
    }
    let good = word("n2", &healthy(42, &manifest()), &node_key());
    let proved = Order { canary: vec![good], ..second_release.clone() };
    let bytes = seal(Kind::Order, &encode(&proved), &controller());
    let taken = with_nodes(&["n0"]).order(&bytes, Way::Bus, NOW);
    assert!(taken.is_ok(), "with a word it is no matter of turns");
    let hurried = wished(None, Some("the site is down"), &manifest());
    let back = Order { step: Step::Return, ..second_release };
    for order in [hurried, back] {
        let bytes = seal(Kind::Order, &encode(&order), &controller());
        assert!(with_nodes(&["n0"]).order(&bytes, Way::Bus, NOW).is_ok());
    }
}

#[test]
fn where_nothing_is_signed_to_go_back_to_and_no_waves_only_who_has_the_service_needs_a_turn() {
    let order = wished(None, None, &manifest());
    let is_unproved = |mut gate: Authority| {
        let bytes = seal(Kind::Order, &encode(&order), &controller());
        gate.order(&bytes, Way::Bus, NOW).unwrap().mark.is_unproved
    };
    assert!(!is_unproved(with_nodes(&[])), "n1 is the first by name");
    assert!(is_unproved(with_nodes(&["n0"])), "which the core hears");
}

#[test]
fn a_turn_is_that_of_the_roster_that_the_wish_names() {
    let mut gate = with_nodes(&[]);
    let audience =
        Audience::Select { selector: "env=prod".to_owned(), roster: gate.roster.digest() };
    let mut wish = deploy();
    let Action::Deploy { back_to, .. } = &mut wish.action else { unreachable!() };
    *back_to = Some(ReleaseId(Digest([3; 32])));
    let order = Order { intent: inside(&Intent { audience, ..wish }), ..order() };
    let bytes = seal(Kind::Order, &encode(&order), &controller());
    let trust = Trust {
        v: PAYLOAD_VERSION,
        version: 2,
        fleet: "acme".parse().unwrap(),
        issued: NOW,
        keys: Vec::new(),
        revoked: Vec::new(),
        nodes: ["n0", "n1", "n2"].map(enrolled).into(),
    };
    gate.renew((*gate.ring).clone(), trust.clone());
    assert!(
        gate.order(&bytes, Way::Bus, NOW).is_ok(),
        "n0 joined when the wish was signed already"
    );
    let ring = (*gate.ring).clone();
    (0..9).for_each(|_| gate.renew(ring.clone(), trust.clone()));
    let refused = gate.order(&bytes, Way::Bus, NOW).unwrap_err();
    assert!(refused.refusal.why.ends_with("deploy anew"), "{}", refused.refusal.why);
}

#[test]
fn a_service_is_taken_only_from_a_node_that_root_enrolled_with_labels_that_do_not_match() {
    let leave = |audience: Audience| {
        let intent = inside(&Intent { audience, ..deploy() });
        code(&Order { step: Step::Leave, wave: 2, intent, ..order() })
    };
    let select =
        |text: &str| Audience::Select { selector: text.to_owned(), roster: Digest([0; 32]) };
    assert_eq!(leave(select("env=test")), None);
    assert_eq!(leave(select("env=prod")), Some(Code::OUTSIDE_INTENT));
    assert_eq!(leave(Audience::Nodes(vec!["n2".parse().unwrap()])), Some(Code::OUTSIDE_INTENT));
    let apply = inside(&Intent { audience: select("env=test"), ..deploy() });
    assert_eq!(code(&Order { intent: apply, ..order() }), Some(Code::OUTSIDE_INTENT));
}
