//! A trust document that was put back: keys that were taken away do not get anything back by it.

use std::fs;

use smgr::domain::policy::Kind;
use smgr::head::folder::StateFolder;
use smgr::head::keyfile::{KeyName, load_key, load_trust};
use smgr::wire::codec;
use smgr::wire::envelope::seal;

use super::node::Node;
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
