//! Releases on one node: taken up, judged by the node, and returned from without anybody's help.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use smgr::domain::release::Manifest;
use smgr::wire::codec;

use crate::support::machine::{Machine, is_root};
use crate::support::process::kill_9;
use crate::support::wait::{eventually, wait_until};

/// A spec whose release is judged quickly.
pub(crate) fn spec(machine: &Machine, more: &str) -> String {
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let text = format!(
        "{user}exec = [\"${{release}}/bin/web\"]\n{more}\n[stop]\ntimeout = \"2s\"\n\
         [rollout]\nmin_healthy_time = \"300ms\"\nhealthy_deadline = \"5s\"\n"
    );
    let path = machine.folder().join("web.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Packs a script as `bin/web`.
pub(crate) fn archive(machine: &Machine, name: &str, script: &str) -> PathBuf {
    packed(machine, name, format!("#!/bin/sh\n{script}\n").as_bytes())
}

/// Packs a program as `bin/web`.
fn packed(machine: &Machine, name: &str, bytes: &[u8]) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = machine.folder().join(format!("{name}.d"));
    fs::create_dir_all(folder.join("bin")).unwrap();
    let program = folder.join("bin/web");
    fs::write(&program, bytes).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let packed = machine.folder().join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&folder).arg("-czf").arg(&packed).arg("bin");
    assert!(tar.status().unwrap().success());
    packed
}

/// A script that runs on as `sleep`.
pub(crate) fn good(version: &str) -> String {
    format!("echo version {version}\nexec sleep 1000")
}

fn deploy(machine: &Machine, code: i32, version: &str, artifact: &str, spec: &str) -> String {
    let line = ["deploy", "web", "-f", spec, "--artifact", artifact, "--release-version", version];
    machine.exits(code, &line)
}

fn release(machine: &Machine) -> Value {
    machine.instance("web")["release"].clone()
}

fn count(machine: &Machine, kind: &str) -> usize {
    machine.events().iter().filter(|event| event["type"] == kind).count()
}

fn up() -> Machine {
    let machine = Machine::new();
    machine.exits(0, &["up", "-d"]);
    machine
}

#[test]
fn a_release_is_deployed_seen_rolled_back_and_survives_a_new_start() {
    let machine = up();
    let spec = spec(&machine, "");
    let one = archive(&machine, "one", &good("1")).display().to_string();
    let two = archive(&machine, "two", &good("2")).display().to_string();
    let said = deploy(&machine, 0, "1.0", &one, &spec);
    assert!(said.contains("web runs 1.0 ("), "{said}");
    let first = machine.ready("web");
    assert_eq!(release(&machine)["version"], "1.0");
    assert!(machine.exits(0, &["status"]).contains("  1.0"));
    let shown = machine.exits(0, &["config", "show", "web", "--origin", "stop.timeout"]);
    assert!(shown.contains("release ") && shown.contains("web.toml:"), "{shown}");

    // What runs already is not started anew.
    let said = deploy(&machine, 0, "1.0", &one, &spec);
    assert!(said.contains("already: nothing to do"), "{said}");
    assert_eq!(machine.ready("web"), first);

    deploy(&machine, 0, "2.0", &two, &spec);
    let second = machine.ready_but("web", Some(first));
    assert_eq!(release(&machine)["version"], "2.0");
    let healthy: Vec<Value> = machine.events();
    let healthy = healthy.iter().rfind(|event| event["type"] == "release.healthy").unwrap();
    assert!(healthy["data"]["running"].is_string(), "{healthy}");

    machine.exits(0, &["rollback", "web"]);
    let third = machine.ready_but("web", Some(second));
    assert_eq!(release(&machine)["version"], "1.0");
    machine.exits(0, &["restart", "web"]);
    machine.ready_but("web", Some(third));
    machine.exits(0, &["down"]);
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    assert_eq!(release(&machine)["version"], "1.0");
    let history = machine.exits(0, &["history", "web"]);
    assert!(history.contains("deployed") && history.contains("1.0 ("), "{history}");
    assert!(machine.exits(0, &["plan"]).contains("nothing changes"));
    machine.exits(0, &["remove", "web"]);
    machine.exits(4, &["status", "web"]);
}

