//! A service is started anew, and given a new spec, while somebody asks it all the time.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::releases::archive;
use crate::support::machine::{Machine, is_root, python};
use crate::support::process::{kill_9, process_state};
use crate::support::wait::{eventually, wait_until};

/// Callers at a time.
const CALLERS: usize = 3;

/// A port, and a machine whose service `web` can be handed over.
struct Site {
    machine: Machine,
    port: u16,
}

impl Site {
    fn new(rest: &str) -> Self {
        let machine = Machine::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let site = Self { machine, port };
        site.spec("1", rest);
        site.machine.exits(0, &["up", "-d"]);
        site.machine.ready("web");
        site
    }

    fn spec(&self, version: &str, rest: &str) {
        let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/handover/server.py");
        let text = format!(
            "exec = [\"{}\", \"{}\", \"--folder\", \"{}\"]\n\
             [env]\nVERSION = \"{version}\"\n\
             [socket.http]\nlisten = \"tcp:127.0.0.1:{}\"\n\
             [update]\nmethod = \"handover\"\n{rest}",
            python(),
            server.display(),
            self.machine.folder().display(),
            self.port
        );
        self.machine.service("web", &text);
    }

    /// Has the next run misbehave.
    fn mood(&self, name: &str, text: &str) {
        fs::write(self.machine.folder().join(name), text).unwrap();
    }

    fn calm(&self, name: &str) {
        fs::remove_file(self.machine.folder().join(name)).unwrap();
    }

    /// Waits for a second run beside the one that serves.
    fn beside(&self) -> u32 {
        eventually("there is a second run", || {
            let pid = self.machine.instance("web")["beside"]["pid"].as_u64()?;
            Some(u32::try_from(pid).unwrap())
        })
    }

    fn alone(&self) {
        wait_until("there is one run", || self.machine.instance("web")["beside"].is_null());
    }
}

/// Says whether a process runs no more; its zombie may be there until its end is durable.
fn has_ended(pid: u32) -> bool {
    matches!(process_state(pid), None | Some('Z' | 'X'))
}

fn notifies(timeout: &str) -> String {
    format!("[ready]\nby = \"notify\"\ntimeout = \"{timeout}\"\n")
}

/// Who asks all the time, until it is asked how it went.
pub(crate) struct Load {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn on(site: &Site) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], site.port)), CALLERS, || {})
    }

    /// Asks an address, each caller after it has done what it is told to do first.
    pub(crate) fn at(
        at: SocketAddr,
        callers: usize,
        first: impl Fn() + Clone + Send + 'static,
    ) -> Self {
        let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let callers = (0..callers).map(|_| {
            let (is_over, answered) = (Arc::clone(&is_over), Arc::clone(&answered));
            let first = first.clone();
            thread::spawn(move || {
                first();
                let mut failures = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    match ask(at) {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(why) => failures.push(why),
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                failures
            })
        });
        let callers = callers.collect();
        Self { is_over, answered, callers }
    }

    /// Ends, and demands that every request was answered.
    pub(crate) fn none_failed(self) {
        self.is_over.store(true, Ordering::Relaxed);
        let failures = self.callers.into_iter().flat_map(|caller| caller.join().unwrap());
        assert_eq!(failures.collect::<Vec<_>>(), Vec::<String>::new());
        let answered = self.answered.load(Ordering::Relaxed);
        assert!(answered > 20, "only {answered} requests were made");
    }
}

/// Makes a request and returns the body of its answer.
fn ask(at: SocketAddr) -> Result<String, String> {
    let told = |what: &'static str| move |why: std::io::Error| format!("{what}: {why}");
    let patience = Duration::from_secs(20);
    let mut stream = TcpStream::connect_timeout(&at, patience).map_err(told("connect"))?;
    stream.set_read_timeout(Some(patience)).map_err(told("read timeout"))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").map_err(told("write"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(told("read"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(format!("answered {answer:?}")),
    }
}

#[test]
fn twenty_restarts_with_a_handover_fail_no_request_and_lose_no_line() {
    let site = Site::new(&notifies("20s"));
    let load = Load::on(&site);
    let mut pids = vec![site.machine.ready("web")];
    for _ in 0..20 {
        site.machine.exits(0, &["restart", "web"]);
        let now = site.machine.ready("web");
        assert!(!pids.contains(&now), "it is another process");
        pids.push(now);
    }
    site.alone();
    load.none_failed();
    let status = site.machine.instance("web");
    assert_eq!((status["run"].as_u64(), status["restarts"].as_u64()), (Some(21), Some(0)));
    let log = fs::read_to_string(status["log_path"].as_str().unwrap()).unwrap();
    for pid in &pids {
        assert!(log.contains(&format!("begin {pid}\n")), "{pid}: {log}");
    }
    for pid in &pids[..20] {
        assert!(log.contains(&format!("end {pid}\n")), "{pid}: {log}");
        assert!(has_ended(*pid));
    }
}

