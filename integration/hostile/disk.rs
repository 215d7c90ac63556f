//! A disk that is full and a disk that stands still, while a service crashes all the time.

mod heavy {
    use std::fs::{self, File};
    use std::io::{self, Write};
    use std::path::Path;
    use std::process::Command;
    use std::thread;
    use std::time::{Duration, Instant};

    use serde_json::Value;

    use crate::support::machine::{Machine, is_root};
    use crate::support::mounts;
    use crate::support::process::kill_9;
    use crate::support::wait::eventually;

    /// Holds the log, its reserve of 32 MiB, and little more.
    const DISK_MIB: u32 = 72;

    #[test]
    fn a_full_disk_stops_no_restart_and_loses_nothing_that_was_acknowledged() {
        if !is_root() {
            eprintln!("skipped: only root can mount a small disk");
            return;
        }
        if !mounts::has_own() {
            return mounts::again_with_own(
                module_path!(),
                "a_full_disk_stops_no_restart_and_loses_nothing_that_was_acknowledged",
            );
        }
        let temp = tempfile::tempdir().unwrap();
        let disk = temp.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let size = format!("size={DISK_MIB}m,mode=755");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&disk);
        assert!(mount.status().unwrap().success());
        let machine = Machine::at(temp, disk.join("state"));
        let crasher = Crasher::up(&machine);
        let acknowledged = some_wishes(&machine);

        // Nothing is left but what the log keeps for itself.
        let fill = disk.join("fill");
        fill_up(&fill, Duration::ZERO);
        let status = unavailable(&machine);
        assert_eq!(status["nodes"][0]["conditions"]["LogWritable"]["status"], "false", "{status}");
        crasher.goes_on();

        // Whoever is not root of this machine gets one clear answer, and root's other wishes as well.
        let said = machine.exits(9, &["signal", "-s", "USR1", "steady"]);
        assert!(said.contains("E0327"), "{said}");
        let said = machine.exits(9, &["reload", "steady"]);
        assert!(said.contains("E0327"), "{said}");
        let before = machine.ready("steady");
        machine.exits(0, &["restart", "steady"]);
        let after = machine.ready_but("steady", Some(before));
        machine.exits(0, &["stop", "other"]);
        assert_eq!(machine.instance("other")["state"], "inactive");

        // Now not even that: the reserve was taken by somebody else.
        fill_up(&fill, Duration::from_secs(2));
        crasher.goes_on();
        assert_eq!(machine.ready("steady"), after);
        for part in ["keeper", "agent"] {
            kill_9(machine.part(part));
            crasher.goes_on();
            assert_eq!(machine.ready("steady"), after);
        }
        machine.smgr(&["stop", "steady", "--timeout", "1s"]);
        eventually("root can still stop it", || {
            machine.instance("steady")["pid"].is_null().then_some(())
        });
        let said = machine.exits(9, &["signal", "-s", "USR1", "steady"]);
        assert!(said.contains("E0327"), "{said}");
        crasher.goes_on();