#[test]
fn by_health_check_process_no_check_of_a_release_counts() {
    let machine = up();
    let one = archive(&machine, "one", &good("1")).display().to_string();
    deploy(&machine, 0, "1.0", &one, &spec(&machine, ""));
    let never = "[health.never]\nkind = \"exec\"\nexec = [\"/bin/false\"]\ninterval = \"1s\"\n\
                 min_interval = \"50ms\"\ntimeout = \"1s\"\nfailures = 1";
    let spec = spec(&machine, never);
    let said = deploy(&machine, 10, "2.0", &one, &spec);
    assert!(said.contains("E0701"), "{said}");
    let by_process = ["--set", "rollout.health_check=\"process\""];
    let line = ["deploy", "web", "-f", &spec, "--artifact", &one, "--release-version", "3.0"];
    machine.exits(0, &[&line[..], &by_process[..]].concat());
    assert_eq!(release(&machine)["version"], "3.0");
    assert_eq!(machine.instance("web")["conditions"]["Healthy"]["status"], "false");
}

#[test]
fn a_bad_binary_is_left_again_by_the_node_itself() {
    let machine = up();
    let spec = spec(&machine, "");
    let one = archive(&machine, "one", &good("1")).display().to_string();
    let bad = archive(&machine, "bad", "echo missing DATABASE_URL >&2\nexit 1");
    deploy(&machine, 0, "1.0", &one, &spec);
    let first = machine.ready("web");
    let said = deploy(&machine, 10, "bad", &bad.display().to_string(), &spec);
    assert!(said.contains("E0701"), "{said}");
    machine.ready_but("web", Some(first));
    assert_eq!(release(&machine)["version"], "1.0");
    assert_eq!(release(&machine)["state"], "good");
    let events = machine.events();
    let failed = events.iter().find(|event| event["type"] == "release.failed").unwrap();
    assert_eq!(failed["data"]["exit"]["code"], 1, "{failed}");
    assert!(events.iter().any(|event| event["type"] == "release.returned"));

    // One that never says that it is ready has its time, and no more.
    let deaf = spec.replace("web.toml", "deaf.toml");
    let text = fs::read_to_string(&spec)
        .unwrap()
        .replace("\"5s\"", "\"1s\"")
        .replace("\"2s\"", "\"500ms\"");
    fs::write(&deaf, format!("{text}[ready]\nby = \"notify\"\n")).unwrap();
    let two = archive(&machine, "two", &good("2")).display().to_string();
    deploy(&machine, 10, "2.0", &two, &deaf);
    machine.ready("web");
    assert_eq!(release(&machine)["version"], "1.0");
}

#[test]
fn an_action_after_a_deploy_runs_once_though_the_agent_is_killed_while_it_does() {
    let machine = up();
    let folder = machine.folder().display().to_string();
    let warm = format!(
        "[action.warm]\nafter = [\"deploy\"]\nexec = [\"sh\", \"-c\", \"echo warms >>{folder}/began; \
         while test ! -e {folder}/warm; do sleep 0.05; done\"]\n"
    );
    let spec = spec(&machine, &warm);
    let text = fs::read_to_string(&spec).unwrap().replace("\"5s\"", "\"60s\"");
    fs::write(&spec, text).unwrap();
    let one = archive(&machine, "one", &good("1")).display().to_string();
    let line = ["deploy", "web", "-f", &spec, "--artifact", &one, "--detach"];
    machine.exits(0, &line);
    let began = || fs::read_to_string(machine.folder().join("began")).unwrap_or_default();
    wait_until("it runs", || !began().is_empty());
    let first = machine.ready("web");
    let agent = machine.part("agent");
    kill_9(agent);
    wait_until("another agent is there", || {
        machine.part_if_any("agent").is_some_and(|pid| pid != agent)
    });
    assert_ne!(release(&machine)["state"], "good");
    fs::write(machine.folder().join("warm"), "").unwrap();
    wait_until("the release is good", || release(&machine)["state"] == "good");
    assert_eq!((began().as_str(), machine.ready("web")), ("warms\n", first));
    let events = machine.events();
    let of = |kind: &str| events.iter().filter(|it| it["type"] == kind).collect::<Vec<_>>();
    let (started, ended) = (of("action.started"), of("action.ended"));
    assert_eq!((started.len(), ended.len()), (1, 1), "{events:?}");
    // Its cause is the wish for the release, and that has one outcome.
    let wish = &of("release.applied")[0]["cause"];
    assert_eq!((&started[0]["cause"], &started[0]["data"]["action"]), (wish, &"warm".into()));
    let place = |kind: &str| events.iter().position(|it| it["type"] == kind).unwrap();
    assert!(place("action.ended") < place("release.healthy"));
    assert_eq!(of("intent.executed").iter().filter(|it| it["cause"] == *wish).count(), 1);
}

