//! The uplink between a real nats-server and an agent that the test plays.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names what it awaits; all else fails it"
)]

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_bytes::ByteBuf;
use smgr::bus::{BusOptions, Connection};
use smgr::ipc::channel::{Listener, Receiver, Sender};
use smgr::ipc::hello::{Hello, Incarnation, Part};
use smgr::ipc::uplink::{
    BusConfig, BusCredentials, CREDIT_AT_START, Confirm, DropCounts, FromUplink, Ticket, ToUplink,
};
use smgr::uplink::{UplinkError, UplinkOptions};
use smgr::wire::subject::{Callee, Filter, InboxPrefix, Subject};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::block_on;
use crate::support::nats::NatsServer;

/// Long enough that a passing test never meets it.
const PATIENCE: Duration = Duration::from_secs(20);

const CALLS: Ticket = Ticket(1);

#[test]
fn a_call_reaches_the_agent_and_its_answer_the_caller() {
    block_on(async {
        let node = Node::start();
        let mut agent = node.agent().await;
        agent.listen_to_calls(&node).await;
        let alice = dial(&node.server).await;
        let mut answers = alice.request(&call(), envelope(b"ping"), PATIENCE).await.unwrap();

        let (reply, bytes) = agent.delivered().await;
        assert_eq!(bytes, envelope(b"ping"));
        agent.publish(Ticket(2), &reply.unwrap(), b"pong", 0, Confirm::Nothing).await;

        assert_eq!(answers.next().await.unwrap().unwrap(), b"pong");
    });
}

#[test]
fn a_url_is_fetched_into_the_pipe_of_whoever_asks() {
    use std::io::{Read as _, Write as _};

    block_on(async {
        let node = Node::start();
        let mut agent = node.agent().await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut asked = [0; 1024];
                assert!(stream.read(&mut asked).unwrap() > 0);
                let answer = match number {
                    0 => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                    _ => "HTTP/1.1 404 Not Found\r\n\r\n",
                };
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        for (number, text) in [(1, "hello"), (2, "")] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let url = format!("http://{address}/web.tar");
            let fetch = ToUplink::Fetch { ticket: Ticket(number), url, bytes_max: 100 };
            agent.sender.send_with(&fetch, vec![writer.into()]).await.unwrap();
            drop(fetch);
            let told = loop {
                match agent.receive().await {
                    FromUplink::Published { ticket } => break (ticket, None),
                    FromUplink::Refused { ticket, why } => break (ticket, Some(why)),
                    _ => {}
                }
            };
            assert_eq!(told.0, Ticket(number));
            assert_eq!(told.1.is_none(), number == 1, "{told:?}");
            let mut came = String::new();
            reader.read_to_string(&mut came).unwrap();
            assert_eq!(came, text);
        }
    });
}

#[test]
fn events_leave_in_the_order_of_the_log() {
    block_on(async {
        let node = Node::start();
        let mut agent = node.agent().await;
        agent.configure(&node.config()).await;
        let alice = dial(&node.server).await;
        let mut events = alice.subscribe(&Filter::every_event(fleet())).await.unwrap();
        alice.flush().await.unwrap();

        let reader = tokio::spawn(async move {
            for number in 0_u32..1_000 {
                let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
                assert_eq!(event.payload(), number.to_be_bytes());
            }
        });
        let mut credit = CREDIT_AT_START;
        for number in 0_u32..1_000 {
            while credit == 0 {
                if let FromUplink::Credit(more) = agent.receive().await {
                    credit += more;
                }
            }
            credit -= 1;
            let ticket = Ticket(u64::from(number));
            agent.publish(ticket, EVENT, &number.to_be_bytes(), 0, Confirm::Nothing).await;
        }
        reader.await.unwrap();
    });
}

#[test]
fn an_agent_that_comes_back_is_served_again_on_the_same_connection_to_the_bus() {
    block_on(async {
        let node = Node::start();
        let mut agent = node.agent().await;
        agent.listen_to_calls(&node).await;
        drop(agent);

        let mut agent = node.agent().await;
        let session = agent.configure(&node.config()).await;
        assert_eq!(session, 1, "the bus was left for no reason");
        agent.listen_to_calls(&node).await;
        dial(&node.server).await.publish(&call(), envelope(b"hello again")).await.unwrap();
        assert_eq!(agent.delivered().await.1, envelope(b"hello again"));
    });
}