        fs::remove_file(&fill).unwrap();
        available(&machine);
        crasher.goes_on();
        machine.exits(0, &["start", "steady"]);
        machine.exits(0, &["signal", "-s", "CONT", "steady"]);
        crasher.stop_and_compare(&acknowledged);
        let events = machine.events();
        let told = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
        assert!(told("log.unavailable") >= 1 && told("log.recovered") >= 1);
        assert!(events.iter().any(|event| event["late"] == true), "what waited says so");
    }

    #[test]
    fn a_disk_that_stands_still_for_ten_seconds_stops_no_restart() {
        let temp = tempfile::tempdir().unwrap();
        let state = temp.path().join("state");
        let mut machine = Machine::at(temp, state);
        let (shim, flag) = (machine.folder().join("slow.so"), machine.folder().join("stalled"));
        compile_shim(machine.folder(), &shim);
        machine.env("LD_PRELOAD", &shim);
        machine.env("SMGR_TEST_STALLED", &flag);
        let crasher = Crasher::up(&machine);
        let acknowledged = some_wishes(&machine);

        File::create(&flag).unwrap();
        let began = Instant::now();
        unavailable(&machine);
        let said = machine.exits(9, &["signal", "-s", "USR1", "steady"]);
        assert!(said.contains("E0327"), "{said}");
        while began.elapsed() < Duration::from_secs(10) {
            crasher.goes_on();
        }
        fs::remove_file(&flag).unwrap();
        available(&machine);
        machine.exits(0, &["signal", "-s", "CONT", "steady"]);
        crasher.stop_and_compare(&acknowledged);
        let events = machine.events();
        let told = events.iter().find(|event| event["type"] == "log.unavailable").unwrap();
        assert_eq!(told["data"]["kind"], "stalled", "{told}");
        let recovered = events.iter().find(|event| event["type"] == "log.recovered").unwrap();
        let late = events.iter().filter(|event| event["late"] == true).count();
        assert!(late > 10 && recovered["data"]["late"] == late, "{late}: {recovered}");
    }

    /// A service that ends as soon as it has begun, and two that do not.
    struct Crasher<'a> {
        machine: &'a Machine,
        starts: std::path::PathBuf,
    }

    impl<'a> Crasher<'a> {
        fn up(machine: &'a Machine) -> Self {
            let starts = machine.folder().join("starts");
            machine.service(
                "crasher",
                &format!(
                    "exec = [\"/bin/sh\", \"-c\", \"echo $$$$ >> {}; sleep 0.1; exit 3\"]\n\
                     [restart]\ndelay = \"50ms\"\nmax_delay = \"200ms\"\nlimit = 1000000\n",
                    starts.display()
                ),
            );
            for name in ["steady", "other"] {
                machine.service(
                    name,
                    "exec = [\"/bin/sleep\", \"1000\"]\n[reload]\nby = \"signal\"\nsignal = \"CONT\"\n",
                );
            }
            machine.exits(0, &["up", "-d"]);
            let this = Self { machine, starts };
            this.goes_on();
            machine.ready("steady");
            this
        }

        fn starts(&self) -> usize {
            fs::read_to_string(&self.starts).unwrap_or_default().lines().count()
        }

        /// Demands that it is started three more times, soon.
        fn goes_on(&self) {
            let (before, began) = (self.starts(), Instant::now());
            eventually("it is started again", || (self.starts() >= before + 3).then_some(()));
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        }

        /// Stops it and compares what it did itself with what the history says.
        fn stop_and_compare(&self, acknowledged: &[String]) {
            self.machine.exits(0, &["stop", "crasher"]);
            let events = self.machine.events();
            let of_crasher = |kind: &str| {
                let its = events.iter().filter(|event| event["service"] == "crasher");
                its.filter(|event| event["type"] == kind).count()
            };
            let summarized: u64 = events
                .iter()
                .filter(|event| event["type"] == "service.summarized")
                .map(|event| event["data"]["starts"].as_u64().unwrap())
                .sum();
            let started = of_crasher("instance.started") + usize::try_from(summarized).unwrap();
            assert_eq!(
                started,
                self.starts(),
                "each start is an event, and each once; the history tells of {:#?}",
                events
                    .iter()
                    .filter(|event| event["service"] == "crasher")
                    .map(brief)
                    .collect::<Vec<_>>(),
            );
            for cursor in acknowledged {
                let there = events.iter().any(|event| event["cursor"] == cursor.as_str());
                assert!(there, "{cursor} was acknowledged and is gone");
            }
            self.machine.exits(0, &["audit", "verify"]);
            let replay = self.machine.json(&["replay"]);
            assert_eq!(replay["live"]["equal"], true, "{replay}");
        }
    }

    fn brief(event: &Value) -> String {
        let (at, kind, run, data) = (&event["at"], &event["type"], &event["run"], &event["data"]);
        format!("{at} {kind} {run} {} {}", data["pid"], data["exit"])
    }

    /// Has wishes carried out and returns the events that said so.
    fn some_wishes(machine: &Machine) -> Vec<String> {
        for _ in 0..3 {
            machine.exits(0, &["restart", "steady"]);
        }
        let events = machine.events();
        let told = events.iter().filter(|event| event["type"] == "intent.executed");
        let told: Vec<_> = told.map(|event| event["cursor"].as_str().unwrap().to_owned()).collect();
        assert_eq!(told.len(), 3);
        told
    }

    fn unavailable(machine: &Machine) -> Value {
        eventually("the log takes nothing", || {
            let status = machine.json(&["status"]);
            (!status["nodes"][0]["history"]["unavailable"].is_null()).then_some(status)
        })
    }

    fn available(machine: &Machine) {
        eventually("the log takes events again", || {
            let status = machine.json(&["status"]);
            status["nodes"][0]["history"]["unavailable"].is_null().then_some(())
        });
    }

    /// Takes what is left, and keeps at it for a while: others give space back when they meet the end of it.
    fn fill_up(path: &Path, at_it: Duration) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        let until = Instant::now() + at_it;
        let block = vec![0x5a; 64 * 1024];
        let mut bytes = block.len();
        loop {
            match file.write_all(&block[..bytes]) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    if bytes > 512 {
                        bytes /= 2;
                    } else if Instant::now() >= until {
                        return;
                    } else {
                        // The time that the disk stays full is what is asked for.
                        thread::sleep(Duration::from_millis(20));
                        bytes = block.len();
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Makes every sync of the node wait for as long as a file is there.
    fn compile_shim(folder: &Path, shim: &Path) {
        let source = folder.join("slow.c");
        fs::write(&source, SHIM).unwrap();
        let ran = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(shim)
            .arg(&source)
            .args(["-ldl"])
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }

    const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_for_the_disk(void) {
    const char *flag = getenv("SMGR_TEST_STALLED");
    while (flag && access(flag, F_OK) == 0) usleep(20000);
}

int fdatasync(int fd) { wait_for_the_disk(); return syscall(SYS_fdatasync, fd); }
int fsync(int fd) { wait_for_the_disk(); return syscall(SYS_fsync, fd); }
"#;
}
