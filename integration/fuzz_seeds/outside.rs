//! What people, programs and pipelines hand in: selectors, requests, archives. Their seeds, and that what their targets look
//! for is found.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use smgr::agent::release::archive::{Limits, UnpackError};
use smgr::domain::selector::{InvalidSelector, Selector};

use super::put;
use super::targets::archive::mended;
use super::targets::http::{Answer, is_clear};
use super::targets::{archive, selector};

pub(super) fn write_seeds() {
    for (name, text) in SELECTORS {
        put("selector", name, text.as_bytes());
    }
    for (name, text) in SCOPES {
        put("scope", name, text.as_bytes());
    }
    for (name, bytes) in archives() {
        put("archive", name, &bytes);
    }
    for (name, request) in requests() {
        put("http", name, &request);
    }
}

const SELECTORS: &[(&str, &str)] = &[
    ("every", "*"),
    ("labels", "env=prod,role=web"),
    ("either", "env=prod|test,zone!=a|b"),
    ("names", "name=n1|n2"),
    ("presence", "!old, group"),
    ("spaces", " env = prod , ! old "),
    ("unknown-node", "name=n1|n9"),
    ("nothing", ""),
    ("every-and-more", "*,env=prod"),
    ("equals", "a=b=c"),
    ("not-twice", "!!old"),
    ("control", "env=\u{1b}[31mprod"),
    ("other-letters", "umgebung=größe,\u{202e}role=web"),
    ("commas", ",,,"),
    ("bars", "env=|||"),
];

const SCOPES: &[(&str, &str)] = &[
    ("service", "web"),
    ("instance", "web/0"),
    ("on-node", "web@n1"),
    ("one", "web/65535@n1"),
    ("node", "@n1"),
    ("beyond", "web/65536"),
    ("zeros", "web/007"),
    ("signed", "web/-1"),
    ("nothing", ""),
    ("half", "web/@"),
    ("twice", "web@n1@n2"),
    ("deeper", "web/0/1"),
    ("every-node", "@"),
    ("control", "web\u{1b}[31m@n1"),
    ("other-letters", "größe@n1"),
    ("long", "wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww"),
];

/// One entry of an archive: its name, its kind, what it links to, what it holds.
type Entry<'a> = (&'a str, u8, &'a str, &'a [u8]);

fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, link, content) in entries {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000755");
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[156] = *kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        bytes.extend(block);
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    mended(&bytes)
}

