//! The log thread on real pipes, and the loss of the process that it runs in.

mod kill;
mod limits;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::pipe::PipeFlags;
use tempfile::TempDir;

use super::*;
use crate::domain::spec::{
    Alert, AlertOn, AlertStream, Compress, Log, LogFormat, Millis, OnFull, Severity,
};
use crate::domain::template::Template;

/// How long a test waits for what must come; far beyond what it takes.
const SOON: Duration = Duration::from_secs(20);

/// A slot with pipes, as the keeper makes them, and a log thread.
struct Bench {
    dir: TempDir,
    thread: LogThread,
    notices: mpsc::Receiver<LogNotice>,
    stdout: File,
    stderr: File,
    ends: [OwnedFd; 2],
}

fn slot() -> InstanceId {
    InstanceId { service: "web".parse().unwrap(), index: 0 }
}

fn default_log() -> Log {
    Log::new(Template::default())
}

/// Opens both ends of a pipe in one descriptor, as the keeper does.
fn both_ends() -> OwnedFd {
    let (reader, _writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    File::options().read(true).write(true).open(path).unwrap().into()
}

impl Bench {
    fn new(spec: &Log) -> Self {
        Self::in_folder(spec, |dir| dir.join("log"))
    }

    fn in_folder(spec: &Log, folder: impl Fn(&Path) -> PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = LogSetup::new(spec, &BTreeMap::new(), folder(dir.path())).unwrap();
        Self::with(setup, dir)
    }

    fn with(setup: LogSetup, dir: TempDir) -> Self {
        let (told, notices) = mpsc::channel();
        let thread = LogThread::start(move |notice| drop(told.send(notice))).unwrap();
        let ends = [both_ends(), both_ends()];
        let [stdout, stderr] = ends.each_ref().map(|end| File::from(end.try_clone().unwrap()));
        let [one, other] = ends.each_ref().map(|end| end.try_clone().unwrap());
        thread.handle().attach(slot(), setup, one, other).unwrap();
        Self { dir, thread, notices, stdout, stderr, ends }
    }

    fn say(&mut self, text: &str) {
        self.stdout.write_all(text.as_bytes()).unwrap();
    }

    fn next(&self) -> LogNotice {
        self.notices.recv_timeout(SOON).expect("a notice comes")
    }

    /// Waits for the end of the output of run 1; returns its last lines.
    fn drained(&self) -> Vec<String> {
        self.thread.handle().drained(slot(), RunId(1)).unwrap();
        loop {
            if let LogNotice::Drained { tail, left_bytes, .. } = self.next() {
                assert_eq!(left_bytes, 0);
                return tail;
            }
        }
    }

    fn file(&self) -> String {
        fs::read_to_string(self.dir.path().join("log/current")).unwrap()
    }

    /// Returns the lines of the file without their times.
    fn lines(&self) -> Vec<String> {
        self.file().lines().map(|line| line[31..].to_owned()).collect()
    }
}

#[test]
fn lines_stand_in_the_file_with_time_and_stream() {
    let mut bench = Bench::new(&default_log());
    bench.say("one\n");
    assert_eq!(bench.drained(), ["one"]);
    bench.stderr.write_all(b"two\n").unwrap();
    assert_eq!(bench.drained(), ["one", "two"]);
    assert_eq!(bench.lines(), ["stdout F one", "stderr F two"]);
    let first = bench.file().lines().next().unwrap().to_owned();
    assert!(format::read_cri(&first).is_some(), "{first}");
}

#[test]
fn a_log_is_readable_for_its_group_and_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(&default_log());
    bench.drained();
    let mode = |path: &str| {
        fs::metadata(bench.dir.path().join(path)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("log/current") & !0o022, mode("log") & !0o022), (0o640, 0o750));
}

#[test]
fn an_unfinished_line_is_written_when_its_run_is_over() {
    let mut bench = Bench::new(&default_log());
    bench.say("whole\nunfin");
    while bench.thread.handle().stats().lines < 1 {
        std::thread::yield_now();
    }
    assert_eq!(bench.lines(), ["stdout F whole"]);
    assert_eq!(bench.drained(), ["whole", "unfin"]);
    assert_eq!(bench.lines(), ["stdout F whole", "stdout F unfin"]);
}

