//! Releases over a fleet: wave by wave, taken back where they fail, whoever leads.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::Fleet;
use super::leaders::fleet_of_two_controllers;
use crate::releases::{archive, good, spec};
use crate::support::process::{kill_9, signal};
use crate::support::wait::{eventually, wait_until};

/// A fleet of three nodes, and what is deployed on it.
pub(super) struct Shop {
    pub(super) fleet: Fleet,
    pub(super) spec: String,
}

impl Shop {
    pub(super) fn open() -> Self {
        Self::of("")
    }

    /// The same with more in the spec.
    pub(super) fn of(more: &str) -> Self {
        let fleet = Fleet::of(3);
        let spec = spec(&fleet.machine, more);
        Self { fleet, spec }
    }

    fn on(fleet: Fleet) -> Self {
        let spec = spec(&fleet.machine, "");
        Self { fleet, spec }
    }

    /// Returns the archive of a version, the same one each time.
    pub(super) fn pack(&self, version: &str, script: &str) -> String {
        let packed = self.fleet.machine.folder().join(format!("{version}.tar.gz"));
        match packed.exists() {
            true => packed.display().to_string(),
            false => archive(&self.fleet.machine, version, script).display().to_string(),
        }
    }

    /// Deploys a release on all nodes and demands the exit code.
    pub(super) fn deploy(&self, code: i32, version: &str, script: &str) -> String {
        self.deploy_with(code, version, script, &[])
    }

    pub(super) fn deploy_with(
        &self,
        code: i32,
        version: &str,
        script: &str,
        more: &[&str],
    ) -> String {
        let artifact = self.pack(version, script);
        let line = ["deploy", "web", "-f", &self.spec, "--artifact", &artifact];
        let named = ["--release-version", version];
        self.fleet.machine.exits(code, &[&line[..], &named[..], more].concat())
    }

    /// Begins a rollout that rests after each wave, and returns its name.
    pub(super) fn begin(&self, version: &str, rest: &str) -> String {
        let rest = format!("rollout.bake_time=\"{rest}\"");
        self.deploy_with(0, version, &good(version), &["--set", &rest, "--detach"]);
        self.list()[0]["rollout"].as_str().unwrap().to_owned()
    }

    pub(super) fn view(&self, name: &str) -> Value {
        self.fleet.machine.json(&["rollout", "show", name])
    }

    /// Returns how often each node was switched to a wish's release.
    pub(super) fn applied(&self, node: &str, generation: &Value) -> usize {
        let is_it = |event: &&Value| {
            event["type"] == "release.applied" && event["data"]["generation"] == *generation
        };
        self.events(node).iter().filter(is_it).count()
    }

    pub(super) fn list(&self) -> Vec<Value> {
        let document = self.fleet.machine.json(&["rollout", "list"]);
        document["rollouts"].as_array().unwrap().clone()
    }

    /// Returns the rollout that was asked for last.
    pub(super) fn last(&self) -> Value {
        let name = self.list()[0]["rollout"].as_str().unwrap().to_owned();
        self.view(&name)
    }

    /// Returns the version that a node runs, by its own word.
    pub(super) fn runs(&self, node: &str) -> Value {
        let status = self.fleet.machine.json(&["status", &format!("web@{node}")]);
        status["instances"][0]["release"]["version"].clone()
    }

