//! What is told of rollouts: beforehand, step by step, and afterwards; and who gets a release that others got before.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Fleet;
use super::rollouts::{Shop, states};
use crate::releases::good;
use crate::support::process::{kill_9, signal};
use crate::support::wait::{eventually, wait_until};

const BAD: &str = "echo missing DATABASE_URL >&2; exit 1";

#[test]
fn a_rollout_is_told_step_by_step_and_stands_in_the_status_of_the_fleet() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let said = shop.deploy_with(0, "2.0", &good("2"), &["-o", "jsonl"]);
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, events) = lines.split_last().unwrap();
    assert_eq!((&last["schema"], &last["exit_code"]), (&"smgr.result.v1".into(), &0.into()));
    assert!(events.iter().all(|it| it["schema"] == "smgr.event.v1"), "{said}");
    let count = |kind: &str| events.iter().filter(|it| it["type"] == kind).count();
    let kinds = ["rollout.planned", "rollout.node_healthy", "rollout.ended", "release.healthy"];
    assert_eq!(kinds.map(count), [1, 3, 1, 3], "{said}");
    assert_eq!(events.last().unwrap()["type"], "rollout.ended", "{said}");

    let view = shop.last();
    let (before, asked) = (&view["generation"]["before"], view["generation"]["asked"].as_u64());
    assert_eq!(before.as_u64().map(|before| before + 2), asked, "{view}");
    shop.deploy(10, "bad", BAD);
    let view = shop.last();
    let [before, asked, now] = ["before", "asked", "now"].map(|it| view["generation"][it].as_u64());
    assert!(before < asked && now == asked.map(|asked| asked + 1), "{view}");
    let failed = view["nodes"].as_array().unwrap().iter().find(|it| !it["failure"].is_null());
    assert_eq!(failed.unwrap()["failure"]["log_tail"][0], "missing DATABASE_URL", "{view}");

    let status = shop.fleet.status();
    let rollouts = status["rollouts"].as_array().unwrap();
    assert_eq!(rollouts.len(), 1, "the last one of the service: {status}");
    let fields = ["rollout", "service", "kind", "state", "exit_code", "ended_at"];
    assert!(fields.iter().all(|field| !rollouts[0][*field].is_null()), "{status}");
    assert_eq!(rollouts[0]["state"], "rolled_back");
    let web = status["services"].as_array().unwrap().iter().find(|it| it["service"] == "web");
    assert_eq!(web.unwrap()["last_rollout"], view["rollout"]);
    let screen = shop.fleet.machine.exits(0, &["status"]);
    assert!(
        screen.contains("2.0 → bad") && screen.contains("rolled_back (exit code 10)"),
        "{screen}"
    );
}

#[test]
fn what_is_different_on_the_node_that_failed_is_shown_with_the_line_that_says_so() {
    let shop = Shop::of("[env]\nNODE = \"${node}\"\nMODE = \"new\"\n");
    let by_name = ["--set", "rollout.order=\"name\""];
    shop.deploy_with(0, "1.0", &good("1"), &by_name);
    let folder = shop.fleet.folder("n2").join("config/override.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("web.toml"), "umask = \"0077\"\n[env]\nMODE = \"old\"\n").unwrap();
    let script = "if [ \"$MODE\" = old ]; then exit 3; fi\nexec sleep 1000";
    shop.deploy_with(10, "2.0", script, &by_name);
    let name = shop.last()["rollout"].as_str().unwrap().to_owned();
    let view = shop.view(&name);
    let failure =
        &view["nodes"].as_array().unwrap().iter().find(|it| it["node"] == "n2").unwrap()["failure"];
    assert_eq!(failure["differs_from"], "n1", "where it became healthy: {view}");
    let of = |key: &str| {
        let all = failure["differences"].as_array().unwrap().iter();
        all.clone().find(|it| it["key"] == key).unwrap_or_else(|| panic!("{key}: {failure}"))
    };
    assert_eq!((&of("umask")["here"], &of("umask")["there"]), (&json!("0077"), &json!("0022")));
    assert_eq!(of("umask")["here_origin"]["line"], 1, "{failure}");
    let mode = of("env.MODE");
    assert_eq!((&mode["here"], &mode["here_origin"]["layer"]), (&json!(null), &json!("node")));
    assert_eq!(mode["there_origin"]["layer"], "release", "{failure}");
    assert_eq!(failure["differences"].as_array().unwrap().len(), 2, "{failure}");
    let screen = shop.fleet.machine.exits(0, &["rollout", "show", &name]);
    assert!(
        screen.contains("DIFFERENT ON n2   (against n1, where 2.0 became healthy)"),
        "{screen}"
    );
    assert!(screen.contains("override.d/web.toml:1"), "{screen}");
}

