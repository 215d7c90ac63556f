//! What can be asked about a slot at once, however far behind the log thread is.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::LogSetup;
use super::lines::{self, Rest};
use super::pipe::{self, Scratch};
use super::queue::Places;
use super::tail::Tail;
use crate::domain::id::InstanceId;

/// The side of a slot that the log thread shares with those who ask.
#[derive(Debug)]
pub(super) struct Face {
    /// Standard output and standard error.
    pub(super) pipes: [OwnedFd; 2],
    shown: Mutex<Shown>,
}

/// What changes of it.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) setup: Arc<LogSetup>,
    /// The lines that were consumed, never those that are still in a pipe.
    pub(super) tail: Tail,
    /// How much was consumed of each pipe.
    pub(super) consumed: Places,
    /// Where the lines of a run begin of which the log thread has not heard yet; `tail` is of the run before.
    begins: Option<Places>,
    /// Those who are told when the next lines are written, as long as they wait.
    waiting: Vec<Weak<Notify>>,
}

impl Shown {
    /// Takes the lines of the run before, where those of the next one begin.
    pub(super) fn turn(&mut self, from: Option<Places>) -> Vec<String> {
        if from.is_none() || self.begins == from {
            self.begins = None;
        }
        self.tail.take()
    }

    /// Tells those who wait for lines.
    pub(super) fn announce(&mut self) {
        for notify in self.waiting.drain(..).filter_map(|waiting| waiting.upgrade()) {
            notify.notify_one();
        }
    }
}

impl Face {
    pub(super) fn new(setup: LogSetup, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        let shown = Shown {
            setup: Arc::new(setup),
            tail: Tail::default(),
            consumed: [0; 2],
            begins: None,
            waiting: Vec::new(),
        };
        Self { pipes: [stdout, stderr], shown: Mutex::new(shown) }
    }

    /// Held only while lines move from a pipe to the tail, never while a file is written.
    pub(super) fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the places behind all that was written so far.
    fn ends(&self) -> Places {
        // Bytes leave a pipe only under the lock. A pipe that cannot be asked is told by the log thread.
        let shown = self.lock();
        let consumed = shown.consumed;
        std::array::from_fn(|at| consumed[at] + pipe::queued(&self.pipes[at]).unwrap_or(0) as u64)
    }

    /// Returns the last lines: those that were consumed and those that are still in the pipes.
    fn last_lines(&self, scratch: &mut Scratch, bytes: &mut Vec<u8>) -> Vec<String> {
        let shown = self.lock();
        let keep = usize::from(shown.setup.spec.tail_lines);
        let mut tail = match shown.begins {
            // Nothing of the run was consumed.
            Some(from) if (0..2).all(|at| shown.consumed[at] <= from[at]) => Tail::default(),
            Some(_) | None => shown.tail.clone(),
        };
        let mut pieces = Vec::new();
        for (at, pipe) in self.pipes.iter().enumerate() {
            pieces.clear();
            // A pipe that cannot be read is told by the log thread; here it only has no lines.
            if let Ok(Some(_)) = scratch.look(pipe, bytes) {
                let before =
                    shown.begins.map_or(0, |from| from[at].saturating_sub(shown.consumed[at]));
                let before = usize::try_from(before).unwrap_or(usize::MAX).min(bytes.len());
                bytes.drain(..before);
                lines::split(bytes, shown.setup.max_line(), Rest::Line, &mut pieces);
            }
            for piece in &pieces[pieces.len().saturating_sub(keep)..] {
                tail.push(&shown.setup.redacted(&bytes[piece.text.clone()]), keep);
            }
        }
        tail.take()
    }
}

#[derive(Debug, Default)]
struct Known {
    faces: BTreeMap<InstanceId, Arc<Face>>,
    /// A pipe of its own, since the log thread may be in the middle of something with its.
    scratch: Option<Scratch>,
    bytes: Vec<u8>,
}

/// The faces of all slots.
#[derive(Debug, Default)]
pub(super) struct Faces(Mutex<Known>);

impl Faces {
    pub(super) fn insert(&self, slot: InstanceId, face: Arc<Face>) {
        self.lock().faces.insert(slot, face);
    }

    pub(super) fn remove(&self, slot: &InstanceId) {
        self.lock().faces.remove(slot);
    }

    /// Says that what is written to a slot from here on is of another run, and returns the places behind all before.
    pub(super) fn begin(&self, slot: &InstanceId) -> Places {
        let from = self.ends(slot);
        if let Some(face) = self.lock().faces.get(slot) {
            face.lock().begins = Some(from);
        }
        from
    }

    /// Returns the last lines of a slot's present run, oldest first; none for an unknown slot.
    pub(super) fn last_lines(&self, slot: &InstanceId) -> Vec<String> {
        let mut known = self.lock();
        let Known { faces, scratch, bytes } = &mut *known;
        let Some(face) = faces.get(slot) else { return Vec::new() };
        if scratch.is_none() {
            *scratch = Scratch::new().ok();
        }
        match scratch {
            Some(scratch) => face.last_lines(scratch, bytes),
            None => face.lock().tail.clone().take(),
        }
    }

    /// Has somebody told when the next lines of a slot are written.
    pub(super) fn tell(&self, slot: &InstanceId, notify: &Arc<Notify>) {
        if let Some(face) = self.lock().faces.get(slot) {
            let waiting = &mut face.lock().waiting;
            waiting.retain(|waiting| waiting.strong_count() > 0);
            waiting.push(Arc::downgrade(notify));
        }
    }

    /// Returns the places behind all that was written to a slot's pipes so far.
    pub(super) fn ends(&self, slot: &InstanceId) -> Places {
        self.lock().faces.get(slot).map_or([0; 2], |face| face.ends())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