    pub(super) fn events(&self, node: &str) -> Vec<Value> {
        let text = self.fleet.machine.exits(0, &["events", "--node", node, "-o", "json"]);
        let lines = text.lines().filter(|line| line.contains("smgr.event.v1"));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub(super) fn states(view: &Value) -> Vec<(String, String)> {
    let nodes = view["nodes"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    nodes.map(|node| (text(&node["node"]), text(&node["state"]))).collect()
}

#[test]
fn a_release_goes_over_the_fleet_with_the_canary_first_and_back_again() {
    let shop = Shop::open();
    let said = shop.deploy(0, "1.0", &good("1"));
    assert!(said.contains("succeeded") && said.contains("1.0 on 3 of 3 nodes"), "{said}");
    // Whoever waits hears of the end when it comes, not when a question for it has run out.
    let said = shop.deploy_with(0, "2.0", &good("2"), &["--timeout", "15s"]);
    assert!(said.contains("1 canary") && said.contains("2.0 on 3 of 3 nodes"), "{said}");
    let view = shop.last();
    assert_eq!(view["state"], "succeeded", "{view}");
    assert_eq!((&view["exit_code"], &view["changed"]), (&0.into(), &true.into()));
    assert_eq!(view["plan"]["waves"][0]["kind"], "canary");
    assert!(states(&view).iter().all(|(_, state)| state == "healthy"), "{view}");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "2.0");
    }
    // What runs everywhere is not touched again.
    let said = shop.deploy(0, "2.0", &good("2"));
    assert!(said.contains("nothing to change"), "{said}");
    let said = shop.fleet.machine.exits(0, &["rollback", "web"]);
    assert!(said.contains("1.0 on 3 of 3 nodes"), "{said}");
    let screen =
        shop.fleet.machine.exits(0, &["rollout", "show", shop.last()["rollout"].as_str().unwrap()]);
    assert!(screen.contains("WAVES") && screen.contains("healthy"), "{screen}");
}

#[test]
fn a_bad_release_stays_in_the_canary_and_is_taken_back() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let said = shop.deploy(10, "bad", "echo missing DATABASE_URL >&2; exit 1");
    assert!(said.contains("exited with code 1 after") && said.contains("rolled_back"), "{said}");
    assert!(said.contains(": missing DATABASE_URL\n"), "{said}");
    let view = shop.last();
    assert_eq!((&view["state"], &view["exit_code"]), (&"rolled_back".into(), &10.into()));
    let why: Vec<_> = view["why"].as_array().unwrap().iter().map(|it| it["kind"].clone()).collect();
    assert_eq!(why.first(), Some(&"instance_exited".into()), "{view}");
    let generation = &view["generation"]["asked"];
    let canary = view["plan"]["waves"][0]["nodes"][0].as_str().unwrap();
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "1.0");
        let expected = usize::from(node == canary);
        assert_eq!(shop.applied(node, generation), expected, "{node}: {view}");
    }
    let shown = shop
        .fleet
        .machine
        .exits(10, &["rollout", "show", view["rollout"].as_str().unwrap(), "--exit-code"]);
    assert!(shown.contains("WHY") && shown.contains("exited with code 1"), "{shown}");
    assert!(shown.contains("| missing DATABASE_URL"), "its last words: {shown}");
}

#[test]
fn a_rollout_goes_on_when_its_leader_is_killed_and_no_node_is_touched_twice() {
    let shop = Shop::on(fleet_of_two_controllers());
    eventually("one leads", || shop.fleet.status()["controllers"]["leader"].as_str().map(drop));
    shop.deploy(0, "1.0", &good("1"));
    let name = shop.begin("2.0", "3s");
    let leader = shop.fleet.status()["controllers"]["leader"].as_str().unwrap().to_owned();
    wait_until("the canary is healthy", || {
        shop.fleet.machine.smgr(&["rollout", "show", &name]).status.success()
            && states(&shop.view(&name)).iter().any(|(_, state)| state == "healthy")
    });
    kill_9(shop.fleet.pid(&format!("controller-{leader}")));
    let said = shop.fleet.machine.exits(0, &["rollout", "watch", &name]);
    assert!(said.contains("2.0 on 2 of 2 nodes"), "{said}");
    let view = shop.view(&name);
    for node in ["n1", "n2"] {
        assert_eq!(shop.applied(node, &view["generation"]["asked"]), 1, "{view}");
    }
    let events = shop.fleet.machine.exits(0, &["events", "--fleet"]);
    assert!(events.contains("in term"), "somebody took over: {events}");
}