#[test]
fn that_the_old_instance_kept_serving_is_said_where_it_did_and_only_there() {
    let shop = Shop::of("[update]\nmethod = \"handover\"\n[ready]\nby = \"fd\"\nfd = 3\n");
    let ready = |version| format!("echo ready >&3\n{}", good(version));
    shop.deploy(0, "1.0", &ready("1"));
    shop.deploy(10, "bad", BAD);
    let kept = |view: &Value| {
        let nodes = view["nodes"].as_array().unwrap().iter();
        let touched = nodes.filter(|it| !it["started_at"].is_null());
        touched.map(|it| it["old_kept_serving"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(kept(&shop.last()), [json!(true)], "{}", shop.last());
    // With a method that stops the old one first, it did not.
    let restart = ["--set", "update.method=\"restart\""];
    shop.deploy_with(0, "2.0", &ready("2"), &restart);
    shop.deploy_with(10, "worse", "exit 2", &restart);
    assert_eq!(kept(&shop.last()), [json!(false)], "{}", shop.last());
}

#[test]
fn a_plan_shows_the_waves_what_changes_for_whom_and_the_way_back_and_does_nothing() {
    let shop = Shop::open();
    let plan = |version: &str, more: &[&str]| {
        let artifact = shop.pack(version, &good(version));
        let line = ["plan", "web", "-f", &shop.spec, "--artifact", &artifact];
        let named = ["--release-version", version];
        let line = [&line[..], &named[..], more].concat();
        let document = shop.fleet.machine.json(&line);
        let exit = if document["changed"] == false { 0 } else { 20 };
        (shop.fleet.machine.exits(exit, &line), document)
    };
    let (text, document) = plan("1.0", &[]);
    assert!(text.contains("new → 1.0 on 3 nodes") && text.contains("first release"), "{text}");
    assert_eq!(document["plan"]["waves"].as_array().unwrap().len(), 1, "all at once: {document}");
    assert_eq!(document["plan"]["rollback"]["possible"], false, "{document}");
    assert!(shop.list().is_empty());
    shop.deploy(0, "1.0", &good("1.0"));
    let (text, document) = plan("1.0", &[]);
    assert!(text.contains("nothing changes") && document["changed"] == false, "{text}");
    let more = ["--set", "stop.timeout=\"3s\"", "--set", "rollout.order=\"name\""];
    let (text, document) = plan("2.0", &more);
    for said in [
        "1.0 → 2.0 on 3 nodes",
        "back to 1.0 if it fails",
        "1 canary    n1",
        "no check counts",
        "CHANGES against 1.0 on n1 n2 n3",
        "\"2s\" → \"3s\"",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert_eq!(document["plan"]["waves"][0]["nodes"], json!(["n1"]), "{document}");
    assert_eq!(shop.list().len(), 1, "nothing was done");
    shop.fleet.machine.exits(2, &["plan", "web", "--select", "*"]);
    let spec = ["plan", "-f", &shop.spec];
    assert!(shop.fleet.machine.exits(2, &spec).contains("name it"));
}

#[test]
fn a_retry_goes_on_with_the_nodes_that_are_left_and_does_not_redo_what_passed() {
    let shop = Shop::of("[env]\nNODE = \"${node}\"\n");
    let set = ["--set", "rollout.order=\"name\"", "--set", "rollout.on_failure=\"stop\""];
    shop.deploy_with(0, "1.0", &good("1"), &set);
    let cure = shop.fleet.machine.folder().join("cure");
    let script = format!(
        "if [ \"$NODE\" = n2 ] && [ ! -e {} ]; then exit 3; fi\nexec sleep 1000",
        cure.display()
    );
    shop.deploy_with(11, "2.0", &script, &set);
    let first = shop.last();
    let name = first["rollout"].as_str().unwrap().to_owned();
    fs::write(&cure, "").unwrap();
    shop.fleet.machine.exits(0, &["rollout", "retry", &name]);
    let view = shop.last();
    let expected = [("n2".to_owned(), "healthy".to_owned()), ("n3".into(), "healthy".into())];
    assert_eq!(states(&view), expected, "{view}");
    assert_eq!(view["plan"]["waves"][0]["kind"], "batch", "the canary has passed: {view}");
    assert_eq!(view["to"]["digest"], first["to"]["digest"]);
    assert_eq!(shop.applied("n1", &view["generation"]["asked"]), 0, "{view}");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "2.0");
    }
    let done =
        shop.fleet.machine.exits(6, &["rollout", "retry", view["rollout"].as_str().unwrap()]);
    assert!(done.contains("E0722"), "{done}");

    // A canary that went back proves nothing any more: the retry begins with one.
    let name = {
        shop.deploy(10, "bad", BAD);
        shop.last()["rollout"].as_str().unwrap().to_owned()
    };
    shop.fleet.machine.exits(10, &["rollout", "retry", &name]);
    assert_eq!(shop.last()["plan"]["waves"][0]["kind"], "canary");
}

#[test]
fn a_node_that_joins_late_gets_what_the_others_run() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    shop.deploy_with(0, "2.0", &good("2"), &["--select", "name=n1|n2"]);
    shop.fleet.machine.exits(0, &["down"]);
    shop.fleet.up(4);
    eventually("n4 runs what all nodes were to run", || {
        let there = shop.fleet.machine.smgr(&["status", "web@n4"]).status.code() != Some(4);
        (there && shop.runs("n4") == "1.0").then_some(())
    });
    assert_eq!(shop.runs("n1"), "2.0");
    // What is bad is not given to anybody.
    shop.deploy(10, "bad", BAD);
    wait_until("it goes on", || shop.runs("n4") == "1.0");
    assert_eq!(shop.list().len(), 3);
}

#[test]
fn a_deploy_that_stands_in_the_queue_begins_when_the_one_before_it_has_ended() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let first = shop.begin("2.0", "1s");
    let queue = ["--set", "rollout.on_conflict=\"queue\""];
    let detached = shop.deploy_with(6, "3.0", &good("3"), &[&queue[..], &["--detach"]].concat());
    assert!(detached.contains("E0721") && detached.contains("queue"), "{detached}");
    let said = shop.deploy_with(0, "3.0", &good("3"), &queue);
    assert!(said.contains(&format!("waits for the end of {first}")), "{said}");
    assert!(said.contains("2.0 → 3.0") && said.contains("3.0 on 3 of 3 nodes"), "{said}");
    assert_eq!(shop.view(&first)["state"], "succeeded");
}