fn archives() -> Vec<(&'static str, Vec<u8>)> {
    let long = format!("{}/file", "d".repeat(120));
    let pax = format!("{} path={long}\n", long.len() + 10);
    let longer = "e".repeat(300);
    let large = vec![b'x'; 5000];
    let names: Vec<String> = (0..30).map(|number| format!("many/{number}")).collect();
    let many: Vec<Entry<'_>> =
        names.iter().map(|name| (name.as_str(), b'0', "", &b""[..])).collect();
    let deep = "d/".repeat(49);
    let good = tar(&[
        ("./", b'5', "", b""),
        ("bin/", b'5', "", b""),
        ("bin/web", b'0', "", b"program"),
        ("bin/www", b'2', "web", b""),
        ("lib/deep/self", b'2', "../../bin/web", b""),
        ("bin/same", b'1', "bin/web", b""),
    ]);
    let one = |entry: Entry<'_>| tar(&[entry]);
    vec![
        ("absolute", one(("/etc/passwd", b'0', "", b"x"))),
        ("climbs", one(("a/../../x", b'0', "", b"x"))),
        ("link-absolute", one(("a", b'2', "/etc", b""))),
        ("link-climbs", one(("a/b", b'2', "../../x", b""))),
        ("behind-a-link", tar(&[("a", b'2', "b", b""), ("a/x", b'0', "", b"x")])),
        ("links-in-turn", tar(&[("a/b/l", b'2', "../..", b""), ("m", b'2', "a/b/l/..", b"")])),
        ("hard-link-out", one(("a", b'1', "../../etc/passwd", b""))),
        ("twice", tar(&[("web", b'0', "", b"x"), ("web", b'0', "", b"y")])),
        (
            "devices",
            tar(&[("null", b'3', "", b""), ("sda", b'4', "", b""), ("pipe", b'6', "", b"")]),
        ),
        ("sparse", one(("hole", b'S', "", b""))),
        ("long-by-pax", tar(&[("r", b'x', "", pax.as_bytes()), ("short", b'0', "", b"x")])),
        ("long-by-gnu", tar(&[("r", b'L', "", long.as_bytes()), ("short", b'0', "", b"x")])),
        ("too-long", tar(&[("r", b'L', "", longer.as_bytes()), ("short", b'0', "", b"x")])),
        ("link-by-gnu", tar(&[("r", b'K', "", b"../out"), ("link", b'2', "", b"")])),
        ("comments", tar(&[("r", b'g', "", b"12 comment=\n"), ("web", b'0', "", b"x")])),
        ("deep", one((&deep, b'5', "", b""))),
        ("many", tar(&many)),
        ("large", tar(&[("a", b'0', "", &large), ("b", b'0', "", &large)])),
        ("cut", good[..900].to_vec()),
        ("good", good),
        ("nothing", vec![0; 1024]),
    ]
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let asks = |method: &str, path: &str, more: &str, body: &str| {
        let by = "Authorization: Bearer TOKEN\r\n";
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: c1\r\n{by}");
        format!("{head}Content-Length: {length}\r\n{more}\r\n{body}").into_bytes()
    };
    let reads = |path: &str| asks("GET", path, "", "");
    let key = "Idempotency-Key: job-7\r\n";
    let wish = r#"{"nodes": ["n1"], "note": "by a job"}"#;
    let spec = r#"exec = [\"/bin/sleep\", \"9\"]\n"#;
    let deploy = format!(r#"{{"service": "web", "spec": "{spec}", "select": "name=n1|n2"}}"#);
    let known = format!(r#"{{"service": "web", "release": "sha256:{}"}}"#, "0".repeat(64));
    let artifact = format!(
        r#"{{"service": "web", "spec": "{spec}", "artifact": {{"url": "http://h/a.tar.gz", "sha256": "{}", "bytes": 7}}}}"#,
        "0".repeat(64)
    );
    let cursor = "c1/0ddi3l6o7ojnk/7";
    let envelope = "Content-Type: application/vnd.smgr.envelope+msgpack\r\n";
    vec![
        ("health", b"GET /healthz HTTP/1.1\r\nHost: c1\r\n\r\n".to_vec()),
        ("no-token", b"GET /v1/status HTTP/1.1\r\nHost: c1\r\n\r\n".to_vec()),
        ("metrics", reads("/metrics")),
        ("openapi", reads("/openapi.json")),
        ("status", reads("/v1/status?selector=web%2F0%40n1")),
        ("node", reads("/v1/nodes/n1")),
        ("history", reads("/v1/history?node=n1&service=web%2F0&since=n1%2F0ddi3l6o7ojnk%2F7")),
        ("events", reads(&format!("/v1/events?since={}&service=web", cursor.replace('/', "%2F")))),
        ("page", reads("/v1/events?wait=1ms")),
        (
            "stream",
            asks(
                "GET",
                "/v1/events",
                &format!("Accept: text/event-stream\r\nLast-Event-ID: {cursor}\r\n"),
                "",
            ),
        ),
        ("restart", asks("POST", "/v1/services/web/restart?wait=1ms", key, wish)),
        ("stop-all", asks("POST", "/v1/services/web/stop?wait=0s", "", r#"{"nodes": "all"}"#)),
        (
            "action",
            asks(
                "POST",
                "/v1/actions/web/cache-clear?wait=1ms",
                key,
                r#"{"nodes": ["n1", "n2"], "params": {"zone": "img"}}"#,
            ),
        ),
        ("intent", asks("POST", "/v1/intents?wait=1ms", envelope, "\u{5}\u{1}intent.v1")),
        ("outcome", reads("/v1/intents/i-07070707070707070707070707070707?wait=1ms")),
        ("deploy", asks("POST", "/v1/rollouts", key, &deploy)),
        ("deploy-known", asks("POST", "/v1/rollouts", "", &known)),
        ("deploy-artifact", asks("POST", "/v1/rollouts", "", &artifact)),
        ("rollouts", reads("/v1/rollouts")),
        ("rollout", reads("/v1/rollouts/r-07070707?wait=1ms")),
        (
            "rollout-events",
            reads("/v1/rollouts/r-07070707/events?follow=1&since=c1%2F0ddi3l6o7ojnk%2F7"),
        ),
        ("abort", asks("POST", "/v1/rollouts/r-07070707/abort", key, "")),
        ("another-method", asks("DELETE", "/v1/rollouts/r-07070707", "", "")),
        ("nowhere", reads("/v1/../../etc/passwd")),
        ("no-http", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".to_vec()),
        (
            "in-pieces",
            b"POST /v1/rollouts HTTP/1.1\r\nHost: c1\r\nAuthorization: bearer TOKEN\r\n\
              Transfer-Encoding: chunked\r\n\r\n7\r\n{\"servi\r\n5\r\nce\":1\r\n0\r\n\r\n"
                .to_vec(),
        ),
    ]
}

/// Says whether a check finds something.
fn finds(check: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(check)).is_err()
}

#[test]
fn what_the_target_of_selectors_looks_for_it_finds() {
    type Read = fn(&str) -> Result<Selector, InvalidSelector>;
    let broken: [(&str, &str, Read); 3] = [
        ("nothing means everything", "", |text| match text.trim() {
            "" => Ok(Selector::every()),
            text => text.parse(),
        }),
        ("only the first term counts", "env=prod,role=web", |text| {
            text.split(',').next().unwrap_or_default().parse()
        }),
        ("a term is turned round", "!old", |text| text.replace('!', "").parse()),
    ];
    for (what, text, read) in broken {
        assert!(!finds(|| selector::holds(text, str::parse)), "{what}");
        assert!(finds(|| selector::holds(text, read)), "{what}");
    }
}

#[test]
fn what_the_target_of_archives_looks_for_it_finds() {
    type Unpack = fn(&[u8], &Path, Limits) -> Result<u64, UnpackError>;
    let broken: [(&str, Unpack); 6] = [
        ("writes outside", |_, into, _| {
            fs::write(into.join("../new"), "x").unwrap();
            Ok(1)
        }),
        ("writes over what is outside", |_, into, _| {
            fs::write(into.join("../beside"), "x").unwrap();
            Ok(1)
        }),
        ("a link out", |_, into, _| {
            symlink("../beside", into.join("link")).unwrap();
            Ok(0)
        }),
        ("too many entries", |_, into, limits| {
            (0..=limits.entries_max).for_each(|n| fs::write(into.join(n.to_string()), "").unwrap());
            Ok(0)
        }),
        ("too large", |_, into, limits| {
            fs::write(into.join("a"), vec![0; limits.bytes_max as usize + 1]).unwrap();
            Ok(0)
        }),
        ("blames the disk", |_, _, _| {
            let source = io::Error::from(ErrorKind::InvalidFilename);
            Err(UnpackError::Write { path: "a".to_owned(), source })
        }),
    ];
    assert!(!finds(|| archive::holds(b"", |_, _, _| Ok(0))));
    for (what, unpack) in broken {
        assert!(finds(|| archive::holds(b"", unpack)), "{what}");
    }
}

#[test]
fn what_the_target_of_requests_looks_for_it_finds() {
    let problem = |status: u16, body: &str| Answer {
        status,
        kind: "application/problem+json".to_owned(),
        body: body.as_bytes().to_vec(),
    };
    let good = r#"{"status": 404, "code": "E0101", "title": "no such thing", "detail": "web"}"#;
    assert!(!finds(|| is_clear(&problem(404, good))));
    let text = |status: u16| Answer { kind: "text/plain".to_owned(), ..problem(status, "no") };
    for (what, answer) in [
        ("a failure of ours", problem(500, good)),
        ("a gateway's", problem(502, good)),
        ("a wish that is taken", text(202)),
        ("another status than it says", problem(400, good)),
        ("a refusal in words", text(404)),
        ("two lines", problem(404, &good.replace("web", "a\\nb"))),
        ("no code", problem(404, &good.replace("code", "kode"))),
    ] {
        assert!(finds(|| is_clear(&answer)), "{what}");
    }
}
