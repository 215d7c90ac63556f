//! What a process is given: program, folder, account, environment, secrets, place in the queue of the OOM killer.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::support::machine::{Machine, is_root};
use crate::support::process::kill_9;
use crate::support::wait::eventually;

/// A service that writes down what it was given, into a file of each instance.
fn witness(machine: &Machine, keys: &str) {
    let script = "{ echo pwd=$(pwd); echo uid=$(id -un); echo groups=$(id -G); echo umask=$(umask); \
                  echo args=\"$@\"; echo oom=$(cat /proc/self/oom_score_adj); \
                  env; } > $OUT.tmp; \
                  mv $OUT.tmp $OUT; exec sleep 1000";
    let script = script.replace('$', "$$");
    let seen = machine.folder().join("seen");
    fs::create_dir(&seen).unwrap();
    rustix::fs::chmod(machine.folder(), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    rustix::fs::chmod(&seen, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
    let exec = format!(
        "exec = [\"/bin/sh\", \"-c\", '''{script}''', \"sh\", \"${{service}}\", \"${{instance}}\", \"$$HOME\"]"
    );
    let out = format!("OUT = \"{}/${{instance}}\"", seen.display());
    machine.file("services.d/witness.toml", &format!("{exec}\n{}", keys.replace("OUT", &out)));
}

fn given(machine: &Machine, instance: u16) -> BTreeMap<String, String> {
    let path = machine.folder().join("seen").join(instance.to_string());
    let text = eventually("the process has written", || fs::read_to_string(&path).ok());
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn a_process_gets_what_its_spec_says_and_nothing_else() {
    let mut machine = Machine::new();
    machine.env("LEAKS", &PathBuf::from("/never"));
    let file = |name: &str, text: &str| {
        let path = machine.folder().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let first = file("first.env", "FROM_FILE=first\nOVER=first\nBOTH=file\n");
    let second = file("second.env", "# comment\nOVER=second\n");
    let user =
        if is_root() { "user = \"nobody:daemon\"\nsupplementary_groups = [\"adm\"]" } else { "" };
    witness(
        &machine,
        &format!(
            "{user}\nworking_dir = \"/usr\"\numask = \"0027\"\ninstances = 2\n\
             env_files = [\"{first}\", \"{second}\"]\n\
             [env]\nOUT\nBOTH = \"spec\"\nNODE = \"${{node}}-${{run}}\"\n\
             [limits]\noom_score_adjust = 300\n"
        ),
    );
    machine.exits(0, &["up", "-d"]);
    machine.ready("witness");
    for instance in 0..2 {
        let given = given(&machine, instance);
        let is = |name: &str, value: &str| {
            assert_eq!(given.get(name).map(String::as_str), Some(value), "{name}");
        };
        is("pwd", "/usr");
        is("umask", "0027");
        is("oom", "300");
        is("args", &format!("witness {instance} $HOME"));
        is("FROM_FILE", "first");
        is("OVER", "second");
        is("BOTH", "spec");
        let node = machine.json(&["status"])["nodes"][0]["node"].as_str().unwrap().to_owned();
        is("NODE", &format!("{node}-1"));
        assert_eq!(given.get("LEAKS"), None);
        assert!(given.contains_key("PATH") && given.contains_key("SMGR_RUN"), "{given:?}");
        if is_root() {
            is("uid", "nobody");
            assert_eq!(given["groups"].split(' ').count(), 2, "{}", given["groups"]);
        }
    }
    // The environment is in no event.
    assert!(!machine.exits(0, &["events", "-o", "json"]).contains("FROM_FILE"));
}

#[test]
fn a_secret_is_a_file_for_its_process_alone_and_in_no_event() {
    let machine = Machine::new();
    let (token, seen) = (machine.folder().join("token"), machine.folder().join("seen"));
    fs::write(&token, "s3cret").unwrap();
    machine.service(
        "web",
        &format!(
            "exec = [\"/bin/sh\", \"-c\", \"d=$$CREDENTIALS_DIRECTORY; stat -c %a $$d/token > {0}.tmp; \
             cat $$d/token >> {0}.tmp; echo :$$TOKEN >> {0}.tmp; mv {0}.tmp {0}; exec sleep 1000\"]\n\
             [credential.token]\nsource = \"file:{1}\"\nenv = \"TOKEN\"\n",
            seen.display(),
            token.display()
        ),
    );
    machine.exits(0, &["up", "-d"]);
    let text = eventually("the process has written", || fs::read_to_string(&seen).ok());
    assert_eq!(text, "400\ns3cret:s3cret\n");
    assert!(!machine.exits(0, &["events", "-o", "json"]).contains("s3cret"));
}

#[test]
fn a_file_of_the_environment_that_is_not_there_fails_the_start_and_says_which() {
    let machine = Machine::new();
    machine.service(
        "web",
        "exec = [\"/bin/sleep\", \"1000\"]\nenv_files = [\"/nowhere/web.env\"]\n\
         [restart]\npolicy = \"never\"\n",
    );
    machine.exits(0, &["up", "-d"]);
    eventually("it has failed", || (machine.instance("web")["state"] == "failed").then_some(()));
    let events = machine.events();
    let failed = events.iter().find(|event| event["type"] == "instance.start_failed").unwrap();
    assert!(failed["data"]["why"].as_str().unwrap().contains("/nowhere/web.env"), "{failed}");
    let said = machine.exits(3, &["status", "web"]);
    assert!(said.contains("could not be started") && said.contains("/nowhere/web.env"), "{said}");
}

#[test]
fn a_lower_score_of_the_oom_killer_than_is_allowed_is_said_and_starts_all_the_same() {
    let machine = Machine::new();
    machine
        .service("web", "exec = [\"/bin/sleep\", \"1000\"]\n[limits]\noom_score_adjust = -500\n");
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    let degraded = machine.instance("web")["conditions"]["Degraded"].clone();
    match score.trim() {
        "-500" => assert_ne!(degraded["status"], "true"),
        _ => assert_eq!(
            (&degraded["status"], &degraded["reason"]),
            (&"true".into(), &"OomScoreAdjust".into())
        ),
    }
}

#[test]
fn a_service_that_is_not_enabled_waits_for_somebody_and_a_oneshot_is_completed() {
    let machine = Machine::new();
    machine.service("off", "enabled = false\nexec = [\"/bin/sleep\", \"1000\"]\n");
    machine.service("once", "kind = \"oneshot\"\nexec = [\"/bin/true\"]\n");
    machine.exits(0, &["up", "-d"]);
    eventually("it is completed", || {
        (machine.instance("once")["state"] == "completed").then_some(())
    });
    assert_eq!(machine.instance("off")["state"], "inactive");
    machine.exits(0, &["start", "off"]);
    machine.ready("off");
}

/// A service that writes a mark and exits with the code that stands in a file.
fn exiting(machine: &Machine, keys: &str) {
    fs::write(machine.folder().join("code"), "1").unwrap();
    let folder = machine.folder().display();
    machine.service(
        "web",
        &format!(
            "exec = [\"/bin/sh\", \"-c\", \"echo >> {folder}/starts; exit $$(cat {folder}/code)\"]\n{keys}"
        ),
    );
}

fn starts(machine: &Machine) -> usize {
    let text = fs::read_to_string(machine.folder().join("starts")).unwrap_or_default();
    text.lines().count()
}

#[test]
fn a_restart_follows_the_policy_the_codes_and_the_limit() {
    let state = |machine: &Machine, wanted: &str| {
        eventually(wanted, || (machine.instance("web")["state"] == wanted).then_some(()));
    };
    let quick = "[restart]\ndelay = \"1ms\"\nmax_delay = \"5ms\"\n";
    {
        let machine = Machine::new();
        exiting(&machine, &format!("{quick}policy = \"on_failure\"\nsuccess_codes = [0, 3]\n"));
        machine.exits(0, &["up", "-d"]);
        eventually("it is tried again", || (starts(&machine) > 3).then_some(()));
        fs::write(machine.folder().join("code"), "3").unwrap();
        state(&machine, "completed");
    }
    {
        let machine = Machine::new();
        exiting(&machine, &format!("{quick}fatal_codes = [78]\nlimit = 1000\n"));
        machine.exits(0, &["up", "-d"]);
        eventually("it is tried again", || (starts(&machine) > 3).then_some(()));
        fs::write(machine.folder().join("code"), "78").unwrap();
        state(&machine, "failed");
    }
    {
        let machine = Machine::new();
        exiting(&machine, &format!("{quick}limit = 4\non_limit = \"fail\"\n"));
        machine.exits(0, &["up", "-d"]);
        state(&machine, "failed");
        assert_eq!(starts(&machine), 5);
        assert_eq!(machine.instance("web")["result"], "start_limit_hit");
    }
    {
        let machine = Machine::new();
        exiting(&machine, "[restart]\npolicy = \"never\"\n");
        machine.exits(0, &["up", "-d"]);
        state(&machine, "failed");
        assert_eq!(starts(&machine), 1);
    }
}

#[test]
fn instances_are_processes_of_their_own() {
    let machine = Machine::new();
    machine.service("web", "instances = 3\nexec = [\"/bin/sleep\", \"1000\"]\n");
    machine.exits(0, &["up", "-d"]);
    let pids = || {
        eventually("three run", || {
            let status = machine.json(&["status", "web"]);
            let found = status["instances"].as_array().unwrap().iter();
            let pids: Vec<u64> = found.filter_map(|it| it["pid"].as_u64()).collect();
            (pids.len() == 3).then_some(pids)
        })
    };
    let before = pids();
    kill_9(u32::try_from(before[1]).unwrap());
    eventually("only one was replaced", || {
        let after = pids();
        (after[1] != before[1]).then(|| assert_eq!((after[0], after[2]), (before[0], before[2])))
    });
}
