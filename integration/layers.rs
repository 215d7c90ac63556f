//! Configuration in layers: what holds, where it was set, and what an apply does about it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use serde_json::{Value, json};

use crate::support::machine::{Machine, is_root};
use crate::support::wait::eventually;

const SLEEP: &str = "exec = [\"/bin/sleep\", \"1000\"]\n";

/// A machine with `web` and `worker`, which are in the group `shop`; both are up.
fn shop() -> Machine {
    let machine = Machine::new();
    for name in ["web", "worker"] {
        let common = "[stop]\ntimeout = \"3s\"\n[env]\nPLACE = \"host\"\n";
        machine.service(name, &format!("group = \"shop\"\n{SLEEP}{common}"));
    }
    machine.file("groups.d/shop.toml", "[stop]\ntimeout = \"2s\"\n");
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    machine.ready("worker");
    machine
}

/// An editor that writes `text` whatever stood there.
fn editor(machine: &mut Machine, text: &str) {
    let (script, wanted) = (machine.folder().join("editor"), machine.folder().join("wanted"));
    fs::write(&wanted, text).unwrap();
    fs::write(&script, format!("#!/bin/sh\ncat {} > \"$1\"\n", wanted.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    machine.env("VISUAL", &script);
}

fn config(machine: &Machine, path: &str) -> String {
    machine.state().join("config").join(path).display().to_string()
}

fn key(machine: &Machine, service: &str, key: &str) -> Value {
    let shown = machine.json(&["config", "show", service, key]);
    shown["keys"][0].clone()
}

#[test]
fn every_effective_value_names_where_it_was_set_and_what_it_hides() {
    let machine = shop();
    machine.file("override.d/web.toml", "umask = \"0027\"\n\n[stop]\ntimeout = \"1s\"\n");
    let screen = machine
        .exits(0, &["config", "show", "web", "--origin", "--hidden", "stop.timeout", "kind"]);
    let lines: Vec<Vec<&str>> = screen
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|it| !it.is_empty()).collect())
        .collect();
    let over = format!("{}:4 (7)", config(&machine, "override.d/web.toml"));
    let group = format!("{}:2", config(&machine, "groups.d/shop.toml"));
    assert_eq!(lines[0], ["KEY", "VALUE", "FROM (LAYER)", "HIDES"]);
    assert_eq!(lines[1], ["kind", "\"daemon\"", "built-in (1)"]);
    assert_eq!(lines[2], ["stop.timeout", "\"1s\"", &over, "\"2s\"", &group]);
    assert_eq!(lines[3][0], "\"3s\"");
    assert_eq!(lines[4], ["\"30s\"", "built-in"]);
    assert!(screen.contains("note: not all of it is in force: smgr plan web"), "{screen}");

    let timeout = key(&machine, "worker", "stop.timeout");
    assert_eq!((&timeout["value"], &timeout["origin"]["number"]), (&json!("2s"), &json!(4)));
    assert_eq!(timeout["origin"]["layer"], "group");
    let all = machine.json(&["config", "show", "web"]);
    let all = all["keys"].as_array().unwrap();
    assert!(all.len() > 30 && all.iter().all(|it| it["origin"]["layer"].is_string()));
}