#[test]
fn a_line_that_comes_in_pieces_is_one_line() {
    let mut bench = Bench::new(&default_log());
    for piece in ["o", "n", "e\ntw", "o"] {
        bench.say(piece);
        std::thread::yield_now();
    }
    assert_eq!(bench.drained(), ["one", "two"]);
}

#[test]
fn a_file_that_a_service_put_in_the_place_of_its_log_is_not_read() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "hunter2\n").unwrap();
    let fifo = |path: &Path| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
    };
    let past = sweep::rotated_name(std::time::SystemTime::UNIX_EPOCH);
    for name in ["current", &past, &format!("{past}.gz")] {
        let logs = dir.path().join("logs").join(name);
        fs::create_dir_all(&logs).unwrap();
        symlink(&secret, logs.join(name)).unwrap();
        assert!(read::last_lines(&logs, 10).is_err(), "{name}");
        assert_eq!(read::lines_since(&logs, UnixMicros(0)), Vec::<String>::new());
        fs::remove_file(logs.join(name)).unwrap();
        // Nobody writes to it: who opened it in the usual way would wait for ever.
        fifo(&logs.join(name));
        assert!(read::last_lines(&logs, 10).is_err(), "{name}");
        assert_eq!(read::lines_since(&logs, UnixMicros(0)), Vec::<String>::new());
    }
}

#[test]
fn compressing_neither_reads_nor_overwrites_what_a_link_names() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let (secret, logs) = (dir.path().join("secret"), dir.path().join("log"));
    fs::write(&secret, "hunter2\n").unwrap();
    fs::create_dir(&logs).unwrap();
    let past = sweep::rotated_name(std::time::SystemTime::UNIX_EPOCH);
    let log = logs.join(&past);
    fs::write(&log, "a line\n").unwrap();
    symlink(&secret, logs.join(format!("{past}.gz.tmp"))).unwrap();
    sweep::compress(&log, "gz").unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "hunter2\n");
    assert_eq!(read::last_lines(&logs, 10).unwrap(), ["a line"]);
    symlink(&secret, &log).unwrap();
    assert!(sweep::compress(&log, "gz").is_err());
    assert_eq!(fs::read_dir(&logs).unwrap().count(), 2);
}

#[test]
fn the_last_lines_are_known_before_they_are_written() {
    let mut bench = Bench::new(&default_log());
    for n in 0..30 {
        bench.say(&format!("line {n}\n"));
    }
    bench.say("FATAL");
    let tail = bench.thread.handle().tail_now(&slot());
    assert_eq!(tail.len(), 20);
    assert_eq!((tail[0].as_str(), tail[19].as_str()), ("line 11", "FATAL"));
    assert!(bench.thread.handle().tail_now(&"db/0".parse_instance()).is_empty());
}

#[test]
fn a_long_line_is_split_and_its_parts_are_marked() {
    let spec = Log { max_line: crate::domain::spec::Bytes(4), ..default_log() };
    let mut bench = Bench::new(&spec);
    bench.say("abcdefghij\nkl\n");
    bench.drained();
    assert_eq!(bench.lines(), ["stdout P abcd", "stdout P efgh", "stdout F ij", "stdout F kl"]);
}

#[test]
fn a_pipe_that_is_full_without_a_newline_goes_on() {
    let spec = Log { max_line: crate::domain::spec::Bytes(1 << 30), ..default_log() };
    let mut bench = Bench::new(&spec);
    // Blocks for ever if nobody takes from the full pipe.
    bench.say(&"x".repeat(1 << 20));
    bench.say("\nnext\n");
    bench.drained();
    let lines = bench.lines();
    assert_eq!(lines.last().unwrap(), "stdout F next");
    let text: String =
        lines[..lines.len() - 1].iter().map(|line| &line["stdout P ".len()..]).collect();
    assert!(text.len() == 1 << 20 && text.bytes().all(|byte| byte == b'x'));
}

#[test]
fn raw_lines_are_byte_for_byte_those_of_the_service() {
    let spec =
        Log { format: LogFormat::Raw, max_line: crate::domain::spec::Bytes(4), ..default_log() };
    let mut bench = Bench::new(&spec);
    bench.say("abcdefghij\n\nkl\n");
    bench.drained();
    assert_eq!(bench.file(), "abcdefghij\n\nkl\n");
}

