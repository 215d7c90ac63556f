//! The HTTP face of a controller: who may ask what, what is answered, and that nothing is missed or done twice whoever dies.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smgr::domain::id::{Generation, IntentId};
use smgr::domain::intent::{Action, RolloutCommand};
use smgr::domain::policy::Kind;
use smgr::domain::time::UnixMicros;
use smgr::head::{clock, keyfile};
use smgr::wire::codec;
use smgr::wire::envelope::seal;
use smgr::wire::payload::{Audience, Intent, Mode};

use super::Fleet;
use crate::support::machine::is_root;
use crate::support::process::kill_9;
use crate::support::schema::{PUBLISHED, differences, is_as_published, mistakes, of_answer};
use crate::support::wait::{PATIENCE, eventually, wait_until};

const SLEEP: &str = "exec = [\"sleep\", \"1000\"]\n";

/// A service with an action.
const ACTS: &str =
    "exec = [\"sleep\", \"1000\"]\n[action.cache-clear]\nexec = [\"true\"]\nidempotent = true\n";

/// What jobs may.
const JOBS: &str = r#"{
    "ci": [{"verbs": {"only": ["restart", "run", "status", "events"]}, "services": "all", "nodes": "all"}],
    "deploy": [
        {"verbs": {"only": ["deploy"]}, "services": {"only": ["web"]}, "nodes": "all"},
        {"verbs": {"only": ["status", "events"]}, "services": "all", "nodes": "all"}
    ],
    "watch": [{"verbs": {"only": ["status", "events"]}, "services": "all", "nodes": "all"}],
    "idle": [{"verbs": {"only": ["signal"]}, "services": {"only": ["other"]}, "nodes": "all"}]
}"#;

/// A fleet whose controller serves HTTP.
struct Served {
    fleet: Fleet,
    port: u16,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// Reads it, and demands that it is what the OpenAPI document says.
    fn json(&self) -> Value {
        let document = serde_json::from_str(&self.body);
        let document: Value = document.unwrap_or_else(|why| panic!("{why}: {}", self.body));
        if document.get("schema").is_some() {
            is_as_published(&document);
        }
        document
    }

    /// Reads what has one document a line.
    fn lines(&self) -> Vec<Value> {
        let lines = self.body.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.inspect(is_as_published).collect()
    }

    /// Demands an error as RFC 9457 tells it, with the members that all errors of smgr have.
    fn problem(&self, what: &str, (status, code): (u16, &str)) {
        let problem = self.json();
        assert_eq!((self.status, &problem["code"]), (status, &json!(code)), "{what}: {problem}");
        assert_eq!(problem["schema"], "smgr.error.v1", "{what}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{what}");
        let exit = problem["exit_code"].to_string();
        assert_eq!(self.header("smgr-exit-code"), Some(exit.as_str()), "{what}");
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value)
    }
}

impl Served {
    fn of(nodes: &[&str], services: &[(&str, &str, &str)]) -> Self {
        let fleet = Fleet::new();
        let text = format!(
            r#"{{"v": 1, "nodes": {}, "controllers": ["c1"], "jobs": {JOBS}}}"#,
            json!(nodes)
        );
        fs::write(fleet.machine.state().join("fleet.json"), text).unwrap();
        for (node, name, text) in services {
            fleet.service(node, name, text);
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        fleet.machine.exits(0, &["up", "-d", "--http", &port.to_string()]);
        let served = Self { fleet, port };
        served.is_ready();
        served
    }

    fn is_ready(&self) {
        wait_until("the controller serves HTTP", || {
            self.try_ask("GET", "/readyz", &[], b"").is_some_and(|answer| answer.status == 200)
        });
    }

    fn token(&self, job: &str) -> String {
        let made = self.fleet.machine.json(&["token", "create", "--as", job]);
        format!("Authorization: Bearer {}", made["token"].as_str().unwrap())
    }

    /// Sends one request and returns the whole answer.
    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        self.try_ask(method, path, headers, body).expect("an answer")
    }

