//! Reading ahead: a thread reads and checks pages while the caller is busy with the rows of those before.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, scope};

use crate::store::btree::{Leaf, Shape};
use crate::store::pages::{PageFault, PageFile};

/// How much is handed over at once: a thread is woken for each, which takes as long as a hundred rows.
const BATCH_BYTES: usize = 512 << 10;

/// How many batches wait for the caller: enough that neither side waits for a hiccup of the other.
const BATCHES_MAX: usize = 3;

/// The size of a file below which its rows are read before a thread has begun.
const WORTHWHILE_BYTES: u64 = 1 << 20;

/// How the pages of a file are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// One after the other, as they are asked for: for whoever wants a few rows.
    Stepwise,
    /// By a thread of their own: for whoever wants them all.
    Ahead,
}

/// Does what [`PageFile::walk`] does, and gives `visit` what `prepare` made of the leaf on the other thread.
pub(crate) fn walk<T: Send>(
    pages: &PageFile,
    table: &str,
    from: Option<u64>,
    prepare: impl Fn(&Leaf<'_>) -> T + Sync,
    mut visit: impl FnMut(&Leaf<'_>, T) -> ControlFlow<()>,
) -> io::Result<Vec<PageFault>> {
    if pages.len() < WORTHWHILE_BYTES {
        return pages.walk(table, from, |leaf| visit(leaf, prepare(leaf)));
    }
    scope(|threads| {
        let (batches, filled) = sync_channel(BATCHES_MAX);
        let (give_back, emptied) = sync_channel(BATCHES_MAX);
        let prepare = &prepare;
        let read = move || fill(&batches, &emptied, pages, table, from, prepare);
        let reader = Builder::new().name("read-ahead".to_owned()).spawn_scoped(threads, read)?;
        for mut batch in &filled {
            if batch.give(&mut visit).is_break() {
                break;
            }
            // What does not fit goes away; the reader makes another one.
            drop(give_back.try_send(batch));
        }
        // Without anybody to take its batches the reader ends.
        drop(filled);
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn fill<T>(
    batches: &SyncSender<Batch<T>>,
    emptied: &Receiver<Batch<T>>,
    pages: &PageFile,
    table: &str,
    from: Option<u64>,
    prepare: impl Fn(&Leaf<'_>) -> T,
) -> io::Result<Vec<PageFault>> {
    let mut batch = Batch::default();
    let faults = pages.walk(table, from, |leaf| {
        batch.keep(leaf, prepare(leaf));
        if batch.bytes.len() < BATCH_BYTES {
            return ControlFlow::Continue(());
        }
        let next = emptied.try_recv().unwrap_or_default();
        match batches.send(std::mem::replace(&mut batch, next)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    drop(batches.send(batch));
    faults
}

/// Copies of leaves, one after the other.
struct Batch<T> {
    bytes: Vec<u8>,
    leaves: Vec<Kept<T>>,
}

/// A leaf whose page is in a batch.
struct Kept<T> {
    offset: u64,
    is_sound: bool,
    shape: Shape,
    page: Range<usize>,
    prepared: T,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { bytes: Vec::new(), leaves: Vec::new() }
    }
}

impl<T> Batch<T> {
    fn keep(&mut self, leaf: &Leaf<'_>, prepared: T) {
        let Leaf { offset, is_sound, page, shape } = *leaf;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(page);
        let page = start..self.bytes.len();
        self.leaves.push(Kept { offset, is_sound, shape, page, prepared });
    }

    /// Gives `visit` the leaves, and is empty after that.
    fn give(&mut self, visit: &mut impl FnMut(&Leaf<'_>, T) -> ControlFlow<()>) -> ControlFlow<()> {
        for Kept { offset, is_sound, shape, page, prepared } in self.leaves.drain(..) {
            let leaf = Leaf { offset, is_sound, shape, page: &self.bytes[page] };
            visit(&leaf, prepared)?;
        }
        self.bytes.clear();
        ControlFlow::Continue(())
    }
}