#[test]
fn secrets_reach_neither_file_nor_tail_nor_notice() {
    let spec = Log { redact: vec![r"password=\S+".to_owned()], ..default_log() };
    let mut bench = Bench::new(&spec);
    let pattern = Regex::new("hunter2").unwrap();
    bench.thread.handle().watch_ready(slot(), RunId(1), pattern, None).unwrap();
    bench.say("login password=hunter2 ok\n");
    let clean = "login [redacted] ok".to_owned();
    assert_eq!(bench.thread.handle().tail_now(&slot()), std::slice::from_ref(&clean));
    let ready = LogNotice::Ready { slot: slot(), run: RunId(1), line: clean.clone() };
    assert_eq!(bench.next(), ready);
    assert_eq!(bench.drained(), [clean]);
    assert!(!bench.file().contains("hunter2"));
}

#[test]
fn the_first_line_that_matches_makes_ready_once() {
    let mut bench = Bench::new(&default_log());
    bench.say("Ready from the run before\n");
    let pattern = Regex::new("^Ready").unwrap();
    bench.thread.handle().mark_run(slot(), RunId(2)).unwrap();
    bench.thread.handle().watch_ready(slot(), RunId(2), pattern, None).unwrap();
    bench.say("starting\nReady to accept\nReady again\n");
    let line = "Ready to accept".to_owned();
    assert_eq!(bench.next(), LogNotice::Ready { slot: slot(), run: RunId(2), line });
    bench.thread.handle().drained(slot(), RunId(2)).unwrap();
    assert!(matches!(bench.next(), LogNotice::Drained { .. }));
}

#[test]
fn the_first_run_of_a_slot_is_watched_before_its_pipes_are_there() {
    let mut bench = Bench::new(&default_log());
    let other = InstanceId { index: 7, ..slot() };
    let pattern = Regex::new("^Ready$").unwrap();
    bench.thread.handle().mark_run(other.clone(), RunId(3)).unwrap();
    bench.thread.handle().watch_ready(other.clone(), RunId(3), pattern, None).unwrap();
    let [one, two] = [both_ends(), both_ends()];
    File::from(one.try_clone().unwrap()).write_all(b"Ready\n").unwrap();
    let setup =
        LogSetup::new(&default_log(), &BTreeMap::new(), bench.dir.path().join("other")).unwrap();
    bench.thread.handle().attach(other.clone(), setup, one, two).unwrap();
    let ready = LogNotice::Ready { slot: other, run: RunId(3), line: "Ready".to_owned() };
    assert_eq!(bench.next(), ready);
    bench.say("others go on\n");
    assert_eq!(bench.drained(), ["others go on"]);
}

#[test]
fn a_ready_line_that_an_earlier_agent_wrote_counts_for_an_adopted_run() {
    let mut bench = Bench::new(&default_log());
    bench.say("Ready\n");
    bench.drained();
    let pattern = Regex::new("^Ready$").unwrap();
    let future = UnixMicros(u64::MAX);
    bench.thread.handle().watch_ready(slot(), RunId(1), pattern.clone(), Some(future)).unwrap();
    bench.drained();
    bench.thread.handle().watch_ready(slot(), RunId(1), pattern, Some(UnixMicros(0))).unwrap();
    assert!(matches!(bench.next(), LogNotice::Ready { .. }));
}

#[test]
fn each_run_has_its_own_last_lines() {
    let mut bench = Bench::new(&default_log());
    let handle = bench.thread.handle().clone();
    handle.mark_run(slot(), RunId(1)).unwrap();
    bench.say("of the first, unfinished");
    handle.mark_run(slot(), RunId(2)).unwrap();
    handle.drained(slot(), RunId(2)).unwrap();
    assert!(matches!(bench.next(), LogNotice::Drained { tail, .. } if tail.is_empty()));
    bench.say("of the second\n");
    assert_eq!(bench.drained(), ["of the first, unfinished"]);
    assert_eq!(handle.tail_now(&slot()), ["of the second"]);
    assert_eq!(bench.lines(), ["stdout F of the first, unfinished", "stdout F of the second"]);
}

