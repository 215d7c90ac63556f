//! A running node with a bus, and one who can sign whatever a test wants signed.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_bytes::ByteBuf;
use serde_json::Value;
use smgr::bus::{BusOptions, Connection};
use smgr::domain::id::{Digest, IntentId, Principal};
use smgr::domain::intent::{Action, Verb};
use smgr::domain::policy::{Grant, KeyClass, Kind, Names};
use smgr::domain::time::UnixMicros;
use smgr::head::folder::StateFolder;
use smgr::head::keyfile::{KeyName, Owner, load_key, load_trust, make_keys_and_trust};
use smgr::ipc::hello::Hello;
use smgr::ipc::local::{LocalAnswer, LocalRequest, RequestId};
use smgr::ipc::place::Place;
use smgr::ipc::{channel, hello};
use smgr::wire::codec;
use smgr::wire::envelope::{self, ENVELOPE_BYTES_MAX, seal};
use smgr::wire::key::{Keyring, Signer};
use smgr::wire::payload::{
    Answer, Ask, Audience, Intent, Mode, PAYLOAD_VERSION, Query, Reply, TrustedKey,
};
use smgr::wire::subject::{Callee, InboxPrefix, Subject};

use crate::support::machine::Machine;
use crate::support::nats::NatsServer;
use crate::support::wait::eventually;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// A machine, its bus, and the keys of everybody who matters.
pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) server: NatsServer,
    pub(super) operator: Signer,
    pub(super) node: Signer,
    /// A job that may read the status and restart `other`, and nothing else.
    pub(super) job: Signer,
    /// One whose key was taken back.
    pub(super) former: Signer,
    pub(super) ring: Keyring,
    pub(super) owner: Owner,
}

/// What a node cannot change without this changing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) hash: String,
    pub(super) head: String,
}

impl Node {
    /// Brings up a node with the service `counter`, whose action `count` writes a line each time that it runs.
    pub(super) fn up() -> Self {
        let (machine, server) = (Machine::new(), NatsServer::start());
        let owner = Owner {
            fleet: "local".parse().unwrap(),
            node: "n1".parse().unwrap(),
            operator: "alice".parse().unwrap(),
            now: now(),
        };
        let folder = StateFolder::new(machine.state());
        let job = Signer::from_seed(&[7; 32]);
        make_keys_and_trust(&folder, &owner).unwrap();
        let former = Signer::from_seed(&[8; 32]);
        trust_also(&folder, &job, &former);
        name_it(&machine, &owner);
        let counted = machine.folder().join("counted");
        machine.service(
            "counter",
            &format!(
                "exec = [\"/bin/sleep\", \"1000\"]\n[action.count]\n\
                 exec = [\"/bin/sh\", \"-c\", \"echo counted >> {}\"]\n",
                counted.display()
            ),
        );
        machine.exits(0, &["up", "-d", "--bus", &server.url()]);
        machine.ready("counter");
        let (_, ring) = load_trust(&folder).unwrap();
        let key = |name: KeyName| load_key(&name.path(&folder)).unwrap();
        let (operator, node) = (key(KeyName::Operator), key(KeyName::Node));
        let this = Self { machine, server, operator, node, job, former, ring, owner };
        eventually("the node is on the bus", || {
            let status = this.machine.json(&["status"]);
            (status["nodes"][0]["bus"]["state"] == "connected").then_some(())
        });
        this
    }

    /// Returns how often the action ran.
    pub(super) fn counted(&self) -> usize {
        let text = fs::read_to_string(self.machine.folder().join("counted")).unwrap_or_default();
        text.lines().count()
    }

    /// Returns the state that the log gives, after making sure that it is the live one.
    pub(super) fn state(&self) -> State {
        let replay = self.machine.json(&["replay"]);
        assert_eq!(replay["live"]["equal"], true, "{replay}");
        let text = |key: &str| replay[key].as_str().unwrap().to_owned();
        State { hash: text("state_hash"), head: text("head") }
    }

