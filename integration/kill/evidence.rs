//! What three witnesses say after a run: the log, the services' own tally, and the services' log files.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use smgr::domain::event::{Event, Exit, Outcome};
use smgr::domain::id::{Digest, IntentId, Seq};
use smgr::domain::intent::Action;
use smgr::domain::node::Node;
use smgr::domain::time::UnixMicros;
use smgr::store::LogReader;
use smgr::wire::codec;
use smgr::wire::envelope;
use smgr::wire::fold::{Fold, state_hash};
use smgr::wire::payload::{Body, EventRecord};

/// The main process of a run: the service, and the number of the run. Those of processes come round again.
pub(super) type Process = (String, u64);

/// All that is judged.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// From the log: each acceptance, in order.
    pub(super) accepted: Vec<(IntentId, Action)>,
    /// From the log: each outcome, in order.
    pub(super) outcomes: Vec<(IntentId, Outcome, UnixMicros)>,
    /// From the log: each start of a main process.
    pub(super) started: Vec<Process>,
    /// From the log: each end of one.
    pub(super) exited: Vec<(Process, Exit, UnixMicros)>,
    /// From the log: lines that it admits to have dropped.
    pub(super) dropped_lines: u64,
    /// From the tally: each execution of an action, by the number that it was given.
    pub(super) acts: Vec<String>,
    /// From the tally: signals that were taken, by service.
    pub(super) signals: BTreeMap<String, u64>,
    /// From the tally: each start of a process.
    pub(super) starts: Vec<Process>,
    /// From the tally: processes that found another of their name alive.
    pub(super) doubles: Vec<Process>,
    /// From the tally: each end, with its code and how many lines were written.
    pub(super) ends: Vec<(Process, i32, u32)>,
    /// From the files: the numbers of the lines of each process, in order.
    pub(super) lines: BTreeMap<Process, Vec<u32>>,
}

impl Evidence {
    /// Adds what the log says; returns the hash of its fold after `until`, and of all of it.
    pub(super) fn read_log(&mut self, log: &Path, until: Seq) -> (Option<Digest>, Digest) {
        let mut node = Node::default();
        let mut at_beat = None;
        LogReader::new(log)
            .rows(None, |at, row| {
                self.take_row(row);
                let mut fold = Fold::new(&mut node);
                let flow = fold.row(at.seq, row);
                assert_eq!(fold.broken, None, "the log does not follow");
                if at.seq == until {
                    at_beat = Some(state_hash(&node));
                }
                assert_eq!(flow, ControlFlow::Continue(()));
                flow
            })
            .unwrap();
        (at_beat, state_hash(&node))
    }

    fn take_row(&mut self, row: &[u8]) {
        let sealed = envelope::read(row, row.len()).unwrap();
        let record: EventRecord = codec::decode(sealed.unverified_payload()).unwrap();
        let Body::Known(event) = record.event().unwrap() else { return };
        let process = || (record.service.as_ref().unwrap().to_string(), record.run.unwrap().0);
        #[expect(clippy::wildcard_enum_match_arm, reason = "the others are judged by the fold")]
        match event {
            Event::IntentAccepted(body) => self.accepted.push((body.intent, body.action)),
            Event::IntentExecuted(body) => {
                self.outcomes.push((body.intent, body.outcome, record.at));
            }
            Event::InstanceStarted(_) => self.started.push(process()),
            Event::InstanceExited(body) => {
                self.exited.push((process(), body.exit, record.at));
            }
            Event::LinesDropped(body) => self.dropped_lines += body.lines,
            _ => {}
        }
    }

    /// Adds what the services counted themselves.
    pub(super) fn read_tally(&mut self, tally: &str) {
        for line in tally.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let process = || (words[1].to_owned(), words[2].parse().unwrap());
            match words[0] {
                "act" => self.acts.push(words[1].to_owned()),
                "sig" => *self.signals.entry(words[1].to_owned()).or_default() += 1,
                "start" => self.starts.push(process()),
                "double" => self.doubles.push(process()),
                "exit" => {
                    self.ends.push((
                        process(),
                        words[3].parse().unwrap(),
                        words[4].parse().unwrap(),
                    ));
                }
                _ => panic!("a service counted `{line}`"),
            }
        }
    }

    /// Adds what stands in the log files of the services.
    pub(super) fn read_lines(&mut self, logs: &Path) {
        for service in fs::read_dir(logs).unwrap().flatten() {
            for file in files_below(&service.path()) {
                let text = fs::read_to_string(&file).unwrap();
                for line in text.lines() {
                    let Some((_, said)) = line.split_once("line ") else { continue };
                    let words: Vec<&str> = said.split(' ').collect();
                    let [name, run, number] = words[..] else { panic!("a torn line: {line}") };
                    let process = (name.to_owned(), run.parse().unwrap());
                    self.lines.entry(process).or_default().push(number.parse().unwrap());
                }
            }
        }
    }
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}