    fn try_ask(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Option<Answer> {
        let mut stream = self.open(method, path, headers, body)?;
        let mut bytes = Vec::new();
        // What was refused unread may end in a reset behind the answer.
        let _reset = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }

    /// Sends one request. By HTTP/1.0 the answer is not cut into chunks.
    fn open(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        let _refused_unread = stream.write_all(body);
        Some(stream)
    }

    fn get(&self, path: &str, token: &str) -> Value {
        let answer = self.ask("GET", path, &[token], b"");
        assert_eq!(answer.status, 200, "{path}: {}{}", answer.head, answer.body);
        answer.json()
    }

    /// Returns all events, page by page.
    fn all_events(&self, token: &str) -> Vec<Value> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let mut page = self.get(&format!("/v1/events{after}"), token);
            let Value::Array(events) = page["events"].take() else { panic!("{page}") };
            if events.is_empty() {
                return all;
            }
            all.extend(events);
            after = format!("?since={}", page["cursor"].as_str().unwrap());
        }
    }

    fn all_ids(&self, token: &str) -> Vec<String> {
        let events = self.all_events(token).into_iter();
        events.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Follows the stream behind a cursor until `is_enough`; returns ids with cursors, in order.
    fn follow(
        &self,
        token: &str,
        since: Option<&str>,
        mut is_enough: impl FnMut(&Stream) -> bool,
    ) -> Stream {
        let since = since.map(|cursor| format!("Last-Event-ID: {cursor}"));
        let headers = ["Accept: text/event-stream", token];
        let headers = [&headers[..], &since.as_deref().into_iter().collect::<Vec<_>>()].concat();
        let stream = self.open("GET", "/v1/events", &headers, b"").unwrap();
        let mut seen = Stream::default();
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { break };
            if let Some(cursor) = line.strip_prefix("id: ") {
                seen.cursor = Some(cursor.to_owned());
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data: Value = serde_json::from_str(data).unwrap();
                match data["type"].as_str().unwrap() {
                    "stream.caught_up" => seen.caught_up = true,
                    _ if data["schema"] == "smgr.stream.v1" => {}
                    _ => {
                        is_as_published(&data);
                        assert_eq!(data["cursor"].as_str(), seen.cursor.as_deref());
                        seen.ids.push(data["id"].as_str().unwrap().to_owned());
                    }
                }
            }
            if is_enough(&seen) {
                break;
            }
        }
        seen
    }

    /// Demands that what happened since there were so many events was refused.
    fn nothing_but_refusals(&self, token: &str, before: usize) {
        let since = self.all_events(token).split_off(before).into_iter();
        let types: Vec<_> = since.map(|it| it["type"].clone()).collect();
        assert!(types.iter().all(|it| it == "intent.refused"), "{types:?}");
    }

    fn restart(&self, token: &str, key: &str, nodes: &Value) -> Answer {
        let body = json!({ "nodes": nodes }).to_string();
        let key = format!("Idempotency-Key: {key}");
        self.ask("POST", "/v1/services/web/restart", &[token, &key], body.as_bytes())
    }

    /// Returns how many wishes for `web` each node took.
    fn accepted(&self, token: &str) -> BTreeMap<String, usize> {
        let mut by_node = BTreeMap::new();
        let page = self.get("/v1/events?service=web", token);
        for event in page["events"].as_array().unwrap() {
            if event["type"] == "intent.accepted" {
                *by_node.entry(event["node"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        by_node
    }
}

/// What came over a stream.
#[derive(Default)]
struct Stream {
    ids: Vec<String>,
    cursor: Option<String>,
    caught_up: bool,
}

#[test]
fn what_is_asked_over_http_is_answered_as_everywhere_and_what_may_not_be_asked_is_a_problem() {
    let served = Served::of(&["n1", "n2"], &[("n2", "web", SLEEP)]);
    let [ci, watch, deploy] = ["ci", "watch", "deploy"].map(|job| served.token(job));
    assert_eq!(served.ask("GET", "/healthz", &[], b"").body, "ok\n");
    let paths = served.ask("GET", "/openapi.json", &[], b"").json()["paths"].clone();
    assert!(paths["/v1/events"]["get"].is_object());
    wait_until("the controller knows the service", || {
        let status = served.get("/v1/status", &watch);
        let names: Vec<_> = status["instances"].as_array().unwrap().iter().collect();
        names.iter().any(|it| it["name"] == "web/0@n2" && it["state"] == "running")
    });
    let node = served.get("/v1/nodes/n2", &watch);
    assert_eq!((&node["schema"], &node["summary"]["nodes"]), (&json!("smgr.status.v1"), &json!(1)));
    // History is what is durable at the controller, which is a commit behind what it knows.
    wait_until("its start is history", || {
        let history = served.get("/v1/history?node=n2&service=web", &watch);
        assert_eq!(history["as_of"]["complete"], true, "{history}");
        history["entries"].as_array().unwrap().iter().any(|it| it["what"] == "started")
    });
    let metrics = served.ask("GET", "/metrics", &[], b"").body;
    let line = "smgr_instances{fleet=\"local\",node=\"n2\",service=\"web\",state=\"running\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");

    let wish = br#"{"nodes": ["n2"]}"#;
    let large = vec![b' '; 100_000];
    let stranger = "Authorization: Bearer smgr_0000";
    let sent = |path: &'static str, token: &str, body: &[u8], expected: (u16, &str)| {
        served.ask("POST", path, &[token], body).problem(path, expected);
    };
    let before = served.all_ids(&watch);
    sent("/v1/services/web/restart", stranger, wish, (401, "E0334"));
    sent("/v1/services/web/restart", "X-Nothing: 1", wish, (401, "E0334"));
    sent("/v1/services/web/restart", &watch, wish, (403, "E0323"));
    sent("/v1/services/web/stop", &ci, wish, (403, "E0323"));
    sent("/v1/services/web/restart", &ci, &large, (413, "E0301"));
    sent("/v1/services/web/restart", &ci, b"{", (400, "E0101"));
    sent("/v1/services/web/restart", &ci, br#"{"nodes": 7}"#, (400, "E0101"));
    sent("/v1/services/web/restart", &ci, br#"{"nodes": ["n2"], "x": 1}"#, (400, "E0101"));
    sent("/v1/services/web/restart", &ci, br#"{"nodes": ["n9"]}"#, (404, "E0603"));
    sent("/v1/services/web/restart", &ci, br#"{"nodes": []}"#, (404, "E0604"));
    sent("/v1/services/web/restart?wait=5", &ci, wish, (400, "E0103"));
    sent("/v1/services/none/restart", &ci, wish, (404, "E0601"));
    sent("/v1/services/We.b/restart", &ci, wish, (404, "E0601"));
    sent("/v1/services/web/explode", &ci, wish, (404, "E0108"));
    sent("/v1/actions/web/none", &ci, wish, (404, "E0605"));
    sent("/v1/rollouts", &ci, b"{}", (400, "E0101"));
    // Whoever may deploy it nowhere is told nothing of it.
    sent("/v1/rollouts", &ci, br#"{"service": "web", "release": "sha256:00"}"#, (403, "E0323"));
    sent("/v1/rollouts", &deploy, br#"{"service": "api", "spec": "exce = 1"}"#, (403, "E0323"));
    sent("/v1/rollouts/r-00/pause", &ci, b"", (403, "E0323"));
    sent("/v1/actions/none/none", &watch, wish, (403, "E0323"));
    sent("/v1/rollouts", &deploy, br#"{"service": "web"}"#, (400, "E0101"));
    sent("/v1/rollouts", &deploy, br#"{"service": "web", "release": "sha256:00"}"#, (404, "E0710"));
    sent("/v1/rollouts", &deploy, br#"{"service": "web", "spec": "exce = 1"}"#, (422, "E0412"));
    for artifact in [
        json!({"url": "ftp://127.0.0.1/web", "sha256": "0".repeat(64), "bytes": 7}),
        json!({"url": "http://127.0.0.1/web", "sha256": "0".repeat(64), "bytes": 3_u64 << 30}),
        json!({"url": "", "sha256": "0".repeat(64), "bytes": 7}),
    ] {
        let body = json!({"service": "web", "spec": "exec = [\"a\"]", "artifact": artifact});
        sent("/v1/rollouts", &deploy, body.to_string().as_bytes(), (422, "E0707"));
    }
    sent(
        "/v1/rollouts",
        &deploy,
        br#"{"service": "web", "spec": "exec = [\"a\"]", "select": "env=no"}"#,
        (404, "E0604"),
    );
    sent("/v1/rollouts", &ci, br#"{"service": "web", "spec": "exec = [\"a\"]"}"#, (403, "E0323"));
    sent("/v1/rollouts/r-00/pause", &deploy, b"", (404, "E0720"));
    sent("/v1/rollouts/r-00/explode", &ci, b"", (404, "E0108"));
    sent("/v1/intents", &ci, b"junk", (415, "E0101"));
    sent("/v1/status", &ci, b"", (405, "E0108"));
    sent("/nowhere", &ci, b"", (404, "E0108"));
    for (path, status) in [
        ("/v1/nodes/n9", 404),
        ("/v1/history?node=n9", 400),
        ("/v1/events?since=c1/x", 400),
        ("/v1/events?since=yesterday", 400),
        ("/v1/events?what=1", 400),
        ("/v1/intents/i-00", 404),
    ] {
        assert_eq!(served.ask("GET", path, &[&watch], b"").status, status, "{path}");
    }
    served.fleet.all_arrives(&["n1", "n2"]);
    served.nothing_but_refusals(&watch, before.len());

    // A token that is taken back lets nobody in, at once.
    let name = served.fleet.machine.json(&["token", "list"])["tokens"][0]["name"].clone();
    served.fleet.machine.exits(0, &["token", "revoke", name.as_str().unwrap()]);
    assert_eq!(served.ask("GET", "/v1/status", &[&ci], b"").status, 401);
    served.get("/v1/status", &watch);
    let said = served.fleet.machine.exits(7, &["token", "create", "--as", "nobody"]);
    assert!(said.contains("fleet.json"), "{said}");
}

#[test]
fn every_route_refuses_whoever_may_not_and_whatever_it_does_not_take_and_changes_nothing() {
    let served = Served::of(&["n1", "n2"], &[("n2", "web", ACTS)]);
    let [ci, watch, deploy, idle] = ["ci", "watch", "deploy", "idle"].map(|job| served.token(job));
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let soon = "[rollout]\nmin_healthy_time = \"50ms\"\n";
    let spec = format!("{user}exec = [\"sleep\", \"1000\"]\n{soon}");
    let release = json!({"service": "web", "spec": spec, "select": "name=n1"}).to_string();
    let asked = served.ask("POST", "/v1/rollouts", &[&deploy], release.as_bytes());
    let rollout = asked.json()["id"].as_str().unwrap().to_owned();
    served.get(&format!("/v1/rollouts/{rollout}?wait=60s"), &watch);

    let paths = served.ask("GET", "/openapi.json", &[], b"").json()["paths"].clone();
    let filled = |path: &str| {
        let intent = format!("i-{}", "0".repeat(32));
        [
            ("{node}", "n2"),
            ("{service}", "web"),
            ("{verb}", "restart"),
            ("{action}", "cache-clear"),
            ("{intent}", &intent),
            ("{rollout}", &rollout),
            ("{command}", "pause"),
        ]
        .iter()
        .fold(path.to_owned(), |path, (name, value)| path.replace(name, value))
    };
    served.fleet.all_arrives(&["n1", "n2"]);
    let before = served.all_ids(&watch).len();
    let mut guarded = 0;
    for (path, operations) in paths.as_object().unwrap() {
        let place = filled(path);
        let (token, body) = match path.split('/').nth(2) {
            Some("rollouts") => (&deploy, release.as_str()),
            Some("services" | "actions") => (&ci, r#"{"nodes": ["n2"]}"#),
            _ => (&watch, ""),
        };
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase();
            let body = if method == "POST" { body } else { "" }.as_bytes();
            let ask = |query: &str, token: &str| {
                served.ask(&method, &format!("{place}{query}"), &[token], body)
            };
            if operation["security"].as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            guarded += 1;
            let what = format!("{method} {place}");
            for stranger in [
                "X-Nothing: 1",
                "Authorization: Bearer smgr_0000",
                "Authorization: Bearer",
                &token.replace("Bearer", "Basic"),
            ] {
                ask("", stranger).problem(&format!("{what} by {stranger}"), (401, "E0334"));
            }
            ask("", &idle).problem(&what, (403, "E0323"));
            ask("?nonsense=1", token).problem(&what, (400, "E0101"));
            for parameter in operation["parameters"].as_array().unwrap() {
                let name = parameter["name"].as_str().unwrap();
                let code = match (parameter["in"].as_str().unwrap(), name) {
                    ("query", "wait") => (400, "E0103"),
                    ("query", "since") => (400, "E0104"),
                    ("query", "selector") => (400, "E0102"),
                    ("query", "service") if path == "/v1/history" => (400, "E0102"),
                    ("query", "service") => (404, "E0601"),
                    ("query", "node") => (404, "E0603"),
                    ("query", "follow") => (400, "E0101"),
                    ("query", name) => panic!("what of `{name}` is refused?"),
                    _ => continue,
                };
                let query = format!("?{name}=%21");
                ask(&query, token).problem(&format!("{what}{query}"), code);
            }
            served.ask("DELETE", &place, &[token], b"").problem(&what, (405, "E0108"));
        }
    }
    assert!(guarded > 10, "{paths}");
    for (path, expected) in [
        ("/v1/rollouts/r-00000000", (404, "E0720")),
        ("/v1/rollouts/r-00000000?wait=1s", (404, "E0720")),
        ("/v1/rollouts/r-00000000/events", (404, "E0720")),
        ("/v1/rollouts/nothing", (404, "E0720")),
        ("/v1/nodes/n9", (404, "E0603")),
        ("/v1/status?selector=web&selector=web", (400, "E0101")),
    ] {
        served.ask("GET", path, &[&watch], b"").problem(path, expected);
    }
    served.fleet.all_arrives(&["n1", "n2"]);
    served.nothing_but_refusals(&watch, before);
}

#[test]
fn a_wish_over_a_selection_has_its_turns_ends_at_the_first_failure_and_is_gone_on_with() {
    let notes = tempfile::tempdir().unwrap();
    let at = notes.path().display();
    let web = format!(
        "{SLEEP}[action.mark]\nexec = [\"sh\", \"-c\", \"echo x >>{at}/${{node}}; test ! -e {at}/fails-${{node}}\"]\n\
         [action.erase]\nexec = [\"true\"]\nconfirm = true\n"
    );
    let nodes = ["n1", "n2", "n3"];
    let served = Served::of(&nodes, &nodes.map(|node| (node, "web", &*web)));
    let ci = served.token("ci");
    let mark = |key: &str, more: &Value, wait: &str| {
        let mut body = json!({"select": "name=n1|n2|n3", "max_parallel": ["1"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let key = format!("Idempotency-Key: {key}");
        let path = format!("/v1/actions/web/mark?wait={wait}");
        served.ask("POST", &path, &[&ci, &key], body.to_string().as_bytes())
    };
    let marks = || {
        nodes.map(|node| {
            fs::read_to_string(notes.path().join(node)).map_or(0, |text| text.lines().count())
        })
    };
    wait_until("the controller knows all of them", || {
        let status = served.get("/v1/status", &ci);
        status["instances"].as_array().unwrap().iter().filter(|it| it["service"] == "web").count()
            == 3
    });
    let answer = mark("one", &json!({}), "60s");
    assert_eq!(
        (answer.status, answer.header("smgr-exit-code")),
        (200, Some("0")),
        "{}",
        answer.body
    );
    assert_eq!(marks(), [1, 1, 1]);

    // The second in turn fails: the third is never asked.
    fs::write(notes.path().join("fails-n2"), "").unwrap();
    let answer = mark("two", &json!({}), "60s");
    let result = answer.json();
    assert_eq!((answer.status, &result["not_started"]), (200, &json!(["n3"])), "{result}");
    assert_ne!(answer.header("smgr-exit-code"), Some("0"));
    assert_eq!(marks(), [2, 2, 1]);
    assert_eq!(mark("two", &json!({}), "60s").json(), result, "it is the same wish");
    fs::remove_file(notes.path().join("fails-n2")).unwrap();

    // Nobody waits, so nobody goes on; whoever asks again does, and nothing is done twice.
    let answer = mark("three", &json!({}), "1ms");
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert!(!answer.json()["later"].as_array().unwrap().is_empty(), "{}", answer.body);
    let answer = mark("three", &json!({}), "60s");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(marks(), [3, 3, 2]);

    // What a person has to say yes to is run when somebody says that one did.
    let erase = |more: Value| {
        let mut body = json!({"nodes": "all"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        served.ask("POST", "/v1/actions/web/erase", &[&ci], body.to_string().as_bytes())
    };
    let refused = erase(json!({}));
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (409, &json!("E0631")),
        "{}",
        refused.body
    );
    assert_eq!(erase(json!({"confirmed": true})).status, 200);
    let said = served.fleet.machine.exits(6, &["action", "run", "web@n1", "erase"]);
    assert!(said.contains("said yes"), "{said}");
    served.fleet.machine.exits(0, &["action", "run", "web@n1", "erase", "--yes"]);

    for (more, status, code) in [
        (json!({"nodes": "all"}), 400, "E0101"),
        (json!({"select": null}), 400, "E0101"),
        (json!({"select": "name=n9"}), 404, "E0603"),
        (json!({"select": "env=no"}), 404, "E0604"),
        (json!({"select": "=="}), 400, "E0102"),
        (json!({"max_parallel": ["0"]}), 400, "E0101"),
        (json!({"max_parallel": ["200%"]}), 400, "E0101"),
        (json!({"max_parallel": 1}), 400, "E0101"),
    ] {
        let answer = mark("wrong", &more, "60s");
        let problem = answer.json();
        assert_eq!((answer.status, &problem["code"]), (status, &json!(code)), "{more}: {problem}");
    }
    assert_eq!(marks(), [3, 3, 2]);
}

#[test]
fn an_action_runs_on_as_many_nodes_as_its_service_says() {
    let notes = tempfile::tempdir().unwrap();
    let at = notes.path().display();
    let web = format!(
        "{SLEEP}[action.each]\nmax_parallel = \"100%\"\nexec = [\"sh\", \"-c\", \"echo x >>{at}/${{node}}; test ${{node}} != n1\"]\n\
         [action.once]\nrun_on = \"one\"\nexec = [\"sh\", \"-c\", \"echo ${{node}} >>{at}/once\"]\n"
    );
    let nodes = ["n1", "n2", "n3"];
    let served = Served::of(&nodes, &nodes.map(|node| (node, "web", &*web)));
    let ci = served.token("ci");
    wait_until("the controller knows all of them", || {
        let status = served.get("/v1/status?selector=web", &ci);
        status["instances"].as_array().unwrap().len() == 3
    });
    let lines = |name: &str| {
        let text = fs::read_to_string(notes.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |action: &str, body: Value| {
        let path = format!("/v1/actions/web/{action}");
        let answer = served.ask("POST", &path, &[&ci], body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    let said = |code: i32, action: &str, more: &[&str]| {
        let line = ["action", "run", "web", action, "--select", "*"];
        served.fleet.machine.exits(code, &[&line[..], more].concat())
    };
    // All at once, so the failure of one holds up no other.
    run("each", json!({"select": "*"}));
    assert_eq!(nodes.map(|node| lines(node).len()), [1, 1, 1]);
    said(15, "each", &[]);
    assert_eq!(nodes.map(|node| lines(node).len()), [2, 2, 2]);
    said(15, "each", &["--max-parallel", "1"]);
    assert_eq!(nodes.map(|node| lines(node).len()), [3, 2, 2], "who asks may say otherwise");

    run("once", json!({"select": "*"}));
    run("once", json!({"nodes": "all"}));
    assert_eq!(said(0, "once", &[]).matches("n1").count(), 1);
    assert_eq!(lines("once"), ["n1", "n1", "n1"]);
    // One that is away is no answer; and whoever names nodes means them.
    served.fleet.kill_node("n2");
    run("once", json!({"select": "name=n2|n3"}));
    run("once", json!({"nodes": ["n1", "n3"]}));
    let mut told = lines("once").split_off(3);
    told[1..].sort();
    assert_eq!(told, ["n3", "n1", "n3"]);
    served.fleet.up_again();
}

#[test]
fn every_document_is_what_the_openapi_document_says_and_one_that_is_not_would_be_found() {
    let served = Served::of(&["n1", "n2"], &[("n1", "api", SLEEP)]);
    let [ci, deploy] = ["ci", "deploy"].map(|job| served.token(job));
    let published = served.ask("GET", "/openapi.json", &[], b"").json();
    assert_eq!(published, *PUBLISHED);
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let spec =
        |exec: &str| format!("{user}exec = {exec}\n[rollout]\nmin_healthy_time = \"100ms\"\n");
    let held = |method: &str, path: &str, answer: &Answer| {
        let (schema, document) =
            (of_answer(method, path, &answer.status.to_string()), answer.json());
        assert!(schema.is_object(), "{path}: {}", answer.status);
        assert_eq!(differences(schema, &document), Vec::<String>::new(), "{path}: {document:#}");
        document
    };
    let get =
        |path: &str, asked: &str| held("get", path, &served.ask("GET", asked, &[&deploy], b""));

    // A service that goes well, and one that goes back.
    let mut last = Value::Null;
    for (version, exec, end) in [
        ("1.0", "[\"sleep\", \"1000\"]", "succeeded"),
        ("2.0", "[\"sh\", \"-c\", \"echo no >&2; exit 3\"]", "rolled_back"),
    ] {
        let body = json!({"service": "web", "spec": spec(exec), "version": version}).to_string();
        let answer = served.ask("POST", "/v1/rollouts", &[&deploy], body.as_bytes());
        let asked = held("post", "/v1/rollouts", &answer);
        let of = asked["status_url"].as_str().unwrap().to_owned();
        last = get("/v1/rollouts/{rollout}", &format!("{of}?wait=1m"));
        assert_eq!(last["state"], end, "{last:#}");
        let intent = asked["intent"].as_str().unwrap();
        get("/v1/intents/{intent}", &format!("/v1/intents/{intent}"));
        let events = served.ask("GET", &format!("{of}/events"), &[&deploy], b"").lines();
        assert_eq!(events.last().unwrap()["schema"], "smgr.result.v1");
    }
    assert!(last["nodes"][0]["failure"]["exit"]["code"] == 3, "{last:#}");
    let list = get("/v1/rollouts", "/v1/rollouts");
    assert_eq!(list["rollouts"][0]["to"]["version"], "2.0");
    let status = get("/v1/status", "/v1/status");
    assert!(status["services"].as_array().is_some_and(|it| it.len() >= 2), "{status:#}");
    get("/v1/nodes/{node}", "/v1/nodes/n1");
    get("/v1/history", "/v1/history?node=n1");
    let page = get("/v1/events", "/v1/events");
    assert!(page["events"].as_array().is_some_and(|it| it.len() > 20));
    let restarted = served.ask(
        "POST",
        "/v1/services/api/restart",
        &[&ci],
        br#"{"nodes": ["n1", "n2"], "max_parallel": ["1"]}"#,
    );
    held("post", "/v1/services/{service}/{verb}", &restarted);
    served.ask("GET", "/v1/nodes/n9", &[&ci], b"").problem("n9", (404, "E0603"));

    // What is taken away, added, of another type or another word is a mistake, wherever it stands.
    let spoil = |of: &Value, place: &str, new: Option<Value>| {
        let (mut document, (parent, name)) = (of.clone(), place.rsplit_once('/').unwrap());
        let parent = document.pointer_mut(parent).unwrap_or_else(|| panic!("{place}"));
        let parent = parent.as_object_mut().unwrap();
        match new {
            Some(new) => drop(parent.insert(name.to_owned(), new)),
            None => drop(parent.remove(name).unwrap_or_else(|| panic!("{place}"))),
        }
        assert!(!mistakes(&document).is_empty(), "{place}: {document:#}");
    };
    for (document, place, new) in [
        (&last, "/state", None),
        (&last, "/facts", None),
        (&last, "/nodes/0/failure/log_tail", None),
        (&last, "/as_of/complete", None),
        (&last, "/schema", Some(json!("smgr.rollout.v2"))),
        (&last, "/more", Some(json!(1))),
        (&last, "/asked/by/more", Some(json!(1))),
        (&last, "/exit_code", Some(json!("10"))),
        (&last, "/budget/failed", Some(json!(-1))),
        (&last, "/to/digest", Some(json!("e83d"))),
        (&last, "/started_at", Some(json!(17))),
        (&last, "/started_at", Some(json!("yesterday"))),
        (&last, "/plan/parameters/on_failure", Some(json!("hope"))),
        (&last, "/deadlines/node_at", Some(json!({"N 1": "2026-11-22T14:02:10.114Z"}))),
        (&list, "/rollouts/0/by/kind", Some(json!("cat"))),
        (&list, "/fleet", Some(Value::Null)),
        (&status, "/instances/0/state", Some(json!("well"))),
        (&status, "/instances/0/conditions/Ready", Some(json!({"status": "true"}))),
        (&status, "/nodes/0/conditions/Reachable", None),
        (&status, "/rollouts/0/service", None),
        (&status, "/summary/ready", None),
        (&page, "/events/0/by", None),
        (&page, "/events/0/data", Some(json!([]))),
    ] {
        spoil(document, place, new);
    }
}

#[test]
fn a_request_that_is_sent_again_runs_once_also_when_the_controller_was_killed_in_between() {
    let services = [("n1", "web", SLEEP), ("n2", "web", SLEEP)];
    let served = Served::of(&["n1", "n2"], &services);
    let ci = served.token("ci");
    wait_until("the controller knows both", || {
        let status = served.get("/v1/status?selector=web", &ci);
        status["instances"].as_array().unwrap().len() == 2 && status["summary"]["ready"] == 2
    });
    let first = served.restart(&ci, "run-8412", &json!("all"));
    assert_eq!((first.status, first.header("smgr-exit-code")), (200, Some("0")), "{}", first.body);
    let result = first.json();
    assert_eq!((&result["exit_code"], &result["answered"]), (&json!(0), &json!(2)), "{result}");
    assert_eq!(served.restart(&ci, "run-8412", &json!("all")).json(), result);
    kill_9(served.fleet.pid("controller-c1"));
    served.is_ready();
    assert_eq!(served.restart(&ci, "run-8412", &json!("all")).json(), result);
    let place = first.header("location").unwrap();
    assert_eq!(served.get(place, &ci), result);
    let other = served.restart(&ci, "run-8412", &json!(["n1"]));
    assert_eq!((other.status, other.json()["code"].clone()), (422, json!("E0318")));
    served.fleet.all_arrives(&["n1", "n2"]);
    let once = BTreeMap::from([("n1".to_owned(), 1), ("n2".to_owned(), 1)]);
    assert_eq!(served.accepted(&ci), once);
    let again = served.restart(&ci, "run-8413", &json!(["n1"]));
    assert_eq!(again.status, 200, "{}", again.body);
    eventually("the history names the job", || {
        let history = served.get("/v1/history?node=n1&service=web", &ci);
        let entries = history["entries"].as_array().unwrap();
        entries.iter().any(|it| it["by"]["name"] == "ci").then_some(())
    });
}

#[test]
fn an_intent_that_a_person_signed_is_brought_to_its_node_and_told_once() {
    let served = Served::of(&["n1", "n2"], &[("n2", "web", SLEEP)]);
    let keys = served.fleet.machine.state().join("keys");
    let signer = keyfile::load_key(&keys.join("operator.key")).unwrap();
    let iat = clock::now().at;
    let mut intent = Intent {
        v: 1,
        id: IntentId([7; 16]),
        iss: signer.kid(),
        iat,
        exp: iat.plus_ms(60_000),
        fleet: "local".parse().unwrap(),
        mode: Mode::Once,
        action: Action::Restart { service: "web".parse().unwrap() },
        audience: Audience::Nodes(vec!["n2".parse().unwrap()]),
        note: String::new(),
    };
    let kind = "Content-Type: application/vnd.smgr.envelope+msgpack";
    let bytes = seal(Kind::Intent, &codec::encode(&intent), &signer);
    let first = served.ask("POST", "/v1/intents", &[kind], &bytes);
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(served.ask("POST", "/v1/intents", &[kind], &bytes).json(), first.json());
    let mut forged = bytes.clone();
    let last = forged.len() - 10;
    forged[last] ^= 1;
    assert_eq!(served.ask("POST", "/v1/intents", &[kind], &forged).status, 403);
    intent.exp = iat;
    intent.iat = UnixMicros(iat.0 - 100_000_000);
    let reused = seal(Kind::Intent, &codec::encode(&intent), &signer);
    assert_eq!(served.ask("POST", "/v1/intents", &[kind], &reused).status, 422);
}

#[test]
fn a_release_that_was_signed_elsewhere_is_brought_to_the_controller_that_leads() {
    let served = Served::of(&["n1", "n2"], &[]);
    let (watch, machine) = (served.token("watch"), &served.fleet.machine);
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let text = format!(
        "{user}exec = [\"sleep\", \"1000\"]\n[rollout]\nmin_healthy_time = \"100ms\"\nauto_promote = false\n"
    );
    let file = machine.folder().join("web.toml");
    let sign = |line: &[&str]| {
        let signed = machine.smgr(&[&["sign"], line].concat());
        assert!(signed.status.success(), "{signed:?}");
        signed.stdout
    };
    let kind = "Content-Type: application/vnd.smgr.envelope+msgpack";
    let post = |bytes: &[u8]| served.ask("POST", "/v1/intents", &[kind], bytes);
    let waits = |place: &str| served.get(&format!("{place}?wait=30s"), &watch);

    fs::write(&file, text.replace("auto_promote = false\n", "")).unwrap();
    let path = file.to_str().unwrap();
    let first = sign(&["deploy", "web", "-f", path, "--select", "name=n1|n2"]);
    let mut forged = first.clone();
    let last = forged.len() - 10;
    forged[last] ^= 1;
    assert_eq!(post(&forged).status, 403);
    assert!(served.get("/v1/rollouts", &watch)["rollouts"].as_array().unwrap().is_empty());
    let taken = post(&first);
    assert_eq!(taken.status, 202, "{}", taken.body);
    let place = taken.json()["status_url"].as_str().unwrap().to_owned();
    assert_eq!(waits(&place)["state"], "succeeded");
    assert_eq!(post(&first).json(), taken.json());
    assert_eq!(served.get("/v1/rollouts", &watch)["rollouts"].as_array().unwrap().len(), 1);

    fs::write(&file, text.replace("1000", "2000")).unwrap();
    let second = post(&sign(&["deploy", "web", "-f", path]));
    assert_eq!(second.status, 202, "{}", second.body);
    let place = second.json()["status_url"].as_str().unwrap().to_owned();
    assert_eq!(waits(&place)["state"], "awaiting_promotion");
    let keys = machine.state().join("keys");
    let signer = keyfile::load_key(&keys.join("operator.key")).unwrap();
    let iat = clock::now().at;
    let rollout = served.get(&place, &watch)["id"].as_str().unwrap().parse().unwrap();
    let intent = Intent {
        v: 1,
        id: IntentId([8; 16]),
        iss: signer.kid(),
        iat,
        exp: iat.plus_ms(60_000),
        fleet: "local".parse().unwrap(),
        mode: Mode::Once,
        action: Action::Rollout {
            service: "web".parse().unwrap(),
            rollout,
            command: RolloutCommand::Promote,
        },
        audience: Audience::Nodes(vec!["c1".parse().unwrap()]),
        note: String::new(),
    };
    let word = post(&seal(Kind::Intent, &codec::encode(&intent), &signer));
    assert_eq!((word.status, &word.json()["status_url"]), (202, &json!(place)), "{}", word.body);
    assert_eq!(waits(&place)["state"], "succeeded");

    // What a key may not do is refused before it is kept.
    let folder = served.fleet.folder("c1");
    let job = keyfile::load_key(&folder.join("keys/jobs/watch.key")).unwrap();
    let word = Intent { id: IntentId([9; 16]), iss: job.kid(), ..intent };
    let service = "web".parse().unwrap();
    let removal = Intent {
        id: IntentId([10; 16]),
        mode: Mode::Desired,
        action: Action::Remove { service, generation: Generation(99) },
        audience: Audience::Nodes(["n1", "n2"].map(|name| name.parse().unwrap()).to_vec()),
        ..word.clone()
    };
    for refused in [word, removal] {
        let answer = post(&seal(Kind::Intent, &codec::encode(&refused), &job));
        answer.problem(&format!("{:?}", refused.action), (403, "E0323"));
    }
    assert!(!folder.join("requests").join(job.kid().to_string()).exists());
}

#[test]
fn a_stream_goes_on_exactly_behind_its_cursor_after_the_controller_was_killed() {
    let served = Served::of(&["n1", "n2"], &[("n2", "web", SLEEP)]);
    let watch = served.token("watch");
    let mut seen = served.follow(&watch, None, |seen| seen.ids.len() >= 5);
    for _ in 0..2 {
        kill_9(served.fleet.pid("controller-c1"));
        served.fleet.machine.exits(0, &["restart", "web@n2"]);
        served.is_ready();
        let enough = seen.ids.len() + 4;
        let cursor = seen.cursor.clone();
        let count = |more: &Stream| seen.ids.len() + more.ids.len() >= enough;
        let more = served.follow(&watch, cursor.as_deref(), count);
        seen.ids.extend(more.ids);
        seen.cursor = more.cursor;
    }
    served.fleet.all_arrives(&["n1", "n2"]);
    let rest = served.follow(&watch, seen.cursor.as_deref(), |more| more.caught_up);
    seen.ids.extend(rest.ids);
    let all = served.all_ids(&watch);
    assert_eq!(seen.ids[..], all[..seen.ids.len()], "nothing is missed and nothing told twice");
    assert!(all.len() - seen.ids.len() < 5, "{} of {}", seen.ids.len(), all.len());
    // Waiting for a page ends with the next event.
    let cursor = served.get("/v1/status", &watch)["as_of"]["cursor"].as_str().unwrap().to_owned();
    let began = Instant::now();
    let path = format!("/v1/events?since={cursor}&wait=30s");
    let page = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| served.get(&path, &watch));
        served.fleet.machine.exits(0, &["restart", "web@n2"]);
        waiting.join().unwrap()
    });
    assert!(!page["events"].as_array().unwrap().is_empty() && began.elapsed().as_secs() < 25);
}

#[test]
fn a_client_that_says_nothing_or_says_it_slowly_is_cut_off_and_others_are_served() {
    let served = Served::of(&["n1"], &[]);
    let began = Instant::now();
    let mut slow: Vec<TcpStream> = (0..40)
        .map(|number| {
            let mut stream = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
            }
            stream
        })
        .collect();
    assert_eq!(served.ask("GET", "/healthz", &[], b"").status, 200);
    for stream in &mut slow {
        let _cut = stream.read_to_end(&mut Vec::new());
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(served.ask("GET", "/healthz", &[], b"").status, 200);
}

#[test]
fn a_deploy_by_three_lines_of_curl_ends_with_the_exit_code_of_the_fleet() {
    let served = Served::of(&["n1", "n2"], &[]);
    let token = served.token("deploy");
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let spec = |more: &str| {
        format!("{user}exec = [\"sleep\", \"{more}\"]\n[rollout]\nmin_healthy_time = \"200ms\"\n")
    };
    let three_lines = |run: &str, body: &Value| {
        let script = r#"set -eu
id=$(curl -fsS "$SMGR/v1/rollouts" -H "$T" -H "Idempotency-Key: $RUN" -d "$BODY" | jq -r .id)
curl -fsSN "$SMGR/v1/rollouts/$id/events?follow=1" -H "$T"
exit "$(curl -fsS "$SMGR/v1/rollouts/$id" -H "$T" | jq -r '.exit_code // (if .waits_for then 14 else 124 end)')""#;
        let ran = Command::new("sh")
            .args(["-c", script])
            .env("SMGR", format!("http://127.0.0.1:{}", served.port))
            .env("T", &token)
            .env("RUN", run)
            .env("BODY", body.to_string())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8(ran.stdout), String::from_utf8_lossy(&ran.stderr));
        (ran.status.code(), out.unwrap() + &err)
    };
    let body = json!({"service": "web", "spec": spec("1000"), "version": "1.0"});
    let (code, said) = three_lines("run-1", &body);
    assert_eq!(code, Some(0), "{said}");
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&last["type"], &last["state"]), (&json!("result"), &json!("succeeded")), "{last}");
    assert!(said.contains("rollout.node_healthy"), "{said}");
    // The same run again is the same rollout, also for another controller's life.
    kill_9(served.fleet.pid("controller-c1"));
    served.is_ready();
    assert_eq!(three_lines("run-1", &body).0, Some(0));
    let list = served.get("/v1/rollouts", &token)["rollouts"].as_array().unwrap().clone();
    assert_eq!(list.len(), 1, "{list:?}");
    // What fails goes back, and the job hears it; the release before is deployed by its name.
    let (code, said) =
        three_lines("run-2", &json!({"service": "web", "spec": spec("x"), "version": "2.0"}));
    assert_eq!(code, Some(10), "{said}");
    let again = json!({"service": "web", "release": list[0]["release"]});
    let (code, said) = three_lines("run-3", &again);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_rollout_is_approved_promoted_paused_resumed_and_aborted_over_http() {
    let served = Served::of(&["n1", "n2"], &[]);
    let (job, watch) = (served.token("deploy"), served.token("watch"));
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let spec = |seconds: u32, more: &str| {
        format!(
            "{user}exec = [\"sleep\", \"{seconds}\"]\n[rollout]\nmin_healthy_time = \"200ms\"\n{more}"
        )
    };
    let deploy = |version: &str, spec: String| {
        let body = json!({"service": "web", "spec": spec, "version": version}).to_string();
        let answer = served.ask("POST", "/v1/rollouts", &[&job], body.as_bytes());
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.json()["status_url"].as_str().unwrap().to_owned()
    };
    let say = |to: &str, command: &str, token: &str, key: &str| {
        let key = format!("Idempotency-Key: {key}");
        served.ask("POST", &format!("{to}/{command}"), &[token, &key], b"")
    };
    let said = |to: &str, command: &str| {
        let answer = say(to, command, &job, &format!("{to} {command}"));
        assert_eq!(answer.status, 202, "{command}: {}", answer.body);
        assert_eq!(answer.header("location"), Some(to), "{}", answer.head);
        answer.json()
    };
    let is = |to: &str, state: &str| {
        eventually(state, || {
            let answer = served.ask("GET", to, &[&watch], b"");
            (answer.json()["state"] == state).then_some(answer)
        })
    };
    let first = deploy("1.0", spec(1000, ""));
    is(&first, "succeeded");

    // The job asked for it, so it is no second person; one at the command line is.
    let more = "require_approval = true\nauto_promote = false\n";
    let asked = deploy("2.0", spec(2000, more));
    is(&asked, "awaiting_approval");
    for (command, token, status, code) in [
        ("approve", &job, 403, "E0323"),
        ("promote", &job, 409, "E0722"),
        ("resume", &job, 409, "E0722"),
        ("approve", &watch, 403, "E0323"),
        ("abort", &watch, 403, "E0323"),
    ] {
        let answer = say(&asked, command, token, &format!("refused {command}"));
        let problem = answer.json();
        assert_eq!(
            (answer.status, &problem["code"]),
            (status, &json!(code)),
            "{command} {problem}"
        );
    }
    is(&asked, "awaiting_approval");
    let name = asked.rsplit('/').next().unwrap();
    served.fleet.machine.exits(0, &["rollout", "approve", name]);
    is(&asked, "awaiting_promotion");
    let promoted = said(&asked, "promote");
    assert_eq!((&promoted["id"], &promoted["changed"]), (&json!(name), &json!(true)));
    // The same request again is the same wish; another one by its key is none.
    assert_eq!(said(&asked, "promote"), promoted);
    let other = say(&asked, "abort", &job, &format!("{asked} promote"));
    assert_eq!((other.status, &other.json()["code"]), (422, &json!("E0318")));
    is(&asked, "succeeded");

    // What a person asked for, the job may agree to.
    let file = served.fleet.machine.folder().join("web.toml");
    fs::write(&file, spec(3000, "require_approval = true\nbake_time = \"60s\"\n")).unwrap();
    let line = ["deploy", "web", "-f", file.to_str().unwrap(), "--release-version", "3.0"];
    served.fleet.machine.exits(0, &[&line[..], &["--detach"]].concat());
    let list = served.get("/v1/rollouts", &watch);
    let of = format!("/v1/rollouts/{}", list["rollouts"][0]["rollout"].as_str().unwrap());
    is(&of, "awaiting_approval");
    said(&of, "approve");
    eventually("the canary runs it", || {
        let view = served.get(&of, &watch);
        let nodes = view["nodes"].as_array().unwrap().clone();
        nodes.iter().any(|node| node["state"] == "healthy").then_some(())
    });
    said(&of, "pause");
    is(&of, "paused");
    said(&of, "resume");
    eventually("it goes on", || (served.get(&of, &watch)["state"] != "paused").then_some(()));
    said(&of, "abort");
    let answer = is(&of, "aborted");
    assert_eq!(answer.header("smgr-exit-code"), Some("13"), "{}", answer.head);
    let late = say(&of, "pause", &job, "late");
    assert_eq!((late.status, &late.json()["code"]), (409, &json!("E0722")), "{}", late.body);
    for node in ["n1", "n2"] {
        let status = served.get(&format!("/v1/nodes/{node}"), &watch);
        let web = status["instances"].as_array().unwrap().iter().find(|it| it["service"] == "web");
        assert_eq!(web.unwrap()["release"]["version"], "2.0", "{status}");
    }
    // Who said what stands in the facts.
    let events = served.all_events(&watch);
    let by = |kind: &str| {
        let of_it = events.iter().filter(|it| it["type"] == kind);
        of_it.map(|it| it["by"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(by("rollout.approved"), ["operator", "deploy"]);
    assert_eq!(by("rollout.promoted"), ["deploy"]);
    assert_eq!(by("rollout.paused"), ["deploy"]);
    assert_eq!(by("rollout.resumed"), ["deploy"]);
}

#[test]
fn a_deploy_over_http_may_start_anew_wait_its_turn_supersede_and_go_on_with_one_that_failed() {
    let served = Served::of(&["n1", "n2"], &[]);
    let token = served.token("deploy");
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    let spec = |exec: &str, rules: &str| {
        format!("{user}exec = {exec}\n[rollout]\nmin_healthy_time = \"100ms\"\n{rules}")
    };
    let sleep = "[\"sleep\", \"1000\"]";
    let post = |path: &str, headers: &[&str], body: &Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        served.ask("POST", path, &[&[token.as_str()], headers].concat(), body.as_bytes())
    };
    let deploy = |more: Value| {
        let mut body = json!({"service": "web", "spec": spec(sleep, "")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post("/v1/rollouts?wait=30s", &[], &body)
    };
    let begun = |answer: Answer| {
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    let view = |name: &str| served.get(&format!("/v1/rollouts/{name}"), &token);
    let ends = |name: &str, state: &str| {
        let view = served.get(&format!("/v1/rollouts/{name}?wait=1m"), &token);
        assert_eq!(view["state"], state, "{view}");
        view
    };
    let refused = |answer: Answer, status: u16, code: &str| {
        let problem = answer.json();
        assert_eq!((answer.status, &problem["code"]), (status, &json!(code)), "{problem}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    };

    // The same once more changes nothing, unless somebody asks for it.
    ends(&begun(deploy(json!({}))), "succeeded");
    assert_eq!(ends(&begun(deploy(json!({}))), "succeeded")["changed"], false);
    let forced = ends(&begun(deploy(json!({"force": true}))), "succeeded");
    assert_eq!(forced["changed"], true, "{forced}");
    let release = json!({"service": "web", "release": forced["to"]["digest"], "force": true});
    let again = ends(&begun(post("/v1/rollouts", &[], &release)), "succeeded");
    assert!(again["changed"] == true && again["to"] != forced["to"], "{again}");

    // Of two at once the second is refused, ends the first, or waits for its turn.
    let slow = |bake: &str| json!({"spec": spec(sleep, &format!("bake_time = \"{bake}\"\n")), "version": bake});
    let first = begun(deploy(slow("60s")));
    let body = json!({"service": "web", "spec": spec(sleep, "")});
    let refused_first = || post("/v1/rollouts", &["Idempotency-Key: refused"], &body);
    refused(refused_first(), 409, "E0721");
    refused(refused_first(), 409, "E0721");
    let waits = json!({"service": "web", "spec": spec(sleep, ""), "on_conflict": "queue"});
    let (key, path) = (["Idempotency-Key: queued"], "/v1/rollouts?wait=100ms");
    refused(post(path, &key, &waits), 409, "E0721");
    let mut more = slow("2s");
    more["on_conflict"] = json!("supersede");
    let second = begun(deploy(more));
    ends(&first, "superseded");
    let third = begun(post("/v1/rollouts?wait=1m", &key, &waits));
    assert_eq!(view(&second)["state"], "succeeded", "it was waited for");
    ends(&third, "succeeded");
    assert_eq!(begun(post("/v1/rollouts?wait=1m", &key, &waits)), third, "it is the same wish");

    // What was refused is judged anew by the same key, and once it was taken it is the same wish.
    let taken = refused_first();
    let place = format!("/v1/intents/{}", taken.json()["intent"].as_str().unwrap());
    let fourth = begun(taken);
    ends(&fourth, "succeeded");
    assert_eq!(begun(refused_first()), fourth);
    // Its wish is known as well.
    let wish = served.ask("GET", &place, &[&token], b"");
    assert_eq!(wish.header("location"), Some(&*format!("/v1/rollouts/{fourth}")), "{}", wish.body);

    // Two that wait for the same end both have their turn.
    let busy = begun(deploy(slow("1s")));
    let both = std::thread::scope(|scope| {
        let one = || scope.spawn(|| begun(post("/v1/rollouts?wait=1m", &[], &waits)));
        [one(), one()].map(|waiting| waiting.join().unwrap())
    });
    assert_eq!(view(&busy)["state"], "succeeded", "it was waited for");
    assert_ne!(both[0], both[1]);
    for name in &both {
        ends(name, "succeeded");
    }

    // What failed is gone on with where it is not healthy, once there is a reason to hope.
    let reason = served.fleet.machine.folder().join("reason");
    let hopes = format!("[\"sh\", \"-c\", \"test -e {} && exec sleep 1000\"]", reason.display());
    let bad = json!({"spec": spec(&hopes, ""), "version": "3.0"});
    let failed = begun(deploy(bad));
    let retry = |name: &str, key: &str| {
        let key = format!("Idempotency-Key: {key}");
        post(&format!("/v1/rollouts/{name}/retry"), &[&key], &Value::Null)
    };
    ends(&failed, "rolled_back");
    fs::write(reason, "").unwrap();
    let retried = begun(retry(&failed, "hope"));
    let done = ends(&retried, "succeeded");
    assert_eq!((&done["to"], done["nodes"].as_array().unwrap().len()), (&view(&failed)["to"], 2));
    assert_eq!(begun(retry(&failed, "hope")), retried, "it is the same wish");
    refused(retry(&retried, "nothing"), 409, "E0722");

    // Whoever waits hears that a person is awaited.
    let manual = spec(sleep, "auto_promote = false\n");
    let waiting = begun(deploy(json!({"spec": manual, "version": "4.0"})));
    let path = format!("/v1/rollouts/{waiting}/events?follow=1");
    let followed = served.ask("GET", &path, &[&token], b"").lines();
    let last = followed.last().unwrap();
    assert_eq!((&last["type"], &last["exit_code"]), (&json!("result"), &json!(14)), "{last}");
    let answer = served.ask("GET", &format!("/v1/rollouts/{waiting}?wait=1m"), &[&token], b"");
    assert_eq!(answer.header("smgr-exit-code"), Some("14"), "{}", answer.body);
    assert_eq!(answer.json()["waits_for"], "promote", "{}", answer.body);
    assert_eq!(post(&format!("/v1/rollouts/{waiting}/promote"), &[], &Value::Null).status, 202);
    ends(&waiting, "succeeded");
    refused(retry("r-00", "none"), 404, "E0720");

    for (more, status, code) in [
        (json!({"on_conflict": "wait"}), 400, "E0101"),
        (json!({"on_conflict": 1}), 400, "E0101"),
        (json!({"force": "yes"}), 400, "E0101"),
        (json!({"retry": failed}), 400, "E0101"),
        (json!({"emergency": "now"}), 400, "E0101"),
    ] {
        refused(deploy(more), status, code);
    }
    let rollouts = served.get("/v1/rollouts", &token)["rollouts"].as_array().unwrap().len();
    assert_eq!(rollouts, 14, "what was refused left nothing");
}

#[test]
fn a_ci_job_restarts_and_clears_a_cache_with_nothing_but_a_shell_and_curl() {
    let served = Served::of(&["n1", "n2"], &[("n2", "web", ACTS)]);
    let token = served.token("ci");
    let token = token.strip_prefix("Authorization: Bearer ").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/ci/smgr-http");
    let run = |run: &str, line: &[&str]| {
        let ran = Command::new("sh")
            .arg(script)
            .args(line)
            .env("SMGR_URL", format!("http://127.0.0.1:{}", served.port))
            .env("SMGR_TOKEN", token)
            .env("SMGR_RUN", run)
            .output()
            .unwrap();
        let text = [ran.stdout, ran.stderr].concat();
        (ran.status.code(), String::from_utf8(text).unwrap())
    };
    for _ in 0..2 {
        let (code, said) = run("8412", &["action", "web", "cache-clear", "n2"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("\"smgr.result.v1\""), "{said}");
    }
    let (code, said) = run("8412", &["restart", "web", "n2"]);
    assert_eq!(code, Some(0), "{said}");
    // The server says how a job ends, as it says it to the command line.
    assert_eq!(run("8413", &["stop", "web", "n2"]).0, Some(7));
    assert_eq!(run("8414", &["restart", "web", "n9"]).0, Some(4));
    assert_eq!(run("8415", &["restart"]).0, Some(2));
    let ci = format!("Authorization: Bearer {token}");
    let each_once = BTreeMap::from([("n2".to_owned(), 2)]);
    wait_until("what it did has arrived", || served.accepted(&ci) == each_once);
    served.fleet.all_arrives(&["n1", "n2"]);
    assert_eq!(served.accepted(&ci), each_once, "the action and the restart, each once");
}
