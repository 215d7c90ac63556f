//! A node with three dozen services, its bus, and the means to kill each of its parts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use smgr::agent::setup::{BusSetup, NodeSetup, SpecSources};
use smgr::domain::id::{FleetId, NodeId, Principal};
use smgr::domain::time::UnixMicros;
use smgr::head::folder::StateFolder;
use smgr::head::keyfile::{KeyName, Keys, Owner, load_key, make_keys_and_trust};
use smgr::ipc::hello::Part;
use smgr::ipc::place::Place;
use smgr::wire::key::Signer;
use tokio::time::sleep;

use crate::support::nats::NatsServer;
use crate::support::process::as_pid;
use crate::support::sweep::sweep;
use crate::support::wait::{PATIENCE, wait_until};

/// Services that end by themselves all the time: together some 40 exits a second while nobody is killed.
pub(super) const MORTALS: usize = 24;

/// Services that live, take signals and run actions.
pub(super) const STEADY: usize = 6;

/// Services that are restarted by intents, half of them with a handover.
pub(super) const TURNING: usize = 4;

/// The node and everything beside it that has to live as long.
pub(super) struct Rig {
    folder: tempfile::TempDir,
    pub(super) server: NatsServer,
    pub(super) place: Place,
    launcher: Child,
    pub(super) operator: Signer,
    pub(super) keys: Keys,
}

impl Rig {
    /// Sets a node up, starts it, and waits until its three parts are there.
    pub(super) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("smgr-kill-").tempdir().unwrap();
        let server = NatsServer::start();
        let state = folder.path().join("state");
        let state_folder = StateFolder::new(&state);
        let owner =
            Owner { fleet: fleet(), node: node(), operator: operator(), now: UnixMicros(now_us()) };
        let keys = make_keys_and_trust(&state_folder, &owner).unwrap();
        let signer = load_key(&KeyName::Operator.path(&state_folder)).unwrap();
        let specs = folder.path().join("services.d");
        write_specs(&specs, &build_worker(folder.path()), &folder.path().join("tally.d"));
        let logs = folder.path().join("logs");
        let sources = SpecSources { host: Some(specs), ..SpecSources::default() };
        let mut setup = NodeSetup::new(fleet(), node(), sources, logs);
        setup.bus = Some(BusSetup {
            urls: vec![server.url()],
            nkey: None,
            operator_nkey: None,
            own_server: false,
            ca: None,
        });
        setup.write(&state_folder).unwrap();

