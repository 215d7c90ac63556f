//! Facts of rollouts that are longer than a row may be: cut into pieces that stand one behind the other in one log.
//!
//! A fact over 10,000 nodes names each of them. Whoever reads the log puts the pieces together again, and has the fact
//! where the last piece stands; a piece alone, as after a crash between two commits, is nothing that happened.

use serde_bytes::ByteBuf;

use super::codec;
use super::key::digest_of;
use crate::domain::event::Event;
use crate::domain::rollout::{RolloutEvent, RolloutFact, RolloutPart};

/// The bytes of a fact in one piece: with what an envelope says beside them they fit a row.
const PART_BYTES: usize = 48 * 1024;

/// The pieces of one fact at most: some 40,000 nodes.
pub const PARTS_MAX: usize = 64;

/// Says that a fact is longer than even many rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fact of {bytes} bytes needs more than {PARTS_MAX} events")]
pub struct TooLong {
    /// How long it is.
    pub bytes: usize,
}

/// Cuts a fact where that is needed.
///
/// # Errors
/// When it is too long even so.
pub fn cut(fact: RolloutFact) -> Result<Vec<RolloutFact>, TooLong> {
    let rollout = fact.rollout;
    let (whole, cause) = (fact.kind(), fact.event.cause().clone());
    let event = Event::Rollout(Box::new(fact));
    let bytes = codec::encode_body(&event);
    let count = bytes.len().div_ceil(PART_BYTES);
    if count > PARTS_MAX {
        return Err(TooLong { bytes: bytes.len() });
    }
    let Event::Rollout(fact) = event else { unreachable!("it was made above") };
    if count <= 1 {
        return Ok(vec![*fact]);
    }
    let digest = digest_of(&bytes);
    let parts = u16::try_from(count).expect("bounded by PARTS_MAX");
    let part = |(part, bytes): (u16, &[u8])| RolloutPart {
        cause: cause.clone(),
        whole: whole.to_owned(),
        digest,
        part,
        parts,
        bytes: bytes.to_vec(),
    };
    let pieces = (0..).zip(bytes.chunks(PART_BYTES)).map(part);
    Ok(pieces.map(|part| RolloutFact { rollout, event: RolloutEvent::Part(part) }).collect())
}

/// Puts the pieces of one log together.
#[derive(Debug, Default)]
pub struct Joiner {
    /// What came of a fact that is not whole.
    begun: Option<(RolloutPart, ByteBuf)>,
}

impl Joiner {
    /// Takes the next fact of the log; returns it, or the one that it completes, or nothing while pieces are missing.
    pub fn take(&mut self, fact: RolloutFact) -> Option<RolloutFact> {
        let RolloutFact { rollout, event } = fact;
        let part = match event {
            RolloutEvent::Part(part) => part,
            // Pieces stand together: what came before this is of a fact that was never written whole.
            event => {
                self.begun = None;
                return Some(RolloutFact { rollout, event });
            }
        };
        let (last, bytes) = match self.begun.take() {
            Some((last, mut bytes)) if follows(&last, &part) => {
                bytes.extend_from_slice(&part.bytes);
                (RolloutPart { part: part.part, ..last }, bytes)
            }
            _ if part.part == 0 && usize::from(part.parts) <= PARTS_MAX => {
                let bytes = ByteBuf::from(part.bytes);
                (RolloutPart { bytes: Vec::new(), ..part }, bytes)
            }
            _ => return None,
        };
        if last.part + 1 < last.parts {
            self.begun = Some((last, bytes));
            return None;
        }
        if digest_of(&bytes) != last.digest {
            return None;
        }
        match codec::decode_body(&last.whole, &bytes) {
            Ok(Some(Event::Rollout(fact)))
                if fact.rollout == rollout && !matches!(fact.event, RolloutEvent::Part(_)) =>
            {
                Some(*fact)
            }
            _ => None,
        }
    }
}

fn follows(last: &RolloutPart, next: &RolloutPart) -> bool {
    last.part + 1 == next.part
        && (last.parts, last.digest, &last.whole) == (next.parts, next.digest, &next.whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::IntentId;
    use crate::domain::rollout::{LateJoined, Step, WaveKind, WaveStarted, Why};
    use crate::domain::time::UnixMicros;

    const ROLLOUT: IntentId = IntentId([3; 16]);

    fn wave(nodes: usize) -> RolloutFact {
        let nodes = (0..nodes).map(|number| format!("node-{number}").parse().unwrap()).collect();
        let event = RolloutEvent::WaveStarted(WaveStarted {
            cause: Why::Time,
            wave: 1,
            step: Step::Apply,
            kind: WaveKind::Batch,
            nodes,
            until: UnixMicros(1),
        });
        RolloutFact { rollout: ROLLOUT, event }
    }

    fn small() -> RolloutFact {
        let joined = LateJoined { cause: Why::Time, node: "n1".parse().unwrap() };
        RolloutFact { rollout: ROLLOUT, event: RolloutEvent::LateJoined(joined) }
    }

    fn joined(facts: impl IntoIterator<Item = RolloutFact>) -> Vec<RolloutFact> {
        let mut joiner = Joiner::default();
        facts.into_iter().filter_map(|fact| joiner.take(fact)).collect()
    }

    #[test]
    fn a_fact_over_ten_thousand_nodes_stands_in_several_events_and_is_one_again() {
        let parts = cut(wave(10_000)).unwrap();
        assert!(parts.len() > 1);
        for part in &parts {
            let row = codec::encode_body(&Event::Rollout(Box::new(part.clone())));
            assert!(row.len() + 8 * 1024 <= super::super::envelope::ENVELOPE_BYTES_MAX);
        }
        assert_eq!(joined(parts), [wave(10_000)]);
        assert_eq!(cut(wave(3)).unwrap(), [wave(3)]);
    }

    #[test]
    fn pieces_of_a_fact_that_is_not_whole_are_nothing_that_happened() {
        let parts = cut(wave(20_000)).unwrap();
        assert!(parts.len() > 2);
        assert_eq!(joined(parts[1..].iter().cloned()), []);
        let cut_off = parts[..2].iter().cloned().chain([small()]).chain(parts[2..].iter().cloned());
        assert_eq!(joined(cut_off), [small()]);
        let again = parts[..2].iter().cloned().chain(parts.iter().cloned());
        assert_eq!(joined(again), [wave(20_000)]);
        let mut changed = parts;
        if let RolloutEvent::Part(part) = &mut changed[1].event {
            part.bytes[9] ^= 1;
        }
        assert_eq!(joined(changed), []);
    }

    #[test]
    fn a_fact_that_would_need_very_many_events_is_refused() {
        assert!(matches!(cut(wave(400_000)), Err(TooLong { .. })));
    }
}