#[test]
fn a_node_that_no_controller_reaches_finishes_its_step_and_reports_later() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let slow = format!("sleep 1\n{}", good("2"));
    let more = ["--set", "rollout.min_healthy_time=\"2s\"", "--detach"];
    shop.deploy_with(0, "2.0", &slow, &more);
    let name = shop.last()["rollout"].as_str().unwrap().to_owned();
    let view = shop.view(&name);
    let generation = view["generation"]["asked"].clone();
    let canary = view["plan"]["waves"][0]["nodes"][0].as_str().unwrap().to_owned();
    wait_until("the canary is at it", || shop.applied(&canary, &generation) == 1);
    let controller = shop.fleet.pid("controller-c1");
    signal(controller, Signal::STOP);
    let is_healthy = |event: &Value| {
        event["type"] == "release.healthy" && event["data"]["generation"] == generation
    };
    wait_until("it is healthy by itself", || shop.events(&canary).iter().any(is_healthy));
    for node in ["n1", "n2", "n3"].into_iter().filter(|node| *node != canary) {
        assert_eq!(shop.applied(node, &generation), 0, "{node} begins nothing");
    }
    signal(controller, Signal::CONT);
    shop.fleet.machine.exits(0, &["rollout", "watch", &name]);
    assert_eq!(shop.applied(&canary, &generation), 1);
}

#[test]
fn why_a_release_failed_is_shown_when_its_node_is_gone_and_the_controller_began_anew() {
    let shop = Shop::of("[env]\nMODE = \"new\"\n");
    let by_name = ["--set", "rollout.order=\"name\""];
    shop.deploy_with(0, "1.0", &good("1"), &by_name);
    let folder = shop.fleet.folder("n2").join("config/override.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("web.toml"), "[env]\nMODE = \"old\"\n").unwrap();
    let script = "if [ \"$MODE\" = old ]; then\n  for n in $(seq 30); do echo \"line $n\"; done\n  \
                  echo missing DATABASE_URL >&2; exit 3; fi\nexec sleep 1000";
    shop.deploy_with(10, "2.0", script, &by_name);
    let name = shop.last()["rollout"].as_str().unwrap().to_owned();
    shop.fleet.kill_node("n2");
    let leader = shop.fleet.pid("controller-c1");
    kill_9(leader);
    wait_until("the controller began anew", || shop.fleet.pid("controller-c1") != leader);
    let view = eventually("somebody leads", || {
        let ran = shop.fleet.machine.smgr(&["rollout", "show", &name, "-o", "json"]);
        serde_json::from_slice::<Value>(&ran.stdout).ok().filter(|_| ran.status.success())
    });
    let nodes = view["nodes"].as_array().unwrap();
    let failure = &nodes.iter().find(|it| it["node"] == "n2").unwrap()["failure"];
    let tail: Vec<_> = failure["log_tail"].as_array().unwrap().iter().collect();
    assert_eq!(
        (tail.len(), tail[0], tail[19]),
        (20, &json!("line 12"), &json!("missing DATABASE_URL"))
    );
    let screen = shop.fleet.machine.exits(0, &["rollout", "show", &name]);
    assert!(screen.contains("missing DATABASE_URL"), "{screen}");
    shop.fleet.up_again();
}