#[test]
fn a_single_controller_that_is_killed_goes_on_where_it_was() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let name = shop.begin("2.0", "2s");
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(1));
        kill_9(shop.fleet.pid("controller-c1"));
    }
    let said = shop.fleet.machine.exits(0, &["rollout", "watch", &name]);
    assert!(said.contains("2.0 on 3 of 3 nodes"), "{said}");
    let generation = &shop.view(&name)["generation"]["asked"];
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.applied(node, generation), 1, "{node}");
    }
}

#[test]
fn a_successor_that_never_heard_the_wish_asks_for_it() {
    let shop = Shop::on(fleet_of_two_controllers());
    eventually("one leads", || shop.fleet.status()["controllers"]["leader"].as_str().map(drop));
    shop.deploy(0, "1.0", &good("1"));
    let leader = shop.fleet.status()["controllers"]["leader"].as_str().unwrap().to_owned();
    let other = if leader == "c1" { "c2" } else { "c1" };
    let name = shop.begin("2.0", "4s");
    let wishes = shop.fleet.folder(other).join("wishes");
    wait_until("the other one knows of the rollout", || {
        let kept = std::fs::read_dir(&wishes).unwrap().count();
        kept > 1
    });
    let mut kept: Vec<_> =
        std::fs::read_dir(&wishes).unwrap().map(|entry| entry.unwrap().path()).collect();
    kept.sort_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap());
    // What stands under its name is another wish, as when somebody sent again what was refused before.
    let (first, last) = (&kept[0], &kept[kept.len() - 1]);
    std::fs::copy(first, last).unwrap();
    for path in &kept[..kept.len() - 1] {
        std::fs::remove_file(path).unwrap();
    }
    // So it has nothing but the facts; the one that knows the wish leads no more.
    kill_9(shop.fleet.pid(&format!("controller-{other}")));
    wait_until("it is back", || shop.fleet.pid(&format!("controller-{other}")) > 0);
    let stuck = shop.fleet.pid(&format!("controller-{leader}"));
    signal(stuck, Signal::STOP);
    wait_until("the other one leads", || {
        shop.fleet.status()["controllers"]["leader"].as_str() == Some(other)
    });
    signal(stuck, Signal::CONT);
    let said = shop.fleet.machine.exits(0, &["rollout", "watch", &name]);
    assert!(said.contains("2.0 on 2 of 2 nodes"), "{said}");
    for node in ["n1", "n2"] {
        assert_eq!(shop.runs(node), "2.0");
    }
}

#[test]
fn a_leader_that_was_stuck_and_goes_on_changes_nothing_that_its_successor_led() {
    let shop = Shop::on(fleet_of_two_controllers());
    eventually("one leads", || shop.fleet.status()["controllers"]["leader"].as_str().map(drop));
    shop.deploy(0, "1.0", &good("1"));
    let name = shop.begin("2.0", "3s");
    let leader = shop.fleet.status()["controllers"]["leader"].as_str().unwrap().to_owned();
    let stuck = shop.fleet.pid(&format!("controller-{leader}"));
    signal(stuck, Signal::STOP);
    let said = shop.fleet.machine.exits(0, &["rollout", "watch", &name]);
    assert!(said.contains("2.0 on 2 of 2 nodes"), "{said}");
    let truth = shop.view(&name);
    assert_eq!(truth["led_by"].as_array().unwrap().len(), 2, "{truth}");
    signal(stuck, Signal::CONT);
    wait_until("the first one follows", || {
        shop.fleet.machine.exits(0, &["events", "--fleet"]).contains("leads no more")
    });
    // Whichever controller answers, once it has heard of all that happened meanwhile.
    let same = |view: &Value| {
        ["why", "state", "facts", "led_by"].iter().all(|key| view[*key] == truth[*key])
    };
    wait_until("both tell the same", || (0..4).all(|_| same(&shop.view(&name))));
    for node in ["n1", "n2"] {
        assert_eq!(shop.applied(node, &truth["generation"]["asked"]), 1, "{truth}");
    }
}