#[test]
fn a_release_that_still_runs_the_program_of_the_one_before_has_failed() {
    let machine = up();
    let own = spec(&machine, "").replace("web.toml", "own.toml");
    let text = fs::read_to_string(machine.folder().join("web.toml")).unwrap();
    let text = text.replace("/bin/web\"]", "/bin/web\", \"1000\"]");
    fs::write(&own, &text).unwrap();
    let mut program = fs::read("/bin/sleep").unwrap();
    let one = packed(&machine, "one", &program).display().to_string();
    program.extend(b"two");
    let two = packed(&machine, "two", &program).display().to_string();
    deploy(&machine, 0, "1.0", &one, &own);
    let first = machine.ready("web");
    let program = fs::read_link(format!("/proc/{first}/exe")).unwrap().display().to_string();

    let fixed = own.replace("own.toml", "fixed.toml");
    fs::write(&fixed, text.replace("${release}/bin/web", &program)).unwrap();
    let said = deploy(&machine, 10, "2.0", &two, &fixed);
    assert!(said.contains("it runs bin/web of "), "{said}");
    let events = machine.events();
    let failed = events.iter().find(|event| event["type"] == "release.failed").unwrap();
    assert_eq!(failed["data"]["code"], "E0711", "{failed}");
    machine.ready_but("web", Some(first));
    assert_eq!(release(&machine)["version"], "1.0");
    deploy(&machine, 0, "2.0", &two, &own);
    assert_eq!(release(&machine)["version"], "2.0");
}

#[test]
fn a_service_of_files_alone_is_returned_to_as_well() {
    let machine = Machine::new();
    machine.service("web", "exec = [\"/bin/sleep\", \"1000\"]\n[stop]\ntimeout = \"2s\"\n");
    machine.exits(0, &["up", "-d"]);
    machine.ready("web");
    let spec = spec(&machine, "");
    let bad = archive(&machine, "bad", "exit 3").display().to_string();
    deploy(&machine, 10, "bad", &bad, &spec);
    machine.ready("web");
    assert!(release(&machine).is_null(), "{}", release(&machine));
}

