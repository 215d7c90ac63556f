//! Checks of a rollout by a program of the controller's machine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::Fleet;
use crate::releases::{archive, good, spec};

/// Says which nodes it was told of, and ends with the code that stands in a file.
const JUDGE: &str =
    "#!/bin/sh\necho \"$SMGR_SERVICE $SMGR_NODES\" >>FOLDER/told\nexit \"$(cat FOLDER/code)\"\n";

#[test]
fn a_program_judges_each_wave_by_its_exit_code_and_only_one_that_the_controller_was_given() {
    let fleet = Fleet::of(2);
    let folder = fleet.machine.folder();
    let checks = fleet.machine.state().join("config/checks.d");
    fs::create_dir(&checks).unwrap();
    let judge = checks.join("judge");
    fs::write(&judge, JUDGE.replace("FOLDER", folder.to_str().unwrap())).unwrap();
    fs::set_permissions(&judge, fs::Permissions::from_mode(0o755)).unwrap();
    let spec = spec(&fleet.machine, "");
    let deploy = |code: i32, version: &str, program: &str| {
        let text = fs::read_to_string(&spec).unwrap();
        let path = folder.join("judged.toml");
        let check = format!(
            "[rollout.check.judge]\nkind = \"exec\"\nexec = [\"{program}\"]\ninterval = \"1s\"\ncount = 1\n\
             on_inconclusive = \"fail\"\n"
        );
        fs::write(&path, format!("{text}{check}")).unwrap();
        let artifact = archive(&fleet.machine, version, &good(version)).display().to_string();
        let line = ["deploy", "web", "-f", path.to_str().unwrap(), "--artifact", &artifact];
        fleet.machine.exits(code, &[&line[..], &["--release-version", version]].concat())
    };
    let says = |code: &str| fs::write(folder.join("code"), code).unwrap();
    says("0");
    deploy(0, "1.0", "judge");
    deploy(0, "2.0", "judge");
    let told = fs::read_to_string(folder.join("told")).unwrap();
    let last: Vec<_> = told.lines().last().unwrap().split(' ').collect();
    assert_eq!(last.len(), 3, "after the last wave both nodes run it: {told}");
    assert!(told.lines().any(|line| line.split(' ').count() == 2), "the canary alone: {told}");

    for (code, words) in [("1", "check judge failed"), ("75", "check judge could not be judged")] {
        says(code);
        let said = deploy(10, "3.0", "judge");
        assert!(said.contains("rolled_back"), "{said}");
        let rollouts = fleet.machine.json(&["rollout", "list"]);
        let name = rollouts["rollouts"][0]["rollout"].as_str().unwrap();
        let why = fleet.machine.json(&["rollout", "show", name])["why"].to_string();
        assert!(why.contains(words), "{why}");
    }
    for program in ["/bin/true", "../judge", "nobody"] {
        let said = deploy(8, "4.0", program);
        assert!(said.contains("rollout.check.judge"), "{said}");
    }
}
