//! Health checks: from what a process answers to what people see and what follows, over the death of the agent.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::machine::{Machine, python};
use crate::support::process::{kill_9, processes_with};
use crate::support::wait::eventually;

/// Answers HTTP on a Unix socket: with 200; with 503 while there is a file `sick`; not at all while there is a file
/// `stuck`.
const SERVER: &str = r#"
import http.server, os, socketserver, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if os.path.exists("stuck"):
            time.sleep(1000)
        self.send_response(503 if os.path.exists("sick") else 200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"fine\n")

    def address_string(self):
        return "unix"

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

os.path.exists("web.sock") and os.remove("web.sock")
Server("web.sock", Handler).serve_forever()
"#;

/// A service with a check of its HTTP answers.
fn answering(machine: &Machine, keys: &str) {
    let program = machine.folder().join("server.py");
    fs::write(&program, SERVER).unwrap();
    machine.service(
        "web",
        &format!(
            "exec = [\"{}\", \"{}\"]\nworking_dir = \"{}\"\n{keys}\n[health.app]\nkind = \"http\"\n\
             address = \"{}\"\npath = \"/readyz\"\ninterval = \"500ms\"\nmin_interval = \"50ms\"\n\
             timeout = \"1s\"\n",
            python(),
            program.display(),
            machine.folder().display(),
            machine.folder().join("web.sock").display(),
        ),
    );
}

fn switch(machine: &Machine, name: &str) -> PathBuf {
    machine.folder().join(name)
}

fn told(machine: &Machine, kinds: &[&str]) -> Vec<String> {
    let kind = |event: &Value| event["type"].as_str().unwrap().to_owned();
    machine.events().iter().map(kind).filter(|kind| kinds.contains(&kind.as_str())).collect()
}

fn condition(web: &Value, name: &str) -> (String, String) {
    let condition = &web["conditions"][name];
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

#[test]
fn a_service_that_answers_badly_is_not_ready_until_it_answers_well_and_its_process_goes_on() {
    let machine = Machine::new();
    answering(&machine, "[ready]\nby = \"health\"");
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    let web = machine.instance("web");
    assert_eq!(condition(&web, "Healthy"), ("true".to_owned(), "ChecksPassed".to_owned()));
    let check = &web["health"][0];
    assert_eq!((&check["check"], &check["status"]), (&"app".into(), &"passing".into()));
    assert!(check["last_at"].is_string() && check["message"] == "", "{check}");
    eventually("probes become rare with success", || {
        (machine.instance("web")["health"][0]["interval_ms"] == 500).then_some(())
    });

    fs::write(switch(&machine, "sick"), "").unwrap();
    let web = eventually("it is not ready", || {
        let web = machine.instance("web");
        (web["conditions"]["Ready"]["status"] == "false").then_some(web)
    });
    assert_eq!(condition(&web, "Ready").1, "ChecksFailed");
    assert_eq!(condition(&web, "Healthy").0, "false");
    assert_eq!((&web["state"], &web["pid"]), (&"running".into(), &pid.into()));
    assert_eq!(web["reason"], "check app fails: status 503");
    assert_eq!(web["health"][0]["interval_ms"], 50, "it is looked at closely");
    let page = machine.exits(3, &["status", "web"]);
    assert!(page.contains("app failing, asked every") && page.contains("status 503"), "{page}");
    // What is known is folded: it is there after the agent's death, and told no second time.
    let agent = machine.part("agent");
    kill_9(agent);
    eventually("another agent", || (machine.part("agent") != agent).then_some(()));
    assert_eq!(condition(&machine.instance("web"), "Ready").1, "ChecksFailed");
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);

    fs::remove_file(switch(&machine, "sick")).unwrap();
    assert_eq!(machine.ready("web"), pid);
    let kinds = ["instance.ready", "instance.healthy", "instance.unhealthy", "instance.exited"];
    let expected = ["instance.healthy", "instance.ready", "instance.unhealthy", "instance.healthy"];
    assert_eq!(told(&machine, &kinds), expected);
    assert!(machine.exits(0, &["history", "web"]).contains("unhealthy"));
    machine.exits(0, &["audit", "verify"]);
}

#[test]
fn a_service_that_hangs_is_started_anew_when_its_check_says_so() {
    let machine = Machine::new();
    answering(&machine, "[restart]\ndelay = \"10ms\"");
    let file = machine.state().join("config/services.d/web.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text + "on_failure = \"restart\"\nfailures = 2\n").unwrap();
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    eventually("it is healthy", || {
        (condition(&machine.instance("web"), "Healthy").0 == "true").then_some(())
    });
    fs::write(switch(&machine, "stuck"), "").unwrap();
    eventually("it is told", || {
        (!told(&machine, &["instance.unhealthy"]).is_empty()).then_some(())
    });
    fs::remove_file(switch(&machine, "stuck")).unwrap();
    machine.ready_but("web", Some(pid));
    eventually("it is healthy again", || {
        (condition(&machine.instance("web"), "Healthy").0 == "true").then_some(())
    });
    let events = machine.events();
    let of = |kind: &str| events.iter().find(|event| event["type"] == kind).unwrap();
    let unhealthy = &of("instance.unhealthy")["data"];
    assert_eq!((&unhealthy["check"], &unhealthy["in_a_row"]), (&"app".into(), &2.into()));
    assert_eq!(unhealthy["message"], "no answer within 1000ms");
    assert_eq!(of("instance.stopping")["data"]["reason"], "unhealthy");
    assert_eq!(of("instance.exited")["data"]["result"], "watchdog");
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
}

