//! What agent and uplink say to each other. The uplink connects to the agent's socket; it carries
//! bytes and names, and understands neither.
//!
//! Neither side can flood the other: each may have as many `Publish` or `Delivered` under way as the
//! other has granted by `Credit`, and begins with [`CREDIT_AT_START`]. All else is not counted.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::hello::Hello;
use crate::domain::id::{FleetId, Principal};

/// The messages a side may have under way before the first `Credit`.
pub const CREDIT_AT_START: u32 = 64;

/// The credit that a side may hold at most; a grant beyond it is cut to it.
pub const CREDIT_MAX: u32 = 1024;

/// The subscriptions that an agent may hold at one time.
pub const SUBSCRIPTIONS_MAX: usize = 64;

/// The filters of one subscription.
pub const FILTERS_MAX: usize = 16;

/// Names a subscription or a publication; chosen by the agent, unique within a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(pub u64);

/// Agent to uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToUplink {
    /// The first frame.
    Hello(Hello),
    /// Which bus to connect to. Subscriptions begin after it; a different one ends them.
    Configure(BusConfig),
    /// Publish bytes, or answer a request at its inbox. Costs one credit.
    ///
    /// What is sent while the bus is up is published in order.
    Publish {
        /// Comes back in `Published` or `Refused`.
        ticket: Ticket,
        /// A subject, or the inbox of a principal.
        to: String,
        /// The envelope.
        bytes: ByteBuf,
        /// How long it may wait for a bus that is down, in milliseconds. 0 for what can be fetched later: a live
        /// event. For an answer the time that its caller still waits.
        keep_ms: u32,
        /// What is told of it.
        confirm: Confirm,
    },
    /// Receive what is published on the subjects that the filters match, until `Unsubscribe`;
    /// kept over the bus's absence.
    Subscribe {
        /// Names it; a repeat replaces the filters.
        ticket: Ticket,
        /// The filters, as text.
        filters: Vec<String>,
    },
    /// Receive no more.
    Unsubscribe {
        /// Which.
        ticket: Ticket,
    },
    /// Fetch a URL into the one descriptor that comes with this, a pipe, and close it at the end. `Published` follows, or
    /// `Refused` with the reason. The uplink is believed nothing: whoever reads the pipe knows what has to come.
    Fetch {
        /// Comes back in `Published` or `Refused`.
        ticket: Ticket,
        /// `http://HOST[:PORT]/PATH`.
        url: String,
        /// No more than this is read, in bytes.
        bytes_max: u64,
    },
    /// The agent can take so many further `Delivered`.
    Credit(u32),
}

/// Which bus, and who the node is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusConfig {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`; none means that there is no bus.
    pub urls: Vec<String>,
    /// How the node proves to the server who it is.
    pub credentials: BusCredentials,
    /// The only authorities that are trusted with `tls://`, as a PEM file; `None` means those of the system.
    pub ca: Option<PathBuf>,
    /// The node's certificate and its key, as PEM files.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Under whose inbox the node is answered.
    pub principal: Principal,
    /// The fleet whose events a stream of the server should retain, for stock consumers. Best effort.
    pub retain_events: Option<FleetId>,
}

/// Proves to the server who the node is. Never the key that signs envelopes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BusCredentials {
    /// Nothing is shown.
    Anonymous,
    /// An NKey seed.
    NkeySeed(String),
    /// The text of a `.creds` file.
    Creds(String),
}

impl fmt::Debug for BusCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::NkeySeed(_) => "NkeySeed([redacted])",
            Self::Creds(_) => "Creds([redacted])",
        })
    }
}

/// What the agent is told of a publication that came to something. What came to nothing is always `Refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    /// Nothing.
    Nothing,
    /// `Published`, when it was handed to the connection.
    Sent,
    /// `Published`, when the server has read it: a flush came back.
    Flushed,
}

