//! Sends intents at a steady pace, each twice and some again much later, and keeps what was answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::time::{Duration, Instant};

use async_nats::Client;
use futures_util::StreamExt;
use smgr::domain::event::Outcome;
use smgr::domain::id::{IntentId, ServiceId};
use smgr::domain::intent::Action;
use smgr::domain::policy::Kind;
use smgr::domain::time::UnixMicros;
use smgr::wire::codec;
use smgr::wire::envelope;
use smgr::wire::payload::{Answer, Audience, Beat, Intent, Mode, PAYLOAD_VERSION, Reply};
use smgr::wire::subject::{Callee, Subject};
use tokio::time::{Instant as Tick, sleep_until, timeout};

use super::rig::{self, Rig, STEADY, TURNING};

/// Fifty-five intents a second: what a pause of the machine costs is made up for.
const PACE: Duration = Duration::from_millis(18);

/// An intent without an outcome is sent again after this long: a message to a dead uplink is gone.
const AGAIN: Duration = Duration::from_secs(4);

/// Intents without outcome beyond which no new one is sent.
const OPEN_MAX: usize = 400;

/// The number of the signal that the worker counts.
const COUNTED_SIGNAL: i32 = 40;

/// An intent that was sent.
pub(super) struct Sent {
    envelope: Vec<u8>,
    sent_at: Instant,
    /// When it was signed.
    pub(super) iat: UnixMicros,
    /// Whether the node said that it is durable.
    pub(super) was_accepted: bool,
    /// What the node said came of it.
    pub(super) outcome: Option<Outcome>,
    /// Why it was refused.
    pub(super) refused: Option<String>,
}

/// The sender and all that it knows.
pub(super) struct Load {
    client: Client,
    answers: async_nats::Subscriber,
    beats: async_nats::Subscriber,
    pub(super) sent: BTreeMap<IntentId, Sent>,
    /// Those that were not answered, by when they were last sent.
    open: BTreeSet<(Instant, IntentId)>,
    /// Intents to be sent again although they may have been answered long ago.
    replays: VecDeque<(Instant, IntentId)>,
    replay_after: Duration,
    pub(super) replayed: u64,
    /// Answers that contradict an earlier one.
    pub(super) contradictions: Vec<String>,
    pub(super) last_beat: Option<Beat>,
    number: usize,
}

impl Load {
    pub(super) async fn connect(rig: &Rig, replay_after: Duration) -> Self {
        let client = async_nats::connect(rig.server.url()).await.unwrap();
        let answers = client.subscribe(format!("_INBOX.{}.>", rig::operator())).await.unwrap();
        let beat = Subject::Beat { fleet: rig::fleet(), origin: rig::node() };
        let beats = client.subscribe(beat.to_string()).await.unwrap();
        client.flush().await.unwrap();
        Self {
            client,
            answers,
            beats,
            sent: BTreeMap::new(),
            open: BTreeSet::new(),
            replays: VecDeque::new(),
            replay_after,
            replayed: 0,
            contradictions: Vec::new(),
            last_beat: None,
            number: 0,
        }
    }