#[test]
fn a_new_run_that_hangs_never_becomes_ready_and_the_old_one_serves_on() {
    let site = Site::new(&notifies("2s"));
    let before = site.machine.ready("web");
    let load = Load::on(&site);
    site.mood("hang", "");
    let ran = site.machine.smgr(&["restart", "web"]);
    let said = String::from_utf8_lossy(&ran.stderr) + String::from_utf8_lossy(&ran.stdout);
    assert!(!ran.status.success() && said.contains("E0629"), "{said}");
    site.alone();
    assert_eq!(site.machine.ready("web"), before);
    site.calm("hang");
    site.mood("crash", "");
    let ran = site.machine.smgr(&["restart", "web"]);
    assert!(String::from_utf8_lossy(&ran.stderr).contains("E0629"), "{ran:?}");
    site.alone();
    load.none_failed();
    let status = site.machine.instance("web");
    assert_eq!(status["pid"].as_u64(), Some(u64::from(before)));
    site.calm("crash");
    site.machine.exits(0, &["restart", "web"]);
    site.machine.ready_but("web", Some(before));
}

#[test]
fn a_changed_spec_is_handed_over_to_when_the_new_run_is_well_at_a_place_of_its_own() {
    let checked = format!(
        "{}[socket.admin]\nlisten = \"unix:${{runtime}}/admin.sock\"\nper_instance = true\n\
         [health.app]\nkind = \"http\"\nsocket = \"admin\"\nmin_interval = \"50ms\"\n\
         [stop]\ndrain = \"300ms\"\n",
        notifies("3s")
    );
    let site = Site::new(&checked);
    let before = site.machine.ready("web");
    let load = Load::on(&site);
    site.spec("2", &checked);
    site.machine.exits(0, &["apply"]);
    let after = site.machine.ready_but("web", Some(before));
    let at = SocketAddr::from(([127, 0, 0, 1], site.port));
    eventually("the new one alone answers", || {
        (ask(at).ok()? == format!("{after} 2")).then_some(())
    });
    site.alone();
    // Ready, and not well: the page at its own socket says so, and so does that of the one that serves.
    site.mood("sick", "");
    site.spec("3", &checked);
    site.machine.smgr(&["apply"]);
    site.beside();
    site.alone();
    assert_eq!(site.machine.instance("web")["pid"].as_u64(), Some(u64::from(after)));
    load.none_failed();
    assert_eq!(ask(at).unwrap(), format!("{after} 2"));
}

#[test]
fn a_release_that_hangs_behind_the_shared_socket_is_returned_from_and_no_request_fails() {
    // What ends it: that no run of it is ready in time, or that the release is not healthy by its deadline.
    for (ready, deadline) in [("1s", "10s"), ("30s", "2s")] {
        let machine = Machine::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let user = if is_root() { "user = \"root\"\n" } else { "" };
        let spec = machine.folder().join("web.toml");
        let text = format!(
            "{user}exec = [\"${{release}}/bin/web\"]\n\
             [socket.http]\nlisten = \"tcp:127.0.0.1:{port}\"\n\
             [update]\nmethod = \"handover\"\n[stop]\ntimeout = \"1s\"\n{}\
             [rollout]\nmin_healthy_time = \"300ms\"\nhealthy_deadline = \"{deadline}\"\n",
            notifies(ready)
        );
        fs::write(&spec, text).unwrap();
        let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/handover/server.py");
        let deploy = |code: i32, version: &str| {
            // A release of its own folder, and in that of the second one a file says that it hangs.
            let folder = machine.folder().join(version);
            fs::create_dir(&folder).unwrap();
            if version == "2.0" {
                fs::write(folder.join("hang"), "").unwrap();
            }
            let script = format!(
                "export VERSION={version}\nexec {} {} --folder {}",
                python(),
                server.display(),
                folder.display()
            );
            let packed = archive(&machine, version, &script).display().to_string();
            let spec = spec.display().to_string();
            let line = ["deploy", "web", "-f", &spec, "--artifact", &packed];
            machine.exits(code, &[&line[..], &["--release-version", version]].concat())
        };
        machine.exits(0, &["up", "-d"]);
        deploy(0, "1.0");
        let serving = machine.ready("web");
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let load = Load::at(at, CALLERS, || {});
        let said = deploy(10, "2.0");
        assert!(said.contains("E0701"), "{said}");
        wait_until("there is one run", || machine.instance("web")["beside"].is_null());
        load.none_failed();
        assert_eq!(ask(at).unwrap(), format!("{serving} 1.0"), "the one that served goes on");
        let status = machine.instance("web");
        assert_eq!(status["release"]["version"], "1.0", "{status}");
        assert_eq!(status["pid"].as_u64(), Some(u64::from(serving)));

        let events = machine.events();
        let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
        assert_eq!(count("instance.started"), 2, "the second one did begin");
        assert_eq!(count("instance.ready"), 1, "and was never ready");
        assert_eq!((count("instance.handed_over"), count("release.returned")), (0, 1));
        let returned = events.iter().find(|event| event["type"] == "release.returned").unwrap();
        assert_eq!(returned["data"]["kept_serving"], true, "{returned}");
    }
}