#[test]
fn what_fails_behind_the_canary_takes_the_canary_back_as_well() {
    let shop = Shop::of("[env]\nNODE = \"${node}\"\n");
    let by_name = ["--set", "rollout.order=\"name\""];
    shop.deploy_with(0, "1.0", &good("1"), &by_name);
    let only_here = "if [ \"$NODE\" = n2 ]; then exit 3; fi\nexec sleep 1000";
    let said = shop.deploy_with(10, "2.0", only_here, &by_name);
    assert!(said.contains("1 canary") && said.contains("exited with code 3"), "{said}");
    let view = shop.last();
    let state = |of: &str| states(&view).into_iter().find(|(node, _)| node == of).unwrap().1;
    assert_eq!((state("n1").as_str(), state("n2").as_str()), ("rolled_back", "failed"), "{view}");
    assert_eq!(state("n3"), "not_started", "{view}");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "1.0");
    }
}

#[test]
fn an_action_after_a_deploy_runs_on_each_node_once_and_takes_the_release_back_where_it_fails() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let shop = Shop::of(&format!(
        "[env]\nHERE = \"${{node}}\"\n[action.warm]\nafter = [\"deploy\"]\ntimeout = \"3s\"\n\
         exec = [\"sh\", \"-c\", \"echo x >>{at}/${{node}}; test ! -e {at}/cold || {{ echo cannot warm; exit 3; }}\"]\n"
    ));
    let runs = || {
        ["n1", "n2", "n3"].map(|node| {
            let text = std::fs::read_to_string(folder.path().join(node)).unwrap_or_default();
            text.lines().count()
        })
    };
    shop.deploy(0, "1.0", &good("1"));
    assert_eq!(runs(), [1, 1, 1]);
    std::fs::write(folder.path().join("cold"), "").unwrap();
    shop.deploy(10, "2.0", &good("2"));
    let view = shop.last();
    let canary = view["plan"]["waves"][0]["nodes"][0].as_str().unwrap();
    let failure = view["nodes"].as_array().unwrap().iter().find(|it| it["node"] == canary).unwrap();
    let failure = &failure["failure"];
    assert_eq!(
        (&failure["result"], &failure["exit"]["code"]),
        (&"action_failed".into(), &3.into())
    );
    assert!(failure["log_tail"].to_string().contains("cannot warm"), "{failure}");
    let screen =
        shop.fleet.machine.exits(0, &["rollout", "show", view["rollout"].as_str().unwrap()]);
    for told in ["action warm: it ran and failed", "exit code 3", "| cannot warm"] {
        assert!(screen.contains(told), "{told}: {screen}");
    }
    assert_eq!(runs().iter().sum::<usize>(), 4, "on the canary, and not behind the way back");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "1.0");
    }
}

#[test]
fn a_paused_rollout_touches_no_further_node_until_it_is_resumed() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let name = shop.begin("2.0", "2s");
    let said = shop.fleet.machine.exits(0, &["rollout", "pause", &name]);
    assert!(said.contains("paused"), "{said}");
    let twice = shop.fleet.machine.exits(6, &["rollout", "pause", &name]);
    assert!(twice.contains("E0722"), "{twice}");
    wait_until("the canary is healthy", || {
        states(&shop.view(&name)).iter().any(|(_, state)| state == "healthy")
    });
    // Longer than the rest after the wave.
    thread::sleep(Duration::from_secs(4));
    let view = shop.view(&name);
    let touched = states(&view).iter().filter(|(_, state)| state != "not_started").count();
    assert_eq!((&view["state"], touched), (&"paused".into(), 1), "{view}");
    shop.fleet.machine.exits(0, &["rollout", "resume", &name]);
    shop.fleet.machine.exits(0, &["rollout", "watch", &name]);
    assert_eq!(shop.runs("n3"), "2.0");
    shop.fleet.machine.exits(6, &["rollout", "abort", &name]);

    // What is aborted goes back.
    let name = shop.begin("3.0", "2s");
    wait_until("the canary is healthy", || {
        states(&shop.view(&name)).iter().any(|(_, state)| state == "healthy")
    });
    shop.fleet.machine.exits(0, &["rollout", "abort", &name]);
    shop.fleet.machine.exits(13, &["rollout", "watch", &name]);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "2.0");
    }
}