#[test]
fn whose_a_line_is_was_decided_when_it_was_written() {
    let mut bench = Bench::new(&default_log());
    let handle = bench.thread.handle().clone();
    let pattern = Regex::new("^ready").unwrap();
    for n in 1..=200 {
        let run = RunId(n);
        handle.mark_run(slot(), run).unwrap();
        handle.watch_ready(slot(), run, pattern.clone(), None).unwrap();
        bench.say(&format!("ready {n}\nunfinished {n}"));
        let line = format!("ready {n}");
        assert_eq!(bench.next(), LogNotice::Ready { slot: slot(), run, line });
    }
    handle.drained(slot(), RunId(200)).unwrap();
    let LogNotice::Drained { tail, .. } = bench.next() else { panic!("it is drained") };
    assert_eq!(tail, ["ready 200", "unfinished 200"]);
    assert_eq!(bench.lines().len(), 400);
}

#[test]
fn an_alert_rule_is_told_with_the_number_of_its_lines() {
    let dir = tempfile::tempdir().unwrap();
    let errors = Alert {
        on: AlertOn::Log { threshold: 1, window: Millis::from_secs(60) },
        r#match: "ERROR".to_owned(),
        exclude: Some("retrying".to_owned()),
        stream: AlertStream::Any,
        r#for: Millis(0),
        keep_firing_for: Millis(0),
        severity: Severity::Warning,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    };
    let quiet = Alert { stream: AlertStream::Stderr, ..errors.clone() };
    let name = |text: &str| text.parse::<AlertName>().unwrap();
    let alerts = BTreeMap::from([(name("db-errors"), errors), (name("on-stderr"), quiet)]);
    let setup = LogSetup::new(&default_log(), &alerts, dir.path().join("log")).unwrap();
    let mut bench = Bench::with(setup, dir);
    bench.say("ERROR a\nERROR retrying\nfine\nERROR b\n");
    let expected = LogNotice::Matched {
        slot: slot(),
        rule: name("db-errors"),
        lines: 2,
        line: "ERROR b".to_owned(),
    };
    assert_eq!(bench.next(), expected);
}

#[test]
fn files_are_rotated_compressed_and_only_so_many_kept() {
    for compress in [Compress::Gzip, Compress::Zstd] {
        rotated_and_compressed(compress);
    }
}

fn rotated_and_compressed(compress: Compress) {
    let max_size = crate::domain::spec::Bytes(1000);
    let spec = Log { max_size, max_files: 3, compress, ..default_log() };
    let mut bench = Bench::new(&spec);
    for n in 0..100 {
        bench.say(&format!("line {n:04}\n"));
    }
    bench.drained();
    let dir = bench.dir.path().join("log");
    let tidy = || {
        let past = sweep::past_files(&dir).unwrap();
        past.len() == 2 && past.iter().all(|path| sweep::compression(path) == compress)
    };
    let start = std::time::Instant::now();
    while !tidy() {
        assert!(start.elapsed() < SOON, "{:?}", sweep::past_files(&dir));
        std::thread::sleep(Duration::from_millis(5));
    }
    let read = bench.thread.handle().read_lines(slot(), 30, None).unwrap();
    let lines = read.blocking_recv().unwrap().unwrap();
    let expected: Vec<_> = (70..100).map(|n| format!("line {n:04}")).collect();
    let texts: Vec<_> = lines.iter().map(|line| line[40..].to_owned()).collect();
    assert_eq!(texts, expected);
    assert!(bench.file().len() <= 1000);
}

#[test]
fn nothing_is_compressed_where_it_is_not_wanted() {
    let spec = Log {
        max_size: crate::domain::spec::Bytes(100),
        max_files: 1000,
        compress: Compress::None,
        ..default_log()
    };
    let mut bench = Bench::new(&spec);
    for n in 0..50 {
        bench.say(&format!("line {n:04}\n"));
    }
    bench.drained();
    let read = bench.thread.handle().read_lines(slot(), 1000, None).unwrap();
    assert_eq!(read.blocking_recv().unwrap().unwrap().len(), 50);
    let past = sweep::past_files(&bench.dir.path().join("log")).unwrap();
    assert!(past.len() > 10 && past.iter().all(|path| sweep::compression(path) == Compress::None));
}

#[test]
fn a_slot_that_never_wrote_has_no_lines_and_one_that_is_not_attached_has_those_of_its_files() {
    let mut bench = Bench::new(&default_log());
    bench.say("last words\n");
    bench.drained();
    bench.thread.handle().detach(slot()).unwrap();
    let read = |dir| {
        let read = bench.thread.handle().read_lines(slot(), 10, dir).unwrap();
        read.blocking_recv().unwrap().unwrap().len()
    };
    assert_eq!(read(Some(bench.dir.path().join("log"))), 1);
    assert_eq!((read(Some(bench.dir.path().join("none"))), read(None)), (0, 0));
}