#[test]
fn what_is_run_beside_a_service_leaves_its_sockets_open() {
    let errands = "[action.look]\nexec = [\"/bin/true\"]\n\
        [health.app]\nkind = \"exec\"\nexec = [\"/bin/true\"]\nmin_interval = \"50ms\"\n";
    let site = Site::new(&format!("{}{errands}", notifies("5s")));
    let mut before = site.machine.ready("web");
    let load = Load::on(&site);
    for _ in 0..2 {
        site.machine.exits(0, &["action", "run", "web", "look"]);
        site.machine.exits(0, &["restart", "web"]);
        before = site.machine.ready_but("web", Some(before));
    }
    load.none_failed();
}

#[test]
fn a_handover_goes_on_when_agent_and_keeper_are_killed_in_the_middle() {
    for parts in [&["agent"][..], &["keeper"], &["keeper", "agent"]] {
        let site = Site::new(&notifies("60s"));
        let before = site.machine.ready("web");
        let load = Load::on(&site);
        site.mood("slow", "2");
        thread::scope(|scope| {
            let restart = scope.spawn(|| site.machine.smgr(&["restart", "web"]));
            site.beside();
            parts.iter().map(|part| site.machine.part(part)).for_each(kill_9);
            // Whoever asked may have lost the connection; the wish goes on all the same.
            drop(restart.join().unwrap());
        });
        let after = site.machine.ready_but("web", Some(before));
        site.alone();
        load.none_failed();
        assert!(has_ended(before));
        let at = SocketAddr::from(([127, 0, 0, 1], site.port));
        assert_eq!(ask(at).unwrap(), format!("{after} 1"));
    }
}

#[test]
fn a_stop_during_a_handover_ends_both_and_a_crash_of_the_old_one_hands_over() {
    let site = Site::new(&notifies("60s"));
    site.mood("slow", "1");
    let before = site.machine.ready("web");
    thread::scope(|scope| {
        scope.spawn(|| site.machine.smgr(&["restart", "web"]));
        let beside = site.beside();
        kill_9(before);
        assert_eq!(site.machine.ready("web"), beside);
    });
    site.mood("slow", "30");
    let serving = site.machine.ready("web");
    thread::scope(|scope| {
        scope.spawn(|| site.machine.smgr(&["restart", "web"]));
        let beside = site.beside();
        site.machine.exits(0, &["stop", "web"]);
        assert!(has_ended(serving) && has_ended(beside));
    });
}

#[test]
fn a_handover_that_nothing_of_its_own_could_end_is_refused_by_a_check() {
    let machine = Machine::new();
    let shared =
        "[socket.http]\nlisten = \"tcp:127.0.0.1:8080\"\n[update]\nmethod = \"handover\"\n";
    let refused = |rest: &str, word: &str| {
        machine.service("web", &format!("exec = [\"/bin/true\"]\n{shared}{rest}"));
        let ran = machine.smgr(&["check"]);
        let said = String::from_utf8_lossy(&ran.stderr) + String::from_utf8_lossy(&ran.stdout);
        assert!(!ran.status.success() && said.contains(word), "{rest}: {said}");
    };
    refused("", "nothing says that a new run is ready");
    refused("[ready]\nby = \"log\"\nmatch = \"up\"\n", "the lines of both runs");
    let health = "[ready]\nby = \"health\"\n[health.app]\nkind = \"http\"\n";
    refused(&format!("{health}socket = \"http\"\n"), "old and new run share");
    refused(&format!("{health}url = \"http://127.0.0.1:9000/\"\n"), "asked at one place");
    let admin = "[socket.admin]\nlisten = \"tcp:127.0.0.1:9000\"\nper_instance = true\n";
    refused(&format!("{health}socket = \"admin\"\n{admin}"), "cannot both listen");
    let own = admin.replace("tcp:127.0.0.1:9000", "unix:${runtime}/admin.sock");
    machine.service(
        "web",
        &format!("exec = [\"/bin/true\"]\n{shared}{health}socket = \"admin\"\n{own}"),
    );
    machine.exits(0, &["check"]);
}