    /// Sends for as long as `work` goes on, and returns what came of it.
    pub(super) async fn during<T>(&mut self, rig: &Rig, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut next = Tick::now();
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = sleep_until(next) => {
                    next += PACE;
                    // A node that is too slow for the pace is not buried under it; the rate shows it.
                    if self.open.len() < OPEN_MAX {
                        let action = self.next_action();
                        self.send(rig, action).await;
                    }
                    self.send_again().await;
                }
                Some(message) = self.answers.next() => self.heard(rig, &message.payload),
                Some(message) = self.beats.next() => self.heard_beat(&message.payload),
            }
        }
    }

    /// Waits until every intent has its outcome.
    pub(super) async fn settle(&mut self, rig: &Rig, at_most: Duration) {
        let until = Instant::now() + at_most;
        while !self.open.is_empty() {
            let open = || self.open.iter().map(|(_, id)| id.to_string()).collect::<Vec<_>>();
            let count = self.open.len();
            assert!(Instant::now() < until, "{count} intents have no outcome: {:?}", open());
            self.send_again().await;
            if let Ok(Some(message)) = timeout(Duration::from_millis(50), self.answers.next()).await
            {
                self.heard(rig, &message.payload);
            }
        }
    }

    /// Asks for one thing and waits for its outcome.
    pub(super) async fn ask(&mut self, rig: &Rig, action: Action) -> Outcome {
        let id = self.send(rig, action).await;
        self.settle(rig, Duration::from_secs(60)).await;
        let sent = &self.sent[&id];
        let refused = &sent.refused;
        sent.outcome.clone().unwrap_or_else(|| panic!("it was refused: {refused:?}"))
    }

    /// Returns the next heartbeat.
    pub(super) async fn beat(&mut self) -> Beat {
        let message = timeout(Duration::from_secs(20), self.beats.next()).await;
        self.heard_beat(&message.expect("a heartbeat comes every 5 s").unwrap().payload);
        self.last_beat.clone().unwrap()
    }

    fn next_action(&mut self) -> Action {
        self.number += 1;
        let number = self.number;
        let service = |kind: &str, of: usize| -> ServiceId {
            format!("{kind}-{}", number / 10 % of).parse().unwrap()
        };
        match number % 10 {
            0..=6 => Action::Run {
                service: service("steady", STEADY),
                action: "count".parse().unwrap(),
                // The id stands in the envelope, so the services count by this number instead.
                params: [("id".to_owned(), format!("{number:x}"))].into(),
                confirmed: false,
            },
            9 if number % 50 == 9 => Action::Restart { service: service("turning", TURNING) },
            _ => Action::Signal { service: service("steady", STEADY), signal: COUNTED_SIGNAL },
        }
    }

    async fn send(&mut self, rig: &Rig, action: Action) -> IntentId {
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let id = IntentId(id);
        let iat = UnixMicros(rig::now_us());
        let intent = Intent {
            v: PAYLOAD_VERSION,
            id,
            iss: rig.operator.kid(),
            iat,
            exp: iat.plus_ms(14 * 60_000),
            fleet: rig::fleet(),
            mode: Mode::Once,
            action,
            audience: Audience::Nodes(vec![rig::node()]),
            note: String::new(),
        };
        let envelope = envelope::seal(Kind::Intent, &codec::encode(&intent), &rig.operator);
        let sent_at = Instant::now();
        let sent =
            Sent { envelope, sent_at, iat, was_accepted: false, outcome: None, refused: None };
        self.sent.insert(id, sent);
        self.open.insert((sent_at, id));
        if self.number % 10 == 3 {
            self.replays.push_back((sent_at + self.replay_after, id));
        }
        // Every message is duplicated.
        self.publish(id).await;
        self.publish(id).await;
        id
    }

    async fn send_again(&mut self) {
        let now = Instant::now();
        while self.replays.front().is_some_and(|(at, _)| *at <= now) {
            let (_, id) = self.replays.pop_front().unwrap();
            self.replayed += 1;
            self.publish(id).await;
        }
        // One at a time: repeats beyond what is taken would only keep the first ones from being taken.
        if let Some((at, id)) = self.open.first().copied().filter(|(at, _)| *at + AGAIN <= now) {
            self.open.remove(&(at, id));
            self.open.insert((now, id));
            self.sent.get_mut(&id).unwrap().sent_at = now;
            self.publish(id).await;
        }
    }

    async fn publish(&self, id: IntentId) {
        let to = Callee::node(rig::node()).unwrap();
        let subject = Subject::Call { fleet: rig::fleet(), to }.to_string();
        let inbox = format!("_INBOX.{}.kill", rig::operator());
        let envelope = self.sent[&id].envelope.clone();
        self.client.publish_with_reply(subject, inbox, envelope.into()).await.unwrap();
    }

    fn heard(&mut self, rig: &Rig, bytes: &[u8]) {
        if bytes.is_empty() {
            return; // The server says that nobody listens: the uplink is dead.
        }
        let sealed = envelope::read(bytes, envelope::ENVELOPE_BYTES_MAX).unwrap();
        let opened = sealed.open(&rig.keys.ring).expect("an answer is signed by the node");
        let answer: Answer = codec::decode(opened.payload).unwrap();
        let Some(sent) = self.sent.get_mut(&answer.cause) else { return };
        match answer.reply {
            Reply::Accepted { .. } => sent.was_accepted = true,
            Reply::Outcome { outcome, .. } => match &sent.outcome {
                Some(first) if *first != outcome => {
                    let id = answer.cause;
                    self.contradictions.push(format!("{id}: first {first:?}, then {outcome:?}"));
                }
                Some(_) => {}
                None => {
                    sent.outcome = Some(outcome);
                    self.open.remove(&(sent.sent_at, answer.cause));
                }
            },
            Reply::Refused { code, why } => {
                sent.refused = Some(format!("{code}: {why}"));
                self.open.remove(&(sent.sent_at, answer.cause));
            }
            Reply::Pong { .. }
            | Reply::Fleet(_)
            | Reply::Piece { .. }
            | Reply::Arrivals { .. }
            | Reply::Status(_)
            | Reply::Lines { .. }
            | Reply::Range { .. } => {
                panic!("an intent was answered with a reading");
            }
        }
    }

    fn heard_beat(&mut self, bytes: &[u8]) {
        let sealed = envelope::read(bytes, envelope::ENVELOPE_BYTES_MAX).unwrap();
        self.last_beat = Some(codec::decode(sealed.unverified_payload()).unwrap());
    }
}
