//! Events about releases, with values that never change, for tests.

use super::*;
use crate::domain::event::Event;

/// Returns one of each, in the order of [`Event::KINDS`].
pub(crate) fn events() -> Vec<Event> {
    let (generation, release) = (Generation(42), ReleaseId(Digest([0xba; 32])));
    vec![
        Event::OrderAccepted(OrderAccepted {
            intent: IntentId([0x11; 16]),
            generation,
            release: Some(release),
            step: Step::Apply,
            plan: Digest([0xee; 32]),
            term: 3,
            controller: "c1".parse().unwrap(),
            verified_at: UnixMicros(1_795_356_130_114_000),
            wave: 2,
        }),
        Event::ReleaseStaged(ReleaseStaged {
            generation,
            release,
            version: "2.5.0".to_owned(),
            artifact: Some(Digest([0xbb; 32])),
            tree: Some(Digest([0xab; 32])),
            bytes: 3_145_728,
            took_ms: 420,
        }),
        Event::ReleaseApplied(ReleaseApplied {
            generation,
            release,
            step: Step::Apply,
            now: Some(release),
            version: "2.5.0".to_owned(),
            spec: Digest([0x88; 32]),
            min_healthy_ms: 10_000,
            healthy_by: UnixMicros(1_795_356_190_114_000),
            checks: vec!["app".parse().unwrap()],
            by_process: false,
            after: Vec::new(),
            keep: 5,
            plan: Some(Digest([0xee; 32])),
            term: Some(3),
        }),
        Event::ReleaseHealthy(ReleaseHealthy {
            generation,
            release,
            running: Some(Digest([0xdd; 32])),
            ready_ms: 2_100,
            held_ms: 10_000,
        }),
        Event::ReleaseFailed(ReleaseFailed {
            generation,
            release,
            step: Step::Apply,
            phase: Phase::Starting,
            code: "E0701".to_owned(),
            why: "it ended before it was healthy".to_owned(),
            instance: Some(InstanceId { service: "web".parse().unwrap(), index: 0 }),
            result: Some(RunResult::ExitCode),
            exit: Some(Exit::Code(1)),
            ran_ms: Some(311),
            tail: Some(Detached { hash: Digest([0x99; 32]), bytes: 812 }),
            returns: true,
        }),
        Event::ReleaseReturned(ReleaseReturned {
            generation: Generation(43),
            release,
            to: Some(ReleaseId(Digest([0xcc; 32]))),
            took_ms: 190,
            kept_serving: false,
        }),
        Event::ReleaseRemoved(ReleaseRemoved { generation }),
        Event::ReleaseRefused(ReleaseRefused {
            intent: Some(IntentId([0x11; 16])),
            generation: Some(generation),
            release: Some(release),
            step: Step::Apply,
            term: 2,
            code: "E0321".to_owned(),
            why: "term 3 was seen".to_owned(),
            count: 1,
        }),
    ]
}
