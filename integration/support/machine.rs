//! A machine of one's own: a state folder, the built binary, and everything ends with the test.

#![expect(clippy::print_stderr, reason = "what the parts said belongs to a failure")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use super::sweep::sweep;
use super::wait::eventually;

/// A node that is brought up by the command line. Services come from `services.d` in its configuration folder.
pub(crate) struct Machine {
    temp: TempDir,
    state: PathBuf,
    env: Vec<(String, String)>,
    /// The network in which its commands, and so its parts and services, are.
    network: Option<PathBuf>,
}

impl Machine {
    /// Makes the folders; nothing runs yet.
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let state = temp.path().join("state");
        Self::at(temp, state)
    }

    /// Makes the folders with the state at another place.
    pub(crate) fn at(temp: TempDir, state: PathBuf) -> Self {
        for folder in ["vendor.d", "services.d", "groups.d", "override.d"] {
            fs::create_dir_all(state.join("config").join(folder)).unwrap();
        }
        Self { temp, state, env: Vec::new(), network: None }
    }

    /// Gives every command, and so every part of the node, a further variable.
    pub(crate) fn env(&mut self, name: &str, value: &Path) {
        self.env.push((name.to_owned(), value.display().to_string()));
    }

    /// Puts it into a network namespace, by the path that the kernel gives it.
    pub(crate) fn within(&mut self, network: PathBuf) {
        self.network = Some(network);
    }

    pub(crate) fn folder(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// Writes `services.d/NAME.toml`; where root runs smgr, it names root as the user.
    pub(crate) fn service(&self, name: &str, text: &str) {
        let user = if is_root() { "user = \"root\"\n" } else { "" };
        self.file(&format!("services.d/{name}.toml"), &format!("{user}{text}"));
    }

    /// Writes a file of the configuration as it is.
    pub(crate) fn file(&self, path: &str, text: &str) {
        fs::write(self.state.join("config").join(path), text).unwrap();
    }

    pub(crate) fn smgr(&self, line: &[&str]) -> Output {
        self.command(line).output().unwrap()
    }

    /// Returns a command line that is not run yet.
    pub(crate) fn command(&self, line: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_smgr");
        let mut command = match &self.network {
            None => Command::new(program),
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", network.display())).arg(program);
                command
            }
        };
        command
            .args(line)
            .current_dir(self.temp.path())
            .env("SMGR_STATE", &self.state)
            .env("SMGR_NATS_SERVER", "off")
            .envs(self.env.iter().cloned());
        command
    }

    /// Runs a command and demands its exit code; returns what it printed, stdout first.
    pub(crate) fn exits(&self, code: i32, line: &[&str]) -> String {
        let ran = self.smgr(line);
        let (out, err) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert_eq!(ran.status.code(), Some(code), "smgr {line:?}\n{out}{err}");
        format!("{out}{err}")
    }

    /// Runs a reading; a bad state of things is an exit code as well, so none is demanded.
    pub(crate) fn json(&self, line: &[&str]) -> Value {
        let ran = self.smgr(&[line, &["-o", "json"]].concat());
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|why| {
            panic!("{line:?}: {why}: {}", String::from_utf8_lossy(&ran.stderr))
        })
    }

    /// Returns the one instance of a service as `status` shows it.
    pub(crate) fn instance(&self, service: &str) -> Value {
        let status = self.json(&["status", service]);
        status["instances"][0].clone()
    }

    /// Waits until a service is ready and returns its process.
    pub(crate) fn ready(&self, service: &str) -> u32 {
        self.ready_but(service, None)
    }

    /// Waits until a service is ready with another process than `before`.
    pub(crate) fn ready_but(&self, service: &str, before: Option<u32>) -> u32 {
        let mut last = Value::Null;
        eventually(&format!("{service} is ready"), || {
            last = self.instance(service);
            let ready = last["conditions"]["Ready"]["status"] == "true";
            let pid = last["pid"].as_u64().map(|pid| u32::try_from(pid).unwrap());
            pid.filter(|pid| ready && Some(*pid) != before)
        })
    }

    /// Returns all events, oldest first.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.exits(0, &["events", "-o", "json"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the process of one of the node's own parts.
    pub(crate) fn part(&self, name: &str) -> u32 {
        self.part_if_any(name).unwrap()
    }

    /// Returns the process of one of the node's own parts, once it has said so.
    pub(crate) fn part_if_any(&self, name: &str) -> Option<u32> {
        let path = self.state.join("run").join(name).join("pid");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let down = self.smgr(&["down"]);
        if !down.status.success() && !thread::panicking() {
            panic!("down: {}", String::from_utf8_lossy(&down.stderr));
        }
        if thread::panicking() {
            let said = fs::read_to_string(self.state.join("run/smgr.log")).unwrap_or_default();
            eprintln!("the parts said:\n{said}");
        }
        sweep(&self.state);
    }
}

/// Returns the interpreter itself: what is called so in a developer's PATH may be a script that needs that PATH.
pub(crate) fn python() -> String {
    let ran = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    String::from_utf8(ran.unwrap().stdout).unwrap().trim().to_owned()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
