//! Checks of a rollout: by a program of the controller's machine, and by a query to a server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;

use super::Fleet;
use crate::releases::{archive, good, spec};
use crate::support::wait::wait_until;
use crate::support::web::{certificate, serve};

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

#[test]
fn an_alert_on_a_log_pattern_judges_each_wave_and_a_node_that_is_away_is_not_taken_for_a_quiet_one()
{
    let fleet = Fleet::of(2);
    let path = spec(&fleet.machine, "[alert.errors]\non = \"log\"\nmatch = \"ERROR .*database\"");
    let text = fs::read_to_string(&path).unwrap();
    let write = |count: u8| {
        let check = format!(
            "[rollout.check.quiet]\nkind = \"log_alert\"\nalert = \"errors\"\ninterval = \"1s\"\n\
             count = {count}\non_inconclusive = \"pause\"\n"
        );
        fs::write(&path, format!("{text}{check}")).unwrap();
    };
    let deploy = |code: i32, version: &str, script: &str, more: &[&str]| {
        let artifact = archive(&fleet.machine, version, script).display().to_string();
        let line = ["deploy", "web", "-f", &path, "--artifact", &artifact];
        let line = [&line[..], &["--release-version", version], more].concat();
        fleet.machine.exits(code, &line)
    };
    let last = || {
        let rollouts = fleet.machine.json(&["rollout", "list"]);
        let name = rollouts["rollouts"][0]["rollout"].as_str().unwrap().to_owned();
        let shown = fleet.machine.json(&["rollout", "show", &name]);
        (name, shown["state"].as_str().unwrap().to_owned(), shown["why"].to_string())
    };
    write(2);
    deploy(0, "1.0", &good("1"), &[]);
    let said = deploy(10, "2.0", "echo ERROR in the database\nexec sleep 1000", &[]);
    assert!(said.contains("rolled_back"), "{said}");
    let (_, _, why) = last();
    assert!(why.contains("check quiet failed"), "{why}");

    // So many that the last ones fall behind the 17 s after which a node counts as silent.
    write(26);
    deploy(0, "3.0", &good("3"), &["--detach", "--select", "name=n2"]);
    wait_until("its node is healthy", || {
        let (name, _, _) = last();
        fleet.machine.json(&["rollout", "show", &name])["nodes"][0]["state"] == "healthy"
    });
    fleet.signal_agent("n2", Signal::STOP);
    wait_until("the rollout waits for a person", || last().1 == "paused");
    fleet.signal_agent("n2", Signal::CONT);
    let (_, _, why) = last();
    assert!(why.contains("is not heard"), "{why}");
}

/// An answer to a query, as Prometheus gives it.
fn vector(value: Option<&str>) -> Vec<u8> {
    let series = value.map(|value| format!(r#"{{"metric":{{}},"value":[1.5,"{value}"]}}"#));
    let result = series.unwrap_or_default();
    let data = format!(r#"{{"resultType":"vector","result":[{result}]}}"#);
    format!(r#"{{"status":"success","data":{data}}}"#).into_bytes()
}

#[test]
fn a_query_judges_each_wave_by_its_nodes_and_both_it_and_the_artifact_may_come_encrypted() {
    let mut fleet = Fleet::new();
    fleet.machine.env("SSL_CERT_FILE", &certificate("authority.pem"));
    fleet.up(2);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let figure = Arc::new(Mutex::new(Some("0.2")));
    let folder = fleet.machine.folder().to_owned();
    let url = {
        let (asked, figure) = (asked.clone(), figure.clone());
        serve(true, move |path| match path.strip_prefix("/api/v1/query?query=") {
            Some(query) => {
                asked.lock().unwrap().push(query.to_owned());
                vector(*figure.lock().unwrap())
            }
            None => fs::read(folder.join(path.trim_start_matches('/'))).unwrap_or_default(),
        })
    };
    let path = spec(&fleet.machine, "");
    let text = fs::read_to_string(&path).unwrap() + "max_parallel = [1]\n";
    let deploy = |code: i32, version: &str, url: &str| {
        let check = format!(
            "[rollout.check.errors]\nkind = \"prometheus\"\nurl = \"{url}\"\nmax = 0.5\ninterval = \"1s\"\n\
             query = 'sum(e{{node=~\"${{nodes}}\"}})'\ncount = 1\non_inconclusive = \"fail\"\n"
        );
        fs::write(&path, format!("{text}{check}")).unwrap();
        archive(&fleet.machine, version, &good(version));
        let artifact = format!("{url}/{version}.tar.gz");
        let line = ["deploy", "web", "-f", &path, "--artifact", &artifact];
        fleet.machine.exits(code, &[&line[..], &["--release-version", version]].concat())
    };
    deploy(0, "1.0", &url);
    let queries = std::mem::take(&mut *asked.lock().unwrap());
    let nodes: Vec<_> =
        queries.iter().map(|it| it.matches("n1").count() + it.matches("n2").count()).collect();
    assert_eq!((nodes.first(), nodes.last()), (Some(&1), Some(&2)), "{queries:?}");
    assert!(queries.last().unwrap().contains("n1%7Cn2"), "{queries:?}");

    for (value, words) in
        [(Some("0.51"), "check errors failed"), (None, "check errors could not be judged")]
    {
        *figure.lock().unwrap() = value;
        let said = deploy(10, "2.0", &url);
        assert!(said.contains("rolled_back"), "{said}");
        let rollouts = fleet.machine.json(&["rollout", "list"]);
        let name = rollouts["rollouts"][0]["rollout"].as_str().unwrap();
        let why = fleet.machine.json(&["rollout", "show", name])["why"].to_string();
        assert!(why.contains(words), "{why}");
    }
    // A server that cannot prove its name is not believed: here the name is none that the certificate holds.
    let said = deploy(5, "3.0", &url.replace("127.0.0.1", "localhost"));
    assert!(said.contains("E0704") && said.contains("not valid for name"), "{said}");
}