#[test]
fn the_configuration_of_a_service_on_another_node_is_shown_with_the_origin_of_each_value() {
    let fleet = Fleet::new();
    fleet.service("n2", "web", "exec = [\"sleep\", \"1000\"]\n[env]\nTOKEN = \"xyzzy\"\n");
    let folder = fleet.folder("n2").join("config/override.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("web.toml"), "umask = \"0077\"\n").unwrap();
    fleet.up(2);
    let said = fleet.machine.exits(0, &["config", "show", "web@n2", "--origin", "--hidden"]);
    for part in ["override.d/web.toml:1 (7)", "services.d/web.toml:", "built-in (1)", "(not told)"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("xyzzy"), "a value of the environment may be a secret: {said}");
    // Where it is nowhere else, the node need not be named.
    let shown = fleet.machine.json(&["config", "show", "web", "umask"]);
    let key = &shown["keys"][0];
    assert_eq!(
        (&key["value"], &key["origin"]["layer"]),
        (&json!("0077"), &json!("node")),
        "{shown}"
    );
    assert_eq!(shown["in_force"], true, "{shown}");
    fs::write(folder.join("web.toml"), "umask = \"0027\"\n").unwrap();
    let ran = fleet.machine.smgr(&["config", "show", "web@n2", "umask"]);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(said.contains("not all of it is in force on n2"), "{said}");
    fleet.machine.exits(4, &["config", "show", "job@n2"]);
    fleet.machine.exits(2, &["config", "show", "web/0@n2"]);
}

#[test]
fn a_release_that_passes_the_canary_in_an_emergency_is_alarmed() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let reason = ["--emergency", "checkout is down"];
    shop.deploy_with(0, "2.0", &good("2"), &reason);
    let text = shop.fleet.machine.exits(0, &["events", "--fleet", "-o", "json"]);
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let alerts: Vec<_> = events
        .filter(|it| it["type"].as_str().is_some_and(|it| it.starts_with("alert.")))
        .collect();
    let kinds: Vec<_> = alerts.iter().map(|it| (&it["type"], &it["data"]["alert"])).collect();
    let name = json!("web/emergency");
    assert_eq!(
        kinds,
        [(&json!("alert.fired"), &name), (&json!("alert.resolved"), &name)],
        "{text}"
    );
    let fired = &alerts[0];
    assert_eq!(
        (&fired["origin"], &fired["severity"]),
        (&json!("c1"), &json!("warning")),
        "{fired}"
    );
    let summary = fired["data"]["summary"].as_str().unwrap();
    assert!(summary.contains("checkout is down"), "{fired}");
    assert_eq!(fired["by"]["name"], "operator", "{fired}");
}

#[test]
fn a_way_back_that_failed_is_alarmed_until_a_release_succeeds() {
    let shop = Shop::of("[ready]\nby = \"fd\"\nfd = 3\n");
    let broken = shop.fleet.machine.folder().join("broken");
    let path = broken.display();
    let fragile = format!("if [ -e {path} ]; then exit 4; fi\necho ready >&3\nexec sleep 1000");
    shop.deploy(0, "1.0", &fragile);
    shop.deploy(12, "2.0", &format!("touch {path}; exit 1"));
    fs::remove_file(&broken).unwrap();
    let alerts = || {
        let text = shop.fleet.machine.exits(0, &["events", "--fleet", "-o", "json"]);
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let own = events.filter(|it| it["data"]["alert"] == "web/rollback-failed");
        own.map(|it| it["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(alerts(), ["alert.fired"]);
    // The node goes on trying what ran before, and needs nobody to say so once its trouble is over.
    let canary = shop.last()["plan"]["waves"][0]["nodes"][0].as_str().unwrap().to_owned();
    eventually("1.0 is up again", || {
        let status = shop.fleet.machine.json(&["status", &format!("web@{canary}")]);
        let web = &status["instances"][0];
        let ready = web["conditions"]["Ready"]["status"] == "true";
        (ready && web["release"]["version"] == "1.0").then_some(())
    });
    assert_eq!(alerts(), ["alert.fired"], "that is for a person to look at all the same");
    shop.deploy(0, "3.0", &format!("echo ready >&3\n{}", good("3")));
    assert_eq!(alerts(), ["alert.fired", "alert.resolved"]);
}
