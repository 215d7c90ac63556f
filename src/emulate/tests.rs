//! An emulated node takes and refuses what an agent does, and its log says so.

mod times;

use std::sync::Arc;

use super::node::EmulatedNode;
use super::voice::Said;
use super::{Fleet, Load, Specs};
use crate::domain::event::{Outcome, TrustChanged};
use crate::domain::id::{BootId, Digest, FleetId, Generation, IntentId, NodeId, Seq};
use crate::domain::intent::Action;
use crate::domain::node::Node;
use crate::domain::policy::{Grant, Holder, KeyClass, Kind, Names};
use crate::domain::release::{MANIFEST_VERSION, Manifest};
use crate::domain::time::Now;
use crate::head::clock;
use crate::wire::codec;
use crate::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use crate::wire::fold::{Fold, state_hash};
use crate::wire::key::{Keyring, Signer};
use crate::wire::payload::{
    Answer, Ask, Audience, Beat, Enrolled, Intent, Mode, PAYLOAD_VERSION, Query, Reply,
};
use crate::wire::subject::Subject;

fn name() -> NodeId {
    "n1".parse().unwrap()
}

fn operator() -> Signer {
    Signer::from_seed(&[1; 32])
}

fn key() -> Signer {
    Signer::from_seed(&[2; 32])
}

/// A node that has begun, and whatever it said by then.
fn node() -> (EmulatedNode, Vec<Said>) {
    let mut ring = Keyring::default();
    let everything = Grant { verbs: Names::All, services: Names::All, nodes: Names::All };
    let grants = vec![everything];
    let class = KeyClass::Human;
    ring.insert(
        operator().public(),
        Holder { name: "ana".parse().unwrap(), class, grants, until: None },
    );
    let (class, grants) = (KeyClass::Node, Vec::new());
    ring.insert(key().public(), Holder { name: "n1".parse().unwrap(), class, grants, until: None });
    let kid = key().kid();
    let fleet = Fleet {
        fleet: "acme".parse().unwrap(),
        boot: BootId([1; 16]),
        ring: Arc::new(ring),
        revoked: Vec::new(),
        roster: Arc::new(vec![Enrolled { node: name(), kid, labels: Default::default() }].into()),
        trust: TrustChanged { version: 1, digest: Digest([1; 32]) },
        specs: Specs::default(),
        load: Load::default(),
    };
    let mut node = EmulatedNode::new(Arc::new(fleet), name(), key());
    node.begin(clock::now());
    let said = said(&mut node);
    (node, said)
}

fn said(node: &mut EmulatedNode) -> Vec<Said> {
    std::iter::from_fn(|| node.voice().next()).collect()
}

fn fleet() -> FleetId {
    "acme".parse().unwrap()
}

fn query(signer: &Signer, ask: Ask, now: Now) -> Vec<u8> {
    let query = Query {
        v: PAYLOAD_VERSION,
        id: IntentId([7; 16]),
        iss: signer.kid(),
        iat: now.at,
        exp: now.at.plus_ms(1000),
        fleet: fleet(),
        audience: Audience::All,
        ask,
    };
    envelope::seal(Kind::Query, &codec::encode(&query), signer)
}

fn deploy(now: Now) -> Vec<u8> {
    let service: crate::domain::id::ServiceId = "web".parse().unwrap();
    let manifest = Manifest {
        v: MANIFEST_VERSION,
        service: service.clone(),
        version: "7".to_owned(),
        file: "web.toml".to_owned(),
        spec: "exec = [\"/bin/sleep\", \"9\"]\nrollout.min_healthy_time = \"10ms\"\n".to_owned(),
        artifact: None,
    };
    let release = codec::encode(&manifest);
    let generation = Generation(1);
    let intent = Intent {
        v: PAYLOAD_VERSION,
        id: IntentId([8; 16]),
        iss: operator().kid(),
        iat: now.at,
        exp: now.at.plus_ms(60_000),
        fleet: fleet(),
        mode: Mode::Desired,
        action: Action::Deploy {
            service,
            generation,
            release,
            back_to: None,
            emergency: None,
            retry: None,
        },
        audience: Audience::Nodes(vec![name()]),
        note: String::new(),
    };
    envelope::seal(Kind::Intent, &codec::encode(&intent), &operator())
}

/// Returns the verified answers among what was said.
fn replies(said: &[Said]) -> Vec<Reply> {
    let mut ring = Keyring::default();
    let (class, grants) = (KeyClass::Node, Vec::new());
    ring.insert(key().public(), Holder { name: "n1".parse().unwrap(), class, grants, until: None });
    let answers = said.iter().filter_map(|said| match said {
        Said::Answer(_, bytes) => Some(bytes),
        Said::Told(..) => None,
    });
    let read = |bytes: &Vec<u8>| {
        let opened = envelope::read(bytes, ENVELOPE_BYTES_MAX).unwrap();
        codec::decode::<Answer>(opened.open(&ring).unwrap().payload).unwrap().reply
    };
    answers.map(read).collect()
}

#[test]
fn a_signed_ping_is_answered_and_a_strangers_is_not() {
    let (mut node, _) = node();
    let now = clock::now();
    let inbox = || "_INBOX.ana.1".parse().ok();
    node.hear(now, &query(&operator(), Ask::Ping, now), inbox());
    assert!(matches!(replies(&said(&mut node))[..], [Reply::Pong { .. }]));
    node.hear(now, &query(&Signer::from_seed(&[9; 32]), Ask::Ping, now), inbox());
    assert!(said(&mut node).is_empty());
    let others = "_INBOX.bob.1".parse().ok();
    node.hear(now, &query(&operator(), Ask::Ping, now), others);
    assert!(said(&mut node).is_empty(), "an answer goes to whoever signed");
}

#[test]
fn a_release_runs_at_once_and_the_log_says_all_of_it() {
    let (mut node, mut all) = node();
    node.hear(clock::now(), &deploy(clock::now()), "_INBOX.ana.1".parse().ok());
    while let Some(due) = node.due_in(clock::now()) {
        assert!(due.as_secs() < 60, "something is awaited for {due:?}");
        let now = clock::now();
        let later = Now {
            at: now.at.plus_ms(due.as_millis() as u64 + 1),
            mono_ns: now.mono_ns + due.as_nanos() as u64 + 1,
        };
        node.ring(later);
    }
    all.extend(said(&mut node));
    let last = replies(&all).pop();
    assert!(matches!(last, Some(Reply::Outcome { outcome: Outcome::Done { .. }, .. })), "{last:?}");
    // Whoever folds what was published has the state that the heartbeat tells.
    node.beat(clock::now());
    let mut folded = Node::default();
    let mut fold = Fold::new(&mut folded);
    let events = all.iter().filter_map(|said| match said {
        Said::Told(Subject::Event { .. }, row) => Some(row),
        Said::Told(..) | Said::Answer(..) => None,
    });
    for (seq, row) in (1..).zip(events) {
        assert!(fold.row(Seq(seq), row).is_continue(), "{:?}", fold.broken);
    }
    let beats = said(&mut node);
    let [Said::Told(_, beat)] = &beats[..] else { panic!("{beats:?}") };
    let beat = envelope::read(beat, ENVELOPE_BYTES_MAX).unwrap().unverified_payload().to_vec();
    assert_eq!(codec::decode::<Beat>(&beat).unwrap().state_hash, state_hash(&folded));
    assert_eq!(folded.releases().len(), 1);
}