        let output = File::create(folder.path().join("parts.log")).unwrap();
        let launcher = Command::new(env!("CARGO_BIN_EXE_smgr"))
            .args(["agent", "--state"])
            .arg(&state)
            .env("SMGR_LOG", std::env::var("SMGR_KILL_LOG").unwrap_or("info".to_owned()))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let place = Place::of(&state);
        let rig = Self { folder, server, place, launcher, operator: signer, keys };
        for part in [Part::Keeper, Part::Agent, Part::Uplink] {
            rig.wait_for(part, None).await;
        }
        rig
    }

    pub(super) fn log(&self) -> PathBuf {
        StateFolder::new(self.folder.path().join("state")).log()
    }

    pub(super) fn service_logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    pub(super) fn tally(&self) -> String {
        fs::read_to_string(self.folder.path().join("tally.d/tally")).unwrap_or_default()
    }

    /// Kills parts with SIGKILL in the same instant, and waits until each has come back; returns how long that took.
    pub(super) async fn kill(&self, parts: &[Part]) -> Duration {
        let mut before = Vec::new();
        for part in parts {
            before.push(self.wait_for(*part, None).await);
        }
        let killed_at = Instant::now();
        for pid in &before {
            // One may have taken the other with it.
            let _ = kill_process(as_pid(*pid), Signal::KILL);
        }
        for (part, pid) in parts.iter().zip(before) {
            self.wait_for(*part, Some(pid)).await;
        }
        killed_at.elapsed()
    }

    /// Waits until a part holds its lock, and is not the one that was killed.
    async fn wait_for(&self, part: Part, killed: Option<u32>) -> u32 {
        let until = Instant::now() + PATIENCE;
        loop {
            let is_locked = self.place.is_locked(part).unwrap_or(false);
            match self.place.pid(part).filter(|pid| is_locked && Some(*pid) != killed) {
                Some(pid) => return pid,
                None if Instant::now() < until => sleep(Duration::from_millis(2)).await,
                None => panic!("{} did not come back\n{}", part.name(), self.last_words()),
            }
        }
    }

    /// Ends the node in good order, services first.
    pub(super) fn stop(&mut self) {
        kill_process(as_pid(self.launcher.id()), Signal::TERM).unwrap();
        wait_until("the node ends", || self.launcher.try_wait().unwrap().is_some());
    }

    /// Where all of the node lies.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("parts.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Rig {
    /// Leaves nothing running, whatever state the test was left in.
    fn drop(&mut self) {
        // A test that gave up in the middle leaves what one needs to see why.
        self.folder.disable_cleanup(thread::panicking());
        let _already_dead = self.launcher.kill();
        let _reaped = self.launcher.wait();
        for part in [Part::Keeper, Part::Agent, Part::Uplink] {
            if let Some(pid) = self.place.pid(part) {
                let _already_dead = kill_process(as_pid(pid), Signal::KILL);
            }
        }
        // The services of a test that failed: each names this folder in its arguments.
        let mark = self.folder.path().join("tally.d").display().to_string();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if let Some(pid) = pid
                && String::from_utf8_lossy(&line).contains(&mark)
            {
                let _already_dead = kill_process(as_pid(pid), Signal::KILL);
            }
        }
        sweep(&self.folder.path().join("state"));
    }
}

pub(super) fn fleet() -> FleetId {
    "acme".parse().unwrap()
}

pub(super) fn node() -> NodeId {
    "n1".parse().unwrap()
}

pub(super) fn operator() -> Principal {
    "operator".parse().unwrap()
}

pub(super) fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

fn build_worker(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/kill/worker.c");
    let program = folder.join("worker");
    let status =
        Command::new("cc").args(["-O1", "-Wall", "-o"]).arg(&program).arg(source).status().unwrap();
    assert!(status.success(), "the worker does not compile");
    program
}

fn write_specs(specs: &Path, worker: &Path, tally: &Path) {
    fs::create_dir_all(specs).unwrap();
    fs::create_dir_all(tally).unwrap();
    // Root has to say as whom; a user's services run as that user.
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let (worker, tally) = (worker.display(), tally.display());
    let write = |mode: &str, name: String| {
        let hands_over = match mode {
            "relay" => "[ready]\nby = \"fd\"\nfd = 3\n[update]\nmethod = \"handover\"\n",
            _ => "",
        };
        let text = format!(
            "exec = [\"{worker}\", \"{mode}\", \"{name}\", \"{tally}\"]\n{user}\
             [restart]\ndelay = \"10ms\"\nmax_delay = \"20ms\"\nlimit = 1000000\n\
             [stop]\ntimeout = \"20s\"\n{hands_over}\
             [action.count]\nexec = [\"{worker}\", \"act\", \"${{id}}\", \"{tally}\"]\n\
             params.id = {{ type = \"string\", pattern = \"^[0-9a-f-]+$\" }}\n"
        );
        fs::write(specs.join(format!("{name}.toml")), text).unwrap();
    };
    (0..MORTALS).for_each(|number| write("mortal", format!("mortal-{number}")));
    (0..STEADY).for_each(|number| write("steady", format!("steady-{number}")));
    for number in 0..TURNING {
        // Every other one is handed over from one run to the next.
        write(if number % 2 == 0 { "relay" } else { "steady" }, format!("turning-{number}"));
    }
}