#[test]
fn a_rollout_that_waits_for_a_person_ends_with_14_and_goes_on_as_that_one_says() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let name = || shop.list()[0]["rollout"].as_str().unwrap().to_owned();
    let touched =
        |view: &Value| states(view).iter().filter(|(_, state)| state != "not_started").count();
    // Behind the canary, where it is not to go on by itself.
    let by_hand = ["--set", "rollout.auto_promote=false"];
    let said = shop.deploy_with(14, "2.0", &good("2"), &by_hand);
    assert!(said.contains("it waits for a person: smgr rollout show"), "{said}");
    let view = shop.view(&name());
    assert_eq!((&view["state"], touched(&view)), (&"awaiting_promotion".into(), 1), "{view}");
    let shown = shop.fleet.machine.exits(14, &["rollout", "show", &name(), "--exit-code"]);
    assert!(shown.contains(&format!("smgr rollout promote {}", name())), "{shown}");
    let said = shop.fleet.machine.exits(6, &["rollout", "approve", &name()]);
    assert!(said.contains("waits for no approval"), "{said}");
    shop.fleet.machine.exits(0, &["rollout", "promote", &name()]);
    let said = shop.fleet.machine.exits(0, &["rollout", "watch", &name()]);
    assert!(said.contains("2.0 on 3 of 3 nodes"), "{said}");
    assert!(shop.fleet.machine.exits(6, &["rollout", "promote", &name()]).contains("E0722"));

    // Behind each wave, the last one too, where a person is the health check.
    shop.deploy_with(14, "3.0", &good("3"), &["--set", "rollout.health_check=\"manual\""]);
    let waves = shop.view(&name())["plan"]["waves"].as_array().unwrap().len();
    assert_eq!(waves, 3, "a node each");
    for wave in 1..=waves {
        let view = shop.view(&name());
        assert_eq!((touched(&view), &view["ended_at"]), (wave, &Value::Null), "{view}");
        shop.fleet.machine.exits(0, &["rollout", "promote", &name()]);
        let code = if wave == waves { 0 } else { 14 };
        shop.fleet.machine.exits(code, &["rollout", "watch", &name()]);
    }
    assert_eq!(shop.runs("n3"), "3.0");

    // Before anything, where a second person has to agree; who asked for it is none.
    let said = shop.deploy_with(14, "4.0", &good("4"), &["--set", "rollout.require_approval=true"]);
    assert!(said.contains("awaiting approval"), "{said}");
    let said = shop.fleet.machine.exits(7, &["rollout", "approve", &name()]);
    assert!(said.contains("a second person has to approve: operator asked for it"), "{said}");
    let view = shop.view(&name());
    assert_eq!((&view["state"], touched(&view)), (&"awaiting_approval".into(), 0), "{view}");
    shop.fleet.machine.exits(0, &["rollout", "abort", &name()]);
    shop.fleet.machine.exits(13, &["rollout", "watch", &name()]);

    // What is aborted may also stay as it is.
    shop.deploy_with(14, "5.0", &good("5"), &by_hand);
    let canary = shop.view(&name())["plan"]["waves"][0]["nodes"][0].as_str().unwrap().to_owned();
    shop.fleet.machine.exits(0, &["rollout", "abort", &name(), "--leave"]);
    shop.fleet.machine.exits(13, &["rollout", "watch", &name()]);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), if *node == canary { "5.0" } else { "3.0" }, "{node}");
    }
}

