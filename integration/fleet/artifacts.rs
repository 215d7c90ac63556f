//! Artifacts that lie on the bus: for nodes that have no file of the machine where somebody typed `deploy`.

use std::fs;

use sha2::{Digest as _, Sha256};

use super::Fleet;
use crate::releases::{archive, good, spec};

#[test]
fn an_artifact_is_on_the_bus_for_nodes_that_do_not_have_its_file() {
    let fleet = Fleet::of(2);
    let path = spec(&fleet.machine, "");
    let artifact = archive(&fleet.machine, "one", &good("1"));
    let sha256: String = Sha256::digest(fs::read(&artifact).unwrap())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let deploy = |code: i32, artifact: &str, node: &str| {
        let line =
            ["deploy", "web", "-f", &path, "--artifact", artifact, "--release-version", "1.0"];
        fleet.machine.exits(code, &[&line[..], &["--select", &format!("name={node}")]].concat())
    };
    deploy(0, artifact.to_str().unwrap(), "n1");
    fs::remove_file(&artifact).unwrap();
    let named = format!("nats:smgr-artifacts-local/{sha256}.tar.gz");
    deploy(0, &named, "n2");
    let status = fleet.machine.json(&["status", "web@n2"]);
    assert_eq!(status["instances"][0]["release"]["version"], "1.0", "{status}");

    for (code, named, why) in [
        (5, "nats:smgr-artifacts-local/nothing", "holds no `nothing`"),
        (5, "nats:elsewhere/nothing", "no bucket `elsewhere`"),
        (8, "nats:", "cannot be read"),
    ] {
        let said = deploy(code, named, "n2");
        assert!(said.contains(why), "{named}: {said}");
    }
}
