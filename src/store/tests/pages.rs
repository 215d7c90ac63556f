//! The reader of pages against the engine that wrote them.

use redb::{Database, TableDefinition};

use std::ops::ControlFlow;

use crate::store::pages::PageFile;

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