#[test]
fn a_deploy_that_pauses_by_itself_ends_with_14_and_says_what_a_person_can_do() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let pauses = ["--set", "rollout.on_failure=\"pause\"", "-o", "jsonl"];
    let said = shop.deploy_with(14, "2.0", "exit 3", &pauses);
    let result = said.lines().rfind(|line| line.starts_with('{')).unwrap();
    let result: Value = serde_json::from_str(result).unwrap();
    assert_eq!(
        (&result["type"], &result["state"], &result["exit_code"]),
        (&"result".into(), &"paused".into(), &14.into()),
        "{said}"
    );
    let name = result["rollout"].as_str().unwrap();
    let view = shop.view(name);
    assert_eq!((&view["waits_for"], &view["exit_code"]), (&"abort".into(), &Value::Null), "{view}");
    // Whoever comes later is told the same. Past a canary that failed nobody resumes, so nobody is told to.
    let said = shop.fleet.machine.exits(14, &["rollout", "watch", name]);
    for told in [
        "on_failure = \"pause\"",
        &format!("smgr rollout abort {name}"),
        &format!("smgr rollout watch {name}"),
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    assert!(!said.contains("resume"), "{said}");
    shop.fleet.machine.exits(14, &["rollout", "show", name, "--exit-code"]);
    shop.fleet.machine.exits(0, &["rollout", "abort", name]);
    shop.fleet.machine.exits(13, &["rollout", "watch", name]);

    // A check that nobody answers is inconclusive, and that pauses unless the spec says otherwise.
    let text = std::fs::read_to_string(&shop.spec).unwrap();
    let check = "[rollout.check.nobody]\nkind = \"http\"\nurl = \"http://127.0.0.1:1/\"\ninterval = \"1s\"\n\
                 consecutive_error_limit = 0\n";
    std::fs::write(&shop.spec, format!("{text}{check}")).unwrap();
    let said = shop.deploy(14, "3.0", &good("3"));
    let name = shop.list()[0]["rollout"].as_str().unwrap().to_owned();
    assert!(said.contains("on_inconclusive = \"pause\""), "{said}");
    assert!(said.contains(&format!("smgr rollout resume {name}")), "{said}");
    // There is a check behind each wave.
    for wave in 2..=3 {
        shop.fleet.machine.exits(0, &["rollout", "resume", &name]);
        wait_until("the next wave is under way", || {
            shop.view(&name)["waves"][wave - 1]["state"] != "not_started"
        });
        shop.fleet.machine.exits(14, &["rollout", "watch", &name]);
    }
    shop.fleet.machine.exits(0, &["rollout", "resume", &name]);
    shop.fleet.machine.exits(0, &["rollout", "watch", &name]);
    assert_eq!(shop.runs("n3"), "3.0");
}

#[test]
fn who_waits_goes_on_waiting_through_a_pause_that_a_person_asked_for_and_is_told_of_it() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let name = shop.begin("2.0", "1s");
    let mut watching = shop.fleet.machine.command(&["rollout", "watch", &name]);
    let mut watching = watching.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut hears = |words: &str| {
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains(words));
        line.unwrap_or_else(|| panic!("it ended and never said `{words}`"))
    };
    hears(&name);
    shop.fleet.machine.exits(0, &["rollout", "pause", &name]);
    let paused = hears("paused by operator");
    assert!(paused.contains(&format!("smgr rollout resume {name}")), "{paused}");
    shop.fleet.machine.exits(0, &["rollout", "resume", &name]);
    hears("goes on");
    hears("2.0 on 3 of 3 nodes");
    assert_eq!(watching.wait().unwrap().code(), Some(0));
}

