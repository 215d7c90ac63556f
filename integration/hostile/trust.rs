//! A trust document that was put back: keys that were taken away do not get anything back by it.

use std::fs;

use smgr::domain::policy::Kind;
use smgr::head::folder::StateFolder;
use smgr::head::keyfile::{KeyName, load_key, load_trust};
use smgr::wire::codec;
use smgr::wire::envelope::seal;
use smgr::wire::key::Signer;
use smgr::wire::payload::Trust;

use super::envelopes::refused;
use super::node::{Node, count};
use crate::support::block_on;
use crate::support::process::kill_9;
use crate::support::wait::eventually;

#[test]
fn an_older_trust_document_is_not_obeyed_and_services_go_on() {
    let node = Node::up();
    let folder = StateFolder::new(node.machine.state());
    let versions = || -> Vec<u64> {
        let events = node.machine.events();
        let changed = events.iter().filter(|event| event["type"] == "trust.changed");
        changed.map(|event| event["data"]["version"].as_u64().unwrap()).collect()
    };
    let again = || kill_9(node.machine.part("agent"));
    let service = node.machine.ready("counter");
    assert_eq!(versions(), [2]);

    let second = fs::read(folder.trust()).unwrap();
    let (mut trust, _) = load_trust(&folder).unwrap();
    trust.version += 1;
    trust.revoked.push(node.job.kid());
    let root = load_key(&KeyName::Root.path(&folder)).unwrap();
    let third = seal(Kind::Trust, &codec::encode(&trust), &root);
    fs::write(folder.trust(), &third).unwrap();
    again();
    eventually("the next agent follows the later one", || (versions() == [2, 3]).then_some(()));

    fs::write(folder.trust(), &second).unwrap();
    again();
    let said = eventually("the next agent says why it follows nobody", || {
        let said = fs::read_to_string(folder.parts_log()).unwrap();
        said.contains("the trust document was set back").then_some(said)
    });
    assert!(said.contains("version 2") && said.contains("version 3"), "{said}");
    assert!(fs::exists(format!("/proc/{service}")).unwrap(), "services go on");

    fs::write(folder.trust(), &third).unwrap();
    assert_eq!(node.machine.ready("counter"), service);
    assert_eq!(versions(), [2, 3]);
}

#[test]
fn a_trust_document_that_comes_by_the_bus_counts_when_root_signed_it_next_and_no_other_does() {
    let node = Node::up();
    let folder = StateFolder::new(node.machine.state());
    let root = load_key(&KeyName::Root.path(&folder)).unwrap();
    let (second, _) = load_trust(&folder).unwrap();
    let third =
        Trust { version: 3, revoked: vec![node.former.kid(), node.job.kid()], ..second.clone() };
    let by = |trust: &Trust, root: &Signer| seal(Kind::Trust, &codec::encode(trust), root);
    let versions = || -> Vec<u64> {
        let events = node.machine.events();
        let changed = events.iter().filter(|event| event["type"] == "trust.changed");
        changed.map(|event| event["data"]["version"].as_u64().unwrap()).collect()
    };
    block_on(async {
        let before = node.state();
        let stranger = Signer::from_seed(&[9; 32]);
        for (name, code, bytes) in [
            ("set back", "E0335", by(&Trust { version: 1, ..second.clone() }, &root)),
            ("forked", "E0335", by(&Trust { version: 2, ..third.clone() }, &root)),
            (
                "of others",
                "E0335",
                by(&Trust { fleet: "other".parse().unwrap(), ..third.clone() }, &root),
            ),
            (
                "of a version that nobody knows",
                "E0311",
                by(&Trust { v: 9, ..third.clone() }, &root),
            ),
            ("by a stranger", "E0304", by(&third, &stranger)),
            ("by the operator", "E0304", by(&third, &node.operator)),
        ] {
            refused(&node.over_the_socket(&bytes).await, code, name);
        }
        assert_eq!(node.state().head, before.head);

        let job = node.dial(&"job".parse().unwrap()).await;
        let wish = || {
            let intent =
                smgr::wire::payload::Intent { iss: node.job.kid(), ..node.intent(count()) };
            seal(Kind::Intent, &codec::encode(&intent), &node.job)
        };
        refused(&node.over_the_bus(&job, &wish()).await, "E0323", "known and not granted");
        // Anybody may carry it.
        for _ in 0..3 {
            job.publish(&node.call(), by(&third, &root)).await.unwrap();
        }
        job.flush().await.unwrap();
        eventually("it counts, once", || (versions() == [2, 3]).then_some(()));
        refused(&node.over_the_socket(&wish()).await, "E0305", "taken back");
        assert_eq!(load_trust(&folder).unwrap().0, third);
        kill_9(node.machine.part("agent"));
        node.machine.ready("counter");
        refused(
            &node.over_the_socket(&wish()).await,
            "E0305",
            "taken back, and the agent is a new one",
        );
        assert_eq!(versions(), [2, 3]);
        node.state();
    });
}