#[test]
fn a_service_is_ready_by_health_when_its_port_is_open_and_what_does_not_run_is_not_probed() {
    let machine = Machine::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let go = machine.folder().join("go");
    let program = "import os, socket, sys, time\n\
        while not os.path.exists(sys.argv[1]): time.sleep(0.05)\n\
        server = socket.create_server((\"127.0.0.1\", int(sys.argv[2])))\n\
        while True: server.accept()[0].close()\n";
    let file = machine.folder().join("late.py");
    fs::write(&file, program).unwrap();
    machine.service(
        "web",
        &format!(
            "exec = [\"{}\", \"{}\", \"{}\", \"{port}\"]\n[ready]\nby = \"health\"\n\
             [health.port]\nkind = \"tcp\"\naddress = \"localhost:{port}\"\nmin_interval = \"20ms\"\n",
            python(),
            file.display(),
            go.display()
        ),
    );
    machine.exits(0, &["up", "-d"]);
    eventually("it was asked more than once", || {
        let check = machine.instance("web")["health"][0].clone();
        (check["failures"].as_u64() > Some(3)).then_some(())
    });
    let web = machine.instance("web");
    assert_eq!(web["state"], "starting");
    assert_eq!(condition(&web, "Healthy"), ("unknown".to_owned(), "NotChecked".to_owned()));
    assert_eq!(web["health"][0]["message"], "connection refused");
    fs::write(&go, "").unwrap();
    machine.ready("web");
    let kinds = ["instance.ready", "instance.healthy", "instance.unhealthy"];
    assert_eq!(told(&machine, &kinds), ["instance.healthy", "instance.ready"]);
    let events = machine.events();
    let ready = events.iter().find(|event| event["type"] == "instance.ready").unwrap();
    assert_eq!(ready["data"]["how"], "health");

    machine.exits(0, &["stop", "web"]);
    let web = machine.instance("web");
    assert_eq!(condition(&web, "Healthy"), ("unknown".to_owned(), "NotRunning".to_owned()));
    let check = &web["health"][0];
    assert_eq!((&check["status"], &check["interval_ms"]), (&"unknown".into(), &Value::Null));
}

/// Ends with 3 while there is a file `sick`; does not end, nor does what it began, while there is a file `stuck`.
const PROGRAM: &str =
    "if test -e stuck; then setsid sleep 98765 & sleep 98765; fi; test ! -e sick || exit 3";

/// Returns the processes of programs that hang.
fn hanging(machine: &Machine) -> usize {
    let folder = machine.folder().display().to_string();
    let is_ours = |pid: &u32| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        cwd.display().to_string().starts_with(&folder)
    };
    processes_with("98765").iter().filter(|(pid, _)| is_ours(pid)).count()
}

#[test]
fn a_program_tells_by_its_exit_code_how_a_service_is_and_is_killed_with_all_it_began_when_its_time_is_over()
 {
    let machine = Machine::new();
    machine.service(
        "web",
        &format!(
            "exec = [\"sleep\", \"1000\"]\nworking_dir = \"{}\"\n[ready]\nby = \"health\"\n[health.app]\n\
             kind = \"exec\"\nexec = [\"sh\", \"-c\", \"{PROGRAM}\"]\ninterval = \"300ms\"\n\
             min_interval = \"50ms\"\ntimeout = \"400ms\"\n",
            machine.folder().display()
        ),
    );
    machine.exits(0, &["up", "-d"]);
    let pid = machine.ready("web");
    let message = |status: &str| {
        eventually(&format!("the check is {status}"), || {
            let check = machine.instance("web")["health"][0].clone();
            (check["status"] == status).then(|| check["message"].as_str().unwrap().to_owned())
        })
    };
    fs::write(switch(&machine, "sick"), "").unwrap();
    assert_eq!(message("failing"), "exit code 3");
    assert_eq!(condition(&machine.instance("web"), "Ready").1, "ChecksFailed");
    fs::remove_file(switch(&machine, "sick")).unwrap();
    assert_eq!(message("passing"), "");

    fs::write(switch(&machine, "stuck"), "").unwrap();
    assert_eq!(message("failing"), "not ended within 400ms");
    // Whoever comes back looks after what the one before began.
    kill_9(machine.part("agent"));
    fs::remove_file(switch(&machine, "stuck")).unwrap();
    assert_eq!(message("passing"), "");
    eventually("nothing of them is left", || (hanging(&machine) == 0).then_some(()));
    assert_eq!(machine.ready("web"), pid, "it was told of, and nothing else");
    fs::write(switch(&machine, "stuck"), "").unwrap();
    eventually("one hangs", || (hanging(&machine) > 0).then_some(()));
    machine.exits(0, &["stop", "web"]);
    eventually("it goes with its run", || (hanging(&machine) == 0).then_some(()));
    assert_eq!(machine.json(&["replay"])["live"]["equal"], true);
}
