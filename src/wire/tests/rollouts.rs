//! The facts of rollouts, as a controller's log holds them.

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