#[test]
fn while_the_bus_is_away_events_are_refused_and_answers_kept_until_their_deadline() {
    block_on(async {
        let mut node = Node::start();
        let mut agent = node.agent().await;
        agent.configure(&node.config()).await;
        node.server.kill();
        while !matches!(agent.receive().await, FromUplink::BusDown { .. }) {}

        agent.publish(Ticket(1), EVENT, b"live", 0, Confirm::Nothing).await;
        agent.publish(Ticket(2), "_INBOX.alice.late", b"too late", 200, Confirm::Sent).await;
        agent.publish(Ticket(3), "_INBOX.alice.kept", b"kept", 60_000, Confirm::Flushed).await;
        assert_eq!(agent.refused().await, Ticket(1));
        assert_eq!(agent.refused().await, Ticket(2));

        node.server.restart();
        loop {
            match agent.receive().await {
                FromUplink::Published { ticket } => break assert_eq!(ticket, Ticket(3)),
                FromUplink::BusUp { .. } | FromUplink::BusDown { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn an_agent_that_grants_nothing_gets_no_more_than_it_granted() {
    block_on(async {
        let node = Node::start();
        let mut agent = node.agent().await;
        agent.listen_to_calls(&node).await;
        let alice = dial(&node.server).await;
        for number in 0_u32..2_000 {
            alice.publish(&call(), envelope(&number.to_be_bytes())).await.unwrap();
        }
        alice.flush().await.unwrap();
        let (mut delivered, mut dropped) = (0, DropCounts::default());
        while dropped.overflow == 0 || delivered < CREDIT_AT_START {
            match agent.receive().await {
                FromUplink::Delivered { .. } => delivered += 1,
                FromUplink::Dropped(counts) => dropped.overflow += counts.overflow,
                other => panic!("{other:?}"),
            }
        }
        let silence = timeout(Duration::from_millis(200), agent.receiver.receive::<FromUplink>());
        assert!(silence.await.is_err(), "something came without credit");
        assert_eq!(delivered, CREDIT_AT_START);

        agent.sender.send(&ToUplink::Credit(1)).await.unwrap();
        assert_eq!(agent.delivered().await.1, envelope(&CREDIT_AT_START.to_be_bytes()));
    });
}

#[test]
fn an_agent_that_spends_more_than_its_credit_is_cut_off_and_may_come_back() {
    block_on(async {
        let mut node = Node::start();
        let mut agent = node.agent().await;
        agent.configure(&node.config()).await;
        node.server.kill();
        for number in 0..10 * u64::from(CREDIT_AT_START) {
            let publication = publication(Ticket(number), EVENT, b"x", 60_000, Confirm::Nothing);
            if agent.sender.send(&publication).await.is_err() {
                break;
            }
        }
        let is_cut = async { while agent.receiver.receive::<FromUplink>().await.is_ok() {} };
        timeout(PATIENCE, is_cut).await.unwrap();
        node.agent().await;
    });
}

#[test]
fn what_cannot_be_done_is_refused_with_its_reason() {
    block_on(async {
        let node = Node::start();
        let mut agent = node.agent().await;
        agent.publish(Ticket(1), EVENT, b"x", 0, Confirm::Sent).await;
        agent.subscribe(Ticket(2), &["smgr.v1.acme.beat.*"]).await;
        agent.configure(&node.config()).await;
        agent.subscribe(Ticket(3), &["smgr.v1.acme.>"]).await;
        agent.subscribe(Ticket(4), &["_INBOX.>"]).await;
        agent.publish(Ticket(5), "smgr.v1.acme.call.*", b"x", 0, Confirm::Sent).await;
        agent.publish(Ticket(6), "$JS.API.STREAM.DELETE.X", b"x", 0, Confirm::Sent).await;
        agent.publish(Ticket(7), EVENT, &vec![0; 900 * 1024], 0, Confirm::Flushed).await;
        let mut refused: Vec<_> = agent.early_refusals.drain(..).collect();
        loop {
            match agent.receive().await {
                FromUplink::Refused { ticket, why } => {
                    assert!(!why.is_empty());
                    refused.push(ticket.0);
                }
                FromUplink::Published { ticket } => break assert_eq!(ticket, Ticket(7)),
                other => panic!("{other:?}"),
            }
        }
        refused.sort_unstable();
        assert_eq!(refused, [1, 2, 3, 4, 5, 6]);
    });
}

#[test]
fn a_node_has_one_uplink() {
    block_on(async {
        let node = Node::start();
        let _agent = node.agent().await;
        let second = smgr::uplink::run(&node.options());
        assert!(matches!(second, Err(UplinkError::Lock(_))), "{second:?}");
    });
}

#[test]
fn an_agent_of_another_age_is_told_by_the_end_of_the_uplink() {
    let folder = state_folder();
    let options = UplinkOptions { state_dir: folder.path().to_owned() };
    let uplink = thread::spawn(move || smgr::uplink::run(&options));
    block_on(async {
        let listener = Listener::bind(&socket(folder.path())).unwrap();
        let (sender, mut receiver, _) = listener.accept().await.unwrap();
        let mut hello = Hello::of(Part::Agent, Incarnation(1));
        hello.protocol += 2;
        sender.send(&ToUplink::Hello(hello)).await.unwrap();
        let is_over = async { while receiver.receive::<FromUplink>().await.is_ok() {} };
        timeout(PATIENCE, is_over).await.unwrap();
    });
    let ended = uplink.join().unwrap();
    assert!(matches!(ended, Err(UplinkError::Protocol { .. })), "{ended:?}");
}

#[test]
fn a_connected_uplink_with_nothing_to_carry_sleeps() {
    block_on(async {
        let node = Node::start();
        let mut agent = node.agent().await;
        agent.listen_to_calls(&node).await;
        // A fresh connection is measured by the server with a few pings.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = switches_of(&node.thread_name());
        // How often it wakes in a time is what is tested.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let switches = switches_of(&node.thread_name()) - before;
        assert!(switches <= 2, "woke {switches} times in 6 s");
    });
}

mod heavy {
    use super::*;

    /// A million messages, and two bytes of each are looked at.
    const MESSAGES: u64 = 1_000_000;

    /// What buffers may take beyond what they took when it began, in KiB.
    const GROWTH_KIB_MAX: u64 = 64 * 1024;

    #[test]
    fn a_million_messages_of_garbage_reach_no_agent_and_take_no_memory() {
        block_on(async {
            let node = Node::start();
            let mut agent = node.agent().await;
            agent.listen_to_calls(&node).await;
            let before = resident_kib();
            let url = node.server.url();
            let flood = thread::spawn(move || block_on(flood(url)));

            let (mut dropped, mut peak) = (DropCounts::default(), before);
            while !flood.is_finished() || dropped.oversize == 0 {
                match agent.receive().await {
                    FromUplink::Dropped(counts) => {
                        dropped.malformed += counts.malformed;
                        dropped.oversize += counts.oversize;
                        peak = peak.max(resident_kib());
                    }
                    // The server may cut off whoever reads too slowly.
                    FromUplink::BusUp { .. } | FromUplink::BusDown { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            flood.join().unwrap();
            peak = peak.max(resident_kib());
            assert!(dropped.malformed > 0, "{dropped:?}");
            assert!(peak - before < GROWTH_KIB_MAX, "from {before} to {peak} KiB");

            // What comes on the heels of the flood may be dropped with its tail, as anything on a bus.
            let alice = dial(&node.server).await;
            let answered = async {
                loop {
                    alice.publish(&call(), envelope(b"still here")).await.unwrap();
                    let once = timeout(Duration::from_millis(250), agent.delivered());
                    if let Ok((_, bytes)) = once.await {
                        return bytes;
                    }
                }
            };
            assert_eq!(timeout(PATIENCE, answered).await.unwrap(), envelope(b"still here"));
        });
    }

    async fn flood(url: String) {
        let client = async_nats::connect(url).await.unwrap();
        let large = vec![0x95; 70_000];
        for number in 0..MESSAGES {
            let payload = match number % 1_000 {
                0 => large.clone(),
                1 => Vec::new(),
                _ => number.to_be_bytes().to_vec(),
            };
            client.publish("smgr.v1.acme.call.n1", payload.into()).await.unwrap();
        }
        client.flush().await.unwrap();
    }

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

const EVENT: &str = "smgr.v1.acme.event.n1.web.instance-started";

/// A state folder, an uplink and a server; the agent is for the test to play.
struct Node {
    server: NatsServer,
    folder: TempDir,
    listener: Listener,
}

struct Agent {
    sender: Sender,
    receiver: Receiver,
    early_refusals: Vec<u64>,
}

impl Node {
    fn start() -> Self {
        let folder = state_folder();
        let listener = Listener::bind(&socket(folder.path())).unwrap();
        let node = Self { server: NatsServer::start(), folder, listener };
        let options = node.options();
        // Ends with the test's process: an uplink stops only when it is told to.
        let named = thread::Builder::new().name(node.thread_name());
        named.spawn(move || smgr::uplink::run(&options)).unwrap();
        node
    }

    fn options(&self) -> UplinkOptions {
        UplinkOptions { state_dir: self.folder.path().to_owned() }
    }

    /// Returns what its thread is called: the kernel keeps 15 bytes, and another test may run beside.
    fn thread_name(&self) -> String {
        format!("uplink-{}", self.server.port())
    }

    /// Waits for the uplink to come, and exchanges hellos.
    async fn agent(&self) -> Agent {
        let (sender, receiver, _) =
            timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        let mut agent = Agent { sender, receiver, early_refusals: Vec::new() };
        let hello = Hello::of(Part::Agent, Incarnation(1));
        agent.sender.send(&ToUplink::Hello(hello)).await.unwrap();
        let FromUplink::Hello(hello) = agent.receive().await else { panic!("no hello") };
        assert_eq!(hello.part, Part::Uplink);
        agent
    }

    fn config(&self) -> BusConfig {
        BusConfig {
            urls: vec![self.server.url()],
            credentials: BusCredentials::Anonymous,
            ca: None,
            client: None,
            principal: "n1".parse().unwrap(),
            retain_events: Some(fleet()),
        }
    }
}

impl Agent {
    async fn receive(&mut self) -> FromUplink {
        timeout(PATIENCE, self.receiver.receive()).await.unwrap().unwrap().message
    }

    /// Names the bus and waits until it is up; returns its session.
    async fn configure(&mut self, config: &BusConfig) -> u64 {
        self.sender.send(&ToUplink::Configure(config.clone())).await.unwrap();
        loop {
            match self.receive().await {
                FromUplink::BusUp { session, .. } => return session,
                FromUplink::BusDown { .. } => {}
                FromUplink::Refused { ticket, .. } => self.early_refusals.push(ticket.0),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn subscribe(&mut self, ticket: Ticket, filters: &[&str]) {
        let filters = filters.iter().map(|text| (*text).to_owned()).collect();
        self.sender.send(&ToUplink::Subscribe { ticket, filters }).await.unwrap();
    }

    /// Listens to the calls to n1, and waits until a call would arrive.
    async fn listen_to_calls(&mut self, node: &Node) {
        self.configure(&node.config()).await;
        self.subscribe(CALLS, &["smgr.v1.acme.call.n1", "smgr.v1.acme.call.all"]).await;
        // A flushed publication shows that the server has read the subscription before it.
        self.publish(Ticket(0), EVENT, b"", 0, Confirm::Flushed).await;
        while !matches!(self.receive().await, FromUplink::Published { .. }) {}
    }

    async fn publish(
        &mut self,
        ticket: Ticket,
        to: &str,
        bytes: &[u8],
        keep_ms: u32,
        confirm: Confirm,
    ) {
        let publication = publication(ticket, to, bytes, keep_ms, confirm);
        self.sender.send(&publication).await.unwrap();
    }

    async fn delivered(&mut self) -> (Option<String>, Vec<u8>) {
        loop {
            match self.receive().await {
                FromUplink::Delivered { ticket, reply, bytes, .. } => {
                    assert_eq!(ticket, CALLS);
                    return (reply, bytes.into_vec());
                }
                FromUplink::Dropped(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn refused(&mut self) -> Ticket {
        loop {
            match self.receive().await {
                FromUplink::Refused { ticket, .. } => return ticket,
                FromUplink::BusDown { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn publication(ticket: Ticket, to: &str, bytes: &[u8], keep_ms: u32, confirm: Confirm) -> ToUplink {
    let bytes = ByteBuf::from(bytes.to_vec());
    ToUplink::Publish { ticket, to: to.to_owned(), bytes, keep_ms, confirm }
}

/// Returns how often the threads of this name went to sleep so far.
fn switches_of(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
    let of_name = tasks.filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    of_name
        .map(|task| {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

fn state_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("run/agent")).unwrap();
    folder
}

fn socket(state_dir: &Path) -> PathBuf {
    smgr::ipc::place::Place::of(state_dir).uplink_socket()
}

async fn dial(server: &NatsServer) -> Connection {
    let inbox = InboxPrefix("alice".parse().unwrap());
    Connection::dial(&BusOptions::new(vec![server.url()], inbox, "test")).await.unwrap()
}

fn fleet() -> smgr::domain::id::FleetId {
    "acme".parse().unwrap()
}

fn call() -> Subject {
    let to: Callee = "n1".parse().unwrap();
    Subject::Call { fleet: fleet(), to }
}

/// Something with the first bytes of an envelope.
fn envelope(rest: &[u8]) -> Vec<u8> {
    [&[0x95, 0x01], rest].concat()
}