#[test]
fn an_apply_restarts_exactly_what_an_override_makes_it_restart() {
    let machine = shop();
    let (web, worker) = (machine.ready("web"), machine.ready("worker"));
    assert_eq!(machine.instance("web")["overridden_keys"], json!([]));
    assert!(machine.exits(0, &["plan"]).starts_with("nothing changes"));

    machine.file("override.d/web.toml", "[env]\nPLACE = \"here\"\n");
    machine.file("override.d/worker.toml", "[stop]\ntimeout = \"1s\"\n");
    let plan = machine.exits(20, &["plan"]);
    let over = config(&machine, "override.d/web.toml");
    assert!(plan.contains("  web  changed: it restarts\n"), "{plan}");
    assert!(
        plan.contains(&format!("      env.PLACE  \"host\" → \"here\"  {over}:2 (7)\n")),
        "{plan}"
    );
    assert!(
        plan.contains("  worker  changed: nothing restarts\n      stop.timeout  \"2s\" → \"1s\"  "),
        "{plan}"
    );
    let only = machine.json(&["plan", "web"]);
    assert_eq!(only["services"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&only["services"][0]["step"], &only["services"][0]["keys"][0]["to"]),
        (&json!("restart"), &json!("here"))
    );
    assert_eq!(machine.ready("web"), web, "a plan changes nothing");

    machine.exits(0, &["apply"]);
    machine.ready_but("web", Some(web));
    assert_eq!(machine.ready("worker"), worker);
    assert_eq!(machine.instance("web")["overridden_keys"], json!(["env.PLACE"]));
    assert_eq!(machine.instance("worker")["overridden_keys"], json!(["stop.timeout"]));
    assert!(machine.exits(0, &["status", "web"]).contains("changed     env.PLACE"));

    // What is in force is known after a new start as well, and the files may say something else by then.
    machine.exits(0, &["down"]);
    machine.exits(0, &["up", "-d"]);
    assert_eq!(machine.instance("web")["overridden_keys"], json!(["env.PLACE"]));
    fs::remove_file(&over).unwrap();
    let plan = machine.exits(20, &["plan", "web"]);
    assert!(plan.contains("env.PLACE  \"here\" → \"host\""), "{plan}");
    machine.exits(0, &["apply", "web"]);
    assert_eq!(machine.instance("web")["overridden_keys"], json!([]));
}

#[test]
fn the_same_value_set_elsewhere_restarts_nothing_and_is_known_as_overridden() {
    let machine = shop();
    let web = machine.ready("web");
    machine.file("override.d/web.toml", "[env]\nPLACE = \"host\"\n");
    assert!(machine.exits(0, &["plan"]).starts_with("nothing changes"));
    machine.exits(0, &["apply"]);
    assert_eq!(machine.ready("web"), web);
    assert_eq!(machine.instance("web")["overridden_keys"], json!(["env.PLACE"]));
}

#[test]
fn a_service_of_a_package_is_changed_by_the_layers_above() {
    let machine = Machine::new();
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    machine.file(
        "vendor.d/web.toml",
        &format!("{user}{SLEEP}[action.clear]\nexec = [\"/bin/true\"]\n"),
    );
    machine.file("services.d/web.toml", "[env]\nA = \"1\"\n");
    machine.file("override.d/web.toml", "[action.clear]\nenabled = false\n");
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    assert_eq!(key(&machine, "web", "exec")["origin"]["layer"], "vendor");
    assert_eq!(key(&machine, "web", "env.A")["origin"]["layer"], "host");
    let action = machine.json(&["config", "show", "web", "action"]);
    assert_eq!(action["keys"].as_array().unwrap().len(), 1, "{action}");
    assert_eq!(action["keys"][0]["value"], false);
    assert_eq!(action["keys"][0]["hides"][0]["origin"]["layer"], "built_in");
    machine.exits(4, &["action", "run", "web", "clear"]);
}