    /// Returns the events after a head.
    pub(super) fn events_after(&self, state: &State) -> Vec<Value> {
        let text = self.machine.exits(0, &["events", "-o", "json", "--since", &state.head]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// An intent of the operator that would be taken.
    pub(super) fn intent(&self, action: Action) -> Intent {
        let iat = now();
        Intent {
            v: PAYLOAD_VERSION,
            id: random_id(),
            iss: self.operator.kid(),
            iat,
            exp: iat.plus_ms(60_000),
            fleet: self.owner.fleet.clone(),
            mode: Mode::Once,
            action,
            audience: Audience::Nodes(vec![self.owner.node.clone()]),
            note: String::new(),
        }
    }

    pub(super) fn query(&self, ask: Ask) -> Query {
        let iat = now();
        Query {
            v: PAYLOAD_VERSION,
            id: random_id(),
            iss: self.operator.kid(),
            iat,
            exp: iat.plus_ms(60_000),
            fleet: self.owner.fleet.clone(),
            audience: Audience::All,
            ask,
        }
    }

    pub(super) fn signed(&self, intent: &Intent) -> Vec<u8> {
        seal(Kind::Intent, &codec::encode(intent), &self.operator)
    }

    /// The subject under which the node is called.
    pub(super) fn call(&self) -> Subject {
        let to = Callee::node(self.owner.node.clone()).unwrap();
        Subject::Call { fleet: self.owner.fleet.clone(), to }
    }

    /// Connects to the bus as the owner of an inbox.
    pub(super) async fn dial(&self, principal: &Principal) -> Connection {
        let inbox = InboxPrefix(principal.clone());
        Connection::dial(&BusOptions::new(vec![self.server.url()], inbox, "test")).await.unwrap()
    }

    /// Verifies an answer of the node.
    pub(super) fn verified(&self, bytes: &[u8]) -> Answer {
        let opened = envelope::read(bytes, ENVELOPE_BYTES_MAX).unwrap().open(&self.ring).unwrap();
        assert_eq!(opened.kid, self.node.kid());
        codec::decode(opened.payload).unwrap()
    }

    pub(super) fn place(&self) -> Place {
        Place::of(self.machine.state())
    }

    /// Sends an envelope over the local socket and returns how it ended.
    pub(super) async fn over_the_socket(&self, bytes: &[u8]) -> Came {
        let (sender, mut receiver) = channel::connect(&self.place().local_socket()).unwrap();
        let id = RequestId(1);
        sender.send(&LocalRequest::Envelope { id, bytes: ByteBuf::from(bytes) }).await.unwrap();
        let deadline = tokio::time::Instant::now() + ANSWER;
        loop {
            let answer = tokio::time::timeout_at(deadline, receiver.receive::<LocalAnswer>());
            match answer.await.expect("no answer in time").expect("the connection ended").message {
                LocalAnswer::Hello(_) | LocalAnswer::End { .. } => {}
                LocalAnswer::Answer { bytes, .. } => {
                    if let Some(came) = came_of(self.verified(&bytes).reply) {
                        return came;
                    }
                }
                LocalAnswer::Refused { code, .. } => return Came::Refused(code),
            }
        }
    }

    /// Sends an envelope over the bus and returns how it ended.
    pub(super) async fn over_the_bus(&self, bus: &Connection, bytes: &[u8]) -> Came {
        let mut answers = bus.request(&self.call(), bytes.to_vec(), ANSWER).await.unwrap();
        loop {
            let bytes = answers.next().await.unwrap().expect("no outcome in time");
            if let Some(came) = came_of(self.verified(&bytes).reply) {
                return came;
            }
        }
    }

    /// Sends something over the bus and demands that nobody answers it, though the node has dealt with it.
    pub(super) async fn meets_silence(&self, bus: &Connection, bytes: &[u8]) {
        let mut answers = bus.request(&self.call(), bytes.to_vec(), ANSWER).await.unwrap();
        self.ping(bus).await;
        let answer = tokio::time::timeout(Duration::from_millis(20), answers.next()).await;
        assert!(answer.is_err(), "a stranger was answered");
    }

    /// Asks the node over the bus whether it is there; what was sent before on this connection is dealt with then.
    pub(super) async fn ping(&self, bus: &Connection) {
        let query = self.query(Ask::Ping);
        let ping = seal(Kind::Query, &codec::encode(&query), &self.operator);
        let mut answers = bus.request(&self.call(), ping, ANSWER).await.unwrap();
        let answer = answers.next().await.unwrap().expect("the node answers a ping");
        assert!(matches!(self.verified(&answer).reply, Reply::Pong { .. }));
    }
}

/// How a message ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Came {
    Refused(String),
    Outcome(smgr::domain::event::Outcome),
}

fn came_of(reply: Reply) -> Option<Came> {
    match reply {
        Reply::Refused { code, .. } => Some(Came::Refused(code)),
        Reply::Outcome { outcome, .. } => Some(Came::Outcome(outcome)),
        Reply::Accepted { .. } => None,
        Reply::Pong { .. }
        | Reply::Fleet(_)
        | Reply::Piece { .. }
        | Reply::Arrivals { .. }
        | Reply::Status(_)
        | Reply::Lines { .. }
        | Reply::Range { .. } => {
            panic!("not an answer to a wish")
        }
    }
}

pub(super) fn count() -> Action {
    Action::Run {
        service: "counter".parse().unwrap(),
        action: "count".parse().unwrap(),
        params: Default::default(),
        confirmed: false,
    }
}

pub(super) fn now() -> UnixMicros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMicros(u64::try_from(since.as_micros()).unwrap())
}

pub(super) fn random_id() -> IntentId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    IntentId(id)
}

/// A hello as one part of the node would say it.
pub(super) fn hello(part: hello::Part) -> Hello {
    Hello::of(part, hello::Incarnation::draw())
}

/// Signs the trust document again, with the job's key in it.
fn trust_also(folder: &StateFolder, job: &Signer, former: &Signer) {
    let (mut trust, _) = load_trust(folder).unwrap();
    trust.version += 1;
    trust.keys.push(TrustedKey {
        key: Digest(job.public().to_bytes()),
        name: "job".parse().unwrap(),
        class: KeyClass::Ci,
        grants: vec![Grant {
            verbs: Names::Only(vec![Verb::Status, Verb::Restart]),
            services: Names::Only(vec!["other".parse().unwrap()]),
            nodes: Names::All,
        }],
        until: None,
    });
    trust.keys.push(TrustedKey {
        key: Digest(former.public().to_bytes()),
        name: "former".parse().unwrap(),
        class: KeyClass::Human,
        grants: trust.keys[0].grants.clone(),
        until: None,
    });
    trust.revoked.push(former.kid());
    let root = load_key(&KeyName::Root.path(folder)).unwrap();
    fs::write(folder.trust(), seal(Kind::Trust, &codec::encode(&trust), &root)).unwrap();
}

/// Gives the node its name before the first `up`, which would take that of the host.
fn name_it(machine: &Machine, owner: &Owner) {
    use smgr::agent::setup::{NodeSetup, SpecSources};
    let logs: PathBuf = machine.state().join("logs");
    let setup =
        NodeSetup::new(owner.fleet.clone(), owner.node.clone(), SpecSources::default(), logs);
    setup.write(&StateFolder::new(machine.state())).unwrap();
}