#[test]
fn a_plain_archive_and_one_program_are_releases_as_well() {
    let machine = up();
    let own = spec(&machine, "");
    archive(&machine, "one", &good("1"));
    let folder = machine.folder();
    let plain = folder.join("one.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(folder.join("one.d")).arg("-cf").arg(&plain).arg("bin");
    assert!(tar.status().unwrap().success());
    deploy(&machine, 0, "1.0", &plain.display().to_string(), &own);
    let first = machine.ready("web");
    assert_eq!(release(&machine)["version"], "1.0");

    // One file is the program itself, under the name of its service.
    archive(&machine, "two", &good("2"));
    let program = folder.join("two.d/bin/web").display().to_string();
    let text = fs::read_to_string(&own).unwrap().replace("/bin/web", "/web");
    let alone = folder.join("alone.toml");
    fs::write(&alone, text).unwrap();
    deploy(&machine, 0, "2.0", &program, &alone.display().to_string());
    let second = machine.ready_but("web", Some(first));
    assert_eq!(release(&machine)["version"], "2.0");
    machine.exits(0, &["rollback", "web"]);
    machine.ready_but("web", Some(second));
    assert_eq!(release(&machine)["version"], "1.0");
}

/// Waits until manifests, files and what was verified of them are there for these versions, and for no others: what nothing
/// can return to is removed behind the answer.
fn keeps(machine: &Machine, expected: &[&str]) {
    let folder = machine.state().join("releases/web");
    eventually(&format!("{expected:?} are kept"), || {
        let entries = fs::read_dir(&folder).unwrap().flatten();
        let names: Vec<_> = entries.map(|it| it.file_name().into_string().unwrap()).collect();
        let seals = names.iter().filter(|name| name.ends_with(".seal")).count();
        let manifests = names.iter().filter(|name| name.ends_with(".manifest"));
        let read = |name: &String| {
            let manifest = codec::decode::<Manifest>(&fs::read(folder.join(name)).ok()?).ok()?;
            Some(manifest.version)
        };
        let mut versions = manifests.map(read).collect::<Option<Vec<_>>>()?;
        versions.sort();
        // Three things of each, and the link to the one in force.
        let is_whole = seals == versions.len() && names.len() == versions.len() * 3 + 1;
        (is_whole && versions == expected).then_some(())
    });
}

#[test]
fn as_many_releases_stay_as_are_to_be_kept_and_never_fewer_than_what_runs_and_what_it_returns_to() {
    let machine = up();
    let own = spec(&machine, "[release]\nkeep = 3\n");
    let pack =
        |version: &str, script: &str| archive(&machine, version, script).display().to_string();
    for version in ["1.0", "2.0", "3.0", "4.0"] {
        deploy(&machine, 0, version, &pack(version, &good(version)), &own);
    }
    keeps(&machine, &["2.0", "3.0", "4.0"]);
    // What failed is not kept, and takes the place of none.
    deploy(&machine, 10, "bad", &pack("bad", "exit 1"), &own);
    machine.ready("web");
    keeps(&machine, &["2.0", "3.0", "4.0"]);
    // Of one alone nothing could be returned to.
    let text = fs::read_to_string(&own).unwrap().replace("keep = 3", "keep = 1");
    fs::write(&own, text).unwrap();
    deploy(&machine, 0, "5.0", &pack("5.0", &good("5")), &own);
    keeps(&machine, &["4.0", "5.0"]);
    deploy(&machine, 10, "worse", &pack("worse", "exit 2"), &own);
    assert_eq!(release(&machine)["version"], "5.0");
    keeps(&machine, &["4.0", "5.0"]);
    machine.exits(0, &["rollback", "web"]);
    machine.ready("web");
    assert_eq!(release(&machine)["version"], "4.0");
    keeps(&machine, &["4.0", "5.0"]);
}

#[test]
fn what_is_not_as_signed_or_no_release_changes_nothing() {
    let machine = up();
    let spec = spec(&machine, "");
    let one = archive(&machine, "one", &good("1")).display().to_string();
    deploy(&machine, 0, "1.0", &one, &spec);
    let pid = machine.ready("web");
    let climbs = machine.folder().join("climbs.tar");
    let made = Command::new("tar")
        .args(["-P", "-cf"])
        .arg(&climbs)
        .arg(machine.folder().join("one.d/bin/web"))
        .status();
    assert!(made.unwrap().success());
    let noise = machine.folder().join("noise.tar.gz");
    fs::write(&noise, b"this is no archive").unwrap();
    for artifact in [climbs, noise] {
        let said = deploy(&machine, 8, "x", &artifact.display().to_string(), &spec);
        assert!(said.contains("E0706"), "{said}");
    }
    let broken = machine.folder().join("broken.toml");
    fs::write(&broken, "exce = [\"x\"]\n").unwrap();
    let said = machine.exits(8, &["deploy", "web", "-f", &broken.display().to_string()]);
    assert!(said.contains("unknown key"), "{said}");
    assert_eq!(machine.ready("web"), pid);
    assert_eq!(release(&machine)["version"], "1.0");

    // Files that somebody changed are not run.
    let releases = machine.state().join("releases/web");
    let folder = fs::read_dir(&releases).unwrap().flatten().find(|it| it.path().is_dir()).unwrap();
    fs::write(folder.path().join("bin/web"), "#!/bin/sh\nexec sleep 2000\n").unwrap();
    machine.smgr(&["restart", "web"]);
    let instance = machine.instance("web");
    assert_ne!(instance["state"], "running", "{instance}");
}

#[test]
fn a_machine_without_a_bus_says_that_it_cannot_fetch_over_http() {
    let machine = up();
    let spec = spec(&machine, "");
    let bytes = fs::read(archive(&machine, "one", &good("1"))).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/web-1.0.tar.gz", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 1024];
            assert!(stream.read(&mut asked).unwrap() > 0);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes)).unwrap();
        }
    });
    let said = deploy(&machine, 5, "1.0", &url, &spec);
    assert!(said.contains("E0704") && said.contains("give it a file"), "{said}");
    machine.exits(4, &["status", "web"]);
}

#[test]
fn an_agent_that_is_killed_on_the_way_brings_the_release_to_its_end() {
    let machine = up();
    let spec = spec(&machine, "");
    let one = archive(&machine, "one", &good("1")).display().to_string();
    deploy(&machine, 0, "1.0", &one, &spec);
    for (number, pause_ms) in [0, 20, 60, 120, 250, 400].into_iter().enumerate() {
        let name = format!("next{number}");
        let next = archive(&machine, &name, &good(&name)).display().to_string();
        let line = ["deploy", "web", "-f", &spec, "--artifact", &next, "--release-version", &name];
        machine.exits(0, &[&line[..], &["--detach"]].concat());
        thread::sleep(Duration::from_millis(pause_ms));
        let agent = rustix::process::Pid::from_raw(machine.part("agent").cast_signed()).unwrap();
        rustix::process::kill_process(agent, rustix::process::Signal::KILL).unwrap();
        eventually(&format!("{name} is good"), || {
            let ran = machine.smgr(&["status", "web", "-o", "json"]);
            let status: Value = serde_json::from_slice(&ran.stdout).ok()?;
            let release = &status["instances"][0]["release"];
            (release["version"] == name.as_str() && release["state"] == "good").then_some(())
        });
    }
    assert_eq!(count(&machine, "release.failed"), 0);
    let staging = fs::read_dir(machine.state().join("releases/web")).unwrap().flatten();
    let left = staging.filter(|it| it.file_name().to_string_lossy().starts_with(".staging"));
    assert_eq!(left.count(), 0);
}