#[test]
fn a_node_that_was_stuck_and_never_changed_is_back_at_once_when_its_rollout_is_aborted() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let name = shop.begin("2.0", "4s");
    let view = shop.view(&name);
    let second = view["plan"]["waves"][1]["nodes"][0].as_str().unwrap();
    shop.fleet.signal_agent(second, Signal::STOP);
    wait_until("it was ordered", || {
        states(&shop.view(&name)).contains(&(second.to_owned(), "starting".to_owned()))
    });
    shop.fleet.machine.exits(0, &["rollout", "abort", &name]);
    wait_until("the canary is back", || {
        states(&shop.view(&name)).iter().any(|(_, state)| state == "rolled_back")
    });
    shop.fleet.signal_agent(second, Signal::CONT);
    // With 12 a person would be told that something is to be done there.
    shop.fleet.machine.exits(13, &["rollout", "watch", &name]);
    assert!(["n1", "n2", "n3"].iter().all(|node| shop.runs(node) == "1.0"));
}

#[test]
fn what_smgr_needs_for_itself_is_not_replaced_by_a_release() {
    let shop = Shop::open();
    let artifact = shop.pack("1.0", &good("1"));
    let line = ["deploy", "nats", "-f", &shop.spec, "--artifact", &artifact, "--select", "name=n1"];
    let said = shop.fleet.machine.exits(11, &line);
    assert!(said.contains("E0337"), "{said}");
    shop.fleet.machine.exits(0, &["status", "nats"]);
}

#[test]
fn a_node_that_was_away_converges_to_what_is_desired_when_it_is_back() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    shop.fleet.kill_node("n3");
    wait_until("n3 is missed", || {
        shop.fleet.machine.exits(0, &["events", "--fleet"]).contains("hears nothing of n3")
    });
    let more = ["--set", "rollout.on_unreachable=\"skip\"", "--set", "rollout.max_unreachable=1"];
    let said = shop.deploy_with(0, "2.0", &good("2"), &more);
    assert!(said.contains("2.0 on 2 of 3 nodes"), "{said}");
    assert_eq!(shop.last()["unreachable"], serde_json::json!(["n3"]));
    shop.fleet.machine.exits(0, &["up", "-d"]);
    eventually("n3 runs what is desired", || (shop.runs("n3") == "2.0").then_some(()));
    let view = shop.last();
    assert_eq!(shop.applied("n3", &view["generation"]["asked"]), 1, "{view}");
}

#[test]
fn what_cannot_be_planned_is_refused_and_changes_nothing() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    for (code, error, more) in [
        (4, "E0604", &["--select", "env=nowhere"][..]),
        (4, "E0603", &["--select", "name=n1|n9"]),
        (2, "", &["--select", ""]),
        (8, "", &["--set", "rollout.max_parallel=[0]"]),
    ] {
        let said = shop.deploy_with(code, "2.0", &good("2"), more);
        assert!(said.contains(error), "{more:?}: {said}");
    }
    let said = shop.fleet.machine.exits(4, &["rollout", "show", "r-00000000"]);
    assert!(said.contains("E0720"), "{said}");
    assert_eq!(shop.list().len(), 1);
    // Of two at a time the second is refused, unless whoever asks says otherwise.
    let first = shop.begin("2.0", "60s");
    let said = shop.deploy_with(6, "3.0", &good("3"), &[]);
    assert!(said.contains("E0721"), "{said}");
    assert!(said.contains(&first) && said.contains("asked for by operator"), "{said}");
    shop.deploy_with(0, "3.0", &good("3"), &["--on-conflict", "supersede"]);
    assert_eq!(shop.view(&first)["state"], "superseded");
    let second = shop.begin("4.0", "1s");
    let said = shop.deploy_with(0, "5.0", &good("5"), &["--on-conflict", "queue"]);
    assert!(said.contains("5.0 on 3 of 3 nodes"), "{said}");
    assert_eq!(shop.view(&second)["state"], "succeeded");
    let said = shop.deploy_with(2, "6.0", &good("6"), &["--on-conflict", "wait"]);
    assert!(said.contains("reject, queue or supersede"), "{said}");
}

