//! The bus against a real nats-server: killed, paused, restarted, too old, and saying no.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use smgr::bus::{
    BusOptions, BusState, Connection, Credentials, DialError, NobodyListens, SendError,
    ensure_event_stream, event_stream_name,
};
use smgr::wire::subject::{Callee, Filter, Inbox, InboxPrefix, Pick, Subject};
use tokio::time::timeout;

use crate::support::block_on;
use crate::support::nats::NatsServer;

const SEED: &str = "SUAJ5TCKTDPYLEGJ2BWFS3TIMBGTDTVB5TI5U2IJ7U3C6WBKJ46PSV6SDE";
const PUBLIC: &str = "UB4STXVQAWCMWZIYZ5JACBUV3BJSOT6ID2OUFGQQ6NBFR67DMILGUOAY";

/// Long enough that a passing test never meets it.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_message_reaches_those_who_listen_to_its_subject_and_nobody_else() {
    block_on(async {
        let server = NatsServer::start();
        let (n1, alice) = (dial(&server, "n1").await, dial(&server, "alice").await);
        let mut calls = n1.subscribe(&calls_to("n1")).await.unwrap();
        n1.flush().await.unwrap();

        alice.publish(&call("n2"), b"not for n1".to_vec()).await.unwrap();
        alice.publish(&call("n1"), b"for n1".to_vec()).await.unwrap();

        let message = timeout(PATIENCE, calls.next()).await.unwrap().unwrap();
        assert_eq!(message.subject(), "smgr.v1.acme.call.n1");
        assert_eq!(message.reply(), None);
        assert_eq!(message.into_payload(), b"for n1");
    });
}

#[test]
fn every_node_answers_one_call_and_the_caller_collects_until_its_deadline() {
    block_on(async {
        let server = NatsServer::start();
        let mut nodes = Vec::new();
        for name in ["n1", "n2", "n3"] {
            let node = dial(&server, name).await;
            let to_all = Filter::Calls { fleet: fleet(), to: Callee::EVERY_NODE };
            let mut calls = node.subscribe(&to_all).await.unwrap();
            node.flush().await.unwrap();
            nodes.push(tokio::spawn(async move {
                let message = calls.next().await.unwrap();
                let inbox: Inbox = message.reply().unwrap().parse().unwrap();
                assert_eq!(inbox.principal().as_str(), "alice");
                node.answer(&inbox, name.into()).await.unwrap();
                node.flush().await.unwrap();
            }));
        }

        let alice = dial(&server, "alice").await;
        let all = Subject::Call { fleet: fleet(), to: Callee::EVERY_NODE };
        let within = Duration::from_secs(1);
        let mut answers = alice.request(&all, b"who is there".to_vec(), within).await.unwrap();

        let mut names = Vec::new();
        while let Some(answer) = answers.next().await.unwrap() {
            names.push(String::from_utf8(answer).unwrap());
        }
        names.sort();
        assert_eq!(names, ["n1", "n2", "n3"]);
        for node in nodes {
            node.await.unwrap();
        }
    });
}

#[test]
fn a_caller_whom_nobody_can_hear_is_told_so_at_once() {
    block_on(async {
        let server = NatsServer::start();
        let alice = dial(&server, "alice").await;
        let began = Instant::now();
        let mut answers = alice.request(&call("n9"), b"hello".to_vec(), PATIENCE).await.unwrap();
        assert_eq!(answers.next().await, Err(NobodyListens));
        assert!(began.elapsed() < PATIENCE / 2);
    });
}

#[test]
fn a_killed_server_is_reported_and_a_restarted_one_is_found_again() {
    block_on(async {
        let mut server = NatsServer::start();
        let n1 = dial(&server, "n1").await;
        let mut calls = n1.subscribe(&calls_to("n1")).await.unwrap();
        assert!(matches!(state_of(&n1), BusState::Up { session: 1, .. }));

        server.kill();
        wait_until(&n1, |state| !state.is_up()).await;
        let refused = n1.publish(&call("n1"), b"lost".to_vec()).await;
        assert!(matches!(refused, Err(SendError::Down { .. })), "{refused:?}");

        server.restart();
        wait_until(&n1, |state| matches!(state, BusState::Up { session: 2.., .. })).await;
        n1.publish(&call("n1"), b"after".to_vec()).await.unwrap();
        let message = timeout(PATIENCE, calls.next()).await.unwrap().unwrap();
        assert_eq!(message.payload(), b"after");
    });
}