#[test]
fn a_detached_slot_is_written_to_the_end_and_let_go() {
    let mut bench = Bench::new(&default_log());
    bench.say("last words");
    bench.thread.handle().detach(slot()).unwrap();
    bench.drained();
    assert_eq!(bench.lines(), ["stdout F last words"]);
    bench.say("to nobody\n");
    bench.drained();
    assert_eq!((bench.lines().len(), bench.thread.handle().stats().slots), (1, 0));
}

#[test]
fn a_slot_that_gets_other_pipes_goes_on() {
    let mut bench = Bench::new(&default_log());
    bench.say("old pipe\n");
    bench.drained();
    let [one, other] = [both_ends(), both_ends()];
    let mut stdout = File::from(one.try_clone().unwrap());
    let setup =
        LogSetup::new(&default_log(), &BTreeMap::new(), bench.dir.path().join("log")).unwrap();
    bench.thread.handle().attach(slot(), setup, one, other).unwrap();
    stdout.write_all(b"new pipe\n").unwrap();
    assert_eq!(bench.drained(), ["old pipe", "new pipe"]);
    assert_eq!(bench.lines(), ["stdout F old pipe", "stdout F new pipe"]);
}

#[test]
fn nothing_wakes_while_nothing_is_written() {
    let mut bench = Bench::new(&default_log());
    bench.say("one\nunfinished");
    std::thread::sleep(Duration::from_millis(1600));
    assert_eq!(bench.lines(), ["stdout F one", "stdout P unfinished"]);
    let before = bench.thread.handle().stats().wakeups;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(bench.thread.handle().stats().wakeups, before);
    bench.say(", and finished\n");
    assert_eq!(bench.drained().last().unwrap(), ", and finished");
    bench.say("left");
    bench.thread.stop();
    assert_eq!(pipe::queued(&bench.ends[0]).unwrap(), "left".len());
}

#[test]
fn a_write_that_does_not_fit_behind_an_unfinished_line_is_not_forgotten() {
    let mut bench = Bench::new(&Log { rate_limit: u32::MAX, ..default_log() });
    for round in 0..50 {
        bench.say("unfinished");
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        // More than a pipe holds: it blocks, and blocks without waking anybody.
        bench.say(&" and more\n".repeat(20_000));
    }
    bench.drained();
    assert_eq!(bench.thread.handle().stats().lines, 50 * 20_000);
}

#[test]
fn readiness_is_seen_in_a_line_that_comes_slowly() {
    let mut bench = Bench::new(&default_log());
    let pattern = Regex::new("^Ready to accept$").unwrap();
    bench.thread.handle().watch_ready(slot(), RunId(1), pattern, None).unwrap();
    bench.say("Ready to ");
    std::thread::sleep(Duration::from_millis(1600));
    bench.say("accept\n");
    assert!(matches!(bench.next(), LogNotice::Ready { line, .. } if line == "Ready to accept"));
    assert_eq!(bench.drained(), ["Ready to ", "accept"]);
}

trait ParseInstance {
    fn parse_instance(&self) -> InstanceId;
}

impl ParseInstance for str {
    fn parse_instance(&self) -> InstanceId {
        let (service, index) = self.split_once('/').unwrap();
        InstanceId { service: service.parse().unwrap(), index: index.parse().unwrap() }
    }
}

#[test]
fn whoever_waits_for_lines_is_told_by_the_next_one_and_no_later_wait_is_kept_for_the_gone() {
    let mut bench = Bench::new(&default_log());
    bench.say("one\n");
    bench.drained();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let [first, second] = [(); 2].map(|()| Arc::new(tokio::sync::Notify::new()));
    bench.thread.handle().tell_when_written(&slot(), &first);
    drop(first);
    bench.thread.handle().tell_when_written(&slot(), &second);
    bench.say("two\n");
    runtime.block_on(async { tokio::time::timeout(SOON, second.notified()).await.unwrap() });
    assert_eq!(bench.lines(), ["stdout F one", "stdout F two"], "what was told is in the file");
}