#[test]
fn what_runs_already_is_started_anew_where_somebody_asks_for_it() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let pids = || {
        ["web@n1", "web@n2", "web@n3"].map(|it| {
            shop.fleet.machine.json(&["status", it])["instances"][0]["pid"].as_u64().unwrap()
        })
    };
    let before = pids();
    let said = shop.deploy(0, "1.0", &good("1"));
    assert!(said.contains("1.0") && said.contains("already runs on 3 nodes"), "{said}");
    assert!(!said.contains("no way back"), "{said}");
    assert_eq!((pids(), &shop.last()["changed"]), (before, &false.into()));
    let said = shop.deploy_with(0, "1.0", &good("1"), &["--force"]);
    assert!(said.contains("1 canary") && said.contains("1.0 on 3 of 3 nodes"), "{said}");
    assert!(pids().iter().zip(before).all(|(now, before)| *now != before), "{said}");
    assert_eq!(shop.last()["changed"], true);
    let said = shop.deploy_with(2, "1.0", &good("1"), &["--force", "--node", "n1"]);
    assert!(said.contains("smgr restart web"), "{said}");
}

#[test]
fn a_rollback_goes_to_the_last_release_that_succeeded_whatever_failed_since() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    shop.deploy(10, "bad", "exit 1");
    shop.deploy(0, "2.0", &good("2"));
    // One that failed and was left where it is, and one that is the present one again.
    shop.deploy_with(11, "worse", "exit 2", &["--set", "rollout.on_failure=\"stop\""]);
    shop.deploy_with(0, "2.0", &good("2"), &["--force"]);
    let said = shop.fleet.machine.exits(0, &["rollback", "web"]);
    assert!(said.contains("2.0") && said.contains("1.0 on 3 of 3 nodes"), "{said}");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "1.0");
    }
}

#[test]
fn complaint_05_the_way_back_and_a_restart_need_no_source_of_artifacts() {
    let shop = Shop::open();
    let deploy = |code: i32, version: &str, script: &str| {
        // A path alone would be put into the store of the fleet.
        let (path, named) = (shop.pack(version, script), ["--release-version", version]);
        let artifact = format!("file:{path}");
        let line = ["deploy", "web", "-f", &shop.spec, "--artifact", &artifact];
        let said = shop.fleet.machine.exits(code, &[&line[..], &named].concat());
        std::fs::remove_file(path).unwrap();
        said
    };
    deploy(0, "1.0", &good("1"));
    deploy(10, "bad", "exit 1");
    assert_eq!(shop.runs("n1"), "1.0", "taken back by the node");
    deploy(0, "2.0", &good("2"));
    shop.fleet.machine.exits(0, &["restart", "web@n2"]);
    shop.fleet.kill_node("n3");
    shop.fleet.up_again();
    eventually("n3 is back", || (shop.runs("n3") == "2.0").then_some(()));
    let said = shop.fleet.machine.exits(0, &["rollback", "web"]);
    assert!(said.contains("1.0 on 3 of 3 nodes"), "{said}");
}

#[test]
fn a_check_that_fails_after_the_canary_takes_the_release_back() {
    let shop = Shop::open();
    shop.deploy(0, "1.0", &good("1"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/errors", listener.local_addr().unwrap());
    thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 1024];
            if stream.read(&mut asked).unwrap() > 0 {
                stream.write_all(b"HTTP/1.1 503 Too many\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        }
    });
    let text = std::fs::read_to_string(&shop.spec).unwrap();
    let check =
        format!("[rollout.check.errors]\nkind = \"http\"\nurl = \"{url}\"\ninterval = \"1s\"\n");
    std::fs::write(&shop.spec, format!("{text}{check}")).unwrap();
    shop.deploy(10, "2.0", &good("2"));
    let view = shop.last();
    let why = view["why"].to_string();
    assert!(why.contains("check errors failed after wave 1"), "{view}");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(shop.runs(node), "1.0");
    }
}
