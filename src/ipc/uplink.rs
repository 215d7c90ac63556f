//! What agent and uplink say to each other. The uplink connects to the agent's socket; it carries
//! bytes and names, and understands neither.
//!
//! Neither side can flood the other: each may have as many `Publish` or `Delivered` under way as the
//! other has granted by `Credit`, and begins with [`CREDIT_AT_START`]. All else is not counted.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::hello::Hello;

/// The messages a side may have under way before the first `Credit`.
pub const CREDIT_AT_START: u32 = 64;

/// The credit that a side may hold at most; a grant beyond it is cut to it.
pub const CREDIT_MAX: u32 = 1024;

/// The subscriptions that an agent may hold at one time.
pub const SUBSCRIPTIONS_MAX: usize = 64;

/// The longest subject, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 512;

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
    /// Publish bytes, or answer a request at its reply subject. Costs one credit.
    Publish {
        /// Comes back in `Published` or `Refused`.
        ticket: Ticket,
        /// Where to.
        subject: String,
        /// Where an answer should go.
        reply: Option<String>,
        /// The envelope.
        bytes: ByteBuf,
        /// What counts as published.
        confirm: Confirm,
    },
    /// Receive what is published on the subjects that the filters match, until `Unsubscribe`;
    /// kept over the bus's absence.
    Subscribe {
        /// Names it; a repeat replaces the filters.
        ticket: Ticket,
        /// NATS subject filters.
        filters: Vec<String>,
        /// Where to read from.
        from: Source,
    },
    /// Receive no more.
    Unsubscribe {
        /// Which.
        ticket: Ticket,
    },
    /// The agent can take so many further `Delivered`.
    Credit(u32),
}

/// What counts as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    /// Handed to the connection.
    Sent,
    /// The server has read it: a flush came back.
    Flushed,
    /// A stream has stored it.
    Stored,
}

/// Where a subscription reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// What is published from then on.
    Live,
    /// First the last message per subject that the stream retains, then what follows.
    Retained,
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
    /// Connected.
    BusUp {
        /// The server's name.
        server: String,
        /// Its version.
        version: String,
    },
    /// Not connected. The uplink goes on trying.
    BusDown {
        /// Why, for people.
        why: String,
    },
    /// Messages were dropped, since the agent granted no credit for too long.
    Dropped {
        /// By which subscription.
        ticket: Ticket,
        /// How many.
        count: u64,
    },
    /// The uplink can take so many further `Publish`.
    Credit(u32),
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
            subject: "a".into(),
            reply: None,
            bytes: ByteBuf::from(vec![1, 2]),
            confirm: Confirm::Stored,
        };
        assert_eq!(decode::<ToUplink>(&encode(&message).unwrap()).unwrap(), message);
        let message = FromUplink::BusDown { why: "x".into() };
        assert_eq!(decode::<FromUplink>(&encode(&message).unwrap()).unwrap(), message);
    }
}
