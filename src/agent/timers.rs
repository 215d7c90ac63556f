//! The agent's deadlines: one ordered set, one sleep.

use std::collections::{BTreeMap, BTreeSet};

/// Deadlines by key, on the boot-time clock. A key has at most one.
#[derive(Debug)]
pub(super) struct Timers<K> {
    by_time: BTreeSet<(u64, K)>,
    by_key: BTreeMap<K, u64>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { by_time: BTreeSet::new(), by_key: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Timers<K> {
    /// Sets the deadline of `key`, in nanoseconds of the boot-time clock; an earlier one is forgotten.
    pub(super) fn set(&mut self, key: K, at_ns: u64) {
        self.cancel(&key);
        self.by_time.insert((at_ns, key.clone()));
        self.by_key.insert(key, at_ns);
    }

    /// Says whether `key` has a deadline.
    pub(super) fn has(&self, key: &K) -> bool {
        self.by_key.contains_key(key)
    }

    /// Forgets the deadline of `key`.
    pub(super) fn cancel(&mut self, key: &K) {
        if let Some(at_ns) = self.by_key.remove(key) {
            self.by_time.remove(&(at_ns, key.clone()));
        }
    }

    /// Returns the next deadline.
    pub(super) fn next(&self) -> Option<u64> {
        self.by_time.first().map(|(at_ns, _)| *at_ns)
    }

    /// Takes one key whose deadline is over.
    pub(super) fn pop(&mut self, now_ns: u64) -> Option<K> {
        if self.next()? > now_ns {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_a_key_has_one() {
        let mut timers = Timers::default();
        timers.set("b", 20);
        timers.set("a", 30);
        timers.set("a", 10);
        timers.set("c", 15);
        timers.cancel(&"c");
        assert_eq!(timers.next(), Some(10));
        assert_eq!(timers.pop(9), None);
        assert_eq!(timers.pop(25), Some("a"));
        assert_eq!(timers.pop(25), Some("b"));
        assert_eq!(timers.next(), None);
    }
}
