//! `kill -9` of the process that runs the log thread: no line is lost, the last batch may stand twice.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

const PIPES: &str = "SMGR_TEST_LOG_PIPES";
const FOLDER: &str = "SMGR_TEST_LOG_FOLDER";

fn spec() -> Log {
    let max_size = crate::domain::spec::Bytes(256 << 10);
    Log {
        rate_limit: u32::MAX,
        compress: Compress::None,
        max_size,
        max_files: 10_000,
        ..default_log()
    }
}

/// The child: a log thread on the pipes of its parent, until it is killed.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn child() {
    let Ok(pipes) = std::env::var(PIPES) else { return };
    let open = |path: &str| File::options().read(true).write(true).open(path).unwrap().into();
    let (stdout, stderr) = pipes.split_once(' ').unwrap();
    let thread = LogThread::start(|_| ()).unwrap();
    let setup =
        LogSetup::new(&spec(), &BTreeMap::new(), std::env::var(FOLDER).unwrap().into()).unwrap();
    thread.handle().attach(slot(), setup, open(stdout), open(stderr)).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

fn spawn_child(ends: &[OwnedFd; 2], dir: &Path) -> Child {
    let paths =
        ends.each_ref().map(|end| format!("/proc/{}/fd/{}", std::process::id(), end.as_raw_fd()));
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent::logs::tests::kill::child", "--ignored"])
        .env(PIPES, paths.join(" "))
        .env(FOLDER, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Returns the numbers of the lines in all files of a folder, in order.
fn numbers(dir: &Path) -> Vec<u64> {
    let mut files = sweep::past_files(dir).unwrap();
    files.reverse();
    files.push(dir.join("current"));
    let number = |line: &str| {
        let line = format::read_cri(line).unwrap_or_else(|| panic!("torn: {line:?}"));
        line.text.strip_prefix("number ").unwrap().parse().unwrap()
    };
    let text: String = files.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    text.lines().map(number).collect()
}

#[test]
fn no_line_is_lost_to_a_kill() {
    const KILLS: usize = 12;
    let dir = tempfile::tempdir().unwrap();
    let ends = [both_ends(), both_ends()];
    let mut stdout = File::from(ends[0].try_clone().unwrap());
    let (stop, stopped) = mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let mut written = 0;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            let mut block = String::new();
            for _ in 0..100 {
                block.push_str(&format!("number {written}\n"));
                written += 1;
            }
            stdout.write_all(block.as_bytes()).unwrap();
        }
        written
    });
    let size = || {
        let files = fs::read_dir(dir.path()).unwrap();
        files.map(|file| file.unwrap().metadata().map_or(0, |about| about.len())).sum::<u64>()
    };
    let write_on = || {
        let (start, before) = (Instant::now(), size());
        while size() < before + 200_000 {
            assert!(start.elapsed() < SOON, "the child writes");
            std::thread::yield_now();
        }
    };
    for _ in 0..KILLS {
        let mut child = spawn_child(&ends, dir.path());
        write_on();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // The last one takes what is left; only it may end.
    let mut child = spawn_child(&ends, dir.path());
    write_on();
    stop.send(()).unwrap();
    let written: u64 = writer.join().unwrap();
    let start = Instant::now();
    while pipe::queued(&ends[0]).unwrap() > 0 {
        assert!(start.elapsed() < SOON);
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let numbers = numbers(dir.path());
    let mut next = 0;
    let mut repeats = 0;
    for number in numbers {
        assert!(number <= next, "{next} is missing: {number} comes instead");
        repeats += usize::from(number < next && number + 1 != next && repeats <= KILLS);
        next = next.max(number + 1);
    }
    assert_eq!(next, written, "every line that was written stands in a file");
}
