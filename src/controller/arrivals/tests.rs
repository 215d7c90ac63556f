use super::*;
use crate::domain::id::FleetId;
use crate::store::{LogNotice, LogOptions, Opened, Writer};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const EPOCH: EpochId = EpochId(7 << 16);

struct Disk {
    _writer: Writer,
    notices: Receiver<LogNotice>,
    arrivals: Arrivals,
    seen: Vec<(EventId, Vec<u8>)>,
}

fn open(dir: &Path) -> Disk {
    let (fleet, origin): (FleetId, NodeId) = ("local".parse().unwrap(), "c1".parse().unwrap());
    let options = LogOptions { reserve_bytes: 0, ..LogOptions::new(dir, fleet, origin) };
    let writer = Writer::start().unwrap();
    let (to, notices) = channel();
    let told = move |notice| drop(to.send(notice));
    let log = match Log::open(options, &writer, None, told).unwrap() {
        Opened::Continues(log) => log,
        Opened::NeedsEpoch(vacant) => vacant.begin(EpochId(1 << 16)).unwrap(),
    };
    let mut seen = Vec::new();
    let arrivals =
        Arrivals::fold(log, |id, event| seen.push((id.clone(), event.to_vec()))).unwrap();
    Disk { _writer: writer, notices, arrivals, seen }
}

impl Disk {
    fn append(&mut self, origin: &str, first: u64, events: &[&[u8]]) {
        let events = events.iter().map(|event| ByteBuf::from(event.to_vec())).collect();
        self.arrivals.append(&origin.parse().unwrap(), EPOCH, Seq(first), events).unwrap();
        let wanted = self.arrivals.next_row.0 - 1;
        loop {
            let notice = self.notices.recv_timeout(Duration::from_secs(20)).unwrap();
            if let LogNotice::Durable { seq, .. } = notice {
                self.arrivals.durable(seq);
                if seq.0 >= wanted {
                    return;
                }
            }
        }
    }

    fn stream(&self, after: u64, events_max: usize) -> (u64, Vec<Vec<u8>>) {
        let (first, rows) = self.arrivals.stream(after).read(events_max, 1 << 20).unwrap();
        (first, rows.into_iter().map(ByteBuf::into_vec).collect())
    }

    fn copy(&self, origin: &str, after: u64) -> Vec<Vec<u8>> {
        let origin: NodeId = origin.parse().unwrap();
        let after = EventId { origin: origin.clone(), epoch: EPOCH, seq: Seq(after) };
        let after = Some(&after).filter(|after| after.seq.0 > 0);
        let copied = self.arrivals.copy(&origin, after).unwrap();
        let (_, _, rows) = copied.read(100, 1 << 20).unwrap();
        rows.into_iter().map(ByteBuf::into_vec).collect()
    }
}

#[test]
fn what_arrived_is_given_in_its_order_and_log_by_log_and_survives_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let whole: &[u8] = &vec![9; ROW_BYTES_MAX];
    let mut disk = open(temp.path());
    disk.append("n1", 1, &[b"a", b"b"]);
    disk.append("n2", 1, &[b"x", whole]);
    disk.append("n1", 3, &[b"c"]);
    for round in 0..2 {
        let all: Vec<&[u8]> = vec![b"a", b"b", b"x", whole, b"c"];
        for after in 0..=5 {
            let (first, rows) = disk.stream(after as u64, 100);
            assert_eq!(
                (first, rows),
                (after as u64 + 1, all[after..].iter().map(|e| e.to_vec()).collect())
            );
        }
        assert_eq!(disk.stream(1, 2), (2, vec![b"b".to_vec(), b"x".to_vec()]));
        assert_eq!(disk.copy("n1", 0), [b"a", b"b", b"c"]);
        assert_eq!(disk.copy("n1", 2), [b"c"]);
        assert!(disk.copy("n1", 3).is_empty());
        assert_eq!(disk.copy("n2", 1), [whole]);
        let mark = disk.arrivals.mark(&"n1".parse().unwrap()).unwrap().clone();
        assert_eq!(mark.seq(), Seq(3));
        if round == 0 {
            drop(disk);
            disk = open(temp.path());
            assert_eq!(disk.seen.len(), 5);
            assert_eq!(*disk.arrivals.mark(&"n1".parse().unwrap()).unwrap(), mark);
        }
    }
}

#[test]
fn a_segment_that_begins_with_marks_goes_on_where_the_one_before_ended() {
    let temp = tempfile::tempdir().unwrap();
    let mut disk = open(temp.path());
    disk.append("n1", 1, &[b"a"]);
    disk.arrivals.roll().unwrap();
    disk.append("n1", 2, &[b"b"]);
    drop(disk);
    let disk = open(temp.path());
    assert_eq!(disk.stream(0, 9).1, [b"a", b"b"]);
    assert_eq!(disk.copy("n1", 1), [b"b"]);
}