#[test]
fn a_project_has_layers_beside_its_file_and_the_machine_has_the_last_word() {
    let machine = Machine::new();
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let here = |path: &str, text: &str| {
        let path = machine.folder().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    here("smgr.toml", &format!("[service.web]\ngroup = \"shop\"\n{user}{SLEEP}"));
    here("groups.d/shop.toml", "[env]\nA = \"group\"\nB = \"group\"\nC = \"group\"\n");
    here("override.d/web.toml", "[env]\nA = \"project\"\nB = \"project\"\n");
    machine.file("override.d/web.toml", "[env]\nA = \"machine\"\n");
    machine.exits(0, &["check"]);
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    let screen = machine.exits(0, &["config", "show", "web", "env", "--origin"]);
    let machines = config(&machine, "override.d/web.toml");
    for line in [
        format!("env.A  \"machine\"  {machines}:2 (7)"),
        "env.B  \"project\"  ./override.d/web.toml:3 (7)".to_owned(),
        "env.C  \"group\"    ./groups.d/shop.toml:4 (4)".to_owned(),
    ] {
        assert!(screen.lines().any(|it| it.trim_end() == line), "{line}\n{screen}");
    }
    assert_eq!(machine.instance("web")["overridden_keys"], json!(["env.A", "env.B"]));
}

#[test]
fn a_key_that_is_set_on_the_command_line_is_this_machines_last_word_and_names_its_line() {
    let machine = shop();
    machine.file("override.d/web.toml", "# by hand\n[stop]\ntimeout = \"1s\" # quick\n");
    let line = ["config", "set", "web", "env.PLACE=here", "stop.timeout=4s", "instances=2"];
    let said = machine.exits(0, &line);
    assert!(said.contains("in force after: smgr apply web"), "{said}");
    assert!(said.contains("env.PLACE") && said.contains("\"host\" → \"here\""), "{said}");
    let path = config(&machine, "override.d/web.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("# by hand") && text.contains("timeout = \"4s\""), "{text}");
    assert!(text.contains("instances = 2"), "a value is TOML where it can be: {text}");
    for (name, value, hidden) in
        [("env.PLACE", json!("here"), "host"), ("stop.timeout", json!("4s"), "2s")]
    {
        let shown = key(&machine, "web", name);
        assert_eq!(shown["value"], value, "{shown}");
        assert_eq!(
            (&shown["origin"]["number"], &shown["origin"]["file"]),
            (&7.into(), &json!(path))
        );
        let line = shown["origin"]["line"].as_u64().unwrap();
        let word = name.rsplit('.').next().unwrap();
        let at = usize::try_from(line).unwrap() - 1;
        assert!(text.lines().nth(at).unwrap().starts_with(word), "{shown}\n{text}");
        assert_eq!(shown["hides"][0]["value"], hidden, "{shown}");
    }
    machine.exits(0, &["apply"]);
    machine.ready("web");
    // Said again it changes nothing; a document has what was set, and whether it is in force.
    assert!(machine.exits(0, &line).contains("nothing was changed"));
    let document = machine.json(&["config", "set", "worker", "stop.timeout=5s"]);
    assert_eq!(document["keys"][0]["value"], "5s", "{document}");
    assert_eq!(
        (document["in_force"].clone(), document["keys"][1].clone()),
        (json!(false), Value::Null)
    );

    let before = fs::read_to_string(&path).unwrap();
    for (code, line) in [
        (8, "config set web stop.timeuot=4s"),
        (8, "config set web stop.timeout=4"),
        (8, "config set web exec.0=x"),
        (4, "config set nobody stop.timeout=4s"),
        (2, "config set web stop.timeout"),
        (2, "config set web"),
        (2, "config set web/0 stop.timeout=4s"),
    ] {
        machine.exits(code, &line.split(' ').collect::<Vec<_>>());
        assert_eq!(fs::read_to_string(&path).unwrap(), before, "{line}");
    }
}

#[test]
fn an_edit_is_checked_before_it_is_put_in_place() {
    let mut machine = shop();
    let path = machine.state().join("config/override.d/web.toml");
    let web = machine.ready("web");

    editor(&mut machine, "[env]\nPLACE = \"here\"\n\n[stop]\ntimeuot = \"1s\"\n");
    let refused = machine.exits(8, &["edit", "web"]);
    let place = format!("{}:5:1", path.display());
    assert!(refused.contains(&place) && refused.contains("`timeout`"), "{refused}");
    assert!(refused.contains("what you wrote is kept"), "{refused}");
    assert!(!path.exists());
    assert!(machine.exits(0, &["plan"]).starts_with("nothing changes"), "a draft is no override");

    editor(&mut machine, "[env]\nPLACE = \"here\"\n");
    let edited = machine.exits(0, &["edit", "web"]);
    assert!(edited.contains("goes on with what was refused before"), "{edited}");
    assert!(edited.contains("in force after: smgr apply web"), "{edited}");
    assert!(edited.contains("web  changed: it restarts"), "{edited}");
    assert_eq!(machine.ready("web"), web, "an edit applies nothing");
    assert_eq!(fs::read_to_string(&path).unwrap(), "[env]\nPLACE = \"here\"\n");
    assert_eq!(machine.exits(0, &["edit", "web"]), "nothing was changed\n");
    let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(left, 1, "no draft is left");

    machine.env("VISUAL", "/bin/false".as_ref());
    machine.exits(2, &["edit", "web"]);
    machine.env("VISUAL", "/no/such/editor".as_ref());
    assert!(machine.exits(2, &["edit", "web"]).contains("failed to start the editor"));
    machine.exits(4, &["edit", "nobody"]);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn an_override_that_is_wrong_is_told_at_its_place_and_changes_nothing() {
    let machine = shop();
    let web = machine.ready("web");
    let folder = machine.state().join("config/override.d");
    let refused = |word: &str| {
        for line in [
            &["apply"][..],
            &["plan"],
            &["check"],
            &["config", "check"],
            &["config", "show", "web"],
        ] {
            let said = machine.exits(8, line);
            assert!(said.contains(word), "{line:?}: {word}\n{said}");
        }
        assert_eq!(machine.ready("web"), web);
    };
    machine.file("override.d/web.toml", "[env]\nA = \"1\"\n[stop]\ntimeuot = \"1s\"\n");
    refused("override.d/web.toml:4:1");
    fs::remove_file(folder.join("web.toml")).unwrap();

    machine.file("override.d/wbe.toml", "[env]\nA = \"1\"\n");
    refused("did you mean `web`?");
    fs::remove_file(folder.join("wbe.toml")).unwrap();

    symlink("/nowhere/web.toml", folder.join("web.toml")).unwrap();
    refused("a link to /nowhere/web.toml, which is not there");
    fs::remove_file(folder.join("web.toml")).unwrap();

    fs::create_dir(folder.join("web.toml")).unwrap();
    refused("not a regular file");
    fs::remove_dir(folder.join("web.toml")).unwrap();

    fs::remove_dir(&folder).unwrap();
    symlink("/nowhere", &folder).unwrap();
    refused("a link to /nowhere, which is not there");
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();

    machine.file("override.d/web.toml", "[env]\nA = \"1\"\n");
    fs::set_permissions(folder.join("web.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    refused("everybody may write this file");
    if !is_root() {
        fs::set_permissions(folder.join("web.toml"), fs::Permissions::from_mode(0o000)).unwrap();
        refused("this user may not read it");
    }
}

#[test]
fn a_group_without_a_file_is_only_a_name_and_a_file_without_a_group_is_a_warning() {
    let machine = shop();
    machine.exits(0, &["check"]);
    let folder = machine.state().join("config/groups.d");
    fs::rename(folder.join("shop.toml"), folder.join("shpo.toml")).unwrap();
    let said = machine.exits(0, &["check"]);
    assert!(said.contains("shpo.toml") && said.contains("did you mean `shop`?"), "{said}");
    let plan = machine.exits(20, &["plan"]);
    assert!(plan.contains("stop.timeout  \"2s\" → \"3s\""), "{plan}");
    machine.file("groups.d/shop.toml", "[stop]\ntimeout = 5\n");
    let said = machine.exits(8, &["check"]);
    assert!(said.contains("groups.d/shop.toml:2"), "{said}");
    machine.file("groups.d/shop.toml", "group = \"other\"\n");
    let said = machine.exits(8, &["check"]);
    assert!(said.contains("groups.d/shop.toml:1:1"), "{said}");
}

#[test]
fn what_a_spec_names_and_this_machine_does_not_have_is_a_warning() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"/no/such/web\"]\nenv_files = [\"/nowhere/web.env\"]\n");
    machine.service("hello", "exec = [\"sleep\", \"1000\"]\n");
    let said = machine.exits(0, &["check"]);
    for part in ["no program `/no/such/web`", "no file `/nowhere/web.env`", "web.toml:", "E0451"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("hello.toml"), "{said}");
}

#[test]
fn a_removed_service_leaves_no_override_of_nothing() {
    let machine = shop();
    let override_of_web = machine.state().join("config/override.d/web.toml");
    machine.file("override.d/web.toml", "umask = \"0027\"\n");
    machine.exits(0, &["apply"]);
    let said = machine.exits(0, &["remove", "web"]);
    assert!(said.contains("override.d/web.toml.removed"), "{said}");
    assert!(!override_of_web.exists());
    assert!(machine.exits(0, &["plan"]).starts_with("nothing changes"));
    machine.exits(4, &["config", "show", "web"]);
}

#[test]
fn what_these_verbs_do_not_do_yet_they_say() {
    let machine = shop();
    let said = machine.exits(2, &["config", "show", "web", "--at", "r-1"]);
    assert!(said.contains("not in this version"), "{said}");
    machine.exits(4, &["config", "show", "web@n9"]);
    machine.exits(4, &["config", "show", "nobody"]);
    machine.exits(4, &["plan", "nobody"]);
    machine.exits(4, &["--node", "n9", "plan"]);
    machine.exits(4, &["--node", "n9", "edit", "web"]);
    machine.exits(2, &["config", "show", "web", "no.such.key"]);
    machine.exits(2, &["config", "show", "web/0"]);
    machine.exits(0, &["down"]);
    machine.exits(5, &["plan"]);
    machine.exits(0, &["config", "show", "web", "--origin"]);
}

#[test]
fn what_is_set_for_a_time_is_above_everything_and_ends_by_itself_also_when_the_node_was_down() {
    let machine = shop();
    let web = machine.ready("web");
    let said = machine.exits(0, &["config", "set", "web", "stop.timeout=7s", "--for", "1h"]);
    assert!(said.contains("configured web"), "{said}");
    assert_eq!(machine.ready("web"), web, "nothing restarts that need not");
    let timeout = key(&machine, "web", "stop.timeout");
    assert_eq!((&timeout["value"], &timeout["origin"]["number"]), (&json!("7s"), &json!(8)));
    let event = timeout["origin"]["event"].as_str().unwrap();
    assert!(event.starts_with("i-") && event.contains(" until 20"), "{event}");
    assert_eq!(machine.instance("web")["overridden_keys"], json!(["stop.timeout"]));
    let shown =
        machine.exits(0, &["config", "show", "web", "stop.timeout", "--origin", "--hidden"]);
    assert!(shown.contains(" (8)") && shown.contains("groups.d/shop.toml:2"), "{shown}");

    machine.exits(0, &["config", "set", "web", "env.PLACE=xyzzy", "--for", "6s"]);
    let again = machine.ready_but("web", Some(web));
    let told = machine.exits(0, &["events"]);
    assert!(
        !told.contains("xyzzy") && told.contains("env.PLACE"),
        "values are in no event: {told}"
    );
    machine.exits(0, &["down"]);
    std::thread::sleep(std::time::Duration::from_secs(6));
    machine.exits(0, &["up", "-d"]);
    eventually("its time is over", || {
        (key(&machine, "web", "env.PLACE")["value"] == "host").then_some(())
    });
    machine.ready_but("web", Some(again));
    eventually("so it runs", || {
        (machine.instance("web")["overridden_keys"] == json!(["stop.timeout"])).then_some(())
    });
    machine.exits(0, &["config", "unset", "web", "stop.timeout"]);
    assert_eq!(machine.instance("web")["overridden_keys"], json!([]));
    assert_eq!(key(&machine, "web", "stop.timeout")["value"], "2s");
}

#[test]
fn what_cannot_be_set_is_refused_before_anything_changes() {
    let machine = shop();
    let web = machine.ready("web");
    for (code, error, line) in [
        (8, "did you mean", "config set web stop.timeuot=4s --for 2h"),
        (8, "timeout = \"often\"", "config set web stop.timeout=often --for 2h"),
        (2, "--for", "config set web stop.timeout=4s --for often"),
        (2, "1ms to 7d", "config set web stop.timeout=4s --for 0s"),
        (2, "1ms to 7d", "config set web stop.timeout=4s --for 8d"),
        (2, "given twice", "config set web stop.timeout=4s stop.timeout=5s --for 2h"),
        (2, "names one instance", "config set web/0 stop.timeout=4s --for 2h"),
        (4, "no such service", "config set nosuch stop.timeout=4s --for 2h"),
        (8, "E04", "config set web depends_on.nosuch.condition=ready --for 2h"),
        (2, "--select", "config set web stop.timeout=4s --select ="),
        (5, "no fleet", "config set web stop.timeout=4s --select *"),
        (2, "is no key", "config unset web stop.timeout=4s"),
        (2, "is no key", "config unset web stop.timeuot --select *"),
        (2, "--detach", "config set web stop.timeout=4s --detach"),
    ] {
        let said = machine.exits(code, &line.split(' ').collect::<Vec<_>>());
        assert!(said.contains(error), "{line}: {said}");
    }
    assert_eq!(machine.ready("web"), web);
    assert_eq!(machine.instance("web")["overridden_keys"], json!([]));
    assert!(machine.exits(0, &["plan"]).starts_with("nothing changes"));
}
