//! What is fuzzed: every place where bytes of others become values.
//!
//! Each target takes any bytes and must neither panic nor hang, and what it accepts must hold what the type says.
//! `integration/fuzz_seeds.rs` runs the same functions over `fuzz/seeds` and mutations of them, and shows that what they
//! look for they find.

pub mod archive;
pub mod http;
pub mod selector;

use std::ops::ControlFlow;

use serde::Serialize;
use serde::de::DeserializeOwned;
use smgr::agent::release::archive::unpack;
use smgr::cli::selector::Scope;
use smgr::config::{self, Input, Options, Part};
use smgr::domain::event::Event;
use smgr::domain::id::Seq;
use smgr::domain::node::Node;
use smgr::domain::origin::Layer;
use smgr::domain::release::Manifest;
use smgr::domain::rollout::RolloutEvent;
use smgr::ipc::frame;
use smgr::ipc::keeper::{FromKeeper, ToKeeper};
use smgr::ipc::local::{LocalAnswer, LocalRequest};
use smgr::ipc::uplink::{FromUplink, ToUplink};
use smgr::store;
use smgr::wire::codec;
use smgr::wire::envelope::{self, ENVELOPE_BYTES_MAX};
use smgr::wire::fold::Fold;
use smgr::wire::key::Keyring;
use smgr::wire::note::{Checkpoint, Note, TlogProof};
use smgr::wire::payload::{Answer, Beat, EventRecord, Intent, Order, Query, Receipt, Trust};

/// A target by its name, which is also that of its folder of seeds.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("envelope", envelope),
    ("payload", payload),
    ("event_body", event_body),
    ("frame", frame),
    ("spec", spec),
    ("note", note),
    ("proof", proof),
    ("segment", segment),
    ("selector", selector),
    ("scope", scope),
    ("archive", archive),
    ("http", http),
];

/// An envelope as it comes from the bus, and as a row of a log.
pub fn envelope(data: &[u8]) {
    if let Ok(sealed) = envelope::read(data, ENVELOPE_BYTES_MAX) {
        let _kid = sealed.claimed();
        assert!(sealed.open(&Keyring::default()).is_err(), "an empty ring trusts nobody");
    }
    let mut node = Node::default();
    let mut fold = Fold::new(&mut node);
    let folded = matches!(fold.row(Seq(1), data), ControlFlow::Continue(()));
    assert_eq!(folded, fold.broken.is_none());
}

/// The payload of each kind; the first byte says which.
pub fn payload(data: &[u8]) {
    reads_payload(data);
}

/// The same; says whether anything was read.
pub fn reads_payload(data: &[u8]) -> bool {
    let Some((kind, bytes)) = data.split_first() else { return false };
    match kind % 9 {
        0 => survives::<Intent>(bytes),
        1 => survives::<Query>(bytes),
        2 => survives::<Answer>(bytes),
        3 => survives::<EventRecord>(bytes),
        4 => survives::<Beat>(bytes),
        5 => survives::<Trust>(bytes),
        6 => survives::<Order>(bytes),
        7 => survives::<Receipt>(bytes),
        _ => survives::<Manifest>(bytes),
    }
}

/// The body of each type of event, the facts of rollouts behind the others; the first byte says which.
pub fn event_body(data: &[u8]) {
    reads_event_body(data);
}

/// The same; says whether anything was read.
pub fn reads_event_body(data: &[u8]) -> bool {
    let Some((kind, bytes)) = data.split_first() else { return false };
    let kinds = [Event::KINDS, RolloutEvent::KINDS].concat();
    let (kind, _) = kinds[usize::from(*kind) % kinds.len()];
    let Ok(Some(event)) = codec::decode_body(kind, bytes) else { return false };
    let again = codec::encode_body(&event);
    assert_eq!(codec::decode_body(kind, &again).expect("what was written reads"), Some(event));
    true
}

/// A frame of each protocol between our processes; the first byte says which.
pub fn frame(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 6 {
        0 => frame_survives::<ToKeeper>(bytes),
        1 => frame_survives::<FromKeeper>(bytes),
        2 => frame_survives::<ToUplink>(bytes),
        3 => frame_survives::<FromUplink>(bytes),
        4 => frame_survives::<LocalRequest>(bytes),
        _ => frame_survives::<LocalAnswer>(bytes),
    }
}

/// A spec file: the body of one service, and a project.
pub fn spec(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    for (part, folder) in
        [(Part::Body(Layer::Host), None), (Part::Project, Some("/srv/shop".to_owned()))]
    {
        let input = Input {
            part,
            shown: "web.toml".to_owned(),
            stem: "web".to_owned(),
            folder,
            text: text.clone(),
        };
        if let Err(mistakes) = config::assemble(vec![input], &Options::default()) {
            assert!(!mistakes.is_empty());
            let screen = config::render(&mistakes, "nothing was started", Some(80));
            assert!(!screen.contains(|c: char| c.is_control() && c != '\n'), "{screen:?}");
        }
    }
}

/// A signed note and the checkpoint in it.
pub fn note(data: &[u8]) {
    if let Ok(note) = Note::parse(data) {
        assert_eq!(Note::parse(note.to_string().as_bytes()).as_ref(), Ok(&note));
        if let Ok(checkpoint) = Checkpoint::parse(&note.text) {
            assert_eq!(Checkpoint::parse_size(data), Some(checkpoint.size));
        }
    }
}

/// A proof that a row is in a log.
pub fn proof(data: &[u8]) {
    if let Ok(proof) = TlogProof::parse(data) {
        assert_eq!(TlogProof::parse(proof.to_string().as_bytes()).as_ref(), Ok(&proof));
    }
}

/// The file of a segment, read page by page without the engine.
pub fn segment(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a folder for the segment");
    let epoch = dir.path().join(smgr::domain::id::EpochId(1).token());
    std::fs::create_dir(&epoch).expect("the folder is new");
    std::fs::write(epoch.join("00000000000000000001.redb"), data).expect("the disk has room");
    // Any answer is right that comes back.
    let _report = store::verify(dir.path(), &[], &[], |_, _| Ok(()));
}

/// An expression that selects nodes.
pub fn selector(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    selector::holds(&text, str::parse);
}

/// What people type to name instances, or a node.
pub fn scope(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    selector::names(&text, str::parse::<Scope>);
}

/// The archive of a release: as it is, and with the sums of its headers mended, without which few changes would be seen.
pub fn archive(data: &[u8]) {
    for archive in [data, &archive::mended(data)] {
        archive::holds(archive, |archive, into, limits| unpack(archive, into, limits));
    }
}

/// A request to a controller: raw bytes to the socket on which it serves. `TOKEN` in them is a token that lets in.
pub fn http(data: &[u8]) {
    http::Face::get().holds(data);
}

fn survives<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
    let Ok(value) = codec::decode::<T>(bytes) else { return false };
    let again = codec::encode(&value);
    assert_eq!(codec::decode::<T>(&again).expect("what was written reads"), value);
    true
}

fn frame_survives<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(value) = frame::decode::<T>(bytes) {
        let again = frame::encode(&value).expect("what was read is not too large");
        assert_eq!(frame::decode::<T>(&again).expect("what was written reads"), value);
    }
}