#[test]
fn a_bus_that_is_not_there_yet_is_used_as_soon_as_it_is() {
    block_on(async {
        let mut server = NatsServer::start();
        server.kill();
        let n1 = Connection::keep(&options(&server, "n1")).await.unwrap();
        wait_until(
            &n1,
            |state| matches!(state, BusState::Down { why } if why.starts_with("cannot connect")),
        )
        .await;
        server.restart();
        wait_until(&n1, BusState::is_up).await;
    });
}

#[test]
fn a_server_that_takes_nothing_makes_the_publisher_wait_and_then_fail() {
    block_on(async {
        let server = NatsServer::start();
        let n1 = dial(&server, "n1").await;
        server.pause();
        let mut taken = 0;
        let error = loop {
            match n1.publish(&call("n1"), vec![0; 65536]).await {
                Ok(()) => taken += 1,
                Err(error) => break error,
            }
            assert!(taken < 4096, "256 MiB were taken for a server that reads nothing");
        };
        assert_eq!(error, SendError::Stalled);
        server.resume();
        timeout(PATIENCE, n1.publish(&call("n1"), b"again".to_vec())).await.unwrap().unwrap();
    });
}

#[test]
fn a_message_larger_than_the_server_takes_is_refused_before_it_is_sent() {
    block_on(async {
        let server = NatsServer::start_with("max_payload: 4096");
        let n1 = dial(&server, "n1").await;
        let refused = n1.publish(&call("n1"), vec![0; 4097]).await;
        assert_eq!(refused, Err(SendError::TooLarge { bytes: 4097, bytes_max: 4096 }));
        n1.publish(&call("n1"), vec![0; 4096]).await.unwrap();
        n1.flush().await.unwrap();
        assert!(state_of(&n1).is_up());
    });
}

#[test]
fn only_a_known_key_is_let_in_and_its_inbox_is_all_that_it_needs() {
    block_on(async {
        let server = NatsServer::start_with(&format!(
            "authorization {{ users: [ {{ nkey: {PUBLIC}, permissions: {{
                publish: \"smgr.v1.acme.call.*\", subscribe: [\"_INBOX.alice.>\"] }} }} ] }}"
        ));
        let stranger = Connection::dial(&options(&server, "alice")).await;
        assert!(matches!(stranger, Err(DialError::Connect { .. })), "{stranger:?}");

        let mut options = options(&server, "alice");
        options.credentials = Credentials::NkeySeed(SEED.to_owned());
        let alice = Connection::dial(&options).await.unwrap();
        let mut answers = alice.request(&call("n1"), Vec::new(), PATIENCE).await.unwrap();
        assert_eq!(answers.next().await, Err(NobodyListens), "the inbox was not reached");
    });
}

#[test]
fn a_server_below_the_version_floor_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"INFO {\"server_id\":\"x\",\"server_name\":\"x\",\"host\":\"h\",\"port\":1,\"version\":\"2.9.10\",\"proto\":1,\"go\":\"\",\"max_payload\":1048576,\"headers\":true,\"client_id\":1}\r\n").unwrap();
            let mut buffer = [0; 1024];
            while let Ok(1..) = stream.read(&mut buffer) {
                if stream.write_all(b"PONG\r\n").is_err() {
                    break;
                }
            }
        }
    });
    block_on(async {
        let options = BusOptions::new(vec![url], prefix("alice"), "test");
        let error = Connection::dial(&options).await.unwrap_err();
        assert!(error.to_string().contains("nats-server 2.9.10 is too old"), "{error}");
    });
}

#[test]
fn a_server_without_tls_hears_nothing_from_one_who_asked_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"INFO {\"version\":\"2.15.1\",\"max_payload\":1048576}\r\n").unwrap();
        let mut heard = Vec::new();
        let _reset = stream.read_to_end(&mut heard);
        heard
    });
    block_on(async {
        let url = format!("tls://127.0.0.1:{port}");
        let options = BusOptions::new(vec![url], prefix("alice"), "test");
        let error = Connection::dial(&options).await.unwrap_err();
        assert!(matches!(error, DialError::Connect { .. }), "{error}");
    });
    let heard = heard.join().unwrap();
    assert_eq!(heard.first(), Some(&0x16), "not a TLS handshake: {heard:?}");
    assert!(!heard.windows(7).any(|word| word == b"CONNECT"));
}

