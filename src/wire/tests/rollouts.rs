//! The facts of rollouts, as a controller's log holds them.

use std::fs;
use std::path::Path;

use crate::domain::event::Event;
use crate::domain::rollout::RolloutEvent;
use crate::domain::rollout::samples::of_a_log;
use crate::wire::codec::{decode_body, encode_body};

#[test]
fn every_fact_of_a_rollout_reads_what_it_writes() {
    for fact in of_a_log() {
        let event = Event::Rollout(Box::new(fact));
        let bytes = encode_body(&event);
        assert_eq!(decode_body(event.kind(), &bytes).unwrap(), Some(event));
    }
}

/// A fact of each type as it was first written. One that is there is never written anew: controllers have such logs.
#[test]
fn every_fact_of_a_rollout_that_was_written_is_read_and_written_as_it_was() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/golden/rollout-v1");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for fact in of_a_log() {
            let path = folder.join(fact.event.kind());
            if !path.exists() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(path, encode_body(&Event::Rollout(Box::new(fact)))).unwrap();
            }
        }
    }
    for (kind, _) in RolloutEvent::KINDS {
        let hint = "UPDATE_GOLDEN=1 writes those of new types";
        let bytes = fs::read(folder.join(kind)).unwrap_or_else(|_| panic!("no {kind}: {hint}"));
        let event = decode_body(kind, &bytes).unwrap().unwrap_or_else(|| panic!("{kind}"));
        assert_eq!(event.kind(), *kind);
        assert!(encode_body(&event) == bytes, "{kind} is not written as it was");
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), RolloutEvent::KINDS.len());
}

#[test]
fn a_fact_of_a_type_that_is_not_known_is_passed_over() {
    let event = Event::Rollout(Box::new(of_a_log().remove(0)));
    assert_eq!(decode_body("rollout.danced", &encode_body(&event)).unwrap(), None);
    assert!(RolloutEvent::KINDS.iter().all(|(kind, _)| *kind != "rollout.danced"));
}

#[test]
fn a_fact_without_its_rollout_is_refused() {
    assert!(decode_body("rollout.started", &[0x80]).is_err());
}
