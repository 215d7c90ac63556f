//! The reader of pages against the engine that wrote them.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use redb::{Database, TableDefinition};

use crate::store::ahead;
use crate::store::pages::{PageFault, PageFile};

const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");

fn row(n: u64) -> Vec<u8> {
    // Every length class of the checksum, and rows that need a page of their own.
    let len = if n.is_multiple_of(97) { 9000 } else { n as usize % 300 };
    vec![n as u8; len]
}

#[test]
fn what_redb_wrote_is_read_page_by_page_with_every_checksum_right() {
    let dir = tempfile::tempdir().unwrap();
    for rows in [1, 2, 3, 10, 40, 3000] {
        let path = dir.path().join(format!("{rows}.redb"));
        let mut database = Some(Database::create(&path).unwrap());
        for batch in (1..=rows).collect::<Vec<u64>>().chunks(500) {
            let change = database.as_ref().unwrap().begin_write().unwrap();
            let mut table = change.open_table(ROWS).unwrap();
            batch.iter().for_each(|n| drop(table.insert(n, row(*n).as_slice()).unwrap()));
            drop(table);
            let mut names = change.open_table(NAMES).unwrap();
            drop(names.insert("head", row(rows).as_slice()).unwrap());
            drop(names);
            change.commit().unwrap();
        }
        for state in ["live", "closed"] {
            let pages = PageFile::open(&path).unwrap().unwrap();
            assert_eq!(pages.faults(), [], "{rows} rows, {state}");
            let mut next = 1;
            let faults = pages.walk("rows", None, |leaf| {
                assert!(leaf.entries(|key, value| {
                    assert_eq!(key, u64::to_le_bytes(next));
                    assert_eq!(value, row(next));
                    next += 1;
                    ControlFlow::Continue(())
                }));
                ControlFlow::Continue(())
            });
            assert_eq!(faults.unwrap(), []);
            assert_eq!(next, rows + 1);
            drop(database.take());
        }
    }
}

/// What a walk gave: for each leaf its place, whether it is sound, and its rows; and then the faults.
type Walked = (Vec<(u64, bool, Vec<Vec<u8>>)>, Vec<PageFault>);

/// Walks over a file in both ways, up to so many leaves.
fn both_ways(path: &Path, leaves_max: usize) -> Option<[Walked; 2]> {
    let pages = PageFile::open(path).unwrap().ok()?;
    let [mut stepwise, mut read_ahead] = [Vec::new(), Vec::new()];
    let more = |have: &Vec<_>| match have.len() < leaves_max {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    };
    let rows = |leaf: &crate::store::btree::Leaf<'_>| {
        let mut rows = Vec::new();
        leaf.entries(|_, row| {
            rows.push(row.to_vec());
            ControlFlow::Continue(())
        });
        rows
    };
    let faults = pages.walk("rows", None, |leaf| {
        stepwise.push((leaf.offset, leaf.is_sound, rows(leaf)));
        more(&stepwise)
    });
    let later = ahead::walk(&pages, "rows", None, rows, |leaf, prepared| {
        assert_eq!(prepared, rows(leaf));
        read_ahead.push((leaf.offset, leaf.is_sound, prepared));
        more(&read_ahead)
    });
    Some([(stepwise, faults.unwrap()), (read_ahead, later.unwrap())])
}

#[test]
fn pages_that_are_read_ahead_are_those_that_are_read_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.redb");
    let database = Database::create(&path).unwrap();
    let change = database.begin_write().unwrap();
    let mut table = change.open_table(ROWS).unwrap();
    (1..=20_000).for_each(|n| drop(table.insert(n, row(n).as_slice()).unwrap()));
    drop(table);
    change.commit().unwrap();
    drop(database);
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() > 4 << 20, "{} bytes are not worth a thread", whole.len());

    let [stepwise, read_ahead] = both_ways(&path, usize::MAX).unwrap();
    assert_eq!(stepwise.0.iter().map(|leaf| leaf.2.len()).sum::<usize>(), 20_000);
    assert_eq!(stepwise, read_ahead);
    for leaves_max in [1, 2, 100] {
        let [stepwise, read_ahead] = both_ways(&path, leaves_max).unwrap();
        assert_eq!((stepwise.0.len(), stepwise.0), (leaves_max, read_ahead.0));
    }
    for nth in 0..40 {
        let mut flipped = whole.clone();
        flipped[nth * (whole.len() / 41) + 4096 + nth] ^= 1;
        fs::write(&path, flipped).unwrap();
        let Some([stepwise, read_ahead]) = both_ways(&path, usize::MAX) else { continue };
        assert_eq!(stepwise, read_ahead, "flip {nth}");
    }
}