/// Uplink to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromUplink {
    /// The first frame.
    Hello(Hello),
    /// A message came. Costs one credit.
    Delivered {
        /// By which subscription.
        ticket: Ticket,
        /// On which subject.
        subject: String,
        /// Where an answer should go.
        reply: Option<String>,
        /// The envelope, at most 1 MiB with its frame.
        bytes: ByteBuf,
    },
    /// A publication reached what its `confirm` asked for.
    Published {
        /// Which.
        ticket: Ticket,
    },
    /// A publication or subscription came to nothing.
    Refused {
        /// Which.
        ticket: Ticket,
        /// Why, for people.
        why: String,
    },
    /// Connected. Sent after every `Configure` and at every change.
    BusUp {
        /// The server's version.
        version: String,
        /// Counts the connections: a higher one than before means that messages may have been missed between.
        session: u64,
        /// Says whether the server had to prove its name.
        encrypted: bool,
    },
    /// Not connected. The uplink goes on trying.
    BusDown {
        /// Why, for people.
        why: String,
    },
    /// Messages were not delivered. Counted since the last such frame; at most one frame a second.
    Dropped(DropCounts),
    /// The uplink can take so many further `Publish`.
    Credit(u32),
}

/// Why messages were not delivered, and how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCounts {
    /// They were no envelopes of this version, by their first two bytes.
    pub malformed: u64,
    /// They were larger than any that is read.
    pub oversize: u64,
    /// The agent granted no credit, or the bus was faster than this part. At least so many.
    pub overflow: u64,
}

/// Counts what may still be sent.
#[derive(Debug)]
pub struct Credit {
    left: u32,
}

impl Default for Credit {
    fn default() -> Self {
        Self { left: CREDIT_AT_START }
    }
}

impl Credit {
    /// Takes one; says whether there was one.
    pub fn take(&mut self) -> bool {
        let had = self.left > 0;
        self.left = self.left.saturating_sub(1);
        had
    }

    /// Adds what the other side granted.
    pub fn grant(&mut self, count: u32) {
        self.left = self.left.saturating_add(count).min(CREDIT_MAX);
    }

    /// Returns what is left.
    pub fn left(&self) -> u32 {
        self.left
    }
}

/// Counts what was taken in, and says when to grant again: in halves, not one by one.
#[derive(Debug, Default)]
pub struct Granting {
    taken: u32,
}

impl Granting {
    /// Counts one message as dealt with; returns the grant that is due.
    pub fn done(&mut self) -> Option<u32> {
        self.taken += 1;
        (self.taken >= CREDIT_AT_START / 2).then(|| std::mem::take(&mut self.taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::frame::{decode, encode};

    #[test]
    fn no_more_is_sent_than_was_granted() {
        let mut credit = Credit::default();
        let mut granting = Granting::default();
        for _ in 0..CREDIT_AT_START {
            assert!(credit.take());
        }
        assert!(!credit.take());
        let granted = (0..CREDIT_AT_START / 2).find_map(|_| granting.done()).unwrap();
        credit.grant(granted);
        assert_eq!(credit.left(), CREDIT_AT_START / 2);
        credit.grant(u32::MAX);
        assert_eq!(credit.left(), CREDIT_MAX);
    }

    #[test]
    fn every_message_reads_what_it_wrote() {
        let message = ToUplink::Publish {
            ticket: Ticket(1),
            to: "a".into(),
            bytes: ByteBuf::from(vec![1, 2]),
            keep_ms: 0,
            confirm: Confirm::Flushed,
        };
        assert_eq!(decode::<ToUplink>(&encode(&message).unwrap()).unwrap(), message);
        let message = ToUplink::Configure(BusConfig {
            urls: vec!["tls://a".into()],
            credentials: BusCredentials::NkeySeed("SU".into()),
            ca: Some("/etc/ca.pem".into()),
            client: None,
            principal: "n1".parse().unwrap(),
            retain_events: None,
        });
        assert_eq!(decode::<ToUplink>(&encode(&message).unwrap()).unwrap(), message);
        let message = FromUplink::Dropped(DropCounts { malformed: 1, oversize: 2, overflow: 3 });
        assert_eq!(decode::<FromUplink>(&encode(&message).unwrap()).unwrap(), message);
    }
}