#[test]
fn a_server_is_spoken_with_over_tls_when_the_pinned_authority_vouches_for_it() {
    block_on(async {
        let tls = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/support/tls");
        let server = NatsServer::start_with(&format!(
            "tls {{ cert_file: \"{tls}/server.pem\", key_file: \"{tls}/server.key\", \
             handshake_first: true }}"
        ));
        let mut options = options(&server, "alice");
        options.urls = vec![format!("tls://127.0.0.1:{}", server.port())];
        options.tls.ca = Some(format!("{tls}/stranger.pem").into());
        let error = Connection::dial(&options).await.unwrap_err();
        assert!(matches!(error, DialError::Connect { .. }), "{error}");

        options.tls.ca = Some(format!("{tls}/authority.pem").into());
        let alice = Connection::dial(&options).await.unwrap();
        assert!(matches!(state_of(&alice), BusState::Up { encrypted: true, .. }));
        alice.flush().await.unwrap();
    });
}

#[test]
fn a_slow_reader_loses_the_newest_messages_and_the_loss_is_counted() {
    block_on(async {
        let server = NatsServer::start();
        let mut few = options(&server, "n1");
        few.incoming_max = 16;
        let n1 = Connection::dial(&few).await.unwrap();
        let mut calls = n1.subscribe(&calls_to("n1")).await.unwrap();
        n1.flush().await.unwrap();
        let alice = dial(&server, "alice").await;
        for number in 0_u32..5_000 {
            alice.publish(&call("n1"), number.to_be_bytes().to_vec()).await.unwrap();
        }
        alice.flush().await.unwrap();
        n1.flush().await.unwrap();
        let first = timeout(PATIENCE, calls.next()).await.unwrap().unwrap();
        assert_eq!(first.payload(), 0_u32.to_be_bytes());
        assert!(n1.overflowed() > 0);
        assert!(state_of(&n1).is_up());
    });
}

#[test]
fn events_are_kept_in_a_stream_for_those_who_catch_up() {
    block_on(async {
        let server = NatsServer::start();
        let n1 = dial(&server, "n1").await;
        ensure_event_stream(&n1, &fleet()).await.unwrap();
        ensure_event_stream(&n1, &fleet()).await.unwrap();
        let subject: Subject = "smgr.v1.acme.event.n1.web.instance-started".parse().unwrap();
        n1.publish(&subject, b"event".to_vec()).await.unwrap();
        n1.flush().await.unwrap();

        let stock = async_nats::connect(server.url()).await.unwrap();
        let streams = async_nats::jetstream::new(stock);
        let stream = streams.get_stream(event_stream_name(&fleet())).await.unwrap();
        let last = stream.get_last_raw_message_by_subject(&subject.to_string()).await.unwrap();
        assert_eq!(last.payload.as_ref(), b"event");
    });
}

#[test]
fn a_filter_with_gaps_is_understood_by_the_server() {
    block_on(async {
        let server = NatsServer::start();
        let bob = dial(&server, "bob").await;
        let filter = Filter::Events {
            fleet: fleet(),
            origin: Pick::Any,
            scope: Pick::Only(smgr::wire::subject::Scope::Node),
            kind: Pick::Any,
        };
        let mut events = bob.subscribe(&filter).await.unwrap();
        for text in ["n1.web.instance-started", "n1._.log-opened", "n2._.agent-started"] {
            let subject = format!("smgr.v1.acme.event.{text}").parse().unwrap();
            bob.publish(&subject, Vec::new()).await.unwrap();
        }
        for want in ["n1._.log-opened", "n2._.agent-started"] {
            let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
            assert!(event.subject().ends_with(want), "{}", event.subject());
        }
    });
}

fn fleet() -> smgr::domain::id::FleetId {
    "acme".parse().unwrap()
}

fn prefix(principal: &str) -> InboxPrefix {
    InboxPrefix(principal.parse().unwrap())
}

fn options(server: &NatsServer, principal: &str) -> BusOptions {
    BusOptions::new(vec![server.url()], prefix(principal), format!("smgr {principal}"))
}

async fn dial(server: &NatsServer, principal: &str) -> Connection {
    Connection::dial(&options(server, principal)).await.unwrap()
}

fn call(node: &str) -> Subject {
    Subject::Call { fleet: fleet(), to: node.parse().unwrap() }
}

fn calls_to(node: &str) -> Filter {
    Filter::Calls { fleet: fleet(), to: node.parse().unwrap() }
}

fn state_of(connection: &Connection) -> BusState {
    connection.state().borrow().clone()
}

async fn wait_until(connection: &Connection, reached: impl FnMut(&BusState) -> bool) {
    let mut state = connection.state();
    timeout(PATIENCE, state.wait_for(reached)).await.expect("the state was not reached").unwrap();
}
