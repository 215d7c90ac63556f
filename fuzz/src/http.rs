//! What must hold of every request to a controller: one clear answer, and nothing changed.
//!
//! A whole controller works in this process, on a folder of its own and without a bus. The token that requests may bear
//! stands for a key that may read and nothing else, so whatever was asked for, nothing may come of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use smgr::controller::setup::ControllerSetup;
use smgr::controller::tokens::Tokens;
use smgr::controller::{self, ControllerOptions};
use smgr::domain::intent::Verb;
use smgr::domain::policy::{Grant, Names};
use smgr::domain::time::UnixMicros;
use smgr::head::enrol::{Enrolment, Member, enrol};
use smgr::head::folder::StateFolder;

/// How long an answer may take that waits for nothing.
const WITHIN: Duration = Duration::from_secs(10);

/// How long one is waited for that may wait as it was asked to.
const ASKED_TO_WAIT: Duration = Duration::from_millis(50);

/// A controller that serves.
pub struct Face {
    address: SocketAddr,
    token: String,
    folder: StateFolder,
    _temp: tempfile::TempDir,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// What the body is said to be.
    pub kind: String,
    /// As much of the body as came.
    pub body: Vec<u8>,
}

impl Face {
    /// Returns the one of this process.
    ///
    /// # Panics
    /// When it cannot be begun.
    pub fn get() -> &'static Self {
        static FACE: OnceLock<Face> = OnceLock::new();
        FACE.get_or_init(Self::begin)
    }

    fn begin() -> Self {
        let temp = tempfile::tempdir().expect("a folder for the controller");
        let member = |name: &str| Member {
            name: name.parse().expect("a constant that is a name"),
            folder: StateFolder::new(temp.path().join(name)),
        };
        let job = "watch".parse().expect("a constant that is a name");
        let reads = Grant {
            verbs: Names::Only(vec![Verb::Status, Verb::Events]),
            services: Names::All,
            nodes: Names::All,
        };
        let enrolment = Enrolment {
            fleet: "local".parse().expect("a constant that is a name"),
            operator: "ana".parse().expect("a constant that is a name"),
            nodes: vec![member("n1"), member("n2")],
            machines: Default::default(),
            labels: Default::default(),
            controllers: vec![member("c1")],
            jobs: [(job, vec![reads])].into(),
            now: UnixMicros(1),
        };
        enrol(&enrolment).expect("keys can be made");
        let Member { name, folder } = enrolment.controllers[0].clone();
        let mut tokens = Tokens::default();
        let token = tokens
            .make("watch".parse().expect("a constant that is a name"), UnixMicros(1))
            .expect("there is randomness");
        tokens.write(&folder).expect("the disk has room");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = free.local_addr().expect("it is bound");
        drop(free);
        // Nobody listens there: without a bus nothing can be brought to anybody.
        let urls = vec!["nats://127.0.0.1:1".to_owned()];
        let mut setup = ControllerSetup::new(enrolment.fleet.clone(), name, urls);
        setup.http = Some(address);
        setup.write(&folder).expect("the disk has room");
        let options = ControllerOptions { state: folder.root().to_owned() };
        thread::spawn(move || controller::run(&options, smgr::http::open).expect("it runs"));
        let face = Self { address, token, folder, _temp: temp };
        let until = Instant::now() + WITHIN;
        while face.ask(b"GET /healthz HTTP/1.1\r\nHost: c1\r\n\r\n", WITHIN).is_none() {
            assert!(Instant::now() < until, "the controller does not serve");
            thread::yield_now();
        }
        face
    }

    /// Sends bytes and asserts what must hold of the answer, and that nothing has changed.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn holds(&self, data: &[u8]) {
        let request = self.with_token(data);
        let may_wait = [&b"wait"[..], b"follow", b"event-stream"];
        let may_wait = may_wait.iter().any(|word| contains(data, word));
        let began = Instant::now();
        let answer = self.ask(&request, if may_wait { ASKED_TO_WAIT } else { WITHIN });
        assert!(may_wait || began.elapsed() < WITHIN, "no answer, and no end of the connection");
        if let Some(answer) = answer {
            is_clear(&answer);
        }
        assert_eq!(self.kept(), 0, "a wish was taken that nobody may have");
    }

    /// Returns what one who may read is answered; `None` when the connection ended without a word.
    pub fn ask(&self, request: &[u8], within: Duration) -> Option<Answer> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(within)).ok()?;
        // What is refused unread may end in a reset behind the answer.
        let _sent = stream.write_all(request);
        let _shut = stream.shutdown(Shutdown::Write);
        let mut bytes = Vec::new();
        let mut some = [0; 16 * 1024];
        while let Ok(len @ 1..) = stream.read(&mut some) {
            bytes.extend(&some[..len]);
            if contains(&bytes, b"text/event-stream") && contains(&bytes, b"\r\n\r\n") {
                break; // It goes on for ever.
            }
        }
        read(&bytes)
    }

    /// Puts the token where it is to stand.
    pub fn with_token(&self, data: &[u8]) -> Vec<u8> {
        let mut request = Vec::with_capacity(data.len() + 128);
        let mut rest = data;
        while let Some(at) = rest.windows(5).position(|some| some == b"TOKEN") {
            request.extend(&rest[..at]);
            request.extend(self.token.as_bytes());
            rest = &rest[at + 5..];
        }
        request.extend(rest);
        request
    }

    /// Counts the wishes that were kept to be brought to nodes.
    fn kept(&self) -> usize {
        let folders: [PathBuf; 2] = ["requests", "wishes"].map(|it| self.folder.root().join(it));
        folders.iter().map(|folder| fs::read_dir(folder).map_or(0, Iterator::count)).sum()
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|some| some == word)
}

/// Reads an answer; `None` for the beginning of one.
fn read(bytes: &[u8]) -> Option<Answer> {
    let at = bytes.windows(4).position(|some| some == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..at]).expect("the head of an answer is text");
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("it has a status");
    let kind = head.lines().filter_map(|line| line.split_once(": "));
    let kind = kind.filter(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let kind = kind.map(|(_, kind)| kind.to_owned()).next().unwrap_or_default();
    Some(Answer { status, kind, body: bytes[at + 4..].to_vec() })
}

/// Asserts that an answer is a reading, or one clear refusal.
///
/// # Panics
/// When it is not.
pub fn is_clear(answer: &Answer) {
    let Answer { status, kind, body } = answer;
    match status {
        200 => {}
        // What is no HTTP is refused before there is anything that could have a code.
        400 | 414 | 431 if body.is_empty() => {}
        // Without a bus it is not ready, which is all that it says.
        503 if kind.starts_with("text/plain") => {}
        400..500 => {
            assert_eq!(kind, "application/problem+json", "{status}");
            let body = String::from_utf8_lossy(body);
            // A HEAD has no body.
            if body.is_empty() {
                return;
            }
            let problem: Value = serde_json::from_str(&body).expect("a problem is JSON");
            assert_eq!(problem["status"], *status, "{problem}");
            let text = |name: &str| problem[name].as_str().expect("it stands there").to_owned();
            assert!(text("code").starts_with('E') && !text("title").is_empty(), "{problem}");
            let detail = text("detail");
            assert!(!detail.is_empty() && !detail.contains(char::is_control), "{detail:?}");
        }
        _ => panic!("{status} {kind}: {}", String::from_utf8_lossy(body)),
    }
}
