//! More lines than may be written, files that cannot be written, and how fast it goes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::*;
use crate::domain::spec::Bytes;

#[test]
fn lines_beyond_the_rate_are_dropped_counted_and_told_once() {
    let mut bench = Bench::new(&Log { rate_limit: 10, ..default_log() });
    for n in 0..100 {
        bench.say(&format!("line {n:02}\n"));
    }
    let tail = bench.drained();
    assert_eq!(tail.last().unwrap(), "line 99", "the last words are kept though not written");
    let stats = bench.thread.handle().stats();
    assert_eq!(stats.lines + stats.dropped_lines, 100);
    assert!((10..30).contains(&stats.lines), "{stats:?}");
    assert_eq!(stats.dropped_bytes, stats.dropped_lines * 7);
    let other: Vec<_> = bench.notices.try_iter().collect();
    assert!(other.is_empty(), "at most one a minute: {other:?}");
}

#[test]
fn the_first_dropped_line_is_told_at_once() {
    let mut bench = Bench::new(&Log { rate_limit: 1, ..default_log() });
    bench.say("one\ntwo\nthree\n");
    let LogNotice::Dropped { lines, why, .. } = bench.next() else { panic!("lines were dropped") };
    assert_eq!((lines, why), (2, DropReason::RateLimit));
    assert_eq!(why.to_string(), "rate_limit");
}

#[test]
fn a_service_that_wants_to_block_waits_and_loses_nothing() {
    let spec = Log { rate_limit: 100, on_full: OnFull::Block, ..default_log() };
    let mut bench = Bench::new(&spec);
    let start = Instant::now();
    for n in 0..150 {
        bench.say(&format!("line {n:03}\n"));
    }
    while bench.thread.handle().stats().lines < 150 {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(start.elapsed() > Duration::from_millis(400), "100 at once, 50 in half a second");
    assert_eq!(bench.drained().last().unwrap(), "line 149");
    assert_eq!(bench.lines().len(), 150);
    assert_eq!(bench.thread.handle().stats().dropped_lines, 0);
}

#[test]
fn a_file_that_cannot_be_opened_stops_no_service_and_recovers() {
    // Where the folder would be is a file: not even root can open the log then.
    let mut bench = Bench::in_folder(&default_log(), |dir| {
        fs::write(dir.join("blocked"), "in the way").unwrap();
        dir.join("blocked/log")
    });
    let blocked = bench.dir.path().join("blocked");
    let LogNotice::Failed { what, errno, .. } = bench.next() else { panic!("it cannot be opened") };
    assert_eq!((what, errno), ("open the log file", rustix::io::Errno::NOTDIR.raw_os_error()));
    bench.say(&"lost\n".repeat(100_000));
    let LogNotice::Dropped { why, .. } = bench.next() else { panic!("lines were dropped") };
    assert_eq!(why, DropReason::IoError);
    fs::remove_file(&blocked).unwrap();
    let start = Instant::now();
    while !blocked.join("log/current").exists() {
        assert!(start.elapsed() < SOON);
        bench.say("knock\n");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_file_that_somebody_took_away_is_made_again() {
    let mut bench = Bench::new(&default_log());
    bench.say("one\n");
    bench.drained();
    let current = bench.dir.path().join("log/current");
    fs::remove_file(&current).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    bench.say("two\n");
    bench.drained();
    assert_eq!(bench.lines(), ["stdout F two"]);
}

#[test]
fn a_full_disk_drops_whole_lines_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = SmallDisk::mount(&dir.path().join("disk")) else {
        std::io::stderr().write_all(b"skipped: only root can mount a small disk\n").unwrap();
        return;
    };
    let spec = Log { rate_limit: u32::MAX, ..default_log() };
    let mut bench =
        Bench::with(LogSetup::new(&spec, &BTreeMap::new(), mount.0.join("log")).unwrap(), dir);
    for n in 0..50_000 {
        bench.say(&format!("line {n:06} {}\n", "x".repeat(60)));
    }
    bench.drained();
    let stats = bench.thread.handle().stats();
    assert!(stats.dropped_lines > 0 && stats.lines + stats.dropped_lines == 50_000, "{stats:?}");
    let whole = |text: &str| {
        text.ends_with('\n')
            && text
                .lines()
                .all(|line| format::read_cri(line).is_some_and(|line| line.text.len() == 72))
    };
    let current = mount.0.join("log/current");
    let text = fs::read_to_string(&current).unwrap();
    assert!(whole(&text), "only whole lines stand in the file");
    assert_eq!(text.lines().count() as u64, stats.lines);
    // Room is made as people do it: by removing the log.
    fs::remove_file(&current).unwrap();
    let start = Instant::now();
    while !fs::read_to_string(&current).is_ok_and(|text| text.ends_with("F again\n")) {
        assert!(start.elapsed() < SOON);
        bench.say("again\n");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A file system of 1 MiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at);
        mount.stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The log thread still has its file open there; the mount goes when that is closed.
        let mut umount = std::process::Command::new("umount");
        drop(umount.arg("--lazy").arg(&self.0).status());
    }
}

#[test]
fn a_hundred_services_that_write_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let thread = LogThread::start(|_| ()).unwrap();
    let writers: Vec<_> = (0..100)
        .map(|index| {
            let slot = InstanceId { service: "web".parse().unwrap(), index };
            let [one, other] = [both_ends(), both_ends()];
            let mut files = [&one, &other].map(|end| File::from(end.try_clone().unwrap()));
            let setup =
                LogSetup::new(&default_log(), &BTreeMap::new(), dir.path().join(index.to_string()))
                    .unwrap();
            thread.handle().attach(slot, setup, one, other).unwrap();
            std::thread::spawn(move || {
                for n in 0..200 {
                    files[n % 2].write_all(format!("line {n:03}\n").as_bytes()).unwrap();
                }
                files
            })
        })
        .collect();
    let files: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    let start = Instant::now();
    while thread.handle().stats().lines < 100 * 200 {
        assert!(start.elapsed() < SOON, "{:?}", thread.handle().stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(files);
    thread.stop();
    for index in 0..100 {
        let text = fs::read_to_string(dir.path().join(index.to_string()).join("current")).unwrap();
        assert_eq!(text.lines().count(), 200);
    }
}

mod heavy {
    use super::*;

    #[test]
    fn two_hundred_megabytes_of_one_service_are_drained_without_loss() {
        let spec = Log {
            rate_limit: u32::MAX,
            max_size: Bytes(64 << 20),
            max_files: 100,
            compress: Compress::None,
            ..default_log()
        };
        let mut bench = Bench::new(&spec);
        let block = format!("{}\n", "x".repeat(99)).repeat(1000);
        let blocks = 200_000_000 / block.len();
        let start = Instant::now();
        for _ in 0..blocks {
            bench.say(&block);
        }
        bench.drained();
        let took = start.elapsed();
        let stats = bench.thread.handle().stats();
        assert_eq!((stats.bytes, stats.lines, stats.dropped_lines), (200_000_000, 2_000_000, 0));
        let speed = 200.0 / took.as_secs_f64();
        let shown = format!("200 MB in {took:?}: {speed:.0} MB/s, {} wakeups\n", stats.wakeups);
        std::io::stderr().write_all(shown.as_bytes()).unwrap();
        let counted: u64 = bench.thread.handle().counters.lines.load(Ordering::Relaxed);
        assert_eq!(counted, 2_000_000);
    }
}
